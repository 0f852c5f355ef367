"""QuicConfig refuses at construction what every peer would refuse, and says what to do."""

import base64
import logging
import os
import re
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from plumtree_quic import ConfigError, CredentialsError, PlumtreeError, QuicConfig
from tests.rigs.pki import ANY, CLIENT, SERVER, Pki, key_pem, utc


@pytest.fixture(scope="module")
def pki():
    return Pki("test")


@pytest.fixture
def files(pki, tmp_path):
    """A good set of files: (cert, key, ca)."""
    ca_path = tmp_path / "ca.crt"
    ca_path.write_bytes(pki.ca_pem)
    return (*pki.node("a").write(tmp_path, "a"), ca_path)


def from_pem(made, pki, /, **options):
    options = {"cert": made.cert_pem, "key": made.key_pem, "ca": pki.ca_pem, **options}
    return QuicConfig.from_pem(**options)


def refused(made, pki, /, **options):
    """The error message."""
    with pytest.raises(CredentialsError) as caught:
        from_pem(made, pki, **options)
    return str(caught.value)


# --- what is good -------------------------------------------------------------------------------


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa2048", "rsa4096"])
def test_every_allowed_key_type_loads(pki, key_type):
    cert = pki.node("a", key_type=key_type)
    quic = from_pem(cert, pki)
    assert quic.node_id == "spiffe://test/node/a"
    assert quic.trust_domain == "test"
    assert quic.cluster == "default"
    assert quic.credentials.leaf_der == cert.der
    assert quic.credentials.generation == 1


def test_files_load_as_pem_does(files, pki):
    quic = QuicConfig(*files, cluster="orders")
    assert quic.node_id == "spiffe://test/node/a"
    assert quic.cluster == "orders"
    assert quic.warnings == ()
    assert quic.credentials.anchors == (pki.ca.cert,)


def test_paths_may_be_strings(files):
    assert QuicConfig(*map(str, files)).node_id.name == "a"


def test_pem_may_be_text(pki):
    cert = pki.node("a")
    quic = QuicConfig.from_pem(
        cert=cert.cert_pem.decode(), key=cert.key_pem.decode(), ca=pki.ca_pem.decode()
    )
    assert quic.node_id.name == "a"


def test_intermediates_in_the_certificate_file_are_sent(pki):
    cert = pki.node("a", issuer=pki.authority("two", issuer=pki.authority("one")))
    quic = from_pem(cert, pki)
    assert quic.credentials.chain_der == cert.chain_der


def test_a_root_in_the_certificate_file_is_not_sent(pki):
    cert = pki.node("a")
    quic = from_pem(cert, pki, cert=cert.cert_pem + pki.ca_pem)
    assert quic.credentials.chain_der == ()


def test_an_intermediate_may_be_the_anchor(pki):
    issuer = pki.authority("one")
    cert = pki.node("a", issuer=issuer)
    quic = from_pem(cert, pki, ca=issuer.leaf_pem)
    # It is sent: others may trust the root instead.
    assert quic.credentials.chain_der == cert.chain_der


def test_two_cas_may_be_trusted_while_one_replaces_the_other(pki):
    other = Pki("test", common_name="other CA")
    both = pki.ca_pem + other.ca_pem
    assert from_pem(pki.node("a"), pki, ca=both).node_id.name == "a"
    assert from_pem(other.node("b"), pki, ca=both).node_id.name == "b"
    assert len(from_pem(pki.node("a"), pki, ca=both).credentials.anchors) == 2


def test_an_encrypted_key_loads_with_its_password(pki):
    cert = pki.node("a")
    pem = key_pem(cert.key, b"secret")
    assert from_pem(cert, pki, key=pem, key_password="secret").node_id.name == "a"
    assert from_pem(cert, pki, key=pem, key_password=b"secret").node_id.name == "a"


def test_h07_a_certificate_of_59_seconds_ahead_loads(pki):
    assert from_pem(pki.node("a", not_before=utc(seconds=50)), pki).node_id.name == "a"


def test_san_entries_that_are_no_uris_are_ignored(pki):
    cert = pki.node("a", sans=[x509.DNSName("a.example")])
    assert from_pem(cert, pki).node_id == "spiffe://test/node/a"


