"""What was announced and is not here: ranges, who announced them, who was asked, when to go on.

State and timers are per range, never per message. Which announcer is asked, and whether it is to
push from then on, is the tree's decision (plumtree.py); no effect is made here.
"""

from bisect import bisect_left, insort
from heapq import heappop, heappush

import attrs

from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.messages import Range

__all__ = ["ANNOUNCED_IDS_MAX", "DIGEST", "Gap", "Missing", "StreamKey"]

StreamKey = tuple[MemberKey, int]
"""(origin, epoch)."""

# What one peer may have announced without it having come; the rest is left to anti-entropy
# (reliability bar, X-18).
ANNOUNCED_IDS_MAX = 1_000
# Stands in place of a hop count for a range that came from a digest.
DIGEST = -1
# No wait between two grafts is longer, so that all of them fit into the life of what the others
# still hold. A guess.
WAIT_S_MAX = 4.0
# Refusals of one answer come one by one; after this long they are asked for elsewhere together.
# A guess: a few turns of the loop.
BUSY_PAUSE_S = 0.02


@attrs.define(eq=False)
class Gap:
    """A range that is announced and not here, in one state.

    announcers: who claims to hold it, and after how many hops (or DIGEST). asked: who was asked
    and has not answered, at asked_at. asked_times: how often each was asked. patient: it is waited
    for, and nobody was asked yet.
    """

    key: StreamKey
    first: int
    last: int
    since: float
    due: float
    announcers: dict[NodeId, int]
    asked_times: dict[NodeId, int]
    asked: NodeId | None = None
    asked_at: float = 0.0
    tries: int = 0
    patient: bool = True
    open: bool = True


def _last_of(gap: Gap) -> int:
    return gap.last


def _first_of(gap: Gap) -> int:
    return gap.first


