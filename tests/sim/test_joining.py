"""Joining, alone and by the hundred: seeds are not trampled, and nobody's links grow."""

import attrs
import pytest

from plumtree_quic.ids import MemberKey
from plumtree_quic.messages import (
    MemberState,
    Records,
    RecordsWanted,
    Row,
    Rows,
)
from plumtree_quic.proto import core as core_module
from plumtree_quic.proto.effects import MemberFailed, MemberSuspected
from plumtree_quic.proto.overlay import Overlay
from plumtree_quic.proto.swim import ASK_QUEUE_MAX
from plumtree_quic.sim.bootstrap import bootstrap
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.faults import CALM, WIDE
from plumtree_quic.sim.network import End
from plumtree_quic.sim.scenarios import SCENARIOS, Run, play
from plumtree_quic.sim.zones import zones_by_number
from tests.rigs.byzantine import Liar, sim_id

# 3 * (2K + 2) of the LAN preset.
LINKS_MAX = 36


@pytest.fixture
def sent(monkeypatch):
    """(from, to, message) of all that is sent on links."""
    seen = []
    send = End.send

    def note(end, message):
        seen.append((end.owner.name, end.peer.name, message))
        send(end, message)

    monkeypatch.setattr(End, "send", note)
    return seen


def told(cluster, *kinds):
    return [effect for _, _, effect in cluster.journal.facts if type(effect) in kinds]


def total(kind, messages):
    """How many records, or rows, these messages carry."""
    name = "records" if kind is Records else "rows"
    return sum(len(getattr(each, name)) for each in messages if isinstance(each, kind))


def no_neighbour_of(cluster, name):
    """A node that would not be linked with `name` if it were a member."""
    new = sim_id(name)
    return next(
        host.name for host in cluster.hosts.values() if not host.core._overlay.would_neighbour(new)
    )


# --- many at once -------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "nodes"), [("lan", 100), ("wan", 60), ("large_cluster", 60)])
def test_many_that_start_at_once_are_one_cluster_within_all_bounds(preset, nodes):
    run = Run(nodes=nodes, seed=1, preset=preset)
    outcome = play(SCENARIOS["bootstrap"], run)
    assert outcome.holds, outcome
    figures = {each.name: each for each in outcome.figures}
    assert figures["all know all after"].value <= 5.0
    assert 0 < figures["a seed sends per joiner"].value <= 200
    assert 5 < figures["a seed sends one joiner, most"].value <= 200
    assert figures["overlay links, most"].bound == {
        "lan": 36, "wan": 42, "large_cluster": 54
    }[preset]  # fmt: skip
    # Links are at rest after it, and each has its own.
    assert figures["links per node, most"].value <= figures["overlay links, most"].bound / 3
    assert all(not host.core.link_counts()[1] for host in run.cluster.hosts.values())


@pytest.mark.parametrize("weather", [WIDE, attrs.evolve(CALM, loss=0.1)])
def test_forty_that_start_at_once_in_foul_weather_are_one_cluster(weather):
    found = bootstrap(Cluster(seed=2, weather=weather), 40, within_s=60.0)
    assert found.seconds is not None, found
    assert found.overlay_links_most <= LINKS_MAX, found


