"""The ledger: what a node and its store owe each other. Between core and store, without I/O.

Driver and simulator hand it the effects that a store has a part in. It sees to the order of things:
a bundle is safe before it is handed over, a broadcast is safe before it counts as accepted, what
is safe can be served to others, and what others ask for leaves as their links have room.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from plumtree_quic.ids import NodeId
from plumtree_quic.intervals import Intervals
from plumtree_quic.messages import (
    Bundle,
    Digest,
    GraftRefused,
    Message,
    Range,
    RefusedReason,
    Repair,
)
from plumtree_quic.proto.core import Core
from plumtree_quic.proto.effects import Deliver, FloorMoved, Forgotten, Greeted, Serve, Skipped
from plumtree_quic.store.contract import (
    Committed,
    Kept,
    MessageStore,
    Page,
    Recovered,
    StreamKey,
)

__all__ = ["LEDGER_EFFECTS", "Ledger", "LedgerCounters", "Outside"]

LEDGER_EFFECTS = (Skipped, FloorMoved, Greeted, Forgotten, Serve)
"""Effects that concern nobody but the ledger."""

# What may wait for the disk before links are held back (a guess: a second of a quick link).
WAITING_BYTES_MAX = 8 << 20
# What is read at a time for one link, and how full its sync lane may be for the next.
PAGE_BYTES = 64 << 10
# Ranges that one link may have asked for and not been sent, pages of rows that wait behind them
# counted in; a peer asks for 64 in a frame, and has one or two frames under way.
SERVING_RANGES_MAX = 256
HOP_MAX = 255


class Outside(Protocol):
    """What the ledger needs of whoever runs the node."""

    def hand_over(self, kept: Kept) -> None:
        """This bundle is safe: the application may have it."""

    def sync_backlog(self, peer: NodeId) -> int | None:
        """Bytes that wait on the sync lane to `peer`; None without a link."""

    def answer(self, peer: NodeId, message: Repair | GraftRefused | Digest) -> None:
        """Queue what answers a question of `peer`, whatever waits there."""

    def chain_of(self, key_id: bytes) -> Sequence[bytes]:
        """The certificates with this key_id, leaf first; none when they are not known."""

    def wall_ms(self) -> int:
        """The wall clock, milliseconds since 1970."""


@attrs.define
class LedgerCounters:
    """Plain integers since the start; ranges_unserved: asked of the store by a link that is full of
    such questions already, or gone. rows_unserved: pages of rows that were to wait behind them.
    repairs_from_store: bundles.
    """

    ranges_unserved: int = 0
    rows_unserved: int = 0
    repairs_from_store: int = 0


@attrs.define(eq=False)
class _Serving:
    """What one link has asked for, and what is to be told behind it. reading: the store has not
    answered yet.
    """

    ranges: deque[tuple[StreamKey, Range] | Digest] = attrs.field(factory=deque)
    reading: bool = False


class Ledger:
    """One node's dealings with its store.

    Args:
        store: opened already.
        me: our own identity.
        core: the core of now; it may be made anew before the first link is up.
        outside: the driver, or the simulator.
    """

    def __init__(
        self, store: MessageStore, me: NodeId, core: Callable[[], Core], outside: Outside
    ) -> None:
        self.store = store
        self._me = me
        self._core = core
        self._outside = outside
        self._through = 0
        # What is to be done once a ticket is safe, in the order of tickets.
        self._after: deque[tuple[int, Callable[[], None]]] = deque()
        # Bundles of each stream that were put and are not safe.
        self._pending: dict[StreamKey, Intervals] = {}
        self._serving: dict[NodeId, _Serving] = {}
        self.counters = LedgerCounters()

    # --- at the start ---------------------------------------------------------------------------

    def recover(self, recovered: Recovered) -> None:
        """Tell a core that has just been made what a former life left."""
        core = self._core()
        # The oldest epochs first: as they were met, and as they are forgotten.
        for stream in sorted(recovered.streams, key=lambda each: each.key[1]):
            for effect in core.recover(stream.key, stream.seen, stream.floor, stream.held):
                self.note(effect)  # type: ignore[arg-type]
        if recovered.joined:
            core.returned()

    # --- what comes in --------------------------------------------------------------------------

    def delivered(self, effect: Deliver, origin: NodeId) -> None:
        """A bundle is due to the application: when it is safe."""
        self._put(effect.bundle, origin, effect.hop, history=effect.history, link=effect.peer)

    def broadcast(self, bundle: Bundle, accepted: Callable[[], None]) -> None:
        """A bundle of our own; `accepted` is called when it is safe."""
        ticket = self._put(bundle, self._me, 0, history=False)
        self.after(ticket, accepted)

    def _put(
        self,
        bundle: Bundle,
        origin: NodeId,
        hop: int,
        *,
        history: bool,
        link: NodeId | None = None,
    ) -> int:
        chain = self._outside.chain_of(bundle.key_id)
        ticket, at = self.store.put(
            bundle, origin, hop, self._outside.wall_ms(), chain=chain, history=history
        )
        key = (bundle.origin, bundle.epoch)
        self._pending.setdefault(key, Intervals()).add(bundle.first, bundle.last)
        self.after(ticket, lambda: self._on_safe(Kept(at, bundle, hop, origin, history, link)))
        return ticket

    def _on_safe(self, kept: Kept) -> None:
        bundle = kept.bundle
        key = (bundle.origin, bundle.epoch)
        pending = self._pending[key]
        pending.remove(bundle.first, bundle.last)
        if not pending:
            del self._pending[key]
        self._core().stored(key, bundle.first, bundle.last)
        self._outside.hand_over(kept)

    def note(self, effect: Skipped | FloorMoved | Greeted | Forgotten | Serve) -> None:
        """Something that the store must remember, or is asked for."""
        match effect:
            case Skipped(origin, epoch, first, last):
                self.store.see((origin, epoch), first, last)
            case FloorMoved(origin, epoch, floor):
                self.store.set_floor((origin, epoch), floor)
            case Greeted():
                self.store.mark_joined()
            case Forgotten(origin, epoch):
                self.store.forget((origin, epoch))
            case Serve():
                self._on_serve(effect)

    # --- what is safe ---------------------------------------------------------------------------

    def after(self, ticket: int, then: Callable[[], None]) -> None:
        """Call `then` once `ticket` is safe: now, if it is."""
        if not self.store.durable or ticket <= self._through:
            then()
        else:
            self._after.append((ticket, then))

    def committed(self, commit: Committed) -> None:
        """The store tells what is safe, and what it has let go."""
        self._through = max(self._through, commit.through)
        while self._after and self._after[0][0] <= self._through:
            self._after.popleft()[1]()
        core = self._core()
        for key, (first, last) in commit.evicted:
            core.evicted(key, first, last)

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the disk that nothing more should be let in."""
        return self.store.waiting_bytes > WAITING_BYTES_MAX

    def is_pending(self, key: StreamKey, run: Range | None = None) -> bool:
        """Whether any of this run of (origin, epoch), or of all of it, is here and not safe yet."""
        pending = self._pending.get(key)
        return pending is not None and (run is None or pending.overlaps(*run))

    @property
    def is_waiting(self) -> bool:
        """Whether anything waits until it is safe."""
        return bool(self._after)

    # --- what others ask for --------------------------------------------------------------------

    def _on_serve(self, effect: Serve) -> None:
        serving = self._serving.setdefault(effect.peer, _Serving())
        key = (effect.origin, effect.epoch)
        for run in effect.ranges:
            if len(serving.ranges) >= SERVING_RANGES_MAX:
                self.counters.ranges_unserved += 1
                self._refuse(effect.peer, key, run, RefusedReason.BUSY)
            elif (key, run) not in serving.ranges:
                # Asked again while the first answer is on its way: one is enough.
                serving.ranges.append((key, run))
        self._serve(effect.peer, serving)

    def _refuse(self, peer: NodeId, key: StreamKey, run: Range, reason: RefusedReason) -> None:
        self._outside.answer(peer, GraftRefused(*key, (run,), reason))

    def holds_back(self, peer: NodeId, message: Message) -> bool:
        """Whether this message waits here until `peer` has what it had asked for before.

        Rows are told behind the bundles: who still claims what it was asked for has lied.
        """
        serving = self._serving.get(peer)
        if serving is None or not isinstance(message, Digest):
            return False
        if len(serving.ranges) >= SERVING_RANGES_MAX:
            # Told too early it would be taken for a lie. They compare again.
            self.counters.rows_unserved += 1
            return True
        serving.ranges.append(message)
        return True

    def link_down(self, peer: NodeId) -> None:
        """What this link asked for is of no use any more; it asks again, or others."""
        serving = self._serving.pop(peer, None)
        if serving is not None:
            self.counters.ranges_unserved += sum(
                not isinstance(asked, Digest) for asked in serving.ranges
            )

    @property
    def is_serving(self) -> bool:
        """Whether `pump` has something to do when links have room."""
        return bool(self._serving)

    def pump(self) -> None:
        """Links may have room again: read on for them."""
        for peer, serving in list(self._serving.items()):
            self._serve(peer, serving)

    def _serve(self, peer: NodeId, serving: _Serving) -> None:
        while serving.ranges and not serving.reading:
            backlog = self._outside.sync_backlog(peer)
            if backlog is None or backlog > PAGE_BYTES:
                return
            asked = serving.ranges[0]
            if isinstance(asked, Digest):
                self._outside.answer(peer, asked)
                serving.ranges.popleft()
                continue
            key, (first, last) = asked
            serving.reading = True
            self.store.read(
                key, first, last, PAGE_BYTES, lambda page: self._on_page(peer, serving, page)
            )
        if not serving.ranges and self._serving.get(peer) is serving:
            del self._serving[peer]

    def _on_page(self, peer: NodeId, serving: _Serving, page: Page) -> None:
        serving.reading = False
        if self._serving.get(peer) is not serving or not serving.ranges:
            return
        asked = serving.ranges[0]
        assert not isinstance(asked, Digest)
        key, (first, last) = asked
        if page.more and not page.kept:
            # The disk fails just now, and says so itself.
            serving.ranges.popleft()
            self._refuse(peer, key, (first, last), RefusedReason.BUSY)
        for kept in page.kept:
            bundle = kept.bundle
            if bundle.first > first:
                # Let go since it was announced.
                self._refuse(peer, key, (first, bundle.first - 1), RefusedReason.GONE)
            first = bundle.last + 1
            self.counters.repairs_from_store += 1
            self._outside.answer(peer, Repair(min(kept.hop + 1, HOP_MAX), bundle))
        if page.more and page.kept:
            serving.ranges[0] = (key, (first, last))
        elif not page.more:
            serving.ranges.popleft()
            if first <= last:
                self._refuse(peer, key, (first, last), RefusedReason.GONE)
        if self.store.durable:
            # Called by the store, and not out of `_serve`.
            self._serve(peer, serving)
