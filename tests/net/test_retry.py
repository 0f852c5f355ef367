"""A Retry token proves one address, once, for ten seconds; anything else is dropped in silence."""

import os
import struct

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import get_retry_integrity_tag, pull_quic_header

from plumtree_quic.net import retry as retry_module
from plumtree_quic.net.retry import KEY_LIFE_S, TOKEN_LIFE_S, RetryTokens

ADDRESS = ("192.0.2.7", 7946)
ORIGINAL, SOURCE, NEXT = b"o" * 8, b"s" * 8, b"n" * 8


def retry(tokens, *, address=ADDRESS, original=ORIGINAL, now=0.0):
    return tokens.make_retry(
        address, destination_cid=original, source_cid=SOURCE, retry_cid=NEXT, now=now
    )


def token_of(datagram):
    return pull_quic_header(Buffer(data=datagram), host_cid_length=8).token


def made(tokens, **options):
    return token_of(retry(tokens, **options))


def test_the_datagram_is_a_retry_that_a_dialler_believes():
    datagram = retry(RetryTokens(0.0))
    header = pull_quic_header(Buffer(data=datagram), host_cid_length=8)
    assert header.packet_type.name == "RETRY"
    assert (header.source_cid, header.destination_cid) == (NEXT, SOURCE)
    tag = get_retry_integrity_tag(datagram[:-16], ORIGINAL, version=1)
    assert datagram[-16:] == tag


def test_a_good_token_tells_the_original_connection_id():
    tokens = RetryTokens(0.0)
    for original in (b"12345678", b"x" * 20):
        token = made(tokens, original=original)
        assert tokens.check(token, ADDRESS, NEXT, 1.0) == original


def test_a_retry_is_far_smaller_than_what_asked_for_it():
    assert len(retry(RetryTokens(0.0), original=b"x" * 20)) < 1_200 / 6


@pytest.mark.parametrize(
    ("age_s", "good"), [(0.0, True), (10.0, True), (10.01, False), (11, False)]
)
def test_x15_a_token_lives_ten_seconds(age_s, good):
    tokens = RetryTokens(100.0)
    token = made(tokens, now=100.0)
    assert (tokens.check(token, ADDRESS, NEXT, 100.0 + age_s) is not None) is good


def test_x15_a_token_from_the_future_is_refused():
    tokens = RetryTokens(100.0)
    assert tokens.check(made(tokens, now=101.0), ADDRESS, NEXT, 100.0) is None


@pytest.mark.parametrize("other", [("192.0.2.8", 7946), ("192.0.2.7", 7947), ("192.0.2.77", 946)])
def test_x15_another_address_is_refused(other):
    tokens = RetryTokens(0.0)
    assert tokens.check(made(tokens), other, NEXT, 1.0) is None


def test_x15_another_connection_id_is_refused():
    tokens = RetryTokens(0.0)
    for other in (ORIGINAL, SOURCE, b"n" * 7, b"n" * 9, b""):
        assert tokens.check(made(tokens), ADDRESS, other, 1.0) is None


def test_x15_another_nodes_token_is_refused():
    assert RetryTokens(0.0).check(made(RetryTokens(0.0)), ADDRESS, NEXT, 1.0) is None


def test_x15_junk_of_any_length_is_refused():
    tokens = RetryTokens(0.0)
    for size in range(257):
        assert tokens.check(os.urandom(size), ADDRESS, NEXT, 1.0) is None


def test_x15_any_byte_changed_or_missing_is_refused():
    tokens = RetryTokens(0.0)
    token = made(tokens)
    for at in range(len(token)):
        changed = bytearray(token)
        changed[at] ^= 1
        assert tokens.check(bytes(changed), ADDRESS, NEXT, 1.0) is None
        assert tokens.check(token[:at], ADDRESS, NEXT, 1.0) is None
    assert tokens.check(token + b"\0", ADDRESS, NEXT, 1.0) is None


def test_a_token_outlives_the_turn_of_its_key():
    tokens = RetryTokens(0.0)
    before = made(tokens, now=KEY_LIFE_S - 0.5)
    made(tokens, now=KEY_LIFE_S + 0.5)
    assert tokens.check(before, ADDRESS, NEXT, KEY_LIFE_S + 1.0) == ORIGINAL


def test_x15_an_old_key_opens_nothing_whatever_the_time_inside_says():
    """Whoever learns a key can write tokens of any time; two turns later they are worth nothing."""
    tokens = RetryTokens(0.0)
    stolen = tokens._key
    made(tokens, now=KEY_LIFE_S)
    made(tokens, now=2 * KEY_LIFE_S)
    now = 2 * KEY_LIFE_S + 1.0
    nonce = os.urandom(12)
    bound_to = f"{ADDRESS[0]}\n{ADDRESS[1]}\n".encode() + NEXT
    forged = nonce + stolen.encrypt(nonce, struct.pack(">d", now) + ORIGINAL, bound_to)
    assert tokens.check(forged, ADDRESS, NEXT, now) is None


def test_a_key_that_nobody_used_for_two_lives_is_gone_at_once():
    tokens = RetryTokens(0.0)
    made(tokens, now=0.0)
    made(tokens, now=2 * KEY_LIFE_S)
    assert tokens._older is None


def test_no_two_tokens_are_the_same():
    tokens = RetryTokens(0.0)
    assert len({made(tokens) for _ in range(200)}) == 200


def test_nothing_is_remembered_for_those_who_ask():
    tokens = RetryTokens(0.0)
    names = set(vars(tokens))
    for number in range(1_000):
        made(tokens, address=("192.0.2.9", number))
    assert set(vars(tokens)) == names
    kept = [each for each in vars(tokens).values() if isinstance(each, dict | list | set)]
    assert kept == [{}]


def test_the_token_stays_within_what_the_filter_passes():
    assert len(made(RetryTokens(0.0), original=b"x" * 20)) <= 256
    assert TOKEN_LIFE_S < KEY_LIFE_S


def test_h27_a_token_that_was_spent_is_good_no_more_and_others_are():
    tokens = RetryTokens(0.0)
    token, other = made(tokens), made(tokens)
    tokens.spend(token, 1.0)
    assert tokens.check(token, ADDRESS, NEXT, 1.0) is None
    assert tokens.check(other, ADDRESS, NEXT, 1.0) == ORIGINAL


def test_spent_tokens_are_remembered_for_their_life_and_in_bounded_number(monkeypatch):
    tokens = RetryTokens(0.0)
    for number in range(100):
        tokens.spend(b"%012d" % number, float(number))
    assert len(tokens._spent) == TOKEN_LIFE_S + 1
    monkeypatch.setattr(retry_module, "SPENT_MAX", 5)
    for number in range(100, 120):
        tokens.spend(b"%012d" % number, 99.0)
    assert len(tokens._spent) == 5
