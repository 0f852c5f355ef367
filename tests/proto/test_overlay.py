"""Whom to keep links with."""

from collections import deque

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import member_key
from plumtree_quic.proto.directory import is_zoned
from plumtree_quic.proto.effects import Link, Unlink
from plumtree_quic.proto.overlay import MESH_MEMBERS_MAX, Overlay, ring_positions
from tests.rigs.membership import node_id

RINGS = 5  # (3 + 6) / 2, rounded up


def names(count):
    return [f"n{i:03d}" for i in range(count)]


def grown(count, *, me="me", config=None, link=True, now=0.0):
    """An overlay that knows `count` others; every wanted link comes up at once."""
    overlay = Overlay(node_id(me), config or PlumtreeConfig())
    for name in names(count):
        feed(overlay, overlay.member_alive(node_id(name), (f"{name}:1",), now), now, link)
    return overlay


def feed(overlay, effects, now, link=True):
    """Perform effects as a perfect network would; return all of them."""
    out, todo = [], deque(effects)
    while todo:
        effect = todo.popleft()
        out.append(effect)
        if link and isinstance(effect, Link):
            todo.extend(overlay.link_up(effect.peer, now))
    return out


def settle(overlay, now=0.0, until=1_000.0, link=True):
    out = []
    while (deadline := overlay.next_deadline()) is not None and deadline <= until:
        now = max(now, deadline)
        out += [(now, each) for each in feed(overlay, overlay.advance(now), now, link)]
    return out


def wanted(overlay, count):
    return {name for name in names(count) if overlay.wants(node_id(name))}


def ring_order(ring, members, me):
    """The others along a ring, starting behind `me`: the definition, computed the slow way."""
    order = sorted(members, key=lambda name: ring_positions(node_id(name), RINGS)[ring])
    at = order.index(me)
    return order[at + 1 :] + order[:at]


def neighbours(members, me):
    found = set()
    for ring in range(RINGS):
        order = ring_order(ring, members, me)
        found |= {order[0], order[-1]}
        if ring == 0:
            found |= {order[1], order[-2]}
    return found


def test_up_to_16_members_everybody_links_with_everybody():
    overlay = grown(MESH_MEMBERS_MAX - 1)
    assert overlay.is_mesh()
    assert len(wanted(overlay, 15)) == 15


def test_above_16_members_links_go_to_ring_neighbours_only():
    overlay = grown(60)
    settle(overlay)
    assert not overlay.is_mesh()
    assert wanted(overlay, 60) == neighbours([*names(60), "me"], "me")


def test_the_neighbours_are_those_of_the_definition_in_whatever_order_members_come_and_go():
    members = names(80)
    for order in (members, members[::-1], members[40:] + members[:40]):
        overlay = Overlay(node_id("me"), PlumtreeConfig())
        for name in order:
            feed(overlay, overlay.member_alive(node_id(name), ("x:1",), 0.0), 0.0)
        for name in members[::3]:
            feed(overlay, overlay.member_gone(node_id(name), 0.0), 0.0)
        settle(overlay)
        left = [name for name in members if name not in members[::3]]
        assert wanted(overlay, 80) == neighbours([*left, "me"], "me")


def test_wanting_is_mutual_so_every_link_serves_both_ends():
    members = names(40)
    overlays = {}
    for me in members:
        overlay = overlays[me] = Overlay(node_id(me), PlumtreeConfig())
        for name in members:
            feed(overlay, overlay.member_alive(node_id(name), ("x:1",), 0.0), 0.0)
        settle(overlay)
    for a in members:
        for b in wanted(overlays[a], 40):
            assert overlays[b].wants(node_id(a))


def test_the_overlay_stays_connected_when_a_third_of_the_members_is_gone_at_once():
    members = names(90)
    survivors = members[30:]
    edges = {me: neighbours(members, me) & set(survivors) for me in survivors}
    seen, todo = {survivors[0]}, [survivors[0]]
    while todo:
        for peer in edges[todo.pop()] - seen:
            seen.add(peer)
            todo.append(peer)
    assert seen == set(survivors)


