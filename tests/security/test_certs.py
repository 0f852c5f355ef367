"""The development CA: certificates that our own check accepts, keys that nobody else can read."""

import datetime
import os
import stat
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from plumtree_quic import ConfigError, CredentialsError, QuicConfig
from plumtree_quic.security.certs import KEY_TYPES, DevCa
from tests.rigs.pki import Pki, utc


@pytest.fixture
def ca(tmp_path):
    return DevCa.create(tmp_path / "ca", trust_domain="test")


def load(issued, ca):
    return QuicConfig(issued.cert_path, issued.key_path, ca.directory / "ca.crt")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def certificate(issued):
    return x509.load_pem_x509_certificate(issued.cert_path.read_bytes())


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_what_it_issues_our_own_check_accepts(ca, key_type):
    issued = ca.issue("a", key_type=key_type)
    quic = load(issued, ca)
    assert quic.node_id == issued.node_id == "spiffe://test/node/a"
    assert quic.warnings == ()
    kinds = {
        "p256": ec.EllipticCurvePrivateKey,
        "p384": ec.EllipticCurvePrivateKey,
        "ed25519": ed25519.Ed25519PrivateKey,
        "rsa": rsa.RSAPrivateKey,
    }
    assert isinstance(quic.credentials.key, kinds[key_type])


def test_the_ca_has_what_the_verifier_asks_of_one(ca):
    extensions = ca.cert.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert constraints.value.path_length == 0
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert isinstance(ca.cert.public_key().curve, ec.SECP256R1)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_private_keys_are_0600_under_any_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        ca = DevCa.create(tmp_path / "ca", trust_domain="test")
        issued = ca.issue("a")
    finally:
        os.umask(before)
    assert mode(ca.directory / "ca.key") == 0o600
    assert mode(issued.key_path) == 0o600


def test_a_private_key_is_0600_from_its_first_byte(ca, monkeypatch):
    opened = []
    real = os.open

    def watch(path, flags, mode=0o777, **options):
        descriptor = real(path, flags, mode, **options)
        opened.append((str(path), flags, stat.S_IMODE(os.fstat(descriptor).st_mode)))
        return descriptor

    monkeypatch.setattr("os.open", watch)
    ca.issue("a")
    keys = [(flags, given) for path, flags, given in opened if ".key" in path]
    assert len(keys) == 1
    assert keys[0][0] & os.O_EXCL
    assert keys[0][0] & os.O_CREAT
    assert keys[0][1] == 0o600


def test_force_narrows_the_mode_of_a_key_that_was_open(ca):
    issued = ca.issue("a")
    issued.key_path.chmod(0o644)
    ca.issue("a", force=True)
    assert mode(issued.key_path) == 0o600


def test_no_temporary_file_is_left(ca):
    ca.issue("a")
    with pytest.raises(CredentialsError):
        ca.issue("a")
    assert sorted(each.name for each in ca.directory.iterdir()) == [
        "a.crt",
        "a.key",
        "ca.crt",
        "ca.key",
    ]


def test_nothing_is_overwritten_without_force(ca):
    issued = ca.issue("a")
    before = issued.cert_path.read_bytes(), issued.key_path.read_bytes()
    with pytest.raises(CredentialsError, match=r"a\.crt exists; --force"):
        ca.issue("a")
    assert (issued.cert_path.read_bytes(), issued.key_path.read_bytes()) == before


def test_a_key_alone_is_not_overwritten_either(ca):
    issued = ca.issue("a")
    issued.cert_path.unlink()
    with pytest.raises(CredentialsError, match=r"a\.key exists"):
        ca.issue("a")


def test_of_two_that_issue_one_name_at_once_one_wins_whole(ca):
    barrier = threading.Barrier(2)
    outcomes = []

    def issue():
        barrier.wait()
        try:
            outcomes.append(ca.issue("a"))
        except CredentialsError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=issue) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (issued,) = [each for each in outcomes if not isinstance(each, CredentialsError)]
    assert load(issued, ca).node_id.name == "a"


def test_force_renews_key_and_certificate(ca):
    first = ca.issue("a")
    before = first.key_path.read_bytes(), certificate(first).serial_number
    second = ca.issue("a", force=True)
    assert second.key_path.read_bytes() != before[0]
    assert certificate(second).serial_number != before[1]
    assert load(second, ca).node_id.name == "a"


