"""Every message that crosses the wire, explained from the receiver's side. No bytes here (wire.py).

A link is one QUIC connection between two nodes that have proved their identities to each other.
Who sent a message is the link's certificate, so **no message carries a sender**. Each side opens
one unidirectional stream per lane and writes frames on it for as long as the link lives::

    dialler                                   acceptor
      | ---- TLS 1.3, both certificates ------> |
      | <---- control: Hello (the greeting) --- |   only now is the link up for the dialler
      | ----- control: Hello -----------------> |   only now is it up for the acceptor
      | <==== lanes, DATAGRAM frames =========> |

Broadcast (Leitao, Pereira, Rodrigues 2007, with one tree per origin)::

    A --- Gossip(bundle, hop) ---> B            pushed on the tree's links, at once
    A --- IHave(first..last, hop) -> C          owed to every other link, in batches
    C --- Graft(origin, ranges) ---> A          it did not come: send it, and push from now on
    A --- Repair(bundle, hop) -----> C          the answer, on the sync lane
    C --- Prune(origin) -----------> B          a second copy came from B: push it here no more
    A --- Chunk(bundle, hop) ------> B          a piece of a large message, behind all else
    A --- DigestHashes ------------> B          what A has seen, in 256 hashes
    B --- Digest(rows) ------------> A          what B can serve, of the buckets that differ

Membership (SWIM, Das et al. 2002; Lifeguard, Dadgar et al. 2018)::

    A ~~~ Ping(nonce, facts) ~~~~> B            a DATAGRAM, only when the link was silent
    A <~~ Ack(nonce, facts) ~~~~~~ B
    A --- Facts(suspect B) ------> all          B did not answer; every monitor of B probes at once
    B --- Facts(alive B, inc+1) -> all          B refutes

Signatures: a bundle, a record and a fact are signed by who speaks them, under a certificate that
is named by 16 bytes. Who does not know it asks the link that brought the thing::

    A --- Gossip(bundle) --------> B            signed under a key_id that B has not seen
    B --- CertificatesWanted ----> A            the bundle waits
    A --- Certificates ----------> B            judged like a peer's own; then the bundle is

A `Record` says who a member is and where, signed by the member; it travels on the sync lane only. A
`Fact` is one short signed statement about a member and travels at once. A `Row` is a hint: it
chooses what to fetch and changes nothing else.

Sequence numbers start at 1; ranges are inclusive pairs ``(first, last)``; wall-clock times are
milliseconds since 1970; epochs are such times too.
"""

from enum import IntEnum, IntFlag

import attrs

from plumtree_quic.ids import MemberKey, NodeId

__all__ = [
    "DATAGRAM_TYPES",
    "DIGEST_ROUND_MAX",
    "LANE_OF",
    "Ack",
    "Announcement",
    "BucketHashes",
    "Bundle",
    "Certificates",
    "CertificatesWanted",
    "Chunk",
    "Compression",
    "Coverage",
    "CoverageWanted",
    "Credit",
    "Digest",
    "DigestHashes",
    "DigestRow",
    "Direct",
    "DirectKind",
    "Fact",
    "Facts",
    "Feature",
    "Goodbye",
    "Gossip",
    "Graft",
    "GraftEntry",
    "GraftRefused",
    "Hello",
    "IHave",
    "Lane",
    "MemberState",
    "Message",
    "Ping",
    "Prune",
    "Range",
    "Record",
    "Records",
    "RecordsWanted",
    "RefusedReason",
    "Repair",
    "Row",
    "Rows",
    "SignatureAlgorithm",
    "Wanted",
    "chunk_span",
]

Range = tuple[int, int]
"""Inclusive sequence numbers ``(first, last)``, ``1 <= first <= last``."""


class Lane(IntEnum):
    """The unidirectional streams of a link, most urgent first.

    The first byte on each stream is the lane's number. Lower numbers leave first within one
    transmit.
    """

    CONTROL = 0
    GRAFT = 1
    IHAVE = 2
    GOSSIP = 3
    SYNC = 4
    DIRECT = 5
    BULK = 6