def test_the_mesh_comes_back_below_12_members_and_not_before():
    overlay = grown(20)
    settle(overlay)
    assert not overlay.is_mesh()
    alive = names(20)
    while len(alive) + 1 >= 12:
        assert not overlay.is_mesh()
        feed(overlay, overlay.member_gone(node_id(alive.pop()), 0.0), 0.0)
    assert overlay.is_mesh()
    assert wanted(overlay, 20) == set(alive)


def test_max_peers_is_the_size_of_the_mesh():
    assert grown(29, config=PlumtreeConfig(max_peers=30)).is_mesh()
    assert not grown(30, config=PlumtreeConfig(max_peers=30)).is_mesh()
    assert not grown(9, config=PlumtreeConfig(max_peers=9)).is_mesh()


def test_max_peers_bounds_the_links_above_the_mesh():
    overlay = grown(60, config=PlumtreeConfig(max_peers=9))
    settle(overlay)
    assert len(wanted(overlay, 60)) == 9


def test_max_lazy_peers_bounds_the_links_beside_the_eager_ones():
    overlay = grown(60, config=PlumtreeConfig(eager_fanout=3, max_lazy_peers=4))
    settle(overlay)
    assert len(wanted(overlay, 60)) == 7


def test_with_fewer_links_the_first_ring_still_holds_the_cluster_together():
    overlay = grown(60, config=PlumtreeConfig(eager_fanout=3, max_lazy_peers=1))
    settle(overlay)
    assert len(wanted(overlay, 60)) == 4
    order = ring_order(0, [*names(60), "me"], "me")
    assert {order[0], order[-1]} <= wanted(overlay, 60)


def test_when_the_mesh_ends_links_leave_one_a_second():
    overlay = grown(16)
    assert not overlay.is_mesh()
    gone = settle(overlay)
    times = [at for at, each in gone if isinstance(each, Unlink)]
    assert times == [float(i + 1) for i in range(len(times))]
    assert len(times) >= 5
    assert wanted(overlay, 16) == neighbours([*names(16), "me"], "me")


def test_no_link_is_dropped_before_those_that_take_its_place_are_up():
    overlay = grown(60, link=False)
    for name in names(16):
        overlay.link_up(node_id(name), 0.0)
    surplus = [n for n in names(16) if n not in neighbours([*names(60), "me"], "me")]
    feed(overlay, overlay.member_alive(node_id("extra"), ("x:1",), 0.0), 0.0, link=False)
    dropped = [each.peer.name for _, each in settle(overlay, until=0.9, link=False)]
    assert not set(dropped) & set(surplus)


def test_a_suspects_places_are_filled_and_its_link_is_kept():
    overlay = grown(60)
    settle(overlay)
    before = wanted(overlay, 60)
    succ = ring_order(0, [*names(60), "me"], "me")[0]
    effects = feed(overlay, overlay.member_suspect(node_id(succ), 5.0), 5.0)
    assert not [each for each in effects if isinstance(each, Unlink)]
    assert overlay.wants(node_id(succ))
    assert wanted(overlay, 60) > before
    # Refuted: the stand-ins go again, one a second.
    feed(overlay, overlay.member_alive(node_id(succ), (f"{succ}:1",), 6.0), 6.0)
    settle(overlay, 6.0)
    assert wanted(overlay, 60) == before


def test_the_dead_are_unlinked_at_once_and_their_places_filled():
    overlay = grown(60)
    settle(overlay)
    victim = sorted(wanted(overlay, 60))[0]
    effects = feed(overlay, overlay.member_gone(node_id(victim), 5.0), 5.0)
    assert Unlink(node_id(victim)) in effects
    rest = [name for name in names(60) if name != victim]
    assert wanted(overlay, 60) >= neighbours([*rest, "me"], "me")


def test_an_unreachable_holder_stays_a_candidate_while_the_next_one_fills_in():
    overlay = grown(60)
    settle(overlay)
    order = ring_order(0, [*names(60), "me"], "me")
    feed(overlay, overlay.link_down(node_id(order[0]), 5.0), 5.0, link=False)
    feed(overlay, overlay.unreachable(node_id(order[0]), 5.1), 5.1)
    assert overlay.wants(node_id(order[0]))
    assert overlay.wants(node_id(order[2]))


def test_a_holder_that_does_not_greet_within_a_second_gets_a_stand_in():
    overlay = grown(60)
    settle(overlay)
    order = ring_order(0, [*names(60), "me"], "me")
    overlay.link_down(node_id(order[0]), 50.0)
    assert overlay.next_deadline() == 51.0
    assert overlay.advance(50.9) == []
    feed(overlay, overlay.advance(51.0), 51.0)
    assert {order[0], order[1], order[2]} <= wanted(overlay, 60)


