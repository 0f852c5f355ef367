"""Failure detection of a hundred nodes, some of which stand still; of fifty under loss. Fast forms
of what `plumtree_quic.sim.detection` runs for hours.
"""

import attrs
import pytest

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.proto.effects import MemberFailed
from plumtree_quic.sim import detection
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.faults import CALM

# A busy machine takes its time over a hundred nodes.
pytestmark = pytest.mark.timeout(400)


@pytest.mark.slow
def test_four_of_a_hundred_stand_still_and_no_healthy_node_is_declared_failed():
    found = detection.stalls(1, seconds=30.0, gap_s_max=10.0)
    assert found.failed_healthy == found.failed_unwell == 0
    # They were suspected, rightly; and hardly ever suspected others.
    assert found.suspected_unwell > 0
    assert found.suspected_healthy < found.suspected_unwell / 20
    assert found.stretch_max > 1


@pytest.mark.slow
def test_a_crash_of_one_of_a_hundred_is_known_to_all_in_time_while_four_stand_still():
    found = detection.crashes(1, count=1)
    assert found.failed_healthy == 0
    assert found.known_to_healthy_s[0] <= 10.0
    assert found.known_to_all_s[0] <= 20.0
    assert len(found.known_s) == 99
    assert 0 < found.suspected_s[0] < 4.0


@pytest.mark.slow
def test_m04_a_fifth_of_all_packets_of_fifty_nodes_is_lost_and_nobody_is_declared_failed():
    found = detection.losses(1, seconds=40.0)
    assert found.failed_healthy == 0
    # Under 0.7 % of probes (reliability bar, part E); a probe is up to five pings.
    assert found.probes_failed < 0.007 * found.pings
    assert found.refutations > 0


def test_m05_under_twice_that_loss_local_health_rises_and_recovers():
    cluster = Cluster(seed=5)
    hosts = cluster.converged(20)
    cluster.network.weather = attrs.evolve(CALM, loss=0.4)
    worst = 0
    for _ in range(100):
        cluster.run(0.3)
        worst = max(worst, *(host.core.local_health for host in hosts))
    assert worst > 0
    assert not _told(cluster, MemberFailed)
    cluster.calm()
    assert cluster.run(60.0, cluster.agreed)
    assert cluster.run(60.0, lambda: not any(host.core.local_health for host in hosts))


def test_m11_a_node_that_stands_still_half_of_the_time_raises_its_local_health():
    cluster = Cluster(seed=6)
    hosts = cluster.converged(12)
    for _ in range(10):
        hosts[3].pause(2.0)
        cluster.run(4.0)
    assert hosts[3].core.local_health >= 6
    assert all(host.core.local_health <= 1 for host in hosts if host is not hosts[3])
    assert not _told(cluster, MemberFailed)
    cluster.run(20.0)
    assert hosts[3].core.local_health == 0


def test_a_node_that_nobody_reaches_any_more_doubts_itself_for_long():
    cluster = Cluster(seed=7)
    hosts = cluster.converged(12)
    alone, *others = hosts
    cluster.partition((alone.name,), [host.name for host in others])
    cluster.run(20.0)
    assert all(host.state_of(alone.name).name == "DEAD" for host in others)
    assert not [life for life, _ in _told(cluster, MemberFailed) if life == alone.name]
    assert alone.core.local_health > 0
    cluster.calm()
    assert cluster.run(60.0, cluster.agreed)


def test_each_monitor_probes_at_least_once_in_three_intervals_or_heard_something_fresh():
    config = PlumtreeConfig.lan()
    cluster = Cluster(seed=8, config=config)
    hosts = cluster.converged(30)
    longest = 0.0
    for _ in range(200):
        cluster.run(0.1)
        for host in hosts:
            for end in host.links.values():
                link = host.core._swim._links[end.peer]
                longest = max(longest, cluster.time.now - link.fresh_at)
    assert 1.0 < longest <= 3 * config.probe_interval


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 1.0])
def test_a_quantile_is_one_of_the_values(share):
    values = [float(number) for number in range(100, 0, -1)]
    found = detection.quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * 100
    assert sum(value < found for value in values) < max(1, share * 100)


def _told(cluster, kind):
    return [(life.name, fact) for _, life, fact in cluster.journal.facts if isinstance(fact, kind)]
