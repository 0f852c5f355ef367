"""Signatures: what they cover, what they refuse, and that nothing makes `verify` raise."""

import hashlib
import random

import attrs
import msgpack
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from benchmarks import signatures as benchmark
from plumtree_quic import wire
from plumtree_quic.errors import WireError
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import Facts, Lane, MemberState, SignatureAlgorithm
from plumtree_quic.security.credentials import QuicConfig
from plumtree_quic.security.signatures import (
    Kind,
    Signer,
    algorithm_of,
    context,
    fact_kind,
    key_id_of,
    verify,
)
from tests.rigs.pki import Pki, make_key

PKI = Pki("test")
A, B = NodeId("spiffe://test/node/a"), NodeId("spiffe://test/node/b")
KEY_TYPES = {
    "p256": SignatureAlgorithm.ECDSA_P256_SHA256,
    "p384": SignatureAlgorithm.ECDSA_P384_SHA384,
    "ed25519": SignatureAlgorithm.ED25519,
    "rsa": SignatureAlgorithm.RSA_PSS_SHA256,
}
ORDERS = {
    "p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "p384": int(
        "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"
        "C7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973",
        16,
    ),
    "ed25519": (1 << 252) + 27742317777372353535851937790883648493,
}
PREFIX = context(Kind.BUNDLE, "test", "default")


@attrs.frozen(eq=False)
class Identity:
    cert: object
    signer: Signer

    @property
    def public_key(self):
        return self.cert.key.public_key()

    def signed(self, kind, signed_at=1_790_000_000_000):
        return {
            "algorithm": self.signer.algorithm,
            "key_id": self.signer.key_id,
            "signed_at": signed_at,
            "sign": self.signer.sign(kind),
        }


def identity(key_type="p256", name="a", *, cluster="default", issuer=None):
    cert = PKI.node(name, key_type=key_type, issuer=issuer)
    config = QuicConfig.from_pem(
        cert=cert.cert_pem, key=cert.key_pem, ca=PKI.ca_pem, cluster=cluster
    )
    return Identity(cert, Signer(config.credentials))


IDENTITIES = {key_type: identity(key_type) for key_type in KEY_TYPES}


@pytest.fixture(params=KEY_TYPES)
def key_type(request):
    return request.param


@pytest.fixture
def one(key_type):
    return IDENTITIES[key_type]


def bundle_of(one, messages=(("orders", b"payload"), ("", b"more"))):
    return wire.build_bundle(
        origin=member_key(A), epoch=7, first=3, messages=messages, **one.signed(Kind.BUNDLE)
    )


def record_of(one):
    return wire.build_record(
        node_id=A,
        epoch=7,
        incarnation=2,
        addresses=("10.0.0.1:7946",),
        valid_until=1_790_000_100_000,
        chain=one.signer.chain,
        **one.signed(Kind.RECORD),
    )


def fact_of(one, state=MemberState.ALIVE):
    return wire.build_fact(
        subject=member_key(B if state is MemberState.SUSPECT else A),
        epoch=7,
        incarnation=2,
        state=state,
        signer=member_key(A),
        **one.signed(fact_kind(state)),
    )


def is_good(one, thing, kind, *, trust_domain="test", cluster="default"):
    prefix = context(kind, trust_domain, cluster)
    header, body = thing.signed_parts
    return verify(one.public_key, thing.algorithm, prefix, header, body, thing.signature)


def sign(one, header=b"header", body=b"body", kind=Kind.BUNDLE):
    return one.signer.sign(kind)(header, body)


# --- what is signed -----------------------------------------------------------------------------


def test_bundles_records_and_facts_round_trip_with_every_kind_of_key(one, key_type):
    assert one.signer.algorithm is KEY_TYPES[key_type]
    assert is_good(one, bundle_of(one), Kind.BUNDLE)
    assert is_good(one, record_of(one), Kind.RECORD)
    for state, kind in (
        (MemberState.ALIVE, Kind.FACT),
        (MemberState.LEFT, Kind.FACT),
        (MemberState.SUSPECT, Kind.ACCUSATION),
    ):
        assert fact_kind(state) is kind
        assert is_good(one, fact_of(one, state), kind)


def test_what_crossed_the_wire_verifies_as_what_was_built(one):
    assert is_good(one, wire.parse_bundle(bundle_of(one).raw), Kind.BUNDLE)
    assert is_good(one, wire.parse_record(record_of(one).raw), Kind.RECORD)


