"""The database file of a SqliteStore: who may open it, its modes, its schema and versions, and its
rows with their checksums. No threads here (sqlite.py), and no rule for what stays (book.py).

SQLite notices a file whose pages do not fit together, and a write-ahead log that is torn, but not
a flipped bit in a row. So each row carries a checksum of all that is in it. It is one against
disks, not against people: who can write the file can do anything with it, hence the mode 0600.
"""

import contextlib
import errno
import fcntl
import os
import sqlite3
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from plumtree_quic.errors import StoreError
from plumtree_quic.messages import Range

__all__ = [
    "MIGRATIONS",
    "MOVE_AWAY",
    "Connect",
    "Row",
    "checksum",
    "connect_reader",
    "connect_writer",
    "insert_rows",
    "is_damage",
    "pack_chain",
    "pack_ranges",
    "prepare",
    "reserve",
    "unpack_chain",
    "unpack_ranges",
    "unusable",
]

Connect = Callable[..., sqlite3.Connection]
"""Called as sqlite3.connect is, with its keyword arguments."""

MOVE_AWAY = (
    "move it away, and the files beside it that end in -wal and -shm; "
    "the node then starts like one without a past"
)

# "PltQ": by this a file is known as ours, whatever its version.
APPLICATION_ID = 0x506C7451
PAGE_BYTES_MIN = 512
# How long to wait for others who read the file, a backup for instance, before that is a failure.
BUSY_S = 1.0
# What the log keeps of its size when it begins anew.
WAL_BYTES_MAX = 16 << 20


# --- schema -------------------------------------------------------------------------------------


def _create(db: sqlite3.Connection) -> None:
    """From an empty file to version 1."""
    for statement in (
        "CREATE TABLE bundles (at INTEGER PRIMARY KEY, origin BLOB NOT NULL, epoch INTEGER NOT NULL"
        ", first INTEGER NOT NULL, last INTEGER NOT NULL, hop INTEGER NOT NULL"
        ", history INTEGER NOT NULL, key_id BLOB NOT NULL, signed_at INTEGER NOT NULL"
        ", crc INTEGER NOT NULL"
        ", raw BLOB NOT NULL)",
        "CREATE INDEX bundles_by_stream ON bundles (origin, epoch, first)",
        "CREATE TABLE origins (key BLOB PRIMARY KEY, node_id BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE streams (origin BLOB NOT NULL, epoch INTEGER NOT NULL, seen BLOB NOT NULL"
        ", floor BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (origin, epoch))",
        "CREATE TABLE chains (key_id BLOB PRIMARY KEY, chain BLOB NOT NULL, crc INTEGER NOT NULL)",
        "CREATE TABLE readers (name BLOB PRIMARY KEY, start INTEGER NOT NULL, acked BLOB NOT NULL"
        ", crc INTEGER NOT NULL)",
        # applied: the last operation of this life that is in the file. joined: see Recovered.
        "CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), head INTEGER NOT NULL"
        ", applied INTEGER NOT NULL, joined INTEGER NOT NULL, crc INTEGER NOT NULL)",
    ):
        db.execute(statement)
    db.execute("INSERT INTO meta VALUES (1, 1, 0, 0, ?)", (checksum(1, 0, 0),))


MIGRATIONS: list[Callable[[sqlite3.Connection], None]] = [_create]
"""The n-th leads from version n to n + 1, within a transaction. Its length is our version."""


# --- the file -----------------------------------------------------------------------------------


def unusable(path: Path, what: object, remedy: str) -> StoreError:
    """The error that says what is wrong with the store at `path`, and what to do."""
    return StoreError(f"store {path}: {what}; {remedy}")


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that the file is broken, or none of its own; not full, locked or away."""
    # Errors that Python's module itself raises have no code.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def reserve(path: Path) -> int:
    """Make the file if there is none, 0600, for this process alone. Returns what to close for that.

    Raises:
        StoreError: another process has it, or the directory or file is not one to write to.
    """
    directory = path.parent
    try:
        if not directory.is_dir():
            directory.mkdir(mode=0o700)
            # Whatever the umask is.
            directory.chmod(0o700)
            _sync_directory(directory.parent)
        lock = _open_private(path.with_name(path.name + ".lock"))
    except OSError as error:
        raise unusable(
            path,
            f"the directory {directory} cannot be used: {error.strerror or error}",
            "make it one that this user may write to, or choose another",
        )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Only now, for closing a file takes away the locks that SQLite has on it in this process.
        size = _touch(path)
        for suffix in ("-wal", "-shm"):
            _restrict(path.with_name(path.name + suffix))
        _sync_directory(directory)
    except BlockingIOError:
        os.close(lock)
        raise unusable(
            path,
            "another process uses it",
            "end that one, or give each node a path of its own",
        )
    except OSError as error:
        os.close(lock)
        raise unusable(
            path,
            f"it cannot be used: {error.strerror or error}",
            "make it a regular file that this user may read and write, or " + MOVE_AWAY,
        )
    if 0 < size < PAGE_BYTES_MIN:
        # SQLite would take it for empty and write over it.
        os.close(lock)
        raise unusable(path, "it is no database", MOVE_AWAY)
    return lock


def _open_private(path: Path) -> int:
    # Not blocking: opening a FIFO would wait for its other end, for ever.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        # Also for a file that was copied here, or made under a strange umask.
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o600:
            os.fchmod(descriptor, 0o600)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _touch(path: Path) -> int:
    """Make the file if there is none; its size."""
    descriptor = _open_private(path)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _restrict(path: Path) -> None:
    """What a former life left beside the file; SQLite makes new ones with the file's own mode."""
    if path.exists():
        _touch(path)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect_writer(path: Path, synchronous: str, connect: Connect) -> sqlite3.Connection:
    """The connection that writes. Transactions are begun and ended by hand."""
    # Absolute, for some names mean something else to SQLite than a file.
    db = connect(
        str(path.absolute()), isolation_level=None, check_same_thread=False, timeout=BUSY_S
    )
    try:
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise unusable(
                path,
                f"no write-ahead log is possible here (SQLite chose {mode!r})",
                "put it on a local file system",
            )
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        db.close()
        raise
    return db


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that only reads, and sees what is committed."""
    return sqlite3.connect(
        path.absolute().as_uri() + "?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_S,
    )


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Look the whole file over, and bring it to our version.

    Raises:
        StoreError: it is another program's, of a newer version, or damaged.
        sqlite3.Error: it cannot be read or written.
    """
    version = _version(db, path)
    # Beyond quick_check it compares the index with the table: who reads by it trusts it.
    found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise unusable(path, f"it is damaged: {found}", MOVE_AWAY)
    if version < len(MIGRATIONS):
        with transaction(db):
            for each in range(version, len(MIGRATIONS)):
                MIGRATIONS[each](db)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _version(db: sqlite3.Connection, path: Path) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    whose = db.execute("PRAGMA application_id").fetchone()[0]
    if whose != APPLICATION_ID:
        # A crash may leave a database that has nothing in it yet.
        if version or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise unusable(path, "it is a database of another program", "choose another path")
        return 0
    if version > len(MIGRATIONS):
        raise unusable(
            path,
            f"its schema is version {version}, and this program knows up to {len(MIGRATIONS)}",
            "run the program that wrote it, or " + MOVE_AWAY,
        )
    return version


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of what is done within, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # SQLite has ended it by itself after some errors.
        with contextlib.suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise


