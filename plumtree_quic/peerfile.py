"""The known-peer file: where members lived when we last knew, for a start whose seeds are silent.

Text: a line with the format's name and the SHA-256 of the rest, then one JSON object. It
proves nothing and grants nothing: its addresses are dialled like seeds, and whoever answers shows
a certificate like anybody else. So a file that is damaged, of another cluster, or written by an
enemy costs a log line and a few dials; reading it never raises. It is written whole or not at all:
write, fsync, rename, fsync of the directory.
"""

import contextlib
import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from plumtree_quic.errors import ConfigError
from plumtree_quic.ids import NodeId
from plumtree_quic.net.udp import parse_address

__all__ = ["PEERS_MAX", "KnownPeer", "PeerFile"]

logger = logging.getLogger("plumtree_quic")

PEERS_MAX = 1_000
"""Members that are kept; the first that are given."""
ADDRESSES_MAX = 8
ADDRESS_BYTES_MAX = 262
# What PEERS_MAX members need at the very most, and no more is read.
FILE_BYTES_MAX = 4 << 20
_FORMAT = b"plumtree-quic peers 1"


@attrs.frozen
class KnownPeer:
    """A member and where it could be dialled, "host:port"."""

    node_id: NodeId
    addresses: tuple[str, ...]


class PeerFile:
    """The file of one node.

    Args:
        path: it, in a directory that exists; `path` with ".new" behind it is ours as well.
        trust_domain, cluster: whose members it holds; a file of others is ignored.
    """

    def __init__(self, path: Path, trust_domain: str, cluster: str) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".new")
        self._trust_domain = trust_domain
        self._cluster = cluster

    def read(self) -> list[KnownPeer]:
        """All that is good in the file, at most PEERS_MAX; nothing, and a log line, if it is not.

        Never raises for what is in it, or for not getting at it.
        """
        try:
            content = self._load()
        except FileNotFoundError:
            return []
        except OSError as error:
            self._ignore(f"it cannot be read: {error.strerror or error}")
            return []
        try:
            return self._parse(content)
        except _Unusable as error:
            self._ignore(str(error))
        except (ValueError, RecursionError):
            self._ignore("it is damaged: not the JSON that we write")
        return []

    def write(self, peers: Iterable[KnownPeer]) -> None:
        """Replace the file by these, the first PEERS_MAX of them; 0600.

        Raises:
            OSError: it could not be done; the old file is as it was.
        """
        kept: list[tuple[str, tuple[str, ...]]] = []
        for peer in peers:
            addresses = _good_addresses(peer.addresses)
            if addresses and len(kept) < PEERS_MAX:
                kept.append((str(peer.node_id), addresses))
        body = json.dumps(
            {"trust_domain": self._trust_domain, "cluster": self._cluster, "peers": kept},
            indent=0,
        ).encode("ascii")
        # What a crash left behind, or somebody put there for us to write through.
        with contextlib.suppress(FileNotFoundError):
            self._partial.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self._partial, flags, 0o600), "wb") as file:
            file.write(_FORMAT + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        self._partial.replace(self._path)
        # Only now is the new name on the disk, too.
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _load(self) -> bytes:
        # Not blocking: opening a FIFO would wait for its writer, for ever.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(self._path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError("not a regular file")
            return file.read(FILE_BYTES_MAX + 1)

    def _parse(self, content: bytes) -> list[KnownPeer]:
        if len(content) > FILE_BYTES_MAX:
            raise _Unusable(f"it is larger than {FILE_BYTES_MAX >> 20} MiB")
        head, _, body = content.partition(b"\n")
        if not head.startswith(_FORMAT + b" "):
            raise _Unusable("it is not a file of known peers in a format that we know")
        if head[len(_FORMAT) + 1 :] != hashlib.sha256(body).hexdigest().encode():
            raise _Unusable("it is damaged: its checksum does not fit")
        value = json.loads(body)
        if not isinstance(value, dict) or not isinstance(value.get("peers"), list):
            raise _Unusable("it is damaged: fields are missing")
        if (value.get("trust_domain"), value.get("cluster")) != (self._trust_domain, self._cluster):
            raise _Unusable("it is of another cluster")
        peers = [self._parse_peer(each) for each in value["peers"][:PEERS_MAX]]
        return [peer for peer in peers if peer is not None]

    def _parse_peer(self, value: object) -> KnownPeer | None:
        """One entry; None for what could not be a member of ours."""
        match value:
            case [str(text), [*addresses]]:
                pass
            case _:
                return None
        try:
            node_id = NodeId.parse(text)
        except ConfigError:
            return None
        good = _good_addresses(addresses)
        if node_id.trust_domain != self._trust_domain or not good:
            return None
        return KnownPeer(node_id, good)

    def _ignore(self, why: str) -> None:
        logger.warning(
            "%s is ignored: %s", self._path, why, extra={"event": "peers.ignored", "reason": why}
        )


class _Unusable(Exception):
    """Nothing in the file is to be used; the message says why."""


def _good_addresses(addresses: Sequence[object]) -> tuple[str, ...]:
    # What a member says of itself may be any text, and what a file holds anything at all.
    return tuple(
        each for each in addresses[:ADDRESSES_MAX] if isinstance(each, str) and _is_address(each)
    )


def _is_address(value: str) -> bool:
    if len(value) > ADDRESS_BYTES_MAX or not value.isascii() or not value.isprintable():
        return False
    if " " in value:
        return False
    try:
        host, port = parse_address(value)
    except ConfigError:
        return False
    return bool(host) and port > 0
