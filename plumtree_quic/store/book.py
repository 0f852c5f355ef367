"""What stays in a SqliteStore and what goes: its operations, each batch of them one transaction.

All of it runs on the thread that writes. What is in memory here is a copy of what is in the file.
When a transaction fails, the copy is thrown away and made again from the file, so that the two
never differ; nothing else here needs to be able to go back.
"""

import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.intervals import Intervals
from plumtree_quic.messages import Range
from plumtree_quic.store.contract import Kept, Recovered, StoredStream, StreamKey
from plumtree_quic.store.database import (
    MOVE_AWAY,
    Row,
    checksum,
    insert_rows,
    pack_chain,
    pack_ranges,
    transaction,
    unpack_chain,
    unpack_ranges,
    unusable,
)

# The bounds mean the same in every store.
from plumtree_quic.store.memory import ENTRY_BYTES

__all__ = ["ACKED_RUNS_MAX", "Book", "Limits", "Operation", "Outcome", "Sizes", "origin_of"]

ACKED_RUNS_MAX = 4_096
"""Runs of a reader's acknowledged numbers. Above it holes that nothing is left to fill are closed:
those below the oldest bundle that can still be read.
"""

# How many of the oldest bundles are known beforehand.
OLDEST_ROWS = 256


@attrs.frozen
class Limits:
    """As the arguments of a store."""

    retention_s: float
    messages_max: int
    bytes_max: int


@attrs.frozen
class Sizes:
    """How much can be read."""

    bundles: int = 0
    messages: int = 0
    bytes: int = 0


@attrs.frozen
class Outcome:
    """What became of a batch.

    evicted: what can be read no more. messages_evicted, unacked, corrupt: to be counted.
    closed: readers, and up to where they count as having acknowledged all (see ACKED_RUNS_MAX).
    """

    evicted: tuple[tuple[StreamKey, Range], ...]
    messages_evicted: int
    unacked: int
    corrupt: int
    closed: tuple[tuple[str, int], ...]
    sizes: Sizes


@attrs.define
class _Stream:
    seen: Intervals = attrs.field(factory=Intervals)
    floor: Intervals = attrs.field(factory=Intervals)


@attrs.frozen
class _Brief:
    """A bundle in the table, without its bytes."""

    at: int
    origin: bytes
    epoch: int
    first: int
    last: int
    key_id: bytes
    signed_at: int
    raw_bytes: int

    COLUMNS = "at, origin, epoch, first, last, key_id, signed_at, length(raw)"

    @property
    def key(self) -> StreamKey:
        return (MemberKey(self.origin), self.epoch)

    @property
    def is_plausible(self) -> bool:
        """Whether a row that may be damaged can be reckoned with."""
        numbers = (self.epoch, self.first, self.last, self.raw_bytes)
        return all(isinstance(each, int) for each in numbers) and self.first <= self.last

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    @property
    def next_at(self) -> int:
        return self.at + self.count


@attrs.define
class _Draft:
    """The transaction that is being made."""

    rows: list[Row] = attrs.field(factory=list)
    streams: set[StreamKey] = attrs.field(factory=set)
    readers: set[str] = attrs.field(factory=set)
    evicted: list[tuple[StreamKey, Range]] = attrs.field(factory=list)
    messages_evicted: int = 0
    unacked: int = 0
    corrupt: int = 0
    closed: dict[str, int] = attrs.field(factory=dict)
    began_at_cut: int = 0
    is_changed: bool = False


