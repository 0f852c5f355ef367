"""F-03: transport parameters of a peer, each cut off, repeated, at its largest, or unknown.

They come before anybody has proved anything: in the ClientHello, and in EncryptedExtensions. The
rules are those of RFC 9000, section 18.2; whatever is refused ends the handshake with
TRANSPORT_PARAMETER_ERROR, and nothing is raised by either side.
"""

import os

import pytest
from aioquic.buffer import UINT_VAR_MAX, Buffer, encode_uint_var

from tests.rigs.handshakes import PKI, meet

TRANSPORT_PARAMETER_ERROR = 0x08
ROLES = ("dialler", "acceptor")

NUMBERS = {
    0x01: "max_idle_timeout",
    0x03: "max_udp_payload_size",
    0x04: "initial_max_data",
    0x05: "initial_max_stream_data_bidi_local",
    0x06: "initial_max_stream_data_bidi_remote",
    0x07: "initial_max_stream_data_uni",
    0x08: "initial_max_streams_bidi",
    0x09: "initial_max_streams_uni",
    0x0A: "ack_delay_exponent",
    0x0B: "max_ack_delay",
    0x0E: "active_connection_id_limit",
    0x20: "max_datagram_frame_size",
}
OTHERS = {
    0x00: "original_destination_connection_id",
    0x02: "stateless_reset_token",
    0x0C: "disable_active_migration",
    0x0D: "preferred_address",
    0x0F: "initial_source_connection_id",
    0x10: "retry_source_connection_id",
    0x11: "version_information",
}
ALL = NUMBERS | OTHERS
# Above these the RFC wants a refusal; every other number may be as large as a number can be.
BOUNDED = {0x08, 0x09, 0x0A, 0x0B}
ACCEPTOR_ONLY = {0x00, 0x02, 0x0D, 0x10}


def announcing(change):
    """arm: `change` gets the parameters as a list of (name, value) and returns their bytes."""

    def arm(context):
        kind, data = context.handshake_extensions[0]
        buf = Buffer(data=data)
        pairs = []
        while not buf.eof():
            name = buf.pull_uint_var()
            pairs.append((name, buf.pull_bytes(buf.pull_uint_var())))
        context.handshake_extensions[0] = (kind, change(pairs))

    return arm


def packed(pairs):
    return b"".join(
        encode_uint_var(name) + encode_uint_var(len(value)) + value for name, value in pairs
    )


def without(pairs, name):
    return [pair for pair in pairs if pair[0] != name]


def value_of(name):
    """A value that the parameter may have."""
    if name == 0x03:
        return encode_uint_var(1_500)
    if name == 0x20:
        return encode_uint_var(65_535)
    if name in NUMBERS:
        return encode_uint_var(2)
    return {0x0C: b"", 0x0D: bytes(6) + bytes(18) + b"\x04cidc" + bytes(16), 0x02: bytes(16)}.get(
        name, b"\x00\x00\x00\x01" * 2
    )


def refused(outcome):
    assert outcome.ours.peer_id is None
    assert outcome.ours.ended
    assert outcome.evil.close_code == TRANSPORT_PARAMETER_ERROR, outcome.evil.close_reason
    assert len(outcome.evil.close_reason) <= 32
    assert outcome.evil.close_reason.isascii()


def meeting(evil_is, change):
    return meet(PKI.node("evil"), evil_is=evil_is, arm=announcing(change))


@pytest.mark.parametrize("evil_is", ROLES)
def test_f03_parameters_that_are_left_alone_are_accepted(evil_is):
    meeting(evil_is, packed).assert_up()


@pytest.mark.parametrize("evil_is", ROLES)
@pytest.mark.parametrize("name", ALL, ids=ALL.get)
def test_f03_a_parameter_that_is_cut_off_is_refused(evil_is, name):
    def cut(pairs):
        value = value_of(name) or b"\0"
        whole = encode_uint_var(name) + encode_uint_var(len(value)) + value
        return packed(without(pairs, name)) + whole[:-1]

    refused(meeting(evil_is, cut))


@pytest.mark.parametrize("evil_is", ROLES)
@pytest.mark.parametrize("name", ALL, ids=ALL.get)
@pytest.mark.parametrize("size", [0, 42])
def test_f03_a_parameter_whose_length_does_not_fit_its_value_is_refused(evil_is, name, size):
    if name == 0x0C and size == 0:
        meeting(evil_is, lambda pairs: packed([*without(pairs, name), (name, b"")])).assert_up()
        return
    value = bytes((2,)) * size
    refused(meeting(evil_is, lambda pairs: packed([*without(pairs, name), (name, value)])))


