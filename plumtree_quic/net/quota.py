"""Quota: what one authenticated peer may make us look at, per second and kind of message, and
what becomes of one that goes on above it, or does what no honest peer does.

Sans-IO. The limits are far above what an honest node sends at its busiest, and far below what one
peer could keep a core busy with. What is above is not looked at (throttle); who goes on is no
parent of any tree any more (demote), and then loses its link (cut). Accounts go by identity and
outlive a link, so that dialling anew buys nobody a fresh one. What is on its way is bounded by
credit, pings by swim.py, grafts and announced ids by plumtree.py, handshakes by budget.py.
"""

from enum import Enum

import attrs

from plumtree_quic.ids import NodeId
from plumtree_quic.messages import (
    LANE_OF,
    Ack,
    BucketHashes,
    Certificates,
    CertificatesWanted,
    Chunk,
    Coverage,
    CoverageWanted,
    Digest,
    DigestHashes,
    Direct,
    Facts,
    Goodbye,
    Gossip,
    Graft,
    GraftRefused,
    IHave,
    Lane,
    Message,
    Ping,
    Prune,
    Records,
    RecordsWanted,
    Repair,
    Rows,
    Wanted,
)
from plumtree_quic.net.budget import TokenBucket

__all__ = ["CUT_AFTER_S", "CUT_FOR_S", "DEMOTE_AFTER_S", "LIMITS", "Accounts", "PeerQuota", "Step"]

DEMOTE_AFTER_S = 5.0
CUT_AFTER_S = 15.0
# Above a limit now and then is not above it all the time.
FORGIVEN_AFTER_S = 2.0
# Who was cut gets no new link for so long. Others reach it, and it them: it misses no message.
CUT_FOR_S = 30.0
STRIKES_MAX = 3
# An account without a link is kept so long: every bucket is full again by then.
REMEMBERED_S = 60.0

# Frames a second, and at once. Measured: 8 nodes as fast as they go send 600 bundles, 200
# announcements, 60 grafts and 40 frames of facts a second and link; the rest are guesses at ten
# times what 1,000 nodes under churn would send.
LIMITS: dict[type, tuple[float, float]] = {
    Gossip: (20_000.0, 40_000.0),
    Chunk: (20_000.0, 40_000.0),
    Repair: (20_000.0, 40_000.0),
    Direct: (20_000.0, 40_000.0),
    IHave: (2_000.0, 8_000.0),
    Graft: (1_000.0, 4_000.0),
    GraftRefused: (4_000.0, 16_000.0),
    Prune: (2_000.0, 16_000.0),
    Facts: (500.0, 4_000.0),
    DigestHashes: (20.0, 200.0),
    CoverageWanted: (50.0, 200.0),
    Coverage: (200.0, 2_000.0),
    Digest: (100.0, 2_000.0),
    BucketHashes: (20.0, 200.0),
    Rows: (100.0, 1_000.0),
    RecordsWanted: (100.0, 1_000.0),
    Records: (200.0, 2_000.0),
    CertificatesWanted: (64.0, 512.0),
    Certificates: (64.0, 512.0),
    Wanted: (20.0, 200.0),
    Goodbye: (1.0, 10.0),
    Ping: (1_000.0, 4_000.0),
    Ack: (1_000.0, 4_000.0),
}
"""(a second, at once) of each kind that a core sees; Hello comes once and Credit is the link's."""
ANNOUNCED_PER_S = (200_000.0, 1_000_000.0)
"""Announcements in all IHave frames. A guess: 1,000 origins at 200 messages a second."""
BYTES_PER_S = (256.0 * (1 << 20), 1024.0 * (1 << 20))
"""On each of the lanes for bundles pushed, bundles asked for, pieces of large messages, and direct
messages; frames of all
other lanes are at most 64 KiB and few. Four times what one
link carries at its best here (benchmarks/link.py)."""
SIGNATURES_PER_S = (2_000.0, 20_000.0)
"""Signatures and certificates that are checked because this peer brought them. A core checks
about 10,000 a second (benchmarks/signatures.py); one peer gets a fifth of it for long."""


# What costs signature checks.
_SIGNED = frozenset((Gossip, Chunk, Repair, Facts, Records, Ping, Ack, Certificates))


class Step(Enum):
    """What to do with a frame, and its sender."""

    LOOK = "look"
    THROTTLE = "throttle"
    """Do not look at it."""
    DEMOTE = "demote"
    """And take no origin from this peer any more. Said once."""
    CUT = "cut"
    """And close its link. Said once."""


def _size(message: Message) -> int:
    match message:
        case Gossip(bundle=bundle) | Chunk(bundle=bundle) | Repair(bundle=bundle):
            return len(bundle.raw)
        case Direct():
            return len(message.payload)
    return 0


