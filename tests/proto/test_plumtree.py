"""The rules of the broadcast tree, one test each, on a single core and its answers."""

from random import Random

import attrs
import pytest

from plumtree_quic.config import PlumtreeConfig, SyncConfig
from plumtree_quic.messages import (
    Announcement,
    Chunk,
    Digest,
    DigestHashes,
    DigestRow,
    Gossip,
    Graft,
    GraftEntry,
    GraftRefused,
    IHave,
    Lane,
    Prune,
    RefusedReason,
    Repair,
)
from plumtree_quic.proto.effects import (
    Deliver,
    Forgotten,
    GraftFailed,
    GraftSent,
    PeerDemoted,
    PeerPromoted,
    PruneSent,
    Push,
    Send,
    Skipped,
)
from plumtree_quic.proto.plumtree import AHEAD_IDS_MAX, SETTLING_BUNDLES
from tests.rigs.broadcast import bundle, core, key, node

LAN = PlumtreeConfig.lan(sync=SyncConfig(enabled=False))
ORIGIN = key("o")
P = [node(f"p{i}") for i in range(40)]


def up(links=4, *, config=LAN, now=0.0, seed=0, mesh=True):
    """A core with links to P[0], P[1], ... that has had its greeting and found nothing in it."""
    me = core(config=config, seed=seed)
    me.set_overlay((), mesh=mesh)
    for peer in P[:links]:
        me.link_up(peer, now)
    if links:
        me.receive(P[0], Digest(()), now)
    return me


def gossip(first, *, hop=1, **what):
    return Gossip(hop, bundle(first, **what))


def ihave(first, last=None, *, hop=1, origin="o", epoch=1):
    return IHave((Announcement(key(origin), epoch, first, last or first, hop),))


def sent(effects, kind):
    sends = [e for e in effects if isinstance(e, Send)]
    return [(e.peer, e.message) for e in sends if isinstance(e.message, kind)]


def grafts(effects):
    """(peer, ranges, promote) of each entry."""
    return [
        (peer, entry.ranges, entry.promote)
        for peer, graft in sent(effects, Graft)
        for entry in graft.entries
    ]


def pushed_to(effects):
    return [peer for e in effects if isinstance(e, Push) for peer in e.peers]


def delivered(effects):
    return [e.bundle.first for e in effects if isinstance(e, Deliver)]


def grow(me, *, parent=P[0], first=1, count=1, now=0.0, origin="o"):
    """`parent` brings some bundles and becomes the parent; the announcements go out."""
    for seq in range(first, first + count):
        me.receive(parent, gossip(seq, origin=origin), now)
    me.advance(now + LAN.ihave_interval)


def announced(effects):
    """{peer: [(first, last, hop)]}"""
    return {
        peer: [(a.first, a.last, a.hop) for a in message.announcements]
        for peer, message in sent(effects, IHave)
    }


# --- first copies -------------------------------------------------------------------------------


def test_a_first_copy_is_delivered_before_it_is_pushed():
    effects = up().receive(P[1], gossip(1, hop=4), 0.0)
    assert isinstance(effects[0], Deliver)
    assert (effects[0].hop, effects[0].peer) == (4, P[1])
    (push,) = [e for e in effects if isinstance(e, Push)]
    assert push.peers == (P[0], P[2], P[3])
    assert push.message.hop == 5


def test_a_bundle_is_relayed_byte_for_byte():
    made = bundle(1, count=3)
    effects = up().receive(P[0], Gossip(1, made), 0.0)
    (push,) = [e for e in effects if isinstance(e, Push)]
    assert push.message.bundle.raw is made.raw


def test_hops_stop_at_255():
    effects = up().receive(P[0], gossip(1, hop=255), 0.0)
    assert next(e for e in effects if isinstance(e, Push)).message.hop == 255


def test_our_own_bundle_is_pushed_and_not_delivered():
    effects = up().broadcast(bundle(1, origin="me"), 0.0)
    assert delivered(effects) == []
    assert pushed_to(effects) == P[:4]


def test_in_a_full_mesh_a_new_origin_starts_on_every_link():
    assert pushed_to(up(16).receive(P[0], gossip(1), 0.0)) == P[1:16]


@pytest.mark.parametrize("fanout", [2, 5])
def test_eager_fanout_is_where_a_new_origin_starts_outside_of_a_full_mesh(fanout):
    me = up(12, config=attrs.evolve(LAN, eager_fanout=fanout), mesh=False)
    peers = pushed_to(me.receive(P[0], gossip(1), 0.0))
    assert len(set(peers) - {P[0]}) == fanout


@pytest.mark.parametrize("mesh", [False, True])
def test_an_origin_does_not_start_on_a_link_that_has_announced_it(mesh):
    """Its push would be kept back this time, and be a duplicate with the next bundle."""
    config = attrs.evolve(LAN, eager_fanout=3)
    me = up(5, config=config, mesh=mesh)
    for peer in P[1:4]:
        me.receive(peer, ihave(1), 0.0)
    assert pushed_to(me.receive(P[0], gossip(1), 0.01)) == [P[4]]
    assert pushed_to(me.receive(P[0], gossip(2), 0.02)) == [P[4]]


def test_an_origin_that_everybody_has_announced_starts_on_no_link():
    me = up(3)
    for peer in P[1:3]:
        me.receive(peer, ihave(1), 0.0)
    assert pushed_to(me.receive(P[0], gossip(1), 0.01)) == []
    assert pushed_to(me.receive(P[0], gossip(2), 0.02)) == []
    assert repairs(me.receive(P[1], ask((2, 2), promote=True), 0.1)) == [(P[1], 2)]
    assert pushed_to(me.receive(P[0], gossip(3), 0.2)) == [P[1]]


def test_where_an_origin_starts_depends_on_the_seed_alone():
    def starts(seed):
        me = up(30, seed=seed, mesh=False)
        return [pushed_to(me.receive(P[0], gossip(1, origin=f"o{n}"), 0.0)) for n in range(5)]

    assert starts(1) == starts(1)
    assert starts(1) != starts(2)


# --- announcements that we owe ------------------------------------------------------------------


def test_every_link_without_a_push_is_owed_an_announcement():
    me = up()
    grow(me)
    for peer in (P[1], P[2]):
        me.receive(peer, Prune((ORIGIN,)), 1.0)
    effects = me.receive(P[0], gossip(2, hop=3), 1.0)
    assert pushed_to(effects) == [P[3]]
    assert 1.0 + LAN.ihave_interval / 2 <= me.next_deadline() <= 1.0 + LAN.ihave_interval
    effects = me.advance(1.0 + LAN.ihave_interval)
    assert announced(effects) == {P[1]: [(2, 2, 3)], P[2]: [(2, 2, 3)]}


def test_what_is_owed_is_fixed_at_delivery_whatever_becomes_of_the_link():
    me = up()
    grow(me)
    me.receive(P[1], Prune((ORIGIN,)), 1.0)
    me.receive(P[0], gossip(2), 1.0)
    me.receive(P[2], Prune((ORIGIN,)), 1.0)
    assert announced(me.advance(2.0)) == {P[1]: [(2, 2, 1)]}


@pytest.mark.parametrize("interval", [0.02, 0.3])
def test_ihave_interval_is_how_long_an_announcement_waits_for_others_half_of_it_at_least(interval):
    waits = set()
    for seed in range(20):
        me = up(config=attrs.evolve(LAN, ihave_interval=interval), seed=seed)
        me.receive(P[1], gossip(1), 0.0)
        me.receive(P[2], Prune((ORIGIN,)), 0.5)
        me.receive(P[1], gossip(2), 1.0)
        due = me.next_deadline()
        waits.add(due)
        assert announced(me.advance(due - 0.001)) == {}
        assert announced(me.advance(due)) == {P[2]: [(2, 2, 1)]}
    assert 1.0 + interval / 2 <= min(waits) < 1.0 + 0.7 * interval
    assert 1.0 + 0.8 * interval < max(waits) <= 1.0 + interval
    assert len(waits) > 10


def test_ihave_batch_size_closes_a_batch_at_once():
    me = up(2)
    effects = []
    for n in range(LAN.ihave_batch_size):
        grow(me, origin=f"o{n}")
        me.receive(P[1], Prune((key(f"o{n}"),)), 0.0)
    for n in range(LAN.ihave_batch_size):
        assert sent(effects, IHave) == []
        effects = me.receive(P[0], gossip(2, origin=f"o{n}"), 1.0)
    assert len(announced(effects)[P[1]]) == LAN.ihave_batch_size


def test_announcements_of_one_origin_become_one_interval_split_where_the_hop_changes():
    me = up(2)
    grow(me)
    me.receive(P[1], Prune((ORIGIN,)), 0.0)
    for seq, hop in ((2, 1), (3, 1), (4, 2)):
        me.receive(P[0], gossip(seq, hop=hop), 1.0)
    assert announced(me.advance(2.0)) == {P[1]: [(2, 3, 1), (4, 4, 2)]}


