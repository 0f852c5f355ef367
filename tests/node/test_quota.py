"""A member above its limits on real links: not looked at, demoted, cut; others are unharmed."""

import asyncio

from plumtree_quic import Delegate, Node, PlumtreeConfig, QuicConfig
from plumtree_quic.messages import BucketHashes, Facts
from plumtree_quic.proto.effects import Strike
from tests.rigs.waiting import linked, until


class Watch(Delegate):
    def __init__(self):
        self.events = []

    def on_security_event(self, kind, fields):
        self.events.append((kind, dict(fields)))

    def of(self, kind):
        return [fields for name, fields in self.events if name == kind]


def node(pki, name, delegate=None, **options):
    cert = pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    config = PlumtreeConfig.lan()
    return Node(quic, config, listen="127.0.0.1:0", delegate=delegate, **options)


async def test_x18_a_peer_above_its_limits_is_throttled_demoted_and_cut(pki, monkeypatch, tmp_path):
    monkeypatch.setattr("plumtree_quic.net.quota.DEMOTE_AFTER_S", 0.5)
    monkeypatch.setattr("plumtree_quic.net.quota.CUT_AFTER_S", 1.0)
    watch, log = Watch(), tmp_path / "security.jsonl"
    async with (
        node(pki, "a", watch, security_log=log) as a,
        node(pki, "b") as b,
        node(pki, "evil") as evil,
    ):
        for each in (b, evil):
            await each.join([a.address])
        await linked([a, b, evil])
        # The evil one is the parent of its own origin, until it is demoted.
        await evil.broadcast(b"mine")
        await until(lambda: a.stats()["messages_delivered"] == 1)

        async def flood():
            while True:
                link = evil._driver._endpoint.link(a.id)
                if link is None:
                    return
                for _ in range(100):
                    link.send(BucketHashes(bytes(2_048)))
                evil._driver._schedule_turn()
                await asyncio.sleep(0.01)

        raging = asyncio.ensure_future(flood())
        await until(lambda: watch.of("quota.cut"))
        raging.cancel()
        assert watch.of("quota.throttled")[0]["what"] == "BucketHashes frames"
        assert len(watch.of("quota.demoted")) == len(watch.of("quota.cut")) == 1
        assert {each["peer"] for kind, each in watch.events if "quota" in kind} == {evil.id}
        stats = a.stats()
        assert stats["frames_throttled"] > 0
        assert (stats["peers_demoted"], stats["peers_cut"]) == (1, 1)
        # Each step is in the file once an interval, not once a frame.
        assert 3 <= len(log.read_text().splitlines()) <= 10
        # And b has noticed nothing.
        await b.broadcast(b"hello")
        await until(lambda: a.stats()["messages_delivered"] == 2)
        assert b.id in {peer.node_id for peer in a.peers()}


async def test_what_every_limit_lets_through_is_not_in_the_way_of_honest_traffic(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.join([a.address])
        await linked([a, b])
        for number in range(20_000):
            await a.broadcast(b"%d" % number)
        await until(lambda: b.stats()["messages_delivered"] == 20_000)
        assert a.stats()["frames_throttled"] == b.stats()["frames_throttled"] == 0


async def test_facts_above_the_limit_are_not_verified(pki):
    async with node(pki, "a") as a, node(pki, "evil") as evil:
        await evil.join([a.address])
        await linked([a, evil])
        link = evil._driver._endpoint.link(a.id)
        for _ in range(6_000):
            link.send(Facts(()))
        evil._driver._schedule_turn()
        await until(lambda: a.stats()["frames_throttled"] > 0)


async def test_a_new_link_is_no_clean_sheet(pki):
    """What a peer may burst, and its strikes, are its own and not its link's."""
    watch = Watch()
    async with node(pki, "a", watch) as a, node(pki, "evil") as evil:
        await evil.join([a.address])
        await linked([a, evil])
        driver = a._driver
        link = evil._driver._endpoint.link(a.id)
        for _ in range(4_100):
            link.send(Facts(()))
        evil._driver._schedule_turn()
        await until(lambda: a.stats()["frames_throttled"] > 0)
        driver._perform([Strike(evil.id, "a"), Strike(evil.id, "b")], driver._loop.time())
        quota = driver._accounts.quota(evil.id)
        link.close(0x10, "again", driver._loop.time())
        evil._driver._schedule_turn()
        await until(lambda: not a.peers())
        await until(lambda: a.peers() and evil.peers())
        assert driver._accounts.quota(evil.id) is quota
        assert not watch.of("limit.hit")
        driver._perform([Strike(evil.id, "c")], driver._loop.time())
        await until(lambda: watch.of("limit.hit"))
