"""Chaos in virtual time: kill -9 and restarts with stores, partitions, a fifth of all packets lost.

What `python -m plumtree_quic.sim --chaos --seed N` runs. Each node has a reader that keeps a log,
acknowledges by hand, and outlives its node by its place in the store. When all is over each log
has every message that was accepted anywhere, and:

- once: no message twice in one life of a node;
- again: in a later life only what was not acknowledged, and marked;
- order: of each origin ever higher (epoch, number)s within a life;
- same: all logs hold the same messages, but for each node's own; and a reader is told of a hole
  at most where a message was: one that left its origin, and was not accepted when that was killed.
"""

import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from random import Random

import attrs

from plumtree_quic import wire
from plumtree_quic.catchup import CatchUp, Place
from plumtree_quic.config import PlumtreeConfig, StorageConfig
from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.intervals import Intervals
from plumtree_quic.messages import Bundle
from plumtree_quic.proto.chunks import Dropped
from plumtree_quic.proto.fifo import HoldBack, Hole
from plumtree_quic.sim.cluster import Cluster, Host
from plumtree_quic.sim.faults import Blow, Storm, Weather
from plumtree_quic.sim.order import Readers
from plumtree_quic.sim.report import Violation
from plumtree_quic.store.contract import Kept
from plumtree_quic.subscription import Message

__all__ = ["CHAOS", "Logs", "draw_chaos", "run_chaos"]

CHAOS = Weather(latency_s=(0.05, 0.15), jitter_s=0.05, loss=0.2)
"""The way between any two: 100 ms, half of that more or less, and a fifth lost."""
CHAOS_S = 60.0
PARTITION_S = (1.0, 30.0)
DOWN_S = (0.5, 20.0)
# After it: dials back off to a minute, and then everything is compared.
AFTER_S = 240.0
READER = "log"
BUFFER = 50
HOLD_S = 600.0
QUIET_S = 2.0
# How long a reader thinks about a message, and until it acknowledges it.
THINK_S = (0.0, 0.01)
ACK_S = (0.0, 0.5)
SETTLE_EVERY_S = 0.25

_Id = tuple[MemberKey, int, int]


class _Nothing:
    """Nobody awaits an acknowledgement here."""

    def __await__(self) -> Generator[None, None, None]:
        yield


_NOTHING = _Nothing()


@attrs.define(eq=False)
class _Log:
    """What one node's reader was handed, over all its lives. holes: told as lost. acked: is safe in
    the store.
    """

    ids: dict[_Id, None] = attrs.field(factory=dict)
    holes: dict[_Id, None] = attrs.field(factory=dict)
    acked: set[_Id] = attrs.field(factory=set)
    again: int = 0