@pytest.mark.parametrize("how", ["announces", "sends"])
def test_a_link_that_had_it_meanwhile_is_owed_nothing(how):
    me = up(3)
    grow(me)
    for peer in P[1:3]:
        me.receive(peer, Prune((ORIGIN,)), 0.0)
    for seq in (2, 3, 4):
        me.receive(P[0], gossip(seq), 1.0)
    me.receive(P[1], ihave(3) if how == "announces" else gossip(3), 1.0)
    told = announced(me.advance(2.0))
    assert sorted(told[P[1]]) == [(2, 2, 1), (4, 4, 1)]
    assert told[P[2]] == [(2, 4, 1)]


def test_an_announcer_whose_bundle_comes_by_another_link_gets_neither_push_nor_announcement():
    me = up(3)
    grow(me)
    me.receive(P[1], ihave(2), 1.0)
    effects = me.receive(P[0], gossip(2), 1.0)
    assert pushed_to(effects) == [P[2]]
    assert announced(me.advance(2.0)) == {}


# --- parents and prunes -------------------------------------------------------------------------


def test_the_first_link_to_bring_an_origin_is_its_parent():
    me = up()
    me.receive(P[2], gossip(1), 0.0)
    assert me.parent(ORIGIN) == P[2]


def test_the_first_link_to_bring_an_origin_is_its_parent_whoever_was_grafted_before():
    me = up()
    assert grafts(me.receive(P[1], ihave(1), 0.0)) == [(P[1], ((1, 1),), True)]
    effects = me.receive(P[2], gossip(1), 0.01)
    assert me.parent(ORIGIN) == P[2]
    assert sent(effects, Prune) == [(P[1], Prune((ORIGIN,)))]


def test_the_parent_is_pushed_nothing_of_its_origin():
    me = up()
    me.receive(P[2], gossip(1), 0.0)
    me.receive(P[1], ihave(2), 0.0)
    assert P[2] not in me.pushes(ORIGIN)


def test_a_pushed_duplicate_is_pruned_at_once():
    me = up()
    me.receive(P[0], gossip(1), 0.0)
    effects = me.receive(P[1], gossip(1), 0.0)
    assert sent(effects, Prune) == [(P[1], Prune((ORIGIN,)))]
    assert PruneSent(P[1], ORIGIN) in effects
    assert delivered(effects) == []


def test_the_parent_is_never_pruned():
    me = up()
    me.receive(P[0], gossip(1), 0.0)
    me.receive(P[1], gossip(2), 0.0)
    assert sent(me.receive(P[0], gossip(2), 0.0), Prune) == []
    assert sent(me.receive(P[0], gossip(1), 0.0), Prune) == []


def test_duplicates_on_their_way_when_the_prune_left_need_no_second_one():
    me = up()
    for seq in (1, 2, 3):
        me.receive(P[0], gossip(seq), 0.0)
    assert sent(me.receive(P[1], gossip(1), 0.0), Prune)
    assert not sent(me.receive(P[1], gossip(2), 0.1), Prune)
    assert sent(me.receive(P[1], gossip(3), 0.0 + LAN.graft_timeout), Prune)


def test_our_own_origin_has_no_parent_and_prunes_whoever_pushes_it():
    me = up()
    made = bundle(1, origin="me")
    me.broadcast(made, 0.0)
    assert sent(me.receive(P[1], Gossip(2, made), 0.0), Prune) == [(P[1], Prune((key("me"),)))]
    assert me.parent(key("me")) is None


def test_another_link_becomes_the_parent_when_it_was_first_three_times_in_a_row():
    me = up()
    grow(me)
    for seq in (2, 3, 4):
        assert me.parent(ORIGIN) == P[0]
        me.receive(P[1], gossip(seq), 1.0)
    assert me.parent(ORIGIN) == P[1]


def test_a_bundle_that_the_parent_brings_first_breaks_the_row():
    me = up()
    grow(me)
    for seq, peer in enumerate((P[1], P[1], P[0], P[1], P[1]), start=2):
        me.receive(peer, gossip(seq), 1.0)
    assert me.parent(ORIGIN) == P[0]


def test_a_prune_ends_our_pushes_and_says_nothing_of_the_other_direction():
    me = up()
    grow(me, parent=P[0])
    me.receive(P[1], Prune((ORIGIN,)), 1.0)
    assert me.pushes(ORIGIN) == (P[2], P[3])
    assert me.parent(ORIGIN) == P[0]
    me.receive(P[0], Prune((ORIGIN,)), 1.0)
    assert me.parent(ORIGIN) == P[0]
    assert delivered(me.receive(P[1], gossip(2), 1.0)) == [2]


def test_a_prune_of_an_unknown_origin_changes_nothing():
    me = up()
    assert me.receive(P[0], Prune((key("nobody"),)), 0.0) == []
    assert me.stats()["streams"] == 0


def test_a_peer_is_eager_while_at_least_one_origin_is_pushed_to_it():
    me = up(2)
    one = me.receive(P[0], gossip(1, origin="a"), 0.0)
    assert PeerPromoted(P[1]) in one
    assert PeerPromoted(P[1]) not in me.receive(P[0], gossip(1, origin="b"), 0.0)
    assert me.eager(P[1])
    assert me.receive(P[1], Prune((key("a"),)), 0.0) == []
    assert me.receive(P[1], Prune((key("b"),)), 0.0) == [PeerDemoted(P[1])]
    assert not me.eager(P[1])


def test_an_origin_unheard_for_ten_minutes_starts_again():
    me = up()
    grow(me)
    for peer in P[1:4]:
        me.receive(peer, Prune((ORIGIN,)), 1.0)
    assert pushed_to(me.receive(P[0], gossip(2), 590.0)) == []
    effects = me.receive(P[3], gossip(3), 590.0 + 601.0)
    assert delivered(effects) == [3]
    assert pushed_to(effects) == P[:3]
    assert me.parent(ORIGIN) == P[3]


def test_rebalance_starts_every_tree_again():
    me = up()
    grow(me)
    for peer in P[1:4]:
        me.receive(peer, Prune((ORIGIN,)), 1.0)
    me.rebalance()
    assert pushed_to(me.receive(P[0], gossip(2), 2.0)) == P[1:4]


# --- announcements that we hear, and grafts that we send ------------------------------------------


def test_what_is_announced_is_waited_for_while_the_parent_is_up():
    me = up()
    grow(me)
    assert grafts(me.receive(P[1], ihave(2), 1.0)) == []
    assert grafts(me.advance(1.0 + LAN.graft_timeout - 0.001)) == []
    effects = me.advance(1.0 + LAN.graft_timeout)
    assert grafts(effects) == [(P[1], ((2, 2),), True)]
    assert GraftSent(P[1], ORIGIN, ((2, 2),)) in effects
    assert me.parent(ORIGIN) == P[1]


@pytest.mark.parametrize("timeout", [0.1, 1.0])
def test_graft_timeout_is_the_time_that_a_push_has(timeout):
    me = up(config=attrs.evolve(LAN, graft_timeout=timeout))
    grow(me)
    me.receive(P[1], ihave(2), 1.0)
    assert grafts(me.advance(1.0 + timeout - 0.001)) == []
    assert grafts(me.advance(1.0 + timeout)) != []


def test_what_is_announced_without_a_parent_is_grafted_at_once():
    assert grafts(up().receive(P[1], ihave(5, 9), 0.0)) == [(P[1], ((5, 9),), True)]


def test_what_comes_in_time_is_not_grafted():
    me = up()
    grow(me)
    me.receive(P[1], ihave(2), 1.0)
    me.receive(P[0], gossip(2), 1.1)
    assert grafts(me.advance(5.0)) == []
    assert me.missing_count() == 0


def test_a_parent_that_fell_silent_is_not_waited_for():
    me = up()
    grow(me)
    me.heard(P[0], 1.0, 0.01, 0.05)
    me.receive(P[1], ihave(2), 1.0)
    assert grafts(me.advance(1.049)) == []
    assert grafts(me.advance(1.05)) == [(P[1], ((2, 2),), True)]


def test_a_parent_that_is_heard_meanwhile_keeps_its_time():
    me = up()
    grow(me)
    me.heard(P[0], 1.0, 0.01, 0.05)
    me.receive(P[1], ihave(2), 1.0)
    for at in (1.04, 1.08, 1.12, 1.16, 1.199):
        me.heard(P[0], at, 0.01, 0.05)
        assert grafts(me.advance(at)) == []
    assert grafts(me.advance(1.2)) == [(P[1], ((2, 2),), True)]


def test_what_the_parent_announces_it_does_not_push_so_it_is_asked_at_once():
    me = up()
    grow(me)
    assert grafts(me.receive(P[0], ihave(2), 1.0)) == [(P[0], ((2, 2),), True)]


def test_one_graft_is_outstanding_per_interval():
    me = up()
    assert len(grafts(me.receive(P[1], ihave(1), 0.0))) == 1
    assert grafts(me.receive(P[2], ihave(1), 0.0)) == []
    assert grafts(me.advance(LAN.graft_timeout / 2)) == []


