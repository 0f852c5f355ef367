"""What a path loses is seen, and counts, on real links."""

import asyncio

from plumtree_quic import Node, PlumtreeConfig, QuicConfig
from tests.rigs.pki import Pki
from tests.rigs.relay import Faults, Relay, free_port
from tests.rigs.waiting import ASIDE, WAIT_S, linked


def _node(pki, name, real, advertised):
    cert = pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    return Node(quic, PlumtreeConfig.lan(), listen=real, advertise=advertised)


def _of_round_trip(peer):
    """What the score would be if nothing were lost."""
    return 1 / (1 + 1000 * peer.rtt_s)


async def test_a_peer_whose_path_loses_packets_scores_less_than_its_round_trip_would():
    pki = Pki("test")
    async with Relay(seed=1) as relay:
        real = [f"{ASIDE}:{free_port(ASIDE)}" for _ in "ab"]
        seen = [relay.add(name, each) for name, each in zip("ab", real, strict=True)]
        async with _node(pki, "a", real[0], seen[0]) as a, _node(pki, "b", real[1], seen[1]) as b:
            await b.join([seen[0]])
            await linked([a, b])
            relay.faults = Faults(loss=0.25, delay_s=0.002)
            async with asyncio.timeout(WAIT_S):
                (peer,) = a.peers()
                while peer.score > 0.8 * _of_round_trip(peer):
                    await a.broadcast(bytes(1_000))
                    await asyncio.sleep(0.01)
                    (peer,) = a.peers()
