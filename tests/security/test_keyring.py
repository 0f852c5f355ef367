"""The key ring: which certificate is believed for what was signed when, and what is kept of it."""

import datetime
import random

import attrs
import pytest

from plumtree_quic import driver, wire
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import MemberState, SignatureAlgorithm
from plumtree_quic.security import keyring
from plumtree_quic.security.credentials import QuicConfig
from plumtree_quic.security.keyring import AHEAD_MS, KEYS_PER_MEMBER_MAX, LIFE_MS, KeyRing, Verdict
from plumtree_quic.security.signatures import Kind, Signer, fact_kind, key_id_of
from tests.rigs.pki import CLIENT, SERVER, Pki, make_key, utc

PKI = Pki("test", not_before=utc(days=-30))
ME, A, B = (NodeId(f"spiffe://test/node/{name}") for name in ("me", "a", "b"))
NOW = utc()
NOW_MS = int(NOW.timestamp()) * 1000
HOUR_MS = 3_600_000
RETENTION_S = 60.0
GOOD = Verdict.GOOD


def at(*, hours=0.0, seconds=0.0):
    return NOW + datetime.timedelta(hours=hours, seconds=seconds)


def ms(when):
    return int(when.timestamp() * 1000)


@attrs.define(eq=False)
class Speaker:
    """Somebody with a certificate who signs what a test asks for, true or not."""

    cert: object
    node_id: NodeId
    cluster: str = "default"
    trust_domain: str = "test"

    @property
    def key_id(self):
        return key_id_of(self.cert.der)

    @property
    def chain(self):
        return (self.cert.der, *self.cert.chain_der)

    def signed(self, kind, signed_at):
        # A Signer needs of credentials what stands here; QuicConfig would refuse an expired one.
        credentials = attrs.make_class(
            "Credentials", ["key", "leaf_der", "chain_der", "trust_domain", "cluster"]
        )(self.cert.key, self.cert.der, self.cert.chain_der, self.trust_domain, self.cluster)
        signer = Signer(credentials)
        return {
            "algorithm": signer.algorithm,
            "key_id": signer.key_id,
            "signed_at": NOW_MS if signed_at is None else signed_at,
            "sign": signer.sign(kind),
        }

    def bundle(self, signed_at=None, *, origin=None, body=b"payload", kind=Kind.BUNDLE):
        return wire.build_bundle(
            origin=member_key(origin or self.node_id),
            epoch=1,
            first=1,
            messages=[("orders", body)],
            **self.signed(kind, signed_at),
        )

    def fact(self, signed_at=None, *, state=MemberState.ALIVE, signer=None, kind=None):
        signer = signer or self.node_id
        return wire.build_fact(
            subject=member_key(B if state is MemberState.SUSPECT else signer),
            epoch=1,
            incarnation=0,
            state=state,
            signer=member_key(signer),
            **self.signed(kind or fact_kind(state), signed_at),
        )

    def record(self, signed_at=None, *, node_id=None, chain=None, valid_until=None, **changes):
        signed = self.signed(Kind.RECORD, signed_at) | changes
        return wire.build_record(
            node_id=node_id or self.node_id,
            epoch=1,
            incarnation=0,
            addresses=("10.0.0.1:1",),
            valid_until=ms(at(hours=20)) if valid_until is None else valid_until,
            chain=self.chain if chain is None else chain,
            **signed,
        )


def speaker(name="a", *, pki=PKI, **options):
    return Speaker(pki.node(name, **options), NodeId(f"spiffe://test/node/{name}"))


def credentials(*anchors, name="me", **options):
    """Our own, from the first anchor's CA."""
    anchors = anchors or (PKI,)
    own = anchors[0].node(name, **options)
    ca = b"".join(each.ca_pem for each in anchors)
    return QuicConfig.from_pem(cert=own.cert_pem, key=own.key_pem, ca=ca).credentials


OWN = credentials()


class Ring(KeyRing):
    """A ring whose wall clock and revocations a test sets."""

    def __init__(self, own=OWN, *known, retention_s=RETENTION_S, anchors=None):
        self.wall = NOW_MS
        self.revoked = set()
        self.asked = []
        super().__init__(
            own if anchors is None else attrs.evolve(own, anchors=anchors),
            wall_ms=lambda: self.wall,
            retention_s=retention_s,
            is_revoked=self._judge,
        )
        for each in known:
            assert self.offer(each.chain, 0.0)

    def _judge(self, path, node_id):
        self.asked.append((tuple(path), node_id))
        return any(each.serial_number in self.revoked for each in path)

    def revoke(self, cert):
        self.revoked.add(cert.cert.serial_number)
        self.judge_again()


