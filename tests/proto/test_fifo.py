"""The hold-back of ordered subscriptions: order, holes, epochs, bounds; and a property over all."""

from hypothesis import given
from hypothesis import strategies as st

from plumtree_quic.ids import MemberKey
from plumtree_quic.intervals import Intervals
from plumtree_quic.proto.fifo import HoldBack, Hole

A, B = MemberKey(b"a" * 16), MemberKey(b"b" * 16)
HOLD_S, QUIET_S = 10.0, 0.5


class Rig:
    """A reader of everything, and a core that knows what was seen and what is announced."""

    def __init__(self, items_max=100):
        self.back = HoldBack(hold_s=HOLD_S, quiet_s=QUIET_S, items_max=items_max)
        self.now = 0.0
        self.seen = {}
        self.missing = {}

    def see(self, first, last, origin=A, epoch=1):
        self.seen.setdefault((origin, epoch), Intervals()).add(first, last)

    def put(self, first, last=None, origin=A, epoch=1, previous=None):
        last = first if last is None else last
        self.see(first, last, origin, epoch)
        items = [(origin, epoch, seq) for seq in range(first, last + 1)]
        return self.back.put(origin, epoch, first, last, items, self.now, previous)

    def settle(self, seconds=0.0, whole=False):
        self.now += seconds
        return self.back.settle(self._through, self._awaited, self.now, whole=whole)

    def _through(self, origin, epoch, seq):
        return self.seen.get((origin, epoch), Intervals()).end_of(seq)

    def _awaited(self, origin, epoch, before):
        gaps = self.missing.get((origin, epoch), ())
        return any(before is None or first < before for first in gaps)


def seqs(out):
    return [each if isinstance(each, Hole) else each[2] for each in out]


def test_what_comes_in_order_is_handed_over_at_once():
    rig = Rig()
    assert [seqs(rig.put(1)), seqs(rig.put(2, 4)), seqs(rig.put(5))] == [[1], [2, 3, 4], [5]]
    assert rig.back.held == 0


def test_what_comes_before_its_turn_waits_for_what_is_missing():
    rig = Rig()
    rig.put(1)
    assert rig.put(4, 5) == []
    assert rig.put(3) == []
    assert rig.back.held == 3
    assert seqs(rig.put(2)) == [2, 3, 4, 5]
    assert rig.back.held == 0


def test_origins_do_not_wait_for_one_another():
    rig = Rig()
    rig.put(1)
    rig.put(3)
    assert seqs(rig.put(1, origin=B)) == [1]
    assert seqs(rig.put(2, origin=B)) == [2]


def test_what_is_given_up_is_told_at_its_place():
    rig = Rig()
    rig.put(1)
    rig.put(4)
    assert rig.settle(HOLD_S - 0.1) == []
    assert seqs(rig.settle(0.1)) == [Hole(A, 1, 2, 3), 4]
    assert seqs(rig.put(5)) == [5]


def test_each_hole_has_its_own_time():
    rig = Rig()
    rig.put(1)
    rig.put(3)
    rig.now += HOLD_S / 2
    rig.put(5)
    assert seqs(rig.settle(HOLD_S / 2)) == [Hole(A, 1, 2, 2), 3]
    # 4 holds others up from now on.
    assert rig.settle(HOLD_S - 0.1) == []
    assert seqs(rig.settle(0.1)) == [Hole(A, 1, 4, 4), 5]


def test_what_comes_after_it_was_given_up_is_not_handed_over_out_of_order():
    rig = Rig()
    rig.put(1)
    rig.put(3)
    rig.settle(HOLD_S)
    assert rig.put(2) == []
    assert rig.back.late == 1
    assert seqs(rig.put(4)) == [4]


def test_what_was_refused_or_before_our_time_is_no_hole():
    rig = Rig()
    rig.put(1)
    rig.put(4)
    rig.see(2, 3)
    assert seqs(rig.settle()) == [4]


def test_a_joiner_begins_where_its_floor_ends():
    rig = Rig()
    rig.put(12)
    assert rig.settle() == []
    rig.see(1, 10)
    assert rig.settle(QUIET_S) == []
    assert seqs(rig.put(11)) == [11, 12]


def test_a_reader_that_comes_later_begins_with_what_comes_next():
    rig = Rig()
    rig.see(1, 10)
    rig.back.begin(A, 1, 11, rig.now)
    assert rig.put(12) == []
    assert seqs(rig.put(11)) == [11, 12]


