"""One address with many links: dials, accepts, wants, caps, back-off, and what is left behind."""

import itertools
import random

import attrs
import pytest

from plumtree_quic.errors import IdentityError, LinkError
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Facts
from plumtree_quic.net import endpoint as endpoints
from plumtree_quic.net.events import LinkDown, LinkUp
from plumtree_quic.net.link import CloseCode, Link, LinkState
from plumtree_quic.net.settings import NetSettings
from tests.net.test_floods import EvilNode
from tests.rigs.pki import Pki, utc
from tests.rigs.virtual_net import EPOCH, PKI, START, Net, Node, credentials_of, direct

QUIET = NetSettings(rate_limits=False)
EMPTY = {
    "cids": 0,
    "links": 0,
    "half_open": 0,
    "per_address": 0,
    "pairs": 0,
    "touched": 0,
    "timers": 0,
    "outgoing": 0,
}


def alive(net, a, b):
    """Messages pass between a and b."""
    before = len(b.messages())
    assert a.send(b, direct(before))
    a.pump()
    net.run(0.3)
    return len(b.messages()) == before + 1


def dials_of(net, node):
    """Times at which `node` begins a dial from now on."""
    times = []
    original = node.endpoint.dial

    def dial(address, peer, now):
        times.append((now, address))
        return original(address, peer, now)

    node.endpoint.dial = dial
    return times


# --- dialling and accepting ---


def test_an_endpoint_without_links_has_nothing_to_do():
    net = Net()
    a = net.node("a")
    assert a.endpoint.next_deadline() is None
    assert a.endpoint.transmit(net.now) == a.endpoint.poll() == a.endpoint.links() == []
    assert a.link(a) is None
    a.endpoint.advance(net.now)


def test_one_retry_and_one_link_a_dial():
    net = Net()
    a, b = net.linked()
    assert (b.endpoint.counters.retries, b.endpoint.counters.accepted) == (1, 1)
    assert a.endpoint.counters.dialled == 1
    assert [len(each.open_links()) for each in (a, b)] == [1, 1]


def test_a_dial_takes_whoever_answers_when_it_means_nobody():
    net = Net()
    a, b = net.pair()
    a.dial(b, expect=False)
    net.run(0.3)
    assert a.ups[0].peer == b.id


def test_h21_somebody_else_at_the_address_is_refused_and_told():
    net = Net()
    a, b = net.pair()
    c = net.node("c")
    a.endpoint.dial(b.address, c.id, net.now)
    a.pump()
    net.run(0.5)
    assert a.ups == b.ups == []
    assert isinstance(a.failures[0].error, IdentityError)
    assert a.failures[0].peer == c.id
    assert a.security("handshake.rejected")[0].fields["step"] == 12


def test_h19_a_dial_to_our_own_address_is_an_identity_conflict():
    net = Net()
    a = net.node("a")
    a.dial(a, expect=False)
    net.run(0.5)
    assert a.ups == []
    assert a.security("identity.conflict")
    assert "a certificate of its own" in str(a.failures[0].error)


def test_h19_a_second_process_with_our_key_is_refused_and_knows_why():
    net = Net()
    a, second = net.node("a"), net.node("a")
    second.endpoint.dial(a.address, None, net.now)
    second.pump()
    net.run(0.5)
    assert a.ups == second.ups == []
    assert second.security("identity.conflict")


def test_h19_who_has_our_key_and_checks_nothing_is_an_identity_conflict_here():
    net = Net()
    a = net.node("a")
    evil = EvilNode(net, a, cert=PKI.node("a"))
    net.run(0.5)
    assert a.ups == []
    assert evil.evil.alert == 49
    (event,) = a.security("identity.conflict")
    assert event.fields["address"].startswith(evil.address[0])


def test_h19_strangers_who_are_refused_do_not_hide_who_has_our_key():
    net = Net()
    a = net.node("a")
    for number in range(15):
        EvilNode(net, a, cert=Pki("test").node("s"), host=f"203.0.113.{number + 1}")
    net.run(0.5)
    assert len(a.security("handshake.rejected")) == endpoints.REJECTIONS_PER_MINUTE
    for number in range(15):
        EvilNode(net, a, cert=PKI.node("a"), host=f"203.0.114.{number + 1}")
    net.run(0.5)
    assert a.endpoint.counters.rejected == 30
    assert len(a.security("identity.conflict")) == endpoints.REJECTIONS_PER_MINUTE


