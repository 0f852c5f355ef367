"""The links of a simulated cluster as a graph, and what flooding over all of them would take.

Arithmetic on what a cluster is at one moment. Nothing here runs it.
"""

import heapq
from collections.abc import Iterator, Mapping

import attrs

from plumtree_quic.sim.cluster import Cluster

__all__ = ["Flood", "Graph"]


@attrs.frozen
class Flood:
    """What the first copies of one flooded message would do, without jitter and loss.

    seconds: until the last node has it. hops: the most links that a first copy crosses.
    reached: nodes, the origin included.
    """

    seconds: float
    hops: int
    reached: int


@attrs.frozen
class Graph:
    """Per node its neighbours, each with the one-way latency in seconds."""

    links: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, cluster: Cluster) -> "Graph":
        """The links that are up at both ends now."""
        return cls(
            {
                name: {
                    peer.name: end.latency_s
                    for peer, end in host.links.items()
                    if end.link.whole() and peer.name in cluster.hosts
                }
                for name, host in cluster.hosts.items()
            }
        )

    def edges(self) -> Iterator[tuple[str, str]]:
        """Each link once."""
        for name, peers in self.links.items():
            for peer in peers:
                if name < peer:
                    yield name, peer

    def degrees(self) -> list[int]:
        """How many links each node has, ascending."""
        return sorted(len(peers) for peers in self.links.values())

    def flood(self, origin: str) -> Flood:
        """Dijkstra over latencies: a flooded message's first copies take the quickest ways."""
        best: dict[str, tuple[float, int]] = {origin: (0.0, 0)}
        queue = [(0.0, 0, origin)]
        while queue:
            seconds, hops, name = heapq.heappop(queue)
            if best[name] < (seconds, hops):
                continue
            for peer, latency_s in self.links[name].items():
                there = (seconds + latency_s, hops + 1)
                if peer not in best or there < best[peer]:
                    best[peer] = there
                    heapq.heappush(queue, (*there, peer))
        return Flood(
            max(seconds for seconds, _ in best.values()),
            max(hops for _, hops in best.values()),
            len(best),
        )

    def is_connected(self) -> bool:
        """Whether every node reaches every other one."""
        return not self.links or self.flood(next(iter(self.links))).reached == len(self.links)
