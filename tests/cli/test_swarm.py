"""`plumtree-quic cluster` without any node: what ends them, what it says, how it exits."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter

import pytest
from click.testing import CliRunner

from plumtree_quic.cli import cluster as cluster_module
from plumtree_quic.cli.cluster import Swarm, WorkerProcess, cluster, percentile_ms, swarm
from plumtree_quic.cli.worker import bucket_of, ranges_of
from plumtree_quic.errors import PlumtreeError

RESULT = {
    "nodes": 2, "messages": 10, "size_bytes": 1024, "publishers": 1, "delivered": 10,
    "expected": 10, "lost": 0, "duplicates": 0, "elapsed_s": 1.0, "deliveries_per_s": 10.0,
    "cpu_s_total": 1.0, "cpu_s_startup": 1.0, "deliveries_per_cpu_s": 10.0,
    "latency_ms": {"p50": 1.0, "p99": 2.0, "max": 3.0}, "rmr": 0.0, "rmr_total": 0.1,
    "rss_mb_max": 50.0, "startup_s": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("arguments", [[], ["--json"]])
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"delivered": 9, "lost": 1}, 1),
        ({"delivered": 11, "lost": -1}, 1),
        ({"duplicates": 1}, 1),
    ],
)
def test_it_exits_with_1_unless_all_was_delivered_once(monkeypatch, arguments, changes, code):
    async def run(nodes, run, preset):
        return RESULT | changes

    monkeypatch.setattr(cluster_module, "_cluster", run)
    done = CliRunner().invoke(cluster, arguments)
    assert done.exit_code == code
    if arguments:
        (line,) = done.stdout.splitlines()
        assert json.loads(line) == RESULT | changes


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


def test_the_flags_of_what_was_received_are_told_as_ranges():
    assert ranges_of(bytearray(5)) == []
    assert ranges_of(bytearray([1, 1, 0, 1, 0, 1])) == [(1, 2), (4, 4), (6, 6)]


async def test_a_process_that_logs_much_is_not_held_up_and_its_last_words_are_kept():
    # More than a pipe holds: who writes to a full one stands still.
    script = (
        "import sys; sys.stderr.write('a warning\\n' * 100_000 + 'the end\\n'); sys.stderr.flush()"
        '; print(\'{"event": "ready"}\', flush=True)'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    worker = WorkerProcess("talker", process)
    await worker.wait("ready")
    with pytest.raises(PlumtreeError, match="node process talker ended: the end"):
        await worker.wait("never said")
    assert worker.complaints[-1] == "the end"
    await worker.close()