def test_a_refused_dialler_hears_which_alert_and_the_acceptor_tells_its_log():
    net = Net()
    a, b = net.pair()
    stranger = Pki("test")
    a.creds = credentials_of(attrs.evolve(stranger.node("a"), chain=()), pki=stranger)
    a.creds = attrs.evolve(a.creds, anchors=b.creds.anchors)
    a.dial(b)
    net.run(0.5)
    assert "48" in str(a.failures[0].error)
    (event,) = b.security("handshake.rejected")
    assert event.fields["alert"] == 48
    assert a.ups == b.ups == []


def test_nobody_there_is_a_link_error_with_the_address():
    net = Net()
    a = net.node("a")
    a.endpoint.dial(("192.0.2.99", 1234), None, net.now)
    a.pump()
    net.run(7.0)
    assert isinstance(a.failures[0].error, LinkError)
    assert "192.0.2.99:1234" in str(a.failures[0].error)
    assert a.tables() == EMPTY


# --- hard networks ---


@pytest.mark.parametrize(
    "shape",
    [
        {"loss": 0.3, "burst": 3},
        {"loss": 0.3},
        {"corruption": 0.3},
        {"latency_s": 0.75},
        {"jitter_s": 0.2},
    ],
    ids=str,
)
def test_h33_dials_on_a_hard_network_are_up_within_five_attempts(shape):
    up = 0
    for seed in range(50):
        net = Net(seed, **shape)
        a, b = net.pair()
        for _ in range(5):
            a.dial(b)
            if net.until(lambda a=a, b=b: a.ups and b.ups, 6.5, step_s=0.5):
                up += 1
                break
        assert {each.peer for each in a.ups} <= {b.id}
        assert {each.peer for each in b.ups} <= {a.id}
        assert a.endpoint.counters.hard_dropped == b.endpoint.counters.hard_dropped == 0
    # The bar has 99 of 100.
    assert up == 50


# --- want and unwant ---


def test_a_wanted_peer_is_linked_and_linked_again():
    net = Net()
    a, b = net.pair()
    a.want(b)
    net.run(0.5)
    assert len(a.ups) == 1
    b.link(a).close(CloseCode.GOING_AWAY, "test", net.now)
    b.pump()
    net.run(0.8)
    assert len(a.ups) == 2
    assert alive(net, a, b)


def test_the_order_is_up_down_up():
    net = Net()
    a, b = net.pair()
    a.want(b)
    for _ in range(3):
        net.run(2.0)
        b.link(a).close(CloseCode.GOING_AWAY, "test", net.now)
        b.pump()
    net.run(2.0)
    kinds = [type(each) for each in a.events if isinstance(each, LinkUp | LinkDown)]
    assert kinds == [LinkUp, LinkDown] * 3 + [LinkUp]


def test_a_link_stays_while_either_end_wants_it():
    net = Net()
    a, b = net.pair()
    a.want(b)
    net.run(0.5)
    b.want(a)
    net.run(0.5)
    a.endpoint.unwant(b.id, net.now)
    a.pump()
    net.run(30.0)
    assert a.downs == b.downs == []
    b.endpoint.unwant(a.id, net.now)
    b.pump()
    net.run(1.0)
    assert a.downs[0].code == b.downs[0].code == CloseCode.GOING_AWAY
    net.run(5.0)
    assert len(a.ups) == 1


def test_ends_that_stop_wanting_at_the_same_moment_close_it():
    net = Net()
    a, b = net.pair()
    a.want(b)
    b.want(a)
    net.run(1.0)
    a.endpoint.unwant(b.id, net.now)
    b.endpoint.unwant(a.id, net.now)
    a.pump()
    b.pump()
    net.run(1.0)
    assert a.open_links() == b.open_links() == []
    assert (len(a.downs), len(b.downs)) == (1, 1)


