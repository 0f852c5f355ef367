"""Who gets in and who does not: every rule of the ordered check, on the wire, in both roles."""

import ast
import datetime
import importlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
from aioquic import tls
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from plumtree_quic.errors import ConfigError
from plumtree_quic.ids import NodeId
from plumtree_quic.net import engine, selftest
from plumtree_quic.net.engine import EngineSettings
from plumtree_quic.net.tls import MutualTlsContext
from plumtree_quic.security.identity import (
    CHAIN_BYTES_MAX,
    CLOCK_FLOOR,
    CLOCK_IS_WRONG,
    OWN_IDENTITY,
    CheckFailed,
    check_chain,
    check_issuer_keys,
    check_key,
    parse_certificates,
    parse_identity,
    public_key_of,
)
from tests.rigs.evil_quic import (
    SCHEMES,
    Evil,
    Initials,
    Pair,
    Signer,
    crypto_frame,
    header_of,
    huge_rsa,
    junk_signer,
    lists,
    signs_with,
)
from tests.rigs.handshakes import (
    PKI,
    A,
    B,
    credentials,
    good_pair,
    meet,
    our_acceptor,
    our_dialler,
)
from tests.rigs.pki import ANY, CLIENT, SERVER, Pki, make_key, utc

NO_CERTIFICATE, BAD, UNSUPPORTED, EXPIRED = 116, 42, 43, 45
ILLEGAL, UNKNOWN_CA, DENIED, DECODE, DECRYPT = 47, 48, 49, 50, 51
UNEXPECTED, FAILURE, NO_ALPN = 10, 40, 120

STRANGERS = Pki("test")
both = pytest.mark.parametrize("evil_is", ["dialler", "acceptor"])


# --- the good ones ---


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa"])
def test_all_supported_keys_connect_in_both_roles(key_type):
    one, other = credentials("one", key_type=key_type), credentials("other", key_type=key_type)
    pair = Pair(engine.dial(one, settings=EngineSettings()), our_acceptor(other)).step(10)
    assert (pair.dialler.peer_id, pair.acceptor.peer_id) == (other.node_id, one.node_id)


REVOKED = 44


def test_the_report_names_every_step_once_and_in_order():
    pair = good_pair()
    dialler = [each.step for each in pair.dialler.report]
    acceptor = [each.step for each in pair.acceptor.report]
    assert dialler == list(range(1, 14))
    assert acceptor == [each for each in range(1, 14) if each != 3]
    assert all(each.passed for each in pair.dialler.report)


@both
def test_the_evil_peer_with_a_good_certificate_connects(evil_is):
    meet(PKI.node("evil"), evil_is=evil_is).assert_up()


def test_a_peer_is_known_only_when_the_handshake_is_complete():
    pair = Pair(engine.dial(A, settings=EngineSettings()), our_acceptor())
    assert pair.dialler.peer_id is None
    pair.step(1)
    assert pair.acceptor.peer_id is None
    pair.step(10)
    assert pair.acceptor.peer_id == A.node_id


# --- H-01: floor and self-test ---


def test_h01_self_test_passes_and_runs_once_a_process(monkeypatch):
    monkeypatch.setattr(selftest, "_tested", False)
    selftest.self_test()
    monkeypatch.setattr("plumtree_quic.net.selftest.run", lambda: pytest.fail("ran twice"))
    selftest.self_test()


@pytest.mark.parametrize("check", ["check_chain", "check_meant"])
def test_h01_self_test_refuses_to_start_when_a_check_does_nothing(check, monkeypatch):
    monkeypatch.setattr(f"plumtree_quic.net.tls.{check}", lambda *args: None)
    monkeypatch.setattr(selftest, "_tested", False)
    with pytest.raises(ConfigError, match=r"self-test.* ACCEPTED"):
        selftest.self_test()
    assert not selftest._tested


@pytest.mark.parametrize("hook", ["_judge", "_check_certificate_verify_signature"])
def test_h01_self_test_refuses_to_start_when_a_hook_is_not_called(hook, monkeypatch):
    monkeypatch.setattr(MutualTlsContext, hook, lambda *args: None)
    monkeypatch.setattr(selftest, "_tested", False)
    with pytest.raises(ConfigError, match="self-test"):
        selftest.self_test()


@pytest.mark.parametrize("version", ["1.3.0", "1.7.1", "1.8.0", "2.0"])
def test_h01_another_aioquic_is_refused(version, monkeypatch):
    monkeypatch.setattr(selftest, "_tested", False)
    monkeypatch.setattr("aioquic.__version__", version)
    with pytest.raises(ConfigError, match=r"aioquic .* is installed"):
        selftest.self_test()


def test_h01_python_without_assertions_is_refused():
    code = "from plumtree_quic.net import selftest; selftest.self_test()"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("plumtree_quic.errors.ConfigError")


@pytest.mark.parametrize("owner_name", [f"{o.__module__}:{o.__qualname__}:{n}"
                                        for o, n in engine.RELIES_ON])  # fmt: skip
