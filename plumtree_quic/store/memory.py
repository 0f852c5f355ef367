"""A store for one life of the process, bounded by bytes, messages and age. Nothing on a disk.

What a node without a durable store keeps beyond its cache: so others can come back after a while
and fetch what they have missed, and slow readers can catch up.
"""

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from plumtree_quic.ids import NodeId
from plumtree_quic.intervals import Intervals
from plumtree_quic.messages import Bundle, Range
from plumtree_quic.shelf import Shelf
from plumtree_quic.store.contract import (
    Committed,
    Decode,
    Kept,
    Page,
    ReaderState,
    Recovered,
    StoredStream,
    StreamKey,
    check_reader,
)

__all__ = ["MemoryStore"]

# What a bundle costs beside its bytes, as in proto/cache.py.
ENTRY_BYTES = 600


class MemoryStore:
    """See MessageStore for the methods.

    Args:
        retention_s: how long after it was signed a bundle can be read.
        messages_max: above it the oldest go.
        bytes_max: above it the oldest go.
    """

    durable = False
    failing = ""
    waiting_bytes = 0

    def __init__(
        self,
        *,
        retention_s: float = 300.0,
        messages_max: int = 100_000,
        bytes_max: int = 256 << 20,
    ) -> None:
        self.retention_s = retention_s
        self.head = 1
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._order: deque[Kept] = deque()
        # Arrival numbers of `_order`, of which the first `_skip` have gone.
        self._ats: list[int] = []
        self._skip = 0
        # Arrival numbers of bundles whose epoch is over; they are still in `_order`.
        self._over: dict[int, None] = {}
        self._shelves: dict[StreamKey, Shelf[Kept]] = {}
        self._seen: dict[StreamKey, Intervals] = {}
        self._floors: dict[StreamKey, Intervals] = {}
        self._chains: dict[bytes, tuple[bytes, ...]] = {}
        self._signed: Counter[bytes] = Counter()
        self._readers: dict[str, tuple[int, Intervals]] = {}
        self._messages = self._bytes = self._evicted = self._unacked = 0
        self._tickets = 0
        self._joined = False
        self._on_commit: Callable[[Committed], None] | None = None

    # --- life -----------------------------------------------------------------------------------

    def open(self, decode: Decode, now_ms: int) -> Recovered:  # noqa: ARG002
        """What this very object was given before: nothing, but in a simulation of restarts."""
        self.expire(now_ms)
        keys = dict.fromkeys([*self._seen, *self._floors])
        streams = tuple(
            StoredStream(
                key,
                tuple(self._seen[key].ranges()) if key in self._seen else (),
                tuple(self._floors[key].ranges()) if key in self._floors else (),
                tuple(self._shelves[key].held.ranges()) if key in self._shelves else (),
            )
            for key in keys
        )
        return Recovered(streams, self._joined, dict(self._chains))

    def attach(
        self,
        post: Callable[[Callable[[], None]], object],  # noqa: ARG002
        on_commit: Callable[[Committed], None],
    ) -> None:
        """Tell of what is let go from now on."""
        self._on_commit = on_commit

    def close(self) -> None:
        """Nothing waits here."""
        self._on_commit = None

    # --- changes --------------------------------------------------------------------------------

    def put(
        self,
        bundle: Bundle,
        origin: NodeId,
        hop: int,
        now_ms: int,
        *,
        chain: Sequence[bytes] = (),
        history: bool = False,
    ) -> tuple[int, int]:
        """Keep a bundle; the oldest go where there is no room."""
        key = (bundle.origin, bundle.epoch)
        at, self.head = self.head, self.head + bundle.count
        self._mark(key, bundle.first, bundle.last)
        floor = self._floors.get(key)
        if floor is not None:
            floor.remove(bundle.first, bundle.last)
        kept = Kept(at, bundle, hop, origin, history)
        if chain:
            self._chains.setdefault(bundle.key_id, tuple(chain))
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = Shelf()
        shelf.put(kept)
        self._order.append(kept)
        self._ats.append(at)
        self._signed[bundle.key_id] += 1
        self._messages += bundle.count
        self._bytes += len(bundle.raw) + ENTRY_BYTES
        self._shrink(now_ms)
        return self._ticket(), at

    def see(self, key: StreamKey, first: int, last: int) -> int:
        """Mark as seen."""
        self._mark(key, first, last)
        return self._ticket()

    def set_floor(self, key: StreamKey, floor: Sequence[Range]) -> int:
        """Replace the floor."""
        if floor:
            self._floors[key] = Intervals.of(floor)
        else:
            self._floors.pop(key, None)
        return self._ticket()

    def mark_joined(self) -> int:
        """Be a member."""
        self._joined = True
        return self._ticket()

    def forget(self, key: StreamKey) -> int:
        """Drop all of a stream."""
        shelf = self._shelves.pop(key, None)
        if shelf is not None:
            for kept in shelf.between(1, shelf.held.highest):
                # Its place stays until it is the oldest: somebody may begin epochs very often.
                self._over[kept.at] = None
                self._count_out(kept)
        self._seen.pop(key, None)
        self._floors.pop(key, None)
        return self._ticket()

    def acknowledge(self, name: str, first: int, last: int) -> int:
        """Note what a reader has done with."""
        start, acked = self._readers.get(name, (last + 1, Intervals()))
        if last >= start:
            acked.add(max(first, start), last)
        return self._ticket()

    def forget_reader(self, name: str) -> int:
        """Drop a reader's place."""
        self._readers.pop(name, None)
        return self._ticket()

    def expire(self, now_ms: int) -> None:
        """Let go what is too old."""
        self._shrink(now_ms)

    # --- queries --------------------------------------------------------------------------------

    def read(
        self,
        key: StreamKey,
        first: int,
        last: int,
        bytes_max: int,
        done: Callable[[Page], None],
    ) -> None:
        """Bundles of one stream, at once."""
        shelf = self._shelves.get(key)
        done(_page(shelf.between(first, last) if shelf is not None else (), bytes_max))

    def read_from(self, at: int, bytes_max: int, done: Callable[[Page], None]) -> None:
        """Bundles in order of arrival, at once."""
        place = max(bisect_right(self._ats, at, self._skip) - 1, self._skip) - self._skip
        if place < len(self._order) and self._order[place].next_at <= at:
            place += 1
        # A deque is slow in its middle, and most readers are at one of its ends.
        later = (self._order[i] for i in range(place, len(self._order)))
        done(_page((kept for kept in later if kept.at not in self._over), bytes_max))

    def reader(self, name: str, begin: int | None = None) -> ReaderState:
        """A reader's place."""
        if name not in self._readers:
            check_reader(name, len(self._readers))
            self._readers[name] = (begin or self.head, Intervals())
        start, acked = self._readers[name]
        return ReaderState(start, tuple(acked.ranges()))

    def knows_reader(self, name: str) -> bool:
        """Whether a reader of this name has a place."""
        return name in self._readers

    def stats(self) -> dict[str, int]:
        """Counters and sizes."""
        return {
            "store_bundles": len(self._order) - len(self._over),
            "store_messages": self._messages,
            "store_bytes": self._bytes,
            "store_evicted": self._evicted,
            "store_unacked_evicted": self._unacked,
        }

    # --- inside ---------------------------------------------------------------------------------

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def _mark(self, key: StreamKey, first: int, last: int) -> None:
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = Intervals()
        seen.add(first, last)

    def _shrink(self, now_ms: int) -> None:
        oldest_ms = now_ms - int(self.retention_s * 1000)
        evicted: list[tuple[StreamKey, Range]] = []
        while self._order:
            kept = self._order[0]
            bundle = kept.bundle
            if kept.at in self._over:
                del self._over[kept.at]
                self._order.popleft()
                self._skip += 1
                continue
            if (
                self._messages <= self._messages_max
                and self._bytes <= self._bytes_max
                and bundle.signed_at >= oldest_ms
            ):
                break
            key = (bundle.origin, bundle.epoch)
            self._order.popleft()
            self._skip += 1
            shelf = self._shelves[key]
            shelf.drop(kept)
            if not shelf.held:
                del self._shelves[key]
            self._count_out(kept)
            self._evicted += bundle.count
            for start, acked in self._readers.values():
                if kept.next_at > start and not acked.covers(kept.at, kept.next_at - 1):
                    self._unacked += bundle.count
            evicted.append((key, (bundle.first, bundle.last)))
        if self._skip > 64 and self._skip * 2 > len(self._ats):
            del self._ats[: self._skip]
            self._skip = 0
        if evicted and self._on_commit is not None:
            self._on_commit(Committed(self._tickets, tuple(evicted)))

    def _count_out(self, kept: Kept) -> None:
        bundle = kept.bundle
        self._messages -= bundle.count
        self._bytes -= len(bundle.raw) + ENTRY_BYTES
        self._signed[bundle.key_id] -= 1
        if not self._signed[bundle.key_id]:
            del self._signed[bundle.key_id]
            self._chains.pop(bundle.key_id, None)


def _page(kept: Iterable[Kept], bytes_max: int) -> Page:
    out: list[Kept] = []
    size = 0
    for each in kept:
        if out and size + len(each.bundle.raw) > bytes_max:
            return Page(tuple(out), more=True)
        size += len(each.bundle.raw)
        out.append(each)
    return Page(tuple(out), more=False)
