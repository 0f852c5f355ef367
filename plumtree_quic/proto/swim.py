"""Who lives: joining, probing by the rule of silence, suspicion, refutation, leaving, comparing.

SWIM (Das et al. 2002) with Lifeguard (Dadgar et al. 2018), changed where links change the rules:

- A link on which something fresh came needs no probe, and a late echo accuses nobody while acks
  advance: silence decides, not lateness (ARCHITECTURE section 4).
- An accusation makes everybody who is linked with the accused probe it at once: that is SWIM's
  indirect probe, without asking anybody to do it.
- Whoever has heard nothing on any link since it began to wait asks the others before it accuses
  one: that is Lifeguard's nack. When all are silent it re-dials them first: its own address may
  have changed.
- An accuser who was refuted takes its link for broken, not the member, and re-dials.
- Each node concludes a death by itself; nobody can declare another one dead.

A fact is acted on when it is news, and passed on, once, to every link that has not brought it.
Facts that arrive in one turn leave together, at the `advance` that follows; while there are many,
those that contradict nobody wait for one another.

Whom to link with is the overlay's matter (overlay.py), what a row is worth the table's
(members.py). Nothing here knows of broadcasts.
"""

from collections.abc import Callable, Iterable, Sequence
from random import Random

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.messages import (
    Ack,
    BucketHashes,
    Fact,
    Facts,
    Hello,
    MemberState,
    Message,
    Ping,
    Record,
    Records,
    RecordsWanted,
    Row,
    Rows,
)
from plumtree_quic.proto.effects import (
    Effect,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberSuspected,
    MemberUpdated,
    Relink,
    Send,
    SendDatagram,
    Strike,
    Superseded,
)
from plumtree_quic.proto.health import LocalHealth
from plumtree_quic.proto.members import INCARNATION_STEP_MAX, Member, Members
from plumtree_quic.proto.piggyback import Piggyback
from plumtree_quic.proto.suspicion import ACCUSERS_FULL, Suspicion, suspicion_s

__all__ = ["Swim", "SwimCounters"]

# A silent link is probed after one to two intervals, so at least once in three.
PROBE_GAP_INTERVALS = (1.0, 2.0)
# Pings within one probe time-out: datagrams get lost, and the verdict costs more than they do.
PINGS_PER_TIMEOUT = 5
NONCES_MAX = 8
# Pings of one link that are answered: an honest peer sends PINGS_PER_TIMEOUT in a time-out, once
# in an interval; this is ten times the busiest preset's. What is above is dropped unread.
PINGS_ANSWERED_PER_S = 100.0
PINGS_ANSWERED_BURST = 200.0
# Records of one link that are sent: a table of 10,000 at once, and a tenth of it a second. A guess.
RECORDS_SERVED_PER_S = 1_000.0
RECORDS_SERVED_BURST = 10_000.0
# How long a member that we should be linked with may be without a link, in probe intervals.
UNLINKED_INTERVALS = 3
# All links silent for so many probe intervals: it is more likely us (ARCHITECTURE section 4).
DEAF_INTERVALS = 2
# An accuser that was refuted waits longer each time before it accuses the same member again.
PATIENCE_FACTOR = 2.0
PATIENCE_MAX_S = 60.0
VOTES_MAX = 8
# Lifeguard, section IV-B: only the first confirmations are passed on, for more shorten nothing.
# One above the three that count, for who is unwell does not count its own.
VOTES_TOLD = ACCUSERS_FULL + 1
# After a stall a suspicion lasts one probe interval more, if it would have without the stall: what
# refutes it waits in the socket or rides on the pings that others send us now.
RESUMED_INTERVALS = 1
# Our own timer was this late: what happened meanwhile is our fault. Above a loop's usual jitter.
LATE_S = 0.05

ROWS_PER_FRAME_MAX = 1_500
FACTS_BYTES_MAX = 30_000
RECORDS_BYTES_MAX = 60_000
RECORDS_PER_FRAME_MAX = 128
RECORDS_PER_REQUEST_MAX = 256
# Keys asked of one link that it has not answered; what does not fit waits in our own queue.
ASKED_MAX = 64
ASK_TIMEOUT_S = 2.0
ASK_QUEUE_MAX = 10_000
# Of what rows named to a joiner so much is asked of one neighbour at a time: all carry their part.
HINTS_PER_LINK = 8
# It may not know them, having joined just now itself: others are asked sooner than usual.
HINT_TIMEOUT_S = 0.5
# So long after it has joined a node asks those whom it joined through for no more than before. When
# many join at once a seed's table grows while it is compared.
JOINED_S = 10.0
# What no neighbour could be asked for so long is asked of whoever named it.
HINTS_WAIT_S = 2.0
# One side begins to compare tables; the other does when nothing has come of it for so long.
COMPARE_PATIENCE_S = 1.0
# A new link between two who know each other is no reason to compare again so soon.
COMPARE_GAP_S = 0.5
COMPARE_INTERVAL_MIN_S = 0.1
# Facts that contradict nobody leave at most this often, many in a frame, and the first after a
# pause at once: when half of a thousand members die, each of the others passes on two thousand
# votes within a second or two, and when a thousand join at once, a thousand newcomers. Short beside
# any suspicion, on all hops together. A guess.
NEWS_EVERY_S = 0.05
STALE_RECORDS_MAX = 32
# Facts that wait for the record of their subject.
EARLY_MAX = 4_096
EXPIRY_INTERVAL_S = 60.0

# What hearsay may raise our own incarnation by: at once, and then one at a time. Who was away for
# as long as a record lives is then no further behind than INCARNATION_STEP_MAX: it believes us.
REFUTED_BURST = 256.0
REFUTED_EVERY_S = 2.0

# Refusals of a record that no honest peer passes on; the others are a matter of clocks and room.
BROKEN_RULE = "two identities with one key"
# Whether an incarnation was raised too far depends on what one knew before: of who is honest and
# passes it on, it says nothing.
BROKEN_BY_ITSELF = "incarnation raised too far"

_ALIVE, _SUSPECT = MemberState.ALIVE, MemberState.SUSPECT
_DEAD, _LEFT = MemberState.DEAD, MemberState.LEFT


@attrs.define
class SwimCounters:
    """Counted since the start; plain integers, cheap to read."""

    pings_sent: int = 0
    pings_received: int = 0
    pings_dropped: int = 0
    probes_failed: int = 0
    accusations_made: int = 0
    refutations: int = 0
    facts_relayed: int = 0
    facts_refused: int = 0
    records_refused: int = 0
    records_withheld: int = 0
    members_failed: int = 0
    links_failed: int = 0
    late_ms: int = 0
    slept_ms: int = 0


