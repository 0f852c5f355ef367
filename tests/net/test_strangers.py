"""Strangers and turned members beside honest nodes: who still gets in, and what never raises.

What test_floods.py counts row by row is looked at here from the side of those who are meant to be
unharmed: a node that joins during a flood, a link whose packets somebody forges, a log.
"""

import logging
import os
from random import Random

import pytest

from plumtree_quic import wire
from plumtree_quic.messages import Hello, Lane
from plumtree_quic.net import endpoint as endpoints
from plumtree_quic.net.framing import frame
from plumtree_quic.net.settings import NetSettings
from plumtree_quic.wire import build_record
from tests.rigs.evil_quic import Evil, Initials, header_of
from tests.rigs.virtual_net import EPOCH, PKI, Net, direct

CONTROL_STREAM = 2


class Stranger:
    """Somebody without a certificate, at an address where answers are heard."""

    def __init__(self, net, victim, address=("198.51.100.1", 4001)):
        self.net, self.victim, self.address = net, victim, address
        self.heard = []
        net.nodes[address] = self

    def deliver(self, data, source):
        self.heard.append(data)

    def send(self, data, source=None):
        self.victim.deliver(data, source or self.address)

    def ask(self, cid=None, frames=b"\x01", *, token=b"", number=0):
        """Send one Initial, to a random connection ID unless given; returns its bytes."""
        cid = cid if cid is not None else os.urandom(8)
        packet = Initials(cid, from_dialler=True).packet(
            frames, to=cid, source=b"stranger", number=number, token=token
        )
        self.send(packet)
        return packet

    def prove(self):
        """Get a Retry: the connection ID to address next, and the token."""
        before = len(self.heard)
        self.ask()
        self.net.run(0.02)
        header = header_of(self.heard[before])
        return header.source_cid, header.token


class Turned:
    """A member that does what it wants, over stock aioquic."""

    def __init__(self, net, victim, name, *, number=1, cert=None):
        self.net, self.victim, self.name = net, victim, name
        self.address = (f"203.0.113.{number}", 4001)
        self.evil = Evil(cert or PKI.node(name), dials=True)
        self.silent = False
        net.nodes[self.address] = self
        self.evil.connect(victim.address, net.now)
        self.pump()
        net.run(0.2)

    def deliver(self, data, source):
        if not self.silent:
            self.evil.receive_datagram(data, source, self.net.now)
            self.pump()

    def pump(self):
        while self.evil.next_event() is not None:
            pass
        for data, address in self.evil.datagrams_to_send(self.net.now):
            self.net.carry(self, data, address)

    def greet(self):
        """Say hello as a good node does."""
        record = build_record(
            node_id=f"spiffe://test/node/{self.name}",
            epoch=EPOCH,
            incarnation=0,
            addresses=(),
            valid_until=EPOCH + 86_400_000,
        )
        hello = Hello(
            major=wire.MAJOR,
            minor=wire.MINOR,
            features=0,
            cluster="default",
            record=record,
            datagram_bytes_max=1_452,
            link_id=os.urandom(16),
            wanted=False,
            replaces=b"",
            yours=None,
        )
        data = bytes((Lane.CONTROL,)) + b"".join(frame(wire.LinkEncoder().encode(hello)))
        self.evil.send_stream_data(CONTROL_STREAM, data)
        self.pump()
        self.net.run(0.2)
        return self

    def send(self, frames):
        """One 1-RTT packet with these frames, straight to the victim."""
        self.victim.deliver(self.evil.packet(frames), self.address)


@pytest.fixture
def net():
    return Net(1)


@pytest.fixture
def victim(net):
    """A node with one honest link, and all limits on."""
    node = net.node("victim", settings=NetSettings())
    node.honest = net.node("honest")
    node.honest.dial(node)
    net.run(0.5)
    assert len(node.ups) == 1
    node.baseline = node.tables()
    return node


@pytest.fixture
def built(monkeypatch):
    """Connections that were built for somebody who dialled us."""
    calls = []
    real = endpoints.engines.accept

    def accept(*args, **options):
        calls.append(options["original_destination_cid"])
        return real(*args, **options)

    monkeypatch.setattr(endpoints.engines, "accept", accept)
    return calls


def assert_unharmed(net, victim):
    """The honest link carries messages both ways, and never went down."""
    honest = victim.honest
    before = len(victim.messages()), len(honest.messages())
    honest.send(victim, direct(1))
    victim.send(honest, direct(2))
    honest.pump()
    victim.pump()
    net.run(0.5)
    assert (len(victim.messages()), len(honest.messages())) == (before[0] + 1, before[1] + 1)
    assert [each for each in victim.downs if each.peer == honest.id] == []


