"""Stores driven by one thread: calls, and then what was posted, until it is there.

`Driven` makes a durable store as easy to ask as one in memory. `state` is all that a store knows,
in a form that can be compared. SCRIPT is a life with all operations in it, for tests that end it.
"""

import contextlib
import queue
import sqlite3

from plumtree_quic.store.memory import MemoryStore
from plumtree_quic.store.sqlite import SqliteStore
from plumtree_quic.wire import build_bundle, parse_bundle
from tests.rigs.broadcast import key, node
from tests.rigs.waiting import WAIT_S

NOBODY = (key("nobody"), 1)
LIMITS = {"retention_s": 1_000.0, "messages_max": 12, "bytes_max": 1 << 20}


def signed(first, *, origin="o", epoch=1, count=1, payload=b"x", key_id=b"", signed_at=0):
    return build_bundle(
        origin=key(origin),
        epoch=epoch,
        first=first,
        messages=[("", payload)] * count,
        key_id=key_id,
        signed_at=signed_at,
    )


class Driven:
    """A store that is open, and what it has told so far."""

    def __init__(self, store, now_ms=0):
        self.store = store
        self.posted = queue.SimpleQueue()
        self.through = 0
        self.evicted = []
        self.recovered = store.open(parse_bundle, now_ms)
        store.attach(self.posted.put, self._on_commit)

    def _on_commit(self, committed):
        assert committed.through >= self.through
        self.through = committed.through
        self.evicted += committed.evicted

    def step(self):
        """Run the next thing that was posted."""
        self.posted.get(timeout=WAIT_S)()

    def settle(self):
        """Until all that was called is committed."""
        ticket = self.store.forget(NOBODY)
        while self.store.durable and self.through < ticket:
            self.step()

    def put(self, made, origin="o", hop=1, now_ms=0, **about):
        return self.store.put(made, node(origin), hop, now_ms, **about)

    def read(self, stream, first, last, bytes_max=1 << 30):
        return self._answer(lambda done: self.store.read(stream, first, last, bytes_max, done))

    def read_from(self, at, bytes_max=1 << 30):
        return self._answer(lambda done: self.store.read_from(at, bytes_max, done))

    def _answer(self, ask):
        pages = []
        ask(pages.append)
        while not pages:
            self.step()
        return pages[0]


@contextlib.contextmanager
def opened(store, now_ms=0):
    driven = Driven(store, now_ms)
    try:
        yield driven
    finally:
        store.close()


def shown(page):
    return [(k.at, k.bundle.raw, k.hop, k.origin, k.history) for k in page.kept]


def streams(recovered):
    return {each.key: (each.seen, each.floor, each.held) for each in recovered.streams}


def state(driven, recovered, readers=("r", "s")):
    """Everything: what was seen, held and signed, all bundles, and how far these readers are."""
    page = driven.read_from(1)
    assert not page.more
    # Asked in order, and new ones begin at head, which is thereby compared, too.
    return (
        streams(recovered),
        recovered.chains,
        recovered.joined,
        shown(page),
        driven.store.head,
        [driven.store.reader(name) for name in readers],
    )


# --- a life ---


def _puts(*firsts, chain=(), **about):
    origin = about.get("origin", "o")
    return [
        lambda store, first=first: store.put(
            signed(first, **about), node(origin), 2, 5_000_000, chain=chain, history=first == 3
        )
        for first in firsts
    ]


O1, P7 = (key("o"), 1), (key("p"), 7)
A, B = b"a" * 16, b"b" * 16
SCRIPT = [
    [
        lambda store: store.mark_joined(),
        *_puts(1, 3, 5, count=2, key_id=A, signed_at=4_500_000, chain=[b"leaf a", b"ca"]),
    ],
    [lambda store: store.reader("r"), lambda store: store.see(O1, 8, 9)],
    [lambda store: store.set_floor(P7, [(1, 4), (6, 6)])],
    _puts(7, origin="p", epoch=7, key_id=B, chain=[b"leaf b"]),
    # Too old as soon as it is the oldest; above messages_max, the oldest go.
    _puts(12, 10, count=1, signed_at=3_000_000),
    [lambda store: store.acknowledge("r", 7, 7), lambda store: store.acknowledge("r", 9, 9)],
    _puts(20, 24, count=4, key_id=B, signed_at=4_400_000),
    [lambda store: store.reader("s"), lambda store: store.set_floor(P7, [])],
    _puts(28, count=1, payload=b"y" * 5_000, signed_at=4_700_000),
    [lambda store: store.acknowledge("s", 17, 17), lambda store: store.forget_reader("r")],
    [lambda store: store.forget(P7)],
    _puts(8, origin="p", epoch=8, count=3, signed_at=4_600_000),
    [lambda store: store.expire(5_550_000)],
    _puts(40, count=1, signed_at=5_000_000),
]
"""Batches of calls, each of them one transaction."""


def memory_states():
    """What a store knows after each number of batches, nothing included."""
    states = []
    for count in range(len(SCRIPT) + 1):
        store = MemoryStore(**LIMITS)
        with opened(store) as driven:
            for batch in SCRIPT[:count]:
                for call in batch:
                    call(store)
            states.append(state(driven, store.open(parse_bundle, 0)))
    return states


def run_script(driven, begin=0, told=lambda number: None):
    """All batches, each committed before the next one."""
    for number, batch in enumerate(SCRIPT[begin:], begin + 1):
        # What is queued while this is held is written at once.
        with driven.store._changed:
            for call in batch:
                call(driven.store)
        driven.settle()
        told(number)


def sqlite_store(directory, **about):
    return SqliteStore(directory / "store.db", **{**LIMITS, "synchronous": "normal", **about})


class Faulty(sqlite3.Connection):
    """A connection that asks `Faulty.hook` before and after each call that writes."""

    hook = staticmethod(lambda when, statement: None)

    def _call(self, name, statement, *arguments):
        type(self).hook("before", statement)
        result = getattr(super(), name)(statement, *arguments)
        type(self).hook("after", statement)
        return result

    def execute(self, statement, *arguments):
        return self._call("execute", statement, *arguments)

    def executemany(self, statement, *arguments):
        return self._call("executemany", statement, *arguments)

    def commit(self):
        type(self).hook("before", "commit")
        super().commit()
        type(self).hook("after", "commit")
