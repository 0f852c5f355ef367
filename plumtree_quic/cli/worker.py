"""One node process of a benchmark cluster, told what to do by JSON lines on standard input.

Started by cli/cluster.py and by tests; not a command of its own. Every delivery is counted and
its latency kept, from the call of `broadcast` to the subscriber's `async for`. Payloads begin
with the sender's monotonic clock in nanoseconds, which all processes of one machine share.
"""

import asyncio
import json
import math
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs

from plumtree_quic.config import PlumtreeConfig, StorageConfig
from plumtree_quic.errors import PlumtreeError
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Bundle
from plumtree_quic.node import Delegate, Message, Node, Subscription
from plumtree_quic.security.credentials import QuicConfig

__all__ = ["STAMP_BYTES", "bucket_of", "main", "ranges_of", "value_of"]

STAMP_BYTES = 8
PROGRESS_S = 0.25
# Latency buckets grow by 1 %: percentiles are exact to that.
_GROWTH = math.log(1.01)


def bucket_of(seconds: float) -> int:
    """Return the number of the latency bucket that holds `seconds`."""
    return round(math.log(max(seconds, 1e-6)) / _GROWTH)


def value_of(bucket: int) -> float:
    """Return the seconds that `bucket` stands for."""
    return math.exp(bucket * _GROWTH)


def ranges_of(flags: bytes | bytearray) -> list[tuple[int, int]]:
    """Return which flags are set, as (first, last), counted from 1 as sequence numbers are."""
    return [(found.start() + 1, found.end()) for found in re.finditer(rb"\x01+", flags)]


@attrs.define
class _Tally:
    """What one run counts. Sequence numbers of an origin count from `base` of that origin."""

    expected: dict[str, int]
    base: dict[str, int]
    warm: dict[str, int]
    seen: dict[str, bytearray] = attrs.field(factory=dict)
    due: int = 0
    delivered: int = 0
    duplicates: int = 0
    foreign: int = 0
    copies: int = 0
    copies_warm: int = 0
    latencies: Counter[int] = attrs.field(factory=Counter)
    latency_max_s: float = 0.0
    last_at: float = 0.0

    def count(self, message: Message) -> None:
        flags = self.seen.get(message.origin)
        index = message.seq - self.base.get(message.origin, 0) - 1
        if flags is None or not 0 <= index < len(flags):
            self.foreign += 1
            return
        if flags[index]:
            self.duplicates += 1
            return
        flags[index] = 1
        self.delivered += 1
        self.last_at = time.monotonic()
        sent_ns = int.from_bytes(message.payload[:STAMP_BYTES], "big")
        latency = max(0.0, (time.monotonic_ns() - sent_ns) / 1e9)
        self.latencies[bucket_of(latency)] += 1
        self.latency_max_s = max(self.latency_max_s, latency)

    def copy(self, origin: NodeId | None, bundle: Bundle) -> None:
        if origin is None or origin not in self.expected:
            return
        base = self.base.get(origin, 0)
        first, last = bundle.first - base, bundle.last - base
        if last < 1:
            return
        self.copies += last - max(first, 1) + 1
        cut = self.warm[origin]
        if last > cut:
            self.copies_warm += last - max(first, cut + 1) + 1


