"""Rejoining always works: whatever was lost, those who live find each other again by themselves.

No test here helps the cluster on: it makes something go wrong, lets it end, and waits.
"""

import itertools

import attrs
import pytest

from plumtree_quic.messages import MemberState
from plumtree_quic.proto.effects import MemberFailed, MemberUpdated
from plumtree_quic.proto.seeds import DEAD_BACKOFF_MAX_S, SEED_BACKOFF_JOINED_MAX_S
from plumtree_quic.sim import cluster as cluster_module
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.faults import CALM

# Calm and slow ways, as in other tests; deaths are concluded within this long after a crash.
DEAD_S = 25.0
# A dial, a greeting and the news of it, beyond the longest wait for the dial.
HEALED_S = 10.0


def names_of(hosts):
    return [host.name for host in hosts]


def told_since(cluster, when, kind):
    return [effect for at, _, effect in cluster.journal.facts if at > when and type(effect) is kind]


# --- seeds --------------------------------------------------------------------------------------


def test_m20_seeds_that_come_up_late_are_found_by_a_cluster_that_formed_without_them():
    cluster = Cluster(seed=1)
    for name in ("a", "b", "c"):
        cluster.start(name, *(seed for seed in ("a", "s1", "s2") if seed != name))
    cluster.run(60.0)
    assert cluster.agreed()
    # They know nobody and nobody tells them: it is the cluster that looks for them.
    cluster.start("s1")
    cluster.start("s2")
    assert cluster.run(SEED_BACKOFF_JOINED_MAX_S + HEALED_S, cluster.agreed)


def test_m20_seeds_that_all_died_and_returned_as_others_are_found_again():
    cluster = Cluster(seed=2)
    hosts = cluster.grow(6, seeds=2)
    assert cluster.run(10.0, cluster.agreed)
    for name in names_of(hosts)[:2]:
        cluster.crash(name)
    cluster.run(DEAD_S)
    assert cluster.agreed()
    # New identities at the seeds' addresses, which know nobody.
    cluster.start("x0", place="n000")
    cluster.start("x1", place="n001")
    assert cluster.run(SEED_BACKOFF_JOINED_MAX_S + HEALED_S, cluster.agreed)


def test_m20_a_dns_seed_is_resolved_anew_at_each_try():
    cluster = Cluster(seed=3)
    cluster.start("a", place="p1")
    cluster.dns["seeds"] = ("nowhere",)
    late = cluster.start("b", "seeds")
    cluster.run(60.0)
    assert late.view() == {"b"}
    cluster.dns["seeds"] = ("nowhere", "p1")
    assert cluster.run(31.0 + HEALED_S, cluster.agreed)


def test_m20_a_dns_seed_finds_a_cluster_whose_members_all_moved_during_a_partition():
    cluster = Cluster(seed=4)
    cluster.dns["seeds"] = ("p0", "p1", "p2", "p3")
    for number in range(4):
        cluster.start(f"n{number}", "seeds", place=f"p{number}")
    assert cluster.run(40.0, cluster.agreed)
    cluster.partition(("n0", "n1", "p0", "p1"), ("n2", "n3", "p2", "p3", "q2", "q3"))
    cluster.run(DEAD_S)
    # On the far side all start anew, with other addresses, and their DNS knows only them.
    for name in ("n2", "n3"):
        cluster.crash(name)
    cluster.dns["seeds"] = ("q2", "q3")
    for number in (2, 3):
        cluster.start(f"n{number}", "seeds", place=f"q{number}")
    cluster.run(120.0)
    assert cluster.hosts["n2"].view() == {"n2", "n3"}
    assert cluster.hosts["n0"].view() == {"n0", "n1"}
    cluster.calm()
    cluster.dns["seeds"] = ("p0", "p1", "q2", "q3")
    assert cluster.run(SEED_BACKOFF_JOINED_MAX_S + HEALED_S, cluster.agreed)


