"""One link: greeting, lanes, credit, datagrams, deadlines, packet size, expiry."""

import random

import attrs
import pytest

from plumtree_quic.messages import (
    Ack,
    Credit,
    Direct,
    Facts,
    Goodbye,
    Lane,
    MemberState,
    Ping,
    RecordsWanted,
    Row,
    Rows,
    Wanted,
)
from plumtree_quic.net import link as links
from plumtree_quic.net.events import DatagramReceived, Received, Writable
from plumtree_quic.net.framing import frame
from plumtree_quic.net.link import CloseCode, Link, LinkState
from plumtree_quic.net.settings import NetSettings
from plumtree_quic.security.identity import CLOCK_FLOOR, CLOCK_IS_WRONG
from plumtree_quic.wire import LinkEncoder, encode
from tests.net.test_floods import EvilNode
from tests.rigs.evil_quic import Evil, datagram_frame, reset_frame, stop_frame
from tests.rigs.fuzz import hostile_frames
from tests.rigs.pki import utc
from tests.rigs.virtual_net import EPOCH, PKI, START, Net, credentials, credentials_of, direct

QUIET = NetSettings(rate_limits=False)


def write(node, other, lane, data):
    """What a hostile `node` puts on one of its lanes: any bytes."""
    link = node.link(other)
    link.engine.send_stream_data(link._out[lane].stream_id, data)
    node.pump()


def framed(message):
    return b"".join(frame(LinkEncoder().encode(message)))


def closed_with(node):
    (down,) = node.downs
    return down.code


def change_hello(node, **changes):
    make = node.endpoint._make_hello
    node.endpoint._make_hello = lambda link: attrs.evolve(make(link), **changes)


# --- greeting ---


def test_both_ends_know_who_the_other_is_and_what_it_said():
    net = Net()
    a, b = net.linked()
    for node, other in ((a, b), (b, a)):
        link = node.link(other)
        assert link.state is LinkState.UP
        assert link.peer == other.id == link.hello.record.node_id
        assert link.hello.link_id == other.link(node).link_id
    assert a.ups[0].dialled_address == b.address
    assert b.ups[0].dialled_address is None


def test_nothing_is_queued_before_the_link_is_up():
    net = Net()
    a, b = net.pair()
    link = a.dial(b)
    while link.state is not LinkState.UP:
        link.send(direct(1))
        link.send_datagram(Ping(bytes(8)), net.now + 1)
        assert link.unacknowledged() == 0 or link.state is LinkState.UP
        net.run(0.001)
    net.run(1.0)
    assert b.of(Received) == b.of(DatagramReceived) == []


def test_a_dialler_is_up_only_when_the_acceptors_hello_is_here(monkeypatch):
    monkeypatch.setattr(Link, "greet", lambda link, hello: None)
    net = Net()
    a, b = net.pair()
    link = a.dial(b)
    net.run(1.0)
    assert link.engine.peer_id == b.id
    assert link.state is LinkState.GREETING
    assert a.ups == b.ups == []


@pytest.mark.parametrize("who", ["a", "b"])
def test_h05_another_cluster_is_refused(who):
    net = Net()
    a, b = net.pair()
    (a if who == "a" else b).creds = credentials(who, cluster="other")
    link = a.dial(b)
    net.run(1.0)
    assert link.close_code == CloseCode.WRONG_CLUSTER
    assert a.ups == b.ups == []
    assert "cluster" in str(a.failures[0].error)


@pytest.mark.parametrize("who", ["a", "b"])
def test_f13_another_major_version_is_refused(who):
    net = Net()
    a, b = net.pair()
    change_hello(a if who == "a" else b, major=2)
    link = a.dial(b)
    net.run(1.0)
    assert link.close_code == CloseCode.VERSION
    assert b.ups == []
    if who == "b":
        assert a.ups == []
        assert "version" in str(a.failures[0].error)
    else:
        # The dialler was up when the acceptor's hello came; its own was judged after that.
        assert closed_with(a) == CloseCode.VERSION


@pytest.mark.parametrize("minor", [0, 255])
def test_f13_another_minor_version_interoperates(minor):
    net = Net()
    a, b = net.pair()
    change_hello(a, minor=minor)
    a.dial(b)
    net.run(1.0)
    assert len(b.ups) == 1
    assert b.link(a).hello.minor == minor


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_record_of_somebody_else_is_an_identity_mismatch(who):
    net = Net()
    a, b = net.pair()
    (a if who == "a" else b).record_of = "spiffe://test/node/mallory"
    link = a.dial(b)
    net.run(1.0)
    assert link.close_code == CloseCode.IDENTITY_MISMATCH
    assert b.ups == []
    assert len(a.ups) == len(a.downs) == (who == "a")


