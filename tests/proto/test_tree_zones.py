"""Trees and zones: who pushes across a border, and who asks for what did not come."""

from random import Random

import attrs
import pytest

from plumtree_quic.config import PlumtreeConfig, SyncConfig
from plumtree_quic.messages import (
    Announcement,
    Digest,
    Gossip,
    Graft,
    GraftEntry,
    GraftRefused,
    IHave,
    Prune,
    RefusedReason,
    Repair,
)
from plumtree_quic.proto.effects import Deliver, Push, Send
from plumtree_quic.proto.plumtree import Plumtree
from tests.rigs.broadcast import bundle, key, node

CONFIG = PlumtreeConfig(zone="home", sync=SyncConfig(enabled=False))
WAIT_S = CONFIG.graft_timeout
ORIGIN = key("o")
NEAR = [node(f"near{i}") for i in range(8)]
EAST = [node(f"east{i}") for i in range(4)]
WEST = [node(f"west{i}") for i in range(4)]


def up(near=4, east=2, west=2, *, config=CONFIG, members=100, name="me", mesh=False):
    me = Plumtree(key(name), 1, config, Random(0))
    me.set_overlay((), mesh=mesh, zone_members=members)
    links = [(peer, "home") for peer in NEAR[:near]]
    links += [(peer, "east") for peer in EAST[:east]] + [(peer, "west") for peer in WEST[:west]]
    for peer, zone in links:
        me.link_up(peer, 0.0, zone=zone)
        me.heard(peer, 0.0, 0.001, 100.0)
    me.receive(links[0][0], Digest(()), 0.0)
    return me


def gossip(first, *, hop=3, origin="o"):
    return Gossip(hop, bundle(first, origin=origin))


def ihave(first, *, hop=3):
    return IHave((Announcement(ORIGIN, 1, first, first, hop),))


def own(first):
    return bundle(first, origin="me")


def pushed_to(effects):
    return [peer for e in effects if isinstance(e, Push) for peer in e.peers]


def sent(effects, kind):
    sends = [e for e in effects if isinstance(e, Send)]
    return [(e.peer, e.message) for e in sends if isinstance(e.message, kind)]


def grafts(effects):
    """(peer, promote) of each entry."""
    return [
        (peer, entry.promote) for peer, graft in sent(effects, Graft) for entry in graft.entries
    ]


def pruned(effects):
    return [peer for peer, _ in sent(effects, Prune)]


def until_grafts(me, now, end):
    """(when, grafts) of the first grafts from `now` on."""
    while (due := me.next_deadline()) is not None and due <= end:
        now = max(now, due)
        found = grafts(me.advance(now))
        if found:
            return now, found
    return None, []


def zones_of(peers):
    return sorted(peer.name.rstrip("0123456789") for peer in peers)


# --- pushing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", [False, True])
def test_an_origin_pushes_to_one_neighbour_in_each_other_zone(mesh):
    me = up(8, 4, 4, mesh=mesh)
    near = 8 if mesh else CONFIG.eager_fanout
    assert zones_of(pushed_to(me.broadcast(own(1), 0.0))) == ["east", *["near"] * near, "west"]


@pytest.mark.parametrize("mesh", [False, True])
def test_who_relays_pushes_within_its_zone(mesh):
    for source in (NEAR[0], EAST[0]):
        me = up(8, 4, 4, mesh=mesh)
        effects = me.receive(source, gossip(1), 0.0)
        assert set(zones_of(pushed_to(effects))) == {"near"}
        # All others are owed an announcement.
        told = {peer for peer, _ in sent(me.advance(CONFIG.ihave_interval), IHave)}
        assert told == {*NEAR, *EAST, *WEST} - {source, *pushed_to(effects)}


