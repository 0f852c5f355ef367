"""H-27: every state of the accept policy, and what a stranger can send after it.

States: the first Initial was answered with a Retry, refused (over a limit), dropped (bad token),
or accepted. After each: no exception, nothing kept for a stranger that has proved nothing, and at
most one reply a packet.
"""

import os

import attrs
import pytest

from plumtree_quic.net.retry import TOKEN_LIFE_S
from plumtree_quic.net.settings import NetSettings
from tests.net.test_floods import STRANGER, initial_to, live_and_well, proved
from tests.rigs.evil_quic import Initials, crypto_frame
from tests.rigs.virtual_net import Net

ELSEWHERE = ("198.51.100.77", 4433)


class Stranger:
    """What a stranger sends, byte for byte, so that it can be sent again."""

    def __init__(self, net, target, *, token=b"", cid=None):
        self.net, self.target = net, target
        self.cid = cid if cid is not None else os.urandom(8)
        self.token = token
        self.keys = Initials(self.cid, from_dialler=True)
        self.first = self.packet(0)

    def packet(self, number, *, token=None, frames=None):
        return self.keys.packet(
            frames or crypto_frame(b"\x01"),
            to=self.cid,
            source=b"stranger",
            number=number,
            token=self.token if token is None else token,
            size=1200,
        )

    def give(self, data, source=STRANGER):
        """Deliver one datagram; return how many came back at once."""
        self.target.endpoint.receive(data, source, self.net.now)
        return len(self.target.endpoint.transmit(self.net.now))


def asked_to_retry(net, target):
    return Stranger(net, target), 1


def refused(net, target):
    cid, token = proved(net, target, STRANGER)
    stranger = Stranger(net, target, token=token, cid=cid)
    target.endpoint._settings = attrs.evolve(target.settings, links_max=0)
    return stranger, 0


def dropped(net, target):
    return Stranger(net, target, token=os.urandom(64)), 0


def accepted(net, target):
    cid, token = proved(net, target, STRANGER)
    return Stranger(net, target, token=token, cid=cid), 1


STATES = (asked_to_retry, refused, dropped, accepted)
FOLLOWERS = {
    "duplicate Initial": lambda s: (s.first, STRANGER),
    "late Initial": lambda s: (s.packet(7), STRANGER),
    "replayed token": lambda s: (
        Stranger(s.net, s.target, token=s.token, cid=s.cid).packet(0), STRANGER,
    ),
    "replayed token for another connection": lambda s: (
        Stranger(s.net, s.target, token=s.token).first, STRANGER,
    ),
    "token from another address": lambda s: (s.packet(0), ELSEWHERE),
    "Initial without its token": lambda s: (s.packet(1, token=b""), STRANGER),
}  # fmt: skip


@pytest.fixture
def live():
    net = Net(7)
    return (net, *net.linked())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("follower", FOLLOWERS)
def test_h27_whatever_follows_gets_one_reply_at_most_and_makes_no_state(live, state, follower):
    net, a, b = live
    stranger, replies = state(net, b)
    before = b.tables()
    assert stranger.give(stranger.first) <= replies
    held = b.tables()
    links = held["links"] - before["links"]
    assert links == (1 if state is accepted else 0)
    data, source = FOLLOWERS[follower](stranger)
    for _ in range(5):
        assert stranger.give(data, source) <= 1
    assert b.endpoint.counters.hard_dropped == 0
    # No second connection for what has made one already, and none for what never proved anything.
    assert b.tables()["links"] == held["links"]
    assert b.tables()["half_open"] == held["half_open"]
    # What was accepted and never went on ends by itself, and its token is still spent.
    net.run(b.settings.handshake_s + b.settings.close_s + 0.5)
    assert b.tables()["half_open"] == 0
    assert b.tables()["links"] == before["links"]
    for _ in range(5):
        assert stranger.give(data, source) <= 1
    assert b.tables()["links"] == before["links"]
    live_and_well(net, a, b)


def test_h27_a_token_makes_one_connection_and_no_second_one_when_that_has_ended(live):
    net, a, b = live
    cid, token = proved(net, b, STRANGER)
    stranger = Stranger(net, b, token=token, cid=cid)
    stranger.give(stranger.first)
    accepted_before = b.endpoint.counters.accepted
    net.run(b.settings.handshake_s + b.settings.close_s + 0.5)
    assert net.now < TOKEN_LIFE_S + 1_005  # the token itself would still be good
    bad = b.endpoint.counters.bad_tokens
    stranger.give(stranger.packet(1))
    assert b.endpoint.counters.bad_tokens == bad + 1
    assert b.endpoint.counters.accepted == accepted_before
    live_and_well(net, a, b)


def test_h27_a_token_that_met_a_limit_is_not_spent(live):
    net, _, b = live
    stranger, _ = refused(net, b)
    stranger.give(stranger.first)
    b.endpoint._settings = b.settings
    accepted_before = b.endpoint.counters.accepted
    stranger.give(stranger.packet(1))
    assert b.endpoint.counters.accepted == accepted_before + 1


def test_one_address_holds_at_most_half_of_the_half_open_connections():
    net = Net(3)
    b = net.node("b", settings=NetSettings(rate_limits=False))
    half = b.settings.half_open_max // 2
    for number in range(half + 5):
        source = ("198.51.100.7", 1000 + number)
        cid, token = proved(net, b, source)
        initial_to(b, token, source=source, cid=cid)
    assert len(b.endpoint._half_open) == half
    assert b.endpoint.counters.over_budget == 5
    c = net.node("c")
    c.dial(b)
    net.run(0.5)
    assert len(c.ups) == 1


def test_64_nodes_of_one_host_that_join_at_the_same_moment_are_all_let_in():
    """Whoever meets the half sends its Initial again, and by then others have greeted."""
    net = Net(3)
    target = net.node("b", settings=NetSettings())
    crowd = []
    for number in range(64):
        node = net.node(f"n{number}")
        del net.nodes[node.address]
        node.address = ("198.51.100.7", 1000 + number)
        net.nodes[node.address] = node
        crowd.append(node)
    for node in crowd:
        node.endpoint.dial(target.address, target.id, net.now)
    for node in crowd:
        node.pump()
    net.run(target.settings.handshake_s)
    assert target.endpoint.counters.over_budget > 0
    assert [len(node.ups) for node in crowd] == [1] * 64
    assert [node.failures for node in crowd] == [[]] * 64


def test_h27_a_node_that_is_closing_answers_nobody():
    net = Net(7)
    b = net.node("b")
    cid, token = proved(net, b, STRANGER)
    b.endpoint.close(net.now, 0, "bye")
    before = b.tables()
    for stranger in (Stranger(net, b), Stranger(net, b, token=token, cid=cid)):
        assert stranger.give(stranger.first) == 0
    assert b.tables() == before
    assert b.endpoint.counters.hard_dropped == 0


def test_on_loopback_where_all_have_one_address_that_half_is_not_asked():
    net = Net(3)
    b = net.node("b", settings=NetSettings(loopback=True))
    for number in range(b.settings.half_open_max):
        source = ("127.0.0.1", 1000 + number)
        cid, token = proved(net, b, source)
        initial_to(b, token, source=source, cid=cid)
    assert len(b.endpoint._half_open) == b.settings.half_open_max
