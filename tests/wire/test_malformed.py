"""Part D.2 of the reliability bar, as far as the codec goes: nothing but WireError, no bombs."""

import math
import tracemalloc

import attrs
import msgpack
import pytest
import zstandard

from plumtree_quic import wire
from plumtree_quic.errors import ConfigError, WireError
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import (
    LANE_OF,
    Chunk,
    Compression,
    Credit,
    DirectKind,
    Gossip,
    Hello,
    IHave,
    Lane,
    MemberState,
    Prune,
    Repair,
)
from tests.rigs.fuzz import fuzz
from tests.rigs.wire_examples import (
    ALIVE,
    BUNDLE,
    DATAGRAMS,
    EPOCH,
    KEY_A,
    KEY_B,
    RECORD,
    STREAMS,
    frames,
    golden,
    lane_of,
    read,
)

GOLDEN = golden()
PACKED = {  # type byte -> fields of one valid message that is a msgpack array
    0x01: (1, 0, 0, "default", RECORD.raw, 1_472, b"L" * 16, True, b"", b""),
    0x05: (0, ""),
    0x13: (KEY_A, EPOCH, ((1, 2),), 1),
    0x15: (KEY_A, EPOCH, 1, 1, False, 1_000, 0),
    0x16: (KEY_A, EPOCH, 1, 1, b"8 bytes.", True),
    0x44: (b"\x01", ((KEY_A, EPOCH, 1, 0),), True),
    0x46: ((RECORD.raw,), (ALIVE.raw,), ("10.0.0.1:1",)),
}
LISTS = {  # type byte -> one item of a message that is a list of items
    0x04: ALIVE.raw,
    0x07: (b"leaf", b"intermediate"),
    0x11: (KEY_A, EPOCH, ((1, 2),), True),
}


def lane_for(kind):
    return Lane(kind >> 4)


def decode(kind, value):
    body = value if isinstance(value, bytes) else msgpack.packb(value, use_bin_type=True)
    return wire.decode(lane_for(kind), bytes((kind,)) + body)


def refused(kind, value):
    with pytest.raises(WireError):
        decode(kind, value)


