"""Nodes on the virtual network: each drives a production Core as the driver does. No rule of the
protocol lives here, only what node and driver would do with the core's effects.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from random import Random

import attrs

from plumtree_quic import wire
from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.ledger import Ledger
from plumtree_quic.messages import (
    Ack,
    Bundle,
    Chunk,
    Digest,
    Fact,
    Gossip,
    GraftRefused,
    Hello,
    Lane,
    MemberState,
    Message,
    Ping,
    Record,
    RefusedReason,
    Repair,
    Wanted,
)
from plumtree_quic.proto.core import Core
from plumtree_quic.proto.directory import Directory
from plumtree_quic.proto.effects import (
    Covered,
    Deliver,
    DialSeed,
    Effect,
    FloorMoved,
    Forgotten,
    Greeted,
    Link,
    Push,
    Relink,
    Send,
    SendDatagram,
    Serve,
    Skipped,
    Strike,
    Superseded,
    TurnAway,
    Unlink,
)
from plumtree_quic.security.gate import Gate, Refusal
from plumtree_quic.security.keyring import Verdict
from plumtree_quic.security.signatures import Kind, fact_kind
from plumtree_quic.sim.disks import Disk
from plumtree_quic.sim.faults import CALM, Blow, Storm, Weather
from plumtree_quic.sim.keys import Authority, SimKey, SimRing
from plumtree_quic.sim.network import IDLE_S, End, Network, Time
from plumtree_quic.sim.network import Link as NetLink
from plumtree_quic.sim.report import Journal, Life, Report, Violation
from plumtree_quic.store.contract import Committed, Kept
from plumtree_quic.store.memory import MemoryStore

__all__ = ["Cluster", "Host"]

WALL_MS = 1_700_000_000_000
RECORD_VALID_MS = 24 * 3600 * 1000
START_S = 1000.0
# As in driver and endpoint; the names there are the same.
HEARD_EVERY_S = 0.1
BLOCKED_S = 0.25
BLOCKED_S_MAX = 1.0
REPAIR_BACKLOG_BYTES = 65_536
HANDSHAKE_S = 5.0
FIRST_REDIAL_S = (0.05, 0.5)
LARGER_WAITS_S = (0.5, 1.0)
REDIAL_S = (1.0, 60.0)
WATCH_EVERY_S = 1.0
# Longer than a join link lives that nobody wants.
STILL_S = 6.0
# Where all have met before there are none; the overlay lets surplus links go one a second.
MET_STILL_S = 2.5
# What one link may have announced that is not here, in ids (reliability bar, part E).
ANNOUNCED_IDS_MAX = 1_000
# How long a node that leaves keeps its links, for the news to pass.
LEAVE_S = 0.5
REPEATED_AFTER_S = (0.01, 5.0)
SHORTEST_PAUSE_S = 0.1
# Why an end closes for which there is no room; whoever wants it back waits longer each time.
OVERLOADED = "overloaded"
TURNS_AT_ONCE_MAX = 1_000


class Host:
    """One process: a core, its links, and what it wants."""

    def __init__(
        self,
        cluster: "Cluster",
        name: str,
        epoch: int,
        config: PlumtreeConfig,
        place: str | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.cluster = cluster
        self.name = name
        # Where it can be dialled; at home, a node's place has its name.
        self.place = name if place is None else place
        self.id = _node_id(name)
        self.epoch = epoch
        self.config = config
        self.alive = True
        self.life = Life(name, epoch)
        self.links: dict[NodeId, End] = {}
        self.strikes: list[Strike] = []
        self.covered: list[Covered] = []
        self.superseded: int | None = None
        # Most links at a time that an end wanted for its overlay, and most joiners served.
        self.overlay_links_most = self.join_links_most = 0
        self._ends: tuple[End, ...] = ()
        self._wanted: dict[NodeId, int] = {}
        self._addresses: dict[NodeId, tuple[str, ...]] = {}
        self._dialling: dict[NodeId, None] = {}
        # Links without room: since when, when looked at last, and how much had passed by then.
        self._blocked: dict[NodeId, tuple[float, float, int]] = {}
        self._congested: dict[NodeId, None] = {}
        self._next_seq = 1
        self._previous: tuple[int, int] | None = None
        self._timer: float | None = None
        self._fired = 0
        self._fired_at = 0.0
        self._paused_until = 0.0
        # What our timers' clock lacks, by how much our wall clock is wrong, and how slow we are.
        self._slept_s = self._clock_ahead_s = 0.0
        self._slow_s = self._slow_until = 0.0
        self._checking = False
        self._rng = Random(f"{cluster.seed} {name} {epoch}")
        self.key = cluster.authority.issue(self.id)
        self.ring = SimRing(cluster.authority, self.key, self.wall_ms)
        self.gate = Gate(
            self.ring,
            seen=lambda bundle: self.core.has_seen(bundle),  # noqa: PLW0108 - made below
            differs=lambda bundle: self.core.differs(bundle),  # noqa: PLW0108
        )
        self.refusals: list[tuple[NodeId, Refusal]] = []
        self.core = self._make_core(None)
        # Told of each bundle that is safe, if anybody wants to know.
        self.consumer: Callable[[Kept], None] | None = None
        self.ledger: Ledger | None = None
        if disk is not None:
            self._use_disk(disk)

    def _make_core(self, directory: Directory | None) -> Core:
        return Core(
            self._make_record(0),
            self.config,
            Random(f"{self.cluster.seed} core {self.name} {self.epoch}"),
            make_record=self._make_record,
            make_fact=self._make_fact,
            wall_ms=self.wall_ms,
            is_safe=lambda origin, epoch, *run: (
                self.ledger is None or not self.ledger.is_pending((origin, epoch), run)
            ),
            directory=directory,
        )

    def _use_disk(self, disk: Disk) -> None:
        """As driver and node do with a store."""
        self.ledger = Ledger(disk, self.id, lambda: self.core, self)
        recovered = disk.open(wire.parse_bundle, self.wall_ms())
        for chain in recovered.chains.values():
            self.ring.offer(chain, self.now())
        disk.attach(lambda then: self.cluster.time.after(0.0, then), self._on_commit)
        self.ledger.recover(recovered)
        self._previous = recovered.last_of(self.core.key)

    def _on_commit(self, commit: Committed) -> None:
        if self.alive and self.ledger is not None:
            self.ledger.committed(commit)

    def meet(self, directory: Directory, keys: Mapping[bytes, SimKey]) -> None:
        """Before the start: know all of these, as if they had been met long ago."""
        self.ring.meet(keys)
        self.core = self._make_core(directory)

    def _make_record(self, incarnation: int) -> Record:
        cluster, key = self.cluster, self.key
        cluster.journal.check_incarnation(self.life, incarnation)
        return wire.build_record(
            node_id=self.id,
            epoch=self.epoch,
            incarnation=incarnation,
            addresses=(_address(self.place),),
            zone=self.config.zone,
            valid_until=self.wall_ms() + RECORD_VALID_MS,
            chain=key.chain,
            algorithm=key.algorithm,
            key_id=key.key_id,
            signed_at=self.wall_ms(),
            sign=key.sign(Kind.RECORD),
        )

    def _make_fact(
        self, subject: MemberKey, subject_epoch: int, incarnation: int, state: MemberState
    ) -> Fact:
        key = self.key
        return wire.build_fact(
            subject=subject,
            epoch=subject_epoch,
            incarnation=incarnation,
            state=state,
            signer=member_key(self.id),
            algorithm=key.algorithm,
            key_id=key.key_id,
            signed_at=self.wall_ms(),
            sign=key.sign(fact_kind(state)),
        )

    # --- what tests ask and do ------------------------------------------------------------------

    def publish(self, *payloads: bytes, topic: str = "") -> Bundle:
        """Broadcast these messages as one bundle."""
        compression = self.config.compression
        bundle = wire.build_bundle(
            origin=self.core.key,
            epoch=self.epoch,
            first=self._next_seq,
            messages=[(topic, payload) for payload in payloads or (b"x" * 64,)],
            zstd_level=compression.level if compression.enabled else None,
            zstd_bytes_min=compression.min_payload_size,
            algorithm=self.key.algorithm,
            key_id=self.key.key_id,
            signed_at=self.wall_ms(),
            sign=self.key.sign(Kind.BUNDLE),
            previous=self._previous if self._next_seq == 1 else None,
        )
        self._next_seq += bundle.count
        now = self.cluster.time.now
        self.cluster.journal.on_published(self.life, bundle, self._ends, now)
        self._input(self.core.broadcast(bundle, self.now()))
        if self.ledger is not None:
            self.ledger.broadcast(bundle, lambda: self.cluster.accepted.append(bundle))
        else:
            self.cluster.accepted.append(bundle)
        self._check_later()
        return bundle

    def ask_who_has(self, bundle: Bundle, within_s: float, *, wide: bool) -> None:
        """Ask who has a bundle of this node; `covered` says it then."""
        _, effects = self.core.ask_who_has(
            bundle.epoch, bundle.last, bundle.last, within_s, self.now(), wide=wide
        )
        self._input(effects)

    def state_of(self, name: str) -> MemberState | None:
        """What this node holds another one for."""
        return self.core.table.state_of(member_key(_node_id(name)))

    def view(self) -> frozenset[str]:
        """The names of those whom this node holds for alive, itself included."""
        return frozenset(
            record.node_id.name
            for record, state in self.core.table.members()
            if state is MemberState.ALIVE
        )

    def now(self) -> float:
        """The clock of this node's timers: it stands still while the machine sleeps."""
        return self.cluster.time.now - self._slept_s

    def wall_ms(self) -> int:
        """The wall clock of this node."""
        return self.cluster.wall_ms() + int(1000 * self._clock_ahead_s)

    def awake(self) -> bool:
        """Whether the process lives and runs."""
        return self.alive and self.cluster.time.now >= self._paused_until

    def asleep_s(self) -> float:
        """How long the process stands still yet; 0 while it runs, and when it is gone."""
        return max(0.0, self._paused_until - self.cluster.time.now) if self.alive else 0.0

    # --- inputs ---------------------------------------------------------------------------------

    def start(self, seeds: Iterable[str], remembered: Iterable[Record] = ()) -> None:
        """Begin, and dial the seeds; remembered: whom a former life knew."""
        now = self.now()
        self._input(self.core.start(now))
        peers = [(record.node_id, record.addresses) for record in remembered]
        self._input(self.core.remember(peers, now))
        self._input(self.core.seeds([_address(seed) for seed in seeds], now))

    def frame(self, end: End, message: Message) -> None:
        """A frame arrived."""
        now = self.now()
        wanted = message if isinstance(message, Wanted) else None
        if wanted is not None:
            end.wanted_by_peer = wanted.wanted
        self._admit(end, message, now)
        self._hear(end, now)
        if wanted is not None:
            self._note_links()
            self._close_unwanted(end)
        self._arm()
        if self._slow_s:
            self._take_time()

    def datagram(self, end: End, message: Ping | Ack) -> None:
        """A datagram arrived."""
        now = self.now()
        self._admit(end, message, now)
        self._hear(end, now)
        self._arm()
        if self._slow_s:
            self._take_time()

    def _admit(self, end: End, message: Message, now: float) -> None:
        if self.gate.lets_pass(message):
            self._take(end, message, now)
            return
        admitted = self.gate.admit(end.peer, message, now)
        for reply in admitted.replies:
            end.send(reply)
        for refusal in admitted.refusals:
            self.refusals.append((end.peer, refusal))
            if refusal.verdict.is_strike:
                self._perform([Strike(end.peer, f"{refusal.what}: {refusal.verdict.value}")])
        if isinstance(message, Repair) and not admitted.messages:
            self.core.came(end.peer, message.bundle, now)
        for each in admitted.messages:
            self._take(end, each, now)

    def _take(self, end: End, message: Message, now: float) -> None:
        try:
            self.cluster.journal.on_received(end, message)
        except Violation:
            if end.peer not in self.cluster.liars:
                raise
        if isinstance(message, Gossip | Chunk | Repair):
            self._name_origin(message.bundle)
        effects = self.core.receive(end.peer, message, now)
        if effects:
            self._perform(effects)

    def _name_origin(self, bundle: Bundle) -> None:
        if self.core.node_id_of(bundle.origin) is None:
            name = self.gate.name_of(bundle)
            if name is not None:
                self.core.origin_named(name)

    def fresh(self, end: End) -> None:
        """Acknowledgements advanced. That puts off what is due; the timer finds out by itself."""
        self._hear(end, self.now())
        if self.ledger is not None and self.ledger.is_serving:
            self.ledger.pump()

    def writable(self, end: End) -> None:
        """The gossip lane has room again."""
        self._blocked.pop(end.peer, None)
        if end.peer in self._congested:
            del self._congested[end.peer]
            self._input(self.core.drained(end.peer, self.now()))

    def up(self, end: End, hello: Hello, dialled: str | None) -> None:
        """A link is greeted."""
        now = self.now()
        hello, verdict = self.gate.check_hello(self.id, hello, now)
        if verdict is not Verdict.GOOD:
            self.refusals.append((end.peer, Refusal("hello", verdict, hello.record.key_id)))
            end.close(f"hello: {verdict.value}")
            return
        self.gate.link_up(end.peer, now)
        self.links[end.peer] = end
        self._ends = tuple(self.links.values())
        self.cluster.links_changed_at = self.cluster.time.now
        end.wanted_by_peer = hello.wanted
        if self.life.linked_at is None:
            self.life.linked_at = self.cluster.time.now
        self._input(self.core.link_up(end.peer, hello, now, dialled))
        self._note_links()

    def down(self, end: End, reason: str) -> None:
        """A link is over."""
        peer = end.peer
        if not self.alive or self.links.get(peer) is not end:
            return
        del self.links[peer]
        self._ends = tuple(self.links.values())
        self.cluster.links_changed_at = self.cluster.time.now
        self._blocked.pop(peer, None)
        self._congested.pop(peer, None)
        self.gate.link_down(peer)
        if self.ledger is not None:
            self.ledger.link_down(peer)
        self._input(self.core.link_down(peer, self.now()))
        if peer in self._wanted:
            if reason == OVERLOADED:
                wait = self._back_off(peer)
            else:
                self._wanted[peer] = 0
                wait = self._rng.uniform(*FIRST_REDIAL_S)
            if self.id > peer:
                wait += self._rng.uniform(*LARGER_WAITS_S)
            self.cluster.time.after(wait, self._dial, peer)

    def die(self) -> None:
        """SIGKILL: nobody is told."""
        self.alive = self.life.alive = False
        if self.ledger is not None:
            self.ledger.store.close()

    def leave(self) -> None:
        """Say goodbye, then close all links and end."""
        self._input(self.core.leave(self.now()))
        self.cluster.time.after(LEAVE_S, self._stop)

    def _stop(self) -> None:
        self.life.left = True
        self._wanted.clear()
        for end in tuple(self.links.values()):
            end.close("shutdown")
        self.die()

    def pause(self, seconds: float) -> None:
        """SIGSTOP, or a callback that blocks: nothing runs for so long."""
        now = self.cluster.time.now
        self._paused_until = max(self._paused_until, now + seconds)
        self.cluster.time.at(self._paused_until, self._resume, now)

    def _resume(self, since: float) -> None:
        now = self.cluster.time.now
        if not self.awake():
            return
        if now - since > SHORTEST_PAUSE_S:
            self.core.late(now - since, self.now())
        self._arm()

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: for so long nothing runs, and our timers' clock stands still."""
        time = self.cluster.time
        self._paused_until = max(self._paused_until, time.now + seconds)
        time.at(self._paused_until, self._wake, seconds)

    def _wake(self, seconds: float) -> None:
        if not self.alive:
            return
        self._slept_s += seconds
        self.life.due = deque((at + seconds, index, to) for at, index, to in self.life.due)
        self.core.slept(seconds, self.now())
        if seconds >= IDLE_S:
            # As the driver: the other ends have given these links up.
            for end in tuple(self.links.values()):
                self._relink(end.peer)
        self._arm()

    def set_clock(self, ahead_s: float) -> None:
        """Somebody sets the wall clock, so far ahead of (or below 0: behind) that of the others."""
        step_s = ahead_s - self._clock_ahead_s
        self._clock_ahead_s = ahead_s
        self.core.slept(abs(step_s), self.now())
        self._arm()

    def slow_down(self, frame_s: float, seconds: float) -> None:
        """For so long, each frame and each timer takes `frame_s`, in which nothing else runs."""
        self._slow_s, self._slow_until = frame_s, self.cluster.time.now + seconds

    def _take_time(self) -> None:
        now = self.cluster.time.now
        if now >= self._slow_until:
            self._slow_s = 0.0
            return
        self._paused_until = max(self._paused_until, now + self._slow_s)

    # --- time -----------------------------------------------------------------------------------

    def _arm(self) -> None:
        deadline = self.core.next_deadline()
        waiting = self.gate.next_deadline()
        if waiting is not None and (deadline is None or waiting < deadline):
            deadline = waiting
        timer = self._timer
        if deadline is not None and self._slept_s:
            # Rounding must not call it before its time.
            deadline += self._slept_s + 1e-9
        if deadline is None or (timer is not None and deadline >= timer):
            return
        time = self.cluster.time
        if deadline < time.now:
            deadline = time.now
            if deadline == timer:
                return
        self._timer = deadline
        time.at(deadline, self._fire, deadline)

    def _fire(self, deadline: float) -> None:
        if not self.alive or self._timer != deadline:
            return
        if not self.awake():
            # What waits in the socket is read before timers fire.
            wait = self._paused_until - self.cluster.time.now + 2 * self.cluster.weather.jitter_s
            self._timer = None
            self.cluster.time.after(wait + 0.001, self._arm_if_alive)
            return
        self._timer = None
        now = self.cluster.time.now
        self._fired = self._fired + 1 if now == self._fired_at else 0
        self._fired_at = now
        if self._fired > TURNS_AT_ONCE_MAX:
            raise Violation(f"{self.name} is due again and again at {now:.6f}: time stands still")
        now = self.now()
        self.gate.advance(now)
        self._input(self.core.advance(now))
        if self._slow_s:
            self._take_time()

    def _arm_if_alive(self) -> None:
        if self.alive:
            self._arm()

    def _hear(self, end: End, now: float) -> None:
        if now - end.reported_at < HEARD_EVERY_S or not end.up:
            return
        end.reported_at = now
        self.core.heard(end.peer, now, *end.timing())

    def _check_later(self) -> None:
        if not self._checking and self.life.due:
            self._checking = True
            self.cluster.time.at(self.life.due[0][0], self._check)

    def _check(self) -> None:
        self._checking = False
        if not self.alive:
            return
        now = self.cluster.time.now
        # Who is slow is late; once it is not any more, all that waits is done.
        ready_at = max(self._paused_until, self._slow_until)
        if now < ready_at:
            self._checking = True
            self.cluster.time.at(ready_at + 0.1, self._check)
        else:
            self.cluster.journal.check_told(self.life, now)
            self._check_later()

    # --- effects --------------------------------------------------------------------------------

    def _input(self, effects: Iterable[Effect]) -> None:
        if effects:
            self._perform(effects)
        self._arm()

    def _perform(self, effects: Iterable[Effect]) -> None:
        journal, now = self.cluster.journal, self.cluster.time.now
        for effect in effects:
            if not self.alive:
                return
            match effect:
                case Send(peer, message):
                    end = self.links.get(peer)
                    if end is not None:
                        self._send(end, message)
                case Push(peers, message):
                    for peer in peers:
                        self._push(peer, message)
                case Deliver(bundle):
                    journal.on_delivered(self.life, effect, self._ends, now)
                    self._check_later()
                    origin = self.core.node_id_of(bundle.origin)
                    assert origin is not None
                    if self.ledger is not None:
                        self.ledger.delivered(effect, origin)
                case Covered():
                    self.covered.append(effect)
                case Skipped() | FloorMoved() | Greeted() | Forgotten() | Serve():
                    if self.ledger is not None:
                        self.ledger.note(effect)
                case SendDatagram(peer, message):
                    end = self.links.get(peer)
                    if end is not None:
                        end.send_datagram(message, self.config.probe_timeout)
                case Link(peer, addresses):
                    self._addresses[peer] = addresses
                    self._want(peer)
                case Unlink(peer):
                    self._unwant(peer)
                case Relink(peer):
                    self._relink(peer)
                case TurnAway(peer):
                    end = self.links.get(peer)
                    if end is not None:
                        end.close(OVERLOADED)
                case DialSeed(address):
                    self._dial_seed(address)
                case Strike():
                    self.strikes.append(effect)
                    journal.on_fact(self.life, effect, now)
                case Superseded(epoch):
                    self.superseded = epoch
                    journal.on_fact(self.life, effect, now)
                    # The node stops itself: the newer start is the one that goes on.
                    self.cluster.time.after(0.0, self.cluster.superseded, self)
                case _:
                    journal.on_fact(self.life, effect, now)

    def hand_over(self, kept: Kept) -> None:
        """For the ledger: the application may have it."""
        if self.consumer is not None:
            self.consumer(kept)

    def sync_backlog(self, peer: NodeId) -> int | None:
        """For the ledger."""
        end = self.links.get(peer)
        return end.backlog(Lane.SYNC) if end is not None else None

    def answer(self, peer: NodeId, message: Repair | GraftRefused | Digest) -> None:
        """For the ledger."""
        end = self.links.get(peer)
        if end is not None:
            self.cluster.journal.on_told(end, message)
            end.send(message)

    def chain_of(self, key_id: bytes) -> tuple[bytes, ...]:
        """For the ledger."""
        return self.ring.chain(key_id) or ()

    def _send(self, end: End, message: Message) -> None:
        if self.ledger is not None and self.ledger.holds_back(end.peer, message):
            return
        if isinstance(message, Repair) and end.backlog(Lane.SYNC) > REPAIR_BACKLOG_BYTES:
            bundle = message.bundle
            message = GraftRefused(
                bundle.origin, bundle.epoch, ((bundle.first, bundle.last),), RefusedReason.BUSY
            )
        self.cluster.journal.on_told(end, message)
        end.send(message)

    def _push(self, peer: NodeId, message: Gossip | Chunk) -> None:
        end = self.links.get(peer)
        if end is None:
            return
        self._send(end, message)
        replay = self.cluster.weather.replay
        if replay and self._rng.random() < replay:
            wait = self._rng.uniform(*REPEATED_AFTER_S)
            self.cluster.time.after(wait, self._repeat, end, message)
        if isinstance(message, Gossip) and end.room(Lane.GOSSIP) <= 0 and peer not in self._blocked:
            self._look_at_blocked(end, self.cluster.time.now)

    def _repeat(self, end: End, message: Gossip | Chunk) -> None:
        if end.up and self.awake():
            end.send(message)

    def _look_at_blocked(self, end: End, since: float) -> None:
        now = self.cluster.time.now
        self._blocked[end.peer] = (since, now, end.progress(Lane.GOSSIP))
        self.cluster.time.after(BLOCKED_S, self._fire_blocked, end, now)

    def _fire_blocked(self, end: End, looked_at: float) -> None:
        peer, now = end.peer, self.cluster.time.now
        since, last_look, passed = self._blocked.get(peer, (0.0, 0.0, 0))
        if self.links.get(peer) is not end or last_look != looked_at:
            return
        if end.progress(Lane.GOSSIP) > passed and now < since + BLOCKED_S_MAX:
            # Slow, but it moves.
            self._look_at_blocked(end, since)
            return
        del self._blocked[peer]
        self._congested[peer] = None
        self._input(self.core.congested(peer, self.now()))

    # --- links ----------------------------------------------------------------------------------

    def _want(self, peer: NodeId) -> None:
        if peer in self._wanted:
            return
        self._wanted[peer] = 0
        end = self.links.get(peer)
        if end is not None:
            self._send(end, Wanted(True))
            self._note_links()
        else:
            self._dial(peer)

    def _note_links(self) -> None:
        overlay, joining = self.core.link_counts()
        self.overlay_links_most = max(self.overlay_links_most, overlay)
        self.join_links_most = max(self.join_links_most, joining)

    def _unwant(self, peer: NodeId) -> None:
        self._wanted.pop(peer, None)
        end = self.links.get(peer)
        if end is not None:
            self._send(end, Wanted(False))
            self._close_unwanted(end)

    def _relink(self, peer: NodeId) -> None:
        """Dial anew. Here the older link ends first; what waits on it is lost."""
        end = self.links.get(peer)
        if end is not None:
            end.close("silent")

    def _close_unwanted(self, end: End) -> None:
        if end.up and not end.wanted_by_peer and end.peer not in self._wanted:
            end.close("not wanted")

    def _dial(self, peer: NodeId) -> None:
        if not self.awake() and self.alive:
            self.cluster.time.at(self._paused_until, self._dial, peer)
            return
        if not self.alive or peer in self.links or peer in self._dialling:
            return
        if peer in self._wanted:
            self._dialling[peer] = None
            addresses = self._addresses[peer]
            address = addresses[self._wanted[peer] % len(addresses)]
            self.cluster.dial(
                self, _place(address), None, lambda ok: self._dialled(peer, ok), expected=peer
            )

    def _dialled(self, peer: NodeId, reached: bool) -> None:
        self._dialling.pop(peer, None)
        if reached or not self.alive or peer not in self._wanted:
            return
        self.cluster.time.after(self._back_off(peer), self._dial, peer)
        self._input(self.core.unreachable(peer, self.now()))

    def _back_off(self, peer: NodeId) -> float:
        self._wanted[peer] += 1
        first, largest = REDIAL_S
        top = min(largest, first * 2 ** min(self._wanted[peer], 16))
        return max(self._rng.uniform(0.0, top), FIRST_REDIAL_S[0])

    def _dial_seed(self, address: str) -> None:
        name = _place(address)
        places = [
            place
            for place in self.cluster.dns.get(name, (name,))
            if place == name or not self.core.is_served(_address(place))
        ]
        if not places:
            # A name of members whom we know: it has answered.
            self.core.seed_answered(address, self.now())
        failed: list[str] = []

        def dialled(reached: bool, place: str) -> None:
            if reached or not self.alive:
                return
            failed.append(place)
            if len(failed) == len(places):
                self._input(self.core.seed_failed(address, self.now()))

        for place in places:
            self.cluster.dial(self, place, address, partial(dialled, place=place))

    def hello(self, peer: NodeId) -> Hello:
        """What this node says first on a link to `peer`."""
        hello = Hello(
            major=wire.MAJOR,
            minor=wire.MINOR,
            features=0,
            cluster="sim",
            record=self.core.record,
            datagram_bytes_max=1_200,
            link_id=self._rng.randbytes(16),
            wanted=peer in self._wanted or self.core.wants(peer),
            yours=self.core.yours(peer),
        )
        decoded = wire.decode(Lane.CONTROL, wire.encode(hello))
        assert isinstance(decoded, Hello)
        return decoded

    def watch(self) -> None:
        """Check what must hold at any time."""
        own = self.core.table.state_of(self.core.key)
        if own not in (MemberState.ALIVE, MemberState.LEFT):
            raise Violation(f"S4: {self.name} holds itself for {own!r}")
        for strike in self.strikes:
            if strike.peer not in self.cluster.liars:
                raise Violation(f"{self.name} strikes an honest peer: {strike}")
        for peer, refusal in self.refusals:
            if peer not in self.cluster.liars:
                raise Violation(f"{self.name} refuses what an honest peer says: {refusal}")
        known = self.core.table.known_count()
        if known > len(self.cluster.identities):
            raise Violation(f"{self.name} knows {known} members of {len(self.cluster.identities)}")
        ranges = self.core.broadcasts.ranges_awaited()
        ranges_max = (ANNOUNCED_IDS_MAX + self.config.sync.max_batch_size) * (len(self.links) + 1)
        if ranges > ranges_max:
            raise Violation(f"{self.name} waits for {ranges} ranges")


