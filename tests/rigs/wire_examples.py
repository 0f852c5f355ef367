"""One of every message, with contents that never change: what the golden bytes are made of.

The golden file is written by ``python -m tests.rigs.wire_examples --write`` and by nothing else:
once a version is released its bytes stay as they are.
"""

import json
import sys
from pathlib import Path

from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.messages import (
    Ack,
    Announcement,
    BucketHashes,
    Certificates,
    CertificatesWanted,
    Chunk,
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
    Message,
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
)
from plumtree_quic.wire import (
    LinkDecoder,
    LinkEncoder,
    build_bundle,
    build_fact,
    build_record,
    decode_datagram,
)

GOLDEN = Path(__file__).parent.parent / "wire" / "golden.json"

ALPHA = NodeId.parse("spiffe://cluster.test/node/alpha")
BETA = NodeId.parse("spiffe://cluster.test/node/beta")
KEY_A: MemberKey = member_key(ALPHA)
KEY_B: MemberKey = member_key(BETA)
EPOCH = 1_790_000_000_000
SIGNED = {
    "algorithm": SignatureAlgorithm.ECDSA_P256_SHA256,
    "key_id": bytes(range(16)),
    "signed_at": EPOCH + 5,
    "sign": lambda header, body: b"\x5a" * 64,
}

RECORD = build_record(
    node_id=ALPHA,
    epoch=EPOCH,
    incarnation=3,
    addresses=("10.0.0.1:7946", "[2001:db8::1]:7946"),
    zone="eu-1",
    meta=b"\x01\x02",
    valid_until=EPOCH + 86_400_000,
    chain=(b"leaf certificate", b"intermediate certificate"),
    **SIGNED,
)
BARE_RECORD = build_record(
    node_id=BETA, epoch=EPOCH + 1, incarnation=0, addresses=(), valid_until=EPOCH + 2
)
SUSPECT = build_fact(
    subject=KEY_B, epoch=EPOCH, incarnation=7, state=MemberState.SUSPECT, signer=KEY_A, **SIGNED
)
ALIVE = build_fact(subject=KEY_B, epoch=EPOCH, incarnation=8, state=MemberState.ALIVE, signer=KEY_B)
LEFT = build_fact(
    subject=KEY_A, epoch=EPOCH, incarnation=3, state=MemberState.LEFT, signer=KEY_A, **SIGNED
)
BUNDLE = build_bundle(
    origin=KEY_A,
    epoch=EPOCH,
    first=41,
    messages=[("orders", b"one"), ("", b""), ("orders", b"\x00" * 70)],
    **SIGNED,
)
BARE_BUNDLE = build_bundle(origin=KEY_B, epoch=EPOCH, first=1, messages=[("", b"hello")])
ZSTD_BUNDLE = build_bundle(
    origin=KEY_A, epoch=EPOCH, first=44, messages=[("log", b"again " * 100)], zstd_level=3, **SIGNED
)

PIECE = build_bundle(
    origin=KEY_A,
    epoch=EPOCH,
    first=46,
    messages=[("film", b"second half")],
    chunk=(1, 2, 23),
    **SIGNED,
)

