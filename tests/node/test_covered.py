"""`receipt.covered()` on running nodes: how many have it, who has not, how long it waits."""

import pytest

from plumtree_quic import (
    ConfigError,
    MemoryStore,
    Node,
    NotCovered,
    PlumtreeConfig,
    PlumtreeError,
    QuicConfig,
)
from tests.rigs.pki import Pki
from tests.rigs.waiting import WAIT_S, linked


@pytest.fixture(scope="module")
def pki():
    return Pki("test")


def node(pki, name, **options):
    cert = pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    return Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0", **options)


async def test_all_who_are_alive_are_counted_by_number_and_by_part(pki):
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        for each in (b, c):
            await each.join([a.address])
        await linked([a, b, c])
        receipt = await a.broadcast(b"x")
        for enough in (1, 2, 0.5, 1.0):
            coverage = await receipt.covered(enough, timeout=WAIT_S)
            assert coverage.count >= (enough if isinstance(enough, int) else 2 * enough)
        assert (coverage.count, coverage.missing) == (2, ())


async def test_who_has_not_got_it_is_named_when_time_is_over(pki):
    class Held(MemoryStore):
        """Says of nothing that it is safe."""

        durable = True

        def attach(self, post, on_commit):
            pass

    async with (
        node(pki, "a") as a,
        node(pki, "b") as b,
        node(pki, "c", store=Held()) as c,
    ):
        for each in (b, c):
            await each.join([a.address])
        await linked([a, b, c])
        receipt = await a.broadcast(b"x")
        assert (await receipt.covered(1, timeout=WAIT_S)).count == 1
        with pytest.raises(NotCovered, match="1 of 2 others had message") as raised:
            await receipt.covered(timeout=0.3)
        # c has it, and not on its disk.
        assert raised.value.missing == (c.id,)
        assert isinstance(raised.value, PlumtreeError)
        assert isinstance(raised.value, TimeoutError)


async def test_nobody_else_is_all_that_there_is(pki):
    async with node(pki, "a") as a:
        receipt = await a.broadcast(b"x")
        assert (await receipt.covered(timeout=0.1)).count == 0
        with pytest.raises(NotCovered, match="0 of 0 others"):
            await receipt.covered(1, timeout=0.1)


@pytest.mark.parametrize("enough", [0, -1, 0.0, 1.1, float("nan"), True])
async def test_what_is_neither_a_count_nor_a_part_is_refused(pki, enough):
    async with node(pki, "a") as a:
        receipt = await a.broadcast(b"x")
        with pytest.raises(ConfigError, match="must be a whole number from 1"):
            await receipt.covered(enough)
