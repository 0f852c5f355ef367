"""Who has a message: asked along its tree, counted on the way back. Knows links, and no members.

The origin asks its children, they ask theirs, and each answers when all of its own have, or its
time is over: with the keys of all who have the message, its own among them (Segall, "Distributed
Network Protocols", 1983: propagation of information with feedback). So an origin gets as many
answers as it has children, and not one from each node. Not everybody hangs on the tree that pushed
a message, for it may have come by a repair: asked `wide`, the question goes over every link, and
whoever is asked a second time says so at once.

All of it is advice: a relay can count whom it likes.
"""

from collections.abc import Callable, Sequence

import attrs

from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.messages import Coverage, CoverageWanted
from plumtree_quic.proto.effects import Covered, Effect, Send

__all__ = ["COVERAGE_KEYS_MAX", "KEY_BYTES", "Counting"]

# What stands for a member in an answer: the begin of its key. Of 10,000 members two begin alike
# with a chance of 1 in 400 billion.
KEY_BYTES = 8
# What fits a frame.
COVERAGE_KEYS_MAX = 4_096
# Questions that are open at a time, and how many more a link may begin in a second: each costs a
# frame on every link.
OPEN_MAX = 64
# What is kept of answers: of one question, more than the largest clusters that we know of have
# members; and of all that are open (some 12 MB), so that no child fills our memory with names.
KEYS_OF_ONE_MAX = 16_384
KEYS_MAX = 131_072
ASKED_PER_S = 10.0
ASKED_BURST = 20.0
# A child has this part of our time, so that its answer gets here within it.
CHILDS_SHARE = 0.75
# Who has not got the message yet looks again so often, until its time is over.
LOOK_EVERY_S = 0.02

_Name = tuple[MemberKey, int, int, int]
"""(origin, epoch, number, round)."""


@attrs.define(eq=False)
class _Count:
    """One question. asker: None where it is our own. waiting: who has not answered yet. last: of
    what is asked for, as in `CoverageWanted`.
    """

    asker: NodeId | None
    last: int
    until: float
    look_at: float
    waiting: dict[NodeId, None]
    keys: dict[bytes, None] = attrs.field(factory=dict)


@attrs.define
class _Rate:
    tokens: float = ASKED_BURST
    at: float = 0.0


