"""Large messages put together out of their pieces, with bounded memory. No I/O, no clock, no codec.

A message that one bundle does not take is a run of bundles, each with a number and a signature of
its own, which travel, are stored and are repaired like any other. They come in any order and are
kept here until all of them are there. Who sends pieces that contradict one another gets none of
that message delivered: a run is what its first piece to come says it is.

Memory is bounded per origin, per link and per node, so that nobody who leaves messages incomplete
costs others more than their own share; above a bound what began first goes.
"""

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import Generic, TypeVar

import attrs

from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.messages import Bundle

__all__ = ["Chunks", "ChunksCounters", "Dropped", "Reason", "Whole"]

# How many of the largest messages may be incomplete at a time, of one origin, by one link, and in
# all. An origin sends one after the other, and a second may begin while the first is repaired.
ORIGIN_MESSAGES_MAX = 2
LINK_MESSAGES_MAX = 3
NODE_MESSAGES_MAX = 4
# What a piece costs beside its bytes, as in proto/cache.py.
ENTRY_BYTES = 600
# Messages that were given up, of which more pieces may come. A guess.
GIVEN_UP_MAX = 1_024

_T = TypeVar("_T")
RunKey = tuple[MemberKey, int, int]
"""(origin, epoch, number of the first piece)."""


class Reason(Enum):
    """Why a message was given up."""

    MEMORY = "memory"
    """Above a bound."""
    TIME = "time"
    """No piece came for so long that nobody serves the others any more."""
    PAST = "past"
    """What is missing will not come: it was before our time, or refused, or let go."""
    LIE = "lie"
    """Its origin contradicts itself."""


@attrs.frozen
class Whole(Generic[_T]):
    """A message of which all is here: what was put in for its pieces, in order."""

    first: int
    last: int
    pieces: tuple[_T, ...]


@attrs.frozen
class Dropped(Generic[_T]):
    """first .. last of (origin, epoch) were to be one message, and will not be. pieces: what was
    here of it.
    """

    origin: MemberKey
    epoch: int
    first: int
    last: int
    reason: Reason
    pieces: tuple[_T, ...]


@attrs.define
class ChunksCounters:
    """Plain integers since the start: messages that were put together, and given up, by reason."""

    chunks_joined: int = 0
    chunks_dropped_memory: int = 0
    chunks_dropped_time: int = 0
    chunks_dropped_past: int = 0
    chunks_dropped_lie: int = 0


@attrs.define(eq=False)
class _Run(Generic[_T]):
    """One incomplete message. by_link: bytes that each link has brought of it."""

    key: RunKey
    count: int
    total: int
    topic: str
    touched_at: float
    pieces: dict[int, _T] = attrs.field(factory=dict)
    bytes: int = 0
    by_link: dict[NodeId, int] = attrs.field(factory=dict)

    @property
    def last(self) -> int:
        return self.key[2] + self.count - 1

    def dropped(self, reason: Reason) -> Dropped[_T]:
        return Dropped(*self.key, self.last, reason, tuple(self.pieces.values()))


