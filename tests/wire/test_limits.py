"""Each limit is reached, and one beyond it is refused."""

import msgpack
import pytest

from plumtree_quic import wire
from plumtree_quic.errors import WireError
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import (
    Announcement,
    Certificates,
    CertificatesWanted,
    Credit,
    IHave,
    Lane,
    Records,
)
from plumtree_quic.net import framing
from plumtree_quic.proto import swim
from plumtree_quic.proto import sync as anti_entropy
from plumtree_quic.security import gate
from tests.rigs.wire_examples import ALIVE, BUNDLE, EPOCH, KEY_A, KEY_B, RECORD, frames, read


def pack(*fields):
    return msgpack.packb(fields, use_bin_type=True)


def hello(cluster="default", link_id=b"L" * 16, *more):
    return b"\x01" + pack(1, 0, 0, cluster, RECORD.raw, 1_472, link_id, True, b"", b"", *more)


def record(**changes):
    fields = {
        "node_id": "spiffe://d.test/n",
        "epoch": 1,
        "incarnation": 0,
        "addresses": (),
        "zone": "",
        "meta": b"",
        "valid_until": 0,
        "chain": (),
        "algorithm": 0,
        "key_id": b"",
        "signed_at": 0,
        "signature": b"",
        "more": (),
    } | changes
    signature, more = fields.pop("signature"), fields.pop("more")
    return pack(pack(*fields.values(), *more), signature)


def bundle(topics=("t",), signature=b"", body=b"\x00\x00", body_bytes=None, compression=0, more=()):
    size = len(body) if body_bytes is None else body_bytes
    header = pack(KEY_A, 1, 1, 1, topics, 0, 1, 0, compression, size, 0, b"", 0, *more)
    return b"".join(
        (len(header).to_bytes(2, "big"), header, len(signature).to_bytes(2, "big"), signature, body)
    )


def largest_body(spare):
    """Bytes that make a bundle of the largest size; a relay does not open it."""
    empty = len(bundle(body=b"", body_bytes=1, compression=1))
    return bytes(wire.BUNDLE_BYTES_MAX + 1_024 - empty + spare)


def control(body):
    return lambda: wire.decode(Lane.CONTROL, body)


def graft(body):
    return lambda: wire.decode(Lane.GRAFT, body)


def sync(body):
    return lambda: wire.LinkDecoder().decode(Lane.SYNC, body)