def test_a_second_hello_closes_the_link():
    net = Net()
    a, b = net.linked()
    write(a, b, Lane.CONTROL, framed(a.link(b)._own_hello))
    net.run(1.0)
    assert closed_with(b) == CloseCode.PROTOCOL_ERROR


def test_a_frame_before_hello_closes_the_link(monkeypatch):
    def greet(link, hello):
        link.engine.send_stream_data(link._out[0].stream_id, b"\x00" + framed(Wanted(True)))

    monkeypatch.setattr(Link, "greet", greet)
    net = Net()
    a, b = net.pair()
    link = a.dial(b)
    net.run(1.0)
    assert link.close_code == CloseCode.PROTOCOL_ERROR
    assert a.ups == []


def hold_hello_back(monkeypatch, data):
    """The acceptor opens its direct lane and writes `data` before it says hello."""

    def greet(link, hello):
        if link.dialled:
            original(link, hello)
            return
        stream = link._out[Lane.DIRECT].stream_id
        link.engine.send_stream_data(stream, bytes((Lane.DIRECT,)) + data)
        link.test_hello = hello

    original = Link.greet
    monkeypatch.setattr(Link, "greet", greet)


def test_what_overtakes_a_hello_waits_for_it(monkeypatch):
    hold_hello_back(monkeypatch, framed(direct(1)) + framed(direct(2)))
    net = Net()
    a, b = net.pair()
    a.dial(b)
    net.run(0.2)
    assert a.of(Received) == []
    (theirs,) = b.endpoint._links
    theirs.engine.send_stream_data(theirs._out[0].stream_id, b"\x00" + framed(theirs.test_hello))
    b.endpoint._touched[theirs] = None
    b.pump()
    net.run(0.2)
    assert [each.seq for each in a.messages()] == [1, 2]


def test_what_comes_before_hello_is_bounded(monkeypatch):
    hold_hello_back(monkeypatch, bytes(links.EARLY_BYTES_MAX + 2))
    net = Net()
    a, b = net.pair()
    link = a.dial(b)
    kept = 0
    while link.state is not LinkState.CLOSED and net.now < START + 5:
        net.run(0.01)
        kept = max(kept, sum(map(len, link._early.values())))
    assert link.close_code == CloseCode.PROTOCOL_ERROR
    assert 0 < kept <= links.EARLY_BYTES_MAX


# --- deadlines ---


def test_a_dial_that_nobody_answers_ends_at_the_handshake_deadline():
    net = Net()
    a = net.node("a")
    link = a.endpoint.dial(("192.0.2.200", 1), None, net.now)
    a.pump()
    net.run(4.9)
    assert a.failures == []
    net.run(0.2)
    assert len(a.failures) == 1
    assert "no answer" in str(a.failures[0].error)
    net.run(1.1)
    assert link.state is LinkState.CLOSED
    assert a.tables()["links"] == 0


@pytest.mark.parametrize("silent", ["dialler", "acceptor"])
def test_a_peer_that_says_no_hello_is_gone_at_the_welcome_deadline(monkeypatch, silent):
    original = Link.greet

    def greet(link, hello):
        if link.dialled == (silent == "acceptor"):
            original(link, hello)

    monkeypatch.setattr(Link, "greet", greet)
    net = Net()
    a, b = net.pair()
    a.dial(b)
    net.run(4.8)
    patient = a if silent == "acceptor" else b
    assert len(patient.open_links()) == 1
    net.run(2.0)
    assert a.open_links() == b.open_links() == []
    assert patient.ups == []
    net.run(2.0)
    assert a.tables()["links"] == b.tables()["links"] == 0


def test_an_acceptor_gives_a_handshake_five_seconds_whatever_trickles_in():
    net = Net()
    a, b = net.pair()
    # The dialler's second flight never arrives; everything else does.
    net.path = lambda source, to, data: source is b or net.now < START + 0.03
    a.dial(b)
    net.run(1.0)
    assert b.tables()["half_open"] == 1
    net.run(5.2)
    assert b.tables()["half_open"] == 0
    net.run(1.0)
    assert b.tables()["links"] == 0


def test_a_close_that_nobody_acknowledges_is_over_after_a_second():
    net = Net()
    a, b = net.linked()
    b.crash()
    link = a.link(b)
    link.close(CloseCode.GOING_AWAY, "bye", net.now)
    a.pump()
    assert link.state is LinkState.CLOSING
    net.run(1.05)
    assert link.state is LinkState.CLOSED
    assert a.tables()["links"] == a.tables()["cids"] == 0


