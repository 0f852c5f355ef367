"""What a store is to a node: the protocol, and the values that cross it. No implementation here.

A store keeps three things, for each (origin, epoch): the bundles that can still be served, which
sequence numbers were seen (delivered, refused, given up, and those of the bundles that it has let
go), and which of them are only said to be from before our time (the floor). Beside these it keeps
the certificates under which its bundles are signed, and how far each named reader has got.

Every bundle is given arrival numbers, one for each of its messages, without holes, in the order in
which bundles came: readers count by them. Everything is written in the order of the calls, and
nothing is done by halves: after a crash a store holds the effect of the first n calls, for some n
that is at least the last one that it said was safe.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs

from plumtree_quic.errors import StoreError
from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.messages import Bundle, Range

__all__ = [
    "READERS_MAX",
    "READER_NAME_BYTES_MAX",
    "Committed",
    "Decode",
    "Kept",
    "MessageStore",
    "Page",
    "ReaderState",
    "Recovered",
    "StoredStream",
    "StreamKey",
    "check_reader",
]

StreamKey = tuple[MemberKey, int]
"""(origin, epoch)."""

Decode = Callable[[bytes], Bundle]
"""Turns what was stored into a bundle again; raises WireError when it is none."""

READERS_MAX = 64
"""Named readers that one store remembers."""
READER_NAME_BYTES_MAX = 255


@attrs.frozen(eq=False)
class Kept:
    """A bundle as the store has it.

    at: the arrival number of its first message; 0 where there is no store. hop: links that it
    crossed to us; 0 for our own. origin: who broadcast it. history: from before our time; for
    readers alone that asked for what was. link: who brought it just now; None for our own, and for
    what was read again.
    """

    at: int
    bundle: Bundle
    hop: int
    origin: NodeId
    history: bool = False
    link: NodeId | None = None

    @property
    def next_at(self) -> int:
        """The arrival number behind its last message."""
        return self.at + self.bundle.count


@attrs.frozen
class Page:
    """Bundles that were asked for, ascending, and whether there are more.

    more: the answer ended because of its bound in bytes, not because there was nothing left. With
    no bundle at all: they could not be read just now, and the log says why; ask again later.
    """

    kept: tuple[Kept, ...]
    more: bool


@attrs.frozen
class StoredStream:
    """What a former life left of one (origin, epoch): ascending, disjoint ranges.

    seen: all that must not be delivered again, `floor` not included. floor: said to be from before
    our time. held: what can be read.
    """

    key: StreamKey
    seen: tuple[Range, ...]
    floor: tuple[Range, ...]
    held: tuple[Range, ...]


@attrs.frozen
class Recovered:
    """What a former life left.

    joined: it was a member, so what it has not seen it has missed: that is not from before our
    time. chains: by key_id, certificates, leaf first, as DER.
    """

    streams: tuple[StoredStream, ...] = ()
    joined: bool = False
    chains: Mapping[bytes, tuple[bytes, ...]] = attrs.field(factory=dict)

    def last_of(self, origin: MemberKey) -> Range | None:
        """The newest (epoch, number) that was seen of `origin`."""
        streams = [each for each in self.streams if each.key[0] == origin and each.seen]
        if not streams:
            return None
        newest = max(streams, key=lambda each: each.key[1])
        return (newest.key[1], newest.seen[-1][1])


@attrs.frozen
class ReaderState:
    """How far a named reader has got, in arrival numbers.

    start: what came before is not for it. acked: what it has acknowledged, from `start` on.
    """

    start: int
    acked: tuple[Range, ...] = ()


@attrs.frozen
class Committed:
    """What became safe: all calls up to the ticket `through`. evicted: what can be read no more."""

    through: int
    evicted: tuple[tuple[StreamKey, Range], ...] = ()


class MessageStore(Protocol):
    """Calls come from one thread, the event loop's, but for `open` and `close`.

    Methods that change something return a ticket (numbers that grow) or are covered by the next
    one that does. Nothing here blocks but `open` and `close`.

    Attributes:
        durable: what is committed survives the process. A store that is not commits at once,
            within the call that changes something.
        retention_s: a bundle that was signed longer ago is let go.
        failing: why nothing can be written just now, in words for an operator; "" when all is
            well. What was to be written waits, and is tried again.
        head: the arrival number that the next message will be given.
        waiting_bytes: how much was put and is not committed.
    """

    durable: bool
    retention_s: float
    failing: str
    head: int
    waiting_bytes: int

    def open(self, decode: Decode, now_ms: int) -> Recovered:
        """Open what a former life left, or begin anew. Blocks; call it before all else, once.

        now_ms: the wall clock, milliseconds since 1970; what is older than `retention_s` goes.

        Raises:
            StoreError: it cannot be used; the message names the file and what to do.
        """

    def attach(
        self,
        post: Callable[[Callable[[], None]], object],
        on_commit: Callable[[Committed], None],
    ) -> None:
        """From now on tell of what is committed.

        post: runs a function on the thread that makes the calls, from any thread. on_commit: called
        there, for each commit; by a store that is not durable only when something was evicted.
        """

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
        """Keep a bundle whose numbers are new here, mark them as seen, and take them off the floor.

        chain: the certificates that it is signed under; kept for as long as a bundle is here that
        names their key_id. Returns (ticket, arrival number of its first message).
        """

    def mark_joined(self) -> int:
        """From now on this node is a member; see Recovered."""

    def see(self, key: StreamKey, first: int, last: int) -> int:
        """first .. last count as seen without having been kept: refused, or given up."""

    def set_floor(self, key: StreamKey, floor: Sequence[Range]) -> int:
        """These are said to be from before our time, and nothing else of this stream is."""

    def forget(self, key: StreamKey) -> int:
        """This epoch is over: nothing of it is of use any more, its seen set included."""

    def read(
        self,
        key: StreamKey,
        first: int,
        last: int,
        bytes_max: int,
        done: Callable[[Page], None],
    ) -> None:
        """Hand the bundles that hold any of first .. last to `done`, ascending, at once or later.

        At least one, if there is any, and else no more than `bytes_max` of their bytes. Only what
        is committed. `done` is called by way of `attach`, which is to come first.
        """

    def read_from(self, at: int, bytes_max: int, done: Callable[[Page], None]) -> None:
        """As `read`, in order of arrival: the bundle that holds `at`, and those that came later.

        What was let go leaves a hole: the first `at` is then larger than the one asked for.
        """

    def reader(self, name: str, begin: int | None = None) -> ReaderState:
        """How far the reader of this name has got; one that is new starts at `begin`, or at `head`.

        Raises:
            StoreError: there are READERS_MAX others already, or the name is not fit for one.
        """

    def acknowledge(self, name: str, first: int, last: int) -> int:
        """The reader, unless it is forgotten, has done with the arrival numbers first .. last."""

    def forget_reader(self, name: str) -> int:
        """Nobody reads under this name any more."""

    def expire(self, now_ms: int) -> None:
        """Let go what is older than `retention_s`. Call it now and then."""

    def close(self) -> None:
        """Write what waits and end. Blocks; afterwards nothing may be called.

        What was asked and is not answered yet stays so. Who has called it once may do so again.
        """

    def stats(self) -> dict[str, int]:
        """Counters and sizes by name, each beginning with store_."""


def check_reader(name: str, others: int) -> None:
    """Raise StoreError when `name` is no name for a reader, or there are too many."""
    # What is printable can be encoded, too: a lone surrogate is neither.
    if not name or not name.isprintable() or len(name.encode()) > READER_NAME_BYTES_MAX:
        raise StoreError(
            f"reader {name[:40]!r}: a name of 1 to {READER_NAME_BYTES_MAX} bytes without control "
            "characters is needed"
        )
    if others >= READERS_MAX:
        raise StoreError(
            f"reader {name!r}: this store remembers {others} readers already, which is as many as "
            "it takes; forget one with Node.forget_reader"
        )
