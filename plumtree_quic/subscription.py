"""What an application reads: messages as they come, or each origin's in order with its gaps.

Queues between the node and its readers; they know no link, no tree and no codec.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

import attrs

from plumtree_quic.errors import LocalProtocolError
from plumtree_quic.ids import MemberKey, MessageId, NodeId
from plumtree_quic.proto.chunks import Dropped
from plumtree_quic.proto.fifo import HoldBack, Hole, IsAwaited, SeenThrough
from plumtree_quic.store.contract import Kept

__all__ = [
    "SUBSCRIPTION_BYTES_MAX",
    "SUBSCRIPTION_MESSAGES_MAX",
    "Gap",
    "Message",
    "OrderedSubscription",
    "Subscription",
    "WhenFull",
]

logger = logging.getLogger("plumtree_quic")

# What a reader may be behind by unless it says otherwise. Guesses.
SUBSCRIPTION_MESSAGES_MAX = 262_144
SUBSCRIPTION_BYTES_MAX = 256 << 20

# A reader that drops is told of in the log at once, and then so often at most.
DROPS_TOLD_EVERY_S = 60.0

WhenFull = Literal["wait", "disconnect", "drop_oldest", "drop_newest"]
"""What becomes of a reader that falls further behind than its buffer."""

_T = TypeVar("_T")


@attrs.frozen
class Message:
    """One delivered message.

    origin: who broadcast it. epoch, seq: with origin they are its `id`. hops: links that it
    crossed. received_at: monotonic seconds (`time.monotonic`) at which it came, or was read again
    from the store. redelivered: it may have been handed over before, to a reader that did not
    acknowledge it.
    """

    origin: NodeId
    epoch: int
    seq: int
    topic: str
    payload: bytes
    hops: int
    received_at: float
    redelivered: bool = False
    _acknowledge: Callable[[], Awaitable[None]] | None = attrs.field(
        default=None, eq=False, repr=False
    )

    def ack(self) -> Awaitable[None]:
        """Say that this message is done with: it is not handed to this reader again.

        Noted at once; who must be certain that it outlives a crash awaits what is returned.

        Raises:
            LocalProtocolError: the subscription was not made with ack="manual".
            NodeClosed: the node was shut down; when awaited, too, if it ended before that was safe.
        """
        if self._acknowledge is None:
            raise LocalProtocolError(
                'nothing waits for ack() here: subscribe with ack="manual" to acknowledge messages'
            )
        return self._acknowledge()

    @property
    def id(self) -> MessageId:
        """The message's name, for ever."""
        return MessageId(self.origin, self.epoch, self.seq)


@attrs.frozen
class Gap:
    """Messages first .. last of (origin, epoch), of whatever topic, did not come in time for their
    place in the order. An ordered subscription will not hand them over any more.
    """

    origin: NodeId
    epoch: int
    first: int
    last: int


def _weight(item: object) -> int:
    """Bytes that a buffer is charged for."""
    return len(item.payload) if isinstance(item, Message) else 0