def test_a_close_tells_the_other_side_code_and_reason():
    net = Net()
    a, b = net.linked()
    a.link(b).close(CloseCode.OVERLOADED, "too busy", net.now)
    a.pump()
    net.run(0.1)
    assert (b.downs[0].code, b.downs[0].reason) == (CloseCode.OVERLOADED, "too busy")
    assert b.downs[0].by_peer
    assert a.downs[0].code == CloseCode.OVERLOADED
    assert not a.downs[0].by_peer


def test_a_silent_peer_is_down_after_the_idle_time():
    net = Net()
    a, b = net.linked()
    crashed_at = net.now
    b.crash()
    assert net.until(lambda: a.downs, 30.0)
    assert 14.0 <= net.now - crashed_at <= 15.5
    net.run(2.0)
    assert a.tables()["links"] == 0


def test_a_link_without_traffic_is_kept_alive_by_pings_and_costs_little():
    net = Net()
    a, b = net.linked()
    net.run(10.0)
    before = net.carried
    net.run(600.0)
    assert (a.downs, b.downs) == ([], [])
    # Each side pings every 5 s and the answer is a packet: 240 pings and as many answers at most.
    assert net.carried - before <= 4 * 120 + 20


def test_a_silent_peer_is_pinged_once_a_second_not_more():
    net = Net()
    _, b = net.linked()
    net.run(6.0)
    b.crash()
    before = net.carried
    net.run(14.0)
    assert net.carried - before < 60


def test_b37_replayed_packets_do_not_keep_a_dead_peer_alive():
    net = Net()
    recorded = []
    net.wiretap = lambda source, data, address: recorded.append((source, data))
    a, b = net.linked()
    a.send(b, direct(1))
    b.send(a, direct(1))
    a.pump()
    b.pump()
    net.run(1.0)
    replay = [data for source, data in recorded if source is b][-8:]
    b.crash()
    died_at = net.now

    def again():
        for data in replay:
            a.deliver(data, b.address)
        net.at(net.now + 0.5, again)

    net.at(net.now, again)
    assert net.until(lambda: a.downs, 30.0)
    assert net.now - died_at <= 16.0
    assert [each.seq for each in a.messages()] == [1]


def test_junk_for_a_links_address_does_not_keep_it_alive():
    net = Net()
    a, b = net.linked()
    cid = next(iter(a.link(b).connection_ids))
    b.crash()
    died_at = net.now
    rng = random.Random(1)

    def junk():
        a.deliver(b"\x40" + cid + rng.randbytes(60), b.address)
        net.at(net.now + 0.5, junk)

    net.at(net.now, junk)
    assert net.until(lambda: a.downs, 30.0)
    assert net.now - died_at <= 16.0


# --- the peer's certificate ---


@pytest.mark.parametrize("expiring", ["a", "b"])
def test_h26_a_link_is_closed_when_the_peers_certificate_expires(expiring):
    net = Net()
    a, b = net.pair()
    node, other = (a, b) if expiring == "a" else (b, a)
    not_after = utc(seconds=20)
    node.creds = credentials_of(PKI.node(expiring, not_after=not_after))
    a.dial(b)
    net.run(1.0)
    assert len(other.ups) == 1
    lives_s = (not_after - net.wall_start).total_seconds()
    net.run(START + lives_s - net.now - 0.05)
    assert other.downs == []
    net.run(1.0)
    assert other.downs[0].code == CloseCode.CERT_EXPIRED
    assert node.downs[0].code == CloseCode.CERT_EXPIRED


def test_h08_a_certificate_that_expires_before_the_hello_is_closed_at_once():
    net = Net(latency_s=1.0)
    a, b = net.pair()
    a.creds = credentials_of(PKI.node("a", not_after=utc(seconds=30)))
    # The wall clock of b passes notAfter between the check and the greeting.
    a.dial(b)
    while not any(each.engine.peer_id for each in b.endpoint._links):
        net.run(0.01)
    b.wall_offset_s = 60.0
    net.run(10.0)
    assert b.open_links() == []
    assert all(each.code == CloseCode.CERT_EXPIRED for each in b.downs)


def test_h35_a_wall_clock_that_jumps_past_expiry_is_noticed_within_a_ping():
    net = Net()
    a, b = net.linked()
    b.wall_offset_s = 2 * 86_400.0
    net.run(QUIET.ping_s + 0.5)
    assert closed_with(b) == CloseCode.CERT_EXPIRED
    assert a.downs[0].code == CloseCode.CERT_EXPIRED


