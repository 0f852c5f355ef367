"""Seven node processes change all their certificates, then their CA, at 200 messages a second."""

import asyncio
from types import SimpleNamespace

from plumtree_quic.cli.cluster import Run, measure, swarm
from plumtree_quic.security.certs import DevCa
from tests.rigs.waiting import WAIT_S, until

NODES = 7
RATE = 200.0
SECONDS = 16
NO_PROGRESS = lambda delivered, expected, redundancy: None  # noqa: E731


def put(path, content):
    """Rename over, as a careful operator does."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.chmod(0o600)
    new.rename(path)


def issue_to(made, ca):
    """New certificates of `ca` for all nodes, key first: a pair is half there for a moment."""
    for worker in made.workers:
        ca.issue(worker.name, force=True)
        for suffix in ("key", "crt"):
            source = ca.directory / f"{worker.name}.{suffix}"
            if ca is not made.ca:
                put(made.directory / source.name, source.read_bytes())


async def taken(made, times):
    """Every node has taken new files so often: only then may the next step come."""
    await until(
        lambda: all(
            sum(event["event"] == "rotated" for event in worker.events) >= times
            for worker in made.workers
        )
    )


async def rotate(made, new):
    await asyncio.sleep(1.0)
    issue_to(made, made.ca)
    await taken(made, 1)
    await asyncio.sleep(3.0)
    old_pem, new_pem = ((ca.directory / "ca.crt").read_bytes() for ca in (made.ca, new))
    put(made.directory / "ca.crt", old_pem + new_pem)
    await taken(made, 2)
    await asyncio.sleep(2.0)
    issue_to(made, new)
    await taken(made, 3)
    await asyncio.sleep(3.0)
    put(made.directory / "ca.crt", new_pem)
    await taken(made, 4)


async def replaced(worker):
    """How many of its links a node has made anew by now."""
    worker.forget("report")
    worker.tell("report")
    return (await worker.wait("report"))["stats"]["net_replaced"]


def told(made, kind):
    return sum(event["event"] == kind for worker in made.workers for event in worker.events)


async def test_all_certificates_and_the_ca_are_replaced_and_no_message_is_lost():
    run = Run(messages=int(RATE * SECONDS), size=256, rate=RATE, publishers=NODES)
    async with swarm() as made:
        await made.start(NODES)
        control = await measure(made, run, NO_PROGRESS)
        assert control["lost"] == control["duplicates"] == 0
        suspected = told(made, "suspected")
    async with swarm() as made:
        new = DevCa.create(made.directory / "new", trust_domain="cluster")
        old = made.directory / "old"
        old.mkdir()
        (old / "ca.crt").write_bytes((made.directory / "ca.crt").read_bytes())
        await made.start(NODES)
        rotating = asyncio.ensure_future(rotate(made, new))
        result = await measure(made, run, NO_PROGRESS)
        await rotating
        assert (result["lost"], result["duplicates"]) == (0, 0)
        assert told(made, "failed") == 0
        assert told(made, "suspected") <= suspected
        # All of it has really happened: each node replaced its links, and the old CA is worth
        # nothing any more.
        for worker in made.workers:
            async with asyncio.timeout(WAIT_S):
                while await replaced(worker) < 2 * (NODES - 1):
                    await asyncio.sleep(0.1)
        made.ca.issue("late")
        for suffix in ("crt", "key"):
            (old / f"late.{suffix}").write_bytes((made.directory / f"late.{suffix}").read_bytes())
        stranger = await made.spawn("late", issuer=SimpleNamespace(directory=old))
        stranger.tell("join", seeds=[made.workers[0].address])
        failed = await stranger.wait("join_failed", timeout_s=60.0)
        assert "refused" in failed["error"]
