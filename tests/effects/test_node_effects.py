"""What changing a setting changes that acts where cores meet links: bundles, sizes, health."""

import asyncio
import contextlib
import random

import pytest

from plumtree_quic import (
    ConfigError,
    HealthStatus,
    JoinError,
    MessageTooLarge,
    Node,
    PlumtreeConfig,
    QuicConfig,
)
from plumtree_quic.admin.control import status as shown_by
from plumtree_quic.config import CompressionConfig, HealthConfig
from plumtree_quic.messages import Lane
from tests.rigs.effects import shows_effect_of
from tests.rigs.pki import Pki
from tests.rigs.waiting import WAIT_S, linked, until


@pytest.fixture(scope="module")
def pki():
    return Pki("test")


def node(pki, name, **settings):
    cert = pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    return Node(quic, PlumtreeConfig.lan(**settings), listen="127.0.0.1:0")


@contextlib.asynccontextmanager
async def pair(pki, of_a, of_b):
    async with node(pki, "a", **of_a) as a, node(pki, "b", **of_b) as b:
        await b.join([a.address])
        for each in (a, b):
            await each.wait_for_peers(1)
        await linked([a, b])
        yield a, b


async def built(pki, payloads, **settings):
    """How many bundles, and of how many bytes, these payloads of one loop iteration become."""
    async with node(pki, "a", **settings) as a:
        for payload in payloads:
            await a.broadcast(payload)
        await a.drain()
        stats = a.stats()
        return stats["bundles_built"], stats["bundle_bytes_built"]


@shows_effect_of("zone")
async def test_a_zone_is_in_the_record_and_what_the_node_shows_of_it(pki):
    async with pair(pki, {"zone": "eu"}, {"zone": "us"}) as (a, b):
        for each in (a, b):
            zones = {member.node_id: member.zone for member in each.members()}
            assert zones == {a.id: "eu", b.id: "us"}
        assert [(peer.node_id, peer.zone) for peer in a.peers()] == [(b.id, "us")]
        answer = shown_by(a)
        assert {each["node_id"]: each["zone"] for each in answer["members"]} == zones
        assert [each["zone"] for each in answer["peers"]] == ["us"]


@shows_effect_of("bundle_messages_max")
@pytest.mark.parametrize(("most", "bundles"), [(1_024, 1), (3, 4), (1, 10)])
async def test_a_bundle_has_bundle_messages_max_messages_at_most(pki, most, bundles):
    assert (await built(pki, [b"x"] * 10, bundle_messages_max=most))[0] == bundles


@shows_effect_of("bundle_bytes_max")
@pytest.mark.parametrize(("most", "bundles"), [(61_440, 1), (1_024, 4)])
async def test_a_bundle_has_bundle_bytes_max_bytes_at_most(pki, most, bundles):
    assert (await built(pki, [bytes(600)] * 4, bundle_bytes_max=most))[0] == bundles


@shows_effect_of("linger")
@pytest.mark.parametrize(("linger", "bundles"), [(0.0, 1), (10.0, 0)])
async def test_a_broadcast_waits_linger_for_company(pki, linger, bundles):
    async with node(pki, "a", linger=linger, shutdown_timeout=0.2) as a:
        await a.broadcast(b"alone")
        for _ in range(5):
            await asyncio.sleep(0)
        assert a.stats()["bundles_built"] == bundles


WORDS = [random.Random(5).randbytes(random.Random(n).randrange(3, 9)) for n in range(400)]
PROSE = b"".join(random.Random(9).choices(WORDS, k=4_000))


async def packed_bytes(pki, payload, **compression):
    return (await built(pki, [payload], compression=CompressionConfig(**compression)))[1]


@shows_effect_of("compression.enabled")
async def test_bundles_are_smaller_when_compression_is_enabled(pki):
    plain = await packed_bytes(pki, bytes(5_000), enabled=False)
    assert plain > 5_000
    assert await packed_bytes(pki, bytes(5_000), enabled=True) < 500


@shows_effect_of("compression.level")
async def test_a_higher_compression_level_makes_smaller_bundles(pki):
    low = await packed_bytes(pki, PROSE, enabled=True, level=1)
    assert await packed_bytes(pki, PROSE, enabled=True, level=19) < low


@shows_effect_of("compression.min_payload_size")
async def test_bundles_below_compression_min_payload_size_are_left_as_they_are(pki):
    small = await packed_bytes(pki, bytes(400), enabled=True, min_payload_size=300)
    assert await packed_bytes(pki, bytes(400), enabled=True, min_payload_size=500) > small + 300


@shows_effect_of("compression.algorithm")
def test_a_compression_algorithm_that_the_wire_lacks_is_refused():
    assert CompressionConfig(algorithm="zstd").algorithm == "zstd"
    with pytest.raises(ConfigError, match="algorithm is 'gzip'; allowed: 'zstd'"):
        CompressionConfig(algorithm="gzip")


@shows_effect_of("max_message_size")
async def test_a_message_above_max_message_size_is_not_sent(pki):
    async with node(pki, "a", max_message_size=10) as a:
        await a.broadcast(bytes(10))
        with pytest.raises(MessageTooLarge, match=r"11 bytes.*max_message_size \(10\)"):
            await a.broadcast(bytes(11))
    async with node(pki, "a", max_message_size=11) as a:
        await a.broadcast(bytes(11))