YEARS_2 = 2 * 365 * 86_400.0


@pytest.mark.parametrize("jump_s", [3_600.0, YEARS_2, -YEARS_2, -3_600.0], ids=str)
@pytest.mark.parametrize("noticed_by", ["its own timer", "a dial", "a newcomer"])
def test_h35_a_wall_clock_that_jumps_is_told_once_and_who_has_expired_by_it_goes(
    jump_s, noticed_by
):
    net = Net()
    a, b = net.pair()
    b.creds = credentials_of(PKI.node("b", not_after=utc(seconds=60 * 86_400)))
    short = net.node("short")
    short.creds = credentials_of(PKI.node("short", not_after=utc(seconds=1_800)))
    for each in (a, short):
        each.dial(b)
    net.run(2.0)
    asked = []
    b.endpoint._is_revoked = lambda path, peer: asked.append(peer) or False
    b.wall_offset_s = jump_s
    if noticed_by == "a dial":
        b.dial(a)
    elif noticed_by == "a newcomer":
        net.node("c").dial(b)
    net.run(0.5 if noticed_by != "its own timer" else QUIET.ping_s + 0.5)
    (event,) = b.security("clock.jump")
    assert abs(event.fields["by_s"] - jump_s) <= 1
    assert str(b.wall().year) in event.fields["now"]
    # What has ended by the new time is cut, by its own timer or not; what has not is asked about.
    gone = {each.peer.name for each in b.downs}
    assert gone == {YEARS_2: {"a", "short"}, 3_600.0: {"short"}}.get(jump_s, set())
    assert {each.code for each in b.downs} <= {CloseCode.CERT_EXPIRED}
    assert ({"a", "short"} - gone) <= {peer.name for peer in asked}
    net.run(30.0)
    assert len(b.security("clock.jump")) == 1


@pytest.mark.parametrize("years", [-2, 2])
@pytest.mark.parametrize("wrong", ["a", "b"])
def test_h35_a_clock_that_is_years_off_refuses_handshakes_in_both_roles(years, wrong):
    net = Net()
    a, b = net.pair()
    (a if wrong == "a" else b).wall_offset_s = years * YEARS_2 / 2
    a.dial(b)
    net.run(7.0)
    assert a.ups == b.ups == []
    node = a if wrong == "a" else b
    (event,) = node.security("handshake.rejected")
    assert (event.fields["step"], event.fields["alert"]) == (8, 45)


def test_h35_a_clock_before_this_release_believes_no_certificate_however_old():
    net = Net()
    a, b = net.pair()
    lifelong = {"not_before": utc(days=-3_650), "not_after": utc(days=3_650)}
    b.creds = credentials_of(PKI.node("b", **lifelong))
    a.wall_offset_s = (CLOCK_FLOOR - net.wall_start).total_seconds() - 60.0
    a.dial(b)
    net.run(7.0)
    assert a.ups == b.ups == []
    (event,) = a.security("handshake.rejected")
    assert (event.fields["step"], event.fields["reason"]) == (8, CLOCK_IS_WRONG)


@pytest.mark.parametrize("jump_s", [YEARS_2, -YEARS_2], ids=str)
def test_h35_monotonic_timers_take_no_notice_of_the_wall_clock(jump_s):
    times = []
    for offset_s in (0.0, jump_s):
        net = Net()
        a = net.node("a")
        a.dial(net.node("b", host="192.0.2.77"))
        net.nodes.clear()
        net.at(START + 2.0, setattr, a, "wall_offset_s", offset_s)
        assert net.until(lambda a=a: a.failures, 20.0, step_s=0.01)
        times.append(net.now)
    assert times[0] == times[1]


def test_a_clock_that_is_corrected_by_a_minute_or_little_by_little_is_no_event():
    net = Net()
    _, b = net.linked()
    net.run(2.0)
    b.wall_offset_s = 59.0
    net.run(20.0)
    for _ in range(20):
        b.wall_offset_s += 10.0
        net.run(6.0)
    assert b.security("clock.jump") == []


def test_a_wall_clock_that_is_set_back_closes_nothing():
    net = Net()
    a, b = net.linked()
    b.wall_offset_s = -2 * 86_400.0
    net.run(30.0)
    assert b.downs == a.downs == []


# --- lanes ---


def test_urgent_lanes_leave_first_in_one_transmit():
    net = Net()
    a, b = net.linked()
    for message in (direct(1, 900), RecordsWanted((bytes(16),)), Facts(())):
        a.send(b, message)
    a.pump()
    net.run(0.2)
    kinds = [type(each.message) for each in b.of(Received)]
    assert kinds == [Facts, RecordsWanted, Direct]


