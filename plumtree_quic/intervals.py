"""Intervals: a set of sequence numbers kept as sorted, disjoint, inclusive runs; nothing else.

No idea of origins, epochs or why a number is in the set: the same class holds what was seen and
what can be served. A stream that arrives in order costs one comparison and one assignment.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Self

from plumtree_quic.messages import Range

__all__ = ["Intervals"]


class Intervals:
    """Sorted, disjoint, never adjacent runs of integers >= 1."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    @classmethod
    def of(cls, ranges: Iterable[Range]) -> Self:
        """The set of all that lies in any of `ranges`."""
        out = cls()
        for first, last in ranges:
            out.add(first, last)
        return out

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        """Return the number of runs, not of numbers."""
        return len(self._starts)

    @property
    def highest(self) -> int:
        """The largest number in the set; 0 when it is empty."""
        return self._ends[-1] if self._ends else 0

    @property
    def gaps(self) -> int:
        """How many holes there are below `highest`, the one in front of the first run included."""
        return len(self._starts) - (1 if self._starts and self._starts[0] == 1 else 0)

    def ranges(self) -> list[Range]:
        """All runs, ascending."""
        return list(zip(self._starts, self._ends, strict=True))

    def lowest_gap(self) -> Range | None:
        """The first hole below `highest`."""
        if not self._starts:
            return None
        if self._starts[0] > 1:
            return (1, self._starts[0] - 1)
        if len(self._starts) > 1:
            return (self._ends[0] + 1, self._starts[1] - 1)
        return None

    def covers(self, first: int, last: int) -> bool:
        """Whether all of first .. last is in the set."""
        starts = self._starts
        if not starts:
            return False
        if first >= starts[-1]:
            return last <= self._ends[-1]
        at = bisect_right(starts, first) - 1
        return at >= 0 and last <= self._ends[at]

    def end_of(self, seq: int) -> int:
        """The last number of the run that holds `seq`; seq - 1 when none does."""
        at = bisect_right(self._starts, seq) - 1
        return self._ends[at] if at >= 0 and seq <= self._ends[at] else seq - 1

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any of first .. last is in the set."""
        ends = self._ends
        if not ends or first > ends[-1]:
            return False
        at = bisect_left(ends, first)
        return self._starts[at] <= last

    def opens_gap(self, first: int, last: int) -> bool:
        """Whether adding first .. last, of which nothing is in the set, makes one hole more."""
        ends = self._ends
        if first == 1:
            return False
        if not ends:
            return True
        at = bisect_left(ends, first)
        if at > 0 and ends[at - 1] + 1 == first:
            return False
        return not (at < len(ends) and self._starts[at] == last + 1)

    def within(self, first: int, last: int) -> list[Range]:
        """What of first .. last is in the set, ascending."""
        starts, ends = self._starts, self._ends
        out: list[Range] = []
        at = bisect_left(ends, first)
        while at < len(starts) and starts[at] <= last:
            out.append((max(first, starts[at]), min(last, ends[at])))
            at += 1
        return out

    def missing(self, first: int, last: int) -> list[Range]:
        """What of first .. last is not in the set, ascending."""
        starts, ends = self._starts, self._ends
        if not ends or first > ends[-1]:
            return [(first, last)]
        out: list[Range] = []
        at = bisect_left(ends, first)
        while first <= last and at < len(starts) and starts[at] <= last:
            if first < starts[at]:
                out.append((first, starts[at] - 1))
            first = ends[at] + 1
            at += 1
        if first <= last:
            out.append((first, last))
        return out

    def add(self, first: int, last: int) -> None:
        """Put first .. last into the set, whatever of it is there already."""
        starts, ends = self._starts, self._ends
        if not ends or first > ends[-1] + 1:
            starts.append(first)
            ends.append(last)
            return
        if first == ends[-1] + 1:
            ends[-1] = last
            return
        # Runs low .. high - 1 overlap or touch first .. last and become one.
        low = bisect_left(ends, first - 1)
        high = bisect_right(starts, last + 1)
        if low < high:
            first = min(first, starts[low])
            last = max(last, ends[high - 1])
        starts[low:high] = [first]
        ends[low:high] = [last]

    def remove(self, first: int, last: int) -> None:
        """Take first .. last out of the set, whatever of it is there."""
        starts, ends = self._starts, self._ends
        low = bisect_left(ends, first)
        high = bisect_right(starts, last)
        if low >= high:
            return
        new_starts: list[int] = []
        new_ends: list[int] = []
        if starts[low] < first:
            new_starts.append(starts[low])
            new_ends.append(first - 1)
        if ends[high - 1] > last:
            new_starts.append(last + 1)
            new_ends.append(ends[high - 1])
        starts[low:high] = new_starts
        ends[low:high] = new_ends