def test_every_private_name_of_aioquic_that_we_rely_on_exists(owner_name):
    module, owner, name = owner_name.split(":")
    assert callable(getattr(getattr(importlib.import_module(module), owner), name))


def test_every_method_that_we_override_is_listed():
    listed = {name for _, name in engine.RELIES_ON}
    for ours, parent in ((MutualTlsContext, tls.Context), (engine.AioquicEngine, None)):
        parent = parent or ours.__mro__[1]
        overridden = {name for name in vars(ours) if name in vars(parent) and name[:2] != "__"}
        public = {name for name in overridden if not name.startswith("_")}
        assert overridden - public - {"_streams_queue"} <= listed, overridden - public - listed


# --- H-02, H-03: certificates that are not asked for or not sent ---


def test_h02_b45_no_certificate_from_the_dialler():
    outcome = meet(None, evil_is="dialler")
    outcome.assert_refused(NO_CERTIFICATE, step=4)
    # The stock dialler believes that it is connected; it never hears anything.
    assert "StreamDataReceived" not in outcome.pair.kinds("dialler")


def test_h02_no_certificate_from_the_acceptor():
    def send_none(original, buf, certificate):
        certificate.certificates = []
        original(buf, certificate)

    outcome = meet(PKI.node("evil"), evil_is="acceptor", patches={"push_certificate": send_none})
    outcome.assert_refused(NO_CERTIFICATE, step=4)


def test_h03_b48_an_acceptor_that_does_not_ask_is_refused():
    outcome = meet(PKI.node("evil"), evil_is="acceptor", asks=False)
    outcome.assert_refused(FAILURE, step=3)


def test_h03_b49_an_acceptor_that_takes_no_scheme_of_ours_is_refused():
    def only_rsa(original, buf, request):
        request.signature_algorithms = [SCHEMES["pss256"]]
        original(buf, request)

    outcome = meet(
        PKI.node("evil"), evil_is="acceptor", patches={"push_certificate_request": only_rsa}
    )
    outcome.assert_refused(FAILURE, step=3)


# --- H-04 to H-06: whose certificate ---


@both
def test_h04_b46_a_strangers_ca_is_unknown(evil_is):
    meet(STRANGERS.node("evil"), evil_is=evil_is).assert_refused(UNKNOWN_CA, step=9)


@both
def test_h05_another_trust_domain_of_the_same_ca(evil_is):
    cert = PKI.node("evil", uris=["spiffe://elsewhere/node/evil"])
    meet(cert, evil_is=evil_is).assert_refused(BAD, step=10)


@both
def test_h06_self_signed(evil_is):
    meet(PKI.node("evil", issuer="self"), evil_is=evil_is).assert_refused(UNKNOWN_CA, step=9)


@both
def test_h06_a_ca_of_the_same_name_with_another_key(evil_is):
    double = Pki("test", common_name="test CA")
    assert double.ca.cert.subject == PKI.ca.cert.subject
    meet(double.node("evil"), evil_is=evil_is).assert_refused(UNKNOWN_CA, step=9)


# --- H-07, H-08: dates ---


@both
def test_h07_expired_by_one_second(evil_is):
    cert = PKI.node("evil", not_before=utc(days=-2), not_after=utc(seconds=3600))
    late = cert.cert.not_valid_after_utc + datetime.timedelta(seconds=1)
    meet(cert, evil_is=evil_is, wall=lambda: late).assert_refused(EXPIRED, step=8)


@both
@pytest.mark.parametrize(("early_s", "up"), [(61, False), (59, True)])
def test_h07_not_yet_valid(evil_is, early_s, up):
    cert = PKI.node("evil", not_before=utc(seconds=0), not_after=utc(days=1))
    early = cert.cert.not_valid_before_utc - datetime.timedelta(seconds=early_s)
    outcome = meet(cert, evil_is=evil_is, wall=lambda: early)
    outcome.assert_up() if up else outcome.assert_refused(EXPIRED, step=8)


@both
def test_h35_a_clock_before_this_release_believes_nobody(evil_is):
    cert = PKI.node("evil", not_before=utc(days=-3_650), not_after=utc(days=3_650))
    early = CLOCK_FLOOR - datetime.timedelta(seconds=1)
    outcome = meet(cert, evil_is=evil_is, wall=lambda: early)
    outcome.assert_refused(EXPIRED, step=8)
    assert outcome.ours.failure.reason == CLOCK_IS_WRONG


def test_h08_expiry_between_the_check_and_finished_is_accepted_and_known():
    cert = PKI.node("evil", not_after=utc(seconds=3600))
    end = cert.cert.not_valid_after_utc
    looks = iter([end - datetime.timedelta(seconds=1)])
    outcome = meet(cert, evil_is="dialler", wall=lambda: next(looks))
    outcome.assert_up()
    # Judged once; who closes the link at that moment is the link.
    assert outcome.ours.peer_not_after == end


