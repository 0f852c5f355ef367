"""Links that would not be made now are cut: what they brought and nobody took is dropped."""

import pytest

from plumtree_quic.messages import Direct
from plumtree_quic.net.events import LinkDown, Received
from plumtree_quic.net.link import CloseCode
from tests.rigs.virtual_net import Net, direct


def linked(**rules):
    """(net, a, b): a link, with one message of b's that a has received and nobody has taken."""
    net = Net(7)
    a, b = net.linked()
    net.run(0.5)
    a.endpoint._is_revoked = rules.get("is_revoked")
    a.endpoint._admit = rules.get("admit")
    poll = a.endpoint.poll
    a.endpoint.poll = list
    b.send(a, direct(1))
    b.pump()
    net.run(0.2)
    a.endpoint.poll = poll
    return net, a, b


@pytest.mark.parametrize(
    ("rules", "code", "kind"),
    [
        ({"is_revoked": lambda path, peer: True}, CloseCode.CERT_REVOKED, "revoked.closed"),
        ({"admit": lambda peer: False}, CloseCode.GOING_AWAY, "link.not_admitted"),
    ],
    ids=["revoked", "not admitted"],
)
def test_h18_what_a_revoked_peer_brought_reaches_nobody(rules, code, kind):
    net, a, b = linked(**rules)
    a.endpoint.judge_links(net.now)
    events = a.endpoint.poll()
    assert not [each for each in events if isinstance(each, Received)]
    (down,) = [each for each in events if isinstance(each, LinkDown)]
    assert (down.peer, down.code) == (b.id, code)
    assert [each.kind for each in events if hasattr(each, "kind")] == [kind]
    a.pump()
    net.run(2.0)
    assert [each.code for each in b.downs] == [code]


def test_links_that_would_be_made_again_stay():
    net, a, b = linked(is_revoked=lambda path, peer: False, admit=lambda peer: True)
    a.endpoint.judge_links(net.now)
    assert a.endpoint.link(b.id) is not None
    (received,) = [each for each in a.endpoint.poll() if isinstance(each, Received)]
    assert isinstance(received.message, Direct)
