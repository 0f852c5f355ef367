"""Links that were begun before our credentials changed, and are up only afterwards.

They are as outdated as those that were up already: replaced under the new credentials, and cut
when the peer is trusted no more.
"""

import attrs
import pytest

from tests.net.test_replacement import one_link
from tests.rigs.pki import Pki
from tests.rigs.virtual_net import PKI, Net, credentials_of, direct

# One way takes 5 ms: Initial, Retry, Initial; the acceptor has answered, and nobody is up.
HALF_WAY_S = 0.017


def renew(node, **changes):
    """Another certificate, as from a file that has changed."""
    renewed = credentials_of(PKI.node(node.name))
    node.creds = attrs.evolve(
        renewed, generation=2, link_generation=2, anchors=node.creds.anchors, **changes
    )
    node.endpoint.use_credentials(node.net.now)
    node.pump()


def half_way(net, dialler, acceptor):
    dialler.dial(acceptor)
    net.run(HALF_WAY_S)
    assert len(dialler.open_links()) == len(acceptor.open_links()) == 1
    assert dialler.ups == acceptor.ups == []


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("dialled", ["a", "b"])
def test_a_link_that_comes_up_under_older_credentials_is_replaced(who, dialled):
    net = Net(1)
    a, b = net.pair()
    half_way(net, *((a, b) if dialled == "a" else (b, a)))
    renewed, other = (a, b) if who == "a" else (b, a)
    renew(renewed)
    net.run(5.0)
    assert len(a.ups) == len(b.ups) == 1
    assert (a.downs, b.downs) == ([], [])
    one_link(a, b)
    serial = renewed.creds.leaf.serial_number
    assert renewed.link(other).generation == 2
    assert other.link(renewed).engine.peer_certificates[0].serial_number == serial
    assert len(renewed.endpoint._rotation) == 0


def test_a_link_whose_peer_was_trusted_only_when_it_was_begun_is_cut_and_told():
    net = Net(1)
    other = Pki("test")
    theirs = credentials_of(other.node("b"), pki=other)
    a, b = net.pair()
    both = (*a.creds.anchors, *theirs.anchors)
    a.creds, b.creds = (attrs.evolve(each, anchors=both) for each in (a.creds, theirs))
    half_way(net, a, b)
    a.creds = attrs.evolve(a.creds, anchors=both[:1])
    renew(a)
    net.run(9.0)
    assert a.security("link.untrusted") == []
    net.run(3.0)
    (told,) = a.security("link.untrusted")
    assert told.fields["peer"] == b.id
    assert a.link(b) is None
    assert b.link(a) is None


def test_a_link_trusted_no_more_is_cut_in_time_however_often_credentials_change():
    net = Net(1)
    other = Pki("test")
    theirs = credentials_of(other.node("b"), pki=other)
    a, b = net.pair()
    both = (*a.creds.anchors, *theirs.anchors)
    a.creds, b.creds = (attrs.evolve(each, anchors=both) for each in (a.creds, theirs))
    a.dial(b)
    net.run(0.5)
    a.creds = attrs.evolve(a.creds, anchors=both[:1])
    for _ in range(6):
        renew(a)
        net.run(2.0)
    assert a.security("link.untrusted")
    assert a.link(b) is None


def test_an_outdated_link_that_wins_where_dials_crossed_is_replaced():
    net = Net(1)
    a, b = net.pair()
    b.dial(a)
    half_way_s = 0.012
    net.run(half_way_s)
    # a's dial wins, and was begun before: all that b brings up first is given up for it.
    a.dial(b)
    net.run(0.001)
    renew(a)
    net.run(8.0)
    assert (a.downs, b.downs) == ([], [])
    one_link(a, b)
    assert a.link(b).generation == 2
    assert a.send(b, direct(1))
    a.pump()
    net.run(0.5)
    assert len(b.messages()) == 1