def test_at_most_three_candidates_are_dialled_for_one_place():
    overlay = grown(200, link=False)
    for _ in range(40):
        deadline = overlay.next_deadline()
        if deadline is None:
            break
        overlay.advance(deadline)
    places = 2 * RINGS + 2
    assert len(wanted(overlay, 200)) <= 3 * places


def test_new_addresses_of_a_neighbour_are_dialled():
    overlay = grown(5)
    assert overlay.member_alive(node_id("n001"), ("moved:1",), 1.0) == [
        Link(node_id("n001"), ("moved:1",))
    ]
    assert overlay.member_alive(node_id("n001"), ("moved:1",), 2.0) == []


def test_we_never_link_with_ourselves():
    overlay = grown(5)
    assert overlay.member_alive(node_id("me"), ("me:1",), 0.0) == []
    assert not overlay.wants(node_id("me"))


def test_strangers_change_nothing():
    overlay = grown(5)
    assert overlay.member_suspect(node_id("x"), 0.0) == []
    assert overlay.member_gone(node_id("x"), 0.0) == []
    assert overlay.unreachable(node_id("x"), 0.0) == []
    assert overlay.link_up(node_id("x"), 0.0) == []


def test_protected_are_next_previous_next_but_one_previous_but_one():
    order = ring_order(0, [*names(60), "me"], "me")
    nearest = [node_id(order[at]) for at in (0, -1, 1, -2)]
    for count in (0, 2, 4):
        config = PlumtreeConfig(use_hash_ring=True, max_protected_neighbors=count)
        assert list(grown(60, config=config).protected()) == nearest[:count]


def test_nobody_is_protected_unless_ring_neighbours_are_used_and_protected():
    assert grown(60).protected() == ()
    config = PlumtreeConfig(use_hash_ring=True, protect_ring_neighbors=False)
    assert grown(60, config=config).protected() == ()


def test_protection_follows_the_ring_when_a_neighbour_is_suspected():
    overlay = grown(60, config=PlumtreeConfig(use_hash_ring=True))
    order = ring_order(0, [*names(60), "me"], "me")
    overlay.member_suspect(node_id(order[0]), 1.0)
    assert overlay.protected()[0] == node_id(order[1])


def test_ring_positions_are_fixed_for_ever():
    # Nodes of different versions must compute the same rings.
    assert ring_positions(node_id("a"), 2) == (16711658929560082922, 8544818574020372688)


def test_in_a_full_mesh_everybody_watches_everybody():
    overlay = grown(10)
    assert all(overlay.is_monitor(node_id(a), node_id(b)) for a in names(10) for b in names(10))


def test_above_a_mesh_whoever_is_within_2k_places_on_a_ring_is_a_monitor_and_nobody_else():
    members = [*names(300), "me"]
    overlay = grown(300)
    for watched in ("n007", "n123", "me"):
        near = set()
        for ring in range(RINGS):
            order = ring_order(ring, members, watched)
            near |= {*order[: 2 * RINGS], *order[-2 * RINGS :]}
        counted = {
            name
            for name in members
            if name != watched and overlay.is_monitor(node_id(name), node_id(watched))
        }
        assert counted == near
        assert len(counted) <= 2 * RINGS * 2 * RINGS


def test_ring_neighbours_are_monitors_of_each_other():
    overlay = grown(300)
    settle(overlay)
    for name in wanted(overlay, 300):
        assert overlay.is_monitor(node_id("me"), node_id(name))
        assert overlay.is_monitor(node_id(name), node_id("me"))


def test_a_joiner_finds_its_neighbours_among_rows_as_it_would_among_records():
    strangers = names(200)
    overlay = Overlay(node_id("me"), PlumtreeConfig())
    chosen = overlay.choose([member_key(node_id(name)) for name in strangers])
    assert {member_key(node_id(name)) for name in neighbours([*strangers, "me"], "me")} <= set(
        chosen
    )
    # One more than is needed on either side of each ring.
    assert len(chosen) <= 4 * RINGS + 2
    # Whom it has met counts: only nearer ones are asked for.
    half = grown(100)
    rest = [member_key(node_id(name)) for name in strangers[100:]]
    more = half.choose(rest)
    near = neighbours([*strangers, "me"], "me") - set(names(100))
    assert {member_key(node_id(name)) for name in near} <= set(more)
    assert len(more) < len(chosen)


