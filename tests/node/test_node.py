"""Node over real links on loopback: the public API as a user meets it."""

import asyncio
import contextlib

import pytest

from plumtree_quic import (
    ConfigError,
    Delegate,
    HealthStatus,
    IdentityConflict,
    JoinError,
    LinkError,
    LocalProtocolError,
    MessageTooLarge,
    Node,
    NodeClosed,
    PlumtreeConfig,
    QuicConfig,
)
from tests.rigs.pki import Pki
from tests.rigs.waiting import ASIDE, WAIT_S, linked, until


@pytest.fixture(scope="module")
def pki():
    return Pki("test")


def quic(pki, name, **options):
    cert = pki.node(name)
    return QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem, **options)


def node(pki, name, config=None, delegate=None, listen="127.0.0.1:0", **options):
    return Node(
        quic(pki, name),
        config or PlumtreeConfig.lan(),
        listen=listen,
        delegate=delegate,
        **options,
    )


@contextlib.asynccontextmanager
async def cluster(pki, names, config=None, delegates=None):
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for name in names:
            delegate = (delegates or {}).get(name)
            nodes.append(await stack.enter_async_context(node(pki, name, config, delegate)))
        for other in nodes[1:]:
            await other.join([nodes[0].address])
        for each in nodes:
            await each.wait_for_peers(len(nodes) - 1)
        await linked(nodes)
        yield nodes


async def collect(subscription, count):
    got = []
    async with asyncio.timeout(WAIT_S):
        async for message in subscription:
            got.append(message)
            if len(got) == count:
                return got
    return got


async def test_a_broadcast_reaches_the_other_node_with_its_identity(pki):
    async with cluster(pki, "ab") as (a, b), b.subscribe("orders") as messages:
        receipt = await a.broadcast(b"payload", topic="orders")
        (message,) = await collect(messages, 1)
        assert message.payload == b"payload"
        assert message.topic == "orders"
        assert message.origin == a.id
        assert message.id == receipt.id
        assert message.hops == 1


@pytest.mark.parametrize("preset", ["lan", "wan", "large_cluster"])
async def test_the_first_broadcast_after_join_reaches_everyone_in_every_preset(pki, preset):
    config = getattr(PlumtreeConfig, preset)()
    async with cluster(pki, "abcd", config) as nodes:
        subscriptions = [each.subscribe() for each in nodes[:-1]]
        await nodes[-1].broadcast(b"first" * 200)
        for subscription in subscriptions:
            (message,) = await collect(subscription, 1)
            assert message.payload == b"first" * 200


async def test_messages_of_all_publishers_arrive_once_everywhere(pki):
    async with cluster(pki, "abcde") as nodes:
        subscriptions = [each.subscribe() for each in nodes]
        for number in range(100):
            for each in nodes:
                await each.broadcast(b"%d" % number)
        for each, subscription in zip(nodes, subscriptions, strict=True):
            got = await collect(subscription, 400)
            assert len({message.id for message in got}) == 400
            assert all(message.origin != each.id for message in got)


async def test_a_node_does_not_deliver_its_own_broadcasts_unless_asked(pki):
    async with cluster(pki, "ab") as (a, _b), a.subscribe(own=True) as mine:
        await a.broadcast(b"x")
        (message,) = await collect(mine, 1)
        assert message.hops == 0


async def test_a_subscription_takes_only_its_topic(pki):
    async with cluster(pki, "ab") as (a, b), b.subscribe("two") as messages:
        await a.broadcast(b"1", topic="one")
        await a.broadcast(b"2", topic="two")
        (message,) = await collect(messages, 1)
        assert message.payload == b"2"


async def test_a_tight_loop_of_broadcasts_is_encoded_once_per_bundle(pki):
    async with cluster(pki, "abc") as (a, b, _c), b.subscribe() as messages:
        for number in range(500):
            await a.broadcast(b"%d" % number)
        await collect(messages, 500)
        assert a.stats()["bundles_built"] <= 5


async def test_a_relay_builds_no_bundle(pki):
    async with cluster(pki, "abcd") as nodes:
        subscriptions = [each.subscribe() for each in nodes[1:]]
        for number in range(50):
            await nodes[0].broadcast(b"%d" % number)
        for subscription in subscriptions:
            await collect(subscription, 50)
        assert all(each.stats()["bundles_built"] == 0 for each in nodes[1:])


async def test_no_task_per_message(pki):
    async with cluster(pki, "ab") as (a, b), b.subscribe() as messages:
        before = len(asyncio.all_tasks())
        for number in range(200):
            await a.broadcast(b"%d" % number)
        assert len(asyncio.all_tasks()) <= before
        await collect(messages, 200)


async def test_a_message_above_the_limit_is_refused_and_nothing_is_sent(pki):
    async with cluster(pki, "ab", PlumtreeConfig.lan(max_message_size=100)) as (a, _b):
        with pytest.raises(MessageTooLarge, match="100"):
            await a.broadcast(bytes(101))
        assert a.stats()["messages_accepted"] == 0


