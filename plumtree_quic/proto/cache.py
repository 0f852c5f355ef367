"""What can be served out of memory: bundles, bounded by age, count and bytes. Knows no links.

Bundles leave in the order in which they arrived.
"""

from collections import deque
from math import inf

import attrs

from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Bundle
from plumtree_quic.shelf import Shelf

__all__ = ["CACHE_BYTES_MAX", "Cache", "Held"]

CACHE_BYTES_MAX = 64 << 20
# What a bundle costs beside its bytes: headers parsed, list and deque entries. Measured roughly.
ENTRY_BYTES = 600


@attrs.frozen(eq=False)
class Held:
    """A bundle that can be served. hop: links that it crossed to us; at: when it came.

    peer: the link that pushed it; None for our own and for what a graft brought.
    """

    bundle: Bundle
    hop: int
    at: float
    peer: NodeId | None


class Cache:
    """All shelves, and the order of arrival across them.

    Args:
        ttl_s: a bundle leaves after this long.
        messages_max: above it the oldest leave, but none that is younger than `repair_s`, and none
            within `repair_s` of a graft: who lags behind may ask for any of them next.
        repair_s: how long grafts for a bundle may still be on their way.
        bytes_max: above it the oldest leave, however young.
    """

    def __init__(
        self,
        ttl_s: float,
        messages_max: int,
        repair_s: float,
        bytes_max: int = CACHE_BYTES_MAX,
    ) -> None:
        self._ttl_s = ttl_s
        self._messages_max = messages_max
        self._repair_s = repair_s
        self._bytes_max = bytes_max
        self._order: deque[tuple[Shelf[Held], Held]] = deque()
        self._asked_at = -inf
        self.messages = 0
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        """Return the number of bundles."""
        return len(self._order)

    def put(self, shelf: Shelf[Held], entry: Held) -> None:
        """Keep `entry`, whose numbers nothing on `shelf` overlaps; what is over a bound leaves."""
        shelf.put(entry)
        self._order.append((shelf, entry))
        self.messages += entry.bundle.count
        self.bytes += len(entry.bundle.raw) + ENTRY_BYTES
        if self.messages > self._messages_max or self.bytes > self._bytes_max:
            self._shrink(entry.at)

    def asked(self, now: float) -> None:
        """Somebody lacks something that others have."""
        self._asked_at = now

    def oldest_expires_at(self) -> float | None:
        """When the oldest bundle's time is over."""
        return self._order[0][1].at + self._ttl_s if self._order else None

    def expire(self, now: float) -> None:
        """Drop what is older than `ttl_s`."""
        while self._order and self._order[0][1].at + self._ttl_s <= now:
            self._evict_oldest()
        self._shrink(now)

    def forget(self, shelf: Shelf[Held]) -> None:
        """Drop a whole shelf: its epoch is over. Rare, so it may walk through everything."""
        kept: deque[tuple[Shelf[Held], Held]] = deque()
        for other, entry in self._order:
            if other is shelf:
                self.messages -= entry.bundle.count
                self.bytes -= len(entry.bundle.raw) + ENTRY_BYTES
            else:
                kept.append((other, entry))
        self._order = kept

    def _shrink(self, now: float) -> None:
        since = now - self._repair_s
        while self._order and (
            self.bytes > self._bytes_max
            or (
                self.messages > self._messages_max
                and self._order[0][1].at <= since
                and self._asked_at <= since
            )
        ):
            self._evict_oldest()

    def _evict_oldest(self) -> None:
        shelf, entry = self._order.popleft()
        shelf.drop(entry)
        self.messages -= entry.bundle.count
        self.bytes -= len(entry.bundle.raw) + ENTRY_BYTES
        self.evicted += 1