def test_silence_turns_to_the_next_announcer():
    me = up()
    me.receive(P[1], ihave(1), 0.0)
    me.receive(P[2], ihave(1), 0.0)
    effects = me.advance(LAN.graft_timeout)
    assert [(peer, ranges) for peer, ranges, _ in grafts(effects)] == [(P[2], ((1, 1),))]


@pytest.mark.parametrize("reason", [RefusedReason.BUSY, RefusedReason.GONE])
def test_a_refusal_turns_to_the_next_announcer_long_before_the_timeout(reason):
    me = up()
    me.receive(P[1], ihave(1), 0.0)
    me.receive(P[2], ihave(1), 0.0)
    effects = me.receive(P[1], GraftRefused(ORIGIN, 1, ((1, 1),), reason), 0.01)
    effects += me.advance(0.05)
    assert [(peer, ranges) for peer, ranges, _ in grafts(effects)] == [(P[2], ((1, 1),))]


def test_who_has_it_no_more_is_not_asked_again():
    me = up()
    me.receive(P[1], ihave(1), 0.0)
    effects = me.receive(P[1], GraftRefused(ORIGIN, 1, ((1, 1),), RefusedReason.GONE), 0.01)
    assert GraftFailed(ORIGIN, 1, (1, 1)) in effects
    assert me.next_deadline() is None


def test_a_full_peer_still_serves_but_is_no_parent_and_is_not_asked_to_push_again():
    me = up()
    grow(me, parent=P[0])
    me.link_down(P[0], 1.0)
    me.receive(P[1], GraftRefused(ORIGIN, 1, (), RefusedReason.FULL), 1.0)
    assert me.parent(ORIGIN) is None
    assert grafts(me.receive(P[1], ihave(2), 1.0)) == [(P[1], ((2, 2),), False)]
    assert grafts(me.receive(P[2], ihave(3), 1.0)) == [(P[2], ((3, 3),), True)]


def test_a_full_peer_may_be_asked_to_push_again_later():
    me = up()
    me.receive(P[0], Repair(1, bundle(1)), 0.0)
    me.receive(P[1], GraftRefused(ORIGIN, 1, (), RefusedReason.FULL), 1.0)
    assert grafts(me.receive(P[1], ihave(2), 10.0)) == [(P[1], ((2, 2),), False)]
    me.receive(P[1], Repair(1, bundle(2)), 10.1)
    assert grafts(me.receive(P[1], ihave(3), 11.1)) == [(P[1], ((3, 3),), True)]


def test_a_parent_whose_pushes_are_usually_late_is_waited_for_longer():
    me = up()
    grow(me)
    late = LAN.graft_timeout * 0.9
    me.receive(P[1], ihave(2), 1.0)
    me.receive(P[0], gossip(2), 1.0 + late)
    me.receive(P[1], ihave(3), 2.0)
    assert grafts(me.advance(2.0 + LAN.graft_timeout)) == []
    # late + 4 deviations, and the first deviation is half of it (RFC 6298, section 2.2).
    assert grafts(me.advance(2.0 + 3 * late - 0.001)) == []
    assert [ranges for _, ranges, _ in grafts(me.advance(2.0 + 3 * late))] == [((3, 3),)]


def test_a_push_that_comes_after_the_graft_teaches_patience():
    me = up()
    grow(me)
    me.receive(P[1], ihave(2), 1.0)
    assert grafts(me.advance(1.0 + LAN.graft_timeout))
    me.receive(P[1], Repair(1, bundle(2)), 1.0 + LAN.graft_timeout * 1.2)
    me.receive(P[0], gossip(2), 1.0 + LAN.graft_timeout * 1.5)
    parent = me.parent(ORIGIN)
    other = P[2] if parent is not P[2] else P[3]
    me.receive(other, ihave(3), 5.0)
    assert grafts(me.advance(5.0 + LAN.graft_timeout * 1.5)) == []


@pytest.mark.parametrize("late", [1, 2, 3])
def test_most_parents_must_be_late_before_any_is_waited_for_longer(late):
    """One that sits on what it should push teaches nobody patience; a slow machine does."""
    me = up()
    origins = ["o", "p", "q"]
    for parent, origin in zip(P, origins, strict=False):
        grow(me, parent=parent, origin=origin)
    now, delay = 1.0, LAN.graft_timeout * 0.9
    for seq in range(2, 6):
        for number, (parent, origin) in enumerate(zip(P, origins, strict=False)):
            if number < late:
                me.receive(P[3], ihave(seq, origin=origin), now)
                assert grafts(me.advance(now + delay)) == []
                me.receive(parent, gossip(seq, origin=origin), now + delay)
            else:
                me.receive(parent, gossip(seq, origin=origin), now + delay)
            now += 1.0
    me.receive(P[3], ihave(6), now)
    asked = grafts(me.advance(now + LAN.graft_timeout))
    assert [ranges for _, ranges, _ in asked] == ([((6, 6),)] if late == 1 else [])


def test_patience_ends_after_five_graft_timeouts():
    me = up()
    grow(me)
    me.receive(P[1], ihave(2), 1.0)
    me.receive(P[1], Repair(1, bundle(2)), 1.1)
    me.receive(P[0], gossip(2), 61.0)
    me.receive(P[1], ihave(3), 100.0)
    assert grafts(me.advance(100.0 + 5 * LAN.graft_timeout))


def test_at_most_one_promotion_per_origin_and_graft_timeout():
    me = up()
    me.receive(P[0], gossip(1), 0.0)
    me.link_down(P[0], 1.0)
    me.advance(1.0)
    wanted = []
    for seq in range(2, 12):
        wanted += grafts(me.receive(P[1 + seq % 3], ihave(seq), 1.0 + seq / 1000))
    wanted += grafts(me.advance(1.0 + LAN.graft_timeout * 0.9))
    assert sum(len(ranges) for _, ranges, _ in wanted) > 1
    assert [promote for _, _, promote in wanted].count(True) == 1
    later = grafts(me.advance(1.0 + LAN.graft_timeout * 1.9))
    assert [promote for _, _, promote in later].count(True) == 1


def test_a_parent_that_goes_on_pushing_is_not_replaced_for_one_hole():
    me = up()
    grow(me)
    me.receive(P[1], ihave(2), 1.0)
    me.receive(P[0], gossip(3), 1.05)
    assert grafts(me.advance(1.0 + LAN.graft_timeout)) == [(P[1], ((2, 2),), False)]
    assert me.parent(ORIGIN) == P[0]


@pytest.mark.parametrize("retries", [1, 3])
def test_graft_max_retries_then_it_failed(retries):
    me = up(config=attrs.evolve(LAN, graft_max_retries=retries))
    effects = me.receive(P[1], ihave(1), 0.0)
    asks, now = len(grafts(effects)), 0.0
    while GraftFailed(ORIGIN, 1, (1, 1)) not in effects:
        now = me.next_deadline()
        effects = me.advance(now)
        asks += len(grafts(effects))
    assert asks == 1 + retries
    # 1 + 2 + 4 + ... graft_timeouts: exponential backoff.
    assert now == pytest.approx(LAN.graft_timeout * (2 ** (retries + 1) - 1))
    assert me.missing_count() == 0


def test_a_range_that_failed_is_asked_for_again_when_a_digest_names_it():
    me = up()
    me.receive(P[1], ihave(1), 0.0)
    me.receive(P[1], GraftRefused(ORIGIN, 1, ((1, 1),), RefusedReason.GONE), 0.01)
    effects = me.receive(P[2], Digest((DigestRow(ORIGIN, 1, ((1, 1),)),)), 1.0)
    assert grafts(effects) == [(P[2], ((1, 1),), False)]


def test_a_range_that_failed_makes_us_ask_somebody_for_a_digest():
    me = up(config=attrs.evolve(LAN, sync=SyncConfig(enabled=True, sync_interval=30.0)))
    me.receive(P[1], ihave(1), 0.0)
    me.receive(P[1], GraftRefused(ORIGIN, 1, ((1, 1),), RefusedReason.GONE), 0.01)
    effects = me.advance(2.0)
    assert len(sent(effects, DigestHashes)) == 1


def test_when_all_tries_are_used_up_the_announcer_itself_is_asked_for_a_digest():
    me = up(config=attrs.evolve(LAN, sync=SyncConfig(enabled=True, sync_interval=3600.0)))
    me.receive(P[2], ihave(1), 0.0)
    asked = []
    while not asked and (now := me.next_deadline()) is not None and now < 60.0:
        asked = sent(me.advance(now), DigestHashes)
    assert [peer for peer, _ in asked] == [P[2]]
    # It still holds it: the tries begin again.
    effects = me.receive(P[2], Digest((DigestRow(ORIGIN, 1, ((1, 1),)),)), now)
    assert grafts(effects) == [(P[2], ((1, 1),), False)]