# --- H-09 to H-11: usages ---


@both
@pytest.mark.parametrize("eku", [None, (SERVER,), (CLIENT,), (ANY,)])
def test_h09_b51_both_extended_key_usages_are_needed(evil_is, eku):
    meet(PKI.node("evil", eku=eku), evil_is=evil_is).assert_refused(UNSUPPORTED, step=9)


@both
@pytest.mark.parametrize(
    "key_usage",
    [
        None,
        ("key_encipherment",),
        ("digital_signature", "key_cert_sign"),
        ("digital_signature", "crl_sign"),
    ],
)
def test_h10_key_usage_must_be_a_nodes(evil_is, key_usage):
    cert = PKI.node("evil", key_usage=key_usage)
    meet(cert, evil_is=evil_is).assert_refused(UNSUPPORTED, step=9)


@both
def test_h11_a_ca_is_not_a_node(evil_is):
    meet(PKI.node("evil", ca=True), evil_is=evil_is).assert_refused(BAD, step=9)


@both
def test_h11_a_node_is_not_an_issuer(evil_is):
    cert = PKI.node("evil", issuer=PKI.node("a"))
    assert len(cert.chain) == 1
    meet(cert, evil_is=evil_is).assert_refused(UNKNOWN_CA, step=9)


# --- H-12: the list ---


@both
def test_h12_an_intermediate_that_is_sent_connects_and_a_missing_one_does_not(evil_is):
    cert = PKI.node("evil", issuer=PKI.authority("inter"))
    meet(cert, evil_is=evil_is).assert_up()
    outcome = meet(cert, evil_is=evil_is, arm=lists(cert.der))
    outcome.assert_refused(UNKNOWN_CA, step=9)


@both
@pytest.mark.parametrize("count", [5, 20])
def test_h12_more_than_four_certificates(evil_is, count):
    cert = PKI.node("evil")
    outcome = meet(cert, evil_is=evil_is, arm=lists(cert.der, *[PKI.ca.der] * (count - 1)))
    outcome.assert_refused(BAD, step=4)


def test_h12_200_copies_and_17_kib_are_refused_by_their_number_and_size():
    with pytest.raises(CheckFailed, match="too long"):
        parse_certificates([PKI.ca.der] * 200)
    with pytest.raises(CheckFailed, match="too long"):
        parse_certificates([PKI.node("evil").der, bytes(17 * 1024)])
    assert len(parse_certificates([PKI.node("evil").der] * 4)) == 4


@both
def test_h12_17_kib_are_refused_on_the_wire(evil_is):
    cert = PKI.node("evil")
    outcome = meet(cert, evil_is=evil_is, arm=lists(cert.der, bytes(17 * 1024)))
    outcome.assert_refused(BAD, step=4)


@both
def test_h12_200_copies_are_refused_at_the_length_of_the_message(evil_is):
    cert = PKI.node("evil")
    outcome = meet(cert, evil_is=evil_is, arm=lists(cert.der, *[PKI.ca.der] * 199))
    outcome.assert_refused(DECODE, step=1)


@both
def test_h12_chain_deeper_than_two_issuers(evil_is):
    top = PKI.authority("top")
    middle = PKI.authority("middle", issuer=top)
    low = PKI.authority("low", issuer=middle)
    meet(PKI.node("evil", issuer=middle), evil_is=evil_is).assert_up()
    outcome = meet(PKI.node("evil", issuer=low), evil_is=evil_is)
    outcome.assert_refused(UNKNOWN_CA, step=9)


@both
def test_h12_of_two_valid_leaves_the_first_one_counts_and_must_be_the_signers(evil_is):
    one, other = PKI.node("evil"), PKI.node("other")
    outcome = meet(one, evil_is=evil_is, arm=lists(one.der, other.der))
    outcome.assert_up()
    assert outcome.ours.peer_id.name == "evil"
    outcome = meet(one, evil_is=evil_is, arm=lists(other.der, one.der))
    outcome.assert_refused(DECRYPT, step=7)


# --- H-13: identities ---

MALFORMED = {
    "none": [],
    "two": ["spiffe://test/node/evil", "spiffe://test/node/other"],
    "upper case": ["spiffe://test/node/Evil"],
    "300 bytes": ["spiffe://test/node/" + "e" * 281],
    "NUL": ["spiffe://test/node/ev\0il"],
    "dot segments": ["spiffe://test/node/../evil"],
    "user": ["spiffe://a@test/node/evil"],
    "port": ["spiffe://test:1/node/evil"],
    "query": ["spiffe://test/node/evil?x"],
    "fragment": ["spiffe://test/node/evil#x"],
    "wildcard": ["spiffe://test/node/*"],
    "escape": ["spiffe://test/node/%65vil"],
    "empty segment": ["spiffe://test//evil"],
    "no path": ["spiffe://test"],
    "other scheme": ["https://test/node/evil"],
}


