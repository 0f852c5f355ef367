"""The engine seam: the only module that makes QUIC connection objects, and their guard.

`Engine` is what everything above may ask of a QUIC connection; `AioquicEngine` provides it with
aioquic 1.7.2. Private names of aioquic are used here and in tls.py alone and listed in
`RELIES_ON`. What a link is, how frames look and when to dial stand in link.py and endpoint.py.

What aioquic leaves open to a hostile peer is closed here: windows and stream limits are constants
above what was consumed, handshake buffers are small, tables are bounded, acknowledgements of
packets never sent end the connection, and close reasons are short and fixed.
"""

import datetime
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import attrs
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic import connection as quic
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.crypto import CryptoError
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
)
from aioquic.quic.recovery import QuicPacketRecovery
from cryptography import x509

from plumtree_quic.errors import LinkError, LocalProtocolError
from plumtree_quic.ids import NodeId
from plumtree_quic.net.tls import ALPN, HandshakePolicy, MutualTlsContext, StepResult
from plumtree_quic.net.tls import RELIES_ON as TLS_RELIES_ON
from plumtree_quic.security.credentials import Credentials
from plumtree_quic.security.identity import Alert, CheckFailed

__all__ = [
    "CONNECTION_ID_BYTES",
    "DATAGRAM_PAYLOAD_BYTES_MAX",
    "HANDSHAKE_PACKET_BYTES",
    "RELIES_ON",
    "AioquicEngine",
    "Engine",
    "EngineFailed",
    "EngineSettings",
    "IsRevoked",
    "PathStats",
    "accept",
    "dial",
    "silence",
]

CONNECTION_ID_BYTES = 8
HANDSHAKE_PACKET_BYTES = 1_200
DATAGRAM_PAYLOAD_BYTES_MAX = 1_100
DATAGRAM_FRAME_BYTES_MAX = 1_200
REASON_BYTES_MAX = 32

RETRY_TOKEN_BYTES_MAX = 256
STREAM_BUFFER_BYTES_MAX = 4 * 1024 * 1024
DATAGRAMS_PENDING_MAX = 256

CRYPTO_AHEAD_BYTES_MAX = 32 * 1024
CRYPTO_BYTES_MAX = 64 * 1024
# What we write in one flight of a handshake: our chain, and the messages around it.
FLIGHT_BYTES_MAX = 32 * 1024
# Runs of bytes that wait behind a hole: aioquic walks over all of them for each frame. A handshake
# of 64 KiB is 55 packets. A stream is a guess: 2 MiB with every fifth packet lost make 230.
CRYPTO_RUNS_MAX = 64
STREAM_RUNS_MAX = 512
ACK_RANGES_MAX = 256
SENT_PACKETS_MAX = 8_192
ACK_ONLY_PACKETS_PER_PING = 64
ADDRESS_CHANGES_PER_MINUTE_MAX = 4
PEER_ACK_DELAY_S_MAX = 0.1
KEY_UPDATE_PACKETS = 1 << 20
KEY_UPDATE_S = 3_600.0
_RESET_TOKEN_PARAMETER = 0x02
_SHORT_HEADER_BYTES = 1 + CONNECTION_ID_BYTES
_FORM_BITS, _SHORT_FORM, _RESERVED_BITS = 0xC0, 0x40, 0x18
_FRAME_ROOM_BYTES_MIN = 32
# With less room than this left, a packet is full.
_TABLES_CHECKED_EVERY = 64
# Datagrams between two looks at the tables that a peer can grow.
# Acknowledge at once when so many packets, or bytes, are unacknowledged, else after ACK_DELAY_S:
# fewer wake-ups at low rate, an open congestion window at high rate (RFC 9000, section 13.2.2).
# The bytes are below the initial window of large packets, which is two of them.
ACK_EVERY_PACKETS = 8
# Shorter paths are not paced. A guess: some ticks of the event loop's timers.
PACE_FROM_RTT_S = 0.005
ACK_EVERY_BYTES = 24_000
# The delay stays below the 25 ms that aioquic announces.
ACK_DELAY_S = 0.01

RELIES_ON: tuple[tuple[type, str], ...] = (
    *TLS_RELIES_ON,
    *(
        (quic.QuicConnection, name)
        for name in (
            "_initialize",
            "_handle_ack_frame",
            "_handle_connection_close_frame",
            "_handle_crypto_frame",
            "_on_connection_limit_delivery",
            "_on_max_stream_data_delivery",
            "_get_or_create_stream",
            "_get_or_create_stream_for_send",
            "_idle_timeout",
            "_parse_transport_parameters",
            "_payload_received",
            "_receive_retry_packet",
            "_write_ack_frame",
            "_write_application",
            "_write_connection_limits",
            "_write_datagram_frame",
            "_write_ping_frame",
            "_write_stream_frame",
            "_write_stream_limits",
        )
    ),
    *((QuicPacketRecovery, name) for name in ("on_ack_received", "_on_packets_lost")),
)
"""Methods of aioquic that this package overrides or calls, checked against 1.7.2."""


class EngineFailed(LinkError):
    """aioquic failed in a way that it does not foresee; the connection must be dropped by hand.

    Nothing more may be asked of that engine: it can neither close nor time out by itself.
    """


