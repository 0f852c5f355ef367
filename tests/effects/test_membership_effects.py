"""What changing a setting of probes, suspicion and table comparison changes. Virtual time."""

import itertools
from random import Random

import pytest

from plumtree_quic import wire
from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import member_key
from plumtree_quic.messages import Ack, BucketHashes, Hello, Ping
from plumtree_quic.proto.effects import MemberFailed, MemberSuspected, Send, SendDatagram
from plumtree_quic.proto.members import Members
from plumtree_quic.proto.swim import Swim
from tests.rigs.broadcast import node
from tests.rigs.effects import shows_effect_of

WALL_MS = 1_790_000_000_000


def record(name, incarnation=0):
    return wire.build_record(
        node_id=node(name),
        epoch=1,
        incarnation=incarnation,
        addresses=("10.0.0.1:1",),
        valid_until=WALL_MS + 86_400_000,
    )


class Watcher:
    """One node linked with peers that answer every probe, or none at all."""

    def __init__(self, config, peers=("b",), *, answering=False):
        me = member_key(node("a"))

        def make_fact(subject, epoch, incarnation, state):
            return wire.build_fact(
                subject=subject, epoch=epoch, incarnation=incarnation, state=state, signer=me
            )

        self.swim = Swim(
            Members(record("a"), lambda: WALL_MS),
            config,
            Random(7),
            lambda incarnation: record("a", incarnation),
            make_fact,
        )
        self.answering = answering
        self.seen = []
        self.note(self.swim.start(0.0), 0.0)
        for peer in peers:
            hello = Hello(1, 0, 0, "default", record(peer), 1_200, bytes(16), True)
            self.note(self.swim.link_up(node(peer), hello, 0.0), 0.0)

    def note(self, effects, now):
        for effect in effects:
            if isinstance(effect, Send | SendDatagram):
                self.seen.append((now, type(effect.message)))
                if self.answering and isinstance(effect.message, Ping):
                    echo = Ack(effect.message.nonce)
                    self.note(self.swim.receive(effect.peer, echo, now), now)
            else:
                self.seen.append((now, type(effect)))

    def run(self, seconds):
        while (due := self.swim.next_deadline()) is not None and due <= seconds:
            self.note(self.swim.advance(due), due)
        return self

    def times(self, kind):
        return [now for now, each in self.seen if each is kind]


@shows_effect_of("probe_interval")
@pytest.mark.parametrize("interval", [1.0, 5.0])
def test_a_silent_link_is_probed_after_one_to_two_probe_intervals(interval):
    config = PlumtreeConfig(probe_interval=interval)
    first = Watcher(config, answering=True).run(60.0).times(Ping)[0]
    assert interval <= first <= 2 * interval


@shows_effect_of("probe_timeout")
@pytest.mark.parametrize("timeout", [0.2, 0.9])
def test_a_probe_has_failed_after_probe_timeout_of_silence(timeout):
    watcher = Watcher(PlumtreeConfig(probe_timeout=timeout)).run(10.0)
    probed, suspected = watcher.times(Ping)[0], watcher.times(MemberSuspected)[0]
    assert suspected - probed == pytest.approx(timeout)


@shows_effect_of("suspicion_timeout")
@pytest.mark.parametrize("timeout", [2.0, 30.0])
def test_a_suspicion_ends_in_death_after_suspicion_timeout(timeout):
    # In a cluster of two one accuser is all there is, so this is the shortest time.
    watcher = Watcher(PlumtreeConfig(suspicion_timeout=timeout)).run(60.0)
    suspected, failed = watcher.times(MemberSuspected)[0], watcher.times(MemberFailed)[0]
    assert failed - suspected == pytest.approx(timeout)


def compared(**settings):
    """When tables were compared in a minute, beside the comparison at link up."""
    watcher = Watcher(PlumtreeConfig(**settings), answering=True).run(60.0)
    return [now for now in watcher.times(BucketHashes) if now > 0]


def gaps(times):
    return [after - before for before, after in itertools.pairwise(times)]


@shows_effect_of("maintenance_interval")
def test_tables_are_compared_every_maintenance_interval():
    assert len(compared(maintenance_interval=2.0, maintenance_jitter=0.0)) in (29, 30)
    assert len(compared(maintenance_interval=10.0, maintenance_jitter=0.0)) in (5, 6)
    assert compared(maintenance_interval=0.0) == []


@shows_effect_of("maintenance_jitter")
def test_maintenance_jitter_spreads_the_comparisons():
    even = gaps(compared(maintenance_interval=2.0, maintenance_jitter=0.0))
    assert even == pytest.approx([2.0] * len(even))
    spread = gaps(compared(maintenance_interval=2.0, maintenance_jitter=1.0))
    assert all(2.0 <= gap <= 3.0 for gap in spread)
    assert max(spread) - min(spread) > 0.5
