"""What a busy cluster puts into which QUIC stream, recorded as the engines receive it."""

import asyncio
from collections import defaultdict

import attrs

from plumtree_quic import PlumtreeConfig
from plumtree_quic.messages import Lane
from plumtree_quic.net.engine import EVENTS, AioquicEngine
from tests.node.test_node import cluster, collect, pki  # noqa: F401
from tests.rigs.frames import frame_types

GRAFT, IHAVE, GOSSIP = 0x10, 0x20, 0x30
DATAGRAM = 0x70


async def test_gossip_ihave_and_graft_never_share_a_stream_and_probes_are_datagrams_only(
    pki,  # noqa: F811
    monkeypatch,
):
    streams = defaultdict(bytearray)
    datagrams = []
    taken = AioquicEngine.next_event

    def recording(engine):
        event = taken(engine)
        if isinstance(event, EVENTS.StreamDataReceived):
            streams[engine, event.stream_id] += event.data
        elif isinstance(event, EVENTS.DatagramFrameReceived):
            datagrams.append(event.data)
        return event

    monkeypatch.setattr(AioquicEngine, "next_event", recording)
    config = PlumtreeConfig.lan(probe_interval=0.1, probe_timeout=0.1)
    async with cluster(pki, "abcd", config) as nodes:
        # One of the pushes is lost now and then, so that there is something to graft.
        driver, pushes = nodes[0]._driver, nodes[0]._driver._push
        pushed = 0

        def forgetful(effect, now):
            nonlocal pushed
            pushed += 1
            peers = effect.peers if pushed % 3 else effect.peers[1:]
            pushes(attrs.evolve(effect, peers=peers), now)

        monkeypatch.setattr(driver, "_push", forgetful)
        subscriptions = [node.subscribe() for node in nodes[1:]]
        for number in range(60):
            await nodes[0].broadcast(b"%d" % number)
            await asyncio.sleep(0.005)
        for subscription in subscriptions:
            await collect(subscription, 60)

    kinds = {key: {kind & 0xF0 for kind in frame_types(data)} for key, data in streams.items()}
    seen = set().union(*kinds.values())
    assert {GRAFT, IHAVE, GOSSIP} <= seen
    assert DATAGRAM not in seen
    for key, found in kinds.items():
        assert len(found) <= 1, (key[1], found)
        assert found <= {streams[key][0] << 4}
        assert streams[key][0] in set(Lane)
    assert datagrams
    # 0x7f pads packet size probes; everything else is Ping or Ack.
    assert {data[0] for data in datagrams} <= {0x71, 0x72, 0x7F}
    assert {0x71, 0x72} <= {data[0] for data in datagrams}
