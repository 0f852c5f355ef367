"""The power-on self-test: handshakes in memory, one good and four bad, once a process.

Makes a throw-away CA; nothing touches a disk or a socket.
"""

import datetime
import sys
from collections.abc import Callable

import aioquic
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import pull_quic_header
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from plumtree_quic.errors import ConfigError
from plumtree_quic.ids import NodeId
from plumtree_quic.net import engine
from plumtree_quic.net.tls import ALPN
from plumtree_quic.security.credentials import Credentials

__all__ = ["run", "self_test"]

_DIALLER, _ACCEPTOR = ("192.0.2.1", 1), ("192.0.2.2", 2)
_DOMAIN = "selftest"
_ROUNDS_MAX = 20


_tested = False


def self_test() -> None:
    """Prove, once a process, that this aioquic really authenticates; refuse to start if not.

    In memory: one good handshake must connect; no certificate, a stranger's CA, an expired
    certificate and the wrong identity must each be refused by both roles' check.

    Raises:
        ConfigError: Python runs with -O, or a bad handshake connected, or the good one did not.
    """
    global _tested
    if _tested:
        return
    if sys.flags.optimize:
        raise ConfigError("plumtree-quic does not run under python -O: it would lose its checks")
    _check_version(aioquic.__version__)
    run()
    _tested = True


def _check_version(version: str) -> None:
    """Private names are checked against one minor version only (pyproject.toml has the range)."""
    major, minor, patch = (int(each) for each in [*version.split("."), "0", "0"][:3])
    if not (1, 7, 2) <= (major, minor, patch) < (1, 8):
        raise ConfigError(
            f"aioquic {version} is installed; plumtree-quic needs at least 1.7.2 and below 1.8: "
            "pip install 'aioquic>=1.7.2,<1.8'"
        )


def run() -> None:
    """Raise ConfigError unless exactly the good handshake connects."""
    ours, strangers = _Authority(), _Authority()
    a, b = ours.issue("a"), ours.issue("b")
    expired = ours.issue("a", age=datetime.timedelta(days=3))
    dialled = NodeId(f"spiffe://{_DOMAIN}/node/b")
    other = NodeId(f"spiffe://{_DOMAIN}/node/c")
    _expect("a good handshake", True, lambda: _dial(a, dialled), b)
    _expect("a dialler without a certificate", False, _dial_without_certificate, b)
    _expect("a dialler of a stranger's CA", False, lambda: _dial(strangers.issue("a"), None), b)
    _expect("an expired certificate", False, lambda: _dial(expired, None), b)
    _expect("an identity that was not dialled", False, lambda: _dial(a, other), b)


def _expect(
    what: str, connects: bool, make: Callable[[], QuicConnection], acceptor: Credentials
) -> None:
    dialler = make()
    accepted = _shake(dialler, acceptor)
    up = accepted is not None and accepted.peer_id is not None
    if isinstance(dialler, engine.AioquicEngine):
        # The dialler finishes first, and may be wrong about the acceptor; both must be right.
        up = up and dialler.peer_id is not None and not dialler.ended
    if up != connects:
        raise ConfigError(
            f"power-on self-test: {what} was {'refused' if connects else 'ACCEPTED'}; this "
            "aioquic does not authenticate as it must. Install a version that plumtree-quic "
            "names in its dependencies"
        )


def _shake(dialler: QuicConnection, acceptor: Credentials) -> engine.AioquicEngine | None:
    accepted: engine.AioquicEngine | None = None
    now = 0.0
    dialler.connect(_ACCEPTOR, now)
    for _ in range(_ROUNDS_MAX):
        now += 0.01
        outward = dialler.datagrams_to_send(now)
        for data, _address in outward:
            if accepted is None:
                header = pull_quic_header(Buffer(data=data), host_cid_length=8)
                accepted = engine.accept(
                    acceptor,
                    settings=engine.EngineSettings(),
                    original_destination_cid=header.destination_cid,
                    retry_source_cid=None,
                )
            accepted.receive_datagram(data, _DIALLER, now)
        inward = accepted.datagrams_to_send(now) if accepted is not None else []
        for data, _address in inward:
            dialler.receive_datagram(data, _ACCEPTOR, now)
        if not outward and not inward:
            break
    return accepted


def _dial(credentials: Credentials, expected: NodeId | None) -> engine.AioquicEngine:
    return engine.dial(credentials, settings=engine.EngineSettings(), expected=expected)


def _dial_without_certificate() -> QuicConnection:
    dialler = QuicConnection(
        configuration=QuicConfiguration(
            is_client=True, alpn_protocols=[ALPN], verify_mode=0, max_datagram_frame_size=65_535
        )
    )
    # Its refusal is what we want; the program around us need not read of it.
    engine.silence(dialler)
    return dialler


class _Authority:
    """A CA that lives as long as the test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "selftest")])
        public = self._key.public_key()
        self._cert = (
            self._builder(self._name, public, datetime.timedelta(days=4))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=False, issue=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def _builder(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, age: datetime.timedelta
    ) -> x509.CertificateBuilder:
        start = datetime.datetime.now(datetime.UTC) - age
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + (age if age > datetime.timedelta(days=3) else _DAY) + _DAY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    def issue(self, name: str, age: datetime.timedelta = datetime.timedelta()) -> Credentials:
        """Make a node's credentials; with an `age` of three days they have expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        node_id = f"spiffe://{_DOMAIN}/node/{name}"
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        leaf = (
            self._builder(x509.Name([]), key.public_key(), age)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(node_id)]),
                critical=True,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=True, issue=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Credentials(
            leaf=leaf,
            leaf_der=leaf.public_bytes(Encoding.DER),
            chain_der=(),
            key=key,
            anchors=(self._cert,),
            node_id=NodeId(node_id),
            trust_domain=_DOMAIN,
            cluster="selftest",
            generation=0,
        )


_DAY = datetime.timedelta(days=1)


def _usage(*, sign: bool, issue: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=issue,
        crl_sign=issue,
        encipher_only=False,
        decipher_only=False,
    )
