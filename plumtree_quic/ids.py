"""NodeId, MemberKey and MessageId: the value types that name nodes and messages; and which texts
may name anything.

No parsing of certificates here (security/identity.py) and no wire format (wire.py).
"""

import hashlib
import re
from functools import lru_cache
from typing import NewType

import attrs

from plumtree_quic.errors import ConfigError

__all__ = [
    "NODE_ID_BYTES_MAX",
    "ZONE_BYTES_MAX",
    "MemberKey",
    "MessageId",
    "NodeId",
    "check_text",
    "member_key",
]

NODE_ID_BYTES_MAX = 128
ZONE_BYTES_MAX = 64
"""Bytes of a zone's name."""

# Control characters, line and paragraph ends, marks and overrides of writing direction.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

_TRUST_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?\Z")
_SEGMENT = re.compile(r"[a-z0-9._-]+\Z")

MemberKey = NewType("MemberKey", bytes)
"""16 bytes of SHA-256(NodeId): how facts and bundles name a node on the wire."""


class NodeId(str):
    """The identity of one running node: ``spiffe://<trust-domain>/<path>``.

    It is the one URI in the node certificate's subjectAltName, compared byte by byte. Only
    `parse` makes one from text that was not checked before.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> "NodeId":
        """Check `text` by the rules below and return it as a NodeId.

        ASCII, at most 128 bytes; lower case, digits, dot, underscore and hyphen; a path of one
        or more segments, none empty, ``.`` or ``..``; no port, user, query, fragment or escape.
        (SPIFFE-ID section 2, narrowed so that two spellings of one identity cannot exist.)

        Raises:
            ConfigError: `text` breaks one of the rules; the message says which.
        """
        if len(text.encode("utf-8", "replace")) > NODE_ID_BYTES_MAX:
            raise ConfigError(
                f"identity is longer than {NODE_ID_BYTES_MAX} bytes: {text[:40]!r}..."
            )
        scheme, separator, rest = text.partition("://")
        if scheme != "spiffe" or not separator:
            raise ConfigError(f"identity {text!r} must start with 'spiffe://'")
        trust_domain, slash, path = rest.partition("/")
        if not _TRUST_DOMAIN.match(trust_domain):
            raise ConfigError(
                f"identity {text!r}: trust domain must be lower-case letters, digits, '.', '_', '-'"
            )
        if not slash or not path:
            raise ConfigError(f"identity {text!r} has no path; expected spiffe://domain/node/name")
        for segment in path.split("/"):
            if segment in ("", ".", "..") or not _SEGMENT.match(segment):
                raise ConfigError(
                    f"identity {text!r}: path segment {segment!r} is not allowed "
                    "(lower-case letters, digits, '.', '_', '-'; not empty, '.' or '..')"
                )
        return cls(text)

    @property
    def trust_domain(self) -> str:
        """The part between ``spiffe://`` and the first slash."""
        return self[9:].partition("/")[0]

    @property
    def path(self) -> str:
        """The path, with its leading slash."""
        return "/" + self[9:].partition("/")[2]

    @property
    def name(self) -> str:
        """The last path segment: what people call the node. Not unique; never compare by it."""
        return self.rpartition("/")[2]


@lru_cache(maxsize=65536)
def member_key(node_id: NodeId) -> MemberKey:
    """Return the 16-byte key by which the wire names `node_id`."""
    return MemberKey(hashlib.sha256(node_id.encode("ascii")).digest()[:16])


@attrs.frozen(order=True)
class MessageId:
    """Names one message for ever: its origin, the origin's start epoch, a sequence number.

    epoch: milliseconds, larger at each start of the origin. seq: from 1, without holes.
    """

    origin: NodeId
    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.origin.name}/{self.epoch}/{self.seq}"


def check_text(text: str, bytes_max: int) -> str:
    """Return `text` when it is UTF-8 of at most `bytes_max` bytes without characters that change
    how the text around them is shown (control characters, line ends, writing direction).

    Raises:
        ConfigError: it is not; both ends apply the same rule.
    """
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise ConfigError("text is not valid Unicode")
    if size > bytes_max:
        raise ConfigError(f"text is {size} bytes long, the limit is {bytes_max}")
    if _INVISIBLE.search(text):
        raise ConfigError("text contains control characters")
    return text