def test_nothing_secret_is_in_the_repr(pki):
    quic = from_pem(pki.node("a"), pki)
    assert repr(quic) == "QuicConfig('spiffe://test/node/a', cluster='default')"
    assert "key" not in repr(quic.credentials).replace("key_", "").lower()


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 2], ids=["cert", "key", "ca"])
def test_a_missing_file_is_named(files, index):
    files[index].unlink()
    with pytest.raises(CredentialsError) as caught:
        QuicConfig(*files)
    assert str(files[index]) in str(caught.value)
    assert ("cert_path", "key_path", "ca_path")[index] in str(caught.value)
    assert "plumtree-quic certs" in str(caught.value)


@pytest.mark.parametrize("index", [0, 1, 2], ids=["cert", "key", "ca"])
@pytest.mark.parametrize(
    "content", [b"", b"not PEM", b"\xff\x00" * 9], ids=["empty", "text", "binary"]
)
def test_a_file_that_is_no_pem_is_named(files, index, content):
    files[index].write_bytes(content)
    with pytest.raises(CredentialsError, match=re.escape(str(files[index]))):
        QuicConfig(*files)


@pytest.mark.parametrize("index", [0, 1, 2], ids=["cert", "key", "ca"])
def test_a_damaged_file_is_named(files, index):
    content = files[index].read_bytes()
    middle = len(content) // 2
    files[index].write_bytes(content[:middle] + content[middle + 20 :])
    with pytest.raises(CredentialsError, match=re.escape(str(files[index]))):
        QuicConfig(*files)


def test_a_directory_in_place_of_a_file_is_named(files, tmp_path):
    with pytest.raises(CredentialsError, match=re.escape(str(tmp_path))):
        QuicConfig(tmp_path, files[1], files[2])


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "I/O error")]
)
def test_an_unreadable_file_is_named(files, monkeypatch, error):
    # The suite may run as root, whom no mode keeps out.
    def refuse(self, *arguments, **options):
        raise error

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(CredentialsError, match=re.escape(str(files[0])) + ".*cannot be read"):
        QuicConfig(*files)


def test_a_huge_file_is_refused_without_reading_it_whole(files):
    with files[0].open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CredentialsError, match="larger than 1 MiB"):
        QuicConfig(*files)


def test_a_certificate_in_der_says_how_to_convert(files, pki):
    files[0].write_bytes(pki.node("a").der)
    with pytest.raises(CredentialsError, match="openssl x509 -inform der"):
        QuicConfig(*files)


def test_swapped_files_are_recognized(files):
    cert, key, ca = files
    with pytest.raises(CredentialsError, match="swapped"):
        QuicConfig(key, cert, ca)


def test_an_empty_ca_file_is_refused(pki):
    assert "ca is empty" in refused(pki.node("a"), pki, ca=b"\n")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_open_to_others_is_a_warning_and_not_an_error(files, caplog, mode):
    os.chmod(files[1], mode)
    with caplog.at_level(logging.WARNING, logger="plumtree_quic.security"):
        quic = QuicConfig(*files)
    assert len(quic.warnings) == 1
    assert str(files[1]) in quic.warnings[0]
    assert f"{mode:04o}" in quic.warnings[0]
    assert "chmod 600" in quic.warnings[0]
    assert [record.getMessage() for record in caplog.records] == list(quic.warnings)


# --- keys ---------------------------------------------------------------------------------------


def test_a_key_of_another_certificate_is_refused(pki):
    message = refused(pki.node("a"), pki, key=pki.node("b").key_pem)
    assert "key is not the key of cert" in message


def test_a_certificate_file_in_wrong_order_is_recognized(pki):
    cert = pki.node("a", issuer=pki.authority("one"))
    reverse = cert.chain[0].public_bytes(Encoding.PEM) + cert.leaf_pem
    assert "put the node's own first" in refused(cert, pki, cert=reverse)


def test_an_encrypted_key_without_password_is_refused(pki):
    cert = pki.node("a")
    assert "key_password" in refused(cert, pki, key=key_pem(cert.key, b"secret"))


def test_an_encrypted_key_with_a_wrong_password_is_refused(pki):
    cert = pki.node("a")
    message = refused(cert, pki, key=key_pem(cert.key, b"secret"), key_password="guess")
    assert "key_password is wrong" in message
    assert "guess" not in message


