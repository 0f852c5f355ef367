"""Lifeguard's local health: what raises it, what lowers it, and how far it goes."""

import pytest

from plumtree_quic.proto.health import SCORE_MAX, LocalHealth


def health():
    return LocalHealth(probe_interval_s=1.0, probe_timeout_s=0.5)


def test_who_is_well_waits_as_configured():
    assert health().score == 0
    assert health().stretch == 1


@pytest.mark.parametrize(
    ("seconds", "score"), [(0.2, 0), (0.25, 1), (0.6, 2), (1.0, 4), (2.0, 8), (3600.0, 8)]
)
def test_each_half_probe_timeout_of_a_stall_is_a_point(seconds, score):
    mine = health()
    assert mine.stalled(seconds, 10.0) is (score > 0)
    assert mine.score == score


def test_the_score_ends_at_eight_and_waits_at_nine_times_as_long():
    mine = health()
    for second in range(100):
        mine.stalled(5.0, float(second))
        mine.deaf(float(second))
        mine.refuted(float(second))
    assert (mine.score, mine.stretch) == (SCORE_MAX, 9)


def test_a_probe_that_failed_while_all_are_silent_is_a_point():
    mine = health()
    mine.deaf(10.0)
    assert mine.score == 1


def test_refuting_is_a_point_once_in_a_probe_interval_however_often_we_are_accused():
    mine = health()
    for tenth in range(25):
        mine.refuted(10.0 + tenth / 10)
    assert mine.score == 3


def test_a_point_goes_for_each_probe_interval_in_which_something_fresh_came():
    mine = health()
    mine.stalled(1.0, 10.0)
    scores = []
    for tenth in range(1, 46):
        mine.heard(10.0 + tenth / 10)
        scores.append(mine.score)
    assert [scores.count(each) for each in (4, 3, 2, 1)] == [9, 10, 10, 10]
    assert scores[-1] == 0


def test_silence_makes_nobody_well():
    mine = health()
    mine.stalled(1.0, 10.0)
    mine.heard(1_000.0)
    assert mine.score == 3


def test_what_was_read_from_the_socket_right_after_a_stall_makes_nobody_well():
    mine = health()
    mine.stalled(5.0, 10.0)
    for _ in range(64):
        mine.heard(10.0)
    assert mine.score == SCORE_MAX