@both
@pytest.mark.parametrize("kind", MALFORMED)
def test_h13_identity_must_be_one_well_formed_uri(evil_is, kind):
    # With a DNS name the chain verifies, so that it is the identity that fails.
    cert = PKI.node("evil", uris=MALFORMED[kind], sans=[x509.DNSName("evil")])
    meet(cert, evil_is=evil_is).assert_refused(BAD, step=10)


@both
def test_h13_common_name_is_no_identity(evil_is):
    cert = PKI.node("spiffe-test-node-evil", uris=[])
    outcome = meet(cert, evil_is=evil_is)
    assert outcome.alert in (BAD, UNKNOWN_CA)
    assert outcome.ours.peer_id is None


# --- H-14: proof of possession ---


@both
def test_h14_a_copied_certificate_without_its_key(evil_is):
    outcome = meet(PKI.node("evil"), evil_is=evil_is, arm=signs_with(make_key("p256"), 0x0403))
    outcome.assert_refused(DECRYPT, step=7)


@both
def test_h14_signature_made_for_the_other_role(evil_is):
    cert = PKI.node("evil")
    here, there = (b"client", b"server") if evil_is == "dialler" else (b"server", b"client")

    def sign(data, *params):
        assert here + b" CertificateVerify" in data
        return cert.key.sign(data.replace(here, there), *params)

    outcome = meet(cert, evil_is=evil_is, arm=signs_with(Signer(sign), 0x0403))
    outcome.assert_refused(DECRYPT, step=7)


@both
def test_h14_signature_replayed_from_another_handshake(evil_is):
    cert, seen = PKI.node("evil"), []

    def record(data, *params):
        seen.append(cert.key.sign(data, *params))
        return seen[-1]

    meet(cert, evil_is=evil_is, arm=signs_with(Signer(record), 0x0403)).assert_up()
    replay = Signer(lambda data, *params: seen[0])
    outcome = meet(cert, evil_is=evil_is, arm=signs_with(replay, 0x0403))
    outcome.assert_refused(DECRYPT, step=7)


@both
def test_h14_b57_finished_that_was_tampered_with(evil_is):
    def other(original, buf, finished):
        finished.verify_data = bytes(len(finished.verify_data))
        original(buf, finished)

    outcome = meet(PKI.node("evil"), evil_is=evil_is, patches={"push_finished": other})
    outcome.assert_refused(DECRYPT, step=13)


# --- H-15: schemes ---

FITTING = {
    "p256": {"p256"},
    "p384": {"p384"},
    "ed25519": {"ed25519"},
    "rsa": {"pss256", "pss384"},
}
MISFITS = [
    (key_type, scheme)
    for key_type, fitting in FITTING.items()
    for scheme in SCHEMES
    if scheme not in fitting
]


@both
@pytest.mark.parametrize(("key_type", "scheme"), MISFITS)
def test_h15_b12_b52_a_scheme_that_does_not_fit_the_key(evil_is, key_type, scheme):
    cert = PKI.node("evil", key_type=key_type)

    def rename(original, buf, verify):
        verify.algorithm = SCHEMES[scheme]
        original(buf, verify)

    outcome = meet(cert, evil_is=evil_is, patches={"push_certificate_verify": rename})
    outcome.assert_refused(ILLEGAL, step=6)


@both
@pytest.mark.parametrize("scheme", ["pss256", "pss384"])
def test_h15_schemes_that_fit_an_rsa_key(evil_is, scheme):
    cert = PKI.node("evil", key_type="rsa")
    meet(cert, evil_is=evil_is, arm=signs_with(cert.key, SCHEMES[scheme])).assert_up()


# --- H-16: keys ---


def bad_key(kind):
    return huge_rsa(int(kind[3:])) if kind.startswith("rsa") else make_key(kind)


BAD_KEYS = (
    "rsa1024", "rsa2047", "rsa4097", "rsa8192", "rsa16384",
    "p521", "x25519", "dsa", "ed448", "secp256k1",
)  # fmt: skip


@both
@pytest.mark.parametrize("kind", BAD_KEYS)
def test_h16_weak_huge_or_unsupported_leaf_key(evil_is, kind):
    cert = PKI.node("evil", key=bad_key(kind))
    # The signature is junk: had it been looked at, the alert would be another.
    outcome = meet(cert, evil_is=evil_is, arm=junk_signer())
    outcome.assert_refused(UNSUPPORTED, step=5)


@both
@pytest.mark.parametrize("kind", [each for each in BAD_KEYS if each != "p521"])
def test_h16_weak_huge_or_unsupported_issuer_key(evil_is, kind):
    issuer = PKI.authority("inter", key=bad_key(kind))
    cert = PKI.node("evil")

    def arm(context):
        lists(cert.der, issuer.der)(context)
        junk_signer()(context)

    meet(cert, evil_is=evil_is, arm=arm).assert_refused(UNSUPPORTED, step=5)


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_h16_rsa_sizes_at_the_border_pass(bits):
    check_key(huge_rsa(bits).public_key())


