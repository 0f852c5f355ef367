"""What one link costs: bytes/s, packets and CPU, beside plain aioquic.asyncio at the same size.

    python -m benchmarks.link            ours in memory, ours over UDP, plain aioquic over UDP
    python -m benchmarks.link --json     one object on the last line
    python -m benchmarks.link --seconds 60 --check
                                         both directions full; every lane in order, memory flat

Both ends of a link live in this process and on one loop, in our form as in the plain one, so that
CPU is the cost of a link's two ends. Windows are alike: 1 MiB. Each form runs several times, by
turns; the best one counts, for the machine's other work only ever adds.
"""

import argparse
import asyncio
import contextlib
import datetime
import gc
import json
import random
import ssl
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import attrs
from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration

from plumtree_quic.ids import member_key
from plumtree_quic.messages import Direct, DirectKind, Gossip, Lane, Repair
from plumtree_quic.net.endpoint import Endpoint
from plumtree_quic.net.events import LinkUp, Received
from plumtree_quic.net.settings import NetSettings
from plumtree_quic.net.udp import UdpSocket
from plumtree_quic.security.certs import DevCa
from plumtree_quic.security.credentials import QuicConfig
from plumtree_quic.wire import build_bundle, build_record

WINDOW_BYTES = 1 << 20
BULK_BYTES = 16_384
SMALL_BYTES = 100
WARM_SHARE = 0.1
LATENCY_S = 0.000_1
AIM_RATIO, MUST_RATIO = 0.5, 0.7
RSS_GROWTH_MIB_MAX = 4.0
"""What the resident size may grow in the second half of a --check run (a guess)."""


@attrs.frozen
class Keys:
    """Certificates of the two ends, a and b, and their CA."""

    directory: Path
    credentials: dict


@contextlib.contextmanager
def certificates():
    with tempfile.TemporaryDirectory(prefix="plumtree-link-") as directory:
        ca = DevCa.create(Path(directory) / "certs", trust_domain="bench")
        made = {}
        for name in ("a", "b"):
            ca.issue(name)
            at = ca.directory
            quic = QuicConfig(at / f"{name}.crt", at / f"{name}.key", at / "ca.crt")
            made[name] = quic.credentials
        yield Keys(ca.directory, made)


class End:
    """One end of our link, without membership or trees: sends what it is asked to, and counts."""

    def __init__(self, credentials, packet_bytes, *, lanes=(Lane.DIRECT,), seed=1):
        record = build_record(
            node_id=credentials.node_id, epoch=1, incarnation=0, addresses=(), valid_until=1
        )
        self.endpoint = Endpoint(
            lambda: credentials,
            NetSettings(lane_window=WINDOW_BYTES, loopback=True, datagram_bytes_max=packet_bytes),
            rng=random.Random(seed),
            record=lambda: record,
            yours=lambda peer: None,
            wanted=lambda peer: True,
        )
        self.link = None
        self.lanes = lanes
        self.to_send = 0
        self.payload = b""
        self.key = member_key(credentials.node_id)
        self.sent = Counter()
        self.got = Counter()
        self.got_bytes = 0
        self.disordered = 0

    def take_events(self):
        for event in self.endpoint.poll():
            if isinstance(event, Received):
                self._on_received(event.message)
            elif isinstance(event, LinkUp):
                self.link = event.link

    def _on_received(self, message):
        if isinstance(message, Direct):
            lane, number, size = Lane.DIRECT, message.seq, len(message.payload)
        elif isinstance(message, Gossip | Repair):
            lane = Lane.GOSSIP if isinstance(message, Gossip) else Lane.SYNC
            number, size = message.bundle.first, message.bundle.body_bytes
        else:
            return
        self.got[lane] += 1
        self.disordered += number != self.got[lane]
        self.got_bytes += size

    def fill(self):
        """Queue as much as there is room for."""
        link = self.link
        if link is None or not self.to_send:
            return
        self.endpoint.link(link.peer)
        for lane in self.lanes:
            while self.to_send and link.room(lane) > 0:
                self.to_send -= 1
                self.sent[lane] += 1
                link.send(self._message(lane, self.sent[lane]))

    def _message(self, lane, number):
        if lane is Lane.DIRECT:
            return Direct(DirectKind.MESSAGE, number, self.payload)
        bundle = build_bundle(origin=self.key, epoch=1, first=number, messages=[("", self.payload)])
        return Gossip(1, bundle) if lane is Lane.GOSSIP else Repair(1, bundle)


