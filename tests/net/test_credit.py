"""A peer that ignores credit is cut off; one that keeps it is not."""

import datetime

import pytest

from plumtree_quic.errors import WireError
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Credit, Direct, DirectKind, Goodbye, Lane
from plumtree_quic.net import link as links
from plumtree_quic.net.framing import frame
from plumtree_quic.net.link import Link
from plumtree_quic.net.settings import NetSettings
from plumtree_quic.wire import encode

BODY = b"".join(frame((encode(Direct(DirectKind.MESSAGE, 1, bytes(20_000))),)))
STREAM = 3 + 4 * Lane.DIRECT


@pytest.fixture
def greeted(monkeypatch):
    monkeypatch.setattr(links, "WINDOW_BYTES_MAX", 100_000)
    link = Link(
        None,
        NetSettings(),
        dialled=True,
        address=("127.0.0.1", 1),
        expected=None,
        wall=lambda: datetime.datetime.now(datetime.UTC),
        now=0.0,
    )
    link.hello = object()
    link._peer = NodeId("spiffe://test/node/b")
    link._on_lane_bytes(STREAM, bytes((Lane.DIRECT,)), [], [])
    return link


def test_a_peer_that_goes_on_without_credit_is_a_protocol_error(greeted):
    for _ in range(4):
        greeted._on_lane_bytes(STREAM, BODY, [], [])
    with pytest.raises(WireError, match="credit"):
        greeted._on_lane_bytes(STREAM, BODY + BODY, [], [])


def test_what_was_granted_counts_no_more(greeted):
    for _ in range(20):
        greeted._on_lane_bytes(STREAM, BODY, [], [])
        entry = greeted._in[STREAM]
        entry.granted = entry.consumed


def test_credit_and_farewells_that_say_nothing_are_not_taken_for_ever(greeted):
    """They never reach the quota of their sender, for the link takes them for itself."""
    control = 3 + 4 * Lane.CONTROL
    greeted._on_lane_bytes(control, bytes((Lane.CONTROL,)), [], [])
    out = greeted._out[Lane.GOSSIP]
    out.sent = 1_000_000

    def say(message):
        greeted._on_lane_bytes(control, b"".join(frame((encode(message),))), [], [])

    for consumed in range(10_000, 1_000_000, 10_000):
        say(Credit(((Lane.GOSSIP, consumed),)))
    assert out.consumed == 990_000
    for _ in range(60):
        say(Credit(((Lane.GOSSIP, 990_000),)))
    for _ in range(5):
        say(Goodbye(0))
    with pytest.raises(WireError, match="say nothing"):
        say(Goodbye(0))
