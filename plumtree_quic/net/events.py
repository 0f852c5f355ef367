"""What an endpoint tells its driver. Values only."""

from typing import TYPE_CHECKING

import attrs

from plumtree_quic.errors import PlumtreeError
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Ack, Hello, Lane, Message, Ping

if TYPE_CHECKING:
    from plumtree_quic.net.link import Link

__all__ = [
    "DatagramReceived",
    "DialFailed",
    "Event",
    "Fresh",
    "LinkDown",
    "LinkReplaced",
    "LinkUp",
    "Received",
    "SecurityEvent",
    "Writable",
]


@attrs.frozen
class LinkUp:
    """A peer without a link has one: greeted, authenticated. dialled_address: when we dialled."""

    link: "Link"
    peer: NodeId
    hello: Hello
    dialled_address: tuple[str, int] | None


@attrs.frozen
class LinkReplaced:
    """Sends to `peer` go to `link` from now on; the older link delivers what it holds."""

    link: "Link"
    peer: NodeId
    hello: Hello


@attrs.frozen
class LinkDown:
    """The peer has no link any more; what was on its way may be lost."""

    link: "Link"
    peer: NodeId
    code: int
    reason: str
    by_peer: bool


@attrs.frozen
class DialFailed:
    """A dial came to nothing. peer: whom we meant to reach, when we meant anybody. refused: the
    peer's alert says that our certificate is at fault, which no hammering heals.
    """

    address: tuple[str, int]
    peer: NodeId | None
    error: PlumtreeError
    refused: bool = False


@attrs.frozen
class Received:
    """A message on one of the lanes, in order per lane."""

    link: "Link"
    peer: NodeId
    message: Message


@attrs.frozen
class DatagramReceived:
    """A probe or its echo."""

    link: "Link"
    peer: NodeId
    message: Ping | Ack


@attrs.frozen
class Writable:
    """A lane that had no room has at least half of its window again."""

    link: "Link"
    peer: NodeId
    lane: Lane


@attrs.frozen
class Fresh:
    """Acknowledgements from the peer have advanced; at most ten times a second."""

    link: "Link"
    peer: NodeId


@attrs.frozen
class SecurityEvent:
    """Something for the security log. All text from peers in `fields` is escaped and cut."""

    kind: str
    fields: dict[str, object]


Event = (
    LinkUp
    | LinkReplaced
    | LinkDown
    | DialFailed
    | Received
    | DatagramReceived
    | Writable
    | Fresh
    | SecurityEvent
)
