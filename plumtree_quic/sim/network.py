"""Virtual time, ways between nodes, and links on them. No node and no protocol lives here.

A link behaves as a QUIC connection does. Its lanes are in order and lossless while it lives: what
the network loses shows as delay, and holds up its own lane only. Datagrams get lost, and may come
twice or once more much later, for not every engine drops a packet that it has seen. A link that
breaks loses what was on its way. Nothing tells a node that its peer is gone, but silence.
"""

import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import attrs

from plumtree_quic import wire
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import LANE_OF, Ack, Digest, Lane, Message, Ping
from plumtree_quic.sim.faults import CALM, Weather

__all__ = ["IDLE_S", "End", "Link", "Network", "Port", "Time"]

IDLE_S = 15.0
"""A link end that heard nothing for so long gives its link up (architecture: idle time-out)."""
DATAGRAM_BYTES_MAX = 1_100
FRAME_OVERHEAD_BYTES = 4
# A paused or cut-off receiver is tried again with doubled waits, at most this long.
RETRY_MAX_S = 3.0
LOSSES_MAX = 12
# RFC 9002, section 6.2.1: PTO = smoothed RTT + 4 * variation + max_ack_delay (25 ms).
ACK_DELAY_S = 0.025
REPLAYED_AFTER_S = (0.05, 5.0)
# Frames that are decoded once for all: short ones, for those are what many are sent alike.
DECODED_MAX = 20_000
DECODED_BYTES_MAX = 2_048
SLOTS_PER_S = 1_000


_Event = tuple[float, int, Callable[..., None], tuple[Any, ...]]
"""When, its number, and what to call. Of two at the same time the one that was asked for first."""