def test_with_one_zone_nothing_is_different():
    with_zone, without = up(8, 0, 0), up(8, 0, 0, config=attrs.evolve(CONFIG, zone=""))
    for peer in NEAR:
        without.peer_moved(peer, "")
    for me in (with_zone, without):
        me.receive(NEAR[0], gossip(1), 0.0)
    assert with_zone.pushes(ORIGIN) == without.pushes(ORIGIN)


def test_another_bridge_is_built_when_the_link_to_one_goes_down():
    me = up(4, 2, 2)
    me.broadcast(own(1), 0.0)
    (bridge,) = [peer for peer in me.pushes(key("me")) if peer in EAST]
    me.link_down(bridge, 1.0)
    (other,) = [peer for peer in me.pushes(key("me")) if peer in EAST]
    assert other != bridge
    # A bridge that wants no pushes is left alone: its zone has another way.
    me.receive(other, Prune((key("me"),)), 2.0)
    me.broadcast(own(2), 3.0)
    assert not [peer for peer in me.pushes(key("me")) if peer in EAST]


def test_the_only_bridge_into_a_zone_is_never_refused_for_a_cap():
    me = up(4, 2, 2, config=attrs.evolve(CONFIG, max_eager_peers=1))
    me.receive(NEAR[0], gossip(1), 0.0)
    ask = Graft((GraftEntry(ORIGIN, 1, (), True),))
    assert not sent(me.receive(EAST[0], ask, 1.0), GraftRefused)
    assert not sent(me.receive(WEST[0], ask, 1.0), GraftRefused)
    assert {EAST[0], WEST[0]} <= set(me.pushes(ORIGIN))
    # A second one into the same zone is, like anybody.
    assert sent(me.receive(EAST[1], ask, 1.0), GraftRefused)
    assert EAST[1] not in me.pushes(ORIGIN)


def test_an_origin_builds_its_bridges_whatever_the_cap():
    me = up(4, 2, 2, config=attrs.evolve(CONFIG, max_eager_peers=1))
    assert {"east", "west"} <= set(zones_of(pushed_to(me.broadcast(own(1), 0.0))))


def test_a_peer_that_moves_to_our_zone_is_treated_as_one_of_it():
    me = up(1, 1, 0)
    me.peer_moved(EAST[0], "home")
    assert pushed_to(me.receive(NEAR[0], gossip(1), 0.0)) == [EAST[0]]
    me.peer_moved(EAST[0], "east")
    me.rebalance()
    assert pushed_to(me.receive(NEAR[0], gossip(2), 1.0)) == []


# --- asking -------------------------------------------------------------------------------------


def turns(count, members):
    """How many graft_timeouts each of so many nodes waits before it asks across the border."""
    found = []
    for number in range(count):
        me = up(members=members, name=f"m{number}")
        assert grafts(me.receive(EAST[0], ihave(1), 0.0)) == []
        when, asked = until_grafts(me, 0.0, 100.0)
        assert asked == [(EAST[0], True)]
        found.append(when / WAIT_S)
    return found


def test_the_members_of_a_zone_ask_across_the_border_one_after_the_other():
    found = sorted(turns(256, 256))
    # The mean is 1, 2, 4, 8, 16 by then; within what chance does.
    for at_most, by in ((6, 1.0), (8, 2.0), (12, 3.0), (20, 4.0), (32, 5.0)):
        assert sum(turn <= by + 1e-9 for turn in found) <= at_most
    assert found[0] <= 3.0
    assert found[-1] <= 9.0
    assert turns(16, 256) == turns(16, 256)


def test_what_is_announced_within_the_zone_as_well_is_asked_there_at_once():
    me = up()
    me.receive(EAST[0], ihave(1), 0.0)
    assert grafts(me.receive(NEAR[2], ihave(1), 0.1)) == [(NEAR[2], True)]


def test_without_neighbours_in_the_own_zone_nobody_is_waited_for():
    me = up(0, 2, 0)
    assert grafts(me.receive(EAST[0], ihave(1), 0.0)) == [(EAST[0], True)]


