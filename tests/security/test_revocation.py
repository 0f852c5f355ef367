"""Revocation lists: which count, what they say, and what a stale one means."""

import datetime
import re

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from plumtree_quic.errors import CredentialsError
from plumtree_quic.security import revocation as revocation_module
from plumtree_quic.security.certs import DevCa
from plumtree_quic.security.revocation import Revocation, read_lists
from tests.rigs.pki import Pki

NOW = datetime.datetime.now(datetime.UTC)


def days(number):
    return NOW + datetime.timedelta(days=number)


TOMORROW, LAST_WEEK = days(1), days(-9)


def crl(
    pki,
    *certs,
    next_update=TOMORROW,
    last_update=LAST_WEEK,
    ca=None,
    key=None,
    encoding=Encoding.PEM,
    extensions=(),
):
    ca = ca or pki.ca
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.cert.subject)
        .last_update(last_update)
        .next_update(next_update)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    for cert in certs:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(cert.serial_number)
            .revocation_date(NOW)
            .build()
        )
    return builder.sign(key or ca.key, hashes.SHA256()).public_bytes(encoding)


def tlv(tag, content):
    size = len(content)
    head = bytes([tag, size]) if size < 128 else bytes([tag, 0x81, size])
    return head + content


def hand_made(pki, cert, *, has_next_update=True, sha1=False):
    """A list as no library makes it any more."""
    oid = "06072a8648ce3d0401" if sha1 else "06082a8648ce3d040302"
    algorithm = tlv(0x30, bytes.fromhex(oid))
    times = [LAST_WEEK, TOMORROW][: 1 + has_next_update]
    serial = cert.serial_number.to_bytes(cert.serial_number.bit_length() // 8 + 1)
    entry = tlv(0x30, tlv(0x02, serial) + tlv(0x17, f"{NOW:%y%m%d%H%M%SZ}".encode()))
    tbs = tlv(
        0x30,
        tlv(0x02, b"\x01")
        + algorithm
        + pki.ca.cert.subject.public_bytes()
        + b"".join(tlv(0x17, f"{each:%y%m%d%H%M%SZ}".encode()) for each in times)
        + tlv(0x30, entry),
    )
    signature = pki.ca.key.sign(tbs, ec.ECDSA(hashes.SHA1() if sha1 else hashes.SHA256()))
    return tlv(0x30, tbs + algorithm + tlv(0x03, b"\x00" + signature))


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
    # Another program writes these, and renames them when they are whole.
    (tmp_path / ".one.crl.5f3a").write_bytes(b"half")
    (tmp_path / "..2026").mkdir()
    assert len(read_lists(tmp_path)) == 2
    with pytest.raises(CredentialsError, match=r"missing\.crl \(crl_path\) does not exist"):
        read_lists(tmp_path / "missing.crl")


def test_a_directory_without_a_list_is_an_error_not_a_list_that_revokes_nobody(tmp_path):
    with pytest.raises(CredentialsError, match="holds no list"):
        read_lists(tmp_path)


@pytest.mark.parametrize(
    ("name", "most", "said"),
    [
        ("LIST_BYTES_MAX", 10, "is larger than"),
        ("TOTAL_BYTES_MAX", 30, "holds more than"),
        ("LISTS_MAX", 2, "holds more than 2 files"),
    ],
)
def test_what_is_read_has_bounds(tmp_path, monkeypatch, name, most, said):
    for each in "abc":
        (tmp_path / each).write_bytes(b"x" * 11)
    assert len(read_lists(tmp_path)) == 3
    monkeypatch.setattr(revocation_module, name, most)
    with pytest.raises(CredentialsError, match=said):
        read_lists(tmp_path)


# --- what a list may be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extension", "critical", "said"),
    [
        (x509.DeltaCRLIndicator(3), True, "is a delta list"),
        (
            x509.IssuingDistributionPoint(
                full_name=None,
                relative_name=None,
                only_contains_user_certs=False,
                only_contains_ca_certs=False,
                only_some_reasons=None,
                indirect_crl=True,
                only_contains_attribute_certs=False,
            ),
            True,
            "other CAs' certificates",
        ),
        (
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
            True,
            r"a critical extension that we do not know \(1\.2\.3\.4\)",
        ),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), False, None),
        (x509.CRLNumber(7), False, None),
    ],
    ids=["delta", "indirect", "unknown critical", "unknown", "number"],
)
def test_a_list_that_is_not_the_cas_full_own_one_is_not_used(pki, extension, critical, said):
    a = pki.node("a").cert
    lists = load(pki, crl(pki, a, extensions=[(extension, critical)]))
    assert lists.is_revoked([a], NOW) is (said is None)
    assert len(lists.problems) == (said is not None)
    if said is not None:
        assert re.search(said, lists.problems[0])


