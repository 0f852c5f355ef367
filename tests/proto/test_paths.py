"""What a path loses, and what that costs a frame."""

import pytest

from plumtree_quic.proto.paths import LOSS_MAX, LossMeter, crossing_s


def test_without_loss_a_frame_takes_half_a_round_trip():
    assert crossing_s(0.1, 0.4, 0.0) == 0.05


def test_each_loss_costs_a_pto_rfc_9002_section_6_2():
    # Lost every second time: one loss in the mean, before it comes.
    assert crossing_s(0.1, 0.4, 0.5) == pytest.approx(0.05 + 0.4)
    assert crossing_s(0.1, 0.4, 0.2) == pytest.approx(0.05 + 0.4 / 4)


@pytest.mark.parametrize("loss", [LOSS_MAX, 0.99, 1.0])
def test_a_path_that_loses_nearly_all_takes_long_and_not_for_ever(loss):
    assert crossing_s(0.1, 0.4, loss) == pytest.approx(0.05 + 9 * 0.4)


def test_a_few_packets_say_nothing_of_a_path():
    meter = LossMeter()
    assert meter.look(31, 31) == 0.0
    assert meter.look(32, 31) > 0.0


def test_the_share_follows_what_a_path_loses_of_late():
    meter = LossMeter()
    for look in range(1, 40):
        meter.look(100 * look, 20 * look)
    assert meter.share == pytest.approx(0.2, abs=0.001)
    for look in range(1, 40):
        meter.look(3_900 + 100 * look, 780)
    assert meter.share < 0.001


def test_what_was_sent_later_than_it_was_lost_is_no_more_than_all():
    meter = LossMeter()
    # Packets that were sent before the last look, and declared lost after it.
    meter.look(100, 0)
    assert meter.look(132, 90) <= 1.0
