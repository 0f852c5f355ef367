"""A store's file: who may open it, what is refused in words, and disks that fail for a while."""

import logging
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from plumtree_quic.errors import StoreError
from plumtree_quic.intervals import Intervals
from plumtree_quic.store import book, database, sqlite
from plumtree_quic.store.contract import READERS_MAX, ReaderState
from plumtree_quic.store.sqlite import SqliteStore
from plumtree_quic.wire import parse_bundle
from tests.rigs.broadcast import key, node
from tests.rigs.store import Driven, Faulty, opened, signed, sqlite_store, streams
from tests.rigs.waiting import WAIT_S

ROOT = Path(__file__).parents[2]
O1 = (key("o"), 1)


def refusal(store):
    with pytest.raises(StoreError) as caught:
        store.open(parse_bundle, 0)
    # A store that could not be opened can be closed all the same.
    store.close()
    return str(caught.value)


def edit(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def firsts(page):
    return [kept.bundle.first for kept in page.kept]


# --- opening ---


@pytest.fixture(params=[0o000, 0o022, 0o277])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_files_are_for_their_owner_alone_whatever_the_umask(tmp_path, umask):
    directory = tmp_path / "new"
    with opened(sqlite_store(directory)) as store:
        store.put(signed(1))
        store.settle()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    names = ("store.db", "store.db-wal", "store.db-shm", "store.db.lock")
    assert modes == dict.fromkeys(names, 0o600)


def test_files_that_others_could_read_are_theirs_no_more(tmp_path):
    with opened(sqlite_store(tmp_path)):
        pass
    (tmp_path / "store.db").chmod(0o644)
    (tmp_path / "store.db-wal").touch(0o644)
    with opened(sqlite_store(tmp_path)):
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_second_process_is_refused_until_the_first_one_ends(tmp_path):
    program = (
        "import sys, time\n"
        "from plumtree_quic.store.sqlite import SqliteStore\n"
        "SqliteStore(sys.argv[1]).open(bytes, 0)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "store.db")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "open\n"
        text = refusal(sqlite_store(tmp_path))
        assert "another process uses it" in text
        assert str(tmp_path / "store.db") in text
        other.kill()
        other.wait()
        with opened(sqlite_store(tmp_path)):
            pass


def test_a_second_store_on_one_file_is_refused_in_the_same_process_too(tmp_path):
    with opened(sqlite_store(tmp_path)) as store:
        assert "another process uses it" in refusal(sqlite_store(tmp_path))
        store.put(signed(1))
        store.settle()
        assert firsts(store.read_from(1)) == [1]


def as_nobody(call):
    """Whether `call` returns true in a process without privileges: root is refused nothing."""
    child = os.fork()
    if not child:
        try:
            if os.getuid() == 0:
                os.setgid(65_534)
                os.setuid(65_534)
            os._exit(0 if call() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_directory_that_is_read_only_is_refused_in_words():
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o555)

        def refused():
            text = refusal(sqlite_store(directory))
            return str(directory) in text and "this user may write to" in text

        assert as_nobody(refused)
        directory.chmod(0o755)


def test_a_file_of_somebody_else_is_refused_in_words():
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        (directory / "store.db").touch(0o000)
        (directory / "store.db").chmod(0o000)
        text = "make it a regular file that this user may read and write"
        assert as_nobody(lambda: text in refusal(sqlite_store(directory)))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to(path.with_name("elsewhere")),
        lambda path: os.mkfifo(path),
    ],
)
def test_what_is_no_regular_file_is_refused(tmp_path, make):
    make(tmp_path / "store.db")
    assert "make it a regular file" in refusal(sqlite_store(tmp_path))
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    text = refusal(sqlite_store(tmp_path / "one" / "two"))
    assert str(tmp_path / "one" / "two") in text


