"""The cache's three bounds, and finding by sequence number after any order of coming and going."""

from hypothesis import given
from hypothesis import strategies as st

from plumtree_quic.proto.cache import ENTRY_BYTES, Cache, Held
from plumtree_quic.shelf import Shelf
from tests.rigs.broadcast import bundle


def held(first, at=0.0, count=1, payload=b"x"):
    return Held(bundle(first, count=count, payload=payload), 1, at, None)


def test_a_bundle_is_found_by_any_of_its_numbers():
    cache, shelf = Cache(60, 100, 1), Shelf()
    cache.put(shelf, held(5, count=3))
    assert [shelf.find(n) is not None for n in (4, 5, 7, 8)] == [False, True, True, False]


def test_message_cache_ttl_ends_a_bundle():
    cache, shelf = Cache(60, 100, 1), Shelf()
    cache.put(shelf, held(1, at=0.0))
    cache.put(shelf, held(2, at=10.0))
    assert cache.oldest_expires_at() == 60.0
    cache.expire(60.0)
    assert shelf.held.ranges() == [(2, 2)]


def test_message_cache_max_size_counts_messages_and_evicts_the_oldest():
    cache, shelf = Cache(60, 10, 1.0), Shelf()
    for n in range(10):
        cache.put(shelf, held(1 + 2 * n, at=float(n * 5), count=2))
    assert cache.messages == 10
    assert shelf.held.ranges() == [(11, 20)]


def test_what_a_graft_may_still_ask_for_outlives_the_size_limit():
    cache, shelf = Cache(60, 4, 5.0), Shelf()
    for n in range(10):
        cache.put(shelf, held(n + 1, at=float(n) / 10))
    assert cache.messages == 10
    cache.expire(5.5)
    # 1 .. 6 came at 0.0 .. 0.5 and are older than 5 s now.
    assert shelf.held.ranges() == [(7, 10)]


def test_bytes_are_bounded_however_young_the_bundles_are():
    one = len(held(1, payload=b"y" * 1000).bundle.raw) + ENTRY_BYTES
    cache, shelf = Cache(60, 1000, 100.0, bytes_max=5 * one), Shelf()
    for n in range(20):
        cache.put(shelf, held(n + 1, payload=b"y" * 1000))
    assert cache.bytes <= 5 * one
    assert len(cache) == 5


def test_a_forgotten_epoch_frees_its_room():
    cache, old, new = Cache(60, 100, 1), Shelf(), Shelf()
    for n in range(5):
        cache.put(old, held(n + 1))
        cache.put(new, held(n + 1))
    cache.forget(old)
    assert (len(cache), cache.messages) == (5, 5)
    cache.expire(1000.0)
    assert (len(cache), cache.messages, cache.bytes) == (0, 0, 0)


@given(st.permutations(list(range(1, 30))), st.integers(0, 29))
def test_a_shelf_serves_exactly_what_came_and_did_not_leave(order, evictions):
    cache, shelf = Cache(1000, 10_000, 1), Shelf()
    for at, n in enumerate(order):
        cache.put(shelf, held(n, at=float(at)))
    cache = _expire(cache, evictions)
    left = set(order[evictions:])
    assert {n for n in range(0, 31) if shelf.find(n)} == left
    assert [e.bundle.first for e in shelf.between(5, 20)] == sorted(left & set(range(5, 21)))
    assert {n for a, b in shelf.held.ranges() for n in range(a, b + 1)} == left


def _expire(cache, evictions):
    cache.expire(1000.0 + evictions - 1)
    return cache
