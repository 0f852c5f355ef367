"""Who has a message: asked along the tree, counted on the way back, bounded, and never waited for
longer than was said.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumtree_quic.messages import Coverage, CoverageWanted
from plumtree_quic.proto import coverage
from plumtree_quic.proto.coverage import CHILDS_SHARE, KEY_BYTES, OPEN_MAX, Counting
from plumtree_quic.proto.effects import Covered, Send
from tests.rigs.broadcast import key, node

ME, ORIGIN = key("me"), key("o")


def begins(*names):
    return [key(name)[:KEY_BYTES] for name in names]


class Rig:
    """One node with links, of which the first are its children in every tree."""

    def __init__(self, links="abcd", children=2):
        self.links = [node(name) for name in links]
        self.children = children
        self.having = True
        self.counting = Counting(ME, lambda *name: self.having, self._links)
        self.now = 0.0

    def _links(self, origin, wide):
        return self.links if wide else self.links[: self.children]

    def wanted(self, peer="d", *, number=1, wide=False, within_s=1.0):
        message = CoverageWanted(ORIGIN, 1, 5, number, wide, within_s, 5)
        return self.counting.on_wanted(node(peer), message, self.now)

    def answer(self, peer, *names, number=1, origin=ORIGIN, last=True):
        message = Coverage(origin, 1, 5, number, b"".join(begins(*names)), last)
        return self.counting.on_answer(node(peer), message, self.now)

    def advance(self, seconds):
        self.now += seconds
        return self.counting.advance(self.now)


def told(effects):
    """The answers, as (to whom, whose keys, last)."""
    return [
        (each.peer.name, each.message.keys, each.message.last)
        for each in effects
        if isinstance(each, Send) and isinstance(each.message, Coverage)
    ]


def asked(effects):
    return [
        each.peer.name
        for each in effects
        if isinstance(each, Send) and isinstance(each.message, CoverageWanted)
    ]


def test_a_leaf_answers_at_once_with_itself():
    rig = Rig(children=0)
    assert told(rig.wanted()) == [("d", ME[:KEY_BYTES], True)]
    assert not rig.counting.is_counting


def test_who_is_asked_for_the_pieces_of_a_large_message_must_have_them_all():
    asked_for = []

    def has(*run):
        asked_for.append(run)
        return False

    counting = Counting(ME, has, lambda _origin, _wide: [node("a")])
    message = CoverageWanted(ORIGIN, 1, 5, 1, False, 1.0, 9)
    (onward,) = counting.on_wanted(node("d"), message, 0.0)
    assert (onward.message.seq, onward.message.last) == (5, 9)
    assert onward.message.within_s == CHILDS_SHARE
    assert told(counting.on_answer(node("a"), Coverage(ORIGIN, 1, 5, 1, b"", True), 0.5)) == []
    assert told(counting.advance(1.0)) == [("d", b"", True)]
    assert set(asked_for) == {(ORIGIN, 1, 5, 9)}


def test_a_question_goes_to_the_children_and_their_answers_go_back_as_one():
    rig = Rig()
    assert asked(rig.wanted()) == ["a", "b"]
    assert told(rig.answer("a", "x", "y")) == []
    ((peer, keys, last),) = told(rig.answer("b", "z"))
    assert (peer, last) == ("d", True)
    assert keys == b"".join(begins("x", "y", "z", "me"))


def test_a_wide_question_goes_over_every_link_but_the_one_it_came_on():
    assert asked(Rig().wanted(wide=True)) == ["a", "b", "c"]


def test_who_is_asked_a_second_time_says_at_once_that_it_is_counted_elsewhere():
    rig = Rig()
    rig.wanted("d")
    assert told(rig.wanted("c")) == [("c", b"", True)]


def test_whoever_does_not_answer_is_waited_for_no_longer_than_was_said():
    rig = Rig()
    (send, *_) = rig.wanted(within_s=1.0)
    assert send.message.within_s == CHILDS_SHARE
    rig.answer("a", "x")
    assert told(rig.advance(0.9)) == []
    assert told(rig.advance(0.1)) == [("d", b"".join(begins("x", "me")), True)]


def test_whose_link_ends_is_not_waited_for():
    rig = Rig()
    rig.wanted()
    rig.answer("a", "x")
    assert len(told(rig.counting.link_down(node("b"), 0.0))) == 1


def test_who_has_asked_and_gone_is_not_answered():
    rig = Rig()
    rig.wanted()
    assert rig.counting.link_down(node("d"), 0.0) == []
    assert not rig.counting.is_counting


def test_who_has_not_got_it_yet_waits_for_it_and_does_not_count_without():
    rig = Rig(children=0)
    rig.having = False
    assert told(rig.wanted()) == []
    assert told(rig.advance(0.5)) == []
    rig.having = True
    assert told(rig.advance(0.1)) == [("d", ME[:KEY_BYTES], True)]
    rig.having = False
    rig.wanted(number=2)
    assert told(rig.advance(1.0)) == [("d", b"", True)]


def test_the_origin_is_told_whom_all_its_children_named_and_not_itself():
    rig = Rig()
    number, effects = rig.counting.ask(1, 5, 5, 1.0, 0.0, wide=False)
    assert asked(effects) == ["a", "b"]
    rig.answer("a", "x", number=number, origin=ME)
    (covered,) = rig.answer("b", "x", "y", number=number, origin=ME)
    assert covered == Covered(1, 5, number, tuple(begins("x", "y")))


def test_an_answer_that_nobody_asked_for_or_that_comes_twice_changes_nothing():
    rig = Rig()
    rig.wanted()
    assert rig.answer("c", "x") == []
    assert rig.answer("a", "x", number=9) == []
    rig.answer("a", "x")
    assert rig.answer("a", "y") == []
    ((_, keys, _),) = told(rig.answer("b"))
    assert keys == b"".join(begins("x", "me"))


def test_an_answer_of_several_frames_is_one(monkeypatch):
    monkeypatch.setattr(coverage, "COVERAGE_KEYS_MAX", 2)
    rig = Rig()
    rig.wanted()
    rig.answer("a", "x", "y", last=False)
    rig.answer("a", "z")
    frames = told(rig.answer("b"))
    assert [last for _, _, last in frames] == [False, True]
    assert b"".join(keys for _, keys, _ in frames) == b"".join(begins("x", "y", "z", "me"))


def test_questions_have_a_rate_and_a_number_and_more_are_answered_with_nobody():
    rig = Rig()
    peers = [f"p{number}" for number in range(OPEN_MAX)]
    empty = 0
    for number in range(200):
        empty += len(told(rig.wanted(peers[0], number=1 + number)))
    assert empty == 200 - coverage.ASKED_BURST
    for number, peer in enumerate(peers[1:]):
        empty += len(told(rig.wanted(peer, number=1_000 + number)))
        empty += len(told(rig.wanted(peer, number=2_000 + number)))
    assert len(rig.counting._counts) == OPEN_MAX
    assert empty == 200 + 126 - OPEN_MAX


def test_no_child_names_more_than_one_question_may_keep_or_all_that_are_open(monkeypatch):
    monkeypatch.setattr(coverage, "KEYS_OF_ONE_MAX", 3)
    monkeypatch.setattr(coverage, "KEYS_MAX", 5)
    rig = Rig()
    for number in (1, 2):
        rig.wanted(number=number)
        rig.answer("a", "u", "v", "w", "x", number=number)
    ((_, keys, _),) = told(rig.answer("b", number=1))
    assert keys == b"".join(begins("u", "v", "w", "me"))
    ((_, keys, _),) = told(rig.answer("b", number=2))
    assert keys == b"".join(begins("u", "v", "me"))


def test_what_ended_questions_kept_is_room_for_others(monkeypatch):
    monkeypatch.setattr(coverage, "KEYS_MAX", 2)
    rig = Rig()
    rig.wanted("c")
    rig.answer("a", "x", "y")
    rig.counting.link_down(node("c"), 0.0)
    rig.wanted()
    rig.answer("a", "x", "y", "z")
    ((_, keys, _),) = told(rig.answer("b", "z"))
    assert keys == b"".join(begins("x", "y", "me"))
    rig.wanted(number=9)
    rig.answer("a", "z", number=9)
    ((_, keys, _),) = told(rig.answer("b", number=9))
    assert keys == b"".join(begins("z", "me"))


@given(st.data())
def test_on_any_graph_a_wide_question_finds_all_who_can_be_reached_and_nobody_twice(data):
    count = data.draw(st.integers(2, 9))
    names = [f"n{number}" for number in range(count)]
    pairs = [(a, b) for a in names for b in names if a < b]
    edges = data.draw(st.lists(st.sampled_from(pairs), unique=True))
    links = {a: [b for b in names if (a, b) in edges or (b, a) in edges] for a in names}
    cores = {
        name: Counting(
            key(name),
            lambda *_: True,
            lambda _origin, _wide, name=name: [node(each) for each in links[name]],
        )
        for name in names
    }
    _, effects = cores["n0"].ask(1, 1, 1, 1.0, 0.0, wide=True)
    queue = [("n0", each) for each in effects]
    covered = []
    frames = 0
    while queue:
        # Frames of one lane come in order, those of different links in any.
        ways = dict.fromkeys((name, getattr(effect, "peer", "")) for name, effect in queue)
        way = data.draw(st.sampled_from(list(ways)))
        at = next(
            at for at, each in enumerate(queue) if (each[0], getattr(each[1], "peer", "")) == way
        )
        name, effect = queue.pop(at)
        if isinstance(effect, Covered):
            covered.append(effect)
            continue
        frames += 1
        to, message = effect.peer.name, effect.message
        take = "on_wanted" if isinstance(message, CoverageWanted) else "on_answer"
        queue += [(to, each) for each in getattr(cores[to], take)(node(name), message, 0.0)]
    reached, ahead = {"n0"}, ["n0"]
    while ahead:
        for each in links[ahead.pop()]:
            if each not in reached:
                reached.add(each)
                ahead.append(each)
    (found,) = covered
    assert sorted(found.keys) == sorted(begins(*(reached - {"n0"})))
    assert frames <= 4 * len(edges)
    assert not any(each.is_counting for each in cores.values())


@pytest.mark.parametrize("wide", [False, True])
def test_in_a_simulated_cluster_everybody_is_found(wide):
    from plumtree_quic.sim.cluster import Cluster

    cluster = Cluster()
    hosts = cluster.ready(20)
    for _ in range(12):
        made = hosts[0].publish(b"x")
        cluster.run(0.2)
    hosts[0].ask_who_has(made, 2.0, wide=wide)
    cluster.run(3.0)
    (found,) = hosts[0].covered
    assert len(set(found.keys)) == 19
