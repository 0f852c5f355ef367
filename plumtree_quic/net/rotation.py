"""Rotation: which links have to be made anew since our credentials changed, a few at a time.

Make before break (ARCHITECTURE section 3): a link that was made with an older certificate, or
whose peer no longer chains to what we trust, is replaced by one under the new credentials while
it goes on carrying frames. No sockets and no certificates here, only whose turn it is.
"""

from random import Random

import attrs

from plumtree_quic.ids import NodeId

__all__ = ["CUT_AFTER_S", "Rotation"]

CUT_AFTER_S = 10.0
"""A link whose peer is trusted no more is cut after so long, replaced or not. A guess."""
# Of all links so many are replaced at one time, and one at least.
AT_A_TIME = 0.05
# When both ends rotate together, the larger NodeId waits, as with crossed dials.
LARGER_WAITS_S = (0.5, 1.0)
LOOK_AGAIN_S = 0.05
RETRY_S = (1.0, 30.0)


@attrs.define
class _Due:
    at: float
    cut_at: float | None
    tries: int = 0


class Rotation:
    """Whose link is replaced when. `now` is monotonic seconds."""

    def __init__(self, me: NodeId, rng: Random) -> None:
        self._me = me
        self._rng = rng
        self._due: dict[NodeId, _Due] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, peer: NodeId, now: float, *, trusted: bool) -> None:
        """The link to `peer` is out of date; `trusted`: its certificate still counts.

        What was to be cut is cut no later for being added again.
        """
        wait_s = self._rng.uniform(*LARGER_WAITS_S) if self._me > peer else 0.0
        cut_at = None if trusted else now + CUT_AFTER_S
        before = self._due.get(peer)
        if cut_at is not None and before is not None and before.cut_at is not None:
            cut_at = before.cut_at
        self._due[peer] = _Due(now + wait_s, cut_at)

    def done(self, peer: NodeId) -> None:
        """The link to `peer` is up to date, or gone."""
        self._due.pop(peer, None)

    def next_deadline(self) -> float | None:
        """When somebody's turn comes, or None."""
        return min((min(due.at, due.cut_at or due.at) for due in self._due.values()), default=None)

    def due(self, now: float) -> list[NodeId]:
        """Whose turn it is, in the order in which they were added."""
        return [
            peer
            for peer, due in self._due.items()
            if due.at <= now or (due.cut_at is not None and due.cut_at <= now)
        ]

    def is_over(self, peer: NodeId, now: float) -> bool:
        """Whether the link to `peer` has had its time, and is to be cut."""
        cut_at = self._due[peer].cut_at
        return cut_at is not None and cut_at <= now

    def may_start(self, running: int, links: int) -> bool:
        """Whether one more replacement may be dialled beside those that run."""
        return running < max(1, int(links * AT_A_TIME))

    def put_off(self, peer: NodeId, now: float) -> None:
        """Not now: others are being replaced."""
        self._due[peer].at = now + LOOK_AGAIN_S

    def started(self, peer: NodeId, now: float) -> None:
        """A replacement was dialled; when it comes to nothing, the next try waits longer."""
        due = self._due[peer]
        first, largest = RETRY_S
        due.at = now + min(largest, first * 2.0**due.tries) * self._rng.uniform(1.0, 1.5)
        due.tries += 1