def test_the_signed_bytes_are_those_that_the_wire_page_states():
    one = IDENTITIES["ed25519"]
    bundle = bundle_of(one)
    size = int.from_bytes(bundle.raw[:2], "big")
    header, body = bundle.raw[2 : 2 + size], bundle.raw[bundle.body_at :]
    stated = b"plumtree-quic/1 bundle\x00\x04test\x07default"
    stated += size.to_bytes(4, "big") + header + body
    one.public_key.verify(bundle.signature, stated)
    fact = fact_of(one)
    signed = msgpack.unpackb(fact.raw)[0]
    stated = b"plumtree-quic/1 fact\x00\x04test\x07default"
    one.public_key.verify(fact.signature, stated + len(signed).to_bytes(4, "big") + signed)


def test_a_bundle_packed_with_zstd_is_signed_as_it_travels(one):
    bundle = wire.build_bundle(
        origin=member_key(A),
        epoch=7,
        first=1,
        messages=[("", b"x" * 4_000)],
        zstd_level=3,
        **one.signed(Kind.BUNDLE),
    )
    assert len(bundle.raw) < 1_500
    assert is_good(one, bundle, Kind.BUNDLE)


def test_the_signature_and_the_hop_count_are_not_in_what_is_signed(one):
    bundle = bundle_of(one)
    header, body = bundle.signed_parts
    assert bundle.signature not in header + body
    other = wire.parse_bundle(
        len(header).to_bytes(2, "big") + header + (3).to_bytes(2, "big") + b"sig" + body
    )
    assert other.signed_parts == bundle.signed_parts
    assert other.says_the_same(bundle)


def test_fields_that_a_newer_minor_version_appends_are_covered(one):
    header, body = bundle_of(one).signed_parts
    newer = msgpack.packb([*msgpack.unpackb(header), "a new field"])

    def parse(signature, header):
        sizes = [len(each).to_bytes(2, "big") for each in (header, signature)]
        return wire.parse_bundle(sizes[0] + header + sizes[1] + signature + body)

    signature = one.signer.sign(Kind.BUNDLE)(newer, body)
    assert is_good(one, parse(signature, newer), Kind.BUNDLE)
    assert not is_good(one, parse(signature, newer.replace(b"new", b"old")), Kind.BUNDLE)
    assert not is_good(one, parse(signature, header), Kind.BUNDLE)


def test_the_key_id_is_16_bytes_of_sha_256_over_the_leaf_and_the_chain_is_leaf_first():
    inter = PKI.authority("between")
    one = identity(issuer=inter)
    assert one.signer.key_id == hashlib.sha256(one.cert.der).digest()[:16]
    assert one.signer.key_id == key_id_of(one.cert.der)
    assert one.signer.chain == (one.cert.der, inter.der)


# --- what is refused ----------------------------------------------------------------------------


def test_every_flipped_byte_of_header_and_body_is_refused(one):
    header, body = b"some header", b"and a body"
    signature = sign(one, header, body)
    for at in range(len(header)):
        bad = header[:at] + bytes((header[at] ^ 1,)) + header[at + 1 :]
        assert not verify(one.public_key, one.signer.algorithm, PREFIX, bad, body, signature)
    for at in range(len(body)):
        bad = body[:at] + bytes((body[at] ^ 0x80,)) + body[at + 1 :]
        assert not verify(one.public_key, one.signer.algorithm, PREFIX, header, bad, signature)


def test_every_flipped_byte_of_the_context_is_refused(one):
    signature = sign(one)
    for at in range(len(PREFIX)):
        bad = PREFIX[:at] + bytes((PREFIX[at] ^ 1,)) + PREFIX[at + 1 :]
        assert not verify(one.public_key, one.signer.algorithm, bad, b"header", b"body", signature)


def test_every_flipped_bit_of_the_signature_is_refused(one):
    signature = sign(one)
    for bit in range(8 * len(signature)):
        bad = bytearray(signature)
        bad[bit // 8] ^= 1 << bit % 8
        assert not verify(
            one.public_key, one.signer.algorithm, PREFIX, b"header", b"body", bytes(bad)
        )


def test_every_flipped_byte_of_a_bundle_on_the_wire_is_refused(one):
    raw = bundle_of(one).raw
    for at in range(len(raw)):
        bad = raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :]
        try:
            bundle = wire.parse_bundle(bad)
        except WireError:
            continue
        assert not is_good(one, bundle, Kind.BUNDLE)


@pytest.mark.parametrize("build", [record_of, fact_of])
def test_no_flipped_byte_of_a_record_or_fact_changes_what_is_said_and_stays_good(build):
    one = IDENTITIES["ed25519"]
    thing = build(one)
    parse = wire.parse_record
    if build is fact_of:
        frame = wire.encode(Facts((thing,)))
        lead = frame[: frame.index(thing.raw)]

        def parse(raw):
            return wire.LinkDecoder().decode(Lane.CONTROL, lead + raw).facts[0]

    kind = Kind.RECORD if build is record_of else Kind.FACT
    for at in range(len(thing.raw)):
        for flip in (1, 0x80):
            bad = thing.raw[:at] + bytes((thing.raw[at] ^ flip,)) + thing.raw[at + 1 :]
            try:
                other = parse(bad)
            except WireError:
                continue
            assert not is_good(one, other, kind)