class _Silence:
    """In place of aioquic's logger, which writes peer text and a line per packet (B23)."""

    def debug(self, *_: Any) -> None: ...
    def info(self, *_: Any) -> None: ...
    def warning(self, *_: Any) -> None: ...
    def error(self, *_: Any) -> None: ...


def silence(connection: quic.QuicConnection) -> None:
    """Keep what this connection would log out of the log of the program around us."""
    connection._logger = _Silence()  # type: ignore[assignment]


@attrs.frozen(kw_only=True)
class EngineSettings:
    """Limits of one connection. stream/link_window_bytes: what the peer may send beyond what was
    consumed, on one stream and on all. streams_max: streams that it may hold open.
    """

    idle_timeout_s: float = 15.0
    stream_window_bytes: int = 256 * 1024
    link_window_bytes: int = 1024 * 1024
    streams_max: int = 16
    initial_rtt_s: float = 0.1


@attrs.frozen
class PathStats:
    """What the connection knows about its path.

    rtt_s: smoothed round trip, 0 before the first sample. pto_s: probe time-out (RFC 9002, 6.2).
    bytes_in_flight, window_bytes: of congestion control. sent, lost: packets so far, and those of
    them that were declared lost.
    fresh_at: when an acknowledgement last advanced, monotonic seconds; 0 before the first.
    """

    rtt_s: float
    pto_s: float
    bytes_in_flight: int
    window_bytes: int
    sent: int
    lost: int
    fresh_at: float


Address = tuple[str, int]


class Engine(Protocol):
    """One QUIC connection, sans-IO. Links and endpoints ask for nothing else.

    The first part is aioquic's own shape, so that another QUIC library needs a thin adapter only.
    Raises EngineFailed where its own implementation fails: the caller drops it by hand.
    """

    def connect(self, addr: Address, now: float) -> None: ...  # noqa: D102
    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None: ...  # noqa: D102
    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]: ...  # noqa: D102
    def get_timer(self) -> float | None: ...  # noqa: D102
    def handle_timer(self, now: float) -> None: ...  # noqa: D102
    def next_event(self) -> Any: ...  # noqa: D102
    def get_peer_address(self) -> Any: ...  # noqa: D102
    def send_stream_data(  # noqa: D102
        self, stream_id: int, data: bytes, end_stream: bool = False
    ) -> None: ...
    def send_datagram_frame(self, data: bytes) -> None: ...  # noqa: D102
    def close(  # noqa: D102
        self, error_code: int = 0, frame_type: int | None = None, reason_phrase: str = ""
    ) -> None: ...

    def ping(self, uid: int) -> None:
        """Send a PING; its acknowledgement is an event."""

    def path(self) -> PathStats:
        """What is known of the path."""

    def pending_datagrams(self) -> int:
        """Datagrams that wait for the congestion window."""

    def drop_pending_datagrams(self) -> None:
        """Forget datagrams that have become stale before they could leave."""

    def set_packet_size(self, size: int) -> None:
        """Send packets of up to `size` bytes from now on (after the handshake only)."""

    def probe_packet_size(self, size: int, uid: int) -> None:
        """Send one packet of `size` bytes; PingAcknowledged with `uid` when it arrived."""

    def rekey(self) -> None:
        """Update the packet protection keys (RFC 9001, section 6)."""

    def acknowledged_bytes(self, stream_id: int) -> int:
        """Stream bytes that were written and acknowledged."""

    def unacknowledged_bytes(self) -> int:
        """Stream bytes that were written and not yet acknowledged, on all streams."""

    def acknowledge_now(self) -> None:
        """Put off no acknowledgement of what has come so far: the other side goes by it."""

    @property
    def peer_id(self) -> NodeId | None:
        """The identity that the peer has proved, once the handshake is complete."""

    @property
    def peer_not_after(self) -> datetime.datetime | None:
        """When the peer's certificate expires."""

    @property
    def peer_certificates(self) -> tuple[x509.Certificate, ...]:
        """The peer's certificates as they came, its own first, whether or not accepted."""

    @property
    def report(self) -> list[StepResult]:
        """The steps of the check that were taken, by number."""

    @property
    def failure(self) -> CheckFailed | None:
        """The step that failed here, if one did."""

    @property
    def connection_ids(self) -> list[bytes]:
        """The connection IDs by which the peer may address us now."""

    @property
    def address_changes(self) -> int:
        """How often the peer's address changed in the last minute."""

    @property
    def large_losses(self) -> int:
        """Packets above 1,200 bytes that were lost since one was last acknowledged."""

    @property
    def close_event(self) -> Any:
        """How the connection ends or ended, as soon as that is known."""

    @property
    def ended(self) -> bool:
        """Whether the connection is closing, draining or gone."""

    @property
    def close_is_due(self) -> bool:
        """Whether our close has not left yet."""

    @property
    def terminated(self) -> bool:
        """Whether nothing of it is left to do."""


class _Refusal(quic.QuicConnectionError):
    """A guard below was hit."""

    def __init__(self, code: int, reason: str, frame_type: int = 0) -> None:
        super().__init__(error_code=code, frame_type=frame_type, reason_phrase=reason)


