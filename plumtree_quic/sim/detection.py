"""Scenarios of failure detection: who is accused, who is declared failed, and how soon.

Each scenario is one function of a seed: it starts from a cluster whose nodes have all met, runs,
and returns what the nodes told their applications. Same seed, same result.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from random import Random

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import MemberKey, member_key
from plumtree_quic.proto.effects import Effect, MemberFailed, MemberSuspected
from plumtree_quic.sim.cluster import Cluster, Host
from plumtree_quic.sim.faults import CALM, Weather
from plumtree_quic.sim.report import Violation

__all__ = ["CrashTimes", "Verdicts", "crashes", "losses", "quantile", "stalls"]

STALL_S_MAX = 5.0
"""A node that is unwell stands still for up to so long, evenly drawn."""
STALL_GAP_S_MAX = 20.0
"""Between two stalls it runs for up to so long: it stands still for a fifth of the time."""
# How long a crash is waited for to be known to all, and a restart to be forgotten.
KNOWN_S_MAX = 120.0
SETTLE_S = 5.0


@attrs.frozen
class Verdicts:
    """What a run without any crash came to.

    Attributes:
        nodes, unwell: how many, and how many of them stood still now and then.
        virtual_s: how long.
        failed_healthy: times that a node declared a healthy one failed: the false failures.
        failed_unwell: the same of nodes that stood still.
        suspected_healthy, suspected_unwell: times that a node was told of a suspicion.
        accused_by_unwell: accusations that nodes made that stood still themselves.
        accusations, probes_failed, pings, refutations, links_failed: counters, in all.
        stretch_max: the most that anybody's local health stretched its waits at a look a second.
    """

    nodes: int
    unwell: int
    virtual_s: float
    failed_healthy: int
    failed_unwell: int
    suspected_healthy: int
    suspected_unwell: int
    accused_by_unwell: int
    accusations: int
    probes_failed: int
    pings: int
    refutations: int
    links_failed: int
    stretch_max: int

    def lines(self) -> list[str]:
        """The result for people."""
        return [
            f"{self.nodes} nodes, {self.unwell} of them unwell, {self.virtual_s:g} s",
            f"declared failed: healthy {self.failed_healthy}, unwell {self.failed_unwell}",
            f"told of suspicions: of healthy {self.suspected_healthy}, "
            f"of unwell {self.suspected_unwell}",
            f"accusations {self.accusations}, by the unwell {self.accused_by_unwell}; "
            f"refuted {self.refutations}; links re-dialled {self.links_failed}",
            f"probes failed {self.probes_failed}, pings {self.pings}, "
            f"worst stretch {self.stretch_max}",
        ]


@attrs.frozen
class CrashTimes:
    """How long after each crash who knew of it, in seconds.

    Attributes:
        nodes, unwell: as in Verdicts.
        suspected_s: until the first survivor was told of a suspicion, one figure a crash.
        known_s: until each survivor had declared the dead one failed, crashes x survivors.
        known_to_all_s: until the last survivor had, one figure a crash.
        known_to_healthy_s: the same without survivors that stand still now and then.
        failed_healthy, failed_unwell: times that a living node was declared failed; who is unwell
            may have been silent for long enough.
    """

    nodes: int
    unwell: int
    suspected_s: tuple[float, ...]
    known_s: tuple[float, ...]
    known_to_all_s: tuple[float, ...]
    known_to_healthy_s: tuple[float, ...]
    failed_healthy: int
    failed_unwell: int

    def lines(self) -> list[str]:
        """The result for people."""
        rows = (
            ("first suspicion", self.suspected_s),
            ("known to one", self.known_s),
            ("known to all who are well", self.known_to_healthy_s),
            ("known to all", self.known_to_all_s),
        )
        return [
            f"{self.nodes} nodes, {self.unwell} of them unwell, {len(self.known_to_all_s)} crashes",
            f"living nodes declared failed: healthy {self.failed_healthy}, "
            f"unwell {self.failed_unwell}",
            *(
                f"{name}: median {quantile(values, 0.5):.1f} s, "
                f"p99 {quantile(values, 0.99):.1f} s, max {max(values):.1f} s"
                for name, values in rows
            ),
        ]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def stalls(
    seed: int,
    *,
    nodes: int = 100,
    unwell: int = 4,
    seconds: float = 3600.0,
    gap_s_max: float = STALL_GAP_S_MAX,
    config: PlumtreeConfig | None = None,
) -> Verdicts:
    """Some nodes stand still at random, nobody crashes."""
    cluster, hosts = _start(seed, nodes, CALM, config)
    ill = _fall_ill(cluster, hosts, unwell, gap_s_max, Random(f"{seed} stalls"))
    return _watch(cluster, ill, seconds)


def losses(
    seed: int,
    *,
    nodes: int = 50,
    loss: float = 0.2,
    seconds: float = 1800.0,
    config: PlumtreeConfig | None = None,
) -> Verdicts:
    """Every packet is lost with the same probability, nobody stands still or crashes."""
    cluster, _ = _start(seed, nodes, CALM, config)
    cluster.network.weather = attrs.evolve(cluster.weather, loss=loss)
    return _watch(cluster, {}, seconds)


def crashes(
    seed: int,
    *,
    nodes: int = 100,
    unwell: int = 4,
    count: int = 100,
    gap_s_max: float = STALL_GAP_S_MAX,
    config: PlumtreeConfig | None = None,
) -> CrashTimes:
    """Healthy nodes crash one after the other, and start again once all know of it."""
    rng = Random(f"{seed} crashes")
    cluster, hosts = _start(seed, nodes, CALM, config)
    ill = _fall_ill(cluster, hosts, unwell, gap_s_max, Random(f"{seed} stalls"))
    healthy = [host.name for host in hosts if member_key(host.id) not in ill]
    suspected: list[float] = []
    known: list[float] = []
    known_to_all: list[float] = []
    known_to_healthy: list[float] = []
    failed = {False: 0, True: 0}
    for _ in range(count):
        # At any moment of anybody's probing.
        cluster.run(SETTLE_S + rng.uniform(0.0, 5.0))
        name = rng.choice(healthy)
        dead = member_key(cluster.hosts[name].id)
        since = len(cluster.journal.facts)
        crashed_at = cluster.time.now
        cluster.crash(name)
        survivors = {id(host.life): member_key(host.id) for host in cluster.hosts.values()}
        if not cluster.run(KNOWN_S_MAX, _is_known(cluster, dead, since, nodes - 1), look_s=0.5):
            raise Violation(f"the crash of {name} is not known to all after {KNOWN_S_MAX:g} s")
        first = math.inf
        times: dict[MemberKey, float] = {}
        for at, life, fact in cluster.journal.facts[since:]:
            if _is_of(fact, MemberSuspected, dead):
                first = min(first, at - crashed_at)
            elif _is_of(fact, MemberFailed, dead):
                times[survivors[id(life)]] = at - crashed_at
            elif isinstance(fact, MemberFailed):
                failed[member_key(fact.node_id) in ill] += 1
        suspected.append(first)
        known += times.values()
        known_to_all.append(max(times.values()))
        known_to_healthy.append(max(at for key, at in times.items() if key not in ill))
        cluster.start(name, *[each for each in healthy if each != name][:3])
        cluster.run(60.0, cluster.agreed, look_s=0.5)
    return CrashTimes(
        nodes,
        unwell,
        tuple(suspected),
        tuple(known),
        tuple(known_to_all),
        tuple(known_to_healthy),
        failed[False],
        failed[True],
    )


def _is_known(cluster: Cluster, dead: MemberKey, since: int, count: int) -> Callable[[], bool]:
    """Whether so many nodes have declared a member failed, by the facts from number `since` on."""
    facts = cluster.journal.facts
    return lambda: sum(_is_of(fact, MemberFailed, dead) for _, _, fact in facts[since:]) >= count


def _is_of(fact: Effect, kind: type[MemberFailed | MemberSuspected], key: MemberKey) -> bool:
    return isinstance(fact, kind) and member_key(fact.node_id) == key


def _start(
    seed: int, nodes: int, weather: Weather, config: PlumtreeConfig | None
) -> tuple[Cluster, list[Host]]:
    cluster = Cluster(seed=seed, weather=weather, config=config)
    return cluster, cluster.converged(nodes)


def _fall_ill(
    cluster: Cluster, hosts: Sequence[Host], count: int, gap_s_max: float, rng: Random
) -> dict[MemberKey, None]:
    """Let `count` of the nodes stand still at random from now on."""

    def stall(host: Host) -> None:
        if not host.alive:
            return
        seconds = rng.uniform(0.0, STALL_S_MAX)
        host.pause(seconds)
        cluster.time.after(seconds + rng.uniform(0.0, gap_s_max), stall, host)

    ill = rng.sample(list(hosts), count)
    for host in ill:
        cluster.time.after(rng.uniform(0.0, gap_s_max), stall, host)
    return {member_key(host.id): None for host in ill}


def _watch(cluster: Cluster, ill: Iterable[MemberKey], seconds: float) -> Verdicts:
    """Run for `seconds` and count who was held for what."""
    unwell = dict.fromkeys(ill)
    stretch_max = 1

    def look() -> None:
        nonlocal stretch_max
        worst = max(host.core.local_health for host in cluster.hosts.values())
        stretch_max = max(stretch_max, 1 + worst)
        cluster.time.after(1.0, look)

    look()
    before = _counters(cluster.hosts.values())
    began = len(cluster.journal.facts)
    began_ill = _counters(host for host in cluster.hosts.values() if member_key(host.id) in unwell)
    cluster.run(seconds)
    counted = {
        name: count - before[name] for name, count in _counters(cluster.hosts.values()).items()
    }
    ended_ill = _counters(host for host in cluster.hosts.values() if member_key(host.id) in unwell)
    told = {(kind, is_ill): 0 for kind in (MemberFailed, MemberSuspected) for is_ill in (0, 1)}
    for _, _, fact in cluster.journal.facts[began:]:
        if isinstance(fact, MemberFailed | MemberSuspected):
            told[type(fact), int(member_key(fact.node_id) in unwell)] += 1
    return Verdicts(
        nodes=len(cluster.hosts),
        unwell=len(unwell),
        virtual_s=seconds,
        failed_healthy=told[MemberFailed, 0],
        failed_unwell=told[MemberFailed, 1],
        suspected_healthy=told[MemberSuspected, 0],
        suspected_unwell=told[MemberSuspected, 1],
        accused_by_unwell=ended_ill["accusations_made"] - began_ill["accusations_made"],
        accusations=counted["accusations_made"],
        probes_failed=counted["probes_failed"],
        pings=counted["pings_sent"],
        refutations=counted["refutations"],
        links_failed=counted["links_failed"],
        stretch_max=stretch_max,
    )


def _counters(hosts: Iterable[Host]) -> dict[str, int]:
    totals = dict.fromkeys(
        ("accusations_made", "probes_failed", "pings_sent", "refutations", "links_failed"), 0
    )
    for host in hosts:
        counters = host.core.swim_counters()
        for name in totals:
            totals[name] += counters[name]
    return totals
