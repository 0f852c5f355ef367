"""Links on paths of a second and more: slow is not silent, and an answer may take its time."""

import pytest

from tests.net.test_replacement import Talk, one_link
from tests.rigs.virtual_net import Net


@pytest.mark.parametrize("first", ["a", "b", "both"])
def test_h30_a_slow_incumbent_is_not_taken_for_a_silent_one(first):
    # A round trip of 1.2 to 1.4 s: longer than an incumbent has on a short path.
    for seed in range(12):
        net = Net(seed, latency_s=0.6, jitter_s=0.1)
        a, b = net.pair()
        talk = Talk(net, (a, b), every_s=0.2)
        for node, other in ((a, b), (b, a)):
            if first in (node.name, "both"):
                node.dial(other)
        net.run(0.02)
        (b if first == "b" else a).dial(b if first != "b" else a)
        net.run(7.0)
        talk.on = False
        net.run(15.0)
        one_link(a, b)
        assert (a.downs, b.downs) == ([], [])
        talk.check()


def test_h30_an_incumbent_without_a_measured_round_trip_is_given_as_long_as_a_handshake():
    net = Net(1, latency_s=0.75)
    a, b = net.pair()
    a.dial(b)
    assert net.until(lambda: a.ups and b.ups, 6.0)
    # Every packet of the handshake counted as lost before its acknowledgement came.
    incumbent = next(link for link in (a.link(b), b.link(a)) if link.path().rtt_s == 0)
    incumbent.ping_incumbent(net.now)
    for node in (a, b):
        node.pump()
    net.run(3.0)
    assert incumbent.incumbent_proved
    assert not incumbent.incumbent_failed