def test_days_say_how_long(ca):
    issued = ca.issue("a", days=3)
    left = certificate(issued).not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=2, hours=23) < left <= datetime.timedelta(days=3)
    assert issued.not_after == certificate(issued).not_valid_after_utc


def test_no_certificate_outlives_the_ca(tmp_path):
    ca = DevCa.create(tmp_path / "ca", trust_domain="test", days=5)
    assert certificate(ca.issue("a", days=30)).not_valid_after_utc == ca.cert.not_valid_after_utc


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_days_are_1_to_3650(ca, days):
    with pytest.raises(ConfigError, match="1 to 3650"):
        ca.issue("a", days=days)


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "a b", "ä", "ca", "a\n", "x" * 200, "../a"])
def test_a_bad_name_is_refused_before_anything_is_written(ca, name):
    with pytest.raises(ConfigError) as caught:
        ca.issue(name)
    assert not isinstance(caught.value, CredentialsError)
    assert sorted(each.name for each in ca.directory.iterdir()) == ["ca.crt", "ca.key"]


def test_a_long_name_fits_although_a_common_name_has_64_characters(ca):
    name = "n" * 100
    assert load(ca.issue(name), ca).node_id.name == name


def test_an_unknown_key_type_is_refused(ca):
    with pytest.raises(ConfigError, match="p256, p384, ed25519, rsa"):
        ca.issue("a", key_type="dsa")


@pytest.mark.parametrize("trust_domain", ["", "Test", "a/b", "a b", "spiffe://a"])
def test_a_bad_trust_domain_is_refused(tmp_path, trust_domain):
    with pytest.raises(ConfigError):
        DevCa.create(tmp_path / "ca", trust_domain=trust_domain)
    assert not (tmp_path / "ca").exists()


# --- an existing CA -----------------------------------------------------------------------------


def test_an_existing_ca_is_used_again(ca):
    again = DevCa.open_or_create(ca.directory)
    assert again.cert == ca.cert
    assert again.trust_domain == "test"
    assert load(again.issue("a"), ca).node_id == "spiffe://test/node/a"


def test_a_ca_is_never_overwritten(ca):
    with pytest.raises(CredentialsError, match=r"ca\.crt exists"):
        DevCa.create(ca.directory, trust_domain="test")


def test_another_trust_domain_needs_another_directory(ca):
    with pytest.raises(CredentialsError, match="'test', not 'prod'"):
        DevCa.open_or_create(ca.directory, trust_domain="prod")


@pytest.mark.parametrize("gone", ["ca.crt", "ca.key"])
def test_half_a_ca_is_not_replaced(ca, gone):
    (ca.directory / gone).unlink()
    with pytest.raises(CredentialsError, match=gone):
        DevCa.open_or_create(ca.directory)


def test_a_ca_key_of_another_ca_is_refused(ca, tmp_path):
    other = DevCa.create(tmp_path / "other", trust_domain="test")
    (ca.directory / "ca.key").write_bytes((other.directory / "ca.key").read_bytes())
    with pytest.raises(CredentialsError, match="is not the key of"):
        DevCa.open(ca.directory)


@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
def test_a_damaged_ca_file_is_named(ca, name):
    (ca.directory / name).write_bytes(b"-----BEGIN nonsense")
    with pytest.raises(CredentialsError, match=name):
        DevCa.open(ca.directory)


def test_an_expired_ca_is_refused(tmp_path):
    pki = Pki("test", not_before=utc(days=-9), not_after=utc(days=-1))
    pki.ca.write(tmp_path, "ca")
    with pytest.raises(CredentialsError, match="expired at"):
        DevCa.open(tmp_path)


def test_a_ca_that_names_no_trust_domain_is_refused(tmp_path):
    Pki("test").ca.write(tmp_path, "ca")
    with pytest.raises(CredentialsError, match="names no trust domain"):
        DevCa.open(tmp_path)


def test_an_unwritable_directory_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CredentialsError, match="file"):
        DevCa.create(tmp_path / "file" / "ca", trust_domain="test")
