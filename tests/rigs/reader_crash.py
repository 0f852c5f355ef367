"""A node's dealings with its store, lived again and again and killed at each call that writes.

    python -m tests.rigs.reader_crash <directory>

In each life the ledger is given what "the network" has and this node has not seen, broadcasts of
its own, and a reader that acknowledges every other message. The first life is killed, the second
and the third are not, and in these the reader acknowledges all. Prints one JSON object: by the
number of the call and "before" or "after" it, what happened, line by line: life, kind, message.

    accepted   a broadcast of our own is safe        kept       one that is found after a restart
    auto       a reader that acknowledges nothing    handed     the other reader, first time
    again      the same, marked as redelivered       acked      its acknowledgement is safe
"""

import json
import os
import queue
import signal
import sqlite3
import sys
from functools import partial
from pathlib import Path

from plumtree_quic import wire
from plumtree_quic.catchup import CatchUp, Place
from plumtree_quic.intervals import Intervals
from plumtree_quic.ledger import Ledger
from plumtree_quic.proto.effects import Deliver
from plumtree_quic.subscription import Message
from tests.rigs.broadcast import bundle, key, node
from tests.rigs.store import sqlite_store
from tests.rigs.store_crash import Deadly, deadly
from tests.rigs.waiting import WAIT_S

ME, FOREIGN = "me", "o"
MESSAGES = 8
OWN = 2


class Core:
    """What the ledger asks of a core."""

    def __init__(self):
        self.seen = {}

    def recover(self, stream, seen, floor, held):
        for run in (*seen, *floor):
            self.see(stream, *run)
        return []

    def see(self, stream, first, last):
        self.seen.setdefault(stream, Intervals()).add(first, last)

    def returned(self):
        pass

    def stored(self, stream, first, last):
        pass

    def evicted(self, stream, first, last):
        pass


class Life:
    """One life: ledger, store and two readers, and nothing else of a node."""

    own = False
    is_open = True
    on_room = None

    def __init__(self, directory, number, tell, connect):
        self.number = number
        self.core = Core()
        self.tell = lambda kind, *what: tell([number, kind, *what])
        self.posted = queue.SimpleQueue()
        self.store = sqlite_store(directory, connect=connect, messages_max=1_000)
        recovered = self.store.open(wire.parse_bundle, 0)
        self.ledger = Ledger(self.store, node(ME), lambda: self.core, self)
        self.store.attach(self.posted.put, self.ledger.committed)
        self.ledger.recover(recovered)
        for stream in recovered.streams:
            if stream.key[0] == key(ME):
                self.find_own(stream)
        self.handed_at = self.store.head
        state = self.store.reader("log")
        acked = Intervals()
        for run in state.acked:
            acked.add(*run)
        self.catching = CatchUp(
            self.store, self,
            Place(state.start, name="log", acked=acked, redelivered_below=self.store.head),
            me=node(ME), handed_at=lambda: self.handed_at, read=self.read_bundle,
            clock=lambda: 0.0, when_safe=lambda ticket: ticket,
        )  # fmt: skip
        self.catching.pull()

    def find_own(self, stream):
        for run in stream.held:
            self.store.read(stream.key, *run, 1 << 20, self.on_own)

    def on_own(self, page):
        for kept in page.kept:
            (_, payload), *_ = wire.open_bundle(kept.bundle)
            self.tell("kept", kept.bundle.epoch, kept.bundle.first, payload.decode())

    # --- what the ledger and the readers ask for ---

    def wall_ms(self):
        return 0

    def chain_of(self, key_id):
        return ()

    def hand_over(self, kept):
        self.handed_at = kept.next_at
        if kept.origin != node(ME):
            self.tell("auto", kept.bundle.first)
        self.catching.offer(kept)

    def read_bundle(self, kept):
        made = kept.bundle
        return [
            Message(kept.origin, made.epoch, seq, topic, payload, kept.hop, 0.0)
            for seq, (topic, payload) in enumerate(wire.open_bundle(made), made.first)
        ]

    def has_room(self, count, size=0):
        return True

    def wants(self, topic):
        return True

    def take(self, kept, messages, now):
        for message in messages:
            self.tell("again" if message.redelivered else "handed", message.seq)
            if self.number > 1 or message.seq % 2:
                self.ledger.after(message.ack(), partial(self.tell, "acked", message.seq))

    # --- what happens ---

    def settle(self):
        """Until all is safe and read."""
        while self.ledger.is_waiting or not self.catching.is_live:
            self.posted.get(timeout=WAIT_S)()
        self.store.forget((key("nobody"), 1))

    def run(self):
        for seq in range(1, MESSAGES + 1):
            made = bundle(seq, origin=FOREIGN)
            stream = (made.origin, made.epoch)
            if not self.core.seen.get(stream, Intervals()).covers(seq, seq):
                self.core.see(stream, seq, seq)
                self.ledger.delivered(Deliver(made, 1, node("peer")), node(FOREIGN))
            if seq % 3 == 0:
                self.settle()
        for seq in range(1, OWN + 1):
            payload = f"{self.number} {seq}".encode()
            made = bundle(seq, origin=ME, epoch=self.number, payload=payload)
            told = partial(self.tell, "accepted", self.number, seq, payload.decode())
            self.ledger.broadcast(made, told)
            self.settle()
        self.settle()
        self.store.close()
        while not self.posted.empty():
            self.posted.get()()


def lives(directory, tell):
    """The first life under a connection that kills, then two others."""
    deadly = partial(sqlite3.connect, factory=Deadly)
    reading, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            life = Life(
                directory, 1, lambda line: os.write(told, json.dumps(line).encode() + b"\n"), deadly
            )
            life.run()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(told)
    with os.fdopen(reading) as lines:
        for line in lines:
            tell(json.loads(line))
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"the life in {directory} failed")
    for number in (2, 3):
        Life(directory, number, tell, sqlite3.connect).run()
    return os.WIFSIGNALED(status)


def main():
    directory = Path(sys.argv[1])
    found, call, killed = {}, 0, True
    while killed:
        call += 1
        for at in ("before", "after"):
            said = found[f"{call}-{at}"] = []
            Deadly.hook = staticmethod(deadly)
            Deadly.call, Deadly.at, Deadly.count = call, at, 0
            (directory / f"{call}-{at}").mkdir()
            killed = lives(directory / f"{call}-{at}", said.append)
    print(json.dumps(found))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