@attrs.define
class PeerQuota:
    """The limits of one peer, over all its links. `now` is monotonic seconds.

    above: what it is or was last above of. refused: frames that were not looked at.
    """

    above: str = ""
    refused: int = 0
    _buckets: dict[type, TokenBucket] = attrs.field(factory=dict)
    _announced: TokenBucket = attrs.field(factory=lambda: TokenBucket(*ANNOUNCED_PER_S))
    _bytes: dict[Lane, TokenBucket] = attrs.field(factory=dict)
    _signatures: TokenBucket = attrs.field(factory=lambda: TokenBucket(*SIGNATURES_PER_S))
    _in_debt: bool = False
    _since: float | None = None
    _last: float = 0.0
    _demoted: bool = False
    _cut: bool = False

    def begin_link(self) -> None:
        """Its peer has a new link, on which it was neither demoted nor cut; what it used up is
        used up.
        """
        self._demoted = self._cut = False

    def charge(self, message: Message, now: float) -> Step:
        """One more frame of this peer."""
        kind = type(message)
        bucket = self._buckets.get(kind)
        if bucket is None:
            limit = LIMITS.get(kind)
            if limit is None:
                return Step.LOOK
            bucket = self._buckets[kind] = TokenBucket(*limit)
        if not bucket.take(now):
            return self._refuse(f"{kind.__name__} frames", now)
        size = _size(message)
        if size:
            lane = LANE_OF[kind]
            carried = self._bytes.get(lane)
            if carried is None:
                carried = self._bytes[lane] = TokenBucket(*BYTES_PER_S)
            carried.refill(now)
            if carried.level <= 0:
                return self._refuse(f"bytes on {lane.name.lower()}", now)
            carried.level -= size
        if kind in _SIGNED:
            if self._in_debt:
                self._signatures.refill(now)
                if self._signatures.level <= 0:
                    return self._refuse("signature checks", now)
                self._in_debt = False
        elif isinstance(message, IHave):
            self._announced.refill(now)
            if self._announced.level <= 0:
                return self._refuse("announcements", now)
            self._announced.level -= len(message.announcements)
        return Step.LOOK

    def note_signatures(self, count: int, now: float) -> None:
        """So many signatures were checked for this peer's sake; above the limit, it has to wait."""
        self._signatures.spend(count, now)
        self._in_debt = self._signatures.level <= 0

    def _refuse(self, what: str, now: float) -> Step:
        self.refused += 1
        self.above = what
        if self._since is None or now - self._last > FORGIVEN_AFTER_S:
            self._since, self._demoted, self._cut = now, False, False
        self._last = now
        if now - self._since >= CUT_AFTER_S and not self._cut:
            self._cut = True
            return Step.CUT
        if now - self._since >= DEMOTE_AFTER_S and not self._demoted:
            self._demoted = True
            return Step.DEMOTE
        return Step.THROTTLE


@attrs.define
class _Account:
    quota: PeerQuota = attrs.field(factory=PeerQuota)
    strikes: int = 0
    cut_until: float = float("-inf")
    idle_since: float | None = None
    """Without a link since then; None while there is one."""


class Accounts:
    """One account for each peer that is linked, or was lately. `now` is monotonic seconds.

    At most as many as there are identities that the policy admits.
    """

    def __init__(self) -> None:
        self._accounts: dict[NodeId, _Account] = {}

    def quota(self, peer: NodeId) -> PeerQuota | None:
        """The quota of a peer that is linked."""
        account = self._accounts.get(peer)
        return account.quota if account is not None else None

    def link_up(self, peer: NodeId) -> None:
        """A link to `peer` is greeted, its first or another."""
        account = self._accounts.setdefault(peer, _Account())
        if account.idle_since is not None:
            account.idle_since = None
            account.quota.begin_link()

    def link_down(self, peer: NodeId, now: float) -> None:
        """The last link to `peer` is gone."""
        account = self._accounts.get(peer)
        if account is None:
            return
        account.idle_since = now
        if account.cut_until > now:
            # It pays with its link and the time without one; then it begins anew.
            account.quota, account.strikes = PeerQuota(), 0

    def strike(self, peer: NodeId, now: float) -> bool:
        """It did what no honest peer does. True when that was once too often, and it is cut."""
        account = self._accounts.get(peer)
        if account is None or account.cut_until > now:
            return False
        account.strikes += 1
        if account.strikes < STRIKES_MAX:
            return False
        self.cut(peer, now)
        return True

    def cut(self, peer: NodeId, now: float) -> None:
        """Its link is being closed for what it did; for CUT_FOR_S there is no other."""
        account = self._accounts.get(peer)
        if account is not None:
            account.cut_until = now + CUT_FOR_S

    def may_link(self, peer: NodeId, now: float) -> bool:
        """Whether `peer` may have a link, as far as its own deeds decide."""
        account = self._accounts.get(peer)
        return account is None or account.cut_until <= now

    def expire(self, now: float) -> None:
        """Forget whom nothing is held against and who has gone."""
        for peer, account in tuple(self._accounts.items()):
            since = account.idle_since
            if since is not None and since + REMEMBERED_S <= now and account.cut_until <= now:
                del self._accounts[peer]