def test_frames_of_a_lane_arrive_in_order_whatever_the_network_does():
    net = Net(3, jitter_s=0.05, loss=0.1)
    a, b = net.pair()
    a.dial(b)
    assert net.until(lambda: a.ups and b.ups, 10.0)
    for number in range(200):
        a.send(b, direct(number, 300))
        if number % 10 == 0:
            a.pump()
            net.run(0.02)
    a.pump()
    net.run(10.0)
    assert [each.seq for each in b.messages()] == list(range(200))


BAD_STREAMS = {
    "an unknown lane": (22, b"\x07"),
    "a lane twice": (30, b"\x03"),
    "a second control lane": (30, b"\x00"),
}


@pytest.mark.parametrize("kind", BAD_STREAMS)
def test_f11_lanes_that_are_none_close_the_link_and_no_other(kind):
    net = Net()
    a, b = net.linked()
    c = net.node("c")
    c.dial(b)
    net.run(0.5)
    stream, data = BAD_STREAMS[kind]
    engine = a.link(b).engine
    engine.send_stream_data(stream + 12, data)
    a.pump()
    net.run(0.2)
    assert closed_with(b) == CloseCode.PROTOCOL_ERROR
    assert b.downs[0].peer == a.id
    assert len(c.open_links()) == 1


@pytest.mark.parametrize("lane", list(Lane))
def test_f11_a_lane_that_ends_closes_the_link(lane):
    net = Net()
    a, b = net.linked()
    link = a.link(b)
    link.engine.send_stream_data(link._out[lane].stream_id, b"", end_stream=True)
    a.pump()
    net.run(0.2)
    assert closed_with(b) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("how", ["reset", "stop"])
def test_f11_a_lane_that_is_reset_or_stopped_closes_the_link(how):
    net = Net()
    a, b = net.linked()
    ours, theirs = a.link(b), b.link(a)
    if how == "reset":
        frames = reset_frame(ours._out[Lane.GOSSIP].stream_id, final=1)
    else:
        frames = stop_frame(theirs._out[Lane.GOSSIP].stream_id)
    b.deliver(Evil.packet(ours.engine, frames), a.address)
    b.send(a, direct(1))
    b.pump()
    net.run(0.2)
    assert closed_with(b) == CloseCode.PROTOCOL_ERROR
    assert b.endpoint.counters.hard_dropped == 0


def test_f11_a_message_on_the_wrong_lane_closes_the_link():
    net = Net()
    a, b = net.linked()
    write(a, b, Lane.GOSSIP, framed(Wanted(True)))
    net.run(0.2)
    assert closed_with(b) == CloseCode.PROTOCOL_ERROR


def test_nothing_is_delivered_after_a_rule_was_broken():
    net = Net()
    a, b = net.linked()
    write(a, b, Lane.DIRECT, framed(direct(1)) + b"\x01\xff" + framed(direct(2)))
    write(a, b, Lane.DIRECT, framed(direct(3)))
    net.run(0.5)
    assert [each.seq for each in b.messages()] == [1]
    assert closed_with(b) == CloseCode.PROTOCOL_ERROR


def test_f02_a_frame_cut_off_by_the_end_of_its_lane_is_not_delivered():
    body = framed(Rows((1, 2), (Row(bytes(16), EPOCH, 0, MemberState.ALIVE),), False))
    net = Net()
    b = net.node("b")
    for cut in range(1, len(body), 6):
        a = net.node(f"a{cut % 8}", host="198.51.100.1", epoch=EPOCH + cut)
        a.dial(b)
        net.run(0.3)
        link = a.link(b)
        link.engine.send_stream_data(link._out[Lane.SYNC].stream_id, body[:cut], end_stream=True)
        a.pump()
        net.run(0.3)
        assert a.downs[-1].code == CloseCode.PROTOCOL_ERROR
    assert b.of(Received) == []


def test_f01_hostile_frames_close_the_link_and_raise_nothing():
    net = Net()
    b = net.node("b")
    frames = hostile_frames(11)
    refused = 0
    for number in range(40):
        a = net.node(f"a{number % 8}", host="198.51.100.1", epoch=EPOCH + number)
        a.dial(b)
        net.run(0.3)
        for _ in range(6):
            body = next(frames)
            if a.link(b) is None:
                break
            write(
                a, b, Lane((body[0] >> 4) % 7 if body else 0), b"".join(frame((body or b"\xff",)))
            )
        net.run(0.1)
        if a.downs:
            refused += 1
            assert a.downs[0].code in (CloseCode.PROTOCOL_ERROR, CloseCode.GOING_AWAY)
    assert refused > 20
    assert b.endpoint.counters.hard_dropped == 0


