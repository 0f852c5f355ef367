"""The ordered check of a certificate: who may be believed, and which NodeId it proves.

Pure functions over parsed certificates; both roles of the handshake (net/tls.py) and our own
credentials (credentials.py) run the same ones. No TLS, no files, no network here. The order and
the alerts are the project's security rules; a peer learns the alert and a fixed reason, never a
detail.
"""

import datetime
import warnings
from collections.abc import Sequence

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from plumtree_quic.errors import ConfigError
from plumtree_quic.ids import NodeId

__all__ = [
    "CHAIN_BYTES_MAX",
    "CHAIN_CERTIFICATES_MAX",
    "CHAIN_DEPTH_MAX",
    "CHECKS",
    "CLOCK_IS_WRONG",
    "OWN_IDENTITY",
    "Alert",
    "Check",
    "CheckFailed",
    "check_chain",
    "check_clock",
    "check_issuer_keys",
    "check_key",
    "check_meant",
    "parse_certificates",
    "parse_identity",
    "public_key_of",
]

CHAIN_CERTIFICATES_MAX = 4
CHAIN_BYTES_MAX = 16_384
CHAIN_DEPTH_MAX = 2
RSA_BITS_MIN = 2048
RSA_BITS_MAX = 4096
RSA_EXPONENT_MAX = 1 << 32
"""Keys have 65537, old ones 3. With an exponent as long as the modulus a check costs 60 times as
much, and whoever asks for a certificate chooses it."""
OWN_IDENTITY = "that is our own identity"
"""Reason of step 12 when a peer shows our own NodeId: a dial to ourselves, or a copied key."""

