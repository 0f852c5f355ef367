"""Simulated machines that sleep, wall clocks that somebody set, and nodes that are slow."""

import pytest

from plumtree_quic import PlumtreeConfig
from plumtree_quic.config import SyncConfig
from plumtree_quic.proto.effects import MemberFailed
from plumtree_quic.sim.cluster import Cluster

OTHERS = 5


def ready(seed=1):
    # Longer than anybody sleeps: what is not kept is lost to whoever slept, by design.
    config = PlumtreeConfig.lan(message_cache_ttl=600.0, sync=SyncConfig(sync_interval=5.0))
    cluster = Cluster(config=config, seed=seed)
    hosts = cluster.ready(OTHERS + 1)
    return cluster, hosts


def failed_by(cluster, host):
    return [
        fact
        for _, life, fact in cluster.journal.facts
        if life is host.life and isinstance(fact, MemberFailed)
    ]


@pytest.mark.parametrize("seconds", [1.0, 4.0, 60.0])
def test_a_machine_that_slept_accuses_nobody_and_gets_what_it_missed(seconds):
    cluster, hosts = ready()
    sleeper, sender = hosts[2], hosts[0]
    before = sleeper.now()
    sleeper.suspend(seconds)
    for _ in range(4):
        sender.publish(b"while it slept")
        cluster.run(seconds / 4)
    # Nothing has run, and its timers' clock has stood still.
    assert sleeper.core.swim_counters()["slept_ms"] == round(1000 * seconds)
    assert sleeper.now() == pytest.approx(before)
    cluster.run(60.0, lambda: cluster.agreed() and cluster.settled(), look_s=1.0)
    assert cluster.agreed()
    assert cluster.settled()
    assert failed_by(cluster, sleeper) == []


def test_while_a_machine_sleeps_its_timers_clock_stands_still_and_the_others_do_not():
    cluster, hosts = ready()
    awake, sleeper = hosts[0].now(), hosts[1].now()
    hosts[1].suspend(3.0)
    cluster.run(10.0)
    assert hosts[0].now() - awake == pytest.approx(10.0)
    assert hosts[1].now() - sleeper == pytest.approx(7.0)


@pytest.mark.parametrize("ahead_s", [-29.0, 29.0])
def test_a_wall_clock_that_is_set_harms_nobody_within_what_signatures_allow(ahead_s):
    cluster, hosts = ready()
    hosts[1].set_clock(ahead_s)
    assert hosts[1].wall_ms() - hosts[0].wall_ms() == 1000 * ahead_s
    assert hosts[1].core.swim_counters()["slept_ms"] == 29_000
    for host in hosts:
        host.publish(b"signed under its own clock")
        cluster.run(1.0)
    cluster.run(30.0)
    assert cluster.settled()
    assert cluster.agreed()
    assert not any(failed_by(cluster, host) for host in hosts)
    assert not any(host.refusals for host in hosts)


def test_a_wall_clock_beyond_that_is_refused_and_the_watch_says_so():
    cluster, hosts = ready()
    hosts[1].set_clock(120.0)
    hosts[1].publish(b"from the future")
    with pytest.raises(AssertionError, match="refuses what an honest peer says"):
        cluster.run(5.0)


def test_a_slow_node_takes_its_time_and_loses_nothing():
    cluster, hosts = ready()
    slow, sender = hosts[3], hosts[0]
    slow.slow_down(0.1, 20.0)
    late = []
    for _ in range(20):
        bundle = sender.publish(bytes(500))
        cluster.run(0.5)
        late.append(len(cluster.journal.missing()))
    # It falls behind while it is slow: ten frames a second are not enough for it.
    assert max(late) >= 1
    cluster.run(60.0, lambda: cluster.settled() and cluster.agreed(), look_s=1.0)
    assert cluster.settled()
    assert cluster.agreed()
    assert len(cluster.journal.story_of(bundle).latencies) == OTHERS
