"""Pictures of a run: the overlay, one origin's tree in it, and curves. Needs matplotlib, the `sim`
extra; nothing else in the package does.
"""

from collections.abc import Sequence
from math import cos, pi, sin
from pathlib import Path

from plumtree_quic.ids import member_key
from plumtree_quic.proto.directory import ring_positions
from plumtree_quic.sim.cluster import Cluster, Host
from plumtree_quic.sim.graph import Graph
from plumtree_quic.sim.scenarios import Outcome

__all__ = ["draw"]

_LINK, _TREE, _ROOT = "#c8ccd4", "#1f6feb", "#d1242f"
# Above this many nodes links are thinner than the picture's dots.
_LINKS_DRAWN_MAX = 20_000


def draw(
    folder: Path, cluster: Cluster | None, origin: Host | None, outcome: Outcome
) -> list[Path]:
    """Write PNG files into `folder`, which is made if need be. Returns their paths.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    made = [
        _draw_curve(folder / f"{_file_name(title)}.png", title, points)
        for title, points in outcome.curves.items()
        if points
    ]
    if cluster is not None and cluster.hosts:
        made.append(_draw_overlay(folder / "overlay.png", cluster, origin))
    return made


def _places(names: Sequence[str], cluster: Cluster) -> dict[str, tuple[float, float]]:
    """Everybody in the order of ring 0, on a circle."""
    order = sorted(names, key=lambda name: ring_positions(cluster.hosts[name].id, 1)[0])
    return {
        name: (cos(2 * pi * index / len(order)), sin(2 * pi * index / len(order)))
        for index, name in enumerate(order)
    }


def _draw_overlay(path: Path, cluster: Cluster, origin: Host | None) -> Path:
    from matplotlib import pyplot
    from matplotlib.collections import LineCollection

    graph = Graph.of(cluster)
    at = _places(list(graph.links), cluster)
    figure, axes = pyplot.subplots(figsize=(9, 9))
    edges = list(graph.edges())[:_LINKS_DRAWN_MAX]
    axes.add_collection(
        LineCollection([(at[a], at[b]) for a, b in edges], colors=_LINK, linewidths=0.4)
    )
    branches: list[tuple[str, str]] = []
    if origin is not None:
        key = member_key(origin.id)
        for name, host in cluster.hosts.items():
            parent = host.core.broadcasts.parent(key)
            if parent is not None and parent.name in at:
                branches.append((parent.name, name))
        axes.add_collection(
            LineCollection([(at[a], at[b]) for a, b in branches], colors=_TREE, linewidths=0.9)
        )
    size = max(1.0, min(30.0, 6_000 / max(1, len(at))))
    xs, ys = [x for x, _ in at.values()], [y for _, y in at.values()]
    axes.scatter(xs, ys, s=size, color="#24292f", zorder=3)
    title = f"{len(at)} nodes, {len(list(graph.edges()))} links"
    if origin is not None:
        axes.scatter([at[origin.name][0]], [at[origin.name][1]], s=80, color=_ROOT, zorder=4)
        title += f"; in blue the tree of {origin.name} ({len(branches)} branches)"
    axes.set_title(title)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.autoscale_view()
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _draw_curve(path: Path, title: str, points: Sequence[tuple[float, float]]) -> Path:
    from matplotlib import pyplot

    what, _, by = title.partition(", by ")
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.plot([x for x, _ in points], [y for _, y in points], color=_TREE, linewidth=1.6)
    axes.set_xlabel(by or "message")
    axes.set_ylabel(what)
    axes.set_ylim(bottom=0)
    axes.grid(color="#eaeef2")
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _file_name(title: str) -> str:
    words = "".join(each if each.isalnum() else " " for each in title.lower()).split()
    return "-".join(words[:6])