def test_a_dial_that_is_not_wanted_any_more_ends_without_a_word():
    net = Net()
    a, b = net.pair()
    a.want(b)
    net.run(0.02)
    a.endpoint.unwant(b.id, net.now)
    a.pump()
    net.run(10.0)
    assert a.events == b.ups == []
    assert a.tables() == EMPTY


def test_want_without_an_address_waits_for_one():
    net = Net()
    a, b = net.pair()
    a.endpoint.want(b.id, [], net.now)
    assert a.endpoint.next_deadline() is None
    a.want(b)
    net.run(0.5)
    assert len(a.ups) == 1


def test_what_is_asked_each_turn_costs_the_same_with_many_wanted_peers():
    class Untouched(dict):
        def __iter__(self):
            raise AssertionError("every wanted peer was looked at")

        items = keys = values = __iter__

    net = Net()
    a, b = net.linked()
    for number in range(100):
        peer = NodeId(f"spiffe://test/node/{number}")
        a.endpoint.want(peer, [("192.0.2.99", 1)], net.now + 1.0 + number)
    a.endpoint._wants = Untouched(a.endpoint._wants)
    for _ in range(3):
        a.endpoint.next_deadline()
        a.endpoint.advance(net.now)
    assert alive(net, a, b)


def test_each_wanted_peer_is_dialled_when_its_own_turn_comes():
    net = Net()
    a = net.node("a")
    dials = dials_of(net, a)
    turns = [3.0, 1.0, 2.0, 2.0]
    for number, wait_s in enumerate(turns):
        peer = NodeId(f"spiffe://test/node/z{number}")
        a.endpoint.want(peer, [("192.0.2.99", number)], START + wait_s)
    a.pump()
    net.run(3.5)
    assert [(round(at - START, 3), address[1]) for at, address in dials] == [
        (1.0, 1),
        (2.0, 2),
        (2.0, 3),
        (3.0, 0),
    ]


def test_a_dial_that_raised_is_tried_again():
    net = Net()
    a, b = net.pair()
    a.endpoint.want(b.id, [b.address], net.now)
    dial = a.endpoint.dial

    def raising(address, peer, now):
        raise OSError("no credentials")

    a.endpoint.dial = raising
    with pytest.raises(OSError, match="no credentials"):
        a.endpoint.advance(net.now)
    assert a.endpoint.next_deadline() <= net.now
    a.endpoint.dial = dial
    a.pump()
    net.run(0.5)
    assert len(a.ups) == 1


def test_closing_a_pair_of_two_links_tells_down_once():
    net = Net()
    a, b = net.linked()
    a.want(b)
    net.run(0.2)
    b.dial(a)
    assert net.until(lambda: a.endpoint._pairs[b.id].contenders, 1.0, step_s=0.002)
    a.endpoint.unwant(b.id, net.now)
    a.pump()
    net.run(3.0)
    assert len(a.downs) == len(a.ups) == 1
    assert a.open_links() == b.open_links() == []


# --- dialling again ---


def test_failed_dials_back_off_with_full_jitter_up_to_a_minute():
    net = Net(5)
    a = net.node("a")
    b = Node(net, "b", host="192.0.2.50")
    times = dials_of(net, a)
    a.want(b)
    net.run(1_800.0)
    ends = [each + 5.0 for each, _ in times]
    waits = [after - end for (after, _), end in zip(times[1:], ends, strict=False)]
    for number, wait in enumerate(waits):
        assert 0.0 <= wait <= min(60.0, 2.0**number) + 0.1
    assert max(waits) > 20.0
    assert len(set(waits)) == len(waits)
    assert len(a.failures) in (len(times), len(times) - 1)


def test_all_addresses_of_a_peer_are_tried_in_turn():
    net = Net(5)
    a, b = net.pair()
    times = dials_of(net, a)
    nowhere = ("192.0.2.250", 1)
    a.endpoint.want(b.id, [nowhere, b.address], net.now)
    a.pump()
    net.run(20.0)
    assert [address for _, address in times] == [nowhere, b.address]
    assert len(a.ups) == 1