def test_a_byte_cannot_move_between_header_and_body(one):
    signature = sign(one, b"header", b"body")
    assert not verify(one.public_key, one.signer.algorithm, PREFIX, b"headerb", b"ody", signature)


def test_a_byte_cannot_move_between_trust_domain_and_cluster():
    assert context(Kind.BUNDLE, "test", "default") != context(Kind.BUNDLE, "testd", "efault")
    contexts = {
        context(kind, domain, cluster)
        for kind in Kind
        for domain in ("a", "ab", "abc")
        for cluster in ("c", "bc", "\x01c")
    }
    assert len(contexts) == len(Kind) * 9


def test_no_kind_of_statement_passes_for_another(one):
    for kind in Kind:
        signature = sign(one, kind=kind)
        for other in Kind:
            good = verify(
                one.public_key,
                one.signer.algorithm,
                context(other, "test", "default"),
                b"header",
                b"body",
                signature,
            )
            assert good is (other is kind)


def test_no_kind_is_the_beginning_of_another():
    tags = [kind.value + b"\0" for kind in Kind]
    assert not any(a is not b and a.startswith(b) for a in tags for b in tags)


def test_a_signature_counts_in_its_cluster_and_trust_domain_alone(one):
    bundle = bundle_of(one)
    assert not is_good(one, bundle, Kind.BUNDLE, cluster="another")
    assert not is_good(one, bundle, Kind.BUNDLE, trust_domain="another")
    elsewhere = identity("p256", cluster="another")
    assert not is_good(elsewhere, bundle_of(elsewhere), Kind.BUNDLE)
    assert is_good(elsewhere, bundle_of(elsewhere), Kind.BUNDLE, cluster="another")


def test_another_key_of_the_same_kind_is_refused(one, key_type):
    other = make_key(key_type, number=1).public_key()
    assert not verify(other, one.signer.algorithm, PREFIX, b"header", b"body", sign(one))


def test_only_the_algorithm_that_fits_the_key_counts(one):
    signature = sign(one)
    for algorithm in SignatureAlgorithm:
        good = verify(one.public_key, algorithm, PREFIX, b"header", b"body", signature)
        assert good is (algorithm is one.signer.algorithm)
    for other in IDENTITIES.values():
        if other is not one:
            for algorithm in SignatureAlgorithm:
                assert not verify(
                    other.public_key, algorithm, PREFIX, b"header", b"body", signature
                )


@pytest.mark.parametrize("kind", ["p521", "secp256k1", "ed448", "x25519", "dsa"])
def test_keys_that_no_node_has_verify_nothing(kind):
    public_key = make_key(kind).public_key()
    assert algorithm_of(public_key) is None
    for algorithm in SignatureAlgorithm:
        assert not verify(public_key, algorithm, PREFIX, b"header", b"body", b"x" * 64)


def test_what_is_no_key_verifies_nothing():
    for thing in (None, ValueError("unreadable"), object(), b""):
        for algorithm in SignatureAlgorithm:
            assert not verify(thing, algorithm, PREFIX, b"", b"", b"")


def test_no_signature_makes_verifying_raise(one):
    rng = random.Random(5)
    good = sign(one)
    for _ in range(300):
        bad = rng.choice((rng.randbytes(rng.randrange(200)), good[: rng.randrange(len(good))]))
        assert not verify(one.public_key, one.signer.algorithm, PREFIX, b"header", b"body", bad)
    for bad in (b"", b"\0", good + b"\0", b"\0" + good, good * 2, b"\0" * len(good)):
        assert not verify(one.public_key, one.signer.algorithm, PREFIX, b"header", b"body", bad)


# --- one signature, one encoding ----------------------------------------------------------------


