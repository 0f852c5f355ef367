"""The engine in good company: lanes, datagrams, packet sizes, what it knows of the path."""

import random
from functools import partial

import pytest
from aioquic.quic.packet import encode_quic_retry

from plumtree_quic.errors import LocalProtocolError
from plumtree_quic.net import engine
from plumtree_quic.net.engine import EVENTS, EngineFailed, EngineSettings
from tests.rigs.evil_quic import ACCEPTOR, DIALLER, Pair, header_of
from tests.rigs.handshakes import A, B, good_pair, our_acceptor, our_dialler


def received(pair, name):
    """Bytes of each stream that one side has received so far."""
    streams = {}
    for event in pair.events[name]:
        if isinstance(event, EVENTS.StreamDataReceived):
            streams[event.stream_id] = streams.get(event.stream_id, b"") + event.data
    return streams


def pings(pair, name):
    return [each.uid for each in pair.events[name] if isinstance(each, EVENTS.PingAcknowledged)]


# --- streams ---


def test_lower_streams_leave_first_in_one_transmit():
    pair = good_pair()
    for stream in (22, 2, 14, 6):
        pair.dialler.send_stream_data(stream, bytes([stream]) * 3000)
    pair.step(12)
    order = []
    for event in pair.events["acceptor"]:
        if isinstance(event, EVENTS.StreamDataReceived) and event.stream_id not in order:
            order.append(event.stream_id)
    assert order == [2, 6, 14, 22]
    assert all(len(data) == 3000 for data in received(pair, "acceptor").values())


def test_lower_streams_leave_first_beside_what_is_rare_too():
    pair = Pair(our_dialler(), our_acceptor()).step(1)
    pair._transmit("dialler")
    assert pair.acceptor.peer_id == A.node_id
    assert not all(each.was_sent for each in pair.acceptor._host_cids)
    for stream in (7, 3):
        pair.acceptor.send_stream_data(stream, bytes([stream]) * 4000)
    pair.step(12)
    order = [
        event.stream_id
        for event in pair.events["dialler"]
        if isinstance(event, EVENTS.StreamDataReceived)
    ]
    assert len(order) > 4
    assert order == sorted(order)


def test_an_urgent_lane_overtakes_what_waits_for_the_congestion_window():
    pair = good_pair()
    pair.dialler.send_stream_data(22, bytes(200_000))
    pair.step()
    pair.dialler.send_stream_data(2, b"urgent")
    pair.step(3)
    got = received(pair, "acceptor")
    assert got[2] == b"urgent"
    assert len(got[22]) < 200_000


def test_lanes_may_open_in_any_order():
    pair = good_pair()
    for stream in (31, 3, 15):
        pair.acceptor.send_stream_data(stream, b"x%d" % stream)
    pair.step(3)
    assert received(pair, "dialler") == {31: b"x31", 3: b"x3", 15: b"x15"}


@pytest.mark.parametrize("stream", [0, 1, 3])
def test_only_our_own_one_way_streams_are_written(stream):
    pair = good_pair()
    with pytest.raises(EngineFailed):
        pair.dialler.send_stream_data(stream, b"x")


def test_all_bytes_arrive_in_order_through_loss_and_reordering():
    rng = random.Random(5)

    def on_wire(from_dialler, datagram):
        if pair is not None and rng.random() < 0.2:
            return []
        return [datagram]

    pair = None
    lossy = good_pair(on_wire=on_wire)
    pair = lossy
    texts = {2: rng.randbytes(40_000), 6: rng.randbytes(40_000)}
    for stream, text in texts.items():
        pair.dialler.send_stream_data(stream, text)
    back = rng.randbytes(40_000)
    pair.acceptor.send_stream_data(3, back)
    pair.run(60.0)
    assert received(pair, "acceptor") == texts
    assert received(pair, "dialler") == {3: back}
    assert 0 < pair.dialler.path().lost < pair.dialler.path().sent
    assert pair.dialler.unacknowledged_bytes() == 0


def test_frames_of_one_turn_share_packets():
    pair = good_pair()
    pair.run(1.0)
    before = len(pair.sent["dialler"])
    for number in range(40):
        pair.dialler.send_stream_data(2 + 4 * (number % 4), b"frame of about 25 bytes .")
    pair.step()
    assert len(pair.sent["dialler"]) - before == 1


