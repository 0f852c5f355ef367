"""MutualTlsContext: aioquic's TLS 1.3 context, made to judge both certificates by our own rules.

aioquic asks a client for its certificate "for test purposes only" and believes whatever comes.
This subclass is put in place of its context on every connection, dialled or accepted, and runs
the ordered check of security/identity.py before the handshake may finish. No sockets, no QUIC
packets here. Private names of aioquic 1.7.2 that it relies on are listed in `RELIES_ON`; a test
fails when one of them moves, and `engine.self_test` refuses to start when one stops working.
"""

import datetime
from collections.abc import Callable
from typing import Any

import attrs
from aioquic import tls
from aioquic.buffer import Buffer
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from plumtree_quic.ids import NodeId
from plumtree_quic.security.credentials import Credentials
from plumtree_quic.security.identity import (
    CHAIN_BYTES_MAX,
    CHAIN_CERTIFICATES_MAX,
    Alert,
    CheckFailed,
    check_chain,
    check_issuer_keys,
    check_key,
    parse_identity,
)

__all__ = ["ALPN", "RELIES_ON", "HandshakePolicy", "MutualTlsContext", "Refused", "StepResult"]

ALPN = "plumtree-quic/1"
MESSAGE_BYTES_MAX = 32 * 1024

RELIES_ON: tuple[tuple[type, str], ...] = tuple(
    (tls.Context, name)
    for name in (
        "handle_message",
        "_handle_reassembled_message",
        "_set_peer_certificate",
        "_check_certificate_verify_signature",
        "_client_handle_certificate",
        "_client_handle_finished",
        "_server_handle_certificate",
        "_server_handle_finished",
        "_signature_algorithms_for_private_key",
    )
)
"""Methods of aioquic that this module overrides or calls, checked against 1.7.2."""

_SIGNATURE_ALGORITHMS = [
    tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256,
    tls.SignatureAlgorithm.ECDSA_SECP384R1_SHA384,
    tls.SignatureAlgorithm.ED25519,
    tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256,
    tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA384,
]

# The encryption level at which each message may come (RFC 9001, section 4.1.3).
_LEVEL_OF = {
    tls.HandshakeType.CLIENT_HELLO: tls.Epoch.INITIAL,
    tls.HandshakeType.SERVER_HELLO: tls.Epoch.INITIAL,
    tls.HandshakeType.ENCRYPTED_EXTENSIONS: tls.Epoch.HANDSHAKE,
    tls.HandshakeType.CERTIFICATE_REQUEST: tls.Epoch.HANDSHAKE,
    tls.HandshakeType.CERTIFICATE: tls.Epoch.HANDSHAKE,
    tls.HandshakeType.CERTIFICATE_VERIFY: tls.Epoch.HANDSHAKE,
    tls.HandshakeType.FINISHED: tls.Epoch.HANDSHAKE,
}
# After these the keys change, so nothing of the same flight may follow.
_LAST_OF_KEYS = (
    tls.HandshakeType.CLIENT_HELLO,
    tls.HandshakeType.SERVER_HELLO,
    tls.HandshakeType.FINISHED,
)


@attrs.frozen
class HandshakePolicy:
    """What this side of one handshake demands of the other.

    Attributes:
        credentials: who we are and whom we trust.
        expected: the identity that we mean to dial, or None for "whoever answers".
        admit: the admission policy; False refuses with access_denied.
        wall: the wall clock; certificates are judged by it alone.
    """

    credentials: Credentials
    expected: NodeId | None
    admit: Callable[[NodeId], bool]
    wall: Callable[[], datetime.datetime]


@attrs.frozen
class StepResult:
    """What became of one step of the check. reason is empty when it passed."""

    step: int
    passed: bool
    reason: str = ""


class Refused(tls.Alert):
    """Carries a failed step to the connection, which sends its alert."""

    def __init__(self, failed: CheckFailed) -> None:
        super().__init__(failed.reason)
        self.description = failed.alert
        self.failed = failed


