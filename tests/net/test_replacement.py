"""Two links of one pair: crossed dials, newer epochs, `replaces`, silent incumbents.

Whatever happens, both ends settle on one link, and no frame of any lane is lost or repeated.
"""

import itertools
from collections import Counter

import pytest

from plumtree_quic.ids import MemberKey
from plumtree_quic.messages import (
    Announcement,
    Direct,
    Facts,
    Gossip,
    IHave,
    Lane,
    Prune,
    RecordsWanted,
    Wanted,
)
from plumtree_quic.net.events import LinkDown, LinkReplaced, LinkUp, Received, Writable
from plumtree_quic.net.link import CloseCode, LinkState
from plumtree_quic.wire import build_bundle
from tests.rigs.virtual_net import EPOCH, Net, Node, direct

SEEDS, CHUNKS = 1_000, 10


def messages_of_all_lanes(number, size=40):
    """One message for each lane that says `number`."""
    key = MemberKey(number.to_bytes(16, "big"))
    bundle = build_bundle(
        origin=key, epoch=EPOCH, first=number + 1, messages=[("", bytes(size))], signed_at=EPOCH
    )
    return [
        Facts(()),
        Prune((key,)),
        IHave((Announcement(key, EPOCH, number + 1, number + 1, 1),)),
        Gossip(1, bundle),
        RecordsWanted((key,)),
        direct(number, size),
    ]


def tell(message):
    """What `message` says, comparable."""
    match message:
        case Prune(origins):
            return ("graft", int.from_bytes(origins[0], "big"))
        case IHave(announcements):
            return ("ihave", announcements[0].first - 1)
        case Gossip():
            return ("gossip", message.bundle.first - 1)
        case RecordsWanted(keys):
            return ("sync", int.from_bytes(keys[0], "big"))
        case Direct():
            return ("direct", message.seq)
        case Facts():
            return ("control", 0)
    return None


class Talk:
    """Each of two nodes sends numbered messages on all lanes as long as it has a link."""

    def __init__(self, net, nodes, *, every_s=0.02, size=40):
        self.net, self.nodes, self.every_s, self.size = net, nodes, every_s, size
        self.sent = {node.name: Counter() for node in nodes}
        self.on = True
        for node, other in itertools.permutations(nodes, 2):
            self._say(node, other, itertools.count())

    def _say(self, node, other, numbers):
        if not self.on:
            return
        if node.link(other) is not None:
            for message in messages_of_all_lanes(next(numbers), self.size):
                assert node.send(other, message)
                self.sent[node.name][tell(message)] += 1
            node.pump()
        self.net.at(self.net.now + self.every_s, self._say, node, other, numbers)

    def check(self):
        """Everything arrived, once, in the order of its lane on each link."""
        a, b = self.nodes
        for sender, receiver in ((a, b), (b, a)):
            got = Counter(
                tell(each.message)
                for each in receiver.of(Received)
                if not isinstance(each.message, Wanted)
            )
            assert got == self.sent[sender.name], got - self.sent[sender.name]
            orders = {}
            for each in receiver.of(Received):
                if (told := tell(each.message)) is not None:
                    orders.setdefault((each.link.link_id, told[0]), []).append(told[1])
            assert all(numbers == sorted(numbers) for numbers in orders.values())


def one_link(a, b):
    """Both ends have one link, and it is the same one."""
    (ours,), (theirs,) = a.open_links(), b.open_links()
    assert ours.state is theirs.state is LinkState.UP
    assert a.link(b) is ours
    assert b.link(a) is theirs
    assert (ours.link_id, ours.hello.link_id) == (theirs.hello.link_id, theirs.link_id)
    return ours


# --- crossed dials ---


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_h30_dials_that_cross_leave_one_link_and_lose_or_repeat_no_frame(chunk):
    for seed in range(chunk, SEEDS, CHUNKS):
        net = Net(seed, jitter_s=(0.0, 0.004, 0.03)[seed % 3])
        a, b = net.pair()
        talk = Talk(net, (a, b), every_s=0.04)
        apart_s = net.rng.choice((0.0, 0.0, 0.001, 0.01, 0.05))
        first, second = (a, b) if seed % 2 else (b, a)
        net.at(net.now, first.dial, second)
        net.at(net.now + apart_s, second.dial, first)
        net.run(0.25)
        talk.on = False
        net.run(0.5)
        link = one_link(a, b)
        # The one that the smaller NodeId dialled, unless they did not cross at all.
        assert link.dialled or not a.replaced
        assert (a.downs, b.downs) == ([], [])
        assert (len(a.ups), len(b.ups)) == (1, 1)
        talk.check()


