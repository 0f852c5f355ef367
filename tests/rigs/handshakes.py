"""Handshakes of our engine, with itself or with an evil peer, in memory and in virtual time."""

import attrs

from plumtree_quic.net import engine
from plumtree_quic.net.engine import EngineSettings
from plumtree_quic.security.credentials import QuicConfig
from tests.rigs.evil_quic import Evil, Pair
from tests.rigs.pki import Pki

PKI = Pki("test")


def credentials(name, pki=PKI, **options):
    """Credentials of a good node of `pki`."""
    cert = pki.node(name, **options)
    return QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem).credentials


A, B = credentials("a"), credentials("b")


def our_dialler(creds=A, **options):
    return engine.dial(creds, settings=EngineSettings(), **options)


def our_acceptor(creds=B, **options):
    def make(cid):
        return engine.accept(
            creds,
            settings=EngineSettings(),
            original_destination_cid=cid,
            retry_source_cid=None,
            **options,
        )

    return make


def good_pair(**options):
    """Two of our own engines, handshake complete and confirmed on both sides."""
    pair = Pair(our_dialler(), our_acceptor(), **options).step(10)
    assert pair.dialler.peer_id == B.node_id
    assert pair.acceptor.peer_id == A.node_id
    return pair


@attrs.frozen
class Outcome:
    """How one handshake between our side and an evil one went."""

    pair: Pair
    ours: engine.AioquicEngine
    evil: Evil

    @property
    def alert(self):
        """The alert that the evil side read on the wire."""
        return self.evil.alert

    @property
    def step(self):
        """The step of the check that failed on our side."""
        return self.ours.failure.step if self.ours.failure is not None else None

    def assert_refused(self, alert, step=None):
        assert self.alert == alert, (self.alert, self.evil.close_reason, self.ours.failure)
        if step is not None:
            assert self.step == step, self.ours.failure
        assert self.ours.peer_id is None
        assert self.ours.ended
        name = "dialler" if self.ours is self.pair.dialler else "acceptor"
        assert "HandshakeCompleted" not in self.pair.kinds(name)
        assert "StreamDataReceived" not in self.pair.kinds(name)
        # The reason on the wire is fixed, short and plain.
        assert len(self.evil.close_reason) <= 32
        assert self.evil.close_reason.isascii()

    def assert_up(self):
        assert self.ours.peer_id is not None, self.ours.failure
        assert not self.ours.ended
        assert not self.ours.tls.session_resumed
        assert [each.step for each in self.ours.report if each.passed][-1] == 13


def meet(
    cert, *, evil_is, ours=None, pair_options=None, admit=None, is_revoked=None, wall=None, **evil
):
    """Let our side meet an evil one with that certificate.

    evil_is: "dialler" or "acceptor". ours: our credentials. Further arguments go to Evil.
    """
    options = {"admit": admit, "is_revoked": is_revoked, "wall": wall}
    if evil_is == "dialler":
        pair = Pair(
            Evil(cert, dials=True, **evil),
            our_acceptor(ours or B, **options),
            **(pair_options or {}),
        )
        pair.step(12)
        return Outcome(pair, pair.acceptor, pair.dialler)
    pair = Pair(
        our_dialler(ours or A, expected=evil.pop("expected", None), **options),
        lambda cid: Evil(cert, dials=False, original_cid=cid, **evil),
        **(pair_options or {}),
    )
    pair.step(12)
    return Outcome(pair, pair.dialler, pair.acceptor)