class MemoryWire:
    """Two ends and the virtual time between them."""

    def __init__(self, a, b):
        self.ends = {("192.0.2.1", 1): a, ("192.0.2.2", 2): b}
        self.now = 1000.0
        a.endpoint.dial(("192.0.2.2", 2), None, self.now)
        self.run(lambda: a.link is not None and b.link is not None)
        self.run(None, settle_s=0.5)

    def run(self, done, *, settle_s=None):
        """Until done() holds, or for settle_s of virtual time."""
        end = None if settle_s is None else self.now + settle_s
        while not done() if end is None else self.now < end:
            moved = False
            for address, side in self.ends.items():
                deadline = side.endpoint.next_deadline()
                if deadline is not None and deadline <= self.now:
                    side.endpoint.advance(self.now)
                side.take_events()
                side.fill()
                for data, to in side.endpoint.transmit(self.now):
                    moved = True
                    self.ends[to].endpoint.receive(data, address, self.now)
            self.now += LATENCY_S
            if not moved:
                due = [side.endpoint.next_deadline() for side in self.ends.values()]
                self.now = max(self.now, min(each for each in due if each is not None))


class UdpWire:
    """Two ends over loopback UDP on the running loop, each with its own socket and timer."""

    def __init__(self, a, b):
        self.loop = asyncio.get_running_loop()
        self.ends = (a, b)
        self.sockets = {}
        self.timers = {}
        self.waiting = None
        self.done = None
        for side in self.ends:
            self.timers[side] = None
            self.sockets[side] = UdpSocket.bind(
                "127.0.0.1", 0, lambda datagrams, side=side: self._on_datagrams(side, datagrams)
            )
        a.endpoint.dial(self.sockets[b].address, None, self.loop.time())

    async def run(self, done):
        self.done, self.waiting = done, self.loop.create_future()
        for side in self.ends:
            self._turn(side)
        await asyncio.wait_for(self.waiting, 120)

    def _on_datagrams(self, side, datagrams):
        now = self.loop.time()
        for data, address in datagrams:
            side.endpoint.receive(data, address, now)
        self._turn(side)

    def _turn(self, side):
        now = self.loop.time()
        endpoint = side.endpoint
        deadline = endpoint.next_deadline()
        if deadline is not None and deadline <= now:
            endpoint.advance(now)
        side.take_events()
        side.fill()
        datagrams = endpoint.transmit(now)
        if datagrams:
            self.sockets[side].send(datagrams)
        if self.waiting is not None and not self.waiting.done() and self.done():
            self.waiting.set_result(None)
        self._arm(side)

    def _arm(self, side):
        deadline = side.endpoint.next_deadline()
        timer = self.timers[side]
        if timer is not None:
            if deadline is not None and self.loop.time() < timer.when() <= deadline:
                return
            timer.cancel()
            self.timers[side] = None
        if deadline is not None:
            self.timers[side] = self.loop.call_at(deadline, self._on_timer, side)

    def _on_timer(self, side):
        self.timers[side] = None
        self._turn(side)

    def close(self):
        for side in self.ends:
            if self.timers[side] is not None:
                self.timers[side].cancel()
            self.sockets[side].close()


@attrs.define
class Clock:
    """Wall and CPU time since it was made."""

    wall: float = attrs.field(factory=time.perf_counter)
    cpu: float = attrs.field(factory=time.process_time)

    def read(self):
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def figures(frames, frame_bytes, packets, wall_s, cpu_s):
    mib = frames * frame_bytes / (1 << 20)
    return {
        "frames": frames,
        "frame_bytes": frame_bytes,
        "packets": packets,
        "mib_per_s": round(mib / wall_s, 2),
        "cpu_ms_per_mib": round(cpu_s * 1000 / mib, 3),
        "cpu_us_per_frame": round(cpu_s * 1e6 / frames, 3),
    }


def ends(keys, packet_bytes, payload):
    a, b = (
        End(keys.credentials[name], packet_bytes, seed=number)
        for number, name in enumerate(("a", "b"))
    )
    a.payload = b.payload = payload
    return a, b


def packets_of(*sides):
    return sum(side.endpoint.counters.datagrams_out for side in sides)


def ours_in_memory(keys, packet_bytes, frames, frame_bytes):
    a, b = ends(keys, packet_bytes, bytes(frame_bytes))
    wire = MemoryWire(a, b)
    warm = int(frames * WARM_SHARE)
    a.to_send = warm
    wire.run(lambda: b.got[Lane.DIRECT] >= warm)
    before, clock = packets_of(a, b), Clock()
    a.to_send = frames
    wire.run(lambda: b.got[Lane.DIRECT] >= warm + frames)
    result = figures(frames, frame_bytes, packets_of(a, b) - before, *clock.read())
    assert b.disordered == 0
    return result