def test_a_password_for_a_plain_key_is_refused(pki):
    assert "not encrypted" in refused(pki.node("a"), pki, key_password="secret")


@pytest.mark.parametrize(
    ("key_type", "named"),
    [
        ("rsa1024", "RSA 1024"),
        ("rsa2047", "RSA 2047"),
        ("p521", "P-521"),
        ("secp256k1", "secp256k1"),
    ],
)
def test_h16_a_weak_or_unsupported_key_is_refused(pki, key_type, named):
    message = refused(pki.node("a", key_type=key_type), pki)
    assert named in message
    assert "P-256, P-384, Ed25519 and RSA of 2048 to 4096" in message


@pytest.mark.parametrize("key_type", ["ed448", "x25519", "dsa"])
def test_h16_a_key_of_an_unknown_kind_is_refused(pki, key_type):
    assert "unsupported" in refused(pki.node("a", key_type=key_type), pki)


def test_h16_an_intermediate_with_a_weak_key_is_refused(pki):
    cert = pki.node("a", issuer=pki.authority("weak", key_type="rsa1024"))
    assert "intermediate whose key is not allowed (RSA 1024)" in refused(cert, pki)


# --- dates, usages ------------------------------------------------------------------------------


def test_h07_an_expired_certificate_is_refused_with_both_clocks(pki):
    message = refused(pki.node("a", not_after=utc(seconds=-1)), pki)
    assert "cert expired at" in message
    assert len(re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", message)) == 2
    assert "clock" in message


def test_h07_a_certificate_of_tomorrow_is_refused_with_both_clocks(pki):
    message = refused(pki.node("a", not_before=utc(seconds=90)), pki)
    assert "not valid before" in message
    assert len(re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", message)) == 2


def test_h35_a_clock_before_this_release_is_named_and_not_the_certificate(pki, monkeypatch):
    monkeypatch.setattr("plumtree_quic.security.identity.CLOCK_FLOOR", utc(days=1))
    message = refused(pki.node("a"), pki)
    assert "this machine's clock says" in message
    assert "correct the clock" in message
    assert "issue a new one" not in message


@pytest.mark.parametrize(
    ("eku", "lacking"),
    [
        (None, "serverAuth and clientAuth"),
        ([SERVER], "clientAuth"),
        ([CLIENT], "serverAuth"),
        ([ANY], "serverAuth and clientAuth"),
    ],
    ids=["none", "server_only", "client_only", "any"],
)
def test_h09_extended_key_usage_needs_both(pki, eku, lacking):
    assert f"extended key usage {lacking};" in refused(pki.node("a", eku=eku), pki)


@pytest.mark.parametrize(
    ("key_usage", "named"),
    [
        (None, "digitalSignature"),
        (("key_encipherment",), "digitalSignature"),
        (("digital_signature", "key_cert_sign"), "keyCertSign"),
    ],
    ids=["none", "no_signature", "cert_sign"],
)
def test_h10_key_usage_is_that_of_a_node(pki, key_usage, named):
    assert named in refused(pki.node("a", key_usage=key_usage), pki)


def test_h11_a_ca_certificate_is_not_a_nodes(pki):
    assert "CA:TRUE" in refused(pki.node("a", ca=True), pki)


def test_a_sha1_signature_is_refused():
    pki = Pki("test", key_type="rsa2048")
    message = refused(pki.node("a", hash_algorithm=hashes.SHA1()), pki)
    assert "SHA1" in message


# --- the chain ----------------------------------------------------------------------------------


def test_h04_a_certificate_of_another_ca_is_refused(pki):
    stranger = Pki("test", common_name="stranger CA")
    message = refused(stranger.node("a"), pki)
    assert "stranger CA" in message
    assert "not in ca" in message
    assert "test CA" in message


def test_h06_a_ca_of_the_same_name_with_another_key_is_recognized(pki):
    assert "another key" in refused(Pki("test").node("a"), pki)


def test_h06_a_self_signed_certificate_is_refused(pki):
    assert "signed by itself" in refused(pki.node("a", issuer="self"), pki)


def test_h12_a_missing_intermediate_is_named(pki):
    cert = pki.node("a", issuer=pki.authority("between"))
    message = refused(cert, pki, cert=cert.leaf_pem)
    assert "between" in message
    assert "missing intermediates" in message


def test_h11_a_leaf_cannot_be_an_issuer(pki):
    message = refused(pki.node("b", issuer=pki.node("a")), pki)
    assert "is not a CA certificate" in message


def test_h12_three_intermediates_are_too_many(pki):
    issuer = None
    for name in ("one", "two", "three"):
        issuer = pki.authority(name, issuer=issuer)
    assert "at most 2" in refused(pki.node("a", issuer=issuer), pki)


def test_h12_a_file_of_five_certificates_is_refused(pki):
    extra = b"".join(pki.authority(f"unused {number}").leaf_pem for number in range(4))
    cert = pki.node("a")
    assert "at most 4" in refused(cert, pki, cert=cert.cert_pem + extra)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"not_before": utc(days=-9), "not_after": utc(days=-1)}, "expired at"),
        ({"key_type": "ed25519"}, "Ed25519"),
        ({"key_usage": None}, "keyCertSign"),
    ],
    ids=["expired", "ed25519", "no_key_usage"],
)
def test_what_is_wrong_with_the_ca_is_said(options, named):
    pki = Pki("test", **options)
    assert named in refused(pki.node("a"), pki)