@shows_effect_of("max_message_size")
async def test_a_message_above_max_message_size_is_not_delivered(pki):
    async with (
        pair(pki, {}, {"max_message_size": 10}) as (a, b),
        b.subscribe() as messages,
    ):
        await a.broadcast(bytes(11))
        await a.broadcast(bytes(10))
        async with asyncio.timeout(WAIT_S):
            async for message in messages:
                assert message.payload == bytes(10)
                break
        assert b.stats()["messages_oversized"] == 1


@shows_effect_of("lane_window")
@pytest.mark.parametrize("window", [139_264, 1 << 20])
async def test_lane_window_bytes_may_be_on_their_way_on_a_lane(pki, window):
    async with pair(pki, {"lane_window": window}, {"lane_window": window}) as (a, b):
        room = a._driver._endpoint.link(b.id).room(Lane.GOSSIP)
        # Whatever the greeting left uncredited is small.
        assert window - 16_384 < room <= window


@shows_effect_of("shutdown_timeout")
async def test_leaving_takes_shutdown_timeout_when_a_peer_does_not_answer(pki):
    async with pair(pki, {"shutdown_timeout": 0.4}, {"shutdown_timeout": 0.4}) as (a, b):
        # b hears nothing any more: what a sends to it stays unacknowledged.
        asyncio.get_running_loop().remove_reader(b._driver._socket._socket.fileno())
        await a.broadcast(b"into the void")
        async with asyncio.timeout(WAIT_S):
            await a.leave()
    async with pair(pki, {"shutdown_timeout": 300.0}, {"shutdown_timeout": 0.4}) as (a, b):
        asyncio.get_running_loop().remove_reader(b._driver._socket._socket.fileno())
        await a.broadcast(b"into the void")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await a.leave()
        await a.shutdown()


@shows_effect_of("sign")
async def test_a_cluster_signs_unless_all_of_it_says_that_it_does_not(pki):
    async with pair(pki, {"sign": "all"}, {"sign": "all"}) as (a, b):
        checked = b.stats()["keys_signatures_checked"]
        await a.broadcast(b"signed")
        await until(lambda: b.stats()["messages_delivered"] == 1)
        assert b.stats()["keys_signatures_checked"] > checked
    async with pair(pki, {"sign": "off"}, {"sign": "off"}) as (a, b):
        await a.broadcast(b"not signed")
        await until(lambda: b.stats()["messages_delivered"] == 1)
        assert "keys_signatures_checked" not in b.stats()
    async with node(pki, "a", sign="all") as a, node(pki, "b", sign="off") as b:
        with pytest.raises(JoinError):
            await b.join([a.address], timeout=0.1)
        # The handshake goes on, however long it takes here; then a join tells how it ended.
        await until(lambda: "`sign`" in str(b._driver.last_seed_error))
        with pytest.raises(JoinError, match="give all nodes the same `sign`"):
            await b.join([a.address], timeout=0.1)


# --- health -------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def judged(pki, **thresholds):
    async with node(pki, "a", health=HealthConfig(**thresholds)) as a:
        assert a.health().status is HealthStatus.HEALTHY
        yield a, a._driver.core


def grafts(a, *, sent, failed):
    for what, count in (("graft_sent", sent), ("graft_failed", failed)):
        for _ in range(count):
            a._note(what)


@shows_effect_of("health.graft_failure_rate_unhealthy", "health.graft_failure_rate_degraded")
@pytest.mark.parametrize(
    ("failed", "degraded", "unhealthy", "status"),
    [
        (50, 0.6, 0.8, HealthStatus.HEALTHY),
        (50, 0.4, 0.8, HealthStatus.DEGRADED),
        (50, 0.2, 0.4, HealthStatus.UNHEALTHY),
    ],
)
async def test_failed_grafts_above_a_share_are_degraded_or_unhealthy(
    pki, failed, degraded, unhealthy, status
):
    thresholds = {
        "graft_failure_rate_degraded": degraded,
        "graft_failure_rate_unhealthy": unhealthy,
    }
    async with judged(pki, **thresholds) as (a, _):
        grafts(a, sent=100 - failed, failed=failed)
        assert a.health().status is status


@shows_effect_of("health.pending_grafts_degraded")
@pytest.mark.parametrize(
    ("limit", "status"), [(7, HealthStatus.HEALTHY), (6, HealthStatus.DEGRADED)]
)
async def test_more_than_pending_grafts_degraded_missing_ranges_are_degraded(
    pki, monkeypatch, limit, status
):
    async with judged(pki, pending_grafts_degraded=limit) as (a, core):
        monkeypatch.setattr(core.broadcasts, "missing_count", lambda: 7)
        assert a.health().status is status


@shows_effect_of("health.cache_utilization_degraded")
@pytest.mark.parametrize(
    ("limit", "status"), [(0.9, HealthStatus.HEALTHY), (0.5, HealthStatus.DEGRADED)]
)
async def test_a_cache_fuller_than_cache_utilization_degraded_is_degraded(
    pki, monkeypatch, limit, status
):
    async with judged(pki, cache_utilization_degraded=limit) as (a, core):
        monkeypatch.setattr(core.broadcasts, "cache_messages", lambda: 8_000)
        assert a.health().status is status


@shows_effect_of("health.min_peers_degraded")
@pytest.mark.parametrize(
    ("limit", "status"), [(2, HealthStatus.HEALTHY), (3, HealthStatus.DEGRADED)]
)
async def test_fewer_links_than_min_peers_degraded_are_degraded(pki, monkeypatch, limit, status):
    async with judged(pki, min_peers_degraded=limit) as (a, core):
        monkeypatch.setattr(core, "peers", lambda: (None, None))
        monkeypatch.setattr(a, "peer_count", lambda: 9)
        assert a.health().status is status