def test_a_joiner_of_a_small_cluster_chooses_everybody():
    keys = [member_key(node_id(name)) for name in names(MESH_MEMBERS_MAX - 1)]
    assert Overlay(node_id("me"), PlumtreeConfig()).choose(keys) == keys
    assert len(grown(5).choose(keys)) < len(keys)


def test_nothing_is_wanted_while_held_and_few_are_no_mesh_when_more_are_expected():
    overlay = Overlay(node_id("me"), PlumtreeConfig())
    overlay.hold()
    assert [e for n in names(5) for e in overlay.member_alive(node_id(n), ("x:1",), 0.0)] == []
    assert not overlay.is_up()
    effects = overlay.release(100, 1.0)
    assert {type(each) for each in effects} == {Link}
    assert not overlay.is_mesh()
    assert not overlay.is_up()
    for effect in effects:
        overlay.link_up(effect.peer, 1.1)
    assert overlay.is_up()
    # Those who were expected do not exist.
    overlay.expect(0, 2.0)
    assert overlay.is_mesh()


def test_a_member_without_room_stays_a_candidate_while_others_fill_its_place():
    overlay = grown(60)
    settle(overlay)
    first = sorted(wanted(overlay, 60))[0]
    effects = overlay.refused(node_id(first), 1.0)
    assert [each for each in effects if isinstance(each, Link)]
    assert overlay.wants(node_id(first))
    feed(overlay, effects, 1.0)
    assert overlay.is_up()
    # It has room after all: the stand-in goes again.
    overlay.link_up(node_id(first), 2.0)
    settle(overlay, 2.0)
    assert wanted(overlay, 60) == neighbours([*names(60), "me"], "me")


def test_too_many_links_shed_first_what_is_kept_until_others_take_its_place():
    overlay = grown(MESH_MEMBERS_MAX + 20)
    effects = overlay.shed()
    assert [type(each) for each in effects] == [Unlink]
    assert not overlay.wants(effects[0].peer)
    settle(overlay)
    assert overlay.shed() == []


def test_there_may_be_three_links_for_each_that_is_wanted_and_a_mesh_has_room_for_two():
    assert Overlay(node_id("me"), PlumtreeConfig()).links_max == 3 * (2 * RINGS + 2)
    small = PlumtreeConfig(eager_fanout=1, lazy_fanout=1)
    assert Overlay(node_id("me"), small).links_max == 2 * MESH_MEMBERS_MAX


def test_links_that_are_too_many_leave_faster_than_one_a_second():
    overlay = grown(MESH_MEMBERS_MAX - 1, config=PlumtreeConfig(eager_fanout=1, lazy_fanout=1))
    for name in names(40):
        overlay.link_up(node_id(name), 0.0)
    feed(overlay, overlay.member_alive(node_id("n038"), ("n038:1",), 0.0), 0.0)
    feed(overlay, overlay.member_alive(node_id("n039"), ("n039:1",), 0.0), 0.0)
    assert not overlay.is_mesh()
    times = [at for at, each in settle(overlay) if isinstance(each, Unlink)]
    assert times.count(1.0) > 5


def test_would_be_neighbours_are_those_who_want_a_link_once_the_member_lives():
    names = [f"m{number:03}" for number in range(60)]
    lost = node_id("lost")
    for name in names[:20]:
        overlay = Overlay(node_id(name), PlumtreeConfig.lan())
        for other in names:
            overlay.member_alive(node_id(other), (f"{other}:1",), 0.0)
        would = overlay.would_neighbour(lost)
        overlay.member_alive(lost, ("lost:1",), 1.0)
        assert overlay.wants(lost) == would


# --- zones --------------------------------------------------------------------------------------


def in_zones(members, *, zones=4):
    """{name: zone}, in turn."""
    return {name: f"z{number % zones}" for number, name in enumerate(members)}