def verdicts(ring, one, signed_at=None):
    """Of a bundle, a record, a fact and an accusation that `one` signed then."""
    return [
        ring.check_bundle(one.bundle(signed_at), 0.0),
        ring.check_record(one.record(signed_at), 0.0),
        ring.check_fact(one.fact(signed_at), 0.0),
        ring.check_fact(one.fact(signed_at, state=MemberState.SUSPECT), 0.0),
    ]


def names_of(ring, *speakers):
    return [each.key_id in keys_of(ring) for each in speakers]


def keys_of(ring):
    return set(ring._keys)


# --- what is good -------------------------------------------------------------------------------


@pytest.mark.parametrize("key_type", ["p256", "p384", "ed25519", "rsa"])
def test_what_a_member_signed_is_good_with_every_kind_of_key(key_type):
    one = speaker(key_type=key_type)
    assert verdicts(Ring(OWN, one), one) == [GOOD] * 4


def test_what_we_signed_ourselves_is_good_without_asking_anybody():
    own = Speaker(None, ME)
    own.cert = attrs.make_class("Cert", ["key", "der", "chain_der"])(
        OWN.key, OWN.leaf_der, OWN.chain_der
    )
    assert verdicts(Ring(), own) == [GOOD] * 4


def test_a_certificate_below_an_intermediate_is_good():
    one = speaker(issuer=PKI.authority("between"))
    assert len(one.chain) == 2
    assert verdicts(Ring(OWN, one), one) == [GOOD] * 4


def test_a_key_that_is_not_known_is_said_to_be_unknown_until_it_is_learnt():
    one, ring = speaker(), Ring()
    assert ring.check_bundle(one.bundle(), 0.0) is Verdict.UNKNOWN_KEY
    assert ring.check_fact(one.fact(), 0.0) is Verdict.UNKNOWN_KEY
    assert ring.chain(one.key_id) is None
    assert ring.offer(one.chain, 0.0)
    assert ring.chain(one.key_id) == one.chain
    assert ring.check_bundle(one.bundle(), 0.0) is GOOD
    assert ring.check_fact(one.fact(), 0.0) is GOOD


def test_a_record_brings_its_own_certificate():
    one, ring = speaker(), Ring()
    assert ring.check_record(one.record(), 0.0) is GOOD
    assert ring.check_bundle(one.bundle(), 0.0) is GOOD


# --- who speaks ---------------------------------------------------------------------------------


def test_nobody_speaks_for_another():
    one = speaker()
    ring = Ring(OWN, one, speaker("b"))
    assert ring.check_bundle(one.bundle(origin=B), 0.0) is Verdict.UNTRUSTED
    assert ring.check_fact(one.fact(signer=B), 0.0) is Verdict.UNTRUSTED
    accusation = one.fact(signer=B, state=MemberState.SUSPECT)
    assert ring.check_fact(accusation, 0.0) is Verdict.UNTRUSTED
    assert ring.check_record(one.record(node_id=B), 0.0) is Verdict.UNTRUSTED
    assert ring.counters.keys_signatures_checked == 0


def test_a_name_that_another_key_stands_behind_is_a_bad_signature_and_a_strike():
    one, other = speaker(), speaker()
    ring = Ring(OWN, one)
    forged = other.bundle()
    forged = wire.parse_bundle(forged.raw.replace(other.key_id, one.key_id))
    assert ring.check_bundle(forged, 0.0) is Verdict.BAD_SIGNATURE
    assert Verdict.BAD_SIGNATURE.is_strike


def test_only_a_bad_signature_is_a_strike():
    assert [each for each in Verdict if each.is_strike] == [Verdict.BAD_SIGNATURE]


def test_an_altered_body_is_a_bad_signature():
    one = speaker()
    raw = bytearray(one.bundle().raw)
    raw[-1] ^= 1
    bundle = wire.parse_bundle(bytes(raw))
    assert Ring(OWN, one).check_bundle(bundle, 0.0) is Verdict.BAD_SIGNATURE


def test_one_kind_of_statement_is_not_taken_for_another():
    one = speaker()
    ring = Ring(OWN, one)
    bad = Verdict.BAD_SIGNATURE
    suspect = MemberState.SUSPECT
    for kind in Kind:
        assert (ring.check_bundle(one.bundle(kind=kind), 0.0) is bad) == (kind != Kind.BUNDLE)
        assert (ring.check_fact(one.fact(kind=kind), 0.0) is bad) == (kind != Kind.FACT)
        accusation = one.fact(kind=kind, state=suspect)
        assert (ring.check_fact(accusation, 0.0) is bad) == (kind != Kind.ACCUSATION)