def test_an_acknowledgement_rides_on_data_and_does_not_cost_a_packet():
    pair = good_pair()
    pair.run(1.0)
    before = len(pair.sent["acceptor"])
    for _ in range(50):
        pair.dialler.send_stream_data(2, b"ping")
        pair.acceptor.send_stream_data(3, b"pong")
        pair.step()
    assert len(pair.sent["acceptor"]) - before <= 52


def test_many_packets_are_acknowledged_before_the_delay_is_over():
    pair = good_pair()
    pair.dialler.send_stream_data(2, bytes(10_000))
    pair.step()
    assert pair.dialler.unacknowledged_bytes() < 10_000


def test_two_large_packets_are_acknowledged_before_the_delay_is_over():
    pair = good_pair()
    pair.dialler.set_packet_size(16_000)
    window = pair.dialler.path().window_bytes
    assert window == 32_000
    pair.dialler.send_stream_data(2, bytes(100_000))
    pair.step()
    assert pair.dialler.path().window_bytes > window


def test_who_says_so_puts_off_no_acknowledgement():
    pair = good_pair(latency_s=0.001)
    pair.run(1.0)
    for awaited in (False, True):
        pair.dialler.send_stream_data(2, b"one packet")
        pair.step()
        assert pair.dialler.unacknowledged_bytes()
        if awaited:
            pair.acceptor.acknowledge_now()
        pair.run(0.003)
        assert (pair.dialler.unacknowledged_bytes() == 0) is awaited
        pair.run(1.0)


def test_a_few_packets_wait_for_the_acknowledgement_delay():
    pair = good_pair(latency_s=0.001)
    pair.run(1.0)
    before = len(pair.sent["acceptor"])
    for _ in range(40):
        pair.dialler.send_stream_data(2, b"one a millisecond")
        pair.step()
    assert len(received(pair, "acceptor")[2]) == 40 * 17
    assert 4 <= len(pair.sent["acceptor"]) - before <= 40 // engine.ACK_EVERY_PACKETS + 1


def small_windows(stream_bytes, link_bytes=1 << 20, **rest):
    """A pair whose acceptor takes so much beyond what it has consumed."""
    settings = EngineSettings(stream_window_bytes=stream_bytes, link_window_bytes=link_bytes)
    acceptor = partial(engine.accept, B, settings=settings, retry_source_cid=None)
    pair = Pair(our_dialler(), lambda cid: acceptor(original_destination_cid=cid), **rest)
    return pair.step(10)


def test_a_new_limit_is_told_once_half_a_window_is_consumed():
    pair = small_windows(10_000, 10_000)
    pair.dialler.send_stream_data(2, bytes(4_999))
    pair.run(1.0)
    limits = pair.dialler._streams[2].max_stream_data_remote, pair.dialler._remote_max_data
    assert limits == (10_000, 10_000)
    pair.dialler.send_stream_data(2, bytes(1))
    pair.step(1)
    limits = pair.dialler._streams[2].max_stream_data_remote, pair.dialler._remote_max_data
    assert limits == (15_000, 15_000)


@pytest.mark.parametrize("windows", [(10_000, 1 << 20), (1 << 20, 10_000)])
def test_a_window_that_filled_behind_a_lost_packet_opens_when_that_comes_again(windows):
    lost = []

    def on_wire(from_dialler, datagram):
        if from_dialler and armed and not lost:
            lost.append(datagram)
            return []
        return [datagram]

    armed = False
    pair = small_windows(*windows, on_wire=on_wire)
    armed = True
    pair.dialler.send_stream_data(2, bytes(30_000))
    pair.run(5.0)
    assert lost
    assert len(received(pair, "acceptor")[2]) == 30_000


@pytest.mark.parametrize("windows", [(10_000, 1 << 20), (1 << 20, 10_000)])
def test_a_limit_that_was_lost_is_told_again(windows):
    cut = 0

    def on_wire(from_dialler, datagram):
        nonlocal cut
        if not from_dialler and cut:
            cut -= 1
            return []
        return [datagram]

    pair = small_windows(*windows, on_wire=on_wire)
    cut = 2
    pair.dialler.send_stream_data(2, bytes(30_000))
    pair.run(5.0)
    assert cut == 0
    assert len(received(pair, "acceptor")[2]) == 30_000


@pytest.mark.parametrize(("from_rtt_s", "paced"), [(0.0005, True), (0.005, False)])
def test_only_a_path_that_timers_can_divide_is_paced(monkeypatch, from_rtt_s, paced):
    monkeypatch.setattr(engine, "PACE_FROM_RTT_S", from_rtt_s)
    pair = good_pair()
    pair.dialler.send_stream_data(2, bytes(5_000))
    pair.step(5)
    assert 0.0005 < pair.dialler._loss._rtt_min < 0.005
    assert (pair.dialler._loss._pacer.packet_time is not None) is paced


