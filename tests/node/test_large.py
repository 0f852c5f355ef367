"""Large messages between real nodes: whole, once, in order, in pieces that nobody has to see."""

import asyncio
import random

import pytest

from plumtree_quic import (
    Delegate,
    Gap,
    MemoryStore,
    MessageId,
    MessageTooLarge,
    Node,
    NodeClosed,
    NotCovered,
    PlumtreeConfig,
    QuicConfig,
    Receipt,
    SqliteStore,
    wire,
)
from plumtree_quic.driver import CHUNK_BYTES
from plumtree_quic.messages import Lane
from tests.node.test_stores import node as make_node
from tests.node.test_stores import read
from tests.rigs.relay import Faults, Relay, free_port
from tests.rigs.waiting import ASIDE, WAIT_S, linked, until

MIB = 1 << 20
LARGE = PlumtreeConfig.lan(max_message_size=17 * MIB)


def node(pki, name, store=None, config=LARGE, delegate=None):
    made = make_node(pki, name, store, config)
    if delegate is not None:
        made._delegate = delegate
        made._hears = type(delegate).on_deliver is not Delegate.on_deliver
    return made


def data(size, seed=1):
    return random.Random(seed).randbytes(size)


async def joined(*nodes):
    for each in nodes[1:]:
        await each.join([nodes[0].address])
    await linked(nodes)


def stop_before(origin, piece):
    """This node sends no more than so many pieces of a message; returns who lets it go on."""
    driver, may_send = origin._driver, origin._driver._may_send_piece
    driver._may_send_piece = lambda now: driver._large.at < piece and may_send(now)

    def go_on():
        driver._may_send_piece = may_send
        driver._schedule_turn()

    return go_on


async def held(reader_node, pieces):
    await until(
        lambda: sum(len(r.pieces) for r in reader_node._large.chunks._runs.values()) == pieces
    )


