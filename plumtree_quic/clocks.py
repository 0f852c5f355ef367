"""Clocks that jump against each other: the only trace of a machine that was asleep.

Timers run on the monotonic clock. On Linux and macOS it stands still while the machine is
suspended, so no timer is late afterwards; Linux has a second clock, CLOCK_BOOTTIME, that went on.
The wall clock may be set at any time, but it is also all that shows when a virtual machine was
paused or moved and its monotonic clock with it. Neither proves anything of other nodes.
"""

import time
from collections.abc import Callable

import attrs

__all__ = ["Clocks", "Jump"]

# The two clocks are read one after the other, on a busy machine with a moment between them.
SLEPT_S_MIN = 0.5
# NTP slews what is less than 0.128 s and the kernel's slewing moves both clocks; a leap is 1 s.
STEPPED_S_MIN = 1.5


@attrs.frozen
class Jump:
    """What two clocks say of the time since they were looked at last.

    slept_s: seconds that went by while the monotonic clock stood still. stepped_s: by how much the
    wall clock was set beyond that; negative when backwards.
    """

    slept_s: float
    stepped_s: float


def _boottime() -> Callable[[], float] | None:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else lambda: time.clock_gettime(clock)


class Clocks:
    """Compares the clocks of this machine.

    Args:
        now: monotonic seconds.
        wall: the wall clock in seconds.
        boottime: a clock that counts sleep; None where there is none.
    """

    def __init__(
        self,
        now: float,
        wall: Callable[[], float] = time.time,
        boottime: Callable[[], float] | None = _boottime(),  # noqa: B008 - the same for all
    ) -> None:
        self._wall = wall
        self._boottime = boottime
        self._wall_ahead = wall() - now
        self._boot_ahead = boottime() - now if boottime is not None else 0.0

    def look(self, now: float) -> Jump | None:
        """What has jumped since the last look, or None. `now` was read just before."""
        slept_s = 0.0
        if self._boottime is not None:
            ahead = self._boottime() - now
            slept_s = ahead - self._boot_ahead
            if slept_s < SLEPT_S_MIN:
                # Of several readings the closest pair is the truest.
                self._boot_ahead = min(self._boot_ahead, ahead)
                slept_s = 0.0
            else:
                self._boot_ahead = ahead
        ahead = self._wall() - now
        stepped_s = ahead - self._wall_ahead - slept_s
        if abs(stepped_s) < STEPPED_S_MIN:
            stepped_s = 0.0
        if not slept_s and not stepped_s:
            return None
        self._wall_ahead = ahead
        return Jump(slept_s, stepped_s)
