"""Policy and revocation on running nodes: who gets a link, who is heard, and how soon."""

import asyncio
import contextlib

import pytest
from cryptography.hazmat.primitives import hashes

from plumtree_quic import (
    ConfigError,
    Delegate,
    JoinError,
    Node,
    NotAllowed,
    PlumtreeConfig,
    Policy,
    QuicConfig,
    wire,
)
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import Gossip
from plumtree_quic.security.certs import DevCa
from plumtree_quic.security.signatures import Kind
from tests.rigs.waiting import linked, until

ALL = '[[allow]]\nidentities = ["/node/*"]\nmay = ["join", "relay", "publish"]\n'


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Files are looked at five times a second."""
    monkeypatch.setattr("plumtree_quic.node.LOOK_EVERY_S", 0.2)


class Watch(Delegate):
    def __init__(self):
        self.events = []

    def on_security_event(self, kind, fields):
        self.events.append((kind, dict(fields)))

    def of(self, kind):
        return [fields for name, fields in self.events if name == kind]


class Site:
    """A CA, a policy file and a revocation list that all nodes share."""

    def __init__(self, folder, *names):
        self.folder, self.names = folder, names
        self.ca = DevCa.create(folder, trust_domain="test")
        self.policy_path, self.crl_path = folder / "policy.toml", folder / "ca.crl"
        self.policy_path.write_text(ALL)
        self.ca.revoke()
        self.watches = {name: Watch() for name in names}
        for name in names:
            self.ca.issue(name)

    def rule(self, text):
        new = self.policy_path.with_suffix(".new")
        new.write_text(ALL + text)
        new.rename(self.policy_path)

    def quic(self, name):
        files = (self.folder / f"{name}.crt", self.folder / f"{name}.key", self.folder / "ca.crt")
        return QuicConfig(*files, crl_path=self.crl_path)

    def node(self, name, **options):
        options.setdefault("policy", self.policy_path)
        return Node(
            self.quic(name),
            PlumtreeConfig.lan(),
            listen="127.0.0.1:0",
            delegate=self.watches[name],
            **options,
        )


@contextlib.asynccontextmanager
async def running(nodes):
    async with contextlib.AsyncExitStack() as stack:
        for each in nodes:
            await stack.enter_async_context(each)
        for each in nodes[1:]:
            await each.join([nodes[0].address])
        for each in nodes:
            await each.wait_for_peers(len(nodes) - 1)
        await linked(nodes)
        yield nodes


def peers(node):
    return {peer.node_id.name for peer in node.peers()}


# --- joining ------------------------------------------------------------------------------------


async def test_h20_who_may_not_join_is_refused_in_the_handshake(tmp_path):
    site = Site(tmp_path, "a", "b")
    site.rule('[[deny]]\nidentities = ["/node/b"]\nmay = ["join"]\n')
    async with site.node("a") as a, site.node("b", policy=None) as b:
        with pytest.raises(JoinError):
            await b.join([a.address], timeout=0.1)
        # The handshake goes on, however long it takes here; then a join tells how it ended.
        await until(lambda: "access_denied" in str(b._driver.last_seed_error))
        with pytest.raises(JoinError, match="access_denied"):
            await b.join([a.address], timeout=0.1)
        assert a.peer_count() == 0
        assert site.watches["a"].of("handshake.rejected")[0]["step"] == 12


async def test_a_policy_that_changes_counts_within_a_second_and_links_go_with_it(tmp_path):
    site = Site(tmp_path, "a", "b", "c")
    async with running([site.node(name) for name in "abc"]) as (a, b, c):
        site.rule('[[deny]]\nidentities = ["/node/c"]\nmay = ["join"]\n')
        await until(lambda: peers(a) == {"b"} and peers(b) == {"a"})
        assert site.watches["a"].of("policy.changed")
        # c finds itself denied: its own copy of the file is refused, and the old one stays.
        await until(lambda: site.watches["c"].of("policy.refused"))
        site.rule("")
        await until(lambda: len(peers(a)) == len(peers(b)) == len(peers(c)) == 2)


async def test_a_policy_that_is_wrong_changes_nothing_and_is_told_once(tmp_path):
    site = Site(tmp_path, "a", "b")
    async with running([site.node(name) for name in "ab"]) as (a, _):
        site.rule("[[alow]]\n")
        await until(lambda: site.watches["a"].of("policy.refused"))
        await asyncio.sleep(0.6)
        assert len(site.watches["a"].of("policy.refused")) == 1
        assert "did you mean allow" in site.watches["a"].of("policy.refused")[0]["reason"]
        assert peers(a) == {"b"}


def test_a_policy_file_that_is_not_there_is_named_at_construction(tmp_path):
    site = Site(tmp_path, "a")
    with pytest.raises(ConfigError, match=r"nowhere\.toml \(policy\) cannot be read"):
        site.node("a", policy=tmp_path / "nowhere.toml")


# --- publishing and relaying --------------------------------------------------------------------


async def test_h20_what_an_origin_may_not_publish_it_refuses_itself_and_every_other_hop_does(
    tmp_path,
):
    site = Site(tmp_path, "a", "b", "c")
    everything = Policy.from_toml(ALL, "none", site.quic("a").node_id)
    site.rule('[[deny]]\nidentities = ["/node/a"]\nmay = ["publish"]\ntopics = ["orders"]\n')
    async with running([site.node("a", policy=everything), site.node("b"), site.node("c")]) as (
        a, b, c,
    ):  # fmt: skip
        subscriptions = [each.subscribe() for each in (b, c)]
        await a.broadcast(b"no", topic="orders")
        await until(
            lambda: (
                all(each.stats()["bundles_not_allowed"] == 1 for each in (b, c))
                or b.stats()["bundles_not_allowed"] + c.stats()["bundles_not_allowed"] == 2
            )
        )
        await a.broadcast(b"yes", topic="metrics")
        for subscription in subscriptions:
            async for message in subscription:
                assert message.payload == b"yes"
                break
        assert site.watches["b"].of("publish.refused")[0]["origin"] == a.id
        # Refused once, not asked for again and no strike: relays differ by a second.
        assert b.stats()["strikes"] == c.stats()["strikes"] == 0
        with pytest.raises(NotAllowed, match="does not let"):
            async with site.node("a") as honest:
                await honest.broadcast(b"no", topic="orders")


async def test_what_comes_from_a_peer_that_may_not_relay_counts_only_when_it_is_its_own(tmp_path):
    site = Site(tmp_path, "a", "b", "c")
    site.rule('[[deny]]\nidentities = ["/node/b"]\nmay = ["relay"]\n')
    everything = Policy.from_toml(ALL, "none", site.quic("b").node_id)
    nodes = [site.node("a"), site.node("b", policy=everything), site.node("c")]
    async with running(nodes) as (a, b, c):
        subscription = c.subscribe()
        await a.broadcast(b"one")
        await b.broadcast(b"two")
        got = set()
        async for message in subscription:
            got.add(message.payload)
            if got == {b"one", b"two"}:
                break
        await until(lambda: b.stats()["messages_delivered"] == 1)
        # b passes on a's bundle: c takes it from nobody but a, or another that may relay.
        (held,) = [
            held.bundle
            for stream in b._driver.core._plumtree._streams.values()
            for held in stream.shelf.between(1, 1)
            if held.bundle.origin == a._driver.core.key
        ]
        refused = c.stats()["gate_refused"]
        b._driver._endpoint.link(c.id).send(Gossip(2, held))
        b._driver._schedule_turn()
        await until(lambda: c.stats()["gate_refused"] > refused)
        assert c.stats()["strikes"] == 0


async def test_what_waits_for_its_origins_record_is_judged_anew_when_the_policy_changes(tmp_path):
    site = Site(tmp_path, "a", "b")
    async with running([site.node(name) for name in "ab"]) as (a, b):
        core = a._driver.core
        unknown = wire.build_bundle(
            origin=member_key(NodeId("spiffe://test/node/c")),
            epoch=1,
            first=1,
            messages=[("", b"early")],
        )
        # As it stands after the gate: verified, and of an origin whose record is on its way.
        core.receive(b.id, Gossip(1, unknown), a._driver._loop.time())
        site.rule('[[deny]]\nidentities = ["/node/c"]\nmay = ["publish"]\n')
        await until(lambda: core.parked_refused == 1)
        assert not core.has_seen(unknown)


# --- revocation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["list", "certificate", "identity"])
async def test_h18_a_revoked_certificate_loses_its_links_and_gets_no_new_ones(tmp_path, how):
    site = Site(tmp_path, "a", "b", "c")
    async with running([site.node(name) for name in "abc"]) as (a, b, c):
        subscription = a.subscribe()
        await c.broadcast(b"before")
        async for message in subscription:
            assert message.payload == b"before"
            break
        match how:
            case "list":
                site.ca.revoke("c")
            case "certificate":
                leaf = site.quic("c").credentials.leaf.fingerprint(hashes.SHA256()).hex()
                site.rule(f'[deny_certificates]\nsha256 = ["{leaf}"]\n')
            case "identity":
                site.rule(f'[deny_certificates]\nidentities = ["{c.id}"]\n')
        await until(lambda: peers(a) == {"b"} and peers(b) == {"a"})
        for name in "ab":
            assert {each["peer"] for each in site.watches[name].of("revoked.closed")} == {c.id}
        # Its dials are refused, and nothing under its key counts, whoever brings it.
        await until(lambda: site.watches["a"].of("handshake.rejected"))
        rejected = site.watches["a"].of("handshake.rejected")
        assert {(each["step"], each["alert"]) for each in rejected} == {(11, 44)}


async def test_nothing_under_a_revoked_key_passes_whoever_brings_it(tmp_path):
    site = Site(tmp_path, "a", "b", "c")
    async with running([site.node(name) for name in "abc"]) as (a, b, c):
        await c.broadcast(b"before")
        await until(lambda: a.stats()["messages_delivered"] == b.stats()["messages_delivered"] == 1)
        later = wire.build_bundle(
            origin=c._driver.core.key,
            epoch=c._driver.epoch,
            first=2,
            messages=[("", b"after")],
            **c._driver._signed(Kind.BUNDLE),
        )
        site.ca.revoke("c")
        await until(lambda: peers(a) == {"b"} and peers(b) == {"a"})
        b._driver._endpoint.link(a.id).send(Gossip(2, later))
        b._driver._schedule_turn()
        await until(lambda: site.watches["a"].of("signature.refused"))
        told = site.watches["a"].of("signature.refused")[-1]
        assert told["reason"] == "signed under a revoked certificate"
        assert a.stats()["messages_delivered"] == 1
        assert a.stats()["strikes"] == 0


async def test_a_new_list_alone_replaces_no_link_and_signs_nothing_anew(tmp_path):
    site = Site(tmp_path, "a", "b", "c")
    site.ca.issue("x")
    async with running([site.node(name) for name in "ab"]) as (a, b):
        before = a.stats()["net_replaced"], a._driver.core.record.incarnation
        site.ca.revoke("x")
        await until(lambda: a._generation == b._generation == 2)
        await asyncio.sleep(0.3)
        assert (a.stats()["net_replaced"], a._driver.core.record.incarnation) == before
        assert peers(a) == {"b"}


async def test_an_unusable_list_is_told_and_stops_nobody_unless_chosen(tmp_path):
    site = Site(tmp_path, "a", "b")
    site.crl_path.write_bytes(b"nonsense")
    async with running([site.node(name) for name in "ab"]) as (a, _):
        assert site.watches["a"].of("crl.unusable")
        assert peers(a) == {"b"}