LIMITS = {
    # what: (most, how to decode that many)
    "bytes of a cluster's name": (64, lambda n: control(hello("c" * n))),
    "bytes of a zone": (64, lambda n: lambda: wire.parse_record(record(zone="z" * n))),
    "bytes of meta": (512, lambda n: lambda: wire.parse_record(record(meta=bytes(n)))),
    "addresses": (8, lambda n: lambda: wire.parse_record(record(addresses=("a",) * n))),
    "bytes of an address": (
        262,
        lambda n: lambda: wire.parse_record(record(addresses=("a" * n,))),
    ),
    "certificates": (4, lambda n: lambda: wire.parse_record(record(chain=(b"c",) * n))),
    "bytes of a certificate": (
        4_096,
        lambda n: lambda: wire.parse_record(record(chain=(bytes(n),))),
    ),
    "bytes of a record's signature": (
        512,
        lambda n: lambda: wire.parse_record(record(signature=bytes(n))),
    ),
    "bytes of a record": (
        8_000,
        lambda n: lambda: wire.parse_record(record(more=(bytes(n - len(record()) - 4),))),
    ),
    "bytes of a goodbye's reason": (128, lambda n: control(b"\x05" + pack(0, "r" * n))),
    "bytes of a hello": (
        wire.HELLO_BYTES_MAX,
        lambda n: control(hello("c", b"L" * 16, bytes(n - len(hello("c")) - 3))),
    ),
    "facts in a frame": (4_096, lambda n: control(b"\x04" + pack(*[ALIVE.raw] * n))),
    "origins in a graft": (64, lambda n: graft(b"\x11" + pack(*[(KEY_A, 1, (), True)] * n))),
    "ranges in a graft": (
        64,
        lambda n: graft(
            b"\x11"
            + pack(
                (KEY_A, 1, ((1, 1),), True),
                (KEY_B, 1, tuple((each, each) for each in range(1, n)), True),
            )
        ),
    ),
    "origins in a prune": (4_096, lambda n: graft(b"\x12" + KEY_A * n)),
    "ranges in a refused graft": (
        64,
        lambda n: graft(
            b"\x13" + pack(KEY_A, 1, tuple((each, each) for each in range(1, n + 1)), 1)
        ),
    ),
    "keys of records": (4_096, lambda n: sync(b"\x45" + KEY_A * n)),
    "records in a frame": (256, lambda n: sync(b"\x46" + pack((record(),) * n, (), ()))),
    "busy addresses": (16, lambda n: sync(b"\x46" + pack((), (), ("a",) * n))),
    "bytes of a busy address": (262, lambda n: sync(b"\x46" + pack((), (), ("a" * n,)))),
    "rows": (4_096, lambda n: sync(b"\x44" + pack(b"", ((KEY_A, 1, 0, 0),) * n, True))),
    "buckets": (256, lambda n: sync(b"\x44" + pack(bytes(n), (), True))),
    "rows in a digest": (
        4_096,
        lambda n: sync(
            b"\x42\x01" + (b"\x00" + KEY_A + bytes(5) + b"\x01\x00") + b"\x02\x00" * (n - 1)
        ),
    ),
    "ranges in a digest's row": (
        4_096,
        lambda n: sync(
            b"\x42\x01\x00" + KEY_A + bytes(5) + b"\x01" + wire.varint(n) + b"\x02\x00" * n
        ),
    ),
    "announcements": (
        4_096,
        lambda n: (
            lambda: wire.LinkDecoder().decode(
                Lane.IHAVE,
                b"\x21\x00"
                + KEY_A
                + bytes(5)
                + b"\x01\x01\x00\x00"
                + b"\x02\x01\x00\x00" * (n - 1),
            )
        ),
    ),
    "facts on a probe": (
        32,
        lambda n: lambda: wire.decode_datagram(b"\x71" + bytes(8) + pack(*[ALIVE.raw] * n)),
    ),
    "lanes in a credit": (7, lambda n: control(b"\x02" + b"\x00\x05" * n)),
    "topics of a bundle": (
        16,
        lambda n: lambda: wire.parse_bundle(bundle(tuple(str(each) for each in range(n)))),
    ),
    "bytes of a topic": (255, lambda n: lambda: wire.parse_bundle(bundle(("t" * n,)))),
    "bytes of a bundle's signature": (
        512,
        lambda n: lambda: wire.parse_bundle(bundle(signature=bytes(n))),
    ),
    "bytes of a bundle": (
        wire.BUNDLE_BYTES_MAX + 1_024,
        lambda n: (
            lambda: wire.parse_bundle(
                bundle(
                    body=largest_body(n - wire.BUNDLE_BYTES_MAX - 1_024),
                    body_bytes=1,
                    compression=1,
                )
            )
        ),
    ),
    "bytes of an unpacked body": (
        wire.BUNDLE_BYTES_MAX,
        lambda n: lambda: wire.parse_bundle(bundle(body=bytes(n))),
    ),
    "bytes of a direct message": (
        65_536,
        lambda n: lambda: wire.decode(Lane.DIRECT, b"\x51\x00\x01" + bytes(n)),
    ),
}


@pytest.mark.parametrize("what", LIMITS)
def test_a_limit_is_reached_and_one_more_is_refused(what):
    most, decode = LIMITS[what]
    decode(most)()
    with pytest.raises(WireError):
        decode(most + 1)()


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 1),
        (0x3F, 1),
        (0x40, 2),
        (0x3FFF, 2),
        (0x4000, 4),
        (0x3FFF_FFFF, 4),
        (0x4000_0000, 8),
        (wire.SEQ_MAX, 8),
    ],
)
def test_a_varint_takes_as_few_bytes_as_rfc_9000_allows(value, size):
    assert len(wire.varint(value)) == size
    credit = Credit(((Lane.GOSSIP, value),))
    assert read(frames((credit,))) == (credit,)


def test_a_varint_is_never_negative():
    with pytest.raises(OverflowError):
        wire.varint(-1)


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_number_that_ends_early_is_refused(cut):
    with pytest.raises(WireError, match="inside a number"):
        wire.decode(Lane.CONTROL, b"\x02\x03" + wire.varint(wire.SEQ_MAX)[:cut])
    with pytest.raises(WireError, match="inside a number"):
        wire.decode(Lane.CONTROL, b"\x02\x03")