class _Reader:
    """One life of one node's reader: puts in order, thinks, logs, acknowledges."""

    own = False

    def __init__(self, host: Host, log: _Log) -> None:
        cluster = host.cluster
        self.on_room: Callable[[], None] | None = None
        self._host = host
        self._log = log
        self._rng = Random(f"{cluster.seed} reader {host.name} {host.epoch}")
        self._back: HoldBack[Message] = HoldBack(hold_s=HOLD_S, quiet_s=QUIET_S, items_max=100_000)
        self._queue: deque[Message] = deque()
        self._busy = False
        self._had: set[_Id] = set()
        self._at: dict[MemberKey, tuple[int, int]] = {}
        self._acking: _Id | None = None
        ledger = host.ledger
        assert ledger is not None
        self._ledger = ledger
        state = ledger.store.reader(READER)
        acked = Intervals.of(state.acked)
        self._handed_at = ledger.store.head
        self._catching = CatchUp(
            ledger.store,
            self,
            Place(state.start, name=READER, acked=acked, redelivered_below=ledger.store.head),
            me=host.id,
            handed_at=lambda: self._handed_at,
            read=_messages_of,
            clock=lambda: cluster.time.now,
            when_safe=self._when_safe,
        )
        host.consumer = self._on_safe
        cluster.time.after(0.0, self._catching.pull)
        cluster.time.after(SETTLE_EVERY_S, self._settle)

    # --- for CatchUp ----------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._host.alive

    def has_room(self, count: int, size: int = 0) -> bool:  # noqa: ARG002
        return not self._queue or len(self._queue) + count <= BUFFER

    def wants(self, topic: str) -> bool:  # noqa: ARG002
        return True

    def fail(self, error: str) -> None:
        raise Violation(f"{self._host.name}: {error}")

    def note_progress(self, kept: Kept, now: float) -> None:
        """Nothing large is broadcast here."""

    def lose(self, origin: NodeId, dropped: Dropped[Kept], now: float) -> None:
        """Nothing large is broadcast here."""

    def take(
        self,
        kept: Kept,
        messages: Sequence[Message],
        now: float,
        last: int = 0,  # noqa: ARG002
    ) -> None:
        bundle = kept.bundle
        key, epoch = bundle.origin, bundle.epoch
        self._hand_over(
            self._back.put(key, epoch, bundle.first, bundle.last, messages, now, bundle.previous)
        )

    def _when_safe(self, ticket: int) -> Awaitable[None]:
        acking = self._acking
        assert acking is not None
        self._ledger.after(ticket, lambda: self._log.acked.add(acking))
        return _NOTHING

    # --- what happens ---------------------------------------------------------------------------

    def _on_safe(self, kept: Kept) -> None:
        self._handed_at = kept.next_at
        self._catching.offer(kept)

    def _settle(self) -> None:
        if not self._host.alive:
            return
        cluster, broadcasts = self._host.cluster, self._host.core.broadcasts
        now, host_now = cluster.time.now, self._host.now()
        if self._back.is_waiting and self._catching.is_live and not self._ledger.is_waiting:
            out = self._back.settle(
                broadcasts.seen_through,
                lambda origin, epoch, before: broadcasts.awaits(origin, epoch, before, host_now),
                now,
                whole=broadcasts.is_greeted,
            )
            self._hand_over(out)
        self._catching.pull()
        cluster.time.after(SETTLE_EVERY_S, self._settle)

    def _hand_over(self, items: Sequence[Message | Hole]) -> None:
        for item in items:
            if isinstance(item, Hole):
                numbers = range(item.first, item.last + 1)
                self._log.holes |= {(item.origin, item.epoch, seq): None for seq in numbers}
            else:
                self._queue.append(item)
        self._think()

    def _think(self) -> None:
        if self._queue and not self._busy:
            self._busy = True
            self._host.cluster.time.after(self._rng.uniform(*THINK_S), self._thought)

    def _thought(self) -> None:
        if not self._host.alive:
            return
        self._busy = False
        message = self._queue.popleft()
        key = _key(message)
        self._check(message, key)
        self._had.add(key)
        self._at[key[0]] = key[1:]
        self._log.ids[key] = None
        self._host.cluster.time.after(self._rng.uniform(*ACK_S), self._acknowledge, message, key)
        if self._has_half():
            self._catching.pull()
        self._think()

    def _has_half(self) -> bool:
        return len(self._queue) * 2 <= BUFFER

    def _check(self, message: Message, key: _Id) -> None:
        name = self._host.name
        if key in self._had:
            raise Violation(f"once: {name} reads {message.id} twice in one life")
        if key[1:] <= self._at.get(key[0], (0, 0)):
            raise Violation(f"order: {name} reads {message.id} after {self._at[key[0]]}")
        if key in self._log.ids:
            self._log.again += 1
            if not message.redelivered:
                raise Violation(f"again: {name} reads {message.id} again, and it is not marked")
            if key in self._log.acked:
                raise Violation(f"again: {name} reads {message.id}, which it had acknowledged")

    def _acknowledge(self, message: Message, key: _Id) -> None:
        if self._host.alive:
            self._acking = key
            message.ack()