class Counting:
    """The questions that one node has asked, or has been asked.

    Args:
        me: our own key.
        has: whether we have all of (origin, epoch, first, last).
        links: over which a question goes on: (origin, wide).
    """

    def __init__(
        self,
        me: MemberKey,
        has: Callable[[MemberKey, int, int, int], bool],
        links: Callable[[MemberKey, bool], Sequence[NodeId]],
    ) -> None:
        self._me = me
        self._has = has
        self._links = links
        self._counts: dict[_Name, _Count] = {}
        self._rates: dict[NodeId, _Rate] = {}
        self._round = 0
        self._keys = 0

    # --- inputs ---------------------------------------------------------------------------------

    def ask(
        self, epoch: int, seq: int, last: int, within_s: float, now: float, *, wide: bool
    ) -> tuple[int, list[Effect]]:
        """Ask who has a message of our own, with all its pieces. Returns the round that `Covered`
        will name.
        """
        self._round += 1
        name = (self._me, epoch, seq, self._round)
        effects: list[Effect] = []
        wanted = CoverageWanted(*name, wide=wide, within_s=within_s, last=last)
        self._begin(name, None, wanted, now, effects)
        return self._round, effects

    def on_wanted(self, peer: NodeId, message: CoverageWanted, now: float) -> list[Effect]:
        """A neighbour wants to know: we ask on, and answer when we know."""
        name = (message.origin, message.epoch, message.seq, message.round)
        effects: list[Effect] = []
        if name in self._counts or not self._may_ask(peer, now):
            # Whoever asked first is told of us and all behind us.
            effects.append(Send(peer, Coverage(*name, b"", last=True)))
        else:
            self._begin(name, peer, message, now, effects)
        return effects

    def on_answer(self, peer: NodeId, message: Coverage, now: float) -> list[Effect]:
        """A neighbour says who has it there."""
        name = (message.origin, message.epoch, message.seq, message.round)
        count = self._counts.get(name)
        if count is None or peer not in count.waiting:
            return []
        for at in range(0, len(message.keys), KEY_BYTES):
            if len(count.keys) >= KEYS_OF_ONE_MAX or self._keys >= KEYS_MAX:
                break
            before = len(count.keys)
            count.keys[message.keys[at : at + KEY_BYTES]] = None
            self._keys += len(count.keys) - before
        effects: list[Effect] = []
        if message.last:
            del count.waiting[peer]
            self._look(name, count, now, effects)
        return effects

    def link_down(self, peer: NodeId, now: float) -> list[Effect]:
        """It will not answer, and wants no answer."""
        self._rates.pop(peer, None)
        effects: list[Effect] = []
        for name, count in list(self._counts.items()):
            if count.asker == peer:
                self._end(name)
            elif peer in count.waiting:
                del count.waiting[peer]
                self._look(name, count, now, effects)
        return effects

    @property
    def is_counting(self) -> bool:
        """Whether any question is open."""
        return bool(self._counts)

    def next_deadline(self) -> float | None:
        """When `advance` has work, or None."""
        return min((count.look_at for count in self._counts.values()), default=None)

    def advance(self, now: float) -> list[Effect]:
        """Answer what is due."""
        effects: list[Effect] = []
        for name, count in list(self._counts.items()):
            if count.look_at <= now:
                self._look(name, count, now, effects)
        return effects

    # --- one question ---------------------------------------------------------------------------

    def _may_ask(self, peer: NodeId, now: float) -> bool:
        rate = self._rates.setdefault(peer, _Rate(at=now))
        rate.tokens = min(ASKED_BURST, rate.tokens + (now - rate.at) * ASKED_PER_S)
        rate.at = now
        if rate.tokens < 1.0 or len(self._counts) >= OPEN_MAX:
            return False
        rate.tokens -= 1.0
        return True

    def _begin(
        self,
        name: _Name,
        asker: NodeId | None,
        wanted: CoverageWanted,
        now: float,
        effects: list[Effect],
    ) -> None:
        children = [peer for peer in self._links(name[0], wanted.wide) if peer != asker]
        until = now + wanted.within_s
        count = _Count(asker, wanted.last, until, until, dict.fromkeys(children))
        self._counts[name] = count
        on = attrs.evolve(wanted, within_s=wanted.within_s * CHILDS_SHARE)
        effects += [Send(child, on) for child in children]
        self._look(name, count, now, effects)

    def _look(self, name: _Name, count: _Count, now: float, effects: list[Effect]) -> None:
        """Answer, if there is nothing left to wait for."""
        origin, epoch, seq, number = name
        has_it = origin == self._me or self._has(origin, epoch, seq, count.last)
        is_over = now >= count.until
        if not is_over and (count.waiting or not has_it):
            # What is to come tells us by itself, but for our own copy.
            count.look_at = count.until if count.waiting else min(count.until, now + LOOK_EVERY_S)
            return
        self._end(name)
        if origin == self._me:
            effects.append(Covered(epoch, seq, number, tuple(count.keys)))
            return
        if has_it:
            count.keys[self._me[:KEY_BYTES]] = None
        keys = list(count.keys)
        assert count.asker is not None
        for at in range(0, max(len(keys), 1), COVERAGE_KEYS_MAX):
            some = b"".join(keys[at : at + COVERAGE_KEYS_MAX])
            last = at + COVERAGE_KEYS_MAX >= len(keys)
            effects.append(Send(count.asker, Coverage(*name, some, last=last)))

    def _end(self, name: _Name) -> None:
        self._keys -= len(self._counts.pop(name).keys)
