"""Key ring: the certificates under which bundles, records and facts are signed, and the verdicts.

Judges what a link brought: who signed it, whether that certificate is to be believed, and whether
the dates fit. Keeps certificates by `key_id` for as long as something may refer to them, so that a
bundle stays verifiable after its origin rotated its key, left or died. No links and no waiting
here: gate.py does that.

A certificate is judged at the moment at which it signed (`signed_at`), so that what was signed
while it was valid stays good. Whoever steals a key that has expired can write any `signed_at`;
what he makes counts for as long as an honest statement of that age would (LIFE_MS), and no longer.
Revocation does not look at `signed_at` at all.
"""

import datetime
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from enum import Enum

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

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

__all__ = ["AHEAD_MS", "KEYS_MAX", "KEYS_PER_MEMBER_MAX", "LIFE_MS", "Key", "KeyRing", "Verdict"]

AHEAD_MS = 60_000
"""How far ahead of our clock something may be signed."""
LIFE_MS = 24 * 3600 * 1000
"""How long a record or a fact counts after it was signed. Nodes renew theirs twice in that time."""
KEYS_MAX = 16_384
"""Certificates that are kept at most: of the 10,000 members that a table holds, some of which have
rotated lately. At about 4 KB each."""
KEYS_PER_MEMBER_MAX = 8
"""Of one identity: somebody who can have any number of certificates issued to himself must not
push out everybody else's. Rotations within the retention window are few; 8 is a guess."""
# Beyond the retention window a key is of use to stragglers alone.
KEEP_EXTRA_S = 60.0
_AHEAD_S = AHEAD_MS // 1000
# A key that was ours until the last sweep, and has been in use all that time.
_UNTIL_NOW = float("inf")


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
    NOT_ALLOWED = "not allowed by the policy"

    @property
    def is_strike(self) -> bool:
        """Whether no honest peer passes such a thing on."""
        return self is Verdict.BAD_SIGNATURE


@attrs.define(eq=False)
class _Span:
    """What was concluded of a chain for first_s .. last_s (seconds since 1970, inclusive).

    path: leaf to anchor, or nothing when there is none. revoked: None when it has to be asked.
    """

    first_s: int
    last_s: int
    path: tuple[x509.Certificate, ...]
    revoked: bool | None = None


@attrs.define(eq=False)
class Key:
    """One signing certificate.

    not_before_s, not_after_s: the leaf's own dates, seconds since 1970. chain: what a peer that
    asks is given, leaf first. spans: what was concluded under the anchors of `generation`.
    used_at: when it was last of use, monotonic seconds.
    """

    key_id: bytes
    node_id: NodeId
    member: MemberKey
    public_key: object = attrs.field(repr=False)
    chain: tuple[bytes, ...] = attrs.field(repr=False)
    certificates: tuple[x509.Certificate, ...] = attrs.field(repr=False)
    not_before_s: int
    not_after_s: int
    generation: int = 0
    spans: list[_Span] = attrs.field(factory=list, repr=False)
    used_at: float = 0.0


@attrs.define
class KeyCounters:
    """Plain integers since the start; from keys_good on, one for each verdict."""

    keys_signatures_checked: int = 0
    keys_chains_checked: int = 0
    keys_learnt: int = 0
    keys_forgotten: int = 0
    keys_good: int = 0
    keys_unknown_key: int = 0
    keys_bad_signature: int = 0
    keys_untrusted: int = 0
    keys_out_of_dates: int = 0
    keys_too_new: int = 0
    keys_too_old: int = 0
    keys_revoked: int = 0
    keys_unsigned: int = 0


_COUNTER_OF = {verdict: f"keys_{verdict.name.lower()}" for verdict in Verdict}