async def ours_over_udp(keys, packet_bytes, frames, frame_bytes):
    a, b = ends(keys, packet_bytes, bytes(frame_bytes))
    wire = UdpWire(a, b)
    try:
        await wire.run(lambda: a.link is not None and b.link is not None)
        warm = int(frames * WARM_SHARE)
        a.to_send = warm
        await wire.run(lambda: b.got[Lane.DIRECT] >= warm)
        before, clock = packets_of(a, b), Clock()
        a.to_send = frames
        await wire.run(lambda: b.got[Lane.DIRECT] >= warm + frames)
        result = figures(frames, frame_bytes, packets_of(a, b) - before, *clock.read())
        assert b.disordered == 0
    finally:
        wire.close()
    return result


async def plain_over_udp(keys, packet_bytes, frames, frame_bytes):
    """The usual way: serve(), connect(), a StreamWriter and a StreamReader."""

    def configuration(name, is_client):
        made = QuicConfiguration(
            is_client=is_client,
            alpn_protocols=["bench"],
            max_datagram_size=packet_bytes,
            max_data=WINDOW_BYTES,
            max_stream_data=WINDOW_BYTES,
            verify_mode=ssl.CERT_NONE,
        )
        made.load_cert_chain(keys.directory / f"{name}.crt", keys.directory / f"{name}.key")
        return made

    reading = asyncio.get_running_loop().create_future()
    server = await serve(
        "127.0.0.1",
        0,
        configuration=configuration("b", False),
        stream_handler=lambda reader, writer: reading.set_result(reader),
    )
    port = server._transport.get_extra_info("sockname")[1]
    packets = 0
    got = 0
    changed = asyncio.Event()
    small = frame_bytes < BULK_BYTES

    async def receive(reader):
        nonlocal got
        while True:
            if small:
                # Framed, as ours are: a length and a body.
                size = int.from_bytes(await reader.readexactly(2), "big")
                await reader.readexactly(size)
                got += 2 + size
            else:
                got += len(await reader.read(65_536))
            changed.set()

    async def send(writer, count):
        nonlocal sent
        frame = frame_bytes.to_bytes(2, "big") + bytes(frame_bytes) if small else bytes(frame_bytes)
        for _ in range(count):
            writer.write(frame)
            sent += len(frame)
            # Its drain() never waits: without this bound it would buffer everything.
            while sent - got > WINDOW_BYTES:
                changed.clear()
                await changed.wait()
        while got < sent:
            changed.clear()
            await changed.wait()

    sent = 0
    async with asyncio.timeout(120):
        async with connect("127.0.0.1", port, configuration=configuration("a", True)) as client:
            transports = [client._transport, server._transport]
            for transport in transports:
                original = transport.sendto

                def counted(data, addr, original=original):
                    nonlocal packets
                    packets += 1
                    original(data, addr)

                with contextlib.suppress(AttributeError):
                    transport.sendto = counted
            _, writer = await client.create_stream(is_unidirectional=True)
            # An empty frame opens the stream at the other end.
            writer.write(b"\0\0")
            sent += 2
            task = asyncio.create_task(receive(await reading))
            warm = max(1, int(frames * WARM_SHARE))
            await send(writer, warm)
            before, clock = packets, Clock()
            await send(writer, frames)
            result = figures(frames, frame_bytes, packets - before, *clock.read())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    server.close()
    return result


# --- both directions full ---


