"""Running nodes with a store: who was away, who comes late, who is slow, and who acknowledges."""

import asyncio
import datetime
import sqlite3
from functools import partial

import pytest

from plumtree_quic import (
    ConfigError,
    HealthStatus,
    LocalProtocolError,
    MemoryStore,
    Node,
    NodeClosed,
    PlumtreeConfig,
    QuicConfig,
    SqliteStore,
    StoreError,
    ledger,
)
from plumtree_quic.ids import member_key
from plumtree_quic.proto.core import Core
from tests.rigs.pki import Pki
from tests.rigs.store import Faulty
from tests.rigs.waiting import WAIT_S, linked, until

# What is older than this can be served by a store alone.
SHORT = PlumtreeConfig.lan(message_cache_ttl=0.1)


@pytest.fixture(scope="module")
def pki():
    return Pki("test")


def node(pki, name, store=None, config=SHORT):
    cert = pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    return Node(quic, config, listen="127.0.0.1:0", store=store)


async def read(subscription, count):
    got = []
    if count:
        async with asyncio.timeout(WAIT_S):
            async for message in subscription:
                got.append(message)
                if len(got) == count:
                    break
    return got


def texts(messages):
    return [int(each.payload) for each in messages]


async def publish(origin, *numbers, topic="t"):
    for number in numbers:
        await origin.broadcast(b"%d" % number, topic=topic)
        await asyncio.sleep(0)


async def forgotten(origin):
    """The cache has let everything go."""
    await until(lambda: origin.stats()["cache_messages"] == 0)


async def test_who_was_away_is_given_what_only_stores_still_hold(pki):
    store = MemoryStore()
    async with node(pki, "a", MemoryStore()) as a:
        async with node(pki, "b", store) as b, b.subscribe() as messages:
            await b.join([a.address])
            await linked([a, b])
            await publish(a, 1, 2)
            assert texts(await read(messages, 2)) == [1, 2]
        await publish(a, *range(3, 303))
        await forgotten(a)
        async with node(pki, "b", store) as b, b.subscribe() as messages:
            await b.join([a.address])
            assert sorted(texts(await read(messages, 300))) == list(range(3, 303))
            assert messages.pending == 0
        assert a.stats()["repairs_from_store"] > 0


async def test_what_it_costs_to_handle_what_others_serve_is_measured_and_nothing_else(
    pki, monkeypatch
):
    spent = []
    monkeypatch.setattr(Core, "repaired", lambda _, spent_s: spent.append(spent_s))
    store = MemoryStore()
    async with node(pki, "a", MemoryStore()) as a:
        async with node(pki, "b", store) as b, b.subscribe() as messages:
            await b.join([a.address])
            await linked([a, b])
            await publish(a, 1, 2)
            await read(messages, 2)
        assert spent == []
        await publish(a, *range(3, 303))
        await forgotten(a)
        async with node(pki, "b", store) as b, b.subscribe() as messages:
            await b.join([a.address])
            await read(messages, 300)
        assert spent
        assert min(spent) > 0


async def test_who_joins_late_is_given_history_only_where_it_is_asked_for(pki):
    async with node(pki, "a", MemoryStore()) as a:
        await publish(a, 1, 2, 3)
        await forgotten(a)
        async with node(pki, "b", MemoryStore()) as b:
            await b.join([a.address])
            await linked([a, b])
            async with b.subscribe() as live, b.subscribe("t", since=0) as replay:
                assert sorted(texts(await read(replay, 3))) == [1, 2, 3]
                await publish(a, 4)
                assert texts(await read(live, 1)) == [4]
                assert texts(await read(replay, 1)) == [4]
            # It has them now, for the next who asks, and for others.
            async with b.subscribe(since=0) as again:
                assert sorted(texts(await read(again, 4))) == [1, 2, 3, 4]


async def test_since_is_a_time_of_the_origin(pki):
    async with node(pki, "a", MemoryStore()) as a:
        await publish(a, 1)
        await asyncio.sleep(0.02)
        between = datetime.datetime.now(datetime.UTC)
        await asyncio.sleep(0.02)
        await publish(a, 2)
        async with a.subscribe(own=True, since=between) as messages:
            assert texts(await read(messages, 1)) == [2]
        async with a.subscribe(own=True, since=between.timestamp()) as messages:
            assert texts(await read(messages, 1)) == [2]
        with pytest.raises(ConfigError, match="a time without a zone"):
            a.subscribe(since=between.replace(tzinfo=None))
        with pytest.raises(ConfigError, match="seconds since 1970"):
            a.subscribe(since=-1)


@pytest.mark.parametrize("order", ["unordered", "fifo"])
async def test_a_slow_reader_that_waits_loses_nothing_and_keeps_nothing_in_memory(pki, order):
    async with node(pki, "a", MemoryStore()) as a, node(pki, "b", MemoryStore()) as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe(order=order, when_full="wait", buffer=10) as messages:
            await publish(a, *range(500))
            await until(lambda: b.stats()["messages_delivered"] == 500)
            assert messages.pending <= 1_024
            assert texts(await read(messages, 500)) == list(range(500))
            await publish(a, 500)
            assert texts(await read(messages, 1)) == [500]


