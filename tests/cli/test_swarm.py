"""What ends a cluster's processes, without any process."""

import asyncio
import os
import signal
from collections import Counter

import pytest

from plumtree_quic.cli.cluster import Swarm, percentile_ms, swarm
from plumtree_quic.cli.worker import bucket_of


async def test_a_second_sigterm_does_not_cut_the_cleaning_up_short(monkeypatch):
    closed = []

    async def close(one):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        closed.append(one)

    monkeypatch.setattr(Swarm, "close", close)
    made = []

    async def terminated():
        async with swarm() as one:
            made.append(one)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)

    with pytest.raises(SystemExit) as ended:
        await terminated()
    assert ended.value.code == 128 + signal.SIGTERM
    assert closed == made
    assert not made[0].directory.exists()


def test_no_percentile_is_above_the_longest_latency():
    longest_s = 0.2054  # its bucket's middle is 0.2055
    latencies = Counter([bucket_of(0.009), bucket_of(longest_s)])
    assert percentile_ms(latencies, 0.99, longest_s) == 205.4
    assert percentile_ms(latencies, 0.50, longest_s) == pytest.approx(9, rel=0.01)