def test_a_parent_in_the_own_zone_gets_one_more_graft_timeout():
    alone, me = up(), up()
    me.receive(NEAR[0], gossip(1), 0.0)
    for each in (alone, me):
        each.receive(EAST[0], ihave(2), 1.0)
    without, asked = until_grafts(alone, 1.0, 100.0)
    assert asked == [(EAST[0], True)]
    with_parent, asked = until_grafts(me, 1.0, 100.0)
    assert asked == [(EAST[0], True)]
    assert with_parent - without == pytest.approx(WAIT_S)


def test_the_bridge_waits_for_nobody_when_its_parent_fails():
    me = up()
    me.receive(EAST[0], gossip(1), 0.0)
    assert me.parent(ORIGIN) == EAST[0]
    me.receive(EAST[1], ihave(2), 1.0)
    when, asked = until_grafts(me, 1.0, 100.0)
    assert when == pytest.approx(1.0 + WAIT_S)
    assert asked == [(EAST[1], True)]


def test_who_brings_an_origin_across_the_border_starts_its_tree_in_the_zone():
    me = up(8, 2, 0)
    me.receive(EAST[0], ihave(1), 0.0)
    until_grafts(me, 0.0, 100.0)
    effects = me.receive(EAST[0], Repair(4, bundle(1)), 9.0)
    assert [e.bundle.first for e in effects if isinstance(e, Deliver)] == [1]
    assert len(pushed_to(effects)) == CONFIG.eager_fanout
    assert set(zones_of(pushed_to(effects))) == {"near"}
    assert me.parent(ORIGIN) == EAST[0]


def test_when_the_own_zone_does_not_answer_the_border_is_asked_without_promotion():
    me = up(members=1 << 40)
    me.receive(NEAR[1], gossip(1), 0.0)
    me.receive(EAST[0], ihave(2), 1.0)
    me.receive(NEAR[2], ihave(2), 1.0)
    when, asked = until_grafts(me, 1.0, 100.0)
    assert asked == [(NEAR[2], True)]
    # It is not our turn for long: what is missing is fetched, and no bridge built.
    when, asked = until_grafts(me, when, 100.0)
    assert asked == [(EAST[0], False)]


def test_orphans_ask_the_zone_of_the_parent_that_they_lost():
    me = up(4, 2, 2)
    me.receive(NEAR[0], Prune((ORIGIN,)), 0.0)
    me.receive(NEAR[1], gossip(1), 0.0)
    for peer in NEAR:
        me.receive(peer, Prune((ORIGIN,)), 0.1)
    ((asked, promote),) = grafts(me.link_down(NEAR[1], 1.0))
    assert promote
    assert asked in NEAR
    bridge = up(4, 2, 2)
    bridge.receive(EAST[0], gossip(1), 0.0)
    assert grafts(bridge.link_down(EAST[0], 1.0)) == [(EAST[1], True)]


# --- fewer bridges ------------------------------------------------------------------------------


def test_a_neighbour_that_has_it_after_fewer_links_replaces_a_parent_across_the_border():
    me = up()
    me.receive(EAST[0], gossip(1, hop=3), 0.0)
    effects = me.receive(NEAR[3], gossip(1, hop=3), 0.1)
    assert me.parent(ORIGIN) == NEAR[3]
    assert pruned(effects) == [EAST[0]]
    assert NEAR[3] not in me.pushes(ORIGIN)


def test_one_that_has_it_after_more_links_may_have_it_from_us_and_is_pruned():
    me = up()
    me.receive(EAST[0], gossip(1, hop=3), 0.0)
    assert pruned(me.receive(NEAR[3], gossip(1, hop=5), 0.1)) == [NEAR[3]]
    assert me.parent(ORIGIN) == EAST[0]


