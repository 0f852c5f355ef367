"""What one side writes the other reads, for every message and any contents that rules allow."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumtree_quic import wire
from plumtree_quic.errors import ConfigError, WireError
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import (
    DIGEST_ROUND_MAX,
    Ack,
    Announcement,
    BucketHashes,
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
    Ping,
    Prune,
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
from tests.rigs.wire_examples import ALIVE, BARE_RECORD, EPOCH, KEY_A, KEY_B, RECORD, frames, read

keys = st.binary(min_size=16, max_size=16)
empty_or_16 = st.sampled_from((b"", bytes(16), b"k" * 16))
epochs = st.integers(1, wire.EPOCH_MAX)
seqs = st.integers(1, wire.SEQ_MAX)
incarnations = st.integers(0, wire.INCARNATION_MAX)
times = st.integers(0, wire.MILLISECONDS_MAX)
hops = st.integers(0, 255)


def texts(bytes_max):
    return st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=bytes_max).filter(
        lambda text: len(text.encode()) <= bytes_max
    )


@st.composite
def range_lists(draw, most=8):
    borders = sorted(draw(st.sets(seqs, max_size=2 * most)))
    return tuple(zip(borders[::2], borders[1::2], strict=False))


signatures = st.fixed_dictionaries(
    {
        "algorithm": st.sampled_from(SignatureAlgorithm),
        "key_id": empty_or_16,
        "signed_at": times,
        "sign": st.binary(max_size=128).map(lambda blob: lambda header, body: blob),
    }
)
segments = st.text(string.ascii_lowercase + string.digits + "-_", min_size=1, max_size=20)
node_ids = st.lists(segments, min_size=1, max_size=3).map(
    lambda path: NodeId.parse("spiffe://d.test/" + "/".join(path))
)
records = st.builds(
    lambda signature, **fields: wire.build_record(**fields, **signature),
    signature=signatures,
    node_id=node_ids,
    epoch=epochs,
    incarnation=incarnations,
    addresses=st.lists(texts(40), max_size=8).map(tuple),
    valid_until=times,
    zone=texts(64),
    meta=st.binary(max_size=512),
    chain=st.lists(st.binary(min_size=1, max_size=600), max_size=4).map(tuple),
)
facts = st.builds(
    lambda signature, **fields: wire.build_fact(**fields, **signature),
    signature=signatures,
    subject=keys,
    epoch=epochs,
    incarnation=incarnations,
    state=st.sampled_from((MemberState.ALIVE, MemberState.SUSPECT, MemberState.LEFT)),
    signer=keys,
)
topics = texts(24)
bundles = st.builds(
    lambda signature, names, payloads, **fields: wire.build_bundle(
        messages=[(names[at % len(names)], payload) for at, payload in enumerate(payloads)],
        **fields,
        **signature,
    ),
    signature=signatures,
    names=st.lists(topics, min_size=1, max_size=16, unique=True),
    payloads=st.lists(st.binary(max_size=200), min_size=1, max_size=20),
    previous=st.none() | st.tuples(st.just(1), seqs),
    origin=keys,
    epoch=st.integers(2, wire.EPOCH_MAX),
    first=st.integers(1, wire.SEQ_MAX - 20),
    zstd_level=st.sampled_from((None, 1, 3, 19)),
    zstd_bytes_min=st.sampled_from((0, 256)),
)


@st.composite
def pieces(draw):
    count = draw(st.integers(2, 9))
    total = draw(st.integers(count, 400).filter(lambda size: chunk_span(0, count, size)))
    index = draw(st.integers(0, count - 1))
    first, end = chunk_span(index, count, total)
    return wire.build_bundle(
        origin=draw(keys),
        epoch=draw(epochs),
        first=draw(st.integers(10, wire.SEQ_MAX - 20)),
        messages=[(draw(topics), draw(st.binary(min_size=end - first, max_size=end - first)))],
        zstd_level=draw(st.sampled_from((None, 3))),
        chunk=(index, count, total),
        **draw(signatures),
    )


few_facts = st.lists(facts, max_size=4).map(tuple)
announcements = st.builds(
    lambda origin, epoch, first, extra, hop: Announcement(
        origin, epoch, first, min(first + extra, wire.SEQ_MAX), hop
    ),
    st.sampled_from([bytes([n]) * 16 for n in range(6)]),
    st.integers(1, 3),
    seqs,
    st.integers(0, 1 << 20),
    hops,
)
digest_rows = st.builds(
    DigestRow, st.sampled_from([bytes([n]) * 16 for n in range(6)]), st.integers(1, 3),
    range_lists(),
)  # fmt: skip
member_rows = st.builds(Row, keys, epochs, incarnations, st.sampled_from(MemberState))
MESSAGES = {
    Hello: st.builds(
        Hello,
        st.integers(0, 255),
        st.integers(0, 255),
        st.integers(0, (1 << 62) - 1),
        texts(64),
        records,
        st.integers(1_200, 65_527),
        keys,
        st.booleans(),
        empty_or_16,
        st.none() | records,
    ),
    Credit: st.dictionaries(st.sampled_from(Lane), st.integers(0, wire.SEQ_MAX)).map(
        lambda consumed: Credit(tuple(consumed.items()))
    ),
    Wanted: st.builds(Wanted, st.booleans()),
    Facts: st.builds(Facts, few_facts),
    Goodbye: st.builds(Goodbye, st.integers(0, 0xFFFF), texts(128)),
    Graft: st.lists(
        st.builds(GraftEntry, keys, epochs, range_lists(4), st.booleans()), min_size=1, max_size=8
    ).map(lambda entries: Graft(tuple(entries))),
    Prune: st.lists(keys, min_size=1, max_size=20).map(lambda each: Prune(tuple(each))),
    GraftRefused: st.builds(
        GraftRefused, keys, epochs, range_lists(), st.sampled_from(RefusedReason)
    ),
    IHave: st.lists(announcements, max_size=10).map(lambda each: IHave(tuple(each))),
    Gossip: st.builds(Gossip, hops, bundles),
    Chunk: st.builds(Chunk, hops, pieces()),
    Repair: st.builds(Repair, hops, bundles | pieces()),
    Digest: st.builds(
        Digest,
        st.lists(digest_rows, max_size=6).map(tuple),
        st.booleans(),
        st.booleans(),
        st.integers(0, DIGEST_ROUND_MAX),
    ),
    DigestHashes: st.builds(
        DigestHashes,
        st.binary(min_size=2_048, max_size=2_048),
        st.integers(0, DIGEST_ROUND_MAX),
        st.booleans(),
        st.booleans(),
    ),
    CoverageWanted: st.builds(
        lambda key, epoch, seq, number, wide, ms, more: CoverageWanted(
            key, epoch, seq, number, wide, ms / 1000, min(seq + more, wire.SEQ_MAX)
        ),
        keys,
        epochs,
        seqs,
        st.integers(1, wire.COVERAGE_ROUND_MAX),
        st.booleans(),
        st.integers(1, wire.COVERAGE_MS_MAX),
        st.integers(0, wire.CHUNKS_MAX - 1),
    ),
    Coverage: st.builds(
        Coverage,
        keys,
        epochs,
        seqs,
        st.integers(1, wire.COVERAGE_ROUND_MAX),
        st.lists(st.binary(min_size=8, max_size=8), max_size=9).map(b"".join),
        st.booleans(),
    ),
    BucketHashes: st.binary(min_size=2_048, max_size=2_048).map(BucketHashes),
    Rows: st.builds(
        Rows,
        st.lists(st.integers(0, 255), max_size=256).map(tuple),
        st.lists(member_rows, max_size=10).map(tuple),
        st.booleans(),
    ),
    CertificatesWanted: st.lists(
        st.binary(min_size=16, max_size=16), min_size=1, max_size=wire.CERTIFICATES_WANTED_MAX
    ).map(lambda each: CertificatesWanted(tuple(each))),
    Certificates: st.lists(
        st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4).map(tuple), max_size=8
    ).map(lambda each: Certificates(tuple(each))),
    RecordsWanted: st.lists(keys, min_size=1, max_size=20).map(
        lambda each: RecordsWanted(tuple(each))
    ),
    Records: st.builds(
        Records,
        st.lists(records, max_size=3).map(tuple),
        few_facts,
        st.lists(texts(40), max_size=16).map(tuple),
    ),
    Direct: st.builds(
        Direct, st.sampled_from(DirectKind), st.integers(0, wire.SEQ_MAX), st.binary(max_size=300)
    ),
    Ping: st.builds(Ping, st.binary(min_size=8, max_size=8), few_facts),
    Ack: st.builds(Ack, st.binary(min_size=8, max_size=8), few_facts),
}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_what_is_written_is_read(kind, data):
    message = data.draw(MESSAGES[kind])
    assert read(frames((message,))) == (message,)


@given(st.lists(MESSAGES[IHave] | MESSAGES[Digest], max_size=20), st.integers(1, 8))
def test_origins_named_once_per_lane_are_understood_for_the_whole_link(messages, most):
    # Few indexes, so that tables are forgotten and begun again in the middle of frames.
    before = wire.ORIGINS_PER_LINK_MAX
    wire.ORIGINS_PER_LINK_MAX = most
    try:
        assert read(frames(tuple(messages))) == tuple(messages)
    finally:
        wire.ORIGINS_PER_LINK_MAX = before


def test_an_origin_is_named_in_full_once_and_by_a_small_number_afterwards():
    first, second = frames((IHave((Announcement(KEY_A, EPOCH, 9, 9, 1),)),) * 2)
    assert KEY_A in first
    assert KEY_A not in second
    assert len(first) - len(second) == 22


def test_the_lanes_have_tables_of_their_own():
    ihave, digest = frames(
        (IHave((Announcement(KEY_A, EPOCH, 9, 9, 1),)), Digest((DigestRow(KEY_A, EPOCH, ()),)))
    )
    assert KEY_A in ihave
    assert KEY_A in digest


@pytest.mark.parametrize("frame", [b"\x21\x02\x01\x00\x00", b"\x42\x01\x02\x00"])
def test_an_index_that_was_never_defined_is_refused(frame):
    lane = Lane.IHAVE if frame[0] == 0x21 else Lane.SYNC
    with pytest.raises(wire.WireError, match="never defined"):
        wire.LinkDecoder().decode(lane, frame)


def test_a_forgotten_index_is_refused():
    decoder = wire.LinkDecoder()
    define = b"\x00" + KEY_A + EPOCH.to_bytes(6, "big")
    decoder.decode(Lane.IHAVE, b"\x21" + define + b"\x01\x00\x00" + b"\x02\x01\x00\x00")
    with pytest.raises(wire.WireError, match="never defined"):
        decoder.decode(Lane.IHAVE, b"\x21\x01\x02\x01\x00\x00")


def test_more_origins_than_a_table_holds_are_refused_unless_forgotten():
    decoder = wire.LinkDecoder()
    entry = b"\x00" + KEY_A + EPOCH.to_bytes(6, "big") + b"\x01\x00\x00"
    left = wire.ORIGINS_PER_LINK_MAX
    while left:
        batch = min(left, 2_048)
        decoder.decode(Lane.IHAVE, b"\x21" + entry * batch)
        left -= batch
    with pytest.raises(wire.WireError, match="not defined as it should"):
        decoder.decode(Lane.IHAVE, b"\x21" + entry)
    decoder.decode(Lane.IHAVE, b"\x21\x01" + entry)


@pytest.mark.parametrize("seq", [1, 63, 16_383, (1 << 30) - 1, wire.SEQ_MAX])
def test_an_announced_id_costs_at_most_20_bytes_even_alone(seq):
    # On a link that has named as many origins as it can, this one last.
    encoder = wire.LinkEncoder()
    many = tuple(
        Announcement(index.to_bytes(16, "big"), EPOCH, 1, 1, 1)
        for index in range(wire.ORIGINS_PER_LINK_MAX - 1)
    )
    encoder.encode(IHave((*many, Announcement(KEY_A, EPOCH, 1, 1, 1))))
    (body,) = encoder.encode(IHave((Announcement(KEY_A, EPOCH, seq, seq, 255),)))
    assert len(wire.varint(len(body))) + len(body) <= 20


@given(bundles)
def test_a_bundle_is_forwarded_byte_for_byte(bundle):
    (arrived,) = read(frames((Gossip(4, bundle),)))
    assert frames((Gossip(5, arrived.bundle),)) == [b"\x31\x05" + bundle.raw]


@given(st.lists(st.tuples(topics, st.binary(max_size=300)), min_size=1, max_size=16))
def test_opening_a_bundle_gives_what_was_put_in(messages):
    for level in (None, 1):
        bundle = wire.build_bundle(
            origin=KEY_A, epoch=EPOCH, first=5, messages=messages, zstd_level=level
        )
        assert wire.open_bundle(wire.parse_bundle(bundle.raw)) == messages
        assert bundle == wire.parse_bundle(bundle.raw)
        assert bundle.last == 4 + len(messages)


def test_a_full_bundle_of_the_smallest_messages_passes():
    messages = [("", b"")] * wire.BUNDLE_MESSAGES_MAX
    bundle = wire.build_bundle(origin=KEY_A, epoch=EPOCH, first=1, messages=messages)
    assert wire.open_bundle(wire.parse_bundle(bundle.raw)) == messages


@pytest.mark.parametrize("level", [None, 3])
def test_the_largest_message_under_the_longest_topic_fits_one_frame(level):
    bundle = wire.build_bundle(
        origin=KEY_A,
        epoch=wire.EPOCH_MAX,
        first=wire.SEQ_MAX,
        messages=[("t" * wire.TOPIC_BYTES_MAX, bytes(wire.PAYLOAD_BYTES_MAX))],
        zstd_level=level,
        algorithm=SignatureAlgorithm.RSA_PSS_SHA256,
        key_id=b"k" * 16,
        signed_at=wire.MILLISECONDS_MAX,
        sign=lambda header, body: b"s" * wire.SIGNATURE_BYTES_MAX,
    )
    (frame,) = frames((Gossip(255, bundle),))
    assert len(frame) <= wire.FRAME_BYTES_MAX
    assert wire.open_bundle(read([frame])[0].bundle)[0][1] == bytes(wire.PAYLOAD_BYTES_MAX)


def test_the_largest_bundle_that_is_configured_fits_with_16_of_the_longest_topics():
    topics = [f"{n:02}" + "t" * (wire.TOPIC_BYTES_MAX - 2) for n in range(16)]
    # bundle_bytes_max (61,440) counts each message as its payload and 8 bytes.
    messages = [(topics[n % 16], bytes(52)) for n in range(1_024)]
    bundle = wire.build_bundle(
        origin=KEY_A,
        epoch=wire.EPOCH_MAX,
        first=1,
        messages=messages,
        sign=lambda header, body: b"s" * wire.SIGNATURE_BYTES_MAX,
    )
    (frame,) = frames((Gossip(255, bundle),))
    assert len(frame) <= wire.FRAME_BYTES_MAX
    assert wire.open_bundle(read([frame])[0].bundle) == messages


def test_two_of_the_largest_records_fit_a_hello():
    filler = wire.RECORD_BYTES_MAX - len(BARE_RECORD.raw) - 160
    record = wire.build_record(
        node_id=NodeId.parse("spiffe://d.test/" + "n" * 112),
        epoch=wire.EPOCH_MAX,
        incarnation=wire.INCARNATION_MAX,
        addresses=(),
        valid_until=wire.MILLISECONDS_MAX,
        chain=(bytes(4_000), bytes(filler - 4_000)),
    )
    assert wire.RECORD_BYTES_MAX - 160 < len(record.raw) <= wire.RECORD_BYTES_MAX
    hello = Hello(1, 0, (1 << 62) - 1, "c" * 64, record, 65_527, b"L" * 16, True, b"R" * 16, record)
    (frame,) = frames((hello,))
    assert len(frame) <= wire.HELLO_BYTES_MAX
    assert read([frame]) == (hello,)


def test_an_own_record_that_others_would_refuse_is_our_own_error():
    with pytest.raises(ConfigError, match="own record"):
        wire.build_record(
            node_id=NodeId.parse("spiffe://d.test/n"),
            epoch=1,
            incarnation=0,
            addresses=(),
            valid_until=1,
            meta=bytes(513),
        )


def test_compression_is_used_only_where_it_pays():
    def packed(payload, **options):
        return wire.build_bundle(
            origin=KEY_B, epoch=1, first=1, messages=[("", payload)], **options
        ).compression

    assert packed(bytes(300), zstd_level=3, zstd_bytes_min=256) is Compression.ZSTD
    assert packed(bytes(100), zstd_level=3, zstd_bytes_min=256) is Compression.NONE
    assert packed(bytes(range(256)) * 2, zstd_level=None) is Compression.NONE
    assert packed(bytes(range(256)), zstd_level=3) is Compression.NONE


def test_a_hop_count_stops_at_255_instead_of_failing():
    bundle = wire.build_bundle(origin=KEY_B, epoch=1, first=1, messages=[("", b"x")])
    assert frames((Gossip(256, bundle),))[0][1] == 255
    assert frames((Repair(300, bundle),))[0][1] == 255
    assert wire.encode(Gossip(256, bundle))[1] == 255
    assert wire.encode(Repair(256, bundle))[1] == 255
    assert frames((IHave((Announcement(KEY_A, 1, 1, 1, 256),)),))[0][-1] == 255


def test_the_same_record_and_fact_are_parsed_once_whoever_brings_them():
    again = bytes(bytearray(RECORD.raw))
    assert wire.parse_record(again) is wire.parse_record(RECORD.raw)
    first = wire.decode(Lane.CONTROL, wire.encode(Facts((ALIVE,))))
    other = wire.decode(Lane.CONTROL, wire.encode(Facts((ALIVE, ALIVE))))
    assert other.facts[0] is other.facts[1] is first.facts[0]
    # A byte apart is another thing; and what was refused once is refused again.
    assert wire.parse_record(BARE_RECORD.raw) is not wire.parse_record(RECORD.raw)
    for _ in range(2):
        with pytest.raises(WireError):
            wire.parse_record(RECORD.raw[:-1])