class Time:
    """A clock that stands still between events. Equal times run in the order of their making."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.events = 0
        self._count = 0
        # What is due in the slot that `now` is in, a heap; and by slot what is due later. One heap
        # of all that thousands of nodes wait for would be read from memory all over at every step.
        self._slot = int(now * SLOTS_PER_S)
        self._due: list[_Event] = []
        self._later: dict[int, list[_Event]] = {}
        self._slots: list[int] = []

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        """Call `action(*args)` at `when`, or now when that is past."""
        self._count += 1
        if when < self.now:  # noqa: PLR1730 - millions of times, and a call takes thrice as long
            when = self.now
        event = (when, self._count, action, args)
        slot = int(when * SLOTS_PER_S)
        if slot <= self._slot:
            heapq.heappush(self._due, event)
            return
        events = self._later.get(slot)
        if events is None:
            self._later[slot] = [event]
            heapq.heappush(self._slots, slot)
        else:
            events.append(event)

    def after(self, seconds: float, action: Callable[..., None], *args: Any) -> None:
        """Call `action(*args)` in so many seconds."""
        self.at(self.now + seconds, action, *args)

    def run(self, seconds: float) -> None:
        """Let `seconds` pass."""
        end = self.now + seconds
        last, pop = int(end * SLOTS_PER_S), heapq.heappop
        while True:
            due = self._due
            while due and due[0][0] <= end:
                self.now, _, action, args = pop(due)
                self.events += 1
                action(*args)
            if due or not self._slots or self._slots[0] > last:
                break
            self._slot = pop(self._slots)
            self._due = self._later.pop(self._slot)
            heapq.heapify(self._due)
        self.now = end


class Port(Protocol):
    """What a link needs of the node at its end."""

    id: NodeId

    def awake(self) -> bool:
        """Whether the process lives and runs."""

    def asleep_s(self) -> float:
        """How long the process stands still yet; 0 while it runs, and when it is gone."""

    def frame(self, end: "End", message: Message) -> None:
        """A frame arrived."""

    def datagram(self, end: "End", message: Ping | Ack) -> None:
        """A datagram arrived."""

    def fresh(self, end: "End") -> None:
        """Acknowledgements advanced."""

    def writable(self, end: "End") -> None:
        """The gossip lane had no room and has half its window again."""

    def down(self, end: "End", reason: str) -> None:
        """This end of the link is over."""


@attrs.define(eq=False)
class _Lane:
    """One lane in one direction, seen from above. Bytes count from the link's beginning.

    queue: waits for credit or bandwidth, once anything had to. flight: (arrival, body), in order.
    """

    lane: Lane
    queue: deque[bytes] | None = None
    queued: int = 0
    sent: int = 0
    flight: deque[tuple[float, bytes]] = attrs.field(factory=deque)
    arrival: float = 0.0
    attempts: int = 0
    starved: bool = False


_NOTHING_YET = (0,) * len(Lane)


class End:
    """One end of a link: sends one way, and is told what came the other way.

    Attributes:
        owner, peer: the node at this end, and who is at the other.
        up: whether this end still holds the link.
        other: the other end.
        ways_s: both ways' latencies together.
        mark: the owner, as the journal's trace has it.
        told: a bit for each bundle that was pushed or announced here, either way; the journal
            keeps it.
        digests: digests that came in.
    """

    # There are a quarter of a million of them among 10,000 nodes.
    __slots__ = (
        "_acking",
        "_arrived",
        "_credited",
        "_decoder",
        "_encoder",
        "_free_at",
        "_lanes",
        "_timed_in",
        "_timing",
        "_transmitting",
        "_waiting",
        "digests",
        "heard_at",
        "latency_s",
        "link",
        "mark",
        "network",
        "other",
        "owner",
        "peer",
        "reported_at",
        "told",
        "up",
        "wanted_by_peer",
        "ways_s",
    )

    def __init__(self, link: "Link", owner: Port, peer: NodeId, latency_s: float) -> None:
        self.link = link
        self.owner = owner
        self.peer = peer
        self.latency_s = latency_s
        self.up = True
        self.other: End = self
        self.ways_s = 0.0
        self._timed_in: Weather | None = None
        self._timing = (0.0, 0.0, 0.0)
        self.heard_at = link.network.time.now
        self.reported_at = float("-inf")
        self.wanted_by_peer = False
        self.told = 0
        self.digests: list[Digest] = []
        self.network = link.network
        self.mark = owner.id.encode()
        self._encoder = wire.LinkEncoder()
        self._decoder = wire.LinkDecoder()
        # Made when first used: most links never use most of theirs.
        self._lanes: list[_Lane | None] = [None] * len(_NOTHING_YET)
        self._arrived = list(_NOTHING_YET)
        self._credited = _NOTHING_YET
        self._waiting = 0
        self._free_at = 0.0
        self._transmitting = False
        self._acking = False

    # --- sending --------------------------------------------------------------------------------

    @property
    def rtt_s(self) -> float:
        """The round trip without loss."""
        return self.ways_s + self.network.weather.jitter_s

    @property
    def pto_s(self) -> float:
        """How long a lost packet stays unnoticed at first."""
        return 1.5 * self.rtt_s + ACK_DELAY_S

    def timing(self) -> tuple[float, float, float]:
        """(the round trip, how long silence means nothing, the share of packets that get lost).

        Silence means nothing for three times as long as a lost packet stays unnoticed.
        """
        weather = self.network.weather
        if weather is not self._timed_in:
            self._timed_in = weather
            self._timing = (self.rtt_s, 3 * self.pto_s, weather.loss)
        return self._timing

    def send(self, message: Message) -> None:
        """Encode, and queue on the message's lane."""
        kind = LANE_OF[type(message)]
        parts = self._encoder.encode(message)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(body) > wire.FRAME_BYTES_MAX:
            raise AssertionError(f"a {type(message).__name__} frame of {len(body)} bytes")
        lane = self._lanes[kind] or self._open(kind)
        if (
            self.network.weather.bandwidth is None
            and not lane.queue
            and lane.sent - self._credited[kind] < self.link.window
        ):
            self._leave(lane, body)
            return
        if lane.queue is None:
            lane.queue = deque()
        lane.queue.append(body)
        lane.queued += len(body) + FRAME_OVERHEAD_BYTES
        self._waiting += 1
        self._transmit()

    def _open(self, kind: Lane) -> _Lane:
        lane = self._lanes[kind] = _Lane(kind)
        return lane

    def room(self, kind: Lane) -> int:
        """Bytes that may be queued on this lane now without waiting for credit."""
        lane = self._lanes[kind]
        if lane is None:
            return self.link.window
        room = self.link.window - (lane.sent - self._credited[lane.lane]) - lane.queued
        if room <= 0:
            lane.starved = True
        return room

    def backlog(self, kind: Lane) -> int:
        """Bytes that have not left yet."""
        lane = self._lanes[kind]
        return 0 if lane is None else lane.queued

    def progress(self, kind: Lane) -> int:
        """Bytes of this lane that the other end has taken."""
        return self._credited[kind]

    def _transmit(self) -> None:
        """Send what credit and bandwidth allow; lower lanes first."""
        self._transmitting = False
        if not self.up or self.link.broken:
            return
        time = self.network.time
        bandwidth = self.network.weather.bandwidth
        for lane in self._lanes:
            if lane is None:
                continue
            while lane.queue and lane.sent - self._credited[lane.lane] < self.link.window:
                if bandwidth is not None and self._free_at > time.now:
                    if not self._transmitting:
                        self._transmitting = True
                        time.at(self._free_at, self._transmit)
                    return
                body = lane.queue.popleft()
                lane.queued -= len(body) + FRAME_OVERHEAD_BYTES
                self._waiting -= 1
                self._leave(lane, body)

    def _leave(self, lane: _Lane, body: bytes) -> None:
        network = self.network
        weather, time = network.weather, network.time
        now = time.now
        size = len(body) + FRAME_OVERHEAD_BYTES
        lane.sent += size
        delay = self.latency_s + weather.jitter_s * network.random()
        if weather.bandwidth is not None:
            self._free_at = max(self._free_at, now) + size / weather.bandwidth
            delay += self._free_at - now
        if weather.loss:
            pto, losses = self.pto_s, 0
            while losses < LOSSES_MAX and network.random() < weather.loss:
                delay += min(pto * (1 << losses), RETRY_MAX_S)
                losses += 1
        arrival = lane.arrival = max(lane.arrival, now + delay)
        if not lane.flight:
            time.at(arrival, self._arrive, lane)
        lane.flight.append((arrival, body))

    def _arrive(self, lane: _Lane) -> None:
        """What has crossed is handed to the other end, when it can take it."""
        other, network = self.other, self.network
        if self.link.broken or not other.up:
            return
        time, owner = network.time, other.owner
        passes = network.whole or network.passes(self.owner.id, self.peer)
        if not passes or not owner.awake():
            if passes and (asleep_s := owner.asleep_s()):
                # It waits in the socket.
                time.after(asleep_s, self._arrive, lane)
                return
            wait = min(self.pto_s * (1 << min(lane.attempts, 16)), RETRY_MAX_S)
            lane.attempts += 1
            time.after(wait, self._arrive, lane)
            return
        lane.attempts = 0
        flight, now = lane.flight, time.now
        while flight and flight[0][0] <= now and other.up:
            body = flight.popleft()[1]
            self._arrived[lane.lane] += len(body) + FRAME_OVERHEAD_BYTES
            other.heard_at = now
            message = network.decode(other._decoder, lane.lane, body)
            network.on_frame(now, self, other, lane.lane, body)
            owner.frame(other, message)
            if flight and not owner.awake():
                # It takes its time for each; the rest waits.
                break
        if other.up:
            if not self._acking:
                self._acking = True
                time.at(now + other.latency_s, self._take_ack, tuple(self._arrived))
            if flight:
                time.at(flight[0][0], self._arrive, lane)

    # --- acknowledgements -----------------------------------------------------------------------

    def _take_ack(self, arrived: tuple[int, ...]) -> None:
        """The other end has so many bytes; credit comes with it."""
        network = self.network
        if self.link.broken or not self.up:
            return
        time, owner = network.time, self.owner
        loss = network.weather.loss
        lost = loss and network.random() < loss
        passes = network.whole or network.passes(self.peer, owner.id)
        if lost or not passes or not owner.awake():
            # What is sent again is acknowledged again.
            time.after(min(self.pto_s, RETRY_MAX_S), self._take_ack, arrived)
            return
        self._credited = arrived
        newest = tuple(self._arrived)
        if newest != arrived:
            time.after(self.other.latency_s, self._take_ack, newest)
        else:
            self._acking = False
        self.heard_at = time.now
        if self._waiting:
            self._transmit()
        gossip = self._lanes[Lane.GOSSIP]
        if gossip is not None and gossip.starved and 2 * self.room(Lane.GOSSIP) >= self.link.window:
            gossip.starved = False
            owner.writable(self)
        if self.up:
            owner.fresh(self)

    # --- datagrams ------------------------------------------------------------------------------

    def send_datagram(self, message: Ping | Ack, expires_s: float) -> None:
        """Send at once, or drop when nothing can leave for `expires_s`."""
        network = self.network
        weather, time = network.weather, network.time
        body = wire.encode(message)
        if len(body) > DATAGRAM_BYTES_MAX:
            raise AssertionError(f"a datagram of {len(body)} bytes")
        wait = 0.0
        if weather.bandwidth is not None:
            wait = max(0.0, self._free_at - time.now)
            if wait > expires_s:
                return
        if weather.loss and network.random() < weather.loss:
            return
        delay = wait + self.latency_s + weather.jitter_s * network.random()
        time.after(delay, self._arrive_datagram, body)
        if weather.duplicate and network.random() < weather.duplicate:
            time.after(delay + weather.jitter_s, self._arrive_datagram, body)
        if weather.replay and network.random() < weather.replay:
            time.after(delay + network.uniform(*REPLAYED_AFTER_S), self._arrive_datagram, body)

    def _arrive_datagram(self, body: bytes) -> None:
        other, network = self.other, self.network
        if self.link.broken or not other.up:
            return
        if not network.whole and not network.passes(self.owner.id, self.peer):
            return
        if not other.owner.awake():
            if asleep_s := other.owner.asleep_s():
                network.time.after(asleep_s, self._arrive_datagram, body)
            return
        message = wire.decode_datagram(body)
        assert message is not None
        other.heard_at = network.time.now
        network.on_frame(network.time.now, self, other, None, body)
        other.owner.datagram(other, message)

    # --- the end --------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Close on purpose: over here at once, and at the other end when the news is there."""
        if not self.up:
            return
        self._end(reason)
        other, network = self.other, self.network
        weather = network.weather
        heard = not weather.loss or network.random() >= weather.loss
        if heard and network.passes(self.owner.id, self.peer):
            network.time.after(self.latency_s, other._closed_by_peer, reason)

    def _closed_by_peer(self, reason: str) -> None:
        if not self.owner.awake():
            # It reads the news when it runs again.
            self.network.time.after(RETRY_MAX_S, self._closed_by_peer, reason)
        elif self.up:
            self._end(reason)

    def _end(self, reason: str) -> None:
        self.up = False
        self.owner.down(self, reason)

    def watch_idle(self) -> None:
        """Give up after IDLE_S without anything heard."""
        if not self.up:
            return
        idle_at = self.heard_at + IDLE_S
        now = self.network.time.now
        if idle_at > now:
            self.network.time.at(idle_at, self.watch_idle)
        elif self.owner.awake():
            self._end("idle")
        else:
            self.network.time.after(RETRY_MAX_S, self.watch_idle)


