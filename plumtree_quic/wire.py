"""Messages <-> bytes, strict and bounded; msgpack and zstd live here alone. Never any I/O or state
machine: what a message means stands in messages.py, when it is sent is proto's business.

A frame's body is one type byte and what follows from it. Small and rare messages are msgpack
arrays; what is hot (bundles, announcements) is laid out by hand. Every decoder checks type, range
and count of every field and raises `WireError` on anything else; fields that are appended by a
newer minor version are ignored, and stay in `raw` where the thing is signed and passed on.

Layout of what is signed (all lengths big-endian)::

    bundle   u16 header length | header (msgpack array) | u16 signature length | signature | body
    record   msgpack [ signed part (bin), signature (bin) ]
    fact     the same

A bundle's body is, for each message, ``varint topic index | varint length | payload``, packed as
one zstd frame when the header says so. Varints are QUIC's (RFC 9000, section 16).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypedDict

import msgpack
import zstandard

from plumtree_quic.errors import ConfigError, WireError
from plumtree_quic.ids import NODE_ID_BYTES_MAX, ZONE_BYTES_MAX, MemberKey, NodeId, check_text
from plumtree_quic.messages import (
    LANE_OF,
    Ack,
    Announcement,
    BucketHashes,
    Bundle,
    Certificates,
    CertificatesWanted,
    Chunk,
    Compression,
    Coverage,
    CoverageWanted,
    Credit,
    Digest,
    DigestHashes,
    DigestRow,
    Direct,
    DirectKind,
    Fact,
    Facts,
    Goodbye,
    Gossip,
    Graft,
    GraftEntry,
    GraftRefused,
    Hello,
    IHave,
    Lane,
    MemberState,
    Message,
    Ping,
    Prune,
    Range,
    Record,
    Records,
    RecordsWanted,
    RefusedReason,
    Repair,
    Row,
    Rows,
    SignatureAlgorithm,
    Wanted,
    chunk_span,
)

__all__ = [
    "BUNDLE_BYTES_MAX",
    "BUNDLE_MESSAGES_MAX",
    "FACT_BYTES_MAX",
    "FRAME_BYTES_MAX",
    "HELLO_BYTES_MAX",
    "MAJOR",
    "MESSAGE_BYTES_MAX",
    "MINOR",
    "PAYLOAD_BYTES_MAX",
    "RECORDS_FRAME_BYTES_MAX",
    "RECORD_BYTES_MAX",
    "TOPIC_BYTES_MAX",
    "LinkDecoder",
    "LinkEncoder",
    "Signed",
    "build_bundle",
    "build_fact",
    "build_record",
    "check_text",
    "decode",
    "decode_datagram",
    "encode",
    "open_bundle",
    "open_piece",
    "pack_record",
    "parse_bundle",
    "parse_record",
    "varint",
]

MAJOR, MINOR = 1, 0

# Limits of the format; configuration may only narrow them (reliability bar, part E).
PAYLOAD_BYTES_MAX = 65_536
MESSAGE_BYTES_MAX = 64 << 20
BUNDLE_BYTES_MAX = 65_536 + 1_024
BUNDLE_MESSAGES_MAX = 1_024
FRAME_BYTES_MAX = 65_536 + 2_048
HELLO_BYTES_MAX = 16_384
# Two records (its own and `yours`) fit a hello.
RECORD_BYTES_MAX = 8_000
RECORDS_FRAME_BYTES_MAX = 61_440
FACT_BYTES_MAX = 640
TOPIC_BYTES_MAX = 255
TOPICS_MAX = 16
META_BYTES_MAX = 512
ADDRESSES_MAX = 8
ADDRESS_BYTES_MAX = 262
CERTIFICATES_WANTED_MAX = 64
CERTIFICATES_FRAME_BYTES_MAX = 30_720
CHAIN_CERTIFICATES_MAX = 4
CERTIFICATE_BYTES_MAX = 4_096
SIGNATURE_BYTES_MAX = 512
ITEMS_MAX = 4_096
NESTING_MAX = 8
RANGES_MAX = 64
ORIGINS_PER_LINK_MAX = 16_384
CHUNKS_MAX = 4_096
SEQ_MAX = (1 << 62) - 1
EPOCH_MAX = (1 << 48) - 1
INCARNATION_MAX = (1 << 48) - 1
MILLISECONDS_MAX = (1 << 48) - 1
HOP_MAX = 255
# A zstd window never needs to be larger than the largest body; a larger one is a memory bomb.
ZSTD_WINDOW_BYTES_MAX = 1 << 17

# Questions who has a message: their rounds, how long they may take, and members in one answer.
COVERAGE_ROUND_MAX = (1 << 32) - 1
COVERAGE_MS_MAX = 60_000
COVERAGE_KEYS_MAX = 4_096

# What was parsed is kept by its bytes, as values that nobody can change, for every neighbour brings
# the same. Records may have 8,000 bytes and facts 640, so these bound memory as well.
RECORDS_KEPT = 1_024
FACTS_KEPT = 4_096
_ALGORITHM_MAX = max(SignatureAlgorithm)
_STATE_MAX = max(MemberState)

# Type bytes; the high nibble is the lane, datagrams are 0x7_.
_HELLO, _CREDIT, _WANTED, _FACTS, _GOODBYE = 0x01, 0x02, 0x03, 0x04, 0x05
_CERTIFICATES_WANTED, _CERTIFICATES = 0x06, 0x07
_GRAFT, _PRUNE, _REFUSED = 0x11, 0x12, 0x13
_IHAVE = 0x21
_GOSSIP = 0x31
_REPAIR, _DIGEST, _BUCKETS, _ROWS, _RECORDS_WANTED, _RECORDS = 0x41, 0x42, 0x43, 0x44, 0x45, 0x46
_DIGEST_HASHES, _COVERAGE_WANTED, _COVERAGE = 0x14, 0x15, 0x16
_DIRECT = 0x51
_CHUNK = 0x61
_PING, _ACK = 0x71, 0x72


# --- varints ------------------------------------------------------------------------------------


# From here on a number takes two bytes or more.
_TWO_BYTES = 0x40
_SMALL = tuple(bytes((value,)) for value in range(_TWO_BYTES))


def varint(value: int) -> bytes:
    """Encode 0 <= value < 2**62 (RFC 9000, section 16)."""
    if 0 <= value < _TWO_BYTES:
        return _SMALL[value]
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")


def _pull_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, offset behind it); WireError when `data` ends inside it."""
    try:
        first = data[at]
    except IndexError:
        raise WireError("frame ends inside a number")
    if first < _TWO_BYTES:
        return first, at + 1
    size = 1 << (first >> 6)
    end = at + size
    if end > len(data):
        raise WireError("frame ends inside a number")
    return int.from_bytes(data[at:end], "big") & ((1 << (8 * size - 2)) - 1), end


