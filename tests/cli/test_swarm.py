"""What ends a cluster's processes, without any process."""

import asyncio
import os
import signal

import pytest

from plumtree_quic.cli.cluster import Swarm, swarm


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
