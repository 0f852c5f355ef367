"""The messages of each origin in the order in which it sent them, for one reader. No I/O, no clock.

Trees and repairs bring bundles out of order. What comes before its turn is held back until what is
missing has come, is known to be nothing (refused, or before our time), or is given up after a
while. What is given up is told as a hole, at its place; when it comes after all it is not handed
over. The epochs of an origin follow one another: a newer one waits until the older one is complete.
Where the older one ends, the first bundle of the newer one says; an origin that has no memory of
its former lives cannot say it, and then quiet must do.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import attrs

from plumtree_quic.ids import MemberKey
from plumtree_quic.intervals import Intervals
from plumtree_quic.messages import Range

__all__ = ["HoldBack", "Hole"]

_T = TypeVar("_T")

SeenThrough = Callable[[MemberKey, int, int], int]
"""(origin, epoch, seq): the last of the run of seen messages that begins at seq, or seq - 1."""
IsAwaited = Callable[[MemberKey, int, int | None], bool]
"""(origin, epoch, before): whether anything is announced and missing there, below `before`."""


@attrs.frozen
class Hole:
    """first .. last of (origin, epoch) did not come in time, and will not be handed over."""

    origin: MemberKey
    epoch: int
    first: int
    last: int


@attrs.frozen
class _Moment:
    """What is known while `HoldBack.settle` looks at what waits."""

    seen: SeenThrough
    awaited: IsAwaited
    now: float
    whole: bool


@attrs.define(eq=False)
class _Stream(Generic[_T]):
    """One epoch of an origin. next_seq: the first that was not handed over; None before we know.

    held: by first sequence number, (last, items); firsts: its keys, ascending. blocked_at: since
    when the first of them waits. touched_at: when anything came last. told: what was told as holes.
    previous: the epoch before this one, and its last number, where the first bundle named them.
    """

    touched_at: float
    next_seq: int | None = None
    held: dict[int, tuple[int, Sequence[_T]]] = attrs.field(factory=dict)
    firsts: list[int] = attrs.field(factory=list)
    blocked_at: float = 0.0
    told: Intervals = attrs.field(factory=Intervals)
    previous: Range | None = None


@attrs.define(eq=False)
class _Origin(Generic[_T]):
    """current: the epoch whose turn it is. begun: something was handed over. load: items and ranges
    of it that are held back. bytes: what these items weigh.
    """

    current: int
    begun: bool = False
    epochs: dict[int, _Stream[_T]] = attrs.field(factory=dict)
    load: int = 0
    bytes: int = 0


class HoldBack(Generic[_T]):
    """Puts what is delivered in order.

    Args:
        hold_s: how long a missing message is waited for, from when it holds others up.
        quiet_s: a stream whose beginning nobody has told of begins with what came first, and an
            epoch is over, when nothing came for so long and nothing is known to be missing.
        items_max: what may be held back, in items and in ranges that came before their turn; above
            it the first hole of whoever holds most is given up at once, so that one origin with
            holes on purpose makes nobody else's turn into gaps.
        bytes_max: the same, in what items weigh. weigh: how much one does.

    Attributes:
        held: items that wait. late: messages that came too late for their place.
    """

    def __init__(
        self,
        *,
        hold_s: float,
        quiet_s: float,
        items_max: int,
        bytes_max: int = 1 << 62,
        weigh: Callable[[_T], int] = lambda _: 0,
    ) -> None:
        self._hold_s = hold_s
        self._quiet_s = quiet_s
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._weigh = weigh
        self._origins: dict[MemberKey, _Origin[_T]] = {}
        # Origins of which something is held.
        self._waiting: dict[MemberKey, None] = {}
        self._load = self._bytes = 0
        self.held = 0
        self.late = 0

    @property
    def is_waiting(self) -> bool:
        """Whether anything is held back, or came before its turn without being for this reader."""
        return bool(self._waiting)

    def begin(self, origin: MemberKey, epoch: int, next_seq: int | None, now: float) -> None:
        """All before `next_seq` was handed to others before this reader came. None: nobody knows
        where this reader begins in that epoch, but nothing older is for it.
        """
        stream: _Stream[_T] = _Stream(now, next_seq)
        self._origins[origin] = _Origin(epoch, next_seq is not None, {epoch: stream})

    def put(
        self,
        origin: MemberKey,
        epoch: int,
        first: int,
        last: int,
        items: Sequence[_T],
        now: float,
        previous: Range | None = None,
    ) -> list[_T | Hole]:
        """first .. last were delivered; `items` is what this reader wants of them, in order.

        previous: what the bundle says of the epoch before its own: (epoch, last number).
        """
        known = self._origins.get(origin)
        if known is None:
            known = self._origins[origin] = _Origin(epoch)
        if epoch < known.current and not known.begun:
            known.current = epoch
        if epoch < known.current:
            self.late += last - first + 1
            return [Hole(origin, epoch, first, last)]
        stream = known.epochs.get(epoch)
        if stream is None:
            stream = known.epochs[epoch] = _Stream(now)
        stream.touched_at = now
        if stream.next_seq is not None and first < stream.next_seq:
            self.late += last - first + 1
            # Taken for something from before our time, it was not told yet.
            return [] if stream.told.covers(first, last) else [Hole(origin, epoch, first, last)]
        if first == 1:
            stream.next_seq = 1
            self._note_previous(known, epoch, stream, previous, now)
        out: list[_T | Hole] = []
        if epoch == known.current and stream.next_seq == first and not stream.firsts:
            stream.next_seq = last + 1
            known.begun = True
            out += items
            while self._may_follow(known):
                self._next_epoch(origin, known, now, out)
            self._tidy(origin)
            return out
        at = bisect_left(stream.firsts, first)
        if (at and stream.held[stream.firsts[at - 1]][0] >= first) or (
            at < len(stream.firsts) and stream.firsts[at] <= last
        ):
            # Its origin used a number twice; who came first has it.
            self.late += last - first + 1
            return out
        if not stream.firsts:
            stream.blocked_at = now
        stream.held[first] = (last, items)
        stream.firsts.insert(at, first)
        self._count(known, items, 1)
        self._waiting[origin] = None
        if epoch == known.current:
            self._release(known, stream, now, out)
        while self._may_follow(known):
            self._next_epoch(origin, known, now, out)
        self._tidy(origin)
        while self._load > self._items_max:
            most = max(self._waiting, key=lambda each: self._origins[each].load)
            out += self._give_up(most, now)
        while self._bytes > self._bytes_max:
            most = max(self._waiting, key=lambda each: self._origins[each].bytes)
            out += self._give_up(most, now)
        return out

    def _count(self, known: _Origin[_T], items: Sequence[_T], sign: int) -> None:
        """A range with these items is held back from now on (1), or no more (-1)."""
        load, size = sign * (len(items) + 1), sign * sum(map(self._weigh, items))
        self.held += sign * len(items)
        self._load += load
        known.load += load
        self._bytes += size
        known.bytes += size

    def note_progress(self, origin: MemberKey, epoch: int, first: int, now: float) -> None:
        """Part of what begins at `first`, and holds others up, has just come: it is not late."""
        known = self._origins.get(origin)
        stream = known.epochs.get(epoch) if known is not None else None
        if stream is not None and stream.next_seq in (None, first):
            stream.blocked_at = now

    def settle(
        self, seen: SeenThrough, awaited: IsAwaited, now: float, *, whole: bool = False
    ) -> list[_T | Hole]:
        """Hand over what waits for nothing any more. Call it now and then while `held` is not 0.

        whole: what was before our time counts as seen, so that each stream begins at 1 for us. Not
        while deliveries are on their way here: what is seen and did not come will not come.
        """
        out: list[_T | Hole] = []
        at = _Moment(seen, awaited, now, whole)
        for origin in tuple(self._waiting):
            known = self._origins[origin]
            while self._step(origin, known, at, out):
                pass
            self._tidy(origin)
        return out

    def flush(self, now: float) -> list[_T | Hole]:
        """Hand over all that is held, with holes for what is missing: the reader is about to go."""
        out: list[_T | Hole] = []
        while self._waiting:
            out += self._give_up(next(iter(self._waiting)), now)
        return out

    # --- one origin -----------------------------------------------------------------------------

    def _step(
        self, origin: MemberKey, known: _Origin[_T], at: _Moment, out: list[_T | Hole]
    ) -> bool:
        """One step towards the first that waits; False when there is none to be made now."""
        epoch = known.current
        stream = known.epochs[epoch]
        if not stream.firsts:
            return self._step_to_next_epoch(origin, known, at, out)
        lowest = stream.firsts[0]
        blocked = at.now - stream.blocked_at
        if stream.next_seq is None:
            end = at.seen(origin, epoch, 1)
            if end >= 1 or at.whole:
                stream.next_seq = min(end + 1, lowest)
            elif blocked >= self._quiet_s and not at.awaited(origin, epoch, lowest):
                # Nobody has told of anything before it: it was before our time.
                stream.next_seq = lowest
            elif blocked >= self._hold_s:
                self._skip(origin, epoch, stream, 1, out)
            else:
                return False
        else:
            end = at.seen(origin, epoch, stream.next_seq)
            if end >= stream.next_seq:
                # Refused, or before our time.
                stream.next_seq = min(end + 1, lowest)
            elif blocked >= self._hold_s:
                self._skip(origin, epoch, stream, stream.next_seq, out)
            else:
                return False
        self._release(known, stream, at.now, out)
        return True

    def _step_to_next_epoch(
        self, origin: MemberKey, known: _Origin[_T], at: _Moment, out: list[_T | Hole]
    ) -> bool:
        """Nothing of the current epoch is held: go on to the next one, when it is complete."""
        newer = _newer(known)
        if newer is None:
            return False
        epoch, stream, after = known.current, known.epochs[known.current], known.epochs[newer]
        if not self._may_follow(known) and at.now - after.blocked_at < self._hold_s:
            next_seq = stream.next_seq or 1
            end = at.seen(origin, epoch, next_seq)
            if end >= next_seq:
                # Refused, or before our time.
                stream.next_seq = end + 1
                return True
            if after.previous is not None or not after.firsts:
                return False
            if at.whole and after.firsts[0] > 1 and at.seen(origin, newer, 1) == 0:
                # Its first bundle is still to come, and may say where the epoch before it ends.
                return False
            if at.now - stream.touched_at < self._quiet_s or at.awaited(origin, epoch, None):
                return False
        return self._next_epoch(origin, known, at.now, out)

    def _note_previous(
        self,
        known: _Origin[_T],
        epoch: int,
        stream: _Stream[_T],
        previous: Range | None,
        now: float,
    ) -> None:
        """The first bundle of an epoch says which one it follows, and where that ends."""
        stream.previous = previous
        if previous is None or previous[0] in known.epochs or previous[0] >= epoch:
            return
        if previous[0] > known.current or not known.begun:
            known.epochs[previous[0]] = _Stream(now, blocked_at=now)
            known.current = min(known.current, previous[0])

    def _may_follow(self, known: _Origin[_T]) -> bool:
        """Whether all of the current epoch was handed over, by the word of the next one."""
        newer = _newer(known)
        stream = known.epochs.get(known.current)
        if newer is None or stream is None or stream.firsts:
            return False
        previous = known.epochs[newer].previous
        if previous is None or previous[0] > known.current:
            return False
        return previous[0] < known.current or (stream.next_seq or 1) > previous[1]

    def _next_epoch(
        self, origin: MemberKey, known: _Origin[_T], now: float, out: list[_T | Hole]
    ) -> bool:
        newer = _newer(known)
        if newer is None:
            return False
        former = known.epochs.pop(known.current)
        previous = known.epochs[newer].previous
        next_seq = former.next_seq or 1
        if previous is not None and previous[0] == known.current and next_seq <= previous[1]:
            out.append(Hole(origin, known.current, next_seq, previous[1]))
        known.current = newer
        known.begun = True
        stream = known.epochs[known.current]
        stream.blocked_at = now
        self._release(known, stream, now, out)
        return True

    def _skip(
        self, origin: MemberKey, epoch: int, stream: _Stream[_T], first: int, out: list[_T | Hole]
    ) -> None:
        lowest = stream.firsts[0]
        out.append(Hole(origin, epoch, first, lowest - 1))
        stream.told.add(first, lowest - 1)
        stream.next_seq = lowest

    def _release(
        self, known: _Origin[_T], stream: _Stream[_T], now: float, out: list[_T | Hole]
    ) -> None:
        """Hand over what is next, and what follows it without a hole."""
        while stream.firsts and stream.firsts[0] == stream.next_seq:
            last, items = stream.held.pop(stream.firsts.pop(0))
            known.begun = True
            stream.next_seq = last + 1
            stream.blocked_at = now
            self._count(known, items, -1)
            out += items

    def _give_up(self, origin: MemberKey, now: float) -> list[_T | Hole]:
        """The first hole of `origin`, and what it held up."""
        out: list[_T | Hole] = []
        known = self._origins[origin]
        while not known.epochs[known.current].firsts:
            if not self._next_epoch(origin, known, now, out):
                break
        stream = known.epochs[known.current]
        if stream.firsts:
            first = stream.next_seq if stream.next_seq is not None else 1
            if first < stream.firsts[0]:
                self._skip(origin, known.current, stream, first, out)
            self._release(known, stream, now, out)
        self._tidy(origin)
        return out

    def _tidy(self, origin: MemberKey) -> None:
        if not any(stream.firsts for stream in self._origins[origin].epochs.values()):
            self._waiting.pop(origin, None)


def _newer(known: _Origin[_T]) -> int | None:
    """The epoch that follows the current one, as far as we know."""
    return min((epoch for epoch in known.epochs if epoch > known.current), default=None)
