"""Whole clusters whose traces are written down: what changes one changes behaviour.

A change on purpose is written down again with `python -m tests.sim.test_golden`, and its reason
stands in the commit. The figures beside each trace say what kind of change it was.
"""

import json
from pathlib import Path

import pytest

from plumtree_quic import PlumtreeConfig
from plumtree_quic.sim.__main__ import weather_a_storm
from plumtree_quic.sim.cluster import Cluster

GOLDEN = Path(__file__).with_name("golden.json")


def written(report):
    return {
        "trace": report.trace,
        "frames": report.frames,
        "delivered": report.delivered,
        "lost": report.lost,
        "rmr": round(report.rmr_total, 6),
        "hops": report.hop_last,
        "grafts": report.grafts,
        "prunes": report.prunes,
    }


def calm(preset):
    """A mesh that grows, then 40 messages of two origins, a crash and a farewell."""
    cluster = Cluster(config=getattr(PlumtreeConfig, preset)(), seed=11)
    hosts = cluster.ready(10)
    for number in range(40):
        hosts[number % 2].publish(bytes(50 + number))
        cluster.run(0.05)
    cluster.crash("n009")
    cluster.run(20.0)
    hosts[5].leave()
    cluster.run(5.0)
    hosts[0].publish(b"last")
    cluster.run(5.0)
    return cluster.report()


def rings():
    """40 nodes on rings, three origins, a fifth of them killed at once."""
    cluster = Cluster(seed=12)
    hosts = cluster.converged(40)
    for number in range(30):
        hosts[number % 3].publish(bytes(80))
        cluster.run(0.1)
    for number in range(32, 40):
        cluster.crash(f"n{number:03}")
    for number in range(30):
        hosts[number % 3].publish(bytes(80))
        cluster.run(0.5)
    cluster.run(20.0)
    return cluster.report()


STORIES = {
    "calm lan": lambda: calm("lan"),
    "calm wan": lambda: calm("wan"),
    "rings": rings,
    "storm 21": lambda: weather_a_storm(21).report,
    "storm 22": lambda: weather_a_storm(22).report,
}


@pytest.mark.parametrize("story", STORIES)
def test_a_whole_clusters_trace_is_the_one_that_is_written_down(story):
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(STORIES)
    assert written(STORIES[story]()) == golden[story]


if __name__ == "__main__":
    made = {name: written(story()) for name, story in STORIES.items()}
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
