"""Real node processes behind a lossy relay: every node advertises the relay's address.

An acceptor sees the relay's address as the dialler's, too: links are by identity, not by address.
"""

import asyncio
import contextlib

from plumtree_quic.cli.cluster import Run, measure, swarm
from tests.rigs.relay import Faults, Relay, RelayProcess, free_port
from tests.rigs.waiting import ASIDE, WAIT_S

NO_PROGRESS = lambda delivered, expected, redundancy: None  # noqa: E731
NODES = 4


@contextlib.asynccontextmanager
async def relayed(*, seed, preset="default", faults=None, nodes=NODES):
    """(swarm, relay): nodes that reach one another through the relay alone, and have converged."""
    async with Relay(seed=seed, faults=faults, life_s=280.0) as relay, swarm(preset) as made:
        addresses = []
        for number in range(nodes):
            real = f"{ASIDE}:{free_port(ASIDE)}"
            addresses.append(relay.add(f"n{number}", real))
            await made.spawn(f"n{number}", listen=real, advertise=addresses[-1])
        for worker in made.workers:
            worker.tell("join", seeds=addresses[:2])
        await made.converge(nodes)
        yield made, relay


async def test_everything_arrives_at_ten_percent_loss_and_fifty_milliseconds():
    faults = Faults(loss=0.10, delay_s=0.05)
    async with relayed(seed=11, faults=faults) as (made, relay):
        run = Run(messages=300, size=512, publishers=2, rate=60.0)
        result = await measure(made, run, NO_PROGRESS)
        assert result["expected"] == 300 * (NODES - 1)
        assert result["delivered"] == result["expected"]
        assert result["duplicates"] == 0
        assert relay.counts["lost"] > 0.05 * relay.counts["datagrams"]
        assert relay.counts["strangers"] == 0
        assert not any(worker.latest("failed") for worker in made.workers)


async def test_nothing_is_delivered_twice_when_packets_are_repeated_replayed_and_reordered():
    faults = Faults(delay_s=0.002, jitter_s=0.02, duplicate=0.3, replay=0.3)
    async with relayed(seed=12, faults=faults) as (made, relay):
        run = Run(messages=600, size=256, publishers=2, rate=300.0)
        result = await measure(made, run, NO_PROGRESS)
        assert result["delivered"] == result["expected"]
        assert result["duplicates"] == 0
        assert relay.counts["duplicated"] > 0
        assert relay.counts["replayed"] > 0


async def test_a_one_way_cut_heals():
    async with relayed(seed=13) as (made, relay):
        publisher = made.workers[0]
        measuring = asyncio.create_task(
            measure(made, Run(messages=400, size=256, rate=50.0), NO_PROGRESS)
        )
        await asyncio.sleep(1.0)
        relay.cut("n0", "n1")
        await asyncio.sleep(4.0)
        relay.heal()
        result = await measuring
        assert result["delivered"] == result["expected"]
        assert result["duplicates"] == 0
        assert relay.counts["cut"] > 0
        await made.converge(NODES)
        again = Run(messages=100, size=256, rate=100.0)
        result = await measure(made, again, NO_PROGRESS, {publisher.node_id: 400})
        assert result["delivered"] == result["expected"]


async def test_the_relay_runs_in_a_process_of_its_own():
    loop = asyncio.get_running_loop()
    arrived = asyncio.Queue()

    class Keep(asyncio.DatagramProtocol):
        def datagram_received(self, data, addr):
            arrived.put_nowait((data, "{}:{}".format(*addr)))

    async def next_arrival():
        return await asyncio.wait_for(arrived.get(), WAIT_S)

    ends = [
        await loop.create_datagram_endpoint(Keep, local_addr=("127.0.0.1", 0)) for _ in range(2)
    ]
    real = ["{}:{}".format(*end.get_extra_info("sockname")) for end, _ in ends]
    async with RelayProcess(seed=1, life_s=WAIT_S) as relay:
        a, b = [
            (await relay.ask("add", name=name, real=each))["address"]
            for name, each in zip("ab", real, strict=True)
        ]

        def send(text, source, target):
            host, _, port = target.rpartition(":")
            ends[source][0].sendto(text, (host, int(port)))

        async def cut_so_far(count):
            while (await relay.ask("counts"))["counts"].get("cut", 0) < count:
                pass

        await relay.ask("faults", duplicate=1.0)
        send(b"hello", 0, b)
        assert [await next_arrival() for _ in range(2)] == [(b"hello", a)] * 2
        await relay.ask("faults")
        await relay.ask("cut", source="a", target="b")
        send(b"lost", 0, b)
        await cut_so_far(1)
        send(b"the other way", 1, a)
        assert await next_arrival() == (b"the other way", b)
        await relay.ask("heal")
        await relay.ask("part", some=["a"], others=["b"])
        send(b"lost", 0, b)
        send(b"lost", 1, a)
        await cut_so_far(3)
        await relay.ask("heal")
        send(b"together", 0, b)
        assert await next_arrival() == (b"together", a)
    for end, _ in ends:
        end.close()
    assert relay.process.returncode == 0
    assert arrived.empty()