# --- strict msgpack -----------------------------------------------------------------------------


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _refuse_map(_pairs: object) -> object:
    raise WireError("a map where none is allowed")


def _unpack_array(data: bytes, fields_min: int) -> tuple[Any, ...]:
    """Decode exactly one array of at least `fields_min` fields: no maps, no extensions."""
    try:
        value = msgpack.unpackb(
            data,
            use_list=False,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_refuse_map,
            max_array_len=ITEMS_MAX,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=FRAME_BYTES_MAX,
            max_bin_len=FRAME_BYTES_MAX,
        )
    except WireError:
        raise
    except (ValueError, msgpack.UnpackException, RecursionError, OverflowError):
        raise WireError("not a well-formed array")
    # An extension of no bytes comes as ExtType, which is a tuple too.
    if type(value) is not tuple or len(value) < fields_min:
        raise WireError("not an array, or fields are missing")
    for item in value:
        if type(item) is tuple:
            _check_nesting(item, NESTING_MAX - 1)
    return value


def _check_nesting(value: tuple[Any, ...], levels: int) -> None:
    if levels == 0:
        raise WireError(f"nested deeper than {NESTING_MAX}")
    for item in value:
        if type(item) is tuple:
            _check_nesting(item, levels - 1)


def _integer(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise WireError("a number is of the wrong type or out of range")
    return value


def _binary(value: object, low: int, high: int) -> bytes:
    if type(value) is not bytes or not low <= len(value) <= high:
        raise WireError("a byte string is of the wrong type or length")
    return value


def _empty_or_16(value: object) -> bytes:
    if type(value) is not bytes or len(value) not in (0, 16):
        raise WireError("a byte string is of the wrong type or length")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise WireError("a flag is not a boolean")
    return value


def _array(value: object, high: int) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) > high:
        raise WireError("a list is of the wrong type or too long")
    return value


def _text(value: object, bytes_max: int) -> str:
    if type(value) is not str:
        raise WireError("a text is of the wrong type")
    try:
        return check_text(value, bytes_max)
    except ConfigError as error:
        raise WireError(str(error))


def _key(value: object) -> MemberKey:
    return MemberKey(_binary(value, 16, 16))


def _epoch(value: object) -> int:
    return _integer(value, 1, EPOCH_MAX)


def _ranges(value: object, high: int = RANGES_MAX) -> tuple[Range, ...]:
    """Ascending and disjoint, so that no receiver has to normalise what a peer says."""
    ranges: list[Range] = []
    before = 0
    for item in _array(value, high):
        pair = _array(item, 2)
        if len(pair) != 2:
            raise WireError("a range is not a pair")
        first = _integer(pair[0], before + 1, SEQ_MAX)
        last = _integer(pair[1], first, SEQ_MAX)
        ranges.append((first, last))
        before = last
    return tuple(ranges)


def _signature_algorithm(value: object) -> SignatureAlgorithm:
    return SignatureAlgorithm(_integer(value, 0, _ALGORITHM_MAX))


Sign = Callable[[bytes, bytes], bytes]
"""Signs (header, body) and returns the signature; empty when the cluster does not sign."""


class Signed(TypedDict, total=False):
    """The arguments of build_* that say who signs, and how; none of them: nobody does."""

    algorithm: SignatureAlgorithm
    key_id: bytes
    signed_at: int
    sign: Sign


def _no_signature(_header: bytes, _body: bytes) -> bytes:
    return b""


def _pull_signed(
    blob: object, bytes_max: int, fields_min: int
) -> tuple[tuple[Any, ...], bytes, tuple[int, int]]:
    """The fields, the signature, and where in `blob` the signed part is."""
    raw = _binary(blob, 1, bytes_max)
    fields = _unpack_array(raw, 2)
    signed = _binary(fields[0], 1, bytes_max)
    # Wherever it is found first, it is the same bytes.
    at = raw.index(signed)
    span = (at, at + len(signed))
    return _unpack_array(signed, fields_min), _binary(fields[1], 0, SIGNATURE_BYTES_MAX), span


