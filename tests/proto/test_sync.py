"""Anti-entropy, a test for each rule: what is compared, what is asked for, who is believed."""

import re
from collections import Counter
from itertools import pairwise
from random import Random

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumtree_quic.config import PlumtreeConfig, SyncConfig
from plumtree_quic.messages import (
    Digest,
    DigestHashes,
    DigestRow,
    Graft,
    GraftEntry,
    GraftRefused,
    RefusedReason,
    Repair,
)
from plumtree_quic.proto.effects import Deliver, Send, Strike
from plumtree_quic.proto.plumtree import GRAFT_ANSWER_BYTES_MAX
from plumtree_quic.proto.sync import (
    AHEAD_IDS_MAX,
    ASK_EVERY_S_MAX,
    BUSY_S,
    DISBELIEVED_S,
    PAGE_OF_ROWS_BYTES,
    REST_S_MAX,
    REST_SHARE,
    ROWS_BYTES_BURST,
    ROWS_BYTES_PER_S,
    UNUSABLE_S,
)
from tests.rigs.broadcast import Net, bundle, core, key, node

LAN = PlumtreeConfig.lan(sync=SyncConfig(sync_interval=86_400.0))
P = [node(f"p{i}") for i in range(300)]
NOTHING = bytes(2_048)


def up(links=2, *, config=LAN):
    """A core whose greeting is over and found nothing."""
    me = core(config=config)
    for peer in P[:links]:
        me.link_up(peer, 0.0)
    me.receive(P[0], Digest(()), 0.0)
    return me


def sent(effects, kind, to=None):
    return [
        e.message
        for e in effects
        if isinstance(e, Send) and isinstance(e.message, kind) and to in (None, e.peer)
    ]


def asked(effects):
    """All ranges in grafts."""
    return [r for graft in sent(effects, Graft) for entry in graft.entries for r in entry.ranges]


def rows(*held, origin="o", **what):
    return Digest((DigestRow(key(origin), 1, held),), **what)


def publish(me, origins, now=0.0):
    """Something of each of so many origins reaches `me` through P[0]."""
    for number in range(origins):
        me.receive(P[0], Repair(1, bundle(1, origin=f"o{number}")), now)


def run(me, until, *, now=0.0, answer=None):
    """Fire deadlines up to `until`; `answer(message, now)` says what the peer P[1] sends back.

    Returns (when, effect) of all.
    """
    out = []
    while (due := me.next_deadline()) is not None and due <= until:
        now = max(now, due)
        queue = list(me.advance(now))
        while queue:
            effect = queue.pop(0)
            out.append((now, effect))
            if answer is not None and isinstance(effect, Send) and effect.peer == P[1]:
                for reply in answer(effect.message, now):
                    queue += me.receive(P[1], reply, now)
        assert len(out) < 20_000
    return out


# --- what is compared ---------------------------------------------------------------------------


def test_equal_seen_sets_are_equal_whatever_was_evicted_meanwhile():
    one, two = up(), up()
    for me in (one, two):
        publish(me, 40)
    one.advance(10 * LAN.message_cache_ttl)
    assert one.cache_messages() == 0 < two.cache_messages()
    (hashes,) = sent(one.link_up(P[5], 100.0), DigestHashes)
    assert sent(two.receive(P[1], hashes, 100.0), Digest) == [Digest((), round=hashes.round)]


def test_a_busy_origin_costs_one_bucket():
    one, two = up(), up()
    for me in (one, two):
        publish(me, 2_000)
    two.receive(P[0], Repair(1, bundle(2, origin="o7")), 0.0)
    (hashes,) = sent(one.link_up(P[5], 1.0), DigestHashes)
    (digest,) = sent(two.receive(P[1], hashes, 1.0), Digest)
    assert DigestRow(key("o7"), 1, ((1, 2),)) in digest.rows
    assert len({row.origin[0] for row in digest.rows}) == 1
    assert len(digest.rows) < 25