class Chunks(Generic[_T]):
    """The messages that are not complete yet.

    Args:
        message_bytes_max: the largest message that is taken; the bounds are multiples of it.
        hold_s: a message of which nothing came for so long is given up.

    Attributes:
        message_bytes_max: as given. bytes: what is held, with what it costs beside its bytes.
    """

    def __init__(self, message_bytes_max: int, hold_s: float) -> None:
        self.message_bytes_max = message_bytes_max
        self._hold_s = hold_s
        # In the order in which they began.
        self._runs: OrderedDict[RunKey, _Run[_T]] = OrderedDict()
        self._of_stream: dict[tuple[MemberKey, int], dict[int, _Run[_T]]] = {}
        self._by_origin: dict[MemberKey, int] = {}
        self._by_link: dict[NodeId, int] = {}
        self._given_up: OrderedDict[RunKey, None] = OrderedDict()
        self._dropped: list[Dropped[_T]] = []
        self.bytes = 0
        self.counters = ChunksCounters()

    def __len__(self) -> int:
        """Return how many messages are incomplete."""
        return len(self._runs)

    def put(
        self, bundle: Bundle, piece: _T, now: float, link: NodeId | None = None
    ) -> Whole[_T] | None:
        """A piece has come, verified and for the first time; `piece` stands for it.

        Returns the message when this was the last piece that it lacked. Ask `take_dropped` what
        had to go.
        """
        first, last = bundle.run
        key = (bundle.origin, bundle.epoch, first)
        if key in self._given_up:
            return None
        run = self._runs.get(key)
        if run is None:
            if self._contradicts(bundle.origin, bundle.epoch, first, last):
                self._give_up_key(key)
                return None
            run = self._open(key, bundle, now)
        elif (run.count, run.total, run.topic) != (
            bundle.chunk_count,
            bundle.chunk_bytes,
            bundle.topics[0],
        ):
            # The number of this piece is used up, so the run cannot become complete.
            self._drop(run, Reason.LIE)
            return None
        if bundle.chunk_index in run.pieces:
            return None
        run.touched_at = now
        run.pieces[bundle.chunk_index] = piece
        self._charge(run, len(bundle.raw) + ENTRY_BYTES, link)
        if len(run.pieces) == run.count:
            self._close(run)
            self.counters.chunks_joined += 1
            return Whole(first, run.last, tuple(run.pieces[at] for at in range(run.count)))
        self._shrink(run, link)
        return None

    def note(self, bundle: Bundle) -> None:
        """A bundle that is no piece has come: a run that claims its numbers is a lie."""
        stream = self._of_stream.get((bundle.origin, bundle.epoch))
        if stream is not None:
            self._contradicts(bundle.origin, bundle.epoch, bundle.first, bundle.last)

    def expire(self, now: float) -> None:
        """Give up what nothing came of for too long. Call it now and then."""
        for run in [each for each in self._runs.values() if each.touched_at + self._hold_s <= now]:
            self._drop(run, Reason.TIME)

    def settle(self, seen: Callable[[MemberKey, int, int], int]) -> None:
        """Give up that of which all that is missing counts as seen and did not come.

        seen: as in proto/fifo.py. Not while deliveries are on their way here.
        """
        for run in list(self._runs.values()):
            if seen(*run.key) >= run.last:
                self._drop(run, Reason.PAST)

    def take_dropped(self) -> list[Dropped[_T]]:
        """What was given up since the last call."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def pieces(self) -> list[_T]:
        """All that is held, for a reader that begins now."""
        return [piece for run in self._runs.values() for piece in run.pieces.values()]

    def begin(self, origin: MemberKey, epoch: int, seq: int) -> int:
        """Where a reader begins that would begin at `seq`: before a message that is incomplete."""
        run = self._covering(origin, epoch, seq - 1) if seq > 1 else None
        return run.key[2] if run is not None else seq

    def has(self, origin: MemberKey, epoch: int) -> bool:
        """Whether any message of (origin, epoch) is incomplete."""
        return (origin, epoch) in self._of_stream

    def clip(self, origin: MemberKey, epoch: int, seq: int, end: int) -> int:
        """Of seq .. end, which have been seen: the last before a message that is incomplete."""
        stream = self._of_stream.get((origin, epoch))
        if stream is None:
            return end
        for run in stream.values():
            if run.key[2] <= end and run.last >= seq:
                end = max(run.key[2], seq) - 1
        return end

    # --- inside ---------------------------------------------------------------------------------

    def _covering(self, origin: MemberKey, epoch: int, seq: int) -> _Run[_T] | None:
        for run in self._of_stream.get((origin, epoch), {}).values():
            if run.key[2] <= seq <= run.last:
                return run
        return None

    def _contradicts(self, origin: MemberKey, epoch: int, first: int, last: int) -> bool:
        """Give up the runs that claim any of first .. last for themselves; False: there is none."""
        stream = self._of_stream.get((origin, epoch))
        if stream is None:
            return False
        runs = [run for run in stream.values() if run.key[2] <= last and run.last >= first]
        for run in runs:
            self._drop(run, Reason.LIE)
        return bool(runs)

    def _open(self, key: RunKey, bundle: Bundle, now: float) -> _Run[_T]:
        run: _Run[_T] = _Run(
            key, bundle.chunk_count, bundle.chunk_bytes, bundle.topics[0], touched_at=now
        )
        self._runs[key] = run
        self._of_stream.setdefault(key[:2], {})[key[2]] = run
        return run

    def _charge(self, run: _Run[_T], size: int, link: NodeId | None) -> None:
        run.bytes += size
        self.bytes += size
        self._by_origin[run.key[0]] = self._by_origin.get(run.key[0], 0) + size
        if link is not None:
            run.by_link[link] = run.by_link.get(link, 0) + size
            self._by_link[link] = self._by_link.get(link, 0) + size

    def _shrink(self, run: _Run[_T], link: NodeId | None) -> None:
        """Let go what is above a bound; what began first goes first, of whoever is to blame."""
        unit, origin = self.message_bytes_max, run.key[0]
        while self._by_origin.get(origin, 0) > ORIGIN_MESSAGES_MAX * unit:
            self._drop_oldest_of(origin)
        while link is not None and self._by_link.get(link, 0) > LINK_MESSAGES_MAX * unit:
            self._drop(
                next(each for each in self._runs.values() if link in each.by_link), Reason.MEMORY
            )
        while self.bytes > NODE_MESSAGES_MAX * unit:
            self._drop_oldest_of(max(self._by_origin, key=self._by_origin.__getitem__))

    def _drop_oldest_of(self, origin: MemberKey) -> None:
        self._drop(
            next(each for each in self._runs.values() if each.key[0] == origin), Reason.MEMORY
        )

    def _drop(self, run: _Run[_T], reason: Reason) -> None:
        self._close(run)
        self._give_up_key(run.key)
        self._dropped.append(run.dropped(reason))
        name = f"chunks_dropped_{reason.value}"
        setattr(self.counters, name, getattr(self.counters, name) + 1)

    def _give_up_key(self, key: RunKey) -> None:
        self._given_up[key] = None
        if len(self._given_up) > GIVEN_UP_MAX:
            self._given_up.popitem(last=False)

    def _close(self, run: _Run[_T]) -> None:
        del self._runs[run.key]
        stream = self._of_stream[run.key[:2]]
        del stream[run.key[2]]
        if not stream:
            del self._of_stream[run.key[:2]]
        self.bytes -= run.bytes
        _less(self._by_origin, run.key[0], run.bytes)
        for link, size in run.by_link.items():
            _less(self._by_link, link, size)


_K = TypeVar("_K")


def _less(counts: dict[_K, int], key: _K, size: int) -> None:
    counts[key] -= size
    if not counts[key]:
        del counts[key]