async def test_the_largest_message_arrives(pki):
    async with cluster(pki, "ab") as (a, b), b.subscribe() as messages:
        await a.broadcast(bytes(65_536))
        (message,) = await collect(messages, 1)
        assert len(message.payload) == 65_536


async def test_leave_is_seen_as_left_not_as_failed(pki):
    seen = []

    class Watch(Delegate):
        def on_member_left(self, node_id):
            seen.append(("left", node_id))

        def on_member_failed(self, node_id):
            seen.append(("failed", node_id))

    async with node(pki, "a", delegate=Watch()) as a:
        async with node(pki, "b") as b:
            await b.join([a.address])
            await a.wait_for_peers(1)
        await until(lambda: seen)
    assert seen == [("left", b.id)]


async def test_validate_stops_a_message_at_the_node_that_refuses_it(pki):
    class Judge(Delegate):
        def validate(self, message):
            return message.payload != b"bad"

    async with cluster(pki, "ab", delegates={"b": Judge()}) as (a, b), b.subscribe() as messages:
        await a.broadcast(b"bad")
        await asyncio.sleep(0)
        await a.drain()
        assert not b.stats()["messages_delivered"]
        del messages
    async with cluster(pki, "ab", delegates={"b": Judge()}) as (a, b), b.subscribe() as messages:
        await a.broadcast(b"good")
        (message,) = await collect(messages, 1)
        assert message.payload == b"good"


async def test_x20_an_exception_in_a_delegate_is_counted_and_stops_nothing(pki):
    class Broken(Delegate):
        def on_deliver(self, message):
            raise RuntimeError("application bug")

    async with cluster(pki, "ab", delegates={"b": Broken()}) as (a, b), b.subscribe() as messages:
        await a.broadcast(b"1")
        await a.broadcast(b"2")
        await collect(messages, 2)
        assert b.stats()["delegate_errors"] == 2


async def test_direct_messages_and_requests(pki):
    got = []

    class Server(Delegate):
        def on_direct(self, sender, payload):
            got.append((sender, payload))

        def on_request(self, sender, payload):
            return payload.upper()

    async with cluster(pki, "ab", delegates={"b": Server()}) as (a, b):
        await a.send(b.id, b"hello")
        assert await a.request(b.id, b"shout") == b"SHOUT"
        assert got == [(a.id, b"hello")]
        with pytest.raises(LocalProtocolError):
            await a.send(a.id, b"self")
        with pytest.raises(LinkError, match="not a known member"):
            await a.send("spiffe://test/node/nobody", b"x")


async def test_a_seed_that_does_not_answer_is_named(pki):
    async with node(pki, "a") as a:
        with pytest.raises(JoinError, match=r"127\.0\.0\.1:9"):
            await a.join(["127.0.0.1:9"], timeout=0.5)


async def test_joining_only_oneself_is_the_first_node_of_a_cluster(pki):
    async with node(pki, "a") as a:
        assert await a.join([a.address]) == 0
        assert a.health().status is HealthStatus.HEALTHY


async def test_a_port_in_use_is_named(pki):
    async with node(pki, "a") as a:
        second = Node(quic(pki, "b"), listen=a.address)
        with pytest.raises(LinkError, match="in use"):
            await second.start()


async def test_a_wildcard_needs_an_address_that_others_can_dial(pki):
    with pytest.raises(ConfigError, match="advertise"):
        Node(quic(pki, "a"), listen=":0")


async def test_a_foreign_ca_is_refused_and_never_a_member(pki):
    stranger = Pki("test")
    async with node(pki, "a") as a, node(stranger, "s") as s:
        with pytest.raises(JoinError):
            await s.join([a.address], timeout=2)
        assert a.peer_count() == 0
        assert s.peer_count() == 0


async def test_a_refused_handshake_is_logged_with_who_and_why_in_the_text(pki, caplog):
    foreign = Pki("test")
    async with node(pki, "a") as a, node(foreign, "s") as s:
        with pytest.raises(JoinError):
            await s.join([a.address], timeout=0.1)

        # The handshake goes on, however long it takes here.
        await until(
            lambda: any(
                "rejected" in line and "address=127.0.0.1" in line
                and "no path to a trusted CA" in line
                for line in caplog.messages
            )
        )  # fmt: skip


async def test_another_cluster_name_is_refused(pki):
    async with node(pki, "a") as a:
        other = Node(quic(pki, "b", cluster="other"), PlumtreeConfig.lan(), listen="127.0.0.1:0")
        async with other:
            with pytest.raises(JoinError):
                await other.join([a.address], timeout=2)
            assert a.peer_count() == 0


