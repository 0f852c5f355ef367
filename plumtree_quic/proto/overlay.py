"""Whom to keep links with: a full mesh while small, K rings when large. No probes, no bytes.

Rapid (Suresh et al., ATC 2018), section 4.1: nodes placed on K rings by independent hashes, each
linked with its successor and predecessor on every ring, form an expander: no cut is thin, and
degree does not grow with the cluster. Every node computes the same rings from the same member
list, so nothing is negotiated. Ring 0 also has links two places away; its neighbours are the
"ring neighbours" that configuration can protect.

Half of the rings are one ring a zone, so that everybody has neighbours in its own zone; the others
hold everybody, and the zones together. While there is one zone, the two are the same.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.proto.directory import (
    Directory,
    Holders,
    is_zoned,
    key_positions,
    ring_positions,
)
from plumtree_quic.proto.effects import Effect, Link, Unlink

__all__ = ["MESH_MEMBERS_MAX", "Overlay", "ring_positions"]

MESH_MEMBERS_MAX = 16
"""Members up to which everybody links with everybody, unless max_peers says otherwise."""
GREETING_S = 1.0
"""A place whose holder has not greeted us after this long is filled by the next one as well."""
DROP_INTERVAL_S = 1.0
"""Links that are no longer wanted leave one at a time, so that trees can follow."""
SPARE_DIALS_MAX = 2
"""Holders that failed but stay candidates, beside the one that fills their place: three dials."""
LINKS_PER_PLACE_MAX = 3
"""Links at most, for each that we want: dials to stand-ins, and others who take us for neighbours
of theirs while a cluster grows."""
# A guess; a run of failed holders longer than this is a partition, and more dials do not heal it.
WALK_STEPS_MAX = 32

_CIRCLE = 1 << 64
_NOBODY = MemberKey(b"")


_Place = tuple[NodeId, ...]
"""Candidates for one place, nearest first; all but the last one failed or are suspected."""


@attrs.define
class _Ring:
    """One ring, and what was found on it around us. dirty: find it again.

    zoned: it is a ring for each zone; we stand on that of `zone`. needed: places on either side.
    shared: the zones whose list of holders others use, too.
    """

    number: int
    zoned: bool
    zone: str
    needed: int
    own: int
    everybody: Holders
    after: tuple[_Place, ...] = ()
    before: tuple[_Place, ...] = ()
    walked: dict[NodeId, None] = attrs.field(factory=dict)
    lowest: int = 0
    highest: int = 0
    whole: bool = True
    dirty: bool = True
    shared: dict[str, None] = attrs.field(factory=dict)

    @property
    def holders(self) -> list[tuple[int, NodeId]]:
        """Who stands on our ring: (position, NodeId), in order."""
        return self.everybody[self.zone]

    def holders_of(self, zone: str) -> list[tuple[int, NodeId]]:
        """Who stands on the ring of `zone`."""
        return self.everybody.get(zone if self.zoned else "", [])

    def is_ours(self, zone: str) -> bool:
        """Whether a member of `zone` stands on our ring."""
        return not self.zoned or zone == self.zone

    def insert(self, zone: str, position: int, node_id: NodeId) -> None:
        """A member of `zone` takes its place."""
        insort(self._own_list(zone), (position, node_id))
        self.dirty = self.dirty or self.concerns(zone, position)

    def remove(self, zone: str, position: int, node_id: NodeId) -> None:
        """A member of `zone` gives its place up."""
        holders = self._own_list(zone)
        del holders[bisect_left(holders, (position, node_id))]
        if not holders:
            del self.everybody[zone if self.zoned else ""]
        self.dirty = self.dirty or node_id in self.walked

    def _own_list(self, zone: str) -> list[tuple[int, NodeId]]:
        """The holders of a zone's ring, to be changed."""
        name = zone if self.zoned else ""
        if name in self.shared:
            del self.shared[name]
            self.everybody[name] = self.everybody[name].copy()
        return self.everybody.setdefault(name, [])

    def concerns(self, zone: str, position: int) -> bool:
        """Whether who is at `position` stands between us and those whom we walked to."""
        if not self.is_ours(zone):
            return False
        if self.whole:
            return True
        span = (self.highest - self.lowest) % _CIRCLE
        return (position - self.lowest) % _CIRCLE <= span