# --- H-17: malformed certificates ---


def judge(der):
    """All that is ever done with a peer's certificate bytes."""
    leaf, *chain = parse_certificates([der])
    check_key(public_key_of(leaf))
    check_issuer_keys(chain)
    check_chain(leaf, chain, A.anchors, utc())
    return parse_identity(leaf, "test")


def test_h17_truncated_at_each_byte():
    der = PKI.node("evil").der
    for length in range(len(der)):
        with pytest.raises(CheckFailed) as failed:
            judge(der[:length])
        assert (failed.value.step, failed.value.alert) == (4, BAD)


def test_h17_random_and_trailing_bytes():
    rng = random.Random(17)
    der = PKI.node("evil").der
    for _ in range(500):
        with pytest.raises(CheckFailed) as failed:
            judge(rng.randbytes(rng.randrange(1, 600)))
        assert failed.value.alert == BAD
    with pytest.raises(CheckFailed):
        judge(der + b"\0")


def test_h17_any_byte_changed_is_refused_and_nothing_else_is_raised():
    rng = random.Random(18)
    der = PKI.node("evil").der
    for at in range(len(der)):
        changed = bytearray(der)
        changed[at] ^= 1 << rng.randrange(8)
        with pytest.raises(CheckFailed) as failed:
            judge(bytes(changed))
        assert len(failed.value.reason) <= 32


