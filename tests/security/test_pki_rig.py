"""The certificate rig itself: a wrong rig would make every identity test prove nothing."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from tests.rigs.pki import CLIENT, Pki, utc


def verify(pki, cert):
    PolicyBuilder().store(Store([pki.ca.cert])).time(
        datetime.datetime.now(datetime.UTC)
    ).build_client_verifier().verify(cert.cert, list(cert.chain))


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa2048"])
def test_a_default_certificate_is_right(key_type):
    pki = Pki("test")
    cert = pki.node("a", key_type=key_type)
    verify(pki, cert)
    sans = cert.cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sans.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://test/node/a"]


def test_an_intermediate_is_in_the_file():
    pki = Pki("test")
    cert = pki.node("a", issuer=pki.authority("between"))
    assert len(x509.load_pem_x509_certificates(cert.cert_pem)) == 2
    verify(pki, cert)


@pytest.mark.parametrize(
    "wrong",
    [
        {"not_after": utc(seconds=-1)},
        {"issuer": "self"},
        {"issuer_name": "somebody else"},
        {"ca": True},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_means_wrong(wrong):
    pki = Pki("test")
    with pytest.raises(VerificationError):
        verify(pki, pki.node("a", **wrong))


@pytest.mark.parametrize(
    "key_type", ["p521", "secp256k1", "ed448", "x25519", "dsa", "rsa1024", "rsa2047"]
)
def test_odd_keys_can_be_certified(key_type):
    assert Pki("test").node("a", key_type=key_type).cert.public_key() is not None


def test_usages_names_and_hashes_can_be_left_out_or_chosen():
    pki = Pki("test")
    bare = pki.node("a", eku=None, key_usage=None, uris=(), aki=False, ski=False)
    assert [each.oid for each in bare.cert.extensions] == [x509.BasicConstraints.oid]
    one = pki.node("a", eku=[CLIENT], sans=[x509.DNSName("a.example")])
    assert list(one.cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        CLIENT
    ]
    assert isinstance(
        pki.node("a", hash_algorithm=hashes.SHA384()).cert.signature_hash_algorithm, hashes.SHA384
    )