class Compression(IntEnum):
    """How a bundle's body is packed."""

    NONE = 0
    ZSTD = 1


class SignatureAlgorithm(IntEnum):
    """Who signed, and how. NONE means that the sender does not sign; the fields are then empty."""

    NONE = 0
    ECDSA_P256_SHA256 = 1
    ECDSA_P384_SHA384 = 2
    ED25519 = 3
    RSA_PSS_SHA256 = 4


class MemberState(IntEnum):
    """What is said of a member. DEAD is concluded by each node alone and never sent as a Fact."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


# --- what is signed -----------------------------------------------------------------------------


@attrs.frozen
class Record:
    """A member's statement about itself; valid once verified and until `valid_until`.

    The receiver keeps the newest by (epoch, incarnation), dials `addresses` when the overlay
    wants a link, and forwards `raw` unchanged, with fields that it may not know.
    """

    node_id: NodeId
    epoch: int
    incarnation: int
    addresses: tuple[str, ...]
    zone: str
    meta: bytes
    valid_until: int
    chain: tuple[bytes, ...]
    algorithm: SignatureAlgorithm
    key_id: bytes
    signed_at: int
    signature: bytes
    raw: bytes = attrs.field(repr=False)
    signed_span: tuple[int, int] = attrs.field(repr=False, eq=False)

    @property
    def signed_parts(self) -> tuple[bytes, bytes]:
        """What the signature covers, as it is on the wire: (header, body)."""
        first, end = self.signed_span
        return self.raw[first:end], b""

    @property
    def rank(self) -> tuple[int, int]:
        """Newer records have a larger rank: (epoch, incarnation)."""
        return (self.epoch, self.incarnation)


@attrs.frozen
class Fact:
    """One statement about `subject` at (epoch, incarnation), made by `signer`.

    ALIVE and LEFT count only when signer is the subject; SUSPECT is one vote by signer. The
    receiver acts on it when it is news, and passes `raw` on to the links that have not brought it.
    """

    subject: MemberKey
    epoch: int
    incarnation: int
    state: MemberState
    signer: MemberKey
    algorithm: SignatureAlgorithm
    key_id: bytes
    signed_at: int
    signature: bytes
    raw: bytes = attrs.field(repr=False)
    signed_span: tuple[int, int] = attrs.field(repr=False, eq=False)

    @property
    def signed_parts(self) -> tuple[bytes, bytes]:
        """What the signature covers, as it is on the wire: (header, body)."""
        first, end = self.signed_span
        return self.raw[first:end], b""


@attrs.frozen
class Bundle:
    """What one origin broadcast within one flush: the unit that is pushed, cached and repaired.

    Immutable: `raw` is what crossed the wire and what is forwarded. Messages first .. last of
    (origin, epoch) are inside `raw` from `body_at` on, packed by `compression`; opening it is the
    codec's work, and no relay needs it.

    A message that one bundle does not take is a run of chunk_count bundles of one number each, of
    one topic; chunk_index says which one of them this is, chunk_bytes how long the payload of the
    whole is. All but the last hold equally much (`chunk_span`). The message bears the first one's
    number. Of all other bundles chunk_count is 1 and chunk_bytes 0.
    previous: in the first bundle of an epoch, (epoch, last number) of what its origin remembers as
    the one before; so that readers who want order know when that is complete.
    """

    origin: MemberKey
    epoch: int
    first: int
    count: int
    topics: tuple[str, ...]
    chunk_index: int
    chunk_count: int
    chunk_bytes: int
    compression: Compression
    body_bytes: int
    algorithm: SignatureAlgorithm
    key_id: bytes
    signed_at: int
    signature: bytes
    body_at: int
    raw: bytes = attrs.field(repr=False)
    previous: Range | None = None

    @property
    def last(self) -> int:
        """The sequence number of the last message inside."""
        return self.first + self.count - 1

    @property
    def is_chunk(self) -> bool:
        """Whether this is a piece of a message."""
        return self.chunk_count > 1

    @property
    def run(self) -> Range:
        """The numbers of all pieces of the message that this is a piece of."""
        first = self.first - self.chunk_index
        return (first, first + self.chunk_count - 1)

    @property
    def signed_parts(self) -> tuple[bytes, bytes]:
        """What the signature covers, as it is on the wire: (header, body)."""
        raw = self.raw
        return raw[2 : 2 + int.from_bytes(raw[:2], "big")], raw[self.body_at :]

    def says_the_same(self, other: "Bundle") -> bool:
        """Whether header and body are equal: one thing can have many valid signatures."""
        return self.raw == other.raw or self.signed_parts == other.signed_parts


def chunk_span(index: int, count: int, total: int) -> Range | None:
    """Which bytes of a message of `total` bytes its piece `index` of `count` holds: from, to (not
    included). None when no message is cut like that.
    """
    size = -(-total // count)
    first = index * size
    return (first, min(first + size, total)) if (count - 1) * size < total else None


# --- control lane -------------------------------------------------------------------------------


class Feature(IntFlag):
    """What a node says of itself in hello. Bits that the receiver does not know are ignored."""

    UNSIGNED = 1
    """The node signs nothing and checks no signatures; both ends of a link must agree on it."""


@attrs.frozen
class Hello:
    """The first frame on the control lane of either side, and nothing before it.

    The receiver refuses another major version (VERSION), another cluster (WRONG_CLUSTER) and a
    record whose subject is not the certificate's identity (IDENTITY_MISMATCH). `record` goes into
    its member table; `yours` is the newest record of the *receiver* that the sender knows, so that
    a node that lost its state learns its own past. `link_id`: 16 random bytes naming this link;
    `replaces`: the link_id of an older link of the same pair, or empty. `datagram_bytes_max`: the
    largest UDP payload that the sender takes. `wanted`: the sender's overlay wants this link.
    """

    major: int
    minor: int
    features: int
    cluster: str
    record: Record
    datagram_bytes_max: int
    link_id: bytes
    wanted: bool
    replaces: bytes = b""
    yours: Record | None = None


@attrs.frozen
class Credit:
    """Bytes that the sender of this frame has consumed so far, per lane, since the link began.

    The receiver may have at most the lane's window beyond that, on the way or in its engine.
    """

    consumed: tuple[tuple[Lane, int], ...]


@attrs.frozen
class Wanted:
    """Whether the sender's overlay still wants this link; it stays while either side does."""

    wanted: bool


