"""What a node and its store owe each other: order, safety, and what others ask the store for."""

from plumtree_quic import ledger
from plumtree_quic.ledger import PAGE_BYTES, Ledger
from plumtree_quic.messages import Digest, GraftRefused, RefusedReason, Repair
from plumtree_quic.proto.effects import Deliver, FloorMoved, Forgotten, Greeted, Serve, Skipped
from plumtree_quic.store.contract import Committed
from plumtree_quic.store.memory import MemoryStore
from plumtree_quic.wire import parse_bundle
from tests.rigs.broadcast import bundle, core, key, node

STREAM = (key("o"), 1)
P, Q = node("p"), node("q")


class Outside:
    """A driver with links that have as much room as the test says."""

    def __init__(self):
        self.handed = []
        self.answers = []
        self.backlogs = {P: 0, Q: 0}

    def hand_over(self, kept):
        self.handed.append((kept.bundle.first, kept.at))

    def sync_backlog(self, peer):
        return self.backlogs.get(peer)

    def answer(self, peer, message):
        assert peer in self.backlogs
        if isinstance(message, Digest):
            self.answers.append((peer, message))
        elif isinstance(message, Repair):
            self.backlogs[peer] += len(message.bundle.raw)
            self.answers.append((peer, message.bundle.first))
        else:
            assert isinstance(message, GraftRefused)
            self.answers.append((peer, message.reason, *message.ranges))

    def chain_of(self, key_id):
        return (b"chain of " + key_id,)

    def wall_ms(self):
        return 0


class Slow(MemoryStore):
    """Durable in name: the test says when something is safe."""

    durable = True


class Rig:
    def __init__(self, store=None):
        self.store = store or MemoryStore()
        self.core = core()
        self.outside = Outside()
        self.ledger = Ledger(self.store, node("me"), lambda: self.core, self.outside)
        self.store.attach(lambda then: then(), self.ledger.committed)

    def deliver(self, first, **what):
        made = bundle(first, **what)
        self.ledger.delivered(Deliver(made, 1, P), node("o"))

    def asked(self, *ranges, peer=P):
        self.ledger.note(Serve(peer, *STREAM, ranges))


def test_what_is_delivered_is_handed_over_when_it_is_safe_and_in_that_order():
    rig = Rig(Slow())
    rig.deliver(1)
    rig.deliver(2)
    assert rig.outside.handed == []
    assert rig.ledger.is_pending(STREAM)
    rig.ledger.committed(Committed(1))
    assert rig.outside.handed == [(1, 1)]
    assert rig.ledger.is_pending(STREAM)
    rig.ledger.committed(Committed(2))
    assert rig.outside.handed == [(1, 1), (2, 2)]
    assert not rig.ledger.is_pending(STREAM)
    assert not rig.ledger.is_waiting


def test_a_store_that_is_not_durable_holds_nothing_up():
    rig = Rig()
    rig.deliver(1)
    assert rig.outside.handed == [(1, 1)]


def test_a_broadcast_is_accepted_when_it_is_safe():
    rig = Rig(Slow())
    accepted = []
    rig.ledger.broadcast(bundle(1, origin="me"), lambda: accepted.append(1))
    assert accepted == []
    rig.ledger.committed(Committed(1))
    assert accepted == [1]


def test_only_what_is_safe_is_on_offer_and_what_was_let_go_is_not():
    rig = Rig(Slow())
    rig.core.recover(STREAM, [(1, 9)], [], [])
    rig.deliver(1, count=3)
    held = rig.core._streams[STREAM].held_runs
    assert held() == []
    rig.ledger.committed(Committed(1))
    assert held() == [(1, 3)]
    rig.ledger.committed(Committed(1, ((STREAM, (1, 2)),)))
    assert held() == [(3, 3)]


def test_what_the_core_says_of_seen_floor_and_epochs_is_remembered():
    rig = Rig()
    rig.ledger.note(Skipped(*STREAM, 1, 2))
    rig.ledger.note(FloorMoved(*STREAM, ((5, 6),)))
    rig.ledger.note(Skipped(key("p"), 1, 1, 1))
    rig.ledger.note(Forgotten(key("p"), 1))
    rig.ledger.note(Greeted())
    recovered = rig.store.open(parse_bundle, 0)
    assert recovered.joined
    assert [(each.key, each.seen, each.floor) for each in recovered.streams] == [
        (STREAM, ((1, 2),), ((5, 6),))
    ]