@pytest.mark.parametrize("content", [b"no database\n" * 1_000, b"x", bytes(8_192)])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "store.db").write_bytes(content)
    text = refusal(sqlite_store(tmp_path))
    assert "move it away" in text
    assert str(tmp_path / "store.db") in text
    assert (tmp_path / "store.db").read_bytes() == content


def test_a_database_of_another_program_is_refused(tmp_path):
    edit(tmp_path / "store.db", "CREATE TABLE theirs (a)")
    assert "of another program" in refusal(sqlite_store(tmp_path))


def test_a_newer_schema_is_refused_by_its_number(tmp_path):
    with opened(sqlite_store(tmp_path)):
        pass
    edit(tmp_path / "store.db", "PRAGMA user_version = 7")
    text = refusal(sqlite_store(tmp_path))
    assert "version 7" in text
    assert f"up to {len(database.MIGRATIONS)}" in text


def test_what_was_refused_can_be_opened_once_it_is_mended(tmp_path):
    (tmp_path / "store.db").write_bytes(b"no database\n" * 1_000)
    refusal(sqlite_store(tmp_path))
    (tmp_path / "store.db").rename(tmp_path / "away")
    with opened(sqlite_store(tmp_path)) as store:
        assert store.recovered.streams == ()


def test_an_old_version_is_brought_to_ours(tmp_path, monkeypatch):
    with opened(sqlite_store(tmp_path)) as store:
        store.put(signed(1))
    with monkeypatch.context() as patched:

        def rename(db):
            db.execute("CREATE TABLE news (a)")
            db.execute("INSERT INTO news SELECT first FROM bundles")

        patched.setattr(database, "MIGRATIONS", [*database.MIGRATIONS, rename])
        with opened(sqlite_store(tmp_path)) as store:
            assert firsts(store.read_from(1)) == [1]
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        assert db.execute("SELECT a FROM news").fetchall() == [(1,)]
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
    assert "version 2" in refusal(sqlite_store(tmp_path))


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    with opened(sqlite_store(tmp_path)) as store:
        store.put(signed(1))

    def fail(db):
        db.execute("DROP TABLE bundles")
        db.execute("no SQL")

    with monkeypatch.context() as patched:
        patched.setattr(database, "MIGRATIONS", [*database.MIGRATIONS, fail])
        assert "cannot be opened" in refusal(sqlite_store(tmp_path))
    with opened(sqlite_store(tmp_path)) as store:
        assert firsts(store.read_from(1)) == [1]


@pytest.mark.parametrize("begin", ["", "PRAGMA journal_mode = WAL"])
def test_version_0_is_an_empty_file(tmp_path, begin):
    (tmp_path / "store.db").touch()
    edit(tmp_path / "store.db", begin)
    with opened(sqlite_store(tmp_path)):
        pass
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(database.MIGRATIONS),)


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE streams SET seen = x'00000000000000010000000000000009'", "what was seen"),
        ("UPDATE streams SET epoch = 2", "what was seen"),
        ("UPDATE readers SET start = 2", "a reader's place"),
        ("UPDATE meta SET head = 1", "the arrival number"),
        ("DELETE FROM meta", "the arrival number"),
        ("DELETE FROM streams", "never seen"),
    ],
)
def test_what_cannot_be_trusted_is_refused(tmp_path, statement, what):
    with opened(sqlite_store(tmp_path)) as store:
        store.put(signed(1, count=3))
        store.store.reader("r")
    edit(tmp_path / "store.db", statement)
    text = refusal(sqlite_store(tmp_path))
    assert what in text
    assert "move it away" in text


def test_lower_limits_hold_from_the_start(tmp_path):
    with opened(sqlite_store(tmp_path, messages_max=9)) as store:
        for first in range(1, 9):
            store.put(signed(first))
    with opened(sqlite_store(tmp_path, messages_max=3)) as store:
        assert streams(store.recovered) == {O1: (((1, 8),), (), ((6, 8),))}
        assert store.store.stats()["store_messages"] == 3


