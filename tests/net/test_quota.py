"""What one authenticated peer may make us look at: throttled, then demoted, then cut."""

import pytest

from plumtree_quic.ids import NodeId
from plumtree_quic.messages import (
    LANE_OF,
    Ack,
    Announcement,
    BucketHashes,
    Chunk,
    Credit,
    Direct,
    DirectKind,
    Facts,
    Gossip,
    Hello,
    IHave,
    Ping,
    Prune,
    Repair,
)
from plumtree_quic.net import quota
from plumtree_quic.net.quota import LIMITS, Accounts, PeerQuota, Step
from tests.rigs.wire_examples import BUNDLE, KEY_A, PIECE

FACTS = Facts(())


def flood(made, message, per_s, seconds, start=0.0):
    """Send evenly; return what became of each frame, with its time."""
    count = int(per_s * seconds)
    return [
        (start + number / per_s, made.charge(message, start + number / per_s))
        for number in range(count)
    ]


def first(steps, step):
    return next((at for at, each in steps if each is step), None)


def test_every_message_that_reaches_a_core_has_a_limit():
    # Hello comes once a link, and credit is taken by the link itself.
    assert set(LIMITS) == (set(LANE_OF) | {Ping, Ack}) - {Hello, Credit}


@pytest.mark.parametrize("kind", LIMITS, ids=lambda kind: kind.__name__)
def test_a_burst_and_the_rate_are_looked_at_and_what_is_above_is_not(kind):
    rate, burst = LIMITS[kind]
    examples = {
        IHave: IHave(()),
        Gossip: Gossip(1, BUNDLE),
        Chunk: Chunk(1, PIECE),
        Repair: Repair(1, BUNDLE),
        Direct: Direct(DirectKind.MESSAGE, 1, b""),
    }
    message = examples.get(kind) or object.__new__(kind)
    made = PeerQuota()
    looked = sum(made.charge(message, 0.0) is Step.LOOK for _ in range(int(burst) + 500))
    assert looked == burst
    assert made.above == f"{kind.__name__} frames"
    looked = sum(made.charge(message, 1.0) is Step.LOOK for _ in range(int(rate) + 500))
    assert looked == min(rate, burst)


def test_one_kind_above_its_limit_takes_nothing_from_the_others():
    made = PeerQuota()
    flood(made, FACTS, 10_000, 1.0)
    assert made.charge(Prune((KEY_A,)), 1.0) is Step.LOOK


def test_who_goes_on_is_demoted_after_5_s_and_cut_after_15():
    made = PeerQuota()
    steps = flood(made, FACTS, 5_000, 20.0)
    throttled = first(steps, Step.THROTTLE)
    assert throttled is not None
    assert first(steps, Step.DEMOTE) == pytest.approx(throttled + quota.DEMOTE_AFTER_S, abs=0.01)
    assert first(steps, Step.CUT) == pytest.approx(throttled + quota.CUT_AFTER_S, abs=0.01)
    assert sum(step is Step.DEMOTE for _, step in steps) == 1


def test_a_burst_now_and_then_is_only_throttled():
    made = PeerQuota()
    steps = []
    for start in range(0, 120, 10):
        # Half of the bucket is full again each time.
        steps += flood(made, FACTS, 20_000, 0.5, start=float(start))
    assert {step for _, step in steps} == {Step.LOOK, Step.THROTTLE}


def test_announcements_are_counted_as_well_as_their_frames():
    made = PeerQuota()
    many = IHave((Announcement(KEY_A, 1, 1, 1, 0),) * 4_096)
    looked = sum(made.charge(many, 0.0) is Step.LOOK for _ in range(1_000))
    assert looked * 4_096 <= quota.ANNOUNCED_PER_S[1] + 4_096
    assert made.above == "announcements"


def test_bytes_of_bundles_and_direct_messages_are_bounded_a_second():
    made = PeerQuota()
    large = Direct(DirectKind.MESSAGE, 1, bytes(65_536))
    looked = sum(made.charge(large, 0.0) is Step.LOOK for _ in range(20_000))
    assert looked * 65_536 <= quota.BYTES_PER_S[1] + 65_536
    assert made.above == "bytes on direct"
    looked = sum(made.charge(large, 1.0) is Step.LOOK for _ in range(20_000))
    assert looked * 65_536 <= quota.BYTES_PER_S[0] + 65_536


