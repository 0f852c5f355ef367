"""Anti-entropy: what links compare, which rows differ, what is asked out of them, who is believed.

Per stream, one (origin, epoch), a node has `seen` (delivered, refused, before its time, declared
lost) and what it can serve, `held`. Links compare **seen**: two nodes that have seen the same need
nothing of one another, whatever their caches have let go meanwhile, so an idle cluster agrees for
ever. Rows then say `held`, for that is what can be asked for. Streams fall into 256 buckets by
their origin; each side hashes its buckets (keyed BLAKE2b over sorted rows; a sum or an XOR could be
steered) and answers the other's hashes with the rows of the buckets that differ. A busy origin
costs its bucket, an idle cluster one frame of hashes. A hash over bundles, too, would buy nothing:
every bundle is signed, and two under one number are found when the second one comes.

What is asked out of rows goes in pages: about PAGE_BYTES each, two of them under way on a link, so
that it never idles for a round trip and the answers fit the other's budget. What handling them
costs this node spaces them out, over all its links, which take turns. Nothing is asked that
lies further than AHEAD_IDS_MAX above all that was seen; the next comparison tells the rest. (Above
the highest, not above the lowest hole: one message that nobody has any more must not end the
catching up. A liar cannot raise it, for that takes the origin's signature.)

Whom to believe. A row is a hint. `gone` corrects it for as long as the link lives, and is no
offence. Who neither serves nor refuses twice is sent hashes again, on the lane of the grafts and so
behind them; its answer travels on the lane of the bundles, behind all that it would have served. If
it claims the same again, it has lied: a strike, and its row is not believed for DISBELIEVED_S.
Silence alone, slowness and loss prove nothing. "Busy" puts off; who says nothing else for BUSY_S is
struck as well, and none of its rows is believed until it serves something.

Who joins says so with its first hashes: it has no history, and takes what the other has seen as
before its time; so it is told what the other has seen and cannot serve, too.
"""

import hashlib
from collections.abc import Iterator, Mapping
from math import inf
from random import Random
from typing import Protocol

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import NodeId
from plumtree_quic.intervals import Intervals
from plumtree_quic.messages import DIGEST_ROUND_MAX, Digest, DigestHashes, DigestRow, Range
from plumtree_quic.proto.directory import BUCKETS, HASH_BYTES
from plumtree_quic.proto.effects import Effect, Send, Strike
from plumtree_quic.proto.missing import ANNOUNCED_IDS_MAX, Missing, StreamKey

__all__ = ["AHEAD_IDS_MAX", "DIGEST_RANGES_PER_ROW_MAX", "Piece", "Stream", "Sync", "SyncCounters"]

# Both sides must hash alike; the key only keeps these hashes apart from all others.
_HASH_KEY = b"plumtree-quic/1 stream rows"
# How far above the highest id seen anything is asked for or waited for.
AHEAD_IDS_MAX = 65_536
# What fits a frame, and what is believed of one link.
PAGE_OF_ROWS_BYTES = 60_000
FRAME_BYTES = 64
DIGEST_ROWS_MAX = 4_096
DIGEST_RANGES_PER_ROW_MAX = 256
BACKLOG_RANGES_MAX = 16_384
ROWS_REMEMBERED_MAX = 4_096
# One comparison is answered per link in so long, and one is asked for in so long at most.
ANSWER_EVERY_S = 0.5
ASK_EVERY_S = 1.0
# Comparisons that bring nothing become rarer, up to this. A guess.
ASK_EVERY_S_MAX = 8.0
# Rows leave a page at a time: the next on one link after so long, and on all links together so
# many bytes a second. A guess: 64 joiners learn of 10,000 streams within 5 s.
PAGE_EVERY_S = 0.02
ROWS_BYTES_PER_S = 4_000_000.0
ROWS_BYTES_BURST = 2_000_000.0
# What a request should bring. Two are under way, and the other side queues 64 KiB of answers.
PAGE_BYTES = 28_672
PAGE_IDS_FIRST = 64
PAGE_IDS_MAX = 4_096
# What is served costs the node time, which it measures. Pages are asked for so far apart that this
# is one part in 1 + REST_SHARE: processors that many nodes share are not taken up by one that
# catches up, and whoever serves it is not asked for everything at once. The cost per message is
# averaged, and no page puts off the next one by more than the maximum.
REST_SHARE = 4.0
REST_S_MAX = 0.5
# Of whom a claim was proved untrue; whose bundles came and could not be used (a guess).
DISBELIEVED_S = 600.0
UNUSABLE_S = 60.0
# Asking again is cheap, and soon; an accusation waits, for a disk may be slow. A guess.
PAGE_TIMEOUT_S = 5.0
UNANSWERED_MAX = 2
FRUITLESS_MAX = 3
# Rows in doubt at a time, before all others of the peer wait. A guess.
DOUBTS_MAX = 8
# Honest peers are busy for seconds. A guess.
BUSY_S = 60.0
BUSY_ANSWERS_MIN = 8