def test_only_full_and_normal_are_ways_to_write(tmp_path):
    with pytest.raises(ValueError, match="'full' or 'normal'"):
        SqliteStore(tmp_path / "store.db", synchronous="off; DROP TABLE bundles")


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1)])
def test_the_way_to_write_is_the_one_that_was_asked_for(tmp_path, synchronous, level):
    made = []

    def connect(*arguments, **about):
        made.append(sqlite3.connect(*arguments, **about))
        return made[0]

    with opened(sqlite_store(tmp_path, synchronous=synchronous, connect=connect)):
        assert made[0].execute("PRAGMA synchronous").fetchone() == (level,)
        assert made[0].execute("PRAGMA journal_mode").fetchone() == ("wal",)


# --- damaged rows ---


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE bundles SET raw = zeroblob(length(raw)) WHERE at = 2",
        "UPDATE bundles SET hop = hop + 1 WHERE at = 2",
        "UPDATE bundles SET crc = crc + 1 WHERE at = 2",
        "UPDATE bundles SET key_id = 5 WHERE at = 2",
        "UPDATE bundles SET epoch = 'x' WHERE at = 2",
        "UPDATE bundles SET at = 20 WHERE at = 2",
        "DELETE FROM origins WHERE key = (SELECT origin FROM bundles WHERE at = 2)",
        "UPDATE origins SET node_id = x'ff' WHERE key = (SELECT origin FROM bundles WHERE at = 2)",
    ],
)
@pytest.mark.parametrize("live", [False, True])
def test_a_damaged_row_is_let_go_counted_and_told(tmp_path, caplog, change, live):
    with opened(sqlite_store(tmp_path)) as store:
        for first, origin in ((1, "o"), (1, "p"), (2, "o")):
            store.put(signed(first, origin=origin), origin=origin)
        store.settle()
        if live:
            edit(tmp_path / "store.db", change)
            assert [kept.at for kept in store.read_from(1).kept] == [1, 3]
            # What the reading thread found, the writing one takes out, once.
            assert [kept.at for kept in store.read_from(1).kept] == [1, 3]
            store.settle()
            if "epoch" not in change:
                assert store.evicted == [((key("p"), 1), (1, 1))]
            assert store.store.stats()["store_corrupt"] == 1
            assert store.store.stats()["store_bundles"] == 2
            store.put(signed(3))
            store.settle()
            assert firsts(store.read(O1, 1, 9)) == [1, 2, 3]
    if not live:
        edit(tmp_path / "store.db", change)
        with opened(sqlite_store(tmp_path)) as store:
            assert store.store.stats()["store_corrupt"] == 1
            assert streams(store.recovered)[key("p"), 1] == (((1, 1),), (), ())
            assert firsts(store.read_from(1)) == [1, 2]
    told = [each for each in caplog.records if getattr(each, "event", "") == "store.corrupt"]
    assert len(told) == 1


def test_sizes_are_right_with_the_commit_that_lets_a_damaged_row_go(tmp_path):
    path = tmp_path / "store.db"
    with opened(sqlite_store(tmp_path)) as store:
        for first in (1, 2, 3):
            store.put(signed(first))
    edit(path, "UPDATE bundles SET epoch = 'x' WHERE at = 2")
    with closing(database.connect_writer(path, "full", sqlite3.connect)) as db:
        made = book.Book(db, path, book.Limits(1_000.0, 10, 1 << 20))
        # In one transaction with others, as the writer takes what has come together.
        outcome = made.apply([lambda book: book.drop(2), lambda book: book.see(O1, 4, 4)], 1)
        assert (outcome.corrupt, outcome.sizes.bundles, outcome.sizes.messages) == (1, 2, 2)
        assert made.apply([lambda book: book.see(O1, 5, 5)], 2).sizes == outcome.sizes