# --- datagrams and pings ---


def test_datagrams_arrive_and_are_not_sent_again():
    dropped = []

    def on_wire(from_dialler, datagram):
        if armed and from_dialler:
            dropped.append(datagram)
            return []
        return [datagram]

    armed = False
    pair = good_pair(on_wire=on_wire)
    pair.dialler.send_datagram_frame(b"one")
    pair.step(2)
    armed = True
    pair.dialler.send_datagram_frame(b"lost")
    pair.step(2)
    armed = False
    pair.run(3.0)
    got = [
        each.data
        for each in pair.events["acceptor"]
        if isinstance(each, EVENTS.DatagramFrameReceived)
    ]
    assert got == [b"one"]
    assert dropped


def test_stale_datagrams_can_be_taken_back():
    pair = good_pair()
    pair.dialler.send_datagram_frame(b"stale")
    assert pair.dialler.pending_datagrams() == 1
    pair.dialler.drop_pending_datagrams()
    pair.step(3)
    assert "DatagramFrameReceived" not in pair.kinds("acceptor")


def test_a_ping_is_acknowledged_with_its_number():
    pair = good_pair()
    pair.dialler.ping(77)
    pair.step(4)
    assert pings(pair, "dialler") == [77]


# --- packet size ---


def test_the_handshake_uses_packets_of_1200_bytes():
    pair = good_pair()
    assert max(map(len, pair.sent["dialler"] + pair.sent["acceptor"])) == 1200
    dialler = our_dialler()
    with pytest.raises(LocalProtocolError):
        dialler.set_packet_size(1400)


@pytest.mark.parametrize("size", [1252, 1452, 4000, 16_000])
def test_a_larger_packet_size_is_used_from_then_on(size):
    pair = good_pair()
    pair.dialler.set_packet_size(size)
    pair.acceptor.set_packet_size(size)
    pair.dialler.send_stream_data(2, bytes(200_000))
    pair.run(2.0)
    assert len(received(pair, "acceptor")[2]) == 200_000
    assert max(map(len, pair.sent["dialler"])) == size


def test_a_size_probe_has_exactly_that_size_and_is_answered():
    pair = good_pair()
    pair.dialler.probe_packet_size(1452, 9)
    pair.step(4)
    assert 1452 in map(len, pair.sent["dialler"])
    assert pings(pair, "dialler") == [9]


def test_a_size_probe_that_is_lost_is_not_answered_by_a_small_packet():
    pair = good_pair(on_wire=lambda _, datagram: [datagram] if len(datagram) <= 1200 else [])
    pair.dialler.probe_packet_size(1452, 9)
    pair.run(5.0)
    pair.dialler.ping(1)
    pair.step(4)
    assert pings(pair, "dialler") == [1]


def test_large_packets_that_are_lost_in_a_row_are_counted_until_one_passes():
    blocked = True
    pair = good_pair(
        on_wire=lambda _, datagram: [datagram] if len(datagram) <= 1200 or not blocked else []
    )
    pair.dialler.set_packet_size(1452)
    pair.dialler.send_stream_data(2, bytes(20_000))
    pair.run(5.0)
    assert pair.dialler.large_losses >= 3
    blocked = False
    pair.run(5.0)
    assert pair.dialler.large_losses == 0


# --- what it knows of the path ---


def test_path_tells_the_round_trip_and_when_an_ack_last_advanced():
    pair = good_pair(latency_s=0.02)
    pair.dialler.ping(1)
    pair.step(4)
    path = pair.dialler.path()
    assert 0 < path.rtt_s < 0.1
    assert path.pto_s > path.rtt_s
    assert path.window_bytes >= 12_000
    assert path.bytes_in_flight == 0
    fresh = path.fresh_at
    assert 0 < fresh <= pair.now
    pair.run(2.0)
    assert pair.dialler.path().fresh_at == fresh
    pair.dialler.ping(2)
    pair.step(4)
    assert pair.dialler.path().fresh_at > fresh


def test_a_silent_peer_shows_as_bytes_in_flight_and_no_fresh_ack():
    cut = False
    pair = good_pair(on_wire=lambda _, datagram: [] if cut else [datagram])
    pair.run(1.0)
    fresh = pair.dialler.path().fresh_at
    cut = True
    pair.dialler.send_stream_data(2, b"x")
    pair.run(3.0)
    assert pair.dialler.path().bytes_in_flight > 0
    assert pair.dialler.path().fresh_at == fresh