def test_a_list_signed_with_sha1_is_not_used(pki):
    a = pki.node("a").cert
    good = load(pki, hand_made(pki, a))
    assert good.problems == ()
    assert good.is_revoked([a], NOW)
    lists = load(pki, hand_made(pki, a, sha1=True))
    assert not lists.is_revoked([a], NOW)
    assert "is signed with a hash that is weak" in lists.problems[0]


def test_a_list_that_does_not_say_when_it_ends_counts_and_is_stale_from_the_start(pki):
    a, b = pki.node("a").cert, pki.node("b").cert
    for on_stale in ("open", "closed"):
        lists = load(pki, hand_made(pki, a, has_next_update=False), on_stale=on_stale)
        assert lists.is_revoked([a], NOW)
        assert lists.is_revoked([b], NOW) is (on_stale == "closed")
        assert "does not say when it wants to be renewed" in lists.stale(NOW)[0]


def test_a_ca_that_may_not_sign_lists_signs_none():
    pki = Pki("test", key_usage=("key_cert_sign",))
    a = pki.node("a").cert
    lists = load(pki, crl(pki, a))
    assert not lists.is_revoked([a], NOW)
    assert "not signed by a CA that we trust" in lists.problems[0]


# --- CAs that are no anchors --------------------------------------------------------------------


@pytest.fixture(scope="module")
def below(pki):
    return pki.authority("below", path_length=0)


def test_a_list_of_an_intermediate_counts_for_whoever_sends_it_along(pki, below):
    bad, good = pki.node("a", issuer=below).cert, pki.node("b", issuer=below).cert
    content = [("list", crl(pki, bad, ca=below))]
    lists = Revocation.load(content, [pki.ca.cert], intermediates=[below.cert])
    assert lists.problems == ()
    assert lists.is_revoked([bad, below.cert, pki.ca.cert], NOW)
    assert not lists.is_revoked([good, below.cert, pki.ca.cert], NOW)


def test_an_intermediate_is_revoked_by_its_root_and_all_below_with_it(pki, below):
    leaf = pki.node("a", issuer=below).cert
    lists = load(pki, crl(pki, below.cert))
    assert lists.is_revoked([leaf, below.cert, pki.ca.cert], NOW)


def test_a_list_signed_by_another_than_the_intermediate_on_the_path_says_nothing_of_it(pki, below):
    a = pki.node("a", issuer=below).cert
    forged = crl(pki, a, ca=below, key=pki.node("evil").key)
    lists = Revocation.load([("list", forged)], [pki.ca.cert], intermediates=[below.cert])
    assert not lists.is_revoked([a, below.cert, pki.ca.cert], NOW)
    assert "its CA is not in ca_path" in lists.problems[0]


