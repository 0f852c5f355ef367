"""Signatures on real links: who speaks is proved, whoever brings it."""

import contextlib

import pytest

from plumtree_quic import Delegate, Node, PlumtreeConfig, QuicConfig, wire
from plumtree_quic.ids import member_key
from plumtree_quic.messages import Gossip
from plumtree_quic.security.signatures import Kind
from tests.rigs.byzantine import altered
from tests.rigs.pki import make_key
from tests.rigs.waiting import linked, until


class Watch(Delegate):
    def __init__(self):
        self.events = []

    def on_security_event(self, kind, fields):
        self.events.append((kind, dict(fields)))

    def of(self, kind):
        return [fields for name, fields in self.events if name == kind]


def node(pki, name, *, cert=None, delegate=None, **settings):
    cert = cert or pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    config = PlumtreeConfig.lan(**settings)
    return Node(quic, config, listen="127.0.0.1:0", delegate=delegate)


@contextlib.asynccontextmanager
async def cluster(nodes):
    async with contextlib.AsyncExitStack() as stack:
        for each in nodes:
            await stack.enter_async_context(each)
        for each in nodes[1:]:
            await each.join([nodes[0].address])
        for each in nodes:
            await each.wait_for_peers(len(nodes) - 1)
        await linked(nodes)
        yield nodes


def delivered(nodes):
    return [each.stats()["messages_delivered"] for each in nodes]


async def test_all_four_kinds_of_keys_sign_for_each_other(pki):
    kinds = ("p256", "p384", "ed25519", "rsa2048")
    nodes = [node(pki, kind, cert=pki.node(kind, key=make_key(kind))) for kind in kinds]
    async with cluster(nodes):
        for each in nodes:
            await each.broadcast(b"mine")
        await until(lambda: delivered(nodes) == [3] * 4)
        assert all(each.stats()["gate_refused"] == 0 for each in nodes)


async def test_a_bundle_that_a_relay_alters_is_not_delivered_and_three_of_them_cut_its_link(pki):
    watch = Watch()
    a, evil, c = nodes = [node(pki, "a"), node(pki, "evil"), node(pki, "c", delegate=watch)]
    async with cluster(nodes):
        await a.broadcast(b"true")
        await until(lambda: delivered([evil, c]) == [1, 1])
        core = evil._driver.core
        (held,) = [
            held.bundle
            for stream in core._plumtree._streams.values()
            for held in stream.shelf.between(1, 1)
        ]
        for first in range(2, 5):
            later = wire.build_bundle(
                origin=held.origin,
                epoch=held.epoch,
                first=first,
                messages=[("", b"false")],
                **{
                    **evil._driver._signed(Kind.BUNDLE),
                    "key_id": held.key_id,
                },
            )
            evil._driver._endpoint.link(c.id).send(Gossip(1, later))
        evil._driver._schedule_turn()
        await until(lambda: watch.of("limit.hit"))
        refused = watch.of("signature.refused")
        assert len(refused) == 3
        assert {fields["peer"] for fields in refused} == {evil.id}
        assert {fields["what"] for fields in refused} == {"bundle"}
        assert c.stats()["messages_delivered"] == 1
        # What was forged is in nobody's way.
        for _ in range(3):
            await a.broadcast(b"true")
        await until(lambda: c.stats()["messages_delivered"] == 4)


async def test_an_altered_copy_of_what_is_held_is_refused_too(pki):
    watch = Watch()
    a, b = nodes = [node(pki, "a"), node(pki, "b", delegate=watch)]
    async with cluster(nodes):
        await a.broadcast(b"true")
        await until(lambda: delivered([b]) == [1])
        (held,) = [
            held.bundle
            for stream in b._driver.core._plumtree._streams.values()
            for held in stream.shelf.between(1, 1)
        ]
        a._driver._endpoint.link(b.id).send(Gossip(1, altered(held)))
        a._driver._schedule_turn()
        await until(lambda: watch.of("signature.refused"))
        assert not watch.of("origin.equivocated")


async def test_two_bundles_under_one_number_are_told_with_both_headers_and_signatures(pki):
    watch = Watch()
    a, b = nodes = [node(pki, "a"), node(pki, "b", delegate=watch)]
    async with cluster(nodes):
        await a.broadcast(b"to be believed")
        await until(lambda: delivered([b]) == [1])
        other = wire.build_bundle(
            origin=member_key(a.id),
            epoch=a._driver.epoch,
            first=1,
            messages=[("", b"to be doubted")],
            **a._driver._signed(Kind.BUNDLE),
        )
        a._driver._endpoint.link(b.id).send(Gossip(1, other))
        a._driver._schedule_turn()
        await until(lambda: watch.of("origin.equivocated"))
        (told,) = watch.of("origin.equivocated")
        assert told["origin"] == a.id
        assert (told["first"], told["last"]) == (1, 1)
        header, _ = other.signed_parts
        assert (told["header"], told["signature"]) == (header.hex(), other.signature.hex())
        assert told["held_signature"] not in ("", told["signature"])
        assert b.stats()["messages_delivered"] == 1
        assert b.stats()["strikes"] == 1


async def test_a_certificate_that_is_not_known_is_fetched_from_who_brings_the_bundle(pki):
    a, b = nodes = [node(pki, "a"), node(pki, "b")]
    async with cluster(nodes):
        del b._driver._ring._keys[a._driver._signer.key_id]
        await a.broadcast(b"under a certificate that b has forgotten")
        await until(lambda: delivered([b]) == [1])
        assert b.stats()["gate_certificates_asked"] >= 1
        assert a.stats()["gate_certificates_served"] >= 1


@pytest.mark.parametrize("unsigned", [True, False])
async def test_a_hello_whose_record_is_not_its_subjects_own_makes_no_link(pki, unsigned):
    watch = Watch()
    a, evil = node(pki, "a", delegate=watch), node(pki, "evil")
    async with a, evil:
        driver = evil._driver
        signed = {} if unsigned else {**driver._signed(Kind.FACT)}
        record = wire.build_record(
            node_id=evil.id,
            epoch=driver.epoch,
            incarnation=0,
            addresses=(evil.address,),
            valid_until=1 << 47,
            chain=() if unsigned else driver._signer.chain,
            **signed,
        )
        driver._endpoint._record = lambda: record
        driver.seeds([a.address])
        await until(lambda: watch.of("signature.refused"))
        assert watch.of("signature.refused")[0]["what"] == "hello"
        assert a.peer_count() == 0
        assert len(a.members()) == 1
