"""The virtual network itself: a link on it behaves as a QUIC connection does."""

from random import Random

import attrs
import pytest

from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Direct, DirectKind, Gossip, Lane, Ping, Wanted
from plumtree_quic.sim.faults import CALM, WIDE, Weather
from plumtree_quic.sim.network import IDLE_S, Link, Network, Time
from plumtree_quic.wire import build_bundle
from tests.rigs.broadcast import bundle

WINDOW = 262_144


class Port:
    """Remembers what it is told."""

    def __init__(self, time, name):
        self.id = NodeId(f"spiffe://sim/node/{name}")
        self.time = time
        self.got = []
        self.datagrams = []
        self.acks = []
        self.writable_at = []
        self.downs = []
        self.asleep = False
        self.wakes_at = None

    def awake(self):
        return not self.asleep and (self.wakes_at is None or self.time.now >= self.wakes_at)

    def asleep_s(self):
        return 0.0 if self.wakes_at is None else max(0.0, self.wakes_at - self.time.now)

    def frame(self, end, message):
        self.got.append((self.time.now, message))

    def datagram(self, end, message):
        self.datagrams.append((self.time.now, message))

    def fresh(self, end):
        self.acks.append(self.time.now)

    def writable(self, end):
        self.writable_at.append(self.time.now)

    def down(self, end, reason):
        self.downs.append((self.time.now, reason))

    def messages(self):
        return [message for _, message in self.got]


class Pair:
    def __init__(self, weather=CALM, *, window=WINDOW, seed="1"):
        self.time = Time(100.0)
        self.network = Network(self.time, seed, weather)
        self.a, self.b = Port(self.time, "a"), Port(self.time, "b")
        self.link = Link(self.network, self.a, self.b, window)
        self.end = self.link.dialler


def direct(number):
    return Direct(DirectKind.MESSAGE, number, b"x")


def test_events_run_in_the_order_of_their_times_and_of_their_making():
    rng = Random(1)
    time = Time(100.0)
    told, made = [], []

    def act(number, when):
        told.append((when, number))
        assert time.now == when
        for _ in range(rng.choice((0, 0, 1, 2))):
            plan(rng.choice((0.0, 0.0003, 0.001, 0.0017, 0.5, 3.0)))

    def plan(seconds):
        if len(made) < 5_000:
            when = time.now + seconds
            made.append((when, len(made)))
            time.at(when, act, len(made) - 1, when)

    for _ in range(100):
        plan(rng.uniform(0.0, 2.0))
    while len(told) < len(made):
        before = time.now
        time.run(rng.choice((0.0001, 0.01, 0.7)))
        # Between two runs more is asked for, some of it before what waits already.
        plan(rng.choice((0.0, 0.0004, 0.3)))
        assert time.now > before
    assert told == sorted(made)
    assert time.events == len(made) > 1_000


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_a_lane_is_in_order_and_lossless_whatever_the_network_loses(loss):
    pair = Pair(Weather(loss=loss, jitter_s=0.05))
    sent = [direct(number) for number in range(200)]
    for message in sent:
        pair.end.send(message)
        pair.time.run(0.001)
    pair.time.run(60.0)
    assert pair.b.messages() == sent


def test_loss_is_delay_on_lanes_and_loss_of_datagrams():
    calm, rough = Pair(CALM), Pair(attrs.evolve(CALM, loss=0.3))
    for pair in (calm, rough):
        for number in range(500):
            pair.end.send(direct(number + 1))
            pair.end.send_datagram(Ping(number.to_bytes(8, "big")), 1.0)
        pair.time.run(14.0)
    assert len(calm.b.datagrams) == 500
    assert 300 < len(rough.b.datagrams) < 400
    assert rough.b.got[-1][0] - 100.0 > 10 * (calm.b.got[-1][0] - 100.0)


def test_a_lane_waits_for_its_own_losses_only():
    pair = Pair(attrs.evolve(CALM, loss=0.5), seed="3")
    for number in range(1, 50):
        pair.end.send(direct(number))
        pair.end.send(Wanted(True))
    pair.time.run(14.0)
    order = [type(message) for message in pair.b.messages()]
    assert order.count(Wanted) == order.count(Direct) == 49
    assert order != sorted(order, key=order.index)
    assert order[:98:2] != [Direct] * 49


def test_datagrams_come_twice_and_again_much_later():
    pair = Pair(attrs.evolve(CALM, duplicate=0.5, replay=0.5))
    for number in range(200):
        pair.end.send_datagram(Ping(number.to_bytes(8, "big")), 1.0)
    pair.time.run(1.0)
    soon = len(pair.b.datagrams)
    pair.time.run(10.0)
    assert soon > 270
    assert len(pair.b.datagrams) > soon + 50
    assert {message.nonce for _, message in pair.b.datagrams} == {
        number.to_bytes(8, "big") for number in range(200)
    }


