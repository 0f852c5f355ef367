"""A member list that cores share: whoever starts with one is as if it had met everybody."""

import copy

import attrs
import pytest

from plumtree_quic import PlumtreeConfig
from plumtree_quic.ids import member_key
from plumtree_quic.messages import MemberState
from plumtree_quic.proto.directory import Directory
from plumtree_quic.proto.members import Members
from plumtree_quic.proto.overlay import Overlay
from tests.rigs.membership import node_id, record

WALL_MS = 1_700_000_000_000
NAMES = [f"n{number:02}" for number in range(40)]


@pytest.fixture
def records():
    return [record(name) for name in NAMES]


def met(records):
    """The table of n00, having met everybody one after the other."""
    table = Members(records[0], lambda: WALL_MS)
    for each in records[1:]:
        row = table.enter(each)
        row.told = MemberState.ALIVE
    return table


def shared(records):
    return Members(records[0], lambda: WALL_MS, Directory(records))


def test_a_table_with_a_directory_equals_one_that_met_everybody(records):
    ours, theirs = shared(records), met(records)
    assert len(ours) == len(theirs) == len(NAMES)
    assert ours.alive_count() == theirs.alive_count() == len(NAMES)
    assert ours.bucket_hashes() == theirs.bucket_hashes()
    assert ours.members() == theirs.members()
    assert [ours.rows(bucket) for bucket in range(256)] == [
        theirs.rows(bucket) for bucket in range(256)
    ]


def test_what_one_core_learns_changes_no_other(records):
    directory = Directory(records)
    one = Members(records[0], lambda: WALL_MS, directory)
    other = Members(records[1], lambda: WALL_MS, directory)
    before = other.bucket_hashes()
    key = member_key(node_id("n07"))
    one.become(one.get(key), MemberState.DEAD)
    assert one.state_of(key) is MemberState.DEAD
    assert (one.alive_count(), other.alive_count()) == (39, 40)
    assert other.state_of(key) is MemberState.ALIVE
    assert other.bucket_hashes() == before != one.bucket_hashes()
    one.forget(key)
    assert one.get(key) is None
    assert one.node_id_of(key) is None
    assert key not in {row.key for row in one}
    assert other.node_id_of(key) == node_id("n07")


def test_who_was_forgotten_may_come_back(records):
    table = shared(records)
    key = member_key(node_id("n07"))
    table.become(table.get(key), MemberState.LEFT)
    table.forget(key)
    assert len(table) == 39
    table.enter(records[7])
    assert len(table) == 40
    assert [row.key for row in table].count(key) == 1
    assert sum(row.key == key for row in table.rows(key[0])) == 1


def test_an_overlay_with_a_directory_wants_what_one_that_met_everybody_wants(records):
    config = PlumtreeConfig.lan()
    directory = Directory(records)
    ours = Overlay(node_id("n00"), config, directory)
    ours.start(0.0)
    theirs = Overlay(node_id("n00"), config)
    for each in records:
        theirs.member_alive(each.node_id, each.addresses, 0.0)
    for each in records:
        # It met them one by one, and lets go of what it wanted meanwhile.
        theirs.link_up(each.node_id, 0.0)
    wanted = [name for name in NAMES if ours.wants(node_id(name))]
    assert 10 <= len(wanted) <= 12
    assert set(wanted) == {each.name for each in theirs._desired}


def test_an_overlay_that_changes_leaves_the_directory_alone(records):
    config = PlumtreeConfig.lan()
    directory = Directory(records)
    before = copy.deepcopy((directory.holders(5), directory.addresses, directory.zones))
    overlay = Overlay(node_id("n00"), config, directory)
    overlay.start(0.0)
    overlay.member_gone(node_id("n03"), 1.0)
    overlay.member_alive(node_id("new"), ("new:1",), 2.0, zone="elsewhere")
    overlay.member_alive(node_id("n05"), ("n05:1",), 3.0, zone="elsewhere")
    assert (directory.holders(5), directory.addresses, directory.zones) == before
    assert not overlay.wants(node_id("n03"))


def test_an_overlay_knows_the_zones_of_a_directory(records):
    zoned = [attrs.evolve(each, zone=f"z{number % 3}") for number, each in enumerate(records)]
    config = PlumtreeConfig.lan(zone="z0")
    ours = Overlay(node_id("n00"), config, Directory(zoned))
    ours.start(0.0)
    theirs = Overlay(node_id("n00"), config)
    for each in zoned:
        theirs.member_alive(each.node_id, each.addresses, 0.0, zone=each.zone)
    assert ours.zone_members() == theirs.zone_members() == 14
    assert set(ours._desired) == set(theirs._desired)
    for watcher in NAMES:
        for watched in NAMES:
            pair = node_id(watcher), node_id(watched)
            assert ours.is_monitor(*pair) is theirs.is_monitor(*pair)
