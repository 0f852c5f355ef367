"""The node's Unix socket: one JSON object a line, both ways. Never reachable over a network.

``STATE_DIR/admin.sock`` is made 0600, and the kernel is asked for the uid of whoever connects: a
node obeys the user that runs it (and root), and nobody else. Requests name an ``op``; each is
answered by one object with ``ok``, but ``subscribe``, which goes on with one object a message (and,
with ``order`` "fifo", a gap). ``publish`` has its ``payload`` in base64, or says in ``bytes`` how
many follow its line as they are.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from plumtree_quic.errors import ConfigError, LinkError, MessageTooLarge, PlumtreeError
from plumtree_quic.node import Gap, Message, Node, OrderedSubscription, Subscription

__all__ = ["SOCKET_NAME", "ControlServer", "ask", "socket_path", "stream"]

logger = logging.getLogger("plumtree_quic")

SOCKET_NAME = "admin.sock"
# A Unix socket's path is at most 107 bytes on Linux (unix(7)).
_PATH_BYTES_MAX = 107
# 64 KiB of payload in base64, and room for the rest.
_LINE_BYTES_MAX = 128 * 1024
# A reader of the socket that falls further behind is told so and ended. A guess.
_SUBSCRIPTION_MESSAGES_MAX = 1_024
_SUBSCRIPTION_BYTES_MAX = 64 << 20
# How long a command waits for its answer, and for how many bytes of a message a second more.
_ANSWER_S = 30.0
_ANSWER_BYTES_PER_S = 65_536


def socket_path(state_dir: str | Path) -> Path:
    """Return the path of the socket in `state_dir`. Raises ConfigError when it is too long."""
    path = Path(state_dir) / SOCKET_NAME
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise ConfigError(
            f"{str(path)!r} is longer than {_PATH_BYTES_MAX} bytes, the limit for a Unix socket; "
            "choose a shorter state directory"
        )
    return path


class ControlServer:
    """Serves one node's socket from `start` to `close`."""

    def __init__(self, node: Node, state_dir: str | Path) -> None:
        self._node = node
        self._path = socket_path(state_dir)
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self.leave_asked = asyncio.Event()

    async def start(self) -> None:
        """Make the socket. Raises ConfigError when another live process serves it."""
        path = self._path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise ConfigError(f"{path} exists and is not a socket; move it away")
            if _answers(path):
                raise ConfigError(
                    f"another node runs with the state directory {path.parent}; give each node "
                    "a state directory of its own"
                )
            path.unlink()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        except OSError as error:
            listening.close()
            raise ConfigError(f"{path} cannot be made: {error.strerror}")
        finally:
            os.umask(mask)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listening, limit=_LINE_BYTES_MAX
        )

    async def close(self) -> None:
        """Remove the socket and end all sessions."""
        if self._server is None:
            return
        self._server.close()
        for task in tuple(self._sessions):
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        try:
            if _peer_uid(writer) not in (os.getuid(), 0):
                logger.warning("admin socket: another user was refused")
                return
            while line := await reader.readline():
                await self._answer(line, reader, writer)
        except (ConnectionError, EOFError, ValueError, asyncio.CancelledError):
            pass  # the other side went away, wrote an endless line, or we close
        finally:
            self._sessions.discard(task)
            writer.close()

    async def _answer(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("a request is a JSON object")
            if request.get("op") == "subscribe":
                await self._subscribe(request, reader, writer)
                return
            answer = {"ok": True, **await self._run(request, reader)}
        except (PlumtreeError, ValueError, TypeError, RecursionError) as error:
            answer = {"ok": False, "error": str(error) or type(error).__name__}
        await _write(writer, answer)

    async def _run(self, request: dict[str, Any], reader: asyncio.StreamReader) -> dict[str, Any]:
        node = self._node
        match request.get("op"):
            case "status":
                return status(node)
            case "publish":
                payload = await self._payload(request, reader)
                receipt = await node.broadcast(payload, topic=str(request.get("topic", "")))
                return {"id": str(receipt.id)}
            case "drain":
                await node.drain()
                return {}
            case "leave":
                self.leave_asked.set()
                return {}
            case other:
                raise ValueError(f"unknown op {other!r}")

    async def _payload(self, request: dict[str, Any], reader: asyncio.StreamReader) -> bytes:
        size = request.get("bytes")
        if size is None:
            try:
                return base64.b64decode(request.get("payload", "!"), validate=True)
            except (binascii.Error, TypeError):
                raise ValueError("payload is missing or not base64")
        if type(size) is not int or size < 0:
            raise ValueError("bytes is a count")
        largest = self._node.config.max_message_size
        if size > largest:
            # One more than is kept: it all comes, so that whoever sends it reads the answer.
            while size and (some := await reader.read(min(size, _LINE_BYTES_MAX))):
                size -= len(some)
            raise MessageTooLarge(
                f"payload is above max_message_size ({largest}); split it, or raise the limit on "
                "every node (PLUMTREE_MAX_MESSAGE_SIZE)"
            )
        return await reader.readexactly(size)

    async def _subscribe(
        self,
        request: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        async with self._subscription(request) as messages:
            # Nothing more is to be said by the other side: its end is the subscription's, also
            # when no message ever comes.
            gone = asyncio.ensure_future(reader.read(1))
            gone.add_done_callback(lambda _: messages.close())
            try:
                await _write(writer, {"ok": True})
                async for item in messages:
                    await _write(writer, _gap(item) if isinstance(item, Gap) else _message(item))
            finally:
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)

    def _subscription(self, request: dict[str, Any]) -> Subscription | OrderedSubscription:
        topic, order = request.get("topic"), request.get("order", "unordered")
        wanted = str(topic) if topic is not None else None
        since = request.get("since")
        at = float(since) if since is not None else None
        subscribe = partial(
            self._node.subscribe,
            wanted,
            buffer=_SUBSCRIPTION_MESSAGES_MAX,
            buffer_bytes=_SUBSCRIPTION_BYTES_MAX,
            since=at,
        )
        if order == "fifo":
            return subscribe(order="fifo")
        if order != "unordered":
            raise ValueError(f"unknown order {order!r}")
        return subscribe()


def status(node: Node) -> dict[str, Any]:
    """Return what `plumtree-quic status` shows, ready for JSON."""
    health = node.health()
    return {
        "node_id": node.id,
        "address": node.address,
        "health": health.status.value,
        "reasons": list(health.reasons),
        "members": [
            {
                "node_id": each.node_id,
                "state": each.state.name.lower(),
                "zone": each.zone,
                "addresses": list(each.addresses),
                "epoch": each.epoch,
                "incarnation": each.incarnation,
            }
            for each in node.members()
        ],
        "peers": [
            {
                "node_id": each.node_id,
                "address": each.address,
                "zone": each.zone,
                "eager": each.eager,
                "rtt_ms": round(each.rtt_s * 1000, 3),
            }
            for each in node.peers()
        ],
        "stats": node.stats(),
    }


def ask(path: Path, request: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
    """Send one request to a running node and return its answer (blocking, for commands).

    payload: what follows the request as it is.

    Raises:
        LinkError: no node serves `path`, or it went away.
        PlumtreeError: the node refused the request; the message is the node's.
    """
    with _connect(path, _ANSWER_S + len(payload) / _ANSWER_BYTES_PER_S) as connection:
        _send(connection, request, payload)
        with connection.makefile("rb") as lines:
            return _checked(_read(lines.readline, path))


def stream(
    path: Path, topic: str | None, order: str = "unordered", since: float | None = None
) -> Iterator[dict[str, Any]]:
    """Yield messages that a running node delivers, until it goes away.

    order: "fifo" for each sender's in order; what did not come in time is an object with ``gap``.
    since: also what was broadcast from then on, in seconds since 1970; 0: all there is.

    Raises:
        LinkError: no node serves `path`.
        PlumtreeError: the node ended it, for one because this reader fell behind.
    """
    with _connect(path, None) as connection:
        _send(connection, {"op": "subscribe", "topic": topic, "order": order, "since": since})
        with connection.makefile("rb") as lines:
            _checked(_read(lines.readline, path))
            for line in lines:
                value = json.loads(line)
                yield _checked(value) if "ok" in value else value


def _message(message: Message) -> dict[str, Any]:
    return {
        "id": str(message.id),
        "origin": message.origin,
        "topic": message.topic,
        "payload": base64.b64encode(message.payload).decode(),
        "hops": message.hops,
    }


def _gap(gap: Gap) -> dict[str, Any]:
    return {"gap": {"origin": gap.origin, "epoch": gap.epoch, "first": gap.first, "last": gap.last}}


async def _write(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    writer.write(json.dumps(value).encode() + b"\n")
    await writer.drain()


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _connect(path: Path, timeout_s: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(str(path))
    except PermissionError:
        connection.close()
        raise LinkError(
            f"{path} belongs to another user: only who started the node may speak to it"
        )
    except OSError as error:
        connection.close()
        raise LinkError(
            f"no node answers at {path} ({error.strerror}): start one with "
            f"`plumtree-quic node --state-dir {path.parent}`, or name its directory with "
            "--state-dir"
        )
    return connection


def _send(connection: socket.socket, request: dict[str, Any], payload: bytes = b"") -> None:
    # A node that ends the connection early may have said why: what it answered tells, not this.
    with contextlib.suppress(ConnectionError):
        connection.sendall(json.dumps(request).encode() + b"\n")
        connection.sendall(payload)


def _read(readline: Any, path: Path) -> dict[str, Any]:
    try:
        line = readline()
    except ConnectionResetError:
        line = b""
    except OSError as error:
        raise LinkError(f"the node at {path} did not answer: {error}")
    if not line:
        raise LinkError(f"the node at {path} closed the connection (is it another user's?)")
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if not answer.pop("ok"):
        raise PlumtreeError(answer.get("error", "refused"))
    return answer
