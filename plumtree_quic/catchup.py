"""One reader's place in the store: live while it keeps up, out of the store whenever it is behind.

Counts in the store's arrival numbers. Knows queues and the store, and neither links nor trees.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

import attrs

from plumtree_quic.ids import NodeId
from plumtree_quic.intervals import Intervals
from plumtree_quic.store.contract import Kept, MessageStore, Page
from plumtree_quic.subscription import Message

__all__ = ["CatchUp", "Place"]

# What is read at a time.
PAGE_BYTES = 256 << 10


class _Reader(Protocol):
    own: bool
    on_room: Callable[[], None] | None

    @property
    def is_open(self) -> bool: ...

    def has_room(self, count: int) -> bool: ...

    def wants(self, topic: str) -> bool: ...

    def take(self, kept: Kept, messages: Sequence[Message], now: float) -> None: ...

    def fail(self, error: str) -> None: ...


@attrs.frozen
class Place:
    """Where a reader begins, and what it is not to have.

    next_at: the first arrival number. since_ms: what was broadcast before is left out, and history
    is not; None: history is. name: under which it acknowledges, or "". redelivered_below: what came
    before may have been handed over already.
    """

    next_at: int
    since_ms: int | None = None
    name: str = ""
    acked: Intervals = attrs.field(factory=Intervals)
    redelivered_below: int = 0


class CatchUp:
    """Feeds one reader.

    Args:
        store: opened.
        reader: the subscription.
        place: where it begins.
        me: our own identity; what we broadcast is for readers with `own`.
        handed_at: the arrival number behind what was handed over last, to anybody.
        read: the messages of a bundle.
        clock: monotonic seconds, as the reader counts them.
        when_safe: told a ticket of the store, is done when that is safe.
        check: raises when the node has ended, and nothing can be noted any more.
        taken: called when the reader was given something.
    """

    def __init__(
        self,
        store: MessageStore,
        reader: _Reader,
        place: Place,
        *,
        me: NodeId,
        handed_at: Callable[[], int],
        read: Callable[[Kept], list[Message]],
        clock: Callable[[], float],
        when_safe: Callable[[int], Awaitable[None]],
        check: Callable[[], object] = lambda: None,
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self.reader = reader
        self._place = place
        self._next_at = place.next_at
        # A hole before the first is no loss to somebody who asked for whatever there is.
        self._begun = place.since_ms is None
        self._me = me
        self._handed_at = handed_at
        self._read = read
        self._clock = clock
        self._when_safe = when_safe
        self._check = check
        self._taken = taken
        self._reading = False
        reader.on_room = self.pull

    @property
    def name(self) -> str:
        """Under which this reader acknowledges; "" when it does not."""
        return self._place.name

    @property
    def next_at(self) -> int:
        """The arrival number behind what this reader was given."""
        return self._next_at

    @property
    def is_live(self) -> bool:
        """Whether this reader was given all that was handed over to anybody."""
        return not self._reading and self._next_at >= self._handed_at()

    def offer(self, kept: Kept) -> None:
        """A bundle is handed over just now: give it on, if this reader is so far."""
        if kept.at == self._next_at and not self._reading and self._has_room(kept):
            self._take(kept)
        else:
            self.pull()

    def pull(self) -> None:
        """Read on while the reader is behind and has room."""
        while not self._reading and self._next_at < self._handed_at() and self.reader.is_open:
            if not self.reader.has_room(1):
                return
            self._reading = True
            before = self._next_at
            self._store.read_from(self._next_at, PAGE_BYTES, self._on_page)
            if self._reading or self._next_at == before:
                # The answer comes later; or nothing of it fits.
                return

    def _on_page(self, page: Page) -> None:
        self._reading = False
        before = self._next_at
        for kept in page.kept:
            if not self.reader.is_open or not self._has_room(kept):
                break
            if kept.at > self._next_at:
                self._pass_over(kept.at)
            if kept.next_at > self._next_at and self.reader.is_open:
                self._take(kept)
        if not page.kept and not page.more and self._next_at < self._handed_at():
            self._pass_over(self._handed_at())
        if self._store.durable and self._next_at != before:
            # Called by the store, and not out of `pull`.
            self.pull()

    def _has_room(self, kept: Kept) -> bool:
        return self.reader.has_room(kept.bundle.count)

    def _pass_over(self, until: int) -> None:
        """The store holds nothing before `until` any more: the reader is told of what it had not
        done with, and not left to guess.
        """
        first, self._next_at = self._next_at, until
        if not self._begun or self._place.acked.covers(first, until - 1):
            return
        if self.name:
            self._store.acknowledge(self.name, first, until - 1)
        self.reader.fail(
            f"the store let up to {until - first} messages go before this subscription had read "
            "them; read faster, or give the store more room (storage.max_messages, "
            "storage.max_bytes, storage.retention). Subscribe again to go on behind them"
        )

    def _take(self, kept: Kept) -> None:
        self._next_at = kept.next_at
        self._begun = True
        if not self._is_meant(kept):
            if self.name:
                self._store.acknowledge(self.name, kept.at, kept.next_at - 1)
            return
        messages = self._read(kept)
        if self.name:
            messages = self._with_acks(kept, messages)
        self.reader.take(kept, messages, self._clock())
        self._taken()

    def _is_meant(self, kept: Kept) -> bool:
        since_ms = self._place.since_ms
        if since_ms is None and kept.history:
            return False
        if since_ms is not None and kept.bundle.signed_at < since_ms:
            return False
        return kept.origin != self._me or self.reader.own

    def _with_acks(self, kept: Kept, messages: list[Message]) -> list[Message]:
        """Those that were not acknowledged yet; what this reader does not want is done with."""
        place = self._place
        out: list[Message] = []
        skipped = Intervals()
        skipped.add(kept.at, kept.next_at - 1)
        for message in messages:
            at = kept.at + message.seq - kept.bundle.first
            if place.acked.covers(at, at):
                continue
            if self.reader.wants(message.topic):
                skipped.remove(at, at)
                again = at < place.redelivered_below
                acknowledge = partial(self._acknowledge, at)
                out.append(attrs.evolve(message, redelivered=again, acknowledge=acknowledge))
        for first, last in skipped.ranges():
            if not place.acked.covers(first, last):
                place.acked.add(first, last)
                self._store.acknowledge(self.name, first, last)
        return out

    def _acknowledge(self, at: int) -> Awaitable[None]:
        self._check()
        self._place.acked.add(at, at)
        return self._when_safe(self._store.acknowledge(self.name, at, at))