def odd_certificates():
    san = x509.ExtensionOID.SUBJECT_ALTERNATIVE_NAME
    good = PKI.node("evil").der
    serial = good.index(b"\xa0\x03\x02\x01\x02\x02") + 7
    negative = good[:serial] + bytes([good[serial] | 0x80]) + good[serial + 1 :]
    malformed_san = PKI.node(
        "evil", uris=[], extensions=[(x509.UnrecognizedExtension(san, b"\x30\x82"), False)]
    ).der
    # One extension is renamed to another that is there already.
    two = PKI.node(
        "evil",
        extensions=[
            (x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x30\0"), False)
        ],
    ).der
    duplicated = two.replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x11")
    assert duplicated != two
    return {"negative serial": negative, "malformed SAN": malformed_san, "duplicate": duplicated}


@both
@pytest.mark.parametrize("kind", ["negative serial", "malformed SAN", "duplicate"])
def test_h17_malformed_certificates_on_the_wire(evil_is, kind):
    outcome = meet(PKI.node("evil"), evil_is=evil_is, arm=lists(odd_certificates()[kind]))
    outcome.assert_refused(BAD, step=4)


@both
def test_h17_a_certificate_message_that_is_malformed_itself(evil_is):
    def break_length(original, buf, certificate):
        start = buf.tell()
        original(buf, certificate)
        end = buf.tell()
        buf.seek(start + 4)
        buf.push_uint8(200)  # the length of the request context
        buf.seek(end)

    patches = {"push_certificate": break_length}
    outcome = meet(PKI.node("evil"), evil_is=evil_is, patches=patches)
    outcome.assert_refused(DECODE, step=1)


def test_h17_sha1_signature_is_no_chain():
    cert = PKI.node("evil", issuer=Pki("test", key_type="rsa").ca, hash_algorithm=hashes.SHA256())
    with pytest.raises(CheckFailed) as failed:
        judge(cert.der)
    assert failed.value.alert == UNKNOWN_CA


# --- H-19 to H-21: who is meant and who is admitted ---


def test_h19_a_dial_to_ourselves_is_refused_on_both_ends():
    pair = Pair(engine.dial(A, settings=EngineSettings()), our_acceptor(A)).step(10)
    assert pair.dialler.failure.reason == OWN_IDENTITY
    assert pair.acceptor.close_event.error_code == 0x100 + DENIED
    assert pair.dialler.peer_id is None
    assert pair.acceptor.peer_id is None


@both
def test_h19_a_cloned_key_is_refused_and_the_reason_says_so(evil_is):
    ours = A if evil_is == "acceptor" else B
    clone = PKI.node(ours.node_id.name)
    outcome = meet(clone, evil_is=evil_is, ours=ours)
    outcome.assert_refused(DENIED, step=12)
    assert outcome.ours.failure.reason == OWN_IDENTITY


@both
def test_h18_a_revoked_certificate_is_refused_before_its_identity_is_compared(evil_is):
    asked = []

    def is_revoked(path, node_id):
        asked.append(([each.subject.rfc4514_string() for each in path], node_id.name))
        return node_id.name == "stolen"

    cert = PKI.node("stolen")
    outcome = meet(cert, evil_is=evil_is, is_revoked=is_revoked, admit=lambda _: False)
    outcome.assert_refused(REVOKED, step=11)
    # The whole path is judged, leaf first.
    assert [(len(path), name) for path, name in asked] == [(2, "stolen")]
    meet(PKI.node("good"), evil_is=evil_is, is_revoked=is_revoked).assert_up()


@both
def test_h20_valid_but_not_admitted(evil_is):
    asked = []

    def admit(peer):
        asked.append(peer)
        return False

    outcome = meet(PKI.node("evil"), evil_is=evil_is, admit=admit)
    outcome.assert_refused(DENIED, step=12)
    assert asked == [NodeId("spiffe://test/node/evil")]


def test_h20_the_policy_is_not_asked_about_who_fails_before():
    outcome = meet(
        STRANGERS.node("evil"), evil_is="dialler", admit=lambda peer: pytest.fail("asked")
    )
    outcome.assert_refused(UNKNOWN_CA)


def test_h20_a_policy_that_raises_refuses():
    outcome = meet(PKI.node("evil"), evil_is="dialler", admit=lambda peer: 1 / 0)
    outcome.assert_refused(80)


def test_h21_a_perfect_certificate_of_somebody_else():
    expected = NodeId("spiffe://test/node/c")
    outcome = meet(PKI.node("evil"), evil_is="acceptor", expected=expected)
    outcome.assert_refused(DENIED, step=12)
    assert outcome.ours.failure.detail == "spiffe://test/node/evil"
    meet(PKI.node("c"), evil_is="acceptor", expected=expected).assert_up()


# --- H-23: resumption and early data ---


def ticket():
    return tls.SessionTicket(
        age_add=1,
        cipher_suite=tls.CipherSuite.AES_128_GCM_SHA256,
        not_valid_after=utc(days=1),
        not_valid_before=utc(days=-1),
        resumption_secret=bytes(32),
        server_name=None,
        ticket=b"t" * 64,
        max_early_data_size=0xFFFFFFFF,
    )


def test_h23_b54_ticket_psk_and_early_data_of_a_dialler_are_ignored():
    outcome = meet(PKI.node("evil"), evil_is="dialler", session_ticket=ticket())
    assert outcome.evil.tls.session_ticket is not None
    outcome.assert_up()
    assert not outcome.ours.tls.early_data_accepted


def test_h23_ticket_without_a_certificate_gets_nobody_in():
    meet(None, evil_is="dialler", session_ticket=ticket()).assert_refused(NO_CERTIFICATE, step=4)


def test_h23_b47_an_acceptor_that_selects_a_psk_is_refused():
    def select(original, buf, hello):
        hello.pre_shared_key = 0
        original(buf, hello)

    outcome = meet(PKI.node("evil"), evil_is="acceptor", patches={"push_server_hello": select})
    outcome.assert_refused(ILLEGAL, step=1)


def test_h23_an_acceptor_that_accepts_early_data_is_refused():
    def early(original, buf, extensions):
        extensions.early_data = True
        original(buf, extensions)

    patches = {"push_encrypted_extensions": early}
    outcome = meet(PKI.node("evil"), evil_is="acceptor", patches=patches)
    outcome.assert_refused(FAILURE, step=13)


def test_h23_a_session_ticket_ends_the_connection():
    def arm(context):
        context.new_session_ticket_cb = lambda ticket: None
        handle = context._server_handle_finished

        def finish(*args):
            context._psk_key_exchange_mode = 1
            handle(*args)

        context._server_handle_finished = finish

    outcome = meet(PKI.node("evil"), evil_is="acceptor", arm=arm)
    assert outcome.alert == UNEXPECTED
    assert outcome.ours.ended


@pytest.mark.parametrize("field", ["_session_resumed", "early_data_accepted"])
def test_h23_second_lock_a_resumed_session_never_finishes(field, monkeypatch):
    judge = MutualTlsContext._judge

    def resume(self, leaf):
        judge(self, leaf)
        setattr(self, field, True)

    monkeypatch.setattr(MutualTlsContext, "_judge", resume)
    meet(PKI.node("evil"), evil_is="dialler").assert_refused(FAILURE, step=13)


@both
def test_second_lock_nobody_finishes_without_an_identity(evil_is, monkeypatch):
    monkeypatch.setattr(MutualTlsContext, "_judge", lambda self, leaf: None)
    meet(PKI.node("evil"), evil_is=evil_is).assert_refused(FAILURE, step=13)


# --- H-31: order and level ---


def forged_initial(pair, frames, *, to):
    """An Initial that anybody on the path can make, as if the other side had sent it."""
    first = header_of(pair.sent["dialler"][0])
    keys = Initials(first.destination_cid, from_dialler=to == "acceptor")
    if to == "acceptor":
        here, there = first.destination_cid, first.source_cid
        number = 50
    else:
        reply = header_of(pair.sent["acceptor"][0])
        here, there, number = reply.destination_cid, reply.source_cid, 50
    return keys.packet(frames, to=here, source=there, number=number)


def half_open():
    """A dialler and an acceptor that has just answered; nothing of the answer has arrived."""
    held = []

    def on_wire(from_dialler, datagram):
        if from_dialler:
            return [datagram]
        held.append(datagram)
        return []

    pair = Pair(engine.dial(A, settings=EngineSettings()), our_acceptor(), on_wire=on_wire)
    pair.step()
    return pair, held


@pytest.mark.parametrize("to", ["dialler", "acceptor"])
def test_h31_handshake_done_in_an_initial(to):
    pair, _ = half_open()
    pair.deliver(forged_initial(pair, b"\x1e", to=to), to=to)
    side = pair.dialler if to == "dialler" else pair.acceptor
    assert side.close_event.error_code == 0x0A  # PROTOCOL_VIOLATION


def server_hello_bytes(pair):
    return len(pair.acceptor._crypto_streams[tls.Epoch.INITIAL].sender._buffer)


def test_h31_encrypted_extensions_in_an_initial():
    pair, held = half_open()
    offset = server_hello_bytes(pair)
    initial_end = header_of(held[0]).packet_length
    pair.deliver(held[0][:initial_end], to="dialler")  # only the ServerHello
    assert pair.dialler.tls.state is tls.State.CLIENT_EXPECT_ENCRYPTED_EXTENSIONS
    extensions = b"\x08\x00\x00\x02\x00\x00"
    pair.deliver(forged_initial(pair, crypto_frame(extensions, offset), to="dialler"), to="dialler")
    assert pair.dialler.close_event.error_code == 0x100 + UNEXPECTED
    assert pair.dialler.failure.step == 1


def test_b39_part_of_a_message_at_the_wrong_level_is_refused_at_once():
    pair, held = half_open()
    offset = server_hello_bytes(pair)
    pair.deliver(held[0][: header_of(held[0]).packet_length], to="dialler")
    pair.deliver(forged_initial(pair, crypto_frame(b"\x08", offset), to="dialler"), to="dialler")
    assert pair.dialler.close_event.error_code == 0x100 + UNEXPECTED


def test_h31_certificate_twice():
    def twice(original, buf, certificate):
        original(buf, certificate)
        original(buf, certificate)

    for evil_is in ("dialler", "acceptor"):
        outcome = meet(PKI.node("evil"), evil_is=evil_is, patches={"push_certificate": twice})
        outcome.assert_refused(UNEXPECTED, step=1)


@pytest.mark.parametrize("rest", [b"\x08\x00", b"\x08\x00\x00\x02\x00\x00"])
def test_h31_bytes_left_over_when_the_keys_change(rest):
    def trailing(original, buf, hello):
        original(buf, hello)
        buf.push_bytes(rest)

    outcome = meet(PKI.node("evil"), evil_is="acceptor", patches={"push_server_hello": trailing})
    assert outcome.ours.close_event.error_code == 0x100 + UNEXPECTED
    assert outcome.ours.failure.step == 1
    outcome = meet(PKI.node("evil"), evil_is="dialler", patches={"push_client_hello": trailing})
    outcome.assert_refused(UNEXPECTED, step=1)


def test_h31_new_session_ticket_before_finished():
    def before(original, buf, finished):
        tls.push_new_session_ticket(buf, tls.NewSessionTicket(1, 1, b"", b"t"))
        original(buf, finished)

    outcome = meet(PKI.node("evil"), evil_is="acceptor", patches={"push_finished": before})
    outcome.assert_refused(UNEXPECTED, step=1)


def test_h31_certificate_verify_before_certificate():
    def skip(original, buf, certificate):
        pass

    for evil_is in ("dialler", "acceptor"):
        outcome = meet(PKI.node("evil"), evil_is=evil_is, patches={"push_certificate": skip})
        outcome.assert_refused(UNEXPECTED, step=1)


def test_h31_finished_without_certificate_verify():
    def skip(original, buf, verify):
        pass

    for evil_is in ("dialler", "acceptor"):
        outcome = meet(PKI.node("evil"), evil_is=evil_is, patches={"push_certificate_verify": skip})
        outcome.assert_refused(UNEXPECTED, step=1)


# --- H-32: protocol and version ---


@both
@pytest.mark.parametrize("alpn", [None, (), ("h3",), ("plumtree-quic/2",), ("plumtree-quic/",)])
def test_h32_only_our_application_protocol(evil_is, alpn):
    outcome = meet(PKI.node("evil"), evil_is=evil_is, alpn=alpn)
    if evil_is == "acceptor" and alpn is not None:
        # A stock acceptor without a common protocol refuses by itself.
        assert outcome.ours.close_event.error_code == 0x100 + NO_ALPN
        assert outcome.ours.peer_id is None
    else:
        outcome.assert_refused(NO_ALPN, step=2)


@pytest.mark.parametrize("answer", ["h3", ""])
def test_h32_b11_an_acceptor_that_answers_with_another_protocol(answer):
    def other(original, buf, extensions):
        extensions.alpn_protocol = answer or None
        original(buf, extensions)

    patches = {"push_encrypted_extensions": other}
    outcome = meet(PKI.node("evil"), evil_is="acceptor", patches=patches)
    outcome.assert_refused(NO_ALPN, step=2)


@both
def test_h32_even_an_engine_that_offers_more_takes_only_our_protocol(evil_is, monkeypatch):
    configure = engine._configuration

    def wider(*args, **kwargs):
        configuration = configure(*args, **kwargs)
        configuration.alpn_protocols.append("h3")
        return configuration

    monkeypatch.setattr(engine, "_configuration", wider)
    outcome = meet(PKI.node("evil"), evil_is=evil_is, alpn=["h3"])
    outcome.assert_refused(NO_ALPN, step=2)


def test_h32_version_2_gets_no_answer():
    dialler = Evil(PKI.node("evil"), dials=True, supported_versions=[0x6B3343CF])
    pair = Pair(dialler, our_acceptor()).step(3)
    assert pair.sent["acceptor"] == []


def test_h32_a_dialler_of_two_versions_stays_on_version_1():
    outcome = meet(PKI.node("evil"), evil_is="dialler", supported_versions=[1, 0x6B3343CF])
    outcome.assert_up()
    assert outcome.evil._version == 1


def test_h32_version_negotiation_ends_a_dial_at_once_and_blames_no_identity():
    pair = Pair(engine.dial(A, settings=EngineSettings()), our_acceptor())
    first = pair.dialler.datagrams_to_send(pair.now)[0][0]
    header = header_of(first)
    negotiation = (
        b"\xc0\0\0\0\0"
        + bytes([len(header.source_cid)])
        + header.source_cid
        + bytes([len(header.destination_cid)])
        + header.destination_cid
        + (0x6B3343CF).to_bytes(4, "big")
    )
    pair.deliver(negotiation, to="dialler")
    pair.step()
    assert pair.dialler.terminated
    assert pair.dialler.failure is None


# --- H-34: amplification ---


def test_the_longest_chain_that_we_may_have_fits_into_our_flight_in_both_roles():
    padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), bytes(15_380))
    ours = credentials("long", key_type="rsa4096", extensions=[(padding, False)])
    held = len(ours.leaf_der) + sum(map(len, ours.chain_der))
    assert CHAIN_BYTES_MAX - 80 < held <= CHAIN_BYTES_MAX
    pair = Pair(our_dialler(ours), our_acceptor()).run(5.0)
    assert pair.acceptor.peer_id == ours.node_id
    pair = Pair(our_dialler(), our_acceptor(ours)).run(5.0)
    assert pair.dialler.peer_id == ours.node_id


