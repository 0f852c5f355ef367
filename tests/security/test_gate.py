"""The gate between links and cores: what is let through, what waits, what is refused."""

import attrs
import pytest

from plumtree_quic import wire
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import (
    Ack,
    Announcement,
    BucketHashes,
    Certificates,
    CertificatesWanted,
    Chunk,
    Digest,
    DigestHashes,
    DigestRow,
    Facts,
    Gossip,
    Graft,
    GraftEntry,
    Hello,
    IHave,
    MemberState,
    Ping,
    Prune,
    Records,
    Repair,
    SignatureAlgorithm,
)
from plumtree_quic.security import gate as gate_module
from plumtree_quic.security.gate import Gate, Unsigned
from plumtree_quic.security.keyring import Verdict
from plumtree_quic.security.signatures import Kind, fact_kind
from plumtree_quic.sim.keys import Authority, SimRing
from tests.rigs.wire_examples import DATAGRAMS, STREAMS

WALL_MS = 1_790_000_000_000
A, B, C, ME = (NodeId.parse(f"spiffe://test/node/{name}") for name in ("a", "b", "c", "me"))


class Rig:
    """A gate over simulated signatures; `seen` and `held` play the core."""

    def __init__(self):
        self.authority = Authority(1)
        self.keys = {node: self.authority.issue(node) for node in (A, B, C, ME)}
        self.ring = SimRing(self.authority, self.keys[ME], lambda: WALL_MS)
        self.checked = 0
        self.seen = set()
        self.held = {}
        self.gate = Gate(
            self,
            seen=lambda bundle: bundle.first in self.seen,
            differs=lambda bundle: (
                bundle.first in self.held and not self.held[bundle.first].says_the_same(bundle)
            ),
        )
        for peer in (A, B):
            self.gate.link_up(peer, 0.0)

    # The verifier's side, counted.
    def check_bundle(self, bundle, now):
        self.checked += 1
        return self.ring.check_bundle(bundle, now)

    def check_record(self, record, now):
        return self.ring.check_record(record, now)

    def check_fact(self, fact, now):
        self.checked += 1
        return self.ring.check_fact(fact, now)

    def offer(self, chain, now):
        return self.ring.offer(chain, now)

    def chain(self, key_id):
        return self.ring.chain(key_id)

    def knows(self, *nodes):
        for node in nodes:
            assert self.ring.offer(self.keys[node].chain, 0.0)
        return self

    def signed(self, node, kind):
        key = self.keys[node]
        return {
            "algorithm": key.algorithm,
            "key_id": key.key_id,
            "signed_at": WALL_MS,
            "sign": key.sign(kind),
        }

    def bundle(self, origin, first=1, body=b"hello", *, by=None):
        return wire.build_bundle(
            origin=member_key(origin),
            epoch=1,
            first=first,
            messages=[("", body)],
            **self.signed(by or origin, Kind.BUNDLE),
        )

    def fact(self, subject, state=MemberState.ALIVE, *, signer=None, by=None):
        signer = signer or subject
        return wire.build_fact(
            subject=member_key(subject),
            epoch=1,
            incarnation=0,
            state=state,
            signer=member_key(signer),
            **self.signed(by or signer, fact_kind(state)),
        )

    def record(self, node, *, by=None, chain=None):
        return wire.build_record(
            node_id=node,
            epoch=1,
            incarnation=0,
            addresses=("10.0.0.1:1",),
            valid_until=WALL_MS + 1000,
            chain=self.keys[by or node].chain if chain is None else chain,
            **self.signed(by or node, Kind.RECORD),
        )

    def hello(self, record, yours=None):
        return Hello(1, 0, 0, "c", record, 1_200, bytes(16), True, b"", yours)


@pytest.fixture
def rig():
    return Rig()


def altered(bundle):
    """The same header, another body: what a relay that forges passes on."""
    raw = bytearray(bundle.raw)
    raw[-1] ^= 1
    return wire.parse_bundle(bytes(raw))


# --- bundles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", [Gossip, Chunk, Repair])
def test_a_bundle_that_its_origin_signed_passes(rig, carrier):
    message = carrier(1, rig.knows(A).bundle(A))
    out = rig.gate.admit(B, message, 0.0)
    assert (out.messages, out.replies, out.refusals) == ([message], [], [])