def test_a_node_certificate_as_ca_is_recognized(pki):
    a = pki.node("a")
    assert "is no CA's" in refused(a, pki, ca=pki.node("b").cert_pem)


def test_a_missing_authority_key_identifier_is_named(pki):
    assert "authorityKeyIdentifier" in refused(pki.node("a", aki=False), pki)


# --- identity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("spiffe://test/node/a", "spiffe://test/node/b"),
        ("spiffe://TEST/node/a",),
        ("spiffe://test/node/A",),
        ("spiffe://test/" + "a" * 300,),
        ("spiffe://test/node/\x00",),
        ("spiffe://test/node/../a",),
        ("spiffe://user@test/node/a",),
        ("spiffe://test/node/a?query",),
        ("spiffe://test/node/*",),
        ("spiffe://test",),
        ("https://test/node/a",),
    ],
    ids=[
        "none",
        "two",
        "upper_domain",
        "upper_path",
        "long",
        "nul",
        "dots",
        "userinfo",
        "query",
        "wildcard",
        "no_path",
        "https",
    ],
)
def test_h13_exactly_one_well_formed_identity(pki, uris):
    message = refused(pki.node("a", uris=uris), pki)
    assert message.startswith("cert names")
    assert message.isprintable()


def test_h05_another_trust_domain_is_refused(pki):
    message = refused(pki.node("a"), pki, trust_domain="prod")
    assert "trust domain 'test'" in message


def test_the_trust_domain_may_be_said(pki):
    assert from_pem(pki.node("a"), pki, trust_domain="test").trust_domain == "test"


@pytest.mark.parametrize("cluster", ["a\tb", "a\n", "\u202eabc", "\udcff"])
def test_a_cluster_name_that_no_peer_could_read_is_refused(pki, cluster):
    with pytest.raises(ConfigError, match="printable"):
        from_pem(pki.node("a"), pki, cluster=cluster)


@pytest.mark.parametrize("cluster", ["", "x" * 65, "é" * 33])
def test_a_cluster_name_has_1_to_64_bytes(pki, cluster):
    with pytest.raises(ConfigError, match="1 to 64 bytes"):
        from_pem(pki.node("a"), pki, cluster=cluster)


# --- the interpreter ----------------------------------------------------------------------------


