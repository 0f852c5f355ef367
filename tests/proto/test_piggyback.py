"""What rides on probes, in what order, how often."""

from random import Random

from plumtree_quic import wire
from plumtree_quic.ids import member_key
from plumtree_quic.messages import MemberState, Ping
from plumtree_quic.proto.piggyback import WAITING_MAX, Piggyback, rides_max
from tests.rigs.membership import fact, node_id

ALIVE, SUSPECT = MemberState.ALIVE, MemberState.SUSPECT
NOBODY = member_key(node_id("nobody"))


def test_a_fact_rides_three_times_the_logarithm_of_the_cluster():
    assert (rides_max(1), rides_max(7), rides_max(1_000)) == (3, 9, 30)
    riding = Piggyback()
    riding.add(fact("a", ALIVE))
    rides = 0
    while riding.take(7, NOBODY):
        rides += 1
    assert rides == 9
    assert len(riding) == 0


def test_least_sent_facts_ride_first_and_the_newest_of_them():
    riding = Piggyback()
    for i in range(60):
        riding.add(fact(f"n{i}", ALIVE))
    first = riding.take(10, NOBODY)
    second = riding.take(10, NOBODY)
    assert first[0].subject == member_key(node_id("n59"))
    assert not {f.subject for f in first} & {f.subject for f in second}


def test_facts_about_the_receiver_ride_first_so_that_it_can_refute():
    riding = Piggyback()
    riding.add(fact("accused", SUSPECT, signer="b"))
    for i in range(60):
        riding.add(fact(f"n{i}", ALIVE))
    accused = member_key(node_id("accused"))
    for _ in range(3):
        assert riding.take(10, accused)[0].subject == accused


def test_a_probe_with_facts_stays_within_1100_bytes():
    riding = Piggyback()
    for i in range(200):
        riding.add(fact(f"n{i}", ALIVE, epoch=1 << 47, incarnation=1 << 47))
    facts = riding.take(100, NOBODY)
    assert len(facts) > 8
    assert len(wire.encode(Ping(bytes(8), facts))) <= 1_100


def test_when_the_subject_speaks_accusations_stop_riding():
    riding = Piggyback()
    riding.add(fact("a", SUSPECT, signer="b"))
    riding.add(fact("a", SUSPECT, signer="c"))
    riding.add(fact("a", ALIVE, incarnation=1))
    assert [f.state for f in riding.take(10, NOBODY)] == [ALIVE]


def test_what_waits_is_bounded_and_the_oldest_leaves():
    riding = Piggyback()
    for i in range(WAITING_MAX + 10):
        riding.add(fact(f"n{i}", ALIVE))
    assert len(riding) == WAITING_MAX


def test_whoever_speaks_of_whom_in_any_order_nothing_is_kept_of_what_has_left():
    riding = Piggyback()
    rng = Random(1)
    names = [f"n{i}" for i in range(120)]
    for step in range(3_000):
        subject = rng.choice(names)
        if rng.random() < 0.5:
            riding.add(fact(subject, ALIVE, incarnation=step))
        else:
            riding.add(fact(subject, SUSPECT, signer=rng.choice([*names, "x", "y"])))
        if step % 5 == 0:
            riding.take(2, member_key(node_id(subject)))
        assert len(riding) <= WAITING_MAX
        assert {(s, by) for s, signers in riding._signers.items() for by in signers} == set(
            riding._riders
        )
    assert len(riding) > 50
