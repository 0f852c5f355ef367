"""What changing a setting of the broadcast tree and of anti-entropy changes."""

from random import Random

import pytest

from plumtree_quic.config import PlumtreeConfig, SyncConfig
from plumtree_quic.messages import (
    Announcement,
    Digest,
    DigestHashes,
    DigestRow,
    Gossip,
    Graft,
    GraftEntry,
    GraftRefused,
    IHave,
    Prune,
    RefusedReason,
    Repair,
)
from plumtree_quic.proto.effects import GraftFailed, Push, Send
from plumtree_quic.proto.plumtree import Plumtree
from tests.rigs.broadcast import bundle, key, node
from tests.rigs.effects import shows_effect_of


def tree(config, links=("a", "b", "c"), *, mesh=True):
    """A core with links that are up; the first of them has nothing to tell from before."""
    core = Plumtree(key("me"), 1, config, Random(1))
    core.set_overlay((), mesh=mesh)
    for name in links:
        core.link_up(node(name), 0.0)
    core.receive(node(links[0]), Digest(()), 0.0)
    return core


def sent(effects, kind):
    return [
        each.message for each in effects if isinstance(each, Send) and type(each.message) is kind
    ]


def pushed(effects):
    return [peer for each in effects if isinstance(each, Push) for peer in each.peers]


def until(core, now, end, wanted):
    """Run from `now` to `end`; the first time at which `wanted(effects)` is not empty."""
    while True:
        due = core.next_deadline()
        if due is None or due > end:
            return None
        now = max(now, due)
        if wanted(core.advance(now)):
            return now


def many(count):
    return [f"n{number}" for number in range(count)]


@shows_effect_of("eager_fanout")
@pytest.mark.parametrize("fanout", [1, 3, 5])
def test_a_new_origin_is_pushed_on_eager_fanout_links(fanout):
    core = tree(PlumtreeConfig(eager_fanout=fanout), many(12), mesh=False)
    assert len(pushed(core.broadcast(bundle(1, origin="me"), 1.0))) == fanout


@shows_effect_of("max_eager_peers")
@pytest.mark.parametrize(("limit", "count"), [(None, 8), (5, 5)])
def test_one_origin_is_pushed_on_max_eager_peers_links_at_most(limit, count):
    core = tree(PlumtreeConfig(max_eager_peers=limit), many(8))
    assert len(pushed(core.broadcast(bundle(1, origin="me"), 1.0))) == count
    graft = Graft((GraftEntry(key("me"), 1, (), True),))
    refused = [
        message.reason
        for name in many(8)
        for message in sent(core.receive(node(name), graft, 1.0), GraftRefused)
    ]
    assert refused == [RefusedReason.FULL] * (8 - count)


@shows_effect_of("ihave_interval")
@pytest.mark.parametrize("interval", [0.05, 2.0])
def test_an_announcement_leaves_within_ihave_interval_and_not_before_half_of_it(interval):
    core = tree(PlumtreeConfig(ihave_interval=interval), many(20), mesh=False)
    core.broadcast(bundle(1, origin="me"), 1.0)
    left_at = until(core, 1.0, 20.0, lambda effects: sent(effects, IHave))
    assert 1.0 + interval / 2 <= left_at <= 1.0 + interval


@shows_effect_of("ihave_batch_size")
@pytest.mark.parametrize("size", [1, 4, 64])
def test_ihave_batch_size_announcements_leave_before_their_time(size):
    core = tree(PlumtreeConfig(ihave_batch_size=size), many(20), mesh=False)
    for number in range(1, 65):
        message = Gossip(1, bundle(1, origin=f"origin{number}"))
        if sent(core.receive(node("n0"), message, 1.0), IHave):
            break
    assert number == size


@shows_effect_of("message_cache_ttl")
@pytest.mark.parametrize(("ttl", "answer"), [(60, Repair), (10, GraftRefused)])
def test_a_message_can_be_grafted_for_message_cache_ttl(ttl, answer):
    core = tree(PlumtreeConfig(message_cache_ttl=ttl))
    core.broadcast(bundle(1, origin="me"), 1.0)
    core.advance(20.0)
    graft = Graft((GraftEntry(key("me"), 1, ((1, 1),), False),))
    assert len(sent(core.receive(node("b"), graft, 20.0), answer)) == 1


@shows_effect_of("message_cache_max_size")
@pytest.mark.parametrize(("size", "kept"), [(100, 11), (4, 4)])
def test_no_more_than_message_cache_max_size_messages_are_kept(size, kept):
    core = tree(PlumtreeConfig(message_cache_max_size=size))
    for number in range(1, 11):
        core.broadcast(bundle(number, origin="me"), 1.0)
    # Past the time in which grafts for the ten may still be on their way.
    core.broadcast(bundle(11, origin="me"), 40.0)
    assert core.cache_messages() == kept


