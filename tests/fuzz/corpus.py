"""The corpus: valid examples to begin with, made here, and what was found, kept in files."""

import os
from pathlib import Path

from plumtree_quic.messages import Lane
from tests.rigs.handshakes import PKI
from tests.rigs.wire_examples import (
    BARE_BUNDLE,
    BUNDLE,
    PIECE,
    RECORD,
    ZSTD_BUNDLE,
    golden,
    lane_of,
)

FOLDER = Path(__file__).parent / "corpus"


def made(target: str) -> list[bytes]:
    """Well-formed inputs of a target."""
    bodies = [body for each in golden().values() for body in each]
    match target:
        case "tls":
            leaf = PKI.node("fuzz").der
            return [
                b"\x00\x00\x00" + leaf,
                b"\x00" + len(leaf).to_bytes(2, "big") + leaf + PKI.ca.der,
                b"\x80\x01\x00\x00\x2a\x03\x03" + bytes(60),
                b"\xff\x01\x02\x00\x00\x00\x00",
            ]
        case "frame":
            return [
                bytes((lane_of(body) if body[0] < 0x70 else 0,))
                + len(body).to_bytes(4, "big").replace(b"\0\0", b"\x80\0", 1)
                + body
                for body in bodies
                if len(body) < 4_096
            ]
        case "bundle":
            return [each.raw for each in (BUNDLE, BARE_BUNDLE, ZSTD_BUNDLE, PIECE)]
        case "record":
            return [RECORD.raw, *(body[1:] for body in bodies if body[0] in (1, 4, 7, 0x46))]
        case "digest":
            chosen = [
                body
                for body in bodies
                if len(body) <= 256 and body[0] < 0x70
                and lane_of(body) in (Lane.IHAVE, Lane.GRAFT, Lane.SYNC)
            ]  # fmt: skip
            each = [bytes((number & 3, len(body) - 1)) + body for number, body in enumerate(chosen)]
            return [*each, b"".join(each)]
    raise AssertionError(target)


def kept(target: str) -> list[bytes]:
    """What earlier runs found and minimized."""
    folder = FOLDER / target
    if not folder.is_dir():
        return []
    return [(folder / name).read_bytes() for name in sorted(os.listdir(folder))]