@pytest.mark.parametrize("preset", [PlumtreeConfig.lan, PlumtreeConfig.wan])
def test_a_fast_sender_does_not_push_out_what_a_late_node_still_asks_for(preset):
    me = up(config=preset(message_cache_max_size=10, sync=SyncConfig(enabled=False)))
    for number in range(1, 201):
        me.broadcast(bundle(number, origin="me"), number * 0.05)
    asked = Graft((GraftEntry(key("me"), 1, ((1, 1),), False),))
    (answer,) = sent(me.receive(P[1], asked, 14.0), Repair)
    assert answer[1].bundle.first == 1


def test_while_somebody_asks_for_what_it_lacks_nothing_leaves_before_its_ttl():
    config = PlumtreeConfig.lan(message_cache_max_size=10, sync=SyncConfig(enabled=False))
    me = up(config=config)
    asked = Graft((GraftEntry(key("me"), 1, ((1, 1),), False),))
    for number in range(1, 51):
        me.broadcast(bundle(number, origin="me"), number * 0.5)
        if number % 25 == 0:
            me.receive(P[1], asked, number * 0.5)
    assert len(sent(me.receive(P[1], asked, 29.0), Repair)) == 1
    # Nobody has asked for 15 s: the bound holds again.
    me.broadcast(bundle(51, origin="me"), 45.0)
    assert me.cache_messages() == 10


def test_ranges_due_together_leave_in_one_frame_per_peer():
    me = up()
    grow(me, origin="a")
    grow(me, origin="b")
    entries = tuple(
        Announcement(key(name), 1, first, first, 1) for name in "ab" for first in (3, 4, 6)
    )
    me.receive(P[1], IHave(entries), 1.0)
    ((peer, graft),) = sent(me.advance(2.0), Graft)
    assert peer == P[1]
    assert [entry.ranges for entry in graft.entries] == [((3, 4), (6, 6)), ((3, 4), (6, 6))]


def test_a_graft_frame_names_at_most_64_ranges():
    me = up()
    grow(me)
    entries = tuple(Announcement(ORIGIN, 1, 3 + 2 * n, 3 + 2 * n, 1) for n in range(150))
    me.receive(P[1], IHave(entries), 1.0)
    frames = [graft for _, graft in sent(me.advance(2.0), Graft)]
    assert [sum(len(e.ranges) for e in g.entries) for g in frames] == [64, 64, 22]
    assert [e.promote for g in frames for e in g.entries] == [True, False, False]


def test_the_most_reliable_then_nearest_announcer_is_asked():
    me = up()
    grow(me)
    for peer, rtt in ((P[1], 0.2), (P[2], 0.01), (P[3], 0.1)):
        me.heard(peer, 1.0, rtt, 10.0)
        me.receive(peer, ihave(2), 1.0)
    assert grafts(me.advance(1.2))[0][0] == P[2]
    assert grafts(me.advance(2.0))[0][0] == P[3]
    # P[2] did not answer once: the other two come first from now on.
    for peer in P[1:4]:
        me.receive(peer, ihave(9), 2.0)
    assert P[2] not in {peer for peer, _, _ in grafts(me.advance(2.2))}


def test_the_announcer_that_a_frame_comes_from_soonest_is_asked_first():
    me = up()
    grow(me)
    for peer, takes in ((P[1], 0.1), (P[2], 0.3), (P[3], 0.2)):
        # All as near; what differs is what they lose.
        me.heard(peer, 1.0, 0.05, 10.0, takes)
        me.receive(peer, ihave(2), 1.0)
    assert grafts(me.advance(1.2))[0][0] == P[1]
    assert grafts(me.advance(2.0))[0][0] == P[3]


def test_x18_at_most_1000_announced_ids_are_outstanding_per_peer():
    me = up()
    for n in range(3000):
        me.receive(P[1], ihave(1 + 20 * n, 10 + 20 * n), n * 0.0001)
    assert me._missing.announced_ids(P[1]) == 1000
    assert me.stats()["missing_ranges"] <= 1000
    assert me.stats()["announcements_clipped"] > 0


def test_x18_a_million_unknown_ids_in_one_announcement_take_one_range():
    me = up()
    me.receive(P[1], ihave(1, 1 << 61), 0.0)
    assert me.stats()["missing_ranges"] == 1
    assert me._missing.announced_ids(P[1]) == 1000


def test_x18_announcements_of_origins_that_do_not_exist_leave_nothing_behind():
    me = up()
    now = 0.0
    for n in range(2000):
        now += 0.01
        me.receive(P[1], ihave(1, origin=f"ghost{n}"), now)
        me.advance(now)
    while me.next_deadline() is not None:
        me.advance(me.next_deadline())
    assert me.stats()["missing_ranges"] == 0
    assert me.stats()["streams"] == 0
    assert len(me._origins) == 1  # our own
    assert len(me._hoped) < 1000


def test_x18_ids_withheld_by_their_announcer_still_come_by_others():
    me = up()
    now = 0.0
    for seq in range(1, 30):
        now += 1.0
        me.receive(P[1], ihave(seq), now)
        effects = me.receive(P[2], ihave(seq), now)
        while P[2] not in [peer for peer, _, _ in grafts(effects)]:
            effects = me.advance(me.next_deadline())
        assert delivered(me.receive(P[2], Repair(2, bundle(seq)), now)) == [seq]
    assert me.stats()["grafts_failed"] == 0


def test_an_announcement_far_above_what_was_seen_is_left_to_a_digest():
    me = up(config=attrs.evolve(LAN, sync=SyncConfig(enabled=True)))
    grow(me)
    me.receive(P[1], ihave(1_000_000), 1.0)
    assert me.stats()["missing_ranges"] == 0
    assert [peer for peer, _ in sent(me.advance(2.0), DigestHashes)] == [P[1]]


# --- links that go down -------------------------------------------------------------------------


def test_orphaned_origins_are_grafted_at_once_in_one_frame_from_the_best_other_link():
    me = up()
    for name in "abc":
        grow(me, origin=name)
        for peer in P[1:4]:
            me.receive(peer, Prune((key(name),)), 0.5)
    for peer, rtt in ((P[1], 0.2), (P[2], 0.01), (P[3], 0.1)):
        me.heard(peer, 1.0, rtt, 10.0)
    effects = me.link_down(P[0], 1.0)
    ((peer, graft),) = sent(effects, Graft)
    assert peer == P[2]
    assert [(e.origin, e.promote) for e in graft.entries] == [(key(n), True) for n in "abc"]
    assert [me.parent(key(n)) for n in "abc"] == [P[2]] * 3


def test_an_orphans_new_parent_is_the_one_whose_frames_come_soonest_losses_included():
    me = up()
    grow(me)
    for peer in P[1:4]:
        me.receive(peer, Prune((ORIGIN,)), 0.5)
    for peer, rtt, takes in ((P[1], 0.01, 0.2), (P[2], 0.05, 0.025), (P[3], 0.1, 0.05)):
        me.heard(peer, 1.0, rtt, 10.0, takes)
    ((peer, _),) = sent(me.link_down(P[0], 1.0), Graft)
    assert peer == P[2]


def test_an_orphan_is_not_grafted_from_a_link_that_has_it_from_us():
    me = up(2)
    grow(me)
    assert me.pushes(ORIGIN) == (P[1],)
    assert sent(me.link_down(P[0], 1.0), Graft) == []


def test_what_the_lost_link_was_asked_for_is_asked_of_another_at_once():
    me = up()
    me.receive(P[1], ihave(1), 0.0)
    me.receive(P[2], ihave(1), 0.0)
    effects = me.link_down(P[1], 0.01)
    assert (P[2], ((1, 1),)) in [(peer, ranges) for peer, ranges, _ in grafts(effects)]


def test_a_new_link_takes_nothing_over_from_the_one_whose_place_it_gets():
    me = up(3)
    grow(me)
    me.receive(P[1], Prune((ORIGIN,)), 1.0)
    me.receive(P[0], gossip(2), 1.0)
    me.link_down(P[1], 1.0)
    me.link_down(P[2], 1.0)
    me.link_up(P[9], 1.0)
    me.link_up(P[8], 1.0)
    assert announced(me.advance(2.0)) == {}
    assert me.pushes(ORIGIN) == ()
    me.receive(P[0], gossip(3), 2.0)
    assert announced(me.advance(3.0)) == {P[9]: [(3, 3, 1)], P[8]: [(3, 3, 1)]}


def test_a_link_that_comes_up_mid_life_is_compared_with_and_then_gets_every_announcement():
    me = up(2)
    grow(me, count=3)
    ((peer, hashes),) = sent(me.link_up(P[5], 1.0), DigestHashes)
    assert (peer, hashes.answer, hashes.joins) == (P[5], False, False)
    effects = me.receive(P[5], DigestHashes(bytes(2048), round=9), 1.0)
    assert sent(effects, Digest) == [(P[5], Digest((DigestRow(ORIGIN, 1, ((1, 3),)),), round=9))]
    assert P[5] not in pushed_to(me.receive(P[0], gossip(4), 1.0))
    assert announced(me.advance(2.0)) == {P[5]: [(4, 4, 1)]}