# --- credit ---


def test_a_stalled_reader_stops_the_sender_at_its_credit_and_memory_is_flat():
    net = Net()
    a, b = net.linked()
    ours, theirs = a.link(b), b.link(a)
    theirs.hold(Lane.GOSSIP, True)
    theirs.hold(Lane.DIRECT, True)
    window = ours._out[Lane.DIRECT].window
    sent = 0
    while ours.room(Lane.DIRECT) > 0:
        a.send(b, direct(sent, 2_000))
        sent += 1
    assert sent * 2_000 <= window
    levels = []
    for _ in range(20):
        a.pump()
        net.run(1.0)
        got = len(b.messages())
        levels.append((got, ours.backlog(Lane.DIRECT), ours.engine.unacknowledged_bytes()))
        assert ours._out[Lane.DIRECT].sent <= window
        assert sum(each.reader.buffered for each in theirs._in.values()) <= 4_096
    assert len(set(levels)) == 1
    assert ours.room(Lane.DIRECT) <= 0
    # More is queued, not sent; what other lanes carry goes on.
    for number in range(sent, sent + 50):
        a.send(b, direct(number, 2_000))
    a.send(b, Facts(()))
    a.pump()
    net.run(1.0)
    assert len(b.messages()) <= window // 2_000 + 1
    assert len(b.messages(Facts)) == 1
    assert ours.backlog(Lane.DIRECT) > 90_000
    # The reader goes on: everything arrives, and whoever waited for room is told.
    theirs.hold(Lane.DIRECT, False)
    assert b.link(a) is theirs
    b.pump()
    net.run(2.0)
    assert [each.seq for each in b.messages()] == list(range(sent + 50))
    assert [each.lane for each in a.of(Writable)] == [Lane.DIRECT]


@pytest.mark.parametrize("windows", [(139_264, 2_097_152), (2_097_152, 139_264), (65_536 * 4, 1)])
def test_windows_that_are_configured_differently_do_not_lock_up(windows):
    net = Net()
    a = net.node("a", settings=attrs.evolve(QUIET, lane_window=windows[0]))
    b = net.node("b", settings=attrs.evolve(QUIET, lane_window=max(windows[1], 139_264)))
    a.dial(b)
    net.run(0.5)
    for number in range(60):
        a.send(b, direct(number, 60_000))
    a.pump()
    net.run(20.0)
    assert len(b.messages()) == 60
    assert (a.downs, b.downs) == ([], [])


@pytest.mark.parametrize("lie", [1 << 20, (1 << 62) - 1])
def test_credit_for_bytes_never_sent_closes_the_link(lie):
    net = Net()
    a, b = net.linked()
    write(a, b, Lane.CONTROL, framed(Credit(((Lane.GOSSIP, lie),))))
    net.run(0.2)
    assert closed_with(b) == CloseCode.PROTOCOL_ERROR


def test_credit_that_goes_back_closes_the_link():
    net = Net()
    a, b = net.linked()
    b.send(a, direct(1, 50_000))
    b.pump()
    net.run(0.5)
    write(a, b, Lane.CONTROL, framed(Credit(((Lane.DIRECT, 50_000),))))
    write(a, b, Lane.CONTROL, framed(Credit(((Lane.DIRECT, 49_999),))))
    net.run(0.2)
    assert closed_with(b) == CloseCode.PROTOCOL_ERROR


# --- caps ---


def test_a_send_backlog_above_4_mib_closes_the_link_and_is_let_go():
    net = Net()
    a, b = net.linked()
    b.link(a).hold(Lane.DIRECT, True)
    link = a.link(b)
    queued = 0
    while queued <= links.BACKLOG_BYTES_MAX + 2_000_000:
        link.send(direct(1, 60_000))
        queued += 60_000
    assert link.backlog(Lane.DIRECT) <= links.BACKLOG_BYTES_MAX + 70_000
    assert a.link(b) is link
    a.pump()
    assert a.downs[0].code == CloseCode.LIMIT_EXCEEDED
    (event,) = a.security("limit.hit")
    assert (event.fields["peer"], event.fields["what"]) == (b.id, "send backlog")
    net.run(2.0)
    assert b.downs[0].code == CloseCode.LIMIT_EXCEEDED
    assert a.tables()["links"] == 0


def test_a_backlog_of_less_than_4_mib_is_kept():
    net = Net()
    a, b = net.linked()
    b.link(a).hold(Lane.DIRECT, True)
    for number in range(60):
        a.send(b, direct(number, 60_000))
    a.pump()
    net.run(5.0)
    assert a.downs == []


