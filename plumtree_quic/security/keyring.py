"""Key ring: the certificates under which bundles, records and facts are signed, and the verdicts.

Judges what a link brought: who signed it, whether that certificate is to be believed, and whether
the dates fit. Keeps certificates by `key_id` for as long as something may refer to them, so that a
bundle stays verifiable after its origin rotated its key, left or died (ARCHITECTURE section 3).
No links and no waiting here: gate.py does that.
"""

import datetime
from collections import OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum

import attrs
from cryptography import x509

from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.messages import Bundle, Fact, Record, SignatureAlgorithm
from plumtree_quic.security.credentials import Credentials
from plumtree_quic.security.identity import (
    CheckFailed,
    check_chain,
    check_key,
    parse_certificates,
    parse_identity,
    public_key_of,
)
from plumtree_quic.security.signatures import Kind, context, fact_kind, key_id_of, verify

__all__ = ["AHEAD_MS", "KEYS_MAX", "Key", "KeyRing", "Verdict"]

AHEAD_MS = 60_000
"""How far ahead of our clock something may be signed (ARCHITECTURE section 3)."""
KEYS_MAX = 16_384
"""Certificates that are kept at most: of 10,000 members, some of which rotated lately. At about
4 KB each."""
# Beyond the retention window a key is of use to stragglers alone.
KEEP_EXTRA_S = 60.0


class Verdict(Enum):
    """What a signature is worth."""

    GOOD = "good"
    UNKNOWN_KEY = "signed under a certificate that is not known here"
    BAD_SIGNATURE = "not signed by the key that it names"
    UNTRUSTED = "not signed by who is said to speak"
    OUT_OF_DATES = "signed outside of the certificate's validity"
    TOO_NEW = "signed in the future"
    TOO_OLD = "too old"
    REVOKED = "signed under a revoked certificate"
    UNSIGNED = "not signed"

    @property
    def is_strike(self) -> bool:
        """Whether no honest peer passes such a thing on."""
        return self is Verdict.BAD_SIGNATURE


@attrs.define(eq=False)
class Key:
    """One signing certificate.

    not_before_ms, not_after_ms: the leaf's own dates. good_from_ms, good_until_ms: the dates
    between which the whole chain has been judged good, under the anchors of `generation`.
    revoked: what was asked last, None when it has to be asked again. pins: how many records of
    members refer to it.
    """

    key_id: bytes
    node_id: NodeId
    member: MemberKey
    public_key: object = attrs.field(repr=False)
    chain: tuple[bytes, ...] = attrs.field(repr=False)
    certificates: tuple[x509.Certificate, ...] = attrs.field(repr=False)
    not_before_ms: int
    not_after_ms: int
    generation: int = 0
    good_from_ms: int = 0
    good_until_ms: int = -1
    revoked: bool | None = None
    used_at: float = 0.0


@attrs.define
class KeyCounters:
    """Plain integers since the start."""

    keys_signatures_checked: int = 0
    keys_chains_checked: int = 0
    keys_learnt: int = 0
    keys_forgotten: int = 0