@attrs.define(eq=False)
class _Link:
    """One link as probing sees it.

    due: when to look at it next. waiting_since: our first ping that nothing fresh has followed.
    asked_others: its end was held up to ask the others for a sign. deaf: and none has come.
    failed: that wait has ended in a failed probe. queue: keys to ask for, and whether each is a
    stranger's. asked: keys with their deadlines. joining: neither end wants the link for
    its overlay. compared: tables were compared on it. compare_by: when we begin to compare, should
    the other end not have done so.
    """

    peer: NodeId
    key: MemberKey
    fresh_at: float
    due: float
    gap_s: float
    silent_after_s: float = 0.0
    waiting_since: float | None = None
    asked_others: bool = False
    deaf: bool = False
    failed: bool = False
    nonces: list[bytes] = attrs.field(factory=list)
    queue: dict[MemberKey, bool] = attrs.field(factory=dict)
    asked: dict[MemberKey, float] = attrs.field(factory=dict)
    joining: bool = False
    compared: bool = False
    compare_by: float | None = None
    compared_at: float = float("-inf")
    ping_tokens: float = PINGS_ANSWERED_BURST
    ping_tokens_at: float = 0.0
    record_tokens: float = RECORDS_SERVED_BURST
    record_tokens_at: float = 0.0

    def may_fetch(self, now: float) -> bool:
        """Whether one more record for this peer is within its rate."""
        earned = (now - self.record_tokens_at) * RECORDS_SERVED_PER_S
        self.record_tokens = min(RECORDS_SERVED_BURST, self.record_tokens + earned)
        self.record_tokens_at = now
        if self.record_tokens < 1.0:
            return False
        self.record_tokens -= 1.0
        return True

    def may_ping(self, now: float) -> bool:
        """Whether one more ping of this peer is within its rate."""
        earned = (now - self.ping_tokens_at) * PINGS_ANSWERED_PER_S
        self.ping_tokens = min(PINGS_ANSWERED_BURST, self.ping_tokens + earned)
        self.ping_tokens_at = now
        if self.ping_tokens < 1.0:
            return False
        self.ping_tokens -= 1.0
        return True

    def wait_from(self, now: float) -> None:
        """Begin to wait for something fresh."""
        self.waiting_since = now
        self.asked_others = self.deaf = self.failed = False


@attrs.define
class _Patience:
    """After a refutation: how long, until when, and whether the link was dialled anew meanwhile."""

    wait_s: float
    until: float
    relinked: bool = False


_FactId = tuple[MemberKey, int, int, MemberState, MemberKey]


def _everybody(_watcher: NodeId, _watched: NodeId) -> bool:
    """In a full mesh everybody watches everybody."""
    return True


def _all(keys: Sequence[MemberKey]) -> list[MemberKey]:
    """In a full mesh all are neighbours."""
    return list(keys)