def test_an_idle_connection_ends_after_15_seconds():
    pair = good_pair()
    pair.run(14.0)
    assert not pair.dialler.ended
    pair.run(3.0)
    assert pair.dialler.terminated
    assert pair.acceptor.terminated


def test_an_idle_connection_sends_nothing():
    pair = good_pair()
    pair.run(1.0)
    before = {name: len(each) for name, each in pair.sent.items()}
    pair.run(10.0)
    assert {name: len(each) for name, each in pair.sent.items()} == before


def test_windows_and_limits_are_the_settings():
    settings = EngineSettings(
        stream_window_bytes=50_000, link_window_bytes=80_000, streams_max=3, idle_timeout_s=4.0
    )
    acceptor = partial(engine.accept, B, settings=settings, retry_source_cid=None)
    pair = Pair(our_dialler(), lambda cid: acceptor(original_destination_cid=cid)).step(10)
    pair.dialler.send_stream_data(2, bytes(300_000))
    pair.step(4)
    assert pair.dialler._streams[2].sender.highest_offset <= 50_000 + 80_000
    pair.run(3.0)
    assert len(received(pair, "acceptor")[2]) == 300_000
    pair.dialler.send_stream_data(14, b"a fourth stream")
    pair.step(4)
    assert pair.dialler._streams[14].is_blocked
    pair.run(6.0)
    assert pair.dialler.terminated


# --- ends ---


def test_close_codes_and_reasons_reach_the_other_side():
    pair = good_pair()
    pair.dialler.close(0x10, None, "going away")
    pair.step(2)
    assert pair.dialler.ended
    assert pair.acceptor.ended
    assert pair.acceptor.closed_by_peer
    assert not pair.dialler.closed_by_peer
    event = pair.acceptor.close_event
    assert (event.error_code, event.reason_phrase) == (0x10, "going away")
    pair.run(3.0)
    assert pair.kinds("acceptor").count("ConnectionTerminated") == 1
    assert pair.dialler.terminated


def test_nothing_is_sent_before_connect():
    assert our_dialler().datagrams_to_send(1.0) == []


# --- Retry ---


def test_an_address_that_a_retry_proved_is_not_limited_to_three_times_what_it_sent():
    dialler = our_dialler()
    dialler.connect(ACCEPTOR, 1.0)
    first = header_of(dialler.datagrams_to_send(1.0)[0][0])
    new_cid = bytes(range(8))
    dialler.receive_datagram(
        encode_quic_retry(
            version=1,
            source_cid=new_cid,
            destination_cid=first.source_cid,
            original_destination_cid=first.destination_cid,
            retry_token=b"token",
        ),
        ACCEPTOR,
        1.01,
    )
    acceptor = engine.accept(
        B,
        settings=EngineSettings(),
        original_destination_cid=first.destination_cid,
        retry_source_cid=new_cid,
    )
    for datagram, _ in dialler.datagrams_to_send(1.02):
        assert header_of(datagram).token == b"token"
        acceptor.receive_datagram(datagram, DIALLER, 1.02)
    assert acceptor._network_paths[0].is_validated
    now = 1.02
    for _ in range(6):
        now += 0.01
        for datagram, _ in acceptor.datagrams_to_send(now):
            dialler.receive_datagram(datagram, ACCEPTOR, now)
        for datagram, _ in dialler.datagrams_to_send(now):
            acceptor.receive_datagram(datagram, DIALLER, now)
    assert acceptor.peer_id == A.node_id
    assert dialler.peer_id == B.node_id


def test_without_a_retry_the_address_is_not_proved():
    pair = Pair(our_dialler(), our_acceptor())
    pair.step()
    assert not pair.acceptor._network_paths[0].is_validated


# --- connection IDs ---


def test_all_connection_ids_by_which_the_peer_may_address_us_are_known():
    pair = good_pair()
    pair.run(1.0)
    for side in (pair.dialler, pair.acceptor):
        assert len(side.connection_ids) == 8
        assert all(len(each) == engine.CONNECTION_ID_BYTES for each in side.connection_ids)
    issued = {
        each.connection_id
        for each in pair.events["dialler"]
        if isinstance(each, EVENTS.ConnectionIdIssued)
    }
    assert issued <= set(pair.dialler.connection_ids)