# --- grafts that we serve -----------------------------------------------------------------------


def ask(*ranges, promote=False, origin="o", epoch=1):
    return Graft((GraftEntry(key(origin), epoch, tuple(ranges), promote),))


def repairs(effects):
    return [(peer, m.bundle.first) for peer, m in sent(effects, Repair)]


def refusals(effects):
    return [(m.reason, m.ranges) for _, m in sent(effects, GraftRefused)]


def test_a_graft_is_answered_with_each_bundle_that_is_held():
    me = up()
    for first in (1, 4, 7):
        me.receive(P[0], gossip(first, count=3, hop=2), 0.0)
    effects = me.receive(P[1], ask((4, 6), (9, 9)), 1.0)
    assert repairs(effects) == [(P[1], 4), (P[1], 7)]
    assert [m.hop for _, m in sent(effects, Repair)] == [3, 3]
    assert refusals(effects) == []


def test_x18_announcements_that_cut_ours_to_pieces_cost_a_bounded_list():
    me = up(2)
    grow(me)
    me.receive(P[1], Prune((ORIGIN,)), 0.5)
    for seq in range(2, 2000):
        me.receive(P[0], gossip(seq), 1.0)
    me.receive(P[1], IHave(tuple(ihave(n).announcements[0] for n in range(3, 2000, 2))), 1.0)
    told = announced(me.advance(2.0))[P[1]]
    assert len(told) <= 65
    assert {n for a, b, _ in told for n in range(a, b + 1)} >= set(range(2, 2000, 2))


def test_x18_prune_and_graft_in_turns_leave_no_state_behind():
    me = up()
    grow(me)
    for n in range(500):
        me.receive(P[1], Prune((ORIGIN,)), 1.0 + n)
        me.receive(P[1], ask((1, 1), promote=True), 1.0 + n)
    assert me.pushes(ORIGIN) == (P[1], P[2], P[3])
    assert me.next_deadline() == pytest.approx(LAN.message_cache_ttl)


def test_what_is_not_held_is_answered_gone():
    me = up()
    grow(me, count=3)
    effects = me.receive(P[1], ask((2, 5)), 1.0)
    assert repairs(effects) == [(P[1], 2), (P[1], 3)]
    assert refusals(effects) == [(RefusedReason.GONE, ((4, 5),))]
    assert refusals(me.receive(P[1], ask((1, 2), origin="nobody"), 1.0)) == [
        (RefusedReason.GONE, ((1, 2),))
    ]


def test_a_graft_with_promote_sets_our_push():
    me = up()
    grow(me)
    me.receive(P[1], Prune((ORIGIN,)), 1.0)
    me.receive(P[1], ask(promote=True), 1.0)
    assert P[1] in me.pushes(ORIGIN)
    me.receive(P[2], Prune((ORIGIN,)), 1.0)
    me.receive(P[2], ask((1, 1), promote=False), 1.0)
    assert P[2] not in me.pushes(ORIGIN)


def test_a_promoted_link_is_pushed_at_once_what_it_was_owed():
    me = up()
    grow(me)
    me.receive(P[1], Prune((ORIGIN,)), 1.0)
    me.receive(P[0], gossip(2), 1.0)
    effects = me.receive(P[1], ask(promote=True), 1.01)
    assert [(e.peers, e.message.bundle.first) for e in effects if isinstance(e, Push)] == [
        ((P[1],), 2)
    ]
    assert announced(me.advance(2.0)) == {}


def test_a_parent_that_grafts_us_is_no_parent_any_more():
    me = up()
    grow(me)
    me.receive(P[0], ask(promote=True), 1.0)
    assert me.parent(ORIGIN) is None
    assert P[0] in me.pushes(ORIGIN)


@pytest.mark.parametrize(("burst", "rate"), [(3, 5), (6, 20)])
def test_x18_grafts_over_the_rate_are_answered_busy(burst, rate):
    me = up(
        config=attrs.evolve(LAN, graft_rate_limit_burst=burst, graft_rate_limit_per_second=rate)
    )
    grow(me)
    answers = [me.receive(P[1], ask((1, 1), promote=True), 1.0) for _ in range(burst + 4)]
    assert sum(len(repairs(a)) for a in answers) == burst
    assert [refusals(a) for a in answers[burst:]] == [[(RefusedReason.BUSY, ((1, 1),))]] * 4
    assert me.stats()["grafts_over_rate"] == 4
    # Other peers have a budget of their own, and time refills it.
    assert repairs(me.receive(P[2], ask((1, 1)), 1.0)) == [(P[2], 1)]
    assert repairs(me.receive(P[1], ask((1, 1)), 1.0 + 1.01 / rate)) == [(P[1], 1)]


def test_a_frame_is_answered_with_at_most_1_mib_and_the_rest_is_busy():
    me = up()
    for seq in range(1, 41):
        me.receive(P[0], gossip(seq, payload=b"z" * 50_000), 0.0)
    effects = me.receive(P[1], ask((1, 40)), 1.0)
    served = len(repairs(effects))
    assert (1 << 20) <= served * 50_000 + 50_000 <= (1 << 20) + 2 * 50_100
    assert refusals(effects) == [(RefusedReason.BUSY, ((served + 1, 40),))]


def test_max_eager_peers_bounds_pushes_and_a_graft_over_it_is_served_and_answered_full():
    me = up(6, config=attrs.evolve(LAN, max_eager_peers=3))
    assert len(pushed_to(me.receive(P[0], gossip(1), 0.0))) == 3
    me.advance(0.5)
    effects = me.receive(P[5], ask((1, 1), promote=True), 1.0)
    assert repairs(effects) == [(P[5], 1)]
    assert refusals(effects) == [(RefusedReason.FULL, ((1, 1),))]
    assert len(me.pushes(ORIGIN)) == 3


def test_a_protected_link_is_never_refused_for_a_cap():
    me = up(6, config=attrs.evolve(LAN, max_eager_peers=2))
    me.set_overlay([P[5]], mesh=True)
    me.receive(P[0], gossip(1), 0.0)
    me.receive(P[5], Prune((ORIGIN,)), 0.5)
    assert refusals(me.receive(P[5], ask((1, 1), promote=True), 1.0)) == []
    assert P[5] in me.pushes(ORIGIN)


# --- repairs ------------------------------------------------------------------------------------


def test_a_repair_is_delivered_and_forwarded_like_a_first_copy():
    me = up()
    grow(me)
    me.receive(P[2], Prune((ORIGIN,)), 0.5)
    me.receive(P[3], ihave(2), 1.0)
    me.advance(1.0 + LAN.graft_timeout)
    effects = me.receive(P[3], Repair(4, bundle(2)), 1.3)
    assert delivered(effects) == [2]
    assert pushed_to(effects) == [P[1]]
    # P[0] was the parent until the graft; P[3] brought it.
    assert announced(me.advance(2.0)) == {P[0]: [(2, 2, 4)], P[2]: [(2, 2, 4)]}
    assert me.missing_count() == 0


def test_an_origin_first_met_by_a_repair_is_announced_and_pushed_to_nobody():
    me = up()
    effects = me.receive(P[1], Repair(3, bundle(1)), 0.0)
    assert (delivered(effects), pushed_to(effects)) == ([1], [])
    assert set(announced(me.advance(1.0))) == {P[0], P[2], P[3]}


def test_a_repair_is_no_duplicate_and_prunes_nobody():
    me = up()
    grow(me)
    effects = me.receive(P[1], Repair(2, bundle(1)), 1.0)
    assert effects == []
    assert me.stats()["tree_duplicates"] == 0


def test_a_repair_never_makes_a_parent():
    me = up()
    for seq in range(1, 6):
        me.receive(P[1], Repair(2, bundle(seq)), 0.0)
    assert me.parent(ORIGIN) is None
    me.receive(P[2], gossip(6), 0.0)
    for seq in range(7, 12):
        me.receive(P[1], Repair(2, bundle(seq)), 0.0)
    assert me.parent(ORIGIN) == P[2]


def test_a_part_that_came_starts_the_tries_for_the_rest_again():
    me = up()
    me.receive(P[1], ihave(1, 10), 0.0)
    me.advance(LAN.graft_timeout)
    me.advance(LAN.graft_timeout * 3)
    me.receive(P[1], Repair(1, bundle(4)), LAN.graft_timeout * 4)
    gaps = me._missing.gaps((ORIGIN, 1))
    assert [(g.first, g.last, g.tries) for g in gaps] == [(1, 3, 0), (5, 10, 0)]