async def test_a_reader_that_the_store_cannot_wait_for_is_told(pki):
    store = MemoryStore(messages_max=50)
    async with node(pki, "a") as a, node(pki, "b", store) as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe(when_full="wait", buffer=10) as messages:
            await publish(a, *range(200))
            await until(lambda: b.stats()["messages_delivered"] == 200)
            with pytest.raises(LocalProtocolError, match="the store let up to"):
                await read(messages, 200)
        async with b.subscribe(when_full="wait") as messages:
            await publish(a, 200)
            assert texts(await read(messages, 1)) == [200]


async def test_what_was_not_acknowledged_comes_again_marked_and_nothing_else(pki):
    store = MemoryStore()
    async with node(pki, "a", MemoryStore()) as a:
        async with node(pki, "b", store) as b:
            await b.join([a.address])
            await linked([a, b])
            async with b.subscribe("t", ack="manual") as messages:
                await publish(a, 1, 2, 3, 4)
                got = await read(messages, 4)
                assert not any(each.redelivered for each in got)
                for each in got[::2]:
                    await each.ack()
                with pytest.raises(LocalProtocolError, match="is open"):
                    b.subscribe(ack="manual")
                with pytest.raises(LocalProtocolError, match="is open"):
                    b.forget_reader("default")
            async with b.subscribe("t", ack="manual") as messages:
                await publish(a, 5)
                got = await read(messages, 3)
                assert texts(got) == [2, 4, 5]
                assert [each.redelivered for each in got] == [True, True, False]
                await got[0].ack()
        async with node(pki, "b", store) as b, b.subscribe("t", ack="manual") as messages:
            got = await read(messages, 2)
            assert texts(got) == [4, 5]
            assert all(each.redelivered for each in got)
            for each in got:
                await each.ack()
        async with node(pki, "b", store) as b, b.subscribe("t", ack="manual") as messages:
            await b.join([a.address])
            await linked([a, b])
            await publish(a, 6)
            assert texts(await read(messages, 1)) == [6]


async def test_a_reader_of_another_name_has_a_place_of_its_own(pki):
    async with node(pki, "a", MemoryStore()) as a, node(pki, "b", MemoryStore()) as b:
        await b.join([a.address])
        await linked([a, b])
        async with (
            b.subscribe("t", ack="manual", name="one") as one,
            b.subscribe("t", ack="manual", name="two", order="fifo") as two,
        ):
            await publish(a, 1, 2)
            for each in await read(one, 2):
                await each.ack()
            await (await read(two, 2))[0].ack()
        async with b.subscribe("t", ack="manual", name="two") as two:
            assert texts(await read(two, 1)) == [2]
        b.forget_reader("two")
        async with b.subscribe("t", ack="manual", name="two") as two:
            await publish(a, 3)
            assert texts(await read(two, 1)) == [3]


async def test_other_topics_need_no_acknowledgement(pki):
    async with node(pki, "a", MemoryStore()) as a, node(pki, "b", MemoryStore()) as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe("t", ack="manual") as messages:
            await publish(a, *range(5), topic="other")
            await publish(a, 7)
            (message,) = await read(messages, 1)
            await message.ack()
        state = b._store.reader("default")
        assert state.acked == ((state.start, state.start + 5),)


async def test_only_a_manual_subscription_can_acknowledge(pki):
    async with node(pki, "a") as a, a.subscribe(own=True) as messages:
        await publish(a, 1)
        (message,) = await read(messages, 1)
        with pytest.raises(LocalProtocolError, match='ack="manual"'):
            message.ack()


async def test_own_broadcasts_are_read_by_who_asks_for_them_alone(pki):
    async with node(pki, "a", MemoryStore()) as a:
        await publish(a, 1, 2)
        async with a.subscribe(own=True, since=0) as mine, a.subscribe(since=0) as others:
            assert texts(await read(mine, 2)) == [1, 2]
            assert others.pending == 0
        assert a.stats()["messages_delivered"] == 0


async def test_an_ordered_reader_of_the_store_waits_for_nothing_that_it_has(pki):
    store = MemoryStore()
    async with node(pki, "a", MemoryStore()) as a, node(pki, "b", store) as b:
        await b.join([a.address])
        await linked([a, b])
        await publish(a, 1)
        await until(lambda: b.stats()["messages_delivered"] == 1)
        bundles = {each.bundle.first: each for each in store._order}
        assert list(bundles) == [1]
        async with b.subscribe(order="fifo", when_full="wait", gap_timeout=60.0) as messages:
            # Number 2 was refused, so nobody is given it, and 3 is next.
            b._driver.core.broadcasts._streams[member_key(a.id), a._driver.epoch].seen.add(2, 2)
            a._driver._next_seq = 3
            await publish(a, 3)
            assert texts(await read(messages, 1)) == [3]