def test_what_was_signed_for_another_cluster_is_refused():
    one = speaker()
    one.cluster = "another"
    assert verdicts(Ring(OWN, one), one) == [Verdict.BAD_SIGNATURE] * 4


def test_an_identity_of_another_trust_domain_is_not_learnt():
    one = Speaker(PKI.node("a", uris=["spiffe://other/node/a"]), NodeId("spiffe://other/node/a"))
    ring = Ring()
    assert not ring.offer(one.chain, 0.0)
    assert ring.check_record(one.record(), 0.0) is Verdict.UNTRUSTED


def test_what_is_not_signed_says_so_and_costs_nothing():
    one, ring = speaker(), Ring()
    bare = {"algorithm": SignatureAlgorithm.NONE, "key_id": b"", "signed_at": 0}
    record = one.record(**bare)
    bundle = wire.build_bundle(origin=member_key(A), epoch=1, first=1, messages=[("", b"x")])
    fact = wire.build_fact(
        subject=member_key(A),
        epoch=1,
        incarnation=0,
        state=MemberState.ALIVE,
        signer=member_key(A),
    )
    assert ring.check_record(record, 0.0) is Verdict.UNSIGNED
    assert ring.check_bundle(bundle, 0.0) is Verdict.UNSIGNED
    assert ring.check_fact(fact, 0.0) is Verdict.UNSIGNED
    assert ring.counters.keys_chains_checked == 0


def test_the_algorithm_that_is_stated_must_fit_the_key():
    one = speaker()
    ring = Ring(OWN, one)
    for algorithm in SignatureAlgorithm:
        bundle = one.bundle()
        bundle = attrs.evolve(bundle, algorithm=algorithm)
        verdict = ring.check_bundle(bundle, 0.0)
        if algorithm is SignatureAlgorithm.NONE:
            assert verdict is Verdict.UNSIGNED
        elif algorithm is SignatureAlgorithm.ECDSA_P256_SHA256:
            assert verdict is GOOD
        else:
            assert verdict is Verdict.BAD_SIGNATURE


# --- records ------------------------------------------------------------------------------------


def test_a_records_chain_must_begin_with_the_key_that_it_names():
    one, other, ring = speaker(), speaker(), Ring()
    for record in (
        one.record(chain=()),
        one.record(chain=other.chain),
        one.record(chain=(other.cert.der, one.cert.der)),
        one.record(key_id=other.key_id),
        one.record(key_id=b""),
    ):
        assert ring.check_record(record, 0.0) is Verdict.UNTRUSTED
    assert len(ring) == 1


def test_a_record_past_its_valid_until_is_too_old():
    one, ring = speaker(), Ring()
    assert ring.check_record(one.record(valid_until=NOW_MS), 0.0) is GOOD
    assert ring.check_record(one.record(valid_until=NOW_MS - 1), 0.0) is Verdict.TOO_OLD


def test_a_record_that_claims_a_longer_life_gets_no_more_than_a_day_from_its_signature():
    one = speaker(not_before=at(hours=-50), not_after=at(hours=50))
    ring = Ring(OWN, one)
    forever = (1 << 48) - 1
    oldest = NOW_MS - LIFE_MS - AHEAD_MS
    assert ring.check_record(one.record(oldest, valid_until=forever), 0.0) is GOOD
    late = one.record(oldest - 1, valid_until=forever)
    assert ring.check_record(late, 0.0) is Verdict.TOO_OLD


def test_our_own_records_live_no_longer_than_others_believe_them():
    assert driver.RECORD_VALID_MS <= LIFE_MS


def test_a_fact_counts_for_a_day_after_its_signature():
    one = speaker(not_before=at(hours=-50), not_after=at(hours=50))
    ring = Ring(OWN, one)
    oldest = NOW_MS - LIFE_MS - AHEAD_MS
    for state in (MemberState.ALIVE, MemberState.LEFT, MemberState.SUSPECT):
        assert ring.check_fact(one.fact(oldest, state=state), 0.0) is GOOD
        late = one.fact(oldest - 1, state=state)
        assert ring.check_fact(late, 0.0) is Verdict.TOO_OLD


# --- dates --------------------------------------------------------------------------------------


def test_nothing_may_be_signed_more_than_a_minute_ahead_of_us():
    one = speaker()
    ring = Ring(OWN, one)
    assert verdicts(ring, one, NOW_MS + AHEAD_MS) == [GOOD] * 4
    assert verdicts(ring, one, NOW_MS + AHEAD_MS + 1) == [Verdict.TOO_NEW] * 4


