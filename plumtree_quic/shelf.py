"""Bundles of one (origin, epoch) by their sequence numbers. When they leave is for others to say.

Bundles mostly come in order, and the oldest leave first: both cost no search.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from plumtree_quic.intervals import Intervals
from plumtree_quic.messages import Bundle

__all__ = ["Shelf"]


class _HasBundle(Protocol):
    @property
    def bundle(self) -> Bundle: ...


_T = TypeVar("_T", bound=_HasBundle)


class Shelf(Generic[_T]):
    """The bundles of one (origin, epoch), in order of their sequence numbers.

    Attributes:
        held: which numbers are here, as runs, so that a digest costs nothing but copying them.
    """

    __slots__ = ("_entries", "_firsts", "_skip", "held")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._entries: list[_T] = []
        # Entries before this index are gone: cutting them off one by one would move the list.
        self._skip = 0
        self.held = Intervals()

    def find(self, seq: int) -> _T | None:
        """The bundle that holds message `seq`."""
        at = bisect_right(self._firsts, seq, self._skip) - 1
        if at < self._skip:
            return None
        entry = self._entries[at]
        return entry if seq <= entry.bundle.last else None

    def between(self, first: int, last: int) -> Iterator[_T]:
        """The bundles that hold any of first .. last, ascending."""
        at = bisect_right(self._firsts, first, self._skip) - 1
        if at < self._skip or self._entries[at].bundle.last < first:
            at += 1
        while at < len(self._entries) and self._firsts[at] <= last:
            yield self._entries[at]
            at += 1

    def put(self, entry: _T) -> None:
        """Take `entry` in; nothing here may overlap it."""
        first = entry.bundle.first
        firsts = self._firsts
        if not firsts or first > firsts[-1]:
            firsts.append(first)
            self._entries.append(entry)
        else:
            at = bisect_left(firsts, first, self._skip)
            firsts.insert(at, first)
            self._entries.insert(at, entry)
        self.held.add(first, entry.bundle.last)

    def drop(self, entry: _T) -> None:
        """Take out `entry`, which is here; cheapest when it is the first."""
        first = entry.bundle.first
        at = bisect_left(self._firsts, first, self._skip)
        if at == self._skip:
            # The place stays until many can be cut off at once, the bundle must not.
            self._entries[at] = self._entries[-1]
            self._skip += 1
            if self._skip == len(self._firsts) or (
                self._skip >= 64 and self._skip * 2 >= len(self._firsts)
            ):
                del self._firsts[: self._skip]
                del self._entries[: self._skip]
                self._skip = 0
        else:
            del self._firsts[at]
            del self._entries[at]
        self.held.remove(first, entry.bundle.last)