def _chain(value: object, least: int) -> tuple[bytes, ...]:
    chain = tuple(
        _binary(item, 1, CERTIFICATE_BYTES_MAX) for item in _array(value, CHAIN_CERTIFICATES_MAX)
    )
    if len(chain) < least:
        raise WireError("a certificate chain is empty")
    return chain


# --- records and facts --------------------------------------------------------------------------


def build_record(
    *,
    node_id: NodeId,
    epoch: int,
    incarnation: int,
    addresses: tuple[str, ...],
    valid_until: int,
    zone: str = "",
    meta: bytes = b"",
    chain: tuple[bytes, ...] = (),
    algorithm: SignatureAlgorithm = SignatureAlgorithm.NONE,
    key_id: bytes = b"",
    signed_at: int = 0,
    sign: Sign = _no_signature,
) -> Record:
    """Make and encode a record about ourselves; `raw` is what travels and what is passed on.

    Raises:
        ConfigError: others would refuse it; the message says why.
    """
    signed = _pack(
        (
            str(node_id),
            epoch,
            incarnation,
            addresses,
            zone,
            meta,
            valid_until,
            chain,
            int(algorithm),
            key_id,
            signed_at,
        )
    )
    try:
        return parse_record(_pack((signed, sign(signed, b""))))
    except WireError as error:
        raise ConfigError(f"our own record cannot be sent ({error}): shorten chain, meta, zone")


@lru_cache(maxsize=RECORDS_KEPT)
def parse_record(raw: bytes) -> Record:
    """Decode a record; every rule but the signature is checked here. Raises WireError."""
    fields, signature, span = _pull_signed(raw, RECORD_BYTES_MAX, 11)
    text = _text(fields[0], NODE_ID_BYTES_MAX)
    try:
        node_id = NodeId.parse(text)
    except ConfigError:
        raise WireError("a record's subject is not a well-formed identity")
    addresses = tuple(_text(item, ADDRESS_BYTES_MAX) for item in _array(fields[3], ADDRESSES_MAX))
    return Record(
        node_id=node_id,
        epoch=_epoch(fields[1]),
        incarnation=_integer(fields[2], 0, INCARNATION_MAX),
        addresses=addresses,
        zone=_text(fields[4], ZONE_BYTES_MAX),
        meta=_binary(fields[5], 0, META_BYTES_MAX),
        valid_until=_integer(fields[6], 0, MILLISECONDS_MAX),
        chain=_chain(fields[7], 0),
        algorithm=_signature_algorithm(fields[8]),
        key_id=_empty_or_16(fields[9]),
        signed_at=_integer(fields[10], 0, MILLISECONDS_MAX),
        signature=signature,
        raw=raw,
        signed_span=span,
    )


def pack_record(record: Record | None) -> bytes:
    """Return what travels for `record`, or nothing."""
    return record.raw if record is not None else b""


def build_fact(
    *,
    subject: MemberKey,
    epoch: int,
    incarnation: int,
    state: MemberState,
    signer: MemberKey,
    algorithm: SignatureAlgorithm = SignatureAlgorithm.NONE,
    key_id: bytes = b"",
    signed_at: int = 0,
    sign: Sign = _no_signature,
) -> Fact:
    """Make and encode a fact; `raw` is what travels and what is passed on."""
    signed = _pack(
        (subject, epoch, incarnation, int(state), signer, int(algorithm), key_id, signed_at)
    )
    return _parse_fact(_pack((signed, sign(signed, b""))))


def _parse_fact(raw: object) -> Fact:
    return _parse_fact_bytes(_binary(raw, 1, FACT_BYTES_MAX))


@lru_cache(maxsize=FACTS_KEPT)
def _parse_fact_bytes(blob: bytes) -> Fact:
    fields, signature, span = _pull_signed(blob, FACT_BYTES_MAX, 8)
    state = MemberState(_integer(fields[3], 0, _STATE_MAX))
    if state is MemberState.DEAD:
        raise WireError("nobody may declare another dead; each node concludes it")
    return Fact(
        subject=_key(fields[0]),
        epoch=_epoch(fields[1]),
        incarnation=_integer(fields[2], 0, INCARNATION_MAX),
        state=state,
        signer=_key(fields[4]),
        algorithm=_signature_algorithm(fields[5]),
        key_id=_empty_or_16(fields[6]),
        signed_at=_integer(fields[7], 0, MILLISECONDS_MAX),
        signature=signature,
        raw=blob,
        signed_span=span,
    )


def _facts(value: object, high: int) -> tuple[Fact, ...]:
    return tuple(_parse_fact(item) for item in _array(value, high))


# --- bundles ------------------------------------------------------------------------------------

_compressors: dict[int, zstandard.ZstdCompressor] = {}
_decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)