def test_a_control_lane_that_is_not_acknowledged_is_bounded_by_1_mib():
    net = Net()
    a, b = net.linked()
    b.crash()
    link = a.link(b)
    rounds = 0
    while not a.downs and rounds < 400:
        for _ in range(40):
            link.send(Goodbye(0, "x" * 120))
        assert a.link(b) is link
        a.pump()
        net.run(0.001)
        rounds += 1
    assert a.downs[0].code == CloseCode.LIMIT_EXCEEDED
    assert link.close_reason == "control backlog"
    control = link._out[Lane.CONTROL]
    assert links.CONTROL_BACKLOG_BYTES_MAX < control.sent <= links.CONTROL_BACKLOG_BYTES_MAX + 8_192


def test_credit_without_acknowledgements_fills_no_buffer(monkeypatch):
    monkeypatch.setattr(links, "CONTROL_BACKLOG_BYTES_MAX", 65_536)
    net = Net()
    a, b = net.linked()
    link = a.link(b)
    b.crash()
    out = link._out[Lane.DIRECT]
    for number in range(200):
        link.send(direct(number, 20_000))
        out.consumed = out.sent  # what Credit frames of a liar do
        assert a.endpoint.link(b.id) in (link, None)
        a.pump()
        if a.downs:
            break
    assert a.downs[0].code == CloseCode.LIMIT_EXCEEDED
    assert link.close_reason == "unacknowledged"
    assert link.engine.unacknowledged_bytes() <= link._in_flight_max + 20_100


# --- datagrams ---


def datagrams(node, kind=Ping):
    messages = [each.message for each in node.of(DatagramReceived)]
    return [each.nonce for each in messages if isinstance(each, kind)]


def nonce(number):
    return number.to_bytes(8, "big")


def test_probes_and_echoes_travel_as_datagrams():
    net = Net()
    a, b = net.linked()
    a.link(b).send_datagram(Ping(nonce(1)), net.now + 1)
    b.link(a).send_datagram(Ack(nonce(2)), net.now + 1)
    a.pump()
    b.pump()
    net.run(0.1)
    assert datagrams(b) == [nonce(1)]
    assert datagrams(a, Ack) == [nonce(2)]
    assert a.of(Received) == b.of(Received) == []


def test_many_datagrams_of_one_turn_leave_without_waiting_for_anything():
    net = Net()
    a, b = net.linked()
    for number in range(9):
        a.link(b).send_datagram(Ping(nonce(number)), net.now + 1)
    a.pump()
    net.run(0.02)
    assert datagrams(b) == [nonce(number) for number in range(9)]


def test_at_most_256_datagrams_wait():
    net = Net()
    a, b = net.linked()
    link = a.link(b)
    for number in range(400):
        link.send_datagram(Ping(nonce(number)), net.now + 1)
    assert len(link._datagrams) == links.DATAGRAMS_MAX


def test_b36_a_stale_datagram_is_dropped_and_not_sent():
    net = Net()
    a, b = net.linked()
    link = a.link(b)
    # A full congestion window: datagrams obey it.
    for number in range(60):
        link.send(direct(number, 2_000))
    a.pump()
    link.send_datagram(Ping(nonce(1)), net.now + 1e-7)
    link.send_datagram(Ping(nonce(2)), net.now + 5)
    a.link(b)
    a.pump()
    assert link.engine.pending_datagrams() <= 1
    net.run(2.0)
    assert datagrams(b) == [nonce(2)]


def test_a_probe_goes_before_gossip_and_waits_at_most_one_congestion_window():
    net = Net()
    a, b = net.linked()
    link = a.link(b)
    for number in range(100):
        link.send(direct(number, 2_000))
    a.pump()
    # The window is full, and many times as much is with the engine already.
    assert net.until(
        lambda: link.path().bytes_in_flight > link.path().window_bytes - 1_500, 1.0, step_s=0.0005
    )
    path = link.path()
    b.events.clear()
    assert link.engine.unacknowledged_bytes() > 5 * path.window_bytes
    a.link(b).send_datagram(Ping(nonce(1)), net.now + 5)
    a.pump()
    assert net.until(lambda: datagrams(b), 1.0, step_s=0.001)
    kinds = [type(each) for each in b.events if isinstance(each, DatagramReceived | Received)]
    before = kinds[: kinds.index(DatagramReceived)].count(Received)
    assert before * 2_000 <= path.window_bytes
    assert before > 0