def test_h25_a_list_of_a_ca_that_nobody_here_has_is_told_and_when_alone_as_good_as_none(pki):
    other = Pki("test", common_name="another CA")
    foreign, a = crl(other), pki.node("a").cert
    for on_stale in ("open", "closed"):
        alone = load(pki, foreign, on_stale=on_stale)
        assert "its CA is not in ca_path" in alone.problems[0]
        assert alone.is_revoked([a, pki.ca.cert], NOW) is (on_stale == "closed")
        beside = load(pki, foreign, crl(pki), on_stale=on_stale)
        assert len(beside.problems) == 1
        assert not beside.is_revoked([a, pki.ca.cert], NOW)


def test_when_our_own_intermediate_changes_the_lists_of_the_former_still_count(pki, below):
    bad, good = pki.node("a", issuer=below).cert, pki.node("b", issuer=below).cert
    fresh = pki.authority("fresh", path_length=0)
    content = [("list", crl(pki, bad, ca=below))]
    before = Revocation.load(content, [pki.ca.cert], intermediates=[below.cert], on_stale="closed")
    after = Revocation.load(
        content, [pki.ca.cert], intermediates=[fresh.cert], on_stale="closed", before=before
    )
    assert after.is_revoked([bad, below.cert, pki.ca.cert], NOW)
    assert not after.is_revoked([good, below.cert, pki.ca.cert], NOW)
    assert not after.is_revoked([pki.node("c", issuer=fresh).cert, fresh.cert, pki.ca.cert], NOW)


# --- what counted before ------------------------------------------------------------------------


@pytest.mark.parametrize("on_stale", ["open", "closed"])
@pytest.mark.parametrize("spoil", ["half", "empty", "another CA's"])
def test_a_list_that_was_good_counts_on_while_its_file_is_damaged(pki, on_stale, spoil):
    bad, good = pki.node("a").cert, pki.node("b").cert
    content = crl(pki, bad)
    before = load(pki, content)
    content = {
        "half": content[: len(content) // 2],
        "empty": b"",
        "another CA's": crl(pki, key=Pki("test").ca.key),
    }[spoil]
    lists = load(pki, content, on_stale=on_stale, before=before)
    for _ in range(3):
        assert len(lists.problems) == 1
        assert len(lists.lists) == 1
        assert lists.is_revoked([bad], NOW)
        assert not lists.is_revoked([good], NOW)
        lists = load(pki, content, on_stale=on_stale, before=lists)
    # Until it is stale.
    assert lists.is_revoked([good], days(2)) is (on_stale == "closed")
    # And no longer than the file is damaged.
    assert not load(pki, crl(pki), on_stale=on_stale, before=lists).is_revoked([bad], NOW)


def test_a_list_older_than_the_one_that_it_replaces_takes_nothing_back(pki):
    first, second, third = (pki.node(name).cert for name in "abc")
    lists = load(pki, crl(pki, first, second, last_update=days(-2)))
    for age in (-3, -4, -5):
        lists = load(pki, crl(pki, third, last_update=days(age)), before=lists)
        assert "is older than it was" in lists.problems[0]
        assert [lists.is_revoked([each], NOW) for each in (first, second, third)] == [True] * 3
        assert len(lists.lists) == 2
    newer = load(pki, crl(pki, first, last_update=days(-1)), before=lists)
    assert newer.problems == ()
    assert [newer.is_revoked([each], NOW) for each in (first, second)] == [True, False]


# --- stale --------------------------------------------------------------------------------------


def test_h25_a_stale_list_says_nothing_of_another_cas_certificates(pki):
    other = Pki("test", common_name="another CA")
    lists = Revocation.load(
        [("old", crl(pki, next_update=days(-1))), ("new", crl(other))],
        [pki.ca.cert, other.ca.cert],
        on_stale="closed",
    )
    assert lists.is_revoked([pki.node("a").cert, pki.ca.cert], NOW)
    assert not lists.is_revoked([other.node("a").cert, other.ca.cert], NOW)
    (sentence,) = lists.stale(NOW)
    assert sentence == f"old: was to be renewed by {days(-1):%Y-%m-%d %H:%M:%S} UTC"


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
