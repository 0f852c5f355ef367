"""What one node's broadcast trees cost, one tree an origin: memory, and an origin's first bundle.

    python -m benchmarks.origins                    10,000 origins, 12 links
    python -m benchmarks.origins --origins 1000 --json

One core object of a ring overlay, without links or signatures: its neighbours are made up. Each
origin's first bundle comes as a flood brings it, from every neighbour; they are pruned down to one
parent, and push from then on what the origin publishes. Times are of one core of this machine, in
one run, to be compared with one another; memory is what Python allocated (tracemalloc).
"""

import argparse
import json
import time
import tracemalloc
from random import Random

import attrs

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import Digest, DigestHashes, Gossip, Prune
from plumtree_quic.proto.effects import Push, Send
from plumtree_quic.proto.plumtree import SETTLING_BUNDLES, Plumtree
from plumtree_quic.wire import build_bundle

PAYLOAD = bytes(64)
# So many bundles of a tree are announced at once (proto/plumtree.py), and so many follow.
SETTLING = SETTLING_BUNDLES
LATER = 8
GAP_S = 0.001
HOP = 3
SETTLED_S = 10.0
IDLE_S = 3_600.0


@attrs.frozen
class Cost:
    """What it came to.

    first_us, settling_us, later_us: of one core, for all copies of an origin's first bundle, for
    one of those by which its tree settles, and for a later one. first_frames and so on: what the
    node sent for one, on all links. held_bytes: memory an origin while its bundles are kept to be
    served; idle_bytes: once they are not any more. down_ms: to be done with the loss of a
    neighbour that was the parent of its share of all trees. compare_ms: to hash what was seen when
    all of it has changed. joiner_rows: rows that a joiner gets; agreed_rows: those that a new link
    gets whose other end has seen the same.
    """

    origins: int
    links: int
    first_us: float
    settling_us: float
    later_us: float
    first_frames: float
    settling_frames: float
    later_frames: float
    held_bytes: float
    idle_bytes: float
    down_ms: float
    compare_ms: float
    joiner_rows: float
    agreed_rows: float


def _node(name):
    return NodeId(f"spiffe://bench/node/{name}")


def _frames(effects):
    return sum(
        len(each.peers) if isinstance(each, Push) else isinstance(each, Send) for each in effects
    )


