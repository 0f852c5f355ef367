"""Large messages put together out of their pieces: order, bounds, lies, and when to give up."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumtree_quic import wire
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import chunk_span
from plumtree_quic.proto.chunks import ENTRY_BYTES, GIVEN_UP_MAX, Chunks, Reason

A, B, C, D = (member_key(NodeId(f"spiffe://test/node/{name}")) for name in "abcd")
ONE, TWO = NodeId("spiffe://test/node/one"), NodeId("spiffe://test/node/two")
UNIT = 10_000


def pieces(count, total, *, first=1, origin=A, topic="t"):
    """The bundles of one message whose payload is that of `payload(total)`."""
    whole = payload(total)
    made = []
    for index in range(count):
        start, end = chunk_span(index, count, total)
        made.append(
            wire.build_bundle(
                origin=origin,
                epoch=7,
                first=first + index,
                messages=[(topic, whole[start:end])],
                chunk=(index, count, total),
            )
        )
    return made


def payload(total):
    return random.Random(total).randbytes(total)


def small(seq, origin=A):
    return wire.build_bundle(origin=origin, epoch=7, first=seq, messages=[("t", b"small")])


def put_all(chunks, bundles, now=0.0, link=None):
    return [chunks.put(each, each, now, link) for each in bundles]


def joined(whole):
    return b"".join(wire.open_piece(each) for each in whole.pieces)


def reasons(chunks):
    return [each.reason for each in chunks.take_dropped()]


@pytest.fixture
def chunks():
    return Chunks(UNIT, hold_s=10.0)


@given(
    messages=st.lists(
        st.tuples(st.sampled_from((A, B, C)), st.integers(2, 9), st.integers(100, 2_000)),
        min_size=1,
        max_size=4,
    ),
    shuffle=st.randoms(use_true_random=False),
)
def test_whatever_order_pieces_come_in_each_message_comes_out_once_and_whole(messages, shuffle):
    chunks = Chunks(1 << 20, hold_s=10.0)
    at, bundles = {A: 1, B: 1, C: 1}, []
    for origin, count, total in messages:
        bundles += pieces(count, total, first=at[origin], origin=origin)
        at[origin] += count
    shuffle.shuffle(bundles)
    whole = [each for each in put_all(chunks, bundles) if each is not None]
    assert len(whole) == len(messages)
    assert (len(chunks), chunks.bytes) == (0, 0)
    for each in whole:
        first = each.pieces[0]
        assert (each.first, each.last) == first.run
        assert joined(each) == payload(first.chunk_bytes)
    assert not chunks.take_dropped()


def test_nothing_is_held_of_a_message_that_is_out(chunks):
    *others, last = pieces(5, 3_000)
    assert put_all(chunks, others, link=ONE) == [None] * 4
    assert len(chunks) == 1
    assert chunks.bytes == sum(len(each.raw) + ENTRY_BYTES for each in others)
    assert chunks.put(last, last, 0.0, TWO).last == 5
    assert (len(chunks), chunks.bytes) == (0, 0)
    assert not chunks._by_origin
    assert not chunks._by_link
    assert not chunks._of_stream
    assert chunks.counters.chunks_joined == 1


def test_a_piece_that_comes_twice_counts_once(chunks):
    bundles = pieces(3, 300)
    put_all(chunks, [bundles[0]] * 5)
    assert chunks.bytes == len(bundles[0].raw) + ENTRY_BYTES
    assert put_all(chunks, bundles[1:])[-1] is not None


def test_what_one_origin_leaves_incomplete_is_bounded_and_what_began_first_goes(chunks):
    for number in range(9):
        *others, _ = pieces(5, 6_000, first=1 + 5 * number)
        put_all(chunks, others)
        assert chunks.bytes <= 2 * UNIT
    dropped = chunks.take_dropped()
    assert [each.first for each in dropped] == [1 + 5 * n for n in range(len(dropped))]
    assert {each.reason for each in dropped} == {Reason.MEMORY}
    assert chunks.counters.chunks_dropped_memory == len(dropped) >= 6
    assert put_all(chunks, pieces(5, 6_000, first=41)[-1:])[0] is not None


def test_one_origin_costs_no_other_one_its_message(chunks):
    *mine, my_last = pieces(5, 6_000, origin=B)
    put_all(chunks, mine, link=ONE)
    for number in range(9):
        put_all(chunks, pieces(5, 6_000, first=1 + 5 * number)[:-1], link=TWO)
    assert chunks.put(my_last, my_last, 0.0, ONE) is not None


def test_what_one_link_leaves_incomplete_is_bounded_whoever_the_origins_are(chunks):
    # Together below what the node takes; above what one link may bring of it.
    made = [pieces(9, 9_000, origin=origin)[:4] for origin in (A, B, C, D)]
    size = sum(len(each.raw) + ENTRY_BYTES for each in made[0])
    assert 3 * UNIT < 5 * size < 4 * UNIT
    kept = pieces(9, 9_000, first=100, origin=A)[:4]
    put_all(chunks, kept, link=TWO)
    for bundles in made:
        put_all(chunks, bundles, link=ONE)
    assert not reasons(chunks)
    put_all(chunks, pieces(9, 9_000, first=100, origin=B)[:4], link=ONE)
    assert chunks._by_link[ONE] <= 3 * UNIT
    # What began first of what that link brought has gone, and nothing that another one did.
    (dropped,) = chunks.take_dropped()
    assert (dropped.origin, dropped.first, dropped.reason) == (A, 1, Reason.MEMORY)
    assert chunks._by_link[TWO] == size


def test_above_the_bound_of_the_node_whoever_holds_most_pays_and_not_who_came_last(chunks):
    put_all(chunks, pieces(5, 9_000, origin=A)[:4])
    put_all(chunks, pieces(5, 8_000, first=10, origin=A)[:4])
    put_all(chunks, pieces(5, 9_000, origin=B)[:4])
    put_all(chunks, pieces(5, 9_000, origin=C)[:4])
    assert not reasons(chunks)
    put_all(chunks, pieces(5, 9_000, origin=D)[:4])
    (dropped,) = chunks.take_dropped()
    assert (dropped.origin, dropped.first) == (A, 1)


def test_what_all_leave_incomplete_is_bounded_and_who_has_most_pays(chunks):
    rng = random.Random(3)
    for number in range(200):
        origin = bytes([rng.randrange(40)]) * 16
        put_all(chunks, pieces(3, 9_000, first=1 + 3 * number, origin=origin)[:2])
        assert chunks.bytes <= 4 * UNIT
        assert len(chunks) <= 4 * UNIT // 6_000
    assert set(reasons(chunks)) == {Reason.MEMORY}


def test_pieces_of_what_was_given_up_open_it_no_more(chunks):
    for number in range(4):
        put_all(chunks, pieces(5, 9_000, first=1 + 5 * number)[:-1])
    assert chunks.take_dropped()[0].first == 1
    before = chunks.bytes
    assert put_all(chunks, pieces(5, 9_000)) == [None] * 5
    assert chunks.bytes == before


def test_what_is_remembered_of_what_was_given_up_is_bounded():
    chunks = Chunks(0, hold_s=10.0)
    for number in range(GIVEN_UP_MAX + 50):
        put_all(chunks, pieces(2, 4, first=1 + 2 * number)[:1])
    assert len(chunks._given_up) == GIVEN_UP_MAX
    assert (len(chunks), chunks.bytes) == (0, 0)


@pytest.mark.parametrize(
    "lie",
    [
        pieces(4, 3_000)[1],
        pieces(3, 2_999)[1],
        pieces(3, 3_000, topic="u")[1],
        pieces(3, 3_000, first=2)[1],
        pieces(9, 3_000, first=3)[8],
    ],
    ids=["count", "bytes", "topic", "overlap", "overlap behind"],
)
def test_pieces_that_contradict_one_another_are_no_message(chunks, lie):
    honest = pieces(3, 3_000)
    put_all(chunks, honest[:1])
    assert chunks.put(lie, lie, 0.0) is None
    (dropped,) = chunks.take_dropped()
    assert (dropped.first, dropped.last, dropped.reason) == (1, 3, Reason.LIE)
    assert dropped.pieces == (honest[0],)
    assert put_all(chunks, honest[1:]) == [None, None]
    assert (len(chunks), chunks.bytes) == (0, 0)
    assert chunks.counters.chunks_dropped_lie == 1


def test_a_whole_message_within_a_run_makes_it_a_lie_and_beside_it_none(chunks):
    put_all(chunks, pieces(3, 3_000, first=5)[:1])
    for seq in (4, 8):
        chunks.note(small(seq))
    chunks.note(small(6, origin=B))
    assert not chunks.take_dropped()
    chunks.note(small(6))
    assert reasons(chunks) == [Reason.LIE]


def test_what_nothing_comes_of_is_given_up_after_a_while(chunks):
    bundles = pieces(3, 3_000)
    chunks.put(bundles[0], bundles[0], 0.0)
    chunks.expire(9.0)
    chunks.put(bundles[1], bundles[1], 9.0)
    chunks.expire(18.9)
    assert not chunks.take_dropped()
    chunks.expire(19.0)
    assert reasons(chunks) == [Reason.TIME]
    assert chunks.bytes == 0


def test_what_lacks_pieces_that_will_not_come_is_given_up(chunks):
    put_all(chunks, pieces(3, 3_000, first=5)[1:])
    chunks.settle(lambda origin, epoch, seq: 6)
    assert not chunks.take_dropped()
    chunks.settle(lambda origin, epoch, seq: 7)
    assert reasons(chunks) == [Reason.PAST]


def test_where_incomplete_messages_are_is_known(chunks):
    put_all(chunks, pieces(3, 3_000, first=5)[:2])
    assert chunks.has(A, 7)
    assert not chunks.has(A, 8)
    assert not chunks.has(B, 7)
    # Seen up to 6: complete up to 4.
    assert chunks.clip(A, 7, 1, 6) == 4
    assert chunks.clip(A, 7, 5, 6) == 4
    assert chunks.clip(A, 7, 6, 6) == 5
    assert chunks.clip(A, 7, 1, 3) == 3
    assert chunks.clip(A, 7, 8, 9) == 9
    assert chunks.clip(B, 7, 1, 6) == 6
    assert [chunks.begin(A, 7, seq) for seq in (1, 5, 6, 7, 8, 9)] == [1, 5, 5, 5, 5, 9]
    assert [each.first for each in chunks.pieces()] == [5, 6]


def test_a_message_is_cut_into_pieces_of_equal_length_none_of_them_empty():
    for total in range(1, 60):
        for count in range(1, 30):
            spans = [chunk_span(index, count, total) for index in range(count)]
            if None in spans:
                assert spans == [None] * count
                continue
            assert spans[0][0] == 0
            assert spans[-1][1] == total
            assert all(start < end for start, end in spans)
            assert all(a[1] == b[0] for a, b in pairwise(spans))
