"""Gaps against a plain dictionary: id -> who announced it."""

from hypothesis import given
from hypothesis import strategies as st

from plumtree_quic.proto.missing import ANNOUNCED_IDS_MAX, DIGEST, WAIT_S_MAX, Missing
from tests.rigs.broadcast import key, node

STREAM = (key("o"), 1)
PEERS = [node(f"p{n}") for n in range(3)]
RANGES = st.tuples(st.integers(1, 50), st.integers(0, 15)).map(lambda p: (p[0], p[0] + p[1]))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ihave", "digest", "fill", "gone", "busy", "down", "due"]),
        RANGES,
        st.sampled_from(PEERS),
    ),
    max_size=40,
)


def announce(missing, run, peer, *, hop=1, due=1.0, now=0.0):
    return missing.announce(STREAM, run, peer, hop=hop, due=due, now=now)


@given(STEPS)
def test_ranges_and_announcers_are_those_that_a_dictionary_of_ids_would_hold(steps):
    missing, model, now = Missing(0.2), {}, 0.0
    for kind, (first, last), peer in steps:
        now += 0.05
        ids = range(first, last + 1)
        if kind in ("ihave", "digest"):
            hop = DIGEST if kind == "digest" else 1
            announce(missing, (first, last), peer, hop=hop, due=now, now=now)
            for n in ids:
                model.setdefault(n, set()).add(peer)
        elif kind == "fill":
            common = missing.fill(STREAM, first, last, now, peer)
            expected = set(PEERS)
            for n in ids:
                expected &= model.pop(n, set())
            assert set(common) == expected
        elif kind == "gone":
            missing.gone(STREAM, first, last, peer, now)
            for n in ids:
                model.get(n, set()).discard(peer)
        elif kind == "busy":
            missing.busy(STREAM, first, last, peer, now)
        elif kind == "down":
            missing.link_down(peer, now)
            for announcers in model.values():
                announcers.discard(peer)
        else:
            for gap in missing.due(now):
                if gap.announcers:
                    missing.ask(gap, next(iter(gap.announcers)), now)
                    missing.schedule(gap, now + missing.wait_s(gap))
                else:
                    missing.drop(gap)
                    for n in range(gap.first, gap.last + 1):
                        assert not model.pop(n)
        check(missing, model)


def check(missing, model):
    gaps = missing.gaps(STREAM)
    assert [(g.first, g.last) for g in gaps] == sorted((g.first, g.last) for g in gaps)
    held = {n: set(g.announcers) for g in gaps for n in range(g.first, g.last + 1)}
    assert held == model
    assert bool(missing) == bool(model)
    for peer in PEERS:
        ids = sum(g.last - g.first + 1 for g in gaps if g.announcers.get(peer, DIGEST) != DIGEST)
        assert missing.announced_ids(peer) == ids
        ranges = sum(1 for g in gaps if g.announcers.get(peer) == DIGEST)
        assert missing.digest_ranges(peer) == ranges
        ids = sum(g.last - g.first + 1 for g in gaps if g.announcers.get(peer) == DIGEST)
        assert missing.digest_ids(peer) == ids
    # Nothing waits for ever.
    assert not gaps or missing.next_deadline() is not None


def test_at_most_1000_ids_of_one_peer_and_the_rest_is_left_out():
    missing = Missing(0.2)
    assert announce(missing, (1, 600), PEERS[0])
    assert not announce(missing, (601, 1200), PEERS[0])
    assert missing.announced_ids(PEERS[0]) == ANNOUNCED_IDS_MAX
    assert announce(missing, (601, 1200), PEERS[1])
    missing.fill(STREAM, 1, 500, 0.0)
    assert announce(missing, (1001, 1200), PEERS[0])


def test_ranges_out_of_digests_are_not_counted_as_announced():
    missing = Missing(0.2)
    assert announce(missing, (1, 100_000), PEERS[0], hop=DIGEST)
    assert missing.announced_ids(PEERS[0]) == 0
    assert missing.digest_ranges(PEERS[0]) == 1
    assert missing.digest_ids(PEERS[0]) == 100_000


def test_a_part_that_was_served_puts_off_when_the_rest_is_asked_for_again():
    missing = Missing(0.2)
    announce(missing, (1, 900), PEERS[0], due=0.0)
    (gap,) = missing.due(0.0)
    missing.ask(gap, PEERS[0], 0.0)
    missing.schedule(gap, 0.2)
    for first in range(1, 300, 3):
        now = first / 100
        missing.fill(STREAM, first, first + 2, now, PEERS[0])
        assert missing.due(now + 0.19) == []
    # Of another it is none of the doing of who was asked.
    missing.fill(STREAM, 301, 303, 3.1, PEERS[1])
    assert missing.next_deadline() == 2.98 + 0.2


def test_what_digests_of_a_peer_claim_of_a_stream_can_be_struck_out():
    missing = Missing(0.2)
    announce(missing, (1, 9), PEERS[0], hop=DIGEST, due=5.0)
    announce(missing, (5, 9), PEERS[1], due=5.0)
    announce(missing, (11, 12), PEERS[0], due=5.0)
    missing.disbelieve(STREAM, PEERS[0], 1.0)
    assert [list(gap.announcers) for gap in missing.gaps(STREAM)] == [[], [PEERS[1]], [PEERS[0]]]
    assert missing.digest_ids(PEERS[0]) == missing.digest_ranges(PEERS[0]) == 0


def test_the_wait_doubles_with_each_try_up_to_a_limit():
    missing = Missing(0.2)
    announce(missing, (1, 1), PEERS[0])
    (gap,) = missing.gaps(STREAM)
    waits = []
    for gap.tries in range(8):
        waits.append(missing.wait_s(gap))
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, WAIT_S_MAX, WAIT_S_MAX, WAIT_S_MAX]


def test_a_later_announcer_may_bring_the_moment_forward_but_never_back():
    missing = Missing(0.2)
    announce(missing, (1, 9), PEERS[0], due=5.0)
    announce(missing, (1, 9), PEERS[1], due=7.0)
    assert missing.next_deadline() == 5.0
    announce(missing, (4, 6), PEERS[2], due=2.0)
    assert [(g.first, g.last) for g in missing.due(2.0)] == [(4, 6)]


def test_refusals_one_by_one_are_due_together():
    missing = Missing(0.2)
    for peer in PEERS[:2]:
        announce(missing, (1, 20), peer, due=0.0)
    (gap,) = missing.due(0.0)
    missing.ask(gap, PEERS[0], 0.0)
    missing.schedule(gap, 0.2)
    for n in range(5, 21):
        missing.busy(STREAM, n, n, PEERS[0], 0.01)
    due = missing.due(missing.next_deadline())
    assert [(g.first, g.last) for g in due] == [(n, n) for n in range(5, 21)]
    assert all(g.asked is None for g in due)