class Link:
    """A greeted link between two nodes."""

    def __init__(self, network: "Network", dialler: Port, acceptor: Port, window: int) -> None:
        self.network = network
        self.window = window
        self.broken = False
        there, back = network.way(dialler.id, acceptor.id)
        self.dialler = End(self, dialler, acceptor.id, there)
        self.acceptor = End(self, acceptor, dialler.id, back)
        self.dialler.other, self.acceptor.other = self.acceptor, self.dialler
        self.dialler.ways_s = self.acceptor.ways_s = there + back
        for end in (self.dialler, self.acceptor):
            network.time.after(IDLE_S, end.watch_idle)

    def whole(self) -> bool:
        """Whether both ends hold it."""
        return self.dialler.up and self.acceptor.up and not self.broken

    def break_now(self, *, silent: bool = False) -> None:
        """Lose all that is on its way. silent: the ends find out by idleness."""
        self.broken = True
        if silent:
            return
        for end in (self.dialler, self.acceptor):
            if end.up and end.owner.awake():
                end._end("broken")


class Network:
    """All ways between nodes, and what is wrong with them.

    Args:
        time: the clock.
        seed: of everything that the network draws.
        weather: what the ways are like at first.
        on_frame: told of each frame and datagram (lane None) that arrives.

    Attributes:
        zones: where each node is.
        whole: whether every way is open; looked at before each packet's way is.
    """

    def __init__(
        self,
        time: Time,
        seed: str,
        weather: Weather = CALM,
        on_frame: Callable[[float, End, End, Lane | None, bytes], None] | None = None,
    ) -> None:
        self.time = time
        self.weather = weather
        self.on_frame = on_frame or _ignore
        self._rng = Random(seed)
        self.random = self._rng.random
        self.uniform = self._rng.uniform
        self._seed = seed
        self.zones: dict[NodeId, str] = {}
        self._ways: dict[tuple[NodeId, NodeId], tuple[float, float]] = {}
        self._cut: dict[tuple[NodeId, NodeId], None] = {}
        self._side: dict[NodeId, int] = {}
        self.whole = True
        self._decoded: dict[bytes, Message] = {}

    def way(self, a: NodeId, b: NodeId) -> tuple[float, float]:
        """The one-way latencies from `a` to `b` and back; the same each time."""
        found = self._ways.get((a, b))
        if found is None:
            # Of a generator of its own: who meets first must not change how far others are.
            rng = Random(f"{self._seed} {min(a, b)} {max(a, b)}")
            latency_s = rng.uniform(*self.weather.latency_s)
            if self.zones.get(a) != self.zones.get(b):
                latency_s += self.weather.border_s
            found = self._ways[a, b] = (latency_s, latency_s)
            self._ways[b, a] = found
        return found

    def passes(self, source: NodeId, target: NodeId) -> bool:
        """Whether packets get from `source` to `target` now."""
        if self._cut and (source, target) in self._cut:
            return False
        if self._side:
            return self._side.get(source) == self._side.get(target)
        return True

    def cut(self, source: NodeId, target: NodeId) -> None:
        """Nothing gets from `source` to `target`; the other way may still be open."""
        self._cut[source, target] = None
        self._note_ways()

    def mend(self, source: NodeId, target: NodeId) -> None:
        """Undo a cut."""
        self._cut.pop((source, target), None)
        self._note_ways()

    def partition(self, *sides: tuple[NodeId, ...]) -> None:
        """Nothing passes between these groups; without any, the last partition is over."""
        self._side = {node: number for number, side in enumerate(sides) for node in side}
        self._note_ways()

    def heal(self) -> None:
        """All ways are open again."""
        self._cut.clear()
        self._side.clear()
        self._note_ways()

    def _note_ways(self) -> None:
        self.whole = not (self._cut or self._side)

    def dial_s(self, source: NodeId, target: NodeId) -> float:
        """How long Retry and handshake take, two round trips, lost packets included."""
        there, back = self.way(source, target)
        weather = self.weather
        total = 2 * (there + back) + 4 * weather.jitter_s * self.random()
        for _ in range(4):
            losses = 0
            while weather.loss and losses < LOSSES_MAX and self.random() < weather.loss:
                # RFC 9002, section 6.2.2: nothing is known of the way yet.
                total += 0.333 * (1 << losses)
                losses += 1
        return total

    def decode(self, decoder: wire.LinkDecoder, lane: Lane, body: bytes) -> Message:
        """Decode a frame. One that is the same on every link is decoded once for all."""
        if lane is Lane.IHAVE:
            # Origins have other numbers on other links.
            return decoder.decode(lane, body)
        message = self._decoded.get(body)
        if message is None:
            message = decoder.decode(lane, body)
            if len(body) <= DECODED_BYTES_MAX and not isinstance(message, Digest):
                if len(self._decoded) >= DECODED_MAX:
                    self._decoded.clear()
                self._decoded[body] = message
        return message


def _ignore(_now: float, _source: End, _target: End, _lane: Lane | None, _body: bytes) -> None:
    return
