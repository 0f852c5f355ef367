"""Frames: however their bytes are cut, the same bodies come out, within bounds."""

import random

import pytest

from plumtree_quic.errors import WireError
from plumtree_quic.messages import Lane
from plumtree_quic.net.framing import (
    CONTROL_FRAME_BYTES_MAX,
    FRAME_BYTES_MAX_OF,
    FrameReader,
    frame,
)
from plumtree_quic.net.link import CREDIT_STEP_BYTES, SMALL_LANE_WINDOW
from plumtree_quic.wire import HELLO_BYTES_MAX, varint


def framed(*bodies):
    return b"".join(part for body in bodies for part in frame((body,)))


def test_a_frame_is_its_length_and_its_body():
    assert b"".join(frame((b"abc",))) == b"\x03abc"
    assert b"".join(frame((bytes(100),))) == b"\x40\x64" + bytes(100)


def test_a_body_in_parts_is_one_frame_and_its_large_part_is_not_copied():
    large = bytes(5_000)
    parts = frame((b"\x01\x02", large))
    assert parts[1] is large
    assert FrameReader(10_000).feed(b"".join(parts)) == [(b"\x01\x02" + large, 5_004)]


def test_every_cut_of_a_stream_gives_the_same_bodies():
    stream = framed(b"a", bytes(63), bytes(64), b"b" * 300)
    whole = FrameReader(1_000).feed(stream)
    assert [len(body) for body, _ in whole] == [1, 63, 64, 300]
    for cut in range(len(stream) + 1):
        reader = FrameReader(1_000)
        assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == whole
        assert reader.buffered == 0


def test_byte_by_byte_is_the_same_as_all_at_once():
    stream = framed(*(bytes([number]) * (number * 7 + 1) for number in range(60)))
    reader = FrameReader(1_000)
    bodies = [each for at in range(len(stream)) for each in reader.feed(stream[at : at + 1])]
    assert bodies == FrameReader(1_000).feed(stream)


def test_what_frames_took_adds_up_to_the_stream():
    stream = framed(b"a", bytes(200), bytes(20_000))
    assert sum(size for _, size in FrameReader(20_000).feed(stream)) == len(stream)


@pytest.mark.parametrize("declared", [1_001, (1 << 30) - 1, (1 << 32) - 1, (1 << 62) - 1])
def test_f04_a_length_bomb_is_refused_at_its_header(declared):
    reader = FrameReader(1_000)
    with pytest.raises(WireError):
        reader.feed(varint(declared))
    assert reader.buffered == 0


@pytest.mark.parametrize("declared", [1_001, (1 << 62) - 1])
def test_f04_a_length_bomb_that_comes_byte_by_byte_is_refused_at_its_last_one(declared):
    reader = FrameReader(1_000)
    *first, last = (bytes([each]) for each in varint(declared))
    for each in first:
        assert reader.feed(each) == []
    with pytest.raises(WireError):
        reader.feed(last)


def test_an_empty_frame_is_refused():
    with pytest.raises(WireError):
        FrameReader(1_000).feed(b"\x00")
    reader = FrameReader(1_000)
    assert reader.feed(b"\x40") == []
    with pytest.raises(WireError):
        reader.feed(b"\x00")


def test_the_largest_frame_passes_and_one_more_byte_does_not():
    assert FrameReader(1_000).feed(framed(bytes(1_000))) == [(bytes(1_000), 1_002)]
    with pytest.raises(WireError):
        FrameReader(1_000).feed(framed(bytes(1_001)))


def test_f02_a_frame_that_is_cut_off_is_never_given_out():
    body = random.Random(1).randbytes(500)
    stream = framed(body)
    for cut in range(len(stream)):
        assert FrameReader(1_000).feed(stream[:cut]) == []


def test_an_incomplete_frame_keeps_no_more_than_itself():
    reader = FrameReader(1_000)
    reader.feed(framed(bytes(900), bytes(900), bytes(900))[:-1])
    assert reader.buffered <= 1_002


def test_f01_random_bytes_give_bodies_or_wire_errors_and_nothing_else():
    rng = random.Random(7)
    for _ in range(3_000):
        reader = FrameReader(300)
        try:
            for _ in range(rng.randrange(1, 6)):
                for body, size in reader.feed(rng.randbytes(rng.randrange(0, 80))):
                    assert 0 < len(body) <= 300
                    assert len(body) < size <= len(body) + 8
        except WireError:
            continue
        assert reader.buffered <= 308


def test_a_large_frame_in_small_pieces_comes_out_whole():
    reader = FrameReader(70_000)
    stream = framed(bytes(65_536))
    bodies = [each for at in range(0, len(stream), 7) for each in reader.feed(stream[at : at + 7])]
    assert [len(body) for body, _ in bodies] == [65_536]


def test_every_lane_has_a_bound_and_a_hello_fits_into_control():
    assert set(FRAME_BYTES_MAX_OF) == set(Lane)
    assert HELLO_BYTES_MAX <= CONTROL_FRAME_BYTES_MAX == FRAME_BYTES_MAX_OF[Lane.CONTROL]


def test_credit_comes_before_the_smallest_window_is_used_up_by_half_a_frame():
    largest = max(FRAME_BYTES_MAX_OF.values()) + 4
    assert SMALL_LANE_WINDOW - largest >= CREDIT_STEP_BYTES
