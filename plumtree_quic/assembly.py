"""Large messages whole, for the readers of one node: pieces in, messages out, losses told.

How pieces are kept and bounded is `proto.chunks`; here are the readers, the store that may have
pieces from before a restart, and the application that judges. Readers that are fed from the store
put theirs together themselves (`catchup`), and share what a message is made of here.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from plumtree_quic import wire
from plumtree_quic.catchup import PAGE_BYTES, CatchUp
from plumtree_quic.errors import WireError
from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.messages import Bundle
from plumtree_quic.proto.chunks import Chunks, ChunksCounters, Dropped, Reason
from plumtree_quic.proto.fifo import SeenThrough
from plumtree_quic.store.contract import Kept, MessageStore, Page, StreamKey
from plumtree_quic.subscription import Message

__all__ = ["Assembly", "Outside"]


class _Reader(Protocol):
    def take(self, kept: Kept, messages: Sequence[Message], now: float, last: int = 0) -> None: ...

    def note_progress(self, kept: Kept, now: float) -> None: ...

    def lose(self, origin: NodeId, dropped: Dropped[Kept], now: float) -> None: ...


@attrs.frozen(kw_only=True)
class Outside:
    """The node, as large messages see it.

    readers: those that are not fed from the store, for messages of our own or of others.
    refuses: whether the application does not want this message. hear: the delegate is told of one.
    note_malformed, note_lie: what an origin signed cannot be read, or contradicts itself.
    seen_through: as in proto/fifo.py, of what is not on its way to readers. taken: readers may have
    been given something, or may wait for less.
    """

    me: NodeId
    readers: Callable[[bool], Sequence[_Reader]]
    refuses: Callable[[Message], bool]
    hear: Callable[[Message], object]
    note_malformed: Callable[[MemberKey, str], None]
    note_lie: Callable[[NodeId, str], None]
    seen_through: SeenThrough
    taken: Callable[[], None]


class Assembly:
    """The large messages of one node that are not complete, and what became of the others.

    Args:
        message_bytes_max: what is larger is not put together.
        hold_s: a message of which nothing came for so long is given up.
        outside: the node.

    Attributes:
        chunks: the pieces that are here for live readers.
        delivered: large messages of others that became whole. oversized: that were above the limit.
        refused: that the application did not want.
    """

    def __init__(self, message_bytes_max: int, hold_s: float, outside: Outside) -> None:
        self._message_bytes_max = message_bytes_max
        self._hold_s = hold_s
        self._outside = outside
        self.chunks = self.new_chunks()
        self.delivered = self.oversized = self.refused = 0
        # Where a former life had pieces, and the first arrival number that it had not given.
        self._store: MessageStore | None = None
        self._former: frozenset[StreamKey] = frozenset()
        self._recovered_at = 1
        # Messages of which the store is being asked for what it had, and how often.
        self._fetching: Counter[tuple[MemberKey, int, int]] = Counter()
        # What readers that have ended had counted.
        self._ended = ChunksCounters()

    def new_chunks(self) -> Chunks[Kept]:
        """As empty as bounded: for a reader that is fed from the store."""
        return Chunks(self._message_bytes_max, self._hold_s)

    def recover(
        self, store: MessageStore, streams: frozenset[StreamKey], recovered_at: int
    ) -> None:
        """Of these streams a former life may have left pieces in the store, below this number."""
        self._store, self._former, self._recovered_at = store, streams, recovered_at

    # --- inputs ---------------------------------------------------------------------------------

    def note(self, bundle: Bundle) -> None:
        """A bundle that is no piece goes to readers."""
        if len(self.chunks):
            self.chunks.note(bundle)
            self._tell_dropped()

    def take(self, kept: Kept) -> None:
        """A piece is here: with the last one the message is handed over."""
        bundle, now = kept.bundle, time.monotonic()
        is_own = kept.origin == self._outside.me
        readers = self._outside.readers(is_own)
        if bundle.chunk_bytes > self._message_bytes_max:
            self.oversized += not is_own and bundle.chunk_index == 0
            for reader in readers:
                reader.take(kept, [], now)
            return
        if is_own and not readers:
            return
        before = len(self.chunks)
        whole = self.chunks.put(bundle, kept, now, kept.link)
        if len(self.chunks) > before:
            self.fetch(kept, self.take)
        for reader in readers:
            reader.note_progress(kept, now)
        self._tell_dropped()
        if whole is not None:
            messages = self.message_of(whole.pieces)
            for reader in readers:
                reader.take(whole.pieces[0], messages, now, whole.last)
            if not is_own:
                self.delivered += len(messages)
                for message in messages:
                    self._outside.hear(message)
        self._outside.taken()

    def settle(self, catching: Sequence[CatchUp]) -> None:
        """Give up what will not become complete, here and at those who read from the store."""
        now = time.monotonic()

        def seen(origin: MemberKey, epoch: int, seq: int) -> int:
            if self._fetching[origin, epoch, seq]:
                return seq - 1
            return self._outside.seen_through(origin, epoch, seq)

        self.chunks.settle(seen)
        self.chunks.expire(now)
        self._tell_dropped()
        for each in catching:
            each.settle_chunks(seen, now)

    def fetch(self, kept: Kept, take: Callable[[Kept], None]) -> None:
        """This is the first piece of its message that a reader is given: a former life may have
        had others. The store has them, and gives them to `take`.
        """
        store, bundle = self._store, kept.bundle
        key = (bundle.origin, bundle.epoch)
        if store is None or key not in self._former or kept.at < self._recovered_at:
            return
        first, last = bundle.run

        def on_page(page: Page) -> None:
            at = last
            for each in page.kept:
                at = each.bundle.last
                if each.at < self._recovered_at and each.bundle.is_chunk and not each.history:
                    take(each)
            if page.more and page.kept and at < last:
                store.read(key, at + 1, last, PAGE_BYTES, on_page)
            else:
                self._fetching[*key, first] -= 1
                if not self._fetching[*key, first]:
                    del self._fetching[*key, first]

        self._fetching[*key, first] += 1
        store.read(key, first, last, PAGE_BYTES, on_page)

    def reader_ended(self, catching: CatchUp) -> None:
        """What this one had counted stays."""
        _add(self._ended, catching.chunks.counters)

    # --- outputs --------------------------------------------------------------------------------

    def message_of(self, pieces: Sequence[Kept]) -> list[Message]:
        """The message of these pieces; none when what they hold is not what they say, or when the
        application refuses it.
        """
        first, origin = pieces[0].bundle, pieces[0].origin
        try:
            payload = b"".join(wire.open_piece(each.bundle) for each in pieces)
        except WireError as error:
            self._outside.note_malformed(first.origin, str(error))
            return []
        hops, at = max(each.hop for each in pieces), time.monotonic()
        message = Message(origin, first.epoch, first.first, first.topics[0], payload, hops, at)
        if origin != self._outside.me and self._outside.refuses(message):
            self.refused += 1
            return []
        return [message]

    def stats(self, catching: Sequence[CatchUp]) -> dict[str, int]:
        """Counters of all that puts large messages together, now and before."""
        total = ChunksCounters()
        for each in (self._ended, self.chunks.counters, *(at.chunks.counters for at in catching)):
            _add(total, each)
        return {
            **attrs.asdict(total),
            "chunks_held": len(self.chunks),
            "chunks_held_bytes": self.chunks.bytes,
            "chunks_refused": self.refused,
        }

    # --- inside ---------------------------------------------------------------------------------

    def _tell_dropped(self) -> None:
        """Large messages were given up: who reads in order is told, and so is who is to blame."""
        for dropped in self.chunks.take_dropped():
            if not dropped.pieces:
                continue
            origin = dropped.pieces[0].origin
            if dropped.reason is Reason.LIE:
                self._outside.note_lie(origin, "pieces of a message that contradict one another")
            for reader in self._outside.readers(origin == self._outside.me):
                reader.lose(origin, dropped, time.monotonic())


def _add(total: ChunksCounters, counters: ChunksCounters) -> None:
    for name, count in attrs.asdict(counters).items():
        setattr(total, name, getattr(total, name) + count)