class Overlay:
    """The links that this node wants, and why.

    Args:
        me: our own id; it stands on the rings like any other.
        config: eager_fanout + lazy_fanout give the number of rings, max_peers the size of the
            mesh and, when set, the most links; max_lazy_peers the most links beside eager_fanout;
            zone: our own.
        directory: members that are known from the start.

    Attributes:
        links_max: above so many links, those that only the other end wants are turned away.
    """

    def __init__(
        self, me: NodeId, config: PlumtreeConfig, directory: Directory | None = None
    ) -> None:
        self.me = me
        self._config = config
        count = -(-(config.eager_fanout + config.lazy_fanout) // 2)
        own = ring_positions(me, count)
        self._rings = []
        for number in range(count):
            zoned = is_zoned(number, count)
            zone = config.zone if zoned else ""
            holders = {zone: [(own[number], me)]}
            needed = _places(number)
            self._rings.append(_Ring(number, zoned, zone, needed, own[number], holders))
        # Everybody, ourselves included, and where they can be dialled.
        self._addresses: dict[NodeId, tuple[str, ...]] = {me: ()}
        self._shares_addresses = False
        # The zones of those that name one.
        self._zones: dict[NodeId, str] = {me: config.zone} if config.zone else {}
        self._shares_zones = False
        if directory is not None:
            self._addresses, self._shares_addresses = directory.addresses, True
            self._zones, self._shares_zones = directory.zones, True
            for ring, shared in zip(self._rings, directory.holders(count), strict=True):
                ring.everybody, ring.shared = shared.copy(), dict.fromkeys(shared)
        self._mesh = True
        self._mesh_max = config.max_peers or MESH_MEMBERS_MAX
        self.links_max = max(LINKS_PER_PLACE_MAX * (2 * count + 2), 2 * self._mesh_max)
        bounds = [2 * count + 2]
        if config.max_peers is not None:
            bounds.append(config.max_peers)
        self._links_max = min(bounds)
        self._mesh_links_max: int | None = None
        if config.max_lazy_peers is not None:
            self._mesh_links_max = config.eager_fanout + config.max_lazy_peers
            self._links_max = min(self._links_max, self._mesh_links_max)
        self._suspects: dict[NodeId, None] = {}
        self._failed: dict[NodeId, None] = {}
        self._linked: dict[NodeId, None] = {}
        self._wanted: dict[NodeId, None] = {}
        self._desired: dict[NodeId, None] = {}
        self._greeting: dict[NodeId, float] = {}
        self._surplus: dict[NodeId, None] = {}
        self._drop_at: float | None = None
        self._held = False
        # Members that there are, as far as we have heard, while most are not known yet; else 0.
        self._expected = 0

    # --- inputs ---------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Want what the members that are known from the start make us want."""
        return self._follow(now)

    def hold(self) -> None:
        """Want nothing: we are about to learn who our neighbours are."""
        self._held = True

    def release(self, expected: int, now: float) -> list[Effect]:
        """Want what there is to want. expected: see `expect`."""
        self._held = False
        return self.expect(expected, now)

    def expect(self, members: int, now: float) -> list[Effect]:
        """There are so many `members`, most of them unknown as yet; 0: all are known.

        A cluster that will be large is no mesh meanwhile. And our zone's rings wait: which of the
        strangers stand on them is not known, while the rings of all need only their keys.
        """
        self._expected = members
        for ring in self._rings:
            ring.dirty = True
        return self._follow(now)

    def member_alive(
        self, node_id: NodeId, addresses: Sequence[str], now: float, *, zone: str = ""
    ) -> list[Effect]:
        """A member joined, changed its addresses or its zone, or refuted a suspicion."""
        if node_id == self.me:
            return []
        effects: list[Effect] = []
        known = self._addresses.get(node_id)
        if known != tuple(addresses):
            self._own_addresses()[node_id] = tuple(addresses)
        if known is None:
            self._note_zone(node_id, zone)
            for ring, position in zip(self._rings, self._positions(node_id), strict=True):
                ring.insert(zone, position, node_id)
        else:
            self._move(node_id, zone)
            if known != tuple(addresses):
                if node_id in self._wanted:
                    effects.append(Link(node_id, tuple(addresses)))
                self._clear(self._failed, node_id)
        self._clear(self._suspects, node_id)
        return effects + self._follow(now)

    def member_suspect(self, node_id: NodeId, now: float) -> list[Effect]:
        """A member is accused of silence: its places are filled, its link is kept."""
        if node_id not in self._addresses:
            return []
        self._mark(self._suspects, node_id)
        return self._follow(now)

    def member_gone(self, node_id: NodeId, now: float) -> list[Effect]:
        """A member is dead or has left."""
        if node_id not in self._addresses or node_id == self.me:
            return []
        del self._own_addresses()[node_id]
        zone = self.zone_of(node_id)
        self._note_zone(node_id, "")
        for ring, position in zip(self._rings, self._positions(node_id), strict=True):
            ring.remove(zone, position, node_id)
        self._suspects.pop(node_id, None)
        self._failed.pop(node_id, None)
        self._desired.pop(node_id, None)
        return self._drop(node_id) + self._follow(now)

    def link_up(self, peer: NodeId, now: float) -> list[Effect]:
        """A link to `peer` is greeted."""
        self._linked[peer] = None
        self._greeting.pop(peer, None)
        self._clear(self._failed, peer)
        return self._follow(now)

    def link_down(self, peer: NodeId, now: float) -> list[Effect]:
        """The link to `peer` is gone; while it is wanted, it is being dialled again."""
        self._linked.pop(peer, None)
        if peer in self._wanted:
            self._greeting[peer] = now + GREETING_S
        return self._follow(now)

    def unreachable(self, peer: NodeId, now: float) -> list[Effect]:
        """A dial to a member failed. Not dead: it stays a candidate while others fill in."""
        if peer not in self._addresses or peer in self._linked:
            return []
        self._greeting.pop(peer, None)
        self._mark(self._failed, peer)
        return self._follow(now)

    def refused(self, peer: NodeId, now: float) -> list[Effect]:
        """A member has no room for our link. It lives; others fill its places, as if it failed."""
        self._linked.pop(peer, None)
        return self.unreachable(peer, now)

    def shed(self) -> list[Effect]:
        """There are too many links: let one go that we have kept until others take its place."""
        oldest = next((each for each in self._surplus if each in self._linked), None)
        return [] if oldest is None else self._drop(oldest)

    def late(self, seconds: float) -> None:
        """This process stood still: whoever has not greeted us meanwhile has not failed."""
        for peer in self._greeting:
            self._greeting[peer] += seconds

    def next_deadline(self) -> float | None:
        """When `advance` has work, or None."""
        if not self._greeting:
            return self._drop_at
        greeting = next(iter(self._greeting.values()))
        return greeting if self._drop_at is None else min(greeting, self._drop_at)

    def advance(self, now: float) -> list[Effect]:
        """Fill the places of those who have not greeted in time; let one surplus link go."""
        while self._greeting:
            peer, deadline = next(iter(self._greeting.items()))
            if deadline > now:
                break
            del self._greeting[peer]
            self._mark(self._failed, peer)
        effects = self._follow(now)
        if self._drop_at is not None and self._drop_at <= now:
            effects += self._fire_drop(now)
        return effects

    # --- queries --------------------------------------------------------------------------------

    def wants(self, peer: NodeId) -> bool:
        """Whether we want the link to `peer`, also while it waits to be let go."""
        return peer in self._wanted

    def is_fit(self, peer: NodeId) -> bool:
        """Whether nothing speaks against a link to this member."""
        return peer not in self._suspects and peer not in self._failed

    def is_up(self) -> bool:
        """Whether all links that we want and can have are there."""
        if self._held or not self._desired:
            return False
        return all(each in self._linked for each in self._desired if self.is_fit(each))

    def choose(self, keys: Sequence[MemberKey]) -> list[MemberKey]:
        """Of these strangers, of whom only the keys are known, those who may be our neighbours.

        All in a mesh, else on each ring and side the nearest ones, one more than we need, unless
        we know nearer ones. Keys say nothing of zones: all are taken for members of ours, which is
        right while there is one.
        """
        if len(self._addresses) + len(keys) <= self._mesh_max:
            return list(keys)
        count = len(self._rings)
        chosen: dict[MemberKey, None] = {}
        for number, ring in enumerate(self._rings):
            ways = [((key_positions(key, count)[number] - ring.own) % _CIRCLE, key) for key in keys]
            holders = ring.holders
            here = bisect_left(holders, (ring.own, self.me))
            known = range(1, min(ring.needed + 1, len(holders) - 1) + 1)
            for direction, nearest in ((1, heapq.nsmallest), (-1, heapq.nlargest)):
                there = (holders[(here + direction * step) % len(holders)][0] for step in known)
                met = [((position - ring.own) % _CIRCLE, _NOBODY) for position in there]
                for _, key in nearest(ring.needed + 1, ways + met):
                    if key != _NOBODY:
                        chosen[key] = None
        return list(chosen)

    def is_mesh(self) -> bool:
        """Whether everybody links with everybody now."""
        return self._mesh

    def is_monitor(self, watcher: NodeId, watched: NodeId) -> bool:
        """Whether `watcher` is close enough to `watched` for its word about it to count.

        Neighbours on a ring watch each other. Views differ, places are filled by the next in the
        line, so everybody within 2K places on some ring counts; in a full mesh, everybody. Who is
        of another zone stands on the rings of all alone.
        """
        if self._mesh:
            return True
        reach = 2 * len(self._rings)
        ours, theirs = self._positions(watcher), self._positions(watched)
        zone = self.zone_of(watched)
        one_zone = zone == self.zone_of(watcher)
        for ring, from_, to in zip(self._rings, ours, theirs, strict=True):
            if ring.zoned and not one_zone:
                continue
            holders = ring.holders_of(zone)
            apart = abs(
                bisect_left(holders, (from_, watcher)) - bisect_left(holders, (to, watched))
            )
            if min(apart, len(holders) - apart) <= reach:
                return True
        return False

    def would_neighbour(self, node_id: NodeId) -> bool:
        """Whether somebody who is not a member now would be our neighbour if it were."""
        if self._mesh:
            return True
        for ring, position in zip(self._rings, self._positions(node_id), strict=True):
            if ring.zoned and len(ring.holders) < len(self._addresses):
                # There are other zones, and that of who is no member is not known.
                continue
            holders = ring.holders
            there = bisect_left(holders, (position, node_id))
            here = bisect_left(holders, (ring.own, self.me))
            # Behind it stands whoever is at its place now, before it who is one place down.
            after = (here - there) % len(holders)
            before = (there - 1 - here) % len(holders)
            if min(after, before) < ring.needed:
                return True
        return False

    def zone_of(self, node_id: NodeId) -> str:
        """The zone of a member; "" for one that names none, and for a stranger."""
        return self._zones.get(node_id, "")

    def zone_members(self) -> int:
        """How many members our own zone has, ourselves included."""
        for ring in self._rings:
            if ring.zoned:
                return len(ring.holders)
        return len(self._addresses)

    def protected(self) -> tuple[NodeId, ...]:
        """Ring neighbours that no cap may evict: next, previous, next but one, previous but one."""
        config = self._config
        if not (config.use_hash_ring and config.protect_ring_neighbors):
            return ()
        ring = self._rings[0]
        holders: dict[NodeId, None] = {}
        for distance in range(_places(0)):
            for side in (ring.after, ring.before):
                if distance < len(side):
                    holders[side[distance][-1]] = None
        return tuple(holders)[: config.max_protected_neighbors]

    # --- the rings ------------------------------------------------------------------------------

    def _own_addresses(self) -> dict[NodeId, tuple[str, ...]]:
        if self._shares_addresses:
            self._addresses, self._shares_addresses = self._addresses.copy(), False
        return self._addresses

    def _note_zone(self, node_id: NodeId, zone: str) -> None:
        if zone == self.zone_of(node_id):
            return
        if self._shares_zones:
            self._zones, self._shares_zones = self._zones.copy(), False
        if zone:
            self._zones[node_id] = zone
        else:
            del self._zones[node_id]

    def _move(self, node_id: NodeId, zone: str) -> None:
        """A member is of this zone now: it leaves the rings of its old one."""
        before = self.zone_of(node_id)
        if zone == before:
            return
        self._note_zone(node_id, zone)
        for ring, position in zip(self._rings, self._positions(node_id), strict=True):
            if ring.zoned:
                ring.remove(before, position, node_id)
                ring.insert(zone, position, node_id)

    def _spread_places(self) -> None:
        """Who has few neighbours of its own zone takes more places on the rings of all."""
        if self._expected:
            # How many there are in our zone is not known.
            return
        zoned = sum(ring.zoned for ring in self._rings)
        own, members = self.zone_members(), len(self._addresses)
        few = own <= 2 * zoned and own < members
        more = -(-zoned // (len(self._rings) - zoned)) if few else 0
        for ring in self._rings:
            needed = _places(ring.number) + (0 if ring.zoned else more)
            if needed != ring.needed:
                ring.needed, ring.dirty = needed, True

    def _positions(self, node_id: NodeId) -> tuple[int, ...]:
        return ring_positions(node_id, len(self._rings))

    def _mark(self, marks: dict[NodeId, None], node_id: NodeId) -> None:
        if node_id not in marks and node_id in self._addresses:
            marks[node_id] = None
            self._soil(node_id)

    def _clear(self, marks: dict[NodeId, None], node_id: NodeId) -> None:
        if node_id in marks:
            del marks[node_id]
            self._soil(node_id)

    def _soil(self, node_id: NodeId) -> None:
        zone = self.zone_of(node_id)
        for ring, position in zip(self._rings, self._positions(node_id), strict=True):
            ring.dirty = ring.dirty or ring.concerns(zone, position)

    def _walk(self, ring: _Ring) -> None:
        """Find our places on a ring: walk from us either way to the first fit holders."""
        ring.dirty = False
        ring.walked = {}
        if self._expected and ring.zoned and len(ring.holders) < len(self._addresses):
            ring.after = ring.before = ()
            # Walked again when it may hold somebody.
            ring.whole = True
            return
        here = bisect_left(ring.holders, (ring.own, self.me))
        ring.after, ring.highest, after_steps = self._walk_side(ring, here, 1)
        ring.before, ring.lowest, before_steps = self._walk_side(ring, here, -1)
        ring.whole = after_steps + before_steps >= len(ring.holders) - 1

    def _walk_side(
        self, ring: _Ring, here: int, direction: int
    ) -> tuple[tuple[_Place, ...], int, int]:
        places: list[_Place] = []
        waiting: list[NodeId] = []
        spare = 0
        holders = ring.holders
        position, steps = ring.own, 0
        while steps < min(len(holders) - 1, WALK_STEPS_MAX) and len(places) < ring.needed:
            steps += 1
            position, holder = holders[(here + direction * steps) % len(holders)]
            ring.walked[holder] = None
            if holder in self._suspects:
                if holder in self._wanted:
                    waiting.append(holder)
            elif holder in self._failed:
                if spare < SPARE_DIALS_MAX:
                    waiting.append(holder)
                    spare += 1
            else:
                places.append((*waiting, holder))
                waiting = []
        if waiting:
            places.append(tuple(waiting))
        return tuple(places), position, steps

    def _ring_neighbours(self) -> Iterator[NodeId]:
        """All candidates, the places that keep the cluster connected first."""
        for distance in range(max(ring.needed for ring in self._rings)):
            for ring in self._rings:
                for side in (ring.after, ring.before):
                    if distance < len(side):
                        yield from side[distance]

    # --- from places to links -------------------------------------------------------------------

    def _follow(self, now: float) -> list[Effect]:
        """Want what should be wanted now; note what is not wanted any more."""
        if self._held:
            return []
        changed = self._choose_mode()
        self._spread_places()
        if self._mesh and len(self._desired) != len(self._addresses) - 1:
            # A mesh wants a newcomer wherever it stands, also where no ring of ours has changed.
            changed = True
        for ring in self._rings:
            if ring.dirty:
                self._walk(ring)
                changed = True
        if not changed:
            self._schedule_drop(now)
            return []
        if self._mesh:
            self._desired = {each: None for each in self._addresses if each != self.me}
        else:
            self._desired = {}
            for node_id in self._ring_neighbours():
                if len(self._desired) >= self._links_max and self.is_fit(node_id):
                    continue
                self._desired[node_id] = None
        effects: list[Effect] = []
        for node_id in self._desired:
            self._surplus.pop(node_id, None)
            if node_id not in self._wanted:
                self._wanted[node_id] = None
                effects.append(Link(node_id, self._addresses[node_id]))
                if node_id not in self._linked:
                    self._greeting[node_id] = now + GREETING_S
        for node_id in [each for each in self._wanted if each not in self._desired]:
            if node_id in self._linked:
                self._surplus[node_id] = None
            else:
                effects += self._drop(node_id)
        self._schedule_drop(now)
        return effects

    def _choose_mode(self) -> bool:
        members = max(len(self._addresses), self._expected)
        too_many = self._mesh_links_max is not None and members - 1 > self._mesh_links_max
        was = self._mesh
        if self._mesh:
            self._mesh = members <= self._mesh_max and not too_many
        else:
            # Well below the limit, so that one member coming and going changes nothing.
            self._mesh = members < self._mesh_max * 3 // 4 and not too_many
        return self._mesh != was

    def _schedule_drop(self, now: float) -> None:
        if not self._surplus:
            self._drop_at = None
        elif self._drop_at is None:
            self._drop_at = now + DROP_INTERVAL_S

    def _fire_drop(self, now: float) -> list[Effect]:
        """Let one link go, but none before those that take its place are up."""
        self._drop_at = None
        effects: list[Effect] = []
        for node_id in [each for each in self._surplus if each not in self._linked]:
            effects += self._drop(node_id)
        if all(each in self._linked for each in self._desired if self.is_fit(each)):
            # While a cluster grows, neighbours change faster than one a second.
            excess = len(self._linked) - LINKS_PER_PLACE_MAX * self._links_max // 2
            for oldest in list(self._surplus)[: max(1, excess)]:
                effects += self._drop(oldest)
        self._schedule_drop(now)
        return effects

    def _drop(self, node_id: NodeId) -> list[Effect]:
        self._surplus.pop(node_id, None)
        self._greeting.pop(node_id, None)
        if node_id not in self._wanted:
            return []
        del self._wanted[node_id]
        return [Unlink(node_id)]


def _places(ring: int) -> int:
    """Neighbours on either side that a ring gives: two on the first one."""
    return 2 if ring == 0 else 1
