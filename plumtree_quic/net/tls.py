"""MutualTlsContext: aioquic's TLS 1.3 context, made to judge both certificates by our own rules.

aioquic asks a client for its certificate "for test purposes only" and believes whatever comes.
This subclass is put in place of its context on every connection, dialled or accepted, and runs
the ordered check of security/identity.py before the handshake may finish. No sockets, no QUIC
packets here. Private names of aioquic 1.7.2 that it relies on are listed in `RELIES_ON`; a test
fails when one of them moves, and `selftest.self_test` refuses to start when one stops working.
"""

import datetime
import hmac
from collections.abc import Callable, Sequence
from typing import NoReturn, cast

import attrs
from aioquic import tls
from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.connection import QuicConnectionError
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from plumtree_quic.ids import NodeId
from plumtree_quic.security.credentials import Credentials
from plumtree_quic.security.identity import (
    Alert,
    CheckFailed,
    check_chain,
    check_clock,
    check_issuer_keys,
    check_key,
    check_meant,
    parse_certificates,
    parse_identity,
    public_key_of,
)

__all__ = ["ALPN", "RELIES_ON", "HandshakePolicy", "MutualTlsContext", "Refused", "StepResult"]

ALPN = "plumtree-quic/1"
MESSAGE_BYTES_MAX = 32 * 1024
_MESSAGE_HEADER_BYTES = 4