# name -> messages that one side writes, in order, on one link. What zstd packs to depends on its
# version, so those bytes are only read, never compared with what is packed today.
STREAMS: dict[str, tuple[Message, ...]] = {
    "hello": (Hello(1, 0, 0, "default", BARE_RECORD, 1_472, b"L" * 16, True),),
    "hello with all": (
        Hello(1, 7, 5, "blue", RECORD, 65_527, b"L" * 16, False, b"R" * 16, BARE_RECORD),
    ),
    "credit": (
        Credit(((Lane.GOSSIP, 262_144), (Lane.SYNC, 63), (Lane.DIRECT, 0), (Lane.IHAVE, 1 << 40))),
    ),
    "wanted": (Wanted(True), Wanted(False)),
    "facts": (Facts((SUSPECT, ALIVE, LEFT)), Facts(())),
    "goodbye": (Goodbye(0x10, "maintenance"), Goodbye(0)),
    "certificates wanted": (CertificatesWanted((bytes(range(16)), b"k" * 16)),),
    "certificates": (
        Certificates(((b"leaf certificate", b"intermediate certificate"), (b"other leaf",))),
        Certificates(()),
    ),
    "graft": (
        Graft(
            (
                GraftEntry(KEY_A, EPOCH, ((1, 1), (3, 70_000)), True),
                GraftEntry(KEY_B, EPOCH + 1, (), False),
            )
        ),
    ),
    "prune": (Prune((KEY_A, KEY_B)),),
    "graft refused": (
        GraftRefused(KEY_A, EPOCH, ((3, 9),), RefusedReason.BUSY),
        GraftRefused(KEY_A, EPOCH, (), RefusedReason.FULL),
        GraftRefused(KEY_B, EPOCH, ((1, 1), (5, 6)), RefusedReason.GONE),
    ),
    "ihave": (
        IHave((Announcement(KEY_A, EPOCH, 1, 3, 0), Announcement(KEY_B, EPOCH, 70_000, 70_000, 4))),
        IHave((Announcement(KEY_A, EPOCH, 4, 4, 2),)),
        IHave((Announcement(KEY_A, EPOCH + 1, 1, 1, 255),)),
    ),
    "gossip": (Gossip(1, BUNDLE), Gossip(2, BARE_BUNDLE)),
    "gossip zstd": (Gossip(255, ZSTD_BUNDLE),),
    "repair": (Repair(3, BUNDLE),),
    "chunk": (Chunk(2, PIECE),),
    "repair of a chunk": (Repair(4, PIECE),),
    "digest": (
        Digest(
            (
                DigestRow(KEY_A, EPOCH, ((1, 40), (44, 44), (100_000, 1 << 40))),
                DigestRow(KEY_B, EPOCH, ()),
            ),
            last=False,
        ),
        Digest((DigestRow(KEY_A, EPOCH, ((45, 45),)),), last=True),
        Digest(()),
    ),
    "pages of a digest": (
        Digest((DigestRow(KEY_B, EPOCH, ((1, 39),)),), last=False, past=True, round=1),
        Digest((), round=31),
    ),
    "digest hashes": (
        DigestHashes(bytes(range(256)) * 8, round=1, joins=True),
        DigestHashes(bytes(2_048), round=31, answer=True),
    ),
    "coverage wanted": (
        CoverageWanted(KEY_A, EPOCH, 45, 1, wide=False, within_s=2.0, last=45),
        CoverageWanted(KEY_A, EPOCH, 1, (1 << 32) - 1, wide=True, within_s=0.001, last=4_096),
    ),
    "coverage": (
        Coverage(KEY_A, EPOCH, 45, 1, b"", last=True),
        Coverage(KEY_A, EPOCH, 45, 7, KEY_A[:8] + KEY_B[:8], last=False),
    ),
    "bucket hashes": (BucketHashes(bytes(range(256)) * 8),),
    "rows": (
        Rows(
            (0, 7, 255),
            (Row(KEY_A, EPOCH, 3, MemberState.ALIVE), Row(KEY_B, EPOCH, 0, MemberState.DEAD)),
            True,
        ),
        Rows((), (), False),
    ),
    "records wanted": (RecordsWanted((KEY_A, KEY_B)),),
    "records": (
        Records((RECORD, BARE_RECORD), (LEFT,), ("10.0.0.9:7946",)),
        Records(()),
    ),
    "direct": (
        Direct(DirectKind.MESSAGE, 1, b"for you alone"),
        Direct(DirectKind.REQUEST, 70_000, b""),
        Direct(DirectKind.REPLY, 2, b"\x00\xff"),
    ),
}
DATAGRAMS: dict[str, tuple[Ping | Ack, ...]] = {
    "ping": (Ping(b"12345678"), Ping(b"\x00" * 8, (SUSPECT,))),
    "ack": (Ack(b"12345678"), Ack(b"\xff" * 8, (ALIVE, LEFT))),
}


def frames(messages: tuple[Message, ...]) -> list[bytes]:
    """Encode what one side writes on one link."""
    encoder = LinkEncoder()
    return [b"".join(encoder.encode(message)) for message in messages]


def lane_of(frame: bytes) -> Lane:
    """Return the lane that a well-formed frame travels on."""
    return Lane(frame[0] >> 4)


def read(bodies: list[bytes]) -> tuple[Message, ...]:
    """Decode what one side wrote on one link."""
    decoder = LinkDecoder()
    return tuple(
        decoder.decode(lane_of(body), body) if body[0] < 0x70 else decode_datagram(body)
        for body in bodies
    )


def golden() -> dict[str, list[bytes]]:
    """Return the bytes that version 1.0 of the wire has, by name of the stream."""
    stored = json.loads(GOLDEN.read_text())
    return {name: [bytes.fromhex(each) for each in bodies] for name, bodies in stored.items()}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("nothing done; --write replaces the golden bytes")
    GOLDEN.write_text(
        json.dumps(
            {
                name: [frame.hex() for frame in frames(messages)]
                for name, messages in {**STREAMS, **DATAGRAMS}.items()
            },
            indent=1,
        )
        + "\n"
    )
