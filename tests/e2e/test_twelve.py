"""Twelve real processes, linked by rings, through kill -9 and a partition.

`scripts/soak fifty` does the same with fifty; the phases and the rules are in tests/rigs/fifty.py.
"""

import pytest

from tests.rigs.fifty import PHASES, Plan, broken_rules, run

# Two rings: six links of eleven. With fewer than four members it would be a full mesh again.
FEW_LINKS = {"eager_fanout": 2, "lazy_fanout": 2, "max_peers": 6}
PLAN = Plan(
    nodes=12,
    kill=3,
    apart_s=15.0,
    messages=200,
    rate=50.0,
    publishers=4,
    config=FEW_LINKS,
    quiet_s=0.0,
    patience_s=120.0,
    limit_s=270.0,
)


@pytest.mark.slow
async def test_twelve_processes_survive_three_kills_and_a_partition():
    record = await run(PLAN, print)
    assert broken_rules(record) == []
    assert list(record.figures["phases"]) == list(PHASES)
    assert len(record.killed) == PLAN.kill
    # Neither half could hear the other: each declared all of it failed.
    few, many = sorted(record.halves, key=len)
    apart = [each for each in record.failures if record.parted_at < each.at <= record.healed_at]
    assert {(each.by, each.of) for each in apart} >= {
        pair for one in few for other in many for pair in ((one, other), (other, one))
    }
    assert record.figures["relay"]["cut"] > 0
    assert record.figures["links"]["start"]["most"] < PLAN.nodes - 1