def assert_forgotten(net, victim, seconds):
    """Nothing but the honest link is left; timers that are not due any more may wait."""
    net.run(seconds)
    assert victim.tables() | {"timers": 0} == victim.baseline | {"timers": 0}


# --- getting in -----------------------------------------------------------------------------------


def test_x02_a_node_joins_while_spoofed_initials_pour(net, victim, built):
    """4,000 a second, from as many addresses: below what is answered, above what an honest
    budget per address or half-open slot would survive."""
    stranger = Stranger(net, victim)
    packet = stranger.ask()
    joiner = net.node("joiner")
    joiner.dial(victim)
    for each in range(20):
        for number in range(200):
            stranger.send(packet, (f"198.51.{each}.{number}", 4001))
        net.run(0.05)
    assert len(joiner.ups) == 1
    assert len(built) == 1
    assert_unharmed(net, victim)


def test_x02_all_addresses_together_cost_at_most_400_handshakes_at_once(
    net, victim, built, monkeypatch
):
    """The caps on connections would hide the budget of the socket: they are raised here."""
    generous = NetSettings(half_open_max=9_999, links_max=9_999)
    monkeypatch.setattr(victim.endpoint, "_settings", generous)
    strangers = [Stranger(net, victim, (f"198.51.{n // 50}.{n % 50}", 1)) for n in range(450)]
    for each in strangers:
        each.ask()
    net.run(0.02)
    for each in strangers:
        header = header_of(each.heard[0])
        each.ask(header.source_cid, token=header.token)
    assert len(built) == 400
    assert victim.endpoint.counters.over_budget == 50


def test_x15_one_token_builds_one_connection_however_often_it_comes(net, victim, built):
    stranger = Stranger(net, victim)
    cid, token = stranger.prove()
    for number in range(100):
        stranger.ask(cid, token=token, number=number)
    assert len(built) == 1


# --- forging --------------------------------------------------------------------------------------


def test_x12_forged_packets_from_anywhere_move_nobody(net, victim):
    link = victim.link(victim.honest)
    cid = next(iter(link.engine.connection_ids))
    for number in range(2_000):
        forged = b"\x41" + cid + os.urandom(60)
        victim.deliver(forged, (f"198.51.100.{number % 250}", 1 + number))
    assert len(link.engine._network_paths) == 1
    assert link.address == victim.honest.address
    assert victim.security("link.address_changed") == []
    assert_unharmed(net, victim)


def test_a_forged_retry_for_a_link_that_is_up_changes_nothing(net, victim):
    link = victim.link(victim.honest)
    for cid in link.engine.connection_ids:
        head = b"\xf0\0\0\0\1" + bytes([len(cid)]) + cid + b"\x08" + os.urandom(8)
        victim.deliver(head + os.urandom(80), victim.honest.address)
    assert_unharmed(net, victim)


# --- random frames --------------------------------------------------------------------------------


def test_x07_random_frames_of_members_cost_those_members_alone(net, victim, caplog):
    rng = Random(7)
    for number in range(1, 21):
        turned = Turned(net, victim, f"evil{number}", number=number).greet()
        assert len(victim.ups) == number + 1
        turned.silent = True
        for _ in range(40):
            turned.send(bytes([rng.randrange(0x32)]) + rng.randbytes(rng.randrange(60)))
    assert len(caplog.records) <= 10
    assert_unharmed(net, victim)
    assert_forgotten(net, victim, 20.0)


def test_x07_random_frames_of_strangers_leave_nothing_behind(net, victim, caplog):
    rng = Random(8)
    for number in range(1, 61):
        stranger = Stranger(net, victim, (f"198.51.100.{number}", 4001))
        cid, token = stranger.prove()
        for each in range(10):
            frames = bytes([rng.randrange(0x32)]) + rng.randbytes(rng.randrange(60))
            stranger.ask(cid, frames, token=token, number=each)
    assert len(caplog.records) <= 10
    assert_unharmed(net, victim)
    assert_forgotten(net, victim, 8.0)


# --- the log --------------------------------------------------------------------------------------


def test_x16_refused_certificates_are_told_ten_times_a_minute_and_always_counted(
    net, victim, caplog
):
    caplog.set_level(logging.DEBUG, "plumtree_quic")
    for number in range(1, 31):
        cert = PKI.node("stray", uris=[f"spiffe://other/node/{number}"])
        turned = Turned(net, victim, "stray", number=number, cert=cert)
        assert turned.evil.alert == 42
    assert victim.endpoint.counters.rejected == 30
    told = victim.security("handshake.rejected")
    assert len(told) == 10
    assert all(str(value).isprintable() for each in told for value in each.fields.values())
    assert caplog.records == []
    assert_forgotten(net, victim, 8.0)