def test_an_announcement_after_fewer_links_replaces_it_as_well():
    me = up(8)
    me.receive(EAST[0], gossip(1, hop=3), 0.0)
    lazy = next(peer for peer in NEAR if peer not in me.pushes(ORIGIN))
    assert grafts(me.receive(lazy, ihave(1, hop=4), 1.0)) == []
    effects = me.receive(lazy, ihave(1, hop=2), 1.0)
    assert grafts(effects) == [(lazy, True)]
    assert pruned(effects) == [EAST[0]]
    assert me.parent(ORIGIN) == lazy


def test_one_that_takes_no_more_children_is_not_asked_again():
    me = up(8)
    me.receive(EAST[0], gossip(1, hop=3), 0.0)
    lazy = next(peer for peer in NEAR if peer not in me.pushes(ORIGIN))
    assert grafts(me.receive(lazy, ihave(1, hop=2), 1.0)) == [(lazy, True)]
    me.receive(lazy, GraftRefused(ORIGIN, 1, (), RefusedReason.FULL), 1.1)
    me.receive(EAST[1], gossip(2, hop=3), 2.0)
    assert me.parent(ORIGIN) == EAST[1]
    assert grafts(me.receive(lazy, ihave(2, hop=2), 3.0)) == []
    assert me.parent(ORIGIN) == EAST[1]


def test_of_two_bridges_after_equally_many_links_one_yields():
    yielding = []
    for name, peer in (("near0", NEAR[1]), ("near1", NEAR[0])):
        me = Plumtree(key(name), 1, CONFIG, Random(0))
        me.link_up(peer, 0.0, zone="home")
        me.link_up(EAST[0], 0.0, zone="east")
        me.receive(EAST[0], gossip(1, hop=2), 0.0)
        me.receive(peer, gossip(1, hop=3), 0.0)
        yielding.append(me.parent(ORIGIN) == peer)
    assert sorted(yielding) == [False, True]


def test_a_neighbour_that_is_first_replaces_a_parent_across_the_border_at_once():
    me = up()
    me.receive(EAST[0], gossip(1), 0.0)
    me.receive(NEAR[3], gossip(2), 1.0)
    assert me.parent(ORIGIN) == NEAR[3]
    assert pruned(me.receive(EAST[0], gossip(2), 1.1)) == [EAST[0]]


def test_a_copy_that_left_before_our_prune_got_there_replaces_nothing():
    me = up()
    me.receive(EAST[0], gossip(1, hop=3), 0.0)
    assert pruned(me.receive(NEAR[3], gossip(1, hop=5), 0.1)) == [NEAR[3]]
    me.receive(NEAR[3], gossip(2, hop=2), 0.1)
    assert me.parent(ORIGIN) == EAST[0]
    assert pruned(me.receive(EAST[0], gossip(2, hop=3), 0.1)) == []


def test_who_is_first_across_the_border_goes_on_pushing_whatever_the_zone_does():
    # Others may have moved to us for what it brings; pruned, it would leave all of them without.
    me = up()
    me.receive(NEAR[0], gossip(1), 0.0)
    for seq in (2, 3):
        assert pruned(me.receive(EAST[0], gossip(seq, hop=1), float(seq))) == []
        assert pruned(me.receive(NEAR[0], gossip(seq, hop=9), float(seq))) == []
        assert me.parent(ORIGIN) == NEAR[0]
    me.receive(EAST[0], gossip(4, hop=1), 4.0)
    assert me.parent(ORIGIN) == EAST[0]
    assert pruned(me.receive(NEAR[0], gossip(4, hop=9), 4.1)) == [NEAR[0]]


def test_what_the_parent_did_not_bring_says_nothing_about_the_parent():
    me = up()
    me.receive(EAST[0], gossip(1, hop=3), 0.0)
    me.receive(EAST[1], gossip(2, hop=5), 1.0)
    assert pruned(me.receive(NEAR[3], gossip(2, hop=4), 1.1)) == [NEAR[3]]
    assert me.parent(ORIGIN) == EAST[0]
