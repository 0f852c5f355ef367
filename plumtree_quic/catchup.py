"""One reader's place in the store: live while it keeps up, out of the store whenever it is behind.

Counts in the store's arrival numbers. Knows queues and the store, and neither links nor trees.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

import attrs

from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.intervals import Intervals
from plumtree_quic.proto.chunks import Chunks, Dropped, Reason
from plumtree_quic.store.contract import Kept, MessageStore, Page
from plumtree_quic.subscription import Message

__all__ = ["PAGE_BYTES", "CatchUp", "Place"]

# What is read at a time.
PAGE_BYTES = 256 << 10


class _Reader(Protocol):
    own: bool
    on_room: Callable[[], None] | None

    @property
    def is_open(self) -> bool: ...

    def has_room(self, count: int, size: int = 0) -> bool: ...

    def wants(self, topic: str) -> bool: ...

    def take(self, kept: Kept, messages: Sequence[Message], now: float, last: int = 0) -> None: ...

    def note_progress(self, kept: Kept, now: float) -> None: ...

    def lose(self, origin: NodeId, dropped: Dropped[Kept], now: float) -> None: ...

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
        join: the message of these pieces, if it is one. chunks: where they are put together.
        fetch: told the first piece of a message that this reader is given, finds those that a
            former life had.
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
        join: Callable[[Sequence[Kept]], list[Message]] = lambda _pieces: [],
        chunks: Chunks[Kept] | None = None,
        fetch: Callable[[Kept, Callable[[Kept], None]], None] = lambda _kept, _take: None,
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
        self._join = join
        # By default whatever is large is too large.
        self.chunks = chunks if chunks is not None else Chunks[Kept](0, 0.0)
        self._fetch = fetch
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
        bundle = kept.bundle
        # With its last piece all of a large message comes.
        return self.reader.has_room(bundle.count, bundle.chunk_bytes or bundle.body_bytes)

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
        if kept.bundle.is_chunk:
            self._take_piece(kept)
            return
        if len(self.chunks):
            self.chunks.note(kept.bundle)
            self._tell_dropped()
        messages = self._read(kept)
        if self.name:
            messages = self._with_acks(kept, messages)
        self.reader.take(kept, messages, self._clock())
        self._taken()

    def begin_with(self, pieces: Sequence[Kept]) -> None:
        """Pieces of messages that were incomplete when this reader began; it gets those as well."""
        for kept in pieces:
            if kept.at < self._next_at and self._is_meant(kept):
                self._take_piece(kept)

    def _take_piece(self, kept: Kept) -> None:
        """One piece of a large message: it is done with, or the message, when all is here."""
        bundle, now, place = kept.bundle, self._clock(), self._place
        if place.acked.covers(kept.at, kept.at):
            return
        is_wanted = self.reader.wants(bundle.topics[0])
        if not is_wanted or bundle.chunk_bytes > self.chunks.message_bytes_max:
            self._done_with([kept])
            self.reader.take(kept, [], now)
            return
        before = len(self.chunks)
        whole = self.chunks.put(bundle, kept, now)
        if len(self.chunks) > before:
            self._fetch(kept, self._take_piece)
        self.reader.note_progress(kept, now)
        self._tell_dropped()
        if whole is None:
            self._taken()
            return
        messages = self._join(whole.pieces)
        if not messages:
            self._done_with(whole.pieces)
        elif self.name:
            again = max(each.at for each in whole.pieces) < place.redelivered_below
            acknowledge = partial(self._done_with, whole.pieces)
            messages = [
                attrs.evolve(each, redelivered=again, acknowledge=acknowledge) for each in messages
            ]
        self.reader.take(whole.pieces[0], messages, now, whole.last)
        self._taken()

    def _done_with(self, pieces: Sequence[Kept]) -> Awaitable[None]:
        """All pieces of a message count as acknowledged; once the last one is safe, all are."""
        ticket = 0
        if self.name:
            for kept in pieces:
                self._place.acked.add(kept.at, kept.at)
                ticket = self._store.acknowledge(self.name, kept.at, kept.at)
        return self._when_safe(ticket)

    def settle_chunks(self, seen: Callable[[MemberKey, int, int], int], now: float) -> None:
        """Give up large messages that will not become complete. Call it now and then."""
        if self.is_live:
            self.chunks.settle(seen)
        self.chunks.expire(now)
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        for dropped in self.chunks.take_dropped():
            if dropped.reason is not Reason.MEMORY:
                # Else what is here is kept: the next reader of this name may have room for it.
                self._done_with(dropped.pieces)
            if dropped.pieces:
                self.reader.lose(dropped.pieces[0].origin, dropped, self._clock())

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
