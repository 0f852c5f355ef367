"""FIFO on whole clusters: what ordered readers are given while packets get lost and nodes die."""

import pytest

from plumtree_quic import PlumtreeConfig
from plumtree_quic.config import SyncConfig
from plumtree_quic.proto.fifo import HoldBack, Hole
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.faults import Weather

HOLD_S = 60.0
# Reordering between lanes and repairs, and a fifth of all packets lost.
ROUGH = Weather(latency_s=(0.01, 0.08), jitter_s=0.02, loss=0.2, duplicate=0.1, replay=0.05)
CONFIG = PlumtreeConfig.lan(
    message_cache_ttl=3_600.0,
    message_cache_max_size=1_000_000,
    sync=SyncConfig(sync_interval=5.0),
)


class Readers:
    """An ordered reader in each life of each node, beside the journal."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.given = {}
        self._backs = {}
        self._journal = cluster.journal.on_delivered
        cluster.journal.on_delivered = self._on_delivered

    def _on_delivered(self, life, effect, links, now):
        self._journal(life, effect, links, now)
        back = self._backs.get(life)
        if back is None:
            back = self._backs[life] = HoldBack(hold_s=HOLD_S, quiet_s=0.5, items_max=10_000)
            self.given[life] = []
        bundle = effect.bundle
        items = [(bundle.origin, bundle.epoch, seq) for seq in range(bundle.first, bundle.last + 1)]
        self.given[life] += back.put(
            bundle.origin, bundle.epoch, bundle.first, bundle.last, items, now
        )

    def run(self, seconds):
        """Virtual time passes, and readers look at what they hold back as a node does."""
        for _ in range(round(seconds / 0.05)):
            self.cluster.run(0.05)
            for host in self.cluster.hosts.values():
                back = self._backs.get(host.life)
                if back is not None and back.is_waiting:
                    broadcasts = host.core.broadcasts
                    self.given[host.life] += back.settle(
                        broadcasts.seen_through, broadcasts.awaits, self.cluster.time.now
                    )

    def held(self):
        return sum(back.held for life, back in self._backs.items() if life.alive)


def check_order(given):
    """Per origin, epochs and numbers only grow; a hole stands where its messages would."""
    at = {}
    for each in given:
        origin, epoch, first = (
            (each.origin, each.epoch, each.first) if isinstance(each, Hole) else each
        )
        assert (epoch, first) > at.get(origin, (0, 0)), each
        at[origin] = (epoch, each.last if isinstance(each, Hole) else first)


@pytest.mark.parametrize("seed", range(3))
def test_fifo_each_origin_in_order_at_every_node_while_packets_are_lost(seed):
    cluster = Cluster(config=CONFIG, weather=ROUGH, seed=seed)
    hosts = cluster.ready(8)
    readers = Readers(cluster)
    for number in range(300):
        hosts[number % 3].publish(bytes(200))
        readers.run(0.05)
    cluster.calm()
    readers.run(30.0)
    assert cluster.settled()
    for host in hosts:
        given = readers.given[host.life]
        check_order(given)
        expected = 300 - sum(host is hosts[n % 3] for n in range(300))
        assert [each for each in given if isinstance(each, Hole)] == []
        assert len(given) == expected
    assert readers.held() == 0


def test_fifo_a_restarted_origins_messages_follow_those_of_its_former_life():
    cluster = Cluster(config=CONFIG, weather=ROUGH, seed=5)
    cluster.ready(6)
    readers = Readers(cluster)
    for _ in range(3):
        for _ in range(40):
            cluster.hosts["n000"].publish(bytes(200))
            readers.run(0.05)
        cluster.crash("n000")
        readers.run(1.0)
        cluster.restart("n000")
        readers.run(10.0)
    cluster.calm()
    readers.run(2 * HOLD_S)
    for name, host in cluster.hosts.items():
        given = readers.given.get(host.life, [])
        check_order(given)
        if name != "n000":
            epochs = {each.epoch if isinstance(each, Hole) else each[1] for each in given}
            assert len(epochs) == 3, name
    assert readers.held() == 0