class KeyRing:
    """The certificates that one node knows, and what it thinks of what they signed.

    Args:
        credentials: our own identity, and whom we trust.
        wall_ms: the wall clock in milliseconds since 1970.
        retention_s: how old a bundle may be.
        is_revoked: asked once per key and whenever revocations changed (`judge_again`).
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        wall_ms: Callable[[], int],
        retention_s: float,
        is_revoked: Callable[[Sequence[x509.Certificate], NodeId], bool] | None = None,
    ) -> None:
        self._wall_ms = wall_ms
        self._retention_ms = int(retention_s * 1000) + AHEAD_MS
        self._keep_s = retention_s + KEEP_EXTRA_S
        self._is_revoked = is_revoked
        self._keys: OrderedDict[bytes, Key] = OrderedDict()
        self.counters = KeyCounters()
        self._generation = 0
        self._context: dict[Kind, bytes] = {}
        self._own = b""
        self.use(credentials)

    # --- what we trust --------------------------------------------------------------------------

    def use(self, credentials: Credentials) -> None:
        """New anchors, or a new certificate of our own: every chain is judged again when used.

        Raises:
            CheckFailed: our own certificate does not stand the check.
        """
        self._credentials = credentials
        self._context = {
            kind: context(kind, credentials.trust_domain, credentials.cluster) for kind in Kind
        }
        self._generation += 1
        self._own = self._parse((credentials.leaf_der, *credentials.chain_der)).key_id

    def judge_again(self) -> None:
        """Revocations changed: each key is asked about again when next used."""
        for key in self._keys.values():
            key.revoked = None

    # --- certificates ---------------------------------------------------------------------------

    def offer(self, chain: Sequence[bytes], now: float) -> bool:
        """Certificates that a peer sent, leaf first: learn them when a node's own would do.

        Their dates are judged when something is signed under them, not now: a bundle outlives the
        certificate under which it was signed.
        """
        known = self._keys.get(key_id_of(chain[0])) if chain else None
        if known is not None:
            known.used_at = now
            return True
        try:
            key = self._parse(tuple(chain))
        except CheckFailed:
            return False
        key.used_at = now
        # The chain must lead to an anchor at some time; its leaf's last day is as good as any
        # day on which it can have signed, for an issuer's last day is rarely before it.
        good = self._is_trusted(key, min(self._wall_ms(), key.not_after_ms))
        if not good:
            del self._keys[key.key_id]
        return good

    def chain(self, key_id: bytes) -> tuple[bytes, ...] | None:
        """What a peer is given that asks for this key, leaf first."""
        key = self._keys.get(key_id)
        return key.chain if key is not None else None

    def expire(self, now: float, kept: Callable[[bytes], bool] | None = None) -> None:
        """Forget keys that nothing has used for the retention window; `kept` ones stay.

        kept: whether a member's record is signed under this key.
        """
        for key in list(self._keys.values()):
            if key.used_at + self._keep_s > now or key.key_id == self._own:
                continue
            if kept is None or not kept(key.key_id):
                del self._keys[key.key_id]
                self.counters.keys_forgotten += 1

    def __len__(self) -> int:
        return len(self._keys)

    def _parse(self, chain: tuple[bytes, ...]) -> Key:
        """Steps 4, 5 and 10 of the check. Raises CheckFailed."""
        certificates = parse_certificates(chain)
        leaf = certificates[0]
        public_key = public_key_of(leaf)
        check_key(public_key)
        node_id = parse_identity(leaf, self._credentials.trust_domain)
        key = Key(
            key_id=key_id_of(chain[0]),
            node_id=node_id,
            member=member_key(node_id),
            public_key=public_key,
            chain=chain,
            certificates=tuple(certificates),
            not_before_ms=_ms(leaf.not_valid_before_utc),
            not_after_ms=_ms(leaf.not_valid_after_utc),
        )
        self._keys[key.key_id] = key
        self.counters.keys_learnt += 1
        if len(self._keys) > KEYS_MAX:
            self._forget_oldest()
        return key

    def _forget_oldest(self) -> None:
        oldest = min(
            (key for key in self._keys.values() if key.key_id != self._own),
            key=lambda key: key.used_at,
        )
        del self._keys[oldest.key_id]
        self.counters.keys_forgotten += 1

    def _is_trusted(self, key: Key, at_ms: int) -> bool:
        """Step 9 at one moment; once per key, anchors and span of dates."""
        if key.generation == self._generation and key.good_from_ms <= at_ms <= key.good_until_ms:
            return True
        self.counters.keys_chains_checked += 1
        leaf, *issuers = key.certificates
        when = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
        try:
            path = check_chain(leaf, issuers, self._credentials.anchors, when)
        except CheckFailed:
            return False
        key.generation = self._generation
        key.good_from_ms = min(at_ms, max(_ms(each.not_valid_before_utc) for each in path))
        key.good_until_ms = min(_ms(each.not_valid_after_utc) for each in path)
        return True

    # --- verdicts -------------------------------------------------------------------------------

    def check_bundle(self, bundle: Bundle, now: float) -> Verdict:
        """Judge a bundle: signed by its origin, not long ago, not ahead of us."""
        if 0 < bundle.signed_at < self._wall_ms() - self._retention_ms:
            return Verdict.TOO_OLD
        return self._check(bundle, Kind.BUNDLE, bundle.origin, now)

    def check_fact(self, fact: Fact, now: float) -> Verdict:
        """Judge a fact: signed by its signer."""
        return self._check(fact, fact_kind(fact.state), fact.signer, now)

    def check_record(self, record: Record, now: float) -> Verdict:
        """Judge a record: signed by its subject, under the certificate that it brings along."""
        if record.algorithm is SignatureAlgorithm.NONE:
            return Verdict.UNSIGNED
        if not record.chain or key_id_of(record.chain[0]) != record.key_id:
            return Verdict.UNTRUSTED
        if record.valid_until < self._wall_ms():
            return Verdict.TOO_OLD
        if record.key_id not in self._keys and not self.offer(record.chain, now):
            return Verdict.UNTRUSTED
        return self._check(record, Kind.RECORD, member_key(record.node_id), now)

    def _check(
        self, thing: Bundle | Fact | Record, kind: Kind, speaker: MemberKey, now: float
    ) -> Verdict:
        if thing.algorithm is SignatureAlgorithm.NONE:
            return Verdict.UNSIGNED
        key = self._keys.get(thing.key_id)
        if key is None:
            return Verdict.UNKNOWN_KEY
        key.used_at = now
        # What costs little first: most of what is refused never costs a signature.
        if key.member != speaker:
            return Verdict.UNTRUSTED
        if self._revoked(key):
            return Verdict.REVOKED
        if thing.signed_at > self._wall_ms() + AHEAD_MS:
            return Verdict.TOO_NEW
        if not key.not_before_ms - AHEAD_MS <= thing.signed_at <= key.not_after_ms:
            return Verdict.OUT_OF_DATES
        if not self._is_trusted(key, max(thing.signed_at, key.not_before_ms)):
            return Verdict.UNTRUSTED
        self.counters.keys_signatures_checked += 1
        header, body = thing.signed_parts
        good = verify(
            key.public_key, thing.algorithm, self._context[kind], header, body, thing.signature
        )
        return Verdict.GOOD if good else Verdict.BAD_SIGNATURE

    def _revoked(self, key: Key) -> bool:
        if self._is_revoked is None:
            return False
        if key.revoked is None:
            key.revoked = self._is_revoked(key.certificates, key.node_id)
        return key.revoked


def _ms(when: datetime.datetime) -> int:
    return int(when.timestamp() * 1000)