def test_a_bundle_may_not_be_older_than_the_retention_window_and_a_minute():
    one = speaker()
    ring = Ring(OWN, one)
    oldest = NOW_MS - int(RETENTION_S * 1000) - AHEAD_MS
    assert ring.check_bundle(one.bundle(oldest), 0.0) is GOOD
    assert ring.check_bundle(one.bundle(oldest - 1), 0.0) is Verdict.TOO_OLD
    assert ring.check_bundle(one.bundle(0), 0.0) is Verdict.TOO_OLD


def test_what_is_too_old_or_too_new_is_refused_before_its_key_is_asked_for():
    one, ring = speaker(), Ring()
    assert ring.check_bundle(one.bundle(NOW_MS - HOUR_MS), 0.0) is Verdict.TOO_OLD
    assert ring.check_bundle(one.bundle(NOW_MS + HOUR_MS), 0.0) is Verdict.TOO_NEW


def test_what_was_signed_outside_of_the_certificates_dates_is_refused():
    one = speaker(not_before=at(hours=-2), not_after=at(hours=-1))
    ring = Ring(OWN, one, retention_s=86_400.0)
    first, last = ms(at(hours=-2)), ms(at(hours=-1))
    for signed_at, verdict in (
        (first - AHEAD_MS - 1, Verdict.OUT_OF_DATES),
        (first - AHEAD_MS, GOOD),  # the CA's clock may be ahead of the node's
        (first, GOOD),
        (last, GOOD),
        (last + 999, GOOD),  # a certificate's last second is its own
        (last + 1000, Verdict.OUT_OF_DATES),
        (NOW_MS, Verdict.OUT_OF_DATES),
    ):
        assert verdicts(ring, one, signed_at) == [verdict] * 4, signed_at


def test_a_certificate_that_has_expired_still_verifies_what_it_signed_while_it_was_valid():
    one = speaker(not_after=at(seconds=10))
    ring = Ring(OWN, one)
    things = one.bundle(), one.record(), one.fact()
    ring.wall += 40_000
    assert ring.check_bundle(things[0], 0.0) is GOOD
    assert ring.check_record(things[1], 0.0) is GOOD
    assert ring.check_fact(things[2], 0.0) is GOOD
    assert ring.check_bundle(one.bundle(ring.wall), 0.0) is Verdict.OUT_OF_DATES


def test_a_certificate_that_has_expired_can_still_be_learnt():
    one, ring = speaker(not_after=at(seconds=10)), Ring()
    bundle = one.bundle()
    ring.wall += 40_000
    assert ring.offer(one.chain, 0.0)
    assert ring.check_bundle(bundle, 0.0) is GOOD


def test_a_chain_is_judged_when_it_signed_and_not_by_a_ca_that_has_expired_since():
    old = Pki("test", not_before=at(hours=-9), not_after=at(seconds=10))
    one = speaker(pki=old)
    assert one.cert.cert.not_valid_after_utc > old.ca.cert.not_valid_after_utc
    for learnt_before in (True, False):
        ring = Ring(anchors=(PKI.ca.cert, old.ca.cert))
        if learnt_before:
            assert ring.offer(one.chain, 0.0)
        ring.wall = NOW_MS + 40_000
        assert ring.offer(one.chain, 0.0)
        assert ring.check_bundle(one.bundle(NOW_MS), 0.0) is GOOD
        assert ring.check_bundle(one.bundle(NOW_MS + 20_000), 0.0) is Verdict.UNTRUSTED
        assert ring.check_bundle(one.bundle(NOW_MS), 0.0) is GOOD


def test_who_stole_an_expired_key_can_use_it_for_a_day_at_most():
    one = speaker(not_before=at(hours=-30), not_after=at(hours=-26))
    ring = Ring(OWN, one)
    for signed_at in (ms(at(hours=-30)), ms(at(hours=-26)), NOW_MS - LIFE_MS, NOW_MS):
        forged = (
            ring.check_record(one.record(signed_at, valid_until=(1 << 48) - 1), 0.0),
            ring.check_fact(one.fact(signed_at, state=MemberState.LEFT), 0.0),
            ring.check_bundle(one.bundle(signed_at), 0.0),
        )
        assert set(forged) <= {Verdict.TOO_OLD, Verdict.OUT_OF_DATES}


# --- revocation ---------------------------------------------------------------------------------