def build_bundle(
    *,
    origin: MemberKey,
    epoch: int,
    first: int,
    messages: Sequence[tuple[str, bytes]],
    zstd_level: int | None = None,
    zstd_bytes_min: int = 0,
    algorithm: SignatureAlgorithm = SignatureAlgorithm.NONE,
    key_id: bytes = b"",
    signed_at: int = 0,
    sign: Sign = _no_signature,
    previous: tuple[int, int] | None = None,
    chunk: tuple[int, int, int] = (0, 1, 0),
) -> Bundle:
    """Encode 1..BUNDLE_MESSAGES_MAX `(topic, payload)` as messages first, first + 1, ...

    chunk: (index, count, bytes of the whole) of a piece of a large message; then there is one
    payload, which is that piece.

    The body is compressed when `zstd_level` is given, the body has at least `zstd_bytes_min`
    bytes, and it becomes smaller. Compress, then sign. The caller bounds sizes and topics.
    """
    topics: dict[str, int] = {}
    parts: list[bytes] = []
    for topic, payload in messages:
        index = topics.setdefault(topic, len(topics))
        parts += (varint(index), varint(len(payload)), payload)
    body = b"".join(parts)
    body_bytes = len(body)
    compression = Compression.NONE
    if zstd_level is not None and body_bytes >= zstd_bytes_min:
        compressor = _compressors.get(zstd_level)
        if compressor is None:
            compressor = _compressors[zstd_level] = zstandard.ZstdCompressor(level=zstd_level)
        packed = compressor.compress(body)
        if len(packed) < body_bytes:
            body, compression = packed, Compression.ZSTD
    names = tuple(topics)
    header = _pack(
        (
            origin,
            epoch,
            first,
            len(messages),
            names,
            *chunk,
            int(compression),
            body_bytes,
            int(algorithm),
            key_id,
            signed_at,
            *(previous or ()),
        )
    )
    signature = sign(header, body)
    raw = b"".join(
        (
            len(header).to_bytes(2, "big"),
            header,
            len(signature).to_bytes(2, "big"),
            signature,
            body,
        )
    )
    return Bundle(
        origin=origin,
        epoch=epoch,
        first=first,
        count=len(messages),
        topics=names,
        chunk_index=chunk[0],
        chunk_count=chunk[1],
        chunk_bytes=chunk[2],
        compression=compression,
        body_bytes=body_bytes,
        algorithm=algorithm,
        key_id=key_id,
        signed_at=signed_at,
        signature=signature,
        body_at=4 + len(header) + len(signature),
        raw=raw,
        previous=previous,
    )


def parse_bundle(raw: bytes) -> Bundle:
    """Decode a bundle's header; the body stays packed. Raises WireError."""
    if len(raw) > BUNDLE_BYTES_MAX + 1_024:
        raise WireError("bundle is too large")
    header_end = 2 + int.from_bytes(raw[:2], "big")
    header = raw[2:header_end]
    signature_end = header_end + 2 + int.from_bytes(raw[header_end : header_end + 2], "big")
    if signature_end > len(raw):
        raise WireError("bundle ends inside its header")
    signature = raw[header_end + 2 : signature_end]
    if len(signature) > SIGNATURE_BYTES_MAX:
        raise WireError("bundle's signature is too long")
    fields = _unpack_array(header, 13)
    first = _integer(fields[2], 1, SEQ_MAX)
    count = _integer(fields[3], 1, BUNDLE_MESSAGES_MAX)
    if first + count - 1 > SEQ_MAX:
        raise WireError("sequence numbers end beyond the last one")
    topics = tuple(_text(item, TOPIC_BYTES_MAX) for item in _array(fields[4], TOPICS_MAX))
    if not topics or len(set(topics)) != len(topics):
        raise WireError("bundle names no topic, or one twice")
    chunk_index = _integer(fields[5], 0, CHUNKS_MAX - 1)
    chunk_count = _integer(fields[6], 1, CHUNKS_MAX)
    if chunk_index >= chunk_count:
        raise WireError("chunk index is not below the chunk count")
    chunk_bytes = _integer(fields[7], 0, MESSAGE_BYTES_MAX)
    body_bytes = _integer(fields[9], 1, BUNDLE_BYTES_MAX)
    if chunk_count > 1:
        if count != 1 or len(topics) != 1:
            raise WireError("a piece of a message holds more than that")
        if first <= chunk_index or first - chunk_index + chunk_count - 1 > SEQ_MAX:
            raise WireError("the pieces of a message have numbers that cannot be")
        if body_bytes != _chunk_body_bytes(chunk_index, chunk_count, chunk_bytes):
            raise WireError("a piece of a message is not as long as it must be")
    elif chunk_bytes:
        raise WireError("a whole message says how long its pieces are together")
    compression = Compression(_integer(fields[8], 0, max(Compression)))
    if compression is Compression.NONE and len(raw) - signature_end != body_bytes:
        raise WireError("bundle's body is not as long as it says")
    return Bundle(
        origin=_key(fields[0]),
        epoch=_epoch(fields[1]),
        first=first,
        count=count,
        topics=topics,
        chunk_index=chunk_index,
        chunk_count=chunk_count,
        chunk_bytes=chunk_bytes,
        compression=compression,
        body_bytes=body_bytes,
        algorithm=_signature_algorithm(fields[10]),
        key_id=_empty_or_16(fields[11]),
        signed_at=_integer(fields[12], 0, MILLISECONDS_MAX),
        signature=signature,
        body_at=signature_end,
        raw=raw,
        previous=_previous(fields[1], fields[13:15]) if len(fields) >= 15 else None,
    )


def _chunk_body_bytes(index: int, count: int, total: int) -> int:
    """How long the body of a piece is; 0 when there is no such piece."""
    span = chunk_span(index, count, total)
    if span is None:
        return 0
    size = span[1] - span[0]
    return 1 + len(varint(size)) + size


def _previous(epoch: int, fields: Sequence[object]) -> tuple[int, int]:
    """Where the epoch before this one ends."""
    return (_integer(fields[0], 1, epoch - 1), _integer(fields[1], 1, SEQ_MAX))