def test_signature_checks_above_the_limit_have_to_be_earned_before_more_is_looked_at():
    made = PeerQuota()
    rate, burst = quota.SIGNATURES_PER_S
    made.note_signatures(int(burst) - 1, 0.0)
    assert made.charge(FACTS, 0.0) is Step.LOOK
    made.note_signatures(int(rate) + 1, 0.0)
    assert made.charge(FACTS, 0.0) is Step.THROTTLE
    assert made.above == "signature checks"
    # What costs no signature goes on.
    assert made.charge(BucketHashes(b""), 0.0) is Step.LOOK
    assert made.charge(FACTS, 0.9) is Step.THROTTLE
    assert made.charge(FACTS, 1.1) is Step.LOOK


def test_the_busiest_honest_traffic_that_was_measured_is_ten_times_below():
    measured = {Gossip: 600, IHave: 200, Facts: 40}
    assert all(LIMITS[kind][0] >= 10 * rate for kind, rate in measured.items())


def test_a_new_link_gives_back_nothing_that_was_used_up():
    made = PeerQuota()
    steps = flood(made, FACTS, 2_000.0, 20.0)
    assert first(steps, Step.CUT) is not None
    made.begin_link()
    # It goes on where it was, and so does what becomes of it.
    steps = flood(made, FACTS, 2_000.0, 0.1, start=20.0)
    assert first(steps, Step.CUT) is not None
    # Who has stayed below for a while is let be, and cut again when it starts again.
    made.begin_link()
    steps = flood(made, FACTS, 2_000.0, 40.0, start=60.0)
    assert first(steps, Step.THROTTLE) > 60.0 + 1.0
    assert first(steps, Step.CUT) is not None


def test_bytes_above_the_limit_on_one_lane_take_nothing_from_another():
    made = PeerQuota()
    large = Direct(DirectKind.MESSAGE, 1, bytes(65_536))
    while made.charge(large, 0.0) is Step.LOOK:
        pass
    assert made.charge(Gossip(1, BUNDLE), 0.0) is Step.LOOK
    assert made.charge(Repair(1, BUNDLE), 0.0) is Step.LOOK


# --- accounts -----------------------------------------------------------------------------------

PEER = NodeId.parse("spiffe://test/node/peer")


def test_dialling_anew_buys_no_fresh_quota():
    accounts = Accounts()
    accounts.link_up(PEER)
    before = accounts.quota(PEER)
    accounts.link_down(PEER, 1.0)
    accounts.expire(2.0)
    accounts.link_up(PEER)
    assert accounts.quota(PEER) is before


def test_strikes_outlive_a_link_and_the_third_cuts():
    accounts = Accounts()
    for now in (1.0, 2.0):
        accounts.link_up(PEER)
        assert not accounts.strike(PEER, now)
        accounts.link_down(PEER, now)
        assert accounts.may_link(PEER, now)
    accounts.link_up(PEER)
    assert accounts.strike(PEER, 3.0)
    assert not accounts.may_link(PEER, 3.0)


def test_who_was_cut_is_let_in_after_30_s_with_a_clean_account():
    accounts = Accounts()
    accounts.link_up(PEER)
    worn = accounts.quota(PEER)
    accounts.cut(PEER, 10.0)
    # What it still sends on the link that is being closed is charged as before, and no new cut.
    assert accounts.quota(PEER) is worn
    assert not accounts.strike(PEER, 10.0)
    accounts.link_down(PEER, 10.1)
    assert not accounts.may_link(PEER, 10.0 + quota.CUT_FOR_S - 0.1)
    assert accounts.may_link(PEER, 10.0 + quota.CUT_FOR_S)
    accounts.link_up(PEER)
    assert accounts.quota(PEER) is not worn
    assert [accounts.strike(PEER, 50.0) for _ in range(3)] == [False, False, True]


def test_accounts_of_who_is_gone_are_forgotten_and_no_others():
    accounts = Accounts()
    peers = [NodeId.parse(f"spiffe://test/node/p{number}") for number in range(3)]
    for peer in peers:
        accounts.link_up(peer)
    accounts.link_down(peers[0], 1.0)
    accounts.cut(peers[1], 1.0)
    accounts.link_down(peers[1], 1.0)
    accounts.expire(1.0 + quota.REMEMBERED_S)
    assert [accounts.quota(peer) is None for peer in peers] == [True, True, False]


def test_nobody_is_forgotten_while_it_may_not_link(monkeypatch):
    monkeypatch.setattr(quota, "CUT_FOR_S", 600.0)
    accounts = Accounts()
    accounts.link_up(PEER)
    accounts.cut(PEER, 1.0)
    accounts.link_down(PEER, 1.0)
    accounts.expire(1.0 + quota.REMEMBERED_S)
    assert not accounts.may_link(PEER, 1.0 + quota.REMEMBERED_S)
