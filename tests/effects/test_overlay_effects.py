"""What changing a setting of the overlay changes: how many links, and which are protected."""

import pytest

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.proto.overlay import Overlay
from tests.rigs.broadcast import node
from tests.rigs.effects import shows_effect_of


def overlay(config, members):
    """An overlay that knows `members` others, all of them linked as soon as they are wanted."""
    made = Overlay(node("me"), config)
    for number in range(members):
        peer = node(f"n{number}")
        made.member_alive(peer, ("10.0.0.1:1",), 0.0)
        made.link_up(peer, 0.0)
    now = 0.0
    while (due := made.next_deadline()) is not None:
        now = max(now, due)
        made.advance(now)
    return made


def links(made, members):
    return [node(f"n{number}") for number in range(members) if made.wants(node(f"n{number}"))]


@shows_effect_of("max_peers")
@pytest.mark.parametrize(("max_peers", "mesh"), [(None, False), (25, True)])
def test_up_to_max_peers_members_everybody_links_to_everybody(max_peers, mesh):
    made = overlay(PlumtreeConfig(max_peers=max_peers), 20)
    assert (len(links(made, 20)) == 20) is mesh


@shows_effect_of("eager_fanout", "lazy_fanout")
@pytest.mark.parametrize(("eager", "lazy", "rings"), [(3, 6, 5), (3, 12, 8), (8, 6, 7)])
def test_half_the_sum_of_the_fanouts_is_the_number_of_rings(eager, lazy, rings):
    made = overlay(PlumtreeConfig(eager_fanout=eager, lazy_fanout=lazy), 200)
    # Two neighbours a ring and two more on the first, less those who are so twice.
    assert 2 * rings <= len(links(made, 200)) <= 2 * rings + 2


@shows_effect_of("max_lazy_peers")
@pytest.mark.parametrize(("limit", "count"), [(None, 15), (4, 7)])
def test_max_lazy_peers_bounds_the_links_beside_eager_fanout(limit, count):
    made = overlay(PlumtreeConfig(eager_fanout=3, max_lazy_peers=limit), 15)
    assert len(links(made, 15)) == count


@shows_effect_of("zone")
@pytest.mark.parametrize(("zone", "inside"), [("even", 4), ("odd", 4), ("", 0)])
def test_a_node_has_neighbours_in_its_own_zone(zone, inside):
    made = Overlay(node("me"), PlumtreeConfig(zone=zone))
    for number in range(200):
        peer_zone = "odd" if number % 2 else "even"
        made.member_alive(node(f"n{number}"), ("10.0.0.1:1",), 0.0, zone=peer_zone)
    near = [each for each in links(made, 200) if made.zone_of(each) == zone]
    # Two rings of the zone alone, and what the others happen to bring.
    assert len(near) >= inside
    assert bool(near) is bool(inside)


@shows_effect_of("use_hash_ring", "protect_ring_neighbors")
@pytest.mark.parametrize("ring", [True, False])
@pytest.mark.parametrize("protect", [True, False])
def test_ring_neighbours_are_protected_when_there_are_any_and_they_should_be(ring, protect):
    config = PlumtreeConfig(use_hash_ring=ring, protect_ring_neighbors=protect)
    assert bool(overlay(config, 30).protected()) is (ring and protect)


@shows_effect_of("max_protected_neighbors")
@pytest.mark.parametrize("count", [0, 2, 4])
def test_max_protected_neighbors_of_them_are_protected(count):
    config = PlumtreeConfig(use_hash_ring=True, max_protected_neighbors=count)
    made = overlay(config, 30)
    assert len(made.protected()) == count
    assert set(made.protected()) <= set(links(made, 30))