@pytest.mark.parametrize("alert", ["expired", "unknown"])
def test_an_alert_about_our_certificate_waits_at_least_30_seconds(alert):
    net = Net(5)
    a, b = net.pair()
    if alert == "expired":
        # Good when a was started, and not when it dials.
        a.creds = credentials_of(PKI.node("a", not_after=utc(seconds=5)))
        net.run(20.0)
    else:
        stranger = Pki("test")
        theirs = credentials_of(stranger.node("a"), pki=stranger)
        a.creds = attrs.evolve(theirs, anchors=b.creds.anchors)
    times = dials_of(net, a)
    a.want(b)
    net.run(100.0)
    starts = [each for each, _ in times]
    assert len(starts) >= 2
    assert all(later - earlier >= 30.0 for earlier, later in itertools.pairwise(starts))


def test_after_a_link_went_down_the_smaller_dials_first_and_the_larger_waits():
    for seed in range(10):
        net = Net(seed)
        a, b = net.pair()
        a.want(b)
        b.want(a)
        net.run(1.0)
        of_a, of_b = dials_of(net, a), dials_of(net, b)
        down_at = net.now
        net.path = lambda source, to, data: False
        for node in (a, b):
            link = next(iter(node.endpoint._links))
            node.endpoint._hard_drop(link, net.now)
            node.pump()
        net.run(1.6)
        assert 0.05 <= of_a[0][0] - down_at <= 0.51
        assert 0.55 <= of_b[0][0] - down_at <= 1.51


def test_a_peer_that_refuses_our_hello_is_not_hammered():
    net = Net(5)
    a, b = net.pair()
    a.record_of = "spiffe://test/node/mallory"
    times = dials_of(net, a)
    a.want(b)
    net.run(120.0)
    assert all(each.code == CloseCode.IDENTITY_MISMATCH for each in a.downs)
    assert 3 <= len(times) <= 20


def test_a_dial_that_fails_while_the_peer_has_a_link_is_no_news_and_blocks_no_later_dial():
    net = Net(1)
    a, b = net.pair()
    a.endpoint.want(b.id, [("192.0.2.250", 1)], net.now)
    a.pump()
    b.dial(a)
    net.run(8.0)
    assert a.failures == []
    assert len(a.ups) == 1
    a.endpoint.want(b.id, [b.address], net.now)
    b.link(a).close(CloseCode.GOING_AWAY, "test", net.now)
    b.pump()
    net.run(3.0)
    assert len(a.ups) == 2


def test_a_partition_heals_by_itself():
    net = Net(9)
    a, b = net.pair()
    a.want(b)
    b.want(a)
    net.run(1.0)
    net.path = lambda source, to, data: False
    net.run(60.0)
    assert a.open_links() == [] or not alive(net, a, b)
    net.path = None
    assert net.until(lambda: len(a.ups) >= 2 and len(b.ups) >= 2, 70.0)
    net.run(5.0)
    assert len(a.open_links()) == len(b.open_links()) == 1
    assert alive(net, a, b)
    assert alive(net, b, a)


# --- caps ---


def dial_many(net, target, count, *, host=None, first=0):
    """Nodes of different identities with one link each."""
    nodes = []
    for number in range(first, first + count):
        node = net.node(
            f"n{number}", host=host or f"10.{number // 250}.{number % 250}.1", settings=QUIET
        )
        node.address = (node.address[0], 1_000 + number)
        net.nodes[node.address] = node
        node.dial(target)
        net.run(0.05)
        nodes.append(node)
    net.run(0.5)
    return nodes


def test_at_most_64_links_from_one_address_and_others_still_get_in():
    net = Net()
    b = net.node("b")
    crowd = dial_many(net, b, 66, host="10.9.9.9")
    assert sum(len(each.ups) for each in crowd) == len(b.ups) == 64
    (other,) = dial_many(net, b, 1, host="10.9.9.10", first=70)
    assert len(other.ups) == 1
    assert b.endpoint.counters.over_budget >= 2
    # Room again when one goes (and those that were refused have given up).
    net.run(6.0)
    crowd[0].endpoint.close(net.now, CloseCode.GOING_AWAY, "bye")
    crowd[0].pump()
    net.run(2.0)
    (again,) = dial_many(net, b, 1, host="10.9.9.9", first=80)
    assert len(again.ups) == 1