@pytest.mark.parametrize("carrier", [Gossip, Chunk, Repair])
def test_a_bundle_that_a_relay_altered_is_refused_and_a_strike(rig, carrier):
    message = carrier(1, altered(rig.knows(A).bundle(A)))
    out = rig.gate.admit(B, message, 0.0)
    assert out.messages == []
    assert [refusal.verdict for refusal in out.refusals] == [Verdict.BAD_SIGNATURE]
    assert out.strikes == 1
    assert rig.gate.counters.gate_strikes == 1


def test_a_bundle_under_another_members_certificate_is_refused_and_no_strike(rig):
    out = rig.gate.admit(B, Gossip(1, rig.knows(A, C).bundle(A, by=C)), 0.0)
    assert (out.messages, out.strikes) == ([], 0)
    assert out.refusals[0].verdict is Verdict.UNTRUSTED


def test_what_passes_without_a_look_is_what_admit_lets_through_as_it_is(rig):
    everything = [each for group in (STREAMS, DATAGRAMS) for each in group.values()]
    judged = set()
    for message in (each for some in everything for each in some):
        if rig.gate.lets_pass(message):
            out = rig.gate.admit(B, message, 0.0)
            assert (out.messages, out.replies, out.refusals, out.checked) == ([message], [], [], 0)
        else:
            judged.add(type(message))
    assert judged == {
        Gossip, Chunk, Repair, Facts, Ping, Ack, Records, CertificatesWanted, Certificates
    }  # fmt: skip


def test_nothing_passes_without_a_look_where_there_is_a_policy(rig):
    message = IHave((Announcement(member_key(A), 1, 1, 1, 1),))
    assert rig.gate.lets_pass(message)
    rig.gate.use_policy(Rules(join=[B]))
    assert not rig.gate.lets_pass(message)


def test_an_unsigned_bundle_is_refused(rig):
    bundle = wire.build_bundle(origin=member_key(A), epoch=1, first=1, messages=[("", b"x")])
    out = rig.gate.admit(B, Gossip(1, bundle), 0.0)
    assert (out.messages, out.refusals[0].verdict) == ([], Verdict.UNSIGNED)


def test_a_second_copy_is_not_verified_again(rig):
    bundle = rig.knows(A).bundle(A)
    rig.gate.admit(B, Gossip(1, bundle), 0.0)
    rig.seen.add(1)
    rig.held[1] = bundle
    assert rig.gate.admit(A, Gossip(2, bundle), 0.0).messages == [Gossip(2, bundle)]
    assert rig.checked == 1


def test_a_copy_that_differs_from_what_is_held_is_verified(rig):
    held = rig.knows(A).bundle(A)
    rig.seen.add(1)
    rig.held[1] = held
    assert rig.gate.admit(B, Gossip(1, altered(held)), 0.0).strikes == 1
    other = Gossip(1, rig.bundle(A, body=b"other"))
    # Both are signed: the core is shown the contradiction.
    assert rig.gate.admit(B, other, 0.0).messages == [other]


# --- unknown certificates -----------------------------------------------------------------------


def test_a_bundle_under_an_unknown_certificate_waits_for_it(rig):
    message = Gossip(1, rig.bundle(C))
    out = rig.gate.admit(B, message, 0.0)
    assert out.messages == []
    assert out.replies == [CertificatesWanted((rig.keys[C].key_id,))]
    out = rig.gate.admit(B, Certificates((rig.keys[C].chain,)), 0.5)
    assert out.messages == [message]
    assert rig.gate.next_deadline() is None


def test_a_certificate_is_asked_of_a_link_once_while_it_is_on_its_way(rig):
    assert rig.gate.admit(B, Gossip(1, rig.bundle(C, 1)), 0.0).replies
    assert rig.gate.admit(B, Gossip(1, rig.bundle(C, 2)), 0.1).replies == []
    assert rig.gate.admit(A, Gossip(1, rig.bundle(C, 2)), 0.1).replies
    out = rig.gate.admit(B, Certificates((rig.keys[C].chain,)), 0.5)
    assert [each.bundle.first for each in out.messages] == [1, 2]


def test_what_waits_longer_than_2_s_is_given_up(rig):
    rig.gate.admit(B, Gossip(1, rig.bundle(C)), 1.0)
    assert rig.gate.next_deadline() == 1.0 + gate_module.WAITING_S == 3.0
    rig.gate.advance(3.0)
    assert rig.gate.next_deadline() is None
    assert rig.gate.counters.gate_wait_expired == 1
    assert rig.gate.admit(B, Certificates((rig.keys[C].chain,)), 3.1).messages == []


