"""A store in an SQLite file: what was accepted is there after a crash. Threads and queues, no SQL.

One thread writes. It takes all that is queued, does it in one transaction, and tells of it once it
is safe: so a slow disk makes larger transactions, not a longer queue. Another one reads, by a
connection of its own. The event loop's thread only ever puts something into a queue.
"""

import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

import attrs

from plumtree_quic.errors import StoreError, WireError
from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.intervals import Intervals
from plumtree_quic.messages import Bundle, Range
from plumtree_quic.store.book import Book, Limits, Operation, Outcome, Sizes, origin_of
from plumtree_quic.store.contract import (
    Committed,
    Decode,
    Kept,
    Page,
    ReaderState,
    Recovered,
    StreamKey,
    check_reader,
)
from plumtree_quic.store.database import (
    MOVE_AWAY,
    Connect,
    Row,
    connect_reader,
    connect_writer,
    is_damage,
    prepare,
    reserve,
    unusable,
)

__all__ = ["SqliteStore"]

logger = logging.getLogger("plumtree_quic")

# Between two attempts to write, while that fails.
RETRY_S = 1.0
# Between two log lines that say the same.
TELL_S = 60.0
# How long `close` goes on trying, and beyond that waits for a disk that does not answer at all.
CLOSE_S = 5.0
STUCK_S = 5.0

_BY_STREAM = (
    f"SELECT {Row.COLUMNS}, node_id FROM bundles LEFT JOIN origins ON key = origin "  # noqa: S608
    "WHERE origin = :origin AND epoch = :epoch AND last >= :first AND first <= :last "
    # The one that holds `first` begins at it or is the nearest that begins before it.
    "AND first >= coalesce((SELECT max(first) FROM bundles "
    "WHERE origin = :origin AND epoch = :epoch AND first <= :first), :first) ORDER BY first"
)
_BY_ARRIVAL = (
    f"SELECT {Row.COLUMNS}, node_id FROM bundles LEFT JOIN origins ON key = origin "  # noqa: S608
    "WHERE at >= coalesce((SELECT max(at) FROM bundles WHERE at <= :at), :at) "
    "AND at + last - first >= :at ORDER BY at"
)


@attrs.define
class _Batch:
    """Operations that wait to be written, oldest first."""

    operations: list[Operation] = attrs.field(factory=list)
    number: int = 0
    puts: int = 0
    bytes: int = 0


@attrs.frozen
class _Read:
    """Something to be read: a statement with what belongs into it, and who wants it."""

    statement: str
    arguments: dict[str, object]
    bytes_max: int
    done: Callable[[Page], None]


class _Seldom:
    """Says when something that goes on may be logged again: at once, then every TELL_S seconds."""

    def __init__(self) -> None:
        self._told_at = float("-inf")

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._told_at < TELL_S:
            return False
        self._told_at = now
        return True

    def over(self) -> None:
        self._told_at = float("-inf")