class KeyRing:
    """The certificates that one node knows, and what it thinks of what they signed.

    Args:
        credentials: our own identity, and whom we trust.
        wall_ms: the wall clock in milliseconds since 1970.
        retention_s: how old a bundle may be.
        is_revoked: whether any certificate on a path, leaf to anchor, is revoked or denied, or
            the NodeId is; asked once per path and whenever that changed (`judge_again`).
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
        # In order of their use, the longest unused first; by member for the share of each.
        self._keys: OrderedDict[bytes, Key] = OrderedDict()
        self._of_member: dict[MemberKey, list[Key]] = {}
        self._kept: Collection[bytes] = ()
        self.counters = KeyCounters()
        self._generation = 0
        self._context: dict[Kind, bytes] = {}
        self._own = b""
        self.use(credentials)

    # --- what we trust --------------------------------------------------------------------------

    def use(self, credentials: Credentials) -> None:
        """New anchors, or a new certificate of our own: every chain is judged again when used.

        Our former certificate stays for as long as what we signed under it travels.

        Raises:
            CheckFailed: our own certificate is none that a peer could learn.
        """
        self._credentials = credentials
        own = self._parse((credentials.leaf_der, *credentials.chain_der))
        own.used_at = _UNTIL_NOW
        self._context = {
            kind: context(kind, credentials.trust_domain, credentials.cluster) for kind in Kind
        }
        self._generation += 1
        self._own = own.key_id
        self._keep(own)

    def judge_again(self) -> None:
        """Revocations changed: each path is asked about again when next used."""
        for key in self._keys.values():
            for span in key.spans:
                span.revoked = None

    # --- certificates ---------------------------------------------------------------------------

    def offer(self, chain: Sequence[bytes], now: float) -> bool:
        """Certificates that a peer sent, leaf first: learn them when a node's own would do.

        Their dates are judged when something is signed under them, not now: a bundle outlives the
        certificate under which it was signed. A leaf that is known, and of no use with the
        intermediates that it came with, is taken with others that lead further.

        Returns whether the leaf is known now.
        """
        known = self._keys.get(key_id_of(chain[0])) if chain else None
        if known is not None and (known.chain == tuple(chain) or self._is_useful(known)):
            self._touch(known, now)
            return True
        try:
            key = self._parse(tuple(chain))
        except CheckFailed:
            return False
        span = self._latest_path(key)
        if span is None or (known is not None and self._revoked(key, span)):
            return known is not None
        key.chain = (chain[0], *self._worth_keeping(key, span.path))
        key.used_at = now
        self._keep(key)
        return True

    def chain(self, key_id: bytes) -> tuple[bytes, ...] | None:
        """What a peer is given that asks for this key, leaf first."""
        key = self._keys.get(key_id)
        return key.chain if key is not None else None

    def name_of(self, key_id: bytes) -> NodeId | None:
        """Whose certificate this is."""
        key = self._keys.get(key_id)
        return key.node_id if key is not None else None

    def expire(self, now: float, kept: Collection[bytes] = ()) -> None:
        """Forget keys that nothing has used for the retention window and a minute.

        kept: under which the records of members are signed; these stay, as our own does.
        """
        self._kept = kept
        for key in list(self._keys.values()):
            if key.key_id == self._own:
                continue
            if key.used_at == _UNTIL_NOW:
                key.used_at = now
            elif key.used_at + self._keep_s <= now and key.key_id not in kept:
                self._forget(key)

    def __len__(self) -> int:
        return len(self._keys)

    def _parse(self, chain: tuple[bytes, ...]) -> Key:
        """Steps 4, 5 and 10 of the check. Raises CheckFailed."""
        certificates = parse_certificates(chain)
        leaf = certificates[0]
        public_key = public_key_of(leaf)
        check_key(public_key)
        node_id = parse_identity(leaf, self._credentials.trust_domain)
        return Key(
            key_id=key_id_of(chain[0]),
            node_id=node_id,
            member=member_key(node_id),
            public_key=public_key,
            chain=chain,
            certificates=tuple(certificates),
            not_before_s=_seconds(leaf.not_valid_before_utc),
            not_after_s=_seconds(leaf.not_valid_after_utc),
        )

    def _worth_keeping(self, key: Key, path: tuple[x509.Certificate, ...]) -> list[bytes]:
        """The intermediates on the path, and those that an anchor of ours vouches for.

        The latter may lead others to an anchor that is theirs and not ours, while a CA is being
        replaced. Whatever else was sent is padding, and would be kept and passed on.
        """
        vouching = (*self._credentials.anchors, *path)
        leaf, *sent = key.certificates
        useful = [
            each
            for each in sent
            if each.subject != each.issuer and (each in path or _is_issued_by(each, vouching))
        ]
        key.certificates = (leaf, *useful)
        return [each.public_bytes(serialization.Encoding.DER) for each in useful]

    # --- what is kept ---------------------------------------------------------------------------

    def _touch(self, key: Key, now: float) -> None:
        if key.key_id != self._own:
            key.used_at = now
        self._keys.move_to_end(key.key_id)

    def _keep(self, key: Key) -> None:
        former = self._keys.get(key.key_id)
        if former is not None:
            self._remove(former)
        siblings = self._of_member.setdefault(key.member, [])
        if len(siblings) >= KEYS_PER_MEMBER_MAX:
            others = (each for each in siblings if each.key_id != self._own)
            self._forget(min(others, key=lambda each: each.used_at))
        self._keys[key.key_id] = key
        self._of_member.setdefault(key.member, []).append(key)
        self.counters.keys_learnt += 1
        if len(self._keys) > KEYS_MAX:
            self._make_room()

    def _make_room(self) -> None:
        """Forget the key that was not used for the longest time and is neither ours nor kept."""
        for _ in range(len(self._keys)):
            key = next(iter(self._keys.values()))
            if key.key_id != self._own and key.key_id not in self._kept:
                self._forget(key)
                return
            self._keys.move_to_end(key.key_id)

    def _forget(self, key: Key) -> None:
        self._remove(key)
        self.counters.keys_forgotten += 1

    def _remove(self, key: Key) -> None:
        del self._keys[key.key_id]
        siblings = self._of_member[key.member]
        siblings.remove(key)
        if not siblings:
            del self._of_member[key.member]

    # --- chains ---------------------------------------------------------------------------------

    def _span_at(self, key: Key, at_s: int) -> _Span:
        """Step 9 at one moment. Checked once per key, anchors, and time without a change of dates.

        Which path there is can change only where a certificate that may be on it begins or ends.
        """
        if key.generation != self._generation:
            key.generation = self._generation
            key.spans.clear()
        for span in key.spans:
            if span.first_s <= at_s <= span.last_s:
                return span
        self.counters.keys_chains_checked += 1
        leaf, *issuers = key.certificates
        anchors = self._credentials.anchors
        when = datetime.datetime.fromtimestamp(at_s, datetime.UTC)
        try:
            path = tuple(check_chain(leaf, issuers, anchors, when))
        except CheckFailed:
            path = ()
        dated = (leaf, *issuers, *anchors)
        changes = [_seconds(each.not_valid_before_utc) for each in dated]
        changes += [_seconds(each.not_valid_after_utc) + 1 for each in dated]
        span = _Span(
            max((each for each in changes if each <= at_s), default=at_s),
            min((each for each in changes if each > at_s), default=at_s + 1) - 1,
            path,
        )
        key.spans.append(span)
        return span

    def _latest_path(self, key: Key) -> _Span | None:
        """The last time up to now at which the chain led to an anchor; None if it never did."""
        until_s = min(self._wall_ms() // 1000 + _AHEAD_S, key.not_after_s)
        ends = {until_s}
        for each in (*key.certificates[1:], *self._credentials.anchors):
            end_s = _seconds(each.not_valid_after_utc)
            if key.not_before_s <= end_s < until_s:
                ends.add(end_s)
        for end_s in sorted(ends, reverse=True):
            span = self._span_at(key, max(end_s, key.not_before_s))
            if span.path:
                return span
        return None

    def _is_useful(self, key: Key) -> bool:
        span = self._latest_path(key)
        return span is not None and not self._revoked(key, span)

    def _revoked(self, key: Key, span: _Span) -> bool:
        if self._is_revoked is None:
            return False
        if span.revoked is None:
            span.revoked = self._is_revoked(span.path or key.certificates[:1], key.node_id)
        return span.revoked

    # --- verdicts -------------------------------------------------------------------------------

    def check_bundle(self, bundle: Bundle, now: float) -> Verdict:
        """Judge a bundle: signed by its origin, within the retention window, not ahead of us."""
        oldest_ms = self._wall_ms() - self._retention_ms
        return self._counted(self._check(bundle, Kind.BUNDLE, bundle.origin, oldest_ms, now))

    def check_fact(self, fact: Fact, now: float) -> Verdict:
        """Judge a fact: signed by its signer, not longer ago than a record lives."""
        oldest_ms = self._wall_ms() - LIFE_MS - AHEAD_MS
        kind = fact_kind(fact.state)
        return self._counted(self._check(fact, kind, fact.signer, oldest_ms, now))

    def check_record(self, record: Record, now: float) -> Verdict:
        """Judge a record: signed by its subject, under the certificate that it brings along."""
        return self._counted(self._check_record(record, now))

    def _check_record(self, record: Record, now: float) -> Verdict:
        if record.algorithm is SignatureAlgorithm.NONE:
            return Verdict.UNSIGNED
        if not record.chain or key_id_of(record.chain[0]) != record.key_id:
            return Verdict.UNTRUSTED
        wall_ms = self._wall_ms()
        if record.valid_until < wall_ms:
            return Verdict.TOO_OLD
        if not self.offer(record.chain, now):
            return Verdict.UNTRUSTED
        oldest_ms = wall_ms - LIFE_MS - AHEAD_MS
        return self._check(record, Kind.RECORD, member_key(record.node_id), oldest_ms, now)

    def _check(
        self,
        thing: Bundle | Fact | Record,
        kind: Kind,
        speaker: MemberKey,
        oldest_ms: int,
        now: float,
    ) -> Verdict:
        # What costs little first: most of what is refused never costs a signature.
        if thing.algorithm is SignatureAlgorithm.NONE:
            return Verdict.UNSIGNED
        if thing.signed_at < oldest_ms:
            return Verdict.TOO_OLD
        if thing.signed_at > self._wall_ms() + AHEAD_MS:
            return Verdict.TOO_NEW
        key = self._keys.get(thing.key_id)
        if key is None:
            return Verdict.UNKNOWN_KEY
        if key.member != speaker:
            return Verdict.UNTRUSTED
        at_s = thing.signed_at // 1000
        # A clock a little behind the CA's signs before its own certificate begins (identity.py).
        span = self._span_at(key, min(max(at_s, key.not_before_s), key.not_after_s))
        if self._revoked(key, span):
            return Verdict.REVOKED
        if not key.not_before_s - _AHEAD_S <= at_s <= key.not_after_s:
            return Verdict.OUT_OF_DATES
        if not span.path:
            return Verdict.UNTRUSTED
        self.counters.keys_signatures_checked += 1
        header, body = thing.signed_parts
        if not verify(
            key.public_key, thing.algorithm, self._context[kind], header, body, thing.signature
        ):
            return Verdict.BAD_SIGNATURE
        self._touch(key, now)
        return Verdict.GOOD

    def _counted(self, verdict: Verdict) -> Verdict:
        name = _COUNTER_OF[verdict]
        setattr(self.counters, name, getattr(self.counters, name) + 1)
        return verdict


def _is_issued_by(cert: x509.Certificate, issuers: Sequence[x509.Certificate]) -> bool:
    for issuer in issuers:
        if issuer.subject == cert.issuer:
            try:
                cert.verify_directly_issued_by(issuer)
            except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
                continue
            return True
    return False


def _seconds(when: datetime.datetime) -> int:
    return int(when.timestamp())
