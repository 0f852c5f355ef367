"""What a peer's bytes may do to us, one target each: nothing but the errors that are meant for it.

A target takes bytes and returns, or raises: then it has found a bug. No network, no clock.
"""

import math
from random import Random

from plumtree_quic import wire
from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.errors import WireError
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import (
    Digest,
    DigestHashes,
    Graft,
    GraftRefused,
    Hello,
    IHave,
    Lane,
    Prune,
    chunk_span,
)
from plumtree_quic.net.engine import EngineFailed
from plumtree_quic.net.framing import FRAME_BYTES_MAX_OF, FrameReader
from plumtree_quic.proto.plumtree import Plumtree
from plumtree_quic.security.gate import Gate
from plumtree_quic.security.identity import (
    CheckFailed,
    check_chain,
    check_key,
    parse_certificates,
    parse_identity,
    public_key_of,
)
from plumtree_quic.security.keyring import KeyRing
from tests.rigs import handshakes
from tests.rigs.evil_quic import Initials, crypto_frame
from tests.rigs.pki import utc

ME, OTHER, THIRD = (NodeId.parse(f"spiffe://test/node/{name}") for name in ("me", "a", "b"))
CREDENTIALS = handshakes.A
NOW = utc()
NOW_MS = int(NOW.timestamp() * 1000)
PATH = ("192.0.2.1", 4433)


def tls(data: bytes) -> None:
    """Certificates as they come, and handshake messages in Initials, which anybody can write."""
    kind, data = data[:1], data[1:]
    if kind < b"\x80":
        cut = int.from_bytes(data[:2], "big")
        chain = [data[2 : 2 + cut], data[2 + cut :]] if cut else [data[2:]]
        try:
            leaf, *issuers = parse_certificates(chain)
            check_key(public_key_of(leaf))
            check_chain(leaf, issuers, CREDENTIALS.anchors, NOW)
            parse_identity(leaf, CREDENTIALS.trust_domain)
        except CheckFailed:
            return
        return
    cid = b"fuzzing!"
    acceptor = handshakes.our_acceptor()(cid)
    keys = Initials(cid, from_dialler=True)
    try:
        for number, at in enumerate(range(0, min(len(data), 4_000), 1_000)):
            part = data[at : at + 1_000]
            frames = crypto_frame(part, at) if kind < b"\xf0" else part
            packet = keys.packet(frames, to=cid, source=b"stranger", number=number, size=1_200)
            acceptor.receive_datagram(packet, PATH, 1.0 + number)
            acceptor.datagrams_to_send(1.0 + number)
    except EngineFailed:
        return
    assert acceptor.peer_id is None


def frame(data: bytes) -> None:
    """What a stream carries: lane, lengths, bodies; and datagrams."""
    if not data:
        return
    lane = Lane(data[0] % len(Lane))
    reader, decoder = FrameReader(FRAME_BYTES_MAX_OF[lane]), wire.LinkDecoder()
    cut = data[0] * len(data) // 256
    try:
        for part in (data[1:cut], data[cut:]):
            for body, _ in reader.feed(part):
                _again(lane, decoder.decode(lane, body))
        assert reader.buffered <= FRAME_BYTES_MAX_OF[lane] + 8
    except WireError:
        pass
    try:
        wire.decode_datagram(data)
    except WireError:
        pass


def _again(lane: Lane, message: object) -> None:
    """What was decoded is encoded to something that decodes to the same."""
    body = b"".join(wire.LinkEncoder().encode(message))
    assert wire.LinkDecoder().decode(lane, body) == message


def bundle(data: bytes) -> None:
    """A bundle: header, signature, body, compressed or not; and its verdict."""
    try:
        parsed = wire.parse_bundle(data)
    except WireError:
        return
    header, body = parsed.signed_parts
    assert header + body
    assert parsed.says_the_same(wire.parse_bundle(parsed.raw))
    lane = Lane.BULK if parsed.is_chunk else Lane.GOSSIP
    _gate().admit(OTHER, wire.decode(lane, bytes(((lane << 4) + 1, 1)) + data), 1.0)
    try:
        if parsed.is_chunk:
            first, end = chunk_span(parsed.chunk_index, parsed.chunk_count, parsed.chunk_bytes)
            assert len(wire.open_piece(parsed)) == end - first
        messages = wire.open_bundle(parsed)
    except WireError:
        return
    assert len(messages) == parsed.count
    assert sum(len(payload) for _, payload in messages) <= wire.BUNDLE_BYTES_MAX


def record(data: bytes) -> None:
    """Records, facts and hello, and their verdicts."""
    gate = _gate()
    try:
        parsed = wire.parse_record(data)
    except WireError:
        pass
    else:
        hello = Hello(1, 0, 0, "c", parsed, 1_200, bytes(16), True, b"", parsed)
        gate.check_hello(ME, hello, 1.0)
    for lane, kind in ((Lane.CONTROL, 0x01), (Lane.CONTROL, 0x04), (Lane.CONTROL, 0x07),
                       (Lane.SYNC, 0x46)):  # fmt: skip
        try:
            message = wire.decode(lane, bytes((kind,)) + data)
        except WireError:
            continue
        gate.admit(OTHER, message, 1.0)


def _gate() -> Gate:
    ring = KeyRing(CREDENTIALS, wall_ms=lambda: NOW_MS, retention_s=60.0)
    gate = Gate(ring, seen=lambda _: False, differs=lambda _: False)
    gate.link_up(OTHER, 0.0)
    return gate


def digest(data: bytes) -> None:
    """What is announced, asked and pruned, on two links of a core, in virtual time."""
    core = Plumtree(member_key(ME), 1, PlumtreeConfig.lan(), Random(1))
    links = (OTHER, THIRD)
    decoders = {peer: wire.LinkDecoder() for peer in links}
    now = 1.0
    for peer in links:
        core.link_up(peer, now)
        core.receive(peer, Digest(()), now)
    at = 0
    while at + 2 < len(data):
        peer = links[data[at] & 1]
        now += (data[at] >> 1) / 64
        size = data[at + 1] + 1
        body, at = data[at + 2 : at + 2 + size], at + 2 + size
        for lane in (Lane.IHAVE, Lane.GRAFT, Lane.SYNC):
            try:
                message = decoders[peer].decode(lane, body)
            except WireError:
                continue
            if isinstance(message, IHave | Graft | Prune | GraftRefused | DigestHashes | Digest):
                core.receive(peer, message, now)
        due = core.next_deadline()
        if due is not None and due <= now:
            core.advance(now)
    stats = core.stats()
    assert stats["missing_ranges"] <= 3_000
    assert stats["tree_delivered"] == 0
    for _ in range(50):
        due = core.next_deadline()
        if due is None:
            break
        assert not math.isnan(due)
        now = max(now, due) + 1e-6
        core.advance(now)


TARGETS = {"tls": tls, "frame": frame, "bundle": bundle, "record": record, "digest": digest}

__all__ = ["TARGETS"]
