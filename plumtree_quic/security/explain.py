"""Why a certificate is refused, and what to do, in words. The rules are in identity.py."""

import datetime
from collections.abc import Sequence
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from plumtree_quic.errors import ConfigError
from plumtree_quic.ids import NodeId
from plumtree_quic.security.identity import CHAIN_DEPTH_MAX, CLOCK_IS_WRONG, Alert, CheckFailed

__all__ = ["NEW_CERT", "describe_key", "explain", "extension_of", "public_key_of", "uris_of"]

NEW_CERT = "issue a new one (for development: plumtree-quic certs NAME)"

_STEP_KEY, _STEP_DATES, _STEP_IDENTITY = 5, 8, 10
# Steps of identity.py's CHECKS.

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def explain(
    failed: CheckFailed,
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    cert_name: str,
    ca_name: str,
) -> str:
    """Say in one sentence what is wrong with `leaf` and what to do.

    Args:
        failed: what a step of the check raised.
        leaf, chain, anchors: what was checked.
        cert_name, ca_name: the files, or what the caller calls them.
    """
    text: str | None = None
    if failed.step == _STEP_KEY:
        text = _about_key(failed, leaf, chain)
    elif failed.step == _STEP_DATES:
        text = _about_dates(failed, leaf)
    elif failed.step == _STEP_IDENTITY or extension_of(leaf, x509.SubjectAlternativeName) is None:
        text = _about_identity(leaf)  # the chain verifier wants a subjectAltName, too
    elif failed.alert == Alert.UNKNOWN_CA:
        text = _about_chain(leaf, chain, anchors, ca_name)
    else:
        text = _about_usages(leaf)
    if text is None:
        text = f"would be refused by every peer: {failed.reason}; {NEW_CERT}"
    return f"{cert_name} {text}"


def _about_key(
    failed: CheckFailed, leaf: x509.Certificate, chain: Sequence[x509.Certificate]
) -> str:
    if failed.reason.startswith("issuer"):
        kinds = ", ".join(describe_key(public_key_of(each)) for each in chain)
        return (
            f"is followed by an intermediate whose key is not allowed ({kinds}); allowed are EC "
            "up to P-521 and RSA of 2048 to 4096 bits"
        )
    return (
        f"has a key of kind {describe_key(public_key_of(leaf))}; allowed are P-256, P-384, "
        f"Ed25519 and RSA of 2048 to 4096 bits; {NEW_CERT}"
    )