def test_what_the_decoder_refuses_is_a_damaged_row(tmp_path):
    with opened(sqlite_store(tmp_path)) as store:
        store.put(signed(1))
        # Signed and stored, and yet nothing that this program can read.
        store.put(signed(2).__class__(**{**fields(signed(2)), "raw": b"\0\1\2"}))
        store.settle()
        assert firsts(store.read_from(1)) == [1]
        store.settle()
        assert store.store.stats()["store_corrupt"] == 1


def fields(made):
    return {name: getattr(made, name) for name in made.__slots__ if not name.startswith("__")}


# --- disks that fail ---


class Failing:
    """What is to go wrong, by a part of the statement; goes on until `end`."""

    def __init__(self, monkeypatch, part="COMMIT", when="before", error=None):
        self.part, self.when = part, when
        self.error = error or sqlite3.OperationalError("database or disk is full")
        self.on = False
        self.times = None
        self.failed = threading.Semaphore(0)
        monkeypatch.setattr(Faulty, "hook", staticmethod(self))
        monkeypatch.setattr(sqlite, "RETRY_S", 0.01)

    def __call__(self, when, statement):
        if self.on and when == self.when and self.part in statement:
            if self.times is not None:
                self.times -= 1
                self.on = self.times > 0
            self.failed.release()
            raise self.error

    def wait(self, times=1):
        for _ in range(times):
            assert self.failed.acquire(timeout=WAIT_S)


def faulty_store(directory, **about):
    return sqlite_store(directory, connect=partial(sqlite3.connect, factory=Faulty), **about)


def events(caplog):
    return [each.event for each in caplog.records if hasattr(each, "event")]


@pytest.mark.parametrize("part", ["BEGIN", "INSERT INTO bundles", "INSERT INTO streams", "COMMIT"])
def test_what_cannot_be_written_waits_in_order_and_is_told_once(
    tmp_path, monkeypatch, caplog, part
):
    caplog.set_level(logging.INFO, "plumtree_quic")
    disk = Failing(monkeypatch, part)
    with opened(faulty_store(tmp_path, messages_max=4)) as store:
        store.put(signed(1))
        store.store.reader("r")
        store.settle()
        disk.on = True
        for first in (2, 3):
            store.put(signed(first))
        disk.wait(3)
        for first in (4, 5, 6):
            store.put(signed(first))
        store.store.acknowledge("r", 3, 3)
        failing = store.store.failing
        assert str(tmp_path / "store.db") in failing
        assert "database or disk is full" in failing
        assert store.store.waiting_bytes == 5 * len(signed(1).raw)
        assert store.store.stats()["store_waiting"] == 6
        assert firsts(store.read_from(1)) == [1]
        assert store.evicted == []
        disk.on = False
        store.settle()
        assert store.store.failing == ""
        assert store.store.waiting_bytes == 0
        assert store.evicted == [(O1, (1, 1)), (O1, (2, 2))]
        assert [(kept.at, kept.bundle.first) for kept in store.read_from(1).kept] == [
            (n, n) for n in (3, 4, 5, 6)
        ]
        stats = store.store.stats()
        assert stats["store_commit_errors"] >= 3
        assert (stats["store_evicted"], stats["store_unacked_evicted"]) == (2, 1)
        assert stats["store_messages"] == 4
    assert events(caplog) == ["store.failing", "store.recovered"]
    with opened(sqlite_store(tmp_path, messages_max=4)) as store:
        assert streams(store.recovered) == {O1: (((1, 6),), (), ((3, 6),))}
        assert store.store.reader("r") == ReaderState(2, ((3, 3),))


