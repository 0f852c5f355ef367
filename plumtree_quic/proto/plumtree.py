"""Plumtree: one broadcast tree per origin, repaired by what is announced beside it.

Leitao, Pereira, Rodrigues, "Epidemic Broadcast Trees" (SRDS 2007), with one directed tree per
origin. Says what to push, announce, ask and serve on the links that are up; it never learns who
is a member, and never sees a bundle whose signature was not checked.

The rule that everything hangs on: from the moment of its delivery a bundle is, for each link that
is up, either pushed, or owed an announcement, or known to be there already. What was delivered
before a link came up is in the digest that is sent on it first.

Zones: within a zone a tree is as above. Across a border an origin pushes to one neighbour in each
other zone, its bridge there; nobody else pushes across a border unasked, and all other links across
are owed announcements, like any link. A zone that a bundle was announced to and did not reach asks
for it across the border: its members wait for each other, each for another time, and who asks first
is the new bridge. Among candidates for anything, those of the own zone come first.
"""

from collections.abc import Sequence
from math import inf, log2
from random import Random

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.intervals import Intervals
from plumtree_quic.messages import (
    Announcement,
    Bundle,
    Chunk,
    Digest,
    DigestHashes,
    Gossip,
    Graft,
    GraftEntry,
    GraftRefused,
    IHave,
    Lane,
    Prune,
    Range,
    RefusedReason,
    Repair,
)
from plumtree_quic.proto.cache import Cache, Held
from plumtree_quic.proto.effects import (
    Deliver,
    Effect,
    Equivocated,
    FloorMoved,
    Forgotten,
    GraftFailed,
    GraftSent,
    Greeted,
    PeerDemoted,
    PeerPromoted,
    PruneSent,
    Push,
    Send,
    Serve,
    Skipped,
)
from plumtree_quic.proto.missing import ANNOUNCED_IDS_MAX, DIGEST, Gap, Missing, StreamKey
from plumtree_quic.proto.owed import Owed, OwedBatch
from plumtree_quic.proto.sync import AHEAD_IDS_MAX, DIGEST_RANGES_PER_ROW_MAX, Sync
from plumtree_quic.shelf import Shelf

__all__ = ["Counters", "Plumtree"]

# After this long without an origin its links may all be others: its tree starts again.
ORIGIN_IDLE_S = 600.0
# How often in a row a link must be first before it becomes the parent.
PARENT_STREAK = 3
EPOCHS_MAX = 8
# Of an origin of which the store holds more than that: who restarts often within the retention must
# not lose by it what others have yet to fetch. A guess; each costs a bundle in our store.
EPOCHS_STORED_MAX = 1_024
GAPS_MAX = 1_024
# A parent that is late as usual is waited for, but never longer than so many graft_timeouts.
LAG_TIMEOUTS_MAX = 5
# A parent's lateness says something about the machine for so long. A guess.
LAG_FRESH_S = 10.0
REPAIRED_MAX = 256
HOP_MAX = 255
# What fits one frame at 40 bytes each.
IHAVE_ENTRIES_MAX = 1_024
# A batch waits for a part of ihave_interval that is drawn anew each time, at least this one. Both
# ends of a link have a bundle within milliseconds: if they waited equally long, both would announce
# it to one another; so the earlier one mostly spares the other.
OWED_SHARE_MIN = 0.5
# What one graft frame may name and may be answered with.
GRAFT_RANGES_MAX = 64
GRAFT_ANSWER_BYTES_MAX = 1 << 20
# How long a bundle is kept for whoever still lacks it, however many there are: time for all tries
# of a graft, a digest, and all tries again, on machines whose loops are late by seconds (measured:
# 3 s are not enough for 8 busy nodes on 2 cores).
REPAIR_S = 15.0
# How long a peer that takes no more children is not asked to push. A guess.
FULL_S = 10.0
# Origins that are grafted at once when their parent's link goes down: four frames. The others
# are grafted when something of them is announced.
ORPHANS_MAX = 4 * GRAFT_RANGES_MAX
# A graft whose answer has at least so many bytes costs its share of a token by them, of 1 MiB: who
# asks page by page is served as many bytes a second as who asks for all at once.
GRAFT_PAGE_BYTES_MIN = 16_384
# What a request may bring is late when what it brings has stopped; put off so many waits at most.
PUT_OFF_WAITS_MAX = 8
# A joiner waits this long for the next page of its first digest, and lets others' wait meanwhile;
# and so long for all of it. What it learns of so many streams is before its time.
GREETING_S = 5.0
GREETING_S_MAX = 30.0
GREETING_PAGES_MAX = 64
GREETING_STREAMS_MAX = 16_384
CACHE_SWEEP_S = 1.0
# A tree that is new, or was torn, settles: so many bundles, one an ihave_interval at most, are
# announced at once instead of with the batch, so that each node sees which link would have brought
# them first. A tree of 1,000 nodes stands still after 6 to 10 (measured). A guess for torn ones.
SETTLING_BUNDLES = 16
TORN_BUNDLES = 8
# By how much of its round trip an announcement must be earlier than the parent's copy to count.
LEAD_ROUND_TRIPS = 1 / 8


@attrs.define
class Counters:
    """Plain integers since the start; bundles unless the name says otherwise."""

    tree_delivered: int = 0
    tree_repaired: int = 0
    tree_duplicates: int = 0
    tree_repairs_late: int = 0
    tree_pushed: int = 0
    tree_refused: int = 0
    tree_stale: int = 0
    tree_equivocations: int = 0
    tree_over_gaps: int = 0
    tree_ids_lost: int = 0
    announcements_sent: int = 0
    announcements_received: int = 0
    announcements_clipped: int = 0
    grafts_sent: int = 0
    grafts_received: int = 0
    grafts_failed: int = 0
    grafts_refused: int = 0
    grafts_over_rate: int = 0
    repairs_sent: int = 0
    ranges_from_store: int = 0
    prunes_sent: int = 0
    prunes_received: int = 0
    parents_changed: int = 0
    paths_shortened: int = 0


@attrs.define(eq=False)
class _Link:
    """One link that is up. bit: its place in every mask of this module. demoted: never a parent.

    crossing_s: what a frame takes to come, lost packets included. lag_s, lag_deviation_s: how late
    its pushes come behind announcements, when they do; lag_at: when one last did. pushed_at: when
    it last brought something new as a parent. far: the peer is in another zone than we are.
    served_to: the last that it was served, of which stream.
    """

    peer: NodeId
    bit: int
    zone: str
    far: bool
    heard_at: float
    tokens: float
    tokens_at: float
    rtt_s: float = 0.0
    crossing_s: float = 0.0
    silent_after_s: float = inf
    origins_pushed: int = 0
    failures: int = 0
    demoted: bool = False
    lag_s: float = 0.0
    lag_deviation_s: float = 0.0
    lag_at: float = -inf
    pushed_at: float = -inf
    served_to: tuple[StreamKey, int] | None = None


@attrs.define(eq=False)
class _Origin:
    """The tree of one origin, as far as this node is concerned.

    pushes: a bit per link: do we push this origin there. full: links that refused to push more
    children. pushed_at: when the parent last pushed something new. settling: how many bundles are
    still to be announced at once, the last of them at `settled_at`.
    """

    key: MemberKey
    pushes: int = 0
    full: int = 0
    full_at: float = -inf
    started: bool = False
    parent: _Link | None = None
    challenger: _Link | None = None
    streak: int = 0
    heard_at: float = inf
    pushed_at: float = -inf
    promoted_at: float = -inf
    settling: int = SETTLING_BUNDLES
    settled_at: float = -inf
    pruned_at: dict[NodeId, float] = attrs.field(factory=dict)
    epochs: dict[int, "_Stream"] = attrs.field(factory=dict)
    # The peers for a mask of bits, made once for as long as the mask stays.
    targets_mask: int = 0
    targets: tuple[NodeId, ...] = ()


@attrs.define(eq=False)
class _Stream:
    """One (origin, epoch): what was seen of it, what can be served, what is still to announce.

    kept: what the store holds, beside what is on the shelf or not. claimed: what is in `seen` only
    because the first link said that it was before our time. past: what was before our time, and is
    wanted all the same.
    """

    key: StreamKey
    origin: _Origin
    seen: Intervals = attrs.field(factory=Intervals)
    shelf: Shelf[Held] = attrs.field(factory=Shelf)
    kept: Intervals = attrs.field(factory=Intervals)
    owed: list[Owed] = attrs.field(factory=list)
    claimed: Intervals = attrs.field(factory=Intervals)
    past: Intervals = attrs.field(factory=Intervals)

    def held_runs(self) -> list[Range]:
        """What can be served, ascending."""
        runs = self.shelf.held.ranges()
        return _merge(runs + self.kept.ranges()) if self.kept else runs