def test_revocation_does_not_look_at_the_date_that_a_statement_carries():
    one = speaker(not_before=at(hours=-9))
    ring = Ring(OWN, one, retention_s=86_400.0)
    dates = (NOW_MS, NOW_MS - HOUR_MS, ms(at(hours=-9)), NOW_MS + AHEAD_MS)
    for signed_at in dates:
        assert verdicts(ring, one, signed_at) == [GOOD] * 4
    ring.revoke(one.cert)
    for signed_at in dates:
        assert verdicts(ring, one, signed_at) == [Verdict.REVOKED] * 4


def test_what_is_revoked_when_it_comes_is_known_to_be_so():
    one, ring = speaker(), Ring()
    ring.revoke(one.cert)
    assert ring.check_record(one.record(), 0.0) is Verdict.REVOKED
    assert ring.check_bundle(one.bundle(), 0.0) is Verdict.REVOKED
    assert ring.counters.keys_signatures_checked == 0


def test_a_revoked_intermediate_takes_all_below_it():
    inter = PKI.authority("between")
    below, beside = speaker("a", issuer=inter), speaker("b")
    ring = Ring(OWN, below, beside)
    ring.revoke(inter)
    assert verdicts(ring, below) == [Verdict.REVOKED] * 4
    assert verdicts(ring, beside) == [GOOD] * 4


def test_a_revoked_certificate_that_is_merely_sent_along_says_nothing_of_the_leaf():
    decoy = PKI.authority("decoy")
    one, ring = speaker(), Ring()
    ring.revoke(decoy)
    assert ring.offer((one.cert.der, decoy.der), 0.0)
    assert ring.check_bundle(one.bundle(), 0.0) is GOOD


def test_a_leaf_that_came_with_a_revoked_issuer_is_learnt_with_another_one():
    key = make_key("p256")
    old, new = (PKI.authority("between", key=key) for _ in range(2))
    one, ring = speaker(issuer=new), Ring()
    ring.revoke(old)
    assert ring.offer((one.cert.der, old.der), 0.0)
    assert ring.check_bundle(one.bundle(), 0.0) is Verdict.REVOKED
    assert ring.offer(one.chain, 0.0)
    assert ring.check_bundle(one.bundle(), 0.0) is GOOD
    assert ring.offer((one.cert.der, old.der), 0.0)
    assert ring.check_bundle(one.bundle(), 0.0) is GOOD


def test_revocation_is_asked_once_per_path_and_again_when_it_changed():
    one = speaker()
    ring = Ring(OWN, one)
    for _ in range(3):
        assert ring.check_bundle(one.bundle(), 0.0) is GOOD
    assert ring.asked == [((one.cert.cert, PKI.ca.cert), A)]
    ring.revoke(one.cert)
    assert ring.check_bundle(one.bundle(), 0.0) is Verdict.REVOKED
    ring.revoked.clear()
    assert ring.check_bundle(one.bundle(), 0.0) is Verdict.REVOKED
    ring.judge_again()
    assert ring.check_bundle(one.bundle(), 0.0) is GOOD
    assert len(ring.asked) == 3


def test_without_revocations_nothing_is_revoked():
    one = speaker()
    ring = KeyRing(OWN, wall_ms=lambda: NOW_MS, retention_s=60.0)
    assert ring.offer(one.chain, 0.0)
    assert verdicts(ring, one) == [GOOD] * 4


# --- anchors ------------------------------------------------------------------------------------


def test_a_new_ca_is_believed_from_the_moment_it_is_an_anchor_and_the_old_one_until_it_is_none():
    new = Pki("test", common_name="new CA")
    old_one, new_one = speaker("a"), speaker("b", pki=new)
    ring = Ring(OWN, old_one)
    assert not ring.offer(new_one.chain, 0.0)

    ring.use(credentials(PKI, new))
    assert ring.offer(new_one.chain, 0.0)
    assert verdicts(ring, old_one) == [GOOD] * 4
    assert verdicts(ring, new_one) == [GOOD] * 4

    ring.use(credentials(new))
    assert verdicts(ring, old_one) == [Verdict.UNTRUSTED] * 4
    assert verdicts(ring, new_one) == [GOOD] * 4

    ring.use(credentials(new, PKI))
    assert verdicts(ring, old_one) == [GOOD] * 4


def test_a_certificate_that_others_can_follow_to_their_anchor_is_kept_though_we_need_it_not():
    new = Pki("test", common_name="new CA")
    cross = PKI.authority("new CA", key=new.ca.key)
    one = speaker(pki=new)
    chain = (one.cert.der, cross.der)
    ring = Ring(credentials(PKI, new))
    assert ring.offer(chain, 0.0)
    assert ring.chain(one.key_id) == chain
    other = Ring()
    assert other.offer(ring.chain(one.key_id), 0.0)
    assert other.check_bundle(one.bundle(), 0.0) is GOOD


