"""What a real node notices of its own stalls, sleeps and clocks, and what it does about them."""

import asyncio
import time

import attrs
import pytest

from plumtree_quic import HealthStatus
from plumtree_quic.clocks import Jump
from plumtree_quic.proto.effects import MemberFailed, MemberSuspected, Relink
from plumtree_quic.proto.health import SCORE_MAX
from tests.node.test_node import cluster


async def until(condition, timeout=15):
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


def jump(driver, slept_s, stepped_s):
    """What the clocks say at the next look, once."""
    said = iter([Jump(slept_s, stepped_s)])
    driver._clocks.look = lambda: next(said, None)


async def test_m11_a_blocked_loop_is_noticed_and_held_against_ourselves(pki):
    async with cluster(pki, "ab") as (a, _b):
        late_ms = a.stats()["swim_late_ms"]
        # Longer than the timer ever sleeps.
        time.sleep(1.6)
        await until(lambda: a.stats()["swim_late_ms"] >= late_ms + 500)
        assert a.stats()["local_health"] > 0


async def test_a_node_that_is_unwell_says_so(pki):
    async with cluster(pki, "ab") as (a, _b):
        a._driver.core._swim.health.score = SCORE_MAX
        assert a.stats()["local_health"] == SCORE_MAX
        assert a.health().status is HealthStatus.DEGRADED
        (reason,) = a.health().reasons
        assert "local health is 8 of 8" in reason
        assert "9 times as long" in reason
        a._driver.core._swim.health.score = 1
        assert a.health().reasons == ()


@pytest.mark.parametrize("step_s", [86_400.0, -86_400.0])
async def test_m12_a_wall_clock_that_is_set_accuses_nobody_and_keeps_the_links(pki, step_s):
    async with cluster(pki, "ab") as (a, b):
        driver, link_id = a._driver, a._driver._endpoint.link(b.id).link_id
        jump(driver, 0.0, step_s)
        await until(lambda: a.stats()["swim_slept_ms"] == 86_400_000)
        assert driver.core.local_health > 0
        await asyncio.sleep(0.3)
        assert driver._endpoint.link(b.id).link_id == link_id
        assert a.stats()["swim_accusations_made"] == 0


async def test_m12_after_a_sleep_that_ended_the_links_all_are_dialled_anew(pki):
    async with cluster(pki, "abc") as (a, b, c):
        driver = a._driver
        before = {each: driver._endpoint.link(each).link_id for each in (b.id, c.id)}
        told = []

        def listen(driver):
            pass_on = driver._sink.fact
            told_too = lambda effect: (told.append(effect), pass_on(effect))  # noqa: E731
            driver._sink = attrs.evolve(driver._sink, fact=told_too)

        for each in (a, b, c):
            listen(each._driver)
        jump(driver, 40.0, 0.0)
        await until(
            lambda: all(
                driver._endpoint.link(each).link_id != link_id for each, link_id in before.items()
            )
        )
        assert not [each for each in told if isinstance(each, MemberSuspected | MemberFailed)]


async def test_relinking_keeps_the_old_link_until_the_new_one_is_up(pki):
    async with cluster(pki, "ab") as (a, b):
        endpoint = a._driver._endpoint
        before = endpoint.link(b.id).link_id
        a._driver._perform([Relink(b.id)], a._driver._loop.time())
        a._driver._schedule_turn()
        while endpoint.link(b.id).link_id == before:
            assert b.id in [peer.node_id for peer in a.peers()]
            await asyncio.sleep(0.005)
        assert [peer.node_id for peer in a.peers()] == [b.id]