def test_a_probe_leaves_in_the_same_turn_before_gossip_that_was_queued_first():
    net = Net()
    a, b = net.linked()
    link = a.link(b)
    for number in range(4):
        link.send(direct(number, 2_000))
    link.send_datagram(Ping(nonce(1)), net.now + 1)
    a.pump()
    net.run(0.5)
    kinds = [type(each) for each in b.events if isinstance(each, DatagramReceived | Received)]
    assert kinds == [DatagramReceived] + 4 * [Received]


F12 = {
    "empty": b"",
    "one byte": b"\x70",
    "1,100 bytes of nothing known": b"\x7f" * 1_100,
    "a type of a newer version": b"\x7e" + bytes(40),
    "a probe cut off": encode(Ping(bytes(8)))[:7],
    "a probe with junk behind": encode(Ping(bytes(8)))[:9] + b"\xff\xff",
}


@pytest.mark.parametrize("kind", F12)
def test_f12_a_datagram_that_is_nothing_is_counted_and_closes_no_link(kind):
    net = Net()
    a, b = net.linked()
    a.link(b)._datagrams.append((net.now + 1, F12[kind]))
    a.pump()
    net.run(0.5)
    assert b.of(DatagramReceived) == []
    assert (a.downs, b.downs) == ([], [])
    assert b.link(a).unknown_datagrams == 1


@pytest.mark.parametrize("size", [0, 1, 1_100, 1_101, 1_200])
def test_f12_a_peer_that_sends_more_than_a_probe_can_have_is_counted_and_keeps_its_link(size):
    net = Net()
    b = net.node("b")
    evil = EvilNode(net, b).up()
    link = evil.link()
    evil.send(datagram_frame(b"\x7f" * size))
    net.run(1.0)
    assert link.unknown_datagrams == 1
    assert link.state is LinkState.UP
    assert b.of(DatagramReceived) == []


def test_f12_a_datagram_above_1100_bytes_is_not_queued():
    net = Net()
    a, b = net.linked()
    link = a.link(b)
    facts = tuple(attrs.evolve(FACT) for _ in range(10))
    link.send_datagram(Ping(nonce(1), facts), net.now + 1)
    assert not link._datagrams


FACT = attrs.make_class("Fact", {"raw": attrs.field(default=bytes(140))})()


# --- packet size ---


def sizes(net, node):
    found = []
    net.wiretap = lambda source, data, address: found.append(len(data)) if source is node else None
    return found


def test_packets_grow_to_what_both_ends_take_after_two_probes():
    net = Net()
    a = net.node("a", settings=attrs.evolve(QUIET, loopback=True))
    b = net.node("b", settings=attrs.evolve(QUIET, datagram_bytes_max=9_000))
    found = sizes(net, a)
    a.dial(b)
    net.run(0.5)
    assert found.count(9_000) == links.PACKET_PROBES
    assert max(each for each in found if each != 9_000) <= 1_200
    found.clear()
    a.send(b, direct(1, 60_000))
    a.pump()
    net.run(0.5)
    assert max(found) == 9_000
    assert len(b.messages()) == 1


def test_a_path_that_drops_large_packets_keeps_the_link_at_1200_and_is_asked_again():
    net = Net()
    net.path = lambda source, to, data: len(data) <= 1_300
    found = sizes(net, a := net.node("a"))
    b = net.node("b")
    a.dial(b)
    net.run(0.5)
    a.send(b, direct(1, 30_000))
    a.pump()
    net.run(0.4)
    assert len(b.messages()) == 1
    asked = found.count(1_452)
    assert asked == links.PACKET_PROBES
    net.path = None
    net.run(8.0)
    found.clear()
    a.send(b, direct(2, 30_000))
    a.pump()
    net.run(0.5)
    assert max(found) == 1_452


def test_a_path_that_begins_to_drop_large_packets_falls_back_to_1200():
    net = Net()
    a, b = net.linked()
    net.path = lambda source, to, data: len(data) <= 1_300
    for number in range(10):
        a.send(b, direct(number, 3_000))
    a.pump()
    net.run(10.0)
    assert [each.seq for each in b.messages()] == list(range(10))
    assert (a.downs, b.downs) == ([], [])
    found = sizes(net, a)
    a.send(b, direct(99, 30_000))
    a.pump()
    net.run(1.0)
    assert max(found) <= 1_200
    # It is tried again, but not soon.
    found.clear()
    net.path = None
    net.run(links.PROBE_AGAIN_S[-1] + 5)
    found.clear()
    a.send(b, direct(100, 30_000))
    a.pump()
    net.run(1.0)
    assert max(found) == 1_452