def test_a_link_that_breaks_loses_what_is_on_its_way():
    pair = Pair(WIDE)
    pair.end.send(direct(1))
    pair.link.break_now()
    pair.time.run(60.0)
    assert pair.b.got == []
    assert [reason for _, reason in pair.a.downs + pair.b.downs] == ["broken", "broken"]


def test_a_close_reaches_the_other_end_one_way_later():
    pair = Pair()
    pair.end.close("not wanted")
    assert pair.a.downs == [(100.0, "not wanted")]
    pair.time.run(1.0)
    assert pair.b.downs == [(100.0 + pair.end.latency_s, "not wanted")]


def test_what_comes_while_a_process_stands_still_waits_in_its_socket():
    pair = Pair()
    pair.b.wakes_at = 105.0
    pair.end.send(direct(1))
    pair.end.send_datagram(Ping(bytes(8)), 1.0)
    pair.time.run(4.9)
    assert pair.b.got == pair.b.datagrams == []
    pair.time.run(0.2)
    assert pair.b.got == [(105.0, direct(1))]
    assert pair.b.datagrams == [(105.0, Ping(bytes(8)))]


def test_a_dead_peer_is_noticed_by_silence_alone():
    pair = Pair()
    pair.end.send(direct(1))
    pair.time.run(1.0)
    heard_at = pair.a.acks[-1]
    pair.b.asleep = True
    pair.end.send(direct(2))
    pair.time.run(60.0)
    assert pair.a.downs == [(pytest.approx(heard_at + IDLE_S), "idle")]


def test_a_way_may_be_closed_in_one_direction():
    pair = Pair()
    pair.network.cut(pair.a.id, pair.b.id)
    pair.end.send(direct(1))
    pair.link.acceptor.send(direct(2))
    pair.time.run(1.0)
    assert (pair.b.messages(), pair.a.messages()) == ([], [direct(2)])
    assert pair.b.acks == []
    pair.network.heal()
    pair.time.run(5.0)
    assert pair.b.messages() == [direct(1)]
    assert pair.a.acks
    assert pair.b.acks


def test_a_partition_closes_all_ways_between_its_sides():
    network = Network(Time(0.0), "1")
    a, b, c = (NodeId(f"spiffe://sim/node/{name}") for name in "abc")
    network.partition((a, b), (c,))
    assert network.passes(a, b)
    assert not network.passes(a, c)
    assert not network.passes(c, b)
    network.heal()
    assert network.passes(c, b)


def test_bandwidth_is_shared_and_lower_lanes_leave_first():
    pair = Pair(attrs.evolve(CALM, bandwidth=100_000.0))
    for number in range(1, 21):
        pair.end.send(Gossip(1, bundle(number, payload=b"x" * 10_000)))
    pair.end.send(Wanted(True))
    pair.time.run(10.0)
    assert pair.b.got[-1][0] - 100.0 == pytest.approx(2.0, abs=0.1)
    # Behind the one that was leaving, before all that waited; jitter may swap neighbours.
    assert Wanted in [type(message) for message in pair.b.messages()[:2]]


def test_more_than_the_window_waits_for_credit_and_room_is_told():
    pair = Pair(WIDE, window=50_000)
    for number in range(1, 21):
        pair.end.send(Gossip(1, bundle(number, payload=b"x" * 10_000)))
    assert pair.end.room(Lane.GOSSIP) < 0
    assert pair.end.backlog(Lane.GOSSIP) > 100_000
    pair.time.run(pair.end.latency_s + 0.01)
    assert len(pair.b.got) <= 6
    assert pair.a.writable_at == []
    pair.time.run(10.0)
    assert len(pair.b.got) == 20
    assert len(pair.a.writable_at) == 1
    assert pair.end.room(Lane.GOSSIP) == 50_000


def test_a_pair_is_equally_far_apart_whoever_asks_first():
    a, b, c = (NodeId(f"spiffe://sim/node/{name}") for name in "abc")
    one, other = Network(Time(0.0), "1"), Network(Time(0.0), "1")
    one.way(a, b)
    assert one.way(a, c) == other.way(c, a)


def test_what_is_the_same_on_every_link_is_decoded_once():
    pair = Pair()
    made = build_bundle(origin=bytes(16), epoch=1, first=1, messages=[("", b"x")])
    for _ in range(2):
        pair.end.send(Gossip(1, made))
    pair.time.run(1.0)
    first, second = pair.b.messages()
    assert first is second
    assert first.bundle == made