def open_bundle(bundle: Bundle) -> list[tuple[str, bytes]]:
    """Return the ``(topic, payload)`` of each message, in order of their sequence numbers.

    Raises:
        WireError: the body does not match the header, or decompressing it would give more bytes
            than the header says (it is never more than BUNDLE_BYTES_MAX, also while it runs).
    """
    body = bundle.raw[bundle.body_at :]
    if bundle.compression is Compression.ZSTD:
        body = _decompress(body, bundle.body_bytes)
    topics = bundle.topics
    messages: list[tuple[str, bytes]] = []
    at = 0
    for _ in range(bundle.count):
        index, at = _pull_varint(body, at)
        size, at = _pull_varint(body, at)
        if index >= len(topics) or at + size > len(body) or size > PAYLOAD_BYTES_MAX:
            raise WireError("a message in the bundle does not fit")
        messages.append((topics[index], body[at : at + size]))
        at += size
    if at != len(body):
        raise WireError("bytes are left over behind the last message of a bundle")
    return messages


def open_piece(bundle: Bundle) -> bytes | memoryview:
    """Return what a bundle holds of a large message. Raises WireError, as `open_bundle`."""
    if bundle.compression is not Compression.NONE:
        return open_bundle(bundle)[0][1]
    # How long the body is, its header says and was checked: what stands before the payload is left.
    span = chunk_span(bundle.chunk_index, bundle.chunk_count, bundle.chunk_bytes)
    assert span is not None
    size = span[1] - span[0]
    body = memoryview(bundle.raw)[bundle.body_at :]
    if body[:-size] != varint(0) + varint(size):
        raise WireError("a piece of a message does not fit")
    return body[-size:]


