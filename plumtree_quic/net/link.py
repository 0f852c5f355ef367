"""Link: one authenticated connection with lanes, credit and datagrams. Sans-IO.

A link turns engine events into messages and messages into stream data. Which of several links to
a peer is used, and when to dial, is endpoint.py's business; what messages mean is proto's.

Life of a link::

    DIALLING --> GREETING --> UP --> DRAINING --> CLOSING --> CLOSED
        \\____________\\_________\\__________________/^

GREETING is a state because a dialler has finished its handshake before the acceptor has judged
it: nothing but hello is sent until the other side's hello is here.
"""

import datetime
import os
from collections import deque
from collections.abc import Callable
from enum import Enum

import attrs

from plumtree_quic import wire
from plumtree_quic.errors import WireError
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import LANE_OF, Ack, Credit, Goodbye, Hello, Lane, Message, Ping, Wanted
from plumtree_quic.net.engine import (
    DATAGRAM_PAYLOAD_BYTES_MAX,
    EVENTS,
    HANDSHAKE_PACKET_BYTES,
    Engine,
    PathStats,
)
from plumtree_quic.net.events import DatagramReceived, Event, Fresh, Received, Writable
from plumtree_quic.net.framing import FRAME_BYTES_MAX_OF, FrameReader, frame
from plumtree_quic.net.settings import NetSettings

__all__ = ["CloseCode", "Link", "LinkState"]

Address = tuple[str, int]

# Two of the largest frames and more: credit comes at half of it, and a frame that is not complete
# must fit into the other half.
SMALL_LANE_WINDOW = 139_264
# Windows are each side's own and not told, so credit comes at half of the smallest there is.
CREDIT_STEP_BYTES = SMALL_LANE_WINDOW // 2
# The largest window of anybody, whatever is configured: below what the engine keeps of a stream.
WINDOW_BYTES_MAX = 2 << 20
CONTROL_BACKLOG_BYTES_MAX = 1 << 20
BACKLOG_BYTES_MAX = 4 << 20
# With 64 KiB of handshake this keeps a half-open connection below 192 KiB. An honest peer is far
# below: what it sends before its hello is acknowledged fits into an initial congestion window.
EARLY_BYTES_MAX = 131_072
DATAGRAMS_MAX = 256
# Frames for the link itself that tell it nothing. No honest peer sends one; what tells something is
# bounded by what we send.
IDLE_FRAMES_MAX = 64
FRESH_EVERY_S = 0.1
PACKET_PROBES = 2
LARGE_LOSSES_MAX = 3
# Waits between attempts to raise the packet size, the last one for ever; after a fall-back only
# the last (RFC 8899, section 5.1.1, PMTU_RAISE_TIMER).
PROBE_AGAIN_S = (1.0, 5.0, 30.0, 600.0)
_PROBE_UID = 1_000
_INCUMBENT_UID = 7


class CloseCode:
    """Application close codes (sent in CONNECTION_CLOSE)."""

    GOING_AWAY = 0x10
    DUPLICATE_LINK = 0x11
    CERT_EXPIRED = 0x12
    CERT_REVOKED = 0x13
    IDENTITY_MISMATCH = 0x14
    PROTOCOL_ERROR = 0x15
    LIMIT_EXCEEDED = 0x16
    OVERLOADED = 0x17
    WRONG_CLUSTER = 0x18
    VERSION = 0x19


class LinkState(Enum):
    """Where a link is in its life."""

    DIALLING = "dialling"
    GREETING = "greeting"
    UP = "up"
    DRAINING = "draining"
    CLOSING = "closing"
    CLOSED = "closed"


_MOVES: dict[LinkState, tuple[LinkState, ...]] = {
    LinkState.DIALLING: (LinkState.GREETING, LinkState.CLOSING, LinkState.CLOSED),
    LinkState.GREETING: (LinkState.UP, LinkState.CLOSING, LinkState.CLOSED),
    LinkState.UP: (LinkState.DRAINING, LinkState.CLOSING, LinkState.CLOSED),
    LinkState.DRAINING: (LinkState.CLOSING, LinkState.CLOSED),
    LinkState.CLOSING: (LinkState.CLOSED,),
    LinkState.CLOSED: (),
}