def test_hashes_follow_whatever_changes_what_was_seen():
    """Kept bucket by bucket, they are what they would be if all were made anew."""
    me = core(config=LAN)
    for peer in P[:3]:
        me.link_up(peer, 0.0)
    rng = Random(5)
    for step in range(400):
        origin, seq = f"o{rng.randrange(12)}", rng.randrange(1, 4_000)
        match rng.randrange(6):
            case 0:
                me.receive(P[0], rows((1, seq), origin=origin, last=step > 50), step / 10)
            case 1:
                me.receive(P[0], Repair(1, bundle(seq, origin=origin)), step / 10)
            case 2:
                made = bundle(seq, origin=origin, epoch=rng.randrange(1, 30))
                me.refuse(P[1], Repair(1, made), step / 10)
            case 3:
                me.receive(P[2], rows((1, 9), origin=origin), step / 10)
            case _:
                me.broadcast(bundle(step + 1, origin="me"), step / 10)
        kept = me._sync.hashes()
        for stream in me._streams:
            me._sync.touch(stream)
        assert me._sync.hashes() == kept


def test_who_differs_sends_its_own_hashes_back_when_asked_to():
    me = up()
    publish(me, 1)
    effects = me.receive(P[1], DigestHashes(NOTHING, round=4, answer=True), 1.0)
    (hashes,) = sent(effects, DigestHashes)
    assert not hashes.answer
    assert [d.round for d in sent(effects, Digest)] == [4]
    assert sent(me.receive(P[1], attrs.evolve(hashes, answer=True), 2.0), DigestHashes) == []


def test_hashes_that_come_too_soon_are_answered_later_and_the_newest_of_them_alone():
    me = up()
    publish(me, 3)
    effects = me.receive(P[1], DigestHashes(NOTHING, round=1), 1.0)
    assert [d.round for d in sent(effects, Digest)] == [1]
    for number in range(2, 9):
        assert me.receive(P[1], DigestHashes(NOTHING, round=number), 1.0 + number / 100) == []
    late = [(now, digest.round) for now, e in run(me, 3.0) for digest in sent([e], Digest)]
    assert late == [(1.5, 8)]


def test_a_joiner_compares_with_its_first_link_alone_until_it_knows_what_was_before_its_time():
    me = core(config=LAN)
    (first,) = sent(me.link_up(P[0], 0.0), DigestHashes)
    assert first.joins
    assert sent(me.link_up(P[1], 0.0), DigestHashes) == []
    effects = me.receive(P[0], rows((1, 9), round=first.round), 0.1)
    (second,) = sent(effects, DigestHashes, to=P[1])
    assert not second.joins


def test_a_joiner_is_told_what_was_seen_and_cannot_be_served_and_agrees_from_then_on():
    old = up()
    publish(old, 30)
    old.advance(10 * LAN.message_cache_ttl)
    publish(old, 31, 700.0)
    joiner = core(config=LAN)
    (hashes,) = sent(joiner.link_up(P[0], 700.0), DigestHashes)
    pages = sent(old.receive(P[1], hashes, 700.0), Digest)
    assert [page.past for page in pages] == [True, False]
    assert sum(len(page.rows) for page in pages) == 31
    effects = [e for page in pages for e in joiner.receive(P[0], page, 700.0)]
    assert asked(effects) == []
    assert joiner._sync.hashes() == old._sync.hashes()


def test_what_a_joiner_was_told_is_not_asked_for_by_others_and_not_told_to_others():
    old = up()
    publish(old, 30)
    old.advance(10 * LAN.message_cache_ttl)
    assert sent(old.receive(P[1], DigestHashes(NOTHING), 700.0), Digest) == [Digest(())]
    me = up()
    assert me.receive(P[1], rows((1, 90), past=True), 1.0) == []


# --- bounded work -------------------------------------------------------------------------------


def test_rows_leave_page_by_page_and_not_more_than_so_many_bytes_a_second_on_all_links_together():
    """Two hundred peers that reconnect at once, and know nothing of 4,000 streams."""
    me = up(200)
    publish(me, 4_000)
    frames = {peer: [] for peer in P[:200]}
    spent = []

    def note(now, effects):
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Digest):
                frames[effect.peer].append(effect.message)
                spent.append((now, 64 + 42 * len(effect.message.rows)))

    for peer in P[:200]:
        note(1.0, me.receive(peer, DigestHashes(NOTHING, round=1), 1.0))
        # They press: it helps them nothing.
        note(1.0, me.receive(peer, DigestHashes(NOTHING, round=2), 1.0))
    assert sum(size for _, size in spent) <= ROWS_BYTES_BURST + PAGE_OF_ROWS_BYTES
    while not all(any(d.last for d in got) for got in frames.values()):
        now = me.next_deadline()
        assert now < 60.0
        note(now, me.advance(now))
    for second in range(1, int(now)):
        in_it = [size for at, size in spent if second <= at < second + 1]
        limit = ROWS_BYTES_PER_S * 1.02 + PAGE_OF_ROWS_BYTES
        assert sum(in_it) <= limit + (ROWS_BYTES_BURST if second == 1 else 0)
        assert len(in_it) <= 300
    for got in frames.values():
        first = got[: [d.last for d in got].index(True) + 1]
        assert sum(len(d.rows) for d in first) == 4_000


