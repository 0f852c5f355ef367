"""Thirty cores on virtual links: what the rules of the tree add up to."""

from collections import Counter
from random import Random

import pytest

from plumtree_quic.config import PlumtreeConfig, SyncConfig
from plumtree_quic.messages import Gossip, IHave
from tests.rigs.broadcast import Net, key, node, random_mesh

NAMES = [f"n{i:02}" for i in range(30)]


def mesh(seed=0, *, links_each=6, latency_s=0.0, codec=False, **overrides):
    net = Net(PlumtreeConfig.lan(**overrides), seed=seed, latency_s=latency_s, codec=codec)
    for name in NAMES:
        net.add(name)
    random_mesh(net, NAMES, links_each)
    net.run(1.0)
    return net


def everybody_has(net, published):
    for name in net.cores:
        counts = Counter(net.delivered[name])
        expected = {(b.origin, b.epoch, b.first) for b in published if b.origin != key(name)}
        assert set(counts) == expected, f"{name} lacks {len(expected - set(counts))}"
        assert max(counts.values()) == 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rmr_is_at_most_2_percent_after_the_first_bundle_of_each_origin(seed):
    net = mesh(seed, latency_s=0.002)
    published = []
    for name in NAMES:
        published.append(net.publish(name))
    net.run(2.0)
    net.copies = 0
    after = 0
    for _ in range(10):
        for name in NAMES:
            published.append(net.publish(name))
            after += len(NAMES) - 1
        net.run(0.05)
    net.run(2.0)
    everybody_has(net, published)
    assert net.copies / after - 1 <= 0.02


def test_a_burst_before_any_prune_is_delivered_once_everywhere():
    net = mesh(5, latency_s=0.001)
    published = [net.publish(name, count=3) for _ in range(20) for name in NAMES[:5]]
    net.run(3.0)
    everybody_has(net, published)


@pytest.mark.parametrize("seed", range(6))
def test_b07_links_and_a_relay_lost_mid_stream_lose_nothing(seed):
    net = mesh(seed, latency_s=0.003, codec=True)
    published = []
    for step in range(60):
        published.append(net.publish("n00"))
        published.append(net.publish("n07"))
        net.run(0.01)
        if step in (20, 25, 30):
            relays = [p.name for p in net.cores["n00"].pushes(key("n00"))]
            if len(net.neighbours("n00")) > 2 and relays:
                net.cut("n00", relays[0])
        if step == 40:
            net.crash("n15")
    net.run(10.0)
    everybody_has(net, published)


@pytest.mark.parametrize("seed", range(4))
def test_a_partition_that_heals_is_filled_from_digests(seed):
    net = mesh(seed, latency_s=0.002, codec=True)
    net.publish("n00")
    net.publish("n20")
    net.run(1.0)
    before = {name: list(seen) for name, seen in net.delivered.items()}
    assert all(before.values())
    cut = [(a, b) for a, b in list(net.links) if a < "n15" <= b]
    for a, b in cut:
        net.cut(a, b)
    net.run(2.0)
    published = []
    for _ in range(50):
        published.append(net.publish("n00"))
        published.append(net.publish("n20"))
        net.run(0.02)
    for a, b in cut[:3]:
        net.link(a, b)
    net.run(10.0)
    for name in NAMES:
        net.delivered[name] = net.delivered[name][len(before[name]) :]
    everybody_has(net, published)


def test_every_bundle_is_pushed_or_announced_or_known_on_every_link():
    """The invariant of the whole protocol, checked on what really travels."""
    net = mesh(9, latency_s=0.002)
    told = set()

    def note(sender, receiver, message):
        if isinstance(message, Gossip):
            told.add((sender, receiver, message.bundle.origin, message.bundle.first))
        elif isinstance(message, IHave):
            for e in message.announcements:
                for seq in range(e.first, e.last + 1):
                    told.add((sender, receiver, e.origin, seq))

    net.sent_hook = note
    published = []
    for step in range(40):
        published.append(net.publish(NAMES[step % 7]))
        net.run(0.01)
        if step % 10 == 5:
            slow = net.neighbours("n03")[0]
            net.cores["n03"].congested(node(slow), net.now)
        if step % 10 == 9:
            net.cores["n03"].drained(node(slow), net.now)
    net.run(2.0)
    for made in published:
        for a, b in net.links:
            if made.origin in (key(a), key(b)):
                continue
            one_way = (a, b, made.origin, made.first) in told
            other_way = (b, a, made.origin, made.first) in told
            assert one_way or other_way


