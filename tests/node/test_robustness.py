"""What peers, delegates, stalls and half-finished calls do to a node: nothing lasting."""

import asyncio
import contextlib
import functools
import os
import time

import pytest

from plumtree_quic import (
    ConfigError,
    Delegate,
    HealthStatus,
    IdentityConflict,
    LinkError,
    Node,
    NodeClosed,
    PlumtreeConfig,
    wire,
)
from plumtree_quic.driver import _Blocked
from plumtree_quic.messages import Lane, MemberState
from plumtree_quic.net.events import LinkDown
from plumtree_quic.net.link import CloseCode
from plumtree_quic.net.settings import NetSettings
from plumtree_quic.proto import core
from plumtree_quic.proto.effects import Deliver, Link, Strike, TurnAway, Unlink
from tests.node.test_node import cluster, collect, node, quic
from tests.rigs.waiting import ASIDE, WAIT_S, until

pytestmark = pytest.mark.usefixtures("quiet_log")


@pytest.fixture
def quiet_log(caplog):
    """No test here may make the package log an exception, unless it says so."""
    yield
    shown = [
        record
        for record in caplog.get_records("call")
        if record.name.startswith("plumtree_quic") and record.exc_info
    ]
    assert not shown, shown


def build_spoiled(build, options):
    """A bundle whose body does not fit its header, signed as it is by its origin."""
    good = build(**options)
    header, body = good.signed_parts[0], b"\xff" * good.body_bytes
    signature = options["sign"](header, body)
    parts = (len(header).to_bytes(2, "big"), header)
    return wire.parse_bundle(b"".join((*parts, len(signature).to_bytes(2, "big"), signature, body)))


# --- what a peer sends --------------------------------------------------------------------------


async def test_a_malformed_body_is_forwarded_counted_and_never_delivered(pki, monkeypatch):
    events = []

    class Watch(Delegate):
        def on_security_event(self, kind, fields):
            events.append(kind)

    async with cluster(pki, "abc", delegates={"b": Watch()}) as (a, b, c):
        real = wire.build_bundle
        monkeypatch.setattr(wire, "build_bundle", lambda **options: build_spoiled(real, options))
        readers = [each.subscribe() for each in (b, c)]
        await a.broadcast(b"spoiled")
        await until(lambda: all(each.stats()["bundles_malformed"] == 1 for each in (b, c)))
        monkeypatch.setattr(wire, "build_bundle", real)
        await a.broadcast(b"good")
        for reader in readers:
            (message,) = await collect(reader, 1)
            assert message.payload == b"good"
        assert events.count("bundle.malformed") == 1
        assert len(b.peers()) == 2
        assert b.stats()["errors"] == 0
        assert b.stats()["strikes"] == 0


async def test_malformed_bodies_do_not_flood_the_security_log(pki, monkeypatch):
    events = []

    class Watch(Delegate):
        def on_security_event(self, kind, fields):
            events.append(kind)

    async with cluster(pki, "ab", delegates={"b": Watch()}) as (a, b), b.subscribe():
        real = wire.build_bundle
        monkeypatch.setattr(wire, "build_bundle", lambda **options: build_spoiled(real, options))
        for _ in range(20):
            await a.broadcast(b"spoiled")
            await asyncio.sleep(0.01)
        await until(lambda: b.stats()["bundles_malformed"] >= 5)
        assert events.count("bundle.malformed") == 1


async def test_a_body_that_validate_cannot_open_is_refused(pki, monkeypatch):
    class Judge(Delegate):
        def validate(self, message):
            return True

    async with cluster(pki, "ab", delegates={"b": Judge()}) as (a, b):
        real = wire.build_bundle
        monkeypatch.setattr(wire, "build_bundle", lambda **options: build_spoiled(real, options))
        await a.broadcast(b"spoiled")
        await until(lambda: b._driver.core.refused == 1)
        assert b.stats()["bundles_delivered"] == 0


