"""Ordered readers that are fed by a store: nothing that is still to come is taken for lost."""

import asyncio
import time
from functools import partial

import pytest

from plumtree_quic import Gap, MemoryStore, Node, PlumtreeConfig, QuicConfig, wire
from plumtree_quic.ids import member_key
from plumtree_quic.proto.effects import Deliver
from plumtree_quic.store.contract import Committed
from tests.rigs.pki import Pki
from tests.rigs.waiting import WAIT_S


@pytest.fixture(scope="module")
def pki():
    return Pki("test")


def node(pki, name, store=None):
    cert = pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    return Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0", store=store)


async def read(subscription, count):
    got = []
    async with asyncio.timeout(WAIT_S):
        async for item in subscription:
            got.append(item)
            if len(got) == count:
                break
    return got


class HeldStore(MemoryStore):
    """As a disk does, it says later what is safe, and answers later: when it is told to."""

    durable = True
    ticket = 0

    def put(self, *args, **options):
        self.ticket, at = super().put(*args, **options)
        self.answers = getattr(self, "answers", [])
        return self.ticket, at

    def commit(self):
        self._on_commit(Committed(self.ticket))

    def read_from(self, at, bytes_max, done):
        self.answers.append(partial(super().read_from, at, 1, done))

    def answer(self):
        self.answers.pop(0)()


def come(to, origin, *places):
    """As if the core had delivered (epoch, seq) of `origin`, in this order."""
    for epoch, seq in places:
        bundle = wire.build_bundle(
            origin=member_key(origin.id),
            epoch=epoch,
            first=seq,
            messages=[("t", b"x")],
            signed_at=time.time_ns() // 1_000_000,
        )
        to._driver._ledger.delivered(Deliver(bundle, 1, origin.id, False), origin.id)


def saw(node, origin, epoch, last):
    """As if the core had seen 1 .. last."""
    node._driver.core.recover((member_key(origin.id), epoch), ((1, last),), (), ())


def places(items):
    return [
        (each.epoch, each.first, each.last) if isinstance(each, Gap) else (each.epoch, each.seq)
        for each in items
    ]


async def test_an_ordered_reader_of_the_store_is_told_gaps_and_given_newer_epochs(pki):
    async with node(pki, "a") as a, node(pki, "b", MemoryStore()) as b:
        options = {"order": "fifo", "ack": "manual", "gap_timeout": 0.2}
        async with b.subscribe("t", **options) as messages:
            come(b, a, (1, 1), (1, 4))
            assert places(await read(messages, 3)) == [(1, 1), (1, 2, 3), (1, 4)]
            come(b, a, (2, 1))
            assert places(await read(messages, 1)) == [(2, 1)]


async def test_what_waits_for_the_disk_is_not_taken_for_lost(pki):
    store = HeldStore()
    async with (
        node(pki, "a") as a,
        node(pki, "b", store) as b,
        b.subscribe("t", order="fifo", ack="manual") as messages,
    ):
        come(b, a, (1, 1))
        store.commit()
        assert places(await read(messages, 1)) == [(1, 1)]
        come(b, a, (1, 3))
        store.commit()
        come(b, a, (1, 2))
        saw(b, a, 1, 3)
        b._settle()
        assert messages.pending == 0
        store.commit()
        assert places(await read(messages, 2)) == [(1, 2), (1, 3)]


async def test_what_is_still_to_be_read_from_the_store_is_not_taken_for_lost(pki):
    store = HeldStore()
    async with node(pki, "a") as a, node(pki, "b", store) as b:
        b.subscribe("t", order="fifo", ack="manual").close()
        come(b, a, (1, 1), (1, 3), (1, 2))
        store.commit()
        saw(b, a, 1, 3)
        async with b.subscribe("t", order="fifo", ack="manual") as messages:
            store.answer()
            store.answer()
            b._settle()
            assert (messages.pending, messages.held) == (1, 1)
            store.answer()
            assert places(await read(messages, 3)) == [(1, 1), (1, 2), (1, 3)]


async def test_a_newer_epoch_that_stands_before_an_older_one_in_the_store_comes_after_it(pki):
    async with node(pki, "a") as a, node(pki, "b", MemoryStore()) as b:
        b.subscribe("t", order="fifo", ack="manual").close()
        come(b, a, (2, 1), (1, 1))
        saw(b, a, 1, 1)
        saw(b, a, 2, 1)
        async with b.subscribe("t", order="fifo", ack="manual") as messages:
            assert places(await read(messages, 2)) == [(1, 1), (2, 1)]