def peak_bytes(work):
    """Bytes allocated at the peak of `work`, which must end in a WireError."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def signed_blob(fields, signature=b"", more=()):
    return msgpack.packb(
        (msgpack.packb(fields, use_bin_type=True), signature, *more), use_bin_type=True
    )


RECORD_FIELDS = ("spiffe://d.test/n", EPOCH, 0, ("a:1",), "z", b"m", 9, (b"c",), 0, b"", 0)
FACT_FIELDS = (KEY_A, EPOCH, 0, 1, KEY_B, 0, b"", 0)
BUNDLE_FIELDS = (KEY_A, EPOCH, 1, 1, ("t",), 0, 1, 0, 0, 4, 0, b"", 0)


def bundle(fields=BUNDLE_FIELDS, body=b"\x00\x02hi", signature=b""):
    header = fields if isinstance(fields, bytes) else msgpack.packb(fields, use_bin_type=True)
    return b"".join(
        (len(header).to_bytes(2, "big"), header, len(signature).to_bytes(2, "big"), signature, body)
    )


def with_field(fields, index, value):
    return (*fields[:index], value, *fields[index + 1 :])


def test_the_hand_made_parts_of_these_tests_are_valid():
    assert wire.open_bundle(wire.parse_bundle(bundle())) == [("t", b"hi")]
    assert wire.parse_record(signed_blob(RECORD_FIELDS)).zone == "z"
    for kind, fields in PACKED.items():
        decode(kind, fields)
    for kind, item in LISTS.items():
        decode(kind, (item,))
    assert decode(0x04, (signed_blob(FACT_FIELDS),)).facts[0].signer == KEY_B


# --- F-01, F-02 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_f01_hostile_frames_raise_nothing_but_wire_errors(seed):
    outcomes = fuzz(seed, 10_000)
    assert outcomes["refused"] > 1_000
    # The damage is small enough that a good part still passes the first checks.
    assert len(outcomes) > 15


@pytest.mark.parametrize("name", [*STREAMS, *DATAGRAMS])
def test_f02_a_frame_cut_at_any_byte_delivers_nothing(name):
    whole = STREAMS.get(name) or DATAGRAMS[name]
    for body, message in zip(GOLDEN[name], whole, strict=True):
        if body is not GOLDEN[name][0] and body[0] in (0x21, 0x42):
            continue  # uses indexes that the frames before it defined
        for cut in range(len(body)):
            try:
                (got,) = read([body[:cut]]) if cut else (wire.decode(Lane.CONTROL, b""),)
                if isinstance(got, Gossip | Chunk | Repair):
                    wire.open_bundle(got.bundle)
            except WireError:
                continue
            # A list without count or a payload without length may end earlier, never differ.
            assert type(got) is type(message)
            assert got != message
            assert body[0] in (0x02, 0x06, 0x12, 0x21, 0x42, 0x45, 0x51)


# --- F-04 .. F-07 -------------------------------------------------------------------------------

LENGTH_BOMBS = {
    "array32": b"\xdd\xff\xff\xff\xff",
    "array32 2^31": b"\xdd\x80\x00\x00\x00",
    "array32 cap+1": b"\xdd\x00\x00\x10\x01\x00\x00\x00\x00",
    "array16": b"\xdc\xff\xff",
    "map32": b"\xdf\xff\xff\xff\xff",
    "map of nothing": b"\x80",
    "bin32": b"\x91\xc6\xff\xff\xff\xff",
    "str32": b"\x91\xdb\xff\xff\xff\xff",
    "ext32": b"\x91\xc9\xff\xff\xff\xff\x01",
    "ext of nothing": b"\xc7\x00\x05",
    "timestamp": b"\x91\xd6\xff\x00\x00\x00\x00",
}


@pytest.mark.parametrize("bomb", LENGTH_BOMBS.values(), ids=LENGTH_BOMBS)
@pytest.mark.parametrize("kind", [*PACKED, *LISTS], ids=hex)
def test_f04_f05_a_declared_length_that_is_not_there_costs_nothing(kind, bomb):
    assert peak_bytes(lambda: decode(kind, bomb)) < 256 * 1024


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff",
        b"\xff\xff" + bytes(9),
        bundle()[:-6] + b"\xff\xff" + b"\x00\x02hi",
        bundle(signature=bytes(wire.SIGNATURE_BYTES_MAX + 1)),
        bytes(wire.BUNDLE_BYTES_MAX + 1_025),
        b"",
        b"\x00",
    ],
    ids=["header", "header and 9 bytes", "signature", "long signature", "all", "empty", "one"],
)
def test_f04_a_bundle_with_a_wrong_length_is_refused(raw):
    with pytest.raises(WireError):
        wire.parse_bundle(raw)
    for kind in (0x31, 0x41, 0x61):
        refused(kind, b"\x01" + raw)


@pytest.mark.parametrize(
    "body",
    [
        b"\x00\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x80\x01\x00\x01" + bytes(8),
        b"\x00\x05hi",
        b"\x01\x02hi",
        b"\x00\x02hi!",
        b"\x00\x02h",
        b"\x00",
        b"\x40",
    ],
    ids=["2^62-1", "64 KiB + 1", "5 of 2", "topic", "left over", "short", "no length", "half"],
)
def test_f04_a_body_that_does_not_add_up_is_refused(body):
    parsed = wire.parse_bundle(bundle(with_field(BUNDLE_FIELDS, 9, len(body)), body))
    assert peak_bytes(lambda: wire.open_bundle(parsed)) < 4096


@pytest.mark.parametrize("count", [1 << 31, (1 << 62) - 1, wire.ITEMS_MAX + 1])
def test_f05_a_digest_of_too_many_ranges_is_refused_at_its_count(count):
    body = b"\x42\x01\x00" + KEY_A + EPOCH.to_bytes(6, "big") + wire.varint(count) + b"\x01\x00" * 9
    assert peak_bytes(lambda: wire.LinkDecoder().decode(Lane.SYNC, body)) < 16_384


def test_a_digest_with_a_flag_that_has_no_meaning_is_refused():
    with pytest.raises(WireError, match="flag"):
        wire.LinkDecoder().decode(Lane.SYNC, b"\x42\x02")


def test_f05_more_items_than_a_frame_may_hold_are_refused():
    over = wire.ITEMS_MAX + 1
    origin = b"\x00" + KEY_A + EPOCH.to_bytes(6, "big")
    decoder = wire.LinkDecoder()
    with pytest.raises(WireError, match="too many"):
        decoder.decode(Lane.IHAVE, b"\x21" + origin + b"\x01\x00\x00" + b"\x02\x01\x00\x00" * over)
    with pytest.raises(WireError, match="too many"):
        decoder.decode(Lane.SYNC, b"\x42\x01" + origin + b"\x00" + b"\x02\x00" * over)
    for kind in (0x12, 0x45):
        refused(kind, KEY_A * over)
        refused(kind, b"")
        refused(kind, KEY_A[:-1])
    refused(0x11, ((KEY_A, EPOCH, (), False),) * (wire.RANGES_MAX + 1))
    refused(0x11, ((KEY_A, EPOCH, tuple((n, n) for n in range(1, 34)), False),) * 2)
    refused(0x13, (KEY_A, EPOCH, tuple((n, n) for n in range(1, 66)), 1))
    refused(0x44, (b"", ((KEY_A, EPOCH, 1, 0),) * over, True))
    refused(0x44, (bytes(257), (), True))
    refused(0x46, ((RECORD.raw,) * 257, (), ()))
    refused(0x46, ((), (), ("a:1",) * 17))
    refused(0x02, b"\x00\x00" * 8)
    refused(0x43, bytes(2_047))
    refused(0x43, bytes(2_049))
    for keys in (b"7 bytes", b"9 bytes. ", bytes(8 * wire.COVERAGE_KEYS_MAX + 8)):
        refused(0x16, (KEY_A, EPOCH, 1, 1, keys, True))
    refused(0x14, b"")
    refused(0x14, bytes(2_048))
    refused(0x14, bytes(2_050))
    with pytest.raises(WireError):
        wire.decode_datagram(b"\x71" + bytes(8) + msgpack.packb((ALIVE.raw,) * 33))
    for index, value in ((3, ("a:1",) * 9), (7, (b"c",) * 5)):
        with pytest.raises(WireError):
            wire.parse_record(signed_blob(with_field(RECORD_FIELDS, index, value)))
    topics = tuple(str(n) for n in range(17))
    with pytest.raises(WireError):
        wire.parse_bundle(bundle(with_field(BUNDLE_FIELDS, 4, topics)))


@pytest.mark.parametrize(
    "item",
    [b"\x90", b"\x91\x00", b"\xa2ab", b"\xc4\x01a", b"\xcb" + bytes(8), b"\xcf" + b"\xff" * 8],
    ids=["empty array", "array", "text", "bytes", "float", "integer"],
)
@pytest.mark.parametrize("kind", [*PACKED, *LISTS], ids=hex)
def test_f06_a_frame_of_the_smallest_items_never_becomes_a_mountain_of_objects(kind, item):
    # As many as fit a frame, in arrays of as many as are allowed.
    count = wire.FRAME_BYTES_MAX // len(item)
    arrays, rest = divmod(count, wire.ITEMS_MAX)
    inner = b"\xdc\x0f\xff" + item * (wire.ITEMS_MAX - 1)
    body = bytes((0x90 + min(arrays, 15),)) + inner * min(arrays, 15)
    if arrays == 0:
        body = b"\xdc" + rest.to_bytes(2, "big") + item * rest
    # The bar's 4 x 1 MiB, though a frame is 16 times smaller.
    assert peak_bytes(lambda: decode(kind, body)) < 4 * 1024 * 1024


def nested(levels):
    value = ()
    for _ in range(levels - 1):
        value = (value,)
    return value


@pytest.mark.parametrize("levels", [8, 9, 100])
@pytest.mark.parametrize("kind", PACKED, ids=hex)
def test_f07_nesting_deeper_than_8_is_refused_where_a_newer_minor_appends(kind, levels):
    # The message itself is one level.
    fields = (*PACKED[kind], nested(levels))
    if levels < wire.NESTING_MAX:
        decode(kind, fields)
    else:
        refused(kind, fields)
    decode(kind, (*PACKED[kind], nested(wire.NESTING_MAX - 1)))


@pytest.mark.parametrize("levels", [9, 512, 60_000])
@pytest.mark.parametrize("kind", [*PACKED, *LISTS], ids=hex)
def test_f07_nesting_is_refused_before_it_becomes_recursion(kind, levels):
    refused(kind, b"\x91" * levels + b"\x00")
    refused(kind, b"\x92\x00" + b"\x91" * levels + b"\x00")


def test_f07_nesting_inside_an_item_is_refused_too():
    refused(0x11, ((*LISTS[0x11], nested(7)),))
    decode(0x11, ((*LISTS[0x11], nested(6)),))
    with pytest.raises(WireError):
        wire.parse_record(signed_blob((*RECORD_FIELDS, nested(8))))
    with pytest.raises(WireError):
        wire.parse_bundle(bundle((*BUNDLE_FIELDS, nested(8))))


# --- F-08: zstd, written by hand (RFC 8878) -------------------------------------------------------

BLOCK = 128 * 1024


def run_of_zeros(size, *, last):
    """An RLE block: 4 bytes that stand for up to 128 KiB."""
    return ((size << 3) | (1 << 1) | last).to_bytes(3, "little") + b"\x00"


def raw_block(data, *, last=True):
    return ((len(data) << 3) | last).to_bytes(3, "little") + data


def zstd_frame(blocks, *, states=None, window_log=None, checksum=b"", dictionary=b""):
    """A frame with the header fields that are given."""
    descriptor = 0
    if states is not None:
        descriptor |= 3 << 6
    if window_log is None:
        descriptor |= 1 << 5
    if checksum:
        descriptor |= 1 << 2
    if dictionary:
        descriptor |= 3
    out = b"\x28\xb5\x2f\xfd" + bytes((descriptor,))
    if window_log is not None:
        out += bytes(((window_log - 10) << 3,))
    out += dictionary
    if states is not None:
        out += states.to_bytes(8, "little")
    return out + b"".join(blocks) + checksum


def zeros(size):
    whole, rest = divmod(size, BLOCK)
    blocks = [run_of_zeros(BLOCK, last=not rest and at == whole - 1) for at in range(whole)]
    return [*blocks, run_of_zeros(rest, last=True)] if rest else blocks


HALF_GIB = 512 << 20
GOOD = zstd_frame([raw_block(b"\x00\x02hi")], states=4)
BOMBS = {
    "512 MiB, size stated": (zstd_frame(zeros(HALF_GIB), states=HALF_GIB), 4),
    "512 MiB, size not stated": (zstd_frame(zeros(HALF_GIB), window_log=17), 4),
    "512 MiB, small size stated": (zstd_frame(zeros(HALF_GIB), states=4), 4),
    "512 MiB, the cap stated": (
        zstd_frame(zeros(HALF_GIB), states=wire.BUNDLE_BYTES_MAX),
        wire.BUNDLE_BYTES_MAX,
    ),
    "less than stated": (zstd_frame([raw_block(b"\x00\x02hi")], states=60_000), 60_000),
    "window of 2 GiB": (zstd_frame([raw_block(b"\x00\x02hi")], states=4, window_log=31), 4),
    "window of 256 KiB": (zstd_frame([raw_block(b"\x00\x02hi")], states=4, window_log=18), 4),
    "two frames": (GOOD + GOOD, 4),
    "two frames, sum stated": (GOOD + GOOD, 8),
    "trailing bytes": (GOOD + b"\x00", 4),
    "skippable frame first": (b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + GOOD, 4),
    "skippable frame behind": (GOOD + b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd", 4),
    "only a skippable frame": (b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd", 4),
    "wrong checksum": (zstd_frame([raw_block(b"\x00\x02hi")], states=4, checksum=b"bad!"), 4),
    "dictionary": (zstd_frame([raw_block(b"\x00\x02hi")], states=4, dictionary=b"dict"), 4),
    "cut off": (GOOD[:-1], 4),
    "header alone": (GOOD[:13], 4),
    "nothing": (b"", 4),
    "not zstd": (b"\x1f\x8b\x08\x00" + bytes(20), 4),
    "reserved block": (zstd_frame([b"\x07\x00\x00"], states=4), 4),
    "stated as unknown": (zstd_frame([raw_block(b"\x00\x02hi")], states=(1 << 64) - 1), 4),
}


def zstd_bundle(packed, body_bytes):
    fields = with_field(with_field(BUNDLE_FIELDS, 8, 1), 9, body_bytes)
    return wire.parse_bundle(bundle(fields, packed))


def test_f08_the_frames_of_these_tests_are_zstd():
    assert zstandard.ZstdDecompressor().decompress(GOOD) == b"\x00\x02hi"
    assert len(BOMBS["512 MiB, size stated"][0]) < 16_402
    assert wire.open_bundle(zstd_bundle(GOOD, 4)) == [("t", b"hi")]


@pytest.mark.parametrize("packed", BOMBS.values(), ids=BOMBS)
def test_f08_a_zstd_frame_is_never_unpacked_beyond_its_bundles_stated_size(packed):
    opened = zstd_bundle(*packed)
    assert peak_bytes(lambda: wire.open_bundle(opened)) < 2 * wire.BUNDLE_BYTES_MAX


@pytest.mark.parametrize("size", [0, wire.BUNDLE_BYTES_MAX + 1, HALF_GIB, -1])
def test_f08_a_bundle_that_states_a_size_over_the_cap_is_refused_by_its_header(size):
    with pytest.raises(WireError):
        zstd_bundle(GOOD, size)


def test_f08_an_unpacked_body_has_the_length_that_the_header_states():
    for stated in (3, 5):
        with pytest.raises(WireError, match="not as long"):
            wire.parse_bundle(bundle(with_field(BUNDLE_FIELDS, 9, stated)))
    refused(0x31, b"\x01" + bundle(with_field(BUNDLE_FIELDS, 8, max(Compression) + 1)))


# --- F-09 ---------------------------------------------------------------------------------------

BAD_TEXTS = {
    "NUL": "a\x00b",
    "ESC": "\x1b[2J",
    "newline": "a\nb",
    "DEL": "\x7f",
    "C1": "\x9b31m",
    "bidi override": "a\u202eb",
    "bidi isolate": "\u2066b",
    "mark": "\u200f",
    "line separator": "\u2028",
    "byte order mark": "\ufeff",
    "64 KiB": "x" * 65_000,
}


def text_places(text):
    """Every place of the wire that takes a text."""
    hello = PACKED[0x01]
    blob = text if isinstance(text, bytes) else msgpack.packb(text)

    def packed(fields, index):
        """Like `fields` with the raw msgpack `blob` at `index`."""
        parts = [msgpack.packb(each, use_bin_type=True) for each in fields]
        parts[index] = blob
        return b"\xdc" + len(parts).to_bytes(2, "big") + b"".join(parts)

    one = b"\x91" + blob
    signed = {
        "identity": packed(RECORD_FIELDS, 0),
        "zone": packed(RECORD_FIELDS, 4),
        "address": packed(RECORD_FIELDS, 3).replace(blob, one, 1),
    }
    for name, fields in signed.items():
        yield name, lambda fields=fields: wire.parse_record(msgpack.packb((fields, b"")))
    header = packed(BUNDLE_FIELDS, 4).replace(blob, one, 1)
    yield "topic", lambda: wire.parse_bundle(bundle(header))
    yield "cluster", lambda: decode(0x01, packed(hello, 3))
    yield "reason", lambda: decode(0x05, packed((0, ""), 1))
    busy = packed(((), (), ""), 2).replace(blob, one, 1)
    yield "busy address", lambda: decode(0x46, busy)


def takes(work):
    try:
        work()
    except WireError:
        return False
    return True


def test_f09_good_text_passes_in_all_the_places_of_these_tests():
    refusing = [place for place, work in text_places("注文:1") if not takes(work)]
    assert refusing == ["identity"]
    refusing = [place for place, work in text_places("spiffe://d.test/m") if not takes(work)]
    assert refusing == []


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_f09_text_that_could_forge_a_log_line_is_refused_everywhere(text):
    assert [place for place, work in text_places(text) if takes(work)] == []


@pytest.mark.parametrize(
    "blob",
    [b"\xa1\xff", b"\xa2\xc0\x80", b"\xa3\xed\xa0\x80", b"\xa4\xf4\x90\x80\x80", b"\xc4\x01a"],
    ids=["not UTF-8", "overlong NUL", "surrogate", "beyond Unicode", "bytes instead"],
)
def test_f09_text_that_is_not_utf8_is_refused_everywhere(blob):
    assert [place for place, work in text_places(blob) if takes(work)] == []


def test_f09_a_publisher_is_held_to_the_same_rule():
    for text in [*BAD_TEXTS.values(), "\ud800"]:
        with pytest.raises(ConfigError):
            wire.check_text(text, wire.TOPIC_BYTES_MAX)
    assert wire.check_text("Größe/注文 ✓", wire.TOPIC_BYTES_MAX) == "Größe/注文 ✓"


@pytest.mark.parametrize(
    "subject",
    ["", "spiffe://", "spiffe://D.test/n", "https://d.test/n", "spiffe://d.test/n/../m", "x" * 129],
)
def test_f09_a_record_of_an_identity_that_nobody_can_have_is_refused(subject):
    with pytest.raises(WireError):
        wire.parse_record(signed_blob(with_field(RECORD_FIELDS, 0, subject)))


# --- F-10 ---------------------------------------------------------------------------------------

NUMBERS = (-1, -(1 << 63), (1 << 64) - 1, math.nan, math.inf, -math.inf, 1.0, True, None, b"", "1")
RECORD_NUMBERS = {
    # field: (index, least, most)
    "epoch": (1, 1, wire.EPOCH_MAX),
    "incarnation": (2, 0, wire.INCARNATION_MAX),
    "valid_until": (6, 0, wire.MILLISECONDS_MAX),
    "algorithm": (8, 0, 4),
    "signed_at": (10, 0, wire.MILLISECONDS_MAX),
}
FACT_NUMBERS = {
    "epoch": (1, 1, wire.EPOCH_MAX),
    "incarnation": (2, 0, wire.INCARNATION_MAX),
    "state": (3, 0, 1),
    "algorithm": (5, 0, 4),
    "signed_at": (7, 0, wire.MILLISECONDS_MAX),
}
BUNDLE_NUMBERS = {
    "epoch": (1, 1, wire.EPOCH_MAX),
    "first": (2, 1, wire.SEQ_MAX),
    "count": (3, 1, wire.BUNDLE_MESSAGES_MAX),
    "chunk_index": (5, 0, 0),
    "chunk_count": (6, 1, 1),
    "chunk_bytes": (7, 0, 0),
    "algorithm": (10, 0, 4),
    "signed_at": (12, 0, wire.MILLISECONDS_MAX),
}


def check_numbers(parse, fields, limits):
    for index, low, high in limits.values():
        for value in (low, high):
            parse(with_field(fields, index, value))
        for value in (*NUMBERS, low - 1, high + 1):
            if value in (low, high) and type(value) is int:
                continue
            with pytest.raises(WireError):
                parse(with_field(fields, index, value))


def test_f10_the_numbers_of_a_record_have_bounds():
    check_numbers(lambda f: wire.parse_record(signed_blob(f)), RECORD_FIELDS, RECORD_NUMBERS)


def test_f10_the_numbers_of_a_fact_have_bounds():
    check_numbers(lambda f: decode(0x04, (signed_blob(f),)), FACT_FIELDS, FACT_NUMBERS)


def test_f10_the_numbers_of_a_bundle_have_bounds():
    check_numbers(lambda f: wire.parse_bundle(bundle(f)), BUNDLE_FIELDS, BUNDLE_NUMBERS)


def test_f10_the_epoch_before_a_bundles_own_has_bounds():
    limits = {"previous epoch": (13, 1, EPOCH - 1), "previous last": (14, 1, wire.SEQ_MAX)}
    check_numbers(lambda f: wire.parse_bundle(bundle(f)), (*BUNDLE_FIELDS, 1, 1), limits)


def test_f10_the_numbers_of_other_messages_have_bounds():
    limits = {
        0x01: {"major": (0, 0, 255), "minor": (1, 0, 255), "features": (2, 0, (1 << 62) - 1),
               "datagram_bytes_max": (5, 1_200, 65_527)},
        0x05: {"code": (0, 0, 65_535)},
        0x13: {"epoch": (1, 1, wire.EPOCH_MAX), "reason": (3, 1, 3)},
        0x15: {"epoch": (1, 1, wire.EPOCH_MAX), "seq": (2, 1, wire.SEQ_MAX),
               "round": (3, 1, wire.COVERAGE_ROUND_MAX),
               "milliseconds": (5, 1, wire.COVERAGE_MS_MAX), "more": (6, 0, wire.CHUNKS_MAX - 1)},
        0x16: {"epoch": (1, 1, wire.EPOCH_MAX), "seq": (2, 1, wire.SEQ_MAX),
               "round": (3, 1, wire.COVERAGE_ROUND_MAX)},
    }  # fmt: skip
    for kind, each in limits.items():
        check_numbers(lambda f, kind=kind: decode(kind, f), PACKED[kind], each)
    row = {"epoch": (1, 1, wire.EPOCH_MAX), "incarnation": (2, 0, wire.INCARNATION_MAX),
           "state": (3, 0, max(MemberState))}  # fmt: skip
    check_numbers(lambda f: decode(0x44, (b"", (f,), True)), (KEY_A, EPOCH, 1, 0), row)
    entry = {"epoch": (1, 1, wire.EPOCH_MAX)}
    check_numbers(lambda f: decode(0x11, (f,)), LISTS[0x11], entry)


@pytest.mark.parametrize(
    "ranges",
    [
        ((0, 1),),
        ((2, 1),),
        ((1, 2), (2, 3)),
        ((5, 6), (1, 2)),
        ((1, wire.SEQ_MAX + 1),),
        ((1, 2, 3),),
        ((1,),),
        (1, 2),
        ((True, 2),),
        ((1.0, 2.0),),
        5,
        None,
    ],
)
def test_f10_ranges_ascend_and_do_not_touch_each_other_or_the_bounds(ranges):
    refused(0x11, ((KEY_A, EPOCH, ranges, True),))
    refused(0x13, (KEY_A, EPOCH, ranges, 1))


def test_f10_the_end_of_a_bundle_or_an_announcement_is_within_bounds_too():
    last = with_field(with_field(BUNDLE_FIELDS, 2, wire.SEQ_MAX), 3, 2)
    with pytest.raises(WireError, match="beyond the last"):
        wire.parse_bundle(bundle(last))
    origin = b"\x00" + KEY_A + EPOCH.to_bytes(6, "big")
    top = wire.varint(wire.SEQ_MAX)
    for lane, body in (
        (Lane.IHAVE, b"\x21" + origin + top + b"\x01\x00"),
        (Lane.IHAVE, b"\x21" + origin + b"\x00\x00\x00"),
        (Lane.IHAVE, b"\x21\x00" + KEY_A + bytes(6) + b"\x01\x00\x00"),
        (Lane.SYNC, b"\x42\x01" + origin + b"\x01" + top + b"\x01"),
        (Lane.SYNC, b"\x42\x01" + origin + b"\x01\x00\x01"),
        (Lane.SYNC, b"\x42\x01" + origin + b"\x02\x01\x00\x00\x00"),
    ):
        with pytest.raises(WireError):
            wire.LinkDecoder().decode(lane, body)


def test_f10_kinds_lanes_and_flags_that_do_not_exist_are_refused():
    refused(0x51, bytes((max(DirectKind) + 1, 0)))
    refused(0x02, b"\x07\x00")
    refused(0x03, b"\x02")
    refused(0x03, b"")
    for flag in (0, 1, None, b"\x01"):
        refused(0x01, with_field(PACKED[0x01], 7, flag))
        refused(0x11, ((KEY_A, EPOCH, (), flag),))
        refused(0x44, (b"", (), flag))
    for wrong in (b"short", b"L" * 17, "L" * 16, None):
        refused(0x01, with_field(PACKED[0x01], 6, wrong))
        refused(0x01, with_field(PACKED[0x01], 8, wrong))
        refused(0x13, with_field(PACKED[0x13], 0, wrong))
        with pytest.raises(WireError):
            wire.parse_bundle(bundle(with_field(BUNDLE_FIELDS, 11, wrong)))
    refused(0x01, (*PACKED[0x01][:-1], b"not a record"))
    refused(0x01, (*PACKED[0x01], bytes(wire.HELLO_BYTES_MAX)))


def test_f10_a_direct_message_over_the_limit_is_refused():
    refused(0x51, b"\x00\x01" + bytes(wire.PAYLOAD_BYTES_MAX + 1))
    assert len(decode(0x51, b"\x00\x01" + bytes(wire.PAYLOAD_BYTES_MAX)).payload) == 65_536


def test_f10_topics_of_a_bundle_are_named_once_and_at_least_one():
    for topics in ((), ("a", "a"), "t", (b"t",), ("x" * 256,)):
        with pytest.raises(WireError):
            wire.parse_bundle(bundle(with_field(BUNDLE_FIELDS, 4, topics)))


def piece(index, count, total, first=5_000, body=b"\x00\x02hi", **others):
    """A bundle whose header says that it is a piece of a message of `total` bytes."""
    fields = [*BUNDLE_FIELDS]
    fields[2], fields[5], fields[6], fields[7], fields[9] = first, index, count, total, len(body)
    for name, value in others.items():
        fields[{"count_": 3, "topics": 4}[name]] = value
    return bundle(tuple(fields), body)


def test_f10_a_chunk_index_is_below_the_chunk_count():
    most = wire.CHUNKS_MAX
    assert wire.parse_bundle(piece(most - 1, most, 2 * most)).chunk_count == 4_096
    for index, count in ((1, 1), (4_096, 4_096), (3, 2), (0, 0), (0, 4_097)):
        with pytest.raises(WireError):
            wire.parse_bundle(piece(index, count, 2 * count))


def test_a_piece_holds_one_payload_of_one_topic_and_of_the_length_that_its_header_implies():
    assert wire.open_piece(wire.parse_bundle(piece(0, 3, 6))) == b"hi"
    assert wire.open_piece(wire.parse_bundle(piece(2, 3, 6))) == b"hi"
    assert wire.open_piece(wire.parse_bundle(piece(2, 3, 5, body=b"\x00\x01h"))) == b"h"
    for raw in (
        piece(0, 3, 6, count_=2),
        piece(0, 3, 6, topics=("a", "b")),
        piece(0, 3, 7),  # two bytes where three must be
        piece(2, 3, 5),  # two where one must be
        piece(0, 3, 4),  # the last one would be empty
        piece(0, 3, 0),
        piece(0, 2, wire.MESSAGE_BYTES_MAX + 1),
        piece(0, 1, 2),  # a whole one that says how long its pieces are
        piece(2, 3, 6, first=2),  # the first one would have number 0
        piece(0, 3, 6, first=wire.SEQ_MAX - 1),
    ):
        with pytest.raises(WireError):
            wire.parse_bundle(raw)


@pytest.mark.parametrize("body", [b"\x01\x02hi", b"\x00\x01hi", b"\x00\x03hi"])
def test_a_piece_whose_body_is_not_what_its_header_says_is_refused_when_it_is_opened(body):
    parsed = wire.parse_bundle(piece(0, 3, 6, body=body))
    with pytest.raises(WireError):
        wire.open_piece(parsed)
    with pytest.raises(WireError):
        wire.open_bundle(parsed)


def test_pieces_travel_on_the_bulk_lane_alone_and_nothing_else_does():
    small, large = bundle(), piece(0, 3, 6)
    assert type(decode(0x31, b"\x01" + small)) is Gossip
    assert type(decode(0x61, b"\x01" + large)) is Chunk
    for raw in (small, large):
        assert type(decode(0x41, b"\x01" + raw)) is Repair
    refused(0x31, b"\x01" + large)
    refused(0x61, b"\x01" + small)
    for kind, lane in ((0x61, Lane.GOSSIP), (0x31, Lane.BULK)):
        with pytest.raises(WireError):
            wire.decode(lane, bytes((kind, 1)) + (large if kind == 0x61 else small))
    for body in (b"", b"\x01"):
        refused(0x61, body)


def test_f10_nobody_may_declare_another_dead():
    with pytest.raises(WireError, match="dead"):
        decode(0x04, (signed_blob(with_field(FACT_FIELDS, 3, MemberState.DEAD)),))


# --- F-12 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1_100, 1_200])
@pytest.mark.parametrize("first", [0x00, 0x01, 0x31, 0x70, 0x73, 0x7F, 0xFF])
def test_f12_a_datagram_of_an_unknown_type_is_dropped_not_refused(size, first):
    assert wire.decode_datagram(bytes((first,)) * size) is None


@pytest.mark.parametrize(
    "body", [b"\x71", b"\x71" + bytes(7), b"\x71" + bytes(8), b"\x72" + bytes(1_099)]
)
def test_f12_a_known_datagram_type_with_a_wrong_body_is_refused(body):
    with pytest.raises(WireError):
        wire.decode_datagram(body)


# --- F-13, F-14 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("major", "minor"), [(1, 0), (1, 1), (1, 255), (2, 0), (0, 9)])
def test_f13_a_hello_of_another_version_is_readable_so_that_it_can_be_answered(major, minor):
    hello = decode(0x01, (major, minor, *PACKED[0x01][2:], "of a later version", (1, 2)))
    assert isinstance(hello, Hello)
    assert (hello.major, hello.minor) == (major, minor)


@pytest.mark.parametrize("kind", PACKED, ids=hex)
def test_f14_fields_that_a_newer_minor_appends_are_ignored(kind):
    more = (*PACKED[kind], 5, "text", b"bytes", (1, (2, 3)), None, 1.5, False)
    assert decode(kind, more) == decode(kind, PACKED[kind])


def test_f14_fields_appended_to_items_of_a_list_are_ignored():
    more = (*LISTS[0x11], "more", (1,))
    assert decode(0x11, (more,)) == decode(0x11, (LISTS[0x11],))
    row = (KEY_A, EPOCH, 1, 0)
    assert decode(0x44, (b"", ((*row, 9, (9,)),), True)) == decode(0x44, (b"", (row,), True))
    assert decode(0x03, b"\x01more") == decode(0x03, b"\x01")


def test_f14_what_is_signed_is_forwarded_with_fields_that_are_not_known():
    raw = signed_blob((*RECORD_FIELDS, "new", (1, 2)), b"sig", more=("outside", 3))
    record = wire.parse_record(raw)
    assert record.raw == raw
    known = wire.parse_record(signed_blob(RECORD_FIELDS, b"sig"))
    assert attrs.evolve(record, raw=b"") == attrs.evolve(known, raw=b"")
    hello = decode(0x01, with_field(PACKED[0x01], 4, raw))
    assert raw in frames((hello,))[0]

    raw = signed_blob((*FACT_FIELDS, "new"), b"sig", more=(1,))
    facts = decode(0x04, (raw,))
    assert raw in frames((facts,))[0]

    raw = bundle((*BUNDLE_FIELDS, 1, 2, "new", (b"x",)), signature=b"sig")
    gossip = decode(0x31, b"\x01" + raw)
    assert frames((gossip,)) == [b"\x31\x01" + raw]
    assert wire.open_bundle(gossip.bundle) == [("t", b"hi")]


def test_f14_missing_fields_are_refused():
    for kind, fields in PACKED.items():
        for count in range(len(fields)):
            refused(kind, fields[:count])
    for count in range(len(LISTS[0x11])):
        refused(0x11, (LISTS[0x11][:count],))
    for count in range(4):
        refused(0x44, (b"", ((KEY_A, EPOCH, 1, 0)[:count],), True))
    for fields in (RECORD_FIELDS[:-1], RECORD_FIELDS[:1], ()):
        with pytest.raises(WireError):
            wire.parse_record(signed_blob(fields))
    for fields in (BUNDLE_FIELDS[:-1], ()):
        with pytest.raises(WireError):
            wire.parse_bundle(bundle(fields))
    refused(0x04, (signed_blob(FACT_FIELDS[:-1]),))
    refused(0x04, (msgpack.packb((b"alone",)),))


def test_f14_a_type_that_is_not_known_is_refused():
    known = {frame[0] for bodies in GOLDEN.values() for frame in bodies}
    for kind in set(range(256)) - known:
        for lane in Lane:
            with pytest.raises(WireError):
                wire.LinkDecoder().decode(lane, bytes((kind,)) + bytes(40))


def test_the_high_nibble_of_a_type_is_its_lane():
    for messages in STREAMS.values():
        for message, body in zip(messages, frames(messages), strict=True):
            assert lane_of(body) is LANE_OF[type(message)]


def test_origins_by_index_need_the_links_own_codec():
    with pytest.raises(AssertionError):
        wire.encode(IHave(()))
    assert wire.encode(Prune((KEY_A,))) == b"\x12" + KEY_A
    assert wire.encode(Credit(())) == b"\x02"
    assert wire.encode(Gossip(1, BUNDLE)) == b"\x31\x01" + BUNDLE.raw


@pytest.mark.parametrize("name", ["d.test", "a.b-c_d"])
def test_a_record_carries_any_well_formed_identity(name):
    record = wire.parse_record(signed_blob(with_field(RECORD_FIELDS, 0, f"spiffe://{name}/n")))
    assert record.node_id == NodeId.parse(f"spiffe://{name}/n")
