"""The Unix socket of a running node: who may use it, and what it answers."""

import asyncio
import base64
import json
import os
import socket
import stat

import pytest

from plumtree_quic import ConfigError, LinkError, Node, PlumtreeConfig, PlumtreeError, QuicConfig
from plumtree_quic.admin.control import ControlServer, ask, socket_path, stream
from plumtree_quic.ids import member_key
from plumtree_quic.node import Message
from plumtree_quic.store.contract import Kept
from plumtree_quic.wire import build_bundle
from tests.rigs.pki import Pki
from tests.rigs.waiting import WAIT_S, until


@pytest.fixture
async def running(tmp_path):
    pki = Pki("test")
    cert = pki.node("a")
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    async with Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0") as node:
        control = ControlServer(node, tmp_path)
        await control.start()
        yield node, control, tmp_path
        await control.close()


async def test_status_names_the_node_its_members_and_its_health(running):
    node, _control, directory = running
    answer = await asyncio.to_thread(ask, socket_path(directory), {"op": "status"})
    assert answer["node_id"] == node.id
    assert answer["health"] == "healthy"
    assert [each["state"] for each in answer["members"]] == ["alive"]


async def test_publish_returns_the_message_id(running):
    node, _control, directory = running
    payload = base64.b64encode(b"x").decode()
    answer = await asyncio.to_thread(
        ask, socket_path(directory), {"op": "publish", "payload": payload, "topic": "t"}
    )
    assert answer["id"].startswith("a/")
    assert node.stats()["messages_accepted"] == 1


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"op": "explode"}, "unknown op"),
        ({"op": "publish", "payload": "!"}, "base64"),
        ({"op": "publish", "payload": "", "topic": "x" * 300}, "topic"),
        ({"op": "publish", "bytes": -1}, "bytes is a count"),
        ({"op": "publish", "bytes": True}, "bytes is a count"),
    ],
)
async def test_a_bad_request_is_answered_and_ends_nothing(running, request_, complaint):
    _node, _control, directory = running
    with pytest.raises(PlumtreeError, match=complaint):
        await asyncio.to_thread(ask, socket_path(directory), request_)
    await asyncio.to_thread(ask, socket_path(directory), {"op": "status"})


async def test_what_follows_a_request_is_published_as_it_is(running):
    node, _control, directory = running
    payload = b"\n{}\0" * 16_384
    async with node.subscribe(own=True) as messages:
        request = {"op": "publish", "bytes": len(payload)}
        answer = await asyncio.to_thread(ask, socket_path(directory), request, payload)
        message = await anext(messages)
        assert (str(message.id), message.payload) == (answer["id"], payload)


async def test_too_much_behind_a_request_is_refused_and_the_next_request_answered(running):
    _node, _control, directory = running
    reader, writer = await asyncio.open_unix_connection(str(socket_path(directory)))
    writer.write(b'{"op": "publish", "bytes": 1000000}\n' + bytes(1_000_000))
    writer.write(b'{"op": "status"}\n')
    answer = json.loads(await reader.readline())
    assert not answer["ok"]
    assert "max_message_size (65536)" in answer["error"]
    assert json.loads(await reader.readline())["ok"]
    writer.close()
    await writer.wait_closed()


async def test_who_goes_before_all_of_a_message_was_sent_ends_nothing(running, caplog):
    node, _control, directory = running
    _reader, writer = await asyncio.open_unix_connection(str(socket_path(directory)))
    writer.write(b'{"op": "publish", "bytes": 1000}\nhalf')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await asyncio.to_thread(ask, socket_path(directory), {"op": "status"})
    assert node.stats()["messages_accepted"] == 0
    assert not caplog.records


async def test_garbage_on_the_socket_ends_nothing(running):
    _node, _control, directory = running
    reader, writer = await asyncio.open_unix_connection(str(socket_path(directory)))
    writer.write(b"[1, 2]\n\x00\xff\n")
    assert json.loads(await reader.readline())["ok"] is False
    assert json.loads(await reader.readline())["ok"] is False
    writer.close()
    await writer.wait_closed()
    await asyncio.to_thread(ask, socket_path(directory), {"op": "status"})


async def test_the_socket_is_0600_and_goes_when_the_node_goes(running):
    _node, control, directory = running
    path = socket_path(directory)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await control.close()
    assert not path.exists()


async def test_a_second_node_with_the_same_state_directory_is_refused(running):
    node, _control, directory = running
    with pytest.raises(ConfigError, match="state directory"):
        await ControlServer(node, directory).start()


async def test_a_socket_that_a_killed_node_left_behind_is_replaced(running):
    node, control, directory = running
    await control.close()
    path = socket_path(directory)
    import socket

    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    again = ControlServer(node, directory)
    await again.start()
    await asyncio.to_thread(ask, path, {"op": "status"})
    await again.close()


