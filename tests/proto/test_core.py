"""What the core does with its halves that neither half can show alone."""

from random import Random

from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import member_key
from plumtree_quic.messages import (
    Announcement,
    BucketHashes,
    Digest,
    DigestHashes,
    DigestRow,
    Gossip,
    Graft,
    IHave,
    MemberState,
    Records,
    RecordsWanted,
    Repair,
    Row,
    Rows,
    Wanted,
)
from plumtree_quic.proto import core as core_module
from plumtree_quic.proto.core import Core
from plumtree_quic.proto.effects import Deliver, DialSeed, Link, Send, Strike, TurnAway, Unlink
from tests.rigs.broadcast import bundle, key
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


def meet(made, name, now, **options):
    dialled = options.pop("dialled", None)
    return made.link_up(node_id(name), hello(of=record(name), **options), now, dialled)


def sent(effects, kind):
    return [each for each in effects if type(each) is Send and isinstance(each.message, kind)]


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


def test_rows_of_an_origin_that_is_not_known_yet_park_few_bundles_and_end_well():
    """Its record takes ten seconds to come; who serves its messages meanwhile is no liar."""
    made = core()
    rest = meet(made, "a", 0.0)
    rest += made.receive(node_id("a"), Digest(()), 0.0)
    rest += made.receive(node_id("a"), Digest((DigestRow(key("x"), 1, ((1, 300),)),)), 0.1)
    now, delivered, repairs = 0.1, [], 0
    while now < 200.0 and len(delivered) < 300:
        while rest:
            effect = rest.pop(0)
            assert not isinstance(effect, Strike)
            delivered += [effect.bundle.first] if isinstance(effect, Deliver) else []
            if not isinstance(effect, Send):
                continue
            match effect.message:
                case DigestHashes(round=number):
                    row = DigestRow(key("x"), 1, ((1, 300),))
                    rest += made.receive(node_id("a"), Digest((row,), round=number), now)
                case RecordsWanted() if now >= 10.0:
                    known = Records((record("x"),))
                    rest += made.receive(node_id("a"), known, now)
                case Graft(entries):
                    for entry in entries:
                        for first, last in entry.ranges:
                            for seq in range(first, last + 1):
                                repairs += 1
                                repair = Repair(1, bundle(seq, origin="x"))
                                rest += made.receive(node_id("a"), repair, now)
                                assert len(made._links[node_id("a")].parked) <= 64
        now = made.next_deadline()
        rest += made.advance(now)
    assert sorted(delivered) == list(range(1, 301))
    assert repairs < 300 + 64 * 20


# --- joining, and room for links ----------------------------------------------------------------


def test_a_joiner_wants_no_link_before_it_has_rows_and_then_its_neighbours_alone():
    made = core()
    made.seeds([address("s")], 0.0)
    effects = meet(made, "s", 0.1, wanted=False, dialled=address("s"))
    assert not [each for each in effects if type(each) is Link]
    assert sent(effects, BucketHashes)
    key = member_key(node_id("n"))
    effects = made.receive(node_id("s"), Rows((), (Row(key, 1, 0, MemberState.ALIVE),), True), 0.2)
    effects += made.advance(0.2)
    assert not [each for each in effects if type(each) is Link]
    effects = made.receive(node_id("s"), Records((record("n"),)), 0.3)
    assert {each.peer.name for each in effects if type(each) is Link} == {"s", "n"}


def test_who_knows_nobody_and_hears_no_rows_makes_do_with_whom_it_has_met():
    made = core()
    made.seeds([address("s")], 0.0)
    meet(made, "s", 0.1, wanted=False, dialled=address("s"))
    early = made.advance(0.1 + core_module.HOLD_S - 0.01)
    assert not [each for each in early if type(each) is Link]
    effects = made.advance(0.1 + core_module.HOLD_S)
    assert [each.peer.name for each in effects if type(each) is Link] == ["s"]


def crowd(made, count, *, wanted, now=0.0):
    for number in range(count):
        meet(made, f"j{number:03}", now, wanted=wanted)


def full_of_neighbours(count=200):
    """A core of a large cluster, that knows all and is linked with nobody."""
    made = core()
    meet(made, "first", 0.0, wanted=True)
    names = [f"n{number:03}" for number in range(count)]
    made.receive(node_id("first"), Records(tuple(record(name) for name in names[:100])), 0.0)
    made.receive(node_id("first"), Records(tuple(record(name) for name in names[100:])), 0.0)
    return made, names


