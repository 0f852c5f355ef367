"""What ends a cluster's processes, without any process."""

import asyncio
import os
import signal

import pytest

from plumtree_quic.cli.cluster import Swarm, swarm


async def test_a_second_sigterm_does_not_cut_the_cleaning_up_short(monkeypatch):
    closed = []

    async def close(made):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        closed.append(made)

    monkeypatch.setattr(Swarm, "close", close)
    with pytest.raises(SystemExit) as ended:
        async with swarm() as made:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
    assert ended.value.code == 128 + signal.SIGTERM
    assert closed == [made]
    assert not made.directory.exists()