def test_a_stream_of_whose_beginning_nobody_has_told_begins_with_what_came_first():
    rig = Rig()
    rig.put(101)
    assert rig.put(100) == []
    assert seqs(rig.settle(QUIET_S)) == [100, 101]
    # Had it been before our time, nobody would have sent it: that is said.
    assert rig.put(99) == [Hole(A, 1, 99, 99)]


def test_a_beginning_that_is_announced_is_waited_for():
    rig = Rig()
    rig.missing[A, 1] = [1]
    rig.put(3)
    assert rig.settle(HOLD_S - 0.1) == []
    assert seqs(rig.settle(0.1)) == [Hole(A, 1, 1, 2), 3]


def test_a_newer_epoch_waits_until_the_older_one_is_complete():
    rig = Rig()
    rig.put(1)
    rig.put(3)
    assert rig.put(1, epoch=2) == []
    assert rig.settle(QUIET_S) == []
    assert seqs(rig.put(2)) == [2, 3]
    rig.missing[A, 1] = [4]
    assert rig.settle(QUIET_S) == []
    rig.missing[A, 1] = []
    assert rig.settle(0.0) == [(A, 2, 1)]
    assert rig.put(2, epoch=2) == [(A, 2, 2)]


def test_what_comes_of_an_older_epoch_after_a_newer_one_is_told_as_a_hole():
    rig = Rig()
    rig.put(1)
    rig.put(1, epoch=2)
    rig.settle(QUIET_S)
    assert rig.put(2, 3) == [Hole(A, 1, 2, 3)]
    assert rig.back.late == 2


def test_above_the_bound_the_first_hole_of_whoever_holds_most_is_given_up_at_once():
    # Four items in four ranges, and nothing more.
    rig = Rig(items_max=8)
    for origin in (A, B):
        rig.put(1, origin=origin)
        rig.put(3, origin=origin)
    rig.put(5, origin=B)
    rig.put(7, origin=B)
    assert seqs(rig.put(9, origin=B)) == [Hole(B, 1, 2, 2), 3]
    assert rig.back.held == 4
    assert seqs(rig.put(2)) == [2, 3]


def test_above_the_bound_of_bytes_whoever_holds_most_of_them_gives_up_its_hole():
    back = HoldBack(hold_s=HOLD_S, quiet_s=QUIET_S, items_max=100, bytes_max=1_000, weigh=len)
    for origin in (A, B):
        assert back.put(origin, 1, 1, 1, [b"x"], 0.0) == [b"x"]
    assert back.put(A, 1, 3, 3, [bytes(600)], 0.0) == []
    for seq in (3, 5, 7):
        assert back.put(B, 1, seq, seq, [bytes(100)], 0.0) == []
    assert back.put(B, 1, 9, 9, [bytes(101)], 0.0) == [Hole(A, 1, 2, 2), bytes(600)]
    # What was let go weighs nothing any more.
    assert back.put(A, 1, 5, 5, [bytes(500)], 0.0) == []
    assert back.put(B, 1, 2, 2, [b"y"], 0.0) == [b"y", bytes(100)]
    assert back.held == 4


def test_a_reader_that_goes_gets_what_was_held_with_its_holes():
    rig = Rig()
    rig.put(2)
    rig.put(5)
    rig.put(1, origin=B)
    rig.put(4, origin=B, epoch=2)
    assert rig.back.flush(rig.now) == [
        Hole(A, 1, 1, 1),
        (A, 1, 2),
        Hole(A, 1, 3, 4),
        (A, 1, 5),
        Hole(B, 2, 1, 3),
        (B, 2, 4),
    ]
    assert rig.back.held == 0


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.sets(st.integers(0, 11)),
    st.integers(1, 40),
)
def test_fifo_whatever_comes_when_each_message_is_handed_over_in_order_or_told(
    sizes, random, lost, items_max
):
    """Every message once, in order, or in exactly one hole at its place."""
    bundles, seq = [], 1
    for size in sizes:
        bundles.append((seq, seq + size - 1))
        seq += size
    rig = Rig(items_max=items_max)
    order = [each for index, each in enumerate(bundles) if index not in lost]
    random.shuffle(order)
    out = []
    for first, last in order:
        out += rig.put(first, last)
        out += rig.settle(random.choice((0.0, 0.1, QUIET_S, HOLD_S)))
        assert rig.back.held <= items_max
    for _ in range(30):
        out += rig.settle(HOLD_S)
    assert rig.back.held == 0
    handed = [each[2] for each in out if not isinstance(each, Hole)]
    holes = [
        seq for each in out if isinstance(each, Hole) for seq in range(each.first, each.last + 1)
    ]
    assert handed == sorted(set(handed))
    assert len(holes) == len(set(holes))
    assert not set(handed) & set(holes)
    came = {seq for first, last in order for seq in range(first, last + 1)}
    assert came <= set(handed) | set(holes)