class _Recovery(QuicPacketRecovery):
    """aioquic's loss recovery, which also tells how many packets were lost, and how large."""

    lost = 0
    lost_large_in_a_row = 0

    def on_ack_received(self, *, ack_rangeset: Any, space: Any, **rest: Any) -> None:
        newest = space.sent_packets.get(ack_rangeset.bounds().stop - 1)
        super().on_ack_received(ack_rangeset=ack_rangeset, space=space, **rest)
        if newest is not None and newest.sent_bytes > HANDSHAKE_PACKET_BYTES:
            # Afterwards: an ack of a large packet often tells that older ones were lost, and
            # proves all the same that large packets pass.
            self.lost_large_in_a_row = 0
        if self._rtt_min < PACE_FROM_RTT_S:
            # A timer cannot divide so short a round trip (RFC 9002, section 7.7); trying costs a
            # wake-up for every few packets, and half as much CPU again.
            self._pacer.packet_time = None

    def _on_packets_lost(self, *, packets: Iterable[Any], **rest: Any) -> None:
        packets = tuple(packets)
        self.lost += len(packets)
        for packet in packets:
            if packet.sent_bytes > HANDSHAKE_PACKET_BYTES:
                self.lost_large_in_a_row += 1
        super()._on_packets_lost(packets=packets, **rest)