RELIES_ON: tuple[tuple[type, str], ...] = tuple(
    (tls.Context, name)
    for name in (
        "handle_message",
        "_handle_reassembled_message",
        "_check_certificate_verify_signature",
        "_client_send_hello",
        "_client_handle_certificate_request",
        "_client_handle_certificate",
        "_client_handle_finished",
        "_server_handle_certificate",
        "_server_handle_finished",
        "_set_state",
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

_SCHEMES_OF_CURVES = {
    "secp256r1": (tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256,),
    "secp384r1": (tls.SignatureAlgorithm.ECDSA_SECP384R1_SHA384,),
}

# The encryption level at which the next message comes in each state (RFC 9001, section 4.1.3).
# In the two states that are missing nothing may come: not even a session ticket, since we never
# say that we could use one.
_LEVEL_IN = {
    tls.State.CLIENT_EXPECT_SERVER_HELLO: tls.Epoch.INITIAL,
    tls.State.CLIENT_EXPECT_ENCRYPTED_EXTENSIONS: tls.Epoch.HANDSHAKE,
    tls.State.CLIENT_EXPECT_CERTIFICATE_REQUEST_OR_CERTIFICATE: tls.Epoch.HANDSHAKE,
    tls.State.CLIENT_EXPECT_CERTIFICATE: tls.Epoch.HANDSHAKE,
    tls.State.CLIENT_EXPECT_CERTIFICATE_VERIFY: tls.Epoch.HANDSHAKE,
    tls.State.CLIENT_EXPECT_FINISHED: tls.Epoch.HANDSHAKE,
    tls.State.SERVER_EXPECT_CLIENT_HELLO: tls.Epoch.INITIAL,
    tls.State.SERVER_EXPECT_CERTIFICATE: tls.Epoch.HANDSHAKE,
    tls.State.SERVER_EXPECT_CERTIFICATE_VERIFY: tls.Epoch.HANDSHAKE,
    tls.State.SERVER_EXPECT_FINISHED: tls.Epoch.HANDSHAKE,
}


@attrs.frozen
class HandshakePolicy:
    """What this side of one handshake demands of the other.

    Attributes:
        credentials: who we are and whom we trust.
        expected: the identity that we mean to dial, or None for "whoever answers".
        admit: the admission policy; False refuses with access_denied.
        is_revoked: whether a path of certificates, leaf first, or that identity, is revoked.
        wall: the wall clock; certificates are judged by it alone.
    """

    credentials: Credentials
    expected: NodeId | None
    admit: Callable[[NodeId], bool]
    is_revoked: Callable[[Sequence[x509.Certificate], NodeId], bool]
    wall: Callable[[], datetime.datetime]


@attrs.frozen
class StepResult:
    """What became of one step of the check. reason: why it failed, or a remark on a pass."""

    step: int
    passed: bool
    reason: str = ""


class Refused(tls.Alert):
    """Carries a failed step to the connection, which sends its alert."""

    def __init__(self, failed: CheckFailed) -> None:
        super().__init__(failed.reason)
        self.description = tls.AlertDescription(failed.alert)
        self.failed = failed


class MutualTlsContext(tls.Context):
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
        # One group that is fast and one that is everywhere: each costs a key pair a handshake.
        context._supported_groups = [tls.Group.X25519, tls.Group.SECP256R1]
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
            if self.state is tls.State.CLIENT_HANDSHAKE_START:
                self._client_send_hello(output_buf[tls.Epoch.INITIAL])
            else:
                self._take(input_data, output_buf)
        except CheckFailed as failed:
            self._fail(failed)
        except tls.Alert as alert:
            self._fail(self._from_alert(int(alert.description)))
        except BufferReadError:
            self._fail(CheckFailed(1, Alert.DECODE_ERROR, "message does not parse"))
        except QuicConnectionError as error:
            # The transport parameters; they have close codes of their own.
            self.note_failure(CheckFailed(2, Alert.HANDSHAKE_FAILURE, error.reason_phrase[:32]))
            raise
        except Exception as error:
            self._fail(
                CheckFailed(
                    self._next_step(), Alert.INTERNAL_ERROR, "unforeseen", repr(error)[:200]
                )
            )

    def _take(self, data: bytes, output_buf: dict[tls.Epoch, Buffer]) -> None:
        self._receive_buffer += data
        while len(self._receive_buffer) >= _MESSAGE_HEADER_BYTES:
            length = int.from_bytes(self._receive_buffer[1:_MESSAGE_HEADER_BYTES], "big")
            if length > MESSAGE_BYTES_MAX:
                raise CheckFailed(1, Alert.DECODE_ERROR, "message too long")
            end = _MESSAGE_HEADER_BYTES + length
            if len(self._receive_buffer) < end:
                break
            self._check_level()
            message, self._receive_buffer = self._receive_buffer[:end], self._receive_buffer[end:]
            self._handle_reassembled_message(message[0], Buffer(data=message), output_buf)
        if self._receive_buffer and _LEVEL_IN.get(self.state) is not self.level:
            raise CheckFailed(1, Alert.UNEXPECTED_MESSAGE, "bytes across a key change")

    def _check_level(self) -> None:
        if _LEVEL_IN.get(self.state) is not self.level:
            raise CheckFailed(1, Alert.UNEXPECTED_MESSAGE, "message at the wrong level")

    def _from_alert(self, description: int) -> CheckFailed:
        """Place an alert that aioquic raised itself; its text stays here."""
        if description == Alert.NO_APPLICATION_PROTOCOL:
            return CheckFailed(2, description, "application protocol")
        if description == Alert.DECRYPT_ERROR:
            return CheckFailed(13, description, "handshake was tampered with")
        return CheckFailed(1, description, tls.AlertDescription(description).name[:32])

    # --- steps 2 to 5: the certificate list -----------------------------------------------------

    def _client_handle_certificate_request(self, input_buf: Buffer) -> None:
        super()._client_handle_certificate_request(input_buf)
        request = cast(tls.CertificateRequest, self._certificate_request)
        offered = request.signature_algorithms or ()
        if not any(each in offered for each in self._signature_algorithms_for_private_key()):
            # aioquic would send an empty Certificate, silently (B49).
            raise CheckFailed(3, Alert.HANDSHAKE_FAILURE, "no scheme for our own key")

    def _client_handle_certificate(self, input_buf: Buffer) -> None:
        self._check_alpn()
        if self._certificate_request is None:
            # An acceptor that does not ask would take anybody.
            raise CheckFailed(3, Alert.HANDSHAKE_FAILURE, "no certificate request")
        self._pass(3)
        self._take_certificates(input_buf)
        self._set_state(tls.State.CLIENT_EXPECT_CERTIFICATE_VERIFY)

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        self._check_alpn()
        self._take_certificates(input_buf)
        self._set_state(tls.State.SERVER_EXPECT_CERTIFICATE_VERIFY)

    def _check_alpn(self) -> None:
        if self.alpn_negotiated != ALPN:
            raise CheckFailed(2, Alert.NO_APPLICATION_PROTOCOL, "application protocol")
        self._pass(2)

    def _take_certificates(self, input_buf: Buffer) -> None:
        sent = tls.pull_certificate(input_buf).certificates
        leaf, *chain = parse_certificates([der for der, _extensions in sent])
        self._peer_certificate, self._peer_certificate_chain = leaf, chain
        self._pass(4)
        # Before any signature is checked: a huge key burns CPU in the check itself.
        check_key(public_key_of(leaf))
        check_issuer_keys(chain)
        self._pass(5)
        self._schedule().update_hash(input_buf.data)

    def _schedule(self) -> tls.KeySchedule:
        return cast(tls.KeySchedule, self.key_schedule)

    # --- steps 6 to 12: the signature, and then who it is -----------------------------------------

    def _check_certificate_verify_signature(self, verify: tls.CertificateVerify) -> None:
        leaf = cast(x509.Certificate, self._peer_certificate)
        if verify.algorithm not in _schemes_of(public_key_of(leaf)):
            raise CheckFailed(6, Alert.ILLEGAL_PARAMETER, "scheme does not fit the key")
        self._pass(6)
        try:
            super()._check_certificate_verify_signature(verify)
        except tls.Alert:
            raise CheckFailed(7, Alert.DECRYPT_ERROR, "signature does not verify")
        self._pass(7)
        self._judge(leaf)

    def _judge(self, leaf: x509.Certificate) -> None:
        policy, ours = self.policy, self.policy.credentials
        now = policy.wall()
        check_clock(now)
        path = check_chain(leaf, self._peer_certificate_chain, ours.anchors, now)
        self._pass(8)
        self._pass(9)
        peer = parse_identity(leaf, ours.trust_domain)
        self._pass(10)
        if policy.is_revoked(path, peer):
            raise CheckFailed(11, Alert.CERTIFICATE_REVOKED, "certificate is revoked", peer)
        self._pass(11)
        check_meant(peer, ours.node_id, policy.expected)
        if not policy.admit(peer):
            raise CheckFailed(12, Alert.ACCESS_DENIED, "not admitted", peer)
        self._pass(12)
        self.peer_id = peer
        self.peer_leaf = leaf

    # --- step 13: the second lock on the same door ------------------------------------------------

    def _client_handle_finished(self, input_buf: Buffer, output_buf: Buffer) -> None:
        self._check_finished(input_buf, self._schedule().finished_verify_data(self._dec_key or b""))
        super()._client_handle_finished(input_buf, output_buf)
        self._pass(13)

    def _server_handle_finished(self, input_buf: Buffer, output_buf: Buffer) -> None:
        self._check_finished(input_buf, self._expected_verify_data)
        super()._server_handle_finished(input_buf, output_buf)
        self._pass(13)

    def _check_finished(self, input_buf: Buffer, expected: bytes) -> None:
        if self.peer_id is None or self._session_resumed or self.early_data_accepted:
            raise CheckFailed(13, Alert.HANDSHAKE_FAILURE, "finished without an identity")
        at = input_buf.tell()
        if not hmac.compare_digest(tls.pull_finished(input_buf).verify_data, expected):
            raise CheckFailed(13, Alert.DECRYPT_ERROR, "handshake was tampered with")
        input_buf.seek(at)
        self._pass(1)

    # --- the report -----------------------------------------------------------------------------

    def _pass(self, step: int, remark: str = "") -> None:
        self.report.append(StepResult(step, True, remark))

    def note_failure(self, failed: CheckFailed) -> None:
        """Remember the first step that failed, for the log and for `connect`."""
        if self.failure is None:
            self.failure = failed
            self.report.append(StepResult(failed.step, False, failed.reason))

    def _fail(self, failed: CheckFailed) -> NoReturn:
        self.note_failure(failed)
        raise Refused(failed)

    def _next_step(self) -> int:
        """The first step that has not passed: where an alert of aioquic's own belongs."""
        return min(max((result.step for result in self.report), default=0) + 1, 13)


def _schemes_of(key: object) -> tuple[int, ...]:
    match key:
        case ec.EllipticCurvePublicKey():
            return _SCHEMES_OF_CURVES.get(key.curve.name, ())
        case ed25519.Ed25519PublicKey():
            return (tls.SignatureAlgorithm.ED25519,)
        case rsa.RSAPublicKey():
            return (
                tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256,
                tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA384,
            )
    return ()