@shows_effect_of("optimization_threshold")
@pytest.mark.parametrize(("threshold", "swaps"), [(3, True), (4, False), (255, False)])
def test_a_path_that_is_shorter_by_more_than_optimization_threshold_is_taken(threshold, swaps):
    core = tree(PlumtreeConfig(optimization_threshold=threshold))
    core.receive(node("a"), Gossip(6, bundle(1)), 1.0)
    core.receive(node("b"), Prune((key("o"),)), 1.0)
    # By b it would have come in two hops instead of six.
    effects = core.receive(node("b"), IHave((Announcement(key("o"), 1, 1, 1, 1),)), 1.0)
    assert bool(sent(effects, Graft)) is swaps
    assert bool(sent(effects, Prune)) is swaps
    assert core.parent(key("o")) == node("b" if swaps else "a")


@shows_effect_of("graft_timeout")
@pytest.mark.parametrize("timeout", [0.2, 3.0])
def test_what_was_announced_is_grafted_when_the_parent_has_not_pushed_it_for_graft_timeout(timeout):
    core = tree(PlumtreeConfig(graft_timeout=timeout))
    core.receive(node("a"), Gossip(1, bundle(1)), 1.0)
    announced = core.receive(node("b"), IHave((Announcement(key("o"), 1, 2, 2, 1),)), 2.0)
    assert sent(announced, Graft) == []
    grafted_at = until(core, 2.0, 20.0, lambda effects: sent(effects, Graft))
    assert grafted_at == pytest.approx(2.0 + timeout)


@shows_effect_of("graft_max_retries")
@pytest.mark.parametrize("retries", [0, 2, 5])
def test_a_graft_that_is_not_answered_is_repeated_graft_max_retries_times(retries):
    core = tree(PlumtreeConfig(graft_max_retries=retries, graft_timeout=0.01))
    effects = core.receive(node("b"), IHave((Announcement(key("o"), 1, 1, 1, 1),)), 1.0)
    grafts = len(sent(effects, Graft))
    while not any(isinstance(each, GraftFailed) for each in effects):
        effects = core.advance(core.next_deadline())
        grafts += len(sent(effects, Graft))
    assert grafts == 1 + retries


def served(core, now, count):
    graft = Graft((GraftEntry(key("me"), 1, ((1, 1),), False),))
    return sum(len(sent(core.receive(node("b"), graft, now), Repair)) for _ in range(count))


@shows_effect_of("graft_rate_limit_burst")
@pytest.mark.parametrize("burst", [1, 7])
def test_graft_rate_limit_burst_grafts_are_served_at_once(burst):
    core = tree(PlumtreeConfig(graft_rate_limit_burst=burst))
    core.broadcast(bundle(1, origin="me"), 1.0)
    assert served(core, 1.0, 20) == burst


@shows_effect_of("graft_rate_limit_per_second")
@pytest.mark.parametrize("rate", [1.0, 8.0])
def test_graft_rate_limit_per_second_grafts_are_served_for_long(rate):
    core = tree(PlumtreeConfig(graft_rate_limit_per_second=rate, graft_rate_limit_burst=20))
    core.broadcast(bundle(1, origin="me"), 1.0)
    assert served(core, 1.0, 40) == 20
    assert served(core, 2.0, 40) == rate


def is_answer_wanted(effects):
    return [hashes for hashes in sent(effects, DigestHashes) if hashes.answer]


@shows_effect_of("sync.enabled")
@pytest.mark.parametrize("enabled", [True, False])
def test_digests_are_compared_from_time_to_time_when_sync_is_enabled(enabled):
    core = tree(PlumtreeConfig(sync=SyncConfig(enabled=enabled)))
    assert (until(core, 0.0, 3_600.0, is_answer_wanted) is not None) is enabled


@shows_effect_of("sync.sync_interval")
@pytest.mark.parametrize("interval", [1.0, 100.0])
def test_digests_are_compared_every_sync_interval(interval):
    core = tree(PlumtreeConfig(sync=SyncConfig(sync_interval=interval)))
    at = until(core, 0.0, 3_600.0, is_answer_wanted)
    assert 0.75 * interval <= at <= 1.25 * interval


@shows_effect_of("sync.max_batch_size")
@pytest.mark.parametrize("size", [3, 50])
def test_sync_max_batch_size_ranges_of_a_digest_are_asked_for_at_once(size):
    core = tree(PlumtreeConfig(sync=SyncConfig(max_batch_size=size)))
    held = tuple((number, number) for number in range(1, 400, 2))
    effects = core.receive(node("b"), Digest((DigestRow(key("o"), 1, held),)), 1.0)
    asked = sum(len(entry.ranges) for graft in sent(effects, Graft) for entry in graft.entries)
    assert asked == size
