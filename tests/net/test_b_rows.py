"""What aioquic 1.7.2 leaves open to strangers, the path and malicious peers, and our guard.

The names are the rows of the security review of aioquic (B1 to B58). Rows that a handshake, a
socket or an endpoint shows are tested with those; tests/test_rows.py knows that none is missing.
"""

import logging
import os
import random
import sys
from pathlib import Path

import pytest
from aioquic import tls
from aioquic.buffer import encode_uint_var
from aioquic.quic.packet import QuicPreferredAddress, encode_quic_retry

from plumtree_quic.errors import LocalProtocolError
from plumtree_quic.ids import NodeId
from plumtree_quic.net import engine
from plumtree_quic.net.engine import EngineFailed, EngineSettings
from plumtree_quic.net.events import DialFailed
from tests.net.test_floods import initial_to, proved
from tests.rigs.evil_quic import (
    ACCEPTOR,
    DIALLER,
    Evil,
    Initials,
    Pair,
    ack_frame,
    crypto_frame,
    datagram_frame,
    header_of,
    new_cid_frame,
    parameters,
    reset_frame,
    retire_cid_frame,
    stop_frame,
    stream_frame,
)
from tests.rigs.handshakes import PKI, A, B, good_pair, meet, our_acceptor, our_dialler
from tests.rigs.virtual_net import Net

PROTOCOL_VIOLATION, FLOW_CONTROL, STREAM_LIMIT = 0x0A, 0x03, 0x04
CRYPTO_BUFFER, PARAMETERS = 0x0D, 0x08


def evil_link(evil_is="dialler", **evil):
    """An authenticated link with an evil peer: (outcome, send), where send delivers frames."""
    outcome = meet(PKI.node("evil"), evil_is=evil_is, **evil)
    outcome.assert_up()
    ours = "acceptor" if evil_is == "dialler" else "dialler"

    def send(frames, *, source=None, number=None):
        packet = outcome.evil.packet(frames, number=number)
        outcome.pair.deliver(packet, to=ours, source=source)
        return packet

    return outcome, send


def initials_of_a_stranger():
    """(acceptor, send): a fresh acceptor, and frames in Initials that anybody can make."""
    cid, source = os.urandom(8), os.urandom(8)
    acceptor = our_acceptor()(cid)
    keys = Initials(cid, from_dialler=True)
    numbers = iter(range(1 << 20))

    def send(frames, *, number=None, now=1.0):
        packet = keys.packet(
            frames, to=cid, source=source, number=next(numbers) if number is None else number
        )
        acceptor.receive_datagram(packet, DIALLER, now)

    return acceptor, send


# --- strangers ---