class _Worker(Delegate):
    def __init__(self, options: dict[str, Any]) -> None:
        quic = QuicConfig(cert_path=options["cert"], key_path=options["key"], ca_path=options["ca"])
        preset = options.get("preset", "lan")
        make = PlumtreeConfig if preset == "default" else getattr(PlumtreeConfig, preset)
        config = make(
            storage=StorageConfig(**options.get("storage", {})), **options.get("config", {})
        )
        self.node = Node(
            quic,
            config,
            listen=options.get("listen", "127.0.0.1:0"),
            advertise=options.get("advertise"),
            delegate=self,
            state_dir=options.get("state_dir"),
        )
        self.tally: _Tally | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.stuck: list[Subscription] = []
        self.cpu_at_start = 0.0
        self.done_told = False
        self.spawned_at = time.monotonic()

    def tell(self, event: str, **fields: Any) -> None:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()

    def on_member_suspected(self, node_id: NodeId) -> None:
        self.tell("suspected", node_id=node_id, at=time.monotonic())

    def on_member_failed(self, node_id: NodeId) -> None:
        self.tell("failed", node_id=node_id, at=time.monotonic())

    def on_member_joined(self, node_id: NodeId) -> None:
        self.tell("member", node_id=node_id, at=time.monotonic())

    def on_security_event(self, kind: str, fields: Mapping[str, object]) -> None:
        if kind == "credentials.rotated":
            self.tell("rotated", at=time.monotonic(), leaf_sha256=fields["leaf_sha256"])

    async def run(self) -> None:
        reader = asyncio.StreamReader(limit=1 << 22)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        await self.node.start()
        self.tasks.append(asyncio.create_task(self._consume()))
        self.tell("ready", address=self.node.address, node_id=self.node.id)
        try:
            while line := await reader.readline():
                request = json.loads(line)
                if request["op"] == "stop":
                    await self.node.leave()
                    break
                await self._obey(request)
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            await self.node.shutdown()

    async def _obey(self, request: dict[str, Any]) -> None:
        node = self.node
        match request["op"]:
            case "join":
                try:
                    answered = await node.join(
                        request["seeds"], timeout=request.get("timeout", 30.0)
                    )
                except PlumtreeError as error:
                    self.tell("join_failed", error=str(error))
                else:
                    self.tell("joined", answered=answered)
            case "converge":
                self.tasks.append(asyncio.create_task(self._converge(request)))
            case "expect":
                self.tally = _Tally(request["expected"], request["base"], request["warm"])
                for origin, count in request["expected"].items():
                    if origin != node.id:
                        self.tally.seen[origin] = bytearray(count)
                        self.tally.due += count
                self.done_told = False
                driver = node._driver
                assert driver is not None
                tally, name_of = self.tally, driver.core.node_id_of
                driver.trace_copy = lambda bundle: tally.copy(name_of(bundle.origin), bundle)
                self.cpu_at_start = time.process_time()
                self.tell("expecting")
                self._tell_when_done()
            case "publish":
                self.tasks.append(asyncio.create_task(self._publish(request)))
            case "stick":
                # An application that subscribes and never reads.
                stuck = node.subscribe(buffer=request["buffer"], when_full=request["when_full"])
                self.stuck.append(stuck)
                self.tell("stuck")
            case "report":
                self._report()
            case "received":
                assert self.tally is not None
                self.tell(
                    "received",
                    ranges={origin: ranges_of(flags) for origin, flags in self.tally.seen.items()},
                    duplicates=self.tally.duplicates,
                    foreign=self.tally.foreign,
                )
            case "status":
                health = node.health()
                self.tell(
                    "status",
                    stats=node.stats(),
                    health=health.status.value,
                    reasons=health.reasons,
                    peers=[each.node_id for each in node.peers()],
                    members={each.node_id: each.state.name for each in node.members()},
                )
            case other:
                self.tell("error", error=f"unknown op {other!r}")

    async def _converge(self, request: dict[str, Any]) -> None:
        while (
            self.node.peer_count() < request["members"] or len(self.node.peers()) < request["links"]
        ):
            await asyncio.sleep(0.02)
        self.tell("converged")

    async def _publish(self, request: dict[str, Any]) -> None:
        node, size = self.node, request["size"]
        count, rate = request["count"], request.get("rate")
        filler = bytes(max(0, size - STAMP_BYTES))
        began = time.monotonic()
        last = None
        for number in range(count):
            if rate:
                pause = began + number / rate - time.monotonic()
                if pause > 0:
                    await asyncio.sleep(pause)
            stamp = time.monotonic_ns().to_bytes(STAMP_BYTES, "big")
            last = await node.broadcast(stamp + filler)
        self.tell("published", count=count, last_seq=last.id.seq if last else 0)

    async def _consume(self) -> None:
        progress_at = 0.0
        async with self.node.subscribe() as messages:
            async for message in messages:
                tally = self.tally
                if tally is None:
                    continue
                tally.count(message)
                # Not in the middle of a bundle: its copies are counted when it arrives.
                if not messages.pending and time.monotonic() - progress_at > PROGRESS_S:
                    progress_at = time.monotonic()
                    self.tell("progress", delivered=tally.delivered, copies=tally.copies)
                if not self.done_told:
                    self._tell_when_done()

    def _tell_when_done(self) -> None:
        tally = self.tally
        assert tally is not None
        if tally.delivered >= tally.due:
            self.done_told = True
            self.tell("done", delivered=tally.delivered, at=tally.last_at)

    def _report(self) -> None:
        cpu = time.process_time() - self.cpu_at_start
        tally = self.tally
        assert tally is not None
        self.tell(
            "report",
            delivered=tally.delivered,
            duplicates=tally.duplicates,
            foreign=tally.foreign,
            copies=tally.copies,
            copies_warm=tally.copies_warm,
            latencies={str(bucket): count for bucket, count in tally.latencies.items()},
            latency_max_s=tally.latency_max_s,
            last_at=tally.last_at,
            cpu_s=cpu,
            cpu_startup_s=self.cpu_at_start,
            rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            stats=self.node.stats(),
        )


def main() -> int:
    """Read the options from the first argument (JSON) and run until told to stop."""
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
