"""FIFO on whole clusters: what ordered readers are given while packets get lost and nodes die."""

import pytest

from plumtree_quic import PlumtreeConfig
from plumtree_quic.config import SyncConfig
from plumtree_quic.proto.fifo import HoldBack
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.faults import Weather
from plumtree_quic.sim.order import HOLD_S, Readers
from plumtree_quic.sim.report import Violation

# Reordering between lanes and repairs, and a fifth of all packets lost.
ROUGH = Weather(latency_s=(0.01, 0.08), jitter_s=0.02, loss=0.2, duplicate=0.1, replay=0.05)
CONFIG = PlumtreeConfig.lan(
    message_cache_ttl=3_600.0,
    message_cache_max_size=1_000_000,
    sync=SyncConfig(sync_interval=5.0),
)


def rough(size, seed):
    cluster = Cluster(config=CONFIG, weather=ROUGH, seed=seed)
    hosts = cluster.ready(size)
    return cluster, hosts, Readers(cluster)


def publish(cluster, hosts, count=300):
    for number in range(count):
        hosts[number % len(hosts)].publish(bytes(200))
        cluster.run(0.05)


@pytest.mark.parametrize("seed", range(3))
def test_fifo_each_origin_in_order_at_every_node_while_packets_are_lost(seed):
    cluster, hosts, readers = rough(8, seed)
    publish(cluster, hosts[:3])
    cluster.calm()
    cluster.run(30.0)
    assert cluster.settled()
    for host in hosts:
        own = sum(host is hosts[number % 3] for number in range(300))
        assert readers.given(host.life) == (300 - own, ())
    assert readers.held() == 0


def test_fifo_a_restarted_origins_messages_follow_those_of_its_former_life():
    cluster, _, readers = rough(6, 5)
    for _ in range(3):
        for _ in range(40):
            cluster.hosts["n000"].publish(bytes(200))
            cluster.run(0.05)
        cluster.crash("n000")
        cluster.run(1.0)
        cluster.restart("n000")
        cluster.run(10.0)
    cluster.calm()
    cluster.run(2 * HOLD_S)
    assert readers.held() == 0
    for name, host in cluster.hosts.items():
        handed, holes = readers.given(host.life)
        lost = sum(hole.last - hole.first + 1 for hole in holes)
        # What the crashes took with them, no more.
        assert name == "n000" or 110 <= handed <= handed + lost <= 120, (name, handed, holes)


def test_fifo_a_reader_that_is_handed_messages_as_they_come_is_found(monkeypatch):
    monkeypatch.setattr(
        HoldBack, "put", lambda self, origin, epoch, first, last, items, now, previous: list(items)
    )
    cluster, hosts, _ = rough(8, 0)
    with pytest.raises(Violation, match="FIFO: "):
        publish(cluster, hosts[:3])


def test_told_a_reader_that_loses_one_without_a_word_is_found(monkeypatch):
    honest = HoldBack.put

    def forgetful(self, origin, epoch, first, last, items, now, previous=None):
        some = items[:-1] if first == 7 else items
        return honest(self, origin, epoch, first, last, some, now, previous)

    monkeypatch.setattr(HoldBack, "put", forgetful)
    cluster, hosts, _ = rough(4, 0)
    with pytest.raises(Violation, match="told: of "):
        publish(cluster, hosts[:1])
