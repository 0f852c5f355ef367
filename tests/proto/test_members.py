"""The member table: ranks, tombstones, bounds, bucket hashes."""

import pytest

from plumtree_quic.ids import member_key
from plumtree_quic.messages import MemberState
from plumtree_quic.proto import members as members_module
from plumtree_quic.proto.members import EPOCH_AHEAD_MS, INCARNATION_STEP_MAX, Members
from tests.rigs.membership import DAY_MS, WALL_MS, node_id, record


class Wall:
    def __init__(self):
        self.ms = WALL_MS

    def __call__(self):
        return self.ms


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def table(wall):
    return Members(record("me"), wall)


def enter(table, name, **fields):
    new = record(name, **fields)
    assert table.refusal(new) is None
    row = table.enter(new)
    row.told = MemberState.ALIVE
    return row


def key(name):
    return member_key(node_id(name))


def test_we_are_a_member_ourselves(table):
    assert table.alive_count() == table.known_count() == 1
    assert table.members() == [(record("me"), MemberState.ALIVE)]
    assert table.node_id_of(key("me")) == node_id("me")


def test_members_are_sorted_by_id(table):
    for name in ("c", "a", "b"):
        enter(table, name)
    assert [rec.node_id.name for rec, _ in table.members()] == ["a", "b", "c", "me"]


def test_a_member_that_nobody_was_told_of_is_not_listed(table):
    table.enter(record("a"))
    assert [rec.node_id.name for rec, _ in table.members()] == ["me"]


def test_an_expired_record_is_refused(table):
    assert table.refusal(record("a", valid_until=WALL_MS)) == "record expired"
    assert table.refusal(record("a", valid_until=WALL_MS + 1)) is None


def test_an_epoch_more_than_a_day_ahead_is_refused(table):
    ahead = WALL_MS + EPOCH_AHEAD_MS
    assert table.refusal(record("a", epoch=ahead)) is None
    assert table.refusal(record("a", epoch=ahead + 1)) == "epoch more than 24 h ahead"


def test_an_incarnation_rises_by_a_bounded_step(table):
    row = enter(table, "a", incarnation=5)
    assert table.refusal(record("a", incarnation=5 + INCARNATION_STEP_MAX)) is None
    too_far = record("a", incarnation=6 + INCARNATION_STEP_MAX)
    assert table.refusal(too_far) == "incarnation raised too far"
    table.rise(row, 1, 5 + INCARNATION_STEP_MAX)
    assert table.refusal(too_far) is None


def test_a_new_epoch_may_have_any_incarnation(table):
    enter(table, "a", incarnation=5)
    assert table.refusal(record("a", epoch=2, incarnation=10 * INCARNATION_STEP_MAX)) is None


def test_m17_a_full_table_refuses_strangers(table, monkeypatch):
    monkeypatch.setattr(members_module, "MEMBERS_MAX", 3)
    enter(table, "a")
    enter(table, "b")
    assert table.refusal(record("c")) == "table full"
    assert table.refusal(record("a", incarnation=1)) is None


def test_in_a_full_table_the_oldest_tombstone_makes_room(table, monkeypatch):
    monkeypatch.setattr(members_module, "MEMBERS_MAX", 3)
    table.become(enter(table, "a"), MemberState.DEAD)
    enter(table, "b")
    enter(table, "c")
    assert table.get(key("a")) is None
    assert table.alive_count() == 3


def test_a_tombstone_stays_until_its_record_has_expired(table, wall):
    table.become(enter(table, "a"), MemberState.LEFT)
    wall.ms += DAY_MS - 1
    assert table.expire() == 0
    assert table.state_of(key("a")) is MemberState.LEFT
    wall.ms += 1
    assert table.expire() == 1
    assert table.state_of(key("a")) is None
    assert table.refusal(record("a")) == "record expired"


def test_the_living_never_expire(table, wall):
    enter(table, "a")
    wall.ms += 10 * DAY_MS
    assert table.expire() == 0
    assert table.alive_count() == 2


def test_counts_follow_states(table):
    row = enter(table, "a")
    for state, alive, known in (
        (MemberState.SUSPECT, 2, 2),
        (MemberState.DEAD, 1, 2),
        (MemberState.ALIVE, 2, 2),
        (MemberState.LEFT, 1, 1),
    ):
        table.become(row, state)
        row.told = state
        assert (table.alive_count(), table.known_count()) == (alive, known)


def test_rank_never_falls_when_an_older_record_comes_late(table):
    row = enter(table, "a")
    table.rise(row, 1, 7)
    table.renew(row, record("a", incarnation=3, meta=b"x"))
    assert row.rank == (1, 7)
    assert row.record.meta == b"x"


def test_a_newer_rank_voids_accusations(table):
    row = enter(table, "a")
    row.accusations[key("b")] = object()
    table.rise(row, 1, 1)
    assert row.accusations == {}


def test_equal_tables_have_equal_hashes_whatever_the_order_of_arrival(wall):
    one, two = Members(record("a"), wall), Members(record("c"), wall)
    for table, names in ((one, "bc"), (two, "ba")):
        for name in names:
            enter(table, name)
    assert one.bucket_hashes() == two.bucket_hashes()
    assert len(one.bucket_hashes()) == 2_048
    assert one.differing(two.bucket_hashes()) == ()


@pytest.mark.parametrize("change", ["incarnation", "state", "stranger"])
def test_a_difference_shows_in_its_bucket_alone(wall, change):
    one, two = Members(record("me"), wall), Members(record("me"), wall)
    rows = [enter(table, "a") for table in (one, two)]
    before = one.bucket_hashes()
    if change == "incarnation":
        two.rise(rows[1], 1, 1)
    elif change == "state":
        two.become(rows[1], MemberState.SUSPECT)
    else:
        two.become(rows[1], MemberState.DEAD)
    assert one.differing(two.bucket_hashes()) == (key("a")[0],)
    assert one.bucket_hashes() == before


def test_tombstones_do_not_count_in_hashes_but_stand_in_rows(wall):
    one, two = Members(record("me"), wall), Members(record("me"), wall)
    two.become(enter(two, "gone"), MemberState.LEFT)
    assert one.bucket_hashes() == two.bucket_hashes()
    (row,) = [row for row in two.rows(key("gone")[0]) if row.key == key("gone")]
    assert (row.state, row.epoch, row.incarnation) == (MemberState.LEFT, 1, 0)


def test_own_record_is_replaced_by_a_newer_one(table):
    table.renew(table.own_row, record("me", incarnation=4))
    assert table.own.incarnation == 4
    assert table.own_row.rank == (1, 4)


def test_validity_of_our_own_record_is_told_in_seconds(table, wall):
    assert table.own_valid_s() == pytest.approx(24 * 3600)
    wall.ms += DAY_MS // 2
    assert table.own_valid_s() == pytest.approx(12 * 3600)