def test_h01_python_dash_o_is_refused(files):
    program = (
        "from plumtree_quic import QuicConfig, ConfigError\n"
        "import sys\n"
        "try:\n"
        "    QuicConfig(*sys.argv[1:])\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
        "else:\n"
        "    print('loaded')\n"
    )

    def run(*flags):
        return subprocess.run(
            [sys.executable, *flags, "-c", program, *map(str, files)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ).stdout

    assert run() == "loaded\n"
    assert "-O" in run("-O")
    assert "-O" in run("-OO")


def test_every_error_is_in_our_tree():
    assert issubclass(CredentialsError, ConfigError)
    assert issubclass(ConfigError, PlumtreeError)
    assert issubclass(ConfigError, ValueError)


# --- hostile or odd bytes -----------------------------------------------------------------------


def test_a_key_file_may_hold_curve_parameters_or_the_certificate_too(pki):
    cert = pki.node("a")
    old = cert.key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert from_pem(cert, pki, key=parameters + old).node_id.name == "a"
    assert from_pem(cert, pki, key=cert.cert_pem + cert.key_pem).node_id.name == "a"


def test_a_key_encrypted_in_the_old_format_loads(pki):
    cert = pki.node("a", key_type="rsa2048")
    old = cert.key.private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")
    )
    assert from_pem(cert, pki, key=old, key_password="secret").node_id.name == "a"
    assert "key_password" in refused(cert, pki, key=old)


def message_of(**pems):
    try:
        QuicConfig.from_pem(**pems)
    except CredentialsError as error:
        return str(error)
    return "loaded"


def as_pem(der):
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


def test_h17_no_byte_that_the_ca_signed_can_be_changed():
    pki = Pki("test")
    cert = pki.node("a")
    signed = cert.cert.tbs_certificate_bytes
    begin = cert.der.index(signed)
    for position in range(begin, begin + len(signed)):
        for change in (0x01, 0x80, 0xFF):
            der = bytearray(cert.der)
            der[position] ^= change
            with pytest.raises(CredentialsError) as caught:
                from_pem(cert, pki, cert=as_pem(bytes(der)))
            assert str(caught.value).isprintable()


def test_h17_no_byte_around_what_the_ca_signed_raises_anything_else():
    pki = Pki("test")
    cert = pki.node("a")
    signed = cert.cert.tbs_certificate_bytes
    begin = cert.der.index(signed)
    for position in {*range(len(cert.der))} - {*range(begin, begin + len(signed))}:
        der = bytearray(cert.der)
        der[position] ^= 0x81
        text = message_of(cert=as_pem(bytes(der)), key=cert.key_pem, ca=pki.ca_pem)
        assert text.isprintable()


def test_h17_no_part_of_a_certificate_is_enough(pki):
    cert = pki.node("a")
    for length in range(0, len(cert.der), 7):
        with pytest.raises(CredentialsError):
            from_pem(cert, pki, cert=as_pem(cert.der[:length]))
    with pytest.raises(CredentialsError):
        from_pem(cert, pki, cert=as_pem(cert.der + b"\x00"))


def test_no_byte_of_a_ca_certificate_raises_anything_else():
    pki = Pki("test")
    cert = pki.node("a")
    for position in range(len(pki.ca.der)):
        der = bytearray(pki.ca.der)
        der[position] ^= 0x41
        assert message_of(cert=cert.cert_pem, key=cert.key_pem, ca=as_pem(bytes(der))).isprintable()


@given(st.binary(max_size=300))
def test_any_bytes_in_place_of_a_file_are_refused_with_our_error(noise):
    cert = _SHARED.node("a", key=_SHARED.ca.key)
    good = {"cert": cert.cert_pem, "key": cert.key_pem, "ca": _SHARED.ca_pem}
    for field, pem in good.items():
        for content in (noise, as_pem(noise), noise + pem, pem[:40] + noise):
            assert message_of(**{**good, field: content}).isprintable()


_SHARED = Pki("test")


# --- what stands in the files ---------------------------------------------------------------------


@pytest.mark.parametrize("which", ["own", "another's", "beside the CA"])
def test_a_nodes_certificate_is_no_ca(pki, which):
    a, b = pki.node("a"), pki.node("b")
    ca = {"own": a.cert_pem, "another's": b.cert_pem, "beside the CA": pki.ca_pem + b.cert_pem}
    message = refused(a, pki, ca=ca[which])
    assert "ca holds a certificate that is no CA's" in message
    assert "give the certificate of the CA" in message


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("text", [b"", b"# comment\n", b"subject=CN = a\n"])
def test_b56_a_bundle_with_any_line_ends_and_text_between_is_read_whole(pki, end, text):
    other = Pki("test")
    both = text.join((b"", pki.ca_pem, other.ca_pem, b"")).replace(b"\n", end)
    config = from_pem(pki.node("a"), pki, ca=both)
    assert len(config.credentials.anchors) == 2
