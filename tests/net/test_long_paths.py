"""Links on paths of a second and more: slow is not silent, and an answer may take its time."""

import pytest

from tests.net.test_replacement import Talk, one_link
from tests.rigs.virtual_net import Net


def settle(net, a, b, dials):
    """Dial as listed, (seconds, dialler) each, talk all the while, and end with one link."""
    talk = Talk(net, (a, b), every_s=0.1)
    for seconds, dialler in dials:
        net.at(net.now + seconds, dialler.dial, b if dialler is a else a)
    net.run(7.0)
    talk.on = False
    net.run(12.0)
    one_link(a, b)
    assert (a.downs, b.downs) == ([], [])
    talk.check()


@pytest.mark.parametrize("latency_s", [0.6, 0.7])
def test_h30_dials_that_cross_on_a_slow_path_lose_no_frame(latency_s):
    # A round trip is longer than the second that an incumbent has on a short path.
    for seed in range(8):
        net = Net(seed, latency_s=latency_s, jitter_s=0.1)
        a, b = net.pair()
        settle(net, a, b, [(0.0, a), (net.rng.uniform(0.0, 0.5), b), (0.5, a)])


def test_h30_an_incumbent_without_a_measured_round_trip_is_not_given_up():
    # On such a path all packets of a handshake count as lost before their acknowledgement comes:
    # a link is up, and nothing is known yet of how long an answer may take.
    for seed in (3, 4, 5, 6):
        net = Net(seed, latency_s=0.7, jitter_s=0.1)
        a, b = net.pair()
        settle(net, a, b, [(0.0, a), (net.rng.uniform(0.0, 0.02), a)])