# --- rows ---------------------------------------------------------------------------------------

_BUNDLE_HEAD = struct.Struct(">QQQQHHQHH")


def checksum(*fields: int | bytes) -> int:
    """CRC-32 over fields; raises TypeError for what is neither, as in a damaged row."""
    crc = 0
    for field in fields:
        if isinstance(field, bytes):
            crc = zlib.crc32(field, zlib.crc32(b"%d:" % len(field), crc))
        else:
            crc = zlib.crc32(b"%d;" % field, crc)
    return crc


@attrs.frozen
class Row:
    """A row of the table of bundles, in the order of its columns, `crc` left out."""

    at: int
    origin: bytes
    epoch: int
    first: int
    last: int
    hop: int
    history: int
    key_id: bytes
    signed_at: int
    raw: bytes = attrs.field(repr=False)

    COLUMNS = "at, origin, epoch, first, last, hop, history, key_id, signed_at, raw, crc"

    @property
    def count(self) -> int:
        """How many messages are in it."""
        return self.last - self.first + 1

    def crc(self) -> int:
        """The checksum over all columns.

        Raises:
            TypeError, ValueError, struct.error: a column is not of the type that it should be.
        """
        head = _BUNDLE_HEAD.pack(
            self.at,
            self.epoch,
            self.first,
            self.last,
            self.hop,
            self.history,
            self.signed_at,
            len(self.origin),
            len(self.key_id),
        )
        crc = zlib.crc32(self.key_id, zlib.crc32(self.origin, zlib.crc32(head)))
        return zlib.crc32(self.raw, crc)

    @classmethod
    def check(cls, columns: Sequence[object]) -> "Row | None":
        """The row of these COLUMNS, or None when it is damaged."""
        row = cls(*columns[:-1])  # type: ignore[arg-type]
        try:
            good = row.crc() == columns[-1] and 0 < row.first <= row.last
        except (TypeError, ValueError, struct.error):
            return None
        return row if good else None

    def values(self) -> tuple[object, ...]:
        """COLUMNS."""
        return (
            self.at,
            self.origin,
            self.epoch,
            self.first,
            self.last,
            self.hop,
            self.history,
            self.key_id,
            self.signed_at,
            self.raw,
            self.crc(),
        )


# Each statement lets go of the interpreter's lock and waits to get it back, on a busy loop for
# long: so rows go in by many at once.
_INSERTS = {
    size: f"INSERT INTO bundles ({Row.COLUMNS}) VALUES "  # noqa: S608 - our own words
    + ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * size)
    for size in (64, 8, 1)
}


def insert_rows(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Put them into the table of bundles."""
    done = 0
    for size, statement in _INSERTS.items():
        while len(rows) - done >= size:
            part = rows[done : done + size]
            db.execute(statement, [value for row in part for value in row.values()])
            done += size


def pack_ranges(ranges: Sequence[Range]) -> bytes:
    """Ranges as 16 bytes each."""
    return struct.pack(f">{2 * len(ranges)}Q", *(number for each in ranges for number in each))


def unpack_ranges(blob: bytes) -> list[Range]:
    """The reverse of `pack_ranges`."""
    numbers = struct.unpack(f">{len(blob) // 8}Q", blob)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def pack_chain(chain: Sequence[bytes]) -> bytes:
    """Certificates, each with its length before it."""
    return b"".join(len(each).to_bytes(4, "big") + each for each in chain)


def unpack_chain(blob: bytes) -> tuple[bytes, ...]:
    """The reverse of `pack_chain`."""
    chain = []
    while blob:
        end = 4 + int.from_bytes(blob[:4], "big")
        chain.append(blob[4:end])
        blob = blob[end:]
    return tuple(chain)