Piece = tuple[StreamKey, Range, float]
"""What to ask for next: the stream, a range of it, and when the row came that names it."""

_EMPTY = hashlib.blake2b(digest_size=HASH_BYTES, key=_HASH_KEY).digest()


class Stream(Protocol):
    """What a comparison needs to know of one (origin, epoch)."""

    @property
    def seen(self) -> Intervals:
        """What will not be asked for any more."""

    def held_runs(self) -> list[Range]:
        """What can be served, ascending."""


@attrs.define
class SyncCounters:
    """Plain integers since the start: frames, rows and strikes."""

    digests_sent: int = 0
    digests_received: int = 0
    digest_hashes_sent: int = 0
    digest_hashes_received: int = 0
    digest_rows_sent: int = 0
    rows_disbelieved: int = 0


@attrs.define(eq=False)
class _Row:
    """What went wrong with one row of a peer; there is none while nothing has.

    unanswered: time-outs in a row without any answer; fruitless: those after which bundles had
    come and were of no use. doubted: what must not be claimed again in the answer to comparison
    number `fence`, which began at fenced_at; 0 as long as none has begun.
    """

    unanswered: int = 0
    unanswered_at: float = -inf
    came: bool = False
    fruitless: int = 0
    doubted: Range | None = None
    fence: int = 0
    fenced_at: float = -inf
    disbelieved_until: float = -inf
    gone: Intervals = attrs.field(factory=Intervals)

    def settle(self) -> None:
        """The peer does its part: nothing counts against it."""
        self.unanswered = self.fence = 0
        self.doubted = None


@attrs.define(eq=False)
class _Link:
    """What one link has compared, wants and owes.

    round: the number of the comparison that we began last, 1 to 31, then again. wanted: out of
    the peer's rows, by stream: ranges and when the row came. more: there was more than was taken.
    buckets: those whose rows are still to be sent, the first of them from `after` on; past: with
    what we have seen and cannot serve; answers: the peer's number of the comparison that they
    answer. busy: how often it has said so, from busy_since on, and nothing else.
    """

    peer: NodeId
    round: int = 0
    asked_at: float = -inf
    ask_wait_s: float = ASK_EVERY_S
    greeted: bool = False
    wanted: dict[StreamKey, tuple[list[Range], float]] = attrs.field(factory=dict)
    wanted_ranges: int = 0
    more: bool = False
    progress: bool = False
    drawn_at: float = -inf
    page_ids: int = PAGE_IDS_FIRST
    bytes_per_id: float = 0.0
    served_at: float = -inf
    busy: int = 0
    busy_since: float = -inf
    disbelieved_until: float = -inf
    rows: dict[StreamKey, _Row] = attrs.field(factory=dict)
    buckets: list[int] = attrs.field(factory=list)
    after: StreamKey | None = None
    past: bool = False
    owes_last: bool = False
    page_at: float = -inf
    compared_at: float = -inf
    answers: int = 0
    waiting: DigestHashes | None = None

    def serves(self) -> None:
        """The peer answers with more than that it is busy."""
        self.busy = 0
        self.disbelieved_until = -inf


