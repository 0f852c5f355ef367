"""Core: one node's whole protocol, membership and broadcast together; no I/O, no clock, no codec.

The only module that sees both halves. Information flows one way::

    swim (who lives) -> overlay (whom to link) -> plumtree (what travels on which link)

The driver in node.py and the simulator feed the same object and perform the same effects. What
is handed in has been decoded, and its signatures checked, before it gets here.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import Random

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.messages import (
    Ack,
    BucketHashes,
    Bundle,
    Digest,
    Fact,
    Facts,
    Gossip,
    Graft,
    GraftRefused,
    Hello,
    IHave,
    MemberState,
    Message,
    Ping,
    Prune,
    Record,
    Records,
    RecordsWanted,
    Repair,
    Rows,
    Wanted,
)
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
    Unlink,
)
from plumtree_quic.proto.members import Members
from plumtree_quic.proto.overlay import Overlay
from plumtree_quic.proto.plumtree import Plumtree
from plumtree_quic.proto.seeds import Seeds
from plumtree_quic.proto.swim import Swim

__all__ = ["Core", "PeerView"]

# Bundles whose origin we do not know yet wait for its record (ARCHITECTURE section 3).
PARKED_BUNDLES_MAX = 64
PARKED_BYTES_MAX = 1 << 20
PARKED_S = 2.0
# A link that neither end wants, a join link for instance, is closed after this long. A guess:
# long enough for the records of a first push/pull to pass.
UNWANTED_LINK_S = 5.0

_SWIM = (Facts, Ping, Ack, BucketHashes, Rows, RecordsWanted, Records)
_PLUMTREE = (IHave, Graft, Prune, GraftRefused, Digest)


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
    wanted_by_peer: bool
    unwanted_since: float | None = None
    parked: deque[tuple[float, Gossip | Repair]] = attrs.field(factory=deque)
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
        directory: Directory | None = None,
    ) -> None:
        self.me = record.node_id
        self._probe_timeout_s = config.probe_timeout
        self.key = member_key(record.node_id)
        self.table = Members(record, wall_ms, directory)
        self._overlay = Overlay(record.node_id, config, directory)
        self._swim = Swim(self.table, config, rng, make_record, make_fact, self._overlay.is_monitor)
        self._plumtree = Plumtree(self.key, record.epoch, config, rng)
        self._seeds = Seeds(record.addresses, rng, directory, self._overlay.would_neighbour)
        self._links: dict[NodeId, _LinkState] = {}
        self._unwanted: dict[NodeId, float] = {}
        # Those on which bundles wait for the record of their origin.
        self._parked: dict[NodeId, None] = {}
        self._judge = judge
        self.refused = 0
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
        return list(self._seeds.add(addresses, now))

    def remember(self, peers: Iterable[tuple[NodeId, Sequence[str]]], now: float) -> list[Effect]:
        """Look for members that a former life of ours knew, beside the seeds."""
        others = [(node_id, addresses) for node_id, addresses in peers if node_id != self.me]
        return list(self._seeds.remember(others, now))

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
        self._links[peer] = _LinkState(hello.wanted)
        self._parked.pop(peer, None)
        if dialled is not None:
            self._seeds.answered(dialled, now)
        effects = self._settle(self._swim.link_up(peer, hello, now), now)
        effects += self._settle(self._overlay.link_up(peer, now), now)
        effects += self._plumtree.link_up(peer, now, zone=(self.yours(peer) or hello.record).zone)
        self._note_wanted(peer, now)
        return effects

    def link_down(self, peer: NodeId, now: float) -> list[Effect]:
        """The last link to `peer` is gone; what was on its way may be lost."""
        if self._links.pop(peer, None) is None:
            return []
        self._unwanted.pop(peer, None)
        self._parked.pop(peer, None)
        effects: list[Effect] = list(self._plumtree.link_down(peer, now))
        wanted = self._overlay.wants(peer)
        effects += self._settle(self._swim.link_down(peer, now, wanted=wanted), now)
        effects += self._settle(self._overlay.link_down(peer, now), now)
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
        if isinstance(message, Gossip | Repair):
            if self.table.node_id_of(message.bundle.origin) is None:
                return self._park(peer, link, message, now)
            return self._on_bundle(peer, message, now)
        if isinstance(message, _PLUMTREE):
            return list(self._plumtree.receive(peer, message, now))
        if isinstance(message, _SWIM):
            effects = self._settle(self._swim.receive(peer, message, now), now)
            if link.parked:
                effects += self._release(peer, link, now)
            return effects
        if isinstance(message, Wanted):
            link.wanted_by_peer = message.wanted
            self._note_wanted(peer, now)
        return []

    def heard(self, peer: NodeId, now: float, rtt_s: float, silent_after_s: float) -> list[Effect]:
        """Something fresh came from `peer`: an ack that advanced, a frame.

        rtt_s: the link's smoothed round trip. silent_after_s: 3 PTO, how long the link may stay
        without anything fresh, while it owes us something, before it counts as silent.
        """
        # Silence is the probe time-out or 3 PTO, whichever is longer: an idle parent on a quick
        # link is not silent after 80 ms.
        self._plumtree.heard(peer, now, rtt_s, max(silent_after_s, self._probe_timeout_s))
        return self._settle(self._swim.heard(peer, now, silent_after_s), now)

    def broadcast(self, bundle: Bundle, now: float) -> list[Effect]:
        """Push a bundle of our own; its sequence numbers follow the last one's."""
        return list(self._plumtree.broadcast(bundle, now))

    def congested(self, peer: NodeId, now: float) -> list[Effect]:
        """The link to `peer` has no room for pushes; they become announcements."""
        return list(self._plumtree.congested(peer, now))

    def demote(self, peer: NodeId, now: float) -> list[Effect]:
        """The peer is above its limits: no tree goes through it any more."""
        return list(self._plumtree.demote(peer, now))

    def drained(self, peer: NodeId, now: float) -> list[Effect]:
        """The link to `peer` has room again."""
        return list(self._plumtree.drained(peer, now))

    def late(self, seconds: float, now: float) -> None:
        """This process was late by `seconds`: what fell into the stall accuses nobody."""
        self._swim.late(seconds, now)
        self._overlay.late(seconds)

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
        deadline: float | None = None
        for when in (
            self._plumtree.next_deadline(),
            self._swim.next_deadline(),
            self._overlay.next_deadline(),
            # Who leaves looks for nobody any more.
            None if self.leaving else self._seeds.next_deadline(),
            next(iter(self._unwanted.values()), None),
            self._next_parked(),
        ):
            if when is not None and (deadline is None or when < deadline):
                deadline = when
        return deadline

    def advance(self, now: float) -> list[Effect]:
        """Do what is due at `now`."""
        effects: list[Effect] = []
        if _due(self._plumtree.next_deadline(), now):
            effects += self._plumtree.advance(now)
        if _due(self._swim.next_deadline(), now):
            effects += self._settle(self._swim.advance(now), now)
        if _due(self._overlay.next_deadline(), now):
            effects += self._settle(self._overlay.advance(now), now)
        if _due(self._seeds.next_deadline(), now) and not self.leaving:
            effects += self._seeds.advance(now)
        effects += self._fire_unwanted(now)
        self._fire_parked(now)
        return effects

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
        return self.table.node_id_of(key)

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

    # --- bundles of origins that we do not know yet ---------------------------------------------

    def _park(
        self, peer: NodeId, link: _LinkState, message: Gossip | Repair, now: float
    ) -> list[Effect]:
        size = len(message.bundle.raw)
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
        waiting: deque[tuple[float, Gossip | Repair]] = deque()
        for deadline, message in link.parked:
            if self.table.node_id_of(message.bundle.origin) is None:
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
                _, message = link.parked.popleft()
                link.parked_bytes -= len(message.bundle.raw)
                self.parked_expired += 1
            if not link.parked:
                del self._parked[peer]

    def _on_bundle(self, peer: NodeId, message: Gossip | Repair, now: float) -> list[Effect]:
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