def encode(r, s):
    """DER of two integers, negative ones as well, which the library would not write."""
    parts = [each.to_bytes(each.bit_length() // 8 + 1, "big", signed=True) for each in (r, s)]
    inner = b"".join(b"\x02" + bytes((len(each),)) + each for each in parts)
    return b"\x30" + bytes((len(inner),)) + inner


def ber_variants(signature):
    """The same r and s in encodings that DER does not allow, and as bare numbers."""
    r, s = decode_dss_signature(signature)
    first = signature[4 : 4 + signature[3]]
    second = signature[6 + len(first) :]
    size = (max(r.bit_length(), s.bit_length()) + 7) // 8
    inner = b"\x02" + bytes((len(first) + 1,)) + b"\0" + first + b"\x02"
    inner += bytes((len(second),)) + second
    yield "leading zero", b"\x30" + bytes((len(inner),)) + inner
    yield "long length", b"\x30\x81" + signature[1:]
    yield "indefinite length", b"\x30\x80" + signature[2:] + b"\0\0"
    yield "trailing byte", signature + b"\0"
    yield "bare numbers", r.to_bytes(size, "big") + s.to_bytes(size, "big")


@pytest.mark.parametrize("key_type", ["p256", "p384"])
def test_an_ecdsa_signature_has_one_encoding(key_type):
    one = IDENTITIES[key_type]
    for name, bad in ber_variants(sign(one)):
        assert not verify(one.public_key, one.signer.algorithm, PREFIX, b"header", b"body", bad), (
            name
        )


@pytest.mark.parametrize("key_type", ["p256", "p384"])
def test_zero_and_numbers_beyond_the_order_are_no_ecdsa_signature(key_type):
    one, n = IDENTITIES[key_type], ORDERS[key_type]
    r, s = decode_dss_signature(sign(one))
    assert encode(r, s) == encode_dss_signature(r, s)
    for bad in ((0, 0), (0, s), (r, 0), (r + n, s), (r, s + n), (-r, s), (r, -s), (n, n)):
        encoded = encode(*bad)
        assert not verify(one.public_key, one.signer.algorithm, PREFIX, b"header", b"body", encoded)


@pytest.mark.parametrize("key_type", ["p256", "p384"])
def test_the_second_valid_form_of_an_ecdsa_signature_is_the_same_bundle(key_type):
    one = IDENTITIES[key_type]
    bundle = bundle_of(one)
    r, s = decode_dss_signature(bundle.signature)
    second = encode_dss_signature(r, ORDERS[key_type] - s)
    header, body = bundle.signed_parts
    sizes = [len(each).to_bytes(2, "big") for each in (header, second)]
    twin = wire.parse_bundle(sizes[0] + header + sizes[1] + second + body)
    assert twin.raw != bundle.raw
    assert is_good(one, twin, Kind.BUNDLE)
    assert twin.says_the_same(bundle)
    assert bundle.says_the_same(twin)


def test_two_signatures_of_one_origin_over_other_words_are_not_the_same_bundle(one):
    assert not bundle_of(one).says_the_same(bundle_of(one, [("orders", b"otherwise"), ("", b"x")]))


def test_an_ed25519_signature_has_one_form():
    one = IDENTITIES["ed25519"]
    signature = sign(one)
    s = int.from_bytes(signature[32:], "little") + ORDERS["ed25519"]
    bad = signature[:32] + s.to_bytes(32, "little")
    assert not verify(one.public_key, one.signer.algorithm, PREFIX, b"header", b"body", bad)


def test_an_rsa_signature_has_the_length_of_the_modulus_and_is_below_it():
    one = IDENTITIES["rsa"]
    signature = sign(one)
    n = one.public_key.public_numbers().n
    for bad in (
        b"\0" + signature,
        signature[1:],
        (int.from_bytes(signature, "big") + n).to_bytes(257, "big"),
    ):
        assert not verify(one.public_key, one.signer.algorithm, PREFIX, b"header", b"body", bad)


@pytest.mark.parametrize(
    "scheme",
    [
        padding.PKCS1v15(),
        padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=0),
        padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=20),
        padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH),
        padding.PSS(padding.MGF1(hashes.SHA1()), salt_length=32),
    ],
)
def test_rsa_counts_with_pss_sha_256_and_a_salt_of_32_bytes_alone(scheme):
    one = IDENTITIES["rsa"]
    data = PREFIX + (6).to_bytes(4, "big") + b"header" + b"body"
    right = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
    for each, good in ((right, True), (scheme, False)):
        signature = one.cert.key.sign(data, each, hashes.SHA256())
        assert (
            verify(one.public_key, one.signer.algorithm, PREFIX, b"header", b"body", signature)
            is good
        )


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_rsa_keys_of_every_allowed_size_round_trip_within_the_wire_limit(bits):
    one = identity(f"rsa{bits}")
    bundle = bundle_of(one)
    assert len(bundle.signature) == bits // 8 <= wire.SIGNATURE_BYTES_MAX
    assert is_good(one, wire.parse_bundle(bundle.raw), Kind.BUNDLE)


# --- what it costs ------------------------------------------------------------------------------


def test_the_benchmark_measures_every_kind_of_key_and_names_it(monkeypatch):
    monkeypatch.setattr(benchmark, "ROUND_S", 0.001)
    costs = [benchmark.measure(key_type, rounds=1) for key_type in benchmark.KEY_TYPES]
    text = benchmark.table(costs)
    for cost in costs:
        assert cost.key_type in text
        # One signature for all of a bundle, however many messages are in it.
        for count in benchmark.MESSAGES:
            assert cost.bytes[count] * count == pytest.approx(cost.bytes[1], abs=4)
