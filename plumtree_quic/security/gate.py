"""Gate: what a link brings is verified here before a core sees it. Sans-IO; no protocol logic.

The driver and the simulator hand every decoded message to `admit` and give the core what comes
out. What is signed under a certificate that is not known here waits, within bounds, while the
link that brought it is asked for that certificate: it must have it, for it verified the thing
itself (ARCHITECTURE section 3).

A signature that fails is a strike against the link, for no honest peer passes such a thing on.
Everything else that is refused (unknown, expired, revoked, from the future) is counted and no
strike: honest peers differ by a second.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.messages import (
    Ack,
    Bundle,
    Certificates,
    CertificatesWanted,
    Chunk,
    Digest,
    Fact,
    Facts,
    Gossip,
    Hello,
    IHave,
    Message,
    Ping,
    Record,
    Records,
    Repair,
    SignatureAlgorithm,
)
from plumtree_quic.security.keyring import Verdict
from plumtree_quic.security.policy import Policy
from plumtree_quic.security.signatures import key_id_of

__all__ = ["Admitted", "Gate", "Refusal", "Unsigned", "Verifier"]

# What may wait per link for certificates (ARCHITECTURE section 3).
WAITING_MAX = 64
WAITING_BYTES_MAX = 1 << 20
WAITING_S = 2.0
# What one frame may ask for, and be answered with (docs/wire.md).
WANTED_MAX = 64
CERTIFICATES_BYTES_MAX = 30_720
# A key that was asked of a link is not asked of it again for so long.
ASK_AGAIN_S = 2.0
# Facts that were verified lately: each comes over many links. 8 per member of a large cluster
# would be 80,000; what is forgotten is only verified once more. A guess.
FACTS_REMEMBERED_MAX = 4_096
# What is signed, or concerns what signatures are checked with; all else says nothing that counts
# beyond the link that it came on.
_JUDGED = frozenset(
    (Gossip, Chunk, Repair, Facts, Ping, Ack, Records, CertificatesWanted, Certificates)
)
# Certificates are served to a link at most this often; an honest one asks once per new key.
SERVED_PER_S = 64.0
SERVED_BURST = 256.0


class Verifier(Protocol):
    """Judges signatures: a KeyRing, or the simulator's."""

    def check_bundle(self, bundle: Bundle, now: float) -> Verdict:
        """Judge a bundle."""

    def check_record(self, record: Record, now: float) -> Verdict:
        """Judge a record, and learn the certificates in it."""

    def check_fact(self, fact: Fact, now: float) -> Verdict:
        """Judge a fact."""

    def offer(self, chain: Sequence[bytes], now: float) -> bool:
        """Judge certificates that a peer sent; learn them when they are good."""

    def chain(self, key_id: bytes) -> tuple[bytes, ...] | None:
        """Return what a peer that asks for this key is given."""

    def name_of(self, key_id: bytes) -> NodeId | None:
        """Return whose certificate this is, when it is known."""


class Unsigned:
    """The verifier of a cluster that does not sign: what is signed comes from another one."""

    def check_bundle(self, bundle: Bundle, now: float) -> Verdict:  # noqa: ARG002
        """Judge a bundle."""
        return _judge_unsigned(bundle)

    def check_record(self, record: Record, now: float) -> Verdict:  # noqa: ARG002
        """Judge a record."""
        return _judge_unsigned(record)

    def check_fact(self, fact: Fact, now: float) -> Verdict:  # noqa: ARG002
        """Judge a fact."""
        return _judge_unsigned(fact)

    def offer(self, chain: Sequence[bytes], now: float) -> bool:  # noqa: ARG002
        """No certificate is of use here."""
        return False

    def chain(self, key_id: bytes) -> None:
        """None is held."""

    def name_of(self, key_id: bytes) -> None:
        """None is known by a certificate."""


def _judge_unsigned(thing: Bundle | Record | Fact) -> Verdict:
    return Verdict.GOOD if thing.algorithm is SignatureAlgorithm.NONE else Verdict.UNTRUSTED