@pytest.mark.parametrize("seed", range(6))
def test_links_that_come_go_and_clog_at_random_lose_and_repeat_nothing(seed):
    rng = Random(seed)
    config = PlumtreeConfig.lan(
        max_eager_peers=rng.choice([None, 3]),
        ihave_batch_size=rng.choice([1, 8, 64]),
        sync=SyncConfig(sync_interval=5.0, max_batch_size=rng.choice([2, 100])),
    )
    net = Net(config, seed=seed, codec=True)
    names = NAMES[:12]
    for name in names:
        net.add(name)
    random_mesh(net, names, rng.randrange(2, 7))
    net.run(1.0)
    published, clogged = [], []
    for _ in range(60):
        published.append(net.publish(rng.choice(names), count=rng.choice([1, 3])))
        net.run(rng.choice([0.0, 0.001, 0.05, 0.3]))
        dice = rng.random()
        if dice < 0.07:
            net.cut(*rng.choice(sorted(net.links)))
        elif dice < 0.14:
            a, b = rng.sample(names, 2)
            if (a, b) not in net.links:
                net.link(a, b, rng.choice([0.001, 0.02, 0.1]))
        elif dice < 0.25:
            a, b = rng.choice(sorted(net.links))
            net.cores[a].congested(node(b), net.now)
            clogged.append((a, b))
        elif dice < 0.4 and clogged:
            a, b = clogged.pop()
            net.cores[a].drained(node(b), net.now)
    for a, b in clogged:
        net.cores[a].drained(node(b), net.now)
    random_mesh(net, names, 2)
    net.run(20.0)
    everybody_has(net, published)
    for core in net.cores.values():
        assert core.stats()["missing_ranges"] == 0
        for link in core._links.values():
            pushed = sum(1 for tree in core._origins.values() if tree.pushes & link.bit)
            assert link.origins_pushed == pushed


def test_the_same_seed_gives_the_same_trace():
    def trace():
        net = mesh(4, latency_s=0.001)
        lines = []
        net.sent_hook = lambda *frame: lines.append((net.now, *map(repr, frame)))
        for name in NAMES[:10]:
            net.publish(name)
        net.run(1.0)
        net.crash("n11")
        net.publish("n00")
        net.run(3.0)
        return lines

    assert trace() == trace()


def test_b12_a_joiner_gets_everything_published_after_it_joined_and_nothing_before():
    net = mesh(3, latency_s=0.002)
    for _ in range(5):
        net.publish("n00")
        net.publish("n01")
    net.run(1.0)
    before = net.copies
    duplicates = sum(core.stats()["tree_duplicates"] for core in net.cores.values())
    net.add("late")
    for peer in NAMES[5:11]:
        net.link("late", peer)
    net.run(1.0)
    assert net.delivered["late"] == []
    assert net.copies == before
    published = []
    for _ in range(20):
        published.append(net.publish("n00"))
        published.append(net.publish("n01"))
        net.run(0.02)
    net.run(2.0)
    assert Counter(net.delivered["late"]) == Counter(
        (b.origin, b.epoch, b.first) for b in published
    )
    # A tree that exists takes the joiner in without being flooded again.
    assert sum(core.stats()["tree_duplicates"] for core in net.cores.values()) == duplicates


@pytest.mark.parametrize("seed", range(4))
def test_a_joiner_in_the_middle_of_a_stream_misses_nothing_after_its_first_link(seed):
    net = mesh(seed, latency_s=0.004)
    net.add("late")
    published = []
    for step in range(60):
        made = net.publish("n00")
        if step == 20:
            for peer in NAMES[5:11]:
                net.link("late", peer)
                net.run(0.002)
        if step > 20:
            published.append(made)
        net.run(0.003)
    net.run(5.0)
    counts = Counter(net.delivered["late"])
    assert max(counts.values()) == 1
    assert {(b.origin, b.epoch, b.first) for b in published} <= set(counts)


def test_b14_a_fifth_of_members_that_announce_and_forward_nothing_stop_nothing():
    net = mesh(8, links_each=8, latency_s=0.002)
    evil = set(NAMES[24:])

    for name in evil:
        honest = net.cores[name].receive

        def receive(peer, message, now, honest=honest):
            effects = honest(peer, message, now)
            return [
                e
                for e in effects
                if type(e).__name__ not in ("Push",)
                and type(getattr(e, "message", None)).__name__ != "Repair"
            ]

        net.cores[name].receive = receive
    published = []
    for _ in range(40):
        published.append(net.publish("n00"))
        published.append(net.publish("n05"))
        net.run(0.05)
    net.run(20.0)
    for name in NAMES[:24]:
        got = set(net.delivered[name])
        assert {(b.origin, 1, b.first) for b in published if b.origin != key(name)} <= got
