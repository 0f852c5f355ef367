"""Addresses to try again and again: configured seeds, and where dead members used to be.

No links and no member states here, only whom to dial and when. Every partition, of any shape,
heals through this: what is gone is tried for as long as it is remembered.
"""

from collections.abc import Iterable, Sequence
from random import Random

import attrs

from plumtree_quic.ids import NodeId
from plumtree_quic.proto.directory import Directory
from plumtree_quic.proto.effects import DialSeed

__all__ = ["Seeds"]

SEED_BACKOFF_MIN_S = 1.0
SEED_BACKOFF_MAX_S = 30.0
# Above the longest handshake, so that a dial whose end nobody reports is tried again.
DIAL_LOST_S = 30.0
DEAD_BACKOFF_MIN_S = 5.0
DEAD_BACKOFF_MAX_S = 300.0
# All dead members together: one dial a second (ARCHITECTURE section 7).
DEAD_DIAL_INTERVAL_S = 1.0
# As long as a record is valid: after that the member is forgotten everywhere.
DEAD_MEMORY_S = 24 * 3600.0
DEAD_MAX = 1_000


@attrs.define
class _Seed:
    """due: when to dial next; None while it rests. served: it was a member's address once."""

    due: float | None
    attempts: int = 0
    answered: bool = False
    served: bool = False


@attrs.define
class _Dead:
    addresses: tuple[str, ...]
    since: float
    due: float
    attempts: int = 0


class Seeds:
    """Whom to dial beside the overlay's neighbours.

    Args:
        own_addresses: never dialled.
        rng: for the jitter.
        directory: members that are known from the start.
    """

    def __init__(
        self, own_addresses: Iterable[str], rng: Random, directory: Directory | None = None
    ) -> None:
        self._own = frozenset(own_addresses)
        self._rng = rng
        self._seeds: dict[str, _Seed] = {}
        self._alive: dict[NodeId, tuple[str, ...]] = {}
        self._served: dict[str, int] = {}
        self._shares = directory is not None
        if directory is not None:
            self._alive, self._served = directory.addresses, directory.served
        self._dead: dict[NodeId, _Dead] = {}
        self._dead_dial_at = float("-inf")
        self._wake_at: float | None = None

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

    def answered(self, address: str, now: float) -> None:
        """Somebody greeted us at this seed's address."""
        del now
        seed = self._seeds.get(address)
        if seed is None:
            return
        seed.answered = True
        seed.attempts = 0
        seed.due = None

    def failed(self, address: str, now: float, floor_s: float = 0.0) -> None:
        """The dial to this seed came to nothing; the next one waits longer, with full jitter.

        floor_s: and at least this long.
        """
        seed = self._seeds.get(address)
        if seed is None or address in self._served:
            return
        top = min(SEED_BACKOFF_MAX_S, SEED_BACKOFF_MIN_S * 2.0 ** min(seed.attempts, 16))
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
            due = now + self._rng.uniform(DEAD_BACKOFF_MIN_S / 2, DEAD_BACKOFF_MIN_S)
            self._dead[node_id] = _Dead(addresses, now, self._at(due))
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

    def next_deadline(self) -> float | None:
        """When `advance` has work, or None."""
        return self._wake_at

    def advance(self, now: float) -> list[DialSeed]:
        """Dial what is due."""
        if self._wake_at is None or self._wake_at > now:
            return []
        effects: list[DialSeed] = []
        for address, seed in self._seeds.items():
            if seed.due is not None and seed.due <= now:
                effects += self._dial(address, seed, now)
        if self._dead and self._dead_dial_at <= now:
            effects += self._fire_dead(now)
        waits = [seed.due for seed in self._seeds.values() if seed.due is not None]
        if self._dead:
            waits.append(max(min(dead.due for dead in self._dead.values()), self._dead_dial_at))
        self._wake_at = min(waits, default=None)
        return effects

    def _at(self, when: float) -> float:
        """A new deadline. What is put off keeps its old one: it fires with nothing to do."""
        if self._wake_at is None or when < self._wake_at:
            self._wake_at = when
        return when

    # --- rules ----------------------------------------------------------------------------------

    def _dial(self, address: str, seed: _Seed, now: float) -> list[DialSeed]:
        if address in self._served:
            seed.due = None
            return []
        seed.attempts += 1
        seed.due = self._at(now + DIAL_LOST_S)
        return [DialSeed(address)]

    def _fire_dead(self, now: float) -> list[DialSeed]:
        """One dial to the dead member that is due for the longest time."""
        for node_id in [n for n, d in self._dead.items() if now - d.since > DEAD_MEMORY_S]:
            del self._dead[node_id]
        due = [(dead.due, node_id) for node_id, dead in self._dead.items() if dead.due <= now]
        if not due:
            return []
        dead = self._dead[min(due)[1]]
        address = dead.addresses[dead.attempts % len(dead.addresses)]
        dead.attempts += 1
        top = min(DEAD_BACKOFF_MAX_S, DEAD_BACKOFF_MIN_S * 2.0 ** min(dead.attempts, 16))
        dead.due = now + self._rng.uniform(top / 2, top)
        self._dead_dial_at = now + DEAD_DIAL_INTERVAL_S
        # Another member may live there now; then there is nothing to find.
        if address in self._served or address in self._own:
            return []
        return [DialSeed(address)]

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

        One that is a name never is. Having answered, it rests until we are alone: the member
        behind it is looked for under its own address.
        """
        for address, seed in self._seeds.items():
            if seed.due is not None or address in self._served:
                continue
            if seed.served or not seed.answered or not self._alive:
                seed.due = self._at(now + self._rng.uniform(1.0, 2.0) * SEED_BACKOFF_MIN_S)