def test_h34_a_long_certificate_flight_completes_within_three_times_what_came():
    top = PKI.authority("t" * 60, key_type="rsa4096")
    low = PKI.authority("l" * 60, key_type="rsa4096", issuer=top)
    padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), bytes(1_400))
    ours = credentials("long", key_type="rsa4096", issuer=low, extensions=[(padding, False)])
    assert len(ours.leaf_der) + sum(map(len, ours.chain_der)) > 5_000
    seen = {"in": 0, "out": 0, "validated": False}

    def on_wire(from_dialler, datagram):
        if from_dialler:
            seen["in"] += len(datagram)
            if header_of(datagram).packet_type.name == "HANDSHAKE":
                seen["validated"] = True
        elif not seen["validated"]:
            seen["out"] += len(datagram)
            assert seen["out"] <= 3 * seen["in"]
        return [datagram]

    dialler = engine.dial(A, settings=EngineSettings())
    pair = Pair(dialler, our_acceptor(ours), on_wire=on_wire).run(5.0)
    assert pair.acceptor.peer_id == A.node_id
    assert pair.dialler.peer_id == ours.node_id
    assert seen["out"] > 1200


# --- what a refusal leaves behind ---


def test_b50_a_refused_dialler_hears_nothing_and_our_acceptor_reports_nobody():
    outcome = meet(STRANGERS.node("evil"), evil_is="dialler")
    assert outcome.pair.kinds("dialler").count("HandshakeCompleted") == 1
    assert set(outcome.pair.kinds("acceptor")) <= {"ProtocolNegotiated", "ConnectionTerminated"}


def test_two_of_ours_with_different_cas_both_see_why():
    strangers = credentials("b", pki=STRANGERS)
    pair = Pair(engine.dial(A, settings=EngineSettings()), our_acceptor(strangers)).step(10)
    assert pair.dialler.failure.alert == UNKNOWN_CA
    assert pair.acceptor.close_event.error_code == 0x100 + UNKNOWN_CA
    assert pair.acceptor.closed_by_peer
    assert not pair.dialler.closed_by_peer


def test_reasons_of_all_failures_are_short_plain_and_fixed():
    reasons = []
    for name in ("plumtree_quic.security.identity", "plumtree_quic.net.tls"):
        tree = ast.parse(Path(importlib.import_module(name).__file__).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "CheckFailed":
                reasons += [each.value for each in node.args[2:3] if isinstance(each, ast.Constant)]
    assert len(reasons) > 20
    assert all(len(each) <= 32 and each.isascii() for each in reasons), reasons
