"""Where the work is done, by counting calls. No clock: these hold on any machine."""

import asyncio
import socket
from collections import Counter

from plumtree_quic import Delegate, wire
from plumtree_quic.net import udp
from plumtree_quic.net.endpoint import Endpoint
from plumtree_quic.net.engine import AioquicEngine
from tests.node.test_node import cluster, collect, node
from tests.rigs.waiting import WAIT_S


def counted(monkeypatch, owner, name, calls, key=None):
    """Count calls of owner.name in `calls`, under its name or what `key(*args)` says."""
    real = getattr(owner, name)

    def counting(*args, **kwargs):
        calls[name if key is None else key(*args)] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)


async def delivered(nodes, count):
    """Wait until all have so many; return how many timers the waiting took."""
    timers = 0
    async with asyncio.timeout(WAIT_S):
        timers += 1
        for each in nodes:
            while each.stats()["messages_delivered"] < count:
                await asyncio.sleep(0.005)
                timers += 1
    return timers


async def test_each_bundle_is_built_once_however_many_nodes_get_it(pki, monkeypatch):
    calls = Counter()
    async with cluster(pki, "abcde") as nodes:
        counted(monkeypatch, wire, "build_bundle", calls)
        for number in range(50):
            await nodes[0].broadcast(b"%d" % number)
            await asyncio.sleep(0)
        await delivered(nodes[1:], 50)
        assert calls["build_bundle"] == nodes[0].stats()["bundles_built"]
        assert [each.stats()["bundles_built"] for each in nodes[1:]] == [0, 0, 0, 0]


async def test_a_relay_opens_nothing_when_nobody_listens(pki, monkeypatch):
    calls = Counter()
    # A delegate that does not hear messages needs none either.
    async with cluster(pki, "abcde", delegates={"c": Delegate()}) as nodes:
        counted(monkeypatch, wire, "open_bundle", calls)
        for number in range(50):
            await nodes[0].broadcast(b"%d" % number)
        await delivered(nodes[1:], 50)
        assert not calls


async def test_a_bundle_is_opened_once_for_all_listeners_of_a_node(pki, monkeypatch):
    calls = Counter()
    async with cluster(pki, "ab") as (a, b):
        subscriptions = [b.subscribe() for _ in range(3)]
        counted(monkeypatch, wire, "open_bundle", calls)
        for number in range(50):
            await a.broadcast(b"%d" % number)
        for subscription in subscriptions:
            await collect(subscription, 50)
        assert calls["open_bundle"] == b.stats()["bundles_delivered"]


async def test_a_message_costs_no_task_and_no_timer(pki, monkeypatch):
    calls = Counter()
    async with cluster(pki, "abc") as nodes:
        # The tree's first bundle waits for its prunes; what follows is the steady state.
        await nodes[0].broadcast(b"first")
        await delivered(nodes[1:], 1)
        await asyncio.sleep(0.3)
        loop = asyncio.get_running_loop()
        for name in ("create_task", "call_at"):
            counted(monkeypatch, loop, name, calls)
        turns = sum(each.stats()["turns"] for each in nodes)
        for number in range(2_000):
            await nodes[0].broadcast(b"%d" % number)
        ours = await delivered(nodes[1:], 2_001)
        turns = sum(each.stats()["turns"] for each in nodes) - turns
        assert calls["create_task"] == 0
        # One a turn at most. A busy machine makes this test itself wait for longer.
        assert calls["call_at"] - ours < 1_000
        assert turns < 1_000


async def test_a_turn_transmits_once_and_asks_each_touched_link_once(pki, monkeypatch):
    calls, turn, sent = Counter(), [0], Counter()
    async with cluster(pki, "abcd") as nodes:
        driver = nodes[0]._driver
        real = driver._turn

        def counting_turn():
            turn[0] += 1
            real()

        monkeypatch.setattr(driver, "_turn", counting_turn)
        mine = {link.engine for link in driver._endpoint.links()}
        counted(monkeypatch, Endpoint, "transmit", calls, lambda self, _: (id(self), turn[0]))
        counted(
            monkeypatch, AioquicEngine, "datagrams_to_send", sent, lambda self, _: (self, turn[0])
        )
        before = driver.counters.turns
        for number in range(200):
            await nodes[0].broadcast(b"%d" % number * 20)
            if number % 10 == 0:
                await asyncio.sleep(0)
        await delivered(nodes[1:], 200)
        ours = {key: count for key, count in calls.items() if key[0] == id(driver._endpoint)}
        assert set(ours.values()) == {1}
        assert len(ours) <= driver.counters.turns - before
        touched = [count for (engine, _), count in sent.items() if engine in mine]
        # A second time only to let a queued probe out behind the first.
        assert touched
        assert max(touched) <= 2
        assert sum(touched) <= 1.2 * len(touched)


async def test_many_broadcasts_of_one_iteration_are_one_turn(pki):
    async with cluster(pki, "ab") as (a, b):
        await a.broadcast(b"first")
        await delivered([b], 1)
        await asyncio.sleep(0.3)
        before = a.stats()["bundles_built"]
        await asyncio.gather(*(a.broadcast(b"%d" % number) for number in range(300)))
        await delivered([b], 301)
        assert a.stats()["bundles_built"] == before + 1


async def test_the_socket_is_drained_before_the_core_is_asked(pki, monkeypatch):
    order = []
    async with node(pki, "a") as a:
        driver = a._driver
        await asyncio.sleep(0.05)
        real_receive, real_decide = driver._endpoint.receive, driver._decide
        monkeypatch.setattr(
            driver._endpoint, "receive", lambda *args: (order.append("in"), real_receive(*args))
        )
        monkeypatch.setattr(
            driver, "_decide", lambda now: (order.append("decide"), real_decide(now))
        )
        host, port = driver._socket.address
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(udp.DATAGRAMS_PER_WAKE_UP + 6):
                stranger.sendto(b"\x40" + bytes(40), (host, port))
            async with asyncio.timeout(WAIT_S):
                while order.count("in") < udp.DATAGRAMS_PER_WAKE_UP + 6:
                    await asyncio.sleep(0)
        runs = "".join("i" if each == "in" else "d" for each in order).lstrip("d")
        assert runs.startswith("i" * udp.DATAGRAMS_PER_WAKE_UP + "d")
