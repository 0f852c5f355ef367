"""Broadcast cores on links that only deliver, drop or end: virtual time, no signatures.

`bundle` makes unsigned bundles of any origin; `Net` runs many cores and remembers what each did.
"""

import heapq
import itertools
from random import Random

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.messages import LANE_OF, Gossip, Repair
from plumtree_quic.proto.effects import Deliver, Push, Send
from plumtree_quic.proto.plumtree import Plumtree
from plumtree_quic.wire import FRAME_BYTES_MAX, LinkDecoder, LinkEncoder, build_bundle


def node(name: str) -> NodeId:
    return NodeId(f"spiffe://test/node/{name}")


def key(name: str) -> MemberKey:
    return member_key(node(name))


def bundle(first, *, origin="o", epoch=1, count=1, payload=b"x", chunk=(0, 1, 0)):
    return build_bundle(
        origin=key(origin),
        epoch=epoch,
        first=first,
        messages=[("", payload)] * count,
        chunk=chunk,
    )


def core(name="me", *, config=None, seed=0, epoch=1):
    return Plumtree(key(name), epoch, config or PlumtreeConfig.lan(), Random(seed))


class Net:
    """Cores by name. Frames of one link arrive in order, `latency_s` after they were sent.

    codec: every frame passes through the bytes that it would be on the wire.
    """

    def __init__(self, config=None, *, seed=0, latency_s=0.0, codec=False):
        self.config = config or PlumtreeConfig.lan()
        self.rng = Random(seed)
        self.latency_s = latency_s
        self.now = 0.0
        self.cores = {}
        self.links = {}
        self.delivered = {}
        self.copies = 0
        self.facts = []
        self.sent_hook = None
        self.codec = codec
        self._codecs = {}
        self._queue = []
        self._order = itertools.count()
        self._next = {}
        self._generation = itertools.count()

    def add(self, name):
        self.cores[name] = Plumtree(key(name), 1, self.config, Random(self.rng.randrange(1 << 30)))
        self.delivered[name] = []
        self._next[name] = 1

    def link(self, a, b, latency_s=None):
        latency_s = self.latency_s if latency_s is None else latency_s
        generation = next(self._generation)
        for x, y in ((a, b), (b, a)):
            self.links[x, y] = (latency_s, generation)
        for x, y in ((a, b), (b, a)):
            self.perform(x, self.cores[x].link_up(node(y), self.now))
            self.cores[x].heard(node(y), self.now, 2 * latency_s, 10.0)

    def cut(self, a, b):
        """What is on its way is lost."""
        for x, y in ((a, b), (b, a)):
            self.links.pop((x, y), None)
        for x, y in ((a, b), (b, a)):
            if x in self.cores:
                self.perform(x, self.cores[x].link_down(node(y), self.now))

    def crash(self, name):
        peers = [y for x, y in list(self.links) if x == name]
        del self.cores[name]
        for peer in peers:
            self.cut(name, peer)

    def neighbours(self, name):
        return [y for x, y in self.links if x == name]

    def publish(self, name, count=1):
        made = bundle(self._next[name], origin=name, count=count)
        self._next[name] += count
        self.perform(name, self.cores[name].broadcast(made, self.now))
        return made

    def perform(self, name, effects):
        for effect in effects:
            match effect:
                case Deliver(made):
                    self.delivered[name].append((made.origin, made.epoch, made.first))
                case Push(peers, message):
                    for peer in peers:
                        self._send(name, peer.name, message)
                case Send(peer, message):
                    self._send(name, peer.name, message)
                case _:
                    self.facts.append((name, effect))

    def _send(self, name, peer, message):
        link = self.links.get((name, peer))
        assert link is not None, f"{name} sends to {peer}, to whom it has no link"
        if self.sent_hook is not None:
            self.sent_hook(name, peer, message)
        if self.codec:
            message = self._through_codec(name, peer, link[1], message)
        heapq.heappush(
            self._queue,
            (self.now + link[0], next(self._order), name, peer, message, link[1]),
        )

    def run(self, seconds):
        """Let `seconds` pass."""
        end = self.now + seconds
        while True:
            when, who = min(
                ((c.next_deadline() or float("inf"), n) for n, c in self.cores.items()),
                default=(float("inf"), ""),
            )
            frame_at = self._queue[0][0] if self._queue else float("inf")
            if min(when, frame_at) > end:
                break
            if frame_at <= when:
                self._arrive()
            else:
                self.now = max(self.now, when)
                self.perform(who, self.cores[who].advance(self.now))
                after = self.cores[who].next_deadline()
                assert after is None or after > self.now - 1e-9
        self.now = end

    def settle(self):
        """Let all frames arrive, with no time passing but theirs."""
        while self._queue:
            self._arrive()

    def _through_codec(self, name, peer, generation, message):
        encoder, decoder = self._codecs.setdefault(
            (name, peer, generation), (LinkEncoder(), LinkDecoder())
        )
        body = b"".join(encoder.encode(message))
        assert len(body) <= FRAME_BYTES_MAX
        decoded = decoder.decode(LANE_OF[type(message)], body)
        assert decoded == message
        return decoded

    def _arrive(self):
        when, _, sender, receiver, message, generation = heapq.heappop(self._queue)
        self.now = max(self.now, when)
        link = self.links.get((sender, receiver))
        if link is None or link[1] != generation:
            return
        if isinstance(message, Gossip | Repair):
            self.copies += 1
        self.perform(receiver, self.cores[receiver].receive(node(sender), message, self.now))


def random_mesh(net, names, links_each):
    """A ring, so that it is connected, and random links beside it."""
    for a, b in zip(names, names[1:] + names[:1], strict=True):
        if (a, b) not in net.links:
            net.link(a, b)
    for a in names:
        while len(net.neighbours(a)) < links_each:
            b = net.rng.choice(names)
            if b != a and (a, b) not in net.links:
                net.link(a, b)
