"""What came out: a journal that checks every rule as the cluster runs, and the report made of it.

The journal is an observer: nothing that it holds ever reaches a core. It raises `Violation` at the
moment a rule is broken. The rules (names as in the tests):

- S1 a bundle is delivered at most once to one life of a node;
- S2 nothing is delivered or announced that its origin did not broadcast;
- S4 nobody holds itself for dead; S5 nobody's incarnation falls;
- told: of each delivered bundle, each link that was up is told (pushed, announced or brought)
  within `ihave_interval`;
- caps: tables stay within their limits;
- L2, at the end: whoever lives has every message of every origin that lives.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from struct import pack

import attrs

from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.messages import (
    Bundle,
    Chunk,
    Digest,
    DigestRow,
    Gossip,
    IHave,
    Lane,
    Message,
    Repair,
)
from plumtree_quic.proto.effects import (
    Deliver,
    Effect,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberSuspected,
    MemberUpdated,
)
from plumtree_quic.sim.network import End

__all__ = ["Detection", "Journal", "Life", "Report", "Story", "Violation"]

TOLD_SLACK_S = 0.001
UNHASHED_MAX = 10_000
_BUNDLES = (Gossip, Chunk, Repair)
_MEMBER_FACTS = (MemberJoined, MemberUpdated, MemberSuspected, MemberFailed, MemberLeft)


class Violation(AssertionError):
    """A rule was broken. The message says which, when, and at whom."""


@attrs.define(eq=False)
class Life:
    """One life of one node, as the journal knows it.

    linked_at: when its first link came up; what is published from then on is due to it.
    due: (when, bundle, links): the links that must have been told by then.
    """

    name: str
    epoch: int
    alive: bool = True
    linked_at: float | None = None
    left: bool = False
    delivered: set[int] = attrs.field(factory=set)
    due: deque[tuple[float, int, tuple[End, ...]]] = attrs.field(factory=deque)
    incarnation: int = -1


@attrs.define(eq=False)
class Story:
    """What became of one bundle. at: when it was broadcast. hop: the most links that a delivered
    copy crossed. copies: that arrived anywhere. latencies: of each delivery, seconds.
    """

    bundle: Bundle
    life: Life
    at: float
    copies: int = 0
    crossings: int = 0
    hop: int = 0
    latencies: list[float] = attrs.field(factory=list)


@attrs.frozen
class Detection:
    """How survivors saw one crash, seconds after it; None: not all of them did."""

    name: str
    first_suspected_s: float | None
    suspected_s: float | None
    failed_s: float | None


@attrs.frozen
class Report:
    """What a run came to. Counts are of messages, times in virtual seconds.

    expected: deliveries due: every message of an origin that lives, at every node that lived and
    had a link when it was published. rmr_total: copies received beyond those needed, per delivery
    (Leitao et al., section 4.1); rmr: the same without each origin's first bundle. hop_flooded,
    hop_last: the most links that a first bundle and a later one crossed until they were delivered.
    """

    nodes: int
    published: int
    expected: int
    delivered: int
    lost: int
    rmr_total: float
    rmr: float
    hop_flooded: int
    hop_last: int
    latency_s: tuple[float, float, float]
    grafts: int
    prunes: int
    repairs: int
    strikes: int
    frames: int
    virtual_s: float
    detections: tuple[Detection, ...]
    trace: str

    def lines(self) -> list[str]:
        """The report for people."""
        p50, p99, most = (f"{1000 * each:.1f}" for each in self.latency_s)
        found = [
            f"crash of {d.name}: suspected by all after {_seconds(d.suspected_s)}, "
            f"failed after {_seconds(d.failed_s)}"
            for d in self.detections
        ]
        return [
            f"{self.nodes} nodes, {self.published} messages, {self.virtual_s:.1f} s of virtual "
            f"time, {self.frames} frames",
            f"delivered {self.delivered} of {self.expected}, lost {self.lost}",
            f"RMR {self.rmr:.4f} after each origin's first bundle, {self.rmr_total:.4f} in all",
            f"last hop {self.hop_last}, of first bundles {self.hop_flooded}",
            f"latency p50 {p50} ms, p99 {p99} ms, max {most} ms",
            f"{self.grafts} grafts, {self.repairs} repairs, {self.prunes} prunes, "
            f"{self.strikes} strikes",
            *found,
            f"trace {self.trace}",
        ]


class Journal:
    """Watches a cluster. One object per run."""

    def __init__(self, ihave_interval_s: float) -> None:
        self._interval_s = ihave_interval_s + TOLD_SLACK_S
        self._published: list[Story] = []
        self._streams: dict[tuple[MemberKey, int], dict[int, int]] = {}
        self._hash = hashlib.blake2b(digest_size=16)
        # What of the trace has yet to be hashed: many small pieces take longer than a large one.
        self._unhashed: list[bytes] = []
        self.frames = 0
        self.counts: Counter[str] = Counter()
        self.facts: list[tuple[float, Life, Effect]] = []
        self.lives: list[Life] = []
        self.crashes: list[tuple[float, Life]] = []
        # Nodes that tell lies on purpose: what they say, and owe, is no violation of ours.
        self.liars: set[NodeId] = set()
        # Told of each delivery as well: ordered readers.
        self.also_delivered: Callable[[Life, Deliver, float], None] | None = None
        # Told in words what happens, for a trace that people read; None: nobody reads.
        self.tell: Callable[[str], None] | None = None

    # --- what the network carries ---------------------------------------------------------------

    def on_frame(
        self, now: float, source: End, target: End, lane: Lane | None, body: bytes
    ) -> None:
        """A frame or a datagram arrives."""
        self.frames += 1
        head = pack("!dbI", now, -1 if lane is None else lane, len(body))
        unhashed = self._unhashed
        unhashed += (head, source.mark, target.mark, body)
        if len(unhashed) > UNHASHED_MAX:
            self._hash_all()

    def on_received(self, end: End, message: Message) -> None:
        """A node is told something on a link."""
        if isinstance(message, IHave):
            self.on_told(end, message)
            return
        if isinstance(message, _BUNDLES):
            item = self._find(message.bundle, "arrives")
            item.copies += 1
            zones = end.network.zones
            if isinstance(message, Gossip | Chunk) and zones[end.peer] != zones[end.owner.id]:
                item.crossings += 1
        elif isinstance(message, Digest):
            end.digests.append(message)
        self.on_told(end, message)

    def on_told(self, end: End, message: Message) -> None:
        """A node tells the other end of a link something, or was told."""
        if isinstance(message, IHave):
            for entry in message.announcements:
                stream = self._streams.get((entry.origin, entry.epoch))
                if stream is None or entry.first not in stream:
                    raise Violation(
                        f"S2: {end.owner.id.name} or {end.peer.name} announces {entry}, "
                        "which was never broadcast"
                    )
                if entry.first == entry.last:
                    end.told |= 1 << stream[entry.first]
                    continue
                for seq in range(entry.first, entry.last + 1):
                    index = stream.get(seq)
                    if index is not None:
                        end.told |= 1 << index
        elif isinstance(message, _BUNDLES):
            bundle = message.bundle
            end.told |= 1 << self._streams[bundle.origin, bundle.epoch][bundle.first]

    # --- what nodes do --------------------------------------------------------------------------

    def on_published(self, life: Life, bundle: Bundle, links: tuple[End, ...], now: float) -> None:
        """An origin broadcasts."""
        index = len(self._published)
        self._published.append(Story(bundle, life, now))
        self._streams.setdefault((bundle.origin, bundle.epoch), {})[bundle.first] = index
        life.due.append((now + self._interval_s, index, links))
        if self.tell is not None:
            self.tell(f"{now:.6f} {life.name} broadcasts {_show(self._published[index])}")

    def on_delivered(self, life: Life, effect: Deliver, links: tuple[End, ...], now: float) -> None:
        """A bundle is handed to an application."""
        item = self._find(effect.bundle, "is delivered")
        index = self._streams[item.bundle.origin, item.bundle.epoch][item.bundle.first]
        if index in life.delivered:
            raise Violation(f"S1: {life.name} is given {_show(item)} twice, now at {now:.6f}")
        if item.life is life:
            raise Violation(f"{life.name} is given its own {_show(item)}")
        life.delivered.add(index)
        if not effect.history:
            life.due.append((now + self._interval_s, index, links))
        item.hop = max(item.hop, effect.hop)
        item.latencies.append(now - item.at)
        if self.also_delivered is not None:
            self.also_delivered(life, effect, now)
        self._unhashed.append(pack("!dIB", now, index, effect.hop))
        if self.tell is not None:
            self.tell(
                f"{now:.6f} {life.name} has {_show(item)} by {effect.peer.name}, "
                f"hop {effect.hop}, after {1e3 * (now - item.at):.3f} ms"
            )

    def on_fact(self, life: Life, effect: Effect, now: float) -> None:
        """A core has learnt or done something."""
        self.counts[type(effect).__name__] += 1
        if self.tell is not None:
            self.tell(f"{now:.6f} {life.name} {describe(effect)}")
        if isinstance(effect, _MEMBER_FACTS):
            self.facts.append((now, life, effect))
            self._unhashed.append(f"{now:.9f} {life.name} {effect!r}".encode())

    def check_told(self, life: Life, now: float) -> None:
        """What was delivered to `life` an interval ago: each link must have been told."""
        while life.due and life.due[0][0] <= now:
            _, index, links = life.due.popleft()
            for end in links:
                if not end.up or end.told >> index & 1 or end.link.broken:
                    continue
                if end.peer in self.liars or end.owner.id in self.liars:
                    continue
                item = self._published[index]
                if not _covered(end.digests, item.bundle):
                    raise Violation(
                        f"told: {life.name} has {_show(item)} and neither pushed nor announced "
                        f"it to {end.peer.name}, who never said it had it; now at {now:.6f}"
                    )

    def check_incarnation(self, life: Life, incarnation: int) -> None:
        """S5: what a node says of itself only grows."""
        if incarnation < life.incarnation:
            raise Violation(f"S5: incarnation of {life.name} fell to {incarnation}")
        life.incarnation = incarnation

    def _find(self, bundle: Bundle, what: str) -> Story:
        index = self._streams.get((bundle.origin, bundle.epoch), {}).get(bundle.first)
        if index is None or self._published[index].bundle.raw != bundle.raw:
            raise Violation(f"S2: {bundle} {what} and was never broadcast")
        return self._published[index]

    # --- at the end -----------------------------------------------------------------------------

    def published(self) -> int:
        """How many bundles were broadcast so far: where a phase begins, for `report`."""
        return len(self._published)

    def story_of(self, bundle: Bundle) -> Story:
        """What became of `bundle` so far."""
        return self._find(bundle, "is asked for")

    def latencies(self, since: int = 0) -> list[float]:
        """Of each delivery of the bundles from number `since` on, in seconds."""
        return [each for item in self._published[since:] for each in item.latencies]

    def crossings(self, since: int = 0) -> list[int]:
        """How many pushed copies of each bundle from number `since` on crossed between zones."""
        return [item.crossings for item in self._published[since:]]

    def missing(self, since: int = 0) -> list[tuple[Life, Bundle]]:
        """L2: what is due and was not delivered, of the bundles from number `since` on."""
        return [
            (life, item.bundle)
            for life in self.lives
            if life.alive and not life.left
            for index, item in self._due(life, since)
            if index not in life.delivered
        ]

    def _due(self, life: Life, since: int) -> Iterable[tuple[int, Story]]:
        if life.linked_at is None:
            return
        for index in range(since, len(self._published)):
            item = self._published[index]
            if item.life.alive and item.life is not life and item.at >= life.linked_at:
                yield index, item

    def report(
        self, stats: Sequence[dict[str, int]], strikes: int, virtual_s: float, since: int = 0
    ) -> Report:
        """Sum up the bundles from number `since` on; other counts are of the whole run.

        stats: the counters of each living node's broadcast half.
        """
        living = [life for life in self.lives if life.alive and not life.left]
        expected = sum(item.bundle.count for life in living for _, item in self._due(life, since))
        lost = sum(bundle.count for _, bundle in self.missing(since))
        everything = self._published[since:]
        first = [item for item in everything if item.bundle.first == 1]
        later = [item for item in everything if item.bundle.first > 1]
        latencies = sorted(each for item in everything for each in item.latencies)
        return Report(
            nodes=len(living),
            published=sum(item.bundle.count for item in everything),
            expected=expected,
            delivered=expected - lost,
            lost=lost,
            rmr_total=_rmr(everything),
            rmr=_rmr(later),
            hop_flooded=max((item.hop for item in first), default=0),
            hop_last=max((item.hop for item in later), default=0),
            latency_s=(
                _percentile(latencies, 0.5),
                _percentile(latencies, 0.99),
                _percentile(latencies, 1.0),
            ),
            grafts=sum(each["grafts_sent"] for each in stats),
            prunes=sum(each["prunes_sent"] for each in stats),
            repairs=sum(each["repairs_sent"] for each in stats),
            strikes=strikes,
            frames=self.frames,
            virtual_s=virtual_s,
            detections=tuple(self._detection(at, life) for at, life in self.crashes),
            trace=self.trace(),
        )

    def _hash_all(self) -> None:
        self._hash.update(b"".join(self._unhashed))
        self._unhashed.clear()

    def trace(self) -> str:
        """A hash over everything that happened, in order: equal seeds give equal ones."""
        self._hash_all()
        return self._hash.hexdigest()

    def _detection(self, at: float, crashed: Life) -> Detection:
        witnesses = [life for life in self.lives if life.alive and life.linked_at is not None]
        witnesses = [life for life in witnesses if (life.linked_at or 0.0) < at]
        suspected = self._learnt(MemberSuspected, crashed.name, at)
        failed = self._learnt(MemberFailed, crashed.name, at)
        return Detection(
            crashed.name,
            min(suspected.values(), default=None),
            _last(suspected, witnesses),
            _last(failed, witnesses),
        )

    def _learnt(
        self, kind: type[MemberSuspected | MemberFailed], name: str, since: float
    ) -> dict[int, float]:
        """Per life: how long after `since` it was first told so of `name`."""
        found: dict[int, float] = {}
        for now, life, effect in self.facts:
            if now >= since and isinstance(effect, kind) and effect.node_id.name == name:
                found.setdefault(id(life), now - since)
        return found


def _last(learnt: dict[int, float], witnesses: list[Life]) -> float | None:
    if any(id(life) not in learnt for life in witnesses):
        return None
    return max((learnt[id(life)] for life in witnesses), default=None)


def _rmr(items: Sequence[Story]) -> float:
    needed = sum(len(item.latencies) * item.bundle.count for item in items)
    copies = sum(item.copies * item.bundle.count for item in items)
    return copies / needed - 1 if needed else 0.0


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _covered(digests: Iterable[Digest], bundle: Bundle) -> bool:
    rows: Iterable[DigestRow] = (row for digest in digests for row in digest.rows)
    return any(
        row.origin == bundle.origin
        and row.epoch == bundle.epoch
        and any(first <= bundle.first and bundle.last <= last for first, last in row.held)
        for row in rows
    )


def describe(effect: Effect) -> str:
    """A fact in a few words: its kind, and whom it is about."""
    about = getattr(effect, "record", effect)
    who = getattr(about, "node_id", None) or getattr(effect, "peer", None)
    return type(effect).__name__ + (f" {who.name}" if isinstance(who, NodeId) else "")


def _show(item: Story) -> str:
    bundle = item.bundle
    return f"{item.life.name}/{bundle.epoch}/{bundle.first}..{bundle.last}"


def _seconds(value: float | None) -> str:
    return "never (by all)" if value is None else f"{value:.2f} s"