def test_a_leaf_that_is_known_with_a_chain_that_leads_nowhere_now_is_learnt_with_a_better_one():
    new = Pki("test", common_name="new CA")
    inter_key = make_key("p256")
    below_old = PKI.authority("between", key=inter_key)
    below_new = new.authority("between", key=inter_key)
    one = speaker(issuer=below_old)
    ring = Ring(OWN, one)
    ring.use(credentials(new))
    assert ring.check_bundle(one.bundle(), 0.0) is Verdict.UNTRUSTED
    assert ring.check_record(one.record(chain=(one.cert.der, below_new.der)), 0.0) is GOOD
    assert ring.check_bundle(one.bundle(), 0.0) is GOOD
    # And nothing worse takes its place.
    assert ring.offer((one.cert.der, below_old.der), 0.0)
    assert ring.offer((one.cert.der,), 0.0)
    assert ring.check_bundle(one.bundle(), 0.0) is GOOD


# --- what it costs ------------------------------------------------------------------------------


def test_a_chain_is_verified_once_and_a_signature_once_per_call():
    one = speaker(issuer=PKI.authority("between"))
    ring = Ring(OWN, one)
    for number in range(5):
        for _ in range(2):
            assert ring.check_bundle(one.bundle(NOW_MS - number), 0.0) is GOOD
    assert ring.check_record(one.record(), 0.0) is GOOD
    assert ring.offer(one.chain, 0.0)
    assert ring.counters.keys_chains_checked == 1
    assert ring.counters.keys_signatures_checked == 11


def test_a_chain_that_leads_nowhere_is_verified_once_as_well():
    one = speaker()
    ring = Ring(OWN, one)
    ring.use(credentials(Pki("test")))
    checked = ring.counters.keys_chains_checked
    for _ in range(5):
        assert ring.check_bundle(one.bundle(), 0.0) is Verdict.UNTRUSTED
    assert ring.counters.keys_chains_checked == checked + 1
    assert ring.counters.keys_signatures_checked == 0


def test_a_chain_is_verified_once_for_each_span_in_which_its_dates_do_not_change():
    old = Pki("test", not_before=at(hours=-9), not_after=at(hours=-2))
    one = speaker(pki=old, not_before=at(hours=-8))
    ring = Ring(credentials(), one, retention_s=86_400.0, anchors=(PKI.ca.cert, old.ca.cert))
    checked = ring.counters.keys_chains_checked
    for _ in range(3):
        assert ring.check_bundle(one.bundle(ms(at(hours=-3))), 0.0) is GOOD
        assert ring.check_bundle(one.bundle(ms(at(hours=-7))), 0.0) is GOOD
        assert ring.check_bundle(one.bundle(ms(at(hours=-1.5))), 0.0) is Verdict.UNTRUSTED
    # Until two hours ago, and since: both were judged when the certificate was learnt.
    assert ring.counters.keys_chains_checked == checked == 2


def test_every_verdict_is_counted_under_its_name():
    one = speaker()
    ring = Ring(OWN, one)
    ring.check_bundle(one.bundle(), 0.0)
    ring.check_bundle(one.bundle(origin=B), 0.0)
    ring.check_fact(one.fact(NOW_MS + HOUR_MS), 0.0)
    ring.check_record(one.record(chain=()), 0.0)
    counters = attrs.asdict(ring.counters)
    assert counters["keys_good"] == counters["keys_too_new"] == 1
    assert counters["keys_untrusted"] == 2
    # What the policy does not allow is the gate's to say.
    verdicts = set(Verdict) - {Verdict.NOT_ALLOWED}
    assert {f"keys_{each.name.lower()}" for each in verdicts} <= set(counters)


# --- what is kept -------------------------------------------------------------------------------


def test_a_key_is_forgotten_when_nothing_used_it_for_the_retention_window_and_a_minute():
    one, other = speaker("a"), speaker("b")
    ring = Ring(OWN, one, other)
    assert ring.check_bundle(one.bundle(), 100.0) is GOOD
    ring.expire(119.9)
    assert names_of(ring, one, other) == [True, True]
    ring.expire(120.0)
    assert names_of(ring, one, other) == [True, False]
    ring.expire(220.0)
    assert names_of(ring, one, other) == [False, False]
    assert ring.counters.keys_forgotten == 2


