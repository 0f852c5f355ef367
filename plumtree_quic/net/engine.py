"""The engine seam: the only module that makes QUIC connection objects, and their guard.

`Engine` is what everything above may ask of a QUIC connection; `AioquicEngine` provides it with
aioquic 1.7.2. Private names of aioquic are used here and in tls.py alone and listed in
`RELIES_ON`. What a link is, how frames look and when to dial stand in link.py and endpoint.py.

What aioquic leaves open to a hostile peer is closed here: windows and stream limits are constants
above what was consumed, handshake buffers are small, tables are bounded, acknowledgements of
packets never sent end the connection, and close reasons are short and fixed.
"""

import datetime
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import attrs
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic import connection as quic
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.recovery import QuicPacketRecovery

from plumtree_quic.errors import ConfigError, LinkError, LocalProtocolError
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
    "PathStats",
    "accept",
    "dial",
    "self_test",
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
ACK_RANGES_MAX = 256
SENT_PACKETS_MAX = 8_192
ACK_ONLY_PACKETS_PER_PING = 64
ADDRESS_CHANGES_PER_MINUTE_MAX = 4
PEER_ACK_DELAY_S_MAX = 0.1
KEY_UPDATE_PACKETS = 1 << 20
KEY_UPDATE_S = 3_600.0
_TABLES_CHECKED_EVERY = 64
# Datagrams between two looks at the tables that a peer can grow.
# Acknowledge at once when so many packets are unacknowledged, else after ACK_DELAY_S: fewer
# wake-ups at low rate, an open congestion window at high rate (RFC 9000, section 13.2.2).
ACK_EVERY_PACKETS = 8
_PADDING_TYPE = b"\x7f"
_PROBE_HEADROOM_BYTES = 48
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
            "_get_or_create_stream_for_send",
            "_parse_transport_parameters",
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

    def debug(self, *_: Any) -> None: ...  # noqa: D102
    def info(self, *_: Any) -> None: ...  # noqa: D102
    def warning(self, *_: Any) -> None: ...  # noqa: D102
    def error(self, *_: Any) -> None: ...  # noqa: D102


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
    bytes_in_flight, window_bytes: of congestion control. lost: packets declared lost so far.
    fresh_at: when an acknowledgement last advanced, monotonic seconds; 0 before the first.
    """

    rtt_s: float
    pto_s: float
    bytes_in_flight: int
    window_bytes: int
    lost: int
    fresh_at: float


Address = tuple[str, int]


class Engine(Protocol):
    """One QUIC connection, sans-IO. Everything above asks for nothing else."""

    def connect(self, addr: Address, now: float) -> None: ...  # noqa: D102
    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None: ...  # noqa: D102
    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]: ...  # noqa: D102
    def get_timer(self) -> float | None: ...  # noqa: D102
    def handle_timer(self, now: float) -> None: ...  # noqa: D102
    def next_event(self) -> Any: ...  # noqa: D102
    def send_stream_data(self, stream_id: int, data: bytes) -> None: ...  # noqa: D102
    def send_datagram_frame(self, data: bytes) -> None: ...  # noqa: D102
    def close(self, error_code: int, reason_phrase: str = "") -> None: ...  # noqa: D102

    def ping(self, uid: int) -> None:
        """Send a PING; its acknowledgement is an event."""

    def path(self) -> PathStats:
        """What is known of the path."""

    def pending_datagrams(self) -> int:
        """Datagrams that wait for the congestion window."""

    def set_packet_size(self, size: int) -> None:
        """Send packets of up to `size` bytes from now on (after the handshake only)."""

    def rekey(self) -> None:
        """Update the packet protection keys (RFC 9001, section 6)."""

    @property
    def peer_id(self) -> NodeId | None:
        """The identity that the peer has proved, once the handshake is complete."""


class _Refusal(quic.QuicConnectionError):
    """A guard below was hit."""

    def __init__(self, code: int, reason: str, frame_type: int = 0) -> None:
        super().__init__(error_code=code, frame_type=frame_type, reason_phrase=reason)


class _Recovery(QuicPacketRecovery):  # type: ignore[misc]
    """aioquic's loss recovery, which also tells how many packets were lost, and how large."""

    lost = 0
    lost_large_in_a_row = 0

    def on_ack_received(self, *, ack_rangeset: Any, space: Any, **rest: Any) -> None:
        newest = space.sent_packets.get(ack_rangeset.bounds().stop - 1)
        if newest is not None and newest.sent_bytes > HANDSHAKE_PACKET_BYTES:
            self.lost_large_in_a_row = 0
        super().on_ack_received(ack_rangeset=ack_rangeset, space=space, **rest)

    def _on_packets_lost(self, *, packets: Iterable[Any], **rest: Any) -> None:
        packets = tuple(packets)
        self.lost += len(packets)
        for packet in packets:
            if packet.sent_bytes > HANDSHAKE_PACKET_BYTES:
                self.lost_large_in_a_row += 1
        super()._on_packets_lost(packets=packets, **rest)