def test_a_member_key_more_or_less_is_no_prune():
    for size in (0, 1, 15, 17, 31, 33):
        for lane, kind in ((Lane.GRAFT, b"\x12"), (Lane.SYNC, b"\x45")):
            with pytest.raises(WireError):
                wire.decode(lane, kind + bytes(size))


def test_a_digest_has_flags():
    with pytest.raises(WireError, match="flags"):
        wire.LinkDecoder().decode(Lane.SYNC, b"\x42")


def test_an_announcement_ends_with_its_hops():
    whole = frames((IHave((Announcement(KEY_A, EPOCH, 1, 1, 3),)),))[0]
    with pytest.raises(WireError, match="cut off"):
        wire.LinkDecoder().decode(Lane.IHAVE, whole[:-1])


def test_a_frame_of_records_is_refused_above_its_limit():
    record = wire.build_record(
        node_id=NodeId("spiffe://test/node/a"),
        epoch=1,
        incarnation=0,
        addresses=(),
        valid_until=1,
        chain=(bytes(3_000),),
    )
    fits = (wire.RECORDS_FRAME_BYTES_MAX - 64) // (len(record.raw) + 3)
    body = wire.encode(Records((record,) * fits))
    assert len(wire.decode(Lane.SYNC, body).records) == fits
    with pytest.raises(WireError, match="records is too long"):
        wire.decode(Lane.SYNC, wire.encode(Records((record,) * (fits + 1))))


def test_a_frame_of_certificates_is_refused_above_its_limit():
    chain = (bytes(3_000),)
    fits = (wire.CERTIFICATES_FRAME_BYTES_MAX - 8) // 3_004
    body = wire.encode(Certificates((chain,) * fits))
    assert len(wire.decode(Lane.CONTROL, body).chains) == fits
    with pytest.raises(WireError, match="certificates is too long"):
        wire.decode(Lane.CONTROL, wire.encode(Certificates((chain,) * (fits + 1))))


def test_a_chain_of_certificates_has_one_to_four_of_them():
    assert wire.decode(Lane.CONTROL, wire.encode(Certificates(((b"x",) * 4,))))
    for chain in ((), (b"x",) * 5, (b"",), (bytes(wire.CERTIFICATE_BYTES_MAX + 1),)):
        with pytest.raises(WireError):
            wire.decode(Lane.CONTROL, wire.encode(Certificates((chain,))))


@pytest.mark.parametrize("count", [0, wire.CERTIFICATES_WANTED_MAX + 1])
def test_wanted_certificates_are_1_to_64_key_ids(count):
    with pytest.raises(WireError, match="key ids"):
        wire.decode(Lane.CONTROL, wire.encode(CertificatesWanted((bytes(16),) * count)))
    with pytest.raises(WireError, match="key ids"):
        wire.decode(Lane.CONTROL, wire.encode(CertificatesWanted((bytes(15),))))


@pytest.mark.parametrize("thing", [RECORD, ALIVE, BUNDLE], ids=lambda each: type(each).__name__)
def test_what_is_signed_is_what_the_signer_was_given(thing):
    header, body = thing.signed_parts
    assert header in thing.raw
    assert thing.raw.endswith(body)
    assert thing.signature not in header + body or not thing.signature


def test_the_gate_asks_and_answers_within_the_wires_limits():
    assert gate.WANTED_MAX == wire.CERTIFICATES_WANTED_MAX
    assert gate.CERTIFICATES_BYTES_MAX == wire.CERTIFICATES_FRAME_BYTES_MAX


def test_what_a_node_writes_in_one_frame_is_within_what_the_lane_takes():
    """A frame above its lane's limit costs the link: a page of facts once was."""
    control, sync = framing.FRAME_BYTES_MAX_OF[Lane.CONTROL], framing.FRAME_BYTES_MAX_OF[Lane.SYNC]
    assert control > swim.FACTS_BYTES_MAX + wire.FACT_BYTES_MAX
    assert control > wire.CERTIFICATES_FRAME_BYTES_MAX
    assert 2 * wire.RECORD_BYTES_MAX < wire.HELLO_BYTES_MAX < control
    assert swim.RECORDS_BYTES_MAX < wire.RECORDS_FRAME_BYTES_MAX < sync
    assert sync > anti_entropy.PAGE_OF_ROWS_BYTES
    row_bytes = 16 + 9 + 9 + 3
    assert swim.ROWS_PER_FRAME_MAX * row_bytes + 300 < sync