class Logs:
    """The readers of a cluster with disks; make it before the first node."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._logs: dict[str, _Log] = {}
        cluster.on_start = self._on_start

    def _on_start(self, host: Host) -> None:
        _Reader(host, self._logs.setdefault(host.name, _Log()))

    @property
    def again(self) -> int:
        """How many messages were read again, after a restart."""
        return sum(log.again for log in self._logs.values())

    def missing(self) -> list[str]:
        """What some log lacks that was accepted, or that another one has."""
        due: dict[_Id, str] = {}
        for bundle in self._cluster.accepted:
            due |= dict.fromkeys(_ids(bundle), "accepted")
        lost = {key for log in self._logs.values() for key in log.holes if key not in due}
        for name, log in self._logs.items():
            for key in log.ids:
                if key not in lost:
                    due.setdefault(key, f"read by {name}")
        own = {host.core.key: name for name, host in self._cluster.hosts.items()}
        return [
            f"{name} lacks {own.get(key[0])}/{key[1]}/{key[2]}, {why}"
            for name, log in self._logs.items()
            for key, why in due.items()
            if key not in log.ids and own.get(key[0]) != name
        ]


def draw_chaos(rng: Random, names: tuple[str, ...]) -> Storm:
    """Kills, several at once now and then, and partitions, until CHAOS_S."""
    blows: list[Blow] = []
    at = 0.0
    while (at := at + rng.expovariate(1 / 8)) < CHAOS_S:
        for name in rng.sample(names, rng.choice((1, 1, 1, 2, len(names)))):
            blows.append(Blow(at, "crash", (name,), rng.uniform(*DOWN_S)))
    at = 0.0
    while (at := at + rng.expovariate(1 / 20)) < CHAOS_S:
        side = tuple(rng.sample(names, rng.randrange(1, len(names))))
        blows.append(Blow(at, "partition", side, rng.uniform(*PARTITION_S)))
    return Storm(CHAOS_S, tuple(sorted(blows, key=lambda blow: blow.at)))


def run_chaos(seed: int) -> tuple[Cluster, Logs, str]:
    """Run one seed: the cluster, its logs, and which rule was broken, "" if none."""
    rng = Random(f"chaos {seed}")
    nodes = rng.randrange(5, 10)
    config = PlumtreeConfig.lan(
        graft_timeout=0.5,
        # Stores are to be needed.
        message_cache_ttl=rng.choice((2.0, 30.0)),
        message_cache_max_size=rng.choice((20, 10_000)),
        sync=attrs.evolve(PlumtreeConfig().sync, sync_interval=5.0),
        storage=StorageConfig(enabled=True, retention=3_600.0),
    )
    cluster = Cluster(config=config, weather=CHAOS, seed=seed, disks=True)
    logs = Logs(cluster)
    Readers(cluster)
    try:
        _run(cluster, logs, rng, nodes)
    except Violation as error:
        return cluster, logs, str(error)
    except Exception as error:
        # Whatever a core raises would end a turn of the driver.
        traceback.print_exc()
        return cluster, logs, f"S10: {type(error).__name__}: {error}"
    return cluster, logs, ""


def _run(cluster: Cluster, logs: Logs, rng: Random, nodes: int) -> None:
    cluster.grow(nodes, seeds=3, gap_s=0.1)
    cluster.run(rng.choice((5.0, 15.0)))
    names = tuple(cluster.hosts)
    cluster.unleash(draw_chaos(rng, names))
    rate = rng.choice((2.0, 10.0))
    end = cluster.time.now + CHAOS_S
    while cluster.time.now < end:
        cluster.run(rng.expovariate(rate))
        host = cluster.hosts.get(rng.choice(names))
        if host is not None and host.awake():
            host.publish(*[rng.randbytes(rng.randrange(500)) for _ in range(rng.choice((1, 3)))])
    for name in names:
        cluster.restart(name)
    cluster.calm()
    done = cluster.run(
        AFTER_S, lambda: len(cluster.hosts) == nodes and not logs.missing(), look_s=2.0
    )
    if not done:
        missing = logs.missing()
        raise Violation(f"same: {len(missing)} are lacking after {AFTER_S:g} s: {missing[:3]}")
    # And nothing more comes.
    cluster.run(10.0)


def _messages_of(kept: Kept) -> list[Message]:
    bundle = kept.bundle
    return [
        Message(kept.origin, bundle.epoch, seq, topic, payload, kept.hop, 0.0)
        for seq, (topic, payload) in enumerate(wire.open_bundle(bundle), bundle.first)
    ]


def _ids(bundle: Bundle) -> list[_Id]:
    return [(bundle.origin, bundle.epoch, seq) for seq in range(bundle.first, bundle.last + 1)]


def _key(message: Message) -> _Id:
    return (member_key(message.origin), message.epoch, message.seq)
