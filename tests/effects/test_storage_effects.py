"""What changing a setting of the storage changes: whether, how much, how long, and how safely."""

import pytest

from plumtree_quic import ConfigError, Node, PlumtreeConfig, QuicConfig, StorageConfig
from tests.rigs.effects import shows_effect_of
from tests.rigs.pki import Pki
from tests.rigs.waiting import until


@pytest.fixture(scope="module")
def pki():
    return Pki("test")


def node(pki, state_dir=None, **settings):
    cert = pki.node("a")
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    config = PlumtreeConfig.lan(storage=StorageConfig(**settings))
    return Node(quic, config, listen="127.0.0.1:0", state_dir=state_dir)


@shows_effect_of("storage.enabled")
@pytest.mark.parametrize("on_disk", [True, False])
async def test_storage_is_on_the_disk_with_a_state_dir_and_in_memory_without(
    pki, tmp_path, on_disk
):
    state_dir = tmp_path / "state" if on_disk else None
    async with node(pki, state_dir, enabled=True) as a:
        await a.broadcast(b"x")
        async with a.subscribe(own=True, since=0) as messages:
            assert (await anext(aiter(messages))).payload == b"x"
    assert (tmp_path / "state" / "messages.db").exists() is on_disk
    async with node(pki, state_dir) as a:
        with pytest.raises(ConfigError, match=r"storage\.enabled"):
            a.subscribe(since=0)


@shows_effect_of("storage.max_messages", "storage.max_bytes")
@pytest.mark.parametrize(
    ("settings", "kept"),
    [({}, 2_000), ({"max_messages": 1_500}, 1_500), ({"max_bytes": 1 << 20}, 1_024)],
)
async def test_what_is_above_a_bound_goes_the_oldest_first(pki, settings, kept):
    async with node(pki, enabled=True, **settings) as a:
        for number in range(2_000):
            await a.broadcast(b"%01000d" % number)
        await a.drain()
        stored = a.stats()["store_messages"]
        # Of whole bundles, which hold 1,024 messages at most.
        assert 0 < stored <= kept
        if not settings:
            assert stored == kept
        async with a.subscribe(own=True, since=0) as messages:
            assert int((await anext(aiter(messages))).payload) == 2_000 - stored


@shows_effect_of("storage.retention")
async def test_what_was_broadcast_longer_ago_than_retention_goes(pki):
    async with node(pki, enabled=True, retention=1.0) as a:
        await a.broadcast(b"x")
        await until(lambda: a.stats()["store_messages"] == 1)
        await until(lambda: a.stats()["store_messages"] == 0)
        assert a.stats()["store_evicted"] == 1


@shows_effect_of("storage.synchronous")
@pytest.mark.parametrize("synchronous", ["full", "normal"])
async def test_synchronous_is_what_the_store_is_told(pki, tmp_path, synchronous):
    # What it tells SQLite then is shown in tests/store/test_sqlite.py.
    async with node(pki, tmp_path, enabled=True, synchronous=synchronous) as a:
        assert a._store._synchronous == synchronous
