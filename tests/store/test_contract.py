"""What holds for every store, in memory or on a disk; and that they agree on anything else."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumtree_quic.errors import StoreError
from plumtree_quic.store.contract import READERS_MAX, ReaderState
from plumtree_quic.store.memory import ENTRY_BYTES, MemoryStore
from plumtree_quic.store.sqlite import SqliteStore
from plumtree_quic.wire import parse_bundle
from tests.rigs.broadcast import key, node
from tests.rigs.store import Driven, shown, signed, streams

O1 = (key("o"), 1)


class Lives:
    """One store through its lives, of either kind."""

    def __init__(self, kind, directory):
        self.kind, self.directory = kind, directory
        self.driven = None
        self._memory = None

    def open(self, now_ms=0, **limits):
        if self.kind == "sqlite":
            store = SqliteStore(self.directory / "store.db", synchronous="normal", **limits)
        else:
            store = self._memory = self._memory or MemoryStore(**limits)
        self.driven = Driven(store, now_ms)
        return self.driven

    def again(self, now_ms=0, **limits):
        self.driven.settle()
        self.driven.store.close()
        return self.open(now_ms, **limits)


@pytest.fixture(params=["memory", "sqlite"])
def lives(request, tmp_path):
    made = Lives(request.param, tmp_path)
    yield made
    if made.driven is not None:
        made.driven.store.close()


def numbers(page):
    return [(kept.bundle.first, kept.bundle.last) for kept in page.kept]


def test_a_bundle_is_read_as_it_was_put(lives):
    store = lives.open()
    made = signed(1, count=3, key_id=b"k" * 16, signed_at=77)
    ticket, at = store.put(made, hop=4)
    store.settle()
    assert (ticket > 0, at, store.store.head) == (True, 1, 4)
    (kept,) = store.read(O1, 1, 1).kept
    assert (kept.at, kept.hop, kept.origin, kept.bundle) == (1, 4, node("o"), made)


def test_arrival_numbers_have_no_holes_and_tickets_grow(lives):
    store = lives.open()
    got = [store.put(signed(first, count=2)) for first in (5, 1, 9)]
    assert [at for _, at in got] == [1, 3, 5]
    assert sorted({ticket for ticket, _ in got}) == [ticket for ticket, _ in got]


def test_bundles_that_hold_any_of_the_numbers_are_read_in_their_order(lives):
    store = lives.open()
    for first in (7, 1, 4, 20):
        store.put(signed(first, count=3))
    store.settle()
    assert numbers(store.read(O1, 3, 7)) == [(1, 3), (4, 6), (7, 9)]
    assert numbers(store.read(O1, 10, 19)) == []
    assert numbers(store.read(O1, 9, 20)) == [(7, 9), (20, 22)]
    assert numbers(store.read((key("o"), 2), 1, 99)) == []


def test_a_page_ends_at_its_bytes_but_holds_one_bundle_at_least(lives):
    store = lives.open()
    for first in (1, 2, 3):
        store.put(signed(first, payload=b"x" * 100))
    store.settle()
    size = len(signed(1, payload=b"x" * 100).raw)
    for asked, count, more in ((1, 1, True), (2 * size, 2, True), (3 * size, 3, False)):
        for page in (store.read(O1, 1, 3, asked), store.read_from(1, asked)):
            assert (len(page.kept), page.more) == (count, more)


def test_reading_by_arrival_begins_with_the_bundle_that_holds_the_number(lives):
    store = lives.open()
    for first in (10, 1):
        store.put(signed(first, count=3))
    store.settle()
    assert numbers(store.read_from(1)) == [(10, 12), (1, 3)]
    assert numbers(store.read_from(3)) == [(10, 12), (1, 3)]
    assert numbers(store.read_from(4)) == [(1, 3)]
    assert numbers(store.read_from(7)) == []


def test_above_messages_max_the_oldest_arrivals_go_and_that_is_told(lives):
    store = lives.open(messages_max=4)
    for first in (5, 1, 3):
        store.put(signed(first, count=2))
    store.settle()
    assert numbers(store.read_from(1)) == [(1, 2), (3, 4)]
    assert store.read_from(1).kept[0].at == 3
    assert store.evicted == [(O1, (5, 6))]
    assert store.store.stats()["store_evicted"] == 2


def test_above_bytes_max_the_oldest_go(lives):
    one = len(signed(1).raw) + ENTRY_BYTES
    store = lives.open(bytes_max=2 * one)
    for first in (1, 2, 3):
        store.put(signed(first))
    store.settle()
    assert numbers(store.read_from(1)) == [(2, 2), (3, 3)]
    assert store.store.stats()["store_bytes"] == 2 * one


def test_what_was_signed_too_long_ago_goes_when_it_is_the_oldest(lives):
    store = lives.open(retention_s=10.0)
    for first, signed_at in ((1, 5_000), (2, 9_000), (3, 4_000)):
        store.put(signed(first, signed_at=signed_at), now_ms=10_000)
    store.store.expire(15_001)
    store.settle()
    # The third is as old, but behind one that is not.
    assert numbers(store.read_from(1)) == [(2, 2), (3, 3)]
    store.store.expire(19_001)
    store.settle()
    assert store.evicted == [(O1, (1, 1)), (O1, (2, 2)), (O1, (3, 3))]


def test_what_is_too_old_when_a_store_is_opened_is_not_held(lives):
    store = lives.open(retention_s=10.0)
    store.put(signed(1, signed_at=1_000), now_ms=2_000)
    store.put(signed(2, signed_at=5_000), now_ms=5_000)
    store = lives.again(now_ms=12_000, retention_s=10.0)
    assert streams(store.recovered) == {O1: (((1, 2),), (), ((2, 2),))}


def test_what_was_seen_is_not_forgotten_with_what_was_held(lives):
    store = lives.open(messages_max=2)
    for first in range(1, 9):
        store.put(signed(first))
    store.store.see(O1, 20, 25)
    store = lives.again(messages_max=2)
    assert streams(store.recovered) == {O1: (((1, 8), (20, 25)), (), ((7, 8),))}


def test_arrival_numbers_go_on_after_a_restart_even_when_nothing_is_held(lives):
    store = lives.open(messages_max=2)
    store.put(signed(1, count=3))
    store = lives.again(messages_max=2)
    assert store.put(signed(4))[1] == 4


def test_a_floor_is_replaced_and_ends(lives):
    store = lives.open()
    store.store.set_floor(O1, [(1, 3), (7, 7)])
    store.store.set_floor(O1, [(1, 2)])
    store.store.set_floor((key("p"), 2), [(1, 9)])
    store.store.see(O1, 5, 5)
    store = lives.again()
    assert streams(store.recovered) == {
        O1: (((5, 5),), ((1, 2),), ()),
        (key("p"), 2): ((), ((1, 9),), ()),
    }
    store.store.set_floor((key("p"), 2), [])
    store.store.set_floor(O1, [])
    store = lives.again()
    assert streams(store.recovered) == {O1: (((5, 5),), (), ())}


def test_what_is_kept_is_of_the_floor_no_more(lives):
    store = lives.open()
    store.store.set_floor(O1, [(1, 9)])
    store.put(signed(4, count=2), history=True)
    store = lives.again()
    assert streams(store.recovered) == {O1: (((4, 5),), ((1, 3), (6, 9)), ((4, 5),))}
    assert [kept.history for kept in store.read(O1, 1, 9).kept] == [True]


def test_having_been_a_member_is_remembered(lives):
    store = lives.open()
    assert not store.recovered.joined
    store.store.mark_joined()
    assert lives.again().recovered.joined


def test_a_new_reader_may_begin_before_the_head(lives):
    store = lives.open()
    store.put(signed(1, count=3))
    assert store.store.reader("r", 1) == ReaderState(1)
    assert lives.again().store.reader("r", 2) == ReaderState(1)


def test_an_epoch_that_is_over_leaves_nothing(lives):
    store = lives.open()
    store.put(signed(1, key_id=b"k" * 16), chain=[b"der"])
    store.put(signed(1, origin="p"), origin="p")
    store.store.set_floor(O1, [(4, 5)])
    store.store.forget(O1)
    store.settle()
    assert numbers(store.read(O1, 1, 9)) == []
    assert store.evicted == []
    assert store.store.stats()["store_messages"] == 1
    store = lives.again()
    assert set(streams(store.recovered)) == {(key("p"), 1)}
    assert store.recovered.chains == {}


def test_an_epoch_can_begin_anew_after_it_was_forgotten(lives):
    store = lives.open()
    store.put(signed(1, count=2))
    store.store.forget(O1)
    store.put(signed(2))
    store.settle()
    assert shown(store.read(O1, 1, 9)) == [(3, signed(2).raw, 1, node("o"), False)]


def test_certificates_stay_as_long_as_a_bundle_that_was_signed_under_them(lives):
    store = lives.open(messages_max=2)
    a, b = b"a" * 16, b"b" * 16
    chains = {a: (b"leaf", b"intermediate"), b: (b"other",)}
    for first, key_id in ((1, a), (2, b), (3, a)):
        store.put(signed(first, key_id=key_id), chain=chains[key_id])
    store = lives.again(messages_max=2)
    assert store.recovered.chains == chains
    store.put(signed(4, key_id=a))
    store = lives.again(messages_max=2)
    assert set(store.recovered.chains) == {a}


def test_a_reader_begins_at_the_head_and_goes_on_where_it_was(lives):
    store = lives.open()
    store.put(signed(1, count=2))
    assert store.store.reader("r") == ReaderState(3)
    store.put(signed(3, count=4))
    store.store.acknowledge("r", 1, 3)
    store.store.acknowledge("r", 5, 5)
    store.store.acknowledge("r", 1, 2)
    assert store.store.reader("r") == ReaderState(3, ((3, 3), (5, 5)))
    store = lives.again()
    assert store.store.reader("r") == ReaderState(3, ((3, 3), (5, 5)))
    store.store.forget_reader("r")
    store = lives.again()
    assert store.store.reader("r") == ReaderState(7)


def test_a_store_remembers_so_many_readers_and_no_more(lives):
    store = lives.open()
    for number in range(READERS_MAX):
        store.store.reader(f"r{number}")
    with pytest.raises(StoreError, match="forget one"):
        store.store.reader("one more")
    store.store.forget_reader("r0")
    store.store.reader("one more")


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 256, "\udc80"])
def test_a_reader_needs_a_name_that_can_be_shown(lives, name):
    with pytest.raises(StoreError, match="name of 1 to 255 bytes"):
        lives.open().store.reader(name)


def test_what_a_reader_loses_by_eviction_is_counted(lives):
    store = lives.open(messages_max=2)
    store.put(signed(1))
    store.store.reader("r")
    store.put(signed(2))
    store.put(signed(3))
    store.store.acknowledge("r", 2, 2)
    for first in (4, 5):
        store.put(signed(first))
    store.settle()
    # 1 came before it, 2 it has acknowledged, 3 is lost.
    assert store.store.stats()["store_unacked_evicted"] == 1


# --- that they agree ---

STREAMS = [(key(name), epoch) for name in ("o", "p") for epoch in (1, 2)]
NAMES = {key("o"): "o", key("p"): "p"}
PLACE = st.integers(0, 3)
PUTS = st.tuples(
    st.just("put"), PLACE, st.integers(0, 2), st.integers(1, 4), st.integers(0, 2),
    st.integers(-30, 0), st.integers(0, 40),
)  # fmt: skip
CALLS = st.one_of(
    PUTS,
    PUTS,
    PUTS,
    st.tuples(st.just("fill"), PLACE, st.integers(0, 2)),
    st.tuples(st.just("see"), PLACE, st.integers(1, 40), st.integers(0, 5)),
    st.tuples(st.just("floor"), PLACE, st.sampled_from([(), ((1, 3),), ((2, 2), (5, 9))])),
    st.tuples(st.just("join")),
    st.tuples(st.just("forget"), PLACE),
    st.tuples(st.just("reader"), st.sampled_from("rs")),
    st.tuples(st.just("ack"), st.sampled_from("rs"), st.integers(1, 60), st.integers(0, 4)),
    st.tuples(st.just("forget_reader"), st.sampled_from("rs")),
    st.tuples(st.just("expire"), st.integers(0, 25)),
    st.tuples(st.just("look"), PLACE, st.integers(1, 40), st.integers(1, 200)),
    st.tuples(st.just("hold")),
    st.tuples(st.just("again"), st.integers(0, 3)),
)
KEYS = [b"", b"a" * 16, b"b" * 16]


class Pair:
    """Two stores that are told the same, and are to know the same."""

    LIMITS = {"retention_s": 25.0, "messages_max": 10, "bytes_max": 7 * ENTRY_BYTES}

    def __init__(self, directory):
        self.lives = [Lives("memory", directory), Lives("sqlite", directory)]
        self.now_ms = 100_000
        for life in self.lives:
            life.open(self.now_ms, **self.LIMITS)
        self.next = dict.fromkeys(STREAMS, 1)
        self.gaps = {stream: [] for stream in STREAMS}
        self.readers = set()
        self.held = None

    def hold(self):
        """What follows is one transaction, up to the next look."""
        if self.held is None:
            self.held = self.lives[1].driven.store._changed
            self.held.acquire()

    def let_go(self):
        if self.held is not None:
            self.held.release()
            self.held = None

    def both(self, call):
        first, second = (call(life.driven.store) for life in self.lives)
        return first, second

    def put(self, place, skip, count, key_id, age_s, more_bytes):
        stream = STREAMS[place]
        first = self.next[stream] + skip
        self.gaps[stream] += range(first - skip, first)
        self.next[stream] = first + count
        self._put(stream, first, count, KEYS[key_id], age_s, b"x" * more_bytes)

    def fill(self, place, which):
        stream = STREAMS[place]
        if len(self.gaps[stream]) > which:
            self._put(stream, self.gaps[stream].pop(which), 1, b"", 0, b"")

    def _put(self, stream, first, count, key_id, age_s, payload):
        origin = NAMES[stream[0]]
        made = signed(
            first, origin=origin, epoch=stream[1], count=count, payload=payload, key_id=key_id,
            signed_at=self.now_ms + age_s * 1000,
        )  # fmt: skip
        chain = [key_id, b"ca"] if key_id else ()
        (_, a), (_, b) = self.both(
            lambda store: store.put(made, node(origin), 3, self.now_ms, chain=chain)
        )
        assert a == b

    def see(self, place, first, more):
        stream = STREAMS[place]
        self.gaps[stream] = [n for n in self.gaps[stream] if not first <= n <= first + more]
        self.next[stream] = max(self.next[stream], first + more + 1)
        self.both(lambda store: store.see(stream, first, first + more))

    def floor(self, place, ranges):
        self.both(lambda store: store.set_floor(STREAMS[place], ranges))

    def join(self):
        self.both(lambda store: store.mark_joined())

    def forget(self, place):
        self.both(lambda store: store.forget(STREAMS[place]))

    def reader(self, name):
        self.readers.add(name)
        a, b = self.both(lambda store: store.reader(name))
        assert a == b

    def ack(self, name, first, more):
        if name in self.readers:
            self.both(lambda store: store.acknowledge(name, first, first + more))

    def forget_reader(self, name):
        self.readers.discard(name)
        self.both(lambda store: store.forget_reader(name))

    def expire(self, seconds):
        self.now_ms += seconds * 1000
        self.both(lambda store: store.expire(self.now_ms))

    def look(self, place, first, bytes_max):
        self.let_go()
        memory, sqlite = (life.driven for life in self.lives)
        sqlite.settle()
        for ask in (
            lambda driven: driven.read(STREAMS[place], first, first + 9, bytes_max),
            lambda driven: driven.read_from(first, bytes_max),
            lambda driven: driven.read_from(1),
        ):
            a, b = ask(memory), ask(sqlite)
            assert (shown(a), a.more) == (shown(b), b.more)
        assert memory.evicted == sqlite.evicted
        ours, theirs = self.both(lambda store: store.stats())
        for name in ("bundles", "messages", "bytes"):
            assert ours[f"store_{name}"] == theirs[f"store_{name}"]

    def again(self, seconds):
        self.look(0, 1, 1)
        self.now_ms += seconds * 1000
        a, b = (life.again(self.now_ms, **self.LIMITS).recovered for life in self.lives)
        assert streams(a) == streams(b)
        assert (a.chains, a.joined) == (b.chains, b.joined)
        for name in self.readers:
            self.reader(name)
        ours, theirs = self.both(lambda store: store.head)
        assert ours == theirs


@given(st.lists(CALLS, min_size=10, max_size=60))
@settings(max_examples=200)
def test_a_store_on_a_disk_knows_what_one_in_memory_knows_restarts_included(calls):
    with tempfile.TemporaryDirectory() as directory:
        pair = Pair(Path(directory))
        try:
            for name, *arguments in [*calls, ("again", 0)]:
                getattr(pair, name)(*arguments)
        finally:
            pair.let_go()
            for life in pair.lives:
                life.driven.store.close()


def test_tests_read_with_the_decoder_of_the_wire():
    assert parse_bundle(signed(1).raw) == signed(1)
