"""Addresses to try again and again: configured seeds, and where dead members used to be.

No links and no member states here, only whom to dial and when. Every partition, of any shape,
heals through this: what is gone is tried for as long as it is remembered. So are members that a
former life of ours knew (`Seeds.remember`), until they are met.
"""

from collections.abc import Callable, Iterable, Sequence
from random import Random

import attrs

from plumtree_quic.ids import NodeId
from plumtree_quic.proto.directory import Directory
from plumtree_quic.proto.effects import DialSeed

__all__ = ["Seeds"]

SEED_BACKOFF_MIN_S = 1.0
# As long as we are alone, for then nothing matters more (a guess).
SEED_BACKOFF_MAX_S = 30.0
# A seed that a member of a cluster tries, and a name that is looked up again (section 7). Of a
# small cluster sooner, so that all members together try it as often, whatever their number: a
# partition heals within half a minute (reliability bar, M-06). The factor is a guess.
SEED_BACKOFF_JOINED_MAX_S = 300.0
SEED_BACKOFF_PER_MEMBER_S = 3.0
# Above the longest handshake, so that a dial whose end nobody reports is tried again.
DIAL_LOST_S = 30.0
DEAD_BACKOFF_MIN_S = 5.0
DEAD_BACKOFF_MAX_S = 300.0
# Who would not be the dead one's neighbour tries as well, for those who would may not know of it:
# they came later. Rarely, for there may be a thousand of them.
DEAD_BACKOFF_FAR_S = 3_600.0
# All seeds and dead members together: one dial a second (ARCHITECTURE section 7).
DIAL_INTERVAL_S = 1.0
# As long as a record is valid: after that the member is forgotten everywhere.
DEAD_MEMORY_S = 24 * 3600.0
# As many as a table holds, so that none is forgotten before its time.
DEAD_MAX = 10_000
# How often whoever was turned away tries another door, and how many it keeps in mind (guesses).
REFERRED_S = (0.1, 0.4)
REFERRED_MAX_S = 5.0
REFERRED_FACTOR = 1.3
REFERRED_MAX = 64
# Of those whom we remember from a former life, so many are dialled at once, like seeds.
REMEMBERED_AT_ONCE = 3


@attrs.define
class _Seed:
    """due: when to dial next; None while it rests. served: it was a member's address once."""

    due: float | None
    attempts: int = 0
    answered: bool = False
    served: bool = False


@attrs.define
class _Dead:
    """due: when to look at it next. far_due: when to dial it though it is no neighbour of ours."""

    addresses: tuple[str, ...]
    since: float
    due: float
    far_due: float
    attempts: int = 0
    dials: int = 0


def _everybody(_node_id: NodeId) -> bool:
    """In a full mesh everybody is everybody's neighbour."""
    return True


