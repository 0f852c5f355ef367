"""Whom to dial beside the overlay's neighbours, and how often."""

import itertools
from random import Random

from plumtree_quic.proto.effects import DialSeed
from plumtree_quic.proto.seeds import (
    DEAD_BACKOFF_FAR_S,
    DEAD_BACKOFF_MAX_S,
    DEAD_MEMORY_S,
    REFERRED_MAX,
    REFERRED_MAX_S,
    REMEMBERED_AT_ONCE,
    SEED_BACKOFF_JOINED_MAX_S,
    SEED_BACKOFF_MAX_S,
    Seeds,
)
from tests.rigs.membership import node_id


def seeds(*own, seed=1):
    return Seeds(own or ("me:1",), Random(seed))


def play(machine, until, now=0.0, fail=True):
    """Run timers up to `until`; every dial fails at once. Returns [(when, address)]."""
    dials = []
    while (deadline := machine.next_deadline()) is not None and deadline <= until:
        now = max(now, deadline)
        for effect in machine.advance(now):
            dials.append((now, effect.address))
            if fail:
                machine.failed(effect.address, now)
    return dials


def test_all_seeds_are_dialled_in_parallel_at_once():
    assert seeds().add(["a:1", "b:1"], 0.0) == [DialSeed("a:1"), DialSeed("b:1")]


def test_m20_our_own_address_is_never_dialled():
    machine = seeds("me:1")
    assert machine.add(["me:1"], 0.0) == []
    assert machine.next_deadline() is None