class AioquicEngine(quic.QuicConnection):
    """aioquic's connection with our TLS context, windows and guards.

    Attributes:
        closed_by_peer: whether the peer ended the connection.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        settings: EngineSettings,
        policy: HandshakePolicy,
        **roles: Any,
    ) -> None:
        self._policy = policy
        self._settings = settings
        self._queue: list[Any] = []
        self._lanes: list[Any] = []
        self._crypto_bytes: dict[tls.Epoch, int] = {}
        self._address_changes: list[float] = []
        self._known_addresses: list[Address] = []
        self._received = 0
        self._received_since_ack = 0
        self._received_bytes_since_ack = 0
        self._is_awaited = False
        self._ack_only = 0
        self._fresh_at = 0.0
        self._keyed_at: float | None = None
        self._keyed_packets = 0
        self._key_phase = 0
        self._limits_due = False
        self._received_when_raised = 0
        self._size_probes: list[tuple[int, int]] = []
        self.closed_by_peer = False
        self.tls: Any = None
        super().__init__(configuration=configuration, **roles)
        silence(self)
        self._loss._logger = None
        self._loss.__class__ = _Recovery
        self._ack_delay = ACK_DELAY_S
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = 0
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = settings.streams_max

    # --- ours -----------------------------------------------------------------------------------

    @property
    def peer_id(self) -> NodeId | None:
        """The identity that the peer has proved, once the handshake is complete."""
        return self.tls.peer_id if self._handshake_complete and self.tls is not None else None

    @property
    def peer_not_after(self) -> datetime.datetime | None:
        """When the peer's certificate expires."""
        leaf = self.tls.peer_leaf if self.tls is not None else None
        return leaf.not_valid_after_utc if leaf is not None else None

    @property
    def close_event(self) -> events.ConnectionTerminated | None:
        """How the connection ends or ended, as soon as that is known.

        The ConnectionTerminated event itself comes only when the closing period is over.
        """
        return self._close_event

    @property
    def report(self) -> list[StepResult]:
        """The steps of the check that were taken, by number."""
        return sorted(self.tls.report, key=_step) if self.tls is not None else []

    @property
    def failure(self) -> CheckFailed | None:
        """The step that failed here, if one did."""
        return self.tls.failure if self.tls is not None else None

    @property
    def peer_certificates(self) -> tuple[x509.Certificate, ...]:
        """The peer's certificates as they came, its own first, whether or not accepted."""
        leaf = getattr(self.tls, "_peer_certificate", None)
        return () if leaf is None else (leaf, *self.tls._peer_certificate_chain)

    @property
    def connection_ids(self) -> list[bytes]:
        """The connection IDs by which the peer may address us now."""
        return [each.cid for each in self._host_cids]

    @property
    def ended(self) -> bool:
        """Whether the connection is closing, draining or gone."""
        return self._state in quic.END_STATES or self._close_pending

    @property
    def close_is_due(self) -> bool:
        """Whether our close has not left yet."""
        return self._close_pending

    @property
    def terminated(self) -> bool:
        """Whether nothing of it is left to do."""
        return self._state is quic.QuicConnectionState.TERMINATED

    def acknowledged_bytes(self, stream_id: int) -> int:
        """Stream bytes that were written and acknowledged."""
        stream = self._streams.get(stream_id)
        return int(stream.sender._buffer_start) if stream is not None else 0

    def unacknowledged_bytes(self) -> int:
        """Stream bytes that were written and not yet acknowledged."""
        return sum(
            stream.sender._buffer_stop - stream.sender._buffer_start for stream in self._lanes
        )

    def acknowledge_now(self) -> None:
        """As `Engine`: with the next packets that leave."""
        self._is_awaited = True

    def ping(self, uid: int) -> None:
        """Send a PING; its acknowledgement is a PingAcknowledged event with `uid`."""
        self.send_ping(uid)

    @property
    def _recovery(self) -> _Recovery:
        assert isinstance(self._loss, _Recovery)
        return self._loss

    def path(self) -> PathStats:
        """What is known of the path."""
        loss = self._recovery
        return PathStats(
            rtt_s=loss._rtt_smoothed,
            pto_s=loss.get_probe_timeout(),
            bytes_in_flight=loss.bytes_in_flight,
            window_bytes=loss.congestion_window,
            sent=self._packet_number,
            lost=loss.lost,
            fresh_at=self._fresh_at,
        )

    def pending_datagrams(self) -> int:
        """Datagrams that wait for the congestion window."""
        return len(self._datagrams_pending)

    def drop_pending_datagrams(self) -> None:
        """Forget datagrams that have become stale before they could leave."""
        self._datagrams_pending.clear()

    def set_packet_size(self, size: int) -> None:
        """Send packets of up to `size` bytes from now on.

        Larger ones during the handshake can block it for ever; raising later works.
        """
        if not self._handshake_complete:
            raise LocalProtocolError("the packet size is 1,200 until the handshake is complete")
        self._max_datagram_size = size
        congestion: Any = self._loss._cc
        congestion._max_datagram_size = size
        # RFC 9002, section 7.2: the initial window for this packet size.
        initial = min(10 * size, max(14_720, 2 * size))
        congestion.congestion_window = max(congestion.congestion_window, initial)
        self._loss._pacer._max_datagram_size = size

    def probe_packet_size(self, size: int, uid: int) -> None:
        """Send one packet of exactly `size` bytes; PingAcknowledged with `uid` when it arrived.

        It is not sent again when it is lost (RFC 8899, section 4.1).
        """
        self._size_probes.append((size, uid))

    @property
    def large_losses(self) -> int:
        """Packets above 1,200 bytes that were lost since one was last acknowledged."""
        return self._recovery.lost_large_in_a_row

    def rekey(self) -> None:
        """Update the packet protection keys (RFC 9001, section 6)."""
        self.request_key_update()

    def close(
        self,
        error_code: int = 0,
        frame_type: int | None = None,
        reason_phrase: str = "",
    ) -> None:
        """Close with a short, plain reason: one longer than a packet is never sent (B6)."""
        super().close(
            error_code=error_code, frame_type=frame_type, reason_phrase=_plain(reason_phrase)
        )

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """Write on one of our streams. Lower stream ids leave first, in whichever order they open.

        Raises:
            LocalProtocolError: before the handshake is complete (what an acceptor sends then goes
                to somebody unknown, B53), or with 4 MiB unacknowledged on that stream (B35).
            EngineFailed: the peer refused the stream, or the stream is not ours.
        """
        if not self._handshake_complete:
            raise LocalProtocolError("nothing is sent before the handshake is complete")
        stream = self._streams.get(stream_id)
        try:
            if stream is None:
                if not quic.stream_is_unidirectional(stream_id):
                    raise ValueError("not a one-way stream")
                # aioquic takes a lower id than the last one for a finished stream.
                while self._local_next_stream_id_uni <= stream_id:
                    opened = self._get_or_create_stream_for_send(self._local_next_stream_id_uni)
                    self._lanes.append(opened)
                stream = self._get_or_create_stream_for_send(stream_id)
            elif len(stream.sender._buffer) + len(data) > STREAM_BUFFER_BYTES_MAX:
                raise LocalProtocolError(f"4 MiB wait on stream {stream_id}")
            stream.sender.write(data, end_stream=end_stream)
        except (ValueError, RuntimeError, AssertionError) as error:
            # STOP_SENDING makes the next write fail in the writer's own call (B9).
            raise EngineFailed(f"stream {stream_id}: {error}")

    def send_datagram_frame(self, data: bytes) -> None:
        """Queue a DATAGRAM of at most 1,100 bytes; a larger one would block all others (B13).

        Raises:
            LocalProtocolError: it is too large, too early, or 256 wait already (B35).
        """
        if len(data) > DATAGRAM_PAYLOAD_BYTES_MAX:
            raise LocalProtocolError(f"a datagram of {len(data)} bytes is above 1,100")
        if not self._handshake_complete:
            raise LocalProtocolError("nothing is sent before the handshake is complete")
        if len(self._datagrams_pending) >= DATAGRAMS_PENDING_MAX:
            raise LocalProtocolError("256 datagrams wait already")
        super().send_datagram_frame(data)

    # --- aioquic's, guarded ---------------------------------------------------------------------

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        # aioquic 1.7.2 has room for 16 KiB: a chain of that size and what goes with it need more.
        self._crypto_buffers[tls.Epoch.HANDSHAKE] = Buffer(capacity=FLIGHT_BYTES_MAX)
        MutualTlsContext.install(self.tls, self._policy)

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        """As the parent; then the tables that a peer can grow are held against their bounds.

        Raises:
            EngineFailed: drop the connection by hand.
        """
        if not self._network_paths and self._retry_source_connection_id is not None:
            # The Retry token came back from there: the address is proved (RFC 9000, 8.1.2).
            self._network_paths = [quic.QuicNetworkPath(addr, is_validated=True)]
        self._received += 1
        self._received_since_ack += 1
        self._received_bytes_since_ack += len(data)
        try:
            if not self._receive_short(data, addr, now):
                super().receive_datagram(data, addr, now)
        except Exception as error:
            raise EngineFailed(f"receiving failed: {error!r}"[:200])
        if not self._is_client and (len(self._network_paths) > 1 or not self._known_addresses):
            self._check_addresses(now)
        if self._received % _TABLES_CHECKED_EVERY == 0:
            self._check_tables()

    def _receive_short(self, data: bytes, addr: Address, now: float) -> bool:
        """What the parent does with nearly every datagram: one 1-RTT packet on the one path.

        Returns False, with nothing done, for anything less usual: the parent knows it all.
        """
        if (
            not self._handshake_confirmed
            or self._state is not quic.QuicConnectionState.CONNECTED
            or self._close_pending
            or len(self._network_paths) != 1
            or data[1:_SHORT_HEADER_BYTES] != self.host_cid
            or data[0] & _FORM_BITS != _SHORT_FORM
        ):
            return False
        path = self._network_paths[0]
        if path.addr != addr or not path.is_validated:
            return False
        space = self._spaces[tls.Epoch.ONE_RTT]
        try:
            header, payload, number = self._cryptos[tls.Epoch.ONE_RTT].decrypt_packet(
                data, _SHORT_HEADER_BYTES, space.expected_packet_number
            )
        except CryptoError:
            return True
        if number in space.received_packets:
            return True
        if header[0] & _RESERVED_BITS:
            self.close(quic.QuicErrorCode.PROTOCOL_VIOLATION, 0, "reserved bits must be zero")
            return True
        if number > space.expected_packet_number:
            space.expected_packet_number = number + 1
        if number > self._spin_highest_pn:
            self._spin_bit = quic.get_spin_bit(header[0]) != self._is_client
            self._spin_highest_pn = number
        context = quic.QuicReceiveContext(tls.Epoch.ONE_RTT, self.host_cid, path, None, now, None)
        try:
            is_ack_eliciting, _ = self._payload_received(context, payload)
        except quic.QuicConnectionError as error:
            self.close(error.error_code, error.frame_type, error.reason_phrase)
        if self.ended:
            return True
        self._close_at = now + self._idle_timeout()
        self._ack_eliciting_sent_since_receipt = False
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = now
        space.ack_queue.add(number)
        space.received_packets.add(number)
        if len(space.ack_queue) > quic.MAX_ACK_RANGES:
            space.ack_queue.shift()
        if is_ack_eliciting and space.ack_at is None:
            space.ack_at = now + self._ack_delay
        return True

    def _check_tables(self) -> None:
        for space in self._spaces.values():
            if len(space.ack_queue) > ACK_RANGES_MAX or len(space.sent_packets) > SENT_PACKETS_MAX:
                self.close(quic.QuicErrorCode.INTERNAL_ERROR, 0, "table limit")

    def _check_addresses(self, now: float) -> None:
        # Only packets that decrypted make paths, so that nobody else can spend this budget (B29).
        before = self._known_addresses
        self._known_addresses = [path.addr for path in self._network_paths]
        if before:
            new = [addr for addr in self._known_addresses if addr not in before]
            moved = bool(new) or self._known_addresses[0] != before[0]
            self._address_changes += [now] * max(len(new), moved)
        self._address_changes = [at for at in self._address_changes if at > now - 60.0]
        if len(self._address_changes) > ADDRESS_CHANGES_PER_MINUTE_MAX:
            self.close(quic.QuicErrorCode.PROTOCOL_VIOLATION, 0, "too many addresses")

    @property
    def address_changes(self) -> int:
        """How often the peer's address changed in the last minute."""
        return len(self._address_changes)

    def handle_timer(self, now: float) -> None:
        """As the parent. Raises EngineFailed: drop the connection by hand."""
        try:
            super().handle_timer(now)
        except Exception as error:
            raise EngineFailed(f"a timer failed: {error!r}"[:200])

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """As the parent, with our acknowledgement rhythm, size probes and key updates.

        Raises:
            EngineFailed: drop the connection by hand.
        """
        if not self._network_paths:
            return []
        try:
            if self._handshake_complete:
                self._before_send(now)
            datagrams: list[tuple[bytes, Address]] = super().datagrams_to_send(now)
            if (
                self._size_probes
                and self._handshake_confirmed
                and not self.ended
                # Nobody may make us send large packets to an address that is not proved.
                and self._network_paths[0].is_validated
            ):
                datagrams += self._send_size_probes(now)
        except Exception as error:
            raise EngineFailed(f"sending failed: {error!r}"[:200])
        return datagrams

    def _before_send(self, now: float) -> None:
        space = self._spaces[tls.Epoch.ONE_RTT]
        if space.ack_at is None:
            self._received_since_ack = self._received_bytes_since_ack = 0
        elif (
            self._received_since_ack >= ACK_EVERY_PACKETS
            or self._received_bytes_since_ack >= ACK_EVERY_BYTES
            or self._is_awaited
            or len(space.ack_queue) > 1
        ):
            # A gap is told at once: it is how the sender learns of a loss.
            space.ack_at = now
        self._is_awaited = False
        if not self._handshake_confirmed:
            return
        crypto = self._cryptos[tls.Epoch.ONE_RTT]
        if self._keyed_at is None or crypto.key_phase != self._key_phase:
            # The peer's update counts as ours, for its count and clock are like ours: a second
            # one while packets under the first are on their way would lose them (RFC 9001, 6.5).
            self._keyed_at, self._keyed_packets = now, self._packet_number
            self._key_phase = crypto.key_phase
        elif (
            self._packet_number - self._keyed_packets >= KEY_UPDATE_PACKETS
            or now - self._keyed_at >= KEY_UPDATE_S
        ):
            self._keyed_at, self._keyed_packets = now, self._packet_number
            self.rekey()
            self._key_phase = crypto.key_phase

    def _send_size_probes(self, now: float) -> list[tuple[bytes, Address]]:
        datagrams: list[tuple[bytes, Address]] = []
        for size, uid in self._size_probes:
            builder = QuicPacketBuilder(
                host_cid=self.host_cid,
                is_client=self._is_client,
                max_datagram_size=size,
                packet_number=self._packet_number,
                peer_cid=self._peer_cid.cid,
                spin_bit=self._spin_bit,
                version=quic.QuicProtocolVersion.VERSION_1,
            )
            builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
            builder.start_frame(
                QuicFrameType.PING, handler=self._on_size_probe, handler_args=(uid,)
            )
            padding = builder.start_frame(QuicFrameType.PADDING)
            padding.push_bytes(bytes(builder.remaining_buffer_space))
            datagrams += self._flush_builder(
                builder, self._network_paths[0], self._peer_cid.cid, now
            )
        self._size_probes.clear()
        return datagrams

    def _on_size_probe(self, delivery: QuicDeliveryState, uid: int) -> None:
        if delivery is QuicDeliveryState.ACKED:
            self._events.append(events.PingAcknowledged(uid=uid))

    def _receive_retry_packet(self, header: Any, packet_without_tag: bytes, now: float) -> None:
        # A token that leaves no room in a packet would silence us for ever (B40).
        if header.token is not None and len(header.token) <= RETRY_TOKEN_BYTES_MAX:
            super()._receive_retry_packet(header, packet_without_tag, now)

    def _handle_connection_close_frame(self, context: Any, frame_type: int, buf: Buffer) -> None:
        first = self._close_event is None
        super()._handle_connection_close_frame(context, frame_type, buf)
        if first and self._close_event is not None:
            self.closed_by_peer = True
            self._close_event.reason_phrase = _plain(self._close_event.reason_phrase)

    def _handle_crypto_frame(self, context: Any, frame_type: int, buf: Buffer) -> None:
        # Peek at offset and length (RFC 9000, section 19.6) before anything is allocated (B17).
        at = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(at)
        stream = self._crypto_streams[context.epoch]
        seen = self._crypto_bytes
        seen[context.epoch] = max(seen.get(context.epoch, 0), end)
        if (
            end > stream.receiver.starting_offset() + CRYPTO_AHEAD_BYTES_MAX
            or sum(seen.values()) > CRYPTO_BYTES_MAX
        ):
            self.tls.note_failure(CheckFailed(1, Alert.DECODE_ERROR, "handshake is too long"))
            raise _Refusal(
                quic.QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, "handshake is too long", frame_type
            )
        if len(stream.receiver._ranges) > CRYPTO_RUNS_MAX:
            raise _Refusal(quic.QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, "too many holes", frame_type)
        self.tls.level = context.epoch
        super()._handle_crypto_frame(context, frame_type, buf)

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> Any:
        # Each frame that names a stream passes here.
        stream = self._streams.get(stream_id)
        if stream is None:
            return super()._get_or_create_stream(frame_type, stream_id)
        if len(stream.receiver._ranges) > STREAM_RUNS_MAX:
            # Single bytes with holes between them cost quadratic time.
            raise _Refusal(quic.QuicErrorCode.INTERNAL_ERROR, "too many holes", frame_type)
        return stream

    def _handle_ack_frame(self, context: Any, frame_type: int, buf: Buffer) -> None:
        # The largest acknowledged comes first (RFC 9000, section 19.3). One that was never sent
        # would inflate the congestion window of whoever believes it (B28).
        at = buf.tell()
        largest, _delay, ranges = buf.pull_uint_var(), buf.pull_uint_var(), buf.pull_uint_var()
        buf.seek(at)
        if ranges > ACK_RANGES_MAX:
            # Ours never has as many; all the frames of one packet would cost quadratic time.
            raise _Refusal(quic.QuicErrorCode.INTERNAL_ERROR, "too many ack ranges", frame_type)
        if largest >= self._packet_number:
            raise _Refusal(
                quic.QuicErrorCode.PROTOCOL_VIOLATION, "ack of a packet never sent", frame_type
            )
        space = self._spaces[context.epoch]
        before = len(space.sent_packets)
        super()._handle_ack_frame(context, frame_type, buf)
        if len(space.sent_packets) < before:
            self._fresh_at = context.time

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        # aioquic takes the last of several, and reset tokens of any length (RFC 9000, sections
        # 7.4 and 18.2).
        reason = _unsound_parameters(data)
        if reason:
            raise _Refusal(
                quic.QuicErrorCode.TRANSPORT_PARAMETER_ERROR, reason, QuicFrameType.CRYPTO
            )
        super()._parse_transport_parameters(data, from_session_ticket=from_session_ticket)
        # We dialled an address and stay there.
        self._remote_preferred_address = None
        if self._loss.max_ack_delay > PEER_ACK_DELAY_S_MAX:
            raise _Refusal(
                quic.QuicErrorCode.TRANSPORT_PARAMETER_ERROR,
                "max_ack_delay is too large",
                QuicFrameType.CRYPTO,
            )
        if (self._remote_max_datagram_frame_size or 0) < DATAGRAM_FRAME_BYTES_MAX:
            raise _Refusal(
                quic.QuicErrorCode.TRANSPORT_PARAMETER_ERROR,
                "datagrams are too small",
                QuicFrameType.CRYPTO,
            )

    # --- windows: consumed + constant -------------------------------------------------------------
    # aioquic doubles a window when the highest offset seen passes half of it, read or not, so that
    # 296 bytes reserve 128 MiB (B24), and its stream limit likewise (B25). Bytes count as consumed
    # when they have been handed out in order.

    def _raise_limits(self) -> None:
        """Move each window on by what was consumed of it, once that is half of it.

        The sender has the other half left then, so that the new limit leaves at once; to tell
        less, and so more often, would cost a packet each time (RFC 9000, section 4.2).
        """
        if self._received == self._received_when_raised:
            return
        self._received_when_raised = self._received
        window = self._settings.stream_window_bytes
        consumed = 0
        for stream in self._streams.values():
            taken = stream.receiver.starting_offset()
            consumed += taken
            limit = stream.max_stream_data_local
            if limit and taken + window - limit >= window // 2:
                stream.max_stream_data_local = taken + window
                self._limits_due = True
        window = self._settings.link_window_bytes
        if consumed + window - self._local_max_data.value >= window // 2:
            self._local_max_data.value = consumed + window
            self._limits_due = True

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: Any) -> None:
        del space
        limit = self._local_max_data
        if limit.value != limit.sent:
            buf = builder.start_frame(
                limit.frame_type,
                capacity=quic.CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            buf.push_uint_var(limit.value)
            limit.sent = limit.value

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: Any, stream: Any) -> None:
        del space
        if stream.max_stream_data_local_sent != stream.max_stream_data_local:
            buf = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=quic.MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            buf.push_uint_var(stream.stream_id)
            buf.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local

    def _on_connection_limit_delivery(self, delivery: QuicDeliveryState, limit: Any) -> None:
        super()._on_connection_limit_delivery(delivery, limit)
        self._limits_due = self._limits_due or delivery is not QuicDeliveryState.ACKED

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: Any) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        self._limits_due = self._limits_due or delivery is not QuicDeliveryState.ACKED

    # --- sending --------------------------------------------------------------------------------

    def _write_application(self, builder: QuicPacketBuilder, network_path: Any, now: float) -> None:
        """What nearly every packet holds, without the parent's loops over all streams.

        Whatever is rare (connection IDs, path validation, resets, 1-RTT crypto) is left to the
        parent. Streams leave in the order of their ids: they are lanes, and lanes are priorities.
        """
        self._raise_limits()
        if self._is_rare(network_path):
            super()._write_application(builder, network_path, now)
            return
        crypto = self._cryptos[tls.Epoch.ONE_RTT]
        space: Any = self._spaces[tls.Epoch.ONE_RTT]
        while True:
            if space.ack_at is None or space.ack_at > now:
                if not self._has_pending():
                    return
                self._pacing_at = self._loss._pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    return
            builder.start_packet(QuicPacketType.ONE_RTT, crypto)
            packet: Any = builder._packet
            if space.ack_at is not None:
                # It rides along, due or not (RFC 9000, section 13.2.1).
                self._write_ack_frame(builder, space, now)
                self._received_since_ack = self._received_bytes_since_ack = 0
                self._ack_only += 1
            self._write_pending(builder, space)
            if packet.is_ack_eliciting:
                self._ack_only = 0
            if builder.packet_is_empty:
                return
            self._loss._pacer.update_after_send(now=now)

    def _is_rare(self, network_path: Any) -> bool:
        return (
            not self._handshake_complete
            or not network_path.is_validated
            or self._handshake_done_pending
            or bool(network_path.remote_challenges)
            or bool(self._retire_connection_ids)
            or self._streams_blocked_pending
            or not self._crypto_streams[tls.Epoch.ONE_RTT].sender.buffer_is_empty
            or not all(each.was_sent for each in self._host_cids)
            or any(each.sender.reset_pending for each in self._lanes)
        )

    def _has_pending(self) -> bool:
        if self._limits_due or self._datagrams_pending or self._ping_pending or self._probe_pending:
            return True
        # A loop and no generator: this is asked before each packet.
        for each in self._lanes:  # noqa: SIM110
            if not each.sender.buffer_is_empty:
                return True
        return False

    def _write_pending(self, builder: QuicPacketBuilder, space: Any) -> None:
        if self._limits_due:
            self._write_connection_limits(builder, space)
            for stream in self._streams.values():
                self._write_stream_limits(builder, space, stream)
            self._limits_due = False
        if self._ack_only >= ACK_ONLY_PACKETS_PER_PING:
            # A peer that never has to acknowledge would let our table grow for ever (B27).
            self._probe_pending = True
            self._ack_only = 0
        if self._ping_pending:
            self._write_ping_frame(builder, self._ping_pending)
            self._ping_pending.clear()
        if self._probe_pending:
            self._write_ping_frame(builder)
            self._probe_pending = False
        while self._datagrams_pending:
            try:
                self._write_datagram_frame(
                    builder, self._datagrams_pending[0], QuicFrameType.DATAGRAM_WITH_LENGTH
                )
            except QuicPacketBuilderStop:
                break
            self._datagrams_pending.popleft()
        for stream in self._lanes:
            sender = stream.sender
            if sender.buffer_is_empty or stream.is_blocked:
                continue
            self._remote_max_data_used += self._write_stream_frame(
                builder,
                space,
                stream,
                min(
                    sender.highest_offset + self._remote_max_data - self._remote_max_data_used,
                    stream.max_stream_data_remote,
                ),
            )
            if not len(sender._pending) and not sender._pending_eof:
                sender.buffer_is_empty = True
            elif builder.remaining_flight_space < _FRAME_ROOM_BYTES_MIN:
                return

    # aioquic serves streams round robin; ours are lanes, and lanes are priorities. A link opens
    # its streams in lane order, so that the order of stream ids is the order of urgency.

    @property
    def _streams_queue(self) -> list[Any]:
        queue = self._queue
        queue.sort(key=_stream_id)
        return queue

    @_streams_queue.setter
    def _streams_queue(self, value: list[Any]) -> None:
        self._queue = value