async def test_another_users_connection_is_closed_unanswered(running, monkeypatch):
    _node, _control, directory = running
    uid = os.getuid()
    monkeypatch.setattr("plumtree_quic.admin.control.os.getuid", lambda: uid + 4711)
    monkeypatch.setattr("plumtree_quic.admin.control._peer_uid", lambda _writer: uid + 1)
    with pytest.raises(LinkError, match="closed"):
        await asyncio.to_thread(ask, socket_path(directory), {"op": "status"})


async def test_subscribe_streams_messages(running):
    node, _control, directory = running
    got = []

    def read():
        for message in stream(socket_path(directory), None):
            got.append(message)
            return

    reading = asyncio.create_task(asyncio.to_thread(read))
    await until(lambda: node._subscriptions)
    pki_peer = node._subscriptions[0]
    pki_peer.put(Message(node.id, 1, 1, "t", b"hi", 1, 0.0))
    await asyncio.wait_for(reading, WAIT_S)
    assert base64.b64decode(got[0]["payload"]) == b"hi"


async def test_an_ordered_subscription_streams_gaps_as_well(running):
    node, _control, directory = running
    got = []

    def read():
        for item in stream(socket_path(directory), None, "fifo"):
            got.append(item)
            if len(got) == 2:
                return

    reading = asyncio.create_task(asyncio.to_thread(read))
    await until(lambda: node._ordered)
    (reader,) = node._ordered
    message = Message(node.id, 1, 3, "t", b"hi", 1, 0.0)
    made = build_bundle(origin=member_key(node.id), epoch=1, first=3, messages=[("t", b"hi")])
    reader.take(Kept(0, made, 1, node.id), [message], 0.0)
    reader.close()
    await asyncio.wait_for(reading, WAIT_S)
    assert got[0] == {"gap": {"origin": node.id, "epoch": 1, "first": 1, "last": 2}}
    assert base64.b64decode(got[1]["payload"]) == b"hi"


async def test_an_order_that_is_unknown_is_refused(running):
    _node, _control, directory = running
    with pytest.raises(PlumtreeError, match="unknown order 'total'"):
        await asyncio.to_thread(next, stream(socket_path(directory), None, "total"))


async def test_no_node_behind_the_socket_says_how_to_start_one(tmp_path):
    with pytest.raises(LinkError, match="plumtree-quic node"):
        ask(socket_path(tmp_path), {"op": "status"})


async def test_the_socket_of_another_user_says_so(tmp_path, monkeypatch):
    # The superuser, as whom tests may run, is refused by no socket.
    def refuse(_socket, _path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(LinkError, match="belongs to another user"):
        ask(socket_path(tmp_path), {"op": "status"})


def test_a_path_too_long_for_a_unix_socket_is_named():
    with pytest.raises(ConfigError, match="shorter"):
        socket_path("/" + "x" * 120)


async def test_a_request_that_is_too_long_is_told_as_one_error(running):
    _node, _control, directory = running
    with pytest.raises(LinkError, match="closed the connection"):
        await asyncio.to_thread(
            ask, socket_path(directory), {"op": "publish", "payload": "x" * 8_000_000}
        )
    await asyncio.to_thread(ask, socket_path(directory), {"op": "status"})


async def test_a_subscriber_that_goes_away_is_forgotten_before_any_message_comes(running):
    node, _control, directory = running
    reader, writer = await asyncio.open_unix_connection(str(socket_path(directory)))
    writer.write(b'{"op": "subscribe"}\n')
    assert json.loads(await reader.readline()) == {"ok": True}
    assert len(node._subscriptions) == 1
    writer.close()
    await writer.wait_closed()
    await until(lambda: not node._subscriptions)


async def test_a_subscriber_that_falls_behind_is_told_and_ended(running):
    node, _control, directory = running
    reader, writer = await asyncio.open_unix_connection(str(socket_path(directory)))
    writer.write(b'{"op": "subscribe"}\n')
    await reader.readline()
    (subscription,) = node._subscriptions
    while subscription in node._subscriptions:
        subscription.put(Message(node.id, 1, 1, "t", b"x", 1, 0.0))
    async with asyncio.timeout(WAIT_S):
        while "ok" not in (answer := json.loads(await reader.readline())):
            assert answer["topic"] == "t"
    assert "behind" in answer["error"]
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "line", [b'{"op": "publish"}', b'{"op": "publish", "payload": [1]}', b"[" * 100_000, b"{"]
)
async def test_whatever_is_asked_is_answered(running, line):
    _node, _control, directory = running
    reader, writer = await asyncio.open_unix_connection(str(socket_path(directory)))
    writer.write(line + b"\n")
    answer = json.loads(await reader.readline())
    assert answer["ok"] is False
    assert answer["error"]
    writer.close()
    await writer.wait_closed()
