"""Certificates and CAs change under running nodes, and nothing is lost, repeated or accused."""

import asyncio
import contextlib
import datetime

import pytest

from plumtree_quic import CredentialsError, Delegate, MemberState, Node, PlumtreeConfig, QuicConfig
from tests.rigs.pki import SERVER, Pki
from tests.rigs.waiting import linked, until


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Files are looked at five times a second."""
    monkeypatch.setattr("plumtree_quic.node.LOOK_EVERY_S", 0.2)


class Watch(Delegate):
    def __init__(self):
        self.events, self.lost = [], []

    def on_security_event(self, kind, fields):
        self.events.append((kind, dict(fields)))

    def on_member_failed(self, node_id):
        self.lost.append(node_id)

    def of(self, kind):
        return [fields for name, fields in self.events if name == kind]


class Site:
    """Credentials on disk, as an operator keeps them."""

    def __init__(self, folder, *names):
        self.folder, self.names = folder, names
        self.pki = Pki("test")
        self.watches = {name: Watch() for name in names}
        for name in names:
            (folder / name).mkdir()
            self.write(name, "ca", self.pki.ca_pem)
            self.issue(name)

    def write(self, name, what, pem):
        # Renamed over, as a careful operator does.
        path = self.folder / name / f"{what}.pem"
        path.with_suffix(".new").write_bytes(pem)
        path.with_suffix(".new").chmod(0o600)
        path.with_suffix(".new").rename(path)

    def issue(self, name, pki=None, **options):
        cert = (pki or self.pki).node(name, **options)
        self.write(name, "key", cert.key_pem)
        self.write(name, "cert", cert.cert_pem)

    def quic(self, name):
        paths = [self.folder / name / f"{what}.pem" for what in ("cert", "key", "ca")]
        return QuicConfig(*paths)

    def node(self, name, **settings):
        return Node(
            self.quic(name),
            PlumtreeConfig.lan(**settings),
            listen="127.0.0.1:0",
            delegate=self.watches[name],
        )


@contextlib.asynccontextmanager
async def running(site):
    async with contextlib.AsyncExitStack() as stack:
        nodes = [site.node(name) for name in site.names]
        for each in nodes:
            await stack.enter_async_context(each)
        for each in nodes[1:]:
            await each.join([nodes[0].address])
        for each in nodes:
            await each.wait_for_peers(len(nodes) - 1)
        await linked(nodes)
        yield nodes


def fresh(node):
    """Whether all links of a node were made under its present credentials, and trusted ones."""
    endpoint = node._driver._endpoint
    return not any(endpoint._is_outdated(link) for link in endpoint.links())


class Traffic:
    """Everybody broadcasts all the time; every message must arrive once everywhere."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.sent = {node.id: 0 for node in nodes}
        self.got = {node.id: [] for node in nodes}
        self.tasks = []
        self.stopping = False

    async def __aenter__(self):
        for node in self.nodes:
            subscription = node.subscribe()
            self.tasks.append(asyncio.ensure_future(self.read(node, subscription)))
            self.tasks.append(asyncio.ensure_future(self.write(node)))
        return self

    async def read(self, node, subscription):
        async for message in subscription:
            self.got[node.id].append((message.origin, int(message.payload)))

    async def write(self, node):
        while not self.stopping:
            self.sent[node.id] += 1
            await node.broadcast(b"%d" % self.sent[node.id])
            await asyncio.sleep(0.02)

    def complete(self):
        for node in self.nodes:
            expected = {
                (origin, number)
                for origin, count in self.sent.items()
                if origin != node.id
                for number in range(1, count + 1)
            }
            if set(self.got[node.id]) != expected:
                return False
        return True

    async def __aexit__(self, *_):
        self.stopping = True
        await until(self.complete)
        for task in self.tasks:
            task.cancel()
        for got in self.got.values():
            assert len(got) == len(set(got)), "delivered twice"


async def test_a_new_certificate_counts_at_once_and_links_are_replaced_without_losing_a_message(
    tmp_path,
):
    site = Site(tmp_path, "a", "b", "c")
    async with running(site) as nodes, Traffic(nodes):
        before = {node.id: node._quic.credentials.leaf.serial_number for node in nodes}
        for name in site.names:
            site.issue(name)
        await until(lambda: all(node._generation == 2 for node in nodes))
        await until(lambda: all(fresh(node) for node in nodes))
        # A link under our own new certificate may still be one to the other's old one, for as
        # long as only the other end has replaced it.
        await until(
            lambda: all(
                link.engine.peer_certificates[0].serial_number != before[link.peer]
                for node in nodes
                for link in node._driver._endpoint.links()
            )
        )
    for watch in site.watches.values():
        assert len(watch.of("credentials.rotated")) == 1
        assert watch.lost == []
        assert watch.of("signature.refused") == []


async def test_a_new_ca_takes_over_by_overlapping_bundles_without_losing_a_message(tmp_path):
    site = Site(tmp_path, "a", "b", "c")
    new = Pki("test")
    async with running(site) as nodes, Traffic(nodes):
        for name in site.names:
            site.write(name, "ca", site.pki.ca_pem + new.ca_pem)
        await until(lambda: all(node._generation == 2 for node in nodes))
        for name in site.names:
            site.issue(name, new)
        await until(lambda: all(node._generation == 3 for node in nodes))
        await until(lambda: all(fresh(node) for node in nodes))
        for name in site.names:
            site.write(name, "ca", new.ca_pem)
        await until(lambda: all(node._generation == 4 for node in nodes))
        await until(lambda: all(fresh(node) for node in nodes))
    for watch in site.watches.values():
        assert watch.lost == []
        assert watch.of("link.untrusted") == []
        assert watch.of("signature.refused") == []


