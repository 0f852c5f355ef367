"""Row X-17 on real links: one peer's storm of valid probes takes nobody else's away."""

import asyncio
import os

from plumtree_quic import MemberState, Node, PlumtreeConfig, QuicConfig
from plumtree_quic.messages import Ack, Ping
from plumtree_quic.proto import swim
from tests.rigs.waiting import linked

STORM = 20_000
PROBES = 100


def node(pki, name):
    cert = pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    return Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0")


class Prober:
    """Sends probes on a node's link to `target`, beside its own, and hears their echoes."""

    def __init__(self, node, target):
        self.node, self.target = node, target
        self.waiting = {}
        core = node._driver.core
        receive = core.receive

        def hear(peer, message, now):
            if isinstance(message, Ack) and message.nonce in self.waiting:
                self.waiting.pop(message.nonce).set_result(None)
            return receive(peer, message, now)

        core.receive = hear

    async def probe(self):
        loop = asyncio.get_running_loop()
        nonce = os.urandom(8)
        echo = self.waiting[nonce] = loop.create_future()
        driver = self.node._driver
        driver._endpoint.link(self.target).send_datagram(Ping(nonce), loop.time() + 5)
        driver._schedule_turn()
        try:
            async with asyncio.timeout(5):
                await echo
        except TimeoutError:
            return False
        return True


async def storm(node, target):
    """Valid probes as fast as the link takes them."""
    loop = asyncio.get_running_loop()
    driver = node._driver
    for number in range(STORM):
        link = driver._endpoint.link(target)
        link.send_datagram(Ping(number.to_bytes(8, "big")), loop.time() + 5)
        if number % 64 == 63:
            driver._schedule_turn()
            await asyncio.sleep(0)


async def test_x17_a_storm_of_probes_is_answered_up_to_a_rate_and_other_peers_lose_none(pki):
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "evil") as evil:
        for each in (b, evil):
            await each.join([a.address])
        await linked([a, b, evil])
        before = a.stats()
        prober = Prober(b, a.id)
        raging = asyncio.ensure_future(storm(evil, a.id))
        answered = 0
        began = asyncio.get_running_loop().time()
        for _ in range(PROBES):
            answered += await prober.probe()
        await raging
        spent_s = asyncio.get_running_loop().time() - began
        assert answered >= 0.99 * PROBES
        stats = a.stats()
        came = stats["swim_pings_received"] - before["swim_pings_received"]
        dropped = stats["swim_pings_dropped"] - before["swim_pings_dropped"]
        assert came > 2 * swim.PINGS_ANSWERED_BURST
        assert came - dropped <= (
            PROBES + 50 + swim.PINGS_ANSWERED_BURST + (spent_s + 1) * swim.PINGS_ANSWERED_PER_S
        )
        assert dropped > 0
        states = {member.node_id: member.state for member in b.members()}
        assert states[a.id] is MemberState.ALIVE