def test_one_peer_is_asked_for_two_pages_at_a_time_of_about_28_kib():
    me = up()
    effects = me.receive(P[1], rows((1, 50_000)), 1.0)
    asked_ids = sum(last - first + 1 for first, last in asked(effects))
    assert asked_ids == 128
    under_way, got = asked_ids, 0
    while got < 3_000:
        effects = me.receive(P[1], Repair(1, bundle(got + 1, payload=bytes(1_000))), 1.0)
        got += 1
        under_way += sum(last - first + 1 for first, last in asked(effects)) - 1
        if got > 128:
            assert 20 <= under_way <= 60


def test_nothing_is_asked_for_far_above_what_was_seen():
    me = up()
    ids, frames, now = 0, 0, 1.0
    queue = list(me.receive(P[1], rows((1, 1 << 60)), now))
    while queue:
        effect = queue.pop(0)
        if not (isinstance(effect, Send) and isinstance(effect.message, Graft)):
            continue
        frames += 1
        for entry in effect.message.entries:
            ids += sum(last - first + 1 for first, last in entry.ranges)
            gone = GraftRefused(entry.origin, entry.epoch, entry.ranges, RefusedReason.GONE)
            queue += me.receive(P[1], gone, now)
    assert ids == AHEAD_IDS_MAX
    # And never again, however often it is claimed.
    for again in range(10):
        assert asked(me.receive(P[1], rows((1, 1 << 60)), 2.0 + again)) == []


# --- catching up --------------------------------------------------------------------------------


@pytest.mark.parametrize(("latency_s", "seconds"), [(0.0005, 5.0), (0.02, 30.0)])
def test_a_hundred_thousand_messages_come_from_one_peer_at_the_speed_of_the_link(
    latency_s, seconds
):
    net = Net(attrs.evolve(LAN, message_cache_max_size=200_000), latency_s=latency_s)
    for name in ("a", "b"):
        net.add(name)
    net.link("a", "b")
    net.run(1.0)
    net.cut("a", "b")
    for _ in range(1_000):
        net.publish("a", count=100)
    began = net.now
    net.link("a", "b")
    repairs = 0

    def count(sender, _receiver, message):
        nonlocal repairs
        repairs += isinstance(message, Repair)

    net.sent_hook = count
    while len(net.delivered["b"]) < 1_000 and net.now < began + 60.0:
        net.run(0.1)
    assert len(net.delivered["b"]) == 1_000
    assert net.now - began < seconds
    # Pages that cut bundles in two cost no second copy.
    assert repairs == 1_000
    assert not [e for _, e in net.facts if isinstance(e, Strike)]


def test_asking_page_by_page_is_not_over_the_rate_of_grafts():
    me = up(config=attrs.evolve(LAN, graft_rate_limit_per_second=1.0, graft_rate_limit_burst=3))
    for first in range(1, 1_001):
        me.broadcast(bundle(first, origin="me", payload=bytes(1_000)), 0.0)
    served = 0
    for page in range(40):
        entry = rows((1 + 25 * page, 25 + 25 * page), origin="me").rows[0]
        graft = Graft((attrs.evolve(_entry("me"), ranges=entry.held),))
        served += len(sent(me.receive(P[1], graft, 1.0), Repair))
    assert served == 1_000
    # Bytes count all the same.
    asked_all = Graft((attrs.evolve(_entry("me"), ranges=((1, 1_000),)),))
    answers = [sent(me.receive(P[1], asked_all, 1.0), Repair) for _ in range(6)]
    size = sum(len(r.bundle.raw) for each in answers for r in each)
    assert size <= 3 * GRAFT_ANSWER_BYTES_MAX + (64 << 10)


def _entry(origin):
    return GraftEntry(key(origin), 1, (), False)


