"""`plumtree-quic cluster`: the encrypted benchmark cluster, N node processes on loopback.

Orchestrates worker processes (worker.py) and adds up what they report; it measures nothing
itself but the time at which things were asked for.
"""

import asyncio
import contextlib
import json
import math
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from rich.table import Table

from plumtree_quic.cli.worker import STAMP_BYTES, value_of
from plumtree_quic.errors import ConfigError, PlumtreeError
from plumtree_quic.security.certs import DevCa

__all__ = ["Run", "Swarm", "WorkerProcess", "cluster", "measure", "percentile_ms", "show"]

# Up to so many members the overlay is a full mesh (PlumtreeConfig.max_peers None).
FULL_MESH_MEMBERS_MAX = 16
WARM_SHARE = 0.05
START_TIMEOUT_S = 60.0
# Nothing delivered for this long means that nothing more will come.
STALL_TIMEOUT_S = 60.0
# Lines of what a process logs: more than a traceback has.
COMPLAINTS_KEPT = 200


class WorkerProcess:
    """One node process: orders in, events out."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.address = ""
        self.node_id = ""
        self.delivered = 0
        self.copies = 0
        self.killed = False
        self.events: list[dict[str, Any]] = []
        self.complaints: deque[str] = deque(maxlen=COMPLAINTS_KEPT)
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self._hearing = asyncio.create_task(self._hear())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "progress":
                self.delivered, self.copies = event["delivered"], event["copies"]
            else:
                self.events.append(event)
            self._changed.set()
        self._changed.set()

    async def _hear(self) -> None:
        """Take what it logs as it comes: a full pipe would stop the process that writes to it."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.complaints.append(line.decode(errors="replace").rstrip())

    def tell(self, op: str, **fields: Any) -> None:
        """Give an order; what comes of it is an event."""
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self.process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")

    def latest(self, *kinds: str) -> dict[str, Any] | None:
        """Return the newest event of one of `kinds`."""
        return next((each for each in reversed(self.events) if each["event"] in kinds), None)

    def forget(self, *kinds: str) -> None:
        """Drop events of `kinds`, before waiting for new ones."""
        self.events = [event for event in self.events if event["event"] not in kinds]

    async def wait(self, *kinds: str, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """Wait for an event. Raises PlumtreeError when the process ends or time runs out."""
        try:
            async with asyncio.timeout(timeout_s):
                while (event := self.latest(*kinds)) is None:
                    if self._reading.done():
                        raise PlumtreeError(f"node process {self.name} ended: {await self.why()}")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise PlumtreeError(
                f"node process {self.name} did not say {' or '.join(kinds)} in {timeout_s:g} s"
            )
        return event

    async def why(self) -> str:
        """Return the last words of a process that ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await asyncio.shield(self._hearing)
                await self.process.wait()
                words = [line for line in self.complaints if line]
                return words[-1] if words else f"exit code {self.process.returncode}"
        return "no reason given"

    async def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        self.killed = True
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def close(self) -> None:
        """Let it leave; kill it when it does not."""
        if self.process.returncode is None:
            self.tell("stop")
            try:
                async with asyncio.timeout(12.0):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        for task in (self._reading, self._hearing):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


class Swarm:
    """The node processes of one run and the certificates that they use."""

    def __init__(self, directory: Path, preset: str = "lan") -> None:
        self.directory = directory
        self.preset = preset
        self.ca = DevCa.create(directory, trust_domain="cluster")
        self.workers: list[WorkerProcess] = []

    async def spawn(
        self,
        name: str,
        *,
        issuer: DevCa | None = None,
        timeout_s: float = START_TIMEOUT_S,
        **options: Any,
    ) -> WorkerProcess:
        """Start one node process with a certificate of its own and wait until it listens.

        issuer: whose certificate it has; the swarm's CA when None. timeout_s: how long to wait.
        """
        issuer = issuer if issuer is not None else self.ca
        if not (issuer.directory / f"{name}.crt").exists():
            issuer.issue(name)
        settings = {
            "cert": str(issuer.directory / f"{name}.crt"),
            "key": str(issuer.directory / f"{name}.key"),
            "ca": str(issuer.directory / "ca.crt"),
            "preset": self.preset,
            **options,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "plumtree_quic.cli.worker",
            json.dumps(settings),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        worker = WorkerProcess(name, process)
        self.workers.append(worker)
        ready = await worker.wait("ready", timeout_s=timeout_s)
        worker.address, worker.node_id = ready["address"], ready["node_id"]
        return worker

    async def start(self, nodes: int) -> None:
        """Start `nodes` processes, join them and wait until all know and link one another."""
        names = [f"n{number}" for number in range(nodes)]
        for name in names:
            self.ca.issue(name)
        await asyncio.gather(*(self.spawn(name) for name in names))
        self.workers.sort(key=lambda worker: int(worker.name[1:]))
        seeds = [worker.address for worker in self.workers[:3]]
        for worker in self.workers:
            worker.tell("join", seeds=seeds)
        await self.converge(nodes)

    async def converge(self, nodes: int) -> None:
        """Wait until every live process knows `nodes` members and has its links."""
        links = nodes - 1 if nodes <= FULL_MESH_MEMBERS_MAX else min(nodes - 1, 8)
        for worker in self.live():
            worker.forget("converged")
            worker.tell("converge", members=nodes - 1, links=links)
        await asyncio.gather(*(worker.wait("converged") for worker in self.live()))

    def live(self) -> list[WorkerProcess]:
        """The processes that run."""
        return [worker for worker in self.workers if not worker.killed]

    async def close(self) -> None:
        """End every process that this swarm started."""
        await asyncio.gather(*(worker.close() for worker in self.workers))


@contextlib.asynccontextmanager
async def swarm(preset: str = "lan") -> AsyncIterator[Swarm]:
    """Make a swarm in a temporary directory and end all of its processes afterwards.

    SIGTERM ends it as Ctrl-C does, so that neither processes nor private keys stay behind.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        if not terminated:  # a second one (`timeout` sends two) must not cut the cleaning up short
            terminated = True
            task.cancel()

    # Not possible off the main thread, and on Windows.
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGTERM, terminate)
    with tempfile.TemporaryDirectory(prefix="plumtree-cluster-") as directory:
        made = Swarm(Path(directory), preset)
        try:
            yield made
        except asyncio.CancelledError:
            if terminated:
                sys.exit(128 + signal.SIGTERM)
            raise
        finally:
            await made.close()
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(signal.SIGTERM)