@attrs.frozen
class Facts:
    """Facts that this link has not brought; each is checked and acted on by itself."""

    facts: tuple[Fact, ...]


@attrs.frozen
class Goodbye:
    """The sender closes this link soon, on purpose; `code` is the close code that will follow."""

    code: int
    reason: str = ""


@attrs.frozen
class CertificatesWanted:
    """Asks for the certificates under which something that this link brought was signed.

    `key_ids`: 16 bytes each, at most 64. The receiver, which has verified what it passed on,
    answers with Certificates, and leaves out what it no longer has.
    """

    key_ids: tuple[bytes, ...]


@attrs.frozen
class Certificates:
    """Certificate chains that were asked for, each leaf first, as DER.

    The receiver judges each as it would judge a peer's; one that it did not ask for is ignored.
    """

    chains: tuple[tuple[bytes, ...], ...]


# --- graft lane ---------------------------------------------------------------------------------


@attrs.frozen
class GraftEntry:
    """Ranges of one origin that the asker lacks.

    The receiver answers each range that it holds with Repair frames and the rest with
    GraftRefused. With `promote` it also pushes this origin to the asker from now on.
    """

    origin: MemberKey
    epoch: int
    ranges: tuple[Range, ...]
    promote: bool


@attrs.frozen
class Graft:
    """Asks for what was announced and did not come. One frame may repair many origins."""

    entries: tuple[GraftEntry, ...]