RUNS = st.lists(st.tuples(st.integers(1, 3_000), st.integers(1, 300)), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from("opqr"), RUNS), st.dictionaries(st.sampled_from("opqr"), RUNS)
)
def test_two_nodes_come_to_the_union_of_what_they_hold_in_few_frames(one, two):
    config = PlumtreeConfig.lan(sync=SyncConfig(sync_interval=2.0), message_cache_max_size=100_000)
    net = Net(config, latency_s=0.001, codec=True)
    union = {}
    for name, has in (("a", one), ("b", two)):
        net.add(name)
        net.cores[name].link_up(node("zz"), 0.0)
        net.cores[name].receive(node("zz"), Digest(()), 0.0)
        for origin, runs in has.items():
            for first, count in runs:
                for seq in range(first, first + count):
                    made = bundle(seq, origin=origin)
                    net.cores[name].receive(node("zz"), Repair(1, made), 0.0)
                    union.setdefault(origin, set()).add(seq)
        net.cores[name].link_down(node("zz"), 0.0)
    frames = []
    net.sent_hook = lambda _a, _b, message: frames.append(message)
    net.link("a", "b")
    net.run(20.0)
    for name in ("a", "b"):
        for origin, seqs in union.items():
            seen = net.cores[name]._streams[key(origin), 1].seen
            assert all(seen.covers(seq, seq) for seq in seqs)
            assert sum(last - first + 1 for first, last in seen.ranges()) == len(seqs)
    assert net.cores["a"]._sync.hashes() == net.cores["b"]._sync.hashes()
    repairs = [each for each in frames if isinstance(each, Repair)]
    assert len(repairs) <= 2 * sum(map(len, union.values()))
    assert sum(isinstance(each, Digest) for each in frames) <= 40
    assert not [e for _, e in net.facts if isinstance(e, Strike)]
    # From then on: hashes, and the word that nothing differs.
    frames.clear()
    net.run(20.0)
    assert {type(each) for each in frames} <= {Digest, DigestHashes}
    assert not any(each.rows for each in frames if isinstance(each, Digest))


# --- who is believed ----------------------------------------------------------------------------


def claims(*held):
    """A peer that claims these in every answer, and neither serves nor refuses."""

    def answer(message, _now):
        return [rows(*held, round=message.round)] if isinstance(message, DigestHashes) else []

    return answer


def catch_up(me, peers, cost_s, until, messages=60_000):
    """Whoever of `peers` is asked serves at once; what it serves costs `cost_s` a message.

    Returns (when, peer, messages) of all that was served.
    """
    out, now = [], 0.0
    effects = [e for peer in peers for e in me.receive(peer, rows((1, messages)), 0.0)]
    while now <= until:
        for peer in peers:
            runs = [r for g in sent(effects, Graft, peer) for e in g.entries for r in e.ranges]
            effects = [e for e in effects if e.peer != peer]
            for first, last in runs:
                for seq in range(first, last + 1):
                    effects += me.receive(peer, Repair(1, bundle(seq)), now)
                count = last - first + 1
                me.repaired(cost_s * count)
                out.append((now, peer, count))
        if not effects:
            now = max(now, me.next_deadline())
            effects = [e for e in me.advance(now) if isinstance(e, Send)]
        effects = [e for e in effects if isinstance(e, Send) and isinstance(e.message, Graft)]
    return out


def test_pages_are_so_far_apart_that_handling_them_is_a_small_part_of_a_nodes_time():
    served = catch_up(up(), [P[1]], 0.0001, 7.0)
    spent_s = 0.0001 * sum(count for when, _, count in served if when >= 1.0)
    assert spent_s / 6.0 == pytest.approx(1 / (1 + REST_SHARE), rel=0.1)


def test_links_take_turns_in_serving_a_page_at_a_time():
    served = catch_up(up(4), P[1:4], 0.0001, 5.0)
    whens = [when for when, *_ in served if when >= 1.0]
    assert len(whens) == len(set(whens)) > 10
    by_peer = Counter()
    for when, peer, count in served:
        by_peer[peer] += count if when >= 1.0 else 0
    assert min(by_peer.values()) > 0.8 * max(by_peer.values())


def test_a_page_that_cost_much_puts_off_the_next_one_by_half_a_second_at_most():
    served = catch_up(up(), [P[1]], 0.1, 5.0)
    whens = sorted({when for when, *_ in served})
    assert len(whens) > 8
    assert max(b - a for a, b in pairwise(whens)) <= REST_S_MAX + 1e-6


