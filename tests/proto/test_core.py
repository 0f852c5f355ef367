"""What the core does with its halves that neither half can show alone."""

from random import Random

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.messages import Gossip
from plumtree_quic.proto.core import Core
from plumtree_quic.proto.effects import Deliver
from tests.rigs.broadcast import bundle
from tests.rigs.membership import WALL_MS, address, fact, hello, node_id, record


def core(name="m"):
    made = Core(
        record(name),
        PlumtreeConfig.lan(),
        Random(1),
        make_record=lambda incarnation: record(name, incarnation=incarnation),
        make_fact=lambda subject, epoch, incarnation, state: fact(
            name, state, signer=name, epoch=epoch, incarnation=incarnation
        ),
        wall_ms=lambda: WALL_MS,
    )
    made.start(0.0)
    return made


def drain(made, now, until):
    """Fire what is due, as the driver does; raises when time stands still."""
    for _ in range(1_000):
        deadline = made.next_deadline()
        if deadline is None or deadline > until:
            return
        now = max(now, deadline)
        made.advance(now)
    raise AssertionError(f"due again and again at {now}")


def test_who_leaves_while_a_seed_is_to_be_tried_again_does_not_spin():
    made = core()
    made.seeds([address("nobody")], 0.0)
    made.seed_failed(address("nobody"), 1.0)
    made.leave(1.5)
    drain(made, 1.5, 120.0)


def test_a_bundle_that_waits_for_its_origin_is_dropped_when_trust_changes_and_counts_as_unseen():
    made = core()
    made.link_up(node_id("a"), hello(of=record("a")), 0.0)
    early = bundle(1, origin="x")
    assert not [e for e in made.receive(node_id("a"), Gossip(1, early), 0.1) if type(e) is Deliver]
    made.judge_again()
    assert made.parked_refused == 1
    assert not made.has_seen(early)
    drain(made, 0.1, 10.0)
    assert made.parked_expired == 0