def _plain(text: str) -> str:
    """A reason that is safe to send and to log: printable ASCII, cut."""
    return "".join(each if " " <= each <= "~" else "?" for each in text[:REASON_BYTES_MAX])


def _step(result: StepResult) -> int:
    return result.step


def _stream_id(stream: Any) -> int:
    return int(stream.stream_id)


IsRevoked = Callable[[Sequence[x509.Certificate], NodeId], bool]
"""Whether a path of certificates, leaf first, or the identity in it, is revoked."""


def dial(
    credentials: Credentials,
    *,
    settings: EngineSettings,
    expected: NodeId | None = None,
    admit: Callable[[NodeId], bool] | None = None,
    is_revoked: IsRevoked | None = None,
    wall: Callable[[], datetime.datetime] | None = None,
) -> AioquicEngine:
    """Make the dialler's end of a connection; call `connect` on it next."""
    return AioquicEngine(
        configuration=_configuration(credentials, settings, is_client=True),
        settings=settings,
        policy=_policy(credentials, expected, admit, is_revoked, wall),
    )


def accept(
    credentials: Credentials,
    *,
    settings: EngineSettings,
    original_destination_cid: bytes,
    retry_source_cid: bytes | None,
    admit: Callable[[NodeId], bool] | None = None,
    is_revoked: IsRevoked | None = None,
    wall: Callable[[], datetime.datetime] | None = None,
) -> AioquicEngine:
    """Make the acceptor's end, once a Retry token has proved the dialler's address."""
    return AioquicEngine(
        configuration=_configuration(credentials, settings, is_client=False),
        settings=settings,
        policy=_policy(credentials, None, admit, is_revoked, wall),
        original_destination_connection_id=original_destination_cid,
        retry_source_connection_id=retry_source_cid,
    )