def test_64_joiners_are_served_and_the_next_is_told_of_others_and_closed_half_a_second_later():
    made, _ = full_of_neighbours()
    others = [
        f"j{number:03}" for number in range(200)
        if not made._overlay.would_neighbour(node_id(f"j{number:03}"))
    ]  # fmt: skip
    served, last = others[: core_module.JOINERS_MAX], others[core_module.JOINERS_MAX]
    for name in served:
        assert sent(meet(made, name, 1.0, wanted=False), Records) == []
    # Those whose record has made them neighbours since are linked for good.
    joining = made.link_counts()[1]
    assert joining >= core_module.JOINERS_MAX - 8
    spare = iter(others[core_module.JOINERS_MAX + 1 :])
    while made.link_counts()[1] < core_module.JOINERS_MAX:
        meet(made, next(spare), 1.0, wanted=False)
    effects = meet(made, last, 1.0, wanted=False)
    (busy,) = sent(effects, Records)
    assert busy.peer == node_id(last)
    assert len(busy.message.busy_addresses) == 16
    assert made.link_counts()[1] == core_module.JOINERS_MAX
    assert made.turned_away == 1
    # Nothing that it says counts any more.
    assert made.receive(node_id(last), Wanted(True), 1.1) == []
    assert TurnAway(node_id(last)) in made.advance(1.0 + core_module.TURNED_AWAY_S)
    # And places end.
    effects = made.advance(1.0 + core_module.UNWANTED_LINK_S)
    # A few have come to be wanted: none of those is here that should be.
    assert len([each for each in effects if type(each) is Unlink]) >= core_module.JOINERS_MAX - 8
    assert made.link_counts()[1] == 0


def test_links_that_only_others_want_end_at_the_bound_and_a_neighbour_always_has_room():
    made, names = full_of_neighbours()
    strangers = [name for name in names if not made.wants(node_id(name))]
    neighbours = [name for name in names if made.wants(node_id(name))]
    for name in strangers[:60]:
        meet(made, name, 1.0, wanted=True)
        assert made.link_counts()[0] <= made.links_max
    assert made.link_counts()[0] == made.links_max
    assert made.turned_away == 60 + 1 - made.links_max
    for name in neighbours:
        meet(made, name, 2.0, wanted=True)
        assert node_id(name) in {view.node_id for view in made.peers()}
        assert made.link_counts()[0] <= made.links_max
    # A join link that its joiner comes to want is no way around it.
    sneak = strangers[70]
    meet(made, sneak, 3.0, wanted=False)
    assert node_id(sneak) in {view.node_id for view in made.peers()}
    effects = made.receive(node_id(sneak), Wanted(True), 3.1)
    assert made.link_counts()[0] <= made.links_max
    assert [each.peer.name for each in sent(effects, Records)] == [sneak]


def test_who_has_no_room_for_a_joiner_is_left_at_once_and_other_doors_are_tried():
    made = core()
    made.seeds([address("s")], 0.0)
    meet(made, "s", 0.1, wanted=False, dialled=address("s"))
    effects = made.receive(node_id("s"), Records((), (), (address("t"),)), 0.2)
    assert effects[-1] == TurnAway(node_id("s"))
    assert made.peers() == []
    dials = []
    now = 0.2
    while now < 5.0:
        now = made.next_deadline()
        dials += [each.address for each in made.advance(now) if type(each) is DialSeed]
    assert {address("s"), address("t")} == set(dials)


def test_busy_of_a_member_whom_we_did_not_dial_to_get_in_costs_its_link_and_sends_us_nowhere():
    made = core()
    made.seeds([address("s")], 0.0)
    meet(made, "x", 0.1, wanted=True)
    effects = made.receive(node_id("x"), Records((), (), (address("t"),)), 0.2)
    assert TurnAway(node_id("x")) in effects
    dials = []
    now = 0.2
    while (now := made.next_deadline()) < 20.0:
        dials += [each.address for each in made.advance(now) if type(each) is DialSeed]
    assert address("t") not in dials


def test_a_short_path_that_loses_packets_is_asked_after_longer_ones_that_do_not():
    made = core()
    for name in ("first", "a", "b", "c"):
        meet(made, name, 1.0)
    for name, rtt_s, loss in (("a", 0.02, 0.3), ("b", 0.06, 0.0), ("c", 0.04, 0.0)):
        made.heard(node_id(name), 2.0, rtt_s, 3 * (1.5 * rtt_s + 0.025), loss)
    # Who announces first is asked at once, and does not answer.
    announced = IHave((Announcement(member_key(node_id("origin")), 1, 1, 1, 1),))
    for name in ("first", "a", "b", "c"):
        made.receive(node_id(name), announced, 3.0)
    asked = []
    for second in range(4, 30):
        for each in sent(made.advance(float(second)), Graft):
            if any(entry.ranges for entry in each.message.entries):
                asked.append(each.peer)
    assert asked[:3] == [node_id("c"), node_id("b"), node_id("a")]