@pytest.mark.parametrize("size", [65_537, MIB, 16 * MIB])
async def test_a_large_message_reaches_all_once_and_whole_between_small_ones_in_order(pki, size):
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        await joined(a, b, c)
        plain, ordered, own = b.subscribe(), c.subscribe(order="fifo"), a.subscribe(own=True)
        payload = data(size)
        await a.broadcast(b"before", "small")
        sending = asyncio.create_task(a.broadcast(payload, "large"))
        meanwhile = 0
        while not sending.done():
            meanwhile += 1
            await a.broadcast(b"meanwhile %d" % meanwhile, "small")
            await asyncio.sleep(0.002)
        receipt = await sending
        await a.broadcast(b"after", "small")
        for reader in (plain, ordered, own):
            got = await read(reader, meanwhile + 3)
            (large,) = [each for each in got if each.topic == "large"]
            assert large.payload == payload
            assert large.id == receipt.id
            small = [each.payload for each in got if each.topic == "small"]
            assert small[0] == b"before"
            assert small[-1] == b"after"
            assert small[1:-1] == [b"meanwhile %d" % n for n in range(1, meanwhile + 1)]
        for each in (b, c):
            stats = each.stats()
            assert stats["messages_delivered"] == meanwhile + 3
            assert stats["chunks_joined"] == 1
            assert stats["chunks_held"] == stats["chunks_held_bytes"] == 0
        assert a.stats()["chunks_sent"] == -(-size // CHUNK_BYTES)


async def test_large_messages_of_one_node_are_sent_one_after_the_other_and_all_arrive(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await joined(a, b)
        messages = b.subscribe(order="fifo")
        payloads = [data(200_000 + n, seed=n) for n in range(6)]
        receipts = await asyncio.gather(*(a.broadcast(each) for each in payloads))
        got = await read(messages, 6)
        by_id = dict(zip([each.id for each in receipts], payloads, strict=True))
        assert {each.id: each.payload for each in got} == by_id
        assert [each.seq for each in got] == sorted(each.seq for each in got)


async def test_a_large_message_whose_caller_gives_up_is_sent_all_the_same(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await joined(a, b)
        messages = b.subscribe(order="fifo")
        go_on = stop_before(a, 3)
        sending = asyncio.create_task(a.broadcast(data(MIB)))
        await held(b, 3)
        waiting = asyncio.create_task(a.broadcast(data(MIB, seed=2)))
        await a.broadcast(b"small")
        sending.cancel()
        waiting.cancel()
        await asyncio.wait([sending, waiting])
        assert sending.cancelled()
        go_on()
        await a.broadcast(data(MIB, seed=3))
        got = await read(messages, 3)
        assert [each.payload for each in got] == [data(MIB), b"small", data(MIB, seed=3)]


async def test_who_lacks_a_piece_of_a_large_message_is_not_counted_as_one_who_has_it(pki):
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        await joined(a, b, c)
        go_on = stop_before(a, 3)
        sending = asyncio.create_task(a.broadcast(data(MIB)))
        await held(b, 3)
        await held(c, 3)
        pieces = MIB // CHUNK_BYTES
        receipt = Receipt(MessageId(a.id, a._driver.epoch, 1), pieces, a._cover)
        with pytest.raises(NotCovered) as caught:
            await receipt.covered(1, timeout=0.3)
        assert set(caught.value.missing) == {b.id, c.id}
        go_on()
        sent = await sending
        assert sent == receipt
        assert (await sent.covered(timeout=WAIT_S)).count == 2


async def test_a_large_message_may_wait_for_its_turn_or_its_end_only_so_long(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await joined(a, b)
        messages = b.subscribe(order="fifo")
        go_on = stop_before(a, 3)
        with pytest.raises(TimeoutError, match="message 1 is on its way"):
            await a.broadcast(data(MIB), timeout=0.1)
        with pytest.raises(TimeoutError, match="nothing was sent of this one"):
            await a.broadcast(data(MIB, seed=2), timeout=0.1)
        go_on()
        await a.broadcast(b"after")
        got = await read(messages, 2)
        assert [each.payload for each in got] == [data(MIB), b"after"]


async def test_a_full_bulk_lane_holds_up_neither_gossip_nor_the_parent_of_gossip(pki):
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        await joined(a, b, c)
        # b takes nothing off its bulk lane, as far as a and c can see.
        for peer in (a, c):
            b._driver._endpoint.link(peer.id).hold(Lane.BULK, True)
            b._driver._apply_holds = lambda link: None
        messages, all_of_c = b.subscribe("small"), c.subscribe()
        sending = asyncio.create_task(a.broadcast(data(4 * MIB), "large"))
        await until(lambda: (b.id, Lane.BULK) in a._driver._congested)
        assert (b.id, Lane.GOSSIP) not in a._driver._congested
        assert a._driver.egress_open
        assert not a._driver._endpoint.link(c.id)._held.get(Lane.GOSSIP)
        await a.broadcast(b"small", "small")
        (message,) = await read(messages, 1)
        assert message.payload == b"small"
        # What b is not pushed it is told of, and fetches.
        large = b.subscribe("large")
        await sending
        (message,) = await read(large, 1)
        assert message.payload == data(4 * MIB)
        assert b.stats()["copies_repair"] > 0
        assert len(await read(all_of_c, 2)) == 2


async def test_the_origin_sends_a_few_pieces_and_rests(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await joined(a, b)
        driver, waited, largest = a._driver, 0, 0
        sending = asyncio.create_task(a.broadcast(data(4 * MIB)))
        while not sending.done():
            await asyncio.sleep(0)
            large = driver._large
            if large is not None and large.at:
                waited += not driver._pace._left
                largest = max(
                    largest, sum(link.backlog(Lane.BULK) for link in driver._endpoint.links())
                )
        assert waited
        assert largest <= LARGE.lane_window


async def test_it_arrives_over_a_path_that_loses_a_tenth_of_all_packets(pki):
    async with Relay(seed=4) as relay:
        real = [f"{ASIDE}:{free_port(ASIDE)}" for _ in "abc"]
        nodes = []
        for name, each in zip("abc", real, strict=True):
            cert = pki.node(name)
            quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
            nodes.append(Node(quic, LARGE, listen=each, advertise=relay.add(name, each)))
        async with nodes[0] as a, nodes[1] as b, nodes[2] as c:
            await joined(a, b, c)
            relay.faults = Faults(loss=0.1, delay_s=0.002, jitter_s=0.002)
            readers = [each.subscribe(order="fifo") for each in (b, c)]
            await a.broadcast(b"before")
            await a.broadcast(data(MIB))
            await a.broadcast(b"after")
            for reader in readers:
                got = [each.payload for each in await read(reader, 3)]
                assert got == [b"before", data(MIB), b"after"]


async def test_who_is_shut_down_in_the_middle_is_told_and_others_are_given_nothing(pki):
    async with node(pki, "b") as b:
        async with node(pki, "a") as a:
            await joined(a, b)
            stop_before(a, 3)
            sending = asyncio.create_task(a.broadcast(data(MIB)))
            await held(b, 3)
            assert a._driver.unsent() > 900_000
            await a.shutdown()
            with pytest.raises(NodeClosed):
                await sending
        assert b.stats()["messages_delivered"] == 0


async def test_what_is_above_the_limits_is_refused_in_words(pki):
    async with node(pki, "a", config=PlumtreeConfig.lan(max_message_size=MIB)) as a:
        with pytest.raises(MessageTooLarge, match=r"raise the limit \(67,108,864 at most\)"):
            await a.broadcast(bytes(MIB + 1))
        with pytest.raises(MessageTooLarge, match=r"65537 bytes .* what one frame takes \(65536\)"):
            await a.send("spiffe://test/node/b", bytes(65_537))
        with pytest.raises(MessageTooLarge, match="direct messages travel whole"):
            await a.request("spiffe://test/node/b", bytes(MIB))


async def test_who_takes_less_relays_it_counts_it_and_keeps_nothing(pki):
    async with node(pki, "a") as a, node(pki, "b", config=PlumtreeConfig.lan()) as b:
        await joined(a, b)
        plain, ordered = b.subscribe(), b.subscribe(order="fifo")
        await a.broadcast(data(MIB))
        await a.broadcast(b"small")
        for reader in (plain, ordered):
            (message,) = await read(reader, 1)
            assert message.payload == b"small"
        stats = b.stats()
        assert stats["messages_oversized"] == 1
        assert stats["messages_delivered"] == 1
        assert stats["chunks_joined"] == stats["chunks_held_bytes"] == 0
        assert stats["bundles_delivered"] == MIB // CHUNK_BYTES + 1


async def test_a_reader_that_comes_in_the_middle_is_given_what_becomes_whole(pki):
    async with node(pki, "a") as a, node(pki, "b", MemoryStore()) as b:
        await joined(a, b)
        go_on = stop_before(a, 3)
        sending = asyncio.create_task(a.broadcast(data(MIB)))
        await held(b, 3)
        readers = [
            b.subscribe(),
            b.subscribe(order="fifo"),
            b.subscribe(when_full="wait"),
            b.subscribe(order="fifo", when_full="wait"),
            b.subscribe(ack="manual", name="new"),
            b.subscribe(since=0),
        ]
        go_on()
        await sending
        for reader in readers:
            (message,) = await read(reader, 1)
            assert message.payload == data(MIB)


async def test_a_large_message_is_judged_when_it_is_whole(pki):
    class Judge(Delegate):
        def validate(self, message):
            return message.payload[:1] == b"g"

    async with node(pki, "a") as a, node(pki, "b", delegate=Judge()) as b:
        await joined(a, b)
        messages = b.subscribe(order="fifo")
        await a.broadcast(b"bad" + data(MIB))
        await a.broadcast(b"good" + data(MIB))
        (message,) = await read(messages, 1)
        assert message.payload == b"good" + data(MIB)
        assert b.stats()["chunks_refused"] == 1


async def test_pieces_that_contradict_one_another_are_not_delivered_and_their_origin_is_to_blame(
    pki, monkeypatch
):
    class Watch(Delegate):
        def __init__(self):
            self.events = []

        def on_security_event(self, kind, fields):
            self.events.append((kind, fields))

    watch = Watch()
    async with node(pki, "a") as a, node(pki, "b", delegate=watch) as b:
        await joined(a, b)
        messages = b.subscribe(order="fifo")
        real = wire.build_bundle

        def lie(**options):
            index, count, total = options.get("chunk", (0, 1, 0))
            return real(**options | {"chunk": (index, count, total - (index == 1))})

        monkeypatch.setattr(wire, "build_bundle", lie)
        await a.broadcast(data(MIB))
        monkeypatch.setattr(wire, "build_bundle", real)
        await a.broadcast(b"after")
        gap, after = await read(messages, 2)
        assert isinstance(gap, Gap)
        assert (gap.first, gap.last) == (1, MIB // CHUNK_BYTES)
        assert after.payload == b"after"
        stats = b.stats()
        assert stats["chunks_dropped_lie"] == 1
        assert stats["chunks_held_bytes"] == 0
        assert stats["strikes"] == 1
        (fields,) = [fields for kind, fields in watch.events if kind == "bundle.malformed"]
        assert "contradict" in fields["reason"]


async def test_a_piece_that_does_not_hold_what_it_says_makes_no_message(pki, monkeypatch):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await joined(a, b)
        messages = b.subscribe()
        real = wire.build_bundle

        def spoil(**options):
            good = real(**options)
            if good.chunk_index != 2:
                return good
            header, body = good.signed_parts[0], b"\xff" * good.body_bytes
            signature = options["sign"](header, body)
            parts = [len(header).to_bytes(2), header, len(signature).to_bytes(2), signature, body]
            return wire.parse_bundle(b"".join(parts))

        monkeypatch.setattr(wire, "build_bundle", spoil)
        await a.broadcast(data(MIB))
        monkeypatch.setattr(wire, "build_bundle", real)
        await a.broadcast(b"after")
        (message,) = await read(messages, 1)
        assert message.payload == b"after"
        assert b.stats()["bundles_malformed"] == 1


async def test_what_incomplete_messages_take_is_bounded(pki):
    config = PlumtreeConfig.lan(max_message_size=MIB)
    async with node(pki, "a", config=config) as a, node(pki, "b", config=config) as b:
        await joined(a, b)
        most = 0
        for number in range(6):
            stop_before(a, MIB // CHUNK_BYTES - 1)
            a._driver._large = None
            a._driver.accept_large("", data(MIB, seed=number))
            before = b.stats()["copies_bulk"]
            await until(lambda before=before: b.stats()["copies_bulk"] >= before + 31)
            most = max(most, b.stats()["chunks_held_bytes"])
            a._driver._large = None
        assert MIB < most <= 2 * MIB
        assert b.stats()["chunks_dropped_memory"] >= 4


@pytest.mark.parametrize("with_small", [False, True])
async def test_an_origin_that_dies_in_the_middle_leaves_one_gap_and_all_that_was_accepted(
    pki, tmp_path, with_small
):
    def of_a():
        return node(pki, "a", SqliteStore(tmp_path / "a.db"))

    async with node(pki, "b", MemoryStore()) as b:
        plain, ordered = b.subscribe(), b.subscribe(order="fifo", gap_timeout=1.0)
        fed = b.subscribe(order="fifo", gap_timeout=1.0, when_full="wait")
        async with of_a() as a:
            await joined(b, a)
            stop_before(a, 3)
            sending = asyncio.create_task(a.broadcast(data(MIB)))
            await held(b, 3)
            if with_small:
                await a.broadcast(b"meanwhile")
            # No drain: as after kill -9, the store has what it has.
            await a.shutdown()
            with pytest.raises(NodeClosed):
                await sending
        async with of_a() as a:
            await joined(b, a)
            await a.broadcast(b"after")
            expected = [b"meanwhile", b"after"][not with_small :]
            assert [each.payload for each in await read(plain, len(expected))] == expected
            for reader in (ordered, fed):
                gap, *got = await read(reader, 1 + len(expected))
                assert isinstance(gap, Gap)
                assert gap.first == 1
                assert [each.payload for each in got] == expected
            assert b.stats()["strikes"] == 0


@pytest.mark.parametrize("order", ["unordered", "fifo"])
async def test_a_restart_in_the_middle_loses_nothing_for_who_reads_from_the_store(
    pki, tmp_path, order
):
    def of_b():
        return node(pki, "b", SqliteStore(tmp_path / "b.db"))

    async with node(pki, "a") as a:
        async with of_b() as b:
            await joined(a, b)
            go_on = stop_before(a, 10)
            sending = asyncio.create_task(a.broadcast(data(MIB)))
            await held(b, 10)
        async with of_b() as b:
            messages = b.subscribe(order=order, when_full="wait")
            named = b.subscribe(order=order, ack="manual", name="new")
            await joined(a, b)
            go_on()
            await sending
            await a.broadcast(b"after")
            for reader in (messages, named):
                got = await read(reader, 2)
                assert {each.payload for each in got} == {data(MIB), b"after"}
            assert b.stats()["chunks_dropped_past"] == 0


@pytest.mark.parametrize("ack", ["auto", "manual"])
async def test_a_restart_in_the_middle_of_a_large_message_leads_to_one_delivery(pki, tmp_path, ack):
    def of_b():
        return node(pki, "b", SqliteStore(tmp_path / "b.db"))

    def reader_of(b):
        return b.subscribe(ack=ack, name="log") if ack == "manual" else b.subscribe()

    async with node(pki, "a") as a:
        async with of_b() as b:
            await joined(a, b)
            reader_of(b)
            go_on = stop_before(a, 10)
            sending = asyncio.create_task(a.broadcast(data(MIB)))
            await held(b, 10)
        async with of_b() as b:
            await joined(a, b)
            messages = reader_of(b)
            go_on()
            await sending
            await a.broadcast(b"after")
            got = await read(messages, 2)
            assert {each.payload for each in got} == {data(MIB), b"after"}
            assert not any(each.redelivered for each in got)
            assert b.stats()["chunks_joined"] == (2 if ack == "manual" else 1)
            if ack == "auto":
                return
            await asyncio.gather(*(each.ack() for each in got if each.payload == b"after"))
        async with of_b() as b:
            # What was not acknowledged comes again, as a whole.
            (message,) = await read(reader_of(b), 1)
            assert message.payload == data(MIB)
            assert message.redelivered
            await message.ack()
        async with of_b() as b:
            await joined(a, b)
            messages = reader_of(b)
            await a.broadcast(b"the last")
            (message,) = await read(messages, 1)
            assert message.payload == b"the last"


async def test_what_a_reader_does_not_want_of_a_large_message_is_done_with(pki):
    store = MemoryStore()
    async with node(pki, "a") as a, node(pki, "b", store) as b:
        await joined(a, b)
        messages = b.subscribe("small", ack="manual", name="log")
        await a.broadcast(data(MIB), "large")
        await a.broadcast(b"small", "small")
        (message,) = await read(messages, 1)
        await message.ack()
        assert store.reader("log").acked in ((), ((1, store.head - 1),))
        assert store.reader("log").start in (1, store.head)


async def test_a_durable_store_has_all_of_a_large_message_when_broadcast_returns(pki, tmp_path):
    store = SqliteStore(tmp_path / "a.db")
    async with node(pki, "a", store) as a:
        receipt = await a.broadcast(data(MIB))
    async with (
        node(pki, "a", SqliteStore(tmp_path / "a.db")) as a,
        node(pki, "b", MemoryStore()) as b,
    ):
        messages = b.subscribe(since=0)
        await joined(a, b)
        (message,) = await read(messages, 1)
        assert message.id == receipt.id
        assert message.payload == data(MIB)