class AioquicEngine(quic.QuicConnection):  # type: ignore[misc]
    """aioquic's connection with our TLS context, windows and guards."""

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
        self._crypto_bytes = 0
        self._address_changes: list[float] = []
        self._known_address: Address | None = None
        self._received_since_ack = 0
        self._ack_only = 0
        self._size_probes: list[tuple[int, int]] = []
        self._fresh_at = 0.0
        self._keyed_at: float | None = None
        self._keyed_packets = 0
        self.tls: Any = None
        super().__init__(configuration=configuration, **roles)
        self._loss.__class__ = _Recovery
        self._ack_delay = ACK_DELAY_S
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = 0
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = settings.streams_max
        self._window_total = settings.link_window_bytes

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
    def report(self) -> list[StepResult]:
        """The steps of the check that were taken, in order."""
        return list(self.tls.report) if self.tls is not None else []

    @property
    def failure(self) -> CheckFailed | None:
        """The step that failed here, if one did."""
        return self.tls.failure if self.tls is not None else None

    @property
    def peer_leaf_der(self) -> bytes | None:
        """The peer's certificate as it came, whether or not it was accepted."""
        from cryptography.hazmat.primitives.serialization import Encoding

        leaf = getattr(self.tls, "_peer_certificate", None)
        return leaf.public_bytes(Encoding.DER) if leaf is not None else None

    @property
    def connection_ids(self) -> Iterable[bytes]:
        """The connection IDs by which the peer may address us now."""
        return [each.cid for each in self._host_cids]

    @property
    def ended(self) -> bool:
        """Whether the connection is closing, draining or gone."""
        return self._state in quic.END_STATES or self._close_pending

    @property
    def terminated(self) -> bool:
        """Whether nothing of it is left to do."""
        return self._state is quic.QuicConnectionState.TERMINATED

    @property
    def has_unsent(self) -> bool:
        """Whether stream data waits for congestion control or flow control."""
        return any(not stream.sender.buffer_is_empty for stream in self._queue)

    def unacknowledged_bytes(self) -> int:
        """Stream bytes that were written and not yet acknowledged."""
        return sum(
            stream.sender._buffer_stop - stream.sender._buffer_start for stream in self._queue
        )

    def ping(self, uid: int) -> None:
        """Send a PING; its acknowledgement is a PingAcknowledged event with `uid`."""
        self.send_ping(uid)

    def path(self) -> PathStats:
        """What is known of the path."""
        loss = self._loss
        return PathStats(
            rtt_s=loss._rtt_smoothed,
            pto_s=loss.get_probe_timeout(),
            bytes_in_flight=loss.bytes_in_flight,
            window_bytes=loss.congestion_window,
            lost=self._loss.lost,
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
        assert self._handshake_complete
        self._max_datagram_size = size
        self._loss._cc._max_datagram_size = size
        self._loss._pacer._max_datagram_size = size
        # RFC 9002, section 7.2: the initial window for this packet size.
        initial = min(10 * size, max(14_720, 2 * size))
        self._loss._cc.congestion_window = max(self._loss._cc.congestion_window, initial)

    def probe_packet_size(self, size: int, uid: int) -> None:
        """Send one padded packet of about `size` bytes; PingAcknowledged(uid) says it passed."""
        self._size_probes.append((size, uid))

    @property
    def large_losses(self) -> int:
        """Packets above 1,200 bytes that were lost since one was last acknowledged."""
        return int(self._loss.lost_large_in_a_row)

    def rekey(self) -> None:
        """Update the packet protection keys (RFC 9001, section 6)."""
        self.request_key_update()

    def close(  # type: ignore[override]
        self,
        error_code: int = 0,
        frame_type: int | None = None,
        reason_phrase: str = "",
    ) -> None:
        """Close with a short, plain reason: one longer than a packet is never sent (B6)."""
        super().close(
            error_code=error_code,
            frame_type=frame_type,
            reason_phrase=reason_phrase.encode("ascii", "replace").decode()[:REASON_BYTES_MAX],
        )

    def send_datagram_frame(self, data: bytes) -> None:
        """Queue a DATAGRAM; an oversized one would block all later ones for ever (B13)."""
        if len(data) > DATAGRAM_PAYLOAD_BYTES_MAX:
            raise ValueError(f"a datagram of {len(data)} bytes is above 1,100")
        super().send_datagram_frame(data)

    # --- aioquic's, guarded ---------------------------------------------------------------------

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        MutualTlsContext.install(self.tls, self._policy)

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        """As the parent; then the tables that a peer can grow are held against their bounds."""
        self._received_since_ack += 1
        super().receive_datagram(data, addr, now)
        if self._known_address is None:
            self._known_address = addr
        if len(self._network_paths) > 1 or addr != self._known_address:
            self._check_address(addr, now)
        for space in self._spaces.values():
            if len(space.ack_queue) > ACK_RANGES_MAX or len(space.sent_packets) > SENT_PACKETS_MAX:
                self.close(error_code=0x01, frame_type=0, reason_phrase="table limit")

    def _check_address(self, addr: Address, now: float) -> None:
        if addr == self._known_address:
            return
        self._known_address = addr
        recent = [at for at in self._address_changes if at > now - 60.0]
        recent.append(now)
        self._address_changes = recent
        if len(recent) > ADDRESS_CHANGES_PER_MINUTE_MAX:
            self.close(error_code=0x01, frame_type=0, reason_phrase="too many addresses")

    @property
    def address_changes(self) -> int:
        """How often the peer's address changed in the last minute."""
        return len(self._address_changes)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """As the parent, with our acknowledgement rhythm and key updates."""
        if self._received_since_ack and self._handshake_complete:
            space = self._spaces[tls.Epoch.ONE_RTT]
            if space.ack_at is not None and self._received_since_ack >= ACK_EVERY_PACKETS:
                space.ack_at = now
        datagrams: list[tuple[bytes, Address]] = super().datagrams_to_send(now)
        if self._size_probes and self._handshake_confirmed and not self.ended:
            datagrams += self._send_size_probe(now)
        if datagrams:
            self._after_send(datagrams, now)
        return datagrams

    def _send_size_probe(self, now: float) -> list[tuple[bytes, Address]]:
        if self._datagrams_pending or self._loss.bytes_in_flight:
            return []
        size, uid = self._size_probes.pop(0)
        usual, window = self._max_datagram_size, self._loss._cc.congestion_window
        self._max_datagram_size = size
        self._loss._cc.congestion_window = max(window, size)
        # An unknown datagram type is ignored by the other side, and acknowledged by its engine.
        self._datagrams_pending.append(_PADDING_TYPE + bytes(size - _PROBE_HEADROOM_BYTES))
        self.send_ping(uid)
        try:
            sent: list[tuple[bytes, Address]] = super().datagrams_to_send(now)
        finally:
            self._max_datagram_size = usual
            self._loss._cc.congestion_window = window
            self._datagrams_pending.clear()
        return sent

    def _after_send(self, datagrams: list[tuple[bytes, Address]], now: float) -> None:
        self._received_since_ack = 0
        if self._loss.bytes_in_flight == 0 and not self.ended:
            # Nothing of ours needs an acknowledgement; ask for one now and then, so that the
            # table of packets that were only acknowledgements does not grow (B27).
            self._ack_only += len(datagrams)
            if self._ack_only >= ACK_ONLY_PACKETS_PER_PING:
                self._ack_only = 0
                self.send_ping(0)
        else:
            self._ack_only = 0
        if not self._handshake_confirmed:
            return
        if self._keyed_at is None:
            self._keyed_at, self._keyed_packets = now, self._packet_number
        elif (
            self._packet_number - self._keyed_packets >= KEY_UPDATE_PACKETS
            or now - self._keyed_at >= KEY_UPDATE_S
        ):
            self._keyed_at, self._keyed_packets = now, self._packet_number
            self.rekey()

    def _handle_crypto_frame(self, context: Any, frame_type: int, buf: Buffer) -> None:
        # Peek at offset and length (RFC 9000, section 19.6) before anything is allocated (B17).
        at = buf.tell()
        offset, length = buf.pull_uint_var(), buf.pull_uint_var()
        buf.seek(at)
        stream = self._crypto_streams[context.epoch]
        if offset + length > stream.receiver.starting_offset() + CRYPTO_AHEAD_BYTES_MAX:
            raise _Refusal(quic.QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, "too much crypto", frame_type)
        self._crypto_bytes += length
        if self._crypto_bytes > CRYPTO_BYTES_MAX:
            raise _Refusal(quic.QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, "too much crypto", frame_type)
        self.tls.level = context.epoch
        super()._handle_crypto_frame(context, frame_type, buf)

    def _handle_ack_frame(self, context: Any, frame_type: int, buf: Buffer) -> None:
        # The largest acknowledged comes first (RFC 9000, section 19.3). One that was never sent
        # would inflate the congestion window of whoever believes it (B28).
        at = buf.tell()
        largest = buf.pull_uint_var()
        buf.seek(at)
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
        super()._parse_transport_parameters(data, from_session_ticket=from_session_ticket)
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

    def _write_connection_limits(self, builder: Any, space: Any) -> None:
        # consumed + constant: aioquic doubles a window when the highest offset seen passes half
        # of it, so that 296 bytes reserve 128 MiB (B24), and likewise for streams (B25).
        del space
        limit = self._local_max_data
        value = self._consumed() + self._window_total
        if value - limit.value >= self._window_total // 2:
            limit.value = value
        if limit.value != limit.sent:
            buf = builder.start_frame(
                limit.frame_type,
                capacity=quic.CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            buf.push_uint_var(limit.value)
            limit.sent = limit.value

    def _consumed(self) -> int:
        return sum(stream.receiver.starting_offset() for stream in self._streams.values())

    def _write_stream_limits(self, builder: Any, space: Any, stream: Any) -> None:
        del space
        if not stream.max_stream_data_local:
            return
        window = self._settings.stream_window_bytes
        value = stream.receiver.starting_offset() + window
        if value - stream.max_stream_data_local >= window // 2:
            stream.max_stream_data_local = value
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


def _stream_id(stream: Any) -> int:
    return int(stream.stream_id)


def dial(
    credentials: Credentials,
    *,
    settings: EngineSettings,
    expected: NodeId | None = None,
    admit: Callable[[NodeId], bool] | None = None,
    wall: Callable[[], datetime.datetime] | None = None,
) -> AioquicEngine:
    """Make the dialler's end of a connection; call `connect` on it next."""
    return AioquicEngine(
        configuration=_configuration(credentials, settings, is_client=True),
        settings=settings,
        policy=_policy(credentials, expected, admit, wall),
    )


def accept(
    credentials: Credentials,
    *,
    settings: EngineSettings,
    original_destination_cid: bytes,
    retry_source_cid: bytes | None,
    admit: Callable[[NodeId], bool] | None = None,
    wall: Callable[[], datetime.datetime] | None = None,
) -> AioquicEngine:
    """Make the acceptor's end, once a Retry token has proved the dialler's address."""
    return AioquicEngine(
        configuration=_configuration(credentials, settings, is_client=False),
        settings=settings,
        policy=_policy(credentials, None, admit, wall),
        original_destination_connection_id=original_destination_cid,
        retry_source_connection_id=retry_source_cid,
    )


def _policy(
    credentials: Credentials,
    expected: NodeId | None,
    admit: Callable[[NodeId], bool] | None,
    wall: Callable[[], datetime.datetime] | None,
) -> HandshakePolicy:
    return HandshakePolicy(
        credentials=credentials,
        expected=expected,
        admit=admit if admit is not None else _admit_all,
        wall=wall if wall is not None else _wall,
    )


def _admit_all(_peer: NodeId) -> bool:
    # Whoever passes steps 1 to 11 is a member of the trust domain.
    return True


def _wall() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _configuration(
    credentials: Credentials, settings: EngineSettings, *, is_client: bool
) -> QuicConfiguration:
    from cryptography import x509

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
        supported_versions=[quic.QuicProtocolVersion.VERSION_1],
        # SNI would name the peer in clear text, and we do not judge names.
        server_name=None,
        quic_logger=None,
        secrets_log_file=None,
    )


# --- power-on self-test ---------------------------------------------------------------------------

_tested = False


def self_test() -> None:
    """Prove, once a process, that this aioquic really authenticates; refuse to start if not.

    In memory: one good handshake must connect; no certificate, a stranger's CA, an expired
    certificate and the wrong identity must each be refused by both roles' check.

    Raises:
        ConfigError: Python runs with -O, or a bad handshake connected, or the good one did not.
    """
    global _tested
    if _tested:
        return
    import sys

    if sys.flags.optimize:
        raise ConfigError("plumtree-quic does not run under python -O: it would lose its checks")
    from plumtree_quic.net import selftest

    selftest.run()
    _tested = True


EVENTS = events
"""aioquic's event classes, for link.py: nothing else imports aioquic."""