# --- tree optimization --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "hop", "swaps"), [(2, 6, True), (2, 7, False), (6, 3, False)]
)
def test_optimization_threshold_is_how_many_hops_a_swap_must_save(threshold, hop, swaps):
    me = up(config=attrs.evolve(LAN, optimization_threshold=threshold))
    grow(me)
    me.receive(P[1], Prune((ORIGIN,)), 0.5)
    me.heard(P[1], 1.0, 0.05, 10.0)
    me.receive(P[0], gossip(2, hop=10), 1.0)
    effects = me.receive(P[1], ihave(2, hop=hop), 1.01)
    if swaps:
        assert grafts(effects) == [(P[1], (), True)]
        assert sent(effects, Prune) == [(P[0], Prune((ORIGIN,)))]
        assert me.parent(ORIGIN) == P[1]
    else:
        assert effects == []
        assert me.parent(ORIGIN) == P[0]


def test_hops_are_hearsay_a_late_announcement_swaps_nothing():
    me = up()
    grow(me)
    me.receive(P[1], Prune((ORIGIN,)), 0.5)
    me.heard(P[1], 1.0, 0.05, 10.0)
    me.receive(P[0], gossip(2, hop=10), 1.0)
    assert me.receive(P[1], ihave(2, hop=1), 1.06) == []


# --- settling -----------------------------------------------------------------------------------


def ring(links=6):
    """In an overlay of rings, with a parent; of the second bundle on, its tree settles."""
    me = up(links, mesh=False)
    grow(me)
    for peer in P[1:links]:
        me.heard(peer, 1.0, 0.05, 10.0)
    return me


def test_a_new_tree_announces_its_next_bundles_at_once_and_later_ones_in_batches():
    me = ring()
    at_once = []
    for seq in range(2, SETTLING_BUNDLES + 5):
        effects = me.receive(P[0], gossip(seq), float(seq))
        at_once.append(bool(announced(effects)))
        me.advance(seq + 0.5)
    assert at_once == [True] * SETTLING_BUNDLES + [False] * 3


def test_the_first_bundle_is_announced_with_the_batch_for_nobody_has_a_parent_yet():
    assert announced(up(6, mesh=False).receive(P[0], gossip(1), 0.0)) == {}


def test_a_burst_announces_one_bundle_an_interval_at_once():
    me = ring()
    effects = [me.receive(P[0], gossip(seq), 1.0 + seq / 1000) for seq in range(2, 40)]
    assert [bool(announced(each)) for each in effects].count(True) == 1


def test_who_announces_before_the_parent_pushes_takes_its_place_while_the_tree_settles():
    me = ring()
    me.receive(P[1], ihave(2), 1.0)
    effects = me.receive(P[0], gossip(2), 1.02)
    assert grafts(effects) == [(P[1], (), True)]
    assert sent(effects, Prune) == [(P[0], Prune((ORIGIN,)))]
    assert me.parent(ORIGIN) == P[1]


@pytest.mark.parametrize("lead_s", [0.0, 0.05 / 9])
def test_a_lead_of_less_than_an_eighth_of_the_round_trip_is_jitter(lead_s):
    me = ring()
    me.receive(P[1], ihave(2), 1.0)
    me.receive(P[0], gossip(2), 1.0 + lead_s)
    assert me.parent(ORIGIN) == P[0]


def test_a_settled_tree_is_changed_by_no_announcement_however_early():
    me = ring()
    for seq in range(2, SETTLING_BUNDLES + 2):
        me.receive(P[0], gossip(seq), float(seq))
    me.receive(P[1], ihave(30), 100.0)
    me.receive(P[0], gossip(30), 100.1)
    assert me.parent(ORIGIN) == P[0]


def test_in_a_full_mesh_nothing_settles_for_every_node_is_next_to_the_origin():
    me = up(6)
    grow(me)
    assert announced(me.receive(P[0], gossip(2), 1.0)) == {}
    me.receive(P[1], ihave(3), 2.0)
    me.receive(P[0], gossip(3), 2.2)
    assert me.parent(ORIGIN) == P[0]


def test_who_announced_and_did_not_serve_is_not_believed_while_the_tree_settles():
    me = ring()
    me.receive(P[1], ihave(2), 1.0)
    # The parent is silent; the announcer is asked, and does not answer.
    me.advance(1.0 + LAN.graft_timeout)
    me.advance(1.0 + 4 * LAN.graft_timeout)
    me.receive(P[0], gossip(2), 3.0)
    me.receive(P[0], gossip(3), 3.1)
    me.receive(P[0], gossip(4), 3.2)
    me.receive(P[0], gossip(5), 3.3)
    assert me.parent(ORIGIN) == P[0]
    me.receive(P[1], ihave(6), 4.0)
    me.receive(P[0], gossip(6), 4.1)
    assert me.parent(ORIGIN) == P[0]


def test_a_torn_tree_settles_again():
    me = ring()
    for seq in range(2, SETTLING_BUNDLES + 3):
        me.receive(P[0], gossip(seq), float(seq))
        me.advance(seq + 0.5)
    me.link_down(P[0], 50.0)
    parent = me.parent(ORIGIN)
    assert parent is not None
    assert announced(me.receive(parent, gossip(40), 51.0))


# --- congestion ---------------------------------------------------------------------------------


def test_pushes_to_a_congested_link_become_announcements_until_it_has_drained():
    me = up()
    grow(me)
    me.congested(P[1], 1.0)
    assert pushed_to(me.receive(P[0], gossip(2), 1.0)) == [P[2], P[3]]
    assert announced(me.advance(2.0)) == {P[1]: [(2, 2, 1)]}
    me.drained(P[1], 2.0)
    assert pushed_to(me.receive(P[0], gossip(3), 2.0)) == [P[1], P[2], P[3]]


def test_pieces_of_large_messages_are_pushed_as_such_and_small_ones_as_ever():
    me = up()
    grow(me)
    piece = Chunk(1, bundle(2, chunk=(0, 2, 4), payload=b"xx"))
    effects = me.receive(P[0], piece, 1.0)
    assert delivered(effects) == [2]
    (push,) = [e for e in effects if isinstance(e, Push)]
    assert push.message == Chunk(2, piece.bundle)
    assert announced(me.advance(2.0)) == {}
    (push,) = [e for e in me.receive(P[0], gossip(4), 2.0) if isinstance(e, Push)]
    assert type(push.message) is Gossip
    ((_, repair),) = sent(me.receive(P[1], ask((2, 2)), 3.0), Repair)
    assert repair.bundle is piece.bundle


def test_a_full_bulk_lane_turns_pieces_into_announcements_and_nothing_else():
    me = up()
    grow(me)
    pieces = [Chunk(1, bundle(2 + n, chunk=(n, 3, 6), payload=b"xx")) for n in range(3)]
    me.congested(P[1], 1.0, Lane.BULK)
    assert pushed_to(me.receive(P[0], pieces[0], 1.0)) == [P[2], P[3]]
    assert pushed_to(me.receive(P[0], gossip(5), 1.0)) == [P[1], P[2], P[3]]
    assert announced(me.advance(2.0)) == {P[1]: [(2, 2, 1)]}
    assert len(repairs(me.receive(P[1], ask((2, 2)), 2.0))) == 1
    me.drained(P[1], 2.0, Lane.BULK)
    assert pushed_to(me.receive(P[0], pieces[1], 2.0)) == [P[1], P[2], P[3]]
    me.congested(P[1], 3.0)
    assert pushed_to(me.receive(P[0], pieces[2], 3.0)) == [P[2], P[3]]


def test_the_child_behind_a_congested_link_gets_busy_to_graft_elsewhere():
    me = up()
    grow(me)
    me.congested(P[1], 1.0)
    effects = me.receive(P[1], ask((1, 1), promote=True), 1.0)
    assert refusals(effects) == [(RefusedReason.BUSY, ((1, 1),))]
    assert repairs(effects) == []


def test_a_busy_parent_is_replaced_by_the_next_announcer():
    me = up()
    grow(me)
    me.receive(P[0], ihave(2), 1.0)
    me.receive(P[1], ihave(2), 1.0)
    me.receive(P[0], GraftRefused(ORIGIN, 1, ((2, 2),), RefusedReason.BUSY), 1.01)
    assert grafts(me.advance(1.1)) == [(P[1], ((2, 2),), True)]
    assert me.parent(ORIGIN) == P[1]
    assert me.stats()["grafts_refused"] == 1


# --- seen sets ----------------------------------------------------------------------------------


def test_b15_a_replay_is_recognised_after_the_cache_has_forgotten_the_bundle():
    me = up()
    grow(me)
    me.advance(1000.0)
    assert me.cache_messages() == 0
    assert delivered(me.receive(P[0], gossip(1), 1000.0)) == []
    assert me.has_seen(bundle(1))