def test_a_forgery_does_not_keep_the_key_that_it_names():
    one = speaker()
    raw = bytearray(one.bundle().raw)
    raw[-1] ^= 1
    ring = Ring(OWN, one)
    assert ring.check_bundle(wire.parse_bundle(bytes(raw)), 100.0) is Verdict.BAD_SIGNATURE
    ring.expire(120.0)
    assert names_of(ring, one) == [False]


def test_keys_under_which_members_records_are_signed_stay():
    one, other = speaker("a"), speaker("b")
    ring = Ring(OWN, one, other)
    ring.expire(1e6, {one.key_id})
    assert names_of(ring, one, other) == [True, False]
    ring.expire(2e6)
    assert names_of(ring, one) == [False]


def test_our_own_key_stays_and_our_former_one_while_what_it_signed_travels():
    ring = Ring()
    former = key_id_of(OWN.leaf_der)
    ring.expire(1e6)
    assert ring.chain(former) == (OWN.leaf_der,)
    fresh = credentials()
    ring.use(fresh)
    ring.expire(1e6 + 30)
    ring.expire(1e6 + 149)
    assert ring.chain(former) == (OWN.leaf_der,)
    ring.expire(1e6 + 150)
    assert ring.chain(former) is None
    assert ring.chain(key_id_of(fresh.leaf_der)) == (fresh.leaf_der,)


def test_the_same_certificate_under_new_anchors_stays_ours():
    ring = Ring()
    ring.use(attrs.evolve(OWN, anchors=(*OWN.anchors, Pki("test").ca.cert)))
    ring.expire(1e6)
    ring.expire(2e6)
    assert ring.chain(key_id_of(OWN.leaf_der)) == (OWN.leaf_der,)
    assert len(ring) == 1


def test_the_key_that_was_used_longest_ago_makes_room_when_the_ring_is_full(monkeypatch):
    monkeypatch.setattr(keyring, "KEYS_MAX", 4)
    one, two, three, four, five = (speaker(name) for name in "abcde")
    ring = Ring(OWN, one, two, three)
    ring.expire(1.0, {two.key_id})
    assert ring.check_bundle(one.bundle(), 1.0) is GOOD
    assert ring.offer(four.chain, 2.0)
    # The kept one and our own stay, though both were used before the third.
    assert keys_of(ring) == {key_id_of(OWN.leaf_der), one.key_id, two.key_id, four.key_id}
    assert ring.offer(five.chain, 3.0)
    assert names_of(ring, one, two, three, four, five) == [False, True, False, True, True]
    assert len(ring) == 4


def test_one_member_cannot_push_out_the_keys_of_others():
    honest = speaker("b")
    ring = Ring(OWN, honest)
    many = [speaker("a", key=make_key("p256")) for _ in range(KEYS_PER_MEMBER_MAX + 3)]
    for number, each in enumerate(many):
        assert ring.offer(each.chain, float(number))
    assert len(ring) == 2 + KEYS_PER_MEMBER_MAX
    assert names_of(ring, honest, many[2], many[3]) == [True, False, True]
    assert verdicts(ring, many[-1]) == [GOOD] * 4


def test_a_ring_that_many_keys_passed_through_holds_on_to_none_of_them():
    ring = Ring()
    for number in range(20):
        assert ring.offer(speaker(f"n{number}").chain, float(number))
    ring.expire(1e6)
    assert len(ring) == 1
    assert list(ring._of_member) == [member_key(ME)]


# --- chains from peers --------------------------------------------------------------------------


def test_certificates_that_lead_nowhere_are_neither_kept_nor_passed_on():
    padding = [Pki("test").authority("padding") for _ in range(2)]
    own_root = PKI.ca
    one, ring = speaker(), Ring()
    sent = (one.cert.der, padding[0].der, own_root.der, padding[1].der)
    assert ring.offer(sent, 0.0)
    assert ring.chain(one.key_id) == one.chain


def test_an_issuer_in_name_alone_is_not_kept():
    inter = PKI.authority("between")
    fake = Pki("test").authority("between", issuer_name=f"{PKI.trust_domain} CA")
    one, ring = speaker(issuer=inter), Ring()
    assert ring.offer((one.cert.der, fake.der, inter.der), 0.0)
    assert ring.chain(one.key_id) == one.chain