class _Reader(Generic[_T]):
    """What waits for an application that iterates over it."""

    def __init__(
        self,
        end: Callable[[object], None],
        topic: str | None,
        own: bool,
        buffer: int,
        when_full: WhenFull = "disconnect",
        buffer_bytes: int = SUBSCRIPTION_BYTES_MAX,
    ) -> None:
        self._end = end
        self._buffer = buffer
        self._buffer_bytes = buffer_bytes
        self._when_full = when_full
        self._told_at = float("-inf")
        self.dropped = 0
        self._queue: deque[_T] = deque()
        self._bytes = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._overflowed = False
        self._closed = False
        self._error = ""
        # Called when half of the buffer is free again; the store has more to read.
        self.on_room: Callable[[], None] | None = None
        self.topic = topic
        self.own = own

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """How much waits for the application."""
        return len(self._queue)

    def close(self) -> None:
        """Stop receiving; what is still queued can be iterated."""
        self._closed = True
        self._end(self)
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        while not self._queue:
            if self._overflowed:
                raise LocalProtocolError(
                    f"this subscription fell more than {self._buffer} messages, or "
                    f"{self._buffer_bytes} bytes, behind and was ended; read faster or subscribe "
                    "with a larger buffer= or buffer_bytes="
                )
            if self._error:
                raise LocalProtocolError(self._error)
            if self._closed:
                raise StopAsyncIteration
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        item = self._pop()
        if (
            self.on_room is not None
            and len(self._queue) * 2 <= self._buffer
            and self._bytes * 2 <= self._buffer_bytes
        ):
            self.on_room()
        return item

    def _pop(self) -> _T:
        item = self._queue.popleft()
        self._bytes -= _weight(item)
        return item

    def _push(self, item: _T) -> None:
        self._queue.append(item)
        self._bytes += _weight(item)

    def has_room(self, count: int, size: int = 0) -> bool:
        """Whether so many messages of so many bytes in all fit; they do when nothing waits."""
        return not self._queue or (
            len(self._queue) + count <= self._buffer and self._bytes + size <= self._buffer_bytes
        )

    @property
    def is_fed(self) -> bool:
        """Whether a store gives this reader what it reads, and not whoever delivers."""
        return self.on_room is not None

    @property
    def is_waiting(self) -> bool:
        """Whether anything is held back that may turn out to wait for nothing."""
        return False

    @property
    def is_open(self) -> bool:
        """Whether anything more may be put here."""
        return not (self._closed or self._overflowed or self._error)

    def fail(self, error: str) -> None:
        """End with this error, once what is queued has been read."""
        if self.is_open:
            self._error = error
            self._end(self)
            self._wake()

    def wants(self, topic: str) -> bool:
        """Whether messages of this topic are for this reader."""
        return self.topic is None or self.topic == topic

    @property
    def overflowed(self) -> bool:
        """Whether it was ended because it fell too far behind."""
        return self._overflowed

    def put(self, item: _T) -> None:
        """Queue one more. A reader that is too far behind is ended, and told when it reads on; or
        something is dropped for it, where it said so.
        """
        if not self.is_open:
            return
        if self._when_full == "wait" or self.has_room(1, _weight(item)):
            self._push(item)
        else:
            self._on_full(item)
        if self._waiters:
            self._wake()

    def _on_full(self, item: _T) -> None:
        if self._when_full == "disconnect":
            self._overflowed = True
            self._end(self)
            logger.error(
                "a subscription fell %d messages behind and was ended",
                len(self._queue),
                extra={"event": "subscription.overflow", "topic": self.topic},
            )
            return
        if self._when_full == "drop_oldest":
            while not self.has_room(1, _weight(item)):
                self._pop()
                self.dropped += 1
            self._push(item)
        else:
            self.dropped += 1
        now = time.monotonic()
        if now - self._told_at >= DROPS_TOLD_EVERY_S:
            self._told_at = now
            logger.warning(
                "a subscription is %d messages behind: %d dropped so far",
                len(self._queue),
                self.dropped,
                extra={
                    "event": "subscription.dropped",
                    "topic": self.topic,
                    "dropped": self.dropped,
                },
            )

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


class Subscription(_Reader[Message]):
    """Messages of one topic (or all), as an async iterator. Use `async with node.subscribe()`.

    Holds at most `buffer` undelivered messages. An application that falls further behind gets
    `LocalProtocolError` from the iteration instead of a silent hole; or, where it asked for that,
    the oldest or the newest are dropped, counted and logged.

    Attributes:
        dropped: messages that this reader was not given, because it was too far behind.
    """

    def take(
        self,
        kept: Kept,  # noqa: ARG002
        messages: Sequence[Message],
        now: float,  # noqa: ARG002
        last: int = 0,  # noqa: ARG002
    ) -> None:
        """`messages` are what this reader may have of a bundle."""
        for message in messages:
            if self.wants(message.topic):
                self.put(message)

    def note_progress(self, kept: Kept, now: float) -> None:
        """A piece of a large message has come: nobody waits for it here."""

    def lose(self, origin: NodeId, dropped: Dropped[Kept], now: float) -> None:
        """A large message was given up: what did not come is not told here."""


