"""What `plumtree-quic sim` runs, small; and that its bounds can be missed."""

from types import SimpleNamespace

import pytest

from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.graph import Graph
from plumtree_quic.sim.report import Violation
from plumtree_quic.sim.scenarios import SCENARIOS, Figure, Outcome, Run, play


def figures(outcome):
    return {each.name: each.value for each in outcome.figures}


def test_stable_every_message_reaches_everybody_once_and_nearly_as_fast_as_by_flooding():
    run = Run(nodes=40, seed=1)
    outcome = play(SCENARIOS["stable"], run)
    assert outcome.holds, outcome
    got = figures(outcome)
    assert got["reliability"] == 100.0
    assert got["rmr"] <= 0.02
    assert got["last delivery, median"] <= 1.5 * got["last delivery of flooding"]
    assert got["links per node, most"] <= 12
    assert len(outcome.curves["redundancy of each message"]) == 70


def test_origins_trees_of_many_origins_cost_nothing_more():
    outcome = play(SCENARIOS["origins"], Run(nodes=20, seed=2))
    assert outcome.holds, outcome
    assert (
        figures(outcome)["rmr of the first bundles"]
        > figures(outcome)["rmr after the first bundles"]
    )


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_crash_survivors_get_everything_that_survivors_say_from_that_instant_on(share):
    outcome = play(SCENARIOS["crash"], Run(nodes=40, seed=3, share=share))
    assert outcome.holds, outcome
    assert figures(outcome)["survivors"] == 40 - int(40 * share)


def test_partition_two_halves_become_one_again():
    outcome = play(SCENARIOS["partition"], Run(nodes=24, seed=4))
    assert outcome.holds, outcome


@pytest.mark.parametrize(
    ("name", "nodes", "seconds"),
    [("stalls", 12, 60.0), ("losses", 8, 120.0), ("borders", 24, None)],
)
def test_every_scenario_of_one_line_holds_when_it_is_small(name, nodes, seconds):
    outcome = play(SCENARIOS[name], Run(nodes=nodes, seed=1, seconds=seconds, preset="default"))
    assert outcome.holds, outcome


def test_the_same_seed_gives_the_same_run_and_another_seed_another_one():
    traces = []
    for seed in (5, 5, 6):
        run = Run(nodes=6, seed=seed)
        play(SCENARIOS["origins"], run)
        traces.append(run.cluster.journal.trace())
    assert traces[0] == traces[1] != traces[2]


def test_a_broken_rule_is_part_of_the_outcome():
    def broken(run):
        raise Violation("S1: twice")

    outcome = play(SimpleNamespace(run=broken), Run(nodes=2, seed=0))
    assert outcome.violation == "S1: twice"
    assert not outcome.holds


@pytest.mark.parametrize(
    ("figure", "holds"),
    [
        (Figure("a", 1.0), True),
        (Figure("a", 1.0, bound=1.0), True),
        (Figure("a", 1.1, bound=1.0), False),
        (Figure("a", 0.9, bound=1.0, at_least=True), False),
        (Figure("a", float("inf"), bound=30.0), False),
    ],
)
def test_a_bound_holds_or_is_missed(figure, holds):
    assert Outcome([figure]).holds is holds


def test_flooding_takes_the_quickest_ways_and_counts_the_links_of_those():
    graph = Graph({"a": {"b": 1.0, "c": 5.0}, "b": {"a": 1.0, "c": 1.0}, "c": {"a": 5.0, "b": 1.0}})
    flood = graph.flood("a")
    assert (flood.seconds, flood.hops, flood.reached) == (2.0, 2, 3)
    assert graph.is_connected()
    assert list(graph.edges()) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert not Graph({"a": {}, "b": {}}).is_connected()


def test_a_converged_cluster_is_what_a_grown_one_becomes():
    """Same members, same links wanted: only the way there is left out."""
    grown = Cluster(seed=7)
    grown.ready(20)
    grown.run(60.0)
    met = Cluster(seed=7)
    met.converged(20)
    assert met.agreed()
    for name, host in met.hosts.items():
        assert set(host.links) == set(grown.hosts[name].links), name


def test_a_trace_tells_in_words_what_happens():
    lines = []
    cluster = Cluster(seed=8)
    cluster.journal.tell = lines.append
    cluster.converged(3)
    cluster.hosts["n000"].publish(b"x")
    cluster.run(1.0)
    cluster.crash("n002")
    cluster.run(30.0)
    text = "\n".join(lines)
    assert "n000 broadcasts n000/" in text
    assert "n001 has n000/" in text
    assert "n002 is killed" in text
    assert "n001 MemberFailed n002" in text
    assert float(lines[0].split()[0]) >= 1000.0