@attrs.frozen
class Prune:
    """The receiver stops pushing these origins to the sender; the other direction is untouched."""

    origins: tuple[MemberKey, ...]


class RefusedReason(IntEnum):
    """Why a graft was not served."""

    BUSY = 1
    """Over a rate or a byte budget now; ask another, or later."""
    FULL = 2
    """max_eager_peers reached: the ranges may still be served, but without promotion."""
    GONE = 3
    """Not held (any more); the receiver must not ask this peer for it again."""


@attrs.frozen
class GraftRefused:
    """The answer to (part of) a graft that is not served; the asker turns to another announcer."""

    origin: MemberKey
    epoch: int
    ranges: tuple[Range, ...]
    reason: RefusedReason


@attrs.frozen
class CoverageWanted:
    """Asks who has message `seq` of (origin, epoch): the receiver, and all whom it asks in turn.

    last: `seq`, or the number of the last piece of a large message; who has it has them all. The
    receiver asks on, over the links on which it pushes this origin, or over all of them when
    `wide`, and answers within `within_s` seconds. round: tells questions about one message apart.
    """

    origin: MemberKey
    epoch: int
    seq: int
    round: int
    wide: bool
    within_s: float
    last: int


@attrs.frozen
class Coverage:
    """The answer: the first 8 bytes of the keys of all who have it, as far as the sender found out.

    last: no more frames follow. Hearsay: a relay can count whom it likes.
    """

    origin: MemberKey
    epoch: int
    seq: int
    round: int
    keys: bytes
    last: bool


# --- ihave, gossip and sync lanes ---------------------------------------------------------------


@attrs.frozen
class Announcement:
    """The sender holds first .. last of (origin, epoch), each of which reached it in `hop` hops."""

    origin: MemberKey
    epoch: int
    first: int
    last: int
    hop: int


@attrs.frozen
class IHave:
    """Announces; proves nothing. The receiver remembers every announcer and waits for the push."""

    announcements: tuple[Announcement, ...]


@attrs.frozen
class Gossip:
    """A bundle pushed on the tree; `hop` is the number of links that it has crossed, this one
    included. The receiver delivers and forwards the first copy with hop + 1, and answers a later
    one from any link but the parent with Prune.
    """

    hop: int
    bundle: Bundle


@attrs.frozen
class Chunk:
    """As Gossip, of a bundle that is a piece of a large message, on a lane of its own behind all
    others: what is small does not wait for what is large.
    """

    hop: int
    bundle: Bundle


@attrs.frozen
class Repair:
    """A bundle that answers a graft. Never counts as a duplicate, never changes a parent."""

    hop: int
    bundle: Bundle


DIGEST_ROUND_MAX = 31
"""Comparisons on a link are numbered from 1 to this, then again from 1."""


@attrs.frozen
class DigestHashes:
    """256 hashes of 8 bytes over what the sender has **seen** of each (origin, epoch), by the first
    byte of the origin's key; once on each new link (a joiner's other links wait until it knows
    what was before its time), and now and then afterwards.

    The receiver answers with the Digest rows of the buckets in which it differs, and be it with an
    empty last page. round: which number that answer bears. answer: a receiver that differs sends
    its own hashes back. joins: the sender has no history; it is also told what the receiver has
    seen and cannot serve, and takes all of it as what was before its time.
    """

    hashes: bytes
    round: int = 0
    answer: bool = False
    joins: bool = False


@attrs.frozen
class DigestRow:
    """Ascending, disjoint ranges of one (origin, epoch): what the sender can serve."""

    origin: MemberKey
    epoch: int
    held: tuple[Range, ...]


@attrs.frozen
class Digest:
    """Rows of the buckets in which the sender differs from hashes of the receiver.

    The receiver asks, by Graft, for what it lacks. Hints, like IHave: nothing is believed that is
    not served. last: no more pages follow. round: that of the hashes which this answers; 0: of
    none. past: the rows say what the sender has seen and cannot serve, for a joiner.
    """

    rows: tuple[DigestRow, ...]
    last: bool = True
    past: bool = False
    round: int = 0