class Seeds:
    """Whom to dial beside the overlay's neighbours.

    Args:
        own_addresses: never dialled.
        rng: for the jitter.
        directory: members that are known from the start.
        is_neighbour: whether a dead member would be a neighbour of ours if it lived: then we are
            one of those who look for it.
    """

    def __init__(
        self,
        own_addresses: Iterable[str],
        rng: Random,
        directory: Directory | None = None,
        is_neighbour: Callable[[NodeId], bool] = _everybody,
    ) -> None:
        self._own = frozenset(own_addresses)
        self._rng = rng
        self._is_neighbour = is_neighbour
        self._seeds: dict[str, _Seed] = {}
        self._alive: dict[NodeId, tuple[str, ...]] = {}
        self._served: dict[str, int] = {}
        self._shares = directory is not None
        if directory is not None:
            self._alive, self._served = directory.addresses, directory.served
        self._dead: dict[NodeId, _Dead] = {}
        # Who had no room for us, and where else we were told to try; those tried last at the end.
        self._doors: dict[str, None] = {}
        self._referred: dict[str, None] = {}
        self._referred_due: float | None = None
        self._referrals = 0
        # No retry before; what `add` asks for waits for nothing.
        self._next_dial_at = float("-inf")
        self.wake_at: float | None = None

    # --- inputs ---------------------------------------------------------------------------------

    def add(self, addresses: Sequence[str], now: float) -> list[DialSeed]:
        """Dial all of these at once, but our own; again later until they answer."""
        effects: list[DialSeed] = []
        for address in addresses:
            if address in self._own:
                continue
            seed = self._seeds.setdefault(address, _Seed(due=now))
            seed.attempts = 0
            seed.served = seed.served or address in self._served
            effects += self._dial(address, seed, now)
        return effects

    def remember(self, peers: Iterable[tuple[NodeId, Sequence[str]]], now: float) -> list[DialSeed]:
        """Look for members of a former life, as if they had just died: a few at once, then others.

        Whoever turns out to live, or to have left, is looked for no more.
        """
        unknown = [
            (node_id, tuple(addresses))
            for node_id, addresses in peers
            if addresses and node_id not in self._alive and node_id not in self._dead
        ]
        # Not everybody's first choice is to be the same.
        self._rng.shuffle(unknown)
        effects: list[DialSeed] = []
        for number, (node_id, addresses) in enumerate(unknown[: DEAD_MAX - len(self._dead)]):
            late = max(0, number + 1 - REMEMBERED_AT_ONCE)
            dead = self._bury(node_id, addresses, now, now + late * DIAL_INTERVAL_S)
            if not late:
                effects += self._dial_dead(dead, now)
        return effects

    def turned_away(self, address: str, others: Sequence[str], now: float) -> None:
        """Who answered at `address` has no room for us: try it again, and these `others`.

        Whatever it says, whom we know ourselves is tried every other time, and nothing that we
        were told of makes us forget something else.
        """
        if address not in self._referred and len(self._doors) < REFERRED_MAX:
            self._doors[address] = None
        fresh = [each for each in dict.fromkeys(others) if each not in self._own]
        self._rng.shuffle(fresh)
        for each in fresh:
            if each not in self._doors and len(self._referred) < REFERRED_MAX:
                self._referred[each] = None
        if self._referred_due is None:
            self._refer_later(now)

    def joined(self) -> None:
        """We are in: no other door needs to be tried."""
        self._doors.clear()
        self._referred.clear()
        self._referred_due = None
        self._referrals = 0

    def answered(self, address: str, now: float) -> None:
        """Somebody greeted us at this seed's address."""
        seed = self._seeds.get(address)
        if seed is None:
            return
        seed.answered = True
        seed.attempts = 0
        seed.due = None
        if address not in self._served:
            # A name, perhaps: what it stands for changes, and may lie behind a partition.
            seed.due = self._at(now + SEED_BACKOFF_JOINED_MAX_S * self._rng.uniform(0.5, 1.0))

    def failed(self, address: str, now: float, floor_s: float = 0.0) -> None:
        """The dial to this seed came to nothing; the next one waits longer, with full jitter.

        floor_s: and at least this long.
        """
        seed = self._seeds.get(address)
        if seed is None or address in self._served:
            return
        longest = max(SEED_BACKOFF_MAX_S, SEED_BACKOFF_PER_MEMBER_S * len(self._alive))
        longest = min(longest, SEED_BACKOFF_JOINED_MAX_S)
        top = min(longest, SEED_BACKOFF_MIN_S * 2.0 ** min(seed.attempts, 16))
        # Never below the shortest wait: a dead seed costs less than one dial a second.
        wait_s = self._rng.uniform(SEED_BACKOFF_MIN_S, top)
        # A floor needs its own jitter: many nodes may have met the same refusal.
        seed.due = self._at(now + (wait_s if wait_s > floor_s else floor_s + wait_s))

    def member_alive(self, node_id: NodeId, addresses: Sequence[str], now: float) -> None:
        """A member lives at these addresses: seeds among them need no dial."""
        del now
        self._dead.pop(node_id, None)
        if self._alive.get(node_id) == tuple(addresses):
            return
        self._forget_alive(node_id)
        self._alive[node_id] = tuple(addresses)
        for address in addresses:
            self._served[address] = self._served.get(address, 0) + 1
            seed = self._seeds.get(address)
            if seed is not None:
                seed.due = None
                seed.attempts = 0
                seed.served = True

    def member_dead(self, node_id: NodeId, now: float) -> None:
        """A member died: try its addresses now and then, it may come back there."""
        addresses = self._alive.get(node_id, ())
        self._forget_alive(node_id)
        if addresses:
            if len(self._dead) >= DEAD_MAX:
                del self._dead[next(iter(self._dead))]
            wait_s = self._rng.uniform(DEAD_BACKOFF_MIN_S / 2, DEAD_BACKOFF_MIN_S)
            self._bury(node_id, addresses, now, now + wait_s)
        self._wake_seeds(now)

    def member_left(self, node_id: NodeId, now: float) -> None:
        """A member left on purpose: nobody looks for it."""
        self._forget_alive(node_id)
        self._dead.pop(node_id, None)
        self._wake_seeds(now)

    def reached(self, addresses: Iterable[str]) -> int:
        """How many of these have answered, or are a living member's."""
        return sum(
            address in self._served or (address in self._seeds and self._seeds[address].answered)
            for address in addresses
        )

    def is_served(self, address: str) -> bool:
        """Whether a living member is at this address."""
        return address in self._served

    def next_deadline(self) -> float | None:
        """When `advance` has work, or None."""
        return self.wake_at

    def advance(self, now: float) -> list[DialSeed]:
        """Dial what is due for the longest time; one dial a second."""
        if self.wake_at is None or self.wake_at > now:
            return []
        effects = self._fire_due(now) if self._next_dial_at <= now else []
        effects += self._fire_referred(now)
        waits = [seed.due for seed in self._seeds.values() if seed.due is not None]
        waits += [dead.due for dead in self._dead.values()]
        self.wake_at = max(min(waits), self._next_dial_at) if waits else None
        if self._referred_due is not None:
            self._at(self._referred_due)
        return effects

    def _at(self, when: float) -> float:
        """A new deadline. What is put off keeps its old one: it fires with nothing to do."""
        if self.wake_at is None or when < self.wake_at:
            self.wake_at = when
        return when

    # --- rules ----------------------------------------------------------------------------------

    def _dial(self, address: str, seed: _Seed, now: float) -> list[DialSeed]:
        if address in self._served:
            seed.due = None
            return []
        seed.attempts += 1
        seed.due = self._at(now + DIAL_LOST_S)
        return [DialSeed(address)]

    def _refer_later(self, now: float) -> None:
        wait_s = self._rng.uniform(*REFERRED_S) * REFERRED_FACTOR ** min(self._referrals, 16)
        self._referrals += 1
        self._referred_due = self._at(now + min(wait_s, REFERRED_MAX_S))

    def _fire_referred(self, now: float) -> list[DialSeed]:
        """Try the door that was tried least lately, of ours and of others in turn."""
        if self._referred_due is None or self._referred_due > now:
            return []
        is_told = bool(self._referred) and (self._referrals % 2 == 1 or not self._doors)
        doors = self._referred if is_told else self._doors
        address = next(iter(doors))
        del doors[address]
        doors[address] = None
        self._refer_later(now)
        return [DialSeed(address)]

    def _fire_due(self, now: float) -> list[DialSeed]:
        for node_id in [n for n, d in self._dead.items() if now - d.since > DEAD_MEMORY_S]:
            del self._dead[node_id]
        due: list[tuple[float, str, bool]] = [
            (seed.due, address, False)
            for address, seed in self._seeds.items()
            if seed.due is not None and seed.due <= now
        ]
        due += [(dead.due, each, True) for each, dead in self._dead.items() if dead.due <= now]
        for _, key, is_dead in sorted(due):
            if is_dead:
                effects = self._fire_dead(NodeId(key), now)
            else:
                effects = self._dial(key, self._seeds[key], now)
            if effects:
                self._next_dial_at = now + DIAL_INTERVAL_S
                return effects
        return []

    def _bury(self, node_id: NodeId, addresses: tuple[str, ...], now: float, due: float) -> _Dead:
        far_due = now + self._rng.uniform(0.0, DEAD_BACKOFF_FAR_S)
        dead = self._dead[node_id] = _Dead(addresses, now, self._at(due), far_due)
        return dead

    def _fire_dead(self, node_id: NodeId, now: float) -> list[DialSeed]:
        """Dial a dead member if it is ours to look for; otherwise only look again later."""
        dead = self._dead[node_id]
        if dead.far_due <= now:
            dead.far_due = now + DEAD_BACKOFF_FAR_S * self._rng.uniform(0.5, 1.0)
        elif not self._is_neighbour(node_id):
            self._put_off(dead, now)
            return []
        return self._dial_dead(dead, now)

    def _dial_dead(self, dead: _Dead, now: float) -> list[DialSeed]:
        address = dead.addresses[dead.dials % len(dead.addresses)]
        dead.dials += 1
        self._put_off(dead, now)
        # Another member may live there now; then there is nothing to find.
        if address in self._served or address in self._own:
            return []
        return [DialSeed(address)]

    def _put_off(self, dead: _Dead, now: float) -> None:
        dead.attempts += 1
        top = min(DEAD_BACKOFF_MAX_S, DEAD_BACKOFF_MIN_S * 2.0 ** min(dead.attempts, 16))
        dead.due = self._at(now + self._rng.uniform(top / 2, top))

    def _forget_alive(self, node_id: NodeId) -> None:
        """What follows may be changed, too."""
        if self._shares:
            self._alive, self._served = self._alive.copy(), self._served.copy()
            self._shares = False
        for address in self._alive.pop(node_id, ()):
            self._served[address] -= 1
            if not self._served[address]:
                del self._served[address]

    def _wake_seeds(self, now: float) -> None:
        """Seeds rest while their address is that of a living member.

        One that is a name never is. Having answered, it is looked up now and then, and soon when
        we are alone: the member behind it is looked for under its own address.
        """
        for address, seed in self._seeds.items():
            if address in self._served:
                continue
            if self._alive and (seed.due is not None or (seed.answered and not seed.served)):
                continue
            soon = now + self._rng.uniform(1.0, 2.0) * SEED_BACKOFF_MIN_S
            if seed.due is None or seed.due > soon:
                seed.due = self._at(soon)