async def test_a_request_that_nobody_answers_is_no_error_of_ours(pki):
    async with cluster(pki, "ab", delegates={"b": Delegate()}) as (a, b):
        with pytest.raises(TimeoutError):
            await a.request(b.id, b"anybody?", timeout=0.3)
        assert b.stats()["delegate_errors"] == 0


async def test_strikes_are_counted_across_a_replaced_link(pki):
    async with cluster(pki, "ab") as (a, b):
        driver = a._driver
        now = driver._loop.time()
        driver._perform([Strike(b.id, "one"), Strike(b.id, "two")], now)
        old = driver._endpoint.link(b.id)
        assert driver._endpoint.replace(b.id, now)
        driver._schedule_turn()
        await until(lambda: driver._endpoint.link(b.id) is not old)
        driver._perform([Strike(b.id, "three")], driver._loop.time())
        driver._schedule_turn()
        assert driver._endpoint.link(b.id).close_code == CloseCode.PROTOCOL_ERROR
        await until(lambda: driver._endpoint.link(b.id) is None)


async def test_who_was_cut_gets_no_new_link_for_a_while_and_then_begins_anew(pki, monkeypatch):
    monkeypatch.setattr("plumtree_quic.net.quota.CUT_FOR_S", 3600.0)
    eager = functools.partial(NetSettings, refused_floor_s=0.0, redial_s=(0.1, 0.2))
    monkeypatch.setattr("plumtree_quic.driver.NetSettings", eager)
    refused = []

    class Watch(Delegate):
        def on_security_event(self, kind, fields):
            refused.append((kind, fields.get("step")))

    async with cluster(pki, "ab", delegates={"a": Watch()}) as (a, b):
        driver = a._driver
        driver._perform([Strike(b.id, "bad")] * 3, driver._loop.time())
        driver._schedule_turn()
        await until(lambda: driver._endpoint.link(b.id) is None)
        await until(lambda: ("handshake.rejected", 12) in refused)
        # Having been without a link is what it pays; then nothing is held against it. That time
        # ends only now: on a busy machine a dial may take longer than any time chosen beforehand.
        driver._accounts._accounts[b.id].cut_until = driver._loop.time()
        await until(lambda: driver._endpoint.link(b.id) is not None)
        driver._perform([Strike(b.id, "bad")], driver._loop.time())
        await b.broadcast(b"sorry")
        await until(lambda: a.stats()["messages_delivered"] == 1)


async def test_frames_that_break_the_protocol_are_strikes_across_links(pki, monkeypatch):
    monkeypatch.setattr("plumtree_quic.net.quota.CUT_FOR_S", 3600.0)
    async with cluster(pki, "ab") as (a, b):
        driver = a._driver
        for _ in range(3):
            await until(lambda: b._driver._endpoint.link(a.id) is not None)
            link = b._driver._endpoint.link(a.id)
            # A frame of a kind that no lane has.
            link.engine.send_stream_data(link._out[Lane.GOSSIP].stream_id, b"\x01\xff")
            b._driver._endpoint._touched[link] = None
            b._driver._schedule_turn()
            await until(lambda link=link: b._driver._endpoint.link(a.id) is not link)
        await until(lambda: not driver._accounts.may_link(b.id, driver._loop.time()))


# --- errors of our own --------------------------------------------------------------------------


async def test_an_effect_that_fails_costs_no_other_effect(pki, monkeypatch, caplog):
    async with cluster(pki, "abc") as (a, b, c):
        driver = a._driver
        closed = []
        monkeypatch.setattr(
            driver._endpoint, "want", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug"))
        )
        monkeypatch.setattr(driver._endpoint, "unwant", lambda peer, now: closed.append(peer))
        driver._perform([Link(b.id, ("127.0.0.1:9",)), Unlink(c.id)], driver._loop.time())
        assert closed == [c.id]
        assert a.stats()["errors"] == 1
    caplog.clear()


