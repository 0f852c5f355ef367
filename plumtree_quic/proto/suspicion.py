"""One suspicion: how long a member has to refute. Pure arithmetic, no votes are judged here.

Lifeguard (Dadgar et al. 2018), section IV-B: the time starts long and shrinks with the logarithm
of the independent confirmations, so that one confused accuser needs much longer than three.
"""

import math

import attrs

from plumtree_quic.ids import MemberKey

__all__ = ["ACCUSERS_FULL", "ALONE_FACTOR", "Suspicion", "suspicion_s"]

ACCUSERS_FULL = 3
"""With so many accusers a suspicion lasts its shortest time."""
ALONE_FACTOR = 3.0
"""A lone accuser's suspicion lasts this many times the shortest."""


def suspicion_s(shortest_s: float, accusers: int, members: int) -> float:
    """How long a suspicion by `accusers` lasts in a cluster of `members` living members.

    `shortest_s` with three accusers, three times as long with one, shrinking with the logarithm
    in between. In a cluster of two or three, one accuser is all there is: the shortest time.
    """
    expected = min(ACCUSERS_FULL, members - 1)
    if members <= 3 or accusers >= expected:
        return shortest_s
    longest_s = ALONE_FACTOR * shortest_s
    share = math.log(max(accusers, 1)) / math.log(expected)
    return longest_s - (longest_s - shortest_s) * share


@attrs.define(eq=False)
class Suspicion:
    """The wait for a refutation, counted from the first accusation that we saw."""

    key: MemberKey
    started_at: float
    deadline: float

    def confirm(self, shortest_s: float, accusers: int, members: int) -> None:
        """One more accuser: the deadline moves nearer, never away."""
        ends = self.started_at + suspicion_s(shortest_s, accusers, members)
        self.deadline = min(self.deadline, ends)