@attrs.define
class _LaneOut:
    """One lane that we write. sent and consumed count frame bytes since the link began."""

    lane: Lane
    stream_id: int
    window: int
    queue: deque[bytes] = attrs.field(factory=deque)
    queued: int = 0
    sent: int = 0
    consumed: int = 0
    starved: bool = False

    @property
    def room(self) -> int:
        return self.window - (self.sent - self.consumed) - self.queued


@attrs.define
class _LaneIn:
    """One lane that the peer writes."""

    lane: Lane
    reader: FrameReader
    consumed: int = 0
    granted: int = 0
    held: bool = False


class Link:
    """One connection to one peer.

    Attributes:
        peer: the identity that its certificate proved; set when the handshake is complete.
        hello: the peer's hello; set when greeted.
        dialled: whether this side dialled.
        address: where its packets go.
        context: free for the driver.
    """

    def __init__(
        self,
        engine: Engine,
        settings: NetSettings,
        *,
        dialled: bool,
        address: Address,
        expected: NodeId | None,
        wall: Callable[[], datetime.datetime],
        now: float,
        generation: int = 1,
        own_not_after: datetime.datetime | None = None,
    ) -> None:
        self.engine = engine
        self.generation = generation
        self.dialled = dialled
        self.address = address
        self.expected = expected
        self.context: object = None
        self.state = LinkState.DIALLING if dialled else LinkState.GREETING
        self.link_id = b""
        self.hello: Hello | None = None
        self.peer_wants = False
        self.close_code = 0
        self.close_reason = ""
        self.closed_by_peer = False
        self._close_noted = False
        self.announced = False
        self.ended = False
        self.first_host = address[0]
        self.peer_goodbye = False
        self.replaces = b""
        self.greeted = False
        self.told_wanted = False
        self.alert: int | None = None
        self.connection_ids: set[bytes] = set()
        self._settings = settings
        self._wall = wall
        self._peer: NodeId | None = None
        self._own_hello: Hello | None = None
        self._encoder = wire.LinkEncoder()
        self._decoder = wire.LinkDecoder()
        first_stream = 2 if dialled else 3
        self._out = [
            _LaneOut(lane, first_stream + 4 * lane, self._window_of(lane)) for lane in Lane
        ]
        self._in_flight_max = CONTROL_BACKLOG_BYTES_MAX + sum(out.window for out in self._out)
        self._in: dict[int, _LaneIn] = {}
        self._held: dict[Lane, bool] = {}
        self._early: dict[int, bytearray] = {}
        self._early_bytes = 0
        self._pinged_until = 0.0
        self._datagrams: deque[tuple[float, bytes]] = deque()
        self._datagram_expires_at = 0.0
        self._deadline = now + settings.handshake_s
        self._heard_at = now
        self._fresh_told_at = 0.0
        self._fresh_seen = 0.0
        self._queued = 0
        self._over_limit = ""
        self._own_not_after = own_not_after
        self._expires_at: float | None = None
        self._probes_missing = 0
        self._probed_size = 0
        self._probe_attempts = 0
        self._probe_at = float("inf")
        self._packet_bytes = HANDSHAKE_PACKET_BYTES
        self._large_losses_before = 0
        self._goodbye_sent = False
        self._incumbent_due: float | None = None
        self._incumbent_asked_at = 0.0
        self.incumbent_proved = False
        self.incumbent_failed = False
        self.unknown_datagrams = 0
        self._idle_frames = 0
        self.timer: float | None = None

    def _window_of(self, lane: Lane) -> int:
        if lane in (Lane.GOSSIP, Lane.SYNC, Lane.DIRECT, Lane.BULK):
            return min(self._settings.lane_window, WINDOW_BYTES_MAX)
        return SMALL_LANE_WINDOW

    # --- what the driver uses -------------------------------------------------------------------

    @property
    def peer(self) -> NodeId:
        """The identity that the peer has proved."""
        assert self._peer is not None
        return self._peer

    def send(self, message: Message) -> None:
        """Queue `message` on its lane. After the link has ended this does nothing.

        A peer that takes nothing may make us keep 4 MiB (1 MiB of it control): the link is closed
        with LIMIT_EXCEEDED at the next flush, and nothing more is queued until then.
        """
        if self.state not in (LinkState.UP, LinkState.DRAINING) or self._over_limit:
            return
        self._enqueue(message)
        if self._queued > BACKLOG_BYTES_MAX:
            self._over_limit = "send backlog"
        elif self._out[Lane.CONTROL].queued > CONTROL_BACKLOG_BYTES_MAX:
            self._over_limit = "control backlog"

    def room(self, lane: Lane) -> int:
        """Bytes that may be queued on `lane` now without waiting for credit; may be negative."""
        out = self._out[lane]
        room = out.room
        if room <= 0:
            out.starved = True
        return room

    def backlog(self, lane: Lane) -> int:
        """Bytes that are queued on `lane` and not yet with the engine."""
        return self._out[lane].queued

    def progress(self, lane: Lane) -> int:
        """Grows while bytes of `lane` are acknowledged or consumed by the peer."""
        out = self._out[lane]
        return out.consumed + self.engine.acknowledged_bytes(out.stream_id)

    def written(self, lane: Lane) -> int:
        """Bytes that were queued on `lane` since the link began."""
        out = self._out[lane]
        return out.queued + out.sent

    def acknowledged(self, lane: Lane) -> int:
        """How many of them the other side has acknowledged."""
        return self.engine.acknowledged_bytes(self._out[lane].stream_id)

    def unacknowledged(self) -> int:
        """Bytes on all lanes that the other side has not acknowledged yet."""
        return sum(out.queued for out in self._out) + self.engine.unacknowledged_bytes()

    def send_datagram(self, message: Ping | Ack, expires_at: float) -> None:
        """Queue a probe or echo; it is dropped when it has not left by `expires_at`."""
        if self.state is not LinkState.UP:
            return
        data = wire.encode(message)
        if len(data) > DATAGRAM_PAYLOAD_BYTES_MAX or len(self._datagrams) >= DATAGRAMS_MAX:
            return
        self._datagrams.append((expires_at, data))

    def hold(self, lane: Lane, held: bool) -> None:
        """While held, the peer gets no more credit for `lane`."""
        for entry in self._in.values():
            if entry.lane is lane:
                entry.held = held
        self._held[lane] = held

    def path(self) -> PathStats:
        """What the engine knows of the path."""
        return self.engine.path()

    def close(self, code: int, reason: str, now: float) -> None:
        """Close at once with an application close code."""
        if self.state in (LinkState.CLOSING, LinkState.CLOSED):
            return
        self.close_code, self.close_reason = code, reason
        self.engine.close(error_code=code, reason_phrase=reason)
        self._become_closing(now)

    # --- what the endpoint uses -----------------------------------------------------------------

    def close_if_expired(self, now: float) -> None:
        """Close when one of the two certificates has ended, by the wall clock as it is now."""
        if self.state not in (LinkState.UP, LinkState.DRAINING):
            return
        self._watch_expiry(now)
        if self._expires_at is not None and self._expires_at <= now:
            self.close(CloseCode.CERT_EXPIRED, "certificate expired", now)

    def greet(self, hello: Hello) -> None:
        """Send our hello: the acceptor's after the handshake, the dialler's after the other's."""
        self._own_hello = hello
        self.link_id = hello.link_id
        self.told_wanted = hello.wanted
        for out in self._out:
            self.engine.send_stream_data(out.stream_id, bytes((out.lane,)))
        self._enqueue(hello)

    def become_up(self, now: float) -> None:
        """The peer's hello was accepted."""
        self._move(LinkState.UP)
        self.greeted = True
        self._deadline = float("inf")
        self._watch_expiry(now)
        self._heard_at = now
        hello = self.hello
        assert hello is not None
        self._probed_size = min(self._settings.packet_bytes, hello.datagram_bytes_max)
        if self._probed_size > HANDSHAKE_PACKET_BYTES:
            self._probe_packet_size(now)

    def drain(self, now: float) -> None:
        """Send nothing new; close when all lanes are acknowledged, or after drain_s."""
        if self.state is LinkState.UP:
            self._move(LinkState.DRAINING)
            self._deadline = now + self._settings.drain_s

    def ping_incumbent(self, now: float) -> None:
        """Ask for a sign of life; `incumbent_proved` or `incumbent_failed` tells.

        The answer may take three probe time-outs of the path; before the first round trip was
        measured (on a slow path all of a handshake's packets count as lost) as long as a handshake.
        """
        if self._incumbent_due is None:
            path = self.engine.path()
            patience_s = 3 * path.pto_s if path.rtt_s else self._settings.handshake_s
            self._incumbent_due = now + max(self._settings.incumbent_s, patience_s)
            self._incumbent_asked_at = now
            self.incumbent_proved = self.incumbent_failed = False
            self.engine.ping(_INCUMBENT_UID)

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """Feed one UDP datagram."""
        self.engine.receive_datagram(data, address, now)
        if address != self.address and self.engine.get_peer_address() == address:
            self.address = address

    def take_events(self, now: float) -> "tuple[list[Event], list[Hello], bool]":
        """Return events for the driver, the peer's hello if it came, and whether shaken hands.

        A protocol error of the peer closes the link here.
        """
        events: list[Event] = []
        hellos: list[Hello] = []
        shaken = False
        engine = self.engine
        while (event := engine.next_event()) is not None:
            if isinstance(event, EVENTS.ConnectionTerminated):
                self._on_terminated(event)
            elif self.state in (LinkState.CLOSING, LinkState.CLOSED):
                # What comes after the end is nobody's: the peer broke a rule, or was replaced.
                continue
            elif isinstance(event, EVENTS.StreamDataReceived):
                try:
                    self._on_stream(event, events, hellos)
                except WireError as error:
                    self.close(CloseCode.PROTOCOL_ERROR, str(error), now)
            elif isinstance(event, EVENTS.DatagramFrameReceived):
                self._on_datagram(event.data, events)
            elif isinstance(event, EVENTS.PingAcknowledged):
                self._on_ping_acknowledged(event.uid)
            elif isinstance(event, EVENTS.HandshakeCompleted):
                shaken = True
                self._peer = engine.peer_id
                self._deadline = now + self._settings.welcome_s
                if self.state is LinkState.DIALLING:
                    self._move(LinkState.GREETING)
            elif isinstance(event, EVENTS.StreamReset | EVENTS.StopSendingReceived):
                self.close(CloseCode.PROTOCOL_ERROR, "a lane was reset", now)
        if engine.ended and self.state not in (LinkState.CLOSING, LinkState.CLOSED):
            # Why it ends is known now; the event comes when the closing period is over.
            if engine.close_event is not None:
                self._note_close(engine.close_event)
            self._become_closing(now)
        if self.state in (LinkState.UP, LinkState.DRAINING):
            self._take_fresh(events, now)
        return events, hellos, shaken

    def _take_fresh(self, events: list[Event], now: float) -> None:
        """Only an acknowledgement that advances is a sign of life; a packet may be a replay."""
        fresh = self.engine.path().fresh_at
        self._heard_at = max(self._heard_at, fresh)
        if self._incumbent_due is not None and fresh > self._incumbent_asked_at:
            self.incumbent_proved = True
            self._incumbent_due = None
        if (
            self.state is LinkState.UP
            and fresh > self._fresh_seen
            and now - self._fresh_told_at >= FRESH_EVERY_S
        ):
            self._fresh_seen, self._fresh_told_at = fresh, now
            events.append(Fresh(self, self.peer))

    def flush(self, now: float) -> None:
        """Hand queued frames to the engine, most urgent lane first, within credit."""
        if self.state not in (LinkState.UP, LinkState.DRAINING, LinkState.GREETING):
            return
        if self._over_limit:
            self.close(CloseCode.LIMIT_EXCEEDED, self._over_limit, now)
            return
        self._grant()
        if self._queued:
            for out in self._out:
                if out.queue:
                    self._write(out)
            if self._is_over_limit():
                self.close(CloseCode.LIMIT_EXCEEDED, self._over_limit, now)
                return
        self._write_datagrams(now)
        if self._packet_bytes > HANDSHAKE_PACKET_BYTES:
            self._watch_large_losses(now)
        if self.state is LinkState.DRAINING:
            self._finish_draining(now)

    def inherit(self, older: "Link") -> None:
        """Whoever waits for room on `older` waits for room here now."""
        for out, before in zip(self._out, older._out, strict=True):
            out.starved = before.starved

    def writable(self) -> list[Event]:
        """Lanes on which there was no room, and now is."""
        events: list[Event] = []
        if self._peer is None:
            return events
        for out in self._out:
            if out.starved and out.room >= out.window // 2:
                out.starved = False
                events.append(Writable(self, self._peer, out.lane))
        return events

    def next_deadline(self) -> float:
        """When `advance` has work."""
        deadline = self.engine.get_timer()
        due = self._deadline if deadline is None else min(deadline, self._deadline)
        if self.state in (LinkState.UP, LinkState.DRAINING):
            ping_at = max(self._heard_at + self._settings.ping_s, self._pinged_until)
            due = min(due, ping_at, self._heard_at + self._settings.idle_s, self._probe_at)
            if self._expires_at is not None:
                due = min(due, self._expires_at)
        if self._incumbent_due is not None:
            due = min(due, self._incumbent_due)
        return due

    def advance(self, now: float) -> None:
        """Do what is due."""
        timer = self.engine.get_timer()
        if timer is not None and timer <= now:
            self.engine.handle_timer(now)
        if self._incumbent_due is not None and self._incumbent_due <= now:
            self._incumbent_due = None
            self.incumbent_failed = not self.incumbent_proved
        if self._deadline <= now:
            self._fire_deadline(now)
        if self.state in (LinkState.UP, LinkState.DRAINING):
            if self._heard_at + self._settings.idle_s <= now:
                self.close_code, self.close_reason = 0, "idle"
                self._move(LinkState.CLOSED)
                return
            if self._heard_at + self._settings.ping_s <= now and now >= self._pinged_until:
                self._pinged_until = now + 1.0
                self.engine.ping(0)
            if self._probe_at <= now:
                self._probe_packet_size(now)
            self.close_if_expired(now)

    # --- inside ---------------------------------------------------------------------------------

    def _move(self, state: LinkState) -> None:
        assert state in _MOVES[self.state], (self.state, state)
        self.state = state

    def _become_closing(self, now: float) -> None:
        if self.state is LinkState.CLOSED:
            return
        self._move(LinkState.CLOSING)
        self._deadline = now + self._settings.close_s

    def _fire_deadline(self, now: float) -> None:
        match self.state:
            case LinkState.CLOSING:
                self._move(LinkState.CLOSED)
            case LinkState.DRAINING:
                self.close(self.close_code or CloseCode.DUPLICATE_LINK, "replaced", now)
            case LinkState.DIALLING:
                self.close_reason = "no answer"
                self.engine.close(error_code=0, reason_phrase="handshake deadline")
                self._become_closing(now)
            case LinkState.GREETING:
                self.close_reason = self.close_reason or "no hello"
                self.engine.close(error_code=CloseCode.GOING_AWAY, reason_phrase="welcome deadline")
                self._become_closing(now)

    def _watch_expiry(self, now: float) -> None:
        """A link never outlives the earlier of its two certificates' expiry."""
        dates = [each for each in (self.engine.peer_not_after, self._own_not_after) if each]
        if dates:
            remaining = (min(dates) - self._wall()).total_seconds()
            self._expires_at = now + max(0.0, remaining)

    def _enqueue(self, message: Message) -> None:
        parts = frame(self._encoder.encode(message))
        out = self._out[Lane.CONTROL if isinstance(message, Hello) else LANE_OF[type(message)]]
        size = sum(map(len, parts))
        out.queued += size
        self._queued += size
        out.queue.extend(parts)

    def _write(self, out: _LaneOut) -> None:
        # The control lane has no credit: credit itself travels on it.
        room = out.window - (out.sent - out.consumed)
        if out.lane is Lane.CONTROL:
            room = out.queued
        if room <= 0:
            out.starved = True
            return
        queue = out.queue
        if out.queued <= room:
            data = b"".join(queue)
            queue.clear()
        else:
            taken: list[bytes] = []
            left = room
            while left and queue:
                part = queue.popleft()
                if len(part) > left:
                    queue.appendleft(part[left:])
                    part = part[:left]
                taken.append(part)
                left -= len(part)
            data = b"".join(taken)
            out.starved = True
        out.queued -= len(data)
        self._queued -= len(data)
        out.sent += len(data)
        self.engine.send_stream_data(out.stream_id, data)

    def _is_over_limit(self) -> bool:
        """Whether the engine keeps more than an honest peer could make it keep."""
        control = self._out[Lane.CONTROL]
        unacknowledged = control.sent - self.engine.acknowledged_bytes(control.stream_id)
        if unacknowledged > CONTROL_BACKLOG_BYTES_MAX:
            self._over_limit = "control backlog"
        elif self.engine.unacknowledged_bytes() > self._in_flight_max:
            # Credit came for bytes that were never acknowledged.
            self._over_limit = "unacknowledged"
        return bool(self._over_limit)

    def _write_datagrams(self, now: float) -> None:
        if self.engine.pending_datagrams():
            if self._datagram_expires_at > now:
                return
            self.engine.drop_pending_datagrams()
        while self._datagrams:
            expires_at, data = self._datagrams.popleft()
            if expires_at > now:
                self._datagram_expires_at = expires_at
                self.engine.send_datagram_frame(data)
                return

    @property
    def datagrams_waiting(self) -> bool:
        """Whether another datagram could be handed to the engine after the next transmit."""
        return (
            bool(self._datagrams)
            and self.state is LinkState.UP
            and not self.engine.pending_datagrams()
        )

    def _grant(self) -> None:
        """Tell the peer what was consumed, once it is enough to be worth a frame."""
        if self.state is LinkState.GREETING:
            return
        due = [
            entry
            for entry in self._in.values()
            if not entry.held
            and entry.lane is not Lane.CONTROL
            and entry.consumed - entry.granted >= CREDIT_STEP_BYTES
        ]
        if not due:
            return
        for entry in due:
            entry.granted = entry.consumed
        self._enqueue(Credit(tuple((entry.lane, entry.consumed) for entry in due)))

    def _on_stream(self, event: object, events: list[Event], hellos: list[Hello]) -> None:
        stream_id, data = event.stream_id, event.data  # type: ignore[attr-defined]
        if event.end_stream:  # type: ignore[attr-defined]
            raise WireError("a lane was ended")
        self._on_lane_bytes(stream_id, data, events, hellos)
        if hellos and self._early:
            early, self._early = self._early, {}
            for early_id, early_data in early.items():
                self._on_lane_bytes(early_id, bytes(early_data), events, hellos)

    def _on_lane_bytes(
        self, stream_id: int, data: bytes, events: list[Event], hellos: list[Hello]
    ) -> None:
        if not data:
            return
        entry = self._in.get(stream_id)
        if entry is None:
            if stream_id % 4 != (3 if self.dialled else 2):
                raise WireError("not a lane")
            entry, data = self._open_lane(stream_id, data)
        lane = entry.lane
        if self.hello is None and lane is not Lane.CONTROL:
            # Streams overtake one another: what follows a hello may come before it.
            self._early_bytes += len(data)
            if self._early_bytes > EARLY_BYTES_MAX:
                raise WireError("too much before hello")
            self._early.setdefault(stream_id, bytearray()).extend(data)
            return
        for body, size in entry.reader.feed(data):
            message = self._decoder.decode(lane, body)
            entry.consumed += size
            if lane is Lane.BULK:
                # The next piece waits for it.
                self.engine.acknowledge_now()
            if lane is Lane.CONTROL and self._on_control(message, hellos):
                continue
            events.append(Received(self, self.peer, message))
        taken = entry.consumed + entry.reader.buffered - entry.granted
        if lane is not Lane.CONTROL and taken > WINDOW_BYTES_MAX:
            raise WireError("more than the credit allows")

    def _open_lane(self, stream_id: int, data: bytes) -> tuple[_LaneIn, bytes]:
        try:
            lane = Lane(data[0])
        except ValueError:
            raise WireError("an unknown lane")
        if any(each.lane is lane for each in self._in.values()):
            raise WireError("a lane was opened twice")
        entry = _LaneIn(
            lane,
            FrameReader(FRAME_BYTES_MAX_OF[lane]),
            held=self._held.get(lane, False),
        )
        self._in[stream_id] = entry
        return entry, data[1:]

    def _on_control(self, message: Message, hellos: list[Hello]) -> bool:
        """Handle what is the link's own; True when the driver need not see it."""
        if isinstance(message, Hello):
            if self.hello is not None:
                raise WireError("a second hello")
            self.hello = message
            self.peer_wants = message.wanted
            hellos.append(message)
            return True
        if self.hello is None:
            raise WireError("a frame before hello")
        if isinstance(message, Credit):
            says_something = False
            for lane, consumed in message.consumed:
                out = self._out[lane]
                if not out.consumed <= consumed <= out.sent:
                    raise WireError("credit for bytes never sent")
                says_something |= consumed > out.consumed
                out.consumed = consumed
            if not says_something:
                self._note_idle_frame()
            return True
        if isinstance(message, Goodbye):
            if self.peer_goodbye:
                self._note_idle_frame()
            self.peer_goodbye = True
            return True
        if isinstance(message, Wanted):
            self.peer_wants = message.wanted
        return False

    def _note_idle_frame(self) -> None:
        """The quota of a peer does not see what the link takes for itself."""
        self._idle_frames += 1
        if self._idle_frames > IDLE_FRAMES_MAX:
            raise WireError("frames that say nothing")

    def _on_datagram(self, data: bytes, events: list[Event]) -> None:
        if self.hello is None or self.state not in (LinkState.UP, LinkState.DRAINING):
            return
        try:
            message = wire.decode_datagram(data)
        except WireError:
            message = None
        if message is None:
            # A newer minor version may have types that we do not know; never a reason to close.
            self.unknown_datagrams += 1
            return
        events.append(DatagramReceived(self, self.peer, message))

    def _on_ping_acknowledged(self, uid: int) -> None:
        if uid == _INCUMBENT_UID:
            self.incumbent_proved = True
            self._incumbent_due = None
        elif uid >= _PROBE_UID and self._probes_missing:
            self._probes_missing -= 1
            if self._probes_missing == 0:
                self._probe_at = float("inf")
                self._probe_attempts = 0
                self._packet_bytes = self._probed_size
                self._large_losses_before = self.engine.large_losses
                self.engine.set_packet_size(self._probed_size)

    def _probe_packet_size(self, now: float) -> None:
        """Ask whether packets of the size that both ends take arrive; again later if not."""
        wait_s = PROBE_AGAIN_S[min(self._probe_attempts, len(PROBE_AGAIN_S) - 1)]
        self._probe_attempts += 1
        self._probe_at = now + wait_s
        self._probes_missing = PACKET_PROBES
        for number in range(PACKET_PROBES):
            self.engine.probe_packet_size(self._probed_size, _PROBE_UID + number)

    def _watch_large_losses(self, now: float) -> None:
        losses = self.engine.large_losses
        self._large_losses_before = min(self._large_losses_before, losses)
        if losses - self._large_losses_before >= LARGE_LOSSES_MAX:
            self._packet_bytes = HANDSHAKE_PACKET_BYTES
            self.engine.set_packet_size(HANDSHAKE_PACKET_BYTES)
            self._probe_at = now + PROBE_AGAIN_S[-1]

    def _on_terminated(self, event: object) -> None:
        self._note_close(event)
        if self.state is not LinkState.CLOSED:
            self._move(LinkState.CLOSED)

    def _note_close(self, event: object) -> None:
        """Remember who ended the link and why; the first word counts."""
        if self._close_noted:
            return
        self._close_noted = True
        code = event.error_code  # type: ignore[attr-defined]
        ours = self.state is LinkState.CLOSING or self.engine.close_is_due
        if not self.close_code:
            self.close_code = code
            self.close_reason = self.close_reason or _plain(event.reason_phrase)  # type: ignore[attr-defined]
            self.closed_by_peer = not ours and self.engine.failure is None
        if 0x100 <= code < 0x200 and not ours:
            self.alert = code - 0x100

    def _finish_draining(self, now: float) -> None:
        others = [out for out in self._out if out.lane is not Lane.CONTROL]
        if any(out.queued for out in others) or self.engine.unacknowledged_bytes():
            return
        if not self._goodbye_sent:
            self._goodbye_sent = True
            self._enqueue(Goodbye(CloseCode.DUPLICATE_LINK, "replaced"))
            self._write(self._out[Lane.CONTROL])
        elif self.peer_goodbye:
            self.close(CloseCode.DUPLICATE_LINK, "replaced", now)


def new_link_id() -> bytes:
    """16 random bytes that name a link."""
    return os.urandom(16)


def _plain(text: str) -> str:
    return "".join(each if 32 <= ord(each) < 127 else "?" for each in text)[:64]