async def test_a_peer_whose_ca_is_trusted_no_more_is_cut_and_cannot_come_back(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("plumtree_quic.net.rotation.CUT_AFTER_S", 1.0)
    site = Site(tmp_path, "a", "b", "c")
    new = Pki("test")
    async with running(site) as nodes:
        a, b, c = nodes
        for name in ("a", "b"):
            site.write(name, "ca", site.pki.ca_pem + new.ca_pem)
            site.issue(name, new)
        site.write("c", "ca", site.pki.ca_pem + new.ca_pem)
        # Before they have looked at their files, all that they have is fresh.
        await until(lambda: all(node._generation == 2 for node in nodes))
        await until(lambda: all(fresh(node) for node in nodes))
        for name in ("a", "b"):
            site.write(name, "ca", new.ca_pem)
        # c still has a certificate of the old CA.
        await until(lambda: {peer.node_id for peer in a.peers()} == {b.id})
        await until(lambda: {peer.node_id for peer in b.peers()} == {a.id})
        told = [*site.watches["a"].of("link.untrusted"), *site.watches["b"].of("link.untrusted")]
        assert {fields["peer"] for fields in told} == {c.id}
        site.issue("c", new)
        await until(lambda: len(a.peers()) == len(b.peers()) == 2)


@pytest.mark.parametrize(
    "spoil",
    ["half a pair", "another node", "expired", "foreign CA", "missing usage", "no PEM", "gone"],
)
async def test_h29_bad_new_credentials_are_refused_told_once_and_change_nothing(tmp_path, spoil):
    site = Site(tmp_path, "a", "b")
    async with running(site) as (a, b):
        other = Pki("test")
        match spoil:
            case "half a pair":
                site.write("a", "cert", site.pki.node("a").cert_pem)
            case "another node":
                site.write("a", "cert", site.pki.node("x").cert_pem)
                stranger = site.pki.node("x")
                site.write("a", "key", stranger.key_pem)
                site.write("a", "cert", stranger.cert_pem)
            case "expired":
                site.issue("a", not_after=datetime.datetime.now(datetime.UTC))
            case "foreign CA":
                site.issue("a", other)
            case "missing usage":
                site.issue("a", eku=(SERVER,))
            case "no PEM":
                site.write("a", "cert", b"hello")
            case "gone":
                (tmp_path / "a" / "key.pem").unlink()
        watch = site.watches["a"]
        await until(lambda: watch.of("credentials.refused"))
        await asyncio.sleep(1.0)
        assert len(watch.of("credentials.refused")) == 1
        assert str(tmp_path / "a") in watch.of("credentials.refused")[-1]["reason"]
        with pytest.raises(CredentialsError):
            a.reload_credentials()
        assert a._generation == 1
        assert [peer.node_id for peer in b.peers()] == [a.id]
        site.issue("a")
        await until(lambda: a._generation == 2 and fresh(a))


async def test_what_is_wrong_for_a_moment_is_taken_when_both_halves_are_there(tmp_path):
    site = Site(tmp_path, "a")
    async with running(site) as (a,):
        cert = site.pki.node("a")
        site.write("a", "cert", cert.cert_pem)
        with pytest.raises(CredentialsError, match="is not the key of"):
            a.reload_credentials()
        site.write("a", "key", cert.key_pem)
        assert a.reload_credentials() is True
        assert a.reload_credentials() is False


async def test_two_nodes_of_one_process_share_their_credentials_and_both_take_new_ones(tmp_path):
    site = Site(tmp_path, "a")
    quic = site.quic("a")
    one = Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0")
    async with one:
        site.issue("a")
        assert quic.reload() is True
        assert one.reload_credentials() is True


async def test_h26_a_link_never_outlives_the_earlier_of_its_two_certificates(tmp_path):
    site = Site(tmp_path, "a", "b")
    async with running(site) as (a, b):

        def remaining(node):
            (link,) = node._driver._endpoint.links()
            return link._expires_at - asyncio.get_running_loop().time()

        # Only now: starting takes as long as it takes.
        now = datetime.datetime.now(datetime.UTC)
        site.issue("a", not_after=now + datetime.timedelta(seconds=6))
        await until(lambda: remaining(a) <= 6 and remaining(b) <= 6)
        await until(lambda: not a.peers() and not b.peers())
        assert datetime.datetime.now(datetime.UTC) >= now + datetime.timedelta(seconds=5)
        assert site.watches["a"].of("cert.expiring")
        site.issue("a")
        await until(lambda: len(a.peers()) == len(b.peers()) == 1)
        states = {member.node_id: member.state for member in b.members()}
        assert states[a.id] is not MemberState.LEFT


async def test_h35_a_wall_clock_that_jumps_is_told_and_trust_is_judged_again(tmp_path, monkeypatch):
    site = Site(tmp_path, "a", "b")
    async with running(site) as (a, b):
        judged = []
        ring = a._driver._ring
        monkeypatch.setattr(ring, "judge_again", lambda: judged.append("signatures"))
        wall = a._driver._endpoint._clock._wall
        jump = datetime.timedelta(hours=1)
        monkeypatch.setattr(a._driver._endpoint._clock, "_wall", lambda: wall() + jump)
        await until(lambda: site.watches["a"].of("clock.jump"))
        assert site.watches["a"].of("clock.jump")[0]["by_s"] in range(3_599, 3_602)
        assert judged
        assert [peer.node_id for peer in a.peers()] == [b.id]