def test_b03_whatever_aioquic_raises_becomes_engine_failed(monkeypatch):
    pair = good_pair()
    parent = engine.AioquicEngine.__mro__[1]

    def explode(*args, **kwargs):
        raise IndexError("pop from empty list")

    for name, call in (
        ("receive_datagram", lambda: pair.acceptor.receive_datagram(b"x" * 30, DIALLER, pair.now)),
        ("datagrams_to_send", lambda: pair.acceptor.datagrams_to_send(pair.now)),
        ("handle_timer", lambda: pair.acceptor.handle_timer(pair.now)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(parent, name, explode)
            with pytest.raises(EngineFailed):
                call()


def test_b04_junk_before_the_first_initial_is_dropped():
    acceptor = our_acceptor()(os.urandom(8))
    for first in (0x40, 0xD0, 0xE0, 0xC0):
        acceptor.receive_datagram(bytes([first]) + bytes(1199), DIALLER, 1.0)
        assert acceptor.datagrams_to_send(1.0) == []


@pytest.mark.parametrize("length", [0, 1, 8, 9, 10, 20, 24, 40, 1500])
def test_b03_junk_of_any_length_is_dropped_on_a_live_connection(length):
    outcome, _ = evil_link()
    ours = outcome.ours
    for head in (b"", b"\x40" + ours.host_cid, b"\x00" + ours.host_cid, b"\xc0\0\0\0\1"):
        ours.receive_datagram((head + bytes(length))[:length], DIALLER, outcome.pair.now)
    assert not ours.ended
    assert ours.datagrams_to_send(outcome.pair.now) == []


def test_b03_reserved_bits_close_the_connection():
    outcome, _ = evil_link()
    crypto = outcome.evil._cryptos[tls.Epoch.ONE_RTT]
    number = outcome.evil.last_number + 1
    header = b"\x59" + outcome.evil._peer_cid.cid + number.to_bytes(2, "big")
    outcome.pair.deliver(crypto.encrypt_packet(header, b"\x01\0\0\0", number), to="acceptor")
    assert outcome.ours.close_event.error_code == PROTOCOL_VIOLATION


def test_b05_gapped_initials_neither_grow_our_acks_nor_stop_our_sending():
    acceptor, send = initials_of_a_stranger()
    for number in range(0, 3000, 3):
        send(crypto_frame(b"\x01\0\x10\0"[:1], 0) + b"\x01", number=number)
    assert len(acceptor._spaces[tls.Epoch.INITIAL].ack_queue) <= engine.ACK_RANGES_MAX
    assert acceptor.datagrams_to_send(1.1)


def test_b06_a_close_with_a_long_reason_is_sent():
    pair = good_pair()
    pair.dialler.close(0x10, None, "ä\n\x1b" + "x" * 2000)
    pair.step(2)
    assert pair.acceptor.close_event.error_code == 0x10
    assert pair.acceptor.close_event.reason_phrase == "???" + "x" * 29
    assert pair.acceptor.closed_by_peer


def test_b06_a_peers_close_reason_is_cut_and_plain():
    outcome, send = evil_link()
    reason = b"\x1b[31m\n" + b"r" * 500
    send(b"\x1d\x10" + encode_uint_var(len(reason)) + reason)
    assert outcome.ours.close_event.reason_phrase == "?[31m?" + "r" * 26


def test_b07_a_connection_id_that_is_retired_as_it_comes():
    outcome, send = evil_link()
    send(new_cid_frame(9, retire_prior_to=8))
    send(new_cid_frame(8))
    # A packet to another of our connection IDs makes us change theirs, from 9 to 8.
    outcome.evil._peer_cid = outcome.evil._peer_cid_available.pop(0)
    send(b"\x01")
    assert outcome.ours._peer_cid.sequence_number == 8
    with pytest.raises(EngineFailed, match="IndexError"):
        send(new_cid_frame(9, retire_prior_to=9))


def test_b08_retiring_a_connection_id_that_was_never_announced_ends_the_connection_alone():
    outcome, send = evil_link()
    send(retire_cid_frame(1_000))
    assert outcome.ours.ended
    assert outcome.ours.close_event.error_code == PROTOCOL_VIOLATION


def test_b16_a_handshake_that_is_kept_busy_has_an_absolute_deadline():
    net = Net(7)
    b = net.node("b")
    source = ("198.51.100.9", 4433)
    cid, token = proved(net, b, source)
    keys = initial_to(b, token, source=source, cid=cid)
    began, number = net.now, 0
    while b.tables()["half_open"] and net.now < began + 60:
        number += 1
        b.deliver(keys.packet(b"\x01", to=cid, source=b"stranger", number=number), source)
        net.run(0.5)
    assert net.now - began <= b.settings.handshake_s + b.settings.close_s + 1


def test_b09_a_write_after_stop_sending_fails_on_that_link_alone():
    outcome, send = evil_link()
    outcome.ours.send_stream_data(3, b"x")
    outcome.pair.step()
    send(stop_frame(3))
    with pytest.raises(EngineFailed):
        outcome.ours.send_stream_data(3, b"more")


def test_b13_an_oversized_datagram_is_refused_and_later_ones_pass():
    pair = good_pair()
    with pytest.raises(LocalProtocolError):
        pair.dialler.send_datagram_frame(bytes(1101))
    for each in (bytes(1100), b"later"):
        pair.dialler.send_datagram_frame(each)
    pair.step(3)
    assert pair.dialler.pending_datagrams() == 0
    got = [each.data for each in pair.events["acceptor"] if hasattr(each, "data")]
    assert got == [bytes(1100), b"later"]


@pytest.mark.parametrize("evil_is", ["dialler", "acceptor"])
@pytest.mark.parametrize("size", [None, 0, 1199])
def test_b14_a_peer_that_takes_no_datagrams_is_refused(evil_is, size):
    outcome = meet(PKI.node("evil"), evil_is=evil_is, arm=parameters(max_datagram_frame_size=size))
    assert outcome.evil.close_code == PARAMETERS
    assert outcome.step == 2
    assert outcome.ours.peer_id is None


def test_b14_a_peer_that_takes_1200_is_accepted():
    arm = parameters(max_datagram_frame_size=1200)
    meet(PKI.node("evil"), evil_is="dialler", arm=arm).assert_up()


@pytest.mark.parametrize("offset", [33 * 1024, 512 * 1024, 1 << 40])
def test_b17_a_hole_in_the_handshake_is_refused_before_anything_is_allocated(offset):
    acceptor, send = initials_of_a_stranger()
    send(crypto_frame(b"x", offset))
    assert acceptor.close_event.error_code == CRYPTO_BUFFER
    assert len(acceptor._crypto_streams[tls.Epoch.INITIAL].receiver._buffer) == 0


def test_x06_a_handshake_of_single_bytes_with_holes_is_refused():
    acceptor, send = initials_of_a_stranger()
    for first in range(1, 16_384, 300):
        send(b"".join(crypto_frame(b"x", offset) for offset in range(first, first + 300, 2)))
        if acceptor.ended:
            break
    assert acceptor.close_event.error_code == CRYPTO_BUFFER
    runs = acceptor._crypto_streams[tls.Epoch.INITIAL].receiver._ranges
    assert len(runs) <= engine.CRYPTO_RUNS_MAX + 1


@pytest.mark.parametrize("claimed", [33 * 1024, 1 << 20, (1 << 24) - 1])
def test_b18_a_handshake_message_that_claims_too_much_ends_at_its_header(claimed):
    acceptor, send = initials_of_a_stranger()
    send(crypto_frame(b"\x01" + claimed.to_bytes(3, "big")))
    assert acceptor.close_event.error_code == 0x100 + 50
    assert (acceptor.failure.step, acceptor.failure.reason) == (1, "message too long")


def test_b18_one_handshake_holds_at_most_64_kib():
    acceptor, send = initials_of_a_stranger()
    header = b"\x01" + (32 * 1024).to_bytes(3, "big")
    send(crypto_frame(header))
    offset, chunk = len(header), 1000
    while not acceptor.ended and offset < 100 * 1024:
        send(crypto_frame(bytes(chunk), offset))
        offset += chunk
    assert acceptor.ended
    assert offset <= 64 * 1024


@pytest.mark.parametrize(("total", "up"), [(1000, False), (5000, True)])
def test_b18_all_messages_of_a_handshake_together_are_bounded(total, up, monkeypatch):
    monkeypatch.setattr(engine, "CRYPTO_BYTES_MAX", total)
    outcome = meet(PKI.node("evil"), evil_is="dialler")
    if up:
        outcome.assert_up()
    else:
        assert outcome.evil.close_code == CRYPTO_BUFFER
        assert outcome.step == 1


def test_b23_text_of_strangers_never_reaches_a_log(caplog):
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="quic"):
        _, send = evil_link()
        send(b"\x1d\x10\x06evil\x1b\n")
        acceptor, strange = initials_of_a_stranger()
        strange(b"\x1c\x00\x00\x05forge")
        assert acceptor.ended
    assert [each.getMessage() for each in caplog.records] == []


# --- malicious peers ---


def test_b24_x08_a_peer_reserves_no_more_than_our_windows():
    outcome, send = evil_link()
    send(stream_frame(2, b"x", 256 * 1024 - 1))
    assert not outcome.ours.ended
    send(stream_frame(2, b"x", 256 * 1024))
    assert outcome.ours.close_event.error_code == FLOW_CONTROL


def test_b24_windows_of_all_streams_together_are_one_mib():
    outcome, send = evil_link()
    for stream in range(4):
        send(stream_frame(2 + 4 * stream, b"x", 256 * 1024 - 1))
    outcome.pair.step(4)
    assert not outcome.ours.ended
    assert outcome.ours._local_max_data.value == 1024 * 1024
    send(stream_frame(2 + 4 * 4, b"x", 10))
    assert outcome.ours.close_event.error_code == FLOW_CONTROL


def test_b24_holes_never_raise_a_window():
    outcome, send = evil_link()
    for _ in range(50):
        send(stream_frame(2, b"x", 256 * 1024 - 1))
        outcome.pair.step()
    assert outcome.ours._streams[2].max_stream_data_local == 256 * 1024
    assert outcome.ours._local_max_data.value == 1024 * 1024


def test_b24_single_bytes_with_holes_end_the_connection_before_they_cost_much():
    outcome, send = evil_link()
    for first in range(1, 250_000, 400):
        send(b"".join(stream_frame(2, b"x", offset) for offset in range(first, first + 400, 2)))
        if outcome.ours.ended:
            break
    assert outcome.ours.close_event.reason_phrase == "too many holes"
    runs = outcome.ours._streams[2].receiver._ranges
    assert len(runs) <= engine.STREAM_RUNS_MAX + 1


def test_b24_a_window_of_which_every_second_packet_came_is_no_offence():
    outcome, send = evil_link()
    for offset in range(1_200, 256 * 1024 - 1_200, 2_400):
        send(stream_frame(2, bytes(1_200), offset))
    assert not outcome.ours.ended


def test_b24_consumption_raises_windows_by_what_was_consumed():
    pair = good_pair()
    sent = 0
    while sent < 3 * 1024 * 1024:
        if pair.dialler.unacknowledged_bytes() < 100_000:
            pair.dialler.send_stream_data(2, bytes(50_000))
            sent += 50_000
        pair.step()
    pair.run(1.0)
    got = sum(len(each.data) for each in pair.events["acceptor"] if hasattr(each, "stream_id"))
    assert got == sent
    window = pair.acceptor._streams[2].max_stream_data_local
    assert sent < window <= sent + 256 * 1024
    assert pair.acceptor._local_max_data.value <= sent + 1024 * 1024


def test_b25_at_most_16_streams_and_no_bidirectional_one():
    outcome, send = evil_link()
    send(stream_frame(2 + 4 * 15, b"x"))
    assert not outcome.ours.ended
    send(stream_frame(2 + 4 * 16, b"x"))
    assert outcome.ours.close_event.error_code == STREAM_LIMIT
    outcome, send = evil_link()
    send(stream_frame(0, b"x"))
    assert outcome.ours.close_event.error_code == STREAM_LIMIT


def test_b25_opened_and_closed_streams_earn_no_new_ones():
    outcome, send = evil_link()
    for number in range(16):
        send(stream_frame(2 + 4 * number, b"x", fin=True))
        outcome.pair.step()
    send(stream_frame(2 + 4 * 16, b"x"))
    assert outcome.ours.close_event.error_code == STREAM_LIMIT


def some_frame(rng, ours):
    """A frame that a member may send now and then; none of them ends the connection."""
    last = ours._packet_number - 1
    return rng.choice(
        [
            b"\x00" * 20,
            b"\x01",
            b"\x10" + encode_uint_var(1 << rng.randrange(30)),
            b"\x1a" + rng.randbytes(8),
            ack_frame(last, first=rng.randrange(min(last, 4))),
            ack_frame(last - rng.randrange(min(last, 8))),
            datagram_frame(rng.randbytes(20)),
            stream_frame(
                rng.choice([2, 6]), rng.randbytes(rng.randrange(900)), rng.randrange(3000)
            ),
        ]
    )


@pytest.mark.parametrize("seed", range(24))
def test_b03_no_timer_of_ours_fires_without_end_whatever_a_member_sends(seed):
    rng = random.Random(seed)
    outcome, send = evil_link()
    ours, evil, now = outcome.ours, outcome.evil, outcome.pair.now
    for turn in range(200):
        now += rng.choice([0.0001, 0.002, 0.02, 0.2])
        outcome.pair.now = now
        if rng.random() < 0.9:
            evil._packet_number += rng.choice([0, 0, 0, 1, 2])
            source = ("192.0.2.9", 2000) if seed % 2 and turn == 100 else None
            send(some_frame(rng, ours) + some_frame(rng, ours), source=source)
        if rng.random() < 0.3:
            ours.send_stream_data(3 + 4 * rng.randrange(3), bytes(rng.randrange(1, 20_000)))
        ours.datagrams_to_send(now)
        fired = 0
        while (due := ours.get_timer()) < now + 0.001:
            now = max(now, due) + 1e-6
            ours.handle_timer(now)
            ours.datagrams_to_send(now)
            fired += 1
            assert fired < 20
    assert not ours.ended


def test_b26_gapped_packets_leave_a_bounded_table():
    outcome, send = evil_link()
    first = outcome.evil.last_number + 1
    for number in range(first, first + 6000, 2):
        send(b"\x01", number=number)
        if number % 100 == 0:
            outcome.ours.datagrams_to_send(outcome.pair.now)
    assert len(outcome.ours._spaces[tls.Epoch.ONE_RTT].ack_queue) <= engine.ACK_RANGES_MAX


def test_b26_an_ack_of_more_ranges_than_we_ever_make_ends_the_connection():
    outcome, send = evil_link()
    pair = outcome.pair
    for _ in range(2 * engine.ACK_RANGES_MAX + 8):
        outcome.ours.ping(0)
        pair.step(2)
    last = outcome.ours._packet_number - 1

    def alternate(ranges):
        return b"\x02" + b"".join(map(encode_uint_var, (last, 0, ranges, 0))) + b"\0\0" * ranges

    assert last > 2 * engine.ACK_RANGES_MAX + 2
    send(alternate(engine.ACK_RANGES_MAX))
    assert not outcome.ours.ended
    send(alternate(engine.ACK_RANGES_MAX + 1))
    assert outcome.ours.close_event.reason_phrase == "too many ack ranges"


def test_b27_a_peer_that_never_acknowledges_is_dropped_before_our_table_is_large():
    outcome, send = evil_link()
    ours, now = outcome.ours, outcome.pair.now
    for _ in range(40_000):
        send(b"\x01")
        now += 0.001
        # The evil side gets nothing, so it acknowledges nothing.
        ours.datagrams_to_send(now + engine.ACK_DELAY_S)
        if ours.ended:
            break
    assert ours.ended
    assert ours.close_event.reason_phrase == "table limit"
    assert len(ours._spaces[tls.Epoch.ONE_RTT].sent_packets) <= engine.SENT_PACKETS_MAX + 128


def test_b27_an_honest_peer_is_asked_for_an_ack_now_and_then():
    pair = good_pair()
    for _ in range(500):
        pair.dialler.send_stream_data(2, b"x")
        pair.step(4)
    # Without our PINGs the acceptor, which only acknowledges, would hold 500 packets.
    held = len(pair.acceptor._spaces[tls.Epoch.ONE_RTT].sent_packets)
    assert held <= 2 * engine.ACK_ONLY_PACKETS_PER_PING


def test_b28_an_ack_of_a_packet_never_sent_ends_the_connection():
    outcome, send = evil_link()
    last = outcome.ours._packet_number - 1
    send(ack_frame(last))
    assert not outcome.ours.ended
    send(ack_frame(last + 1))
    assert outcome.ours.close_event.error_code == PROTOCOL_VIOLATION


def test_b29_more_than_four_addresses_a_minute_end_the_connection():
    outcome, send = evil_link()
    for port in range(5):
        assert not outcome.ours.ended
        assert outcome.ours.address_changes == port
        send(b"\x01", source=("192.0.2.1", 5000 + port))
        outcome.ours.datagrams_to_send(outcome.pair.now)
    assert outcome.ours.close_event.reason_phrase == "too many addresses"


def test_b29_a_move_a_minute_is_forgotten():
    outcome, send = evil_link()
    for port in range(12):
        outcome.pair.dialler_address = ("192.0.2.1", 5000 + port)
        for _ in range(2):
            outcome.pair.now += 10.0
            send(b"\x01")
            outcome.pair.step(4)
    assert not outcome.ours.ended
    assert outcome.ours.address_changes == 3


def test_b29_one_move_is_fine_and_forged_packets_spend_no_ones_budget():
    outcome, send = evil_link()
    for port in range(100):
        outcome.pair.deliver(
            bytes([0x41]) + outcome.ours.host_cid + os.urandom(40),
            to="acceptor",
            source=("192.0.2.1", 6000 + port),
        )
    assert outcome.ours.address_changes == 0
    send(b"\x01", source=("192.0.2.1", 7000))
    outcome.pair.step()
    assert not outcome.ours.ended
    assert outcome.ours.get_peer_address() == ("192.0.2.1", 7000)


def test_b29_no_size_probe_goes_to_an_address_that_is_not_proved():
    outcome, send = evil_link()
    ours, now = outcome.ours, outcome.pair.now
    send(b"\x01", source=("198.51.100.7", 9))
    assert ours.get_peer_address() == ("198.51.100.7", 9)
    ours.probe_packet_size(1_452, 1)
    assert max(len(data) for data, _ in ours.datagrams_to_send(now)) <= 1_200
    send(b"\x01")
    assert ours.get_peer_address() == DIALLER
    assert 1_452 in [len(data) for data, _ in ours.datagrams_to_send(now)]


def test_b30_connection_ids_that_come_and_go_leave_no_trace():
    outcome, send = evil_link()
    for sequence in range(8, 400):
        send(new_cid_frame(sequence, retire_prior_to=sequence))
        outcome.pair.step(2)
    assert not outcome.ours.ended
    assert len(outcome.ours._peer_cid_sequence_numbers) <= 8
    assert len(outcome.ours._retire_connection_ids) <= 32


def test_b31_lanes_of_a_long_life_cost_no_object_a_message():
    pair = good_pair()
    for _ in range(300):
        pair.dialler.send_stream_data(2, b"one message")
        pair.step()
    pair.run(1.0)
    assert len(pair.dialler._streams) == 1
    assert len(pair.acceptor._streams) == 1
    assert len(pair.dialler._spaces[tls.Epoch.ONE_RTT].sent_packets) <= 64


@pytest.mark.parametrize("evil_is", ["dialler", "acceptor"])
def test_b32_a_peer_that_wants_to_delay_its_acks_is_refused(evil_is):
    outcome = meet(PKI.node("evil"), evil_is=evil_is, arm=parameters(max_ack_delay=101))
    assert outcome.evil.close_code == PARAMETERS
    assert outcome.step == 2
    meet(PKI.node("evil"), evil_is=evil_is, arm=parameters(max_ack_delay=100)).assert_up()


def test_b33_end_of_stream_is_told_once():
    outcome, send = evil_link()
    for _ in range(3):
        send(stream_frame(2, b"x", fin=True))
    send(reset_frame(2, final=1))
    outcome.pair.step()
    ends = [each for each in outcome.pair.events["acceptor"] if getattr(each, "end_stream", False)]
    assert len(ends) == 1


def test_b34_nothing_of_ours_uses_aioquics_asyncio_adapter():
    package = Path(engine.__file__).parents[1]
    texts = [path.read_text() for path in package.rglob("*.py")]
    assert len(texts) > 40
    assert not any("aioquic.asyncio" in text.replace("plain aioquic.asyncio", "") for text in texts)


def test_b35_what_waits_in_the_engine_is_bounded():
    pair = good_pair()
    for _ in range(4):
        pair.dialler.send_stream_data(2, bytes(1024 * 1024))
    with pytest.raises(LocalProtocolError, match="4 MiB"):
        pair.dialler.send_stream_data(2, b"x")
    for _ in range(256):
        pair.dialler.send_datagram_frame(b"x")
    with pytest.raises(LocalProtocolError, match="256 datagrams"):
        pair.dialler.send_datagram_frame(b"x")
    assert pair.dialler.pending_datagrams() == 256


# --- on the path ---


def test_b37_a_packet_that_is_replayed_is_not_heard_twice():
    outcome, send = evil_link()
    packet = send(datagram_frame(b"probe"))
    for _ in range(5):
        outcome.pair.deliver(packet, to="acceptor")
    outcome.pair.step()
    kinds = outcome.pair.kinds("acceptor")
    assert kinds.count("DatagramFrameReceived") == 1


@pytest.mark.parametrize("behind", [1, 2, 63, 64, 65, 126, 127, 128, 129, 130, 1_023, 1_024, 1_025])
def test_f12_what_is_replayed_from_any_place_in_the_window_or_behind_it_is_heard_once(behind):
    outcome, send = evil_link()
    packet = send(datagram_frame(b"probe"))
    first = outcome.evil.last_number
    for number in range(first + 1, first + behind + 1):
        send(b"\x01", number=number)
    outcome.pair.step()
    for _ in range(3):
        outcome.pair.deliver(packet, to="acceptor")
    outcome.pair.step()
    assert outcome.pair.kinds("acceptor").count("DatagramFrameReceived") == 1
    assert not outcome.ours.ended


def test_b38_the_dialler_stays_with_the_address_that_it_dialled():
    outcome, send = evil_link("acceptor")
    send(datagram_frame(b"x"), source=("198.51.100.9", 9))
    outcome.pair.step()
    assert outcome.ours.get_peer_address() == ACCEPTOR
    assert "DatagramFrameReceived" not in outcome.pair.kinds("dialler")


def test_b38_a_preferred_address_moves_nobody():
    elsewhere = QuicPreferredAddress(
        ipv4_address=("198.51.100.9", 9),
        ipv6_address=None,
        connection_id=os.urandom(8),
        stateless_reset_token=bytes(16),
    )
    outcome = meet(
        PKI.node("evil"), evil_is="acceptor", arm=parameters(preferred_address=elsewhere)
    )
    outcome.assert_up()
    assert [path.addr for path in outcome.ours._network_paths] == [ACCEPTOR]


def retried(token):
    """A dialler that was answered with that Retry: (dialler, its next datagrams)."""
    dialler = our_dialler()
    dialler.connect(ACCEPTOR, 1.0)
    header = header_of(dialler.datagrams_to_send(1.0)[0][0])
    retry = encode_quic_retry(
        version=1,
        source_cid=os.urandom(8),
        destination_cid=header.source_cid,
        original_destination_cid=header.destination_cid,
        retry_token=token,
    )
    dialler.receive_datagram(retry, ACCEPTOR, 1.01)
    return dialler, dialler.datagrams_to_send(1.02)


def test_b40_a_retry_token_that_leaves_no_room_is_ignored():
    _, answer = retried(b"t" * 257)
    assert answer == []
    dialler, answer = retried(b"t" * 256)
    assert header_of(answer[0][0]).token == b"t" * 256
    assert not dialler.ended


def test_b41_a_close_that_anybody_can_forge_ends_a_dial_and_the_next_one_succeeds():
    """Initial keys are public: whoever sees a dial can end it. The peer is not to blame."""
    net = Net(7)
    a, b = net.node("a"), net.node("b")
    carry, forged = net.carry, []

    def interfere(node, data, address):
        if node is a and not forged and data[0] & 0xF0 == 0xC0:
            header = header_of(data)
            if header.token:
                # An on-path attacker answers the Initial with a CONNECTION_CLOSE, and drops it.
                keys = Initials(header.destination_cid, from_dialler=False)
                close = b"\x1c\x0a\x00\x00"
                forged.append(
                    keys.packet(close, to=header.source_cid, source=b"attacker", number=0)
                )
                net.inject(forged[0], a, b.address)
                return None
        return carry(node, data, address)

    net.carry = interfere
    a.endpoint.want(b.id, [b.address], net.now)
    a.pump()
    net.run(20.0)
    assert forged
    assert [each.peer for each in a.ups] == [b.id]
    assert [each.refused for each in a.of(DialFailed)] in ([], [False])


def test_b43_keys_are_updated_after_an_hour_and_traffic_goes_on():
    pair = good_pair()

    def phase():
        return pair.dialler._cryptos[tls.Epoch.ONE_RTT].key_phase

    def exchange(text):
        pair.dialler.send_stream_data(2, text)
        pair.acceptor.send_stream_data(3, text)
        pair.step(6)

    exchange(b"before")
    assert phase() == 0
    for _ in range(400):  # keep the connection from its idle time-out
        pair.now += 10.0
        pair.dialler.ping(1)
        pair.step(4)
    exchange(b"after")
    assert pair.now > 3600
    assert not pair.dialler.ended
    for name in ("dialler", "acceptor"):
        got = [each.data for each in pair.events[name] if hasattr(each, "stream_id")]
        assert b"".join(got) == b"beforeafter"
    assert pair.dialler._keyed_at > pair.now - 1000


def test_b43_keys_are_updated_after_so_many_packets(monkeypatch):
    monkeypatch.setattr(engine, "KEY_UPDATE_PACKETS", 50)
    pair = good_pair()
    phases = set()
    for _ in range(200):
        pair.dialler.send_stream_data(2, b"x")
        pair.acceptor.send_stream_data(3, b"x")
        pair.step(3)
        phases.add(pair.dialler._cryptos[tls.Epoch.ONE_RTT].key_phase)
    assert phases == {0, 1}
    assert not pair.dialler.ended
    assert not pair.acceptor.ended


def test_b43_the_peers_key_update_counts_as_ours(monkeypatch):
    monkeypatch.setattr(engine, "KEY_UPDATE_S", 10.0)
    updates = []
    rekey = engine.AioquicEngine.rekey
    monkeypatch.setattr(
        engine.AioquicEngine, "rekey", lambda side: updates.append(side) or rekey(side)
    )
    pair = good_pair()
    for _ in range(11):
        pair.now += 1.0
        pair.dialler.ping(1)
        pair.acceptor.ping(1)
        pair.step(4)
    assert len(updates) == 1
    both = (pair.dialler, pair.acceptor)
    assert {each._cryptos[tls.Epoch.ONE_RTT].key_phase for each in both} == {1}


# --- ways round mutual TLS ---


def test_b44_our_acceptor_always_asks():
    asked = []

    def see(original, buf):
        request = original(buf)
        asked.append(request)
        return request

    meet(PKI.node("evil"), evil_is="dialler", patches={"pull_certificate_request": see})
    assert len(asked) == 1


def half_way():
    """Our acceptor once it has answered, and before the dialler has said who it is."""
    return Pair(our_dialler(), our_acceptor()).step(1).acceptor


def test_b53_nothing_can_be_queued_before_the_handshake_is_complete():
    dialler = our_dialler()
    acceptor = half_way()
    assert acceptor.tls.state is tls.State.SERVER_EXPECT_CERTIFICATE
    for side, stream in ((dialler, 2), (acceptor, 3)):
        with pytest.raises(LocalProtocolError):
            side.send_stream_data(stream, b"early")
        with pytest.raises(LocalProtocolError):
            side.send_datagram_frame(b"early")


def test_b53_a_dialler_without_a_certificate_receives_no_byte_of_ours():
    outcome = meet(None, evil_is="dialler")
    assert {"StreamDataReceived", "DatagramFrameReceived"}.isdisjoint(outcome.pair.kinds("dialler"))


def test_b55_two_dials_do_not_share_whom_they_mean():
    settings = EngineSettings()
    one = engine.dial(A, settings=settings, expected=NodeId("spiffe://test/node/b"))
    other = engine.dial(A, settings=settings, expected=NodeId("spiffe://test/node/c"))
    assert Pair(one, our_acceptor(B)).step(10).dialler.peer_id == B.node_id
    assert Pair(other, our_acceptor(B)).step(10).dialler.peer_id is None


def test_b58_secrets_and_traces_are_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setenv("QUICLOGDIR", str(tmp_path))
    pair = good_pair()
    for side in (pair.dialler, pair.acceptor):
        assert side.configuration.secrets_log_file is None
        assert side.configuration.quic_logger is None
        assert side.configuration.server_name is None
    assert list(tmp_path.iterdir()) == []


def test_the_evil_kit_imports_nothing_of_ours():
    kit = Path(sys.modules[Evil.__module__].__file__).read_text()
    assert "import plumtree_quic" not in kit
    assert "from plumtree_quic" not in kit