@attrs.frozen
class BucketHashes:
    """256 hashes of 8 bytes over the sender's member rows, by the first byte of the member key.

    The receiver answers with the Rows of the buckets in which it differs.
    """

    hashes: bytes


@attrs.frozen
class Row:
    """One line of a member table: a hint that chooses what to fetch, and nothing else."""

    key: MemberKey
    epoch: int
    incarnation: int
    state: MemberState


@attrs.frozen
class Rows:
    """The sender's rows in `buckets`. With `answer` the receiver sends its own rows of the same
    buckets back (without `answer`); both fetch what they lack by RecordsWanted.
    """

    buckets: tuple[int, ...]
    rows: tuple[Row, ...]
    answer: bool


@attrs.frozen
class RecordsWanted:
    """Asks for the newest record and the newest facts of these members."""

    keys: tuple[MemberKey, ...]


@attrs.frozen
class Records:
    """Records and facts that were asked for; each is verified before it enters the table.

    `busy_addresses`: where else to try, from a seed that takes no more joiners.
    """

    records: tuple[Record, ...]
    facts: tuple[Fact, ...] = ()
    busy_addresses: tuple[str, ...] = ()


# --- direct lane --------------------------------------------------------------------------------


class DirectKind(IntEnum):
    """What a direct message wants."""

    MESSAGE = 0
    REQUEST = 1
    REPLY = 2


@attrs.frozen
class Direct:
    """A payload for this peer alone. `seq` counts up per pair and direction; a REPLY carries the
    request's seq.
    """

    kind: DirectKind
    seq: int
    payload: bytes


# --- datagrams ----------------------------------------------------------------------------------


@attrs.frozen
class Ping:
    """The receiver echoes `nonce` (8 bytes, used once) at once in an Ack; facts ride along."""

    nonce: bytes
    facts: tuple[Fact, ...] = ()


@attrs.frozen
class Ack:
    """Proof that the receiver of Ping(nonce) was alive when it answered."""

    nonce: bytes
    facts: tuple[Fact, ...] = ()


Message = (
    Hello
    | Credit
    | Wanted
    | Facts
    | Goodbye
    | CertificatesWanted
    | Certificates
    | Graft
    | Prune
    | GraftRefused
    | CoverageWanted
    | Coverage
    | IHave
    | Gossip
    | Chunk
    | Repair
    | DigestHashes
    | Digest
    | BucketHashes
    | Rows
    | RecordsWanted
    | Records
    | Direct
    | Ping
    | Ack
)

LANE_OF: dict[type, Lane] = {
    Hello: Lane.CONTROL,
    Credit: Lane.CONTROL,
    Wanted: Lane.CONTROL,
    Facts: Lane.CONTROL,
    Goodbye: Lane.CONTROL,
    CertificatesWanted: Lane.CONTROL,
    Certificates: Lane.CONTROL,
    Graft: Lane.GRAFT,
    Prune: Lane.GRAFT,
    GraftRefused: Lane.GRAFT,
    DigestHashes: Lane.GRAFT,
    CoverageWanted: Lane.GRAFT,
    Coverage: Lane.GRAFT,
    IHave: Lane.IHAVE,
    Gossip: Lane.GOSSIP,
    Repair: Lane.SYNC,
    Digest: Lane.SYNC,
    BucketHashes: Lane.SYNC,
    Rows: Lane.SYNC,
    RecordsWanted: Lane.SYNC,
    Records: Lane.SYNC,
    Direct: Lane.DIRECT,
    Chunk: Lane.BULK,
}
"""The one lane on which a message may travel; on any other it is a protocol error."""

DATAGRAM_TYPES: tuple[type, ...] = (Ping, Ack)
"""Messages that travel in QUIC DATAGRAM frames only."""