CLOCK_IS_WRONG = "our own clock is wrong"
"""Reason of step 8 when it is our clock that cannot be: no certificate is judged by it."""
CLOCK_FLOOR = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""Before this release was made no node can have run: a clock that says so lost its time."""

# A clock that is a little behind its CA's must not refuse a fresh certificate.
NOT_BEFORE_GRACE = datetime.timedelta(seconds=60)


class Alert:
    """TLS alert numbers (RFC 8446, section 6) that our check uses."""

    UNEXPECTED_MESSAGE = 10
    HANDSHAKE_FAILURE = 40
    BAD_CERTIFICATE = 42
    UNSUPPORTED_CERTIFICATE = 43
    CERTIFICATE_REVOKED = 44
    CERTIFICATE_EXPIRED = 45
    ILLEGAL_PARAMETER = 47
    UNKNOWN_CA = 48
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    DECRYPT_ERROR = 51
    INTERNAL_ERROR = 80
    CERTIFICATE_REQUIRED = 116
    NO_APPLICATION_PROTOCOL = 120


@attrs.frozen
class Check:
    """One step of the ordered check. fix: what the owner of the refused certificate can do."""

    step: int
    name: str
    fix: str


CHECKS: tuple[Check, ...] = (
    Check(1, "handshake messages are well-formed and in order", "is this a plumtree-quic node?"),
    Check(2, "application protocol and transport parameters", "is this a plumtree-quic node?"),
    Check(3, "the acceptor asks for our certificate", "the peer must require client certificates"),
    Check(4, "a certificate was sent and parses", "configure a certificate on the peer"),
    Check(5, "key type and size", "use P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits"),
    Check(6, "signature scheme fits the key", "the peer's TLS stack signs with a wrong scheme"),
    Check(7, "the peer holds the private key", "the peer's key does not match its certificate"),
    Check(8, "validity dates", "issue a new certificate, or set the clock"),
    Check(9, "chain to our CA, and usages", "issue it from the same CA, with both usages"),
    Check(
        10,
        "exactly one identity in our trust domain",
        "issue it with one URI, spiffe://OUR-DOMAIN/PATH",
    ),
    Check(11, "not revoked", "issue a new certificate"),
    Check(12, "identity is the one meant, and admitted", "dial the right address, or admit it"),
    Check(13, "handshake finished with an identity", "is this a plumtree-quic node?"),
)
"""The steps in the order in which they are taken, as `plumtree-quic connect` prints them."""


class CheckFailed(Exception):
    """A step of the check failed.

    Attributes:
        step: number of the step in CHECKS.
        alert: TLS alert that the peer gets.
        reason: fixed ASCII text of at most 32 bytes, safe to send.
        detail: more, for our own log; may hold peer text and must be escaped.
    """

    def __init__(self, step: int, alert: int, reason: str, detail: str = "") -> None:
        super().__init__(f"step {step}: {reason}" + (f" ({detail})" if detail else ""))
        self.step = step
        self.alert = alert
        self.reason = reason
        self.detail = detail


def parse_certificates(ders: Sequence[bytes]) -> list[x509.Certificate]:
    """Step 4: the certificates that a peer sent, leaf first. Raises CheckFailed.

    At most four of them, of 16 KiB in all; a certificate that the parser merely tolerates (a
    serial number below 1, for one) is refused like one that it cannot read.
    """
    if not ders:
        raise CheckFailed(4, Alert.CERTIFICATE_REQUIRED, "no certificate was sent")
    if len(ders) > CHAIN_CERTIFICATES_MAX or sum(map(len, ders)) > CHAIN_BYTES_MAX:
        raise CheckFailed(4, Alert.BAD_CERTIFICATE, "certificate list is too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            certificates = [x509.load_der_x509_certificate(der) for der in ders]
            for each in certificates:
                # Extensions are parsed when they are first read; all must be readable.
                _ = each.extensions, each.not_valid_before_utc, each.not_valid_after_utc
    except (ValueError, TypeError, x509.DuplicateExtension, UnsupportedAlgorithm) as error:
        raise CheckFailed(4, Alert.BAD_CERTIFICATE, "certificate does not parse", str(error))
    except (CryptographyDeprecationWarning, x509.InvalidVersion) as error:
        raise CheckFailed(4, Alert.BAD_CERTIFICATE, "certificate is malformed", str(error))
    return certificates


def check_key(public_key: object) -> None:
    """Step 5 for a node's key: P-256, P-384, Ed25519 or RSA 2048 to 4096. Raises CheckFailed.

    Taken before any signature is checked: a huge RSA key burns CPU in the check itself.
    """
    match public_key:
        case ec.EllipticCurvePublicKey() if isinstance(
            public_key.curve, ec.SECP256R1 | ec.SECP384R1
        ):
            return
        case ed25519.Ed25519PublicKey():
            return
        case rsa.RSAPublicKey() if _is_usual(public_key):
            return
    raise CheckFailed(5, Alert.UNSUPPORTED_CERTIFICATE, "key type or size", _describe(public_key))


def _is_usual(key: rsa.RSAPublicKey) -> bool:
    return (
        RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX and key.public_numbers().e <= RSA_EXPONENT_MAX
    )


def check_issuer_keys(chain: Sequence[x509.Certificate]) -> None:
    """Step 5 for intermediates: EC up to P-521, or RSA 2048 to 4096. Raises CheckFailed."""
    for cert in chain:
        key = public_key_of(cert)
        match key:
            case ec.EllipticCurvePublicKey() if isinstance(
                key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1
            ):
                continue
            case rsa.RSAPublicKey() if _is_usual(key):
                continue
        raise CheckFailed(
            5, Alert.UNSUPPORTED_CERTIFICATE, "issuer key type or size", _describe(key)
        )


def check_clock(now: datetime.datetime) -> None:
    """Step 8, before the dates: a clock that was set back would make old certificates good again.

    Raises:
        CheckFailed: with CLOCK_IS_WRONG as reason when `now` is before CLOCK_FLOOR.
    """
    if now < CLOCK_FLOOR:
        raise CheckFailed(8, Alert.CERTIFICATE_EXPIRED, CLOCK_IS_WRONG)


def check_chain(
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime.datetime,
) -> list[x509.Certificate]:
    """Steps 5 (issuers), 8 and 9: dates, usages, and a path of at most two issuers to an anchor.

    Returns the path that was found, leaf first, anchor last.

    Args:
        leaf: the node certificate, its key checked.
        chain: intermediates as they were sent.
        anchors: CA certificates that we trust; nothing else is trusted.
        now: wall clock, with a time zone.

    Raises:
        CheckFailed: see the alerts of each step.
    """
    check_issuer_keys(chain)
    if now > leaf.not_valid_after_utc:
        raise CheckFailed(8, Alert.CERTIFICATE_EXPIRED, "certificate expired")
    # A difference, for the year 1 less a minute is none that Python knows.
    if leaf.not_valid_before_utc - now > NOT_BEFORE_GRACE:
        raise CheckFailed(8, Alert.CERTIFICATE_EXPIRED, "certificate not yet valid")
    try:
        _check_usages(leaf)
    except (ValueError, x509.DuplicateExtension) as error:
        raise CheckFailed(9, Alert.BAD_CERTIFICATE, "extensions do not parse", str(error))
    # The client verifier on both sides: the server one wants a DNS name, and we judge the
    # identity ourselves (step 10). Its time is fixed when it is built.
    verifier = (
        PolicyBuilder()
        .store(Store(list(anchors)))
        .time(max(now, leaf.not_valid_before_utc))
        .max_chain_depth(CHAIN_DEPTH_MAX)
        .build_client_verifier()
    )
    try:
        return verifier.verify(leaf, list(chain)).chain
    except (VerificationError, ValueError, UnsupportedAlgorithm) as error:
        raise CheckFailed(9, Alert.UNKNOWN_CA, "no path to a trusted CA", str(error))


def _check_usages(leaf: x509.Certificate) -> None:
    extensions = leaf.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise CheckFailed(9, Alert.BAD_CERTIFICATE, "a CA is not a node")
    except x509.ExtensionNotFound:
        pass  # an end entity may leave it out (RFC 5280, section 4.2.1.9)
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise CheckFailed(9, Alert.UNSUPPORTED_CERTIFICATE, "key usage is missing")
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise CheckFailed(9, Alert.UNSUPPORTED_CERTIFICATE, "key usage does not fit a node")
    try:
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        raise CheckFailed(9, Alert.UNSUPPORTED_CERTIFICATE, "extended key usage is missing")
    for purpose, name in (
        (ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth is missing"),
        (ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth is missing"),
    ):
        if purpose not in purposes:
            raise CheckFailed(9, Alert.UNSUPPORTED_CERTIFICATE, name)


def parse_identity(leaf: x509.Certificate, trust_domain: str | None) -> NodeId:
    """Step 10: return the one URI in the subjectAltName, as a NodeId of `trust_domain`.

    trust_domain None accepts any: for our own certificate, which defines it.

    Raises:
        CheckFailed: none or several URIs, one that is not a well-formed identity, or one of
            another trust domain.
    """
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        raise CheckFailed(10, Alert.BAD_CERTIFICATE, "no identity (URI SAN)")
    except (ValueError, x509.DuplicateExtension) as error:
        raise CheckFailed(10, Alert.BAD_CERTIFICATE, "subjectAltName does not parse", str(error))
    if not uris:
        raise CheckFailed(10, Alert.BAD_CERTIFICATE, "no identity (URI SAN)")
    if len(uris) > 1:
        raise CheckFailed(10, Alert.BAD_CERTIFICATE, "several identities (URI SANs)")
    try:
        node_id = NodeId.parse(uris[0])
    except ConfigError as error:
        raise CheckFailed(10, Alert.BAD_CERTIFICATE, "identity is malformed", str(error))
    if trust_domain is not None and node_id.trust_domain != trust_domain:
        raise CheckFailed(
            10, Alert.BAD_CERTIFICATE, "identity of another domain", node_id.trust_domain
        )
    return node_id


def check_meant(node_id: NodeId, own: NodeId, expected: NodeId | None) -> None:
    """Step 12, first half: not ourselves, and whom we meant to dial if we meant somebody.

    Raises:
        CheckFailed: with OWN_IDENTITY as reason for our own NodeId.
    """
    if node_id == own:
        raise CheckFailed(12, Alert.ACCESS_DENIED, OWN_IDENTITY)
    if expected is not None and node_id != expected:
        raise CheckFailed(12, Alert.ACCESS_DENIED, "not the identity we dialled", node_id)


def public_key_of(cert: x509.Certificate) -> object:
    """The public key of `cert`; the parser's error if it knows no such key (check_key refuses)."""
    try:
        return cert.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        return error


def _describe(public_key: object) -> str:
    match public_key:
        case ec.EllipticCurvePublicKey():
            return public_key.curve.name
        case rsa.RSAPublicKey():
            exponent = public_key.public_numbers().e.bit_length()
            return f"RSA {public_key.key_size}, exponent of {exponent} bits"
    return type(public_key).__name__.lstrip("_")