class SqliteStore:
    """See MessageStore for the methods.

    Args:
        path: the file, in a directory that exists or can be made in one that does; SQLite has two
            more beside it, ``-wal`` and ``-shm``, and ``.lock`` keeps other processes out.
        retention_s: how long after it was signed a bundle can be read.
        messages_max: above it the oldest go.
        bytes_max: above it the oldest go.
        synchronous: "full": what is committed survives a power failure; each commit waits for the
            disk. "normal": it survives the end of the process, kill -9 included, but the last
            commits before a power failure may be lost, the newest first. Either way the file is
            whole afterwards.
        connect: makes the connection that writes; for tests that let it fail.
    """

    durable = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        retention_s: float = 300.0,
        messages_max: int = 100_000,
        bytes_max: int = 256 << 20,
        synchronous: Literal["full", "normal"] = "full",
        connect: Connect = sqlite3.connect,
    ) -> None:
        if synchronous not in ("full", "normal"):
            raise ValueError(f"synchronous={synchronous!r}: 'full' or 'normal' is needed")
        self.retention_s = retention_s
        self.failing = ""
        self.head = 1
        self.waiting_bytes = 0
        self._path = Path(path)
        self._limits = Limits(retention_s, messages_max, bytes_max)
        self._synchronous = synchronous
        self._connect = connect
        self._lock: int | None = None
        # What the readers' callers know; the book has its own, which is a commit behind.
        self._readers: dict[str, tuple[int, Intervals]] = {}
        self._teller: (
            tuple[Callable[[Callable[[], None]], object], Callable[[Committed], None]] | None
        ) = None
        # Guards what all three threads change: the next four, and `waiting_bytes`.
        self._changed = threading.Condition()
        self._batch = _Batch()
        self._number = 0
        self._waiting = 0
        self._close_by: float | None = None
        # Written by one thread each, read by `stats`.
        self._sizes = Sizes()
        self._evicted = self._unacked = self._corrupt = 0
        self._commits = self._commit_errors = self._read_errors = 0
        self._reads: queue.SimpleQueue[_Read | None] = queue.SimpleQueue()
        # Arrival numbers of damaged rows that the writer was told of.
        self._condemned: set[int] = set()
        self._tell_failing, self._tell_corrupt = _Seldom(), _Seldom()
        self._tell_unreadable = _Seldom()

    # --- life -----------------------------------------------------------------------------------

    def open(self, decode: Decode, now_ms: int) -> Recovered:
        """Take the file for this process, check all of it, and start the threads.

        Raises:
            StoreError: it cannot be used; the message names the file and what to do.
        """
        assert self._lock is None, "open it once"
        assert self._close_by is None, "closed before"
        lock = reserve(self._path)
        opened: list[sqlite3.Connection] = []
        try:
            db = connect_writer(self._path, self._synchronous, self._connect)
            opened.append(db)
            prepare(db, self._path)
            book = Book(db, self._path, self._limits)
            recovered, outcome = book.recover(now_ms)
            opened.append(connect_reader(self._path))
        except BaseException as error:
            for each in reversed(opened):
                each.close()
            os.close(lock)
            if isinstance(error, sqlite3.Error | OSError | UnicodeDecodeError):
                raise self._explain(error)
            raise
        self._lock = lock
        self.head = book.head
        self._readers = {
            name: (start, Intervals.of(acked.ranges()))
            for name, (start, acked) in book.readers.items()
        }
        self._count(outcome)
        self._writer = threading.Thread(
            target=self._write, args=(book, db), name="store-writer", daemon=True
        )
        self._reader = threading.Thread(
            target=self._serve, args=(opened[1], decode), name="store-reader", daemon=True
        )
        self._writer.start()
        self._reader.start()
        return recovered

    def _explain(self, error: Exception) -> StoreError:
        # SQLite's own message may hold a damaged name of a table, and is then no text.
        if isinstance(error, UnicodeDecodeError) or is_damage(error):
            return unusable(self._path, f"it is damaged or no store: {error}", MOVE_AWAY)
        return unusable(
            self._path,
            f"it cannot be opened: {error}",
            "look whether its disk is full or failing, and who may write there; or " + MOVE_AWAY,
        )

    def attach(
        self,
        post: Callable[[Callable[[], None]], object],
        on_commit: Callable[[Committed], None],
    ) -> None:
        """Tell of each commit from now on."""
        self._teller = (post, on_commit)

    def close(self) -> None:
        """Write what waits, for as long as CLOSE_S when that fails, and let go of the file."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        with self._changed:
            self._close_by = time.monotonic() + CLOSE_S
            self._changed.notify_all()
        self._reads.put(None)
        self._reader.join(STUCK_S)
        self._writer.join(CLOSE_S + STUCK_S)
        if self._reader.is_alive() or self._writer.is_alive():
            # They may write yet, so nobody else may.
            logger.error(
                "store %s: the disk does not answer; the file stays locked while this process runs",
                self._path,
                extra={"event": "store.stuck"},
            )
            return
        os.close(lock)

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
        """Queue a bundle."""
        at, self.head = self.head, self.head + bundle.count
        kept, certificates = Kept(at, bundle, hop, origin, history), tuple(chain)
        ticket = self._queue(lambda book: book.put(kept, certificates, now_ms), len(bundle.raw))
        return ticket, at

    def mark_joined(self) -> int:
        """Be a member."""
        return self._queue(lambda book: book.mark_joined())

    def see(self, key: StreamKey, first: int, last: int) -> int:
        """Mark as seen."""
        return self._queue(lambda book: book.see(key, first, last))

    def set_floor(self, key: StreamKey, floor: Sequence[Range]) -> int:
        """Replace the floor."""
        ranges = tuple(floor)
        return self._queue(lambda book: book.set_floor(key, ranges))

    def forget(self, key: StreamKey) -> int:
        """Drop all of a stream."""
        return self._queue(lambda book: book.forget(key))

    def acknowledge(self, name: str, first: int, last: int) -> int:
        """Note what a reader has done with."""
        start, acked = self._readers.get(name, (last + 1, Intervals()))
        if last >= start:
            acked.add(max(first, start), last)
        return self._queue(lambda book: book.acknowledge(name, first, last))

    def forget_reader(self, name: str) -> int:
        """Drop a reader's place."""
        self._readers.pop(name, None)
        return self._queue(lambda book: book.forget_reader(name))

    def expire(self, now_ms: int) -> None:
        """Let go what is too old."""
        self._queue(lambda book: book.expire(now_ms))

    # --- queries --------------------------------------------------------------------------------

    def read(
        self,
        key: StreamKey,
        first: int,
        last: int,
        bytes_max: int,
        done: Callable[[Page], None],
    ) -> None:
        """Bundles of one stream."""
        assert self._teller is not None, "attach comes first"
        arguments = {"origin": key[0], "epoch": key[1], "first": first, "last": last}
        self._reads.put(_Read(_BY_STREAM, arguments, bytes_max, done))

    def read_from(self, at: int, bytes_max: int, done: Callable[[Page], None]) -> None:
        """Bundles in order of arrival."""
        assert self._teller is not None, "attach comes first"
        self._reads.put(_Read(_BY_ARRIVAL, {"at": at}, bytes_max, done))

    def reader(self, name: str, begin: int | None = None) -> ReaderState:
        """A reader's place."""
        known = self._readers.get(name)
        if known is None:
            check_reader(name, len(self._readers))
            start = begin or self.head
            known = self._readers[name] = (start, Intervals())
            self._queue(lambda book: book.begin_reader(name, start))
        start, acked = known
        return ReaderState(start, tuple(acked.ranges()))

    def stats(self) -> dict[str, int]:
        """Counters and sizes: of what is committed."""
        sizes = self._sizes
        return {
            "store_bundles": sizes.bundles,
            "store_messages": sizes.messages,
            "store_bytes": sizes.bytes,
            "store_evicted": self._evicted,
            "store_unacked_evicted": self._unacked,
            "store_commits": self._commits,
            "store_commit_errors": self._commit_errors,
            "store_read_errors": self._read_errors,
            "store_corrupt": self._corrupt,
            "store_waiting": self._waiting,
        }

    # --- between the threads --------------------------------------------------------------------

    def _queue(self, operation: Operation, raw_bytes: int = 0) -> int:
        """Let the writer do this after all that came before. From any thread."""
        with self._changed:
            self._number += 1
            batch = self._batch
            batch.operations.append(operation)
            batch.number = self._number
            batch.puts += raw_bytes > 0
            batch.bytes += raw_bytes
            self._waiting += 1
            self.waiting_bytes += raw_bytes
            self._changed.notify()
            return self._number

    def _post(self, function: Callable[[], None]) -> None:
        assert self._teller is not None, "attach comes first"
        try:
            self._teller[0](function)
        except RuntimeError:
            # The event loop has ended before the store was closed: there is nobody to tell.
            logger.debug("store %s: the event loop has ended", self._path)
        except Exception:
            # The callers' mistake, and no reason to write or read no more.
            logger.exception("store %s: post failed", self._path, extra={"event": "store.error"})

    # --- the thread that writes -----------------------------------------------------------------

    def _write(self, book: Book, db: sqlite3.Connection) -> None:
        while (batch := self._next_batch()) is not None:
            if not self._commit(book, batch):
                break
        # The log can be emptied only when nobody reads.
        self._reader.join(STUCK_S)
        try:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            # The log stays beside the file, and the next life reads it.
            logger.debug("store %s: the log could not be emptied", self._path)
        db.close()

    def _next_batch(self) -> _Batch | None:
        """All that waits, as soon as there is something; None when the store is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._batch.operations or self._close_by is not None)
            batch, self._batch = self._batch, _Batch()
        return batch if batch.operations else None

    def _commit(self, book: Book, batch: _Batch) -> bool:
        """Try until it is written; False when there is no time left for that."""
        while True:
            is_closing = self._close_by is not None
            try:
                outcome = book.apply(batch.operations, batch.number)
            except Exception as error:
                self._fail(error)
                if not self._wait_to_retry(is_closing):
                    self._give_up(batch)
                    return False
            else:
                self._succeed(batch, outcome)
                return True

    def _succeed(self, batch: _Batch, outcome: Outcome) -> None:
        self._count(outcome)
        self._commits += 1
        with self._changed:
            self._waiting -= len(batch.operations)
            self.waiting_bytes -= batch.bytes
        if self.failing:
            self.failing = ""
            self._tell_failing.over()
            logger.warning(
                "store %s can be written again", self._path, extra={"event": "store.recovered"}
            )
        if self._teller is not None:
            on_commit = self._teller[1]
            committed = Committed(batch.number, outcome.evicted)
            self._post(partial(self._tell, on_commit, committed, outcome.closed))

    def _tell(
        self,
        on_commit: Callable[[Committed], None],
        committed: Committed,
        closed: tuple[tuple[str, int], ...],
    ) -> None:
        """On the callers' thread: what was committed, and which holes the book closed."""
        for name, last in closed:
            if name in self._readers and last >= self._readers[name][0]:
                start, acked = self._readers[name]
                acked.add(start, last)
        on_commit(committed)

    def _count(self, outcome: Outcome) -> None:
        self._sizes = outcome.sizes
        self._evicted += outcome.messages_evicted
        self._unacked += outcome.unacked
        self._corrupt += outcome.corrupt
        if outcome.corrupt and self._tell_corrupt.due():
            logger.error(
                "store %s: damaged bundles were let go, %d so far; look after its disk",
                self._path,
                self._corrupt,
                extra={"event": "store.corrupt", "bundles": self._corrupt},
            )

    def _fail(self, error: Exception) -> None:
        self._commit_errors += 1
        waiting = self._waiting
        self.failing = (
            f"store {self._path} cannot be written: {error}; {waiting} changes wait and are tried "
            "again every second; look whether its disk is full or failing"
        )
        if self._tell_failing.due():
            # What is not the disk's fault is ours, and then it matters where it happened.
            ours = not isinstance(error, sqlite3.Error | OSError | StoreError)
            logger.error(
                "%s",
                self.failing,
                exc_info=error if ours else None,
                extra={"event": "store.failing", "reason": str(error), "waiting": waiting},
            )

    def _wait_to_retry(self, is_closing: bool) -> bool:
        """False when the store is to be closed and there is no time left.

        is_closing: it was to be closed already when the attempt that failed began.
        """
        with self._changed:
            if not is_closing:
                # Who closes meanwhile wants it tried at once.
                self._changed.wait_for(lambda: self._close_by is not None, RETRY_S)
                return True
            assert self._close_by is not None
            left = self._close_by - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(RETRY_S, left))
        return True

    def _give_up(self, batch: _Batch) -> None:
        with self._changed:
            puts = batch.puts + self._batch.puts
        logger.error(
            "store %s: closed with %d bundles that were not written: %s",
            self._path,
            puts,
            self.failing,
            extra={"event": "store.unwritten", "bundles": puts},
        )

    # --- the thread that reads ------------------------------------------------------------------

    def _serve(self, db: sqlite3.Connection, decode: Decode) -> None:
        while (wanted := self._reads.get()) is not None and self._close_by is None:
            try:
                page = self._read_page(db, decode, wanted)
            except Exception as error:
                self._read_errors += 1
                page = Page((), more=True)
                if self._tell_unreadable.due():
                    logger.error(
                        "store %s cannot be read: %s",
                        self._path,
                        error,
                        exc_info=error if not isinstance(error, sqlite3.Error) else None,
                        extra={"event": "store.unreadable", "reason": str(error)},
                    )
            self._post(partial(wanted.done, page))
        db.close()

    def _read_page(self, db: sqlite3.Connection, decode: Decode, wanted: _Read) -> Page:
        kept: list[Kept] = []
        size = 0
        # Closed also when it is not read to its end, or the log could never begin anew.
        with closing(db.execute(wanted.statement, wanted.arguments)) as rows:
            for *columns, node_id in rows:
                one = _restore(columns, node_id, decode)
                if one is None:
                    self._condemn(columns[0])
                    continue
                if kept and size + len(one.bundle.raw) > wanted.bytes_max:
                    return Page(tuple(kept), more=True)
                size += len(one.bundle.raw)
                kept.append(one)
        return Page(tuple(kept), more=False)

    def _condemn(self, at: int) -> None:
        """Let the writer take out a damaged row, once."""
        if at not in self._condemned:
            self._condemned.add(at)
            self._queue(lambda book: book.drop(at))


def _restore(columns: Sequence[object], node_id: object, decode: Decode) -> Kept | None:
    """What was put; None when it is damaged."""
    row = Row.check(columns)
    if row is None:
        return None
    origin = origin_of(row.origin, node_id)
    if origin is None:
        return None
    try:
        bundle = decode(row.raw)
    except WireError:
        return None
    key = (MemberKey(row.origin), row.epoch)
    if (bundle.origin, bundle.epoch) != key or (bundle.first, bundle.last) != (row.first, row.last):
        return None
    return Kept(row.at, bundle, row.hop, origin, bool(row.history))
