"""One suspicion: how long a member has to refute. Pure arithmetic, no votes are judged here.

Lifeguard (Dadgar et al. 2018), section IV-B: the time starts long and shrinks with the logarithm
of the independent confirmations, so that one confused accuser needs much longer than three. Our
own health (health.py) stretches what rests on our own word, and nothing that three others say.
"""

import math

import attrs

from plumtree_quic.ids import MemberKey

__all__ = ["ACCUSERS_FULL", "ALONE_FACTOR", "Suspicion", "suspicion_s"]

ACCUSERS_FULL = 3
"""With so many accusers a suspicion lasts its shortest time."""
ALONE_FACTOR = 3.0
"""A lone accuser's suspicion lasts this many times the shortest."""


def suspicion_s(shortest_s: float, accusers: int, members: int, stretch: int = 1) -> float:
    """How long a suspicion by `accusers` lasts in a cluster of `members` living members.

    `shortest_s` with three accusers, three times as long with one, shrinking with the logarithm
    in between. In a cluster of two or three, one accuser is all there is: the shortest time.

    stretch: how many times longer it lasts when nobody but ourselves stands by it (1 to 9). Whoever
    is unwell does not count itself: `accusers` may be 0 then.
    """
    expected = min(ACCUSERS_FULL, members - 1)
    if members <= 3:
        return shortest_s if accusers else shortest_s * stretch
    if accusers >= expected:
        return shortest_s
    longest_s = ALONE_FACTOR * shortest_s * stretch
    share = math.log(max(accusers, 1)) / math.log(expected)
    return longest_s - (longest_s - shortest_s) * share


@attrs.define(eq=False)
class Suspicion:
    """The wait for a refutation, counted from the first accusation that we saw.

    counted_from: the same, put off when we did not run.
    """

    key: MemberKey
    started_at: float
    deadline: float
    counted_from: float = attrs.field()

    @counted_from.default
    def _from_its_start(self) -> float:
        return self.started_at

    def confirm(self, shortest_s: float, accusers: int, members: int) -> None:
        """One more accuser: the deadline moves nearer, never away."""
        ends = self.counted_from + suspicion_s(shortest_s, accusers, members)
        self.deadline = min(self.deadline, ends)

    def put_off(self, seconds: float) -> None:
        """It lasts so much longer."""
        self.counted_from += seconds
        self.deadline += seconds