def test_a_disk_that_is_really_full_is_waited_for(tmp_path, monkeypatch):
    full = threading.Event()
    refused = threading.Semaphore(0)
    made = []

    def connect(*arguments, **about):
        made.append(sqlite3.connect(*arguments, factory=Faulty, **about))
        return made[0]

    def hook(when, statement):
        if statement.startswith("BEGIN") and when == "before":
            pages = 1 if full.is_set() else 1 << 20
            # Never less than there are already.
            sqlite3.Connection.execute(made[0], f"PRAGMA max_page_count = {pages}")
        if statement == "ROLLBACK" and when == "before":
            refused.release()

    monkeypatch.setattr(Faulty, "hook", staticmethod(hook))
    monkeypatch.setattr(sqlite, "RETRY_S", 0.01)
    with opened(sqlite_store(tmp_path, connect=connect)) as store:
        store.put(signed(1))
        store.settle()
        full.set()
        for first in (2, 3):
            store.put(signed(first, payload=b"y" * 40_000))
        # The first of them fails; SQLite may have ended the transaction by itself.
        while not store.store.failing:
            refused.acquire(timeout=0.01)
        assert "full" in store.store.failing
        full.clear()
        store.settle()
        assert firsts(store.read_from(1)) == [1, 2, 3]


def test_a_commit_that_was_made_and_yet_failed_is_not_made_twice(tmp_path, monkeypatch):
    disk = Failing(monkeypatch, "COMMIT", when="after")
    with opened(faulty_store(tmp_path, messages_max=3)) as store:
        for first in (1, 2, 3):
            store.put(signed(first))
        store.settle()
        disk.times, disk.on = 1, True
        store.put(signed(4))
        disk.wait()
        store.put(signed(5))
        store.settle()
        assert store.evicted == [(O1, (1, 1)), (O1, (2, 2))]
        assert [(kept.at, kept.bundle.first) for kept in store.read_from(1).kept] == [
            (n, n) for n in (3, 4, 5)
        ]
        assert store.store.stats()["store_evicted"] == 2


def test_a_file_that_another_program_has_locked_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "RETRY_S", 0.01)
    monkeypatch.setattr(database, "BUSY_S", 0.01)
    with opened(sqlite_store(tmp_path)) as store:
        with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            store.put(signed(1))
            waiting = threading.Event()
            while not store.store.failing:
                waiting.wait(0.01)
            assert "locked" in store.store.failing
            other.execute("ROLLBACK")
        store.settle()
        assert firsts(store.read_from(1)) == [1]


def test_an_error_of_ours_does_not_end_the_thread_that_writes(tmp_path, monkeypatch, caplog):
    disk = Failing(monkeypatch, "COMMIT", error=ZeroDivisionError("ours"))
    with opened(faulty_store(tmp_path)) as store:
        disk.on = True
        store.put(signed(1))
        disk.wait(2)
        assert "ours" in store.store.failing
        disk.on = False
        store.settle()
        assert firsts(store.read_from(1)) == [1]
    assert [bool(each.exc_info) for each in caplog.records if each.event == "store.failing"] == [
        True
    ]


def test_close_writes_what_waits(tmp_path):
    store = Driven(sqlite_store(tmp_path))
    with store.store._changed:
        for first in range(1, 6):
            store.put(signed(first))
        closing_thread = threading.Thread(target=store.store.close)
        closing_thread.start()
    closing_thread.join(WAIT_S)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store.db", "store.db.lock"]
    with opened(sqlite_store(tmp_path)) as store:
        assert firsts(store.read_from(1)) == [1, 2, 3, 4, 5]


def test_close_gives_up_in_the_end_and_says_how_much_is_lost(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sqlite, "CLOSE_S", 0.05)
    disk = Failing(monkeypatch)
    store = Driven(faulty_store(tmp_path))
    store.put(signed(1))
    store.settle()
    disk.on = True
    store.put(signed(2))
    disk.wait()
    store.put(signed(3))
    store.store.see(O1, 9, 9)
    store.store.close()
    store.store.close()
    (last,) = [each for each in caplog.records if each.event == "store.unwritten"]
    assert last.bundles == 2
    disk.on = False
    with opened(sqlite_store(tmp_path)) as store:
        assert streams(store.recovered) == {O1: (((1, 1),), (), ((1, 1),))}
        assert store.store.head == 2


