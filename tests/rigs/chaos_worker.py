"""One node process of the chaos run: it publishes, reads, and writes down both before it goes on.

Started by chaos.py, killed at any moment and started again over the same directory. What happens is
a line of its log, a JSON list that begins with what it is and the life it belongs to; the kernel
has a line before the next thing is done, so kill -9 takes none back:

    life      epoch, time: a node of this epoch runs
    tried     digest: about to be broadcast
    accepted  epoch, seq, digest, seconds, time: broadcast() has returned, after so long
    got       origin, epoch, seq, digest, redelivered, time: read, and not acknowledged yet
    acked     origin, epoch, seq: the acknowledgement is durable
    gap       origin, epoch, first, last: the ordered subscription has told of a hole
    failed    text: reading or publishing ended with an error

Orders are JSON lines on standard input: publish, hush, status, stop.
"""

import asyncio
import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

from plumtree_quic.config import PlumtreeConfig, StorageConfig, SyncConfig
from plumtree_quic.errors import JoinError, NodeClosed, PlumtreeError
from plumtree_quic.node import Gap, Node
from plumtree_quic.security.credentials import QuicConfig
from plumtree_quic.store.sqlite import SqliteStore

READER = "log"
# Longer than any run: nothing may be lost for its age.
RETENTION_S = 86_400.0
# Of what is read, this share is acknowledged at once; the rest up to so many seconds later.
AT_ONCE_SHARE = 0.5
ACK_LATER_S = 2.0
SIZES = (64, 2_048)


def digest_of(payload):
    """What stands for a payload in the logs."""
    return hashlib.sha256(payload).hexdigest()[:16]


def made_config():
    """A cluster over a path of up to 150 ms that loses a fifth: the timers of `wan`, not its trees.

    Digests are more frequent than the preset has them, so that a run of a minute sees some.
    """
    return PlumtreeConfig.lan(
        ihave_interval=0.1,
        graft_timeout=1.0,
        graft_max_retries=5,
        probe_interval=2.0,
        probe_timeout=1.5,
        suspicion_timeout=10.0,
        sync=SyncConfig(sync_interval=5.0),
        storage=StorageConfig(retention=RETENTION_S),
    )


class _Worker:
    def __init__(self, options):
        self.options = options
        self.life = options["life"]
        directory = Path(options["directory"])
        state_dir = directory / "state"
        # As a node without a state_dir of its own would: the store has a directory to be in.
        state_dir.mkdir(mode=0o700, exist_ok=True)
        self.log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # A kill may have left half a line.
        os.write(self.log, b"\n")
        self.rng = random.Random(f"{options['seed']} {options['name']} {self.life}")
        self.node = Node(
            QuicConfig(cert_path=options["cert"], key_path=options["key"], ca_path=options["ca"]),
            made_config(),
            listen=options["listen"],
            advertise=options["advertise"],
            store=SqliteStore(state_dir / "messages.db", retention_s=RETENTION_S),
            state_dir=state_dir,
        )
        self.rate = 0.0
        self.awake = asyncio.Event()
        self.tasks = set()

    def note(self, what, *fields):
        os.write(self.log, json.dumps([what, self.life, *fields]).encode() + b"\n")

    def tell(self, event, **fields):
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()

    def start(self, work):
        task = asyncio.create_task(self.watched(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def watched(self, work):
        """Work that ends in an error ends the rule that it should not."""
        try:
            await work
        except (NodeClosed, JoinError):
            pass  # we are ending; or it goes on trying in the background
        except Exception as error:
            self.note("failed", repr(error))
            raise

    async def run(self):
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        await self.node.start()
        self.note("life", self.node._driver.epoch, time.monotonic())
        self.start(self.consume())
        self.start(self.publish())
        self.start(self.node.join(self.options["seeds"]))
        self.tell("ready", address=self.node.address, node_id=self.node.id)
        try:
            while line := await reader.readline():
                request = json.loads(line)
                match request["op"]:
                    case "publish":
                        self.rate = request["rate"]
                        self.awake.set()
                    case "hush":
                        self.rate = 0.0
                        self.awake.clear()
                    case "status":
                        self.tell("status", peers=self.node.peer_count(), stats=self.node.stats())
                    case "stop":
                        await self.node.leave()
                        break
        finally:
            for task in tuple(self.tasks):
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            await self.node.shutdown()

    # --- publishing -------------------------------------------------------------------------

    async def publish(self):
        number = 0
        while True:
            await self.awake.wait()
            # Several may wait for the disk, or for room on a link, at a time.
            number += 1
            self.start(self.publish_one(number))
            await asyncio.sleep(self.rng.expovariate(self.rate) if self.rate else 0.0)

    async def publish_one(self, number):
        text = f"{self.options['name']} {self.life} {number} ".encode()
        payload = text.ljust(self.rng.randint(*SIZES), b".")
        digest = digest_of(payload)
        self.note("tried", digest)
        began = time.monotonic()
        receipt = await self.node.broadcast(payload)
        now = time.monotonic()
        took_s = round(now - began, 4)
        self.note("accepted", receipt.id.epoch, receipt.id.seq, digest, took_s, now)

    # --- reading ----------------------------------------------------------------------------

    async def consume(self):
        subscription = self.node.subscribe(
            order="fifo", ack="manual", name=READER, gap_timeout=self.options["gap_timeout_s"]
        )
        async with subscription as messages:
            async for each in messages:
                if isinstance(each, Gap):
                    self.note("gap", each.origin, each.epoch, each.first, each.last)
                    continue
                identity = (each.origin, each.epoch, each.seq)
                digest = digest_of(each.payload)
                self.note("got", *identity, digest, each.redelivered, time.monotonic())
                self.start(self.acknowledge(each, identity))

    async def acknowledge(self, message, identity):
        if self.rng.random() >= AT_ONCE_SHARE:
            await asyncio.sleep(self.rng.uniform(0.0, ACK_LATER_S))
        await message.ack()
        self.note("acked", *identity)


def main():
    """Read the options from the first argument (JSON) and run until told to stop, or killed."""
    options = json.loads(sys.argv[1])
    try:
        asyncio.run(_Worker(options).run())
    except PlumtreeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