class Book:
    """Applies operations to the file behind `db`, and lets go what is above the limits.

    Attributes:
        head: the arrival number behind the last message in the file.
        readers: for each, (start, acknowledged).
    """

    def __init__(self, db: sqlite3.Connection, path: Path, limits: Limits) -> None:
        self._db = db
        self._path = path
        self._limits = limits
        self._clear()
        # Memory says something else than the file, or may.
        self._stale = True
        # A batch of which SQLite did not say whether it is in the file, and what would be told.
        self._doubtful: tuple[int, Outcome] | None = None

    def _clear(self) -> None:
        self.head = 1
        self._applied = self._joined = 0
        self._bundles = self._messages = self._bytes = 0
        self._streams: dict[StreamKey, _Stream] = {}
        self.readers: dict[str, tuple[int, Intervals]] = {}
        self._origins: set[bytes] = set()
        self._chained: set[bytes] = set()
        self._signed: Counter[bytes] = Counter()
        # The oldest in the file, in order; when it is empty there may be others.
        self._oldest: deque[_Brief] = deque()
        # What came before this arrival number has gone, or goes with this transaction.
        self._cut = 0
        self._draft = _Draft()

    # --- opening --------------------------------------------------------------------------------

    def recover(self, now_ms: int) -> tuple[Recovered, Outcome]:
        """Check every row, let go what is damaged or too old, and tell what is left.

        Raises:
            StoreError: what is left cannot be trusted.
            sqlite3.Error: the file cannot be read or written.
        """
        self._clear()
        damaged = self._damaged_rows()
        with transaction(self._db):
            # Whether anything changes or not: a file that cannot be written is refused now.
            head, _, joined = self._meta()
            self._db.execute("UPDATE meta SET applied = 0, crc = ?", (checksum(head, 0, joined),))
            self._db.executemany("DELETE FROM bundles WHERE at = ?", damaged)
            self._db.execute(
                "DELETE FROM origins WHERE key NOT IN (SELECT DISTINCT origin FROM bundles)"
            )
            self._db.execute(
                "DELETE FROM chains WHERE key_id NOT IN (SELECT DISTINCT key_id FROM bundles)"
            )
        self._stale = True
        outcome = self.apply([lambda book: book.expire(now_ms)], 0)
        held = self._held()
        for key, runs in held.items():
            seen = self._streams[key].seen if key in self._streams else Intervals()
            if not all(seen.covers(first, last) for first, last in runs.ranges()):
                raise unusable(self._path, "it is damaged: bundles that were never seen", MOVE_AWAY)
        streams = tuple(
            StoredStream(
                key,
                tuple(stream.seen.ranges()),
                tuple(stream.floor.ranges()),
                tuple(held[key].ranges()) if key in held else (),
            )
            for key, stream in self._streams.items()
        )
        return Recovered(streams, bool(self._joined), self._chains()), attrs.evolve(
            outcome, corrupt=len(damaged)
        )

    def _meta(self) -> tuple[int, int, int]:
        row = self._db.execute("SELECT head, applied, joined, crc FROM meta").fetchone()
        if row is None or row[3] != _checksum(*row[:3]) or not row[0]:
            raise unusable(self._path, "it is damaged: the arrival number is lost", MOVE_AWAY)
        head, applied, joined, _ = row
        return head, applied, joined

    def _damaged_rows(self) -> list[tuple[int]]:
        """Arrival numbers of rows that are not as they were written, or have no origin."""
        head, _, _ = self._meta()
        origins = {
            key
            for key, node_id in self._db.execute("SELECT key, node_id FROM origins")
            if origin_of(key, node_id) is not None
        }
        damaged: list[tuple[int]] = []
        next_at = 1
        for columns in self._db.execute(f"SELECT {Row.COLUMNS} FROM bundles ORDER BY at"):  # noqa: S608
            row = Row.check(columns)
            if row is None or row.origin not in origins:
                damaged.append((columns[0],))
                continue
            if row.at < next_at or row.at + row.count > head:
                raise unusable(
                    self._path, "it is damaged: arrival numbers that were given twice", MOVE_AWAY
                )
            next_at = row.at + row.count
        return damaged

    def _held(self) -> dict[StreamKey, Intervals]:
        held: dict[StreamKey, Intervals] = {}
        for origin, epoch, first, last in self._db.execute(
            "SELECT origin, epoch, first, last FROM bundles ORDER BY at"
        ):
            held.setdefault((MemberKey(origin), epoch), Intervals()).add(first, last)
        return held

    def _chains(self) -> dict[bytes, tuple[bytes, ...]]:
        chains = {}
        for key_id, chain, crc in self._db.execute("SELECT key_id, chain, crc FROM chains"):
            # Who needs one that is damaged asks for it anew.
            if crc == _checksum(key_id, chain):
                chains[key_id] = unpack_chain(chain)
        return chains

    def _load(self) -> None:
        """Make the copy in memory from the file."""
        self._clear()
        db = self._db
        self.head, self._applied, self._joined = self._meta()
        for origin, epoch, seen, floor, crc in db.execute(
            "SELECT origin, epoch, seen, floor, crc FROM streams ORDER BY rowid"
        ):
            if crc != _checksum(origin, epoch, seen, floor):
                raise unusable(self._path, "it is damaged: what was seen is lost", MOVE_AWAY)
            self._streams[MemberKey(origin), epoch] = _Stream(_intervals(seen), _intervals(floor))
        for name, start, acked, crc in db.execute("SELECT name, start, acked, crc FROM readers"):
            if crc != _checksum(name, start, acked):
                raise unusable(self._path, "it is damaged: a reader's place is lost", MOVE_AWAY)
            self.readers[name.decode()] = (start, _intervals(acked))
        self._origins = {key for (key,) in db.execute("SELECT key FROM origins")}
        self._chained = {key_id for (key_id,) in db.execute("SELECT key_id FROM chains")}
        self._signed.update(key_id for (key_id,) in db.execute("SELECT key_id FROM bundles"))
        self._measure()
        self._stale = False

    def _measure(self) -> None:
        """Count what is in the file."""
        self._bundles, self._messages, self._bytes = self._db.execute(
            "SELECT count(*), coalesce(sum(last - first + 1), 0), "
            "coalesce(sum(length(raw) + ?), 0) FROM bundles",
            (ENTRY_BYTES,),
        ).fetchone()

    # --- transactions ---------------------------------------------------------------------------

    def apply(self, operations: Sequence["Operation"], number: int) -> Outcome:
        """Do all of this in one transaction, of which `number` is the last operation.

        May be called again with the same when it has failed, as often as it takes.

        Raises:
            sqlite3.Error: nothing was done, or, if the error came at the very end, perhaps all.
        """
        try:
            if self._stale:
                self._load()
                if self._doubtful is not None and self._doubtful[0] == number == self._applied:
                    return self._doubtful[1]
            self._draft = _Draft(began_at_cut=self._cut)
            self._doubtful = None
            with transaction(self._db):
                changes = self._db.total_changes
                for operation in operations:
                    operation(self)
                self._finish()
                if self._draft.corrupt:
                    # What a damaged row said of itself is not to be reckoned with.
                    self._measure()
                if self._db.total_changes != changes or self._draft.is_changed:
                    self._applied = number
                    meta = (self.head, number, self._joined)
                    self._db.execute(
                        "UPDATE meta SET head = ?, applied = ?, joined = ?, crc = ?",
                        (*meta, checksum(*meta)),
                    )
                outcome = self._outcome()
                self._doubtful = (number, outcome)
            self._doubtful = None
        except BaseException:
            self._stale = True
            raise
        if self._draft.corrupt:
            # As little as for the sizes it can be trusted for the rest.
            self._stale = True
        return outcome

    def _finish(self) -> None:
        """Write what was put off to the end, for it is written once however often it changes."""
        draft, db = self._draft, self._db
        self._flush()
        if self._cut > draft.began_at_cut:
            db.execute("DELETE FROM bundles WHERE at < ?", (self._cut,))
        for key in draft.streams:
            self._write_stream(key)
        for name in draft.readers:
            self._write_reader(name)

    def _flush(self) -> None:
        insert_rows(self._db, self._draft.rows)
        self._draft.rows.clear()

    def _write_stream(self, key: StreamKey) -> None:
        stream = self._streams.get(key)
        if stream is None:
            self._db.execute("DELETE FROM streams WHERE origin = ? AND epoch = ?", key)
            return
        fields = (*key, pack_ranges(stream.seen.ranges()), pack_ranges(stream.floor.ranges()))
        self._db.execute(
            "INSERT INTO streams (origin, epoch, seen, floor, crc) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (origin, epoch) DO UPDATE "
            "SET seen = excluded.seen, floor = excluded.floor, crc = excluded.crc",
            (*fields, checksum(*fields)),
        )

    def _write_reader(self, name: str) -> None:
        if name not in self.readers:
            self._db.execute("DELETE FROM readers WHERE name = ?", (name.encode(),))
            return
        start, acked = self.readers[name]
        fields = (name.encode(), start, pack_ranges(acked.ranges()))
        self._db.execute(
            "INSERT INTO readers (name, start, acked, crc) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE "
            "SET start = excluded.start, acked = excluded.acked, crc = excluded.crc",
            (*fields, checksum(*fields)),
        )

    def _outcome(self) -> Outcome:
        draft = self._draft
        return Outcome(
            tuple(draft.evicted),
            draft.messages_evicted,
            draft.unacked,
            draft.corrupt,
            tuple(draft.closed.items()),
            Sizes(self._bundles, self._messages, self._bytes),
        )

    # --- operations: within `apply` only --------------------------------------------------------

    def put(self, kept: Kept, chain: tuple[bytes, ...], now_ms: int) -> None:
        """Keep a bundle, mark it as seen, and make room for it."""
        bundle = kept.bundle
        if bundle.origin not in self._origins:
            self._db.execute(
                "INSERT OR REPLACE INTO origins VALUES (?, ?)",
                (bundle.origin, kept.origin.encode("ascii")),
            )
            self._origins.add(bundle.origin)
        if chain and bundle.key_id not in self._chained:
            self._keep_chain(bundle.key_id, chain)
        self._draft.rows.append(
            Row(
                kept.at,
                bundle.origin,
                bundle.epoch,
                bundle.first,
                bundle.last,
                kept.hop,
                kept.history,
                bundle.key_id,
                bundle.signed_at,
                bundle.raw,
            )
        )
        self.head = kept.next_at
        self._signed[bundle.key_id] += 1
        self._bundles += 1
        self._messages += bundle.count
        self._bytes += len(bundle.raw) + ENTRY_BYTES
        key = (bundle.origin, bundle.epoch)
        self.see(key, bundle.first, bundle.last)
        self._stream(key).floor.remove(bundle.first, bundle.last)
        self.expire(now_ms)

    def mark_joined(self) -> None:
        """Be a member, in the lives to come, too."""
        self._joined = 1
        self._draft.is_changed = True

    def see(self, key: StreamKey, first: int, last: int) -> None:
        """Mark as seen."""
        seen = self._stream(key).seen
        if not seen.covers(first, last):
            seen.add(first, last)
            self._draft.streams.add(key)

    def set_floor(self, key: StreamKey, floor: tuple[Range, ...]) -> None:
        """Replace the floor."""
        if not floor and key not in self._streams:
            return
        stream = self._stream(key)
        stream.floor = Intervals.of(floor)
        if not floor and not stream.seen:
            del self._streams[key]
        self._draft.streams.add(key)

    def _stream(self, key: StreamKey) -> _Stream:
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream()
        return stream

    def _keep_chain(self, key_id: bytes, chain: tuple[bytes, ...]) -> None:
        """Keep certificates."""
        packed = pack_chain(chain)
        self._db.execute(
            "INSERT OR REPLACE INTO chains VALUES (?, ?, ?)",
            (key_id, packed, checksum(key_id, packed)),
        )
        self._chained.add(key_id)

    def forget(self, key: StreamKey) -> None:
        """Drop all of a stream."""
        if key not in self._streams:
            return
        self._flush()
        for brief in self._select("origin = ? AND epoch = ? AND at >= ?", (*key, self._cut)):
            self._count_out(brief)
        self._db.execute("DELETE FROM bundles WHERE origin = ? AND epoch = ?", key)
        self._oldest = deque(brief for brief in self._oldest if brief.key != key)
        del self._streams[key]
        self._draft.streams.add(key)

    def begin_reader(self, name: str, start: int) -> None:
        """Remember a reader that is new."""
        self.readers[name] = (start, Intervals())
        self._draft.readers.add(name)

    def acknowledge(self, name: str, first: int, last: int) -> None:
        """Note what a reader has done with."""
        if name not in self.readers:
            return
        start, acked = self.readers[name]
        first = max(first, start)
        if last < first or acked.covers(first, last):
            return
        acked.add(first, last)
        if len(acked) > ACKED_RUNS_MAX:
            oldest = self._find_oldest()
            readable = oldest.at if oldest is not None else self.head
            if readable > start:
                acked.add(start, readable - 1)
                self._draft.closed[name] = readable - 1
        self._draft.readers.add(name)

    def forget_reader(self, name: str) -> None:
        """Drop a reader's place."""
        if self.readers.pop(name, None) is not None:
            self._draft.readers.add(name)
            self._draft.closed.pop(name, None)

    def drop(self, at: int) -> None:
        """Let go a bundle whose row is damaged."""
        self._flush()
        for brief in self._select("at = ? AND at >= ?", (at, self._cut)):
            self._draft.corrupt += 1
            if brief.is_plausible:
                self._draft.evicted.append((brief.key, (brief.first, brief.last)))
                self._count_out(brief)
        self._db.execute("DELETE FROM bundles WHERE at = ?", (at,))
        self._oldest = deque(brief for brief in self._oldest if brief.at != at)

    def expire(self, now_ms: int) -> None:
        """Let go what is too old, or too much; the oldest arrivals first."""
        limits, draft = self._limits, self._draft
        oldest_ms = now_ms - int(limits.retention_s * 1000)
        while (oldest := self._find_oldest()) is not None:
            if (
                self._messages <= limits.messages_max
                and self._bytes <= limits.bytes_max
                and oldest.signed_at >= oldest_ms
            ):
                return
            self._oldest.popleft()
            self._cut = oldest.next_at
            self._count_out(oldest)
            draft.messages_evicted += oldest.count
            for start, acked in self.readers.values():
                if oldest.next_at > start and not acked.covers(oldest.at, oldest.next_at - 1):
                    draft.unacked += oldest.count
            draft.evicted.append((oldest.key, (oldest.first, oldest.last)))

    def _find_oldest(self) -> _Brief | None:
        if not self._oldest and self._bundles:
            self._flush()
            self._oldest.extend(
                self._select(f"at >= ? ORDER BY at LIMIT {OLDEST_ROWS}", (self._cut,))
            )
        return self._oldest[0] if self._oldest else None

    def _select(self, where: str, arguments: tuple[object, ...]) -> list[_Brief]:
        statement = f"SELECT {_Brief.COLUMNS} FROM bundles WHERE {where}"  # noqa: S608
        return [_Brief(*columns) for columns in self._db.execute(statement, arguments)]

    def _count_out(self, brief: _Brief) -> None:
        self._bundles -= 1
        self._messages -= brief.count
        self._bytes -= brief.raw_bytes + ENTRY_BYTES
        self._signed[brief.key_id] -= 1
        if not self._signed[brief.key_id]:
            del self._signed[brief.key_id]
            if brief.key_id in self._chained:
                self._chained.discard(brief.key_id)
                self._db.execute("DELETE FROM chains WHERE key_id = ?", (brief.key_id,))


Operation = Callable[[Book], None]
"""Something to do within `Book.apply`."""


def origin_of(key: bytes, node_id: object) -> NodeId | None:
    """The node of this key as it was stored; None when that is damaged."""
    if not isinstance(node_id, bytes) or not node_id.isascii():
        return None
    origin = NodeId(node_id.decode("ascii"))
    return origin if member_key(origin) == key else None


def _checksum(*fields: int | bytes) -> int:
    """The checksum of columns that may be damaged; -1 when they cannot be what was written."""
    try:
        return checksum(*fields)
    except TypeError:
        return -1


def _intervals(blob: bytes) -> Intervals:
    return Intervals.of(unpack_ranges(blob))
