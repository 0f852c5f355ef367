"""Signatures over bundles, records and facts: what is signed, and how. No certificates judged here.

Whoever verifies needs the public key; which key counts for whom is the key ring's matter
(keyring.py). What is signed stands in docs/wire.md: a tag that says what kind of thing it is, the
trust domain, the cluster, and the thing itself as it is on the wire.
"""

import hashlib
from collections.abc import Callable
from enum import Enum

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from plumtree_quic.messages import MemberState, SignatureAlgorithm
from plumtree_quic.security.credentials import Credentials

__all__ = ["KEY_ID_BYTES", "Kind", "Signer", "algorithm_of", "fact_kind", "key_id_of", "verify"]

KEY_ID_BYTES = 16

_SHA256 = ec.ECDSA(hashes.SHA256())
_SHA384 = ec.ECDSA(hashes.SHA384())
_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)


class Kind(Enum):
    """What is signed; a signature on one kind is worth nothing on another."""

    BUNDLE = b"plumtree-quic/1 bundle"
    RECORD = b"plumtree-quic/1 record"
    FACT = b"plumtree-quic/1 fact"
    """A member says that it lives or leaves."""
    ACCUSATION = b"plumtree-quic/1 accusation"
    """A member says that another one is silent."""


def fact_kind(state: MemberState) -> Kind:
    """Which kind of statement a fact about `state` is."""
    return Kind.ACCUSATION if state is MemberState.SUSPECT else Kind.FACT


def key_id_of(leaf_der: bytes) -> bytes:
    """The name of a signing certificate: the first 16 bytes of SHA-256 over its DER."""
    return hashlib.sha256(leaf_der).digest()[:KEY_ID_BYTES]


def algorithm_of(public_key: object) -> SignatureAlgorithm | None:
    """The one algorithm that a key of this kind signs with; None for any other kind."""
    match public_key:
        case ec.EllipticCurvePublicKey() if isinstance(public_key.curve, ec.SECP256R1):
            return SignatureAlgorithm.ECDSA_P256_SHA256
        case ec.EllipticCurvePublicKey() if isinstance(public_key.curve, ec.SECP384R1):
            return SignatureAlgorithm.ECDSA_P384_SHA384
        case ed25519.Ed25519PublicKey():
            return SignatureAlgorithm.ED25519
        case rsa.RSAPublicKey():
            return SignatureAlgorithm.RSA_PSS_SHA256
    return None


class Signer:
    """Signs in the name of one certificate.

    Attributes:
        algorithm: what its key signs with.
        key_id: the certificate's name in everything signed.
        chain: leaf, then intermediates, as DER: what verifies it.
    """

    def __init__(self, credentials: Credentials) -> None:
        algorithm = algorithm_of(credentials.key.public_key())
        assert algorithm is not None, "credentials admit no other kind of key"
        self.algorithm = algorithm
        self.key_id = key_id_of(credentials.leaf_der)
        self.chain = (credentials.leaf_der, *credentials.chain_der)
        self._key = credentials.key
        self._context = {
            kind: context(kind, credentials.trust_domain, credentials.cluster) for kind in Kind
        }

    def sign(self, kind: Kind) -> Callable[[bytes, bytes], bytes]:
        """Return what wire.build_* takes as `sign`: (header, body) to a signature."""
        prefix = self._context[kind]
        key = self._key

        def signature(header: bytes, body: bytes) -> bytes:
            data = b"".join((prefix, len(header).to_bytes(4, "big"), header, body))
            match key:
                case ed25519.Ed25519PrivateKey():
                    return key.sign(data)
                case rsa.RSAPrivateKey():
                    return key.sign(data, _PSS, hashes.SHA256())
            return key.sign(data, _ecdsa(self.algorithm))

        return signature


def context(kind: Kind, trust_domain: str, cluster: str) -> bytes:
    """What stands in front of header and body: kind, trust domain and cluster, each delimited."""
    domain, name = trust_domain.encode(), cluster.encode()
    return b"".join((kind.value, bytes((0, len(domain))), domain, bytes((len(name),)), name))


def verify(
    public_key: object,
    algorithm: SignatureAlgorithm,
    prefix: bytes,
    header: bytes,
    body: bytes,
    signature: bytes,
) -> bool:
    """Whether `signature` is that of `public_key`; never raises.

    Args:
        public_key: of a certificate that was judged; any other kind of object gives False.
        algorithm: what the signed thing states; only the one that fits the key counts.
        prefix: from `context`.
        header, body: from the thing's signed_parts.
        signature: as it came.
    """
    if algorithm is not algorithm_of(public_key):
        return False
    data = b"".join((prefix, len(header).to_bytes(4, "big"), header, body))
    try:
        match public_key:
            case ed25519.Ed25519PublicKey():
                public_key.verify(signature, data)
            case rsa.RSAPublicKey():
                public_key.verify(signature, data, _PSS, hashes.SHA256())
            case ec.EllipticCurvePublicKey():
                public_key.verify(signature, data, _ecdsa(algorithm))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _ecdsa(algorithm: SignatureAlgorithm) -> ec.ECDSA:
    return _SHA384 if algorithm is SignatureAlgorithm.ECDSA_P384_SHA384 else _SHA256
