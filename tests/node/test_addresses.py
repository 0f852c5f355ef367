"""Addresses that a member writes into its record are dialled, or are nothing; none raises."""

import asyncio

import pytest

from plumtree_quic import Node, NodeId
from plumtree_quic.proto.effects import Link
from plumtree_quic.security.credentials import QuicConfig
from tests.rigs.pki import Pki

PKI = Pki("test")
PEER = NodeId.parse("spiffe://test/node/peer")


@pytest.fixture
async def driver():
    """The driver of a running node."""
    cert = PKI.node("a")
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=PKI.ca_pem)
    async with Node(quic, listen="127.0.0.1:0") as node:
        yield node._running()


@pytest.mark.parametrize(
    "address",
    [
        "1.2.3.4:99999", "[::1]:", "1.2.3.4:" + "9" * 5000, "[x\0y]:7", "x\0y:7", "\u00b2:1",
        "123.456.789.1:5", "[node.invalid]:1", "", ":", "x", "-:1",
    ],
)  # fmt: skip
async def test_whatever_a_record_says_the_good_address_beside_it_is_dialled(
    driver, address, monkeypatch, caplog
):
    asked, wanted = [], []

    async def getaddrinfo(host, port, **_):
        asked.append(host)
        raise OSError("no such host")

    monkeypatch.setattr(driver._loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(
        driver._endpoint, "want", lambda peer, addresses, now: wanted.extend(addresses)
    )
    now = driver._loop.time()
    driver._perform([Link(PEER, (address, "127.0.0.1:9"))], now)
    await asyncio.gather(*driver._resolving)
    assert wanted == [("127.0.0.1", 9)]
    assert driver.counters.errors == 0
    assert not caplog.records


async def test_a_name_that_resolves_to_something_odd_raises_nowhere(driver, monkeypatch, caplog):
    """The resolver itself raises many kinds of errors for text that is no name."""
    for host in ("x\0y", "x" * 300, "\ud800"):
        driver._perform([Link(PEER, (f"{host}:7",))], driver._loop.time())
    done = await asyncio.gather(*driver._resolving, return_exceptions=True)
    assert [each for each in done if each is not None] == []
    assert not caplog.records