async def test_a_closed_node_says_so(pki):
    closed = node(pki, "a")
    with pytest.raises(NodeClosed, match="start"):
        await closed.broadcast(b"x")
    async with closed:
        pass
    with pytest.raises(NodeClosed):
        await closed.broadcast(b"x")


async def test_a_drained_node_takes_no_more_broadcasts_and_stays_a_member(pki):
    async with cluster(pki, "ab") as (a, b):
        await a.drain()
        with pytest.raises(NodeClosed, match="draining"):
            await a.broadcast(b"x")
        assert b.peer_count() == 1


async def test_x20_a_subscription_that_falls_behind_ends_with_an_error(pki):
    async with cluster(pki, "ab") as (a, b), b.subscribe(buffer=3) as messages:
        for number in range(10):
            await a.broadcast(b"%d" % number)
        await a.drain()
        await until(lambda: b.stats()["messages_delivered"] == 10)
        with pytest.raises(LocalProtocolError, match="behind"):
            await collect(messages, 10)


async def test_the_epoch_of_a_restart_is_larger_even_under_a_clock_that_went_back(pki, tmp_path):
    async with node(pki, "a", state_dir=tmp_path) as a:
        first = (await a.broadcast(b"x")).id.epoch
    (tmp_path / "epoch").write_text(str(first + 10_000_000))
    async with node(pki, "a", state_dir=tmp_path) as a:
        assert (await a.broadcast(b"x")).id.epoch == first + 10_000_001


async def test_a_restarted_member_is_alive_again_and_receives(pki):
    async with node(pki, "a") as a:
        async with node(pki, "b", listen=f"{ASIDE}:0") as b:
            await b.join([a.address])
            await a.wait_for_peers(1)
            address = b.address
        async with node(pki, "b", listen=address) as b:
            await b.join([a.address])
            await a.wait_for_peers(1)
            async with b.subscribe() as messages:
                await a.broadcast(b"again")
                (message,) = await collect(messages, 1)
                assert message.payload == b"again"


async def test_wan_really_compresses(pki):
    async with cluster(pki, "ab", PlumtreeConfig.wan()) as (a, b), b.subscribe() as messages:
        payload = b"compressible " * 2_000
        await a.broadcast(payload)
        (message,) = await collect(messages, 1)
        assert message.payload == payload
        assert a.stats()["bundle_bytes_built"] < len(payload) / 5


async def test_events_tell_of_members(pki):
    async with node(pki, "a") as a:

        async def first():
            return await anext(aiter(a.events()))

        waiting = asyncio.create_task(first())
        await asyncio.sleep(0)
        async with node(pki, "b") as b:
            await b.join([a.address])
            event = await asyncio.wait_for(waiting, WAIT_S)
            assert event.kind in ("on_member_joined", "on_eager_promotion")


async def test_of_two_processes_with_one_identity_the_later_start_wins_and_the_other_stops(pki):
    events = []

    class Watch(Delegate):
        def on_security_event(self, kind, fields):
            events.append(kind)

    async with node(pki, "b") as b:
        first = node(pki, "a", delegate=Watch())
        await first.start()
        await first.join([b.address])
        async with node(pki, "a") as second:
            await second.join([b.address])
            await until(lambda: "identity.conflict" in events)
            with pytest.raises(IdentityConflict, match="certificate of its own"):
                await first.broadcast(b"x")
            assert first.health().status is HealthStatus.UNHEALTHY
            async with b.subscribe() as messages:
                await second.broadcast(b"mine")
                (message,) = await collect(messages, 1)
                assert message.payload == b"mine"
        await first.shutdown()


async def test_a_node_whose_clock_went_back_starts_above_its_own_past(pki, monkeypatch):
    async with node(pki, "b") as b:
        async with node(pki, "a") as a:
            await a.join([b.address])
            await a.wait_for_peers(1)
            epoch = a._driver.epoch
        again = node(pki, "a")
        monkeypatch.setattr(again, "_new_epoch", lambda _recovered: epoch - 3_600_000)
        async with again, b.subscribe() as messages:
            await again.join([b.address])
            await again.wait_for_peers(1)
            receipt = await again.broadcast(b"after")
            (message,) = await collect(messages, 1)
            assert message.id == receipt.id
            assert receipt.id.epoch == epoch + 1


async def test_join_counts_the_seeds_that_answered_this_time(pki, monkeypatch):
    # On a busy machine the second answer may come more than 50 ms after the first.
    monkeypatch.setattr("plumtree_quic.node.OTHER_SEEDS_S", 2.0)
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        assert await c.join([a.address, b.address]) == 2
        with pytest.raises(JoinError):
            await c.join(["127.0.0.1:9"], timeout=0.3)


async def test_a_request_to_a_node_that_is_gone_times_out_or_fails_and_leaves_nothing_behind(pki):
    async with cluster(pki, "ab") as (a, b):
        with pytest.raises(TimeoutError):
            await a.request(b.id, b"nobody answers", timeout=0.2)
        assert not a._requests
