"""Row X-19 in virtual time: a member that dies and comes back for as long as one likes.

The row has 20 nodes and a day; this has what fits a test run, after every table has reached what
it keeps: the newest epochs of an origin, and repairs that are remembered for a while.
"""

import enum
from collections import deque
from random import Random

from plumtree_quic.proto import plumtree
from plumtree_quic.sim.cluster import Cluster

NODES, WARM_MIN, HALF_MIN = 8, 10, 5
LEAVES = (str, bytes, int, float, type, enum.Enum, Random)


def entries(core):
    """How many entries all containers hold that a core can reach."""
    seen, stack, count = set(), [core], 0
    while stack:
        each = stack.pop()
        if id(each) in seen or isinstance(each, LEAVES) or callable(each):
            continue
        seen.add(id(each))
        if isinstance(each, dict):
            count += len(each)
            stack += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset | deque):
            count += len(each)
            stack += each
        elif type(each).__module__.startswith("plumtree_quic.proto"):
            slots = [name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())]
            stack += [getattr(each, name) for name in slots if hasattr(each, name)]
            stack += getattr(each, "__dict__", {}).values()
    return count


def minute(cluster):
    """A minute of traffic in which one member dies, and comes back with a new epoch."""
    cluster.crash("n007")
    cluster.run(20.0)
    cluster.start("n007", "n000")
    largest = 0
    for _ in range(20):
        cluster.hosts["n001"].publish()
        cluster.hosts["n007"].publish()
        cluster.run(2.0)
        largest = max(largest, *(entries(cluster.hosts[name].core) for name in ("n000", "n003")))
    assert cluster.agreed()
    return largest


def test_x19_a_member_that_dies_each_minute_leaves_nothing_behind(monkeypatch):
    # Remembered for as long as there is room: let there be little.
    monkeypatch.setattr(plumtree, "REPAIRED_MAX", 4)
    cluster = Cluster(seed=19)
    cluster.ready(NODES)
    for _ in range(WARM_MIN):
        minute(cluster)
    one = max(minute(cluster) for _ in range(HALF_MIN))
    other = max(minute(cluster) for _ in range(HALF_MIN))
    # Shelves are cleared in steps, so there is some ebb and flow.
    assert other <= one + 30
    assert cluster.report().lost == 0
