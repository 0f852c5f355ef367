"""What may reach a QUIC engine at all: a cheap look at a datagram's outside. Pure functions.

Everything here is decided from bytes that anybody can send, before anything is allocated, so it
must be quick and must never raise. Shapes are RFC 9000's (section 17), narrowed to what this
project sends: version 1, connection IDs of 8 bytes of ours, no Version Negotiation, ever.
"""

from enum import Enum

import attrs

__all__ = ["DATAGRAM_BYTES_MIN", "Shape", "Verdict", "look"]

DATAGRAM_BYTES_MIN = 21
LONG_DATAGRAM_BYTES_MAX = 1_472
INITIAL_DATAGRAM_BYTES_MIN = 1_200
INITIAL_CID_BYTES_MIN = 8
CID_BYTES_MAX = 20
TOKEN_BYTES_MAX = 256
COALESCED_MAX = 4
# 4 bytes of packet number at most and 16 of sample or tag must follow its offset (RFC 9001, 5.4.2).
AFTER_PACKET_NUMBER_BYTES_MIN = 20
OUR_CID_BYTES = 8
SHORT_BYTES_MIN = 1 + OUR_CID_BYTES + AFTER_PACKET_NUMBER_BYTES_MIN
VERSION_1 = b"\x00\x00\x00\x01"


class Shape(Enum):
    """What a datagram looks like from outside."""

    DROP = 0
    SHORT = 1
    INITIAL = 2
    LONG = 3
    RETRY = 4


@attrs.frozen
class Verdict:
    """shape; the first packet's connection IDs; an Initial's token."""

    shape: Shape
    destination_cid: bytes = b""
    source_cid: bytes = b""
    token: bytes = b""


_DROP = Verdict(Shape.DROP)


def look(data: bytes, datagram_bytes_max: int) -> Verdict:
    """Judge one UDP payload; datagram_bytes_max is the largest that we advertise."""
    size = len(data)
    if size < DATAGRAM_BYTES_MIN or size > datagram_bytes_max:
        return _DROP
    first = data[0]
    if not first & 0x80:
        if not first & 0x40 or size < SHORT_BYTES_MIN:
            return _DROP
        return Verdict(Shape.SHORT, data[1 : 1 + OUR_CID_BYTES])
    if size > LONG_DATAGRAM_BYTES_MAX:
        return _DROP
    try:
        return _look_long(data, size)
    except IndexError:
        return _DROP


def _look_long(data: bytes, size: int) -> Verdict:
    verdict: Verdict | None = None
    at = 0
    for number in range(COALESCED_MAX + 1):
        if at >= size:
            break
        first = data[at]
        if not first & 0x80:
            if not _ends_well(data, at, number, verdict):
                return _DROP
            break
        if number == COALESCED_MAX or not first & 0x40 or data[at + 1 : at + 5] != VERSION_1:
            return _DROP
        cid_end = at + 6 + data[at + 5]
        destination_cid = data[at + 6 : cid_end]
        source_end = cid_end + 1 + data[cid_end]
        source_cid = data[cid_end + 1 : source_end]
        if max(len(destination_cid), len(source_cid)) > CID_BYTES_MAX or source_end > size:
            return _DROP
        kind = (first & 0x30) >> 4
        if kind == 3:
            # A Retry stands alone; its token is what is between the header and the 16-byte tag.
            if number or not 16 < size - source_end <= TOKEN_BYTES_MAX + 16:
                return _DROP
            return Verdict(Shape.RETRY, destination_cid, source_cid)
        if kind == 1:
            return _DROP  # 0-RTT: we never offer it
        here = source_end
        token = b""
        if kind == 0:
            token_bytes, here = _varint(data, here)
            if token_bytes > TOKEN_BYTES_MAX or here + token_bytes > size:
                return _DROP
            token = data[here : here + token_bytes]
            here += token_bytes
        length, here = _varint(data, here)
        if length < AFTER_PACKET_NUMBER_BYTES_MIN or here + length > size:
            return _DROP
        if verdict is None:
            if kind == 0 and (
                size < INITIAL_DATAGRAM_BYTES_MIN or len(destination_cid) < INITIAL_CID_BYTES_MIN
            ):
                return _DROP
            shape = Shape.INITIAL if kind == 0 else Shape.LONG
            verdict = Verdict(shape, destination_cid, source_cid, token)
        elif destination_cid != verdict.destination_cid:
            return _DROP
        at = here + length
    return verdict if verdict is not None else _DROP


def _ends_well(data: bytes, at: int, number: int, verdict: Verdict | None) -> bool:
    """Whether what follows the long packets is padding, or one short packet (section 12.2)."""
    if verdict is None:
        return False
    if not data[at]:
        return data.count(0, at) == len(data) - at
    return (
        bool(data[at] & 0x40)
        and number < COALESCED_MAX
        and len(data) - at >= SHORT_BYTES_MIN
        and data[at + 1 : at + 1 + OUR_CID_BYTES] == verdict.destination_cid
    )


def _varint(data: bytes, at: int) -> tuple[int, int]:
    first = data[at]
    size = 1 << (first >> 6)
    if at + size > len(data):
        raise IndexError
    value = int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
    return value, at + size
