"""Chaos in virtual time: kill -9 and partitions lose nothing that was accepted; and its judges."""

import attrs
import pytest

from plumtree_quic.config import PlumtreeConfig, StorageConfig
from plumtree_quic.ledger import Ledger
from plumtree_quic.proto.fifo import HoldBack
from plumtree_quic.sim.__main__ import main, weather_chaos
from plumtree_quic.sim.chaos import Logs, run_chaos
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.disks import Disk
from plumtree_quic.store.contract import Recovered
from plumtree_quic.subscription import Message


@pytest.mark.parametrize("seed", range(30))
def test_every_log_has_every_accepted_message_once_and_in_order(seed):
    outcome = weather_chaos(seed)
    assert outcome.violation == "", outcome.replay


def test_a_seed_is_replayed_by_one_command(capsys):
    outcome = weather_chaos(3)
    assert outcome.replay == "python -m plumtree_quic.sim --chaos --seed 3"
    assert main(["--chaos", "--seed", "3"]) == 0
    assert outcome.report.trace in capsys.readouterr().out


def quiet(nodes=3, **config):
    """A calm cluster with disks, and its logs."""
    config = PlumtreeConfig.lan(storage=StorageConfig(enabled=True), **config)
    cluster = Cluster(config=config, disks=True)
    logs = Logs(cluster)
    cluster.ready(nodes)
    return cluster, logs


def test_what_was_safe_when_its_origin_was_killed_reaches_everybody_after_its_restart():
    cluster, logs = quiet()
    cluster.partition(["n000"])
    cluster.hosts["n000"].publish(b"x")
    cluster.run(1.0)
    assert len(cluster.accepted) == 1
    assert len(logs.missing()) == 2
    cluster.crash("n000")
    cluster.partition()
    cluster.run(1.0)
    cluster.restart("n000")
    assert cluster.run(30.0, lambda: not logs.missing())


def test_what_was_not_safe_when_its_origin_was_killed_was_not_accepted():
    cluster, logs = quiet()
    cluster.hosts["n000"].publish(b"x")
    cluster.crash("n000")
    cluster.run(1.0)
    cluster.restart("n000")
    cluster.run(5.0)
    assert cluster.accepted == []
    assert logs.missing() == []


def test_who_was_away_for_longer_than_caches_live_is_given_all_by_the_stores():
    cluster, logs = quiet(message_cache_ttl=1.0)
    cluster.crash("n002")
    for _ in range(50):
        cluster.hosts["n000"].publish(b"x")
        cluster.run(0.1)
    cluster.run(5.0)
    assert sum(host.core.broadcasts.cache_messages() for host in cluster.hosts.values()) == 0
    cluster.restart("n002")
    assert cluster.run(30.0, lambda: not logs.missing())


UNMARKED = {Message: {"redelivered": False}}


def test_an_origin_that_restarts_often_loses_nothing_of_its_many_epochs():
    cluster, logs = quiet()
    cluster.crash("n002")
    for _ in range(12):
        cluster.hosts["n000"].publish(b"x")
        cluster.run(1.0)
        cluster.crash("n000")
        cluster.run(1.0)
        cluster.restart("n000")
        cluster.run(3.0)
    assert len({bundle.epoch for bundle in cluster.accepted}) == 12
    cluster.restart("n002")
    assert cluster.run(60.0, lambda: not logs.missing())


def test_what_a_dead_origin_had_accepted_reaches_who_has_never_met_it():
    cluster, logs = quiet(4)
    cluster.partition(["n003"])
    cluster.hosts["n000"].publish(b"x")
    cluster.run(1.0)
    # The origin goes for good, and nobody is left who has not restarted since.
    for name in ("n000", "n001", "n002", "n003"):
        cluster.crash(name)
    cluster.partition()
    for name in ("n001", "n002", "n003"):
        cluster.start(name, "n001", "n002")

    def lacking():
        return [each for each in logs.missing() if not each.startswith("n000")]

    assert lacking()
    assert cluster.run(60.0, lambda: len(cluster.hosts) == 3 and not lacking())


# --- the judges ---------------------------------------------------------------------------------


def broken(monkeypatch, where, name, value, seeds=range(4)):
    """What the judges say of a cluster in which this is wrong."""
    monkeypatch.setattr(where, name, value)
    return [violation for seed in seeds if (violation := run_chaos(seed)[2])]


def test_same_a_store_that_keeps_nothing_for_others_is_found(monkeypatch):
    said = broken(monkeypatch, Ledger, "_on_serve", lambda self, effect: None)
    # It claims what it does not serve, which is a strike, or what it has gets nowhere.
    assert any("strikes" in each or each.startswith("same: ") for each in said)


def test_again_a_reader_that_marks_nothing_is_found(monkeypatch):
    evolve = attrs.evolve
    said = broken(
        monkeypatch, attrs, "evolve",
        lambda what, **changes: evolve(what, **changes | UNMARKED.get(type(what), {})),
    )  # fmt: skip
    assert any(each.startswith("again: ") and "not marked" in each for each in said)


def test_again_a_store_that_forgets_what_was_acknowledged_is_found(monkeypatch):
    reader = Disk.reader
    said = broken(
        monkeypatch, Disk, "reader",
        lambda self, name, begin=None: attrs.evolve(reader(self, name, begin), acked=()),
    )  # fmt: skip
    assert any(each.startswith("again: ") and "had acknowledged" in each for each in said)


def test_s1_a_node_that_forgets_what_it_had_seen_is_found(monkeypatch):
    said = broken(monkeypatch, Ledger, "recover", lambda self, recovered: Recovered())
    assert said


def test_order_a_reader_that_is_handed_messages_as_they_come_is_found(monkeypatch):
    said = broken(
        monkeypatch, HoldBack, "put",
        lambda self, origin, epoch, first, last, items, now, previous=None: list(items),
    )  # fmt: skip
    assert any("order: " in each or "FIFO: " in each for each in said)