def test_at_most_64_bundles_of_a_link_wait(rig):
    for first in range(1, 66):
        rig.gate.admit(B, Gossip(1, rig.bundle(C, first)), 0.0)
    assert rig.gate.counters.gate_wait_refused == 1
    # Another link has room of its own.
    rig.gate.admit(A, Gossip(1, rig.bundle(C, 99)), 0.0)
    assert rig.gate.counters.gate_wait_refused == 1
    out = rig.gate.admit(B, Certificates((rig.keys[C].chain,)), 0.1)
    assert len(out.messages) == 64


def test_at_most_1_mib_of_a_link_waits(rig):
    for first in range(1, 20):
        rig.gate.admit(B, Gossip(1, rig.bundle(C, first, bytes(60_000))), 0.0)
    assert rig.gate.counters.gate_wait_refused == 2
    rig.gate.link_down(B)
    rig.gate.link_up(B, 1.0)
    rig.gate.admit(B, Gossip(1, rig.bundle(C, 1, bytes(60_000))), 1.0)
    assert rig.gate.counters.gate_wait_refused == 2


def test_a_certificate_that_was_not_asked_for_is_not_looked_at(rig):
    rig.gate.admit(B, Certificates((rig.keys[C].chain,)), 0.0)
    assert rig.ring.chain(rig.keys[C].key_id) is None
    rig.gate.admit(B, Gossip(1, rig.bundle(A)), 0.0)
    rig.gate.admit(B, Certificates((rig.keys[C].chain, rig.keys[A].chain)), 0.0)
    assert rig.ring.chain(rig.keys[C].key_id) is None
    assert rig.ring.chain(rig.keys[A].key_id) is not None


def test_a_certificate_that_does_not_convince_frees_nothing(rig):
    forged = Authority(2)
    forged.issue(A)
    stranger = forged.issue(C)
    rig.keys[C] = stranger
    rig.gate.admit(B, Gossip(1, rig.bundle(C)), 0.0)
    assert rig.gate.admit(B, Certificates((stranger.chain,)), 0.1).messages == []
    assert rig.gate.counters.gate_certificates_refused == 1


def test_certificates_are_served_to_who_asks(rig):
    rig.knows(A)
    wanted = CertificatesWanted((rig.keys[A].key_id, rig.keys[C].key_id, rig.keys[A].key_id))
    assert rig.gate.admit(B, wanted, 0.0).replies == [Certificates((rig.keys[A].chain,))]


def test_certificates_are_served_at_a_bounded_rate(rig):
    rig.knows(A)
    wanted = CertificatesWanted((rig.keys[A].key_id,))
    served = sum(len(rig.gate.admit(B, wanted, 0.0).replies) for _ in range(1_000))
    assert served == gate_module.SERVED_BURST
    served = sum(len(rig.gate.admit(B, wanted, 1.0).replies) for _ in range(1_000))
    assert served == gate_module.SERVED_PER_S


# --- records, facts, hello ----------------------------------------------------------------------


def test_a_record_that_its_subject_signed_passes_and_brings_its_certificate(rig):
    message = Records((rig.record(A),), (rig.fact(A),))
    out = rig.gate.admit(B, message, 0.0)
    assert out.messages == [message]
    assert out.refusals == []


def test_a_record_that_somebody_else_signed_is_taken_out(rig):
    good = rig.record(A)
    forged = [rig.record(C, by=B), rig.record(C, by=B, chain=rig.keys[C].chain)]
    out = rig.gate.admit(B, Records((*forged, good)), 0.0)
    assert out.messages == [Records((good,))]
    assert [refusal.verdict for refusal in out.refusals] == [Verdict.UNTRUSTED] * 2


def test_the_subject_speaks_for_itself_and_nobody_else_does(rig):
    rig.knows(A, B)
    good = rig.fact(A)
    forged = rig.fact(A, by=B)
    out = rig.gate.admit(B, Facts((forged, good)), 0.0)
    assert out.messages == [Facts((good,))]
    assert len(out.refusals) == 1


def test_an_accusation_is_its_accusers(rig):
    rig.knows(A, B)
    good = rig.fact(C, MemberState.SUSPECT, signer=A)
    forged = rig.fact(C, MemberState.SUSPECT, signer=A, by=B)
    out = rig.gate.admit(B, Facts((forged, good)), 0.0)
    assert out.messages == [Facts((good,))]