def _own_alone(message: Message, key: MemberKey) -> Message | None:
    """What a peer that may not relay says of itself; None when it speaks of others alone.

    Its DigestHashes only ask, and pass; of its Digest its own rows count.
    """
    match message:
        case Gossip(bundle=bundle) | Chunk(bundle=bundle) | Repair(bundle=bundle):
            return message if bundle.origin == key else None
        case IHave(announcements):
            return IHave(tuple(each for each in announcements if each.origin == key))
        case Digest(rows):
            return attrs.evolve(message, rows=tuple(each for each in rows if each.origin == key))
    return message


@attrs.frozen
class Refusal:
    """Something that was not let through: what, by which link, spoken by whom, and why."""

    what: str
    verdict: Verdict
    key_id: bytes


@attrs.define
class Admitted:
    """What came of one message.

    messages: what the core may see, in order. checked: how many signatures and certificates were
    looked at for it. replies: what goes back on the same link.
    refusals: what was not let through.
    """

    messages: list[Message] = attrs.field(factory=list)
    checked: int = 0
    replies: list[Message] = attrs.field(factory=list)
    refusals: list[Refusal] = attrs.field(factory=list)

    @property
    def strikes(self) -> int:
        """How many of the refusals no honest peer would have caused."""
        return sum(refusal.verdict.is_strike for refusal in self.refusals)


@attrs.define
class GateCounters:
    """Plain integers since the start."""

    gate_waited: int = 0
    gate_wait_expired: int = 0
    gate_wait_refused: int = 0
    gate_certificates_asked: int = 0
    gate_certificates_served: int = 0
    gate_certificates_refused: int = 0
    gate_refused: int = 0
    gate_strikes: int = 0


@attrs.frozen
class _Waiting:
    """A message of which something is signed under `key_ids`, which are not known here yet."""

    until: float
    message: Message
    key_ids: frozenset[bytes]
    size: int


@attrs.define
class _Link:
    waiting: list[_Waiting] = attrs.field(factory=list)
    waiting_bytes: int = 0
    asked: dict[bytes, float] = attrs.field(factory=dict)
    tokens: float = SERVED_BURST
    tokens_at: float = 0.0


