"""The filter lets pass what real connections send, and nothing that aioquic must never see."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumtree_quic.net.filter import Shape, look
from plumtree_quic.net.retry import RetryTokens
from tests.rigs.evil_quic import Pair
from tests.rigs.handshakes import credentials, our_acceptor, our_dialler

LARGEST = 1_452
CID, SOURCE = b"d" * 8, b"s" * 8


# Packets by hand (RFC 9000, section 17): the filter reads the outside alone.


def varint(value):
    for size, mark in ((1, 0), (2, 0x40), (4, 0x80), (8, 0xC0)):
        if value < 1 << (8 * size - 2):
            data = bytearray(value.to_bytes(size, "big"))
            data[0] |= mark
            return bytes(data)
    raise ValueError(value)


def long_packet(kind, rest, *, cid=CID, source=SOURCE, version=1, first=0xC0):
    head = bytes([first | kind << 4]) + version.to_bytes(4, "big")
    return head + bytes([len(cid)]) + cid + bytes([len(source)]) + source + rest


def initial(*, token=b"", length=None, body=None, size=1_200, token_length=None, **options):
    """An Initial that fills a datagram of `size` bytes, unless `body` says otherwise."""
    token_field = varint(len(token) if token_length is None else token_length) + token
    if body is None:
        overhead = len(long_packet(0, token_field, **options)) + 2
        body = bytes(size - overhead)
    length = len(body) if length is None else length
    return long_packet(0, token_field + (0x4000 | length).to_bytes(2, "big") + body, **options)


def handshake(body_bytes=40, **options):
    return long_packet(2, varint(body_bytes) + bytes(body_bytes), **options)


def short(size=29, cid=CID):
    return (b"\x40" + cid).ljust(size, b"x")


def shape(data, largest=LARGEST):
    return look(data, largest).shape


# --- what real connections send -------------------------------------------------------------------


def recorded(key_type, loss, seed):
    """Every datagram of one connection of ours, of both sides, with some lost on the way."""
    rng = Random(seed)
    wire = []

    def on_wire(_from_dialler, datagram):
        wire.append(datagram)
        return [] if rng.random() < loss else [datagram]

    pair = Pair(
        our_dialler(credentials("a", key_type=key_type)),
        our_acceptor(credentials("b", key_type=key_type)),
        on_wire=on_wire,
    )
    pair.run(2)
    pair.dialler.send_stream_data(2, bytes(3_000))
    pair.run(1)
    pair.dialler.close(error_code=0x10, reason_phrase="bye")
    pair.step(3)
    return wire


LEGITIMATE = [
    *recorded("p256", 0.0, 0),
    *recorded("rsa", 0.0, 0),
    *(each for seed in range(1, 9) for each in recorded("p256", 0.25, seed)),
]


def test_b01_every_datagram_of_real_connections_passes():
    shapes = [shape(each) for each in LEGITIMATE]
    assert Shape.DROP not in shapes
    assert {Shape.INITIAL, Shape.LONG, Shape.SHORT} == set(shapes)


def test_our_retry_passes():
    retry = RetryTokens(0.0).make_retry(
        ("192.0.2.1", 7946), destination_cid=CID, source_cid=SOURCE, retry_cid=b"r" * 8, now=0.0
    )
    verdict = look(retry, LARGEST)
    assert verdict.shape is Shape.RETRY
    assert verdict.destination_cid == SOURCE


def test_connection_ids_and_token_are_told():
    verdict = look(initial(token=b"token", cid=b"c" * 20), LARGEST)
    assert (verdict.shape, verdict.destination_cid, verdict.source_cid, verdict.token) == (
        Shape.INITIAL,
        b"c" * 20,
        SOURCE,
        b"token",
    )
    assert look(short(), LARGEST).destination_cid == CID


# --- what aioquic must never see ------------------------------------------------------------------


@pytest.mark.parametrize("token_bytes", [257, 1_100, 1_400])
def test_x01_a_token_above_256_bytes_is_dropped(token_bytes):
    body = bytes(40)
    data = initial(token=bytes(token_bytes), body=body).ljust(1_200, b"\0")
    assert shape(data, 16_000) is Shape.DROP


def test_x01_a_token_of_256_bytes_passes():
    assert shape(initial(token=bytes(256))) is Shape.INITIAL


@pytest.mark.parametrize("token_length", [1 << 14, 1 << 30, (1 << 62) - 1])
def test_x01_a_token_longer_than_its_datagram_is_dropped(token_length):
    assert shape(initial(token_length=token_length)) is Shape.DROP


@pytest.mark.parametrize("token_bytes", [1_300, 257])
def test_b40_a_retry_with_a_long_token_is_dropped(token_bytes):
    assert shape(long_packet(3, bytes(token_bytes + 16))) is Shape.DROP
    assert shape(long_packet(3, bytes(256 + 16))) is Shape.RETRY


def test_b40_a_retry_without_a_token_is_dropped():
    assert shape(long_packet(3, bytes(16))) is Shape.DROP


@pytest.mark.parametrize("body_bytes", [0, 1, 4, 19])
def test_b02_less_than_20_bytes_after_the_packet_number_offset_are_dropped(body_bytes):
    first = initial(body=bytes(1_180))
    assert shape(first + handshake(body_bytes)) is Shape.DROP
    assert shape(first + handshake(20)) is Shape.INITIAL


@pytest.mark.parametrize("size", [21, 24, 28])
def test_b02_a_short_packet_has_20_bytes_after_its_packet_number_offset(size):
    assert shape(short(size)) is Shape.DROP
    assert shape(short(29)) is Shape.SHORT


@pytest.mark.parametrize("size", [9, 21, 28])
def test_b02_a_short_packet_behind_others_has_them_too(size):
    first = initial(body=bytes(1_180))
    assert shape(first + short(size)) is Shape.DROP
    assert shape(first + short(29)) is Shape.INITIAL


@pytest.mark.parametrize("size", [0, 1, 9, 20])
def test_x01_anything_below_21_bytes_is_dropped(size):
    for first in (0x40, 0xC0, 0x00, 0xFF):
        assert shape(bytes([first]) * size) is Shape.DROP


def test_x01_short_packets_pass_up_to_what_we_advertise():
    assert shape(short(LARGEST)) is Shape.SHORT
    assert shape(short(LARGEST + 1)) is Shape.DROP
    assert shape(short(16_000), 16_000) is Shape.SHORT


def test_x01_long_packets_have_at_most_1472_bytes_wherever_we_listen():
    assert shape(initial(size=1_472), 16_000) is Shape.INITIAL
    assert shape(initial(size=1_473), 16_000) is Shape.DROP


def test_x01_a_length_beyond_the_datagram_is_dropped():
    assert shape(initial(body=bytes(1_180), length=1_181)) is Shape.DROP
    assert shape(initial(body=bytes(1_180), length=1_180)) is Shape.INITIAL


@pytest.mark.parametrize("version", [0, 2, 0x6B3343CF, 0xFF00001D, 0x0A0A0A0A])
def test_b20_any_other_version_is_dropped(version):
    """Version 0 is Version Negotiation; 0x6B3343CF is version 2 (RFC 9369)."""
    assert shape(initial(version=version)) is Shape.DROP
    first = initial(body=bytes(1_180))
    assert shape(first + handshake(version=version)) is Shape.DROP


def test_early_data_is_dropped():
    assert shape(long_packet(1, varint(40) + bytes(40))) is Shape.DROP


@pytest.mark.parametrize("first", [0x80, 0x00, 0x3F, 0xBF])
def test_a_packet_without_the_fixed_bit_is_dropped(first):
    assert shape(bytes([first]) + short(1_200)[1:]) is Shape.DROP


def test_a_long_packet_without_the_fixed_bit_is_dropped():
    assert shape(initial(first=0x80)) is Shape.DROP


def test_b19_at_most_four_packets_share_a_datagram():
    first = initial(body=bytes(1_180))
    assert shape(first + 3 * handshake(20)) is Shape.INITIAL
    assert shape(first + 2 * handshake(20) + short()) is Shape.INITIAL
    assert shape(first + 4 * handshake(20)) is Shape.DROP
    assert shape(first + 3 * handshake(20) + short()) is Shape.DROP


def test_b19_31_tiny_initials_are_dropped():
    assert shape(31 * initial(body=bytes(20), cid=CID, source=b"")) is Shape.DROP


def test_b19_all_packets_of_a_datagram_are_for_one_connection():
    first = initial(body=bytes(1_180))
    assert shape(first + handshake(20, cid=b"o" * 8)) is Shape.DROP
    assert shape(first + short(29, cid=b"o" * 8)) is Shape.DROP


def test_a_retry_stands_alone():
    retry = long_packet(3, bytes(60))
    assert shape(initial(body=bytes(1_180)) + retry) is Shape.DROP


def test_padding_behind_a_packet_is_zeros_to_the_end():
    first = initial(body=bytes(1_180))
    assert shape(first + bytes(60)) is Shape.INITIAL
    assert shape(first + bytes(30) + short(29)) is Shape.DROP
    assert shape(first + b"\x01" + bytes(30)) is Shape.DROP


@pytest.mark.parametrize("size", [100, 1_199])
def test_an_initial_datagram_has_at_least_1200_bytes(size):
    assert shape(initial(size=size)) is Shape.DROP
    assert shape(initial(size=1_200)) is Shape.INITIAL


@pytest.mark.parametrize("cid_bytes", [0, 1, 7])
def test_an_initial_has_a_destination_id_of_at_least_8_bytes(cid_bytes):
    assert shape(initial(cid=bytes(cid_bytes))) is Shape.DROP


@pytest.mark.parametrize("cid_bytes", [21, 160, 255])
def test_connection_ids_have_at_most_20_bytes(cid_bytes):
    assert shape(initial(cid=bytes(cid_bytes))) is Shape.DROP
    assert shape(initial(source=bytes(cid_bytes))) is Shape.DROP


def test_x01_every_way_to_cut_a_datagram_short_gives_a_verdict():
    for data in (initial(token=b"t" * 70), handshake(60), long_packet(3, bytes(60)), short(60)):
        for size in range(len(data)):
            look(data[:size], LARGEST)


# --- nothing raises -------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=1_600), st.sampled_from([1_452, 16_000]))
def test_no_bytes_raise(data, largest):
    look(data, largest)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(LEGITIMATE),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=6),
    st.integers(0, 1_500),
    st.binary(max_size=80),
)
def test_no_mutation_of_a_real_datagram_raises_or_passes_what_the_rules_forbid(
    data, changes, cut, tail
):
    changed = bytearray(data)
    for at, value in changes:
        if at < len(changed):
            changed[at] = value
    changed = bytes(changed[: cut or None]) + tail
    verdict = look(changed, LARGEST)
    if verdict.shape is Shape.DROP:
        return
    assert 21 <= len(changed) <= 1_472
    assert len(verdict.token) <= 256
    assert len(verdict.destination_cid) <= 20
    if verdict.shape is Shape.SHORT:
        assert len(changed) >= 29
    else:
        assert changed[1:5] == b"\0\0\0\1"
    if verdict.shape is Shape.INITIAL:
        assert len(changed) >= 1_200
        assert len(verdict.destination_cid) >= 8


@pytest.mark.parametrize("cid_bytes", [30, 255])
def test_a_connection_id_beyond_the_datagram_is_dropped(cid_bytes):
    assert look(b"\xc0\0\0\0\1" + bytes([cid_bytes]) + bytes(20), 1472).shape is Shape.DROP