class Rig:
    """A core with made-up neighbours; of those it pushes to, one stays and the others prune."""

    def __init__(self, links):
        self.now = 0.0
        self.peers = [_node(f"peer{number}") for number in range(links)]
        self.core = Plumtree(member_key(_node("me")), 1, PlumtreeConfig.lan(), Random(1))
        self.core.set_overlay((), mesh=False)
        for peer in self.peers:
            self.core.link_up(peer, 0.0)
        self.core.receive(self.peers[0], Digest(()), 0.0)
        self.frames = 0

    def push(self, peer, bundle):
        """A bundle comes from `peer`; whoever is pushed to and has a parent prunes."""
        effects = self.core.receive(peer, Gossip(HOP, bundle), self.now)
        self.frames += _frames(effects)
        targets = [to for each in effects if isinstance(each, Push) for to in each.peers]
        for target in targets[1:]:
            prune = Prune((bundle.origin,))
            self.frames += _frames(self.core.receive(target, prune, self.now))

    def compare(self, effects, kind):
        """What of `kind` is sent."""
        sends = [each.message for each in effects if isinstance(each, Send)]
        return [message for message in sends if isinstance(message, kind)]

    def rows_for(self, peer, hashes):
        """How many rows `hashes` are answered with."""
        pages = self.compare(self.core.receive(peer, hashes, self.now), Digest)
        while not pages[-1].last:
            self.now = self.core.next_deadline()
            pages += self.compare(self.core.advance(self.now), Digest)
        return sum(len(page.rows) for page in pages)

    def turn(self, seconds):
        """Run what is due."""
        end = self.now + seconds
        while (due := self.core.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.frames += _frames(self.core.advance(self.now))
        self.now = end


def _run(origins, links):
    """Yields what was found, by name, with the core as it is then."""
    keys = [member_key(_node(f"origin{number}")) for number in range(origins)]
    rig = Rig(links)
    rig.turn(SETTLED_S)
    yield "begin", 0.0
    for sequence in range(1, 1 + SETTLING + LATER + 1):
        bundles = [
            build_bundle(origin=key, epoch=1, first=sequence, messages=[("", PAYLOAD)])
            for key in keys
        ]
        rig.frames = 0
        began = time.process_time()
        for number, bundle in enumerate(bundles):
            for step in range(links if sequence == 1 else 1):
                rig.push(rig.peers[(number + step) % links], bundle)
            rig.turn(GAP_S)
        name = "first" if sequence == 1 else "settling" if sequence <= 1 + SETTLING else "later"
        yield f"{name}_us", 1e6 * (time.process_time() - began) / origins
        yield f"{name}_frames", rig.frames / origins
    began = time.process_time()
    (hashes,) = rig.compare(rig.core.link_up(_node("new"), rig.now), DigestHashes)
    yield "compare_ms", 1e3 * (time.process_time() - began)
    yield "agreed_rows", rig.rows_for(_node("new"), hashes)
    rig.core.link_up(_node("newer"), rig.now)
    yield "joiner_rows", rig.rows_for(_node("newer"), DigestHashes(bytes(2_048)))
    began = time.process_time()
    rig.core.link_down(rig.peers[0], rig.now)
    yield "down_ms", 1e3 * (time.process_time() - began)
    del bundles
    yield "held", 0.0
    rig.turn(IDLE_S)
    yield "idle", 0.0


def measure(origins, links):
    """Two runs, for counting memory makes everything slower."""
    found = {}
    for name, value in _run(origins, links):
        # Of all later bundles the mean.
        found.setdefault(name, []).append(value)
    memory = {}
    tracemalloc.start()
    for name, _ in _run(origins, links):
        memory[name] = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    figures = {
        name: sum(values) / len(values)
        for name, values in found.items()
        if name in attrs.fields_dict(Cost)
    }
    return Cost(
        origins=origins,
        links=links,
        held_bytes=(memory["held"] - memory["begin"]) / origins,
        idle_bytes=(memory["idle"] - memory["begin"]) / origins,
        **figures,
    )


def table(cost):
    """For a person."""
    return "\n".join(
        [
            f"{cost.origins} origins, {cost.links} links, bundles of one message of "
            f"{len(PAYLOAD)} bytes",
            f"an origin's first bundle, all copies  {cost.first_us:9.1f} us  "
            f"{cost.first_frames:6.2f} frames sent",
            f"one of the {SETTLING} by which it settles     {cost.settling_us:9.1f} us  "
            f"{cost.settling_frames:6.2f} frames sent",
            f"a later bundle                        {cost.later_us:9.1f} us  "
            f"{cost.later_frames:6.2f} frames sent",
            f"memory an origin, its bundles held    {cost.held_bytes:9.0f} bytes",
            f"memory an origin, an hour later       {cost.idle_bytes:9.0f} bytes",
            f"rows for a joiner                     {cost.joiner_rows:9.0f} rows",
            f"rows for a link that has seen the same{cost.agreed_rows:9.0f} rows",
            f"hashing all that was seen             {cost.compare_ms:9.1f} ms",
            f"a parent of many trees goes           {cost.down_ms:9.1f} ms",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--origins", type=int, default=10_000)
    parser.add_argument("--links", type=int, default=12)
    parser.add_argument("--json", action="store_true", help="one object on the last line")
    options = parser.parse_args()
    cost = measure(options.origins, options.links)
    print(table(cost))
    if options.json:
        print(json.dumps(attrs.asdict(cost)))


if __name__ == "__main__":
    main()