def test_m20_a_name_of_members_who_are_all_known_costs_no_dial():
    cluster = Cluster(seed=5)
    cluster.dns["seeds"] = ("n000", "n001", "n002")
    for name in ("n000", "n001", "n002"):
        cluster.start(name, "seeds")
    assert cluster.run(40.0, cluster.agreed)
    cluster.run(40.0)
    dialled = []
    dial = cluster.dial
    cluster.dial = lambda host, place, *rest, **more: (
        dialled.append(place),
        dial(host, place, *rest, **more),
    )
    cluster.run(2 * SEED_BACKOFF_JOINED_MAX_S)
    # A node's own address in the list is no member that it could meet.
    assert [place for place in dialled if place not in cluster.hosts] == []
    # Looked up again every half a minute at most, in so small a cluster every 15 s in the mean.
    assert len(dialled) <= 3 * 45


# --- the dead -----------------------------------------------------------------------------------


def test_m19_a_dead_member_is_tried_again_for_an_hour_and_is_back_within_five_minutes():
    cluster = Cluster(seed=6)
    cluster.ready(4)
    cluster.partition(("n000", "n001", "n002"), ("n003",))
    cluster.run(3600.0)
    assert cluster.hosts["n000"].state_of("n003") is MemberState.DEAD
    cluster.calm()
    assert cluster.run(DEAD_BACKOFF_MAX_S + HEALED_S, cluster.agreed)


def test_m20_hours_with_dead_seeds_and_members_cost_less_than_a_dial_a_second_each():
    cluster = Cluster(seed=7)
    hosts = cluster.grow(12, seeds=3)
    assert cluster.run(10.0, cluster.agreed)
    for name in names_of(hosts)[:9]:
        cluster.crash(name)
    cluster.run(DEAD_S)
    dials = []
    dial = cluster.dial
    cluster.dial = lambda host, *rest, **more: (
        dials.append((host.name, cluster.time.now)),
        dial(host, *rest, **more),
    )
    cluster.run(900.0)
    for name in names_of(hosts)[9:]:
        times = [when for who, when in dials if who == name]
        # Three seeds every 15 s in the mean, for the cluster is small now, and nine dead rarely.
        assert 9 <= len(times) <= 240
        assert all(b - a > 0.999 for a, b in itertools.pairwise(times))


# --- partitions ---------------------------------------------------------------------------------

