"""Frames on a lane: ``varint length | body``, behind the lane's number. Bytes only, no meaning.

A stream begins with one byte, the lane. What a body says is wire.py's business.
"""

from plumtree_quic.errors import WireError
from plumtree_quic.messages import Lane
from plumtree_quic.wire import FRAME_BYTES_MAX, HELLO_BYTES_MAX, varint

__all__ = ["CONTROL_FRAME_BYTES_MAX", "FRAME_BYTES_MAX_OF", "FrameReader", "frame"]

CONTROL_FRAME_BYTES_MAX = HELLO_BYTES_MAX + 16_384
_SMALL_FRAME_BYTES_MAX = 65_536

FRAME_BYTES_MAX_OF: dict[Lane, int] = {
    Lane.CONTROL: CONTROL_FRAME_BYTES_MAX,
    Lane.GRAFT: _SMALL_FRAME_BYTES_MAX,
    Lane.IHAVE: _SMALL_FRAME_BYTES_MAX,
    Lane.GOSSIP: FRAME_BYTES_MAX,
    Lane.SYNC: FRAME_BYTES_MAX,
    Lane.DIRECT: FRAME_BYTES_MAX,
    Lane.BULK: FRAME_BYTES_MAX,
}
"""Bytes of one frame's body, by lane; a longer one is refused at its length."""


def frame(parts: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Put the length before a body that is given in parts."""
    if len(parts) == 1:
        return (varint(len(parts[0])) + parts[0],)
    first = parts[0]
    return (varint(sum(map(len, parts))) + first, *parts[1:])


class FrameReader:
    """Cuts the bytes of one lane into frame bodies, with a bounded buffer."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._max = frame_bytes_max
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete frame that are kept."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[tuple[bytes, int]]:
        """Take the next bytes; return complete bodies, each with the bytes its frame took.

        Raises:
            WireError: a frame is longer than the lane allows, or empty.
        """
        if self._buffer:
            self._buffer += data
            if not self._complete(self._buffer):
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        bodies: list[tuple[bytes, int]] = []
        at, end = 0, len(data)
        while at < end:
            size_bytes = 1 << (data[at] >> 6)
            start = at + size_bytes
            if start > end:
                break
            size = int.from_bytes(data[at:start], "big") & ((1 << (8 * size_bytes - 2)) - 1)
            if not 0 < size <= self._max:
                raise WireError("a frame's length is out of range")
            if start + size > end:
                break
            bodies.append((data[start : start + size], size_bytes + size))
            at = start + size
        if at < end:
            self._buffer += data[at:]
        return bodies

    def _complete(self, buffer: bytearray) -> bool:
        size_bytes = 1 << (buffer[0] >> 6)
        if len(buffer) < size_bytes:
            return False
        size = int.from_bytes(buffer[:size_bytes], "big") & ((1 << (8 * size_bytes - 2)) - 1)
        return size > self._max or len(buffer) >= size_bytes + size
