"""The ordered check as functions: what the handshake tests cannot reach on the wire."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from plumtree_quic.ids import NodeId
from plumtree_quic.security.identity import (
    CHECKS,
    OWN_IDENTITY,
    CheckFailed,
    check_chain,
    check_key,
    check_meant,
    parse_certificates,
    parse_identity,
    public_key_of,
)
from tests.rigs.pki import Pki, make_key, utc

PKI = Pki("test")
A, B = NodeId("spiffe://test/node/a"), NodeId("spiffe://test/node/b")


def failure(check, *args):
    with pytest.raises(CheckFailed) as failed:
        check(*args)
    return failed.value.step, failed.value.alert


def duplicated_extension():
    spare = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x30\0")
    der = PKI.node("a", extensions=[(spare, False)]).der
    return x509.load_der_x509_certificate(
        der.replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x11")
    )


def test_the_steps_are_numbered_from_1_to_13_and_each_says_what_to_do():
    assert [each.step for each in CHECKS] == list(range(1, 14))
    assert all(each.name and each.fix for each in CHECKS)


def test_our_own_certificate_defines_the_trust_domain():
    assert parse_identity(PKI.node("a").cert, None) == A
    assert failure(parse_identity, PKI.node("a").cert, "other") == (10, 42)


def test_a_certificate_without_any_san_has_no_identity():
    assert failure(parse_identity, PKI.node("a", uris=()).cert, "test") == (10, 42)


def test_extensions_that_do_not_parse_are_a_bad_certificate_in_every_step():
    cert = duplicated_extension()
    assert failure(check_chain, cert, [], [PKI.ca.cert], utc()) == (9, 42)
    assert failure(parse_identity, cert, "test") == (10, 42)
    assert failure(parse_certificates, [cert.public_bytes(Encoding.DER)]) == (4, 42)


def test_issuers_are_checked_with_the_chain_too():
    weak = PKI.authority("weak", key_type="ed25519")
    leaf = PKI.node("a", issuer=weak)
    assert failure(check_chain, leaf.cert, leaf.chain, [PKI.ca.cert], utc()) == (5, 43)


@pytest.mark.parametrize("key_type", ["p256", "p384", "p521", "rsa"])
def test_issuer_keys_that_are_fine(key_type):
    leaf = PKI.node("a", issuer=PKI.authority("inter", key_type=key_type))
    check_chain(leaf.cert, leaf.chain, [PKI.ca.cert], utc())


def test_an_intermediate_may_be_the_anchor():
    inter = PKI.authority("inter")
    check_chain(PKI.node("a", issuer=inter).cert, [], [inter.cert], utc())


def test_no_anchor_no_path():
    assert failure(check_chain, PKI.node("a").cert, [], [PKI.ca.cert], utc(days=5)) == (8, 45)
    assert failure(check_chain, PKI.node("a").cert, [], [Pki("x").ca.cert], utc()) == (9, 48)


def test_keys_that_are_fine_and_things_that_are_no_keys():
    for kind in ("p256", "p384", "ed25519", "rsa"):
        check_key(make_key(kind).public_key())
    assert failure(check_key, ValueError("unreadable")) == (5, 43)
    assert public_key_of(PKI.ca.cert) == PKI.ca.key.public_key()


def test_an_rsa_exponent_that_makes_checking_dear_is_refused_in_leaf_and_issuer():
    key = make_key("rsa-exponent").public_key()
    assert failure(check_key, key) == (5, 43)
    dear = PKI.authority("dear", key_type="rsa-exponent")
    leaf = PKI.node("a", issuer=dear)
    assert failure(check_chain, leaf.cert, leaf.chain, [PKI.ca.cert], utc()) == (5, 43)


@pytest.mark.parametrize("year", [b"0001", b"1940", b"9999"])
def test_years_at_the_ends_of_the_calendar_are_refused_like_any_others(year):
    then = utc().replace(year=2060)
    der = PKI.node("a", not_before=then, not_after=then.replace(year=2061)).der
    der = der.replace(b"2060", year).replace(b"2061", year)
    (cert,) = parse_certificates([der])
    for when in (utc(), cert.not_valid_before_utc, cert.not_valid_after_utc):
        with pytest.raises(CheckFailed):
            check_chain(cert, [], [PKI.ca.cert], when)


def test_whom_we_meant():
    check_meant(B, A, None)
    check_meant(B, A, B)
    assert failure(check_meant, B, A, NodeId("spiffe://test/node/c")) == (12, 49)
    with pytest.raises(CheckFailed, match=OWN_IDENTITY):
        check_meant(A, A, A)


def test_a_failure_says_its_step_and_keeps_detail_out_of_the_reason():
    failed = CheckFailed(9, 48, "no path to a trusted CA", "peer text")
    assert str(failed) == "step 9: no path to a trusted CA (peer text)"
    assert failed.reason == "no path to a trusted CA"