class MutualTlsContext(tls.Context):  # type: ignore[misc]
    """Both roles, one check. Made from aioquic's own context by `install`."""

    policy: HandshakePolicy
    level: tls.Epoch
    peer_id: NodeId | None
    peer_leaf: x509.Certificate | None
    report: list[StepResult]
    failure: CheckFailed | None

    @classmethod
    def install(cls, context: tls.Context, policy: HandshakePolicy) -> "MutualTlsContext":
        """Turn aioquic's context, before its first message, into ours."""
        context.__class__ = cls
        assert isinstance(context, cls)
        context.policy = policy
        context.level = tls.Epoch.INITIAL
        context.peer_id = None
        context.peer_leaf = None
        context.report = []
        context.failure = None
        context._request_client_certificate = not context._is_client
        context._signature_algorithms = list(_SIGNATURE_ALGORITHMS)
        context._verify_mode = 0  # ssl.CERT_NONE: we judge, aioquic does not
        # No resumption, no early data: both would skip the certificates.
        context.session_ticket = None
        context.get_session_ticket_cb = None
        context.new_session_ticket_cb = None
        context._max_early_data = None
        return context

    # --- step 1: messages -----------------------------------------------------------------------

    def handle_message(self, input_data: bytes, output_buf: dict[tls.Epoch, Buffer]) -> None:
        """As the parent, but whatever goes wrong ends in an alert and nowhere else."""
        try:
            super().handle_message(input_data, output_buf)
            pending: bytes = self._receive_buffer
            if len(pending) >= 4 and int.from_bytes(pending[1:4], "big") > MESSAGE_BYTES_MAX:
                raise CheckFailed(1, Alert.DECODE_ERROR, "message too long")
        except CheckFailed as failed:
            self._fail(failed)
        except Refused:
            raise
        except tls.Alert as alert:
            self._note_failure(
                CheckFailed(self._next_step(), int(alert.description), _short(str(alert)))
            )
            raise
        except Exception as error:
            self._fail(
                CheckFailed(
                    self._next_step(), Alert.INTERNAL_ERROR, "unforeseen", repr(error)[:200]
                )
            )

    def _handle_reassembled_message(
        self, message_type: int, input_buf: Buffer, output_buf: dict[tls.Epoch, Buffer]
    ) -> None:
        level = _LEVEL_OF.get(message_type)  # type: ignore[call-overload]
        if level is None or level is not self.level:
            # NewSessionTicket comes here, too: we never asked for one.
            raise CheckFailed(1, Alert.UNEXPECTED_MESSAGE, "message at the wrong level")
        if message_type in _LAST_OF_KEYS and self._receive_buffer:
            raise CheckFailed(1, Alert.UNEXPECTED_MESSAGE, "bytes across a key change")
        super()._handle_reassembled_message(message_type, input_buf, output_buf)

    # --- steps 2 to 5: the certificate list -----------------------------------------------------

    def _client_handle_certificate(self, input_buf: Buffer) -> None:
        self._pass(1)
        self._check_alpn()
        if self._certificate_request is None:
            # An acceptor that does not ask would take anybody.
            raise CheckFailed(3, Alert.HANDSHAKE_FAILURE, "no certificate request")
        self._pass(3)
        self._check_list(input_buf)
        super()._client_handle_certificate(input_buf)

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        self._pass(1)
        self._check_alpn()
        self._check_list(input_buf)
        super()._server_handle_certificate(input_buf)

    def _check_alpn(self) -> None:
        if self.alpn_negotiated != ALPN:
            raise CheckFailed(2, Alert.NO_APPLICATION_PROTOCOL, "application protocol")
        self._pass(2)

    def _check_list(self, input_buf: Buffer) -> None:
        listed = tls.pull_certificate(
            Buffer(data=input_buf.data_slice(0, input_buf.capacity))
        ).certificates
        if not listed:
            raise CheckFailed(4, Alert.CERTIFICATE_REQUIRED, "no certificate was sent")
        if len(listed) > CHAIN_CERTIFICATES_MAX:
            raise CheckFailed(4, Alert.BAD_CERTIFICATE, "too many certificates")
        if sum(len(der) for der, _ in listed) > CHAIN_BYTES_MAX:
            raise CheckFailed(4, Alert.BAD_CERTIFICATE, "certificates too long")

    def _set_peer_certificate(self, certificate: Any) -> None:
        try:
            super()._set_peer_certificate(certificate)
        except (tls.Alert, ValueError, TypeError) as error:
            raise CheckFailed(4, Alert.BAD_CERTIFICATE, "certificate does not parse", str(error))
        self._pass(4)
        leaf: x509.Certificate = self._peer_certificate
        try:
            key = leaf.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise CheckFailed(5, Alert.UNSUPPORTED_CERTIFICATE, "key type or size", str(error))
        check_key(key)
        check_issuer_keys(self._peer_certificate_chain)
        self._pass(5)

    # --- steps 6 to 12: the signature, and then who it is -----------------------------------------

    def _check_certificate_verify_signature(self, verify: Any) -> None:
        key = self._peer_certificate.public_key()
        if verify.algorithm not in _schemes_of(key):
            raise CheckFailed(6, Alert.ILLEGAL_PARAMETER, "scheme does not fit the key")
        self._pass(6)
        try:
            super()._check_certificate_verify_signature(verify)
        except tls.Alert:
            raise CheckFailed(7, Alert.DECRYPT_ERROR, "signature does not verify")
        self._pass(7)
        self._judge()

    def _judge(self) -> None:
        policy = self.policy
        leaf: x509.Certificate = self._peer_certificate
        anchors = policy.credentials.anchors
        check_chain(leaf, self._peer_certificate_chain, anchors, policy.wall())
        self._pass(8)
        self._pass(9)
        peer = parse_identity(leaf, policy.credentials.trust_domain)
        self._pass(10)
        if peer == policy.credentials.node_id:
            raise CheckFailed(12, Alert.ACCESS_DENIED, "that is our own identity", peer)
        if policy.expected is not None and peer != policy.expected:
            raise CheckFailed(12, Alert.ACCESS_DENIED, "not the identity we dialled", peer)
        if not policy.admit(peer):
            raise CheckFailed(12, Alert.ACCESS_DENIED, "not admitted", peer)
        self._pass(12)
        self.peer_id = peer
        self.peer_leaf = leaf

    # --- step 13: the second lock on the same door ------------------------------------------------

    def _client_handle_finished(self, input_buf: Buffer, output_buf: Buffer) -> None:
        self._check_door()
        offered = self._certificate_request.signature_algorithms
        if not any(each in offered for each in self._signature_algorithms_for_private_key()):
            # aioquic would send an empty Certificate, silently.
            raise CheckFailed(13, Alert.HANDSHAKE_FAILURE, "no scheme for our own key")
        super()._client_handle_finished(input_buf, output_buf)
        self._pass(13)

    def _server_handle_finished(self, input_buf: Buffer, output_buf: Buffer) -> None:
        self._check_door()
        super()._server_handle_finished(input_buf, output_buf)
        self._pass(13)

    def _check_door(self) -> None:
        if self.peer_id is None or self._session_resumed or self.early_data_accepted:
            raise CheckFailed(13, Alert.HANDSHAKE_FAILURE, "finished without an identity")

    # --- the report -----------------------------------------------------------------------------

    def _pass(self, step: int) -> None:
        if not any(result.step == step for result in self.report):
            self.report.append(StepResult(step, True))

    def _note_failure(self, failed: CheckFailed) -> None:
        if self.failure is None:
            self.failure = failed
            self.report.append(StepResult(failed.step, False, failed.reason))

    def _fail(self, failed: CheckFailed) -> None:
        self._note_failure(failed)
        raise Refused(failed)

    def _next_step(self) -> int:
        """The first step that has not passed: where an alert of aioquic's own belongs."""
        return min(max((result.step for result in self.report), default=0) + 1, 13)


def _schemes_of(key: object) -> tuple[int, ...]:
    match key:
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return (tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256,)
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP384R1):
            return (tls.SignatureAlgorithm.ECDSA_SECP384R1_SHA384,)
        case ed25519.Ed25519PublicKey():
            return (tls.SignatureAlgorithm.ED25519,)
        case rsa.RSAPublicKey():
            return (
                tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256,
                tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA384,
            )
    return ()


def _short(text: str) -> str:
    return text.encode("ascii", "replace").decode()[:32]
