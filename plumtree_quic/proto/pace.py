"""When the pieces of large messages may leave, so that what is small keeps its share. No I/O.

A few pieces leave, and when they have arrived at the neighbours, REST_SHARE times as long passes
without any: that part of paths and processors is left to what is small, however little there is.
It holds over all large messages of a node, so that many of them take no more than one.
"""

from collections.abc import Callable

__all__ = ["BURST_PIECES", "PIECE_PER_ROUND_TRIP_S", "REST_SHARE", "Pace"]

# Pieces that leave before a rest: one for each so long a round trip, within these bounds, or a long
# path would be idle most of the time.
PIECE_PER_ROUND_TRIP_S = 0.01
BURST_PIECES = (1, 8)
REST_SHARE = 1.0


class Pace:
    """The pieces of one node.

    Args:
        wait_s: whoever has not acknowledged a burst within so many seconds is waited for no longer.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        # Of this burst: pieces that may leave yet, and when the first one did.
        self._left = 0
        self._began_at = float("-inf")
        # All of it has left, and it has not arrived yet.
        self._is_underway = False
        self._rests_until = float("-inf")

    def may_send(
        self, now: float, arrived: Callable[[], bool], slowest_rtt_s: Callable[[], float]
    ) -> bool:
        """Whether a piece may leave; then send it and say so to `sent`.

        arrived: whether the last burst is with our neighbours. slowest_rtt_s: of their paths.
        """
        if self._left:
            return True
        if self._is_underway:
            if now < self._began_at + self._wait_s and not arrived():
                return False
            self._is_underway = False
            self._rests_until = now + min(REST_SHARE * (now - self._began_at), self._wait_s)
        if now < self._rests_until:
            return False
        least, most = BURST_PIECES
        self._left = min(max(least, int(slowest_rtt_s() / PIECE_PER_ROUND_TRIP_S)), most)
        self._began_at = now
        return True

    def sent(self) -> bool:
        """A piece has left. Returns whether it was the last one before a rest."""
        self._left -= 1
        self._is_underway = not self._left
        return self._is_underway

    def next_deadline(self, now: float) -> float | None:
        """When a piece may leave though nothing happens until then; None: that is not for now."""
        due = self._began_at + self._wait_s if self._is_underway else self._rests_until
        return due if due > now else None