def test_at_most_so_many_links_in_all():
    net = Net()
    b = net.node("b", settings=attrs.evolve(QUIET, links_max=20))
    nodes = dial_many(net, b, 23)
    assert sum(len(each.ups) for each in nodes) == len(b.ups) == 20
    assert len(b.endpoint._links) == 20
    assert NetSettings().links_max == 256


def test_our_own_dials_do_not_use_up_the_half_open_of_strangers():
    net = Net()
    a, b = net.pair()
    for number in range(70):
        b.endpoint.dial(("192.0.2.250", number + 1), None, net.now)
    b.pump()
    a.dial(b)
    net.run(0.5)
    assert len(b.ups) == 1


# --- faults of our own ---


@pytest.mark.parametrize("where", ["flush", "receive", "take_events", "advance", "next_deadline"])
def test_b03_what_one_link_raises_ends_that_link_and_no_other(where, monkeypatch):
    net = Net()
    a, b = net.linked()
    c = net.node("c")
    c.dial(b)
    net.run(0.5)
    victim = b.link(a)
    original = getattr(Link, where)

    def explode(link, *args):
        if link is victim:
            raise IndexError("pop from empty list")
        return original(link, *args)

    monkeypatch.setattr(Link, where, explode)
    a.send(b, direct(1))
    a.pump()
    net.run(7.0)
    assert [each.peer for each in b.downs] == [a.id]
    assert b.endpoint.counters.hard_dropped == 1
    assert victim not in b.endpoint._links
    assert alive(net, c, b)
    assert b.tables()["cids"] == len(b.link(c).connection_ids)


def test_b03_what_a_greeting_raises_ends_that_link(monkeypatch):
    monkeypatch.setattr(Link, "greet", lambda link, hello: [].pop())
    net = Net()
    a, b = net.pair()
    a.dial(b)
    net.run(10.0)
    assert b.tables() == a.tables() == EMPTY


def test_random_datagrams_raise_nothing_and_leave_nothing():
    net = Net()
    a, b = net.linked()
    cids = sorted(b.link(a).connection_ids)
    rng = random.Random(5)
    for _ in range(4_000):
        data = bytearray(rng.randbytes(rng.choice((1, 20, 40, 200, 1_200, 1_400))))
        if len(data) > 20 and rng.random() < 0.5:
            data[0] = rng.choice((0x40, 0x43, 0xC0, 0xD3, 0xE0, 0xF0))
            if data[0] & 0x80:
                data[1:6] = b"\0\0\0\1\x08"
                data[6:14] = rng.choice(cids)
            else:
                data[1:9] = rng.choice(cids)
        net.inject(bytes(data), b)
    assert alive(net, a, b)
    assert b.endpoint.counters.hard_dropped == 0
    assert len(b.endpoint._links) == 1


def test_s9_a_thousand_connects_leave_nothing_behind():
    net = Net()
    a, b = net.pair()
    for number in range(1_000):
        a.dial(b)
        net.run(0.09)
        link = (a if number % 2 else b).link(b if number % 2 else a)
        link.close(CloseCode.GOING_AWAY, "next", net.now)
        (a if number % 2 else b).pump()
        net.run(0.03)
        if number % 100 == 99:
            assert b.tables()["links"] <= 20
            assert b.tables()["timers"] <= 400
    assert len(a.ups) == len(b.ups) == len(a.downs) == len(b.downs) == 1_000
    net.run(30.0)
    assert a.tables() == b.tables() == EMPTY
    assert not a.endpoint._fed
    assert a.endpoint.next_deadline() is None


