"""A disk in virtual time: what is written is safe after a while, and else dies with its life.

The rules of what stays and what goes are those of the store in memory, which is what is left of a
life here, as a file is elsewhere.
"""

from collections.abc import Callable, Sequence
from random import Random

from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Bundle, Range
from plumtree_quic.sim.network import Time
from plumtree_quic.store.contract import (
    Committed,
    Decode,
    Page,
    ReaderState,
    Recovered,
    StreamKey,
    check_reader,
)
from plumtree_quic.store.memory import MemoryStore

__all__ = ["Disk"]

# A commit takes so long, and a read.
COMMIT_S = (0.0005, 0.02)
READ_S = (0.0001, 0.005)


class Disk:
    """A MessageStore for one life of one node.

    Args:
        time: of the simulation.
        rng: how long each commit takes.
        saved: what former lives left, and what this one leaves.
    """

    durable = True
    failing = ""

    def __init__(self, time: Time, rng: Random, saved: MemoryStore) -> None:
        self.retention_s = saved.retention_s
        self.head = saved.head
        self.waiting_bytes = 0
        self._time = time
        self._rng = rng
        self._saved = saved
        self._calls: list[Callable[[], object]] = []
        self._bytes = 0
        self._busy = False
        self._open = True
        self._tickets = 0
        self._readers: dict[str, ReaderState] = {}
        self._evicted: list[tuple[StreamKey, Range]] = []
        self._on_commit: Callable[[Committed], None] | None = None

    # --- life -----------------------------------------------------------------------------------

    def open(self, decode: Decode, now_ms: int) -> Recovered:
        """What former lives left."""
        self._saved.attach(lambda then: then(), self._on_evicted)
        recovered = self._saved.open(decode, now_ms)
        self._evicted.clear()
        return recovered

    def attach(
        self,
        post: Callable[[Callable[[], None]], object],  # noqa: ARG002
        on_commit: Callable[[Committed], None],
    ) -> None:
        """Tell of commits from now on."""
        self._on_commit = on_commit

    def close(self) -> None:
        """The process is gone: what was not committed never was."""
        self._open = False
        self._calls.clear()

    def _on_evicted(self, commit: Committed) -> None:
        self._evicted += commit.evicted

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
        self.waiting_bytes += len(bundle.raw)
        self._bytes += len(bundle.raw)
        ticket = self._queue(
            lambda: self._saved.put(bundle, origin, hop, now_ms, chain=chain, history=history)
        )
        return ticket, at

    def mark_joined(self) -> int:
        """Queue it."""
        return self._queue(self._saved.mark_joined)

    def see(self, key: StreamKey, first: int, last: int) -> int:
        """Queue it."""
        return self._queue(lambda: self._saved.see(key, first, last))

    def set_floor(self, key: StreamKey, floor: Sequence[Range]) -> int:
        """Queue it."""
        return self._queue(lambda: self._saved.set_floor(key, floor))

    def forget(self, key: StreamKey) -> int:
        """Queue it."""
        return self._queue(lambda: self._saved.forget(key))

    def acknowledge(self, name: str, first: int, last: int) -> int:
        """Queue it."""
        return self._queue(lambda: self._saved.acknowledge(name, first, last))

    def forget_reader(self, name: str) -> int:
        """Queue it."""
        self._readers.pop(name, None)
        return self._queue(lambda: self._saved.forget_reader(name))

    def expire(self, now_ms: int) -> None:
        """Queue it."""
        self._queue(lambda: self._saved.expire(now_ms))

    def _queue(self, call: Callable[[], object]) -> int:
        self._tickets += 1
        self._calls.append(call)
        self._begin()
        return self._tickets

    def _begin(self) -> None:
        if not self._busy and self._calls:
            self._busy = True
            calls, self._calls = self._calls, []
            size, self._bytes = self._bytes, 0
            wait_s = self._rng.uniform(*COMMIT_S)
            self._time.after(wait_s, self._commit, calls, size, self._tickets)

    def _commit(self, calls: list[Callable[[], object]], size: int, through: int) -> None:
        if not self._open:
            return
        for call in calls:
            call()
        self.waiting_bytes -= size
        evicted, self._evicted = tuple(self._evicted), []
        if self._on_commit is not None:
            self._on_commit(Committed(through, evicted))
        self._busy = False
        self._begin()

    # --- queries --------------------------------------------------------------------------------

    def read(
        self,
        key: StreamKey,
        first: int,
        last: int,
        bytes_max: int,
        done: Callable[[Page], None],
    ) -> None:
        """Bundles of one stream, after a while."""
        self._later(lambda: self._saved.read(key, first, last, bytes_max, done))

    def read_from(self, at: int, bytes_max: int, done: Callable[[Page], None]) -> None:
        """Bundles in order of arrival, after a while."""
        self._later(lambda: self._saved.read_from(at, bytes_max, done))

    def _later(self, read: Callable[[], None]) -> None:
        self._time.after(self._rng.uniform(*READ_S), lambda: read() if self._open else None)

    def reader(self, name: str, begin: int | None = None) -> ReaderState:
        """A reader's place, as the last life left it."""
        known = self._readers.get(name)
        if known is None:
            if self._saved.knows_reader(name):
                known = self._saved.reader(name)
            else:
                check_reader(name, len(self._readers))
                start = begin or self.head
                known = ReaderState(start)
                self._queue(lambda: self._saved.reader(name, start))
            self._readers[name] = known
        return known

    def stats(self) -> dict[str, int]:
        """Of what is committed."""
        return self._saved.stats()
