"""A limit that strangers reach is told to the security log: which one, where, not too often."""

import attrs
import pytest

from plumtree_quic.net import endpoint as endpoints
from plumtree_quic.net.settings import NetSettings
from tests.rigs.virtual_net import Net

QUIET = NetSettings(rate_limits=False)


def crowd(net, target, count, *, host="10.9.9.9", at_once=False):
    """Nodes behind one address that dial `target`, one after the other or all at once."""
    nodes = []
    for number in range(count):
        node = net.node(f"n{number}", settings=QUIET)
        del net.nodes[node.address]
        node.address = (host, 2_000 + number)
        net.nodes[node.address] = node
        nodes.append(node)
        node.dial(target)
        if not at_once:
            net.run(0.1)
    net.run(1.0)
    return nodes


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"links_per_address_max": 2}, "links of one address"),
        ({"links_max": 2}, "links"),
        ({"half_open_max": 2}, "half-open connections of one address"),
        ({"half_open_max": 2, "loopback": True}, "half-open connections"),
    ],
)
def test_the_limit_that_was_hit_is_told_with_the_address(limits, what):
    net = Net()
    b = net.node("b", settings=attrs.evolve(QUIET, **limits))
    nodes = crowd(net, b, 3, at_once="half-open" in what)
    if "half-open" not in what:
        # Those pass, and a dialler asks again until its deadline.
        assert sum(len(each.ups) for each in nodes) == 2
    told = b.security("limit.hit")
    assert {each.fields["what"] for each in told} == {what}
    assert {each.fields["address"].partition(":")[0] for each in told} == {"10.9.9.9"}


def test_too_many_handshakes_a_second_are_told(monkeypatch):
    monkeypatch.setattr("plumtree_quic.net.budget.ADDRESS_BURST", 2.0)
    monkeypatch.setattr("plumtree_quic.net.budget.ADDRESS_PER_S", 0.001)
    net = Net()
    b = net.node("b", settings=NetSettings())
    crowd(net, b, 3)
    assert {each.fields["what"] for each in b.security("limit.hit")} == {"handshakes a second"}


def test_a_flood_over_a_limit_is_ten_lines_a_minute_and_counted():
    net = Net()
    b = net.node("b", settings=attrs.evolve(QUIET, links_max=0))
    crowd(net, b, 12)
    assert b.endpoint.counters.over_budget >= 12
    assert len(b.security("limit.hit")) == endpoints.REJECTIONS_PER_MINUTE


def test_on_loopback_a_cluster_of_any_size_shares_one_address():
    net = Net()
    settings = attrs.evolve(QUIET, loopback=True, links_per_address_max=2)
    b = net.node("b", host="127.0.0.1", settings=settings)
    nodes = crowd(net, b, 5, host="127.0.0.1")
    assert all(each.ups for each in nodes)
    assert not b.security("limit.hit")


def test_our_own_dials_do_not_use_up_what_one_address_may_have():
    net = Net()
    b = net.node("b", settings=attrs.evolve(QUIET, links_per_address_max=1))
    one = net.node("c", host="10.9.9.9", settings=QUIET)
    b.dial(one)
    net.run(0.5)
    (two,) = crowd(net, b, 1)
    assert len(two.ups) == 1
    assert len(b.ups) == 2