class OrderedSubscription(_Reader[Message | Gap]):
    """As `Subscription`, with the messages of each origin in the order in which it sent them.

    What comes before its turn is held back, at most `buffer` and `buffer_bytes` of it. What does
    not come within `gap_timeout` from when it holds others up is given up: the iteration yields a
    `Gap` at its place. Origins do not wait for one another. A newer epoch of an origin follows the
    older one.

    Attributes:
        gaps: how many were told so far.
    """

    def __init__(
        self,
        end: Callable[[object], None],
        topic: str | None,
        own: bool,
        buffer: int,
        *,
        gap_timeout_s: float,
        quiet_s: float,
        when_full: WhenFull = "disconnect",
        buffer_bytes: int = SUBSCRIPTION_BYTES_MAX,
    ) -> None:
        super().__init__(end, topic, own, buffer, when_full, buffer_bytes)
        self._held: HoldBack[Message | Hole] = HoldBack(
            hold_s=gap_timeout_s,
            quiet_s=quiet_s,
            items_max=buffer,
            bytes_max=buffer_bytes,
            weigh=_weight,
        )
        self._names: dict[MemberKey, NodeId] = {}
        self.gaps = 0
        self._now = 0.0

    @property
    def held(self) -> int:
        """Messages that came before their turn and wait for others."""
        return self._held.held

    @property
    def late(self) -> int:
        """Messages that came when their place was past; each was told as part of a `Gap`."""
        return self._held.late

    @property
    def is_waiting(self) -> bool:
        """Whether `settle` may have something to do."""
        return self._held.is_waiting

    def begin(self, key: MemberKey, epoch: int, next_seq: int | None, now: float) -> None:
        """What came before `next_seq` of (key, epoch) is not for this reader, nor what is of an
        older epoch. None: nobody knows where it begins in that epoch.
        """
        self._held.begin(key, epoch, next_seq, now)

    def take(self, kept: Kept, messages: Sequence[Message], now: float, last: int = 0) -> None:
        """A bundle is here, and `messages` are what this reader may have of it.

        last: the last number of a message of which `kept` is the first piece.
        """
        bundle = kept.bundle
        self._now = now
        self._names[bundle.origin] = kept.origin
        wanted = [each for each in messages if self.wants(each.topic)]
        out = self._held.put(
            bundle.origin,
            bundle.epoch,
            bundle.first,
            max(last, bundle.last),
            wanted,
            now,
            bundle.previous,
        )
        self._hand_over(out)

    def note_progress(self, kept: Kept, now: float) -> None:
        """A piece of a large message has come: what waits for that waits on."""
        bundle = kept.bundle
        self._held.note_progress(bundle.origin, bundle.epoch, bundle.run[0], now)

    def lose(self, origin: NodeId, dropped: Dropped[Kept], now: float) -> None:
        """A large message was given up: that is a gap, at its place."""
        self._now = now
        key, epoch, first, last = dropped.origin, dropped.epoch, dropped.first, dropped.last
        self._names[key] = origin
        hole: Sequence[Message | Hole] = [Hole(key, epoch, first, last)]
        self._hand_over(self._held.put(key, epoch, first, last, hole, now))

    def settle(self, seen: SeenThrough, awaited: IsAwaited, now: float, *, whole: bool) -> None:
        """Hand over what waits for nothing any more; see `HoldBack.settle`."""
        self._now = now
        self._hand_over(self._held.settle(seen, awaited, now, whole=whole))

    def close(self) -> None:
        """Stop receiving; what is queued can be iterated, and what was held back with its gaps."""
        if not self._closed:
            self._hand_over(self._held.flush(self._now))
        super().close()

    def _hand_over(self, items: Iterable[Message | Hole]) -> None:
        for item in items:
            if isinstance(item, Hole):
                name = self._names[item.origin]
                self.gaps += 1
                self.put(Gap(name, item.epoch, item.first, item.last))
            else:
                self.put(item)