def test_close_tries_once_more_and_at_once(tmp_path, monkeypatch):
    disk = Failing(monkeypatch)
    monkeypatch.setattr(sqlite, "RETRY_S", WAIT_S)
    store = Driven(faulty_store(tmp_path))
    disk.on = True
    store.put(signed(1))
    disk.wait()
    disk.on = False
    store.store.close()
    with opened(sqlite_store(tmp_path)) as store:
        assert firsts(store.read_from(1)) == [1]


def test_an_event_loop_that_has_ended_does_not_end_the_store(tmp_path):
    store = sqlite_store(tmp_path)
    store.open(parse_bundle, 0)
    ended = threading.Semaphore(0)

    def post(function):
        ended.release()
        raise RuntimeError("Event loop is closed")

    store.attach(post, lambda committed: None)
    store.put(signed(1), node("o"), 1, 0)
    assert ended.acquire(timeout=WAIT_S)
    store.read_from(1, 1, lambda page: None)
    assert ended.acquire(timeout=WAIT_S)
    store.put(signed(2), node("o"), 1, 0)
    store.close()
    with opened(sqlite_store(tmp_path)) as driven:
        assert firsts(driven.read_from(1)) == [1, 2]


def test_what_cannot_be_read_just_now_is_a_page_of_nothing_that_says_more(
    tmp_path, monkeypatch, caplog
):
    real = database.connect_reader

    class Unreadable(sqlite3.Connection):
        on = False

        def execute(self, *arguments):
            if Unreadable.on:
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(*arguments)

    monkeypatch.setattr(
        sqlite, "connect_reader",
        lambda path: (real(path).close(), sqlite3.connect(
            path, factory=Unreadable, isolation_level=None, check_same_thread=False
        ))[1],
    )  # fmt: skip
    with opened(sqlite_store(tmp_path)) as store:
        store.put(signed(1))
        store.settle()
        Unreadable.on = True
        for page in (store.read_from(1), store.read(O1, 1, 1)):
            assert (page.kept, page.more) == ((), True)
        assert store.store.stats()["store_read_errors"] == 2
        Unreadable.on = False
        assert firsts(store.read_from(1)) == [1]
    assert events(caplog) == ["store.unreadable"]


# --- bounds ---


def test_holes_that_nothing_is_left_to_fill_are_closed_when_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "ACKED_RUNS_MAX", 8)
    with opened(sqlite_store(tmp_path, messages_max=10)) as store:
        store.store.reader("r")
        for first in range(1, 41):
            store.put(signed(first))
            if first % 2:
                store.store.acknowledge("r", first, first)
        store.settle()
        state = store.store.reader("r")
        assert len(state.acked) <= 8
        runs = Intervals()
        for each in state.acked:
            runs.add(*each)
        # What can be read yet is as it was acknowledged.
        assert [runs.covers(n, n) for n in range(31, 41)] == [bool(n % 2) for n in range(31, 41)]
    with opened(sqlite_store(tmp_path, messages_max=10)) as store:
        assert store.store.reader("r") == state


def test_a_log_does_not_grow_while_others_read(tmp_path):
    with opened(sqlite_store(tmp_path, messages_max=50)) as store:
        for first in range(1, 400):
            store.put(signed(first, payload=b"z" * 30_000))
            if first % 10 == 0:
                store.settle()
                store.read_from(first - 5, 1)
        assert (tmp_path / "store.db-wal").stat().st_size < 8 << 20


def test_no_thread_is_left_and_the_lock_is_free_after_close(tmp_path):
    for _ in range(READERS_MAX // 8):
        with opened(sqlite_store(tmp_path)):
            assert {each.name for each in threading.enumerate()} >= {"store-writer", "store-reader"}
        assert not {each.name for each in threading.enumerate()} & {"store-writer", "store-reader"}