def test_what_costs_nothing_is_not_spaced_out():
    assert sum(count for *_, count in catch_up(up(), [P[1]], 0.0, 0.0, 5_000)) == 5_000


def test_what_is_gone_cost_nothing_and_is_followed_by_the_next_page_at_once():
    def serve(runs):
        numbers = [seq for first, last in runs for seq in range(first, last + 1)]
        out = [r for seq in numbers for r in asked(me.receive(P[1], Repair(1, bundle(seq)), 0.0))]
        me.repaired(0.1 * len(numbers))
        return out

    me = up()
    pages = asked(me.receive(P[1], rows((1, 60_000)), 0.0))
    pages = serve(serve(pages))
    # Its cost is known now: there is one page, and the next one has to wait.
    assert len(pages) == 1
    assert serve(pages) == []
    [page] = [r for _, e in run(me, REST_S_MAX) for r in asked([e])][:1]
    gone = GraftRefused(key("o"), 1, (page,), RefusedReason.GONE)
    assert asked(me.receive(P[1], gone, REST_S_MAX))


def strikes(out):
    return [(now, e) for now, e in out if isinstance(e, Strike)]


def test_who_claims_and_neither_serves_nor_withdraws_is_struck_and_not_believed_for_10_minutes():
    me = up()
    me.receive(P[1], rows((1, 50)), 0.0)
    out = run(me, 120.0, answer=claims((1, 50)))
    ((when, strike),) = strikes(out)
    assert strike.peer == P[1]
    assert re.search("neither serves nor withdraws", strike.reason)
    assert when < 10.0
    # Not asked any more, until then.
    assert [e for now, e in out if now > when and asked([e])] == []
    assert asked(me.receive(P[1], rows((1, 50)), when + DISBELIEVED_S - 1)) == []
    assert asked(me.receive(P[1], rows((1, 50)), when + DISBELIEVED_S + 1)) != []


def test_other_rows_of_a_liar_and_the_same_row_of_others_are_believed():
    me = up(3)
    me.receive(P[1], rows((1, 50)), 0.0)
    out = run(me, 60.0, answer=claims((1, 50)))
    when = strikes(out)[0][0]
    assert asked(me.receive(P[1], rows((1, 5), origin="p"), when + 30)) == [(1, 5)]
    assert asked(me.receive(P[2], rows((1, 50)), when + 30)) == [(1, 50)]


def test_silence_alone_is_no_offence():
    """It claimed once, and never answers anything again."""
    me = up()
    me.receive(P[1], rows((1, 50)), 0.0)
    out = run(me, 600.0)
    assert strikes(out) == []
    # And costs a comparison now and then.
    assert len(sent([e for _, e in out], Graft)) <= 10
    assert len(sent([e for _, e in out], DigestHashes, to=P[1])) <= 600 / ASK_EVERY_S_MAX + 5


def test_who_is_slow_is_not_struck_and_its_answers_count():
    """It serves everything five seconds late, and claims it meanwhile."""
    me = up()
    me.receive(P[1], rows((1, 5)), 0.0)
    late, out = [], []
    for tick in range(1, 4_000):
        now = tick / 20
        due = [r for at, r in late if at <= now]
        late = [(at, r) for at, r in late if at > now]
        effects = [e for reply in due for e in me.receive(P[1], reply, now)]
        effects += me.advance(now)
        out += effects
        for message in sent(effects, (Graft, DigestHashes), to=P[1]):
            if isinstance(message, DigestHashes):
                late.append((now + 5.0, rows((1, 5), round=message.round)))
            else:
                late += [
                    (now + 5.0, Repair(1, bundle(seq)))
                    for e in message.entries
                    for a, b in e.ranges
                    for seq in range(a, b + 1)
                ]
    assert [e for e in out if isinstance(e, Strike)] == []
    assert {e.bundle.first for e in out if isinstance(e, Deliver)} == {1, 2, 3, 4, 5}


