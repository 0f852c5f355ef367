"""How well we do ourselves: Lifeguard's local health, which stretches what we would say of others.

Lifeguard (Dadgar et al. 2018), section IV-A: most false accusations are made by nodes that are slow
themselves. So a node that has reason to doubt itself waits longer before it doubts others. Here as
there a score of 0 (well) to 8 (worst) makes probe intervals, probe time-outs and the suspicions
that rest on our own word last 1 to 9 times as long.

What counts is different where Python and links are. Against us: time in which we did not run (a
loop that was late for whatever reason, garbage collection included; a machine that was asleep),
clocks that jump, refuting an accusation of ourselves, and a failed probe while no other link
brought anything either. The last is what Lifeguard's nacks are for: a failed probe while others
are heard says something of the other one, not of us. For us: something fresh on a link.
"""

__all__ = ["SCORE_MAX", "LocalHealth"]

SCORE_MAX = 8
"""The worst score: everything takes nine times as long (the paper's S; memberlist's
AwarenessMaxMultiplier stretches up to 8 times)."""


class LocalHealth:
    """A score that evidence against ourselves raises at once, and life on our links lowers slowly.

    Args:
        probe_interval_s: a point is taken off once in so long, while something fresh comes.
        probe_timeout_s: half of it without us running is worth a point; less endangers no verdict.
    """

    def __init__(self, probe_interval_s: float, probe_timeout_s: float) -> None:
        self.score = 0
        self._interval_s = probe_interval_s
        self._stall_s = probe_timeout_s / 2
        self._better_at = float("-inf")
        self._refuted_at = float("-inf")

    @property
    def stretch(self) -> int:
        """How many times as long we wait as a node that is well: 1 to 9."""
        return 1 + self.score

    def stalled(self, seconds: float, now: float) -> bool:
        """We did not run for `seconds`. Returns whether it was long enough to count."""
        points = int(min(seconds / self._stall_s, SCORE_MAX))
        self._worsen(points, now)
        return points > 0

    def deaf(self, now: float) -> None:
        """A probe failed, and no other link brought anything meanwhile."""
        self._worsen(1, now)

    def refuted(self, now: float) -> None:
        """Others held us for silent, and we had to speak up.

        Worth one point in a probe interval at most: whoever accuses us again and again, on
        purpose, must not outweigh what our links show.
        """
        if now - self._refuted_at >= self._interval_s:
            self._refuted_at = now
            self._worsen(1, now)

    def heard(self, now: float) -> None:
        """Something fresh came on a link, in its time or in answer to a probe."""
        if self.score and now >= self._better_at:
            self.score -= 1
            self._better_at = now + self._interval_s

    def _worsen(self, points: int, now: float) -> None:
        if points:
            self.score = min(SCORE_MAX, self.score + points)
            self._better_at = now + self._interval_s