def test_an_epoch_is_over_at_once_when_the_next_one_says_where_it_ended():
    rig = Rig()
    rig.put(1, 2)
    assert seqs(rig.put(1, epoch=2, previous=(1, 2))) == [1]


def test_an_epoch_waits_for_all_that_the_next_one_says_belongs_before_it():
    rig = Rig()
    rig.put(1, 2)
    assert rig.put(1, epoch=2, previous=(1, 4)) == []
    assert rig.settle(QUIET_S * 2) == []
    assert seqs(rig.put(3)) == [3]
    assert seqs(rig.put(4)) == [4, 1]
    assert rig.back.late == 0


def test_what_an_epoch_lacks_is_a_hole_when_it_does_not_come_in_time():
    rig = Rig()
    rig.put(1, 2)
    rig.put(1, epoch=2, previous=(1, 4))
    assert rig.settle(HOLD_S - 0.1) == []
    assert seqs(rig.settle(0.2)) == [Hole(A, 1, 3, 4), 1]


def test_an_epoch_that_was_missed_whole_is_waited_for():
    rig = Rig()
    rig.put(1)
    assert rig.put(1, epoch=3, previous=(2, 1)) == []
    assert rig.settle(QUIET_S * 2, whole=True) == []
    assert seqs(rig.put(1, epoch=2, previous=(1, 1))) == [1, 1]


def test_an_epoch_whose_first_bundle_is_missing_may_have_one_before_it():
    rig = Rig()
    rig.put(1)
    assert rig.put(2, epoch=3) == []
    assert rig.settle(QUIET_S * 2, whole=True) == []
    assert rig.put(1, epoch=3, previous=(2, 1)) == []
    assert seqs(rig.put(1, epoch=2, previous=(1, 1))) == [1, 1, 2]


def test_an_older_epoch_comes_first_as_long_as_nothing_was_handed_over():
    rig = Rig()
    assert rig.put(2, epoch=2) == []
    assert seqs(rig.put(1, epoch=1)) == [1]
    assert seqs(rig.put(1, epoch=2, previous=(1, 1))) == [1, 2]


def test_what_was_before_our_time_is_not_waited_for_in_a_former_epoch_either():
    rig = Rig()
    rig.see(1, 7, epoch=1)
    assert rig.put(1, epoch=2, previous=(1, 7)) == []
    assert seqs(rig.settle(whole=True)) == [1]


def test_a_stream_begins_at_its_beginning_where_all_before_our_time_is_known():
    rig = Rig()
    rig.put(3)
    assert rig.settle(QUIET_S * 2, whole=True) == []
    assert seqs(rig.put(1, 2)) == [1, 2, 3]
    rig.see(1, 4, origin=B)
    rig.put(5, origin=B)
    assert seqs(rig.settle(whole=True)) == [5]


def test_what_holds_others_up_is_not_late_while_parts_of_it_come():
    rig = Rig()
    rig.put(1)
    rig.put(9)
    for _ in range(5):
        rig.now += HOLD_S - 1
        rig.back.note_progress(A, 1, 2, rig.now)
        assert rig.settle() == []
    rig.back.note_progress(A, 1, 5, rig.now + 5)  # nobody waits for that yet
    rig.back.note_progress(A, 3, 2, rig.now)
    rig.back.note_progress(B, 1, 2, rig.now)
    assert seqs(rig.settle(HOLD_S)) == [Hole(A, 1, 2, 8), 9]


def test_who_uses_a_number_twice_has_it_once_and_stops_nobody():
    rig = Rig()
    rig.put(1)
    assert rig.back.put(A, 1, 3, 6, [(A, 1, 3)], rig.now) == []
    for first, last in ((3, 3), (4, 5), (6, 9), (2, 3)):
        assert rig.back.put(A, 1, first, last, [(A, 1, first)], rig.now) == []
    assert rig.back.held == 1
    assert rig.back.late == 1 + 2 + 4 + 2
    assert seqs(rig.put(2)) == [2, 3]
    assert seqs(rig.put(7)) == [7]
