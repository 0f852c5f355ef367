"""Simulated signatures: as hard to forge inside the simulation as real ones, and a hundred times
cheaper. No cryptography that anybody should use.

An authority gives each node a secret and a "certificate" that only names it. A signature is a
keyed hash; whoever verifies looks the secret up at the authority, and a simulated node that lies
can sign with nothing but what it was issued.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import attrs

from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import Bundle, Fact, Record, SignatureAlgorithm
from plumtree_quic.security.keyring import Verdict
from plumtree_quic.security.signatures import Kind, fact_kind, key_id_of

__all__ = ["Authority", "SimKey", "SimRing"]

# As long as a P-256 leaf, so that records weigh what they weigh on real links.
CERTIFICATE_BYTES = 480
AHEAD_MS = 60_000


@attrs.frozen
class SimKey:
    """What one node signs with."""

    node_id: NodeId
    secret: bytes = attrs.field(repr=False)
    chain: tuple[bytes, ...] = attrs.field(repr=False)
    key_id: bytes
    algorithm: SignatureAlgorithm = SignatureAlgorithm.ED25519

    def sign(self, kind: Kind) -> Callable[[bytes, bytes], bytes]:
        """Return what wire.build_* takes as `sign`."""
        return lambda header, body: _mac(self.secret, kind, header, body)


class Authority:
    """Issues keys, and knows whose each is. One per simulated cluster."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._issued: dict[bytes, SimKey] = {}
        self._serial = 0

    def issue(self, node_id: NodeId) -> SimKey:
        """A new key for `node_id`; earlier ones stay valid until they are revoked."""
        self._serial += 1
        name = f"{self._seed} {self._serial} {node_id}".encode()
        leaf = name.ljust(CERTIFICATE_BYTES, b".")
        secret = hashlib.blake2b(name, digest_size=32, key=b"simulated secrets").digest()
        key = SimKey(node_id, secret, (leaf,), key_id_of(leaf))
        self._issued[key.key_id] = key
        return key

    def issued(self) -> dict[bytes, SimKey]:
        """All keys so far, by key_id."""
        return dict(self._issued)

    def find(self, key_id: bytes) -> SimKey | None:
        """The key with this id, if it was ever issued."""
        return self._issued.get(key_id)


class SimRing:
    """One simulated node's key ring: which keys it has seen, and the verdicts of the real one."""

    def __init__(self, authority: Authority, own: SimKey, wall_ms: Callable[[], int]) -> None:
        self._authority = authority
        self._wall_ms = wall_ms
        self._known: dict[bytes, None] = {own.key_id: None}
        # What whoever has met everybody before knows: shared, and never changed here.
        self._met: Mapping[bytes, SimKey] = {}
        self.revoked: set[bytes] = set()

    def meet(self, keys: Mapping[bytes, SimKey]) -> None:
        """Know all of these from the start."""
        self._met = keys

    def _knows(self, key_id: bytes) -> bool:
        return key_id in self._known or key_id in self._met

    def check_bundle(self, bundle: Bundle, now: float) -> Verdict:  # noqa: ARG002
        """As KeyRing's."""
        return self._check(bundle, Kind.BUNDLE, bundle.origin)

    def check_fact(self, fact: Fact, now: float) -> Verdict:  # noqa: ARG002
        """As KeyRing's."""
        return self._check(fact, fact_kind(fact.state), fact.signer)

    def check_record(self, record: Record, now: float) -> Verdict:
        """As KeyRing's."""
        if not record.chain or key_id_of(record.chain[0]) != record.key_id:
            return Verdict.UNTRUSTED
        if not self._knows(record.key_id) and not self.offer(record.chain, now):
            return Verdict.UNTRUSTED
        if record.valid_until < self._wall_ms():
            return Verdict.TOO_OLD
        return self._check(record, Kind.RECORD, member_key(record.node_id))

    def offer(self, chain: Sequence[bytes], now: float) -> bool:  # noqa: ARG002
        """As KeyRing's: whether the authority has issued it."""
        key = self._authority.find(key_id_of(chain[0]))
        if key is None or key.chain != tuple(chain):
            return False
        self._known[key.key_id] = None
        return True

    def chain(self, key_id: bytes) -> tuple[bytes, ...] | None:
        """As KeyRing's."""
        key = self._authority.find(key_id) if self._knows(key_id) else None
        return key.chain if key is not None else None

    def name_of(self, key_id: bytes) -> NodeId | None:
        """As KeyRing's."""
        key = self._authority.find(key_id) if self._knows(key_id) else None
        return key.node_id if key is not None else None

    def _check(self, thing: Bundle | Fact | Record, kind: Kind, speaker: bytes) -> Verdict:
        if thing.algorithm is SignatureAlgorithm.NONE:
            return Verdict.UNSIGNED
        key = self._authority.find(thing.key_id) if self._knows(thing.key_id) else None
        if key is None:
            return Verdict.UNKNOWN_KEY
        if thing.key_id in self.revoked:
            return Verdict.REVOKED
        if member_key(key.node_id) != speaker:
            return Verdict.UNTRUSTED
        if thing.signed_at > self._wall_ms() + AHEAD_MS:
            return Verdict.TOO_NEW
        header, body = thing.signed_parts
        good = _mac(key.secret, kind, header, body) == thing.signature
        return Verdict.GOOD if good else Verdict.BAD_SIGNATURE


def _mac(secret: bytes, kind: Kind, header: bytes, body: bytes) -> bytes:
    state = hashlib.blake2b(digest_size=64, key=secret)
    state.update(kind.value)
    state.update(len(header).to_bytes(4, "big"))
    state.update(header)
    state.update(body)
    return state.digest()
