"""Intervals against a plain set of integers."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from plumtree_quic.intervals import Intervals

RANGES = st.tuples(st.integers(1, 60), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1]))
STEPS = st.lists(st.tuples(st.booleans(), RANGES), max_size=40)


def build(steps):
    runs, model = Intervals(), set()
    for add, (first, last) in steps:
        numbers = set(range(first, last + 1))
        if add:
            runs.add(first, last)
            model |= numbers
        else:
            runs.remove(first, last)
            model -= numbers
    return runs, model


@given(STEPS)
def test_intervals_hold_what_a_set_would_hold(steps):
    runs, model = build(steps)
    assert {n for first, last in runs.ranges() for n in range(first, last + 1)} == model
    assert runs.highest == max(model, default=0)


@given(STEPS)
def test_runs_are_sorted_disjoint_and_never_adjacent(steps):
    ranges = build(steps)[0].ranges()
    assert all(first <= last for first, last in ranges)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges))


@given(STEPS, RANGES)
def test_questions_about_a_range_agree_with_a_set(steps, asked):
    runs, model = build(steps)
    first, last = asked
    numbers = set(range(first, last + 1))
    assert runs.covers(first, last) == (numbers <= model)
    assert runs.overlaps(first, last) == bool(numbers & model)
    missing = runs.missing(first, last)
    assert {n for a, b in missing for n in range(a, b + 1)} == numbers - model
    assert missing == sorted(missing)
    within = runs.within(first, last)
    assert {n for a, b in within for n in range(a, b + 1)} == numbers & model
    assert within == sorted(within)


@given(st.lists(RANGES))
def test_a_set_made_of_ranges_holds_them_all(ranges):
    runs = Intervals.of(ranges)
    numbers = {n for first, last in ranges for n in range(first, last + 1)}
    assert {n for first, last in runs.ranges() for n in range(first, last + 1)} == numbers
    assert Intervals.of(runs.ranges()).ranges() == runs.ranges()


@given(STEPS, RANGES)
def test_gaps_count_the_holes_below_the_highest_number(steps, new):
    runs, model = build(steps)
    holes = [n for n in range(1, runs.highest + 1) if n not in model]
    starts = [n for n in holes if n - 1 not in holes]
    assert runs.gaps == len(starts)
    lowest = runs.lowest_gap()
    assert (lowest[0] if lowest else None) == (starts[0] if starts else None)
    if not runs.overlaps(*new):
        before = runs.gaps
        opens = runs.opens_gap(*new)
        runs.add(*new)
        assert opens == (runs.gaps > before)


def test_a_stream_in_order_stays_one_run():
    runs = Intervals()
    for n in range(1, 1000):
        runs.add(n, n)
    assert runs.ranges() == [(1, 999)]
    assert len(runs) == 1