def test_bootstrap_repeats_itself():
    runs = [bootstrap(Cluster(seed=seed), 30) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_a_seed_with_room_for_two_serves_two_at_a_time_and_all_get_in(monkeypatch):
    monkeypatch.setattr(core_module, "JOINERS_MAX", 2)
    found = bootstrap(Cluster(seed=5), 40, seeds=1, within_s=60.0)
    assert found.turned_away > 10, found
    assert found.join_links_most <= 2, found
    assert found.seconds is not None, found


def test_members_without_room_for_a_link_are_not_suspected_and_all_know_all(monkeypatch):
    made = Overlay.__init__

    def with_little_room(self, *args):
        made(self, *args)
        self.links_max = 11

    monkeypatch.setattr(Overlay, "__init__", with_little_room)
    cluster = Cluster(seed=9)
    cluster.grow(40, seeds=3)
    assert cluster.run(60.0, cluster.agreed)
    cluster.run(60.0)
    assert cluster.agreed()
    hosts = cluster.hosts.values()
    assert sum(host.core.turned_away for host in hosts) > 0
    # More than that only for its own sake.
    assert max(host.overlay_links_most for host in hosts) <= 12
    assert told(cluster, MemberSuspected, MemberFailed) == []


def test_sixty_of_four_zones_that_start_at_once_end_with_the_links_of_their_zones():
    grown = Cluster(seed=13, zone_of=zones_by_number(4))
    found = bootstrap(grown, 60)
    assert found.seconds is not None, found
    assert found.overlay_links_most <= LINKS_MAX, found
    assert found.suspected == 0, found
    grown.run(30.0)
    met = Cluster(seed=13, zone_of=zones_by_number(4))
    met.converged(60)
    for name, host in met.hosts.items():
        assert set(host.links) == set(grown.hosts[name].links), name


# --- one ----------------------------------------------------------------------------------------


def test_a_joiner_gets_rows_and_its_neighbours_records_of_the_seed_and_the_rest_of_them(sent):
    cluster = Cluster(seed=6)
    cluster.ready(80)
    seed = no_neighbour_of(cluster, "late")
    sent.clear()
    late = cluster.start("late", seed)
    assert cluster.run(5.0, cluster.agreed)
    to_late = [(source, message) for source, target, message in sent if target == "late"]
    of_seed = [message for source, message in to_late if source == seed]
    assert total(Rows, of_seed) >= 79
    # Five rings, two places and a spare on each side of ring 0, one and a spare on the others.
    assert 8 <= total(Records, of_seed) <= 22
    of_others = {
        name: total(Records, [message for source, message in to_late if source == name])
        for name in {source for source, _ in to_late} - {seed}
    }
    assert sum(of_others.values()) >= 79 - 22
    assert len([name for name in of_others if of_others[name]]) >= 6
    assert max(of_others.values()) <= 20
    # The join link was closed by the joiner, once its own links were up.
    cluster.run(1.0)
    assert cluster.hosts[seed].id not in late.links
    assert late.core.link_counts()[1] == 0


def test_nothing_is_asked_twice_of_anybody_when_all_goes_well(sent):
    cluster = Cluster(seed=8)
    cluster.ready(40)
    sent.clear()
    cluster.start("late", "n000", "n001", "n002")
    assert cluster.run(5.0, cluster.agreed)
    asked = [
        key
        for source, _, message in sent
        if source == "late" and isinstance(message, RecordsWanted)
        for key in message.keys
    ]
    assert len(asked) == len(set(asked)) >= 30


def test_no_news_travel_on_a_join_link(sent):
    """A seed would have to tell all joiners of all joiners."""
    cluster = Cluster(seed=14)
    cluster.ready(30)
    name = no_neighbour_of(cluster, "late")
    seed = cluster.hosts[name]
    late = cluster.start("late", name)
    assert cluster.run(5.0, lambda: seed.id in late.links, look_s=0.001)
    # Both still have their join link when somebody else is accused.
    late.core._overlay.is_up = lambda: False
    sent.clear()
    cluster.crash("n029")
    cluster.run(3.0)
    told_late = [message for source, target, message in sent if (source, target) == (name, "late")]
    assert seed.id in late.links
    facts = [fact for each in told_late if hasattr(each, "facts") for fact in each.facts]
    assert not [fact for fact in facts if fact.state is MemberState.SUSPECT]
    assert late.state_of("n029") is not MemberState.ALIVE


def test_a_late_joiner_of_four_zones_ends_with_the_links_that_it_should_have():
    cluster = Cluster(seed=15, zone_of=zones_by_number(4))
    cluster.converged(60)
    late = cluster.start("n060", "n000", "n001", "n002")
    assert cluster.run(10.0, cluster.agreed)
    cluster.run(40.0)
    met = Cluster(seed=15, zone_of=zones_by_number(4))
    met.converged(61)
    for name in met.hosts:
        assert set(met.hosts[name].links) == set(cluster.hosts[name].links), name
    # The rings of its zone waited until it knew who stands on them.
    assert late.overlay_links_most <= 20
    assert max(host.overlay_links_most for host in cluster.hosts.values()) <= LINKS_MAX
    assert told(cluster, MemberSuspected, MemberFailed) == []


def test_a_first_node_whose_seeds_never_answer_still_wants_links_with_those_who_come():
    cluster = Cluster(seed=10)
    first = cluster.start("a", "nowhere", "never")
    for number in range(20):
        cluster.start(f"b{number}", "a")
    assert cluster.run(10.0, cluster.agreed)
    cluster.run(5.0)
    assert any(first.core.wants(peer) for peer in first.links)
    assert not first.core._overlay.is_mesh()


def test_a_seed_that_dies_while_it_serves_stops_nobody():
    cluster = Cluster(seed=11)
    cluster.grow(30, seeds=3)
    cluster.run(0.02)
    cluster.crash("n001")
    assert cluster.run(40.0, cluster.agreed)


def test_a_joiner_that_loses_its_only_link_before_it_knows_its_neighbours_dials_again():
    cluster = Cluster(seed=12)
    first = cluster.start("a")
    second = cluster.start("b", "a")
    assert cluster.run(1.0, lambda: bool(first.links), look_s=0.001)
    cluster.break_link("a", "b")
    assert not second.links
    assert cluster.run(5.0, lambda: bool(second.links) and cluster.agreed())


# --- no room ------------------------------------------------------------------------------------


def test_who_is_turned_away_is_told_of_at_most_16_members_that_the_seed_has_met(monkeypatch, sent):
    cluster = Cluster(seed=6)
    cluster.ready(40)
    monkeypatch.setattr(core_module, "JOINERS_MAX", 0)
    name = no_neighbour_of(cluster, "late")
    seed = cluster.hosts[name]
    met = {f"{peer.name}.sim:7946" for peer in seed.links}
    sent.clear()
    late = cluster.start("late", name)
    cluster.run(0.05)
    (busy,) = [
        message
        for source, target, message in sent
        if (source, target) == (name, "late") and isinstance(message, Records)
    ]
    assert busy.records == ()
    assert 8 <= len(busy.busy_addresses) <= 16
    assert set(busy.busy_addresses) <= met
    assert seed.core.turned_away == 1
    # The link is over at both ends, and nobody misses it.
    assert seed.id not in late.links
    assert late.id not in seed.links
    # It is no stranger now, so it is in as soon as one of its neighbours has heard of it.
    assert cluster.run(15.0, cluster.agreed)
    assert told(cluster, MemberSuspected, MemberFailed) == []


def test_join_places_end_so_those_who_hold_them_keep_nobody_out(monkeypatch):
    """Liars take all places of the only seed, and say nothing more on them."""
    monkeypatch.setattr(core_module, "JOINERS_MAX", 4)
    cluster = Cluster(seed=16)
    cluster.ready(30)
    name = no_neighbour_of(cluster, "late")
    for number in range(4):
        liar = cluster.start(f"x{number}", name)
        cluster.liars.add(liar.id)
        # They ask for nothing, want nothing, and never go of their own accord.
        liar._send = lambda _end, _message: None
        liar.core._overlay.wants = lambda _peer: False
    seed = cluster.hosts[name]
    assert cluster.run(1.0, lambda: seed.core.link_counts()[1] == 4, look_s=0.001)
    late = cluster.start("late", name)
    # Its neighbours come to it, for they hear of it from the seed.
    assert cluster.run(20.0, lambda: len(late.view()) >= 31)
    assert cluster.run(core_module.UNWANTED_LINK_S, lambda: seed.core.link_counts()[1] == 0)


# --- those who lie to a joiner ------------------------------------------------------------------


def lying_seed(cluster, name, *lies):
    """It answers whoever greets it with these alone, at once and again whenever it is asked."""
    liar = Liar(cluster, name)
    up = liar.host.up

    def greet(end, hello, dialled):
        up(end, hello, dialled)
        for lie in lies:
            end.send(lie)

    liar.host.up = greet
    liar.host._send = lambda _end, _message: None
    return liar


def test_a_seed_that_says_busy_for_ever_and_names_nobody_keeps_no_joiner_out(monkeypatch):
    cluster = Cluster(seed=17)
    cluster.ready(24)
    lies = [
        Records((), (), tuple(f"ghost{number}{each}.sim:7946" for each in range(16)))
        for number in range(10)
    ]
    lying_seed(cluster, "n000", *lies)
    # The other seed has no room at first either.
    monkeypatch.setattr(core_module, "JOINERS_MAX", 0)
    late = cluster.start("late", "n000", no_neighbour_of(cluster, "late"))
    cluster.run(0.5)
    monkeypatch.setattr(core_module, "JOINERS_MAX", 64)
    assert cluster.run(15.0, lambda: len(late.view()) == 25)


def test_busy_from_who_was_not_dialled_to_get_in_costs_its_own_link_and_nothing_more():
    cluster = Cluster(seed=18)
    cluster.ready(24)
    victim = cluster.hosts["n005"]
    liar = Liar(cluster, next(iter(victim.links)).name)
    dialled = []
    dial = cluster.dial
    cluster.dial = lambda host, place, *rest, **more: (
        dialled.append(place),
        dial(host, place, *rest, **more),
    )
    links = len(victim.links)
    liar.say(Records((), (), ("ghost.sim:7946",)), to="n005")
    cluster.run(0.02)
    assert len(victim.links) >= links - 1
    cluster.run(30.0)
    assert "ghost" not in dialled
    # It has its place again, for it lives.
    assert liar.id in victim.links
    assert told(cluster, MemberSuspected, MemberFailed) == []


def test_a_seed_that_names_thousands_who_do_not_exist_keeps_no_joiner_out_and_fills_no_memory():
    cluster = Cluster(seed=20)
    cluster.ready(24)
    rows = [
        Row(MemberKey(bytes((number % 256, number // 256)) * 8), 1, 0, MemberState.ALIVE)
        for number in range(15_000)
    ]
    pages = [Rows((), tuple(rows[at : at + 1_500]), False) for at in range(0, 15_000, 1_500)]
    lying_seed(cluster, "n000", *pages)
    late = cluster.start("late", "n000", no_neighbour_of(cluster, "late"))
    swim = late.core._swim
    most = 0
    for _ in range(40):
        cluster.run(0.05)
        most = max(most, len(swim._hints))
    assert 5_000 < most <= ASK_QUEUE_MAX
    assert cluster.run(30.0, lambda: len(late.view()) == 25)
    # And once that has had its time, the overlay rests on those who are known.
    cluster.run(15.0)
    assert late.core._expecting_until is None
    assert sum(late.core.wants(peer) for peer in late.links) >= 8


def test_a_seed_that_knows_nobody_it_says_lets_the_joiner_in_all_the_same():
    """Rows of nothing end the wait; the others' rows come later and count."""
    cluster = Cluster(seed=20)
    cluster.ready(24)
    lying_seed(cluster, "n000", Rows((), (), False))
    late = cluster.start("late", "n000", no_neighbour_of(cluster, "late"))
    assert cluster.run(10.0, lambda: len(late.view()) == 25)
    cluster.run(20.0)
    assert len([peer for peer in late.links if late.core.wants(peer)]) >= 8
