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

# The clocks are read one after the other, on a busy machine with a moment between them: readings
# that show a jump must be this close together, or the closest of so many.
CLOSE_S = 0.01
READS_MAX = 5
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


@attrs.frozen
class _Reading:
    """All clocks at about one time, the monotonic one before and after the others."""

    before: float
    wall: float
    boot: float
    after: float

    @property
    def width_s(self) -> float:
        return self.after - self.before


def _boottime() -> Callable[[], float] | None:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else lambda: time.clock_gettime(clock)


class Clocks:
    """Compares the clocks of this machine.

    Args:
        monotonic: seconds, of the clock that timers run on.
        wall: the wall clock in seconds.
        boottime: a clock that counts sleep; None where there is none.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        boottime: Callable[[], float] | None = _boottime(),  # noqa: B008 - the same for all
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._boottime = boottime
        at = self._read_closely()
        self._wall_ahead = at.wall - at.before
        self._boot_ahead = at.boot - at.before

    def look(self) -> Jump | None:
        """What has jumped since the last look, or None."""
        at = self._read()
        if any(self._compare(at)):
            # On a busy machine another process may have run between two of the readings.
            at = self._read_closely()
        slept_s, stepped_s = self._compare(at)
        if self._boottime is not None:
            ahead = at.boot - at.before
            # Of several readings the closest is the truest.
            self._boot_ahead = ahead if slept_s else min(self._boot_ahead, ahead)
        if not slept_s and not stepped_s:
            return None
        self._wall_ahead = at.wall - at.before
        return Jump(slept_s, stepped_s)

    def _compare(self, at: _Reading) -> tuple[float, float]:
        """(slept, stepped) in seconds since the last look; 0 for what is too little to tell."""
        slept_s = 0.0
        if self._boottime is not None:
            slept_s = at.boot - at.before - self._boot_ahead
            if slept_s < SLEPT_S_MIN:
                slept_s = 0.0
        stepped_s = at.wall - at.before - self._wall_ahead - slept_s
        return slept_s, stepped_s if abs(stepped_s) >= STEPPED_S_MIN else 0.0

    def _read(self) -> _Reading:
        before = self._monotonic()
        boot = self._boottime() if self._boottime is not None else 0.0
        return _Reading(before, self._wall(), boot, self._monotonic())

    def _read_closely(self) -> _Reading:
        """Of a few readings the closest; the first that is close enough."""
        closest = self._read()
        for _ in range(READS_MAX - 1):
            if closest.width_s <= CLOSE_S:
                break
            closest = min(closest, self._read(), key=lambda each: each.width_s)
        return closest