_Asks = dict[NodeId, dict[StreamKey, tuple[list[Range], bool]]]
"""Per peer and stream: the ranges to ask for, and whether to ask for pushes from now on."""


class Plumtree:
    """The broadcast half of one node.

    Args:
        me: our own key; `epoch`: our own epoch.
        config: see PlumtreeConfig.
        rng: chooses where a new origin starts and whom to compare digests with.
    """

    def __init__(self, me: MemberKey, epoch: int, config: PlumtreeConfig, rng: Random) -> None:
        self._me = me
        self._config = config
        self._rng = rng
        self._links: dict[NodeId, _Link] = {}
        self._free_bits: list[int] = []
        self._all = 0
        self._congested = 0
        # Those that have no room for pieces of large messages.
        self._bulk_congested = 0
        # Links that cross the border of our zone, and how many members the zone has.
        self._far = 0
        self._zone_members = 1
        self._protected: tuple[NodeId, ...] = ()
        self._mesh = True
        self._origins: dict[MemberKey, _Origin] = {}
        self._streams: dict[StreamKey, _Stream] = {}
        self._missing = Missing(config.graft_timeout)
        self._sync = Sync((me, epoch), config, rng, self._streams, self._missing)
        self._own = self._make_stream(_Origin(me), epoch)
        self._cache = Cache(
            config.message_cache_ttl,
            config.message_cache_max_size,
            min(REPAIR_S, config.message_cache_ttl),
        )
        # When the cache is looked through next; inf while it is empty.
        self._sweep_at = inf
        # How late pushes usually come behind announcements; what grafts brought lately, and since
        # when it was missing.
        self._usual_lag_s = 0.0
        self._repaired: dict[tuple[StreamKey, int], float] = {}
        # Whom we asked to push an origin of which nothing has come yet.
        self._hoped: dict[MemberKey, tuple[float, NodeId]] = {}
        self._owed = OwedBatch()
        self._owed_at: float | None = None
        # The joiner's floor: nobody yet, the peer whose digest it is, or done.
        self._greeter: NodeId | None = None
        self._floor_of: NodeId | None = None
        self._greeted = False
        self._greeting_ends_at = self._greeting_ends_by = inf
        # Whether what was before our time is wanted, and how long it is waited for.
        self._wants_past = False
        self._past_until = -inf
        self._early: list[tuple[NodeId, Digest]] = []
        self.counters = Counters()

    # --- links ----------------------------------------------------------------------------------

    def link_up(self, peer: NodeId, now: float, *, zone: str = "") -> list[Effect]:
        """A link is up: what both have seen is compared, and what comes from now on is owed.

        The first link of a joiner is compared with alone, until we know what was before our time.
        """
        effects: list[Effect] = self.link_down(peer, now) if peer in self._links else []
        bit = self._free_bits.pop() if self._free_bits else 1 << len(self._links)
        burst = float(self._config.graft_rate_limit_burst)
        far = zone != self._config.zone
        self._links[peer] = _Link(peer, bit, zone, far, now, burst, now)
        self._all |= bit
        self._far |= bit if far else 0
        self._sync.link_up(peer, now)
        if self._greeted:
            self._sync.greet(peer, now, effects, joins=False)
        elif self._greeter is None:
            self._greeter = self._floor_of = peer
            self._greeting_ends_at = now + GREETING_S
            self._greeting_ends_by = now + GREETING_S_MAX
            self._sync.greet(peer, now, effects, joins=True)
        return effects

    def link_down(self, peer: NodeId, now: float) -> list[Effect]:
        """A link is gone: what it was to bring is asked of others at once."""
        link = self._links.pop(peer, None)
        if link is None:
            return []
        effects: list[Effect] = []
        keep = ~link.bit
        self._all &= keep
        self._far &= keep
        self._congested &= keep
        self._bulk_congested &= keep
        self._owed.forget_link(link.bit)
        self._sync.link_down(peer)
        was_bridge = link.far and bool(self._own.origin.pushes & link.bit)
        orphans: list[_Origin] = []
        for origin in self._origins.values():
            # The link is gone, and with it the word "eager": no PeerDemoted for it.
            origin.pushes &= keep
            origin.full &= keep
            origin.targets_mask = 0
            origin.targets = ()
            origin.pruned_at.pop(peer, None)
            if origin.challenger is link:
                origin.challenger = None
            if origin.parent is link:
                origin.parent = None
                orphans.append(origin)
        self._free_bits.append(link.bit)
        self._missing.link_down(peer, now)
        if was_bridge:
            others = [each for each in self._links.values() if each.zone == link.zone]
            self._build_bridges(self._own.origin, others, effects)
        asks: _Asks = {}
        self._adopt_orphans(orphans, link, now, asks, effects)
        self._fire_grafts(now, effects, asks)
        if self._greeter == peer:
            self._end_greeting(now, effects)
        return effects

    def heard(
        self,
        peer: NodeId,
        now: float,
        rtt_s: float,
        silent_after_s: float,
        crossing_s: float | None = None,
    ) -> None:
        """Something fresh came on the link to `peer`. crossing_s: what a frame takes in the mean,
        lost packets included; without it, half a round trip.
        """
        link = self._links.get(peer)
        if link is not None:
            link.heard_at = now
            link.rtt_s = rtt_s
            link.crossing_s = rtt_s / 2 if crossing_s is None else crossing_s
            link.silent_after_s = silent_after_s

    def congested(
        self,
        peer: NodeId,
        now: float,  # noqa: ARG002
        lane: Lane = Lane.GOSSIP,
    ) -> list[Effect]:
        """No room for pushes on this lane: until `drained`, they become announcements. What is
        large is not pushed either where the small has no room.
        """
        link = self._links.get(peer)
        if link is not None:
            if lane is Lane.BULK:
                self._bulk_congested |= link.bit
            else:
                self._congested |= link.bit
        return []

    def drained(
        self,
        peer: NodeId,
        now: float,  # noqa: ARG002
        lane: Lane = Lane.GOSSIP,
    ) -> list[Effect]:
        """There is room again."""
        link = self._links.get(peer)
        if link is not None:
            if lane is Lane.BULK:
                self._bulk_congested &= ~link.bit
            else:
                self._congested &= ~link.bit
        return []

    def demote(self, peer: NodeId, now: float) -> list[Effect]:
        """This peer brings no origin any more, as long as its link lives; others take its place."""
        link = self._links.get(peer)
        if link is None or link.demoted:
            return []
        link.demoted = True
        effects: list[Effect] = []
        orphans: list[_Origin] = []
        for origin in self._origins.values():
            if origin.challenger is link:
                origin.challenger = None
            if origin.parent is link:
                origin.parent = None
                self._prune(origin, link, now, effects)
                orphans.append(origin)
        asks: _Asks = {}
        self._adopt_orphans(orphans, link, now, asks, effects)
        self._fire_grafts(now, effects, asks)
        return effects

    def set_overlay(
        self, protected: Sequence[NodeId], *, mesh: bool, zone_members: int = 1
    ) -> None:
        """What the overlay is now.

        Args:
            protected: peers whose grafts are never refused for max_eager_peers.
            mesh: everybody is linked with everybody; a new origin is then pushed on all links
                within the zone, else on `eager_fanout` of them.
            zone_members: how many members our zone has, ourselves included.
        """
        self._protected = tuple(protected)
        self._mesh = mesh
        self._zone_members = zone_members

    def peer_moved(self, peer: NodeId, zone: str) -> None:
        """A peer's newest record names this zone."""
        link = self._links.get(peer)
        if link is not None and link.zone != zone:
            link.zone, link.far = zone, zone != self._config.zone
            self._far = self._far | link.bit if link.far else self._far & ~link.bit

    # --- what a store holds ---------------------------------------------------------------------

    def recover(
        self,
        key: StreamKey,
        seen: Sequence[Range],
        floor: Sequence[Range],
        held: Sequence[Range],
    ) -> list[Effect]:
        """Before the first link: what a former life of ours had seen, and what the store has."""
        effects: list[Effect] = []
        stream = self._open(*key, effects)
        if stream is None:
            return [*effects, Forgotten(*key)]
        for run in seen:
            stream.seen.add(*run)
        for run in floor:
            stream.seen.add(*run)
            stream.claimed.add(*run)
        for run in held:
            stream.kept.add(*run)
        self._sync.touch(key)
        return effects

    def returned(self) -> None:
        """Before the first link: a former life had joined, so nothing is before our time."""
        self._greeted = True

    def stored(self, key: StreamKey, first: int, last: int) -> None:
        """first .. last can be served from the store."""
        stream = self._streams.get(key)
        if stream is not None:
            stream.kept.add(first, last)

    def evicted(self, key: StreamKey, first: int, last: int) -> None:
        """The store has let first .. last go."""
        stream = self._streams.get(key)
        if stream is not None:
            stream.kept.remove(first, last)

    def want_past(self, now: float) -> list[Effect]:
        """Fetch what others hold from before our time; it is delivered as history."""
        effects: list[Effect] = []
        self._wants_past = True
        if self._greeted:
            self._open_past(now, effects)
        return effects

    def _open_past(self, now: float, effects: list[Effect]) -> None:
        self._past_until = now + GREETING_S
        for stream in self._streams.values():
            if stream.claimed:
                for run in stream.claimed.ranges():
                    stream.past.add(*run)
                self._reopen(stream, 1, stream.claimed.highest, effects)
        for link in self._links.values():
            self._sync.ask(link.peer, now, 0.0)

    def rebalance(self) -> None:
        """Let every tree start again from `eager_fanout` links with the origin's next bundle."""
        for origin in self._origins.values():
            origin.heard_at = -inf

    # --- inputs ---------------------------------------------------------------------------------

    def broadcast(self, bundle: Bundle, now: float) -> list[Effect]:
        """Push a bundle of our own."""
        stream = self._own
        if stream.key != (bundle.origin, bundle.epoch):
            raise AssertionError("not a bundle of our own")
        if stream.seen.overlaps(bundle.first, bundle.last):
            raise AssertionError("a sequence number of our own was used twice")
        effects: list[Effect] = []
        self._take(stream, bundle, now)
        self._restart_if_idle(stream.origin, now, effects)
        self._spread(stream, bundle, hop=0, link=None, now=now, effects=effects)
        return effects

    def receive(
        self,
        peer: NodeId,
        message: (
            Gossip | Chunk | Repair | IHave | Graft | Prune | GraftRefused | DigestHashes | Digest
        ),
        now: float,
    ) -> list[Effect]:
        """A message that came on the link to `peer`; bundles are verified."""
        link = self._links.get(peer)
        if link is None:
            return []
        link.heard_at = now
        match message:
            case IHave():
                return self._on_ihave(link, message, now)
            case Gossip() | Chunk():
                return self._on_gossip(link, message, now)
            case Repair():
                return self._on_repair(link, message, now)
            case Graft():
                return self._on_graft(link, message, now)
            case Prune():
                return self._on_prune(link, message, now)
            case GraftRefused():
                return self._on_graft_refused(link, message, now)
            case DigestHashes():
                effects: list[Effect] = []
                self._sync.on_hashes(peer, message, now, effects)
                return effects
            case Digest():
                return self._on_digest(link, message, now)

    def refuse(self, peer: NodeId, message: Gossip | Chunk | Repair, now: float) -> list[Effect]:
        """The application rejects this bundle: seen, but not delivered, held or forwarded."""
        link = self._links.get(peer)
        bundle = message.bundle
        effects: list[Effect] = []
        stream = self._open(bundle.origin, bundle.epoch, effects)
        if link is None or stream is None:
            return effects
        link.heard_at = now
        if self._is_new(stream, bundle, link, effects, pushed=not isinstance(message, Repair)):
            self.counters.tree_refused += 1
            self._take(stream, bundle, now)
            effects.append(Skipped(*stream.key, bundle.first, bundle.last))
            if not isinstance(message, Repair):
                self._note_parent(stream.origin, link, now, effects)
            else:
                self._sync.taken(peer, stream.key, bundle.count, len(bundle.raw), now)
        elif not isinstance(message, Repair):
            self._on_duplicate(stream, link, message, now, effects)
        return effects

    def came(self, peer: NodeId, bundle: Bundle, now: float) -> None:
        """`peer` has served `bundle`, which we cannot use, or not yet."""
        self._sync.came(peer, (bundle.origin, bundle.epoch), now, useless=True)

    # --- bundles --------------------------------------------------------------------------------

    def _on_gossip(self, link: _Link, message: Gossip | Chunk, now: float) -> list[Effect]:
        bundle = message.bundle
        effects: list[Effect] = []
        stream = self._streams.get((bundle.origin, bundle.epoch)) or self._open(
            bundle.origin, bundle.epoch, effects
        )
        if stream is None:
            self.counters.tree_stale += 1
        elif self._is_new(stream, bundle, link, effects, pushed=True):
            if self._has_room(stream, bundle, link, now, effects):
                origin = stream.origin
                effects.append(self._delivery(stream, message, link))
                ahead: tuple[NodeId, float] | None = None
                if link is origin.parent and self._missing.by_stream:
                    since = self._missing.since(stream.key, bundle.first)
                    self._note_lag(link, since, now)
                    first = self._missing.first_announcer(stream.key, bundle.first)
                    if first is not None and since is not None:
                        ahead = (first, now - since)
                known = self._take(stream, bundle, now)
                self._restart_if_idle(origin, now, effects)
                self._note_parent(origin, link, now, effects)
                if ahead is not None and origin.settling and not self._mesh:
                    self._note_ahead(stream, *ahead, now, effects)
                self._spread(
                    stream,
                    bundle,
                    hop=message.hop,
                    link=link,
                    now=now,
                    effects=effects,
                    known=known,
                )
        else:
            self._on_duplicate(stream, link, message, now, effects)
        return effects

    def _on_repair(self, link: _Link, message: Repair, now: float) -> list[Effect]:
        bundle = message.bundle
        link.failures = 0
        effects: list[Effect] = []
        self._sync.came(link.peer, (bundle.origin, bundle.epoch), now)
        stream = self._open(bundle.origin, bundle.epoch, effects)
        if stream is None:
            self.counters.tree_stale += 1
        elif self._is_new(stream, bundle, link, effects, pushed=False):
            if self._has_room(stream, bundle, link, now, effects):
                self.counters.tree_repaired += 1
                delivery = self._delivery(stream, message, link)
                effects.append(delivery)
                since = self._missing.since(stream.key, bundle.first)
                if since is not None:
                    if len(self._repaired) >= REPAIRED_MAX:
                        del self._repaired[next(iter(self._repaired))]
                    self._repaired[stream.key, bundle.first] = since
                self._sync.taken(link.peer, stream.key, bundle.count, len(bundle.raw), now)
                known = self._take(stream, bundle, now, by=link.peer)
                self._restart_if_idle(stream.origin, now, effects)
                if not delivery.history:
                    # History is old to the others; who wants it finds it in our digest.
                    self._spread(
                        stream,
                        bundle,
                        hop=message.hop,
                        link=link,
                        now=now,
                        effects=effects,
                        known=known,
                        repair=True,
                    )
        else:
            self.counters.tree_repairs_late += 1
            self._owed.settle(stream.owed, link.bit, bundle.first, bundle.last)
        if self._sync.wants(link.peer):
            self._ask_on(link, now, effects)
        return effects

    def _delivery(self, stream: _Stream, message: Gossip | Chunk | Repair, link: _Link) -> Deliver:
        bundle = message.bundle
        history = bool(stream.past) and stream.past.overlaps(bundle.first, bundle.last)
        if history:
            stream.past.remove(bundle.first, bundle.last)
        return Deliver(bundle, message.hop, link.peer, history)

    def _is_new(
        self, stream: _Stream, bundle: Bundle, link: _Link, effects: list[Effect], *, pushed: bool
    ) -> bool:
        """Whether nothing of `bundle` was seen; an overlap that is no duplicate is told."""
        first, last = bundle.first, bundle.last
        seen = stream.seen
        if stream is self._own and not seen.covers(first, last):
            # Our own and not sent by us in this life: somebody else holds our key.
            self._note_equivocation(bundle, None, effects)
            return False
        if not seen.overlaps(first, last):
            return True
        if stream.claimed and self._is_claimed_alone(stream, first, last):
            # Nothing of it was delivered. Who pushes it has it since our link is up, and be it who
            # claimed it: its rows may have left after it, and come before it.
            claimed_it = link.peer == self._floor_of and seen.covers(first, last)
            return pushed or not claimed_it
        held = stream.shelf.find(first)
        if seen.covers(first, last):
            if held is not None and not held.bundle.says_the_same(bundle):
                self._note_equivocation(bundle, held.bundle, effects)
            return False
        self._note_equivocation(bundle, held.bundle if held is not None else None, effects)
        return False

    def _is_claimed_alone(self, stream: _Stream, first: int, last: int) -> bool:
        """Whether what was seen of first .. last, if anything, is only claimed to be older."""
        others = stream.claimed.missing(first, last)
        return others != [(first, last)] and not any(stream.seen.overlaps(*run) for run in others)

    def _note_equivocation(
        self, bundle: Bundle, held: Bundle | None, effects: list[Effect]
    ) -> None:
        self.counters.tree_equivocations += 1
        effects.append(Equivocated(bundle, held))

    def _has_room(
        self, stream: _Stream, bundle: Bundle, link: _Link, now: float, effects: list[Effect]
    ) -> bool:
        """Whether the seen set can take `bundle`, giving up its lowest hole if need be."""
        seen = stream.seen
        if len(seen) < GAPS_MAX or not seen.opens_gap(bundle.first, bundle.last):
            return True
        if seen.gaps < GAPS_MAX:
            return True
        hole = seen.lowest_gap()
        if hole is not None and self._missing.without(stream.key, *hole) == [hole]:
            # Nobody has it on offer any more.
            self.counters.tree_ids_lost += hole[1] - hole[0] + 1
            seen.add(*hole)
            self._sync.touch(stream.key)
            effects.append(Skipped(*stream.key, *hole))
            return True
        self.counters.tree_over_gaps += 1
        self._sync.ask(link.peer, now, self._config.graft_timeout)
        return False

    def _note_lag(self, link: _Link, since: float | None, now: float) -> None:
        """A push came behind announcements, the first of them at `since`: learn by how much.

        On busy machines a push regularly takes longer than graft_timeout; asking others then
        doubles the work that made it late. Smoothed as RFC 6298 smooths round trips, for each
        link; what is usual is what a quarter of the parents, and one at least, may exceed, for then
        it is the machine that is slow. (With the median, 8 busy publishers cost three times the
        grafts.) One parent that sits on what it should push must not teach us to wait for it.
        """
        if since is None:
            return
        lag_s = now - since
        if link.lag_s == 0.0:
            link.lag_s, link.lag_deviation_s = lag_s, lag_s / 2
        else:
            link.lag_deviation_s += (abs(link.lag_s - lag_s) - link.lag_deviation_s) / 4
            link.lag_s += (lag_s - link.lag_s) / 8
        link.lag_at = now
        fresh_at = now - LAG_FRESH_S
        lags = sorted(
            each.lag_s + 4 * each.lag_deviation_s if each.lag_at > fresh_at else 0.0
            for each in self._links.values()
            if each.lag_at > fresh_at or each.pushed_at > fresh_at
        )
        spared = max(1, len(lags) // 4)
        self._usual_lag_s = lags[max(0, len(lags) - 1 - spared)]

    def _take(self, stream: _Stream, bundle: Bundle, now: float, by: NodeId | None = None) -> int:
        """Mark `bundle`, served `by` whom we asked, as seen. Returns who has announced it."""
        stream.seen.add(bundle.first, bundle.last)
        self._sync.touch(stream.key)
        if stream.claimed:
            stream.claimed.remove(bundle.first, bundle.last)
        known = 0
        if self._missing.by_stream:
            for peer in self._missing.fill(stream.key, bundle.first, bundle.last, now, by):
                known |= self._links[peer].bit
        if stream.origin.heard_at is inf:
            stream.origin.heard_at = now
        return known

    def _spread(
        self,
        stream: _Stream,
        bundle: Bundle,
        *,
        hop: int,
        link: _Link | None,
        now: float,
        effects: list[Effect],
        known: int = 0,
        repair: bool = False,
    ) -> None:
        """Keep, push and announce a bundle that was just delivered, except where it is known."""
        origin = stream.origin
        settles = origin.started and origin.settling > 0 and not self._mesh
        if not origin.started:
            if repair and not (link is not None and link.far):
                # Announced, so its tree is there: others graft us if they lack it. Across a border
                # the tree is there, and has yet to grow here.
                origin.started = True
            else:
                self._start_tree(origin, link, known, effects)
        origin.heard_at = now
        self.counters.tree_delivered += 1
        came_by = link.peer if link is not None and not repair else None
        self._cache.put(stream.shelf, Held(bundle, hop, now, came_by))
        if self._sweep_at == inf:
            self._sweep_at = now + self._config.message_cache_ttl
        if link is not None:
            known |= link.bit
        full = self._congested
        if bundle.chunk_count > 1:
            full |= self._bulk_congested
        pushed = origin.pushes & ~(known | full)
        if pushed:
            peers = origin.targets if pushed == origin.targets_mask else self._aim(origin, pushed)
            self.counters.tree_pushed += len(peers)
            effects.append(Push(peers, _pushed(hop, bundle)))
        owed = self._all & ~(known | pushed)
        if owed:
            batch = self._owed
            batch.owe(stream.owed, stream.key, (bundle.first, bundle.last), hop=hop, mask=owed)
            if settles and now - origin.settled_at >= self._config.ihave_interval:
                origin.settling -= 1
                origin.settled_at = now
                self._flush_owed(effects)
            elif len(batch) >= self._config.ihave_batch_size:
                self._flush_owed(effects)
            elif self._owed_at is None:
                share = self._rng.uniform(OWED_SHARE_MIN, 1.0)
                self._owed_at = now + share * self._config.ihave_interval

    def _aim(self, origin: _Origin, mask: int) -> tuple[NodeId, ...]:
        origin.targets = tuple(link.peer for link in self._links.values() if link.bit & mask)
        origin.targets_mask = mask
        return origin.targets

    def _on_duplicate(
        self,
        stream: _Stream,
        link: _Link,
        message: Gossip | Chunk,
        now: float,
        effects: list[Effect],
    ) -> None:
        """A second copy was pushed: by any link but the parent, that was one too many."""
        bundle = message.bundle
        self.counters.tree_duplicates += 1
        if self._repaired:
            # We asked too early: the push was on its way all the time.
            self._note_lag(link, self._repaired.pop((stream.key, bundle.first), None), now)
        if stream.owed:
            self._owed.settle(stream.owed, link.bit, bundle.first, bundle.last)
        origin = stream.origin
        if origin.parent is link or self._was_pruned(origin, link, now):
            return
        if self._is_nearer(stream, link, message.hop - 1, bundle.last):
            self._move_inside(origin, link, now, effects)
        else:
            self._prune(origin, link, now, effects)

    def _was_pruned(self, origin: _Origin, link: _Link, now: float) -> bool:
        """Whether what comes by `link` may have left before our last prune got there.

        It needs no second prune, and does not show that more will come.
        """
        pause_s = max(self._config.graft_timeout, 4 * link.rtt_s)
        return now - origin.pruned_at.get(link.peer, -inf) < pause_s

    # --- trees ----------------------------------------------------------------------------------

    def _set_push(self, origin: _Origin, link: _Link, on: bool, effects: list[Effect]) -> None:
        """Begin or end to push `origin` to `link`: the one place where this changes."""
        if bool(origin.pushes & link.bit) is on:
            return
        origin.pushes ^= link.bit
        if on:
            link.origins_pushed += 1
            if link.origins_pushed == 1:
                effects.append(PeerPromoted(link.peer))
        else:
            link.origins_pushed -= 1
            if link.origins_pushed == 0:
                effects.append(PeerDemoted(link.peer))

    def _start_tree(
        self, origin: _Origin, source: _Link | None, known: int, effects: list[Effect]
    ) -> None:
        """Choose where an origin is pushed first: prunes make a tree of it.

        known: a bit per link that has announced this first bundle; it would prune us with the next.
        Into other zones it is pushed by its origin, to one neighbour in each.
        """
        candidates = [
            link
            for link in self._links.values()
            if link is not source and link is not origin.parent
        ]
        if not candidates:
            return
        origin.started = True
        candidates = [link for link in candidates if not link.bit & known]
        if source is None:
            self._build_bridges(origin, candidates, effects)
        candidates = [link for link in candidates if not link.far]
        config = self._config
        if not self._mesh:
            count = min(config.eager_fanout, len(candidates))
            candidates = self._rng.sample(candidates, count)
        for link in candidates:
            if self._may_push(origin, link):
                self._set_push(origin, link, True, effects)

    def _build_bridges(
        self, origin: _Origin, candidates: list[_Link], effects: list[Effect]
    ) -> None:
        """Push our own origin to one candidate in each other zone that has none yet."""
        zones: dict[str, list[_Link]] = {}
        for link in candidates:
            if link.far and not link.demoted and not self._has_bridge(origin, link.zone):
                zones.setdefault(link.zone, []).append(link)
        for links in zones.values():
            self._set_push(origin, self._rng.choice(links), True, effects)

    def _has_bridge(self, origin: _Origin, zone: str) -> bool:
        """Whether we push this origin into that other zone."""
        bridges = origin.pushes & self._far
        return any(link.bit & bridges and link.zone == zone for link in self._links.values())

    def _may_push(self, origin: _Origin, link: _Link) -> bool:
        """Whether max_eager_peers leaves room for one child more.

        Ring neighbours always fit, and so does the only bridge that we are into a zone.
        """
        limit = self._config.max_eager_peers
        return (
            limit is None
            or bool(origin.pushes & link.bit)
            or link.peer in self._protected
            or origin.pushes.bit_count() < limit
            or (link.far and not self._has_bridge(origin, link.zone))
        )

    def _restart_if_idle(self, origin: _Origin, now: float, effects: list[Effect]) -> None:
        if now - origin.heard_at <= ORIGIN_IDLE_S:
            return
        for link in self._links.values():
            self._set_push(origin, link, False, effects)
        origin.started = False
        origin.parent = origin.challenger = None
        origin.full = 0
        origin.settling = SETTLING_BUNDLES
        origin.pruned_at.clear()

    def _note_ahead(
        self, stream: _Stream, peer: NodeId, lead_s: float, now: float, effects: list[Effect]
    ) -> None:
        """While a tree settles: `peer` announced a bundle `lead_s` before the parent pushed it.

        Had it pushed instead, the bundle would have been here by then. Each node's new parent had
        this bundle before the node itself had it, so no circle comes of it. An announcement is
        hearsay: who announced and did not serve is not believed, and few bundles count.
        """
        origin = stream.origin
        parent, link = origin.parent, self._links.get(peer)
        if parent is None or link is None or link is parent:
            return
        if (
            lead_s > LEAD_ROUND_TRIPS * link.rtt_s
            and not link.demoted
            and not link.failures
            and not origin.full & link.bit
            # One copy crosses a border, however quick the way across is.
            and (parent.far or not link.far)
        ):
            self._swap_parent(stream, parent, link, now, effects)

    def _swap_parent(
        self, stream: _Stream, parent: _Link, link: _Link, now: float, effects: list[Effect]
    ) -> None:
        """`link` is asked to push from now on, and the parent to stop."""
        origin = stream.origin
        self.counters.paths_shortened += 1
        origin.promoted_at = now
        self._become_child(origin, link, effects)
        self._emit({link.peer: {stream.key: ([], True)}}, effects)
        self._prune(origin, parent, now, effects)

    def _note_parent(self, origin: _Origin, link: _Link, now: float, effects: list[Effect]) -> None:
        """`link` was first: as the parent, as a new one, or as one that may become it."""
        if origin.parent is link:
            origin.pushed_at = link.pushed_at = now
            origin.challenger = None
            return
        if origin.key == self._me:
            return
        if link.demoted:
            self._prune(origin, link, now, effects)
            return
        if origin.parent is not None and origin.pushed_at == -inf:
            # It was grafted when nothing of this origin had come, and was not needed after all.
            self._prune(origin, origin.parent, now, effects)
        elif origin.parent is not None:
            if origin.challenger is not link:
                origin.challenger = link
                origin.streak = 0
            origin.streak += 1
            # A zone that brings it by itself needs no bridge here.
            inward = origin.parent.far and not link.far
            if origin.streak < PARENT_STREAK and (
                not inward or self._was_pruned(origin, link, now)
            ):
                return
        self._become_child(origin, link, effects)
        origin.pushed_at = now

    def _become_child(self, origin: _Origin, link: _Link, effects: list[Effect]) -> None:
        """`link` brings this origin from now on, so it needs none of it from us."""
        if origin.key == self._me:
            return
        if origin.parent is not link:
            self.counters.parents_changed += 1
        origin.parent = link
        origin.challenger = None
        origin.streak = 0
        origin.pruned_at.pop(link.peer, None)
        self._set_push(origin, link, False, effects)

    def _prune(self, origin: _Origin, link: _Link, now: float, effects: list[Effect]) -> None:
        origin.pruned_at[link.peer] = now
        self.counters.prunes_sent += 1
        effects.append(Send(link.peer, Prune((origin.key,))))
        effects.append(PruneSent(link.peer, origin.key))

    def _on_prune(self, link: _Link, message: Prune, now: float) -> list[Effect]:  # noqa: ARG002
        effects: list[Effect] = []
        self.counters.prunes_received += 1
        for key in message.origins:
            origin = self._origins.get(key)
            if origin is not None:
                self._set_push(origin, link, False, effects)
        return effects

    def _shorten(
        self, stream: _Stream, link: _Link, entry: Announcement, now: float, effects: list[Effect]
    ) -> None:
        """Tree optimization (the paper's section 3.8): swap the parent for a shorter path.

        Hops are hearsay: they count only when the announcement came no later than the parent's
        copy by more than the link's round trip.
        """
        origin = stream.origin
        parent = origin.parent
        if parent is None or parent is link or origin.pushes & link.bit:
            return
        if link.far and not parent.far:
            return
        if parent.far and self._is_nearer(stream, link, entry.hop, entry.last):
            ready = now - origin.promoted_at >= self._config.graft_timeout
            if ready and not origin.full & link.bit:
                origin.promoted_at = now
                self._emit({link.peer: {stream.key: ([], True)}}, effects)
                self._move_inside(origin, link, now, effects)
            return
        held = stream.shelf.find(entry.last)
        if held is None or held.peer != parent.peer:
            return
        gain = held.hop - (entry.hop + 1)
        if (
            gain > self._config.optimization_threshold
            and now - held.at <= link.rtt_s
            and now - origin.promoted_at >= self._config.graft_timeout
            and not origin.full & link.bit
        ):
            self._swap_parent(stream, parent, link, now, effects)

    def _is_nearer(self, stream: _Stream, link: _Link, hop: int, seq: int) -> bool:
        """Whether `link`, of our zone, has `seq` by itself, after `hop` links, and could take the
        place of a parent across the border.

        Whoever has it from us has it after more links than we; of two that have it after equally
        many, one goes, or each would wait for the other.
        """
        parent = stream.origin.parent
        if parent is None or not parent.far or link.far or link.demoted:
            return False
        held = stream.shelf.find(seq)
        return (
            held is not None
            and held.peer == parent.peer
            and (hop, member_key(link.peer)) < (held.hop, self._me)
        )

    def _move_inside(self, origin: _Origin, link: _Link, now: float, effects: list[Effect]) -> None:
        """`link`, of our zone, is the parent instead of the one across the border."""
        parent = origin.parent
        self._become_child(origin, link, effects)
        if parent is not None:
            self._prune(origin, parent, now, effects)

    # --- announcements that we owe --------------------------------------------------------------

    def _flush_owed(self, effects: list[Effect]) -> None:
        """Close the batch: each link gets what it is owed, in one frame."""
        batch, self._owed, self._owed_at = self._owed, OwedBatch(), None
        for key in batch.streams():
            stream = self._streams.get(key)
            if stream is not None:
                stream.owed.clear()
        for link in self._links.values():
            announcements = batch.announcements(link.bit)
            self.counters.announcements_sent += len(announcements)
            for at in range(0, len(announcements), IHAVE_ENTRIES_MAX):
                some = announcements[at : at + IHAVE_ENTRIES_MAX]
                effects.append(Send(link.peer, IHave(some)))

    # --- announcements that we hear -------------------------------------------------------------

    def _on_ihave(self, link: _Link, message: IHave, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self.counters.announcements_received += len(message.announcements)
        for entry in message.announcements:
            key = (entry.origin, entry.epoch)
            first, last = entry.first, entry.last
            stream = self._streams.get(key)
            if stream is None:
                if self._is_stale(key):
                    self.counters.tree_stale += 1
                    continue
                unseen = [(first, last)]
            else:
                if stream.owed:
                    self._owed.settle(stream.owed, link.bit, first, last)
                if stream.claimed:
                    self._doubt(stream, link, first, last, effects)
                if stream.seen.covers(first, last):
                    self._shorten(stream, link, entry, now, effects)
                    continue
                unseen = stream.seen.missing(first, last)
                end = stream.seen.highest + AHEAD_IDS_MAX
                if stream.seen and last > end:
                    unseen = [(a, min(b, end)) for a, b in unseen if a <= end]
                    self._clip(link, now)
            for run in unseen:
                if key == self._own.key:
                    break
                due = self._patience(entry.origin, link.peer, now, now)
                if not self._missing.announce(key, run, link.peer, hop=entry.hop, due=due, now=now):
                    self._clip(link, now)
                    break
        if self._missing.by_stream:
            self._fire_grafts(now, effects)
        return effects

    def _doubt(
        self, stream: _Stream, link: _Link, first: int, last: int, effects: list[Effect]
    ) -> None:
        """What a link has just got is not older than ourselves, whoever claimed that it is.

        The first digest is one peer's word; were it the last one, that peer could make us deaf. And
        what comes there while it is on its way is in it, too.
        """
        room = ANNOUNCED_IDS_MAX - self._missing.announced_ids(link.peer)
        at = first
        for run in [*stream.claimed.missing(first, last), (last + 1, last + 1)]:
            end = min(run[0] - 1, at + room - 1)
            if at <= end and len(stream.seen) < GAPS_MAX:
                room -= end - at + 1
                self._reopen(stream, at, end, effects)
            at = run[1] + 1

    def _reopen(self, stream: _Stream, first: int, last: int, effects: list[Effect]) -> None:
        """What is claimed of first .. last is not seen any more; what came of it still is."""
        for run in stream.claimed.within(first, last):
            stream.seen.remove(*run)
        stream.claimed.remove(first, last)
        self._sync.touch(stream.key)
        effects.append(FloorMoved(*stream.key, tuple(stream.claimed.ranges())))

    def _clip(self, link: _Link, now: float) -> None:
        """More was announced than is taken: a digest tells the rest when there is room."""
        self.counters.announcements_clipped += 1
        self._sync.ask(link.peer, now, self._config.graft_timeout)

    def _patience(self, key: MemberKey, announcer: NodeId, since: float, now: float) -> float:
        """Until when to wait for the push of what was announced at `since`: `now`, or later.

        graft_timeout while the parent's link is up and not silent; as long as its pushes usually
        take behind announcements when that is longer. A parent that announces does not push.
        Across a border it is asked for when it is our turn.
        """
        origin, link = self._origins.get(key), self._links.get(announcer)
        parent = origin.parent if origin is not None else None
        if link is not None and link.far:
            now = max(now, self._turn_at(key, parent, since))
        if parent is None or parent.peer == announcer or parent.peer not in self._links:
            return now
        silent_at = max(parent.heard_at, since) + parent.silent_after_s
        timeout_s = self._config.graft_timeout
        usual_s = min(self._usual_lag_s, LAG_TIMEOUTS_MAX * timeout_s)
        return max(now, min(since + timeout_s, silent_at), since + usual_s)

    def _turn_at(self, key: MemberKey, parent: _Link | None, since: float) -> float:
        """From when on we ask across the border for what was announced at `since`.

        All of a zone hear of a bundle that none of them has, and one should ask. So each waits for
        another time, which follows from who it is and from the origin, alike for all: graft_timeout
        for what the own zone may bring, twice that with a parent there; then, within the next one,
        one member asks in the mean, one more within that after it, then two, then four, until the
        zone has it. (Timers that are spread exponentially keep the answers few however many could
        answer: Nonnenmacher and Biersack, "Scalable Feedback for Large Groups", ToN 1999; RFC 4654
        uses them.) Whose parent is across the border is the bridge and waits for nobody.
        """
        if (parent is not None and parent.far) or not self._all & ~self._far:
            return since
        drawn = (int.from_bytes(self._me[:8]) ^ int.from_bytes(key[:8])) + 1
        turn = max(0.0, log2(self._zone_members * drawn / (1 << 64)))
        return since + self._config.graft_timeout * (turn + (1 if parent is None else 2))

    # --- grafts that we send --------------------------------------------------------------------

    def _fire_grafts(self, now: float, effects: list[Effect], asks: _Asks | None = None) -> None:
        """Ask for every range whose time has come: one frame a peer."""
        if asks is None:
            asks = {}
        missing = self._missing
        for gap in missing.due(now):
            origin = self._origins.get(gap.key[0])
            if gap.patient and len(gap.announcers) > 0:
                due = now
                for peer in gap.announcers:
                    due = self._patience(gap.key[0], peer, gap.since, now)
                    if due <= now:
                        break
                if due > now:
                    missing.schedule(gap, due)
                    continue
            if gap.asked is not None:
                if gap.announcers.get(gap.asked) == DIGEST and self._is_put_off(gap, now):
                    continue
                silent = self._links.get(gap.asked)
                if silent is not None:
                    silent.failures += 1
                gap.asked = None
                gap.tries += 1
            link = self._best_announcer(gap)
            if link is None or gap.tries > self._config.graft_max_retries:
                missing.drop(gap)
                self.counters.grafts_failed += 1
                effects.append(GraftFailed(gap.key[0], gap.key[1], (gap.first, gap.last)))
                self._ask_somebody(link, now)
                continue
            promote = self._may_promote(gap, origin, link, now)
            if promote:
                self._become_grafted(gap.key[0], origin, link, now, effects)
            missing.ask(gap, link.peer, now)
            missing.schedule(gap, now + missing.wait_s(gap))
            ranges, promoted = asks.setdefault(link.peer, {}).get(gap.key, ([], False))
            ranges.append((gap.first, gap.last))
            asks[link.peer][gap.key] = (ranges, promoted or promote)
        self._emit(asks, effects)

    def _is_put_off(self, gap: Gap, now: float) -> bool:
        """Whether who was asked for a page is still serving what it was asked for before.

        If not, and nothing of it came, it has left a claim of its own unanswered.
        """
        peer = gap.asked
        if peer is None or peer not in self._links:
            return False
        wait_s = max(self._missing.wait_s(gap), 2 * self._links[peer].rtt_s)
        due = max(gap.asked_at, self._sync.served_at(peer)) + wait_s
        if now < due and now < gap.asked_at + PUT_OFF_WAITS_MAX * wait_s:
            self._missing.schedule(gap, due)
            return True
        self._sync.unanswered(peer, gap.key, (gap.first, gap.last), now)
        return False

    def _best_announcer(self, gap: Gap) -> _Link | None:
        """Whom to ask: least often asked for this, of our zone, most reliable, nearest (a lossy
        path is a long one); then who came first.
        """
        best: _Link | None = None
        best_rank = (0, False, False, 0, 0.0)
        for peer in gap.announcers:
            link = self._links.get(peer)
            if link is None:
                continue
            asked = gap.asked_times.get(peer, 0)
            rank = (asked, link.demoted, link.far, link.failures, link.crossing_s)
            if best is None or rank < best_rank:
                best, best_rank = link, rank
        return best

    def _may_promote(self, gap: Gap, origin: _Origin | None, link: _Link, now: float) -> bool:
        """At most one promotion per origin and graft_timeout, and none for what is history; across
        a border none before it is our turn.
        """
        if gap.announcers[link.peer] == DIGEST or gap.key[0] == self._me:
            return False
        parent = origin.parent if origin is not None else None
        if link.far and now < self._turn_at(gap.key[0], parent, gap.since):
            return False
        if origin is None:
            hoped = self._hoped.get(gap.key[0])
            return hoped is None or now - hoped[0] >= self._config.graft_timeout
        if now - origin.promoted_at < self._config.graft_timeout:
            return False
        if origin.full & link.bit:
            if now - origin.full_at < FULL_S:
                return False
            origin.full = 0
        # A parent that went on pushing after this was announced has not failed.
        return parent is None or parent is link or origin.pushed_at < gap.since

    def _become_grafted(
        self,
        key: MemberKey,
        origin: _Origin | None,
        link: _Link,
        now: float,
        effects: list[Effect],
    ) -> None:
        if origin is not None:
            origin.promoted_at = now
            self._become_child(origin, link, effects)
            return
        # Nothing of this origin has come yet; it may not even exist.
        while self._hoped:
            oldest = next(iter(self._hoped))
            if now - self._hoped[oldest][0] < max(self._config.graft_timeout, GREETING_S):
                break
            del self._hoped[oldest]
        self._hoped.pop(key, None)
        self._hoped[key] = (now, link.peer)

    def _adopt_orphans(
        self, orphans: list[_Origin], lost: _Link, now: float, asks: _Asks, effects: list[Effect]
    ) -> None:
        """Their parent's link is gone: the best other link is asked to push them, in one frame.

        A link to which we push an origin has it from us, so it is asked for none of that one. One
        into the zone of the lost parent is the best: our own zone has it from elsewhere, or, when
        we were its bridge, from us.
        """
        orphans = [o for o in orphans if o.epochs and now - o.heard_at <= ORIGIN_IDLE_S]
        orphans.sort(key=lambda origin: -origin.heard_at)
        ranked = sorted(
            (link for link in self._links.values() if not link.demoted),
            key=lambda link: (
                link.zone != lost.zone,
                link.far != lost.far,
                link.failures,
                link.crossing_s,
            ),
        )
        for origin in orphans[:ORPHANS_MAX]:
            for link in ranked:
                if not (origin.pushes | origin.full) & link.bit:
                    origin.promoted_at = now
                    origin.settling = max(origin.settling, TORN_BUNDLES)
                    self._become_child(origin, link, effects)
                    key = (origin.key, max(origin.epochs))
                    asks.setdefault(link.peer, {})[key] = ([], True)
                    break

    def _emit(self, asks: _Asks, effects: list[Effect]) -> None:
        """Turn what is to be asked into frames of at most 64 entries and 64 ranges."""
        for peer, streams in asks.items():
            entries: list[GraftEntry] = []
            room = GRAFT_RANGES_MAX
            for (origin, epoch), (asked, promote) in streams.items():
                ranges = _merge(asked)
                effects.append(GraftSent(peer, origin, tuple(ranges)))
                at = 0
                while True:
                    if room == 0 or len(entries) == GRAFT_RANGES_MAX:
                        self._send_graft(peer, entries, effects)
                        entries, room = [], GRAFT_RANGES_MAX
                    some = tuple(ranges[at : at + room])
                    entries.append(GraftEntry(origin, epoch, some, promote and at == 0))
                    room -= len(some)
                    at += len(some)
                    if at >= len(ranges):
                        break
            if entries:
                self._send_graft(peer, entries, effects)

    def _send_graft(self, peer: NodeId, entries: list[GraftEntry], effects: list[Effect]) -> None:
        self.counters.grafts_sent += 1
        effects.append(Send(peer, Graft(tuple(entries))))

    def _on_graft_refused(self, link: _Link, message: GraftRefused, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self.counters.grafts_refused += 1
        key = (message.origin, message.epoch)
        origin = self._origins.get(message.origin)
        self._sync.refused(link.peer, key)
        if message.reason is RefusedReason.FULL:
            if origin is not None:
                origin.full |= link.bit
                origin.full_at = now
        else:
            busy = False
            for first, last in message.ranges:
                if message.reason is RefusedReason.BUSY:
                    busy = self._missing.busy(key, first, last, link.peer, now) or busy
                else:
                    for run in self._missing.gone(key, first, last, link.peer, now):
                        self._sync.gone(link.peer, key, run, now)
            if busy:
                self._sync.busy(link.peer, key, now, effects)
        if (
            message.reason is not RefusedReason.GONE
            and origin is not None
            and origin.parent is link
            and origin.pushed_at < origin.promoted_at
        ):
            # It does not push, so it is no parent, and another may be asked at once.
            origin.parent = None
            origin.promoted_at = -inf
        if self._missing.by_stream:
            self._fire_grafts(now, effects)
        if self._sync.wants(link.peer):
            self._ask_on(link, now, effects)
        return effects

    # --- grafts that we serve -------------------------------------------------------------------

    def _on_graft(self, link: _Link, message: Graft, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self.counters.grafts_received += 1
        if any(entry.ranges for entry in message.entries):
            self._cache.asked(now)
        if link.bit & self._congested or not self._spend_token(link, now):
            self.counters.grafts_over_rate += 1
            for entry in message.entries:
                self._refuse_graft(link, entry, entry.ranges, RefusedReason.BUSY, effects)
            return effects
        room = GRAFT_ANSWER_BYTES_MAX
        for entry in message.entries:
            origin = self._origins.get(entry.origin)
            if entry.promote and origin is not None:
                if self._may_push(origin, link):
                    self._promote(origin, link, effects)
                else:
                    self._refuse_graft(link, entry, entry.ranges, RefusedReason.FULL, effects)
            stream = self._streams.get((entry.origin, entry.epoch))
            if stream is None:
                if entry.ranges:
                    self._refuse_graft(link, entry, entry.ranges, RefusedReason.GONE, effects)
                continue
            room = self._serve(link, entry, stream, room, effects)
        served = GRAFT_ANSWER_BYTES_MAX - room
        if served >= GRAFT_PAGE_BYTES_MIN:
            link.tokens += max(0.0, 1.0 - served / GRAFT_ANSWER_BYTES_MAX)
        return effects

    def _promote(self, origin: _Origin, link: _Link, effects: list[Effect]) -> None:
        """Push `origin` to `link` from now on, what it has not yet been told of included."""
        if origin.parent is link:
            # It looks for this origin itself: it is nobody's parent now.
            origin.parent = None
        self._set_push(origin, link, True, effects)
        for stream in origin.epochs.values():
            for owed in stream.owed:
                if not owed.mask & link.bit:
                    continue
                owed.mask &= ~link.bit
                for held in stream.shelf.between(owed.first, owed.last):
                    self.counters.tree_pushed += 1
                    effects.append(Push((link.peer,), _pushed(held.hop, held.bundle)))

    def _serve(
        self, link: _Link, entry: GraftEntry, stream: _Stream, room: int, effects: list[Effect]
    ) -> int:
        """Answer one entry; returns how many bytes this frame may still be answered with."""
        gone: list[Range] = []
        busy: list[Range] = []
        stored: list[Range] = []
        shelf = stream.shelf
        for first, last in entry.ranges:
            end = last
            goes_on = link.served_to == (stream.key, first - 1)
            for held in shelf.between(first, last):
                if goes_on and held.bundle.first < first:
                    # It lies across two pages, and went with the one before.
                    continue
                if room <= 0:
                    end = max(first, held.bundle.first) - 1
                    busy.append((end + 1, last))
                    break
                room -= len(held.bundle.raw)
                self.counters.repairs_sent += 1
                hop = min(held.hop + 1, HOP_MAX)
                effects.append(Send(link.peer, Repair(hop, held.bundle)))
            link.served_to = (stream.key, end)
            if end >= first and len(gone) + len(stored) < GRAFT_RANGES_MAX:
                for run in shelf.held.missing(first, end):
                    gone += stream.kept.missing(*run)
                    stored += stream.kept.within(*run)
        if stored:
            some = tuple(stored[:GRAFT_RANGES_MAX])
            self.counters.ranges_from_store += len(some)
            effects.append(Serve(link.peer, *stream.key, some))
        if gone:
            some = tuple(gone[:GRAFT_RANGES_MAX])
            self._refuse_graft(link, entry, some, RefusedReason.GONE, effects)
        if busy:
            self._refuse_graft(link, entry, tuple(busy), RefusedReason.BUSY, effects)
        return room

    def _refuse_graft(
        self,
        link: _Link,
        entry: GraftEntry,
        ranges: tuple[Range, ...],
        reason: RefusedReason,
        effects: list[Effect],
    ) -> None:
        effects.append(Send(link.peer, GraftRefused(entry.origin, entry.epoch, ranges, reason)))

    def _spend_token(self, link: _Link, now: float) -> bool:
        """A bucket per link, filled at graft_rate_limit_per_second up to the burst."""
        config = self._config
        link.tokens = min(
            float(config.graft_rate_limit_burst),
            link.tokens + (now - link.tokens_at) * config.graft_rate_limit_per_second,
        )
        link.tokens_at = now
        if link.tokens < 1.0:
            return False
        link.tokens -= 1.0
        return True

    # --- digests --------------------------------------------------------------------------------

    def _on_digest(self, link: _Link, message: Digest, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self._sync.on_rows(link.peer, message, now, effects)
        if self._greeter is None:
            self._want_rows(link, message, now, effects)
        elif self._greeter != link.peer:
            # Not before we know what was before our time.
            if len(self._early) < GREETING_PAGES_MAX:
                self._early.append((link.peer, message))
        else:
            self._set_floor(message, effects)
            self._greeting_ends_at = min(now + GREETING_S, self._greeting_ends_by)
            if message.last:
                self._end_greeting(now, effects)
        return effects

    def _set_floor(self, message: Digest, effects: list[Effect]) -> None:
        """What the first link had seen when it came up was before our time.

        Except what was announced since: that is delivered. Holes in what it held stay open, for
        what fills them reaches that link after it came up.
        """
        for row in message.rows:
            if (row.origin, row.epoch) == self._own.key or not row.held:
                continue
            if len(self._streams) >= GREETING_STREAMS_MAX:
                return
            stream = self._open(row.origin, row.epoch, effects)
            if stream is None:
                continue
            runs = list(row.held[-DIGEST_RANGES_PER_ROW_MAX:])
            self._sync.touch(stream.key)
            if runs[0][0] > 1 and not message.past:
                runs.insert(0, (1, runs[0][0] - 1))
            for run in runs:
                if len(stream.seen) >= GAPS_MAX:
                    break
                for asked in self._missing.without(stream.key, *run):
                    for first, last in stream.seen.missing(*asked):
                        stream.seen.add(first, last)
                        stream.claimed.add(first, last)
            effects.append(FloorMoved(*stream.key, tuple(stream.claimed.ranges())))

    def _end_greeting(self, now: float, effects: list[Effect]) -> None:
        self._greeter = None
        self._greeted = True
        self._greeting_ends_at = inf
        effects.append(Greeted())
        if self._wants_past:
            self._open_past(now, effects)
        early, self._early = self._early, []
        for peer, digest in early:
            link = self._links.get(peer)
            if link is not None:
                self._want_rows(link, digest, now, effects)
        self._sync.greet_all(now, effects)

    def _want_rows(self, link: _Link, message: Digest, now: float, effects: list[Effect]) -> None:
        """Ask for what `link` holds and we have not seen."""
        if message.past:
            return
        for row in message.rows:
            key = (row.origin, row.epoch)
            if key == self._own.key or self._is_stale(key):
                continue
            stream = self._streams.get(key)
            if stream is not None and stream.claimed and row.held and link.peer != self._floor_of:
                # Nobody is so far behind: what was claimed above this is yet to be said.
                end = row.held[-1][1] + AHEAD_IDS_MAX
                if stream.claimed.highest > end:
                    self._reopen(stream, end + 1, stream.claimed.highest, effects)
            self._sync.want(link.peer, row, now)
        self._ask_on(link, now, effects)

    def _ask_on(self, link: _Link, now: float, effects: list[Effect]) -> None:
        """Ask for the next pages out of the rows of `link`, when it is their turn."""
        pieces = self._sync.draw(link.peer, now)
        for key, run, since in pieces:
            stream = self._streams.get(key)
            due = self._patience(key[0], link.peer, since, now)
            if stream is not None and run[0] < stream.seen.highest:
                # The parent went past it: no push will bring it.
                due = now
            self._missing.announce(key, run, link.peer, hop=DIGEST, due=due, now=now)
        if pieces:
            self._fire_grafts(now, effects)

    def repaired(self, spent_s: float) -> None:
        """What others served to us took `spent_s` to handle; see `Sync.worked`."""
        self._sync.worked(spent_s)

    def _ask_somebody(self, announcer: _Link | None, now: float) -> None:
        """A range failed: its best announcer is compared with, or else a random link."""
        if announcer is None and self._links and not self._sync.is_asking():
            announcer = self._rng.choice(list(self._links.values()))
        if announcer is not None:
            self._sync.ask(announcer.peer, now, self._config.graft_timeout)

    # --- time -----------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `advance` has work, or None."""
        deadline = min(self._greeting_ends_at, self._sweep_at)
        if self._owed_at is not None and self._owed_at < deadline:
            deadline = self._owed_at
        due = self._sync.next_deadline()
        deadline = min(deadline, due)
        if self._missing.by_stream:
            late = self._missing.next_deadline()
            if late is not None and late < deadline:
                deadline = late
        return None if deadline == inf else deadline

    def advance(self, now: float) -> list[Effect]:
        """Do what is due at `now`."""
        effects: list[Effect] = []
        if self._owed_at is not None and self._owed_at <= now:
            self._flush_owed(effects)
        if self._greeting_ends_at <= now:
            self._end_greeting(now, effects)
        if self._missing.by_stream:
            self._fire_grafts(now, effects)
        for peer in self._sync.with_wants():
            self._ask_on(self._links[peer], now, effects)
        if self._sync.next_deadline() <= now:
            self._sync.advance(now, self._config.graft_timeout, effects)
        if self._sweep_at <= now:
            self._cache.expire(now)
            oldest = self._cache.oldest_expires_at()
            self._sweep_at = inf if oldest is None else max(oldest, now + CACHE_SWEEP_S)
        return effects

    # --- streams --------------------------------------------------------------------------------

    def _open(self, key: MemberKey, epoch: int, effects: list[Effect]) -> _Stream | None:
        """The stream of this origin and epoch, made if need be; None when the epoch is stale."""
        stream = self._streams.get((key, epoch))
        if stream is not None:
            return stream
        origin = self._origins.get(key)
        if origin is None:
            origin = _Origin(key)
            hoped = self._hoped.pop(key, None)
            if hoped is not None:
                origin.promoted_at = hoped[0]
                origin.parent = self._links.get(hoped[1])
        while len(origin.epochs) >= EPOCHS_MAX:
            oldest = min(old for old in origin.epochs if origin.epochs[old] is not self._own)
            if epoch < oldest:
                return None
            if origin.epochs[oldest].kept and len(origin.epochs) < EPOCHS_STORED_MAX:
                break
            self._close(origin.epochs.pop(oldest), effects)
        return self._make_stream(origin, epoch)

    def _make_stream(self, origin: _Origin, epoch: int) -> _Stream:
        self._origins[origin.key] = origin
        stream = _Stream((origin.key, epoch), origin)
        self._streams[stream.key] = origin.epochs[epoch] = stream
        self._sync.open(stream.key)
        return stream

    def _close(self, stream: _Stream, effects: list[Effect]) -> None:
        effects.append(Forgotten(*stream.key))
        del self._streams[stream.key]
        self._sync.close(stream.key)
        self._cache.forget(stream.shelf)
        self._missing.forget(stream.key)
        self._owed.forget(stream.owed)

    def _is_stale(self, key: StreamKey) -> bool:
        origin = self._origins.get(key[0])
        return (
            origin is not None
            and len(origin.epochs) >= EPOCHS_MAX
            and key[1] not in origin.epochs
            and key[1] < min(origin.epochs)
        )

    # --- queries --------------------------------------------------------------------------------

    def has_seen(self, bundle: Bundle) -> bool:
        """Whether all of `bundle` was delivered, refused, or before our time."""
        stream = self._streams.get((bundle.origin, bundle.epoch))
        return stream is not None and stream.seen.covers(bundle.first, bundle.last)

    def is_settled(self, bundle: Bundle) -> bool:
        """Whether no copy of `bundle` can be delivered any more, whichever link brings it."""
        stream = self._streams.get((bundle.origin, bundle.epoch))
        return (
            stream is not None
            and stream.seen.covers(bundle.first, bundle.last)
            and not (stream.claimed and stream.claimed.overlaps(bundle.first, bundle.last))
        )

    def has(self, origin: MemberKey, epoch: int, first: int, last: int) -> bool:
        """Whether all of this was delivered, or refused, and not only before our time."""
        stream = self._streams.get((origin, epoch))
        return (
            stream is not None
            and stream.seen.covers(first, last)
            and not stream.claimed.overlaps(first, last)
        )

    def differs(self, bundle: Bundle) -> bool:
        """Whether something else is held under the first sequence number of `bundle`."""
        stream = self._streams.get((bundle.origin, bundle.epoch))
        held = stream.shelf.find(bundle.first) if stream is not None else None
        return held is not None and not held.bundle.says_the_same(bundle)

    def eager(self, peer: NodeId) -> bool:
        """Whether we push at least one origin to `peer`."""
        link = self._links.get(peer)
        return link is not None and link.origins_pushed > 0

    def pushes(self, origin: MemberKey) -> tuple[NodeId, ...]:
        """The peers to which we push this origin."""
        tree = self._origins.get(origin)
        if tree is None:
            return ()
        return tuple(link.peer for link in self._links.values() if link.bit & tree.pushes)

    def parent(self, origin: MemberKey) -> NodeId | None:
        """The peer that brings this origin."""
        tree = self._origins.get(origin)
        return tree.parent.peer if tree is not None and tree.parent is not None else None

    def missing_count(self) -> int:
        """How many announced ranges are late: asked for, and not here."""
        return self._missing.asked()

    def seen_through(self, origin: MemberKey, epoch: int, seq: int) -> int:
        """The last of the run of seen messages that holds `seq`; seq - 1 when it is not seen."""
        stream = self._streams.get((origin, epoch))
        return seq - 1 if stream is None else stream.seen.end_of(seq)

    def frontiers(self) -> list[tuple[MemberKey, int, int]]:
        """(origin, its newest epoch, what comes next) of those of whom nothing is missing."""
        out = []
        for key, origin in self._origins.items():
            epoch = max(origin.epochs, default=None)
            runs = origin.epochs[epoch].seen.ranges() if epoch is not None else []
            if epoch is not None and len(runs) == 1 and runs[0][0] == 1:
                out.append((key, epoch, runs[0][1] + 1))
        return out

    def oldest_epochs(self) -> list[tuple[MemberKey, int]]:
        """(origin, the oldest of its epochs that are known)."""
        return [(key, min(each.epochs)) for key, each in self._origins.items() if each.epochs]

    @property
    def is_greeted(self) -> bool:
        """Whether what was before our time is known: it counts as seen, and all else is wanted."""
        return self._greeted

    def awaits(self, origin: MemberKey, epoch: int, before: int | None, now: float) -> bool:
        """Whether anything of this stream is announced and missing, below `before` if given; or
        was asked for as history so lately that nobody can have said yet whether it is there.
        """
        stream = self._streams.get((origin, epoch))
        if stream is not None and stream.past and now < self._past_until:
            return True
        gaps = self._missing.by_stream.get((origin, epoch), ())
        return any(before is None or gap.first < before for gap in gaps)

    def ranges_awaited(self) -> int:
        """How many ranges have been announced and are not here, late or not."""
        return len(self._missing)

    def cache_messages(self) -> int:
        """How many messages can be served."""
        return self._cache.messages

    def stats(self) -> dict[str, int]:
        """The counters and a few sizes, by name."""
        return {
            **attrs.asdict(self.counters),
            **attrs.asdict(self._sync.counters),
            "cache_messages": self._cache.messages,
            "cache_bytes": self._cache.bytes,
            "missing_ranges": len(self._missing),
            "streams": len(self._streams) - 1,
        }


def _pushed(hop: int, bundle: Bundle) -> Gossip | Chunk:
    """What is pushed of a bundle that crossed `hop` links to us."""
    kind = Chunk if bundle.chunk_count > 1 else Gossip
    return kind(hop + 1 if hop < HOP_MAX else HOP_MAX, bundle)


def _merge(ranges: list[Range]) -> list[Range]:
    """Sort, and join ranges that touch."""
    out: list[Range] = []
    for first, last in sorted(ranges):
        if out and out[-1][1] + 1 >= first:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return out
