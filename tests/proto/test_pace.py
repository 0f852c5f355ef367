"""Pieces leave a few at a time, and rest for as long as they took to arrive."""

import pytest

from plumtree_quic.proto.pace import BURST_PIECES, PIECE_PER_ROUND_TRIP_S, REST_SHARE, Pace

WAIT_S = 0.25
LEAST, MOST = BURST_PIECES


class Rig:
    def __init__(self, rtt_s=0.001):
        self.pace = Pace(WAIT_S)
        self.now = 100.0
        self.rtt_s = rtt_s
        self.arrived = False

    def may_send(self):
        return self.pace.may_send(self.now, lambda: self.arrived, lambda: self.rtt_s)

    def burst(self):
        """Send all that may leave now; return how much that was."""
        self.arrived = False
        count = 0
        while self.may_send():
            count += 1
            assert count <= MOST
            if self.pace.sent():
                break
        return count


def test_a_few_pieces_leave_and_no_more_before_they_have_arrived():
    rig = Rig()
    assert rig.burst() == LEAST
    rig.now += WAIT_S / 2
    assert not rig.may_send()


def test_after_they_have_arrived_it_rests_for_as_long_as_they_took():
    rig = Rig()
    rig.burst()
    rig.now += 0.02
    rig.arrived = True
    assert not rig.may_send()
    assert rig.pace.next_deadline(rig.now) == pytest.approx(rig.now + 0.02 * REST_SHARE)
    rig.now += 0.02 * REST_SHARE * 0.9
    assert not rig.may_send()
    rig.now += 0.02 * REST_SHARE * 0.2
    assert rig.may_send()


def test_who_does_not_acknowledge_is_waited_for_and_rested_for_only_so_long():
    rig = Rig()
    rig.burst()
    assert rig.pace.next_deadline(rig.now) == rig.now + WAIT_S
    rig.now += 10 * WAIT_S
    assert not rig.may_send()
    assert rig.pace.next_deadline(rig.now) == rig.now + WAIT_S
    rig.now += WAIT_S
    assert rig.burst() == LEAST


@pytest.mark.parametrize(
    ("rtt_s", "pieces"),
    [
        (0.0, LEAST),
        ((MOST - 2) * PIECE_PER_ROUND_TRIP_S + 0.001, MOST - 2),
        (10.0, MOST),
    ],
)
def test_a_long_path_is_given_more_pieces_at_a_time(rtt_s, pieces):
    assert Rig(rtt_s).burst() == pieces


def test_a_burst_may_be_interrupted_and_is_no_longer_for_it():
    # Links may have no room in the middle, or the message may end there.
    rig = Rig(rtt_s=10.0)
    assert rig.may_send()
    assert not rig.pace.sent()
    rig.now += 1.0
    assert rig.pace.next_deadline(rig.now) is None
    assert rig.burst() == MOST - 1


def test_half_of_the_time_at_most_is_for_what_is_large_however_slow_the_path():
    rig = Rig()
    began = rig.now
    sending = 0.0
    for took in (0.001, 0.05, 0.2, 0.01) * 5:
        while not rig.may_send():
            rig.now = rig.pace.next_deadline(rig.now)
        rig.burst()
        rig.now += took
        sending += took
        rig.arrived = True
        rig.may_send()
    while not rig.may_send():
        rig.now = rig.pace.next_deadline(rig.now)
    assert sending / (rig.now - began) <= 1 / (1 + REST_SHARE) + 0.001
