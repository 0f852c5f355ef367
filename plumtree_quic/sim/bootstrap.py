"""A cluster from nothing: many nodes that start at once and know only a few seeds.

Bootstrap is what a cluster does at its worst moment, when all is started again after an outage: a
seed must not be trampled, and nobody's links may grow with the cluster.
"""

import attrs

from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Lane
from plumtree_quic.proto.effects import MemberFailed, MemberSuspected
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.network import End

__all__ = ["Bootstrap", "bootstrap"]

LOOK_S = 0.01
"""Between two looks at what size each node holds the cluster for."""
SETTLED_S = 10.0
"""Until links that are not wanted any more are gone, and whoever would be suspected is."""


@attrs.frozen(kw_only=True)
class Bootstrap:
    """What it came to.

    Attributes:
        nodes, seeds: how many.
        seconds: virtual, from the start until all knew all; None: not within the time.
        sizes: distinct sizes that any node held the cluster for, at looks LOOK_S apart (Rapid,
            section 7.1, reports the same).
        seed_bytes_per_joiner: what the busiest seed sent to anybody, by the number of joiners.
        seed_bytes_most: what a seed sent one joiner, at most, while neither wanted the link for
            its overlay.
        bytes_per_node: what all nodes sent, by their number.
        overlay_links_most: most links of one node at any time that either end wanted.
        join_links_most: most joiners that one node served at any time.
        turned_away: links that were refused for lack of room.
        suspected: how often anybody was suspected, or declared failed; all lived.
    """

    nodes: int
    seeds: int
    seconds: float | None
    sizes: int
    seed_bytes_per_joiner: float
    seed_bytes_most: int
    bytes_per_node: float
    overlay_links_most: int
    join_links_most: int
    turned_away: int
    suspected: int


def bootstrap(cluster: Cluster, nodes: int, *, seeds: int = 3, within_s: float = 60.0) -> Bootstrap:
    """Start `nodes` nodes at one moment and run until all know all, or for `within_s` seconds.

    cluster: an empty one; bytes are counted until all know all, the rest until links are at rest.
    """
    sent: dict[str, int] = {}
    served: dict[tuple[NodeId, NodeId], int] = {}
    note = cluster.network.on_frame

    def on_frame(now: float, source: End, target: End, lane: Lane | None, body: bytes) -> None:
        name = source.owner.id.name
        sent[name] = sent.get(name, 0) + len(body)
        seed = seed_hosts.get(source.owner.id)
        if seed is not None and not (source.wanted_by_peer or seed.core.wants(source.peer)):
            pair = (source.owner.id, source.peer)
            served[pair] = served.get(pair, 0) + len(body)
        note(now, source, target, lane, body)

    started_at = cluster.time.now
    hosts = cluster.grow(nodes, seeds=seeds)
    seed_hosts = {host.id: host for host in hosts[:seeds]}
    cluster.network.on_frame = on_frame
    sizes: dict[int, None] = {}
    agreed = False
    while not agreed and cluster.time.now < started_at + within_s:
        cluster.run(LOOK_S)
        sizes.update((host.core.table.alive_count(), None) for host in hosts)
        agreed = cluster.agreed()
    seconds = cluster.time.now - started_at if agreed else None
    cluster.network.on_frame = note
    cluster.run(SETTLED_S)
    return Bootstrap(
        nodes=nodes,
        seeds=seeds,
        seconds=seconds,
        sizes=len(sizes),
        seed_bytes_per_joiner=max(sent.get(host.name, 0) for host in hosts[:seeds])
        / max(1, nodes - seeds),
        seed_bytes_most=max(served.values(), default=0),
        bytes_per_node=sum(sent.values()) / nodes,
        overlay_links_most=max(host.overlay_links_most for host in hosts),
        join_links_most=max(host.join_links_most for host in hosts),
        turned_away=sum(host.core.turned_away for host in hosts),
        suspected=sum(
            type(effect) in (MemberSuspected, MemberFailed)
            for _, _, effect in cluster.journal.facts
        ),
    )
