"""Readers that never read, a process that stands still, in short; and the judge of the long run."""

import asyncio

import attrs
import pytest

from tests.rigs.stuck import Plan, Record, broken_rules, run


def test_who_stops_reading_costs_the_others_nothing():
    record = asyncio.run(run(Plan(minutes=0.4, buffer=1_000)))
    assert broken_rules(record) == []
    # Three readers that never read, and a buffer each: all the rest was dropped for two of them.
    assert record.dropped == 2 * (record.plan.messages - record.plan.buffer)


def good(**changes):
    looks = [50.0, *[60.0 + 10.0 * (second > 10) for second in range(60)]]
    record = Record(
        Plan(), {"a": looks, "b": list(looks)}, lacking=0, twice=0, dropped=10, latency_ms={}
    )
    return attrs.evolve(record, **changes)


def test_a_record_without_fault_breaks_no_rule():
    assert broken_rules(good()) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"rss_mb": {"a": [50.0, *[500.0] * 60]}}, "bound: a"),
        ({"rss_mb": {"a": [50.0 + second for second in range(100)]}}, "level: a"),
        ({"lacking": 1}, "all: 1 deliveries are lacking"),
        ({"twice": 1}, "all: 1 messages came twice"),
        ({"dropped": 0}, "nobody was stuck"),
    ],
)
def test_each_broken_rule_is_told(changes, rule):
    (said,) = broken_rules(good(**changes))
    assert said.startswith(rule)