async def test_a_core_that_fails_every_time_is_no_busy_loop_and_links_go_on(
    pki, monkeypatch, caplog
):
    async with cluster(pki, "ab") as (a, b):
        driver = a._driver
        monkeypatch.setattr(driver.core, "next_deadline", lambda: 0.0)

        def broken(now):
            raise RuntimeError("a bug")

        monkeypatch.setattr(driver.core, "advance", broken)
        driver._schedule_turn()
        before = a.stats()["turns"]
        async with b.subscribe() as messages:
            await a.broadcast(b"still here")
            (_message,) = await collect(messages, 1)
        await asyncio.sleep(0.3)
        assert a.stats()["errors"] >= 1
        assert a.stats()["turns"] - before < 200
        monkeypatch.undo()
    caplog.clear()


async def test_a_stall_is_noticed_when_packets_wait_behind_it(pki, monkeypatch):
    async with cluster(pki, "ab") as (a, _b):
        await asyncio.sleep(0.3)
        driver, told = a._driver, []
        monkeypatch.setattr(driver.core, "late", lambda seconds, now: told.append(seconds))
        now = driver._loop.time()
        with monkeypatch.context() as frozen:
            # A stall of the test itself would be told, too.
            frozen.setattr(driver._loop, "time", lambda: now)
            # The turn of a packet comes before the timer that was due meanwhile.
            driver._timer_at = now - 0.7
            driver._on_datagrams([(b"\x40" + bytes(40), ("127.0.0.1", 9))])
            assert told == [pytest.approx(0.7)]
            driver._turn()
            assert len(told) == 1


# --- waiting and ending -------------------------------------------------------------------------


async def test_shutdown_with_live_links_is_quiet_and_counts_no_error(pki, caplog):
    async with cluster(pki, "abc") as nodes:
        driver = nodes[0]._driver
        sending = [asyncio.create_task(each.broadcast(b"in flight")) for each in nodes[1:]]
        await nodes[0].shutdown()
        assert driver.counters.errors == 0
        # An exception that nobody fetches is told by the garbage collector, at any time.
        await asyncio.gather(*sending)


async def test_a_second_shutdown_waits_for_the_first(pki):
    async with cluster(pki, "ab") as (a, _b):
        first = asyncio.create_task(a.shutdown())
        await asyncio.sleep(0)
        await a.shutdown()
        assert a._driver.closed
        await first


async def test_a_cancelled_shutdown_still_frees_the_address(pki):
    async with cluster(pki, "ab") as (a, b):
        address = a.address
        asyncio.get_running_loop().remove_reader(b._driver._socket._socket.fileno())
        closing = asyncio.create_task(a.shutdown())
        await asyncio.sleep(0)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        async with Node(quic(pki, "c"), listen=address):
            pass


async def test_whoever_waits_is_released_by_shutdown(pki):
    async with cluster(pki, "ab") as (a, b):
        events, messages = [], []

        async def watch():
            async for event in a.events():
                events.append(event)

        async def read():
            async for message in a.subscribe():
                messages.append(message)

        closed = (
            a.wait_for_peers(9, timeout=60),
            a.join(["127.0.0.1:9"], timeout=60),
            a.request(b.id, b"?", timeout=60),
        )
        ended = (watch(), read())
        tasks = [asyncio.create_task(each) for each in (*closed, *ended)]
        await asyncio.sleep(0.05)
        await a.shutdown()
        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in results] == [NodeClosed] * 3 + [type(None)] * 2
        assert not a._peer_waiters
        assert not a._event_waiters
        assert not a._requests


async def test_waits_that_run_out_leave_nothing_behind(pki):
    async with node(pki, "a") as a:
        for _ in range(5):
            with pytest.raises(TimeoutError, match=r"0 of 1 peers after 0\.01 s"):
                await a.wait_for_peers(1, timeout=0.01)
        assert not a._peer_waiters
        driver = a._driver
        driver._forming_until = driver._loop.time() + 60
        for _ in range(2):
            await driver.wait_egress()
        assert not driver._egress_waiters
        driver._outbox_due = driver._loop.time() + 60