def test_b22_a_datagram_costs_the_same_with_many_links(monkeypatch):
    net = Net()
    b = net.node("b")
    nodes = dial_many(net, b, 30)
    net.run(0.5)
    asked = []
    for name in ("flush", "take_events", "receive", "next_deadline", "writable", "advance"):
        original = getattr(Link, name)

        def count(link, *args, original=original):
            asked.append(link)
            return original(link, *args)

        monkeypatch.setattr(Link, name, count)
    seen = []
    net.wiretap = lambda source, data, address: seen.append(data)
    nodes[0].send(b, direct(1))
    nodes[0].pump()
    asked.clear()
    net.run(0.006)
    touched = {id(each) for each in asked if not each.dialled}
    assert touched == {id(b.link(nodes[0]))}


# --- addresses ---


def test_m22_a_peer_that_moves_keeps_its_link_and_the_log_is_told():
    net = Net()
    a, b = net.linked()
    moved = ("198.51.100.77", 5_555)
    del net.nodes[a.address]
    a.address = moved
    net.nodes[moved] = a
    a.send(b, direct(1))
    a.pump()
    net.run(1.0)
    assert alive(net, b, a)
    assert b.link(a).address == moved
    assert len(b.security("link.address_changed")) == 1
    # That a change is a minute ago is no change.
    net.run(120.0)
    assert len(b.security("link.address_changed")) == 1
    assert (a.downs, b.downs) == ([], [])


# --- the end ---


def test_close_says_goodbye_on_all_links_and_takes_no_more():
    net = Net()
    b = net.node("b")
    nodes = dial_many(net, b, 5)
    assert not b.endpoint.closed
    b.endpoint.close(net.now, CloseCode.GOING_AWAY, "shutdown")
    b.pump()
    assert b.endpoint.closed
    net.run(0.5)
    for node in nodes:
        assert (node.downs[0].code, node.downs[0].by_peer) == (CloseCode.GOING_AWAY, True)
    late = net.node("late")
    late.dial(b)
    b.endpoint.want(late.id, [late.address], net.now)
    net.run(8.0)
    assert late.ups == []
    assert b.tables() == EMPTY


def test_a_close_before_the_handshake_is_over_ends_it():
    net = Net()
    a, b = net.pair()
    link = a.dial(b)
    net.run(0.012)
    a.endpoint.close(net.now, CloseCode.GOING_AWAY, "shutdown")
    a.pump()
    net.run(10.0)
    assert link.state is LinkState.CLOSED
    assert a.tables() == b.tables() == EMPTY


def test_sends_on_a_link_that_has_ended_do_nothing():
    net = Net()
    a, b = net.linked()
    link = a.link(b)
    b.endpoint.close(net.now, CloseCode.GOING_AWAY, "bye")
    b.pump()
    net.run(0.2)
    for _ in range(100):
        link.send(Facts(()))
        link.send(direct(1, 60_000))
    assert link.unacknowledged() < 1_000
    assert not a.send(b, direct(1))


def test_the_rejection_log_is_bounded():
    net = Net()
    b = net.node("b")
    stranger = Pki("test")
    theirs = credentials_of(stranger.node("s"), pki=stranger)
    creds = attrs.evolve(theirs, anchors=b.creds.anchors)
    for number in range(25):
        node = Node(net, "s", host=f"10.0.0.{number + 1}", epoch=EPOCH + number, creds=creds)
        net.nodes[node.address] = node
        node.dial(b)
        net.run(0.2)
    assert b.endpoint.counters.rejected == 25
    assert len(b.security("handshake.rejected")) == endpoints.REJECTIONS_PER_MINUTE
    assert net.now < START + 60


def test_one_identity_has_a_bounded_number_of_links(monkeypatch):
    """However often it dials, there is room for others, and one link that stays."""
    monkeypatch.setattr(endpoints, "PAIR_LINKS_MAX", 3)
    net = Net()
    a, b = net.linked()
    for _ in range(5):
        for _ in range(10):
            a.dial(b)
        for _ in range(40):
            net.run(0.002)
            for one, other in ((a, b), (b, a)):
                pair = one.endpoint._pairs.get(other.id)
                assert pair is None or len(pair.others()) <= 3
    over = [one.endpoint.counters.links_over_pair for one in (a, b)]
    assert sum(over) > 0
    net.run(30.0)
    assert a.tables()["links"] == b.tables()["links"] == 1
    assert a.send(b, direct(1))
