"""Scenarios: what `plumtree-quic sim NAME` runs, and what it holds the outcome against.

Each is a function of a size and a seed. It returns figures, each with its bound when it has one;
the rules that hold at any time are checked by the journal while it runs, and raise.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from random import Random
from statistics import median

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.proto.core import JOINERS_MAX
from plumtree_quic.sim import detection, zones
from plumtree_quic.sim.bootstrap import bootstrap
from plumtree_quic.sim.cluster import Cluster, Host
from plumtree_quic.sim.graph import Graph
from plumtree_quic.sim.pages import use_large_pages
from plumtree_quic.sim.report import Violation

__all__ = ["SCENARIOS", "Figure", "Outcome", "Run", "Scenario"]

WARM_UP = 20
MEASURED = 50
ORIGINS = 100
PAYLOAD = bytes(64)
# Objects made, less those that are gone, between two looks for garbage.
COLLECT_EVERY = 200_000
# From so many nodes on, memory is what a simulation waits for.
LARGE_NODES = 2_000
# A guess: nobody waits longer for a cluster that was started anew.
BOOTSTRAP_S = 30.0


@attrs.frozen
class Figure:
    """One measured value. bound: what it must not exceed (or, `at_least`, fall below), or None."""

    name: str
    value: float
    unit: str = ""
    bound: float | None = None
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value is within its bound."""
        if self.bound is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@attrs.define
class Outcome:
    """What a scenario came to.

    curves: by title, (x, y) points, for pictures. violation: the rule that was broken, or empty.
    """

    figures: list[Figure] = attrs.field(factory=list)
    curves: dict[str, list[tuple[float, float]]] = attrs.field(factory=dict)
    violation: str = ""

    @property
    def holds(self) -> bool:
        """Whether all rules and bounds held."""
        return not self.violation and all(figure.holds for figure in self.figures)