def test_a_signature_on_one_kind_of_statement_is_none_on_another(rig):
    rig.knows(A)
    key = rig.keys[A]
    suspect = wire.build_fact(
        subject=member_key(C),
        epoch=1,
        incarnation=0,
        state=MemberState.SUSPECT,
        signer=member_key(A),
        algorithm=key.algorithm,
        key_id=key.key_id,
        signed_at=WALL_MS,
        sign=key.sign(Kind.FACT),
    )
    assert rig.gate.admit(B, Facts((suspect,)), 0.0).strikes == 1


def test_a_fact_is_verified_once_however_many_links_bring_it(rig):
    fact = rig.knows(A).fact(A)
    for peer in (A, B):
        assert rig.gate.admit(peer, Facts((fact,)), 0.0).messages == [Facts((fact,))]
    assert rig.checked == 1
    rig.gate.judge_again()
    rig.gate.admit(A, Facts((fact,)), 0.0)
    assert rig.checked == 2


def test_the_facts_that_are_remembered_are_bounded(rig, monkeypatch):
    monkeypatch.setattr(gate_module, "FACTS_REMEMBERED_MAX", 1)
    rig.knows(A, B)
    for fact in (rig.fact(A), rig.fact(B), rig.fact(A)):
        rig.gate.admit(B, Facts((fact,)), 0.0)
    assert rig.checked == 3


def test_a_fact_under_an_unknown_certificate_waits_for_it(rig):
    known, unknown = rig.knows(A).fact(A), rig.fact(C)
    out = rig.gate.admit(B, Facts((known, unknown)), 0.0)
    assert out.messages == [Facts((known,))]
    assert out.replies == [CertificatesWanted((rig.keys[C].key_id,))]
    out = rig.gate.admit(B, Certificates((rig.keys[C].chain,)), 0.5)
    assert out.messages == [Facts((unknown,))]


@pytest.mark.parametrize("kind", [Ping, Ack])
def test_a_probe_passes_whatever_rides_on_it(rig, kind):
    rig.knows(A, B)
    good, forged = rig.fact(A), rig.fact(A, by=B)
    out = rig.gate.admit(B, kind(b"12345678", (forged, good)), 0.0)
    assert out.messages == [kind(b"12345678", (good,))]


def test_a_hello_with_a_record_of_its_own_signature_is_good(rig):
    hello = rig.hello(rig.record(A), yours=rig.record(ME))
    assert rig.gate.check_hello(ME, hello, 0.0) == (hello, Verdict.GOOD)


def test_a_hello_with_a_record_that_is_not_signed_by_its_subject_is_refused(rig):
    assert rig.gate.check_hello(ME, rig.hello(rig.record(A, by=B)), 0.0)[1] is Verdict.UNTRUSTED


def test_our_own_past_counts_only_when_we_signed_it(rig):
    for forged in (rig.record(ME, by=A), rig.record(A)):
        hello, verdict = rig.gate.check_hello(ME, rig.hello(rig.record(A), yours=forged), 0.0)
        assert (hello.yours, verdict) == (None, Verdict.GOOD)


def test_what_nobody_signs_passes_untouched(rig):
    for message in (
        IHave((Announcement(member_key(A), 1, 1, 1, 0),)),
        Graft((GraftEntry(member_key(A), 1, ((1, 1),), True),)),
        Prune((member_key(A),)),
        BucketHashes(bytes(2_048)),
    ):
        assert rig.gate.admit(B, message, 0.0).messages == [message]


# --- revocation ---------------------------------------------------------------------------------


def test_nothing_under_a_revoked_key_passes_by_any_lane_whatever_date_it_carries(rig):
    rig.knows(A)
    bundle, fact, record = rig.bundle(A), rig.fact(A), rig.record(A)
    rig.gate.admit(B, Facts((fact,)), 0.0)
    rig.ring.revoked.add(rig.keys[A].key_id)
    rig.gate.judge_again()
    for message in (Gossip(1, bundle), Repair(1, bundle)):
        out = rig.gate.admit(B, message, 0.0)
        assert (out.messages, out.refusals[0].verdict) == ([], Verdict.REVOKED)
    assert rig.gate.admit(B, Facts((fact,)), 0.0).messages == [Facts(())]
    assert rig.gate.admit(B, Ping(b"12345678", (fact,)), 0.0).messages == [Ping(b"12345678")]
    assert rig.gate.admit(B, Records((record,), (fact,)), 0.0).messages == [Records(())]
    assert rig.gate.check_hello(ME, rig.hello(record), 0.0)[1] is Verdict.REVOKED


