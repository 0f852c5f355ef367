"""A peer that acknowledges too little, or too much: rows X-10 and X-11, in virtual time."""

import gc
import tracemalloc

import pytest

from plumtree_quic.messages import Direct, DirectKind, Lane
from plumtree_quic.net.link import LinkState
from plumtree_quic.net.settings import NetSettings
from tests.net.test_floods import EvilNode
from tests.rigs.evil_quic import ack_frame
from tests.rigs.virtual_net import Net, direct

MINUTES = 10
PING = b"\x01"


@pytest.fixture
def live():
    net = Net(7)
    return (net, *net.linked())


def assert_unhurt(net, a, b):
    """The link to the good peer is up and carries messages."""
    got = len(b.messages(Direct))
    a.send(b, direct(got))
    a.pump()
    net.run(0.2)
    assert len(b.messages(Direct)) == got + 1
    assert [each for each in (*a.downs, *b.downs) if each.peer in (a.id, b.id)] == []


@pytest.mark.parametrize("acknowledged", [0, 1_000])
def test_x10_a_peer_that_acknowledges_nothing_or_one_in_1000_is_cut_with_little_kept(
    live, acknowledged
):
    net, a, b = live
    evil = EvilNode(net, a).up()
    link = evil.link()
    heard = 0
    original = evil.deliver

    def deliver(data, source):
        nonlocal heard
        heard += 1
        if acknowledged and heard % acknowledged == 0:
            original(data, source)

    evil.deliver = deliver
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    end = net.now + 60 * MINUTES
    while net.now < end and link.state is LinkState.UP:
        evil.send(PING)
        net.run(0.001)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert link.state is not LinkState.UP
    assert peak - before < 2 << 20
    assert_unhurt(net, a, b)


def test_x11_an_optimistic_ack_earns_no_byte_beyond_the_application_budget(live):
    """Acknowledging what was not received keeps QUIC's window open; only credit opens ours."""
    net, a, b = live
    evil = EvilNode(net, a).up()
    link = evil.link()
    received = 0

    def deliver(data, source):
        nonlocal received
        received += len(data)

    evil.deliver = deliver
    window = NetSettings().lane_window
    offered = 8 * window
    for seq in range(offered // 16_384):
        link.send(Direct(DirectKind.MESSAGE, seq, bytes(16_384)))
    a.pump()
    for _ in range(400):
        # Everything that was sent until now, seen or not.
        last = link.engine._packet_number - 1
        evil.send(ack_frame(last, first=last))
        a.pump()
        net.run(0.005)
    assert link.state is LinkState.UP
    assert window // 2 < received < 1.2 * window + 65_536
    assert link.backlog(Lane.DIRECT) > offered - 2 * window
    evil.send(ack_frame((link.engine._packet_number - 1) + 1))
    net.run(1.0)
    assert link.state is not LinkState.UP
    assert_unhurt(net, a, b)