class Gate:
    """One node's gate.

    Args:
        verifier: judges signatures.
        seen: whether all of a bundle has been delivered or refused already; such a copy is passed
            on unverified, for it changes nothing but the tree on the link that brought it.
        differs: whether a seen bundle is held here with other contents. It is then verified:
            either the link lies, or its origin has said two things under one number.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        seen: Callable[[Bundle], bool],
        differs: Callable[[Bundle], bool],
    ) -> None:
        self._verifier = verifier
        self._seen = seen
        self._differs = differs
        self._policy: Policy | None = None
        self._links: dict[NodeId, _Link] = {}
        # Those on which something waits.
        self._waiting: dict[NodeId, None] = {}
        self._facts: OrderedDict[bytes, None] = OrderedDict()
        self.counters = GateCounters()

    # --- inputs ---------------------------------------------------------------------------------

    def link_up(self, peer: NodeId, now: float) -> None:
        """A link to `peer` is greeted."""
        self._links[peer] = _Link(tokens_at=now)
        self._waiting.pop(peer, None)

    def link_down(self, peer: NodeId) -> None:
        """The last link to `peer` is gone, and what waited for its certificates with it."""
        self._links.pop(peer, None)
        self._waiting.pop(peer, None)

    def check_hello(self, own: NodeId, hello: Hello, now: float) -> tuple[Hello, Verdict]:
        """Judge the record in a hello; whose it is, the endpoint has compared.

        What the peer shows us of our own past counts only when we have signed it, and is taken
        out of the returned hello otherwise.
        """
        verdict = self._verifier.check_record(hello.record, now)
        yours = hello.yours
        if yours is not None and (
            yours.node_id != own or self._verifier.check_record(yours, now) is not Verdict.GOOD
        ):
            hello = attrs.evolve(hello, yours=None)
        return hello, verdict

    def lets_pass(self, message: Message) -> bool:
        """Whether nothing in `message` needs a proof: then `admit` would let it through as it is.

        Asked first, this spares most frames an `Admitted` of their own.
        """
        return self._policy is None and type(message) not in _JUDGED

    def admit(self, peer: NodeId, message: Message, now: float) -> Admitted:
        """Judge a message that came on the greeted link to `peer`."""
        policy = self._policy
        out = Admitted()
        if policy is not None and not policy.may_relay(peer):
            allowed = _own_alone(message, member_key(peer))
            if allowed is None:
                out.refusals.append(Refusal("relayed bundle", Verdict.NOT_ALLOWED, b""))
                self.counters.gate_refused += 1
                return out
            message = allowed
        match message:
            case Gossip(bundle=bundle) | Chunk(bundle=bundle) | Repair(bundle=bundle):
                self._admit_bundle(peer, message, bundle, now, out)
            case Facts() | Ping() | Ack() | Records():
                self._admit_facts(peer, message, now, out)
            case CertificatesWanted(key_ids):
                self._serve(peer, key_ids, now, out)
            case Certificates(chains):
                self._on_certificates(peer, chains, now, out)
            case _:
                out.messages.append(message)
        if out.refusals:
            self.counters.gate_refused += len(out.refusals)
            self.counters.gate_strikes += out.strikes
        return out

    def name_of(self, bundle: Bundle) -> NodeId | None:
        """Who its origin is, by the certificate under which a bundle that was let through is
        signed; None when that is not known (any more), or nothing is signed here.
        """
        node_id = self._verifier.name_of(bundle.key_id)
        return node_id if node_id is not None and member_key(node_id) == bundle.origin else None

    def next_deadline(self) -> float | None:
        """When `advance` has work, or None."""
        if not self._waiting:
            return None
        return min(self._links[peer].waiting[0].until for peer in self._waiting)

    def advance(self, now: float) -> None:
        """Give up on what has waited too long: it is announced again, or told again."""
        for peer in tuple(self._waiting):
            link = self._links[peer]
            while link.waiting and link.waiting[0].until <= now:
                link.waiting_bytes -= link.waiting.pop(0).size
                self.counters.gate_wait_expired += 1
            if not link.waiting:
                del self._waiting[peer]

    def use_policy(self, policy: Policy) -> None:
        """Who may join and relay from now on; without a policy, everybody."""
        self._policy = policy
        self.judge_again()

    def judge_again(self) -> None:
        """Anchors, revocations or the policy changed: nothing counts as verified any more."""
        self._facts.clear()

    # --- bundles --------------------------------------------------------------------------------

    def _admit_bundle(
        self, peer: NodeId, message: Message, bundle: Bundle, now: float, out: Admitted
    ) -> None:
        if self._seen(bundle) and not self._differs(bundle):
            out.messages.append(message)
            return
        out.checked += 1
        verdict = self._verifier.check_bundle(bundle, now)
        if verdict is Verdict.GOOD:
            out.messages.append(message)
        elif verdict is Verdict.UNKNOWN_KEY:
            self._wait(peer, message, {bundle.key_id}, len(bundle.raw), now, out)
        else:
            out.refusals.append(Refusal("bundle", verdict, bundle.key_id))

    # --- records and facts ----------------------------------------------------------------------

    def _admit_facts(
        self, peer: NodeId, message: Facts | Ping | Ack | Records, now: float, out: Admitted
    ) -> None:
        # Records first: they bring the certificates that the facts beside them are signed under.
        records: tuple[Record, ...] = ()
        if isinstance(message, Records):
            records = self._good_records(message.records, now, out)
        good: list[Fact] = []
        waiting: list[Fact] = []
        for fact in message.facts:
            out.checked += fact.raw not in self._facts
            verdict = self._check_fact(fact, now)
            if verdict is Verdict.GOOD:
                good.append(fact)
            elif verdict is Verdict.UNKNOWN_KEY:
                waiting.append(fact)
            else:
                out.refusals.append(Refusal("fact", verdict, fact.key_id))
        if len(good) == len(message.facts) and not isinstance(message, Records):
            out.messages.append(message)
        elif isinstance(message, Records):
            out.messages.append(attrs.evolve(message, records=records, facts=tuple(good)))
        else:
            # A probe is answered whatever rides on it.
            out.messages.append(attrs.evolve(message, facts=tuple(good)))
        if waiting:
            size = sum(len(fact.raw) for fact in waiting)
            keys = {fact.key_id for fact in waiting}
            self._wait(peer, Facts(tuple(waiting)), keys, size, now, out)

    def _good_records(
        self, records: tuple[Record, ...], now: float, out: Admitted
    ) -> tuple[Record, ...]:
        good: list[Record] = []
        for record in records:
            # Its chain, too.
            out.checked += 2
            verdict = self._verifier.check_record(record, now)
            policy = self._policy
            if (
                verdict is Verdict.GOOD
                and policy is not None
                and not policy.may_join(record.node_id)
            ):
                verdict = Verdict.NOT_ALLOWED
            if verdict is Verdict.GOOD:
                good.append(record)
            else:
                out.refusals.append(Refusal("record", verdict, record.key_id))
        return tuple(good)

    def _check_fact(self, fact: Fact, now: float) -> Verdict:
        if fact.raw in self._facts:
            self._facts.move_to_end(fact.raw)
            return Verdict.GOOD
        verdict = self._verifier.check_fact(fact, now)
        if verdict is Verdict.GOOD:
            self._facts[fact.raw] = None
            if len(self._facts) > FACTS_REMEMBERED_MAX:
                self._facts.popitem(last=False)
        return verdict

    # --- certificates ---------------------------------------------------------------------------

    def _wait(
        self,
        peer: NodeId,
        message: Message,
        key_ids: set[bytes],
        size: int,
        now: float,
        out: Admitted,
    ) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        if len(link.waiting) >= WAITING_MAX or link.waiting_bytes + size > WAITING_BYTES_MAX:
            # Not marked as seen: announced again by others, it is fetched like any other.
            self.counters.gate_wait_refused += 1
            return
        self.counters.gate_waited += 1
        link.waiting.append(_Waiting(now + WAITING_S, message, frozenset(key_ids), size))
        link.waiting_bytes += size
        self._waiting[peer] = None
        for key_id in [key for key, until in link.asked.items() if until <= now]:
            del link.asked[key_id]
        unasked = [key for key in sorted(key_ids) if key not in link.asked]
        room = WANTED_MAX - len(link.asked)
        asking = tuple(unasked[: max(0, room)])
        if asking:
            link.asked.update(dict.fromkeys(asking, now + ASK_AGAIN_S))
            self.counters.gate_certificates_asked += len(asking)
            out.replies.append(CertificatesWanted(asking))

    def _serve(self, peer: NodeId, key_ids: tuple[bytes, ...], now: float, out: Admitted) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        link.tokens = min(SERVED_BURST, link.tokens + (now - link.tokens_at) * SERVED_PER_S)
        link.tokens_at = now
        chains: list[tuple[bytes, ...]] = []
        room = CERTIFICATES_BYTES_MAX - 16
        for key_id in dict.fromkeys(key_ids):
            chain = self._verifier.chain(key_id)
            if chain is None or link.tokens < 1.0:
                continue
            size = 4 + sum(len(each) + 4 for each in chain)
            if size > room:
                out.replies.append(Certificates(tuple(chains)))
                chains, room = [], CERTIFICATES_BYTES_MAX - 16
            link.tokens -= 1.0
            chains.append(chain)
            room -= size
            self.counters.gate_certificates_served += 1
        if chains:
            out.replies.append(Certificates(tuple(chains)))

    def _on_certificates(
        self, peer: NodeId, chains: tuple[tuple[bytes, ...], ...], now: float, out: Admitted
    ) -> None:
        link = self._links.get(peer)
        if link is None or not link.asked:
            return
        learnt = False
        for chain in chains:
            # What was not asked for is not looked at: each chain costs a verification.
            if link.asked.pop(key_id_of(chain[0]), None) is None:
                continue
            out.checked += 2
            if self._verifier.offer(chain, now):
                learnt = True
            else:
                self.counters.gate_certificates_refused += 1
        if not learnt:
            return
        waiting, link.waiting = link.waiting, []
        link.waiting_bytes = 0
        self._waiting.pop(peer, None)
        for entry in waiting:
            if any(self._verifier.chain(key_id) is None for key_id in entry.key_ids):
                link.waiting.append(entry)
                link.waiting_bytes += entry.size
                self._waiting[peer] = None
                continue
            freed = self.admit(peer, entry.message, now)
            out.messages += freed.messages
            out.checked += freed.checked
            out.replies += freed.replies
            out.refusals += freed.refusals