# --- policy -------------------------------------------------------------------------------------


class Rules:
    """A policy that keeps somebody out of something."""

    def __init__(self, *, join=(), relay=()):
        self.join, self.relay = join, relay

    def may_join(self, node_id):
        return node_id not in self.join

    def may_relay(self, node_id):
        return node_id not in self.relay


def test_the_record_of_who_may_not_join_is_taken_out(rig):
    rig.gate.use_policy(Rules(join=[C]))
    good = rig.record(A)
    out = rig.gate.admit(B, Records((rig.record(C), good)), 0.0)
    assert out.messages == [Records((good,))]
    assert [refusal.verdict for refusal in out.refusals] == [Verdict.NOT_ALLOWED]
    assert out.strikes == 0


def test_who_may_not_relay_speaks_for_itself_alone(rig):
    rig.knows(A, B)
    rig.gate.use_policy(Rules(relay=[B]))
    for kind in (Gossip, Chunk, Repair):
        own, other = kind(1, rig.bundle(B)), kind(2, rig.bundle(A))
        assert rig.gate.admit(B, own, 0.0).messages == [own]
        out = rig.gate.admit(B, other, 0.0)
        assert (out.messages, out.strikes) == ([], 0)
        assert out.refusals[0].verdict is Verdict.NOT_ALLOWED
    mine, yours = (Announcement(member_key(node), 1, 1, 1, 0) for node in (B, A))
    assert rig.gate.admit(B, IHave((mine, yours)), 0.0).messages == [IHave((mine,))]
    rows = tuple(DigestRow(member_key(node), 1, ((1, 1),)) for node in (A, B))
    for page in (Digest(rows, round=7), Digest(rows, last=False, past=True)):
        out = rig.gate.admit(B, page, 0.0)
        assert out.messages == [attrs.evolve(page, rows=rows[1:])]
    # Hashes only ask: what it is told, it may know.
    hashes = DigestHashes(bytes(2_048), round=1)
    assert rig.gate.admit(B, hashes, 0.0).messages == [hashes]
    # Membership is everybody's business.
    facts = Facts((rig.fact(A),))
    assert rig.gate.admit(B, facts, 0.0).messages == [facts]


# --- a cluster that does not sign ---------------------------------------------------------------


def test_a_cluster_that_does_not_sign_takes_what_nobody_signed_and_nothing_else(rig):
    gate = Gate(Unsigned(), seen=lambda _: False, differs=lambda _: False)
    gate.link_up(B, 0.0)
    signed = Gossip(1, rig.bundle(A))
    bare = Gossip(
        1, wire.build_bundle(origin=member_key(A), epoch=1, first=1, messages=[("", b"x")])
    )
    assert gate.admit(B, bare, 0.0).messages == [bare]
    assert gate.admit(B, signed, 0.0).messages == []
    assert bare.bundle.algorithm is SignatureAlgorithm.NONE
    assert gate.admit(B, CertificatesWanted((bytes(16),)), 0.0).replies == []


def test_the_hop_count_is_not_signed(rig):
    message = Gossip(1, rig.knows(A).bundle(A))
    for hop in (0, 7, 255):
        assert rig.gate.admit(B, attrs.evolve(message, hop=hop), 0.0).messages


def test_an_origin_is_named_by_a_certificate_of_its_own_alone():
    class Names(Unsigned):
        def name_of(self, key_id):
            return NodeId("spiffe://test/node/a") if key_id == b"a" * 16 else None

    gate = Gate(Names(), seen=lambda bundle: False, differs=lambda bundle: False)

    def signed(origin, key_id):
        return wire.build_bundle(
            origin=member_key(NodeId(f"spiffe://test/node/{origin}")),
            epoch=1,
            first=1,
            messages=[("t", b"x")],
            key_id=key_id,
        )

    assert gate.name_of(signed("a", b"a" * 16)) == NodeId("spiffe://test/node/a")
    assert gate.name_of(signed("b", b"a" * 16)) is None
    assert gate.name_of(signed("a", b"b" * 16)) is None
