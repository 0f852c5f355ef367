"""Zones, measured: how often messages cross borders, and what a zone does that loses its bridges.

Of the trees of a cluster of several zones, one copy of each message should cross into each zone.
"""

from collections.abc import Callable
from random import Random
from statistics import median

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import MemberKey
from plumtree_quic.sim.cluster import Cluster, Host
from plumtree_quic.sim.faults import CALM, Weather

__all__ = ["Crossings", "bridges", "cross_borders", "zones_by_number"]

GAP_S = 0.05
"""Between two broadcasts."""
ARRIVED_S = 3.0
"""After the last one: long enough for announcements, and for all grafts that they cause."""
HEALED_S = 60.0
"""How long a cluster without bridges is watched at most."""
SETTLED_S = 20.0
"""Until the dead are known to be dead, and who linked with them has other links."""


@attrs.frozen
class Crossings:
    """What `cross_borders` found.

    crossed: per broadcast, how many pushed copies crossed between zones. lost, lost_after: what
    was due and not delivered, before and after the bridges died. bridges: how many nodes were
    killed, all of one zone. healed_s: seconds from their death until all living nodes had what was
    broadcast at that moment; None when they had not after HEALED_S. crossed_after: as crossed, for
    broadcasts of the same origins when all was healed.
    """

    nodes: int
    zones: int
    crossed: tuple[int, ...]
    lost: int
    bridges: int
    healed_s: float | None
    crossed_after: tuple[int, ...]
    lost_after: int

    def lines(self) -> list[str]:
        """The figures for people."""
        healed = (
            "not healed" if self.healed_s is None else f"all have all after {self.healed_s:.2f} s"
        )
        return [
            f"{self.nodes} nodes in {self.zones} zones, {len(self.crossed)} broadcasts: "
            f"{_spread(self.crossed)} border crossings each ({self.zones - 1} are needed), "
            f"{self.lost} lost",
            f"all {self.bridges} bridges of one zone killed: {healed}",
            f"{len(self.crossed_after)} broadcasts after that: {_spread(self.crossed_after)} "
            f"border crossings each, {self.lost_after} lost",
        ]


def zones_by_number(zones: int) -> Callable[[str], str]:
    """Put nodes n000, n001, ... into so many zones, in turn."""
    return lambda name: f"z{int(name.lstrip('n')) % zones}"


def bridges(cluster: Cluster, zone: str, origin: MemberKey) -> list[Host]:
    """The nodes of `zone` to which this origin is brought from another zone."""
    found = []
    for host in cluster.hosts.values():
        if host.config.zone == zone:
            parent = host.core.broadcasts.parent(origin)
            if parent is not None and cluster.network.zones[parent] != zone:
                found.append(host)
    return found


def cross_borders(
    nodes: int = 1_000,
    zones: int = 4,
    *,
    broadcasts: int = 200,
    origins: int = 5,
    config: PlumtreeConfig | None = None,
    weather: Weather = CALM,
    seed: int = 0,
) -> Crossings:
    """Count border crossings, first messages included; then kill every bridge of one zone.

    Args:
        nodes: so many, in so many `zones` of one size.
        broadcasts: so many in all, by `origins` nodes in turn.
        config: of all nodes; `large_cluster` by default. weather, seed: see Cluster.
    """
    zone_of = zones_by_number(zones)
    cluster = Cluster(
        config=config or PlumtreeConfig.large_cluster(),
        weather=weather,
        seed=seed,
        zone_of=zone_of,
    )
    cluster.converged(nodes)
    rng = Random(f"{seed} origins")
    # None in the zone that will lose its bridges: it has one for each of them.
    doomed_zone = zone_of("n000")
    names = [name for name in cluster.hosts if zone_of(name) != doomed_zone]
    chosen = rng.sample(names, origins)
    _broadcast_in_turn(cluster, chosen, broadcasts)
    crossed = tuple(cluster.journal.crossings())
    lost = cluster.report().lost

    doomed: dict[str, None] = {}
    for name in chosen:
        for host in bridges(cluster, doomed_zone, cluster.hosts[name].core.key):
            doomed[host.name] = None
    for name in doomed:
        cluster.crash(name)
    since, killed_at = cluster.journal.published(), cluster.time.now
    for name in chosen:
        cluster.hosts[name].publish()
    healed = cluster.run(HEALED_S, lambda: cluster.settled(since))
    healed_s = cluster.time.now - killed_at if healed else None
    cluster.run(SETTLED_S)

    after = cluster.journal.published()
    _broadcast_in_turn(cluster, chosen, broadcasts // 2)
    return Crossings(
        nodes=nodes,
        zones=zones,
        crossed=crossed,
        lost=lost,
        bridges=len(doomed),
        healed_s=healed_s,
        crossed_after=tuple(cluster.journal.crossings(after)),
        lost_after=cluster.report(since).lost,
    )


def _broadcast_in_turn(cluster: Cluster, names: list[str], count: int) -> None:
    for number in range(count):
        cluster.hosts[names[number % len(names)]].publish()
        cluster.run(GAP_S)
    cluster.run(ARRIVED_S)


def _spread(counts: tuple[int, ...]) -> str:
    return f"median {median(counts):g}, {min(counts)} to {max(counts)}"
