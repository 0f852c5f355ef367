"""A node comes back after 100,000 messages: how long it takes, and what the others feel of it.

    python -m benchmarks.catchup            five processes; the one that is away has a disk
    python -m benchmarks.catchup --json     one object on the last line

One of the nodes is killed (-9). The others pass `--messages` of `--size` bytes as fast as they go,
and then `--rate` a second for `--seconds`, whose latencies are the measure. Then the node is
started again, on the same store, and the same paced messages go on until it has everything.
Latencies are those of the other nodes, from the call of `broadcast` to their `async for`. Five
processes that do nothing but take 200 messages a second are most of what two processors can do, so
a node that is merely there shows in the others' p99: the same is measured before it goes, and once
more when it has everything.
"""

import argparse
import asyncio
import json
import time
from collections import Counter

from rich.console import Console
from rich.table import Table

from plumtree_quic.cli.cluster import percentile_ms, swarm

PATIENCE_S = 180.0
PERCENTILES = (0.5, 0.99)


class Bench:
    """The processes, and where the publisher's numbers have got to."""

    def __init__(self, made, options):
        self.made = made
        self.options = options
        self.seq = 0

    def settings(self, name):
        storage = {"enabled": True, "max_messages": 4 * self.options.messages}
        # What is in memory is lost with the process. The others have no disk to wait for, so that
        # one publisher alone can pass so many messages within seconds.
        is_away = name == f"n{self.options.nodes - 1}"
        state_dir = str(self.made.directory / f"state-{name}") if is_away else None
        return {"storage": storage, "state_dir": state_dir}

    async def start(self):
        names = [f"n{number}" for number in range(self.options.nodes)]
        workers = [await self.made.spawn(name, **self.settings(name)) for name in names]
        for worker in workers:
            worker.tell("join", seeds=[each.address for each in workers[:3]])
        await self.made.converge(len(workers))
        self.publisher, *self.others, self.away = workers

    async def expect(self, worker, count, base):
        worker.forget("done", "report", "expecting", "published")
        origin = self.publisher.node_id
        worker.tell("expect", expected={origin: count}, base={origin: base}, warm={origin: 0})
        await worker.wait("expecting")

    async def publish(self, count, rate):
        """Latencies at the other nodes, when all have all; and how long that took."""
        workers = (self.publisher, *self.others)
        for worker in workers:
            await self.expect(worker, count, self.seq)
        began = time.monotonic()
        self.publisher.tell("publish", count=count, size=self.options.size, rate=rate)
        for worker in workers:
            await worker.wait("done", timeout_s=PATIENCE_S)
        took_s = time.monotonic() - began
        published = await self.publisher.wait("published", timeout_s=PATIENCE_S)
        self.seq = published["last_seq"]
        latencies, longest_s = Counter(), 0.0
        for worker in self.others:
            worker.tell("report")
            report = await worker.wait("report")
            latencies += Counter({int(k): v for k, v in report["latencies"].items()})
            longest_s = max(longest_s, report["latency_max_s"])
        return [percentile_ms(latencies, share, longest_s) for share in PERCENTILES], took_s

    async def run(self):
        options = self.options
        await self.start()
        await self.publish(100, 100.0)
        paced = int(options.rate * options.seconds)
        # The others of all five, of the four that are left, while the fifth catches up, and after.
        all_there, _ = await self.publish(paced, options.rate)
        base = self.seq
        await self.away.kill()
        _, passed_s = await self.publish(options.messages, None)
        calm, _ = await self.publish(paced, options.rate)
        back_at = time.monotonic()
        again = await self.made.spawn(
            self.away.name, listen=self.away.address, **self.settings(self.away.name)
        )
        missed = self.seq - base
        await self.expect(again, missed, base)
        again.tell("join", seeds=[each.address for each in self.others])
        busy, _ = await asyncio.gather(
            self.publish(paced, options.rate), again.wait("done", timeout_s=PATIENCE_S)
        )
        done_s = again.latest("done")["at"] - back_at
        again.tell("report")
        report = await again.wait("report")
        back, _ = await self.publish(paced, options.rate)
        return {
            "nodes": options.nodes,
            "missed": missed,
            "size_bytes": options.size,
            "passed_s": round(passed_s, 2),
            "caught_up_s": round(done_s, 2),
            "duplicates": report["duplicates"],
            "paced_rate": options.rate,
            "all_there_ms": named(all_there),
            "one_away_ms": named(calm),
            "catching_up_ms": named(busy[0]),
            "all_back_ms": named(back),
            # Of catching up alone; and with what one process more costs this machine.
            "p99_ratio_all_there": round(busy[0][1] / all_there[1], 2),
            "p99_ratio_one_away": round(busy[0][1] / calm[1], 2),
        }


def named(percentiles):
    return dict(zip(("p50", "p99"), percentiles, strict=True))


async def measure(options):
    async with swarm() as made:
        return await Bench(made, options).run()


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.catchup")
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure(options))
    table = Table(title="A node comes back", show_header=False)
    for name, value in found.items():
        table.add_row(name, str(value))
    Console(stderr=options.json).print(table)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
