"""How long a suspicion lasts."""

import pytest

from plumtree_quic.ids import MemberKey
from plumtree_quic.proto.suspicion import Suspicion, suspicion_s


def test_three_accusers_give_the_shortest_time():
    assert suspicion_s(5.0, 3, 100) == 5.0
    assert suspicion_s(5.0, 8, 100) == 5.0


def test_one_accuser_gives_three_times_as_long():
    assert suspicion_s(5.0, 1, 100) == pytest.approx(15.0)


def test_two_accusers_lie_between_by_the_logarithm():
    assert suspicion_s(5.0, 2, 100) == pytest.approx(8.69, abs=0.01)


@pytest.mark.parametrize("members", [2, 3])
def test_in_a_cluster_of_two_or_three_one_accuser_is_all_there_is(members):
    assert suspicion_s(5.0, 1, members) == 5.0


def test_the_time_never_grows_with_accusers():
    for members in range(2, 20):
        times = [suspicion_s(5.0, accusers, members) for accusers in range(1, 8)]
        assert times == sorted(times, reverse=True)
        assert min(times) == 5.0


def test_a_confirmation_moves_the_deadline_nearer_and_never_away():
    suspicion = Suspicion(MemberKey(bytes(16)), 100.0, 115.0)
    suspicion.confirm(5.0, 3, 100)
    assert suspicion.deadline == 105.0
    suspicion.confirm(5.0, 1, 100)
    assert suspicion.deadline == 105.0
