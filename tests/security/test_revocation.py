"""Revocation lists: which count, what they say, and what a stale one means."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from plumtree_quic.errors import CredentialsError
from plumtree_quic.security.certs import DevCa
from plumtree_quic.security.revocation import Revocation, read_lists
from tests.rigs.pki import Pki

NOW = datetime.datetime.now(datetime.UTC)


def crl(pki, *certs, next_update=NOW + datetime.timedelta(days=1), key=None, encoding=Encoding.PEM):
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(pki.ca.cert.subject)
        .last_update(NOW - datetime.timedelta(days=9))
        .next_update(next_update)
    )
    for cert in certs:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(cert.serial_number)
            .revocation_date(NOW)
            .build()
        )
    return builder.sign(key or pki.ca.key, hashes.SHA256()).public_bytes(encoding)


@pytest.fixture(scope="module")
def pki():
    return Pki("test")


def load(pki, *contents, **options):
    named = [(f"list{number}", content) for number, content in enumerate(contents)]
    return Revocation.load(named, [pki.ca.cert], **options)


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_h18_a_certificate_on_the_list_is_revoked_and_no_other(pki, encoding):
    bad, good = pki.node("a").cert, pki.node("b").cert
    lists = load(pki, crl(pki, bad, encoding=encoding))
    assert lists.problems == ()
    assert lists.is_revoked([bad, pki.ca.cert], NOW)
    assert not lists.is_revoked([good, pki.ca.cert], NOW)


def test_several_lists_in_one_file_and_in_several_count_together(pki):
    a, b, c = (pki.node(name).cert for name in "abc")
    lists = load(pki, crl(pki, a) + b"# and\n" + crl(pki, b), crl(pki))
    assert [lists.is_revoked([each], NOW) for each in (a, b, c)] == [True, True, False]


def test_the_same_serial_of_another_ca_is_not_revoked(pki):
    other = Pki("test", common_name="another CA")
    mine = pki.node("a", serial=4711).cert
    theirs = other.node("a", serial=4711).cert
    lists = Revocation.load([("list", crl(pki, mine))], [pki.ca.cert, other.ca.cert])
    assert lists.is_revoked([mine], NOW)
    assert not lists.is_revoked([theirs], NOW)


@pytest.mark.parametrize("on_stale", ["open", "closed"])
@pytest.mark.parametrize("spoil", ["another key", "no list", "empty"])
def test_h25_a_list_that_is_not_our_cas_is_a_problem_and_counts_as_the_operator_chose(
    pki, on_stale, spoil
):
    a = pki.node("a").cert
    content = {
        "another key": crl(pki, a, key=Pki("test").ca.key),
        "no list": b"-----BEGIN X509 CRL-----\nnonsense\n-----END X509 CRL-----\n",
        "empty": b"",
    }[spoil]
    lists = load(pki, content, on_stale=on_stale)
    assert len(lists.problems) == 1
    assert "list0" in lists.problems[0]
    assert lists.is_revoked([a], NOW) is (on_stale == "closed")


@pytest.mark.parametrize("on_stale", ["open", "closed"])
def test_h25_a_stale_list_still_counts_and_refuses_everybody_only_when_chosen(pki, on_stale):
    bad, good = pki.node("a").cert, pki.node("b").cert
    yesterday = NOW - datetime.timedelta(days=1)
    lists = load(pki, crl(pki, bad, next_update=yesterday), on_stale=on_stale)
    assert lists.stale(NOW)
    assert lists.is_revoked([bad], NOW)
    assert lists.is_revoked([good], NOW) is (on_stale == "closed")
    # It was not stale two days ago, and a newer one heals it.
    assert not lists.is_revoked([good], NOW - datetime.timedelta(days=2))
    both = load(pki, crl(pki, bad, next_update=yesterday), crl(pki), on_stale=on_stale)
    assert not both.is_revoked([good], NOW)


def test_without_lists_nobody_is_revoked(pki):
    for on_stale in ("open", "closed"):
        assert not Revocation.load([], [pki.ca.cert], on_stale=on_stale).is_revoked(
            [pki.node("a").cert], NOW
        )


def test_a_directory_is_read_whole_and_what_cannot_be_read_is_named(pki, tmp_path):
    (tmp_path / "one.crl").write_bytes(crl(pki))
    (tmp_path / "two.pem").write_bytes(crl(pki))
    assert [name for name, _ in read_lists(tmp_path)] == [
        str(tmp_path / "one.crl"), str(tmp_path / "two.pem")
    ]  # fmt: skip
    with pytest.raises(CredentialsError, match=r"missing\.crl \(crl_path\) does not exist"):
        read_lists(tmp_path / "missing.crl")


def test_the_development_ca_revokes_and_keeps_what_it_has_revoked(tmp_path):
    ca = DevCa.create(tmp_path)
    for name in "abc":
        ca.issue(name)
    certs = {
        name: x509.load_pem_x509_certificate((tmp_path / f"{name}.crt").read_bytes())
        for name in "abc"
    }
    for name in "ab":
        path = ca.revoke(name)
    lists = Revocation.load(read_lists(path), [ca.cert])
    assert [lists.is_revoked([certs[name]], NOW) for name in "abc"] == [True, True, False]
    with pytest.raises(CredentialsError, match="cannot read"):
        ca.revoke("nobody")
    (tmp_path / "x.crt").write_bytes(Pki("dev").node("x").cert_pem)
    with pytest.raises(CredentialsError, match="not a certificate of this CA"):
        ca.revoke("x")