class Sync:
    """The comparisons of one node.

    Args:
        own: our own stream, which is not asked for.
        config: see PlumtreeConfig.
        rng: chooses when, and with whom, to compare.
        streams: all streams by their keys; `open`, `close` and `touch` tell what changes in it.
        missing: what is already asked for.
    """

    def __init__(
        self,
        own: StreamKey,
        config: PlumtreeConfig,
        rng: Random,
        streams: Mapping[StreamKey, Stream],
        missing: Missing,
    ) -> None:
        self._own = own
        self._config = config.sync
        self._timeout_s = config.graft_timeout
        self._rng = rng
        self._streams = streams
        self._missing = missing
        self._links: dict[NodeId, _Link] = {}
        self._buckets: list[dict[StreamKey, None]] = [{} for _ in range(BUCKETS)]
        self._hashes: list[bytes | None] = [_EMPTY] * BUCKETS
        self._joined: bytes | None = None
        # Links to be asked for a comparison, and when; those that rows are owed to, in turn.
        self._asks: dict[NodeId, float] = {}
        self._answering: dict[NodeId, None] = {}
        # Links whose hashes came too soon after those before.
        self._waiting: dict[NodeId, None] = {}
        self._bytes_left = ROWS_BYTES_BURST
        self._bytes_at = 0.0
        self._sync_at = inf
        # No page is asked for until then; and when one is to be, as one was put off; or inf.
        self._rests_until = -inf
        self._draw_at = inf
        # What one message that was served costs, and how many came since that was last known.
        self._cost_s = 0.0
        self._taken_ids = 0
        self.counters = SyncCounters()

    # --- streams --------------------------------------------------------------------------------

    def open(self, key: StreamKey) -> None:
        """There is a stream with this key now."""
        self._buckets[key[0][0]][key] = None

    def close(self, key: StreamKey) -> None:
        """The stream is over."""
        del self._buckets[key[0][0]][key]
        self.touch(key)

    def touch(self, key: StreamKey) -> None:
        """What was seen of this stream has changed."""
        self._hashes[key[0][0]] = self._joined = None

    def hashes(self) -> bytes:
        """256 hashes of 8 bytes over what was seen, by the first byte of the origin's key."""
        if self._joined is None:
            self._joined = b"".join(
                [
                    self._hash_of(bucket) if cached is None else cached
                    for bucket, cached in enumerate(self._hashes)
                ]
            )
        return self._joined

    def _hash_of(self, bucket: int) -> bytes:
        digest = hashlib.blake2b(digest_size=HASH_BYTES, key=_HASH_KEY)
        for key in sorted(self._buckets[bucket]):
            runs = self._streams[key].seen.ranges()
            if runs:
                numbers = (key[1], len(runs), *(number for run in runs for number in run))
                digest.update(key[0])
                digest.update(b"".join([number.to_bytes(8, "big") for number in numbers]))
        self._hashes[bucket] = made = digest.digest()
        return made

    def _differing(self, hashes: bytes) -> list[int]:
        own = self.hashes()
        if own == hashes:
            return []
        return [
            bucket
            for bucket in range(BUCKETS)
            if own[bucket * HASH_BYTES : (bucket + 1) * HASH_BYTES]
            != hashes[bucket * HASH_BYTES : (bucket + 1) * HASH_BYTES]
        ]

    # --- links ----------------------------------------------------------------------------------

    def link_up(self, peer: NodeId, now: float) -> None:
        """A link is up; `greet` is what is sent on it first."""
        self._links[peer] = _Link(peer)
        if self._sync_at == inf:
            self._plan(now)

    def link_down(self, peer: NodeId) -> None:
        """A link is gone, and whatever was owed or wanted on it."""
        del self._links[peer]
        self._asks.pop(peer, None)
        self._answering.pop(peer, None)
        self._waiting.pop(peer, None)

    def greet(self, peer: NodeId, now: float, effects: list[Effect], *, joins: bool) -> None:
        """Begin the first comparison on a link. joins: we have no history."""
        link = self._links[peer]
        if not link.greeted:
            link.greeted = True
            self._send_hashes(link, now, effects, joins=joins)

    def greet_all(self, now: float, effects: list[Effect]) -> None:
        """Begin it on all links that have waited for our floor."""
        for peer in self._links:
            self.greet(peer, now, effects, joins=False)

    def _send_hashes(
        self,
        link: _Link,
        now: float,
        effects: list[Effect],
        *,
        answer: bool = False,
        joins: bool = False,
    ) -> None:
        link.round = link.round % DIGEST_ROUND_MAX + 1
        link.asked_at = now
        for row in link.rows.values():
            if row.doubted is not None:
                if row.fence == 0 or now - row.fenced_at >= ASK_EVERY_S_MAX:
                    row.fence, row.fenced_at = link.round, now
                # For as long as the doubt lasts; an answer may be lost to a newer question.
                self._asks.setdefault(link.peer, now + ASK_EVERY_S_MAX)
        self.counters.digest_hashes_sent += 1
        effects.append(Send(link.peer, DigestHashes(self.hashes(), link.round, answer, joins)))

    # --- comparing: our rows for their hashes ---------------------------------------------------

    def on_hashes(
        self, peer: NodeId, message: DigestHashes, now: float, effects: list[Effect]
    ) -> None:
        """A peer's hashes are answered with the rows of the buckets that differ, and a last page.

        Those that come too soon are answered later, the newest of them alone.
        """
        self.counters.digest_hashes_received += 1
        link = self._links[peer]
        if link.owes_last or now - link.compared_at < ANSWER_EVERY_S:
            link.waiting = message
            self._waiting[peer] = None
        else:
            self._compare(link, message, now, effects)

    def _compare(
        self, link: _Link, message: DigestHashes, now: float, effects: list[Effect]
    ) -> None:
        link.waiting = None
        self._waiting.pop(link.peer, None)
        differing = self._differing(message.hashes)
        if message.answer and differing:
            self._send_hashes(link, now, effects)
        link.compared_at = now
        link.answers = message.round
        link.buckets, link.after, link.past = differing, None, message.joins
        link.owes_last = True
        self._answering[link.peer] = None
        self._send_rows(now, effects)

    def _send_rows(self, now: float, effects: list[Effect]) -> None:
        """A page to each link that is owed rows, in turn, as far as the bytes go."""
        since, self._bytes_at = self._bytes_at, now
        self._bytes_left = min(
            ROWS_BYTES_BURST, self._bytes_left + (now - since) * ROWS_BYTES_PER_S
        )
        for peer in tuple(self._answering):
            if self._bytes_left <= 0:
                return
            link = self._links[peer]
            if now < link.page_at:
                continue
            del self._answering[peer]
            self._bytes_left -= self._send_page(link, effects)
            link.page_at = now + PAGE_EVERY_S
            if link.owes_last:
                self._answering[peer] = None

    def _send_page(self, link: _Link, effects: list[Effect]) -> int:
        held: list[DigestRow] = []
        past: list[DigestRow] = []
        room = PAGE_OF_ROWS_BYTES
        full = False
        while link.buckets and not full:
            for key in self._rest_of(link.buckets[0], link.after):
                rows = self._rows_of(key, past=link.past)
                # A row names its origin in 23 bytes at most, and a range in 16.
                size = sum(26 + 16 * len(row.held) for row in rows if row is not None)
                if size > room or len(held) + len(past) + 2 > DIGEST_ROWS_MAX:
                    full = True
                    break
                room -= size
                link.after = key
                for row, page in zip(rows, (held, past), strict=True):
                    if row is not None:
                        page.append(row)
            else:
                del link.buckets[0]
                link.after = None
        last = not link.buckets
        link.owes_last = not last
        self.counters.digest_rows_sent += len(held) + len(past)
        if past:
            self._send_digest(link, past, effects, last=last and not held, past=True)
        if held or not past:
            self._send_digest(link, held, effects, last=last, past=False)
        return PAGE_OF_ROWS_BYTES - room + FRAME_BYTES

    def _send_digest(
        self,
        link: _Link,
        rows: list[DigestRow],
        effects: list[Effect],
        *,
        last: bool,
        past: bool,
    ) -> None:
        self.counters.digests_sent += 1
        digest = Digest(tuple(rows), last=last, past=past, round=link.answers)
        effects.append(Send(link.peer, digest))

    def _rest_of(self, bucket: int, after: StreamKey | None) -> Iterator[StreamKey]:
        for key in sorted(self._buckets[bucket]):
            if after is None or key > after:
                yield key

    def _rows_of(self, key: StreamKey, *, past: bool) -> tuple[DigestRow | None, DigestRow | None]:
        """What can be served of a stream; and what was seen of it and cannot.

        What lies below the first that is held needs no word: it is before a joiner's time as well.
        """
        stream = self._streams[key]
        held = stream.held_runs()
        shown = held[-DIGEST_RANGES_PER_ROW_MAX:]
        row = DigestRow(key[0], key[1], tuple(shown)) if shown else None
        if not past:
            return row, None
        gone = _without(stream.seen.ranges(), held)
        if shown and gone and gone[0] == (1, shown[0][0] - 1):
            del gone[0]
        gone = gone[-DIGEST_RANGES_PER_ROW_MAX:]
        return row, DigestRow(key[0], key[1], tuple(gone)) if gone else None

    # --- comparing: their rows for our hashes ---------------------------------------------------

    def on_rows(self, peer: NodeId, message: Digest, now: float, effects: list[Effect]) -> None:
        """A page of a peer's rows: what is doubted must not be claimed in the answer to our fence.

        What to want of it, `want` is told when it is known what was before our time.
        """
        self.counters.digests_received += 1
        link = self._links[peer]
        if not message.round:
            return
        if not message.past:
            for row in message.rows:
                self._check_claim(link, row, message.round, now, effects)
        if message.last:
            for trouble in link.rows.values():
                if trouble.fence == message.round:
                    trouble.doubted, trouble.fence = None, 0

    def _check_claim(
        self, link: _Link, row: DigestRow, number: int, now: float, effects: list[Effect]
    ) -> None:
        key = (row.origin, row.epoch)
        trouble = link.rows.get(key)
        if trouble is None or trouble.doubted is None or trouble.fence != number:
            return
        first, last = trouble.doubted
        stream = self._streams.get(key)
        unseen = [(first, last)] if stream is None else stream.seen.missing(first, last)
        if any(run[0] <= b and a <= run[1] for run in unseen for a, b in row.held):
            self._disbelieve(link, key, now, DISBELIEVED_S)
            effects.append(Strike(link.peer, "claims what it neither serves nor withdraws"))

    def _disbelieve(self, link: _Link, key: StreamKey, now: float, for_s: float) -> None:
        """Want nothing more out of this row for so long."""
        trouble = self._trouble(link, key)
        trouble.disbelieved_until = now + for_s
        trouble.settle()
        trouble.fruitless = 0
        self.counters.rows_disbelieved += 1
        self._unwant(link, key)
        self._missing.disbelieve(key, link.peer, now)

    def _trouble(self, link: _Link, key: StreamKey) -> _Row:
        trouble = link.rows.pop(key, None)
        if trouble is None:
            if len(link.rows) >= ROWS_REMEMBERED_MAX:
                del link.rows[next(iter(link.rows))]
            trouble = _Row()
        # The newest last: what is longest without news is forgotten first.
        link.rows[key] = trouble
        return trouble

    # --- what is wanted -------------------------------------------------------------------------

    def want(self, peer: NodeId, row: DigestRow, now: float) -> None:
        """Ask for what `peer` holds and we have not seen, when its turn comes."""
        key = (row.origin, row.epoch)
        link = self._links[peer]
        trouble = link.rows.get(key)
        if key == self._own or now < link.disbelieved_until:
            return
        if trouble is not None and (now < trouble.disbelieved_until or trouble.doubted is not None):
            return
        stream = self._streams.get(key)
        wanted = [
            run for run in row.held if stream is None or not stream.seen.covers(run[0], run[1])
        ]
        if trouble is not None and trouble.gone:
            wanted = [run for run in wanted if not trouble.gone.covers(run[0], run[1])]
        since = self._unwant(link, key)
        room = BACKLOG_RANGES_MAX - link.wanted_ranges
        if room < len(wanted):
            link.more = True
            wanted = wanted[:room]
        if wanted:
            # A newer row says all that the older one said, but how long we have waited.
            link.wanted[key] = (wanted, now if since is None else since)
            link.wanted_ranges += len(wanted)

    def _unwant(self, link: _Link, key: StreamKey) -> float | None:
        ranges, since = link.wanted.pop(key, ([], None))
        link.wanted_ranges -= len(ranges)
        return since

    def wants(self, peer: NodeId) -> bool:
        """Whether `draw` may have something."""
        link = self._links[peer]
        return bool(link.wanted) or link.more

    def with_wants(self) -> list[NodeId]:
        """The links for which `draw` may have something, who waits longest first."""
        links = [link for link in self._links.values() if link.wanted or link.more]
        links.sort(key=lambda link: link.drawn_at)
        return [link.peer for link in links]

    def draw(self, peer: NodeId, now: float) -> list[Piece]:
        """Take the next pages out of what is wanted of `peer`.

        Nothing before it is the next page's turn, while more than one is under way, or more than
        half of max_batch_size ranges: a frame for each range that was answered would be over the
        other side's rate.
        """
        if now < self._rests_until:
            self._draw_at = self._rests_until
            return []
        link = self._links[peer]
        batch = self._config.max_batch_size
        room = batch - self._missing.digest_ranges(peer)
        ids = 2 * link.page_ids - self._missing.digest_ids(peer)
        asked = ids = min(ids, link.page_ids) if self._cost_s else ids
        if room * 2 < batch or ids < link.page_ids:
            return []
        out: list[Piece] = []
        while link.wanted and room > 0 and ids > 0:
            key = next(iter(link.wanted))
            ranges, since = link.wanted[key]
            rest: list[Range] = []
            for run in self._unseen(link, key, ranges):
                if room <= 0 or ids <= 0:
                    rest.append(run)
                    continue
                first, last = run
                end = min(last, first + ids - 1)
                out.append((key, (first, end), since))
                room -= 1
                ids -= end - first + 1
                if end < last:
                    rest.append((end + 1, last))
            link.wanted_ranges += len(rest) - len(ranges)
            if rest:
                link.wanted[key] = (rest, since)
            else:
                del link.wanted[key]
        if out and self._cost_s:
            link.drawn_at = now
            wait_s = (1 + REST_SHARE) * (asked - ids) * self._cost_s
            self._draw_at = self._rests_until = now + min(wait_s, REST_S_MAX)
        if not (out or link.wanted or self._missing.digest_ranges(peer)):
            if link.more and link.progress:
                self.ask(peer, now, 0.0)
            link.more = False
        return out

    def worked(self, spent_s: float) -> None:
        """What was served since the last call took the node `spent_s` to handle."""
        if self._taken_ids:
            per_id = spent_s / self._taken_ids
            self._cost_s += (per_id - self._cost_s) / (8 if self._cost_s else 1)
            self._taken_ids = 0

    def _unseen(self, link: _Link, key: StreamKey, ranges: list[Range]) -> list[Range]:
        """What of `ranges` may be asked for: not seen, not gone, not too far ahead."""
        stream, trouble = self._streams.get(key), link.rows.get(key)
        end = AHEAD_IDS_MAX + (0 if stream is None else stream.seen.highest)
        out: list[Range] = []
        for first, highest in ranges:
            last = min(highest, end)
            link.more = link.more or last < highest
            if first > last:
                break
            unseen = [(first, last)] if stream is None else stream.seen.missing(first, last)
            if trouble is not None and trouble.gone:
                unseen = [part for run in unseen for part in trouble.gone.missing(*run)]
            out += unseen
        return out

    # --- what came of it ------------------------------------------------------------------------

    def came(self, peer: NodeId, key: StreamKey, now: float, *, useless: bool = False) -> None:
        """`peer` has served something of this stream. useless: we cannot take it, or not yet."""
        link = self._links.get(peer)
        if link is None:
            return
        link.served_at = now
        link.serves()
        trouble = self._trouble(link, key) if useless else link.rows.get(key)
        if trouble is not None:
            trouble.settle()
            trouble.came = useless

    def taken(self, peer: NodeId, key: StreamKey, count: int, size: int, now: float) -> None:
        """What it served was news: `count` messages in `size` bytes."""
        self.came(peer, key, now)
        link = self._links[peer]
        link.progress = True
        self._taken_ids += count
        link.ask_wait_s = ASK_EVERY_S
        per_id = size / count
        link.bytes_per_id += (per_id - link.bytes_per_id) / (8 if link.bytes_per_id else 1)
        link.page_ids = max(1, min(PAGE_IDS_MAX, int(PAGE_BYTES / link.bytes_per_id)))
        trouble = link.rows.get(key)
        if trouble is not None:
            trouble.came = False
            trouble.fruitless = 0

    def served_at(self, peer: NodeId) -> float:
        """When `peer` last served anything."""
        return self._links[peer].served_at

    def refused(self, peer: NodeId, key: StreamKey) -> None:
        """`peer` has answered about this stream, and be it late."""
        trouble = self._links[peer].rows.get(key)
        if trouble is not None:
            trouble.unanswered, trouble.doubted, trouble.fence = 0, None, 0

    def gone(self, peer: NodeId, key: StreamKey, run: Range, now: float) -> None:
        """`peer` claimed `run` in a row and holds it no more: its row is corrected."""
        link = self._links[peer]
        link.served_at = now
        link.serves()
        # What costs nothing goes in larger pages and without a rest, until bundles come again.
        self._rests_until = -inf
        link.page_ids = min(PAGE_IDS_MAX, 2 * link.page_ids)
        trouble = self._trouble(link, key)
        trouble.settle()
        if len(trouble.gone) < DIGEST_RANGES_PER_ROW_MAX or not trouble.gone.opens_gap(*run):
            trouble.gone.add(*run)

    def busy(self, peer: NodeId, key: StreamKey, now: float, effects: list[Effect]) -> None:
        """`peer` puts off what it claimed in a row.

        Who serves nothing at all for BUSY_S is not believed in any of its rows, until it does.
        """
        link = self._links[peer]
        if link.busy == 0:
            link.busy_since = now
        link.busy += 1
        if now - link.busy_since >= BUSY_S and link.busy >= BUSY_ANSWERS_MIN:
            link.serves()
            link.disbelieved_until = now + DISBELIEVED_S
            self.counters.rows_disbelieved += len(link.wanted)
            link.wanted.clear()
            link.wanted_ranges = 0
            self._missing.disbelieve(key, peer, now)
            effects.append(Strike(peer, "claims what it is too busy to serve, for ever"))

    def unanswered(self, peer: NodeId, key: StreamKey, run: Range, now: float) -> None:
        """`peer` claimed `run` in a row, was asked for it, and its time is over.

        What ends within one page time-out counts once.
        """
        link = self._links[peer]
        trouble = self._trouble(link, key)
        wait_s = self._timeout_s if trouble.came else max(PAGE_TIMEOUT_S, self._timeout_s)
        if now - trouble.unanswered_at < wait_s:
            return
        trouble.unanswered_at = now
        if trouble.came:
            # It serves; it is we who cannot use it. That is nobody's lie.
            trouble.came = False
            trouble.fruitless += 1
            if trouble.fruitless >= FRUITLESS_MAX:
                self._disbelieve(link, key, now, UNUSABLE_S)
            return
        trouble.unanswered += 1
        if trouble.unanswered >= UNANSWERED_MAX and self._config.enabled:
            trouble.unanswered = 0
            trouble.doubted, trouble.fence = run, 0
            self._unwant(link, key)
            if sum(row.doubted is not None for row in link.rows.values()) >= DOUBTS_MAX:
                # Let it clear up these first; its answer to our hashes names the others again.
                link.wanted.clear()
                link.wanted_ranges = 0
            self._missing.disbelieve(key, peer, now)
            self._asks[peer] = max(now, link.asked_at + ASK_EVERY_S)

    # --- when to compare ------------------------------------------------------------------------

    def ask(self, peer: NodeId, now: float, delay_s: float) -> None:
        """Compare with `peer` soon: after `delay_s`, and once a second at most."""
        if self._config.enabled:
            link = self._links[peer]
            self._asks.setdefault(peer, max(now + delay_s, link.asked_at + link.ask_wait_s))

    def is_asking(self) -> bool:
        """Whether a comparison is about to begin."""
        return bool(self._asks)

    def _plan(self, now: float) -> None:
        if self._config.enabled:
            # Spread, so that nodes that started together do not compare together.
            self._sync_at = now + self._config.sync_interval * self._rng.uniform(0.75, 1.25)

    def next_deadline(self) -> float:
        """When `advance` has work, or inf."""
        deadline = min(self._sync_at, self._draw_at)
        if self._asks:
            deadline = min(deadline, *self._asks.values())
        if self._waiting:
            # While rows are owed, those come first.
            links = [self._links[peer] for peer in self._waiting]
            deadline = min(
                deadline, *(x.compared_at + ANSWER_EVERY_S for x in links if not x.owes_last), inf
            )
        if self._answering:
            soonest = min(self._links[peer].page_at for peer in self._answering)
            if self._bytes_left <= 0:
                # A byte more than none, or rounding could leave it at none.
                refilled = self._bytes_at + (1.0 - self._bytes_left) / ROWS_BYTES_PER_S
                soonest = max(soonest, refilled)
            deadline = min(deadline, soonest)
        return deadline

    def advance(self, now: float, delay_s: float, effects: list[Effect]) -> None:
        """Do what is due at `now`. delay_s: how long to wait for whoever has announced a lot."""
        if self._draw_at <= now:
            # Whoever calls draws.
            self._draw_at = inf
        if self._waiting:
            for peer in tuple(self._waiting):
                link = self._links[peer]
                due = link.compared_at + ANSWER_EVERY_S
                if link.waiting is not None and not link.owes_last and now >= due:
                    self._compare(link, link.waiting, now, effects)
        if self._answering:
            self._send_rows(now, effects)
        if self._asks:
            self._fire_asks(now, delay_s, effects)
        if self._sync_at <= now:
            self._plan(now)
            if self._links:
                link = self._rng.choice(list(self._links.values()))
                self._send_hashes(link, now, effects, answer=True)

    def _fire_asks(self, now: float, delay_s: float, effects: list[Effect]) -> None:
        for peer, due in list(self._asks.items()):
            if due > now:
                continue
            if self._missing.announced_ids(peer) > ANNOUNCED_IDS_MAX // 2:
                self._asks[peer] = now + delay_s
                continue
            del self._asks[peer]
            link = self._links[peer]
            link.ask_wait_s = min(ASK_EVERY_S_MAX, link.ask_wait_s * (1 if link.progress else 2))
            link.progress = False
            self._send_hashes(link, now, effects)


def _without(ranges: list[Range], others: list[Range]) -> list[Range]:
    """What of `ranges` is in none of `others`; both ascend."""
    held = Intervals.of(others)
    return [part for run in ranges for part in held.missing(*run)]
