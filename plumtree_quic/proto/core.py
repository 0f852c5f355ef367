"""Core: one node's whole protocol, membership and broadcast together; no I/O, no clock, no codec.

The only module that sees both halves. Information flows one way::

    swim (who lives) -> overlay (whom to link) -> plumtree (what travels on which link)

The driver in node.py and the simulator feed the same object and perform the same effects. What
is handed in has been decoded, and its signatures checked, before it gets here.
"""

from collections.abc import Callable, Iterable, Sequence
from random import Random

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.messages import (
    Ack,
    BucketHashes,
    Bundle,
    Chunk,
    Coverage,
    CoverageWanted,
    Digest,
    DigestHashes,
    Fact,
    Facts,
    Gossip,
    Graft,
    GraftRefused,
    Hello,
    IHave,
    Lane,
    MemberState,
    Message,
    Ping,
    Prune,
    Range,
    Record,
    Records,
    RecordsWanted,
    Repair,
    Rows,
    Wanted,
)
from plumtree_quic.proto.coverage import Counting
from plumtree_quic.proto.directory import Directory
from plumtree_quic.proto.effects import (
    Deliver,
    Effect,
    Link,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberSuspected,
    MemberUpdated,
    Send,
    TurnAway,
    Unlink,
)
from plumtree_quic.proto.members import Members
from plumtree_quic.proto.overlay import Overlay
from plumtree_quic.proto.paths import crossing_s
from plumtree_quic.proto.plumtree import Plumtree
from plumtree_quic.proto.seeds import Seeds
from plumtree_quic.proto.swim import Swim

__all__ = ["Core", "PeerView"]

# Bundles whose origin we do not know yet wait for its record (ARCHITECTURE section 3).
PARKED_BUNDLES_MAX = 64
PARKED_BYTES_MAX = 1 << 20
PARKED_S = 2.0
# As many as a member table has room for.
ORIGINS_NAMED_MAX = 10_000
# A link that neither end wants, a join link for instance, is closed after this long. A guess:
# long enough for the records of a first push/pull to pass.
UNWANTED_LINK_S = 5.0
# A seed serves so many joiners at a time; the others are told of members to try (section 7).
JOINERS_MAX = 64
BUSY_ADDRESSES_MAX = 16
# Whoever was turned away has so long to read why.
TURNED_AWAY_S = 0.5
# A joiner waits so long for the rows of whom it has met, before it makes do with them (a guess).
HOLD_S = 1.0
# What rows named counts for the size of the cluster so long, and no longer: it may be untrue.
EXPECTED_S = 10.0

_SWIM = (Facts, Ping, Ack, BucketHashes, Rows, RecordsWanted, Records)
_BUNDLES = (Gossip, Chunk, Repair)
_PLUMTREE = (IHave, Graft, Prune, GraftRefused, DigestHashes, Digest)


@attrs.frozen
class PeerView:
    """One link as the protocol sees it. eager: we push at least one origin to it."""

    node_id: NodeId
    eager: bool
    wanted: bool
    wanted_by_peer: bool
    state: MemberState


@attrs.define
class _LinkState:
    """dialled: where we dialled it, when that was to meet whoever answers."""

    wanted_by_peer: bool
    dialled: str | None = None
    unwanted_since: float | None = None
    parked: list[tuple[float, Gossip | Chunk | Repair]] = attrs.field(factory=list)
    parked_bytes: int = 0


