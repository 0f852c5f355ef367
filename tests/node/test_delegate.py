"""Each fact of the protocol reaches the delegate method that is named after it."""

import pytest

from plumtree_quic import Delegate, Node, PlumtreeConfig, QuicConfig
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.proto.effects import (
    GraftFailed,
    GraftSent,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberSuspected,
    MemberUpdated,
    PeerDemoted,
    PeerPromoted,
    PruneSent,
)
from plumtree_quic.wire import build_record
from tests.rigs.pki import Pki

B = NodeId("spiffe://test/node/b")
RECORD = build_record(node_id=B, epoch=1, incarnation=0, addresses=(), valid_until=1)
FACTS = {
    "on_member_joined": MemberJoined(RECORD),
    "on_member_updated": MemberUpdated(RECORD),
    "on_member_suspected": MemberSuspected(B),
    "on_member_failed": MemberFailed(B),
    "on_member_left": MemberLeft(B),
    "on_eager_promotion": PeerPromoted(B),
    "on_lazy_demotion": PeerDemoted(B),
    "on_graft_sent": GraftSent(B, member_key(B), ((1, 2),)),
    "on_prune_sent": PruneSent(B, member_key(B)),
}


class Notes(Delegate):
    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda *arguments: self.calls.append((name, *arguments))
        return super().__getattribute__(name)


@pytest.fixture
async def noted():
    pki = Pki("test")
    cert = pki.node("a")
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    notes = Notes()
    async with Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:0", delegate=notes) as node:
        notes.calls.clear()
        yield node, notes.calls


@pytest.mark.parametrize("name", FACTS)
async def test_a_fact_reaches_its_method(noted, name):
    node, calls = noted
    node._driver._sink.fact(FACTS[name])
    assert calls == [(name, B)]


async def test_a_failed_graft_names_the_origin_when_it_is_known(noted):
    node, calls = noted
    node._driver._sink.fact(GraftFailed(member_key(node.id), 1, (1, 2)))
    node._driver._sink.fact(GraftFailed(member_key(B), 1, (1, 2)))
    assert calls == [("on_graft_failed", node.id), ("on_graft_failed", None)]
