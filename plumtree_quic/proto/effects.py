"""What a core asks for (orders) and what it has learnt (facts). Values only, no behaviour.

Every input of a core returns a list of these. One driver performs them over real links, the
simulator performs the same ones on a virtual network; counters, logs and traces are taken where
they cross that boundary.
"""

import attrs

from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.messages import Ack, Bundle, Chunk, Gossip, Message, Ping, Range, Record

__all__ = [
    "Covered",
    "Deliver",
    "DialSeed",
    "Effect",
    "Equivocated",
    "FloorMoved",
    "Forgotten",
    "GraftFailed",
    "GraftSent",
    "Greeted",
    "Link",
    "MemberFailed",
    "MemberJoined",
    "MemberLeft",
    "MemberSuspected",
    "MemberUpdated",
    "PeerDemoted",
    "PeerPromoted",
    "PruneSent",
    "Push",
    "Relink",
    "Send",
    "SendDatagram",
    "Serve",
    "Skipped",
    "Strike",
    "Superseded",
    "TurnAway",
    "Unlink",
]


# --- orders -------------------------------------------------------------------------------------


@attrs.frozen
class Send:
    """Queue `message` on the link to `peer`, on the lane that LANE_OF names."""

    peer: NodeId
    message: Message


@attrs.frozen
class Push:
    """Queue one and the same frame, of gossip or bulk lane, on the links to all of `peers`."""

    peers: tuple[NodeId, ...]
    message: Gossip | Chunk


@attrs.frozen
class Serve:
    """Send `peer` what the store holds of these ranges, as Repair, when its sync lane has room."""

    peer: NodeId
    origin: MemberKey
    epoch: int
    ranges: tuple[Range, ...]


@attrs.frozen
class SendDatagram:
    """Send a probe or its echo at once, or drop it: a stale one is worth nothing."""

    peer: NodeId
    message: Ping | Ack


@attrs.frozen
class Link:
    """The overlay wants a link to `peer`: dial it if there is none, and keep it."""

    peer: NodeId
    addresses: tuple[str, ...]


@attrs.frozen
class Unlink:
    """The overlay no longer wants the link to `peer`; it goes when the peer wants it neither."""

    peer: NodeId


@attrs.frozen
class Relink:
    """The link to `peer` has failed, and not the peer, as far as we can tell: dial it anew.

    What the old link still brings counts until the new one is up.
    """

    peer: NodeId


@attrs.frozen
class TurnAway:
    """There is no room for the link to `peer`, here or there: close it as OVERLOADED."""

    peer: NodeId


@attrs.frozen
class DialSeed:
    """Resolve and dial `address` ("host:port"), whoever answers there."""

    address: str


# --- facts: broadcast ---------------------------------------------------------------------------


@attrs.frozen
class Deliver:
    """First copy of `bundle`, after `hop` links, by way of `peer`; due to the application.

    history: it was before our time, and asked for by somebody who wants what was.
    """

    bundle: Bundle
    hop: int
    peer: NodeId
    history: bool = False


@attrs.frozen
class Skipped:
    """These count as seen from now on and were not delivered: refused, or given up."""

    origin: MemberKey
    epoch: int
    first: int
    last: int


@attrs.frozen
class FloorMoved:
    """These of the stream, and no others, are said to be from before our time."""

    origin: MemberKey
    epoch: int
    floor: tuple[Range, ...]


@attrs.frozen
class Greeted:
    """What was before our time is known; all that comes from now on is wanted."""


@attrs.frozen
class Forgotten:
    """This epoch is so old that nothing of it counts any more."""

    origin: MemberKey
    epoch: int


@attrs.frozen
class Covered:
    """Who has number `seq` of our own, as far as round `number` found out: the begins of their keys
    (proto/coverage.py). Hearsay.
    """

    epoch: int
    seq: int
    number: int
    keys: tuple[bytes, ...]


@attrs.frozen
class PeerPromoted:
    """We push at least one origin to `peer`, and did not before."""

    peer: NodeId


@attrs.frozen
class PeerDemoted:
    """We no longer push anything to `peer`."""

    peer: NodeId


@attrs.frozen
class GraftSent:
    """Announced and not received in time: `peer` was asked for these ranges."""

    peer: NodeId
    origin: MemberKey
    ranges: tuple[Range, ...]


@attrs.frozen
class GraftFailed:
    """Nobody served this range after all retries; anti-entropy goes on with it."""

    origin: MemberKey
    epoch: int
    missing: Range


@attrs.frozen
class PruneSent:
    """`peer` was told to push this origin here no more."""

    peer: NodeId
    origin: MemberKey


# --- facts: membership --------------------------------------------------------------------------


@attrs.frozen
class MemberJoined:
    """A member that was unknown, dead or gone is alive."""

    record: Record


@attrs.frozen
class MemberUpdated:
    """A living member has a newer record: other addresses, zone, meta or epoch."""

    record: Record


@attrs.frozen
class MemberSuspected:
    """Somebody accuses a member of silence; it may still refute."""

    node_id: NodeId


@attrs.frozen
class MemberFailed:
    """The suspicion of a member ran out: we hold it for dead."""

    node_id: NodeId


@attrs.frozen
class MemberLeft:
    """A member said goodbye to the cluster."""

    node_id: NodeId


@attrs.frozen
class Superseded:
    """A newer start of our own identity is alive (`epoch`): this node must stop."""

    epoch: int


@attrs.frozen
class Strike:
    """`peer` broke a rule that honest peers keep; the driver counts and may cut the link."""

    peer: NodeId
    reason: str


@attrs.frozen
class Equivocated:
    """`bundle` and `held` are both signed by their origin and contradict each other.

    held: the one that came first and stands; None when it is no longer here, or when the bundle
    claims to be our own and is not: then somebody else signs with our key.
    """

    bundle: Bundle
    held: Bundle | None


Effect = (
    Send
    | Push
    | SendDatagram
    | Serve
    | Link
    | Unlink
    | Relink
    | TurnAway
    | DialSeed
    | Deliver
    | Skipped
    | FloorMoved
    | Greeted
    | Forgotten
    | Covered
    | PeerPromoted
    | PeerDemoted
    | GraftSent
    | GraftFailed
    | PruneSent
    | MemberJoined
    | MemberUpdated
    | MemberSuspected
    | MemberFailed
    | MemberLeft
    | Superseded
    | Strike
    | Equivocated
)