class Core:
    """The protocol of one node between its start and its end.

    Args:
        record: our own record, incarnation 0.
        config: see PlumtreeConfig.
        rng: all randomness of the protocol; seed it and the trace repeats.
        make_record: makes (and signs) our record with a given incarnation.
        make_fact: makes (and signs) a fact ``(subject, epoch, incarnation, state)``.
        wall_ms: the wall clock in milliseconds, for validity dates alone.
        judge: asked once about each new bundle of a known origin before it is forwarded; False
            refuses it at this node.
        directory: members that are known from the start (simulations).
    """

    def __init__(
        self,
        record: Record,
        config: PlumtreeConfig,
        rng: Random,
        *,
        make_record: Callable[[int], Record],
        make_fact: Callable[[MemberKey, int, int, MemberState], Fact],
        wall_ms: Callable[[], int],
        judge: Callable[[Bundle], bool] | None = None,
        is_safe: Callable[[MemberKey, int, int, int], bool] = lambda _origin, _epoch, _a, _b: True,
        directory: Directory | None = None,
    ) -> None:
        self.me = record.node_id
        self._probe_timeout_s = config.probe_timeout
        self.key = member_key(record.node_id)
        self.table = Members(record, wall_ms, directory)
        self._overlay = Overlay(record.node_id, config, directory)
        self._swim = Swim(
            self.table,
            config,
            rng,
            make_record,
            make_fact,
            self._overlay.is_monitor,
            self._overlay.choose,
        )
        self._plumtree = Plumtree(self.key, record.epoch, config, rng)
        self._is_safe = is_safe
        self._counting = Counting(self.key, self._has, self._children)
        self._seeds = Seeds(record.addresses, rng, directory, self._overlay.would_neighbour)
        self._links: dict[NodeId, _LinkState] = {}
        self._unwanted: dict[NodeId, float] = {}
        # Those on which bundles wait for the record of their origin.
        self._parked: dict[NodeId, None] = {}
        # Origins that are no members that we know of.
        self._origins: dict[MemberKey, NodeId] = {}
        self._rng = rng
        # Links for which there is no room, and when they are closed.
        self._turned_away: dict[NodeId, float] = {}
        # Who knows nobody wants no links before it knows its neighbours.
        self._held = False
        self._hold_until: float | None = None
        self._expecting_until: float | None = None
        self._judge = judge
        self.refused = 0
        self.turned_away = 0
        self.parked_expired = 0
        self.parked_refused = 0
        self.leaving = False

    # --- inputs ---------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Begin; call once, before any other input."""
        effects = self._settle(self._swim.start(now), now)
        effects += self._settle(self._overlay.start(now), now)
        self._tell_overlay()
        return effects

    def seeds(self, addresses: Sequence[str], now: float) -> list[Effect]:
        """Dial these addresses now and again later until they answer or belong to a member."""
        effects = self._seeds.add(addresses, now)
        if effects:
            self._hold()
        return list(effects)

    def remember(self, peers: Iterable[tuple[NodeId, Sequence[str]]], now: float) -> list[Effect]:
        """Look for members that a former life of ours knew, beside the seeds."""
        others = [(node_id, addresses) for node_id, addresses in peers if node_id != self.me]
        effects = self._seeds.remember(others, now)
        if effects:
            self._hold()
        return list(effects)

    def is_served(self, address: str) -> bool:
        """Whether a living member is at this address."""
        return self._seeds.is_served(address)

    def seed_failed(self, address: str, now: float, floor_s: float = 0.0) -> list[Effect]:
        """A dial that DialSeed asked for came to nothing. floor_s: least wait till the next."""
        self._seeds.failed(address, now, floor_s)
        return []

    def seed_answered(self, address: str, now: float) -> None:
        """A seed greeted us on a link that is not the one that stays."""
        self._seeds.answered(address, now)

    def link_up(
        self, peer: NodeId, hello: Hello, now: float, dialled: str | None = None
    ) -> list[Effect]:
        """A link to `peer` is greeted; `dialled` is the seed's address when we dialled one."""
        self._turned_away.pop(peer, None)
        effects: list[Effect] = []
        if dialled is None and self._has_little_room():
            # Its record first: it may be a neighbour.
            effects += self._settle(self._swim.meet(peer, hello, now), now)
            if self._is_full(peer, wanted_by_peer=hello.wanted):
                return effects + self._turn_away(peer, now)
        self._links[peer] = _LinkState(hello.wanted, dialled)
        self._parked.pop(peer, None)
        if dialled is not None:
            self._seeds.answered(dialled, now)
        if self._held and self._hold_until is None:
            self._hold_until = now + HOLD_S
        joining = not (hello.wanted or self._overlay.wants(peer))
        # Who dials to meet somebody begins to compare.
        begin = True if dialled is not None else False if joining else None
        effects += self._settle(
            self._swim.link_up(peer, hello, now, begin=begin, joining=joining), now
        )
        effects += self._settle(self._overlay.link_up(peer, now), now)
        effects += self._plumtree.link_up(peer, now, zone=(self.yours(peer) or hello.record).zone)
        self._note_wanted(peer, now)
        return effects + self._close_join_links() + self._make_room(now)

    def link_down(self, peer: NodeId, now: float) -> list[Effect]:
        """The last link to `peer` is gone; what was on its way may be lost."""
        self._turned_away.pop(peer, None)
        if self._links.pop(peer, None) is None:
            return []
        self._unwanted.pop(peer, None)
        self._parked.pop(peer, None)
        effects: list[Effect] = list(self._plumtree.link_down(peer, now))
        effects += self._counting.link_down(peer, now)
        wanted = self._overlay.wants(peer)
        effects += self._settle(self._swim.link_down(peer, now, wanted=wanted), now)
        effects += self._settle(self._overlay.link_down(peer, now), now)
        if self._held and not self._links:
            # Whom we were about to join through is lost; but we have met it, and want it back.
            effects += self._release_hold(now)
        return effects

    def unreachable(self, peer: NodeId, now: float) -> list[Effect]:
        """A dial to a member failed. Unreachable for us is not dead."""
        effects = self._settle(self._overlay.unreachable(peer, now), now)
        if self._overlay.wants(peer):
            effects += self._settle(self._swim.unreachable(peer, now), now)
        return effects

    def receive(self, peer: NodeId, message: Message, now: float) -> list[Effect]:
        """A message that came on the greeted link to `peer`."""
        link = self._links.get(peer)
        if link is None:
            return []
        if isinstance(message, _PLUMTREE):
            return list(self._plumtree.receive(peer, message, now))
        if isinstance(message, _BUNDLES):
            if self.node_id_of(message.bundle.origin) is None:
                return self._park(peer, link, message, now)
            return self._on_bundle(peer, message, now)
        if isinstance(message, CoverageWanted):
            return self._counting.on_wanted(peer, message, now)
        if isinstance(message, Coverage):
            return self._counting.on_answer(peer, message, now)
        if isinstance(message, Records) and message.busy_addresses:
            return self._on_busy(peer, link, message, now)
        if isinstance(message, _SWIM):
            effects = self._settle(self._swim.receive(peer, message, now), now)
            if self._held and self._swim.has_met(peer):
                effects += self._release_hold(now)
            if link.dialled is not None and peer in self._unwanted:
                effects += self._close_join_links()
            if link.parked:
                effects += self._release(peer, link, now)
            return effects + self._make_room(now)
        if isinstance(message, Wanted):
            link.wanted_by_peer = message.wanted
            self._note_wanted(peer, now)
            return self._make_room(now)
        return []

    def came(self, peer: NodeId, bundle: Bundle, now: float) -> None:
        """`peer` has served `bundle`, which was not let through: that is no silence."""
        self._plumtree.came(peer, bundle, now)

    def heard(
        self,
        peer: NodeId,
        now: float,
        rtt_s: float,
        silent_after_s: float,
        loss: float = 0.0,
    ) -> None:
        """Something fresh came from `peer`: an ack that advanced, a frame.

        rtt_s: the link's smoothed round trip. silent_after_s: 3 PTO, how long the link may stay
        without anything fresh, while it owes us something, before it counts as silent. loss: the
        share of packets that were lost of late, 0.0 to 1.0.
        """
        # Silence is the probe time-out or 3 PTO, whichever is longer: an idle parent on a quick
        # link is not silent after 80 ms.
        waits_s = max(silent_after_s, self._probe_timeout_s)
        takes_s = crossing_s(rtt_s, silent_after_s / 3, loss)
        self._plumtree.heard(peer, now, rtt_s, waits_s, takes_s)
        self._swim.heard(peer, now, silent_after_s)

    def broadcast(self, bundle: Bundle, now: float) -> list[Effect]:
        """Push a bundle of our own; its sequence numbers follow the last one's."""
        return list(self._plumtree.broadcast(bundle, now))

    def recover(
        self,
        key: tuple[MemberKey, int],
        seen: Sequence[Range],
        floor: Sequence[Range],
        held: Sequence[Range],
    ) -> list[Effect]:
        """Before the first link: what a former life saw of (origin, epoch), what it held for older
        than itself, and what the store still has.
        """
        return list(self._plumtree.recover(key, seen, floor, held))

    def returned(self) -> None:
        """Before the first link: a former life was a member, so we are no joiner."""
        self._plumtree.returned()

    def stored(self, key: tuple[MemberKey, int], first: int, last: int) -> None:
        """The store holds first .. last of (origin, epoch) from now on."""
        self._plumtree.stored(key, first, last)

    def evicted(self, key: tuple[MemberKey, int], first: int, last: int) -> None:
        """The store holds them no more."""
        self._plumtree.evicted(key, first, last)

    def ask_who_has(
        self, epoch: int, seq: int, last: int, within_s: float, now: float, *, wide: bool
    ) -> tuple[int, list[Effect]]:
        """Ask who has a message of our own, with all its pieces; `Covered` names the round that is
        returned.
        """
        return self._counting.ask(epoch, seq, last, within_s, now, wide=wide)

    def _has(self, origin: MemberKey, epoch: int, first: int, last: int) -> bool:
        return self._plumtree.has(origin, epoch, first, last) and self._is_safe(
            origin, epoch, first, last
        )

    def _children(self, origin: MemberKey, wide: bool) -> Sequence[NodeId]:
        return list(self._links) if wide else self._plumtree.pushes(origin)

    def want_past(self, now: float) -> list[Effect]:
        """Somebody wants what was before our time: fetch what others still hold of it."""
        return list(self._plumtree.want_past(now))

    def congested(self, peer: NodeId, now: float, lane: Lane = Lane.GOSSIP) -> list[Effect]:
        """The link to `peer` has no room for pushes on this lane; they become announcements."""
        return list(self._plumtree.congested(peer, now, lane))

    def demote(self, peer: NodeId, now: float) -> list[Effect]:
        """The peer is above its limits: no tree goes through it any more."""
        return list(self._plumtree.demote(peer, now))

    def drained(self, peer: NodeId, now: float, lane: Lane = Lane.GOSSIP) -> list[Effect]:
        """The link to `peer` has room again."""
        return list(self._plumtree.drained(peer, now, lane))

    def late(self, seconds: float, now: float) -> None:
        """This process was late by `seconds`: what fell into the stall accuses nobody."""
        self._swim.late(seconds, now)
        self._overlay.late(seconds)

    def repaired(self, spent_s: float) -> None:
        """What others served to us took `spent_s` to handle; see `Sync.worked`."""
        self._plumtree.repaired(spent_s)

    def slept(self, seconds: float, now: float) -> None:
        """`seconds` have passed that `now` does not count, or a clock jumped by so much."""
        self._swim.slept(seconds, now)

    def renew(self, now: float) -> list[Effect]:
        """Our key has changed: our record and our last word are signed anew, and told."""
        return self._settle(self._swim.renew(now), now)

    def judge_again(self) -> None:
        """Whom we trust has changed: verified bundles that still wait here are fetched anew."""
        for link in self._links.values():
            self.parked_refused += len(link.parked)
            link.parked.clear()
            link.parked_bytes = 0
        self._parked.clear()

    def leave(self, now: float) -> list[Effect]:
        """Tell the cluster that we go. Links stay until the driver closes them."""
        self.leaving = True
        return self._settle(self._swim.leave(now), now)

    def next_deadline(self) -> float | None:
        """When `advance` has work, or None."""
        # Asked after every frame, so what is hardly ever there is looked at together.
        deadline = self._plumtree.next_deadline()
        when = self._swim.wake_at
        if when is not None and (deadline is None or when < deadline):
            deadline = when
        when = self._overlay.next_deadline()
        if when is not None and (deadline is None or when < deadline):
            deadline = when
        # Who leaves looks for nobody any more.
        when = None if self.leaving else self._seeds.wake_at
        if when is not None and (deadline is None or when < deadline):
            deadline = when
        rare = self._unwanted or self._turned_away or self._parked or self._held
        rare = rare or self._counting.is_counting
        if rare or self._expecting_until is not None:
            when = self._next_rare()
            if when is not None and (deadline is None or when < deadline):
                deadline = when
        return deadline

    def _next_rare(self) -> float | None:
        waits = (
            next(iter(self._unwanted.values()), None),
            next(iter(self._turned_away.values()), None),
            self._hold_until,
            self._expecting_until,
            self._next_parked(),
            self._counting.next_deadline(),
        )
        return min((when for when in waits if when is not None), default=None)

    def advance(self, now: float) -> list[Effect]:
        """Do what is due at `now`."""
        effects: list[Effect] = []
        if _due(self._plumtree.next_deadline(), now):
            effects += self._plumtree.advance(now)
        if _due(self._swim.wake_at, now):
            effects += self._settle(self._swim.advance(now), now)
        if _due(self._overlay.next_deadline(), now):
            effects += self._settle(self._overlay.advance(now), now)
        if _due(self._seeds.wake_at, now) and not self.leaving:
            effects += self._seeds.advance(now)
        if _due(self._counting.next_deadline(), now):
            effects += self._counting.advance(now)
        effects += self._fire_unwanted(now)
        effects += self._fire_turned_away(now)
        if _due(self._hold_until, now):
            effects += self._release_hold(now)
        if self._expecting_until is not None:
            effects += self._look_at_expected(self._expecting_until, now)
        self._fire_parked(now)
        return effects + self._make_room(now)

    # --- queries --------------------------------------------------------------------------------

    @property
    def record(self) -> Record:
        """Our own newest record."""
        return self.table.own

    @property
    def broadcasts(self) -> Plumtree:
        """The broadcast half, for its counters and queries alone."""
        return self._plumtree

    @property
    def local_health(self) -> int:
        """Lifeguard's score of ourselves, 0 (well) to 8: probes and suspicions that rest on our
        word take one time longer for each point.
        """
        return self._swim.health.score

    def swim_counters(self) -> dict[str, int]:
        """What failure detection has counted since the start, by name."""
        return attrs.asdict(self._swim.counters)

    def node_id_of(self, key: MemberKey) -> NodeId | None:
        """Who `key` stands for, when we know."""
        node_id = self.table.node_id_of(key)
        return node_id if node_id is not None else self._origins.get(key)

    def origin_named(self, node_id: NodeId) -> None:
        """An origin whose record is not here is this one, by the certificate that it signed under:
        it may be dead, and nobody left who had met it.
        """
        if len(self._origins) >= ORIGINS_NAMED_MAX:
            del self._origins[next(iter(self._origins))]
        self._origins[member_key(node_id)] = node_id

    def seeds_reached(self, addresses: Iterable[str]) -> int:
        """How many of these seeds have answered, or are a living member's addresses."""
        return self._seeds.reached(addresses)

    def yours(self, peer: NodeId) -> Record | None:
        """The newest record of `peer` that we hold: for the hello to it."""
        return self.table.record_of(member_key(peer))

    def has_seen(self, bundle: Bundle) -> bool:
        """Whether all of `bundle` was delivered or refused: whatever is a copy changes nothing."""
        return self._plumtree.is_settled(bundle)

    def differs(self, bundle: Bundle) -> bool:
        """Whether we hold something else under the first sequence number of `bundle`."""
        return self._plumtree.differs(bundle)

    def wants(self, peer: NodeId) -> bool:
        """Whether our overlay wants a link to `peer`."""
        return self._overlay.wants(peer)

    @property
    def links_max(self) -> int:
        """Most links that either end wants for its overlay; the next is turned away."""
        return self._overlay.links_max

    def link_counts(self) -> tuple[int, int]:
        """(links that either end wants for its overlay, joiners that we serve)."""
        return len(self._links) - len(self._unwanted), self._joiners()

    def peers(self) -> list[PeerView]:
        """The links that are up, in the order in which they came up."""
        return [
            PeerView(
                node_id=peer,
                eager=self._plumtree.eager(peer),
                wanted=self._overlay.wants(peer),
                wanted_by_peer=link.wanted_by_peer,
                state=self.table.state_of(member_key(peer)) or MemberState.ALIVE,
            )
            for peer, link in self._links.items()
        ]

    # --- membership drives the overlay ----------------------------------------------------------

    def _settle(self, effects: list[Effect], now: float) -> list[Effect]:
        """Let the overlay follow what membership has just learnt."""
        if not effects:
            return effects
        out = list(effects)
        for effect in tuple(out):
            match effect:
                case MemberJoined(record) | MemberUpdated(record):
                    out += self._overlay.member_alive(
                        record.node_id, record.addresses, now, zone=record.zone
                    )
                    self._plumtree.peer_moved(record.node_id, record.zone)
                    self._seeds.member_alive(record.node_id, record.addresses, now)
                case MemberSuspected(node_id):
                    out += self._overlay.member_suspect(node_id, now)
                case MemberFailed(node_id) | MemberLeft(node_id):
                    out += self._overlay.member_gone(node_id, now)
                    if isinstance(effect, MemberFailed):
                        self._seeds.member_dead(node_id, now)
                    else:
                        self._seeds.member_left(node_id, now)
                case _:
                    continue
            self._tell_overlay()
        for effect in out:
            if isinstance(effect, Link | Unlink):
                self._note_wanted(effect.peer, now)
                if isinstance(effect, Unlink) and self._overlay.is_fit(effect.peer):
                    # Others have come between us: we do not wait for its link any more.
                    self._swim.unwatch(effect.peer)
        return out

    def _tell_overlay(self) -> None:
        overlay = self._overlay
        self._plumtree.set_overlay(
            overlay.protected(), mesh=overlay.is_mesh(), zone_members=overlay.zone_members()
        )

    def _note_wanted(self, peer: NodeId, now: float) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        if link.wanted_by_peer or self._overlay.wants(peer):
            self._unwanted.pop(peer, None)
        else:
            self._unwanted.setdefault(peer, now + UNWANTED_LINK_S)
        self._swim.set_joining(peer, peer in self._unwanted, now)

    def _fire_unwanted(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._unwanted:
            peer, deadline = next(iter(self._unwanted.items()))
            if deadline > now:
                break
            del self._unwanted[peer]
            link = self._links[peer]
            if not link.wanted_by_peer and not self._overlay.wants(peer):
                effects.append(Unlink(peer))
        return effects

    # --- joining, and room for links ------------------------------------------------------------

    def _hold(self) -> None:
        """We know nobody and are about to meet somebody: rows first, then neighbours, then links.

        Else each newcomer would begin with links to the few whom it met first, as in a small mesh.
        """
        if not self._held and not self._links and self.table.alive_count() == 1:
            self._held = True
            self._overlay.hold()
            self._swim.begin_join()

    def _release_hold(self, now: float) -> list[Effect]:
        self._held, self._hold_until = False, None
        self._swim.end_join(now)
        self._seeds.joined()
        unmet = self._swim.unmet()
        if unmet:
            self._expecting_until = now + EXPECTED_S
        expected = self.table.alive_count() + unmet if unmet else 0
        effects = self._settle(self._overlay.release(expected, now), now)
        self._tell_overlay()
        return effects + self._close_join_links()

    def _look_at_expected(self, until: float, now: float) -> list[Effect]:
        """Once all whom rows named are known, the overlay rests on what is known alone."""
        if self._swim.awaits_records and now < until:
            return []
        self._expecting_until = None
        effects = self._settle(self._overlay.expect(0, now), now)
        self._tell_overlay()
        return effects

    def _close_join_links(self) -> list[Effect]:
        """Our overlay is up: whom we joined through has others to serve."""
        if self._held or not self._unwanted or not self._overlay.is_up():
            return []
        done = [peer for peer in self._unwanted if self._links[peer].dialled is not None]
        done = [peer for peer in done if self._swim.has_met(peer)]
        return [Unlink(peer) for peer in done]

    def _joiners(self) -> int:
        """How many joiners we serve: links that we have not dialled, and neither end wants."""
        return sum(self._links[peer].dialled is None for peer in self._unwanted)

    def _has_little_room(self) -> bool:
        return len(self._links) >= min(JOINERS_MAX, self._overlay.links_max)

    def _is_full(self, peer: NodeId, *, wanted_by_peer: bool) -> bool:
        """Whether there is no room for a link that we have not asked for."""
        if self._overlay.wants(peer) or peer in self._links:
            return False
        if not wanted_by_peer:
            return self._joiners() >= JOINERS_MAX
        return len(self._links) - len(self._unwanted) >= self._overlay.links_max

    def _make_room(self, now: float) -> list[Effect]:
        """More links than there may be: let go what we do not need, then what only others want."""
        effects: list[Effect] = []
        while len(self._links) - len(self._unwanted) > self._overlay.links_max:
            shed = self._overlay.shed()
            if shed:
                effects += self._settle(shed, now)
                continue
            others = [
                peer
                for peer in self._links
                if peer not in self._unwanted and not self._overlay.wants(peer)
            ]
            if not others:
                break
            # Lost before it is turned away: it may be told of others, not of itself.
            effects += self._lose(others[-1], now)
            effects += self._turn_away(others[-1], now)
        return effects

    def _turn_away(self, peer: NodeId, now: float) -> list[Effect]:
        """There is no room for this link. Say where else to try: members whom we have met."""
        others = list(self._links)
        self._rng.shuffle(others)
        addresses: list[str] = []
        for other in others:
            record = self.yours(other)
            if record is not None and record.addresses and len(addresses) < BUSY_ADDRESSES_MAX:
                addresses.append(record.addresses[0])
        self.turned_away += 1
        self._turned_away[peer] = now + TURNED_AWAY_S
        return [Send(peer, Records((), (), tuple(addresses)))] if addresses else []

    def _lose(self, peer: NodeId, now: float) -> list[Effect]:
        """There is no room for this link, here or there; the member lives, so nobody watches."""
        del self._links[peer]
        self._unwanted.pop(peer, None)
        self._parked.pop(peer, None)
        if not self._links:
            self._hold_until = None
        effects: list[Effect] = list(self._plumtree.link_down(peer, now))
        effects += self._counting.link_down(peer, now)
        effects += self._settle(self._swim.link_down(peer, now, wanted=False), now)
        return effects + self._settle(self._overlay.refused(peer, now), now)

    def _fire_turned_away(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._turned_away:
            peer, deadline = next(iter(self._turned_away.items()))
            if deadline > now:
                break
            del self._turned_away[peer]
            effects.append(TurnAway(peer))
        return effects

    def _on_busy(
        self, peer: NodeId, link: _LinkState, message: Records, now: float
    ) -> list[Effect]:
        """It has no room for us: others fill its place, and a joiner tries another door.

        The link is over, whatever the peer does about it: who says so costs itself a link, and no
        more. Where else to try is asked of those alone whom we dialled to get in.
        """
        if self._held and link.dialled is not None:
            self._seeds.turned_away(link.dialled, message.busy_addresses, now)
        return [*self._lose(peer, now), TurnAway(peer)]

    # --- bundles of origins that we do not know yet ---------------------------------------------

    def _park(
        self, peer: NodeId, link: _LinkState, message: Gossip | Chunk | Repair, now: float
    ) -> list[Effect]:
        size = len(message.bundle.raw)
        self._plumtree.came(peer, message.bundle, now)
        if len(link.parked) >= PARKED_BUNDLES_MAX or link.parked_bytes + size > PARKED_BYTES_MAX:
            # Not marked as seen: announced again by others, it is fetched like any other.
            self.parked_refused += 1
            return []
        link.parked.append((now + PARKED_S, message))
        link.parked_bytes += size
        self._parked[peer] = None
        return list(self._swim.want_record(peer, message.bundle.origin, now))

    def _release(self, peer: NodeId, link: _LinkState, now: float) -> list[Effect]:
        effects: list[Effect] = []
        waiting: list[tuple[float, Gossip | Chunk | Repair]] = []
        for deadline, message in link.parked:
            if self.node_id_of(message.bundle.origin) is None:
                waiting.append((deadline, message))
                continue
            link.parked_bytes -= len(message.bundle.raw)
            effects += self._on_bundle(peer, message, now)
        link.parked = waiting
        if not waiting:
            self._parked.pop(peer, None)
        return effects

    def _next_parked(self) -> float | None:
        if not self._parked:
            return None
        return min(self._links[peer].parked[0][0] for peer in self._parked)

    def _fire_parked(self, now: float) -> None:
        for peer in tuple(self._parked):
            link = self._links[peer]
            while link.parked and link.parked[0][0] <= now:
                _, message = link.parked.pop(0)
                link.parked_bytes -= len(message.bundle.raw)
                self.parked_expired += 1
            if not link.parked:
                del self._parked[peer]

    def _on_bundle(
        self, peer: NodeId, message: Gossip | Chunk | Repair, now: float
    ) -> list[Effect]:
        bundle = message.bundle
        if (
            self._judge is not None
            and not self._plumtree.is_settled(bundle)
            and not self._judge(bundle)
        ):
            # Seen, but neither delivered, held nor forwarded, and not asked for again.
            self.refused += 1
            return list(self._plumtree.refuse(peer, message, now))
        effects = self._plumtree.receive(peer, message, now)
        if bundle.origin == self.key:
            # A former life's broadcasts come back like any other: forwarded, never delivered.
            return [effect for effect in effects if not isinstance(effect, Deliver)]
        return list(effects)


def _due(deadline: float | None, now: float) -> bool:
    return deadline is not None and deadline <= now
