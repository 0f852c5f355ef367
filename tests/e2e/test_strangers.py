"""Strangers flood one node of a running cluster: nothing is lost, and nothing of theirs is kept."""

import asyncio
import os
import random
import socket
from pathlib import Path

from plumtree_quic.cli.cluster import Run, measure, swarm
from tests.rigs.evil_quic import Initials, crypto_frame, header_of

HALF_OPEN = 10_000
GARBAGE_BYTES = 1_000_000_000
MEMORY_MIB = 32
NO_PROGRESS = lambda delivered, expected, redundancy: None  # noqa: E731


def resident_mib(worker):
    for line in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def half_open(address, count):
    """Handshakes that begin, prove their address by Retry, and never go on. Returns how many."""
    host, port = address.rsplit(":", 1)
    hello, begun = crypto_frame(b"\x01"), 0
    for _ in range(count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((host, int(port)))
            sock.settimeout(0.5)
            cid = os.urandom(8)
            first = Initials(cid, from_dialler=True)
            sock.send(first.packet(hello, to=cid, source=b"stranger", number=0))
            try:
                retry = header_of(sock.recv(2048))
            except (TimeoutError, ConnectionError):
                continue
            again = Initials(retry.source_cid, from_dialler=True)
            sock.send(
                again.packet(
                    hello, to=retry.source_cid, source=b"stranger", number=1, token=retry.token
                )
            )
            begun += 1
    return begun


def garbage(address, size):
    """`size` bytes in datagrams of every shape that is none."""
    host, port = address.rsplit(":", 1)
    rng = random.Random(1)
    shapes = []
    for length in (1_200, 60_000):
        noise = rng.randbytes(length)
        long = bytes([0xC3, 0, 0, 0, 1, 8]) + rng.randbytes(8) + b"\x08sourceid\0\x44\x00"
        shapes += [
            noise,
            b"\x45" + noise[1:],  # a short header for a connection that is not there
            (long + noise)[:length],  # an Initial that does not decrypt
            (b"\xc0\x00\x00\x00\x00" + noise)[:length],  # version negotiation
            (b"\xc3\x0a\x0a\x0a\x0a" + noise)[:length],  # a version that nobody speaks
        ]
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((host, int(port)))
        while sent < size:
            for data in shapes:
                try:
                    sent += sock.send(data)
                except ConnectionError:
                    continue
    return sent


async def test_half_open_handshakes_and_garbage_leave_memory_flat_and_delivery_complete():
    async with swarm() as made:
        await made.start(4)
        target = made.workers[0]
        await measure(made, Run(messages=2_000, size=1_024, publishers=4), NO_PROGRESS)
        bases = {worker.node_id: 500 for worker in made.workers}
        before = resident_mib(target)

        async def flood():
            begun = await asyncio.to_thread(half_open, target.address, HALF_OPEN)
            sent = await asyncio.to_thread(garbage, target.address, GARBAGE_BYTES)
            return begun, sent, resident_mib(target)

        flooding = asyncio.ensure_future(flood())
        run = Run(messages=4_000, size=1_024, publishers=4, rate=200.0)
        result = await measure(made, run, NO_PROGRESS, bases)
        begun, sent, after = await flooding
        assert begun >= 0.9 * HALF_OPEN
        assert sent >= GARBAGE_BYTES
        assert (result["lost"], result["duplicates"]) == (0, 0)
        assert after - before < MEMORY_MIB, (before, after)
        assert not [e for w in made.workers for e in w.events if e["event"] == "failed"]
        stats = target.latest("report")["stats"]
        assert stats["net_over_budget"] > 0
        assert stats["net_filtered"] > 0
        print(result["latency_ms"], begun, sent, before, after, stats["net_filtered"])