def test_h30_dials_that_cross_while_packets_are_lost():
    for seed in range(20):
        net = Net(seed, jitter_s=0.01, loss=0.1)
        a, b = net.pair()
        talk = Talk(net, (a, b), every_s=0.1)
        net.at(net.now, a.dial, b)
        net.at(net.now, b.dial, a)
        net.run(1.5)
        talk.on = False
        net.run(6.0)
        one_link(a, b)
        # A link that is silent for a second while two are there may be given up; that is told.
        if not (a.downs or b.downs):
            talk.check()


@pytest.mark.parametrize("seed", range(16))
def test_two_dials_of_one_side_settle_alike_on_both_ends(seed):
    net = Net(seed, jitter_s=0.03)
    a, b = net.pair()
    dialler, other = (a, b) if seed % 2 else (b, a)
    talk = Talk(net, (a, b))
    for _ in range(3):
        dialler.dial(other)
    net.run(1.0)
    talk.on = False
    net.run(7.0)
    one_link(a, b)
    assert (a.downs, b.downs) == ([], [])
    talk.check()


def test_want_on_both_ends_makes_one_link_and_dials_no_more():
    net = Net(3)
    a, b = net.pair()
    a.want(b)
    b.want(a)
    net.run(5.0)
    one_link(a, b)
    assert a.endpoint.counters.dialled + b.endpoint.counters.dialled == 1


def test_a_link_that_lost_says_duplicate_and_is_closed_after_the_winner_is_up():
    net = Net(0)
    a, b = net.pair()
    a.dial(b)
    loser = b.dial(a)
    net.run(3.0)
    assert loser.close_code == CloseCode.DUPLICATE_LINK
    assert loser.state is LinkState.CLOSED
    assert one_link(a, b).dialled


# --- restarts ---


def restart(node, epoch, **options):
    """The same identity at the same address, as a new process."""
    node.crash()
    fresh = Node(node.net, node.name, host=node.address[0], epoch=epoch, **options)
    node.net.nodes[node.address] = fresh
    return fresh


def test_b42_a_newer_epoch_wins_at_once():
    net = Net(1)
    a, b = net.linked()
    old = a.link(b)
    b = restart(b, EPOCH + 1)
    b.dial(a)
    net.run(0.2)
    assert [type(each) for each in a.events if isinstance(each, LinkUp | LinkDown)] == [
        LinkUp,
        LinkDown,
        LinkUp,
    ]
    assert a.downs[0].link is old
    assert one_link(a, b).hello.record.epoch == EPOCH + 1


def test_an_older_epoch_is_refused_and_changes_nothing():
    net = Net(1)
    a, b = net.linked()
    current = a.link(b)
    clone = net.node("b", host="192.0.2.77", epoch=EPOCH - 1)
    clone.dial(a)
    net.run(2.0)
    assert a.link(b) is current
    assert (a.downs, a.replaced) == ([], [])
    assert clone.downs[0].code == CloseCode.DUPLICATE_LINK


def test_b42_a_restarted_peer_that_is_dialled_is_up_again_without_waiting_for_idle():
    net = Net(1)
    a, b = net.linked()
    b = restart(b, EPOCH + 5)
    started = net.now
    b.want(a)
    assert net.until(lambda: len(a.ups) == 2, 5.0)
    assert net.now - started < 1.0


# --- the incumbent has to prove itself ---


def test_a_silent_incumbent_loses_within_a_second():
    net = Net(2)
    a, b = net.linked()
    incumbent = a.link(b)
    # b lost its end without a word, and dials again in the same life.
    lost = b.link(a)
    b.endpoint._hard_drop(lost, net.now)
    dialled_at = net.now
    b.dial(a)
    assert net.until(lambda: len(a.ups) == 2, 5.0)
    assert net.now - dialled_at <= 1.2
    assert a.downs[0].link is incumbent
    net.run(2.0)
    one_link(a, b)


def test_an_incumbent_that_answers_is_not_given_up_for_a_newcomer():
    net = Net(2)
    a, b = net.linked()
    b.dial(a)
    net.run(3.0)
    assert (a.downs, b.downs, a.replaced, b.replaced) == ([], [], [], [])
    assert one_link(a, b).dialled


def test_any_acknowledgement_that_advances_proves_the_incumbent():
    net = Net(4)
    a, b = net.linked()
    incumbent = a.link(b)
    incumbent.ping_incumbent(net.now)
    a.send(b, direct(1))
    a.pump()
    net.run(0.2)
    assert incumbent.incumbent_proved
    net.run(2.0)
    assert not incumbent.incumbent_failed