def test_a_core_is_told_what_a_former_life_left():
    former = Rig()
    former.deliver(3, count=2)
    former.ledger.note(FloorMoved(*STREAM, ((1, 2),)))
    former.ledger.note(Greeted())
    rig = Rig(former.store)
    rig.ledger.recover(former.store.open(parse_bundle, 0))
    stream = rig.core._streams[STREAM]
    assert stream.seen.ranges() == [(1, 4)]
    assert stream.claimed.ranges() == [(1, 2)]
    assert stream.held_runs() == [(3, 4)]
    assert rig.core.is_greeted


def test_certificates_go_into_the_store_with_what_they_signed():
    rig = Rig()
    rig.deliver(1)
    assert rig.store.open(parse_bundle, 0).chains == {b"": (b"chain of ",)}


def test_what_is_asked_for_is_served_page_by_page_as_the_link_has_room():
    rig = Rig()
    for first in range(1, 5):
        rig.deliver(first, payload=b"x" * (PAGE_BYTES - 2_000))
    rig.asked((1, 4))
    # One page, and one more, for the lane took the first one with less than a page waiting.
    served = [first for _, first in rig.outside.answers]
    assert served == [1, 2]
    rig.ledger.pump()
    assert len(rig.outside.answers) == 2
    rig.outside.backlogs[P] = 0
    rig.ledger.pump()
    assert [first for _, first in rig.outside.answers] == [1, 2, 3, 4]
    assert not rig.ledger.is_serving


def test_what_was_let_go_since_it_was_announced_is_gone():
    rig = Rig(MemoryStore(messages_max=3))
    for first in (1, 2, 4, 5, 7):
        rig.deliver(first)
    rig.asked((1, 8))
    gone = RefusedReason.GONE
    assert rig.outside.answers == [
        (P, gone, (1, 3)), (P, 4), (P, 5), (P, gone, (6, 6)), (P, 7), (P, gone, (8, 8)),
    ]  # fmt: skip


def test_the_same_question_is_answered_once_while_its_answer_waits():
    rig = Rig()
    rig.deliver(1)
    rig.outside.backlogs[P] = 1 << 20
    rig.asked((1, 1), (1, 1))
    rig.asked((1, 1))
    rig.outside.backlogs[P] = 0
    rig.ledger.pump()
    assert rig.outside.answers == [(P, 1)]


def test_a_link_that_asks_for_too_much_is_told_that_we_are_busy(monkeypatch):
    monkeypatch.setattr(ledger, "SERVING_RANGES_MAX", 2)
    rig = Rig()
    rig.outside.backlogs[P] = 1 << 20
    rig.asked((1, 1), (3, 3), (5, 5))
    assert rig.outside.answers == [(P, RefusedReason.BUSY, (5, 5))]
    assert rig.ledger.counters.ranges_unserved == 1
    rig.asked((1, 1), peer=Q)
    assert (Q, RefusedReason.GONE, (1, 1)) in rig.outside.answers


def test_what_a_link_asked_for_that_is_gone_is_not_read():
    rig = Rig()
    rig.outside.backlogs[P] = 1 << 20
    rig.asked((1, 1), (3, 3))
    assert rig.ledger.holds_back(P, Digest(()))
    del rig.outside.backlogs[P]
    rig.ledger.link_down(P)
    rig.ledger.pump()
    assert rig.outside.answers == []
    assert rig.ledger.counters.ranges_unserved == 2


def test_rows_are_told_behind_the_bundles_that_were_asked_for():
    rig = Rig()
    rig.deliver(1)
    rows = Digest(())
    assert not rig.ledger.holds_back(P, rows)
    rig.outside.backlogs[P] = 1 << 20
    rig.asked((1, 1))
    assert rig.ledger.holds_back(P, rows)
    assert not rig.ledger.holds_back(P, Repair(1, bundle(2)))
    assert not rig.ledger.holds_back(Q, rows)
    rig.outside.backlogs[P] = 0
    rig.ledger.pump()
    assert rig.outside.answers == [(P, 1), (P, rows)]
    assert not rig.ledger.is_serving


def test_of_rows_that_wait_behind_bundles_no_more_are_kept_than_of_ranges(monkeypatch):
    monkeypatch.setattr(ledger, "SERVING_RANGES_MAX", 3)
    rig = Rig()
    rig.deliver(1)
    rig.outside.backlogs[P] = 1 << 20
    rig.asked((1, 1))
    pages = [Digest((), round=number) for number in (1, 2, 3)]
    assert all(rig.ledger.holds_back(P, page) for page in pages)
    assert rig.ledger.counters.rows_unserved == 1
    rig.outside.backlogs[P] = 0
    rig.ledger.pump()
    assert rig.outside.answers == [(P, 1), (P, pages[0]), (P, pages[1])]
