"""Ordered subscriptions on running nodes: order, gaps, and what a reader that goes still gets."""

import asyncio

import pytest

from plumtree_quic import ConfigError, Gap, Message, Node, PlumtreeConfig, QuicConfig, wire
from plumtree_quic.ids import member_key
from plumtree_quic.store.contract import Kept
from tests.rigs.pki import Pki
from tests.rigs.waiting import WAIT_S, linked


@pytest.fixture(scope="module")
def pki():
    return Pki("test")


def node(pki, name):
    cert = pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    return Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0")


async def read(subscription, count):
    got = []
    async with asyncio.timeout(WAIT_S):
        async for item in subscription:
            got.append((item.first, item.last) if isinstance(item, Gap) else item.seq)
            if len(got) == count:
                break
    return got


def come(to, origin, *seqs, topic="t", epoch=1):
    """As if the core had delivered these messages of `origin`, in this order."""
    for seq in seqs:
        bundle = wire.build_bundle(
            origin=member_key(origin.id), epoch=epoch, first=seq, messages=[(topic, b"x")]
        )
        to._deliver(Kept(0, bundle, 1, origin.id))


async def test_each_senders_messages_are_read_in_the_order_in_which_they_were_sent(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe("t", order="fifo") as messages:
            sent = [(await a.broadcast(b"%d" % n, topic="t")).id for n in range(500)]
            got = []
            async with asyncio.timeout(WAIT_S):
                async for message in messages:
                    assert isinstance(message, Message)
                    got.append(message.id)
                    if len(got) == len(sent):
                        break
            assert got == sent
            assert messages.held == 0


async def test_what_comes_before_its_turn_is_held_back(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe(order="fifo") as messages:
            come(b, a, 1, 4, 3)
            assert (messages.pending, messages.held) == (1, 2)
            come(b, a, 2)
            assert await read(messages, 4) == [1, 2, 3, 4]


async def test_what_does_not_come_in_time_is_a_gap_at_its_place(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe(order="fifo", gap_timeout=0.2) as messages:
            come(b, a, 1, 4)
            assert await read(messages, 3) == [1, (2, 3), 4]
            come(b, a, 2, 5, 8)
            assert await read(messages, 1) == [5]
            stats = b.stats()
            counts = [stats[f"order_{name}"] for name in ("gaps", "late", "held")]
            assert counts == [messages.gaps, messages.late, messages.held] == [1, 1, 1]
        # What was held back when it ended came with its gap.
        stats = b.stats()
        assert [stats[f"order_{name}"] for name in ("gaps", "late", "held")] == [2, 1, 0]


async def test_messages_of_other_topics_are_no_gaps(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe("t", order="fifo") as messages:
            come(b, a, 1)
            come(b, a, 2, 3, topic="other")
            come(b, a, 4)
            assert await read(messages, 2) == [1, 4]


async def test_a_reader_that_comes_later_waits_for_nothing_that_was_before_it(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.join([a.address])
        await linked([a, b])
        async with b.subscribe() as early:
            for _ in range(3):
                await a.broadcast(b"before")
            await read(early, 3)
        async with b.subscribe(order="fifo") as late:
            await a.broadcast(b"after")
            assert await read(late, 1) == [4]


async def test_our_own_messages_are_in_order_too(pki):
    async with node(pki, "a") as a, a.subscribe("t", own=True, order="fifo") as messages:
        await a.broadcast(b"elsewhere", topic="other")
        for _ in range(2):
            await a.broadcast(b"here", topic="t")
        assert await read(messages, 2) == [2, 3]


async def test_a_subscription_that_is_closed_gives_what_it_held_with_its_gaps(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.join([a.address])
        await linked([a, b])
        messages = b.subscribe(order="fifo")
        come(b, a, 1, 3)
        messages.close()
        assert await read(messages, 4) == [1, (2, 2), 3]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"order": "total"}, "order='total': must be"),
        ({"gap_timeout": 1.0}, "nothing else waits for a gap"),
        ({"order": "fifo", "gap_timeout": -1.0}, "gap_timeout=-1.0"),
        ({"order": "fifo", "gap_timeout": float("nan")}, "gap_timeout=nan"),
        ({"order": "fifo", "buffer": 0}, "buffer=0"),
    ],
)
async def test_what_cannot_be_is_refused_with_what_can(pki, options, says):
    async with node(pki, "a") as a:
        with pytest.raises(ConfigError, match=says):
            a.subscribe(**options)