STRANGER = Pki("test")
GARBAGE = {
    "nothing": lambda: (),
    "an empty certificate": lambda: (b"",),
    "bytes": lambda: (b"\x30\x82\x01\x00" + bytes(256),),
    "another CA": lambda: speaker(pki=STRANGER).chain,
    "self-signed": lambda: speaker(issuer="self").chain,
    "an issuer by name alone": lambda: speaker(pki=Pki("test"), issuer_name="test CA").chain,
    "a missing intermediate": lambda: speaker(issuer=PKI.authority("x")).chain[:1],
    "junk for an intermediate": lambda: (*speaker().chain, b"junk"),
    "too many": lambda: speaker().chain * 5,
    "too long": lambda: (*speaker().chain, bytes(16_384)),
    "a CA": lambda: (PKI.ca.der,),
    "an intermediate": lambda: (PKI.authority("y").der,),
    "a leaf that signs leaves": lambda: speaker(issuer=PKI.node("leaf")).chain,
    "no identity": lambda: speaker(uris=()).chain,
    "two identities": lambda: speaker(uris=[A, B]).chain,
    "an identity that is none": lambda: speaker(uris=["https://test/node/a"]).chain,
    "server only": lambda: speaker(eku=(SERVER,)).chain,
    "client only": lambda: speaker(eku=(CLIENT,)).chain,
    "no usages": lambda: speaker(eku=None).chain,
    "a wrong key usage": lambda: speaker(key_usage=("key_agreement",)).chain,
    "a short RSA key": lambda: speaker(key_type="rsa1024").chain,
    "a dear RSA key": lambda: speaker(key_type="rsa-exponent").chain,
    "a curve of coins": lambda: speaker(key_type="secp256k1").chain,
    "Ed448": lambda: speaker(key_type="ed448").chain,
    "a dear issuer": lambda: speaker(issuer=PKI.authority("z", key_type="rsa-exponent")).chain,
    "three issuers": lambda: (
        speaker(
            issuer=PKI.authority("3", issuer=PKI.authority("2", issuer=PKI.authority("1")))
        ).chain
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_chain_that_a_peers_handshake_would_be_refused_for_is_not_learnt(name):
    ring = Ring()
    chain = GARBAGE[name]()
    assert not ring.offer(chain, 0.0)
    assert len(ring) == 1
    if chain:
        assert ring.chain(key_id_of(chain[0])) is None


@pytest.mark.parametrize("year", [b"0000", b"0001", b"1949", b"1970", b"9999"])
@pytest.mark.parametrize("where", ["leaf", "issuer"])
def test_dates_at_the_ends_of_the_calendar_raise_nothing(year, where):
    then = utc().replace(year=2060)
    dates = {"not_before": then, "not_after": then.replace(year=2061)}
    inter = STRANGER.authority("between", **(dates if where == "issuer" else {}))
    one = speaker(pki=STRANGER, issuer=inter, **(dates if where == "leaf" else {}))
    for swaps in ((b"2060", b"2061"), (b"2060",), (b"2061",)):
        chain = one.chain
        for old in swaps:
            chain = tuple(each.replace(old, year) for each in chain)
        assert not Ring(anchors=(PKI.ca.cert, STRANGER.ca.cert)).offer(chain, 0.0)


def test_no_damaged_certificate_is_learnt_and_none_makes_the_ring_raise():
    rng = random.Random(11)
    one, ring = speaker(issuer=PKI.authority("between")), Ring()
    for _ in range(400):
        chain = [bytearray(each) for each in one.chain]
        hit = rng.randrange(2)
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(len(chain[hit]))
            match rng.randrange(3):
                case 0:
                    chain[hit][place] ^= 1 << rng.randrange(8)
                case 1:
                    del chain[hit][place : place + rng.choice((1, 2, 30))]
                case _:
                    chain[hit][place:place] = rng.randbytes(rng.choice((1, 4)))
        if tuple(map(bytes, chain)) != one.chain:
            assert not ring.offer([bytes(each) for each in chain], 0.0)
    assert len(ring) == 1
    assert ring.offer(one.chain, 0.0)


def test_a_fact_cannot_be_given_the_name_of_a_certificate_that_was_refused():
    one, ring = speaker(pki=STRANGER), Ring()
    assert not ring.offer(one.chain, 0.0)
    assert ring.check_fact(one.fact(), 0.0) is Verdict.UNKNOWN_KEY
    assert ring.check_record(one.record(), 0.0) is Verdict.UNTRUSTED


def test_an_intermediate_may_be_our_anchor_and_travels_for_those_who_trust_its_issuer():
    inter = PKI.authority("between")
    one = speaker(issuer=inter)
    own = PKI.node("me", issuer=inter)
    ring = Ring(
        QuicConfig.from_pem(cert=own.cert_pem, key=own.key_pem, ca=inter.leaf_pem).credentials
    )
    assert ring.offer(one.chain, 0.0)
    assert ring.chain(one.key_id) == one.chain
