"""An application that reads too slowly: what becomes of it is its own choice, and never silent."""

import asyncio
import logging

import pytest

from plumtree_quic import (
    ConfigError,
    LocalProtocolError,
    MemoryStore,
    Message,
    Node,
    PlumtreeConfig,
    QuicConfig,
    driver,
    wire,
)
from plumtree_quic.ids import member_key
from plumtree_quic.messages import Repair
from plumtree_quic.proto.effects import Send
from tests.rigs.pki import Pki
from tests.rigs.waiting import linked, until


@pytest.fixture(scope="module")
def pki():
    return Pki("test")


def node(pki, name="a"):
    cert = pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    return Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0")


def put(reader, *seqs, size=1):
    for seq in seqs:
        reader.put(Message(reader_id, 1, seq, "t", bytes(size), 1, 0.0))


reader_id = "spiffe://test/node/a"


async def read(reader, count):
    return [(await anext(reader)).seq for _ in range(count)]


async def test_it_is_ended_with_an_error_after_what_it_had_got(pki, caplog):
    async with node(pki) as a:
        reader = a.subscribe(buffer=2)
        put(reader, 1, 2, 3)
        assert await read(reader, 2) == [1, 2]
        with pytest.raises(
            LocalProtocolError, match="more than 2 messages, or 268435456 bytes, behind"
        ):
            await anext(reader)
        assert a.stats()["subscription_overflows"] == 1
        assert a.stats()["subscription_dropped"] == 0
    assert [each.event for each in caplog.records if hasattr(each, "event")].count(
        "subscription.overflow"
    ) == 1


@pytest.mark.parametrize(
    ("when_full", "left"), [("drop_oldest", [3, 4, 5]), ("drop_newest", [1, 2, 3])]
)
async def test_it_may_have_the_oldest_or_the_newest_dropped_counted_and_logged_once(
    pki, caplog, when_full, left
):
    caplog.set_level(logging.WARNING, "plumtree_quic")
    async with node(pki) as a:
        async with a.subscribe(buffer=3, when_full=when_full) as reader:
            put(reader, 1, 2, 3, 4, 5)
            assert reader.dropped == 2
            assert a.stats()["subscription_dropped"] == 2
            assert await read(reader, 3) == left
            put(reader, 6)
            assert await read(reader, 1) == [6]
        # Counted on when the reader has gone.
        assert a.stats()["subscription_dropped"] == 2
        assert a.stats()["subscription_overflows"] == 0
    told = [each for each in caplog.records if getattr(each, "event", "") == "subscription.dropped"]
    assert [each.dropped for each in told] == [1]


@pytest.mark.parametrize(
    ("when_full", "left"), [("drop_oldest", [4, 5]), ("drop_newest", [1, 2, 3, 5])]
)
async def test_bytes_are_bounded_as_well_as_messages(pki, when_full, left):
    async with node(pki) as a:
        async with a.subscribe(buffer_bytes=1_000, when_full=when_full) as reader:
            put(reader, 1, 2, 3, size=300)
            assert reader.dropped == 0
            put(reader, 4, size=900)
            put(reader, 5, size=100)
            assert reader.dropped == (3 if when_full == "drop_oldest" else 1)
            assert await read(reader, len(left)) == left
            # What is larger than all of the buffer has a place when nothing waits.
            put(reader, 6, size=5_000)
            assert await read(reader, 1) == [6]
        reader = a.subscribe(buffer_bytes=1_000)
        put(reader, 1, size=600)
        put(reader, 2, size=401)
        assert await read(reader, 1) == [1]
        with pytest.raises(LocalProtocolError, match="or 1000 bytes, behind"):
            await anext(reader)


async def test_a_reader_that_waits_is_given_no_more_bytes_than_its_buffer_takes(pki):
    cert = pki.node("a")
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    async with Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0", store=MemoryStore()) as a:
        reader = a.subscribe(own=True, buffer_bytes=100_000, when_full="wait")
        for number in range(20):
            await a.broadcast(bytes([number]) * 30_000)
        await until(lambda: reader.pending)
        for number in range(20):
            assert reader.pending <= 3
            assert (await anext(reader)).payload[0] == number


async def test_a_relay_is_held_up_by_no_reader(pki):
    async with node(pki) as a, a.subscribe(own=True, buffer=1, when_full="drop_newest") as reader:
        for _ in range(1_000):
            await a.broadcast(b"x")
        await asyncio.sleep(0)
        assert (reader.pending, reader.dropped) == (1, 999)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"when_full": "perhaps"}, "when_full='perhaps': must be one of"),
        ({"buffer": 0}, "buffer=0: must be"),
        ({"buffer_bytes": 0}, "buffer_bytes=0: must be"),
        ({"when_full": "wait"}, "this node has none: pass store="),
        ({"since": 0}, "this node has none"),
        ({"ack": "manual"}, "this node has none"),
        ({"ack": "never"}, "ack='never': must be"),
        ({"when_full": "drop_oldest", "order": "fifo"}, "no place for silent holes"),
    ],
)
async def test_what_cannot_be_is_refused(pki, options, says):
    async with node(pki) as a:
        with pytest.raises(ConfigError, match=says):
            a.subscribe(**options)


async def test_what_a_peer_asks_for_and_does_not_read_is_refused_and_counted(pki, monkeypatch):
    monkeypatch.setattr(driver, "REPAIR_BACKLOG_BYTES", -1)
    async with node(pki) as a, node(pki, "b") as b:
        await b.join([a.address])
        await linked([a, b])
        key = member_key(a.id)
        bundle = wire.build_bundle(origin=key, epoch=1, first=1, messages=[("t", b"x")])
        a._driver._perform([Send(b.id, Repair(1, bundle))], a._driver._loop.time())
        assert a.stats()["grafts_busy"] == 1
        await until(lambda: b.stats()["grafts_refused"] == 1)