@attrs.frozen(kw_only=True)
class Run:
    """What to measure. rate: messages a second in all, or None: as fast as they go."""

    messages: int
    size: int
    publishers: int = 1
    rate: float | None = None
    kill: int = 0
    restart: bool = False


Progress = Callable[[int, int, float], None]


async def measure(
    made: Swarm,
    run: Run,
    progress: Progress,
    bases: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Publish, wait until every node that lived throughout has everything, add up.

    progress: called with (delivered, expected, redundancy since the last call).
    bases: the last sequence number that each publisher has used in an earlier run.
    """
    workers = made.live()
    publishers = workers[: run.publishers]
    victims = workers[len(workers) - run.kill :] if run.kill else []
    judged = [worker for worker in workers if worker not in victims]
    share = [
        run.messages // run.publishers + (number < run.messages % run.publishers)
        for number in range(run.publishers)
    ]
    counts = {w.node_id: count for w, count in zip(publishers, share, strict=True)}
    warm = {node_id: math.ceil(count * WARM_SHARE) for node_id, count in counts.items()}
    for worker in workers:
        worker.delivered = worker.copies = 0
        worker.forget("done", "report", "expecting", "published", "suspected", "failed")
        worker.tell("expect", expected=counts, base=bases or {}, warm=warm)
    await asyncio.gather(*(worker.wait("expecting") for worker in workers))
    expected = run.messages * (len(judged) - 1)
    began = time.monotonic()
    for worker, count in zip(publishers, share, strict=True):
        rate = run.rate / run.publishers if run.rate else None
        worker.tell("publish", count=count, size=run.size, rate=rate)
    if victims:
        await _until_share(judged, expected, 0.3)
        for worker in victims:
            await worker.kill()
        if run.restart:
            for worker in victims:
                again = await made.spawn(worker.name, listen=worker.address)
                again.tell("join", seeds=[each.address for each in judged[:3]])
    await _until_done(judged, expected, progress)
    for worker in judged:
        worker.tell("report")
    reports = await asyncio.gather(*(worker.wait("report") for worker in judged))
    if run.restart:
        await made.converge(len(workers))
    return _sum_up(run, len(workers), counts, warm, expected, began, reports)


async def _until_share(judged: list[WorkerProcess], expected: int, share: float) -> None:
    deadline = time.monotonic() + STALL_TIMEOUT_S
    while time.monotonic() < deadline:
        if sum(worker.delivered for worker in judged) >= expected * share:
            return
        if all(worker.latest("done") for worker in judged):
            return
        await asyncio.sleep(0.02)


async def _until_done(judged: list[WorkerProcess], expected: int, progress: Progress) -> None:
    before_delivered = before_copies = 0
    moved_at = time.monotonic()
    while True:
        waiting = [worker for worker in judged if not worker.latest("done")]
        delivered = sum(
            (worker.latest("done") or {"delivered": worker.delivered})["delivered"]
            for worker in judged
        )
        copies = sum(worker.copies for worker in judged)
        if delivered > before_delivered:
            moved_at = time.monotonic()
            extra = (copies - before_copies) / (delivered - before_delivered) - 1
            progress(delivered, expected, max(0.0, extra))
            before_delivered, before_copies = delivered, copies
        if not waiting or time.monotonic() - moved_at > STALL_TIMEOUT_S:
            return
        for worker in waiting:
            if worker.process.returncode is not None:
                raise PlumtreeError(f"node process {worker.name} ended: {await worker.why()}")
        await asyncio.sleep(0.05)


def _sum_up(
    run: Run,
    nodes: int,
    counts: dict[str, int],
    warm: dict[str, int],
    expected: int,
    began: float,
    reports: list[dict[str, Any]],
) -> dict[str, Any]:
    delivered = sum(report["delivered"] for report in reports)
    elapsed = max(max(report["last_at"] for report in reports) - began, 1e-9)
    cpu = sum(report["cpu_s"] for report in reports)
    latencies: Counter[int] = Counter()
    for report in reports:
        latencies.update({int(key): count for key, count in report["latencies"].items()})
    others = len(reports) - 1
    expected_warm = sum(count - warm[node_id] for node_id, count in counts.items()) * others
    copies_warm = sum(report["copies_warm"] for report in reports)
    copies = sum(report["copies"] for report in reports)
    longest_s = max(report["latency_max_s"] for report in reports)
    return {
        "nodes": nodes,
        "messages": run.messages,
        "size_bytes": run.size,
        "publishers": run.publishers,
        "delivered": delivered,
        "expected": expected,
        "lost": expected - delivered,
        "duplicates": sum(report["duplicates"] for report in reports),
        "elapsed_s": round(elapsed, 4),
        "deliveries_per_s": round(delivered / elapsed, 1),
        "cpu_s_total": round(cpu, 4),
        "cpu_s_startup": round(sum(report["cpu_startup_s"] for report in reports), 4),
        "deliveries_per_cpu_s": round(delivered / cpu, 1) if cpu else 0.0,
        "latency_ms": {
            "p50": percentile_ms(latencies, 0.50, longest_s),
            "p99": percentile_ms(latencies, 0.99, longest_s),
            "max": round(longest_s * 1000, 3),
        },
        "rmr": round(copies_warm / expected_warm - 1, 4) if expected_warm else 0.0,
        "rmr_total": round(copies / expected - 1, 4) if expected else 0.0,
        "rss_mb_max": round(max(report["rss_mb"] for report in reports), 1),
    }


def percentile_ms(latencies: Counter[int], share: float, longest_s: float) -> float:
    """In ms. A bucket stands for its middle, which may lie above the longest that is in it."""
    total = sum(latencies.values())
    passed = 0
    for bucket in sorted(latencies):
        passed += latencies[bucket]
        if passed >= share * total:
            return round(min(value_of(bucket), longest_s) * 1000, 3)
    return 0.0


@click.command()
@click.option("--nodes", type=click.IntRange(2, 64), default=5, show_default=True)
@click.option("--messages", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--size", type=click.IntRange(STAMP_BYTES, 65_536), default=1024, show_default=True)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Messages/s in all.")
@click.option("--publishers", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--kill", type=click.IntRange(min=0), default=0, help="SIGKILL so many nodes.")
@click.option("--restart", is_flag=True, help="Start the killed ones again.")
@click.option(
    "--preset",
    type=click.Choice(["default", "lan", "wan", "large_cluster"]),
    default="lan",
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="One object, the last line of stdout.")
def cluster(
    nodes: int,
    messages: int,
    size: int,
    rate: float | None,
    publishers: int,
    kill: int,
    restart: bool,
    preset: str,
    as_json: bool,
) -> None:
    """Run an encrypted cluster of node processes on this machine and measure it.

    Latency runs from the call of broadcast() to the subscriber, for every delivery; without
    --rate it is mostly queueing. Killed nodes are the last ones and never publish; what they miss
    is not expected.
    """
    if publishers > nodes - kill:
        raise ConfigError(
            f"--publishers {publishers} of --nodes {nodes} with --kill {kill}: publishers are "
            "never killed, so at most nodes - kill can publish"
        )
    if restart and not kill:
        raise ConfigError("--restart starts killed nodes again: say how many with --kill K")
    if kill and nodes - kill < 2:
        raise ConfigError(f"--kill {kill} of --nodes {nodes}: at least two nodes must stay")
    run = Run(
        messages=messages,
        size=size,
        publishers=publishers,
        rate=rate,
        kill=kill,
        restart=restart,
    )
    result = asyncio.run(_cluster(nodes, run, preset))
    if as_json:
        click.echo(json.dumps(result))
    else:
        show(Console(), result)
    if result["lost"] or result["duplicates"]:
        sys.exit(1)


async def _cluster(nodes: int, run: Run, preset: str) -> dict[str, Any]:
    console = Console(stderr=True)
    began = time.monotonic()
    async with swarm(preset) as made:
        console.print(f"starting {nodes} node processes ...")
        await made.start(nodes)
        startup_s = time.monotonic() - began
        console.print(f"{nodes} nodes, every link mutually authenticated, {startup_s:.1f} s")
        result = await measure(made, run, progress_on(console))
        result["startup_s"] = round(startup_s, 3)
        return result


def progress_on(console: Console) -> Progress:
    """Return a progress printer: a line twice a second at most, and the last one."""
    told_at = 0.0

    def tell(delivered: int, expected: int, redundancy: float) -> None:
        nonlocal told_at
        if time.monotonic() - told_at < 0.5 and delivered < expected:
            return
        told_at = time.monotonic()
        filled = round(30 * delivered / expected) if expected else 30
        bar = "#" * filled + "." * (30 - filled)
        console.print(
            f"[{bar}] {delivered:,} of {expected:,} deliveries, redundancy {redundancy:.3f}",
            markup=False,
            highlight=False,
        )

    return tell


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the summary table of one run."""
    table = Table("figure", "value", title="encrypted cluster")
    share = result["delivered"] / result["expected"] if result["expected"] else 1.0
    latency = result["latency_ms"]
    for name, value in (
        ("nodes", f"{result['nodes']}"),
        ("messages", f"{result['messages']:,} of {result['size_bytes']:,} bytes"),
        ("delivered", f"{result['delivered']:,} of {result['expected']:,} ({share:.2%})"),
        ("lost", f"{result['lost']:,}"),
        ("duplicates", f"{result['duplicates']:,}"),
        ("redundancy (RMR)", f"{result['rmr']:.4f}"),
        ("with the first 5 %", f"{result['rmr_total']:.4f}"),
        ("deliveries/s", f"{result['deliveries_per_s']:,.0f}"),
        ("deliveries per CPU second", f"{result['deliveries_per_cpu_s']:,.0f}"),
        (
            "latency ms p50 / p99 / max",
            f"{latency['p50']:.1f} / {latency['p99']:.1f} / {latency['max']:.1f}",
        ),
        ("memory of the largest node", f"{result['rss_mb_max']:.0f} MiB"),
    ):
        table.add_row(name, value)
    console.print(table)
