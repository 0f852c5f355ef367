"""An evil peer: stock aioquic objects with patches, and packets made by hand.

Shares no code with plumtree_quic. `Evil` is a QUIC connection whose TLS messages a test may
rewrite and which can put any frames into a packet; `Initials` are the keys that anybody on the
path has. `Pair` is the wire between two connections: in memory, in virtual time.
"""

import contextlib
import logging
import os
import struct

from aioquic import tls
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import (
    QuicPacketType,
    pull_quic_header,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

DIALLER, ACCEPTOR = ("192.0.2.1", 4001), ("192.0.2.2", 4002)
ALPN = "plumtree-quic/1"
CID_BYTES = 8

_MUTE = logging.getLogger("evil")
_MUTE.disabled = True


# --- an evil connection ---------------------------------------------------------------------------


class EvilContext(tls.Context):
    """aioquic's own context; while it works, functions of aioquic.tls are replaced by `patches`."""

    patches: dict

    def handle_message(self, input_data, output_buf):
        with patched(self.patches):
            super().handle_message(input_data, output_buf)


@contextlib.contextmanager
def patched(patches):
    """Functions of aioquic.tls by name; each patch gets the original first."""
    originals = {name: getattr(tls, name) for name in patches}

    def replace(name):
        return lambda *args: patches[name](originals[name], *args)

    for name in patches:
        setattr(tls, name, replace(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(tls, name, original)


class Evil(QuicConnection):
    """A stock peer that believes anybody and sends whatever a test wants.

    cert: a tests.rigs.pki.Cert, or None for no certificate at all. asks: an acceptor asks for the
    dialler's certificate. arm(context): changes the TLS context before its first message.
    patches: see EvilContext. Further arguments are QuicConfiguration's.
    """

    def __init__(
        self,
        cert=None,
        *,
        dials,
        original_cid=None,
        retry_source_cid=None,
        asks=True,
        arm=None,
        patches=None,
        alpn=(ALPN,),
        **configuration,
    ):
        self._asks, self._arm, self._patches = asks, arm, dict(patches or {})
        settings = {
            "max_datagram_frame_size": 65_535,
            "verify_mode": 0,
            "connection_id_length": CID_BYTES,
            "supported_versions": [1],
        } | configuration
        roles = {}
        if not dials:
            roles["original_destination_connection_id"] = original_cid
            roles["retry_source_connection_id"] = retry_source_cid
        super().__init__(
            configuration=QuicConfiguration(
                is_client=dials,
                alpn_protocols=list(alpn) if alpn is not None else None,
                certificate=cert.cert if cert is not None else None,
                certificate_chain=list(cert.chain) if cert is not None else [],
                private_key=cert.key if cert is not None else None,
                **settings,
            ),
            **roles,
        )
        # Its own lines are not what a test of our logs wants to see.
        self._logger.logger = _MUTE

    def _initialize(self, peer_cid):
        super()._initialize(peer_cid)
        for epoch in self._crypto_buffers:
            self._crypto_buffers[epoch] = Buffer(capacity=1 << 17)
        self.tls.__class__ = EvilContext
        self.tls.patches = self._patches
        self.tls._request_client_certificate = self._asks and not self._is_client
        self.tls._signature_algorithms = [
            0x0403, 0x0503, 0x0603, 0x0807, 0x0808, 0x0804, 0x0805, 0x0806, 0x0401, 0x0201,
        ]  # fmt: skip
        if self._arm is not None:
            self._arm(self.tls)

    @property
    def close_code(self):
        """What ended this connection, or None: 0x100 + the alert that the other side sent."""
        return None if self._close_event is None else self._close_event.error_code

    @property
    def alert(self):
        code = self.close_code
        return code - 0x100 if code is not None and 0x100 <= code < 0x200 else None

    @property
    def close_reason(self):
        return None if self._close_event is None else self._close_event.reason_phrase

    def packet(self, frames, *, number=None, epoch=tls.Epoch.ONE_RTT):
        """A 1-RTT packet with these raw frames."""
        assert epoch is tls.Epoch.ONE_RTT
        if number is None:
            number = self._packet_number
            self._packet_number += 1
        crypto = self._cryptos[epoch]
        header = (
            bytes([0x40 | crypto.key_phase << 2 | 1])
            + self._peer_cid.cid
            + struct.pack("!H", number & 0xFFFF)
        )
        return crypto.encrypt_packet(header, frames.ljust(4, b"\0"), number)

    @property
    def last_number(self):
        return self._packet_number - 1


class RawDer:
    """Stands in for a certificate in a list that is sent: any bytes."""

    def __init__(self, der):
        self.der = der

    def public_bytes(self, _encoding):
        return self.der


class Signer:
    """Stands in for a private key: signs with another one, or not at all."""

    def __init__(self, sign):
        self._sign = sign

    def sign(self, data, *params):
        return self._sign(data, *params)


def lists(*ders):
    """arm: send exactly these certificates."""

    def arm(context):
        context.certificate = RawDer(ders[0])
        context.certificate_chain = [RawDer(der) for der in ders[1:]]

    return arm


def signs_with(key, scheme):
    """arm: sign with `key` under `scheme`, whatever the certificate says."""

    def arm(context):
        context._signature_algorithms_for_private_key = lambda: [scheme]
        context.certificate_private_key = key

    return arm


def junk_signer(scheme=0x0403):
    """arm: offer a scheme that everybody takes, and a signature that is none."""
    return signs_with(Signer(lambda data, *params: b"\0" * 70), scheme)


SCHEMES = {
    "p256": 0x0403, "p384": 0x0503, "p521": 0x0603, "ed25519": 0x0807, "ed448": 0x0808,
    "pss256": 0x0804, "pss384": 0x0805, "pss512": 0x0806, "pkcs1-sha256": 0x0401,
    "pkcs1-sha1": 0x0201, "dsa-sha256": 0x0402,
}  # fmt: skip


class PublicOnly:
    """A key pair without its private half, for certificates that nobody could use."""

    def __init__(self, public_key):
        self._public_key = public_key

    def public_key(self):
        return self._public_key


def huge_rsa(bits):
    """An RSA public key of that size, in no time: nobody knows its factors."""
    return PublicOnly(rsa.RSAPublicNumbers(65537, (1 << (bits - 1)) | 0x10001).public_key())


# --- what anybody on the path can make ------------------------------------------------------------

_SALT_V1 = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")


def _expand(secret, label, length):
    full = b"tls13 " + label
    info = struct.pack("!HB", length, len(full)) + full + b"\0"
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


class Initials:
    """Initial packets of one side, made by hand (RFC 9001, section 5.2). Keys are public.

    cid: the destination connection ID of the dialler's first Initial (after Retry: the new one).
    """

    def __init__(self, cid, *, from_dialler):
        extract = HMAC(_SALT_V1, hashes.SHA256())
        extract.update(cid)
        label = b"client in" if from_dialler else b"server in"
        secret = _expand(extract.finalize(), label, 32)
        self._aead = AESGCM(_expand(secret, b"quic key", 16))
        self._iv = int.from_bytes(_expand(secret, b"quic iv", 12), "big")
        self._hp = Cipher(algorithms.AES(_expand(secret, b"quic hp", 16)), modes.ECB()).encryptor()

    def packet(self, frames, *, to, source, number, token=b"", size=1200):
        """One Initial with these frames, padded so that the datagram has `size` bytes."""
        head = struct.pack("!BIB", 0xC3, 1, len(to)) + to + bytes([len(source)]) + source
        head += encode_uint_var(len(token)) + token
        overhead = len(head) + 2 + 4 + 16
        payload = frames + bytes(max(size - overhead - len(frames), 4 - min(4, len(frames))))
        head += struct.pack("!H", 0x4000 | (4 + len(payload) + 16)) + struct.pack("!I", number)
        nonce = (self._iv ^ number).to_bytes(12, "big")
        sealed = self._aead.encrypt(nonce, payload, head)
        mask = self._hp.update(sealed[:16])
        packet = bytearray(head + sealed)
        packet[0] ^= mask[0] & 0x0F
        at = len(head) - 4
        for each in range(4):
            packet[at + each] ^= mask[1 + each]
        return bytes(packet)


def crypto_frame(data, offset=0):
    return b"\x06" + encode_uint_var(offset) + encode_uint_var(len(data)) + data


def stream_frame(stream_id, data=b"", offset=0, *, fin=False):
    return (
        bytes([0x0E | fin])
        + encode_uint_var(stream_id)
        + encode_uint_var(offset)
        + encode_uint_var(len(data))
        + data
    )


def reset_frame(stream_id, *, code=0, final=0):
    return b"\x04" + b"".join(encode_uint_var(each) for each in (stream_id, code, final))


def stop_frame(stream_id, code=0):
    return b"\x05" + encode_uint_var(stream_id) + encode_uint_var(code)


def ack_frame(largest, *, first=0):
    return b"\x02" + b"".join(encode_uint_var(each) for each in (largest, 0, 0, first))


def new_cid_frame(sequence, retire_prior_to=0, cid=None):
    cid = cid if cid is not None else os.urandom(CID_BYTES)
    return (
        b"\x18"
        + encode_uint_var(sequence)
        + encode_uint_var(retire_prior_to)
        + bytes([len(cid)])
        + cid
        + os.urandom(16)
    )


def retire_cid_frame(sequence):
    return b"\x19" + encode_uint_var(sequence)


def datagram_frame(data):
    return b"\x31" + encode_uint_var(len(data)) + data


def header_of(datagram):
    """The first packet's header, as aioquic reads it."""
    return pull_quic_header(Buffer(data=datagram), host_cid_length=CID_BYTES)


def is_initial(datagram):
    return header_of(datagram).packet_type is QuicPacketType.INITIAL


# --- the wire between two connections -------------------------------------------------------------


class Pair:
    """Two sans-IO connections and the time between them.

    make_acceptor(cid) is called with the first Initial's destination connection ID. `on_wire`
    gets (from_dialler, datagram) and returns the datagrams that arrive in its place.
    """

    def __init__(self, dialler, make_acceptor, *, on_wire=None, latency_s=0.005):
        self.dialler, self.acceptor = dialler, None
        self._make_acceptor = make_acceptor
        self._on_wire = on_wire or (lambda from_dialler, datagram: [datagram])
        self._latency_s = latency_s
        self.now = 100.0
        self.dialler_address = DIALLER
        self.events = {"dialler": [], "acceptor": []}
        self.sent = {"dialler": [], "acceptor": []}
        dialler.connect(ACCEPTOR, self.now)

    def step(self, rounds=1):
        for _ in range(rounds):
            self.now += self._latency_s
            self._transmit("dialler")
            self._transmit("acceptor")
            self._collect()
        return self

    def run(self, seconds):
        """Until so much virtual time has passed, jumping from timer to timer when idle."""
        end = self.now + seconds
        while self.now < end:
            before = sum(map(len, self.sent.values()))
            self.step()
            if sum(map(len, self.sent.values())) == before:
                timers = [
                    each.get_timer() for each in (self.dialler, self.acceptor) if each is not None
                ]
                due = [each for each in timers if each is not None]
                self.now = min([end, *[max(each, self.now) for each in due]])
        return self

    def _side(self, name):
        return self.dialler if name == "dialler" else self.acceptor

    def _transmit(self, name):
        side = self._side(name)
        if side is None:
            return
        timer = side.get_timer()
        if timer is not None and timer <= self.now:
            side.handle_timer(self.now)
        for datagram, _address in side.datagrams_to_send(self.now):
            self.sent[name].append(datagram)
            for each in self._on_wire(name == "dialler", datagram):
                self.deliver(each, to="acceptor" if name == "dialler" else "dialler")

    def deliver(self, datagram, *, to, source=None):
        if to == "acceptor":
            if self.acceptor is None:
                self.acceptor = self._make_acceptor(header_of(datagram).destination_cid)
            self.acceptor.receive_datagram(datagram, source or self.dialler_address, self.now)
        else:
            self.dialler.receive_datagram(datagram, source or ACCEPTOR, self.now)

    def _collect(self):
        for name, found in self.events.items():
            side = self._side(name)
            while side is not None and (event := side.next_event()) is not None:
                found.append(event)

    def kinds(self, name):
        """Names of the events of one side so far."""
        return [type(each).__name__ for each in self.events[name]]


# --- transport parameters ---


def parameters(**changes):
    """arm: announce other QUIC transport parameters, by aioquic's field names."""

    def arm(context):
        kind, data = context.handshake_extensions[0]
        announced = pull_quic_transport_parameters(Buffer(data=data))
        for name, value in changes.items():
            assert hasattr(announced, name)
            setattr(announced, name, value)
        buf = Buffer(capacity=4096)
        push_quic_transport_parameters(buf, announced)
        context.handshake_extensions[0] = (kind, buf.data)

    return arm