async def test_an_exception_in_the_block_leaves_and_frees_the_address(pki):
    left = []

    class Watch(Delegate):
        def on_member_left(self, node_id):
            left.append(node_id)

    async with node(pki, "a", delegate=Watch()) as a:
        b = node(pki, "b")

        async def fail_inside():
            async with b:
                await b.join([a.address])
                await a.wait_for_peers(1)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail_inside()
        await until(lambda: left == [b.id])
        assert b._driver.closed


async def test_leaving_after_everybody_is_gone_waits_for_nobody(pki):
    async with node(pki, "a") as a:
        async with node(pki, "b") as b:
            await b.join([a.address])
            await a.wait_for_peers(1)
        await until(lambda: not a.peers())
        waits = []
        idle = a._driver.idle

        async def timed(timeout_s):
            began = a._driver.counters.turns
            done = await idle(timeout_s)
            waits.append((done, a._driver.counters.turns - began))
            return done

        a._driver.idle = timed
        await a.leave()
        assert [done for done, _ in waits] == [True, True]


async def test_a_dead_peer_owes_no_acknowledgement(pki, monkeypatch):
    async with cluster(pki, "ab") as (a, b):
        driver = a._driver
        asyncio.get_running_loop().remove_reader(b._driver._socket._socket.fileno())
        await a.broadcast(b"into the void")
        assert not await driver.idle(0.2)
        real = driver.core.table.state_of
        monkeypatch.setattr(
            driver.core.table,
            "state_of",
            lambda key: MemberState.DEAD if key != driver.core.key else real(key),
        )
        assert await driver.idle(0.2)


async def test_superseded_in_the_block_ends_it_without_a_second_error(pki):
    async with node(pki, "a") as a:
        a._superseded(a._driver.epoch + 1)
        with pytest.raises(IdentityConflict):
            await a.broadcast(b"x")
    assert a._driver.closed
    await a._stopping