# Above the size of a mesh, so that there are rings.
NODES = 20
NAMES = [f"n{number:03}" for number in range(NODES)]
SHAPES = {
    "one_alone": [NAMES[:1], NAMES[1:]],
    "halves": [NAMES[:10], NAMES[10:]],
    "halves_by_turns": [NAMES[::2], NAMES[1::2]],
    "thirds": [NAMES[:7], NAMES[7:14], NAMES[14:]],
    "the_seeds_alone": [NAMES[:3], NAMES[3:]],
    "each_alone": [[name] for name in NAMES],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_m06_a_partition_heals_by_itself(shape):
    cluster = Cluster(seed=8)
    cluster.ready(NODES)
    cluster.partition(*SHAPES[shape])
    # Who hears nobody doubts itself first, and takes up to nine times as long to accuse.
    cluster.run(200.0 if shape == "each_alone" else 40.0)
    assert any(host.view() != frozenset(NAMES) for host in cluster.hosts.values())
    for side in SHAPES[shape]:
        for name in side:
            assert cluster.hosts[name].view() == frozenset(side)
    cluster.calm()
    assert cluster.run(90.0, cluster.agreed)
    cluster.run(20.0)
    assert cluster.agreed()
    assert not any(host.strikes for host in cluster.hosts.values())


def cut_both(cluster, a, b):
    cluster.cut(a, b)
    cluster.cut(b, a)


def test_m06_a_partition_without_borders_heals_by_itself():
    """Each reaches only its neighbours in a row: no two hold the same members for alive."""
    cluster = Cluster(seed=9)
    names = names_of(cluster.ready(12))
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            if i < j and j - i > 2:
                cut_both(cluster, a, b)
    cluster.run(120.0)
    cluster.calm()
    assert cluster.run(120.0, cluster.agreed)


def test_m06_a_partition_of_one_direction_heals_by_itself():
    cluster = Cluster(seed=10)
    names = names_of(cluster.ready(12))
    for a in names[:6]:
        for b in names[6:]:
            cluster.cut(a, b)
    cluster.run(60.0)
    assert not cluster.agreed()
    cluster.calm()
    assert cluster.run(90.0, cluster.agreed)


def test_m06_a_partition_heals_though_all_whom_the_lost_would_neighbour_came_later():
    """Newcomers never learn of the dead; those few who remember them must look for them."""
    cluster = Cluster(seed=11)
    cluster.ready(4)
    cluster.partition(("n000", "n001", "n002"), ("n003",))
    cluster.run(DEAD_S)
    cluster.partition(("n000", "n001", "n002", *(f"y{i}" for i in range(40))), ("n003",))
    for number in range(40):
        cluster.start(f"y{number}", "n000")
    assert cluster.run(30.0, lambda: len(cluster.hosts["n002"].view()) == 43)
    cluster.calm()
    assert cluster.run(3600.0 + HEALED_S, cluster.agreed, look_s=1.0)


# --- restarts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gap_s", [0.0, 0.5])
def test_m14_a_mass_restart_is_one_cluster_again_and_nobody_is_missed(gap_s):
    cluster = Cluster(seed=12)
    names = names_of(cluster.ready(NODES))
    for name in names:
        cluster.crash(name)
    cluster.run(3.0)
    since = cluster.time.now
    for name in names:
        cluster.start(name, *(seed for seed in names[:3] if seed != name))
        cluster.run(gap_s)
    assert cluster.run(15.0, cluster.agreed)
    cluster.run(30.0)
    assert cluster.agreed()
    assert told_since(cluster, since, MemberFailed) == []


def test_m14_a_mass_restart_in_turns_keeps_the_cluster_together():
    cluster = Cluster(seed=13)
    names = names_of(cluster.ready(NODES))
    for name in names:
        cluster.start(name, *(seed for seed in names[:3] if seed != name))
        cluster.run(1.0)
    assert cluster.run(10.0, cluster.agreed)


def test_m14_a_mass_restart_without_any_seed_meets_again_through_the_known_peers():
    cluster = Cluster(seed=14)
    hosts = cluster.ready(NODES)
    known = {
        host.name: [record for record, _ in host.core.table.members() if record.node_id != host.id]
        for host in hosts
    }
    for name in known:
        cluster.crash(name)
    # A third never comes back, and who comes back comes one after the other.
    for name in names_of(hosts)[NODES // 3 :]:
        cluster.start(name, remembered=known[name])
        cluster.run(0.3)
    assert cluster.run(30.0, cluster.agreed)


def test_m14_the_same_identity_at_a_new_address_is_one_member_and_reached_there():
    cluster = Cluster(seed=15)
    names = names_of(cluster.ready(NODES))
    before = cluster.hosts["n005"]
    moved_at = cluster.time.now
    after = cluster.start("n005", "n001", place="elsewhere")
    assert cluster.run(5.0, cluster.agreed)
    for name in names:
        record = cluster.hosts[name].core.yours(after.id)
        assert record is None or record.addresses == ("elsewhere.sim:7946",)
    assert told_since(cluster, moved_at, MemberFailed) == []
    assert {effect.record.epoch for effect in told_since(cluster, moved_at, MemberUpdated)} == {
        after.epoch
    }
    # Its old address leads nowhere, so whoever links it now found the new one.
    assert not before.alive
    for end in tuple(after.links.values()):
        end.link.break_now()
    cluster.run(10.0)
    assert len(after.links) >= 8
    cluster.run(30.0)
    assert cluster.agreed()


def test_m14_an_identity_that_was_dead_and_comes_back_elsewhere_is_alive_at_once():
    cluster = Cluster(seed=16)
    cluster.ready(8)
    cluster.crash("n005")
    cluster.run(DEAD_S)
    cluster.start("n005", "n001", place="elsewhere")
    assert cluster.run(5.0, cluster.agreed)


def test_m19_a_new_identity_at_a_dead_ones_address_is_another_member():
    cluster = Cluster(seed=17)
    cluster.ready(8)
    cluster.crash("n005")
    cluster.run(1.0)
    # While the others still dial the dead one there.
    new = cluster.start("new", "n001", place="n005")
    cluster.run(DEAD_S)
    assert cluster.agreed()
    for host in cluster.hosts.values():
        assert host.state_of("new") is MemberState.ALIVE
        if host is not new:
            assert host.state_of("n005") is MemberState.DEAD
    # And the dead one's return, at yet another place, confuses nobody.
    cluster.start("n005", "n002", place="third")
    assert cluster.run(5.0, cluster.agreed)
    cluster.run(30.0)
    assert cluster.agreed()


def test_of_two_live_processes_with_one_certificate_the_later_stays_and_the_other_stops():
    cluster = Cluster(seed=18)
    cluster.ready(12)
    first = cluster.hosts["n005"]
    second = cluster.start("n005", "n001", place="elsewhere", beside=True)
    assert first.alive
    assert second.alive
    assert cluster.run(10.0, lambda: not first.alive)
    assert first.superseded == second.epoch
    assert second.superseded is None
    assert cluster.run(10.0, cluster.agreed)
    cluster.run(30.0)
    assert cluster.agreed()
    assert cluster.hosts["n005"] is second


def test_of_two_processes_with_one_certificate_on_either_side_of_a_partition_the_later_stays():
    cluster = Cluster(seed=19)
    names = names_of(cluster.ready(12))
    first = cluster.hosts["n005"]
    cluster.partition(names[:6], names[6:])
    cluster.run(DEAD_S)
    # The orchestrator starts a second one on the side that holds the first for dead. Sides go by
    # identity, so the second one is there only once the first has changed sides.
    cluster.calm()
    second = cluster.start("n005", "n008", place="elsewhere", beside=True)
    assert cluster.run(90.0, lambda: cluster.agreed() and not first.alive)
    assert second.alive
    assert first.superseded == second.epoch


# --- tombstones ---------------------------------------------------------------------------------


def test_m19_tombstones_expire_with_the_record_and_who_was_forgotten_joins_as_itself(monkeypatch):
    monkeypatch.setattr(cluster_module, "RECORD_VALID_MS", 240_000)
    cluster = Cluster(seed=20)
    cluster.ready(8)
    cluster.crash("n005")
    cluster.hosts["n006"].leave()
    cluster.run(DEAD_S)
    assert cluster.agreed()
    for host in cluster.hosts.values():
        assert host.state_of("n005") is MemberState.DEAD
        assert host.state_of("n006") is MemberState.LEFT
    # Valid for 240 s at most, looked at every 60 s; the living renew theirs at half time.
    cluster.run(300.0)
    for host in cluster.hosts.values():
        assert host.state_of("n005") is host.state_of("n006") is None
    assert cluster.agreed()
    # None of those who forgot learns of the old lives from anybody.
    cluster.run(60.0)
    assert cluster.hosts["n000"].state_of("n005") is None
    cluster.start("n005", "n001")
    cluster.start("n006", "n001", place="n005b")
    assert cluster.run(10.0, cluster.agreed)
    cluster.run(30.0)
    assert cluster.agreed()


def test_m19_a_tombstone_is_not_forgotten_before_the_record_of_that_life_has_expired(monkeypatch):
    monkeypatch.setattr(cluster_module, "RECORD_VALID_MS", 600_000)
    cluster = Cluster(seed=21)
    cluster.ready(6)
    born = cluster.wall_ms()
    cluster.crash("n005")
    record = cluster.hosts["n000"].core.yours(cluster_module._node_id("n005"))
    assert record is not None
    while cluster.wall_ms() < record.valid_until - 1_000:
        assert cluster.hosts["n000"].core.yours(record.node_id) is not None
        cluster.run(20.0)
    assert cluster.wall_ms() - born > 300_000


def test_rejoining_works_in_foul_weather_too():
    cluster = Cluster(seed=22, weather=attrs.evolve(CALM, loss=0.1))
    names = names_of(cluster.grow(12, seeds=3))
    assert cluster.run(30.0, cluster.agreed)
    cluster.partition(names[:4], names[4:8], names[8:])
    cluster.run(60.0)
    cluster.network.heal()
    for name in names[:3]:
        cluster.start(name, *names[4:6])
    assert cluster.run(120.0, cluster.agreed)