def test_gone_corrects_the_row_and_is_no_offence():
    me = up()

    def answer(message, _now):
        if isinstance(message, DigestHashes):
            return [rows((1, 50), round=message.round)]
        if isinstance(message, Graft):
            return [
                GraftRefused(e.origin, e.epoch, e.ranges, RefusedReason.GONE)
                for e in message.entries
            ]
        return []

    effects = me.receive(P[1], rows((1, 50)), 0.0)
    for graft in sent(effects, Graft):
        for reply in answer(graft, 0.0):
            me.receive(P[1], reply, 0.1)
    out = run(me, 300.0, answer=answer)
    assert strikes(out) == []
    assert asked([e for _, e in out]) == []
    # A new link, a new word.
    me.link_down(P[1], 301.0)
    me.link_up(P[1], 302.0)
    assert asked(me.receive(P[1], rows((1, 50)), 302.0)) == [(1, 50)]


def test_who_is_busy_for_ever_is_struck_and_the_traffic_is_bounded():
    me = up()

    def answer(message, _now):
        if isinstance(message, DigestHashes):
            return [rows((1, 50), round=message.round)]
        if isinstance(message, Graft):
            return [
                GraftRefused(e.origin, e.epoch, e.ranges, RefusedReason.BUSY)
                for e in message.entries
            ]
        return []

    effects = me.receive(P[1], rows((1, 50)), 0.0)
    for graft in sent(effects, Graft):
        for reply in answer(graft, 0.0):
            me.receive(P[1], reply, 0.0)
    out = run(me, 400.0, answer=answer)
    ((when, strike),) = strikes(out)
    assert BUSY_S <= when <= BUSY_S + 30.0
    assert "busy" in strike.reason
    assert len(sent([e for _, e in out], Graft)) <= 60
    assert [e for now, e in out if now > when and asked([e])] == []


def test_who_is_busy_for_half_a_minute_is_not():
    me = up()

    def answer(message, now):
        if isinstance(message, DigestHashes):
            return [rows((1, 5), round=message.round)]
        if not isinstance(message, Graft):
            return []
        if now < 30.0:
            return [
                GraftRefused(e.origin, e.epoch, e.ranges, RefusedReason.BUSY)
                for e in message.entries
            ]
        return [
            Repair(1, bundle(seq))
            for e in message.entries
            for a, b in e.ranges
            for seq in range(a, b + 1)
        ]

    for graft in sent(me.receive(P[1], rows((1, 5)), 0.0), Graft):
        for reply in answer(graft, 0.0):
            me.receive(P[1], reply, 0.0)
    out = run(me, 200.0, answer=answer)
    assert strikes(out) == []
    assert len([e for _, e in out if isinstance(e, Deliver)]) == 5


def test_bundles_that_come_and_cannot_be_used_are_nobodys_lie_and_not_fetched_for_ever():
    """Their origin is not known here, or its certificate has expired."""
    me = up(config=attrs.evolve(LAN, sync=SyncConfig(sync_interval=5.0)))

    def answer(message, now):
        if isinstance(message, DigestHashes):
            return [rows((1, 1), round=message.round)]
        if isinstance(message, Graft):
            me.came(P[1], bundle(1), now)
        return []

    me.receive(P[1], rows((1, 1)), 0.0)
    me.came(P[1], bundle(1), 0.0)
    out = run(me, 600.0, answer=answer)
    assert strikes(out) == []
    asks = len(sent([e for _, e in out], Graft))
    assert 5 <= asks <= 8 * 600 / UNUSABLE_S


def test_a_liar_that_hides_what_it_has_hides_it_from_nobody_who_has_another_link():
    net = Net(PlumtreeConfig.lan(sync=SyncConfig(sync_interval=2.0)), latency_s=0.001)
    for name in ("origin", "liar", "honest", "me"):
        net.add(name)
    for a, b in (("origin", "liar"), ("origin", "honest")):
        net.link(a, b)
    net.run(1.0)
    net.link("me", "liar")
    net.run(1.0)
    honest = net.cores["liar"].receive

    def receive(peer, message, now):
        effects = honest(peer, message, now)
        if peer != node("me"):
            return [e for e in effects if getattr(e, "peer", None) != node("me")]
        return [
            attrs.evolve(e, message=Digest((), round=e.message.round))
            if isinstance(e, Send) and isinstance(e.message, Digest)
            else e
            for e in effects
        ]

    net.cores["liar"].receive = receive
    for _ in range(20):
        net.publish("origin")
    net.run(1.0)
    net.link("me", "honest")
    net.run(10.0)
    assert len(net.delivered["me"]) == 20