def _policy(
    credentials: Credentials,
    expected: NodeId | None,
    admit: Callable[[NodeId], bool] | None,
    is_revoked: IsRevoked | None,
    wall: Callable[[], datetime.datetime] | None,
) -> HandshakePolicy:
    return HandshakePolicy(
        credentials=credentials,
        expected=expected,
        admit=admit if admit is not None else _admit_all,
        is_revoked=is_revoked if is_revoked is not None else _revoke_none,
        wall=wall if wall is not None else _wall,
    )


def _admit_all(_peer: NodeId) -> bool:
    # Whoever passes steps 1 to 11 is a member of the trust domain.
    return True


def _revoke_none(_path: Sequence[x509.Certificate], _peer: NodeId) -> bool:
    return False


def _wall() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _configuration(
    credentials: Credentials, settings: EngineSettings, *, is_client: bool
) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        certificate=credentials.leaf,
        certificate_chain=[x509.load_der_x509_certificate(der) for der in credentials.chain_der],
        private_key=credentials.key,
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=settings.idle_timeout_s,
        initial_rtt=settings.initial_rtt_s,
        max_data=settings.link_window_bytes,
        max_stream_data=settings.stream_window_bytes,
        max_datagram_size=HANDSHAKE_PACKET_BYTES,
        max_datagram_frame_size=65_535,
        cipher_suites=[
            tls.CipherSuite.AES_128_GCM_SHA256,
            tls.CipherSuite.AES_256_GCM_SHA384,
            tls.CipherSuite.CHACHA20_POLY1305_SHA256,
        ],
        supported_versions=[quic.QuicProtocolVersion.VERSION_1],
        # SNI would name the peer in clear text, and we do not judge names.
        server_name=None,
        quic_logger=None,
        secrets_log_file=None,
    )


def _unsound_parameters(data: bytes) -> str:
    """Why these transport parameters are refused whatever aioquic thinks of them, or nothing."""
    seen: set[int] = set()
    buf = Buffer(data=data)
    try:
        while not buf.eof():
            name = buf.pull_uint_var()
            size = buf.pull_uint_var()
            buf.pull_bytes(size)
            if name in seen:
                return "a parameter is repeated"
            seen.add(name)
            if name == _RESET_TOKEN_PARAMETER and size != quic.STATELESS_RESET_TOKEN_SIZE:
                return "a reset token has a wrong size"
    except ValueError:
        # Cut off: aioquic says so.
        return ""
    return ""


EVENTS = events
"""aioquic's event classes, for link.py: nothing else imports aioquic."""