async def test_a_cancelled_broadcast_leaves_no_hole(pki):
    async with cluster(pki, "ab") as (a, b), b.subscribe() as messages:
        driver = a._driver
        first = await a.broadcast(b"1")
        driver._forming_until = driver._loop.time() + 60
        waiting = [asyncio.create_task(a.broadcast(b"never")) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        driver._forming_until = 0.0
        second = await a.broadcast(b"2")
        assert second.id.seq == first.id.seq + 1
        assert [each.payload for each in await collect(messages, 2)] == [b"1", b"2"]


async def test_a_delegate_may_broadcast_subscribe_and_leave_from_a_callback(pki):
    tasks = []

    class Busy(Delegate):
        node = None

        def on_deliver(self, message):
            self.node.rebalance()
            self.node.subscribe().close()
            tasks.append(asyncio.ensure_future(self.node.broadcast(b"echo")))
            tasks.append(asyncio.ensure_future(self.node.leave()))

    delegate = Busy()
    async with cluster(pki, "ab", delegates={"b": delegate}) as (a, b), a.subscribe() as messages:
        delegate.node = b
        await a.broadcast(b"go")
        (message,) = await collect(messages, 1)
        assert message.payload == b"echo"
        await asyncio.gather(*tasks)
        assert b._driver.counters.errors == 0


async def test_a_subscription_may_have_two_readers_and_be_closed_under_them(pki):
    async with cluster(pki, "ab") as (a, b):
        messages = b.subscribe()
        readers = [asyncio.create_task(anext(messages, None)) for _ in range(3)]
        await asyncio.sleep(0)
        readers[0].cancel()
        await a.broadcast(b"one")
        await until(lambda: any(task.done() for task in readers[1:]))
        messages.close()
        done = await asyncio.wait_for(asyncio.gather(*readers[1:]), WAIT_S)
        assert sorted(message is None for message in done) == [False, True]


async def test_a_start_that_fails_frees_the_address_and_can_be_tried_again(pki, monkeypatch):
    async with node(pki, "a", listen=f"{ASIDE}:0") as a:
        address = a.address
    with pytest.raises(ConfigError, match="advertise"):
        Node(quic(pki, "b"), listen=address, advertise="no address")
    late = Node(quic(pki, "b"), listen=address)
    monkeypatch.setattr(wire, "build_record", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await late.start()
    monkeypatch.undo()
    async with late:
        assert late.address == address


# --- room ---------------------------------------------------------------------------------------


async def test_a_loop_of_large_direct_messages_waits_for_room_and_loses_none(pki):
    got = []

    class Keep(Delegate):
        def on_direct(self, sender, payload):
            got.append(payload[:4])

    async with cluster(pki, "ab", delegates={"b": Keep()}) as (a, b):
        for number in range(120):
            await a.send(b.id, number.to_bytes(4, "big") + bytes(60_000))
        await until(lambda: len(got) == 120)
        assert got == [number.to_bytes(4, "big") for number in range(120)]


async def test_a_direct_message_that_waits_ends_with_the_link(pki):
    async with cluster(pki, "ab") as (a, b):
        asyncio.get_running_loop().remove_reader(b._driver._socket._socket.fileno())

        async def flood():
            while True:
                await a.send(b.id, bytes(60_000))

        flooding = asyncio.create_task(flood())
        driver = a._driver
        await until(lambda: driver._direct_waiters.get(b.id))
        assert driver._endpoint.link(b.id).backlog(Lane.DIRECT) < 1 << 20
        driver._endpoint.link(b.id).close(0x10, "test", driver._loop.time())
        driver._schedule_turn()
        with pytest.raises((LinkError, NodeClosed)):
            await asyncio.wait_for(flooding, WAIT_S)
        assert not driver._direct_waiters


async def test_a_parent_is_held_while_a_child_has_no_room_and_released_whatever_becomes_of_it(
    pki,
):
    async with cluster(pki, "abc") as (a, b, c):
        driver = a._driver
        for end in ("unblock", "link down", "time"):
            await until(lambda: driver._endpoint.link(b.id) and driver._endpoint.link(c.id))
            now = driver._loop.time()
            driver._blocked[c.id, Lane.GOSSIP] = _Blocked(now, now, 0)
            driver._blocked_by[c.id, Lane.GOSSIP] = {b.id: None}
            driver._hold((b.id, Lane.GOSSIP), True)
            assert driver._endpoint.link(b.id)._held[Lane.GOSSIP]
            match end:
                case "unblock":
                    driver._on_writable((c.id, Lane.GOSSIP), now)
                case "link down":
                    driver._endpoint.link(c.id).close(0x10, "test", now)
                    driver._schedule_turn()
                    await until(lambda: not driver._blocked)
                case "time":
                    driver._fire_blocked(now + 5.0)
                    driver._congested.clear()
            assert not driver._endpoint.link(b.id)._held[Lane.GOSSIP]
            assert not driver._held
            assert not driver._blocked_by


async def test_a_replaced_parent_link_stays_held_until_released(pki):
    async with cluster(pki, "ab") as (a, b):
        driver = a._driver
        old = driver._endpoint.link(b.id)
        driver._hold((b.id, Lane.GOSSIP), True)
        assert driver._endpoint.replace(b.id, driver._loop.time())
        driver._schedule_turn()
        await until(lambda: driver._endpoint.link(b.id) is not old)
        assert driver._endpoint.link(b.id)._held[Lane.GOSSIP]
        driver._hold((b.id, Lane.GOSSIP), False)
        assert not driver._endpoint.link(b.id)._held[Lane.GOSSIP]


# --- joining ------------------------------------------------------------------------------------


async def test_nodes_that_join_each_other_by_name_at_once_both_have_their_answer(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        ports = [each.address.rpartition(":")[2] for each in (a, b)]
        joined = await asyncio.gather(
            a.join([f"localhost:{ports[1]}"]),
            b.join([f"localhost:{ports[0]}"]),
        )
        assert joined == [1, 1]
        await until(lambda: not a._driver._dials and not b._driver._dials)


async def test_a_name_of_many_addresses_is_answered_by_whichever_lives(pki, monkeypatch):
    async with node(pki, "a") as a, node(pki, "b") as b:
        port = int(a.address.rpartition(":")[2])

        async def getaddrinfo(host, asked, **_):
            return [(2, 2, 17, "", (each, asked)) for each in ("127.0.0.9", "127.0.0.1")]

        monkeypatch.setattr(b._driver._loop, "getaddrinfo", getaddrinfo)
        assert await b.join([f"cluster.test:{port}"]) == 1
        assert not b._driver._dials


async def test_a_seed_name_that_is_ourselves_is_no_conflict(pki):
    events = []

    class Watch(Delegate):
        def on_security_event(self, kind, fields):
            events.append(kind)

    async with node(pki, "a", delegate=Watch()) as a:
        port = a.address.rpartition(":")[2]
        assert await a.join([f"localhost:{port}"]) == 0
        assert a.stats()["net_dialled"] == 0
        assert not events


async def test_a_name_that_does_not_resolve_is_named(pki, monkeypatch):
    async with node(pki, "a") as a:

        async def getaddrinfo(host, port, **_):
            raise OSError("Name or service not known")

        monkeypatch.setattr(a._driver._loop, "getaddrinfo", getaddrinfo)
        with pytest.raises(Exception, match=r"nowhere\.test:7946 does not resolve"):
            await a.join(["nowhere.test:7946"], timeout=0.3)


async def test_a_late_dns_answer_does_not_bring_back_an_unwanted_peer(pki, monkeypatch):
    async with cluster(pki, "ab") as (a, b):
        driver, wanted = a._driver, []
        monkeypatch.setattr(driver._endpoint, "want", lambda *args: wanted.append(args))
        monkeypatch.setattr(driver.core, "wants", lambda peer: False)
        driver._perform([Link(b.id, ("localhost:9",))], driver._loop.time())
        await asyncio.gather(*driver._resolving)
        assert not wanted


async def test_seeds_as_one_string_are_refused_with_the_list_to_write(pki):
    async with node(pki, "a") as a:
        with pytest.raises(ConfigError, match="give a list"):
            await a.join("127.0.0.1:7946")


async def test_being_shown_our_own_present_record_is_no_conflict(pki):
    """A peer greeted us on a link that we never saw up; we have broadcast meanwhile."""
    async with node(pki, "a") as a, node(pki, "b") as b:
        await a.broadcast(b"before any link")
        record = a._driver.core.record
        real = b._driver._endpoint._yours
        b._driver._endpoint._yours = lambda peer: record if peer == a.id else real(peer)
        await a.join([b.address])
        await a.wait_for_peers(1)
        assert a.health().status is not HealthStatus.UNHEALTHY
        assert a._driver.epoch == record.epoch


async def test_a_raised_epoch_is_kept_in_state_dir(pki, tmp_path, monkeypatch):
    async with node(pki, "b") as b:
        async with node(pki, "a") as a:
            await a.join([b.address])
            await a.wait_for_peers(1)
            epoch = a._driver.epoch
        again = node(pki, "a", state_dir=tmp_path)
        monkeypatch.setattr(again, "_new_epoch", lambda _recovered: epoch - 3_600_000)
        async with again:
            await again.join([b.address])
            await again.wait_for_peers(1)
            assert (tmp_path / "epoch").read_text() == str(epoch + 1)


# --- addresses ----------------------------------------------------------------------------------


async def test_ipv6_nodes_work_end_to_end(pki):
    async with (
        Node(quic(pki, "a"), PlumtreeConfig.lan(), listen="[::1]:0") as a,
        Node(quic(pki, "b"), PlumtreeConfig.lan(), listen="[::1]:0") as b,
    ):
        assert a.address.startswith("[::1]:")
        assert await b.join([a.address]) == 1
        await a.wait_for_peers(1)
        async with b.subscribe() as messages:
            await a.broadcast(b"six")
            (message,) = await collect(messages, 1)
            assert message.payload == b"six"
        assert b.peers()[0].address == a.address


async def test_advertise_without_a_port_takes_the_bound_one(pki):
    async with (
        Node(quic(pki, "a"), listen="0.0.0.0:0", advertise="127.0.0.1") as a,
        Node(quic(pki, "b"), listen="[::1]:0", advertise="::1") as b,
        node(pki, "c") as c,
    ):
        port = a._driver._socket.address[1]
        assert a.address == f"127.0.0.1:{port}"
        assert b.address == f"[::1]:{b._driver._socket.address[1]}"
        assert await c.join([a.address]) == 1


@pytest.mark.parametrize(
    "advertise", ["", ":7946", "0.0.0.0", "[::]:1", "a b", "host:99999", "[::1", "host:port"]
)
def test_an_advertise_that_nobody_could_dial_is_refused_at_once(pki, advertise):
    with pytest.raises(ConfigError, match=r"advertise|host:port|bracket"):
        Node(quic(pki, "a"), listen="0.0.0.0:0", advertise=advertise)


# --- queries ------------------------------------------------------------------------------------


async def test_stats_hold_the_counters_of_all_layers(pki):
    async with cluster(pki, "ab") as (a, _b):
        stats = a.stats()
        assert stats["net_datagrams_in"] > 0
        assert stats["swim_probes_failed"] == 0
        assert stats["tree_pushed"] == 0
        assert all(type(value) is int for value in stats.values())


async def test_health_of_a_node_whose_links_are_all_gone_is_unhealthy(pki, monkeypatch):
    async with cluster(pki, "ab") as (a, _b):
        assert a.health().status is HealthStatus.HEALTHY
        monkeypatch.setattr(a._driver.core, "peers", list)
        assert a.health().status is HealthStatus.UNHEALTHY
        assert "no link" in a.health().reasons[0]


async def test_health_of_a_draining_a_closed_and_a_new_node(pki):
    a = node(pki, "a")
    assert a.health().reasons == ("the node is new",)
    async with a:
        await a.drain()
        assert a.health().status is HealthStatus.DEGRADED
        assert a.health().reasons == ("draining",)
    assert a.health().status is HealthStatus.UNHEALTHY
    assert a.health().reasons == ("the node is closed",)


async def test_health_tells_the_worst_first(pki, monkeypatch):
    async with cluster(pki, "ab") as (a, _b):
        monkeypatch.setattr(a._driver.core, "peers", list)
        monkeypatch.setattr(a._driver.core.broadcasts, "missing_count", lambda: 1_000)
        assert [reason.split()[0] for reason in a.health().reasons] == ["no", "1000"]


async def test_few_grafts_prove_nothing(pki):
    async with node(pki, "a") as a:
        for _ in range(9):
            a._note("graft_failed")
        assert a.health().status is HealthStatus.HEALTHY
        a._note("graft_failed")
        assert a.health().status is HealthStatus.UNHEALTHY


async def test_events_that_happened_before_shutdown_are_still_read(pki):
    async with cluster(pki, "ab") as (a, _b):
        events = a.events()
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        for number in range(3):
            a._security_event("limit.hit", {"number": number})
        await a.shutdown()
        got = [await waiting] + [event async for event in events]
        assert [e.detail["number"] for e in got if e.detail.get("kind") == "limit.hit"] == [0, 1, 2]


async def test_nothing_is_delivered_after_shutdown(pki):
    got = []

    class Keep(Delegate):
        def on_deliver(self, message):
            got.append(message)

    async with cluster(pki, "ab", delegates={"a": Keep()}) as (a, b):
        driver = a._driver
        await a.shutdown()
        bundle = wire.build_bundle(
            origin=b._driver.core.key, epoch=1, first=1, messages=[("", b"late")]
        )
        driver._perform([Deliver(bundle, 1, b.id)], time.monotonic())
        assert not got
        assert driver.counters.errors == 0


async def test_x19_a_peer_that_comes_and_goes_leaves_no_task_timer_or_descriptor(pki):
    loop = asyncio.get_running_loop()

    def held(a):
        endpoint = a._driver._endpoint
        return {
            "descriptors": len(os.listdir("/dev/fd")),
            "tasks": len(asyncio.all_tasks()),
            "timers": sum(not each.cancelled() for each in loop._scheduled),
            "links": len(endpoint._links),
            "connection ids": len(endpoint._by_cid),
            "pairs": len(endpoint._pairs),
            "accounts": len(a._driver._accounts._accounts),
        }

    async with node(pki, "a") as a:

        async def visit():
            async with node(pki, "b") as b:
                await b.join([a.address])
                await a.wait_for_peers(1)
                await b.broadcast(b"here")
            await until(lambda: not a.peers() and not a._driver._endpoint._links)

        await visit()
        before = held(a)
        for _ in range(12):
            await visit()
        after = held(a)
    # A moment may hold a few more than another; what each visit left would be a dozen.
    more = {name: after[name] - before[name] for name in after if after[name] > before[name] + 3}
    assert more == {}


# --- no room ------------------------------------------------------------------------------------


async def test_a_link_that_is_turned_away_closes_as_overloaded_and_nobody_is_suspected(pki):
    async with cluster(pki, "abc") as (a, b, c):
        codes = []
        endpoint = b._driver._endpoint
        poll = endpoint.poll

        def note():
            events = poll()
            codes.extend(each.code for each in events if isinstance(each, LinkDown))
            return events

        endpoint.poll = note
        driver = a._driver
        driver._perform([TurnAway(b.id)], driver._loop.time())
        driver._schedule_turn()
        await until(lambda: codes)
        assert codes[0] == CloseCode.OVERLOADED
        # Both still want it in a cluster of three, so it comes back, a little later.
        await until(lambda: a._driver.linked(b.id))
        assert {member.state for member in c.members()} == {MemberState.ALIVE}


async def test_who_was_turned_away_tries_whom_it_was_told_of_and_gets_in_once_there_is_room(
    pki, monkeypatch
):
    async with cluster(pki, "ab") as (a, b):
        cores = [each._driver.core for each in (a, b)]
        monkeypatch.setattr(core, "JOINERS_MAX", 0)
        monkeypatch.setattr(core.Core, "_has_little_room", lambda _: True)
        for each in cores:
            # In so small a cluster all are neighbours; to these it shall be a stranger.
            monkeypatch.setattr(each._overlay, "member_alive", lambda *_, **__: [])
        async with node(pki, "c") as c:
            await c.join([a.address])
            # Of b it knows by a's word alone.
            await until(lambda: all(each.turned_away for each in cores))
            assert all(c.id not in {view.node_id for view in each.peers()} for each in cores)
            monkeypatch.undo()
            await c.wait_for_peers(2, timeout=20)
            await a.wait_for_peers(2, timeout=20)
            await until(lambda: c._driver.linked(a.id) and c._driver.linked(b.id))


async def test_what_fails_in_the_look_of_every_second_ends_no_later_look(pki, monkeypatch, caplog):
    monkeypatch.setattr("plumtree_quic.node.LOOK_EVERY_S", 0.01)
    a = node(pki, "a")
    looks = []

    def fail():
        looks.append("losses")
        raise RuntimeError("counters cannot be read")

    monkeypatch.setattr(a, "_tell_losses", fail)
    monkeypatch.setattr(a, "_look_at_files", lambda: looks.append("files"))
    async with a:
        await until(lambda: len(looks) >= 4)
    assert looks[:4] == ["losses", "files"] * 2
    assert "going on" in caplog.text
    caplog.clear()
