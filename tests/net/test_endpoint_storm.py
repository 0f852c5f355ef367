"""Four endpoints that want each other through everything that can happen to links, from a seed.

Restarts, cuts, closed and dropped links, needless dials, replacements, wishes that change, lost
packets. All the while the events of a node tell one story; afterwards every pair has one link.
"""

import itertools

import pytest

from plumtree_quic.net.events import LinkDown, LinkReplaced, LinkUp
from plumtree_quic.net.link import CloseCode
from tests.rigs.virtual_net import EPOCH, Net, direct

SEEDS, CHUNKS, STEPS = 24, 4, 25


class Storm:
    """A net of four nodes, and one misfortune after another."""

    def __init__(self, seed):
        self.net = Net(seed, jitter_s=0.01, loss=(0.0, 0.02, 0.1)[seed % 3])
        self.rng = self.net.rng
        self.nodes = [self.net.node(name) for name in "abcd"]
        self.epochs = itertools.count(EPOCH + 1)
        for one, other in itertools.permutations(self.nodes, 2):
            one.want(other)

    def step(self):
        self.net.run(self.rng.uniform(0.05, 2.0))
        one, other = self.rng.sample(self.nodes, 2)
        self.rng.choice(
            (
                self.replace,
                self.dial,
                self.close,
                self.restart,
                self.change_mind,
                self.cut,
                self.drop,
                self.say,
            )
        )(one, other)

    def replace(self, one, other):
        one.endpoint.replace(other.id, self.net.now)
        one.pump()

    def dial(self, one, other):
        one.dial(other)

    def close(self, one, other):
        if (link := one.link(other)) is not None:
            link.close(CloseCode.GOING_AWAY, "storm", self.net.now)
            one.pump()

    def restart(self, one, _other):
        one.crash()
        again = self.net.node(one.name, host=one.address[0], epoch=next(self.epochs))
        self.nodes[self.nodes.index(one)] = again
        for other in self.nodes:
            if other is not again:
                again.want(other)

    def change_mind(self, one, other):
        one.endpoint.unwant(other.id, self.net.now)
        one.pump()
        self.net.run(self.rng.uniform(0.0, 0.5))
        one.want(other)

    def cut(self, one, other):
        until, ends = self.net.now + self.rng.uniform(0.5, 20.0), {one.name, other.name}
        self.net.path = lambda source, destination, _data: (
            self.net.now >= until or {source.name, destination.name} != ends
        )

    def drop(self, one, other):
        if (link := one.link(other)) is not None:
            one.endpoint._hard_drop(link, self.net.now)
            # This one is the storm's, not a fault.
            one.endpoint.counters.hard_dropped -= 1
            one.pump()

    def say(self, one, other):
        one.send(other, direct(1))
        one.pump()

    def calm(self):
        self.net.path, self.net.loss = None, 0.0
        # The largest back-off, and the idle time of what does not know yet that it is dead.
        self.net.run(80.0)


def check_story(node):
    """For each peer: up, then replaced any number of times, then down, and so on."""
    now = {}
    for event in node.events:
        if isinstance(event, LinkUp):
            assert event.peer not in now, "up, and up again"
            now[event.peer] = event.link
        elif isinstance(event, LinkReplaced):
            assert now[event.peer] is not event.link
            now[event.peer] = event.link
        elif isinstance(event, LinkDown):
            assert now.pop(event.peer) is event.link, "another link is down than was up"
    assert {link.peer: link for link in node.endpoint.links()} == now


def check_dials(node):
    """Nobody who waits to be dialled is overslept."""
    endpoint = node.endpoint
    for peer, wanted in endpoint._wants.items():
        if wanted.dialling is None and peer not in endpoint._pairs:
            assert endpoint.next_deadline() <= wanted.next_dial_at


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_l1_after_a_storm_every_pair_has_one_link_and_nothing_is_left_behind(chunk):
    for seed in range(chunk, SEEDS, CHUNKS):
        storm = Storm(seed)
        for _ in range(STEPS):
            storm.step()
            for node in storm.nodes:
                check_story(node)
                check_dials(node)
        storm.calm()
        for node in storm.nodes:
            check_story(node)
            tables = node.tables()
            assert (tables["links"], tables["pairs"], tables["half_open"]) == (3, 3, 0), seed
            # Eight connection IDs a link, and two that were given up a moment ago.
            assert tables["cids"] <= 3 * 10
            assert len(node.open_links()) == 3
            assert node.endpoint.counters.hard_dropped == 0
        for one, other in itertools.combinations(storm.nodes, 2):
            ours, theirs = one.link(other), other.link(one)
            assert (ours.link_id, ours.hello.link_id) == (theirs.hello.link_id, theirs.link_id)
