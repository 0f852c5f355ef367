"""`scripts/demo`'s foreign node: it is the cluster that refuses it, for the right reason."""

import io

from rich.console import Console

from plumtree_quic.cli import demo
from plumtree_quic.cli.cluster import swarm


async def test_the_cluster_refuses_the_foreign_node_and_not_the_other_way_round(monkeypatch):
    monkeypatch.setattr(demo, "NODES", 2)
    console = Console(file=io.StringIO(), width=1000)
    async with swarm() as made:
        await made.start(2)
        assert await demo._foreign(made, console)
    assert "refused us with TLS alert 48 (unknown_ca)" in console.file.getvalue()
