"""A UDP relay between real node processes: loses, delays, reorders, repeats, replays and cuts.

Each node has one relay address, which it advertises. What node A sends to the relay address of B
reaches B from the relay address of A, so that both only ever see relay addresses. Faults are drawn
from a seeded generator and can be changed while it runs. It knows nothing of what it carries.

Within a test: ``async with Relay(seed=1) as relay``. In a process of its own, told by JSON lines:
``python -m tests.rigs.relay --seed 1 --life 60``.
"""

import argparse
import asyncio
import contextlib
import json
import random
import socket
import sys
from collections import Counter, deque
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
DATAGRAMS_PER_WAKE_UP = 64
HELD_MAX = 50_000
REPLAY_MEMORY = 64
REPLAY_LATER_S = (0.2, 2.0)


@attrs.frozen(kw_only=True)
class Faults:
    """What happens to a datagram. Shares are probabilities; jitter (which reorders) comes on top.

    duplicate: sent twice. replay: an older datagram of the same pair is sent again, 0.2 to 2 s
    later.
    """

    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    duplicate: float = 0.0
    replay: float = 0.0


def free_port(host):
    """A UDP port of `host` that nobody has at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class Relay:
    """Relay addresses on the running loop. `counts` says what happened; `life_s` bounds it."""

    def __init__(self, *, seed, faults=None, life_s=120.0):
        self.faults = faults if faults is not None else Faults()
        self.counts = Counter()
        self._rng = random.Random(seed)
        self._life_s = life_s
        self._sockets = {}
        self._real = {}
        self._names = {}
        self._cuts = set()
        self._past = {}
        self._held = 0
        self._loop = None
        self._end = None

    async def __aenter__(self):
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.call_later(self._life_s, self.close)
        return self

    async def __aexit__(self, *_):
        self.close()

    def add(self, name, real):
        """Give the node `name`, bound to `real`, a relay address; return it as host:port."""
        host, _, port = real.rpartition(":")
        real = (host, int(port))
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        self._sockets[name], self._real[name], self._names[real] = sock, real, name
        self._loop.add_reader(sock.fileno(), self._on_readable, name, sock)
        return "{}:{}".format(*sock.getsockname())

    def cut(self, source, target):
        """Nothing that `source` sends reaches `target` any more: one way."""
        self._cuts.add((source, target))

    def part(self, some, others):
        """Nothing passes between these two groups any more: a partition."""
        for one in some:
            for other in others:
                self._cuts |= {(one, other), (other, one)}

    def heal(self):
        """Undo all cuts."""
        self._cuts.clear()

    def close(self):
        """Free the addresses; what is still on its way is lost."""
        if self._end is not None:
            self._end.cancel()
        for sock in self._sockets.values():
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    def _on_readable(self, target, sock):
        for _ in range(DATAGRAMS_PER_WAKE_UP):
            try:
                data, address = sock.recvfrom(65_535)
            except BlockingIOError:
                return
            except OSError:
                continue
            source = self._names.get(address)
            if source is None:
                self.counts["strangers"] += 1
                continue
            self._carry(source, target, data)

    def _carry(self, source, target, data):
        faults, rng = self.faults, self._rng
        self.counts["datagrams"] += 1
        if (source, target) in self._cuts:
            self.counts["cut"] += 1
            return
        past = self._past.setdefault((source, target), deque(maxlen=REPLAY_MEMORY))
        past.append(data)
        if rng.random() < faults.replay:
            self.counts["replayed"] += 1
            self._later(rng.uniform(*REPLAY_LATER_S), source, target, rng.choice(past))
        if rng.random() < faults.loss:
            self.counts["lost"] += 1
            return
        copies = 1 + (rng.random() < faults.duplicate)
        self.counts["duplicated"] += copies - 1
        for _ in range(copies):
            self._later(faults.delay_s + rng.uniform(0, faults.jitter_s), source, target, data)

    def _later(self, delay_s, source, target, data):
        if delay_s <= 0:
            self._send(source, target, data)
            return
        if self._held >= HELD_MAX:
            self.counts["overflowed"] += 1
            return
        self._held += 1
        self._loop.call_later(delay_s, self._send_held, source, target, data)

    def _send_held(self, source, target, data):
        self._held -= 1
        self._send(source, target, data)

    def _send(self, source, target, data):
        sock = self._sockets.get(source)
        if sock is None or (source, target) in self._cuts:
            return
        with contextlib.suppress(OSError):
            # A full or closed port loses it, as any network would.
            sock.sendto(data, self._real[target])


class RelayProcess:
    """A relay in a process of its own, so that a busy test does not hold up its datagrams."""

    def __init__(self, *, seed, life_s):
        self._arguments = ["--seed", str(seed), "--life", str(life_s)]
        # Answers come in the order of the orders.
        self._turn = asyncio.Lock()
        self.process = None

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.rigs.relay",
            *self._arguments,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def ask(self, op, **fields):
        """Give an order and return the answer. Raises ConnectionError when the relay has ended."""
        async with self._turn:
            self.process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
            await self.process.stdin.drain()
            line = await self.process.stdout.readline()
        if not line:
            raise ConnectionError("the relay has ended")
        return json.loads(line)

    async def __aexit__(self, *_):
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 10.0)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


async def serve(seed, life_s):
    """Obey JSON lines on standard input until it ends: add, faults, cut, part, heal, counts."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with Relay(seed=seed, life_s=life_s) as relay, asyncio.timeout(life_s):
        while line := await reader.readline():
            request = json.loads(line)
            answer = {"op": request["op"]}
            match request.pop("op"):
                case "add":
                    answer["address"] = relay.add(request["name"], request["real"])
                case "faults":
                    relay.faults = Faults(**request)
                case "cut":
                    relay.cut(request["source"], request["target"])
                case "part":
                    relay.part(request["some"], request["others"])
                case "heal":
                    relay.heal()
                case "counts":
                    answer["counts"] = dict(relay.counts)
            print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser(description="A UDP relay with faults.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--life", type=float, default=60.0, help="seconds after which it ends")
    options = parser.parse_args()
    with contextlib.suppress(TimeoutError):
        asyncio.run(serve(options.seed, options.life))


if __name__ == "__main__":
    main()