class Swim:
    """The membership of one node.

    Args:
        members: the table; this class alone changes it.
        config: probe_interval, probe_timeout, suspicion_timeout, maintenance_interval and
            _jitter.
        rng: nonces, jitter, and whom to compare tables with.
        make_record: makes (and signs) our record with a given incarnation.
        make_fact: makes (and signs) a fact ``(subject, epoch, incarnation, state)``.
        is_monitor: whether (watcher, watched) are near enough for an accusation to count.
        choose: of so many strangers those who may be our neighbours.

    Attributes:
        wake_at: when `advance` has work, or None.
    """

    def __init__(
        self,
        members: Members,
        config: PlumtreeConfig,
        rng: Random,
        make_record: Callable[[int], Record],
        make_fact: Callable[[MemberKey, int, int, MemberState], Fact],
        is_monitor: Callable[[NodeId, NodeId], bool] = _everybody,
        choose: Callable[[Sequence[MemberKey]], list[MemberKey]] = _all,
    ) -> None:
        self.table = members
        self.counters = SwimCounters()
        self.health = LocalHealth(config.probe_interval, config.probe_timeout)
        self._config = config
        self._rng = rng
        self._make_record = make_record
        self._make_fact = make_fact
        self._is_monitor = is_monitor
        self._choose = choose
        self._joining = False
        # Strangers that rows named while we joined, and who named them; nobody was asked yet.
        self._hints: dict[MemberKey, NodeId] = {}
        self._hints_until = float("-inf")
        self._joined_until = float("-inf")
        # What is being asked of who may not know it.
        self._guessed: dict[MemberKey, None] = {}
        # Who else could be asked for what one link is being asked for.
        self._elsewhere: dict[MemberKey, dict[NodeId, bool]] = {}
        self._began_at = float("-inf")
        self._links: dict[NodeId, _Link] = {}
        self._suspicions: dict[MemberKey, Suspicion] = {}
        self._patience: dict[MemberKey, _Patience] = {}
        self._unlinked: dict[MemberKey, float] = {}
        self._news: dict[_FactId, tuple[Fact, dict[NodeId, None]]] = {}
        # Whether one of them waits for nothing, and when the others may leave.
        self._is_urgent = False
        self._news_at = float("-inf")
        self._early: dict[MemberKey, tuple[Fact, NodeId]] = {}
        self._asking: dict[MemberKey, float] = {}
        self._stale: dict[MemberKey, None] = {}
        self._riding = Piggyback()
        self._excused_until = float("-inf")
        self._relinked_at = float("-inf")
        self._compare_at: float | None = None
        self._renew_at: float | None = None
        # What hearsay may still raise our incarnation by, and when a refutation that waits is due.
        self._refute_tokens = REFUTED_BURST
        self._refute_tokens_at = 0.0
        self._refute_at: float | None = None
        self._expire_at: float | None = None
        self.wake_at: float | None = None
        self._left = False

    # --- inputs ---------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Begin; call once, before any other input."""
        self._speak(_ALIVE)
        if self._config.maintenance_interval > 0:
            self._compare_at = self._at(now + self._compare_gap_s())
        self._renew_at = self._at(now + max(1.0, self.table.own_valid_s() / 2))
        self._expire_at = self._at(now + EXPIRY_INTERVAL_S)
        return []

    def begin_join(self) -> None:
        """We know nobody: from whom we meet we fetch the records of our neighbours-to-be alone."""
        self._joining = True

    def end_join(self, now: float) -> None:
        """Our neighbours are known: the rest is fetched from them, as their links come up."""
        self._joining = False
        self._hints_until = now + HINTS_WAIT_S
        self._joined_until = now + JOINED_S
        self._at(now)

    def unmet(self) -> int:
        """How many members we have heard of whose records are not here yet."""
        # One may be asked of several links, or have come by another way meanwhile: counted twice, a
        # cluster of 16 would be held for a larger one, and be no mesh for as long as it lives.
        unmet = dict.fromkeys(self._hints)
        for link in self._links.values():
            unmet |= dict.fromkeys((*link.queue, *link.asked))
        return sum(self.table.record_of(key) is None for key in unmet)

    @property
    def awaits_records(self) -> bool:
        """Whether records that were asked for, or are to be, are not here yet."""
        return bool(self._hints) or any(link.queue or link.asked for link in self._links.values())

    def has_met(self, peer: NodeId) -> bool:
        """Whether tables were compared with `peer`, and what was asked of it for that is here."""
        link = self._links.get(peer)
        return link is not None and link.compared and not link.queue and not link.asked

    def set_joining(self, peer: NodeId, joining: bool, now: float) -> None:
        """Whether neither end wants this link for its overlay: news of others do not travel on it.

        A joiner hears of others from its own neighbours.
        """
        link = self._links.get(peer)
        if link is None or link.joining == joining:
            return
        link.joining = joining
        if self._hints and not joining:
            # One more to ask.
            self._at(now)
        if not joining and not link.compared and link.compare_by is None:
            # What spread meanwhile did not come here.
            link.compare_by = self._at(now + COMPARE_PATIENCE_S)

    def meet(self, peer: NodeId, hello: Hello, now: float) -> list[Effect]:
        """Take in what a hello says of the peer, and of ourselves."""
        effects = self._take_own_past(hello.yours, now)
        return effects + self._take_record(peer, hello.record, (), now)

    def link_up(
        self,
        peer: NodeId,
        hello: Hello,
        now: float,
        *,
        begin: bool | None = None,
        joining: bool = False,
    ) -> list[Effect]:
        """A link is greeted: the peer's record enters, ours is announced, tables are compared.

        begin: whether we begin to compare, having dialled it to meet whoever answers; None: the
        smaller id does. joining: see `set_joining`.
        """
        key = member_key(peer)
        gap_s = self._gap_s()
        self._links[peer] = link = _Link(peer, key, now, self._at(now + gap_s), gap_s)
        link.joining = joining
        self._unlinked.pop(key, None)
        recently = now < self._began_at + COMPARE_GAP_S
        met = self.table.state_of(key) in (_ALIVE, _SUSPECT)
        effects = self.meet(peer, hello, now)
        own = self.table.own_row
        facts = [] if own.spoken is None else [own.spoken]
        row = self.table.get(key)
        if row is not None and row.state in (_SUSPECT, _DEAD):
            # It cannot refute what it has not heard.
            facts += self._evidence(row)
        effects.append(Send(peer, Facts(tuple(facts))))
        # One comparison serves both.
        if begin is None:
            begin = not recently if self._joining else not (met and recently)
            begin = begin and (self._joining or self.table.own.node_id < peer)
        if begin and not self._left:
            effects.append(self._compare(link, now))
        elif self._joining or not met:
            link.compare_by = self._at(now + COMPARE_PATIENCE_S)
        if self._hints and not joining:
            self._at(now)
        return effects

    def link_down(self, peer: NodeId, now: float, *, wanted: bool = True) -> list[Effect]:
        """The last link to `peer` is gone. wanted: we should have one, so we watch for it."""
        link = self._links.pop(peer, None)
        if link is None:
            return []
        for key, deadline in link.asked.items():
            self._give_up_asking(key, deadline, now)
        if self._joining:
            # The comparison that was begun with it comes to nothing.
            self._began_at = float("-inf")
            # Others who named them as well did so earlier: it is not to be lost that they exist.
            for key in (*link.queue, *link.asked):
                if self.table.get(key) is None:
                    self._hints.setdefault(key, peer)
        row = self.table.get(link.key)
        if wanted and row is not None and row.state in (_ALIVE, _SUSPECT) and not self._left:
            self._miss(link.key, now)
        return []

    def unreachable(self, peer: NodeId, now: float) -> list[Effect]:
        """A dial to a member that we should be linked with failed."""
        key = member_key(peer)
        row = self.table.get(key)
        if peer in self._links or row is None or row.state not in (_ALIVE, _SUSPECT) or self._left:
            return []
        if key not in self._unlinked:
            self._miss(key, now)
        return []

    def unwatch(self, peer: NodeId) -> None:
        """We need no link to this member any more: that there is none says nothing of it."""
        self._unlinked.pop(member_key(peer), None)

    def receive(self, peer: NodeId, message: Message, now: float) -> list[Effect]:
        """Facts, probes, rows and records that came on the greeted link to `peer`."""
        link = self._links.get(peer)
        if link is None:
            return []
        if not isinstance(message, Ack):
            self._hear(link, now)
        match message:
            case Facts(facts):
                return self._on_facts(peer, facts, now)
            case Ping(nonce, facts):
                return self._on_ping(link, nonce, facts, now)
            case Ack(nonce, facts):
                return self._on_ack(link, nonce, facts, now)
            case BucketHashes(hashes):
                return self._on_bucket_hashes(link, hashes, now)
            case Rows():
                return self._on_rows(link, message, now)
            case RecordsWanted(keys):
                return self._on_records_wanted(link, keys, now)
            case Records():
                return self._on_records(link, message, now)
            case _:
                return []

    def heard(self, peer: NodeId, now: float, silent_after_s: float) -> None:
        """Something fresh came on the link: an ack that advanced, a frame of any lane.

        silent_after_s: how long the link may owe us something before it counts as silent (3 PTO).
        """
        link = self._links.get(peer)
        if link is not None:
            link.silent_after_s = silent_after_s
            link.fresh_at = now
            if link.waiting_since is not None or self.health.score:
                self._hear(link, now)

    def late(self, seconds: float, now: float) -> None:
        """Our own loop stood still for `seconds`: nobody is accused for what fell into it."""
        self.counters.late_ms += round(seconds * 1000)
        if self.health.stalled(seconds, now):
            self._excuse(now)
        if self.wake_at is not None:
            self.wake_at = max(self.wake_at, now)
        for link in self._links.values():
            if link.waiting_since is not None:
                link.waiting_since += seconds
        enough = now + RESUMED_INTERVALS * self._config.probe_interval
        for suspicion in self._suspicions.values():
            suspicion.put_off(min(seconds, max(0.0, enough - suspicion.deadline)))
        for patience in self._patience.values():
            patience.until += seconds
        for key in self._unlinked:
            self._unlinked[key] += seconds

    def slept(self, seconds: float, now: float) -> None:
        """`seconds` have passed for others that `now` does not count, or a clock says so.

        A suspended machine, or a wall clock that jumped, either way: it may be the trace of a
        virtual machine that stood still. Every wait for an echo begins anew, and a suspicion gives
        those who can refute it the time that a lost link gets to come back.
        """
        self.counters.slept_ms += round(seconds * 1000)
        if not self.health.stalled(seconds, now):
            return
        self._excuse(now)
        for link in self._links.values():
            if link.waiting_since is not None:
                link.wait_from(now)
        enough = now + UNLINKED_INTERVALS * self._config.probe_interval
        for suspicion in self._suspicions.values():
            suspicion.put_off(max(0.0, enough - suspicion.deadline))
        for key in self._unlinked:
            self._unlinked[key] = now + self._unlinked_s()

    def _excuse(self, now: float) -> None:
        """What waits in the socket is read first, and a last ping may still be answered.

        Not twice within two time-outs: a loop that is late all the time must know of the dead, too.
        """
        if now >= self._excused_until + self._config.probe_timeout:
            self._excused_until = now + self._config.probe_timeout

    def want_record(self, peer: NodeId, key: MemberKey, now: float) -> list[Effect]:
        """Ask `peer` for the record of a member that is unknown here."""
        link = self._links.get(peer)
        if link is not None and self.table.get(key) is None:
            self._want(link, key, now)
        return []

    def renew(self, now: float) -> list[Effect]:
        """Speak again, under what we sign with now."""
        return [] if self._left else self._fire_renew(now)

    def leave(self, now: float) -> list[Effect]:
        """Tell every link that we go, for good in this epoch; probe and compare no more."""
        if self._left:
            return []
        self._left = True
        self._suspicions.clear()
        self._unlinked.clear()
        self._pass_on(self._speak(_LEFT), None, now, urgent=True)
        return self._flush(now)

    def next_deadline(self) -> float | None:
        """When `advance` has work, or None."""
        return self.wake_at

    def advance(self, now: float) -> list[Effect]:
        """Do what is due at `now`."""
        if self.wake_at is None or self.wake_at > now:
            return []
        if now - self.wake_at > LATE_S:
            self.late(now - self.wake_at, now)
        effects: list[Effect] = []
        if not self._left:
            for link in self._links.values():
                if link.due <= now:
                    effects += self._fire_probe(link, now)
                if link.compare_by is not None and link.compare_by <= now:
                    effects.append(self._compare(link, now))
            if self._suspicions:
                for suspicion in [s for s in self._suspicions.values() if s.deadline <= now]:
                    effects += self._fire_suspicion(suspicion, now)
            if self._unlinked:
                for key in [key for key, due in self._unlinked.items() if due <= now]:
                    effects += self._fire_unlinked(key, now)
            if self._compare_at is not None and self._compare_at <= now:
                effects += self._fire_compare(now)
            if self._renew_at is not None and self._renew_at <= now:
                effects += self._fire_renew(now)
            if self._refute_at is not None and self._refute_at <= now:
                effects += self._refute(self.table.own_row.incarnation, now)
            if self._expire_at is not None and self._expire_at <= now:
                self._fire_expire(now)
        effects += self._flush(now)
        self.wake_at = self._next_wake()
        return effects

    # --- deadlines ------------------------------------------------------------------------------

    def _at(self, when: float) -> float:
        """A new deadline. One that is put off keeps its old wake-up, which then finds nothing."""
        if self.wake_at is None or when < self.wake_at:
            self.wake_at = when
        return when

    def _next_wake(self) -> float | None:
        waits: list[float] = []
        if self._news:
            waits.append(self._news_at)
        for link in self._links.values():
            if link.asked:
                waits.append(min(link.asked.values()))
            if not self._left:
                # What was fresh puts the next look off.
                quiet_at = link.fresh_at + link.gap_s
                looks = link.waiting_since is not None or quiet_at <= link.due
                waits.append(link.due if looks else quiet_at)
                if link.compare_by is not None:
                    waits.append(link.compare_by)
        if not self._left:
            if self._hints and not self._joining:
                waits.append(self._hints_until)
            if self._suspicions:
                waits += [suspicion.deadline for suspicion in self._suspicions.values()]
            waits += self._unlinked.values()
            for when in (self._compare_at, self._renew_at, self._refute_at, self._expire_at):
                if when is not None:
                    waits.append(when)
        return min(waits, default=None)

    # --- probes ---------------------------------------------------------------------------------

    def _gap_s(self) -> float:
        gap_s = self._config.probe_interval * self._rng.uniform(*PROBE_GAP_INTERVALS)
        return gap_s * self.health.stretch

    def _timeout_s(self) -> float:
        return self._config.probe_timeout * self.health.stretch

    def _hear(self, link: _Link, now: float) -> None:
        """Something fresh: the wait is over. The next look at the link is put off lazily."""
        link.fresh_at = now
        self.health.heard(now)
        if link.waiting_since is not None:
            link.waiting_since = None
            link.failed = False
            link.nonces.clear()
            link.gap_s = self._gap_s()
            link.due = self._at(now + link.gap_s)

    def _fire_probe(self, link: _Link, now: float) -> list[Effect]:
        config = self._config
        row = self.table.get(link.key)
        if row is not None and row.state in (_DEAD, _LEFT):
            link.due = now + config.probe_interval
            if row.state is _DEAD and link.waiting_since is None:
                # It woke up on a link that outlived it, and cannot refute what it has not heard.
                link.waiting_since = now
                return [Send(link.peer, Facts(tuple(self._evidence(row))))]
            return []
        if link.waiting_since is None:
            if link.fresh_at + link.gap_s > now:
                link.due = link.fresh_at + link.gap_s
                return []
            return self._probe(link, now)
        timeout_s = self._timeout_s()
        verdict_at = max(
            link.waiting_since + max(timeout_s, link.silent_after_s), self._excused_until
        )
        if now < verdict_at:
            link.due = min(now + timeout_s / PINGS_PER_TIMEOUT, verdict_at)
            if link.due == verdict_at and verdict_at - now < timeout_s / 10:
                # Too late for an echo before the verdict.
                return []
            return [self._ping(link)]
        effects: list[Effect] = []
        if not link.failed:
            held_up = self._ask_others(link, link.waiting_since, now)
            if held_up is not None:
                link.due = now + config.probe_timeout / PINGS_PER_TIMEOUT
                return [*held_up, self._ping(link)]
            link.failed = True
            self.counters.probes_failed += 1
            patience = self._patience.get(link.key)
            if patience is not None and now < patience.until and not patience.relinked:
                # Once: who stands still again and again is not helped by handshakes.
                patience.relinked = True
                self.counters.links_failed += 1
                effects.append(Relink(link.peer))
        effects += self._accuse(link.key, now)
        link.due = now + config.probe_interval
        return [*effects, self._ping(link)]

    def _ask_others(self, link: _Link, since: float, now: float) -> list[Effect] | None:
        """What to do before we take the silence of `link` for the other end's; None: nothing.

        When others are linked with us and none has been heard `since` we began to wait, it may be
        us who hear nothing. They are asked at once. If all stay silent, all are dialled anew, and
        have as long to answer as a member without a link.
        """
        others = [
            other
            for other in self._links.values()
            if other is not link and self.table.state_of(other.key) in (_ALIVE, _SUSPECT)
        ]
        if not others:
            return None
        newest = max(other.fresh_at for other in others)
        if newest >= since:
            return None
        effects: list[Effect] = []
        if not link.asked_others:
            link.asked_others = True
            for other in others:
                if other.waiting_since is None:
                    effects += self._probe(other, now)
            return effects
        if not link.deaf:
            link.deaf = True
            self.health.deaf(now)
        deaf_at = max(newest, link.fresh_at) + DEAF_INTERVALS * self._config.probe_interval
        if now < deaf_at:
            return effects
        if self._relinked_at < max(newest, link.fresh_at):
            self._relinked_at = now
            for each in (link, *others):
                self.counters.links_failed += 1
                effects.append(Relink(each.peer))
        return effects if now < self._relinked_at + self._unlinked_s() else None

    def _probe(self, link: _Link, now: float) -> list[Effect]:
        """Begin to wait for something fresh."""
        link.wait_from(now)
        link.due = self._at(now + self._timeout_s() / PINGS_PER_TIMEOUT)
        return [self._ping(link)]

    def _ping(self, link: _Link) -> SendDatagram:
        nonce = self._rng.randbytes(8)
        link.nonces.append(nonce)
        del link.nonces[:-NONCES_MAX]
        self.counters.pings_sent += 1
        facts = self._riding.take(self.table.alive_count(), link.key)
        return SendDatagram(link.peer, Ping(nonce, facts))

    def _on_ping(
        self, link: _Link, nonce: bytes, facts: tuple[Fact, ...], now: float
    ) -> list[Effect]:
        self.counters.pings_received += 1
        if not link.may_ping(now):
            self.counters.pings_dropped += 1
            return []
        effects = self._on_facts(link.peer, facts, now)
        riding = self._riding.take(self.table.alive_count(), link.key)
        return [*effects, SendDatagram(link.peer, Ack(nonce, riding))]

    def _on_ack(
        self, link: _Link, nonce: bytes, facts: tuple[Fact, ...], now: float
    ) -> list[Effect]:
        # An echo of an earlier wait is no proof of life now; the frame's facts count all the same.
        if nonce in link.nonces:
            self._hear(link, now)
        return self._on_facts(link.peer, facts, now)

    # --- members without a link -----------------------------------------------------------------

    def _unlinked_s(self) -> float:
        return UNLINKED_INTERVALS * self._config.probe_interval * self.health.stretch

    def _miss(self, key: MemberKey, now: float) -> None:
        self._unlinked[key] = self._at(now + self._unlinked_s())

    def _fire_unlinked(self, key: MemberKey, now: float) -> list[Effect]:
        """Dialled again for long enough: this counts like a failed probe."""
        row = self.table.get(key)
        if row is None or row.state not in (_ALIVE, _SUSPECT):
            del self._unlinked[key]
            return []
        if now < self._excused_until:
            self._unlinked[key] = self._excused_until
            return []
        # The next failed dial begins anew, should it be refuted.
        del self._unlinked[key]
        self.counters.probes_failed += 1
        return self._accuse(key, now)

    # --- states ---------------------------------------------------------------------------------

    def _tell(self, row: Member, *, renewed: bool = False) -> list[Effect]:
        """Tell the application where a member stands now, compared with what it was told last.

        It hears of nobody who was never alive, and of a death only after a life. renewed: a new
        life, or other addresses, zone or meta.
        """
        told, state = row.told, row.state
        present = told in (_ALIVE, _SUSPECT)
        match state:
            case MemberState.ALIVE:
                row.told = _ALIVE
                if not present:
                    return [MemberJoined(row.record)]
                return [MemberUpdated(row.record)] if renewed or told is _SUSPECT else []
            case MemberState.SUSPECT if told is _ALIVE:
                row.told = _SUSPECT
                return [MemberSuspected(row.node_id)]
            case MemberState.DEAD if present:
                row.told = _DEAD
                return [MemberFailed(row.node_id)]
            case MemberState.LEFT if present:
                row.told = _LEFT
                return [MemberLeft(row.node_id)]
            case _:
                return []

    def _become_suspect(self, row: Member, now: float) -> list[Effect]:
        deadline = self._at(now + suspicion_s(*self._stakes(row)))
        self._suspicions[row.key] = Suspicion(row.key, now, deadline)
        self.table.become(row, _SUSPECT)
        # Everybody who is linked with the accused looks for himself, at once.
        link = self._links.get(row.node_id)
        if link is not None and link.waiting_since is None:
            return self._probe(link, now)
        return []

    def _become_dead(self, row: Member) -> None:
        self._settle(row, _DEAD)
        self.counters.members_failed += 1

    def _become_left(self, row: Member, epoch: int, incarnation: int) -> None:
        if (epoch, incarnation) > row.rank:
            self.table.rise(row, epoch, incarnation)
        self._settle(row, _LEFT)

    def _become_alive(self, row: Member, now: float) -> None:
        """It spoke, by whatever way: our wait for a sign of it on its link begins anew.

        After a restart that link is the old life's, and its silence says nothing of the new one.
        """
        self._settle(row, _ALIVE)
        link = self._links.get(row.node_id)
        if link is not None and link.waiting_since is not None:
            link.wait_from(now)
        if row.key in self._unlinked:
            self._miss(row.key, now)

    def _settle(self, row: Member, state: MemberState) -> None:
        self._suspicions.pop(row.key, None)
        if state is not _ALIVE:
            self._unlinked.pop(row.key, None)
        self.table.become(row, state)

    # --- accusation, refutation, death ----------------------------------------------------------

    def _accuse(self, key: MemberKey, now: float) -> list[Effect]:
        """Our own vote, once per incarnation, unless we were refuted a short while ago."""
        row = self.table.get(key)
        if row is None or row.state not in (_ALIVE, _SUSPECT) or self.table.me in row.accusations:
            return []
        if not self._is_monitor(self.table.own.node_id, row.node_id):
            # Nobody would count it: those who watch it see for themselves.
            return []
        if self._is_patient(key, now):
            return []
        self.counters.accusations_made += 1
        fact = self._make_fact(key, row.epoch, row.incarnation, _SUSPECT)
        return [*self._take_vote(row, fact, None, now), *self._tell(row)]

    def _take_vote(self, row: Member, fact: Fact, peer: NodeId | None, now: float) -> list[Effect]:
        if len(row.accusations) >= VOTES_MAX:
            return []
        row.accusations[fact.signer] = fact
        if row.state is _DEAD:
            return []
        if len(row.accusations) <= VOTES_TOLD:
            self._pass_on(fact, peer, now)
        if row.state is _ALIVE:
            return self._become_suspect(row, now)
        suspicion = self._suspicions.get(row.key)
        if suspicion is not None:
            # Who is leaving waits for nobody's end any more.
            suspicion.confirm(*self._stakes(row))
            # It may be past already; a wake-up that is, would look like a stall of ours.
            self._at(max(now, suspicion.deadline))
        return []

    def _is_patient(self, key: MemberKey, now: float) -> bool:
        """Whether we were refuted so short a while ago that we rather doubt our link."""
        patience = self._patience.get(key)
        return patience is not None and now < patience.until

    def _stakes(self, row: Member) -> tuple[float, int, int]:
        return self._config.suspicion_timeout, len(row.accusations), self.table.alive_count()

    def _is_over(self, suspicion: Suspicion, row: Member, now: float) -> bool:
        """Whether a suspicion whose deadline has come has lasted long enough for us, too.

        Who is unwell does not trust its own word: only what others say makes it shorter.
        """
        stretch = self.health.stretch
        if stretch == 1:
            return True
        shortest_s, accusers, members = self._stakes(row)
        others = accusers - (self.table.me in row.accusations)
        ends = suspicion.counted_from + suspicion_s(shortest_s, others, members, stretch)
        # Looked at again before that: we may get well.
        suspicion.deadline = min(ends, now + self._config.probe_interval)
        return ends <= now

    def _fire_suspicion(self, suspicion: Suspicion, now: float) -> list[Effect]:
        row = self.table.get(suspicion.key)
        if row is None:
            del self._suspicions[suspicion.key]
            return []
        if now < self._excused_until:
            suspicion.deadline = self._excused_until
            return []
        if not self._is_over(suspicion, row, now):
            return []
        link = self._links.get(row.node_id)
        if link is not None and link.fresh_at > suspicion.started_at and not link.failed:
            # A fresh echo on our own link beats any vote: wait until the link falls silent.
            suspicion.deadline = now + self._config.probe_interval
            return []
        self._become_dead(row)
        return self._tell(row)

    def _refute(self, incarnation: int, now: float, *, proved: bool = False) -> list[Effect]:
        """Somebody holds us for silent at `incarnation` of this epoch: speak above it.

        proved: it is an incarnation that we have signed ourselves.
        """
        own = self.table.own_row
        if self._left or incarnation - own.incarnation > INCARNATION_STEP_MAX:
            return []
        rise = max(incarnation - own.incarnation, 0) + 1
        if not proved and not self._may_rise(rise, now):
            return []
        self._refute_at = None
        self.counters.refutations += 1
        self.health.refuted(now)
        self.table.renew(own, self._make_record(own.incarnation + rise))
        self._pass_on(self._speak(_ALIVE), None, now, urgent=True)
        return []

    def _may_rise(self, rise: int, now: float) -> bool:
        """Whether our incarnation may rise by `rise` now, for somebody says that we are silent.

        It costs an accuser nothing to say so again and again, or of an incarnation that we never
        had; and those who missed what came between would not believe us any more. An accusation
        of the incarnation that we have is answered in any case, in time for any suspicion.
        """
        every_s = min(REFUTED_EVERY_S, self._config.suspicion_timeout / 3)
        earned = (now - self._refute_tokens_at) / every_s
        self._refute_tokens = min(REFUTED_BURST, self._refute_tokens + earned)
        self._refute_tokens_at = now
        if self._refute_tokens >= rise:
            self._refute_tokens -= rise
            return True
        if rise == 1 and self._refute_at is None:
            # A little later than it is earned, so that rounding does not make it wait again.
            self._refute_at = self._at(now + (1.0 - self._refute_tokens) * every_s + 0.001)
        return False

    def _speak(self, state: MemberState) -> Fact:
        own = self.table.own_row
        fact = self._make_fact(own.key, own.epoch, own.incarnation, state)
        own.spoken, own.relayed = fact, own.rank
        return fact

    def _evidence(self, row: Member) -> list[Fact]:
        """Why we hold a member for suspect or dead.

        Whoever concluded a death stands by it with a vote of its own: those of others may be
        signed by members whom the receiver holds for dead in turn.
        """
        if row.state is _DEAD and self.table.me not in row.accusations:
            if len(row.accusations) >= VOTES_MAX:
                del row.accusations[next(iter(row.accusations))]
            row.accusations[self.table.me] = self._make_fact(
                row.key, row.epoch, row.incarnation, _SUSPECT
            )
        return list(row.accusations.values())

    def _learn_patience(self, row: Member, now: float) -> None:
        """We accused and were refuted: doubt our own link before doubting the member again."""
        if self.table.me not in row.accusations:
            return
        before = self._patience.get(row.key)
        shortest_s = PATIENCE_FACTOR * self._config.probe_interval
        if before is None or now > before.until + PATIENCE_MAX_S:
            wait_s = shortest_s
        else:
            wait_s = min(PATIENCE_MAX_S, before.wait_s * PATIENCE_FACTOR)
        self._patience[row.key] = _Patience(wait_s, now + wait_s)

    # --- facts ----------------------------------------------------------------------------------

    def _on_facts(self, peer: NodeId, facts: Iterable[Fact], now: float) -> list[Effect]:
        effects: list[Effect] = []
        answer: dict[MemberKey, Fact] = {}
        for fact in facts:
            effects += self._on_fact(peer, fact, answer, now)
        if answer:
            # The bringer is behind; what we know better goes back to it alone.
            effects.append(Send(peer, Facts(tuple(answer.values()))))
        return effects

    def _on_fact(
        self, peer: NodeId, fact: Fact, answer: dict[MemberKey, Fact], now: float
    ) -> list[Effect]:
        pending = self._news.get(_fact_id(fact))
        if pending is not None:
            pending[1][peer] = None
            return []
        if not _may_state(fact):
            self.counters.facts_refused += 1
            return [Strike(peer, "a fact that its signer cannot state")]
        if fact.subject == self.table.me:
            return self._on_fact_about_us(fact, answer, now)
        row = self.table.get(fact.subject)
        if row is None or fact.epoch > row.epoch:
            return self._on_early_fact(peer, row, fact, now)
        if row.state is _LEFT and fact.state is _LEFT:
            return []
        behind = (fact.epoch, fact.incarnation) < row.rank and fact.state is not _LEFT
        if fact.epoch < row.epoch or row.state is _LEFT or behind:
            if row.spoken is not None and row.spoken.epoch == row.epoch:
                answer[row.key] = row.spoken
            return []
        match fact.state:
            case MemberState.SUSPECT:
                effects = self._on_suspect(peer, row, fact, now)
                return effects + self._tell(row)
            case MemberState.LEFT:
                self._on_left(peer, row, fact, now)
            case _:
                self._on_alive(peer, row, fact, now)
        return self._tell(row)

    def _on_fact_about_us(
        self, fact: Fact, answer: dict[MemberKey, Fact], now: float
    ) -> list[Effect]:
        own = self.table.own_row
        if fact.state is not _SUSPECT or fact.epoch > own.epoch:
            return []
        if fact.epoch == own.epoch and fact.incarnation >= own.incarnation and not self._left:
            return self._refute(fact.incarnation, now)
        if own.spoken is not None:
            answer[own.key] = own.spoken
        return []

    def _on_early_fact(
        self, peer: NodeId, row: Member | None, fact: Fact, now: float
    ) -> list[Effect]:
        """A fact of a stranger or of a newer life: its record has to come first."""
        if fact.state is _LEFT:
            if row is None or self.table.is_ahead(fact.epoch):
                self.counters.facts_refused += row is not None
                return []
            self._on_left(peer, row, fact, now)
            return self._tell(row)
        if fact.subject in self._guessed:
            # When many join at once: the bringer is the first who is sure to have it.
            del self._guessed[fact.subject]
            self._asking.pop(fact.subject, None)
        if self._want(self._links[peer], fact.subject, now) and fact.state is _ALIVE:
            self._early.pop(fact.subject, None)
            self._early[fact.subject] = (fact, peer)
            if len(self._early) > EARLY_MAX:
                del self._early[next(iter(self._early))]
        return []

    def _on_suspect(self, peer: NodeId, row: Member, fact: Fact, now: float) -> list[Effect]:
        if fact.incarnation > row.incarnation:
            # Only the subject raises its incarnation; its newer statement is on the way to us.
            return []
        if fact.signer in row.accusations:
            # Each neighbour brings it.
            return []
        signer = self.table.get(fact.signer)
        if (
            signer is None
            or signer.state not in (_ALIVE, _SUSPECT)
            or not self._is_monitor(signer.node_id, row.node_id)
        ):
            self.counters.facts_refused += 1
            return []
        return self._take_vote(row, fact, peer, now)

    def _on_left(self, peer: NodeId, row: Member, fact: Fact, now: float) -> None:
        if row.state is _LEFT and fact.epoch <= row.epoch:
            return
        row.spoken = fact
        self._pass_on(fact, peer, now, urgent=True)
        self._become_left(row, fact.epoch, fact.incarnation)

    def _on_alive(
        self, peer: NodeId, row: Member, fact: Fact, now: float, *, pulled: bool = False
    ) -> None:
        """The subject says that it lives. pulled: in answer to our question, so known to others."""
        rank = (fact.epoch, fact.incarnation)
        if fact.incarnation - row.incarnation > INCARNATION_STEP_MAX:
            self.counters.facts_refused += 1
            return
        if row.spoken is None or rank > (row.spoken.epoch, row.spoken.incarnation):
            row.spoken = fact
        newer = rank > row.rank
        refutes = newer and row.state is not _ALIVE
        if newer:
            self._learn_patience(row, now)
            self.table.rise(row, *rank)
            self._become_alive(row, now)
            self._stale[row.key] = None
            link = self._links.get(peer)
            if peer == row.node_id and link is not None:
                # The subject has its own record; others may not have it yet.
                self._want(link, row.key, now)
        if row.relayed < rank and (newer or not pulled):
            row.relayed = rank
            self._pass_on(fact, peer, now, urgent=refutes)

    def _pass_on(
        self, fact: Fact, peer: NodeId | None, now: float, *, urgent: bool = False
    ) -> None:
        """Tell every link that has not brought it, soon; ride on probes, too.

        urgent: at the end of this turn, for it contradicts what others believe.
        """
        self._is_urgent = self._is_urgent or urgent
        _, brought = self._news.setdefault(_fact_id(fact), (fact, {}))
        if peer is not None:
            brought[peer] = None
        self._riding.add(fact)
        self._at(now if urgent else max(now, self._news_at))

    def _flush(self, now: float) -> list[Effect]:
        """Send the turn's facts and questions, as few frames as they fit."""
        effects: list[Effect] = []
        if self._news and (self._is_urgent or self._news_at <= now):
            self._is_urgent = False
            self._news_at = now + NEWS_EVERY_S
            news = list(self._news.values())
            self._news.clear()
            for peer, link in self._links.items():
                if link.joining:
                    continue
                facts = [fact for fact, brought in news if peer not in brought]
                self.counters.facts_relayed += len(facts)
                effects += (Send(peer, Facts(page)) for page in _pages(facts))
        if self._hints and not self._joining:
            effects += self._spread_hints(now)
        waiting = [link for link in self._links.values() if link.asked or link.queue]
        if waiting:
            for link in waiting:
                self._expire_asked(link, now)
            for link in self._links.values():
                if link.queue:
                    effects += self._ask(link, now)
        return effects

    def _spread_hints(self, now: float) -> list[Effect]:
        """Ask our neighbours in turn for those whom rows named while we joined."""
        effects: list[Effect] = []
        neighbours = [link for link in self._links.values() if not link.joining]
        for link in neighbours:
            keys: list[MemberKey] = []
            while self._hints and len(link.asked) < HINTS_PER_LINK:
                key, namer = self._hints.popitem()
                if self.table.get(key) is None and self._asking.get(key, now) <= now:
                    link.asked[key] = self._asking[key] = self._at(now + HINT_TIMEOUT_S)
                    self._guessed[key] = None
                    self._elsewhere.setdefault(key, {})[namer] = True
                    keys.append(key)
            if keys:
                effects.append(Send(link.peer, RecordsWanted(tuple(keys))))
        if not self._hints or now < self._hints_until:
            return effects
        self._hints_until = self._at(now + HINTS_WAIT_S)
        if not neighbours:
            for key, peer in list(self._hints.items()):
                source = self._links.get(peer)
                if source is not None:
                    del self._hints[key]
                    self._want(source, key, now)
        return effects

    # --- records --------------------------------------------------------------------------------

    def _take_own_past(self, record: Record | None, now: float) -> list[Effect]:
        """What others hold as our newest record: of a later start than ours, we must stop."""
        own = self.table.own_row
        if record is None or member_key(record.node_id) != own.key:
            return []
        if record.epoch > own.epoch:
            return [Superseded(record.epoch)]
        if record.epoch == own.epoch and record.incarnation > own.incarnation:
            return self._refute(record.incarnation, now, proved=True)
        return []

    def _take_record(
        self, peer: NodeId, record: Record, facts: Iterable[Fact], now: float
    ) -> list[Effect]:
        """A verified record. Facts that came with it are judged before anybody is told of it."""
        key = member_key(record.node_id)
        if key == self.table.me:
            return self._take_own_past(record, now)
        self._hints.pop(key, None)
        self._guessed.pop(key, None)
        if key in self._elsewhere:
            # Who asked for it as a stranger's has it now; the others may know a newer one.
            self._ask_elsewhere(key, now)
        reason = self.table.refusal(record)
        if reason is not None:
            self.counters.records_refused += 1
            is_strike = reason == BROKEN_RULE or (
                reason == BROKEN_BY_ITSELF and peer == record.node_id
            )
            return [Strike(peer, reason)] if is_strike else []
        row = self.table.get(key)
        renewed = False
        if row is None:
            row = self.table.enter(record)
        elif record.rank > row.record.rank:
            renewed = _says_more(record, row.record)
            newer = record.rank > row.rank
            if record.epoch > row.epoch:
                row.spoken = None
            if newer:
                self._learn_patience(row, now)
            lives_again = newer and (row.state is not _LEFT or record.epoch > row.epoch)
            self.table.renew(row, record)
            if lives_again:
                self._become_alive(row, now)
        if row.record.rank == row.rank:
            self._stale.pop(key, None)
        effects = self._take_pulled(peer, row, facts, now)
        early = self._early.pop(key, None)
        if early is not None and early[0].epoch == row.epoch and row.state is not _LEFT:
            fact, bringer = early
            if fact.incarnation >= row.incarnation:
                self._on_alive(bringer, row, fact, now)
        return effects + self._tell(row, renewed=renewed)

    def _take_pulled(
        self, peer: NodeId, row: Member, facts: Iterable[Fact], now: float
    ) -> list[Effect]:
        """Facts about one member that came in answer to a question."""
        effects: list[Effect] = []
        for fact in facts:
            if fact.epoch != row.epoch or row.state is _LEFT:
                continue
            if fact.state is _LEFT:
                self._on_left(peer, row, fact, now)
            elif fact.incarnation < row.incarnation:
                continue
            elif fact.state is _ALIVE:
                self._on_alive(peer, row, fact, now, pulled=True)
            else:
                effects += self._on_suspect(peer, row, fact, now)
        return effects

    def _want(self, link: _Link, key: MemberKey, now: float) -> bool:
        """Ask the other end of `link` for a record and its facts, at the end of this turn."""
        if key not in link.asked:
            if len(link.queue) >= ASK_QUEUE_MAX:
                return False
            link.queue[key] = self.table.get(key) is None
            self._at(now)
        return True

    def _ask(self, link: _Link, now: float) -> list[Effect]:
        """Send the questions that fit; each key is asked of one link at a time."""
        keys: list[MemberKey] = []
        while link.queue and len(link.asked) < ASKED_MAX:
            key, stranger = next(iter(link.queue.items()))
            del link.queue[key]
            if stranger and self.table.get(key) is not None:
                # Another link was faster.
                continue
            if self._asking.get(key, now) > now:
                # In vain there, perhaps.
                self._elsewhere.setdefault(key, {})[link.peer] = stranger
                continue
            deadline = now + ASK_TIMEOUT_S
            link.asked[key] = self._asking[key] = deadline
            keys.append(key)
        return [Send(link.peer, RecordsWanted(tuple(keys)))] if keys else []

    def _expire_asked(self, link: _Link, now: float) -> None:
        for key, deadline in [each for each in link.asked.items() if each[1] <= now]:
            del link.asked[key]
            self._give_up_asking(key, deadline, now)

    def _give_up_asking(self, key: MemberKey, deadline: float, now: float) -> None:
        """Whom we asked until `deadline` has not answered, or is gone."""
        if self._asking.get(key, deadline) == deadline:
            # Else somebody else is being asked already.
            self._ask_elsewhere(key, now)

    def _ask_elsewhere(self, key: MemberKey, now: float) -> None:
        """Who was asked for this has not answered: others who may know it are asked, seeds last."""
        self._asking.pop(key, None)
        self._guessed.pop(key, None)
        others = [
            (self._links[peer], stranger)
            for peer, stranger in self._elsewhere.pop(key, {}).items()
            if peer in self._links
        ]
        neighbours = [each for each in others if not each[0].joining]
        for link, stranger in neighbours or others:
            link.queue[key] = stranger
            self._at(now)

    def _on_records_wanted(
        self, link: _Link, keys: tuple[MemberKey, ...], now: float
    ) -> list[Effect]:
        effects: list[Effect] = []
        peer = link.peer
        records: list[Record] = []
        facts: list[Fact] = []
        size = 0
        # Each once, whatever a peer repeats; what is above the rate it asks for again.
        for key in dict.fromkeys(keys[:RECORDS_PER_REQUEST_MAX]):
            row = self.table.get(key)
            if row is None or self.table.is_expired(row.record):
                continue
            if not link.may_fetch(now):
                self.counters.records_withheld += 1
                continue
            said = [] if row.spoken is None else [row.spoken]
            if row.state in (_SUSPECT, _DEAD):
                said += self._evidence(row)
            more = len(row.record.raw) + sum(len(fact.raw) for fact in said) + 8
            if records and (
                size + more > RECORDS_BYTES_MAX or len(records) >= RECORDS_PER_FRAME_MAX
            ):
                effects.append(Send(peer, Records(tuple(records), tuple(facts))))
                records, facts, size = [], [], 0
            records.append(row.record)
            facts += said
            size += more
        if records:
            effects.append(Send(peer, Records(tuple(records), tuple(facts))))
        return effects

    def _on_records(self, link: _Link, message: Records, now: float) -> list[Effect]:
        effects: list[Effect] = []
        said: dict[MemberKey, list[Fact]] = {}
        for fact in message.facts:
            if not _may_state(fact):
                self.counters.facts_refused += 1
                effects.append(Strike(link.peer, "a fact that its signer cannot state"))
            elif fact.subject == self.table.me:
                effects += self._on_fact_about_us(fact, {}, now)
            else:
                said.setdefault(fact.subject, []).append(fact)
        for record in message.records:
            key = member_key(record.node_id)
            if link.asked.pop(key, None) is not None:
                self._asking.pop(key, None)
                self._at(now)
            effects += self._take_record(link.peer, record, said.pop(key, ()), now)
        for key, facts in said.items():
            row = self.table.get(key)
            if row is not None:
                effects += self._take_pulled(link.peer, row, facts, now)
                effects += self._tell(row)
        return effects

    # --- comparing tables -----------------------------------------------------------------------

    def _compare_gap_s(self) -> float:
        config = self._config
        return config.maintenance_interval + self._rng.uniform(0, config.maintenance_jitter)

    def _fire_compare(self, now: float) -> list[Effect]:
        """Compare with a random living neighbour; ask it for records that lag behind facts."""
        self._compare_at = now + self._compare_gap_s()
        links = [
            link
            for link in self._links.values()
            if self.table.state_of(link.key) in (_ALIVE, _SUSPECT)
        ]
        if not links:
            return []
        link = self._rng.choice(links)
        for key in list(self._stale)[:STALE_RECORDS_MAX]:
            row = self.table.get(key)
            if row is None or row.record.rank == row.rank or row.state is _LEFT:
                del self._stale[key]
            else:
                self._want(link, key, now)
        return [self._compare(link, now)]

    def _compare(self, link: _Link, now: float) -> Send:
        link.compare_by = None
        self._began_at = now
        return Send(link.peer, BucketHashes(self.table.bucket_hashes()))

    def _on_bucket_hashes(self, link: _Link, hashes: bytes, now: float) -> list[Effect]:
        if now - link.compared_at < COMPARE_INTERVAL_MIN_S:
            return []
        link.compared_at = now
        link.compare_by = None
        differing = self.table.differing(hashes)
        # Without a difference no rows will come.
        link.compared = link.compared or not differing
        return self._send_rows(link.peer, differing, answer=True)

    def _send_rows(self, peer: NodeId, buckets: tuple[int, ...], *, answer: bool) -> list[Effect]:
        effects: list[Effect] = []
        page: list[int] = []
        rows: list[Row] = []
        for bucket in buckets:
            more = self.table.rows(bucket)[:ROWS_PER_FRAME_MAX]
            if page and len(rows) + len(more) > ROWS_PER_FRAME_MAX:
                effects.append(Send(peer, Rows(tuple(page), tuple(rows), answer)))
                page, rows = [], []
            page.append(bucket)
            rows += more
        if page:
            effects.append(Send(peer, Rows(tuple(page), tuple(rows), answer)))
        return effects

    def _on_rows(self, link: _Link, message: Rows, now: float) -> list[Effect]:
        effects: list[Effect] = []
        evidence: list[Fact] = []
        link.compared, link.compare_by = True, None
        is_guest = self._joining or (link.joining and now < self._joined_until)
        for row in message.rows:
            if row.key == self.table.me:
                effects += self._on_row_about_us(row, now)
            else:
                evidence += self._on_row(link, row, now, is_guest=is_guest)
        if is_guest and self._hints:
            for key in self._choose([*self._hints, *self._asking]):
                if self._hints.pop(key, None) is not None:
                    self._want(link, key, now)
            self._at(now)
        effects += (Send(link.peer, Facts(page)) for page in _pages(evidence))
        if message.answer:
            # Each bucket once, whatever a peer repeats.
            buckets = tuple(dict.fromkeys(message.buckets))
            effects += self._send_rows(link.peer, buckets, answer=False)
        return effects

    def _on_row_about_us(self, row: Row, now: float) -> list[Effect]:
        own = self.table.own_row
        doubted = row.state in (_SUSPECT, _DEAD) and row.epoch == own.epoch
        if doubted and row.incarnation >= own.incarnation:
            return self._refute(row.incarnation, now)
        return []

    def _on_row(self, link: _Link, row: Row, now: float, *, is_guest: bool) -> list[Fact]:
        """Fetch what the peer knows better; return evidence of what we know better.

        is_guest: we have come to join, so strangers are asked of our neighbours.
        """
        ours = self.table.get(row.key)
        if ours is None:
            # Of those who are gone, nobody who did not know them needs to learn.
            if row.state in (_ALIVE, _SUSPECT):
                if not is_guest and row.key not in self._hints:
                    self._want(link, row.key, now)
                elif len(self._hints) < ASK_QUEUE_MAX and row.key not in self._asking:
                    self._hints.setdefault(row.key, link.peer)
            return []
        theirs = (row.epoch, row.incarnation)
        if ours.state is _LEFT and row.epoch <= ours.epoch:
            return []
        if theirs > ours.rank or row.state is _LEFT:
            self._want(link, row.key, now)
            return []
        if theirs == ours.rank:
            if ours.state is _ALIVE and row.state is _SUSPECT:
                self._want(link, row.key, now)
            elif ours.state in (_SUSPECT, _DEAD) and row.state is _ALIVE:
                return self._evidence(ours)
        return []

    # --- slow timers ----------------------------------------------------------------------------

    def _fire_renew(self, now: float) -> list[Effect]:
        """Our record is half way to its `valid_until`: speak again."""
        own = self.table.own_row
        self.table.renew(own, self._make_record(own.incarnation + 1))
        self._pass_on(self._speak(_ALIVE), None, now)
        self._renew_at = now + max(1.0, self.table.own_valid_s() / 2)
        return []

    def _fire_expire(self, now: float) -> None:
        self._expire_at = now + EXPIRY_INTERVAL_S
        self.table.expire()
        for key in [k for k, p in self._patience.items() if p.until + PATIENCE_MAX_S < now]:
            del self._patience[key]


def _may_state(fact: Fact) -> bool:
    """A member speaks for itself when it lives or leaves; others only accuse."""
    if fact.state is _SUSPECT:
        return fact.signer != fact.subject
    return fact.signer == fact.subject and fact.state is not _DEAD


def _says_more(new: Record, old: Record) -> bool:
    return (new.epoch, new.addresses, new.zone, new.meta) != (
        old.epoch,
        old.addresses,
        old.zone,
        old.meta,
    )


def _fact_id(fact: Fact) -> _FactId:
    return (fact.subject, fact.epoch, fact.incarnation, fact.state, fact.signer)


def _pages(facts: Iterable[Fact]) -> list[tuple[Fact, ...]]:
    """Facts in frames of at most 30,000 bytes: the control lane takes no larger ones."""
    pages: list[tuple[Fact, ...]] = []
    page: list[Fact] = []
    size = 0
    for fact in facts:
        if page and size + len(fact.raw) + 3 > FACTS_BYTES_MAX:
            pages.append(tuple(page))
            page, size = [], 0
        page.append(fact)
        size += len(fact.raw) + 3
    if page:
        pages.append(tuple(page))
    return pages
