"""Whether the wall clock jumped, by which certificates are judged; all else has the monotonic one.

A jump makes certificates and lists end, or begin again, that nobody had looked at since.
"""

import datetime
from collections.abc import Callable

__all__ = ["JUMP_S", "ClockWatch"]

JUMP_S = 60.0
"""What time services correct at once is less; a certificate's dates are kept to a minute anyway."""
LOOK_EVERY_S = 1.0


class ClockWatch:
    """Holds the wall clock against the monotonic one, at most once a second."""

    def __init__(self, wall: Callable[[], datetime.datetime]) -> None:
        self._wall = wall
        self._before: tuple[float, datetime.datetime] | None = None

    def jumped_s(self, now: float) -> float:
        """Seconds by which the wall clock jumped since the last look; 0.0 for up to JUMP_S.

        now: monotonic seconds. A jump is told once. What is less is a correction, and forgotten.
        """
        if self._before is not None and now < self._before[0] + LOOK_EVERY_S:
            return 0.0
        before, self._before = self._before, (now, self._wall())
        if before is None:
            return 0.0
        passed = self._before[1] - before[1]
        jumped_s = passed.total_seconds() - (now - before[0])
        return jumped_s if abs(jumped_s) > JUMP_S else 0.0