def test_the_peer_is_down_only_when_no_link_of_the_pair_is_left():
    net = Net(5)
    a, b = net.linked()
    incumbent = a.link(b)
    b.dial(a)
    assert net.until(lambda: len(a.open_links()) == 2 and a.endpoint._pairs[b.id].contenders, 1.0)
    incumbent.close(CloseCode.GOING_AWAY, "test", net.now)
    assert a.link(b) is incumbent  # touched
    a.pump()
    # The contender takes over at once: the peer is new, not gone.
    kinds = [type(each) for each in a.events if isinstance(each, LinkUp | LinkDown)]
    assert kinds == [LinkUp, LinkDown, LinkUp]
    assert a.link(b) is a.ups[-1].link
    net.run(2.0)
    assert len(a.open_links()) == len(b.open_links())
    assert len(a.ups) - len(a.downs) == len(b.ups) - len(b.downs) == len(a.open_links())


# --- replaces ---


@pytest.mark.parametrize("seed", range(16))
def test_a_link_that_replaces_another_loses_and_repeats_nothing_under_load(seed):
    net = Net(seed, jitter_s=0.01)
    a, b = net.linked()
    talk = Talk(net, (a, b), every_s=0.01, size=600)
    net.run(0.3)
    before = a.link(b)
    side, other = (a, b) if seed % 2 else (b, a)
    assert side.endpoint.replace(other.id, net.now)
    side.pump()
    net.run(0.7)
    talk.on = False
    net.run(2.0)
    assert one_link(a, b) is not before
    assert (len(a.replaced), len(b.replaced)) == (1, 1)
    assert (a.downs, b.downs) == ([], [])
    assert before.close_code == CloseCode.DUPLICATE_LINK
    talk.check()


@pytest.mark.parametrize("seed", range(16))
def test_both_ends_may_replace_at_the_same_moment(seed):
    net = Net(seed, jitter_s=0.02)
    a, b = net.linked()
    before = a.link(b)
    talk = Talk(net, (a, b))
    a.endpoint.replace(b.id, net.now)
    b.endpoint.replace(a.id, net.now)
    a.pump()
    b.pump()
    net.run(1.0)
    talk.on = False
    net.run(7.0)
    assert one_link(a, b) is not before
    assert (a.downs, b.downs) == ([], [])
    talk.check()


def test_a_replacement_that_fails_leaves_the_link_as_it_is():
    net = Net(1)
    a, b = net.linked()
    before = a.link(b)
    strangers = (b.address[0], b.address[1] + 1)
    link = a.endpoint.dial(strangers, b.id, net.now)
    link.replaces = before.link_id
    a.pump()
    net.run(8.0)
    assert one_link(a, b) is before
    assert (a.downs, a.failures) == ([], [])


def test_replace_without_a_link_does_nothing():
    net = Net(1)
    a, b = net.pair()
    assert not a.endpoint.replace(b.id, net.now)
    assert a.endpoint.counters.dialled == 0


def test_a_link_id_that_nobody_knows_replaces_nothing():
    net = Net(1)
    a, b = net.linked()
    before = a.link(b)
    b.dial(a).replaces = bytes(16)
    net.run(3.0)
    assert one_link(a, b) is before


def test_whoever_waits_for_room_is_told_by_the_link_that_takes_over():
    net = Net(1)
    a, b = net.linked()
    old = a.link(b)
    b.link(a).hold(Lane.DIRECT, True)
    for number in range(5):
        a.send(b, direct(number, 60_000))
    assert old.room(Lane.DIRECT) < 0
    a.endpoint.replace(b.id, net.now)
    a.pump()
    net.run(0.5)
    (new,) = a.replaced
    assert [(each.link, each.lane) for each in a.of(Writable)] == [(new.link, Lane.DIRECT)]


def test_what_changed_while_dialling_is_told_again_on_the_new_link():
    net = Net(1)
    a, b = net.linked()
    a.want(b)
    net.run(0.1)
    assert b.link(a).peer_wants
    a.endpoint.replace(b.id, net.now)
    a.pump()
    assert net.until(lambda: any(each.link_id and each.replaces for each in a.open_links()), 1.0)
    # hello has been made; the overlay changes its mind on the link that is still in use.
    b.want(a)
    a.endpoint.unwant(b.id, net.now)
    a.pump()
    net.run(1.0)
    assert len(b.replaced) == 1
    assert not b.link(a).peer_wants
    assert a.link(b).peer_wants


def test_the_order_of_events_is_up_replaced_down():
    net = Net(1)
    a, b = net.linked()
    a.endpoint.replace(b.id, net.now)
    a.pump()
    net.run(2.0)
    b.endpoint.close(net.now, CloseCode.GOING_AWAY, "bye")
    b.pump()
    net.run(1.0)
    kinds = [type(each) for each in a.events if isinstance(each, LinkUp | LinkReplaced | LinkDown)]
    assert kinds == [LinkUp, LinkReplaced, LinkDown]