def _decompress(packed: bytes, size: int) -> bytes:
    # The frame header is read first: python-zstandard allocates what it states and ignores
    # max_output_size when it does (reliability bar, part A2).
    try:
        stated = zstandard.get_frame_parameters(packed)
        if stated.content_size != size or stated.window_size > ZSTD_WINDOW_BYTES_MAX:
            raise WireError("a zstd frame states another size than the bundle's header")
        body = _decompressor.decompress(packed, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError:
        raise WireError("a bundle's body does not decompress to the size that its header states")
    if len(body) != size:
        raise WireError("a zstd frame holds another size than it states")
    return body


# --- messages without per-link state ------------------------------------------------------------


def encode(message: Message) -> bytes:
    """Return the frame body (no length prefix) of any message but IHave and Digest.

    Those two name origins by a per-link index; `LinkEncoder` makes all frames of a link.
    """
    match message:
        case Gossip(hop, bundle):
            return bytes((_GOSSIP, min(hop, HOP_MAX))) + bundle.raw
        case Chunk(hop, bundle):
            return bytes((_CHUNK, min(hop, HOP_MAX))) + bundle.raw
        case Repair(hop, bundle):
            return bytes((_REPAIR, min(hop, HOP_MAX))) + bundle.raw
        case Credit(consumed):
            return bytes((_CREDIT,)) + b"".join(
                bytes((lane,)) + varint(count) for lane, count in consumed
            )
        case Ping(nonce, facts):
            return bytes((_PING,)) + nonce + _pack(tuple(fact.raw for fact in facts))
        case Ack(nonce, facts):
            return bytes((_ACK,)) + nonce + _pack(tuple(fact.raw for fact in facts))
        case Facts(facts):
            return bytes((_FACTS,)) + _pack(tuple(fact.raw for fact in facts))
        case Prune(origins):
            return bytes((_PRUNE,)) + b"".join(origins)
        case Graft(entries):
            rows = tuple((e.origin, e.epoch, e.ranges, e.promote) for e in entries)
            return bytes((_GRAFT,)) + _pack(rows)
        case GraftRefused(origin, epoch, ranges, reason):
            return bytes((_REFUSED,)) + _pack((origin, epoch, ranges, int(reason)))
        case BucketHashes(hashes):
            return bytes((_BUCKETS,)) + hashes
        case DigestHashes(hashes, number, answer, joins):
            return bytes((_DIGEST_HASHES, answer | joins << 1 | number << 3)) + hashes
        case CoverageWanted(origin, epoch, seq, number, wide, within_s, last):
            within_ms = min(max(int(1000 * within_s), 1), COVERAGE_MS_MAX)
            fields = (origin, epoch, seq, number, wide, within_ms, last - seq)
            return bytes((_COVERAGE_WANTED,)) + _pack(fields)
        case Coverage(origin, epoch, seq, number, keys, last):
            return bytes((_COVERAGE,)) + _pack((origin, epoch, seq, number, keys, last))
        case Rows(buckets, rows, answer):
            lines = tuple((r.key, r.epoch, r.incarnation, int(r.state)) for r in rows)
            return bytes((_ROWS,)) + _pack((bytes(buckets), lines, answer))
        case RecordsWanted(keys):
            return bytes((_RECORDS_WANTED,)) + b"".join(keys)
        case Records(records, facts, addresses):
            raws = tuple(record.raw for record in records)
            return bytes((_RECORDS,)) + _pack((raws, tuple(f.raw for f in facts), addresses))
        case Direct(kind, seq, payload):
            return bytes((_DIRECT, kind)) + varint(seq) + payload
        case Wanted(wanted):
            return bytes((_WANTED, wanted))
        case Goodbye(code, reason):
            return bytes((_GOODBYE,)) + _pack((code, reason))
        case CertificatesWanted(key_ids):
            return bytes((_CERTIFICATES_WANTED,)) + b"".join(key_ids)
        case Certificates(chains):
            return bytes((_CERTIFICATES,)) + _pack(chains)
        case Hello():
            return bytes((_HELLO,)) + _pack(
                (
                    message.major,
                    message.minor,
                    message.features,
                    message.cluster,
                    message.record.raw,
                    message.datagram_bytes_max,
                    message.link_id,
                    message.wanted,
                    message.replaces,
                    pack_record(message.yours),
                )
            )
        case _:
            raise AssertionError(f"{type(message).__name__} needs a LinkEncoder")


def decode(lane: Lane, body: bytes) -> Message:
    """Decode the body of a frame that came on `lane`. Raises WireError, and nothing else."""
    if not body:
        raise WireError("empty frame")
    decoder = _DECODERS.get(body[0])
    if decoder is None:
        raise WireError(f"unknown message type 0x{body[0]:02x}")
    message = decoder(body)
    if LANE_OF.get(type(message)) is not lane:
        raise WireError(f"{type(message).__name__} does not travel on the {lane.name} lane")
    return message


def decode_datagram(body: bytes) -> Ping | Ack | None:
    """Decode a DATAGRAM payload; None for a type that a newer minor version may have added."""
    if not body or body[0] not in (_PING, _ACK):
        return None
    nonce = _binary(body[1:9], 8, 8)
    facts = _facts(_unpack_array(body[9:], 0), 32)
    return Ping(nonce, facts) if body[0] == _PING else Ack(nonce, facts)


def _decode_gossip(body: bytes) -> Gossip:
    if len(body) < 2:
        raise WireError("bundle frame without a bundle")
    bundle = parse_bundle(body[2:])
    if bundle.chunk_count > 1:
        raise WireError("a piece of a large message is pushed like a small one")
    return Gossip(body[1], bundle)


def _decode_chunk(body: bytes) -> Chunk:
    if len(body) < 2:
        raise WireError("bundle frame without a bundle")
    bundle = parse_bundle(body[2:])
    if bundle.chunk_count == 1:
        raise WireError("what is no piece of a large message is pushed like one")
    return Chunk(body[1], bundle)


def _decode_repair(body: bytes) -> Repair:
    if len(body) < 2:
        raise WireError("bundle frame without a bundle")
    return Repair(body[1], parse_bundle(body[2:]))


def _decode_credit(body: bytes) -> Credit:
    consumed: list[tuple[Lane, int]] = []
    at = 1
    while at < len(body):
        if body[at] > max(Lane) or len(consumed) > max(Lane):
            raise WireError("credit for a lane that does not exist")
        lane = Lane(body[at])
        count, at = _pull_varint(body, at + 1)
        consumed.append((lane, count))
    return Credit(tuple(consumed))


def _decode_wanted(body: bytes) -> Wanted:
    if len(body) < 2 or body[1] > 1:
        raise WireError("wanted is neither 0 nor 1")
    return Wanted(body[1] == 1)


def _decode_facts(body: bytes) -> Facts:
    return Facts(_facts(_unpack_array(body[1:], 0), ITEMS_MAX))


def _decode_goodbye(body: bytes) -> Goodbye:
    fields = _unpack_array(body[1:], 2)
    return Goodbye(_integer(fields[0], 0, 0xFFFF), _text(fields[1], 128))


def _decode_certificates_wanted(body: bytes) -> CertificatesWanted:
    if len(body) % 16 != 1 or not 17 <= len(body) <= 1 + 16 * CERTIFICATES_WANTED_MAX:
        raise WireError("wanted certificates are not a list of key ids")
    return CertificatesWanted(tuple(body[at : at + 16] for at in range(1, len(body), 16)))


def _decode_certificates(body: bytes) -> Certificates:
    if len(body) > CERTIFICATES_FRAME_BYTES_MAX:
        raise WireError("a frame of certificates is too long")
    return Certificates(tuple(_chain(item, 1) for item in _unpack_array(body[1:], 0)))


def _decode_graft(body: bytes) -> Graft:
    entries: list[GraftEntry] = []
    ranges_left = RANGES_MAX
    for item in _unpack_array(body[1:], 1):
        fields = _array(item, 16)
        if len(fields) < 4:
            raise WireError("a graft entry lacks fields")
        ranges = _ranges(fields[2], ranges_left)
        ranges_left -= len(ranges)
        entries.append(GraftEntry(_key(fields[0]), _epoch(fields[1]), ranges, _flag(fields[3])))
        if len(entries) > RANGES_MAX:
            raise WireError("a graft names too many origins")
    return Graft(tuple(entries))


def _decode_prune(body: bytes) -> Prune:
    if len(body) % 16 != 1 or not 17 <= len(body) <= 1 + 16 * ITEMS_MAX:
        raise WireError("a prune is not a list of member keys")
    return Prune(tuple(MemberKey(body[at : at + 16]) for at in range(1, len(body), 16)))


def _decode_refused(body: bytes) -> GraftRefused:
    fields = _unpack_array(body[1:], 4)
    reason = RefusedReason(_integer(fields[3], 1, max(RefusedReason)))
    return GraftRefused(_key(fields[0]), _epoch(fields[1]), _ranges(fields[2]), reason)


def _decode_buckets(body: bytes) -> BucketHashes:
    return BucketHashes(_binary(body[1:], 2_048, 2_048))


def _decode_digest_hashes(body: bytes) -> DigestHashes:
    hashes = _binary(body[2:], 2_048, 2_048)
    return DigestHashes(hashes, body[1] >> 3, bool(body[1] & 1), bool(body[1] & 2))


def _decode_coverage_wanted(body: bytes) -> CoverageWanted:
    fields = _unpack_array(body[1:], 7)
    seq = _integer(fields[2], 1, SEQ_MAX)
    return CoverageWanted(
        _key(fields[0]),
        _epoch(fields[1]),
        seq,
        _integer(fields[3], 1, COVERAGE_ROUND_MAX),
        _flag(fields[4]),
        _integer(fields[5], 1, COVERAGE_MS_MAX) / 1000,
        seq + _integer(fields[6], 0, min(CHUNKS_MAX - 1, SEQ_MAX - seq)),
    )


def _decode_coverage(body: bytes) -> Coverage:
    fields = _unpack_array(body[1:], 6)
    keys = _binary(fields[4], 0, 8 * COVERAGE_KEYS_MAX)
    if len(keys) % 8:
        raise WireError("a key in a coverage is cut short")
    return Coverage(
        _key(fields[0]),
        _epoch(fields[1]),
        _integer(fields[2], 1, SEQ_MAX),
        _integer(fields[3], 1, COVERAGE_ROUND_MAX),
        keys,
        _flag(fields[5]),
    )


def _decode_rows(body: bytes) -> Rows:
    fields = _unpack_array(body[1:], 3)
    rows: list[Row] = []
    for item in _array(fields[1], ITEMS_MAX):
        line = _array(item, 16)
        if len(line) < 4:
            raise WireError("a member row lacks fields")
        state = MemberState(_integer(line[3], 0, _STATE_MAX))
        incarnation = _integer(line[2], 0, INCARNATION_MAX)
        rows.append(Row(_key(line[0]), _epoch(line[1]), incarnation, state))
    return Rows(tuple(_binary(fields[0], 0, 256)), tuple(rows), _flag(fields[2]))


def _decode_records_wanted(body: bytes) -> RecordsWanted:
    if len(body) % 16 != 1 or not 17 <= len(body) <= 1 + 16 * ITEMS_MAX:
        raise WireError("wanted records are not a list of member keys")
    return RecordsWanted(tuple(MemberKey(body[at : at + 16]) for at in range(1, len(body), 16)))


def _decode_records(body: bytes) -> Records:
    if len(body) > RECORDS_FRAME_BYTES_MAX:
        raise WireError("a frame of records is too long")
    fields = _unpack_array(body[1:], 3)
    records = tuple(
        parse_record(_binary(item, 1, RECORD_BYTES_MAX)) for item in _array(fields[0], 256)
    )
    addresses = tuple(_text(item, ADDRESS_BYTES_MAX) for item in _array(fields[2], 16))
    return Records(records, _facts(fields[1], ITEMS_MAX), addresses)


_DIRECT_KIND_MAX = max(DirectKind)


def _decode_direct(body: bytes) -> Direct:
    if len(body) < 3 or body[1] > _DIRECT_KIND_MAX:
        raise WireError("not a direct message")
    seq, at = _pull_varint(body, 2)
    if len(body) - at > PAYLOAD_BYTES_MAX:
        raise WireError("a direct message is too large")
    return Direct(DirectKind(body[1]), seq, body[at:])


def _decode_hello(body: bytes) -> Hello:
    if len(body) > HELLO_BYTES_MAX:
        raise WireError("hello is too large")
    fields = _unpack_array(body[1:], 10)
    yours = _binary(fields[9], 0, RECORD_BYTES_MAX)
    return Hello(
        major=_integer(fields[0], 0, 255),
        minor=_integer(fields[1], 0, 255),
        features=_integer(fields[2], 0, (1 << 62) - 1),
        cluster=_text(fields[3], 64),
        record=parse_record(_binary(fields[4], 1, RECORD_BYTES_MAX)),
        datagram_bytes_max=_integer(fields[5], 1_200, 65_527),
        link_id=_binary(fields[6], 16, 16),
        wanted=_flag(fields[7]),
        replaces=_empty_or_16(fields[8]),
        yours=parse_record(yours) if yours else None,
    )


_DECODERS: dict[int, Callable[[bytes], Message]] = {
    _HELLO: _decode_hello,
    _CREDIT: _decode_credit,
    _WANTED: _decode_wanted,
    _FACTS: _decode_facts,
    _GOODBYE: _decode_goodbye,
    _CERTIFICATES_WANTED: _decode_certificates_wanted,
    _CERTIFICATES: _decode_certificates,
    _GRAFT: _decode_graft,
    _PRUNE: _decode_prune,
    _REFUSED: _decode_refused,
    _GOSSIP: _decode_gossip,
    _REPAIR: _decode_repair,
    _BUCKETS: _decode_buckets,
    _DIGEST_HASHES: _decode_digest_hashes,
    _COVERAGE_WANTED: _decode_coverage_wanted,
    _COVERAGE: _decode_coverage,
    _ROWS: _decode_rows,
    _RECORDS_WANTED: _decode_records_wanted,
    _RECORDS: _decode_records,
    _DIRECT: _decode_direct,
    _CHUNK: _decode_chunk,
}


# --- a link's codec: origins are named once, then by index ---------------------------------------
#
# On the ihave and sync lanes an origin is a number: 0 defines the next index (16-byte key and
# epoch follow), 1 forgets all, n + 2 is index n. Lanes are in order, so a definition always
# arrives before its use; each lane has a table of its own because lanes are not ordered among
# themselves.

_DEFINE, _FORGET, _FIRST_INDEX = 0, 1, 2


class LinkEncoder:
    """Encodes the frames that one side writes on one link. Make a new one for each link."""

    def __init__(self) -> None:
        self._ihave: dict[tuple[MemberKey, int], int] = {}
        self._sync: dict[tuple[MemberKey, int], int] = {}

    def encode(self, message: Message) -> tuple[bytes, ...]:
        """Return the frame's body as parts to be written one behind the other, uncopied."""
        match message:
            case IHave(announcements):
                out = bytearray((_IHAVE,))
                for entry in announcements:
                    _push_origin(out, self._ihave, entry.origin, entry.epoch)
                    out += varint(entry.first)
                    out += varint(entry.last - entry.first)
                    out.append(min(entry.hop, HOP_MAX))
                return (bytes(out),)
            case Gossip(hop, bundle):
                return (bytes((_GOSSIP, min(hop, HOP_MAX))), bundle.raw)
            case Chunk(hop, bundle):
                return (bytes((_CHUNK, min(hop, HOP_MAX))), bundle.raw)
            case Repair(hop, bundle):
                return (bytes((_REPAIR, min(hop, HOP_MAX))), bundle.raw)
            case Digest(rows):
                flags = message.last | message.past << 2
                out = bytearray((_DIGEST, flags | message.round << 3))
                for row in rows:
                    _push_origin(out, self._sync, row.origin, row.epoch)
                    out += varint(len(row.held))
                    before = 0
                    for first, last in row.held:
                        out += varint(first - before) + varint(last - first)
                        before = last
                return (bytes(out),)
            case _:
                return (encode(message),)


def _push_origin(
    out: bytearray, table: dict[tuple[MemberKey, int], int], origin: MemberKey, epoch: int
) -> None:
    index = table.get((origin, epoch))
    if index is not None:
        out += varint(index + _FIRST_INDEX)
        return
    if len(table) >= ORIGINS_PER_LINK_MAX:
        table.clear()
        out.append(_FORGET)
    table[(origin, epoch)] = len(table)
    out.append(_DEFINE)
    out += origin + epoch.to_bytes(6, "big")


class LinkDecoder:
    """Decodes the frames that the other side wrote on one link. Make a new one for each link."""

    def __init__(self) -> None:
        self._ihave: list[tuple[MemberKey, int]] = []
        self._sync: list[tuple[MemberKey, int]] = []

    def decode(self, lane: Lane, body: bytes) -> Message:
        """Decode the body of a frame that came on `lane`. Raises WireError, and nothing else."""
        if body:
            if body[0] == _IHAVE and lane is Lane.IHAVE:
                return self._decode_ihave(body)
            if body[0] == _DIGEST and lane is Lane.SYNC:
                return self._decode_digest(body)
        return decode(lane, body)

    def _decode_ihave(self, body: bytes) -> IHave:
        announcements: list[Announcement] = []
        at, size, table = 1, len(body), self._ihave
        while at < size:
            origin, epoch, at = _pull_origin(body, at, table)
            first, at = _pull_varint(body, at)
            if at < size and body[at] == 0:
                # One bundle, as most announcements.
                extra, at = 0, at + 1
            else:
                extra, at = _pull_varint(body, at)
            if first < 1 or first + extra > SEQ_MAX or at >= size:
                raise WireError("an announcement is out of range or cut off")
            announcements.append(Announcement(origin, epoch, first, first + extra, body[at]))
            at += 1
            if len(announcements) > ITEMS_MAX:
                raise WireError("too many announcements in one frame")
        return IHave(tuple(announcements))

    def _decode_digest(self, body: bytes) -> Digest:
        if len(body) < 2:
            raise WireError("a digest ends before its flags")
        flags = body[1]
        if flags & 2:
            raise WireError("a digest has an unknown flag")
        rows: list[DigestRow] = []
        at = 2
        while at < len(body):
            origin, epoch, at = _pull_origin(body, at, self._sync)
            count, at = _pull_varint(body, at)
            if count > ITEMS_MAX or len(rows) >= ITEMS_MAX:
                raise WireError("too many rows or ranges in a digest")
            held: list[Range] = []
            before = 0
            for _ in range(count):
                skip, at = _pull_varint(body, at)
                extra, at = _pull_varint(body, at)
                first = before + skip
                before = first + extra
                if skip < 1 or before > SEQ_MAX:
                    raise WireError("a digest's ranges do not ascend")
                held.append((first, before))
            rows.append(DigestRow(origin, epoch, tuple(held)))
        return Digest(tuple(rows), bool(flags & 1), bool(flags & 4), flags >> 3)


def _pull_origin(
    body: bytes, at: int, table: list[tuple[MemberKey, int]]
) -> tuple[MemberKey, int, int]:
    number = body[at] if at < len(body) else _TWO_BYTES
    if number < _TWO_BYTES:
        # Said here because nearly all are one byte long, and there are more of them than frames.
        at += 1
    else:
        number, at = _pull_varint(body, at)
    if number == _FORGET:
        table.clear()
        number, at = _pull_varint(body, at)
    if number >= _FIRST_INDEX:
        try:
            origin, epoch = table[number - _FIRST_INDEX]
        except IndexError:
            raise WireError("an origin's index was never defined")
        return origin, epoch, at
    if number != _DEFINE or at + 22 > len(body) or len(table) >= ORIGINS_PER_LINK_MAX:
        raise WireError("an origin is not defined as it should be")
    origin = MemberKey(body[at : at + 16])
    epoch = _epoch(int.from_bytes(body[at + 16 : at + 22], "big"))
    table.append((origin, epoch))
    return origin, epoch, at + 22
