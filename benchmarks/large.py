"""What a large message costs small ones: their p99 alone, and while 16 MiB pass, in one run.

    python -m benchmarks.large                  5 processes, 10,000 small ones at 1,000/s
    python -m benchmarks.large --same           the large message comes from who sends the small
    python -m benchmarks.large --json           one object on the last line

Each node is a process with its own certificate, all on loopback, and signs. Small messages have 256
bytes and come from one node. Latency is from the call of `broadcast` to the subscriber's
`async for`, over all other nodes. What is measured alone is measured before and after what is
measured together, so that the machine's other work does not count for one of them only.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

from plumtree_quic import Node, PlumtreeConfig, QuicConfig
from plumtree_quic.security.certs import DevCa

SMALL_BYTES = 256
STAMP_BYTES = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=1_000.0, help="small messages a second")
    parser.add_argument("--mib", type=float, default=16.0)
    parser.add_argument(
        "--same", action="store_true", help="one node sends the small and the large"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        results = measure(options, Path(directory))
    for name, result in results.items():
        print(f"{name:9} " + "  ".join(f"{key} {value}" for key, value in result.items()))
    ratio = results["together"]["p99_ms"] / results["alone"]["p99_ms"]
    print(f"p99 together / alone: {ratio:.2f}")
    if options.json:
        print(json.dumps({**results, "ratio": round(ratio, 2)}))
    return 0


def measure(options, directory):
    """Start the nodes, run the phases, and return what each came to."""
    ca = DevCa.create(directory / "certs", trust_domain="bench")
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number in range(options.nodes):
        ca.issue(f"n{number}")
        ours, theirs = context.Pipe()
        paths = [
            str(directory / "certs" / each)
            for each in (f"n{number}.crt", f"n{number}.key", "ca.crt")
        ]
        process = context.Process(target=work, args=(theirs, paths, int(options.mib * (1 << 20))))
        process.start()
        pipes.append(ours)
        processes.append(process)
    try:
        addresses = [pipe.recv() for pipe in pipes]
        ask(pipes, [("join", addresses[0], options.nodes - 1)] * options.nodes)
        phase(options, pipes, large=False, count=500)
        latencies = {"alone": [], "together": []}
        large_s = []
        for _ in range(options.rounds):
            latencies["alone"] += phase(options, pipes, large=False)[0]
            small, taken = phase(options, pipes, large=True)
            latencies["together"] += small
            large_s += taken
            latencies["alone"] += phase(options, pipes, large=False)[0]
        stats = ask(pipes, [("stats",)] * options.nodes)
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send(("stop",))
            process.join(10)
    out = {name: summary(each) for name, each in latencies.items()}
    out["large"] = {"mib": options.mib, "arrived_s": [round(each, 2) for each in sorted(large_s)]}
    out["counters"] = {
        name: sum(each[name] for each in stats)
        for name in ("copies_bulk", "copies_repair", "tree_duplicates", "grafts_sent", "congested")
    }
    return out


def ask(pipes, requests):
    for pipe, request in zip(pipes, requests, strict=True):
        pipe.send(request)
    return [pipe.recv() for pipe in pipes]


def phase(options, pipes, *, large, count=None):
    count = count or options.messages
    sender = 0 if options.same else 1
    answers = ask(
        pipes,
        [
            ("phase", count, options.rate, number == 0, large, large and number == sender)
            for number in range(options.nodes)
        ],
    )
    return [each for small, _ in answers for each in small], [t for _, t in answers if t]


def summary(latencies):
    ordered = sorted(latencies)
    return {
        "count": len(ordered),
        "p50_ms": round(1e3 * ordered[len(ordered) // 2], 2),
        "p99_ms": round(1e3 * ordered[len(ordered) * 99 // 100], 2),
        "max_ms": round(1e3 * ordered[-1], 2),
    }


# --- one node -----------------------------------------------------------------------------------


def work(pipe, paths, large_bytes):
    cert, key, ca = paths
    quic = QuicConfig(cert_path=cert, key_path=key, ca_path=ca)
    config = PlumtreeConfig.lan(max_message_size=max(65_536, large_bytes))
    # Made before anything is measured: that is the application's work, and no node's.
    large = os.urandom(large_bytes)
    asyncio.run(serve(pipe, Node(quic, config, listen="127.0.0.1:0"), large))


async def serve(pipe, node, large):
    async with node, node.subscribe(own=True) as messages:
        pipe.send(node.address)
        while True:
            op, *fields = await asyncio.to_thread(pipe.recv)
            if op == "stop":
                return
            if op == "join":
                seed, others = fields
                await node.join([seed])
                await node.wait_for_peers(others)
                while len(node.peers()) < others:
                    await asyncio.sleep(0.02)
                pipe.send(True)
            if op == "stats":
                pipe.send(node.stats())
            if op == "phase":
                pipe.send(await run_phase(node, messages, large, *fields))


async def run_phase(node, messages, payload, count, rate, sends, large, sends_large):
    """Returns the latencies of the small messages of others, and how long the large one took."""
    tasks = []
    if sends:
        tasks.append(asyncio.create_task(send_small(node, count, rate)))
    if sends_large:
        tasks.append(asyncio.create_task(send_large(node, payload, count / rate / 10)))
    small, taken = [], 0.0
    left, wanted = count, large
    while left or wanted:
        message = await anext(messages)
        seconds = (time.monotonic_ns() - int.from_bytes(message.payload[:STAMP_BYTES])) / 1e9
        if len(message.payload) == SMALL_BYTES:
            left -= 1
            if message.origin != node.id:
                small.append(seconds)
        else:
            wanted = False
            if message.origin != node.id:
                taken = seconds
    await asyncio.gather(*tasks)
    return small, taken


def stamp():
    return time.monotonic_ns().to_bytes(STAMP_BYTES)


async def send_small(node, count, rate):
    began = time.monotonic()
    for number in range(count):
        pause = began + number / rate - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        await node.broadcast(stamp() + bytes(SMALL_BYTES - STAMP_BYTES))


async def send_large(node, payload, after_s):
    await asyncio.sleep(after_s)
    await node.broadcast(stamp() + payload[STAMP_BYTES:])


if __name__ == "__main__":
    sys.exit(main())
