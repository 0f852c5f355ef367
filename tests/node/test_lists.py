"""Revocation lists under running nodes: renewed, damaged, gone, stale, and our own certificate."""

import contextlib
import datetime
import functools

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from plumtree_quic import ConfigError, Delegate, Node, PlumtreeConfig, QuicConfig
from plumtree_quic.net.settings import NetSettings
from plumtree_quic.security.certs import DevCa
from tests.rigs.waiting import linked, until


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Files are looked at ten times a second."""
    monkeypatch.setattr("plumtree_quic.node.LOOK_EVERY_S", 0.1)


class Watch(Delegate):
    def __init__(self):
        self.events = []

    def on_security_event(self, kind, fields):
        self.events.append((kind, dict(fields)))

    def of(self, kind):
        return [fields for name, fields in self.events if name == kind]


class Site:
    """A CA and a revocation list that all nodes share."""

    def __init__(self, folder, *names):
        self.folder = folder
        self.ca = DevCa.create(folder, trust_domain="test")
        self.crl = self.ca.revoke()
        self.watches = {name: Watch() for name in names}
        for name in names:
            self.ca.issue(name)

    def quic(self, name, **options):
        files = (self.folder / f"{name}.crt", self.folder / f"{name}.key", self.folder / "ca.crt")
        return QuicConfig(*files, crl_path=self.crl, **options)

    def node(self, name, **options):
        return Node(
            self.quic(name, **options),
            PlumtreeConfig.lan(),
            listen="127.0.0.1:0",
            delegate=self.watches[name],
        )

    def write_list(self, ends_s):
        """A list that revokes nobody, until so many seconds from now."""
        key = load_pem_private_key((self.folder / "ca.key").read_bytes(), None)
        now = datetime.datetime.now(datetime.UTC)
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.ca.cert.subject)
            .last_update(now - datetime.timedelta(days=1))
            .next_update(now + datetime.timedelta(seconds=ends_s))
            .sign(key, hashes.SHA256())
        )
        new = self.crl.with_suffix(".new")
        new.write_bytes(crl.public_bytes(Encoding.PEM))
        new.rename(self.crl)


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


def links(node):
    return set(node._driver._endpoint._links)


async def test_a_list_that_is_renewed_costs_no_link(tmp_path):
    site = Site(tmp_path, "a", "b")
    async with running([site.node(name) for name in "ab"]) as (a, b):
        before = links(a), links(b)
        for _ in range(3):
            told = len(site.watches["a"].of("credentials.rotated"))
            site.ca.revoke()
            await until(
                lambda told=told: (
                    len(site.watches["a"].of("credentials.rotated")) > told
                    and a._generation == b._generation
                )
            )
        assert (links(a), links(b)) == before
        assert len(a._driver._endpoint._rotation) == 0


@pytest.mark.parametrize("on_stale", ["open", "closed"])
@pytest.mark.parametrize("spoil", ["half", "gone"])
async def test_h25_a_list_that_is_damaged_or_gone_lets_no_revoked_one_in_and_no_other_out(
    tmp_path, monkeypatch, on_stale, spoil
):
    # Who was refused waits half a minute: a busy machine could miss the one dial before that.
    eager = functools.partial(NetSettings, refused_floor_s=0.0, redial_s=(0.1, 0.2))
    monkeypatch.setattr("plumtree_quic.driver.NetSettings", eager)
    site = Site(tmp_path, "a", "b", "c")
    nodes = [site.node(name, crl_on_stale=on_stale) for name in "abc"]
    async with running(nodes) as (a, b, c):
        site.ca.revoke("c")
        await until(lambda: peers(a) == {"b"} and peers(b) == {"a"})
        # By its own list, too.
        await until(lambda: site.watches["c"].of("credentials.revoked"))
        assert site.watches["c"].of("credentials.revoked") == [{"node_id": c.id}]
        if spoil == "half":
            site.crl.write_bytes(site.crl.read_bytes()[:200])
        else:
            site.crl.unlink()
        await until(lambda: site.watches["a"].of("crl.unusable"))
        rejected = a.stats()["net_rejected"]
        await until(lambda: a.stats()["net_rejected"] > rejected)
        assert peers(a) == {"b"}
        # What else there is to take is taken meanwhile.
        site.ca.issue("a", force=True)
        await until(lambda: a._quic.credentials.link_generation == 2)
        assert len(site.watches["a"].of("credentials.refused")) == 0


async def test_h25_a_list_that_becomes_stale_is_told_then_and_cuts_everybody_when_closed(tmp_path):
    site = Site(tmp_path, "a", "b")
    site.write_list(3600)
    nodes = [site.node("a", crl_on_stale="closed"), site.node("b")]
    async with running(nodes) as (a, b):
        assert site.watches["a"].of("crl.unusable") == []
        site.write_list(-1)
        for name in "ab":
            await until(lambda name=name: site.watches[name].of("crl.unusable"))
            assert "was to be renewed by" in site.watches[name].of("crl.unusable")[0]["reason"]
        await until(lambda: not peers(a))
        # A newer one heals it.
        site.write_list(3600)
        await until(lambda: peers(a) == {"b"} and peers(b) == {"a"})


async def test_h25_time_alone_makes_a_list_stale(tmp_path):
    site = Site(tmp_path, "a", "b")
    site.write_list(3600)
    async with running([site.node(name, crl_on_stale="closed") for name in "ab"]) as (a, b):
        site.write_list(2)
        await until(lambda: a._generation == b._generation == 2)
        await until(lambda: not peers(a) and not peers(b))
        assert site.watches["a"].of("revoked.closed") or site.watches["b"].of("revoked.closed")
        # One may be cut by the other before its own next look.
        await until(lambda: all(site.watches[name].of("crl.unusable") for name in "ab"))
        for name in "ab":
            # One of them may have lost the link before it looked at its own list.
            await until(lambda name=name: site.watches[name].of("crl.unusable"))
            assert len(site.watches[name].of("crl.unusable")) == 1
        assert a._generation == b._generation == 2


def test_closed_without_lists_is_an_error(tmp_path):
    site = Site(tmp_path, "a")
    site.crl = None
    with pytest.raises(ConfigError, match="give crl_path"):
        site.quic("a", crl_on_stale="closed")
