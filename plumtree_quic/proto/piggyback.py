"""The newest facts, waiting to ride on probes. Knows no links and no member states.

SWIM, section 4.1: a fact rides a bounded number of times, the least-sent facts first. Here the
control lanes carry every fact anyway; what rides gets round a lane that is slow.
"""

import math

import attrs

from plumtree_quic.ids import MemberKey
from plumtree_quic.messages import Fact

__all__ = ["FACTS_BYTES_MAX", "FACTS_PER_PROBE_MAX", "Piggyback", "rides_max"]

# A probe is at most 1,100 bytes (ARCHITECTURE section 4): type, nonce and list header leave this.
FACTS_BYTES_MAX = 1_080
FACTS_PER_PROBE_MAX = 32
# What a byte string of this size costs in the list beside its bytes.
ITEM_BYTES = 3
# Lambda of SWIM's lambda * log(n) rule; memberlist's RetransmitMult is 4, three papers use 3.
RIDES_FACTOR = 3
WAITING_MAX = 256


def rides_max(members: int) -> int:
    """How often one fact rides in a cluster of `members`: 3 * log2(n + 1), rounded up."""
    return RIDES_FACTOR * math.ceil(math.log2(members + 1))


@attrs.define
class _Rider:
    fact: Fact
    rides: int = 0


class Piggyback:
    """Facts by (subject, signer); a newer one of the same pair replaces the older."""

    def __init__(self) -> None:
        self._riders: dict[tuple[MemberKey, MemberKey], _Rider] = {}
        # Whose facts about a subject ride, by subject: when many join, facts come by the thousand.
        self._signers: dict[MemberKey, dict[MemberKey, None]] = {}

    def __len__(self) -> int:
        return len(self._riders)

    def add(self, fact: Fact) -> None:
        """Let `fact` ride from now on; beyond 256 the oldest gives up its place."""
        subject, signer = fact.subject, fact.signer
        if signer == subject:
            # The subject spoke: what others said of it before is refuted or pointless.
            for other in self._signers.pop(subject, ()):
                del self._riders[subject, other]
        else:
            self._riders.pop((subject, signer), None)
        self._riders[subject, signer] = _Rider(fact)
        self._signers.setdefault(subject, {})[signer] = None
        while len(self._riders) > WAITING_MAX:
            self._drop(*next(iter(self._riders)))

    def _drop(self, subject: MemberKey, signer: MemberKey) -> None:
        del self._riders[subject, signer]
        signers = self._signers[subject]
        del signers[signer]
        if not signers:
            del self._signers[subject]

    def take(self, members: int, about: MemberKey) -> tuple[Fact, ...]:
        """The facts for one probe in a cluster of `members`.

        Facts about `about`, whom the probe goes to, come first: it is the one who can refute.
        Then the least-sent, the newest of them first.
        """
        if not self._riders:
            return ()
        limit = rides_max(members)
        order = sorted(
            enumerate(self._riders.values()),
            key=lambda each: (each[1].fact.subject != about, each[1].rides, -each[0]),
        )
        facts: list[Fact] = []
        room = FACTS_BYTES_MAX
        for _, rider in order:
            size = len(rider.fact.raw) + ITEM_BYTES
            if size > room:
                continue
            room -= size
            rider.rides += 1
            facts.append(rider.fact)
            if rider.rides >= limit:
                self._drop(rider.fact.subject, rider.fact.signer)
            if len(facts) >= FACTS_PER_PROBE_MAX:
                break
        return tuple(facts)
