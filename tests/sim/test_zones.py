"""Zones: one copy crosses into each, and a zone that loses all of its bridges finds others.

The full size, four zones of 250 nodes, takes minutes: `plumtree_quic.sim.zones.cross_borders()`.
"""

from statistics import median

import attrs
import pytest

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.faults import CALM
from plumtree_quic.sim.zones import cross_borders, zones_by_number

ZONES = 4


@pytest.fixture(scope="module", params=["lan", "large_cluster"])
def crossings(request):
    config = getattr(PlumtreeConfig, request.param)()
    # Zones are further apart than their members.
    weather = attrs.evolve(CALM, border_s=0.02)
    return cross_borders(
        ZONES * 15, ZONES, broadcasts=40, origins=4, config=config, weather=weather
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_broadcast_crosses_few_borders_and_reaches_all(crossings):
    text = "\n".join(crossings.lines())
    assert crossings.lost == 0, text
    # A zone may get one without a push, by a graft; and seldom it gets two.
    assert median(crossings.crossed) <= ZONES, text
    assert max(crossings.crossed) <= 2 * (ZONES - 1), text


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_zone_that_loses_all_bridges_has_everything_within_10_s(crossings):
    text = "\n".join(crossings.lines())
    assert crossings.bridges >= 1, text
    assert crossings.healed_s is not None, text
    assert crossings.healed_s <= 10.0, text
    assert crossings.lost_after == 0, text
    assert median(crossings.crossed_after) <= 2 * (ZONES - 1), text


def test_in_a_full_mesh_of_three_zones_two_copies_cross():
    cluster = Cluster(seed=1, zone_of=zones_by_number(3))
    cluster.ready(12)
    for name in ("n000", "n001", "n005"):
        since = cluster.journal.published()
        for _ in range(3):
            cluster.hosts[name].publish()
            cluster.run(1.0)
        report = cluster.report(since)
        assert report.lost == 0
        assert report.rmr == 0.0
        assert cluster.journal.crossings(since) == [2, 2, 2]


@pytest.mark.parametrize("size", [1, 3])
def test_many_small_zones_get_everything_and_their_trees_settle(size):
    cluster = Cluster(seed=2, zone_of=lambda name: f"z{int(name[1:]) // size}")
    cluster.ready(30)
    origin = cluster.hosts["n007"]
    for _ in range(5):
        origin.publish()
        cluster.run(3.0)
    assert cluster.report().lost == 0
    assert min(len(host.links) for host in cluster.hosts.values()) >= 9
    needed = 30 // size - 1
    assert all(needed <= each <= needed + 2 for each in cluster.journal.crossings()[2:])


def test_a_node_that_comes_back_in_another_zone_is_linked_there():
    zone_of = {f"n{number:03}": f"z{number % 2}" for number in range(24)}
    cluster = Cluster(seed=3, zone_of=lambda name: zone_of[name])
    cluster.ready(24)
    zone_of["n000"] = "z1"
    moved = cluster.start("n000", "n001", "n002")
    cluster.run(5.0)
    assert cluster.agreed()
    near = [peer for peer in moved.links if cluster.network.zones[peer] == "z1"]
    # Two rings of its zone, and what the others bring.
    assert len(near) >= 4
    for host in cluster.hosts.values():
        assert {record.zone for record, _ in host.core.table.members()} == {"z0", "z1"}
        own = sum(zone == zone_of[host.name] for zone in zone_of.values())
        assert host.core._overlay.zone_members() == own
    since = cluster.journal.published()
    moved.publish()
    cluster.run(5.0)
    assert cluster.report(since).lost == 0


def test_the_way_between_zones_is_longer():
    weather = attrs.evolve(CALM, border_s=0.5)
    cluster = Cluster(seed=4, weather=weather, zone_of=zones_by_number(2))
    ids = [cluster.start(f"n00{number}").id for number in range(3)]
    assert cluster.network.way(ids[0], ids[2])[0] < 0.1
    assert cluster.network.way(ids[0], ids[1])[0] > 0.5
