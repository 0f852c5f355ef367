"""The verdict of the fifty-process run (tests/rigs/fifty.py), without any process."""

import asyncio
import json
import os
import sys

import attrs
import pytest

from plumtree_quic.config import PlumtreeConfig
from tests.rigs import fifty
from tests.rigs.fifty import Failure, Plan, Published, Record, broken_rules


def whole():
    """Four nodes: d is killed at 10, a and b are parted from c from 20 to 30."""
    names = ["a", "b", "c", "d"]
    survivors = ("a", "b", "c")
    return Record(
        names=names,
        killed=["d"],
        halves=[["a", "b"], ["c"]],
        published=[
            Published("stream", "a", 1, 3, tuple(names)),
            Published("apart", "a", 4, 5, ("a", "b")),
            Published("together", "a", 6, 6, survivors),
        ],
        received={"a": {}, "b": {"a": {1, 2, 3, 4, 5, 6}}, "c": {"a": {1, 2, 3, 6}}},
        duplicates=dict.fromkeys(survivors, 0),
        foreign=dict.fromkeys(survivors, 0),
        failures=[
            Failure("a", "d", 15.0),
            Failure("c", "d", 16.0),
            Failure("a", "c", 25.0),
            Failure("c", "b", 26.0),
        ],
        killed_at=10.0,
        parted_at=20.0,
        healed_at=30.0,
        blame={name: dict.fromkeys(fifty.BLAME, 0) for name in survivors},
        links_most=3,
        links_max=3,
    )


def test_a_run_in_which_all_went_well_broke_no_rule():
    assert broken_rules(whole()) == []


BROKEN = {
    "a_missing_message": (
        lambda record: record.received["b"]["a"].discard(2),
        "b lacks 1 messages of a: 2",
    ),
    "one_of_the_time_apart_missing_in_its_own_half": (
        lambda record: record.received["b"]["a"].discard(5),
        "b lacks 1 messages of a: 5",
    ),
    "a_phase_missing_at_a_node": (
        lambda record: record.received["c"].update(a={6}),
        "c lacks 3 messages of a: 1, 2, 3",
    ),
    "a_duplicate": (
        lambda record: record.duplicates.update(c=1),
        "c was given 1 messages a second time",
    ),
    "an_invented_message": (
        lambda record: record.foreign.update(c=1),
        "c was given 1 messages that nobody had published",
    ),
    "a_failure_before_the_kill": (
        lambda record: record.failures.append(Failure("a", "d", 9.0)),
        "a declared d failed, which lived and was in reach",
    ),
    "a_failure_before_the_partition": (
        lambda record: record.failures.append(Failure("a", "c", 19.0)),
        "a declared c failed, which lived and was in reach",
    ),
    "a_failure_within_a_half": (
        lambda record: record.failures.append(Failure("a", "b", 25.0)),
        "a declared b failed, which lived and was in reach",
    ),
    "a_failure_after_the_heal": (
        lambda record: record.failures.append(Failure("a", "c", 31.0)),
        "a declared c failed, which lived and was in reach",
    ),
    "blame_among_honest_nodes": (
        lambda record: record.blame["a"].update(peers_cut=1),
        "a counted 1 peers_cut among honest nodes",
    ),
    "too_many_links": (
        lambda record: setattr(record, "links_most", 4),
        "a node had 4 links at once; the most is 3",
    ),
    "what_did_not_come_about": (
        lambda record: record.unmet.append("heal: not within 300 s"),
        "heal: not within 300 s",
    ),
}


@pytest.mark.parametrize(("harm", "sentence"), BROKEN.values(), ids=BROKEN)
def test_each_broken_rule_is_told(harm, sentence):
    record = whole()
    harm(record)
    assert broken_rules(record) == [sentence]


def test_a_node_that_was_given_nothing_is_told():
    record = whole()
    record.received.pop("c")
    assert [each.partition(":")[0] for each in broken_rules(record)] == [
        "c lacks 3 messages of a",
        "c lacks 1 messages of a",
    ]


def test_what_a_killed_node_lacks_or_said_of_the_dead_breaks_no_rule():
    record = whole()
    record.killed += ["c"]
    record.received.pop("c")
    assert broken_rules(record) == []


BOTH = {"a": "ALIVE", "b": "ALIVE", "c": "DEAD"}
AGREED = {"a": BOTH, "b": BOTH}
DISAGREEING = {
    "suspected": ({"b": "SUSPECT"}, "a says: b is SUSPECT"),
    "unknown": ({"b": None}, "a says: b is unknown"),
    "the_dead_alive": ({"c": "ALIVE"}, "a says: c is ALIVE"),
    "a_stranger": ({"x": "ALIVE"}, "a says: x, whom nobody started"),
}


@pytest.mark.parametrize(("changes", "said"), DISAGREEING.values(), ids=DISAGREEING)
def test_views_agree_only_when_everybody_knows_exactly_who_lives(changes, said):
    assert fifty.disagreement(AGREED, ["a", "b"], ["c"]) is None
    view = {name: state for name, state in (BOTH | changes).items() if state}
    assert fifty.disagreement(AGREED | {"a": view}, ["a", "b"], ["c"]) == said


def test_links_are_at_rest_when_there_are_some_and_not_too_many():
    assert fifty.restless({"a": 1, "b": 3}, {"a": 3, "b": 3}) is None
    assert fifty.restless({"a": 0}, {"a": 3}) == "a has 0 links, and 3 are the most"
    assert fifty.restless({"a": 4}, {"a": 3}) == "a has 4 links, and 3 are the most"


@pytest.mark.parametrize(
    ("changes", "members", "rest", "at_once"),
    [({}, 50, 12, 36), ({}, 16, 15, 15), ({"max_peers": 9}, 50, 9, 36), ({}, 17, 12, 16)],
)
def test_the_bounds_of_links_are_those_of_the_overlay(changes, members, rest, at_once):
    config = PlumtreeConfig.lan(**changes)
    assert fifty.links_at_rest(config, members) == rest
    assert fifty.links_at_once(config, members) == at_once


@pytest.mark.parametrize("harm", [None, BROKEN["a_missing_message"][0]], ids=["well", "broken"])
def test_the_command_exits_with_1_when_a_rule_was_broken(monkeypatch, capsys, harm):
    record = whole()
    if harm is not None:
        harm(record)

    async def run(plan, say):
        assert plan == attrs.evolve(Plan(), nodes=14, kill=3, apart_s=7.0)
        return record

    monkeypatch.setattr(fifty, "run", run)
    arguments = ["fifty", "--nodes", "14", "--kill", "3", "--apart", "7", "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert fifty.main() == (0 if harm is None else 1)
    out, err = capsys.readouterr()
    assert json.loads(out)["broken_rules"] == broken_rules(record)
    assert ("no rule was broken" if harm is None else "BROKEN: b lacks 1 messages of a: 2") in err


async def test_a_condition_that_never_comes_about_ends_the_wait_and_is_told():
    plan = Plan(patience_s=0.0)
    rig = fifty._Rig(plan, None, None, whole(), print)

    async def check():
        return "not yet"

    with pytest.raises(fifty.Unmet, match="agreement: not within 0 s; not yet"):
        await asyncio.wait_for(rig.until("agreement", check), 60.0)


def test_memory_and_time_come_from_the_kernel():
    assert fifty.rss_mib(os.getpid()) > 5.0
    assert fifty.cpu_s(os.getpid()) > 0.0