def describe_key(public_key: object) -> str:
    """Name the kind and size of a public key."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        curve = public_key.curve.name
        return {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}.get(curve, curve)
    if isinstance(public_key, rsa.RSAPublicKey):
        exponent = public_key.public_numbers().e
        odd = f" with an exponent of {exponent.bit_length()} bits" if exponent > 1 << 32 else ""
        return f"RSA {public_key.key_size}{odd}"
    if public_key is None:
        return "unknown"
    return type(public_key).__name__.removesuffix("PublicKey")


def _about_dates(failed: CheckFailed, leaf: x509.Certificate) -> str:
    now = datetime.datetime.now(datetime.UTC)
    if failed.reason == CLOCK_IS_WRONG:
        return (
            f"cannot be judged: this machine's clock says {_utc(now)}, which is before this "
            "release was made; correct the clock"
        )
    fix = f"this machine's clock says {_utc(now)}: correct the clock, or {NEW_CERT}"
    if now < leaf.not_valid_before_utc:
        return f"is not valid before {_utc(leaf.not_valid_before_utc)}; {fix}"
    return f"expired at {_utc(leaf.not_valid_after_utc)}; {fix}"


def _utc(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _about_usages(leaf: x509.Certificate) -> str | None:
    constraints = extension_of(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        return f"is a CA certificate (CA:TRUE) and cannot be a node's; {NEW_CERT}"
    usages = extension_of(leaf, x509.ExtendedKeyUsage)
    lacking = [
        name
        for name, oid in (
            ("serverAuth", ExtendedKeyUsageOID.SERVER_AUTH),
            ("clientAuth", ExtendedKeyUsageOID.CLIENT_AUTH),
        )
        if usages is None or oid not in usages
    ]
    if lacking:
        return (
            f"lacks the extended key usage {' and '.join(lacking)}; a node both dials and "
            f"accepts and needs serverAuth and clientAuth; {NEW_CERT}"
        )
    usage = extension_of(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        return f"lacks the key usage digitalSignature; {NEW_CERT}"
    if usage.key_cert_sign or usage.crl_sign:
        return f"has a CA's key usage (keyCertSign or cRLSign) and is not a node's; {NEW_CERT}"
    return None


def _about_identity(leaf: x509.Certificate) -> str:
    uris = uris_of(leaf)
    shape = "spiffe://<trust-domain>/<path>"
    if not uris:
        return f"names no node: its subjectAltName needs exactly one URI, {shape}; {NEW_CERT}"
    if len(uris) > 1:
        shown = ", ".join(ascii(each)[:80] for each in uris[:4])
        return f"names {len(uris)} URIs ({shown}); exactly one is allowed; {NEW_CERT}"
    try:
        node_id = NodeId.parse(uris[0])
    except ConfigError as error:
        return f"names no node: {error}; {NEW_CERT}"
    return (
        f"is of trust domain {node_id.trust_domain!r}, not the one that trust_domain asks for; "
        "use a certificate of that domain or correct trust_domain"
    )


def public_key_of(cert: x509.Certificate) -> object:
    """The public key of `cert`, or None when its kind or its bytes are unknown to us."""
    try:
        return cert.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None


def uris_of(cert: x509.Certificate) -> list[str]:
    """All URIs in the subjectAltName of `cert`."""
    names = extension_of(cert, x509.SubjectAlternativeName)
    return [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)


def extension_of(cert: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    """The extension of that kind, or None when it is absent or malformed."""
    try:
        return cert.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _about_chain(
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    ca_name: str,
) -> str:
    """Why no path leads from `leaf` to an anchor, walking up as far as there is one."""
    below, rest = leaf, list(chain)
    while True:
        if isinstance(below.signature_hash_algorithm, hashes.SHA1 | hashes.MD5):
            return f"was signed with {below.signature_hash_algorithm.name.upper()}; {NEW_CERT}"
        who = "" if below is leaf else f"came through {_name(below.subject)}, which "
        named = [each for each in (*anchors, *rest) if each.subject == below.issuer]
        issuer = next((each for each in named if _signed(each, below)), None)
        if issuer is None:
            if named:
                return (
                    f"{who}names {_name(below.issuer)} as its issuer, but that CA in {ca_name} "
                    "has another key: they come from different CAs of one name; use the "
                    f"certificate's own CA as ca_path, or {NEW_CERT}"
                )
            if below.subject == below.issuer:
                return f"{who}is signed by itself, not by a CA of {ca_name}; {NEW_CERT}"
            held = ", ".join(_name(each.subject) for each in anchors[:4])
            return (
                f"{who}was issued by {_name(below.issuer)}, which is not in {ca_name} (it holds "
                f"{held}); use that CA as ca_path, add missing intermediates, or {NEW_CERT}"
            )
        flaw = _flaw_of_ca(issuer)
        if flaw is not None:
            where = f"{ca_name}: " if issuer in anchors else ""
            return f"does not count: its CA {where}{_name(issuer.subject)} {flaw}"
        if extension_of(below, x509.AuthorityKeyIdentifier) is None:
            return f"{who}lacks an authorityKeyIdentifier (RFC 5280, 4.2.1.1); {NEW_CERT}"
        if issuer in anchors or issuer not in rest:
            between = len(chain) - len(rest)
            if between > CHAIN_DEPTH_MAX:
                return (
                    f"has {between} intermediates between it and {ca_name}; allowed are at most "
                    f"{CHAIN_DEPTH_MAX}"
                )
            return f"does not chain to {ca_name}; {NEW_CERT}"
        below = issuer
        rest.remove(issuer)


def _flaw_of_ca(cert: x509.Certificate) -> str | None:
    now = datetime.datetime.now(datetime.UTC)
    if now >= cert.not_valid_after_utc:
        return (
            f"expired at {_utc(cert.not_valid_after_utc)}, and this machine's clock says "
            f"{_utc(now)}; correct the clock, or make a new CA"
        )
    if now < cert.not_valid_before_utc:
        return (
            f"is not valid before {_utc(cert.not_valid_before_utc)}, and this machine's clock "
            f"says {_utc(now)}; correct the clock"
        )
    constraints = extension_of(cert, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return "is not a CA certificate (CA:TRUE); give the CA's own certificate as ca_path"
    usage = extension_of(cert, x509.KeyUsage)
    if usage is None or not usage.key_cert_sign:
        return "lacks the key usage keyCertSign; make the CA with it (RFC 5280, 4.2.1.3)"
    public_key = public_key_of(cert)
    if not isinstance(public_key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        return f"has a key of kind {describe_key(public_key)}; a CA needs EC or RSA"
    return None


def _signed(issuer: x509.Certificate, cert: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _name(name: x509.Name) -> str:
    """A subject for people: escaped and cut, since a certificate may say anything."""
    return ascii(name.rfc4514_string())[:100]