class Cluster:
    """Nodes, network and clock; the same seed gives the same run.

    Args:
        config: of every node; LAN by default.
        weather: of every way, at first.
        seed: of all randomness.
        zone_of: which zone a node of this name is in; all are in one by default.
        disks: every node has a store, which outlives it.
    """

    def __init__(
        self,
        *,
        config: PlumtreeConfig | None = None,
        weather: Weather = CALM,
        seed: int = 0,
        zone_of: Callable[[str], str] | None = None,
        disks: bool = False,
    ) -> None:
        self.seed = seed
        self.disks: dict[str, MemoryStore] | None = {} if disks else None
        # Bundles that count as accepted: they are safe where they were broadcast.
        self.accepted: list[Bundle] = []
        # Told of each node that begins.
        self.on_start: Callable[[Host], None] | None = None
        self.zone_of = zone_of
        self.config = config or PlumtreeConfig.lan()
        self.journal = Journal(self.config.ihave_interval)
        self.time = Time(START_S)
        self.network = Network(self.time, f"{seed} network", weather, self.journal.on_frame)
        self.hosts: dict[str, Host] = {}
        # Who is, or was last, at a place; and the places that a name of DNS stands for.
        self.places: dict[str, Host] = {}
        self.dns: dict[str, tuple[str, ...]] = {}
        self.identities: dict[str, None] = {}
        self.began = self.links_changed_at = START_S
        self.authority = Authority(seed)
        self.liars = self.journal.liars
        self.time.after(WATCH_EVERY_S, self._watch)

    @property
    def weather(self) -> Weather:
        """What all ways are like now."""
        return self.network.weather

    def wall_ms(self) -> int:
        """The wall clock of all nodes."""
        return WALL_MS + int(self.time.now * 1000)

    # --- nodes ----------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        *seeds: str,
        place: str | None = None,
        beside: bool = False,
        remembered: Iterable[Record] = (),
    ) -> Host:
        """Start a node, or start it again.

        seeds: places, or names of DNS. place: where it listens, by default the place that has its
        name. beside: a process that runs under this name goes on, with the same certificate.
        remembered: what its known-peer file holds.
        """
        epoch = self.wall_ms()
        before = self.hosts.get(name)
        if before is not None:
            if not beside:
                before.die()
            epoch = max(epoch, before.epoch + 1)
        disk = self._disk_of(name, epoch)
        host = self._place(Host(self, name, epoch, self._config_of(name), place, disk))
        if self.on_start is not None:
            self.on_start(host)
        host.start(seeds, remembered)
        return host

    def _disk_of(self, name: str, epoch: int) -> Disk | None:
        if self.disks is None:
            return None
        saved = self.disks.setdefault(name, MemoryStore(retention_s=self.config.storage.retention))
        return Disk(self.time, Random(f"{self.seed} disk {name} {epoch}"), saved)

    def _config_of(self, name: str) -> PlumtreeConfig:
        if self.zone_of is None:
            return self.config
        return attrs.evolve(self.config, zone=self.zone_of(name))

    def _place(self, host: Host) -> Host:
        self.hosts[host.name] = host
        self.places[host.place] = host
        self.network.zones[host.id] = host.config.zone
        self.identities[host.name] = None
        self.journal.lives.append(host.life)
        return host

    def grow(self, count: int, *, seeds: int = 1, gap_s: float = 0.0) -> list[Host]:
        """Start `count` nodes that know the first `seeds` of them."""
        names = [f"n{i:03}" for i in range(count)]
        hosts: list[Host] = []
        for name in names:
            hosts.append(self.start(name, *(seed for seed in names[:seeds] if seed != name)))
            self.run(gap_s)
        return hosts

    def ready(self, count: int, *, within_s: float = 30.0) -> list[Host]:
        """Start `count` nodes and run until all know all and no link comes or goes any more."""
        hosts = self.grow(count, seeds=min(3, count))
        if not self.run(within_s, self.agreed):
            raise Violation(f"L1: {count} nodes do not agree {within_s:g} s after they started")
        if not self.run(60.0, lambda: self.time.now - self.links_changed_at > STILL_S):
            raise Violation("L1: links come and go for a minute")
        return hosts

    def converged(self, count: int, *, within_s: float = 30.0) -> list[Host]:
        """Start `count` nodes that have all met before, and run until their links stand still.

        What a cluster becomes when it is left in peace, without the way there: each knows all.
        """
        names = [f"n{i:03}" for i in range(count)]
        hosts = [Host(self, name, self.wall_ms(), self._config_of(name)) for name in names]
        directory = Directory([host.core.record for host in hosts])
        keys = self.authority.issued()
        for host in hosts:
            host.meet(directory, keys)
            self._place(host)
        for host in hosts:
            host.start(())
        if not self.run(within_s, lambda: self.time.now - self.links_changed_at > MET_STILL_S):
            raise Violation(f"L1: links come and go for {within_s:g} s")
        return hosts

    def crash(self, name: str) -> None:
        """SIGKILL."""
        host = self.hosts.pop(name)
        self.journal.crashes.append((self.time.now, host.life))
        if self.journal.tell is not None:
            self.journal.tell(f"{self.time.now:.6f} {name} is killed")
        host.die()

    def superseded(self, host: Host) -> None:
        """A node was told that a newer start of it lives: it ends."""
        host.die()
        if self.hosts.get(host.name) is host:
            del self.hosts[host.name]

    def agreed(self) -> bool:
        """L1: whether all living nodes hold exactly each other for alive."""
        self._forget_stopped()
        living = frozenset(self.hosts)
        return all(
            host.core.table.alive_count() == len(living) and host.view() == living
            for host in self.hosts.values()
        )

    def _forget_stopped(self) -> None:
        for name in [name for name, host in self.hosts.items() if not host.alive]:
            del self.hosts[name]

    # --- time -----------------------------------------------------------------------------------

    def run(
        self, seconds: float, until: Callable[[], bool] | None = None, *, look_s: float = 0.05
    ) -> bool:
        """Let virtual time pass; stop early, and return True, when `until()` holds at a look."""
        end = self.time.now + seconds
        while until is not None and self.time.now < end:
            if until():
                return True
            self.time.run(min(look_s, end - self.time.now))
        self.time.run(end - self.time.now)
        return until is not None and until()

    def settled(self, since: int = 0) -> bool:
        """Whether everything that is due was delivered, from broadcast number `since` on."""
        return not self.journal.missing(since)

    def _watch(self) -> None:
        for host in self.hosts.values():
            if host.alive:
                host.watch()
        self.time.after(WATCH_EVERY_S, self._watch)

    # --- dialling -------------------------------------------------------------------------------

    def dial(
        self,
        host: Host,
        place: str,
        seed: str | None,
        done: Callable[[bool], None],
        expected: NodeId | None = None,
    ) -> None:
        """Try once to link `host` with whoever is at `place`; `done` is told whether that worked.

        expected: it must be this one.
        """
        seconds = self.network.dial_s(host.id, _node_id(place))
        if place == host.place or seconds > HANDSHAKE_S or not self._reachable(host, place):
            self.time.after(HANDSHAKE_S if place != host.place else seconds, done, False)
        else:
            self.time.after(seconds, self._greet, host, place, seed, done, expected)

    def _reachable(self, host: Host, place: str) -> bool:
        other = self.places.get(place)
        return (
            other is not None
            and other.awake()
            and host.awake()
            and self.network.passes(host.id, other.id)
            and self.network.passes(other.id, host.id)
        )

    def _greet(
        self,
        host: Host,
        place: str,
        seed: str | None,
        done: Callable[[bool], None],
        expected: NodeId | None,
    ) -> None:
        """The handshake is over: both sides say hello, and there is one link per pair."""
        if not host.alive:
            return
        if not self._reachable(host, place):
            self.time.after(HANDSHAKE_S, done, False)
            return
        other = self.places[place]
        if other.id == host.id or expected not in (None, other.id):
            # The certificate is our own, or another's than the one that we meant to reach.
            done(False)
            return
        done(True)
        mine, theirs = host.links.get(other.id), other.links.get(host.id)
        if mine is not None and theirs is not None and mine.link is theirs.link:
            if mine.link.whole():
                # The dials have crossed.
                return
            mine.link.break_now()
        for end in (host.links.get(other.id), other.links.get(host.id)):
            if end is not None:
                # One side has restarted, or gave the link up: the newer link wins.
                end.link.break_now()
        link = NetLink(self.network, host, other, self.config.lane_window)
        hello, answer = host.hello(other.id), other.hello(host.id)
        other.up(link.acceptor, hello, None)
        if link.dialler.up:
            host.up(link.dialler, answer, seed)

    # --- what goes wrong ------------------------------------------------------------------------

    def break_link(self, a: str, b: str, *, silent: bool = False) -> None:
        """Break the link between two nodes, if there is one."""
        host = self.hosts.get(a)
        end = host.links.get(_node_id(b)) if host is not None else None
        if end is not None:
            end.link.break_now(silent=silent)

    def partition(self, *sides: Sequence[str]) -> None:
        """Nothing passes between these groups of names; without any, all ways are open."""
        self.network.partition(*(tuple(_node_id(name) for name in side) for side in sides))

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from `source` to `target`."""
        self.network.cut(_node_id(source), _node_id(target))

    def mend(self, source: str, target: str) -> None:
        """The way from `source` to `target` is open again, as far as a cut closed it."""
        self.network.mend(_node_id(source), _node_id(target))

    def calm(self) -> None:
        """All ways are open, and as good as they get."""
        self.network.heal()
        self.network.weather = CALM

    def unleash(self, storm: Storm) -> None:
        """Let a storm pass over the cluster, from now on."""
        for blow in storm.blows:
            self.time.after(blow.at, self._suffer, blow)

    def _suffer(self, blow: Blow) -> None:
        if self.journal.tell is not None:
            self.journal.tell(f"{self.time.now:.6f} {blow}")
        match blow.kind:
            case "break" | "silent_break":
                self.break_link(*blow.names, silent=blow.kind == "silent_break")
            case "crash":
                (name,) = blow.names
                if name not in self.hosts:
                    return
                self.crash(name)
                if blow.seconds:
                    self.time.after(blow.seconds, self.restart, name)
            case "pause":
                host = self.hosts.get(blow.names[0])
                if host is not None and host.awake():
                    host.pause(blow.seconds)
            case "suspend":
                host = self.hosts.get(blow.names[0])
                if host is not None and host.awake():
                    host.suspend(blow.seconds)
            case "slow":
                host = self.hosts.get(blow.names[0])
                if host is not None and host.alive:
                    host.slow_down(blow.by_s, blow.seconds)
            case "clock":
                host = self.hosts.get(blow.names[0])
                if host is not None and host.awake():
                    host.set_clock(blow.by_s)
            case "cut":
                self.cut(*blow.names)
                self.time.after(blow.seconds, self.mend, *blow.names)
            case "partition":
                rest = [name for name in self.identities if name not in blow.names]
                self.partition(blow.names, rest)
                self.time.after(blow.seconds, self.partition)
            case "weather":
                assert blow.weather is not None
                self.network.weather = blow.weather

    def restart(self, name: str) -> None:
        """Start a node that is not running again; it knows three others."""
        if name not in self.hosts:
            self.start(name, *[each for each in self.identities if each != name][:3])

    # --- the end --------------------------------------------------------------------------------

    def report(self, since: int = 0) -> Report:
        """What the run came to; of broadcasts, those from number `since` on."""
        self._forget_stopped()
        hosts = list(self.hosts.values())
        return self.journal.report(
            [host.core.broadcasts.stats() for host in hosts],
            sum(len(host.strikes) for host in hosts),
            self.time.now - START_S,
            since,
        )


def _node_id(name: str) -> NodeId:
    return NodeId(f"spiffe://sim/node/{name}")


def _address(place: str) -> str:
    return f"{place}.sim:7946"


def _place(address: str) -> str:
    return address.partition(".")[0]
