"""`scripts/demo`: the product in one minute. Real processes, real certificates, a real failure.

Orchestrates cluster.py's processes and prints what they report; exits non-zero unless every
message reached every node, the foreign node was refused and the tree healed.
"""

import asyncio
import contextlib
import sys
import time
from pathlib import Path

from rich.console import Console

from plumtree_quic.cli.cluster import Run, Swarm, WorkerProcess, measure, progress_on, show, swarm
from plumtree_quic.errors import PlumtreeError
from plumtree_quic.security.certs import DevCa

__all__ = ["main"]

NODES = 5
MESSAGES = 2_000
SIZE_BYTES = 1_024
RATE_PER_S = 400.0
HEALING_MESSAGES = 1_000
HEALING_RATE_PER_S = 200.0
RMR_MAX = 0.05


def main() -> int:
    """Run the demo; return the exit code."""
    console = Console(highlight=False)
    try:
        return asyncio.run(_demo(console))
    except PlumtreeError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130


async def _demo(console: Console) -> int:
    async with swarm() as made:
        _title(console, f"1. {NODES} node processes, each with a certificate of its own")
        began = time.monotonic()
        await made.start(NODES)
        console.print(
            f"   up in {time.monotonic() - began:.1f} s: {NODES * (NODES - 1) // 2} QUIC links, "
            "TLS 1.3, both ends verified"
        )

        _title(console, f"2. {MESSAGES:,} messages of 1 KiB, {RATE_PER_S:.0f} a second")
        run = Run(messages=MESSAGES, size=SIZE_BYTES, rate=RATE_PER_S)
        result = await measure(made, run, progress_on(console))
        show(console, result)

        _title(console, "3. a node with a certificate of a foreign CA knocks")
        refused = await _foreign(made, console)

        _title(console, "4. one node is killed (SIGKILL) in mid-stream; the tree heals")
        healed = await _heal(made, console)

    whole = result["lost"] == 0 and result["duplicates"] == 0
    lean = result["rmr"] <= RMR_MAX
    console.print()
    console.print(
        f"{NODES} nodes, {MESSAGES:,} messages, "
        f"{result['delivered'] / result['expected']:.0%} delivered, {result['lost']} lost, "
        f"{result['duplicates']} duplicates, RMR {result['rmr']:.3f}, foreign node "
        f"{'refused' if refused else 'NOT REFUSED'}, killed node "
        f"{'survived by all others' if healed else 'NOT HEALED'}",
        style="bold green" if whole and lean and refused and healed else "bold red",
    )
    return 0 if whole and lean and refused and healed else 1


async def _foreign(made: Swarm, console: Console) -> bool:
    directory = Path(made.directory) / "foreign"
    directory.mkdir()
    # The same names, the same trust domain, the same everything; only the CA's key is another.
    foreign_ca = DevCa.create(directory, trust_domain="cluster")
    # It trusts the cluster's CA, too: so it is the cluster that refuses, not the stranger.
    trusted = directory / "trusted.crt"
    trusted.write_bytes(
        (made.directory / "ca.crt").read_bytes() + (directory / "ca.crt").read_bytes()
    )
    stranger = await made.spawn("stranger", issuer=foreign_ca, ca=str(trusted))
    try:
        stranger.tell("join", seeds=[made.workers[0].address], timeout=3.0)
        event = await stranger.wait("joined", "join_failed")
        if event["event"] == "joined":
            console.print("   it was let in!", style="red")
            return False
        console.print(f"   refused: {event['error']}", markup=False)
        first = made.workers[0]
        first.forget("status")
        first.tell("status")
        known = (await first.wait("status"))["members"]
        return stranger.node_id not in known and len(known) == NODES
    finally:
        await stranger.kill()
        made.workers.remove(stranger)


async def _heal(made: Swarm, console: Console) -> bool:
    victim, judge = made.workers[-1], made.workers[0]
    watching = asyncio.create_task(_narrate(judge, victim, console))
    run = Run(messages=HEALING_MESSAGES, size=SIZE_BYTES, rate=HEALING_RATE_PER_S, kill=1)
    try:
        result = await measure(made, run, progress_on(console), {judge.node_id: MESSAGES})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10.0):
                while judge.latest("suspected") is None:
                    await asyncio.sleep(0.05)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    console.print(
        f"   the other {NODES - 1} nodes: {result['delivered']:,} of {result['expected']:,} "
        f"deliveries, {result['lost']} lost, {result['duplicates']} duplicates"
    )
    return not result["lost"] and not result["duplicates"]


async def _narrate(judge: WorkerProcess, victim: WorkerProcess, console: Console) -> None:
    while not victim.killed:
        await asyncio.sleep(0.02)
    killed_at = time.monotonic()
    console.print(f"   {victim.name} is dead", style="yellow")
    told: set[str] = set()
    while True:
        for kind in ("suspected", "failed"):
            event = judge.latest(kind)
            if event is not None and kind not in told:
                told.add(kind)
                after = event["at"] - killed_at
                console.print(f"   {judge.name}: {victim.name} {kind} after {after:.1f} s")
        await asyncio.sleep(0.05)


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(text, style="bold")


if __name__ == "__main__":
    sys.exit(main())