async def test_a_disk_that_is_behind_holds_links_and_broadcasts_back(pki, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "WAITING_BYTES_MAX", 20_000)
    broken = []

    class Full(Faulty):
        @staticmethod
        def hook(when, statement):
            if broken and when == "before" and "INSERT INTO bundles" in statement:
                raise sqlite3.OperationalError("database or disk is full")

    store = SqliteStore(tmp_path / "b.db", connect=partial(sqlite3.connect, factory=Full))
    async with node(pki, "a", config=PlumtreeConfig.lan()) as a, node(pki, "b", store) as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe() as messages:
            broken.append(True)
            for number in range(200):
                await a.broadcast(b"%01000d" % number)
            await until(lambda: b.stats()["store_full"])
            assert not b._driver.egress_open
            assert messages.pending == 0
            await until(lambda: store.failing)
            assert b.health().status is HealthStatus.UNHEALTHY
            assert any("disk is full" in reason for reason in b.health().reasons)
            with pytest.raises(StoreError, match="disk is full"):
                await b.broadcast(b"x")
            # As if it had not failed yet, and were only slow.
            monkeypatch.setattr(store, "failing", "")
            with pytest.raises(TimeoutError, match="nothing was sent"):
                await b.broadcast(b"x", timeout=0.01)
            monkeypatch.setattr(b._driver, "_is_full", False)
            with pytest.raises(TimeoutError, match="message 1 is on its way, and not yet in the"):
                await b.broadcast(b"1", timeout=0.01)
            broken.clear()
            assert texts(await read(messages, 200)) == list(range(200))
            assert (await b.broadcast(b"x")).id.seq == 2
            assert b.stats()["messages_delivered"] == 200


async def test_a_restart_from_the_disk_brings_back_what_was_accepted(pki, tmp_path):
    async with node(pki, "a", SqliteStore(tmp_path / "a.db")) as a:
        accepted = [(await a.broadcast(b"%d" % number, topic="t")).id for number in range(10)]
    async with node(pki, "a", SqliteStore(tmp_path / "a.db")) as a, node(pki, "b") as b:
        async with b.subscribe() as messages:
            await b.join([a.address])
            # Nobody was there to take them: they are from before the time of b.
            await linked([a, b])
            new = await a.broadcast(b"10", topic="t")
            assert new.id.epoch > accepted[0].epoch
            assert new.id.seq == 1
            assert texts(await read(messages, 1)) == [10]
        async with a.subscribe(own=True, since=0) as messages:
            assert [each.id for each in await read(messages, 11)] == [*accepted, new.id]


async def test_a_store_that_cannot_be_opened_starts_no_node(pki, tmp_path):
    (tmp_path / "b.db").write_bytes(b"x" * 10_000)
    with pytest.raises(StoreError, match=r"b\.db"):
        async with node(pki, "b", SqliteStore(tmp_path / "b.db")):
            pass


async def test_an_acknowledgement_of_a_node_that_has_ended_or_a_reader_that_is_forgotten(pki):
    async with node(pki, "a", MemoryStore()) as a, node(pki, "b", MemoryStore()) as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe("t", ack="manual") as messages:
            await publish(a, 1, 2)
            first, second = await read(messages, 2)
        b.forget_reader("default")
        await first.ack()
    with pytest.raises(NodeClosed):
        second.ack()


async def test_who_awaits_what_cannot_become_safe_any_more_is_told(pki, tmp_path, monkeypatch):
    monkeypatch.setattr("plumtree_quic.store.sqlite.CLOSE_S", 0.1)
    broken = []

    class Full(Faulty):
        @staticmethod
        def hook(when, statement):
            if broken and when == "before" and "BEGIN" in statement:
                raise sqlite3.OperationalError("database or disk is full")

    store = SqliteStore(tmp_path / "b.db", connect=partial(sqlite3.connect, factory=Full))
    async with node(pki, "a") as a, node(pki, "b", store) as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe("t", ack="manual") as messages:
            await publish(a, 1)
            (message,) = await read(messages, 1)
            broken.append(True)
            waiting = message.ack()
        await b.shutdown()
        with pytest.raises(NodeClosed, match="the node was shut down before that was in its store"):
            await waiting


async def test_a_node_that_cannot_start_leaves_its_store_to_others(pki, tmp_path):
    path = tmp_path / "a.db"
    (tmp_path / "state").write_text("no directory")
    cert = pki.node("a")
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    with pytest.raises(ConfigError, match="state_dir"):
        async with Node(
            quic, listen="127.0.0.1:0", store=SqliteStore(path), state_dir=tmp_path / "state"
        ):
            pass
    async with node(pki, "a", SqliteStore(path)):
        pass


async def test_what_was_acknowledged_and_let_go_is_missed_by_nobody(pki):
    store = MemoryStore(messages_max=10)
    async with node(pki, "a", MemoryStore()) as a, node(pki, "b", store) as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe("t", ack="manual") as messages:
            for number in range(30):
                await publish(a, number)
                (message,) = await read(messages, 1)
                await message.ack()
        assert b.stats()["store_evicted"] >= 20
        async with b.subscribe("t", ack="manual") as messages:
            await publish(a, 30)
            assert texts(await read(messages, 1)) == [30]
        assert b.stats()["store_unacked_evicted"] == 0