@attrs.define
class Run:
    """One run of a scenario. The cluster is there as soon as there is one, for whoever looks on.

    nodes: how many. seed: of everything. preset: name of the configuration. share: how much of
    the cluster a fault hits. rings: K, where it is not the preset's. seconds: how long, of virtual
    time, where that is a choice; None: as long as the scenario asks for. on_cluster: called with
    the cluster before anything happens in it. say: told what goes on, in words.
    """

    nodes: int
    seed: int
    preset: str = "lan"
    share: float = 0.5
    rings: int | None = None
    seconds: float | None = None
    on_cluster: Callable[[Cluster], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    cluster: Cluster | None = None
    origin: str = ""

    def config(self) -> PlumtreeConfig:
        """Of every node."""
        made: PlumtreeConfig = (
            PlumtreeConfig() if self.preset == "default" else getattr(PlumtreeConfig, self.preset)()
        )
        if self.rings is None:
            return made
        # K is half of the fan-outs (ARCHITECTURE section 7); those that push stay as they are.
        lazy = 2 * self.rings - made.eager_fanout
        return attrs.evolve(made, lazy_fanout=lazy)

    def make(self) -> Cluster:
        """A cluster of no nodes yet."""
        self.cluster = Cluster(config=self.config(), seed=self.seed)
        self.on_cluster(self.cluster)
        return self.cluster

    def converged(self) -> Cluster:
        """A cluster of `nodes` that have all met before, their links at rest."""
        cluster = self.make()
        cluster.converged(self.nodes)
        gc.freeze()
        if self.nodes >= LARGE_NODES:
            use_large_pages()
        self.say(f"{self.nodes} nodes, links at rest, {cluster.time.now - cluster.began:.0f} s")
        return cluster


def stable(run: Run) -> Outcome:
    """One origin, nothing goes wrong: 20 messages to warm up, 50 measured, one a second."""
    cluster = run.converged()
    host = next(iter(cluster.hosts.values()))
    run.origin = host.name
    out = Outcome()
    redundancy: list[tuple[float, float]] = []
    since = 0
    lasts: list[float] = []
    for number in range(WARM_UP + MEASURED):
        if number == WARM_UP:
            since = cluster.journal.published()
            run.say("warm")
        bundle = host.publish(PAYLOAD)
        cluster.run(1.0)
        story = cluster.journal.story_of(bundle)
        needed = max(1, len(story.latencies))
        redundancy.append((number + 1, story.copies / needed - 1))
        if number >= WARM_UP:
            lasts.append(max(story.latencies, default=0.0))
    # Long enough for the last one's announcements; longer only when something is missing.
    cluster.run(1.0)
    cluster.run(4.0, cluster.settled, look_s=1.0)
    flood = Graph.of(cluster).flood(host.name)
    report = cluster.report(since)
    out.curves["redundancy of each message"] = redundancy
    out.curves["share of nodes that have it, by milliseconds"] = _spread(cluster, since)
    out.figures += [
        _reliability(report.delivered, report.expected),
        Figure("rmr", report.rmr, bound=0.02),
        Figure("last delivery hop", report.hop_last, "links", bound=flood.hops + 2),
        Figure("largest hop of flooding", flood.hops, "links"),
        Figure("last delivery, median", 1e3 * median(lasts), "ms", bound=1.5e3 * flood.seconds),
        Figure("last delivery of flooding", 1e3 * flood.seconds, "ms"),
        *_links(cluster),
        Figure("frames", report.frames),
    ]
    return out


def origins(run: Run) -> Outcome:
    """100 origins at once, nothing goes wrong: the first bundle of each is not counted."""
    cluster = run.converged()
    hosts = list(cluster.hosts.values())[: min(ORIGINS, run.nodes)]
    for host in hosts:
        host.publish(PAYLOAD)
        cluster.run(0.01)
    cluster.run(2.0)
    run.say("each origin has its tree")
    cost = cluster.report()
    since = cluster.journal.published()
    for _ in range(10):
        for host in hosts:
            host.publish(PAYLOAD)
        cluster.run(1.0)
    cluster.run(5.0)
    report = cluster.report(since)
    first = cost.rmr_total
    return Outcome(
        [
            _reliability(report.delivered, report.expected),
            Figure("rmr after the first bundles", report.rmr, bound=0.02),
            Figure("rmr of the first bundles", first),
            Figure("latency p99", 1e3 * report.latency_s[1], "ms"),
            Figure("grafts", report.grafts),
            *_links(cluster),
        ],
        {"share of nodes that have it, by milliseconds": _spread(cluster, since)},
    )


def crash(run: Run) -> Outcome:
    """A share of all nodes dies at once; survivors broadcast from that very instant on."""
    cluster = run.converged()
    rng = Random(f"crash {run.seed}")
    names = list(cluster.hosts)
    doomed = rng.sample(names, int(run.share * len(names)))
    living = [name for name in names if name not in set(doomed)]
    senders = [cluster.hosts[name] for name in living[:10]]
    for _ in range(5):
        for host in senders:
            host.publish(PAYLOAD)
        cluster.run(1.0)
    run.say(f"{len(doomed)} of {len(names)} die now")
    began = cluster.time.now
    for name in doomed:
        cluster.crash(name)
    since = cluster.journal.published()
    curve: list[tuple[float, float]] = []
    at_once = 0.0
    limit_s = 30.0 if run.share <= 0.5 else 60.0
    settled_s = float("inf")
    while cluster.time.now < began + limit_s:
        if cluster.time.now < began + 10.0:
            for host in senders:
                host.publish(PAYLOAD)
        cluster.run(1.0)
        elapsed = cluster.time.now - began
        missing = len(cluster.journal.missing(since))
        due = (cluster.journal.published() - since) * (len(living) - 1)
        share = 1 - missing / due
        curve.append((elapsed, share))
        if not at_once:
            at_once = share
        run.say(f"{elapsed:.0f} s: {100 * share:.3f} % of {due}")
        if not missing and elapsed >= 10.0:
            settled_s = elapsed
            break
    final = curve[-1][1]
    figures = [
        Figure("delivered within the first second", 100 * at_once, "%"),
        Figure("delivered at the end", 100 * final, "%"),
        Figure("every survivor has everything after", settled_s, "s"),
        Figure("survivors", len(living)),
    ]
    if run.share <= 0.5:
        figures[1] = Figure("delivered at the end", 100 * final, "%", 100.0, at_least=True)
        figures[2] = attrs.evolve(figures[2], bound=30.0)
    else:
        figures[0] = attrs.evolve(figures[0], bound=97.0, at_least=True)
        figures[1] = attrs.evolve(figures[1], bound=99.9, at_least=True)
    return Outcome(figures, {"share delivered, by seconds after the crash": curve})


def partition(run: Run) -> Outcome:
    """Two halves, 60 s apart, both broadcast; then the ways open again."""
    cluster = run.converged()
    names = list(cluster.hosts)
    half = len(names) // 2
    one, other = cluster.hosts[names[0]], cluster.hosts[names[-1]]
    for host in (one, other):
        host.publish(PAYLOAD)
    cluster.run(2.0)
    run.say("apart")
    cluster.partition(names[:half], names[half:])
    cluster.run(60.0)
    cluster.partition()
    opened = cluster.time.now
    cluster.run(120.0, cluster.agreed, look_s=1.0)
    agreed_s = cluster.time.now - opened if cluster.agreed() else float("inf")
    run.say(f"agreed {agreed_s:.0f} s after the ways opened")
    since = cluster.journal.published()
    for host in (one, other):
        host.publish(PAYLOAD)
    cluster.run(10.0)
    report = cluster.report(since)
    return Outcome(
        [
            Figure("one view again after", agreed_s, "s", bound=30.0),
            _reliability(report.delivered, report.expected),
            *_links(cluster),
        ]
    )


def churn(run: Run) -> Outcome:
    """For ten minutes a tenth of the nodes a minute crashes and comes back; a message a second."""
    cluster = run.converged()
    rng = Random(f"churn {run.seed}")
    names = list(cluster.hosts)
    steady = names[: max(2, len(names) // 2)]
    sender = cluster.hosts[steady[0]]
    gap_s = 60.0 / max(1.0, len(names) / 10)
    end = cluster.time.now + 600.0
    blow_at = cluster.time.now
    while cluster.time.now < end:
        sender.publish(PAYLOAD)
        cluster.run(1.0)
        while blow_at <= cluster.time.now:
            blow_at += gap_s
            name = rng.choice(names[len(steady) :])
            if name in cluster.hosts:
                cluster.crash(name)
                cluster.time.after(rng.uniform(1.0, 20.0), cluster.restart, name)
    cluster.run(60.0, cluster.agreed, look_s=1.0)
    missing = [life for life, _ in cluster.journal.missing() if life.name in set(steady)]
    return Outcome(
        [
            Figure("deliveries missing at nodes that stayed", len(missing), bound=0),
            Figure("views that agree at the end", int(cluster.agreed()), bound=1, at_least=True),
            *_links(cluster),
        ]
    )


def stalls(run: Run) -> Outcome:
    """4 of 100 nodes stand still at random for up to 5 s, for an hour: nobody well is failed."""
    verdicts = detection.stalls(
        run.seed, nodes=run.nodes, seconds=run.seconds or 3_600.0, config=run.config()
    )
    return _of_verdicts(verdicts)


def losses(run: Run) -> Outcome:
    """A fifth of all packets is lost for half an hour: nobody is failed."""
    verdicts = detection.losses(
        run.seed, nodes=run.nodes, seconds=run.seconds or 1_800.0, config=run.config()
    )
    return _of_verdicts(verdicts)


def crashes(run: Run) -> Outcome:
    """Nodes die one after the other while 4 of 100 stand still at random: how soon all know."""
    times = detection.crashes(run.seed, nodes=run.nodes, count=20, config=run.config())
    known, well = times.known_to_all_s, times.known_to_healthy_s
    return Outcome(
        [
            Figure("crashes", len(known)),
            Figure("known to all, median", detection.quantile(known, 0.5), "s", bound=10.0),
            Figure("known to all, p99", detection.quantile(known, 0.99), "s", bound=20.0),
            Figure("known to all who are well, median", detection.quantile(well, 0.5), "s"),
            Figure("first suspicion, median", detection.quantile(times.suspected_s, 0.5), "s"),
            Figure("well nodes declared failed", times.failed_healthy, bound=0),
        ]
    )


def borders(run: Run) -> Outcome:
    """4 zones, 200 broadcasts: how often they cross borders; then a zone loses its bridges."""
    found = zones.cross_borders(run.nodes, config=run.config(), seed=run.seed)
    return Outcome(
        [
            Figure(
                "border crossings, median", median(found.crossed), bound=2.0 * (found.zones - 1)
            ),
            Figure("border crossings, most", max(found.crossed)),
            Figure("lost", found.lost + found.lost_after, bound=0),
            Figure("bridges killed", found.bridges),
            Figure(
                "all have all after",
                found.healed_s if found.healed_s is not None else float("inf"),
                "s",
                bound=10.0,
            ),
            Figure("border crossings after that, median", median(found.crossed_after)),
        ]
    )


def start(run: Run) -> Outcome:
    """All nodes start at once and know only 3 seeds, which must not be trampled."""
    cluster = run.make()
    found = bootstrap(cluster, run.nodes, within_s=BOOTSTRAP_S)
    rings = -(-(cluster.config.eager_fanout + cluster.config.lazy_fanout) // 2)
    seconds = found.seconds if found.seconds is not None else float("inf")
    return Outcome(
        [
            Figure("all know all after", seconds, "s", bound=BOOTSTRAP_S),
            Figure("distinct sizes seen", found.sizes),
            Figure("a seed sends per joiner", found.seed_bytes_per_joiner / 1e3, "KB", bound=200.0),
            Figure("a seed sends one joiner, most", found.seed_bytes_most / 1e3, "KB", bound=200.0),
            Figure("a node sends", found.bytes_per_node / 1e3, "KB"),
            Figure("overlay links, most", found.overlay_links_most, bound=3 * (2 * rings + 2)),
            Figure("join links, most", found.join_links_most, bound=JOINERS_MAX),
            Figure("links turned away", found.turned_away),
            Figure("suspected or declared failed", found.suspected, bound=0),
            *_links(cluster),
        ]
    )


def _of_verdicts(verdicts: detection.Verdicts) -> Outcome:
    return Outcome(
        [
            Figure("well nodes declared failed", verdicts.failed_healthy, bound=0),
            Figure("unwell nodes declared failed", verdicts.failed_unwell),
            Figure("told of suspicions of well nodes", verdicts.suspected_healthy),
            Figure("accusations", verdicts.accusations),
            Figure("probes failed", verdicts.probes_failed),
            Figure("pings", verdicts.pings),
            Figure("most that local health stretched", verdicts.stretch_max),
        ]
    )


@attrs.frozen
class Scenario:
    """What runs, how many nodes by default, and what it is in a line."""

    run: Callable[[Run], Outcome]
    nodes: int
    about: str


def _of(run: Callable[[Run], Outcome], nodes: int) -> Scenario:
    about = (run.__doc__ or "").partition("\n")[0]
    return Scenario(run, nodes, about)


SCENARIOS: dict[str, Scenario] = {
    "stable": _of(stable, 1_000),
    "origins": _of(origins, 1_000),
    "bootstrap": _of(start, 1_000),
    "crash": _of(crash, 1_000),
    "partition": _of(partition, 50),
    "churn": _of(churn, 50),
    "stalls": _of(stalls, 100),
    "losses": _of(losses, 50),
    "crashes": _of(crashes, 100),
    "borders": _of(borders, 1_000),
}
"""By name, in the order in which they are told."""


def play(scenario: Scenario, run: Run) -> Outcome:
    """Run it; a broken rule is part of the outcome."""
    with _collecting_rarely():
        try:
            return scenario.run(run)
        except Violation as error:
            return Outcome(violation=str(error))


@contextlib.contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Millions of objects live as long as the cluster does, and hardly any die in a cycle: looking
    for those again and again took a third of the time.
    """
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_EVERY, *before[1:])
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def _reliability(delivered: int, expected: int) -> Figure:
    share = 100.0 * delivered / expected if expected else 0.0
    return Figure("reliability", share, "%", bound=100.0, at_least=True)


def _links(cluster: Cluster) -> list[Figure]:
    graph = Graph.of(cluster)
    degrees: Sequence[int] = graph.degrees() or [0]
    return [
        Figure("links per node, median", median(degrees)),
        Figure("links per node, most", degrees[-1]),
        Figure("connected", int(graph.is_connected()), bound=1, at_least=True),
    ]


def _spread(cluster: Cluster, since: int) -> list[tuple[float, float]]:
    """How the messages from number `since` on spread: (milliseconds, share of deliveries)."""
    times = sorted(cluster.journal.latencies(since))
    step = max(1, len(times) // 200)
    return [(1e3 * at, (index + 1) / len(times)) for index, at in enumerate(times)][::step]


def origin_of(run: Run) -> Host | None:
    """The node whose tree a picture shows, when the scenario has one."""
    if run.cluster is None:
        return None
    return run.cluster.hosts.get(run.origin) or next(iter(run.cluster.hosts.values()), None)
