"""Five real processes with stores through a minute of loss, kill -9, restarts and partitions.

`scripts/soak chaos` does the same for longer; the weather and the rules are in tests/rigs/chaos.py.
"""

import pytest

from tests.rigs.chaos import Life, Plan, broken_rules, run

PLAN = Plan(nodes=5, minutes=1.0, seed=1, patience_s=100.0)


@pytest.mark.slow
async def test_what_was_accepted_is_in_every_log_after_a_minute_of_chaos():
    record = await run(PLAN, print)
    assert broken_rules(record) == []
    figures = record.figures
    assert figures["kills"] > 0
    assert figures["partitions"] > 0
    assert figures["accepted"] > 0
    assert figures["lives"] == len(list(record.each(Life))) == PLAN.nodes + figures["kills"]
    assert figures["relay"]["lost"] > 0.1 * figures["relay"]["datagrams"]
    assert figures["relay"]["cut"] > 0