@pytest.mark.parametrize("evil_is", ROLES)
@pytest.mark.parametrize("name", [*ALL, 0x1234], ids=lambda name: ALL.get(name, "unknown"))
def test_f03_a_parameter_that_is_repeated_is_refused(evil_is, name):
    def repeated(pairs):
        # The right value where there is one: that it comes twice is all that is wrong.
        pair = (name, dict(pairs).get(name, value_of(name)))
        return packed([*without(pairs, name), pair, pair])

    outcome = meeting(evil_is, repeated)
    refused(outcome)
    assert outcome.evil.close_reason == "a parameter is repeated"


@pytest.mark.parametrize("evil_is", ROLES)
@pytest.mark.parametrize("name", NUMBERS, ids=ALL.get)
def test_f03_a_number_at_its_largest_is_accepted_or_refused_by_its_rule(evil_is, name):
    largest = (name, encode_uint_var(UINT_VAR_MAX))
    outcome = meeting(evil_is, lambda pairs: packed([*without(pairs, name), largest]))
    if name in BOUNDED:
        refused(outcome)
    else:
        outcome.assert_up()


@pytest.mark.parametrize("evil_is", ROLES)
@pytest.mark.parametrize("name", OTHERS, ids=ALL.get)
def test_f03_a_value_of_255_bytes_is_refused(evil_is, name):
    value = os.urandom(255)
    refused(meeting(evil_is, lambda pairs: packed([*without(pairs, name), (name, value)])))


@pytest.mark.parametrize("name", ACCEPTOR_ONLY, ids=ALL.get)
def test_f03_a_dialler_may_not_announce_what_is_the_acceptors(name):
    value = value_of(name)
    refused(meeting("dialler", lambda pairs: packed([*without(pairs, name), (name, value)])))


@pytest.mark.parametrize("evil_is", ROLES)
@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        (0x03, 1_199, False),
        (0x03, 1_200, True),
        (0x08, 2**60 + 1, False),
        (0x08, 2**60, True),
        (0x09, 2**60 + 1, False),
        (0x09, 2**60, True),
        (0x0A, 21, False),
        (0x0A, 20, True),
        (0x0B, 101, False),
        (0x0B, 100, True),
        (0x0E, 1, False),
        (0x0E, 2, True),
        (0x20, 1_199, False),
        (0x20, 1_200, True),
    ],
)
def test_f03_a_number_beyond_its_bound_is_refused_and_at_its_bound_is_not(
    evil_is, name, value, good
):
    pair = (name, encode_uint_var(value))
    outcome = meeting(evil_is, lambda pairs: packed([*without(pairs, name), pair]))
    if good:
        outcome.assert_up()
    else:
        refused(outcome)


@pytest.mark.parametrize(
    ("evil_is", "name"), [("dialler", 0x0F), ("acceptor", 0x0F), ("acceptor", 0x00)]
)
@pytest.mark.parametrize("there", [True, False], ids=["another", "none"])
def test_f03_a_connection_id_that_is_not_the_one_on_the_wire_is_refused(evil_is, name, there):
    """Section 7.3: they prove that nobody changed the first packets."""
    another = [(name, b"somebody")] if there else []
    refused(meeting(evil_is, lambda pairs: packed([*without(pairs, name), *another])))


def test_f03_a_retry_that_never_was_is_refused():
    refused(meeting("acceptor", lambda pairs: packed([*pairs, (0x10, b"somebody")])))


@pytest.mark.parametrize("name", [0x02, 0x0D], ids=ALL.get)
def test_f03_what_only_an_acceptor_may_announce_is_taken_from_it_and_moves_nobody(name):
    outcome = meeting(
        "acceptor", lambda pairs: packed([*without(pairs, name), (name, value_of(name))])
    )
    outcome.assert_up()
    # We dialled an address and stay there (section 9.6 leaves that to the dialler).
    assert outcome.ours._remote_preferred_address is None
    assert len(outcome.ours._network_paths) == 1


@pytest.mark.parametrize("evil_is", ROLES)
@pytest.mark.parametrize("name", [0x1B, 0x1234, UINT_VAR_MAX])
@pytest.mark.parametrize("size", [0, 1_000])
def test_f03_a_parameter_that_nobody_knows_is_ignored(evil_is, name, size):
    """Section 7.4.2: those of the form 31 N + 27 exist to be ignored."""
    meeting(evil_is, lambda pairs: packed([*pairs, (name, bytes(size))])).assert_up()


@pytest.mark.parametrize("evil_is", ROLES)
def test_f03_no_parameters_at_all_are_refused(evil_is):
    refused(meeting(evil_is, lambda pairs: b""))


@pytest.mark.parametrize("evil_is", ROLES)
@pytest.mark.parametrize("seed", range(20))
def test_f03_random_bytes_are_refused_and_raise_nothing(evil_is, seed):
    junk = os.urandom(1 + seed * 10)
    outcome = meeting(evil_is, lambda pairs: junk)
    assert outcome.ours.peer_id is None
    assert outcome.ours.ended