def rss_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def soak(keys, seconds, packet_bytes=1_452, *, clock=time.monotonic):
    """Both directions of three lanes full for so long, in memory: what came, in order, memory.

    Memory is looked at in the second half: resident size, and what the links themselves hold.
    """
    lanes = (Lane.GOSSIP, Lane.SYNC, Lane.DIRECT)
    a, b = (
        End(keys.credentials[name], packet_bytes, lanes=lanes, seed=number)
        for number, name in enumerate(("a", "b"))
    )
    a.payload = b.payload = bytes(1_000)
    wire = MemoryWire(a, b)
    a.to_send = b.to_send = 1 << 60
    began = clock()
    held, sizes, objects = [], [], []
    rounds = 0
    while clock() - began < seconds:
        target = a.got_bytes + b.got_bytes + (1 << 20)
        wire.run(lambda target=target: a.got_bytes + b.got_bytes >= target)
        rounds += 1
        held.append(max(side.link.unacknowledged() for side in (a, b)))
        sizes.append(rss_mib())
        if rounds % 8 == 0:
            objects.append(len(gc.get_objects()))
    for side in (a, b):
        side.to_send = 0
    wire.run(lambda: a.got.total() == b.sent.total() and b.got.total() == a.sent.total())
    half = len(sizes) // 2
    return {
        "seconds": round(clock() - began, 1),
        "mib": round((a.got_bytes + b.got_bytes) / (1 << 20), 1),
        "frames": a.got.total() + b.got.total(),
        "frames_by_lane": {lane.name: a.got[lane] + b.got[lane] for lane in lanes},
        "disordered": a.disordered + b.disordered,
        "held_bytes_max": max(held),
        "rss_mib_first": round(sizes[0], 1),
        "rss_mib_last": round(sizes[-1], 1),
        "rss_mib_growth_second_half": round(max(sizes[half:]) - max(sizes[: half + 1]), 2),
        "objects_growth": (objects[-1] - objects[len(objects) // 2]) if objects else 0,
        "lanes_full": min(a.got[lane] for lane in lanes) > 0,
    }


def verdict(result):
    """What is wrong with a soak, as a list of sentences."""
    wrong = []
    if result["disordered"]:
        wrong.append(f"{result['disordered']} frames out of order")
    if result["rss_mib_growth_second_half"] > RSS_GROWTH_MIB_MAX:
        wrong.append(f"memory grew by {result['rss_mib_growth_second_half']} MiB")
    if not result["lanes_full"]:
        wrong.append("a lane starved")
    if result["held_bytes_max"] > 4 * WINDOW_BYTES:
        wrong.append(f"a link held {result['held_bytes_max']} bytes")
    return wrong


# --- the table ---


def best(runs):
    return min(runs, key=lambda run: run["cpu_us_per_frame"])


def compare(keys, packet_bytes, frames, frame_bytes, repeat):
    runs = {"ours_in_memory": [], "ours_over_udp": [], "plain_over_udp": []}
    for _ in range(repeat):
        arguments = (keys, packet_bytes, frames, frame_bytes)
        for name, run in (("plain_over_udp", plain_over_udp), ("ours_over_udp", ours_over_udp)):
            runs[name].append(asyncio.run(run(*arguments)))
        runs["ours_in_memory"].append(ours_in_memory(*arguments))
    result = {name: best(each) for name, each in runs.items()}
    ours, plain = result["ours_over_udp"], result["plain_over_udp"]
    return {
        "packet_bytes": packet_bytes,
        "frame_bytes": frame_bytes,
        **result,
        "cpu_ratio": round(ours["cpu_us_per_frame"] / plain["cpu_us_per_frame"], 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=16.0, help="per run of large frames")
    parser.add_argument("--frames", type=int, default=30_000, help="per run of small frames")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--packet", type=int, action="append", help="UDP payload; may be repeated")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, help="both directions full for so long")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a figure is missed")
    options = parser.parse_args()
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with certificates() as keys:
        if options.seconds:
            result = soak(keys, options.seconds)
            wrong = verdict(result)
            print(json.dumps({"started": started, **result, "wrong": wrong}))
            return 1 if options.check and wrong else 0
        rows = []
        for packet_bytes in options.packet or (1_452, 16_000):
            for frames, frame_bytes in (
                (int(options.mib * (1 << 20) / BULK_BYTES), BULK_BYTES),
                (options.frames, SMALL_BYTES),
            ):
                rows.append(compare(keys, packet_bytes, frames, frame_bytes, options.repeat))
                if not options.json:
                    show(rows[-1])
    missed = [row for row in rows if row["frame_bytes"] == BULK_BYTES]
    missed = [row for row in missed if row["cpu_ratio"] > MUST_RATIO]
    if options.json:
        print(json.dumps({"started": started, "rows": rows, "must": MUST_RATIO, "aim": AIM_RATIO}))
    return 1 if options.check and missed else 0


def show(row):
    print(f"packets of {row['packet_bytes']:,} bytes, frames of {row['frame_bytes']:,}")
    for name in ("ours_in_memory", "ours_over_udp", "plain_over_udp"):
        each = row[name]
        print(
            f"  {name:<15} {each['mib_per_s']:>7.1f} MiB/s  {each['cpu_ms_per_mib']:>8.1f} ms "
            f"CPU/MiB  {each['cpu_us_per_frame']:>8.1f} us/frame  {each['packets']:>7,} packets"
        )
    print(f"  ours / plain over UDP: {row['cpu_ratio']:.2f} of its CPU", flush=True)


if __name__ == "__main__":
    sys.exit(main())