def test_epochs_of_which_the_store_holds_something_are_kept_however_many():
    me = up()
    for epoch in range(1, 13):
        effects = me.receive(P[0], gossip(1, epoch=epoch), 0.0)
        assert delivered(effects)
        me.stored((ORIGIN, epoch), 1, 1)
    assert not delivered(me.receive(P[1], gossip(1, epoch=1), 0.0))
    assert me.stats()["tree_stale"] == 0
    # Once the store has let the oldest go, they are forgotten with the next one that comes.
    for epoch in range(1, 11):
        me.evicted((ORIGIN, epoch), 1, 1)
    effects = me.receive(P[0], gossip(1, epoch=13), 0.0)
    assert [each.epoch for each in effects if isinstance(each, Forgotten)] == [1, 2, 3, 4, 5]
    assert me.receive(P[1], gossip(1, epoch=5), 0.0) == []
    assert me.stats()["tree_stale"] == 1


def test_epochs_of_which_the_store_holds_something_have_a_bound_too(monkeypatch):
    monkeypatch.setattr("plumtree_quic.proto.plumtree.EPOCHS_STORED_MAX", 10)
    me = up()
    for epoch in range(1, 15):
        me.receive(P[0], gossip(1, epoch=epoch), 0.0)
        me.stored((ORIGIN, epoch), 1, 1)
    assert sorted(each for key, each in me._streams if key == ORIGIN) == list(range(5, 15))


def test_the_newest_8_epochs_of_an_origin_are_kept_and_an_older_one_is_stale():
    me = up()
    for epoch in range(10, 20):
        assert delivered(me.receive(P[0], gossip(1, epoch=epoch), 0.0)) == [1]
    assert me.stats()["streams"] == 8
    assert me.receive(P[0], gossip(1, epoch=11), 0.0) == []
    assert me.receive(P[0], ihave(5, epoch=11), 0.0) == []
    assert me.stats()["tree_stale"] == 2
    assert me.cache_messages() == 8


@pytest.mark.parametrize(
    "second",
    [bundle(3, count=4), bundle(2, count=2), bundle(1, count=4, payload=b"y")],
    ids=["overlaps", "is inside", "has other bytes"],
)
def test_equivocation_the_first_stands_and_the_link_is_not_to_blame(second):
    me = up()
    me.receive(P[0], gossip(1, count=4), 0.0)
    assert delivered(me.receive(P[0], Gossip(1, second), 0.0)) == []
    assert me.stats()["tree_equivocations"] == 1
    assert repairs(me.receive(P[1], ask((1, 9)), 1.0)) == [(P[1], 1)]


def test_somebody_else_with_our_own_key_and_epoch_is_not_believed():
    me = up()
    me.broadcast(bundle(1, origin="me"), 0.0)
    for seq in (1, 2, 7):
        assert delivered(me.receive(P[0], gossip(seq, origin="me", payload=b"no"), 0.0)) == []
    assert me.stats()["tree_equivocations"] == 3
    me.broadcast(bundle(2, origin="me"), 0.0)


def test_what_we_broadcast_in_a_former_life_is_passed_on_like_any_other():
    me = core(config=LAN, epoch=9)
    for peer in P[:3]:
        me.link_up(peer, 0.0)
    me.receive(P[0], Digest(()), 0.0)
    effects = me.receive(P[0], gossip(7, origin="me", epoch=3), 0.0)
    assert pushed_to(effects) == P[1:3]
    assert me.parent(key("me")) is None


def test_at_most_1024_gaps_and_the_lowest_that_nobody_offers_is_given_up():
    me = up()
    for n in range(1030):
        assert delivered(me.receive(P[0], gossip(2 + 2 * n), 0.0)) == [2 + 2 * n]
    assert me._streams[ORIGIN, 1].seen.gaps <= 1024
    assert me.stats()["tree_ids_lost"] > 0


def test_a_bundle_that_opens_one_gap_too_many_is_not_taken_while_the_lowest_is_on_offer():
    me = up()
    me.receive(P[1], ihave(1), 0.0)
    for n in range(1024):
        me.receive(P[0], gossip(2 + 2 * n), 0.0)
    assert delivered(me.receive(P[0], gossip(5000), 0.0)) == []
    assert me.stats()["tree_over_gaps"] == 1
    assert delivered(me.receive(P[1], Repair(1, bundle(1)), 0.0)) == [1]
    assert delivered(me.receive(P[0], gossip(5000), 0.0)) == [5000]


def test_what_is_refused_is_seen_and_neither_delivered_nor_held_nor_forwarded():
    me = up()
    assert me.refuse(P[0], gossip(1), 0.0) == [Skipped(ORIGIN, 1, 1, 1)]
    assert me.stats()["tree_refused"] == 1
    assert me.has_seen(bundle(1))
    assert me.cache_messages() == 0
    assert me.parent(ORIGIN) == P[0]
    assert delivered(me.receive(P[1], gossip(1), 0.0)) == []
    assert grafts(me.receive(P[2], ihave(1), 0.0)) == []


# --- digests ------------------------------------------------------------------------------------


def digest(*rows, last=True):
    return Digest(tuple(DigestRow(key(o), e, held) for o, e, held in rows), last)


def test_a_joiner_takes_the_first_digest_as_what_was_before_its_time():
    me = core(config=LAN)
    me.link_up(P[0], 0.0)
    assert grafts(me.receive(P[0], digest(("o", 1, ((5, 90),))), 0.0)) == []
    assert me.has_seen(bundle(1)), me.has_seen(bundle(90))
    assert not me.has_seen(bundle(91))
    assert grafts(me.receive(P[0], ihave(91, 92), 0.0)) == [(P[0], ((91, 92),), True)]


def test_what_reaches_the_first_link_while_its_digest_is_on_its_way_is_not_before_our_time():
    me = core(config=LAN)
    me.link_up(P[0], 0.0)
    me.receive(P[0], digest(("o", 1, ((5, 90),))), 0.0)
    # Both left before the digest, which has them too, and came behind it.
    assert grafts(me.receive(P[0], ihave(89, 89), 0.0)) == [(P[0], ((89, 89),), True)]
    assert delivered(me.receive(P[0], gossip(90), 0.0)) == [90]
    assert delivered(me.receive(P[0], Repair(1, bundle(89)), 0.0)) == [89]
    assert delivered(me.receive(P[0], Repair(1, bundle(88)), 0.0)) == []


def test_the_floor_takes_all_pages_and_only_of_the_first_link():
    me = core(config=LAN)
    me.link_up(P[0], 0.0)
    me.link_up(P[1], 0.0)
    assert me.receive(P[1], digest(("o", 1, ((5, 99),)), ("b", 1, ((1, 7),))), 0.0) == []
    me.receive(P[0], digest(("o", 1, ((5, 90),)), last=False), 0.0)
    effects = me.receive(P[0], digest(("a", 1, ((1, 3),))), 0.0)
    # What the second link holds beyond the floor is asked for.
    assert sorted(grafts(effects)) == sorted([(P[1], ((91, 99),), False), (P[1], ((1, 7),), False)])
    assert me.has_seen(bundle(3, origin="a"))


def test_holes_in_the_first_digest_stay_open_for_what_fills_them():
    me = core(config=LAN)
    me.link_up(P[0], 0.0)
    me.receive(P[0], digest(("o", 1, ((5, 90), (95, 99)))), 0.0)
    assert delivered(me.receive(P[0], gossip(91, count=4), 0.0)) == [91]


def test_what_was_pushed_or_announced_before_the_first_digest_arrived_is_delivered():
    me = core(config=LAN)
    me.link_up(P[0], 0.0)
    assert delivered(me.receive(P[0], gossip(91), 0.0)) == [91]
    me.receive(P[0], ihave(89), 0.0)
    me.receive(P[0], digest(("o", 1, ((5, 90),))), 0.01)
    assert delivered(me.receive(P[0], Repair(1, bundle(89)), 0.02)) == [89]
    assert delivered(me.receive(P[0], Repair(1, bundle(88)), 0.02)) == []


def test_a_bundle_cut_by_a_false_floor_is_delivered_whole():
    me = core(config=LAN)
    me.link_up(P[0], 0.0)
    me.receive(P[0], digest(("o", 1, ((5, 90),))), 0.0)
    assert delivered(me.receive(P[0], gossip(85, count=10), 0.0)) == [85]
    assert delivered(me.receive(P[0], gossip(85, count=10), 0.0)) == []


def test_what_is_announced_or_pushed_is_not_before_our_time_whatever_the_first_link_claims():
    me = core(config=LAN)
    for peer in P[:2]:
        me.link_up(peer, 0.0)
    me.receive(P[0], digest(("o", 1, ((1, 1 << 40),))), 0.0)
    assert grafts(me.receive(P[1], ihave(80, 81), 0.0)) == [(P[1], ((80, 81),), True)]
    assert delivered(me.receive(P[1], Repair(1, bundle(80, count=2)), 0.0)) == [80]
    assert not me.is_settled(bundle(82))
    assert delivered(me.receive(P[1], gossip(82), 0.0)) == [82]
    assert me.is_settled(bundle(82))
    # And each of it once, when nobody holds it any more, too.
    me.advance(10 * LAN.message_cache_ttl)
    for peer in P[:2]:
        assert delivered(me.receive(peer, gossip(80, count=2), 9.0)) == []
        assert grafts(me.receive(peer, ihave(80, 82), 9.0)) == []