def test_m20_a_dead_seed_is_tried_for_ever_with_backoff_and_below_one_dial_a_second():
    machine = seeds()
    machine.add(["a:1"], 0.0)
    machine.failed("a:1", 0.0)
    times = [when for when, _ in play(machine, 3_600.0)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert len(times) > 100
    assert min(gaps) >= 1.0
    assert max(gaps) <= SEED_BACKOFF_MAX_S
    assert max(gaps[:3]) < max(gaps)


def test_a_dial_whose_end_nobody_reports_is_tried_again():
    machine = seeds()
    machine.add(["a:1"], 0.0)
    assert play(machine, 31.0, fail=False) == [(30.0, "a:1")]


def test_a_seed_that_answered_rests():
    machine = seeds()
    machine.add(["a:1"], 0.0)
    machine.answered("a:1", 0.1)
    machine.member_alive(node_id("a"), ("a:1",), 0.1)
    assert machine.reached(["a:1", "b:1"]) == 1
    assert play(machine, 3_600.0) == []


def test_a_seed_is_counted_once_however_often_it_answers():
    machine = seeds()
    machine.add(["a:1"], 0.0)
    machine.answered("a:1", 0.1)
    machine.answered("a:1", 0.2)
    assert machine.reached(["a:1", "b:1"]) == 1


def test_a_seed_at_a_living_members_address_is_reached_without_a_dial():
    machine = seeds()
    machine.member_alive(node_id("a"), ("a:1",), 0.0)
    assert machine.reached(["a:1", "b:1"]) == 1
    assert machine.add(["a:1", "b:1"], 0.0) == [DialSeed("b:1")]


def test_a_seed_is_tried_again_when_the_member_at_its_address_is_gone():
    machine = seeds()
    machine.add(["a:1"], 0.0)
    machine.answered("a:1", 0.1)
    machine.member_alive(node_id("a"), ("a:1",), 0.1)
    machine.member_alive(node_id("b"), ("b:1",), 0.1)
    machine.member_left(node_id("a"), 10.0)
    assert play(machine, 13.0, now=10.0)[0][1] == "a:1"


def test_a_seed_that_is_a_name_rests_until_we_are_alone():
    machine = seeds()
    machine.add(["seed.example:1"], 0.0)
    machine.answered("seed.example:1", 0.1)
    machine.member_alive(node_id("a"), ("10.0.0.1:1",), 0.1)
    machine.member_alive(node_id("b"), ("10.0.0.2:1",), 0.1)
    machine.member_left(node_id("a"), 10.0)
    assert play(machine, 100.0) == []
    machine.member_left(node_id("b"), 100.0)
    assert play(machine, 103.0, now=100.0)[0][1] == "seed.example:1"


def test_m20_a_seed_that_is_a_name_is_looked_up_again_at_least_every_five_minutes():
    machine = seeds()
    machine.add(["seed.example:1"], 0.0)
    machine.answered("seed.example:1", 0.1)
    machine.member_alive(node_id("a"), ("10.0.0.1:1",), 0.1)
    now = 0.1
    for _ in range(20):
        effects = []
        while not effects:
            due = machine.next_deadline()
            effects = machine.advance(due)
        assert effects == [DialSeed("seed.example:1")]
        assert 149.0 < due - now <= SEED_BACKOFF_JOINED_MAX_S
        machine.answered("seed.example:1", due)
        now = due


def test_a_seed_that_is_down_is_tried_less_often_by_each_member_of_a_large_cluster_yet_for_ever():
    machine = seeds()
    machine.add(["a:1"], 0.0)
    for number in range(100):
        machine.member_alive(node_id(f"n{number}"), (f"n{number}:1",), 0.0)
    machine.failed("a:1", 0.0)
    times = [when for when, _ in play(machine, 36_000.0)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert SEED_BACKOFF_MAX_S < max(gaps) <= SEED_BACKOFF_JOINED_MAX_S
    assert times[-1] > 36_000.0 - SEED_BACKOFF_JOINED_MAX_S


def test_m20_forty_dead_seeds_and_as_many_dead_members_cost_one_dial_a_second_and_none_starves():
    machine = seeds()
    for i in range(40):
        machine.member_alive(node_id(f"n{i}"), (f"n{i}:1",), 0.0)
        machine.member_dead(node_id(f"n{i}"), 0.0)
    machine.add([f"s{i}:1" for i in range(40)], 0.0)
    for i in range(40):
        machine.failed(f"s{i}:1", 0.0)
    dials = play(machine, 300.0)
    assert all(b - a > 0.999 for (a, _), (b, _) in itertools.pairwise(dials))
    assert len({address for _, address in dials}) == 80


def test_who_would_be_no_neighbour_of_a_dead_member_looks_for_it_once_an_hour():
    machine = Seeds(("me:1",), Random(1), None, lambda each: each == node_id("near"))
    for name in ("near", "far"):
        machine.member_alive(node_id(name), (f"{name}:1",), 0.0)
        machine.member_dead(node_id(name), 0.0)
    dials = play(machine, 10 * DEAD_BACKOFF_FAR_S)
    far = [when for when, address in dials if address == "far:1"]
    assert 10 <= len(far) <= 21
    assert len(dials) - len(far) > 100


def test_members_of_a_former_life_are_looked_for_a_few_at_once_then_one_a_second():
    machine = seeds()
    peers = [(node_id(f"n{i}"), (f"n{i}:1",)) for i in range(20)]
    at_once = machine.remember(peers, 0.0)
    assert len(at_once) == REMEMBERED_AT_ONCE
    dials = play(machine, 19.0)
    assert all(b - a > 0.999 for (a, _), (b, _) in itertools.pairwise(dials))
    tried = {effect.address for effect in at_once} | {address for _, address in dials}
    assert len(tried) >= 15
    assert at_once != seeds(seed=2).remember(peers, 0.0)


def test_a_remembered_member_that_lives_or_left_or_is_ourselves_is_looked_for_no_more():
    machine = seeds("me:1")
    machine.member_alive(node_id("known"), ("k:1",), 0.0)
    peers = [(node_id(name), (f"{name}:1",)) for name in ("known", "a", "b", "me", "nowhere")]
    peers[-1] = (node_id("nowhere"), ())
    dials = machine.remember(peers, 0.0)
    assert {each.address for each in dials} <= {"a:1", "b:1"}
    machine.member_alive(node_id("a"), ("a:2",), 0.1)
    machine.member_left(node_id("b"), 0.1)
    assert play(machine, 3_600.0) == []


def test_a_dead_member_is_tried_again_with_backoff_up_to_five_minutes():
    machine = seeds()
    machine.member_alive(node_id("a"), ("a:1",), 0.0)
    machine.member_dead(node_id("a"), 0.0)
    times = [when for when, _ in play(machine, 7_200.0)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] <= 5.0
    assert max(gaps) <= DEAD_BACKOFF_MAX_S
    assert min(gaps[10:]) >= DEAD_BACKOFF_MAX_S / 2


def test_a_dead_member_is_tried_at_all_its_addresses_in_turn():
    machine = seeds()
    machine.member_alive(node_id("a"), ("a:1", "a:2"), 0.0)
    machine.member_dead(node_id("a"), 0.0)
    assert [where for _, where in play(machine, 120.0)][:3] == ["a:1", "a:2", "a:1"]


def test_dead_members_together_cost_one_dial_a_second():
    machine = seeds()
    for i in range(200):
        machine.member_alive(node_id(f"n{i}"), (f"n{i}:1",), 0.0)
    for i in range(200):
        machine.member_dead(node_id(f"n{i}"), 0.0)
    times = [when for when, _ in play(machine, 600.0)]
    assert all(b - a > 0.999 for a, b in itertools.pairwise(times))
    assert len(times) > 300


def test_a_member_that_left_or_came_back_is_not_looked_for():
    machine = seeds()
    for name in ("a", "b"):
        machine.member_alive(node_id(name), (f"{name}:1",), 0.0)
    machine.member_left(node_id("a"), 1.0)
    machine.member_dead(node_id("b"), 1.0)
    machine.member_alive(node_id("b"), ("b:2",), 2.0)
    assert play(machine, 3_600.0) == []


def test_m19_an_address_that_another_member_took_is_not_dialled_for_the_dead_one():
    machine = seeds()
    machine.member_alive(node_id("a"), ("a:1",), 0.0)
    machine.member_dead(node_id("a"), 0.0)
    machine.member_alive(node_id("b"), ("a:1",), 1.0)
    assert play(machine, 3_600.0) == []


def test_the_dead_are_forgotten_after_a_day():
    machine = seeds()
    machine.member_alive(node_id("a"), ("a:1",), 0.0)
    machine.member_dead(node_id("a"), 0.0)
    times = [when for when, _ in play(machine, 3 * DEAD_MEMORY_S)]
    assert max(times) <= DEAD_MEMORY_S + DEAD_BACKOFF_MAX_S
    assert machine.next_deadline() is None


def test_same_seed_same_dials():
    assert (
        play(_started(seeds(seed=3)), 600.0)
        == play(_started(seeds(seed=3)), 600.0)
        != play(_started(seeds(seed=4)), 600.0)
    )


def _started(machine):
    machine.add(["a:1", "b:1"], 0.0)
    machine.failed("a:1", 0.0)
    machine.failed("b:1", 0.0)
    return machine


def test_c8_a_seed_that_refused_our_certificate_is_left_in_peace_for_30_s():
    for seed in range(20):
        machine = seeds(seed=seed)
        machine.add(["a:1"], 0.0)
        machine.failed("a:1", 1.0, 30.0)
        dials = play(machine, 300.0, now=1.0, fail=False)
        assert dials[0][0] >= 31.0


# --- turned away --------------------------------------------------------------------------------


def test_who_is_turned_away_tries_each_address_and_the_seed_again_ever_more_rarely():
    machine = seeds()
    machine.member_alive(node_id("s"), ("s:1",), 0.0)
    machine.turned_away("s:1", ("a:1", "b:1", "me:1"), 0.0)
    dials = play(machine, 120.0)
    assert {address for _, address in dials[:4]} == {"s:1", "a:1", "b:1"}
    gaps = [b - a for (a, _), (b, _) in itertools.pairwise(dials)]
    assert min(gaps) >= 0.1
    assert REFERRED_MAX_S - 1 < max(gaps) <= REFERRED_MAX_S
    machine.joined()
    assert play(machine, 240.0, now=120.0) == []


def test_however_many_addresses_we_are_told_few_are_kept_and_ours_are_tried_every_other_time():
    machine = seeds()
    machine.turned_away("s:1", [f"n0-{each}:1" for each in range(16)], 0.0)
    for number in range(1, 20):
        told = [f"n{number}-{each}:1" for each in range(16)]
        machine.turned_away("n0-0:1", told, 0.0)
    machine.turned_away("t:1", ("n20-0:1",), 0.0)
    dials = [address for _, address in play(machine, 2_000.0)]
    assert len(set(dials)) == REFERRED_MAX + 2
    ours = [at for at, address in enumerate(dials) if address in ("s:1", "t:1")]
    assert {b - a for a, b in itertools.pairwise(ours)} == {2}
    assert set(dials[:8]) >= {"s:1", "t:1"}


def test_however_many_turn_us_away_few_of_them_are_tried_again():
    machine = seeds()
    for number in range(2 * REFERRED_MAX):
        machine.turned_away(f"s{number}:1", (), 0.0)
    assert len({address for _, address in play(machine, 2_000.0)}) == REFERRED_MAX


def test_a_seed_that_names_only_us_is_tried_again():
    machine = seeds()
    machine.turned_away("s:1", ("me:1",), 0.0)
    assert {address for _, address in play(machine, 10.0)} == {"s:1"}