def zoned(where, *, me="me", config=None, now=0.0):
    """An overlay of a cluster in which `where` says who is in which zone, itself included."""
    config = attrs.evolve(config or PlumtreeConfig(), zone=where[me])
    overlay = Overlay(node_id(me), config)
    for name, zone in where.items():
        feed(overlay, overlay.member_alive(node_id(name), (f"{name}:1",), now, zone=zone), now)
    settle(overlay)
    return overlay


def wanted_of(overlay, where):
    return {name for name in where if overlay.wants(node_id(name))}


def zoned_neighbours(where, me):
    """The definition: rings 1 and 2 of five are one ring a zone."""
    found = set()
    own = [name for name in where if where[name] == where[me]]
    for ring in range(RINGS):
        order = ring_order(ring, own if ring in (1, 2) else list(where), me)
        found |= {order[0], order[-1]}
        if ring == 0:
            found |= {order[1], order[-2]}
    return found


def test_half_of_the_rings_and_at_least_two_are_one_ring_a_zone_but_never_the_first():
    kinds = {
        count: [is_zoned(ring, count) for ring in range(count)] for count in (1, 2, 3, 5, 6, 8)
    }
    assert {count: sum(kind) for count, kind in kinds.items()} == {
        1: 0, 2: 1, 3: 2, 5: 2, 6: 3, 8: 4
    }  # fmt: skip
    assert not any(kind[0] for kind in kinds.values())


def test_with_zones_the_neighbours_are_those_of_the_definition():
    where = in_zones([*names(200), "me"])
    assert wanted_of(zoned(where), where) == zoned_neighbours(where, "me")


def test_with_zones_the_neighbours_are_those_of_the_definition_whoever_comes_and_goes():
    members = [*names(120), "me"]
    where = in_zones(members)
    overlay = Overlay(node_id("me"), PlumtreeConfig(zone=where["me"]))
    for name in members[::-1]:
        # Most begin elsewhere, and move.
        feed(overlay, overlay.member_alive(node_id(name), ("x:1",), 0.0, zone="z9"), 0.0)
    for name in members:
        feed(overlay, overlay.member_alive(node_id(name), ("x:1",), 0.0, zone=where[name]), 0.0)
    for name in names(120)[::3]:
        feed(overlay, overlay.member_gone(node_id(name), 0.0), 0.0)
        del where[name]
    settle(overlay)
    assert wanted_of(overlay, where) == zoned_neighbours(where, "me")
    assert overlay.zone_members() == list(where.values()).count(where["me"])


def test_one_zone_is_as_none():
    members = [*names(60), "me"]
    for zone in ("", "z"):
        where = dict.fromkeys(members, zone)
        assert wanted_of(zoned(where), where) == neighbours(members, "me")


def test_wanting_is_mutual_between_zones_and_within_them():
    where = in_zones(names(80))
    overlays = {me: zoned(where, me=me) for me in where}
    for me, overlay in overlays.items():
        assert all(overlays[peer].wants(node_id(me)) for peer in wanted_of(overlay, where))


def test_who_has_no_neighbours_of_its_own_zone_has_as_many_links_as_others():
    for alone in ({"me"}, {"me", "n007"}, {"me", "n007", "n033", "n050"}):
        where = {name: "small" if name in alone else "large" for name in [*names(100), "me"]}
        links = wanted_of(zoned(where), where)
        assert alone - {"me"} <= links
        assert 2 * RINGS <= len(links) <= 2 * RINGS + 2


def test_with_two_and_three_rings_small_zones_have_as_many_links_as_well():
    for fanouts, links in (((1, 2), 6), ((2, 3), 8), ((1, 1), 4)):
        config = PlumtreeConfig(eager_fanout=fanouts[0], lazy_fanout=fanouts[1])
        where = dict.fromkeys(names(100), "large") | {"me": "small"}
        assert len(wanted_of(zoned(where, config=config), where)) == links


def test_zones_are_connected_within_and_with_each_other():
    where = in_zones(names(100)) | {"n000": "alone", "n001": "two", "n002": "two"}
    edges = {me: wanted_of(zoned(where, me=me), where) for me in where}
    for zone in ("z0", "z1", "z2", "z3", "two", None):
        inside = {name for name in where if zone in (None, where[name])}
        first = min(inside)
        seen, todo = {first}, [first]
        while todo:
            for peer in edges[todo.pop()] & inside - seen:
                seen.add(peer)
                todo.append(peer)
        assert seen == inside


