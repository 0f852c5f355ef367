"""Who stops reading costs the others nothing: readers that never read, a process that stands still.

``python -m tests.rigs.stuck`` (``scripts/soak stuck``) starts five real node processes with stores
in memory. One publishes at a steady rate; one has a reader for each `when_full` that never reads;
one is stopped (SIGSTOP) for all but the ends of the run, so that nobody reads its socket. The
memory of each node is looked at once a second.

It ends by itself, and exits with 1 when a rule was broken:

    bound   no node that runs has more memory than when it started, and what its settings allow it
    level   nor does it grow in the last half of the run
    all     the others are given every message once
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time

import attrs
from rich.console import Console
from rich.table import Table

from plumtree_quic.cli.cluster import percentile_ms, swarm

STUCK_READERS = ("wait", "disconnect", "drop_oldest", "drop_newest")
# Part of the run at its begin and at its end in which nobody is stopped.
RUNNING_SHARE = 0.1
# What an interpreter takes and gives back, and what is on its way.
SLACK_MB = 24.0
# A message in a queue, or in a store, costs more than its bytes: objects around it.
OVERHEAD = 3.0
PATIENCE_S = 120.0


@attrs.frozen(kw_only=True)
class Plan:
    """What to go through. store_mb, buffer: what a node may keep, in MiB and in messages."""

    minutes: float = 10.0
    rate: float = 500.0
    size: int = 1_024
    store_mb: int = 16
    buffer: int = 2_000

    @property
    def messages(self):
        return int(self.minutes * 60 * self.rate)

    @property
    def allowed_mb(self):
        """What the settings let a node keep beyond what it has at its start."""
        message_mb = self.size / (1 << 20)
        # The cache holds a bundle for its time, here 30 s; each reader its buffer.
        cache_mb = 30.0 * self.rate * message_mb
        readers_mb = len(STUCK_READERS) * self.buffer * message_mb
        return OVERHEAD * (self.store_mb + cache_mb + readers_mb) + SLACK_MB


@attrs.define
class Record:
    """What happened. rss_mb: by node, one look a second. lacking, twice: of judged deliveries."""

    plan: Plan
    rss_mb: dict = attrs.field(factory=dict)
    lacking: int = 0
    twice: int = 0
    dropped: int = 0
    latency_ms: dict = attrs.field(factory=dict)


def broken_rules(record):
    """In words; nothing when all held."""
    said = []
    for name, looks in record.rss_mb.items():
        start, half = looks[0], looks[len(looks) // 2 :]
        limit = start + record.plan.allowed_mb
        if max(looks) > limit:
            said.append(f"bound: {name} had {max(looks):.0f} MiB, above {limit:.0f}")
        grown = max(half) - max(looks[: len(looks) // 2])
        if grown > SLACK_MB:
            said.append(f"level: {name} grew by {grown:.0f} MiB in the last half")
    if record.lacking:
        said.append(f"all: {record.lacking} deliveries are lacking")
    if record.twice:
        said.append(f"all: {record.twice} messages came twice")
    if not record.dropped:
        said.append("nobody was stuck: no reader has dropped anything")
    return said


def rss_mb(pid):
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


async def run(plan):
    record = Record(plan)
    storage = {"enabled": True, "max_bytes": plan.store_mb << 20}
    async with swarm() as made:
        names = ("publisher", "reader", "other", "stuck", "stopped")
        workers = [await made.spawn(name, storage=storage) for name in names]
        for worker in workers:
            worker.tell("join", seeds=[each.address for each in workers[:3]])
        await made.converge(len(workers))
        publisher, *_, stuck, stopped = workers
        for when_full in STUCK_READERS:
            stuck.forget("stuck")
            stuck.tell("stick", when_full=when_full, buffer=plan.buffer)
            await stuck.wait("stuck")
        judged = workers[:-1]
        origin = publisher.node_id
        for worker in judged:
            worker.tell("expect", expected={origin: plan.messages}, base={}, warm={origin: 0})
            await worker.wait("expecting")
        record.rss_mb = {worker.name: [rss_mb(worker.process.pid)] for worker in judged}
        publisher.tell("publish", count=plan.messages, size=plan.size, rate=plan.rate)
        await _watch(plan, record, judged, stopped)
        for worker in judged:
            await worker.wait("done", timeout_s=PATIENCE_S)
        await _judge(plan, record, judged)
    return record


async def _watch(plan, record, judged, stopped):
    """Look once a second, and stop and wake the one process meanwhile."""
    began, seconds = time.monotonic(), 60 * plan.minutes
    is_stopped = False
    try:
        while (passed := time.monotonic() - began) < seconds:
            inside = RUNNING_SHARE < passed / seconds < 1 - RUNNING_SHARE
            if inside != is_stopped:
                os.kill(stopped.process.pid, signal.SIGSTOP if inside else signal.SIGCONT)
                is_stopped = inside
            await asyncio.sleep(1.0)
            for worker in judged:
                record.rss_mb[worker.name].append(rss_mb(worker.process.pid))
    finally:
        if is_stopped:
            os.kill(stopped.process.pid, signal.SIGCONT)


async def _judge(plan, record, judged):
    for worker in judged:
        worker.tell("report")
        report = await worker.wait("report")
        if worker is not judged[0]:
            record.lacking += plan.messages - report["delivered"]
            latencies = {int(bucket): count for bucket, count in report["latencies"].items()}
            record.latency_ms[worker.name] = tuple(
                percentile_ms(latencies, share, report["latency_max_s"]) for share in (0.5, 0.99)
            )
        record.twice += report["duplicates"]
        record.dropped += report["stats"]["subscription_dropped"]


def show(record, console):
    table = Table(title="Who stops reading", show_edge=False)
    for name in ("node", "at its start", "most", "at the end", "p50 ms", "p99 ms"):
        table.add_column(name, justify="left" if name == "node" else "right")
    for name, looks in record.rss_mb.items():
        p50, p99 = record.latency_ms.get(name, ("", ""))
        figures = (f"{each:.0f} MiB" for each in (looks[0], max(looks), looks[-1]))
        table.add_row(name, *figures, str(p50), str(p99))
    console.print(table)
    console.print(
        f"{record.plan.messages} messages of {record.plan.size} bytes at {record.plan.rate:g}/s; "
        f"{record.dropped} dropped for readers that never read; {record.plan.allowed_mb:.0f} MiB "
        "allowed beyond the start"
    )


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.rigs.stuck")
    parser.add_argument("--minutes", type=float, default=Plan().minutes)
    parser.add_argument("--rate", type=float, default=Plan().rate)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    record = asyncio.run(run(Plan(minutes=options.minutes, rate=options.rate)))
    said = broken_rules(record)
    console = Console(stderr=True)
    show(record, console)
    for each in said:
        console.print(f"[red]broken:[/red] {each}")
    console.print("every rule held" if not said else f"{len(said)} rules were broken")
    if options.json:
        most = {name: round(max(looks), 1) for name, looks in record.rss_mb.items()}
        print(json.dumps({"rss_mb_max": most, "latency_ms": record.latency_ms, "broken": said}))
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
