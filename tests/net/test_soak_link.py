"""One link with both directions full: every lane in order, nothing lost, memory flat.

The long form is ``python -m benchmarks.link --seconds 60 --check``.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.link import WINDOW_BYTES, End, MemoryWire, certificates
from plumtree_quic.messages import Lane

LANES = (Lane.GOSSIP, Lane.SYNC, Lane.DIRECT)
ROUND_BYTES = 1 << 20
ROUNDS = 16
ARGUMENTS = ("--mib", "0.5", "--frames", "500", "--repeat", "1", "--packet", "1452")


def held(side):
    """What one end keeps for a link, in bytes and entries, by our own count."""
    link = side.link
    engine = link.engine
    return {
        "unacknowledged": link.unacknowledged(),
        "received, not in order": sum(
            len(each.receiver._buffer) for each in engine._streams.values()
        ),
        "frames begun": sum(each.reader.buffered for each in link._in.values()),
        "packets sent": sum(len(each.sent_packets) for each in engine._spaces.values()),
        "packets received": sum(len(each.ack_queue) for each in engine._spaces.values()),
        "streams": len(engine._streams),
    }


BOUNDS = {
    "unacknowledged": 4 * WINDOW_BYTES,
    "received, not in order": 4 * WINDOW_BYTES,
    "frames begun": len(LANES) * 70_000,
    "packets sent": 8_192,
    "packets received": 256,
    "streams": 14,
}


def test_both_directions_full_every_lane_in_order_and_memory_flat():
    with certificates() as keys:
        a, b = (
            End(keys.credentials[name], 1_452, lanes=LANES, seed=number)
            for number, name in enumerate(("a", "b"))
        )
        a.payload = b.payload = bytes(4_000)
        wire = MemoryWire(a, b)
        a.to_send = b.to_send = 1 << 60
        peaks = []
        for _ in range(ROUNDS):
            target = a.got_bytes + b.got_bytes + ROUND_BYTES
            wire.run(lambda target=target: a.got_bytes + b.got_bytes >= target)
            for side in (a, b):
                found = held(side)
                assert all(found[name] <= bound for name, bound in BOUNDS.items()), found
            peaks.append(max(held(side)["unacknowledged"] for side in (a, b)))
        # Full pipes hold about as much late as early: nothing piles up.
        assert max(peaks[ROUNDS // 2 :]) <= 2 * max(peaks[: ROUNDS // 2])
        a.to_send = b.to_send = 0
        wire.run(lambda: a.got == b.sent and b.got == a.sent)
    assert a.disordered == b.disordered == 0
    assert min(*(a.got[lane] for lane in LANES), *(b.got[lane] for lane in LANES)) > 0


def test_the_benchmark_gives_its_figures_for_ours_and_for_plain_aioquic():
    # In a process of its own: aioquic's stream writers are never closed, and warn of it.
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.link", "--json", *ARGUMENTS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    bulk, small = result["rows"]
    assert (bulk["packet_bytes"], bulk["frame_bytes"], small["frame_bytes"]) == (1_452, 16_384, 100)
    for row in (bulk, small):
        assert row["cpu_ratio"] > 0
        for form in ("ours_in_memory", "ours_over_udp", "plain_over_udp"):
            assert row[form]["cpu_ms_per_mib"] > 0
    # The same packet size in both forms: about as many packets carry the bytes.
    ours, plain = bulk["ours_over_udp"]["packets"], bulk["plain_over_udp"]["packets"]
    assert 0.5 < ours / plain < 1.5