class Missing:
    """All gaps of a node.

    Args:
        graft_timeout_s: the first wait for an answer; it doubles with each try.

    Attributes:
        by_stream: them, ascending; a stream without gaps is not in it. Only this class changes it.
    """

    def __init__(self, graft_timeout_s: float) -> None:
        self._graft_timeout_s = graft_timeout_s
        self.by_stream: dict[StreamKey, list[Gap]] = {}
        self._heap: list[tuple[float, int, Gap]] = []
        self._order = 0
        self._announced: dict[NodeId, int] = {}
        self._from_digest: dict[NodeId, int] = {}
        self._digest_ids: dict[NodeId, int] = {}

    def __len__(self) -> int:
        """Return the number of ranges."""
        return sum(len(gaps) for gaps in self.by_stream.values())

    def gaps(self, key: StreamKey) -> list[Gap]:
        """The gaps of one stream, ascending."""
        return list(self.by_stream.get(key, ()))

    def asked(self) -> int:
        """How many ranges wait for an answer, or for another try."""
        return sum(1 for gaps in self.by_stream.values() for gap in gaps if not gap.patient)

    def announced_ids(self, peer: NodeId) -> int:
        """How many ids `peer` has announced that have not come."""
        return self._announced.get(peer, 0)

    def digest_ranges(self, peer: NodeId) -> int:
        """How many ranges out of digests of `peer` have not come."""
        return self._from_digest.get(peer, 0)

    def digest_ids(self, peer: NodeId) -> int:
        """How many ids out of digests of `peer` have not come."""
        return self._digest_ids.get(peer, 0)

    def without(self, key: StreamKey, first: int, last: int) -> list[Range]:
        """What of first .. last is in no gap."""
        out: list[Range] = []
        for gap in self.by_stream.get(key, ()):
            if gap.last < first:
                continue
            if gap.first > last:
                break
            if gap.first > first:
                out.append((first, gap.first - 1))
            first = gap.last + 1
        if first <= last:
            out.append((first, last))
        return out

    # --- changes --------------------------------------------------------------------------------

    def announce(
        self, key: StreamKey, run: Range, peer: NodeId, *, hop: int, due: float, now: float
    ) -> bool:
        """`peer` claims to hold `run`, of which nothing is here; act on it at `due`.

        Returns False when `peer` has announced too much already and the rest was left out.
        """
        first, last = run
        left = last - first + 1
        if hop != DIGEST:
            left = min(left, ANNOUNCED_IDS_MAX - self._announced.get(peer, 0))
            if left <= 0:
                return False
        gaps = self.by_stream.get(key)
        if gaps is None:
            gaps = self.by_stream[key] = []
        at = bisect_left(gaps, first, key=_last_of)
        while first <= last and left > 0:
            gap = gaps[at] if at < len(gaps) else None
            if gap is None or gap.first > first:
                end = min(last, first + left - 1)
                if gap is not None:
                    end = min(end, gap.first - 1)
                gap = Gap(key, first, end, now, due, {}, {}, patient=due > now)
                gaps.insert(at, gap)
                self._push(gap)
                self._add_announcer(gap, peer, hop)
                left -= end - first + 1
            elif peer not in gap.announcers:
                if gap.first < first:
                    gap = self._split(gaps, gap, first)
                    at += 1
                end = min(last, gap.last, first + left - 1)
                if end < gap.last:
                    self._split(gaps, gap, end + 1)
                self._add_announcer(gap, peer, hop)
                if gap.asked is None and due < gap.due:
                    gap.patient = gap.patient and due > now
                    self.schedule(gap, due)
                left -= end - first + 1
            first = gap.last + 1
            at += 1
        return first > last

    def since(self, key: StreamKey, seq: int) -> float | None:
        """When `seq`, which is missing, was first announced; None when it is not missing."""
        gaps = self.by_stream.get(key)
        if gaps is None:
            return None
        at = bisect_left(gaps, seq, key=_last_of)
        return gaps[at].since if at < len(gaps) and gaps[at].first <= seq else None

    def first_announcer(self, key: StreamKey, seq: int) -> NodeId | None:
        """Who announced `seq`, which is missing, before all others; not out of a digest."""
        gaps = self.by_stream.get(key)
        if gaps is None:
            return None
        at = bisect_left(gaps, seq, key=_last_of)
        if at == len(gaps) or gaps[at].first > seq:
            return None
        peer, hop = next(iter(gaps[at].announcers.items()), (None, DIGEST))
        return peer if hop != DIGEST else None

    def fill(
        self, key: StreamKey, first: int, last: int, now: float, by: NodeId | None = None
    ) -> tuple[NodeId, ...]:
        """first .. last has come. Returns who had announced all of it.

        by: who has served it; what it was asked for beside it is given time again.
        """
        gaps = self.by_stream.get(key)
        if gaps is None:
            return ()
        low = bisect_left(gaps, first, key=_last_of)
        if low == len(gaps) or gaps[low].first > last:
            return ()
        high = low
        common: dict[NodeId, int] | None = None
        covered = 0
        while high < len(gaps) and gaps[high].first <= last:
            gap = gaps[high]
            covered += min(gap.last, last) - max(gap.first, first) + 1
            if common is None:
                common = dict(gap.announcers)
            else:
                common = {p: hop for p, hop in common.items() if p in gap.announcers}
            high += 1
        if gaps[low].first < first:
            self._split(gaps, gaps[low], first)
            self._progress(gaps[low], now, by)
            low += 1
            high += 1
        if gaps[high - 1].last > last:
            self._progress(self._split(gaps, gaps[high - 1], last + 1), now, by)
        for gap in gaps[low:high]:
            self._close(gap)
        del gaps[low:high]
        if not gaps:
            del self.by_stream[key]
        return tuple(common) if common is not None and covered == last - first + 1 else ()

    def ask(self, gap: Gap, peer: NodeId, now: float) -> None:
        """Note that `peer` is being asked for `gap`; the caller schedules what follows."""
        gap.asked = peer
        gap.asked_at = now
        gap.patient = False
        gap.asked_times[peer] = gap.asked_times.get(peer, 0) + 1

    def wait_s(self, gap: Gap) -> float:
        """How long to wait after this try: graft_timeout, doubled with each one before."""
        return min(self._graft_timeout_s * (1 << min(gap.tries, 16)), WAIT_S_MAX)

    def busy(self, key: StreamKey, first: int, last: int, peer: NodeId, now: float) -> bool:
        """`peer` cannot serve this range now: another announcer is next, or itself, later.

        Returns whether it was asked for what a digest of it had claimed.
        """
        claimed = False
        for gap in self._cut(key, first, last, peer):
            if gap.asked != peer:
                continue
            claimed = claimed or gap.announcers[peer] == DIGEST
            gap.asked = None
            if all(other in gap.asked_times for other in gap.announcers):
                self.schedule(gap, now + self.wait_s(gap))
                gap.tries += 1
            else:
                self.schedule(gap, now + BUSY_PAUSE_S)
        return claimed

    def gone(self, key: StreamKey, first: int, last: int, peer: NodeId, now: float) -> list[Range]:
        """`peer` does not hold this range, whatever it announced.

        Returns what of it a digest of it had claimed.
        """
        claimed: list[Range] = []
        for gap in self._cut(key, first, last, peer):
            if gap.announcers[peer] == DIGEST:
                claimed.append((gap.first, gap.last))
            self._lose(gap, peer, now)
        return claimed

    def disbelieve(self, key: StreamKey, peer: NodeId, now: float) -> None:
        """What digests of `peer` claim of this stream counts no more."""
        for gap in self.by_stream.get(key, ()):
            if gap.announcers.get(peer) == DIGEST:
                self._lose(gap, peer, now)

    def link_down(self, peer: NodeId, now: float) -> None:
        """`peer` can be asked no more; what it was asked for is due at once."""
        for gaps in self.by_stream.values():
            for gap in gaps:
                if peer in gap.announcers:
                    self._lose(gap, peer, now)
        self._announced.pop(peer, None)
        self._from_digest.pop(peer, None)
        self._digest_ids.pop(peer, None)

    def drop(self, gap: Gap) -> None:
        """Nobody served it: forget it. A digest brings it back."""
        gaps = self.by_stream[gap.key]
        gaps.remove(gap)
        if not gaps:
            del self.by_stream[gap.key]
        self._close(gap)

    def forget(self, key: StreamKey) -> None:
        """The epoch is over."""
        for gap in self.by_stream.pop(key, ()):
            self._close(gap)

    # --- time -----------------------------------------------------------------------------------

    def schedule(self, gap: Gap, due: float) -> None:
        """Look at `gap` again at `due`, and not before."""
        gap.due = due
        self._push(gap)

    def next_deadline(self) -> float | None:
        """When `due` has something."""
        heap = self._heap
        while heap and (not heap[0][2].open or heap[0][2].due != heap[0][0]):
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[Gap]:
        """Take out the gaps whose time has come; each must be scheduled again or dropped."""
        out: list[Gap] = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            when, _, gap = heappop(heap)
            if gap.open and gap.due == when:
                # Twice in the heap with the same time is possible; taken out once.
                gap.due = -1.0
                out.append(gap)
        return out

    # --- inside ---------------------------------------------------------------------------------

    def _push(self, gap: Gap) -> None:
        self._order += 1
        heappush(self._heap, (gap.due, self._order, gap))

    def _add_announcer(self, gap: Gap, peer: NodeId, hop: int) -> None:
        gap.announcers[peer] = hop
        if hop == DIGEST:
            self._from_digest[peer] = self._from_digest.get(peer, 0) + 1
            self._digest_ids[peer] = self._digest_ids.get(peer, 0) + gap.last - gap.first + 1
        else:
            self._announced[peer] = self._announced.get(peer, 0) + gap.last - gap.first + 1

    def _drop_announcer(self, gap: Gap, peer: NodeId) -> None:
        hop = gap.announcers.pop(peer, None)
        if hop == DIGEST:
            self._from_digest[peer] -= 1
            self._digest_ids[peer] -= gap.last - gap.first + 1
        elif hop is not None:
            self._announced[peer] -= gap.last - gap.first + 1

    def _lose(self, gap: Gap, peer: NodeId, now: float) -> None:
        self._drop_announcer(gap, peer)
        if gap.asked == peer:
            gap.asked = None
            self.schedule(gap, now)
        elif not gap.announcers:
            self.schedule(gap, now)

    def _close(self, gap: Gap) -> None:
        for peer in list(gap.announcers):
            self._drop_announcer(gap, peer)
        gap.open = False

    def _split(self, gaps: list[Gap], gap: Gap, at: int) -> Gap:
        """Cut `gap` in front of `at`; returns the right part, which inherits everything."""
        right = attrs.evolve(
            gap,
            first=at,
            announcers=dict(gap.announcers),
            asked_times=dict(gap.asked_times),
        )
        gap.last = at - 1
        insort(gaps, right, key=_first_of)
        for peer, hop in right.announcers.items():
            if hop == DIGEST:
                self._from_digest[peer] += 1
        self._push(right)
        return right

    def _progress(self, gap: Gap, now: float, by: NodeId | None) -> None:
        # A part of the range was served: who was asked is at work, and the tries start again.
        gap.tries = 0
        if gap.asked is not None and gap.asked == by:
            self.schedule(gap, max(gap.due, now + self.wait_s(gap)))

    def _cut(self, key: StreamKey, first: int, last: int, peer: NodeId) -> list[Gap]:
        """The gaps inside first .. last that `peer` announced, cut at the range's ends."""
        gaps = self.by_stream.get(key)
        if gaps is None:
            return []
        at = bisect_left(gaps, first, key=_last_of)
        out: list[Gap] = []
        while at < len(gaps) and gaps[at].first <= last:
            gap = gaps[at]
            if peer in gap.announcers:
                if gap.first < first:
                    gap = self._split(gaps, gap, first)
                    at += 1
                if gap.last > last:
                    self._split(gaps, gap, last + 1)
                out.append(gap)
            at += 1
        return out