def test_every_zone_has_three_links_out_also_when_caps_leave_few():
    # The first ring holds all; whoever leaves a zone on it and comes back crosses its border.
    for config in (PlumtreeConfig(), PlumtreeConfig(max_lazy_peers=1)):
        where = in_zones(names(60), zones=10)
        edges = {me: wanted_of(zoned(where, me=me, config=config), where) for me in where}
        for zone in dict.fromkeys(where.values()):
            out = [(a, b) for a in where for b in edges[a] if where[a] == zone != where[b]]
            assert len(out) >= 3


def test_links_are_between_monitors_also_with_zones():
    where = in_zones([*names(300), "me"]) | {"n001": "alone", "n002": "two", "n003": "two"}
    for me in ("me", "n001", "n002"):
        overlay = zoned(where, me=me)
        for name in wanted_of(overlay, where):
            assert overlay.is_monitor(node_id(me), node_id(name))
            assert overlay.is_monitor(node_id(name), node_id(me))


def test_all_views_agree_about_who_is_a_monitor():
    where = in_zones(names(150))
    views = [zoned(where, me=me) for me in ("n000", "n001", "n050")]
    for watched in ("n000", "n013", "n077"):
        near = set()
        for ring in range(RINGS):
            own = [name for name in where if where[name] == where[watched]]
            order = ring_order(ring, own if ring in (1, 2) else list(where), watched)
            near |= {*order[: 2 * RINGS], *order[-2 * RINGS :]}
        for view in views:
            assert near == {
                name
                for name in where
                if name != watched and view.is_monitor(node_id(name), node_id(watched))
            }


def test_a_suspect_of_our_zone_has_a_stand_in_of_our_zone():
    where = in_zones([*names(200), "me"])
    overlay = zoned(where)
    own = [name for name in where if where[name] == where["me"]]
    order = ring_order(1, own, "me")
    feed(overlay, overlay.member_suspect(node_id(order[0]), 5.0), 5.0)
    assert overlay.wants(node_id(order[1]))


def test_who_moves_to_another_zone_is_no_neighbour_for_our_zone_any_more():
    where = in_zones([*names(200), "me"])
    overlay = zoned(where)
    own = [name for name in where if where[name] == where["me"]]
    mover = next(
        name
        for name in ring_order(1, own, "me")[:1]
        if name not in zoned_neighbours(where | {name: "away"}, "me")
    )
    assert overlay.wants(node_id(mover))
    overlay.member_alive(node_id(mover), (f"{mover}:1",), 5.0, zone="away")
    settle(overlay, 5.0)
    assert not overlay.wants(node_id(mover))
    assert wanted_of(overlay, where) == zoned_neighbours(where | {mover: "away"}, "me")


def test_the_rings_of_our_zone_wait_until_those_who_stand_on_them_are_known():
    where = in_zones([*names(200), "me"])
    config = PlumtreeConfig(zone=where["me"])
    overlay = Overlay(node_id("me"), config)
    overlay.hold()
    some = names(200)[::9]
    for name in some:
        overlay.member_alive(node_id(name), (f"{name}:1",), 0.0, zone=where[name])
    feed(overlay, overlay.release(201, 1.0), 1.0)
    known = {name: where[name] for name in (*some, "me")}
    expected = set()
    for ring in (0, 3, 4):
        order = ring_order(ring, list(known), "me")
        expected |= {order[0], order[-1]}
        if ring == 0:
            expected |= {order[1], order[-2]}
    assert wanted_of(overlay, known) == expected
    for name in names(200):
        feed(overlay, overlay.member_alive(node_id(name), ("x:1",), 1.1, zone=where[name]), 1.1)
    feed(overlay, overlay.expect(0, 1.2), 1.2)
    settle(overlay, 1.2)
    assert wanted_of(overlay, where) == zoned_neighbours(where, "me")


def test_with_one_zone_its_rings_wait_for_nothing():
    overlay = Overlay(node_id("me"), PlumtreeConfig(zone="z"))
    overlay.hold()
    for name in names(40):
        overlay.member_alive(node_id(name), (f"{name}:1",), 0.0, zone="z")
    feed(overlay, overlay.release(200, 1.0), 1.0)
    assert wanted(overlay, 40) == neighbours([*names(40), "me"], "me")