def test_what_is_announced_of_a_claim_is_bounded_like_any_announcement():
    me = core(config=LAN)
    for peer in P[:2]:
        me.link_up(peer, 0.0)
    me.receive(P[0], digest(("o", 1, ((1, 1 << 40),))), 0.0)
    me.receive(P[1], ihave(2, 5_000_000), 0.0)
    assert not me.has_seen(bundle(1_001))
    assert me.has_seen(bundle(1_002))


def test_nobody_makes_more_gaps_than_are_kept_by_claims_or_by_doubts():
    me = core(config=LAN)
    for peer in P[:2]:
        me.link_up(peer, 0.0)
    for page in range(10):
        held = tuple((n, n) for n in range(1 + 512 * page, 513 + 512 * page, 2))
        me.receive(P[0], digest(("o", 1, held), last=False), 0.0)
    me.receive(P[0], digest(("a", 1, ((1, 1 << 40),))), 0.0)
    for number in range(40):
        for first in range(1 + 100 * number, 101 + 100 * number, 2):
            me.receive(P[1], ihave(first, origin="a"), float(number))
        me.receive(P[1], GraftRefused(key("a"), 1, ((1, 5_000),), RefusedReason.GONE), number)
    assert len(me._streams[ORIGIN, 1].seen) <= 1024
    assert len(me._streams[key("a"), 1].seen) <= 1024


def test_a_claim_far_above_what_others_hold_is_none():
    me = core(config=LAN)
    for peer in P[:2]:
        me.link_up(peer, 0.0)
    me.receive(P[0], digest(("o", 1, ((1, 1 << 40),))), 0.0)
    assert delivered(me.receive(P[1], gossip(1 << 30), 0.0)) == [1 << 30]
    assert grafts(me.receive(P[1], digest(("o", 1, ((1, 9),))), 0.0)) == []
    assert me.has_seen(bundle(9 + AHEAD_IDS_MAX))
    assert me.has_seen(bundle(1 << 30))
    assert not me.has_seen(bundle(10 + AHEAD_IDS_MAX))


def test_a_first_link_that_never_ends_its_digest_holds_nothing_up_for_long():
    me = core(config=LAN)
    me.link_up(P[0], 0.0)
    me.link_up(P[1], 0.0)
    me.receive(P[1], digest(("o", 1, ((1, 3),))), 0.0)
    assert grafts(me.advance(me.next_deadline())) == [(P[1], ((1, 3),), False)]


@pytest.mark.parametrize("then", ["goes down", "answers"])
def test_who_was_away_and_returns_asks_for_everything_it_lacks(then):
    me = up(1)
    grow(me, count=3)
    me.link_down(P[0], 1.0)
    me.link_up(P[1], 60.0)
    effects = me.receive(P[1], digest(("o", 1, ((1, 50),)), ("new", 4, ((9, 9),))), 60.0)
    assert sorted(grafts(effects)) == sorted([(P[1], ((4, 50),), False), (P[1], ((9, 9),), False)])


@pytest.mark.parametrize("batch", [3, 10])
def test_max_batch_size_bounds_the_ranges_asked_of_one_peer_and_it_goes_on_when_answered(batch):
    me = up(config=attrs.evolve(LAN, sync=SyncConfig(enabled=False, max_batch_size=batch)))
    held = tuple((n, n) for n in range(1, 60, 2))
    wanted = {n for n, _ in held}
    effects = me.receive(P[1], digest(("o", 1, held)), 0.0)
    asked = [r for _, ranges, _ in grafts(effects) for r in ranges]
    assert len(asked) == batch
    got, now = set(), 0.0
    while asked:
        first, _ = asked.pop(0)
        now += 0.01
        effects = me.receive(P[1], Repair(1, bundle(first)), now)
        got |= set(delivered(effects))
        asked += [r for _, ranges, _ in grafts(effects) for r in ranges]
        assert len(asked) <= batch
    assert got == wanted


def test_a_digest_is_a_hint_and_what_is_gone_ends_the_asking():
    me = up()
    me.receive(P[1], digest(("o", 1, ((1, 9),))), 0.0)
    effects = me.receive(P[1], GraftRefused(ORIGIN, 1, ((1, 9),), RefusedReason.GONE), 0.1)
    assert [e for e in effects if isinstance(e, GraftFailed)] == [GraftFailed(ORIGIN, 1, (1, 9))]
    assert me.stats()["missing_ranges"] == 0


def test_what_a_digest_names_above_what_was_seen_is_waited_for_like_any_announcement():
    me = up()
    grow(me)
    assert grafts(me.receive(P[1], digest(("o", 1, ((1, 2),))), 1.0)) == []
    assert grafts(me.advance(1.0 + LAN.graft_timeout)) == [(P[1], ((2, 2),), False)]


def test_our_own_digest_is_paged_so_that_each_page_fits_a_frame():
    me = up(1)
    for n in range(3000):
        me.receive(P[0], gossip(1, origin=f"o{n}"), 0.0)
    me.link_up(P[1], 1.0)
    now, hashes = 1.0, DigestHashes(bytes(2_048), round=1)
    pages = [d for _, d in sent(me.receive(P[1], hashes, now), Digest)]
    while not pages[-1].last:
        now = me.next_deadline()
        pages += [d for _, d in sent(me.advance(now), Digest)]
    assert now < 2.0
    assert sum(len(d.rows) for d in pages) == 3000
    assert [d.last for d in pages] == [False] * (len(pages) - 1) + [True]
    assert len(pages) > 1
    assert all(26 * len(d.rows) + 16 * len(d.rows) <= 61_440 for d in pages)


@pytest.mark.parametrize("interval", [10.0, 40.0])
def test_sync_interval_is_how_often_a_random_link_is_compared_with(interval):
    config = attrs.evolve(LAN, sync=SyncConfig(enabled=True, sync_interval=interval))
    me = up(4, config=config)
    grow(me)
    asked = []
    while me.next_deadline() < 1000.0:
        now = me.next_deadline()
        asked += [(now, peer) for peer, d in sent(me.advance(now), DigestHashes) if d.answer]
        me.rebalance()
    assert 1000 / interval * 0.8 <= len(asked) <= 1000 / interval * 1.25
    assert len({peer for _, peer in asked}) > 1


def test_without_sync_nothing_is_compared_later():
    me = up()
    assert me.next_deadline() is None


def test_hashes_are_answered_twice_a_second_at_most():
    me = up()
    grow(me)
    hashes = DigestHashes(bytes(2_048), round=1)
    answers = [sent(me.receive(P[1], hashes, 1.0 + n / 100), Digest) for n in range(100)]
    answers = [a for a in answers if a]
    assert len(answers) == 2
    assert answers[0] == [(P[1], attrs.evolve(digest(("o", 1, ((1, 1),))), round=1))]


# --- robustness ---------------------------------------------------------------------------------


def test_a_message_from_a_link_that_is_not_up_is_ignored():
    assert up().receive(P[20], gossip(1), 0.0) == []


def test_two_cores_with_one_seed_do_the_same():
    rng = Random(7)
    script = [
        (rng.choice(P[:20]), rng.choice(["g", "i"]), rng.randrange(1, 40), rng.choice("abc"))
        for _ in range(400)
    ]

    def run():
        me, out = up(20), []
        for n, (peer, kind, seq, origin) in enumerate(script):
            message = gossip(seq, origin=origin) if kind == "g" else ihave(seq, origin=origin)
            out.append(me.receive(peer, message, n / 50))
            out.append(me.advance(n / 50))
        return repr(out)

    assert run() == run()


# --- peers above their limits ---------------------------------------------------------------------


def test_a_demoted_peer_is_no_parent_and_another_takes_its_place_at_once():
    me = up(3)
    me.receive(P[0], gossip(1), 0.0)
    assert me.parent(ORIGIN) == P[0]
    me.receive(P[1], Prune((ORIGIN,)), 0.5)
    effects = me.demote(P[0], 1.0)
    assert me.parent(ORIGIN) == P[1]
    assert [each.peer for each in effects if isinstance(each, PruneSent)] == [P[0]]
    assert [each.peer for each in effects if isinstance(each, GraftSent)] == [P[1]]


def test_what_a_demoted_peer_pushes_is_delivered_and_pruned_each_time():
    me = up(3)
    me.demote(P[0], 0.0)
    for first in (1, 2, 3, 4):
        effects = me.receive(P[0], gossip(first), float(first))
        assert delivered(effects) == [first]
        assert me.parent(ORIGIN) is None
        assert [each.peer for each in effects if isinstance(each, PruneSent)] == [P[0]]


def test_a_demoted_peer_is_asked_last():
    me = up(3)
    me.demote(P[1], 0.0)
    me.receive(P[1], ihave(1), 0.0)
    me.receive(P[2], ihave(1), 0.1)
    assert [peer for peer, _, _ in grafts(me.advance(5.0))] == [P[2]]
