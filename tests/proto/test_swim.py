"""Each rule of membership, on one node with hand-made peers. Virtual time."""

import itertools
from random import Random

import pytest

from plumtree_quic import wire
from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import member_key
from plumtree_quic.messages import (
    Ack,
    BucketHashes,
    Facts,
    MemberState,
    Ping,
    Records,
    RecordsWanted,
    Row,
    Rows,
)
from plumtree_quic.proto import members as members_module
from plumtree_quic.proto import swim as swim_module
from plumtree_quic.proto.effects import (
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberSuspected,
    MemberUpdated,
    Relink,
    Send,
    SendDatagram,
    Strike,
    Superseded,
)
from plumtree_quic.proto.members import EPOCH_AHEAD_MS, INCARNATION_STEP_MAX, Members
from plumtree_quic.proto.swim import REFUTED_BURST, Swim
from tests.rigs.membership import DAY_MS, WALL_MS, fact, hello, node_id, record

ALIVE, SUSPECT = MemberState.ALIVE, MemberState.SUSPECT
DEAD, LEFT = MemberState.DEAD, MemberState.LEFT


def key(name):
    return member_key(node_id(name))


class Rig:
    """One Swim named m. Its effects are collected; advance() runs due timers."""

    def __init__(self, *peers, seed=1, monitors=None, near=None, **config):
        self.wall = WALL_MS
        self.monitors = monitors
        self.now = 0.0
        config.setdefault("maintenance_interval", 0.0)
        self.config = PlumtreeConfig(**config)
        self.table = Members(record("m"), lambda: self.wall)
        self.swim = Swim(
            self.table,
            self.config,
            Random(seed),
            lambda incarnation: record("m", incarnation=incarnation, valid_until=self.valid()),
            self.make_fact,
            lambda watcher, _watched: self.monitors is None or watcher.name in self.monitors,
            lambda keys: [each for each in keys if near is None or each in map(key, near)],
        )
        self.out = []
        self.take(self.swim.start(self.now))
        for peer in peers:
            self.link(peer)
        self.flush()

    def valid(self):
        return self.wall + DAY_MS

    def make_fact(self, subject, epoch, incarnation, state):
        return wire.build_fact(
            subject=subject, epoch=epoch, incarnation=incarnation, state=state, signer=key("m")
        )

    def take(self, effects):
        self.out += [(self.now, each) for each in effects]
        return list(effects)

    def link(self, peer, **greeting):
        greeting.setdefault("of", record(peer))
        return self.take(self.swim.link_up(node_id(peer), hello(**greeting), self.now))

    def receive(self, peer, message):
        return self.take(self.swim.receive(node_id(peer), message, self.now))

    def facts(self, peer, *facts):
        return self.receive(peer, Facts(facts))

    def hear(self, *peers):
        for peer in peers:
            self.swim.heard(node_id(peer), self.now, 0.05)

    def flush(self):
        return self.take(self.swim.advance(self.now))

    def run(self, seconds, alive=(), step=0.1):
        """Advance; something fresh comes from `alive` peers all the time."""
        first = len(self.out)
        end = self.now + seconds
        while self.now < end - 1e-9:
            until = min(end, self.now + step)
            while (due := self.swim.next_deadline()) is not None and due <= until:
                self.now = max(self.now, due)
                self.flush()
            self.now = until
            self.hear(*alive)
        return [each for _, each in self.out[first:]]

    def state(self, name):
        return self.table.state_of(key(name))

    def know(self, *names):
        """Let these become members through the first link, without links of their own."""
        peer = next(iter(self.swim._links))
        for name in names:
            self.take(self.swim.receive(peer, Records((record(name),)), self.now))
        self.flush()


def of(effects, kind):
    return [each for each in effects if isinstance(each, kind)]


def sent(effects, kind, peer=None):
    return [
        each.message
        for each in of(effects, (Send, SendDatagram))
        if isinstance(each.message, kind) and (peer is None or each.peer == node_id(peer))
    ]


def facts_to(effects, peer):
    return [
        (one.subject, one.state, one.incarnation)
        for message in sent(effects, Facts, peer)
        for one in message.facts
    ]


# --- joining --------------------------------------------------------------------------------------


def test_a_greeted_peer_is_a_member():
    rig = Rig()
    assert of(rig.link("a"), MemberJoined) == [MemberJoined(record("a"))]
    assert rig.state("a") is ALIVE


def test_each_side_announces_itself_when_a_link_comes_up():
    rig = Rig()
    assert facts_to(rig.link("a"), "a") == [(key("m"), ALIVE, 0)]


def test_one_side_the_smaller_id_begins_to_compare_tables():
    rig = Rig()
    assert sent(rig.link("z"), BucketHashes)
    assert not sent(rig.link("a"), BucketHashes)


def test_who_dials_to_meet_somebody_begins_and_the_other_end_only_when_nothing_comes_of_it():
    rig = Rig()
    assert sent(rig.take(rig.swim.link_up(node_id("a"), hello(of=record("a")), 0.0, begin=True)),
                BucketHashes)  # fmt: skip
    assert not sent(
        rig.take(rig.swim.link_up(node_id("z"), hello(of=record("z")), 0.0, begin=False)),
        BucketHashes,
    )
    effects = rig.run(swim_module.COMPARE_PATIENCE_S + 0.05, alive=("a", "z"))
    assert sent(effects, BucketHashes, "z")
    assert not sent(effects, BucketHashes, "a")


def test_a_new_link_between_two_who_know_each_other_is_no_reason_to_compare_again_so_soon():
    rig = Rig()
    assert sent(rig.link("z"), BucketHashes)
    rig.know("y")
    assert not sent(rig.link("y"), BucketHashes)
    assert sent(rig.link("x"), BucketHashes)
    rig.run(swim_module.COMPARE_GAP_S, alive=("z", "y", "x"))
    rig.swim.link_down(node_id("y"), rig.now)
    assert sent(rig.link("y"), BucketHashes)


def test_news_of_newcomers_share_frames_but_the_first_waits_for_nothing():
    rig = Rig("a", "b")
    rig.know("x", "y", "z")
    rig.facts("a", fact("x", ALIVE))
    assert facts_to(rig.flush(), "b") == [(key("x"), ALIVE, 0)]
    rig.facts("a", fact("y", ALIVE))
    assert not sent(rig.flush(), Facts)
    rig.facts("a", fact("z", ALIVE))
    assert not sent(rig.flush(), Facts)
    assert rig.swim.next_deadline() == rig.now + swim_module.NEWS_EVERY_S
    effects = rig.run(swim_module.NEWS_EVERY_S, alive="ab", step=0.01)
    (frame,) = sent(effects, Facts, "b")
    assert [one.subject for one in frame.facts] == [key("y"), key("z")]


def test_no_news_travel_on_a_link_that_neither_end_wants_and_what_was_missed_is_compared():
    rig = Rig("a", "b")
    rig.know("x")
    rig.swim.set_joining(node_id("b"), True, rig.now)
    rig.facts("a", fact("x", ALIVE))
    assert not sent(rig.flush(), Facts, "b")
    rig.swim.set_joining(node_id("b"), False, rig.now)
    effects = rig.run(swim_module.COMPARE_PATIENCE_S + 0.05, alive="ab")
    assert sent(effects, BucketHashes, "b")


def rows(*names):
    return Rows((), tuple(Row(key(name), 1, 0, ALIVE) for name in names), False)


def joiner(*names, near):
    """One that has met the seed s by a join link, and was told rows of `names`."""
    rig = Rig(near=near)
    rig.swim.begin_join()
    rig.take(
        rig.swim.link_up(node_id("s"), hello(of=record("s")), rig.now, begin=True, joining=True)
    )
    rig.receive("s", rows(*names))
    return rig


STRANGERS = [f"n{number:02}" for number in range(60)]


def test_whom_several_links_are_asked_for_or_who_is_met_by_now_counts_once_or_not_at_all():
    rig = joiner("n01", "n02", near=("n01",))
    assert rig.swim.unmet() == 2
    rig.link("n03")
    rig.swim._links[node_id("n03")].queue[key("n01")] = True
    rig.swim._links[node_id("n03")].asked[key("n02")] = 5.0
    assert rig.swim.unmet() == 2
    rig.link("n01")
    assert rig.swim.unmet() == 1
    assert rig.swim.awaits_records


def test_a_joiner_asks_a_seed_for_its_neighbours_and_its_neighbours_for_the_rest():
    rig = joiner(*STRANGERS, near=("n03", "n05"))
    (wanted,) = sent(rig.flush(), RecordsWanted)
    assert set(wanted.keys) == {key("n03"), key("n05")}
    assert not rig.swim.has_met(node_id("s"))
    rig.receive("s", Records((record("n03"), record("n05"))))
    assert rig.swim.has_met(node_id("s"))
    assert rig.swim.unmet() == 58
    rig.swim.end_join(rig.now)
    assert not sent(rig.flush(), RecordsWanted)
    rig.link("n03")
    rig.link("n05")
    asked = {"s": [], "n03": [], "n05": []}
    for _ in range(10):
        effects = rig.flush()
        for peer in asked:
            for message in sent(effects, RecordsWanted, peer):
                assert len(message.keys) <= swim_module.HINTS_PER_LINK
                asked[peer] += message.keys
                names = [name for name in STRANGERS if key(name) in message.keys]
                rig.receive(peer, Records(tuple(map(record, names))))
    assert asked["s"] == []
    every = [*asked["n03"], *asked["n05"]]
    assert len(every) == len(set(every)) == 58
    assert abs(len(asked["n03"]) - len(asked["n05"])) <= swim_module.HINTS_PER_LINK
    assert rig.swim.unmet() == 0
    assert rig.table.alive_count() == 62


def test_who_does_not_know_whom_a_joiner_asks_for_is_not_waited_for_when_somebody_does():
    rig = joiner("a", "b", "x", "y", near="ab")
    rig.flush()
    rig.receive("s", Records((record("a"), record("b"))))
    rig.swim.end_join(rig.now)
    rig.link("a")
    (guess,) = sent(rig.flush(), RecordsWanted, "a")
    assert set(guess.keys) == {key("x"), key("y")}
    # Rows say that the other one knows it as well: it is asked when the first has not answered.
    rig.link("b")
    rig.receive("b", rows("x", "y"))
    assert not sent(rig.flush(), RecordsWanted)
    # A fact says that x is there now.
    rig.facts("b", fact("x", ALIVE))
    assert [each.keys for each in sent(rig.flush(), RecordsWanted, "b")] == [(key("x"),)]
    effects = rig.run(swim_module.HINT_TIMEOUT_S, alive="abs")
    assert [each.keys for each in sent(effects, RecordsWanted, "b")] == [(key("y"),)]


def test_a_seed_that_learns_more_while_we_join_is_asked_for_no_more_and_is_the_last_resort():
    rig = joiner("a", near="a")
    rig.flush()
    rig.receive("s", Records((record("a"),)))
    rig.swim.end_join(rig.now)
    rig.link("a")
    # Rows of another seed come late, and those of the first again, for it has met others since.
    rig.take(
        rig.swim.link_up(node_id("t"), hello(of=record("t")), rig.now, begin=True, joining=True)
    )
    for seed in ("s", "t"):
        rig.receive(seed, rows("x", "y", "z"))
    asked = rig.flush()
    assert not sent(asked, RecordsWanted, "s") + sent(asked, RecordsWanted, "t")
    (guess,) = sent(asked, RecordsWanted, "a")
    assert set(guess.keys) == {key("x"), key("y"), key("z")}
    # Our neighbour does not have them: whoever named them first does.
    effects = rig.run(swim_module.HINT_TIMEOUT_S, alive="ast")
    (sure,) = sent(effects, RecordsWanted, "s")
    assert set(sure.keys) == set(guess.keys)
    assert not sent(effects, RecordsWanted, "t")


def test_long_after_it_has_joined_a_node_asks_whoever_names_strangers():
    rig = joiner("a", near="a")
    rig.flush()
    rig.receive("s", Records((record("a"),)))
    rig.swim.end_join(rig.now)
    rig.link("a")
    rig.run(swim_module.JOINED_S + 0.1, alive="as")
    rig.receive("s", rows("x"))
    assert sent(rig.flush(), RecordsWanted, "s")


def test_without_neighbours_whoever_named_them_is_asked_after_a_while():
    rig = joiner(*STRANGERS[:10], near=())
    rig.swim.end_join(rig.now)
    assert not sent(rig.flush(), RecordsWanted)
    effects = rig.run(swim_module.HINTS_WAIT_S, alive="s")
    (wanted,) = sent(effects, RecordsWanted, "s")
    assert len(wanted.keys) == 10


def test_rows_of_a_seed_that_is_lost_are_not_lost_with_it():
    rig = joiner(*STRANGERS, near=("n03", "n05"))
    rig.flush()
    rig.take(rig.swim.link_down(node_id("s"), rig.now, wanted=False))
    assert rig.swim.unmet() == 60
    rig.link("t")
    rig.receive("t", rows("n03", "n05"))
    (wanted,) = sent(rig.flush(), RecordsWanted, "t")
    assert set(wanted.keys) == {key("n03"), key("n05")}


def test_what_one_link_did_not_answer_is_asked_of_the_next_that_has_it_and_newer_ones_too():
    rig = Rig("a", "b")
    rig.receive("a", rows("x"))
    rig.receive("b", rows("x"))
    effects = rig.flush()
    assert [each.peer.name for each in of(effects, Send)] == ["a"]
    effects = rig.run(swim_module.ASK_TIMEOUT_S, alive="ab")
    assert sent(effects, RecordsWanted, "b")
    rig.receive("b", Records((record("x"),)))
    # Two say that there is a newer one; the first to be asked has only an older one of those.
    for peer, incarnation in (("a", 1), ("b", 2)):
        rig.receive(peer, Rows((), (Row(key("x"), 1, incarnation, ALIVE),), False))
    assert sent(rig.flush(), RecordsWanted, "a")
    rig.receive("a", Records((record("x", incarnation=1),)))
    assert sent(rig.flush(), RecordsWanted, "b")


def test_a_neighbour_that_others_have_replaced_is_not_accused_for_having_no_link():
    rig = Rig("a", "b")
    rig.take(rig.swim.link_down(node_id("a"), rig.now))
    rig.swim.unwatch(node_id("a"))
    effects = rig.run(10.0, alive="b")
    assert of(effects, MemberSuspected) == []
    rig.link("a")
    rig.take(rig.swim.link_down(node_id("a"), rig.now))
    assert of(rig.run(10.0, alive="b"), MemberSuspected)


def test_a_fact_of_a_newcomer_spreads_once_to_every_link_that_has_not_brought_it():
    rig = Rig("a", "b", "c")
    rig.link("n")
    rig.facts("n", fact("n", ALIVE))
    rig.facts("a", fact("n", ALIVE))
    effects = rig.flush()
    assert facts_to(effects, "b") == facts_to(effects, "c") == [(key("n"), ALIVE, 0)]
    assert facts_to(effects, "a") == facts_to(effects, "n") == []
    rig.facts("b", fact("n", ALIVE))
    assert not sent(rig.flush(), Facts)


def test_facts_of_one_turn_leave_in_one_frame():
    rig = Rig("a", "b")
    rig.know("x", "y")
    rig.facts("b", fact("x", ALIVE))
    rig.facts("b", fact("y", ALIVE))
    (frame,) = sent(rig.flush(), Facts, "a")
    assert len(frame.facts) == 2


def test_a_fact_of_a_stranger_waits_for_its_record_which_the_bringer_is_asked_for():
    rig = Rig("a", "b")
    assert rig.facts("a", fact("x", ALIVE)) == []
    effects = rig.flush()
    assert sent(effects, RecordsWanted, "a") == [RecordsWanted((key("x"),))]
    assert facts_to(effects, "b") == []
    joined = rig.receive("a", Records((record("x"),)))
    assert of(joined, MemberJoined) == [MemberJoined(record("x"))]
    assert facts_to(rig.flush(), "b") == [(key("x"), ALIVE, 0)]


def test_a_record_is_asked_of_one_link_at_a_time_and_of_another_after_two_seconds():
    rig = Rig("a", "b")
    rig.facts("a", fact("x", ALIVE))
    rig.facts("b", fact("x", ALIVE))
    assert sent(rig.flush(), RecordsWanted, "b") == []
    later = rig.run(2.5, alive=("a", "b"))
    assert sent(later, RecordsWanted, "b") == [RecordsWanted((key("x"),))]


def test_questions_are_paced_to_64_keys_that_are_not_answered():
    rig = Rig("a")
    rows = tuple(Row(key(f"n{i}"), 1, 0, ALIVE) for i in range(200))
    rig.receive("a", Rows(tuple(range(256)), rows, False))
    (first,) = sent(rig.flush(), RecordsWanted)
    assert len(first.keys) == 64
    assert not sent(rig.flush(), RecordsWanted)
    answer = Records(tuple(record(f"n{i}") for i in range(10)))
    rig.receive("a", answer)
    (second,) = sent(rig.flush(), RecordsWanted)
    assert len(second.keys) == 10


def test_core_may_ask_for_the_record_of_an_unknown_origin():
    rig = Rig("a")
    rig.swim.want_record(node_id("a"), key("x"), rig.now)
    assert sent(rig.flush(), RecordsWanted, "a") == [RecordsWanted((key("x"),))]
    rig.swim.want_record(node_id("a"), key("a"), rig.now)
    assert not sent(rig.flush(), RecordsWanted)


def test_records_are_served_with_the_subjects_own_fact_in_frames_of_bounded_size():
    rig = Rig("a")
    for i in range(300):
        big = record(f"n{i}", meta=bytes(500))
        rig.receive("a", Records((big,), (fact(f"n{i}", ALIVE),)))
    asked = RecordsWanted(tuple(key(f"n{i}") for i in range(300)))
    frames = sent(rig.receive("a", asked), Records)
    assert len(frames) > 1
    assert all(len(wire.encode(frame)) <= wire.RECORDS_FRAME_BYTES_MAX for frame in frames)
    assert sum(len(frame.records) for frame in frames) == 256
    assert sum(len(frame.facts) for frame in frames) == 256


# --- probes by the rule of silence ----------------------------------------------------------------


def test_a_record_that_is_asked_for_many_times_in_one_question_is_sent_once():
    rig = Rig("a")
    rig.know("x")
    (answer,) = sent(rig.receive("a", RecordsWanted((key("x"),) * 250)), Records)
    assert len(answer.records) == 1


def test_records_above_the_rate_of_one_link_are_asked_for_again_later(monkeypatch):
    monkeypatch.setattr(swim_module, "RECORDS_SERVED_PER_S", 2.5)
    monkeypatch.setattr(swim_module, "RECORDS_SERVED_BURST", 3.0)
    rig = Rig("a", "b")
    names = [f"n{i}" for i in range(5)]
    rig.know(*names)
    asked = RecordsWanted(tuple(key(name) for name in names))

    def served(peer):
        return sum(len(each.records) for each in sent(rig.receive(peer, asked), Records))

    assert (served("a"), served("a"), served("b")) == (3, 0, 3)
    rig.run(1.0, alive=("a", "b"))
    assert served("a") == 2
    assert rig.swim.counters.records_withheld == 2 + 5 + 2 + 3


def test_a_link_on_which_something_fresh_comes_is_never_probed():
    rig = Rig("a")
    assert not sent(rig.run(60, alive=("a",)), Ping)


def test_a_silent_link_is_probed_within_three_probe_intervals():
    for seed in range(20):
        rig = Rig("a", seed=seed)
        rig.run(3 * rig.config.probe_interval)
        (at, _), *_ = [(at, each) for at, each in rig.out if isinstance(each, SendDatagram)]
        assert rig.config.probe_interval <= at <= 3 * rig.config.probe_interval


def test_each_ping_has_a_nonce_of_its_own():
    rig = Rig("a")
    nonces = [ping.nonce for ping in sent(rig.run(30), Ping)]
    assert len(nonces) > 5
    assert len(set(nonces)) == len(nonces)
    assert {len(nonce) for nonce in nonces} == {8}


def test_a_ping_is_echoed_at_once():
    rig = Rig("a")
    effects = rig.receive("a", Ping(b"12345678"))
    assert effects == [SendDatagram(node_id("a"), Ack(b"12345678"))]


def test_x17_pings_of_one_peer_are_answered_up_to_its_rate_and_another_peers_are_all_answered():
    rig = Rig("a", "b")
    answered = {"a": 0, "b": 0}
    burst, rate = swim_module.PINGS_ANSWERED_BURST, swim_module.PINGS_ANSWERED_PER_S
    for tick in range(50_000):
        rig.now = tick / 10_000
        answered["a"] += len(rig.swim.receive(node_id("a"), Ping(b"12345678"), rig.now))
        if tick % 1_000 == 0:
            answered["b"] += len(rig.swim.receive(node_id("b"), Ping(b"12345678"), rig.now))
    assert answered["a"] == pytest.approx(burst + 5 * rate, abs=1)
    assert answered["b"] == 50
    assert rig.swim.counters.pings_dropped == 50_000 - answered["a"]


def test_x17_what_rides_on_a_ping_above_the_rate_is_not_read():
    rig = Rig("a", "b")
    for _ in range(200):
        rig.swim.receive(node_id("a"), Ping(b"12345678"), rig.now)
    rig.receive("a", Ping(b"12345678", (fact("b", LEFT),)))
    assert rig.state("b") is ALIVE


def test_no_honest_probing_of_any_preset_is_near_the_rate():
    for name in ("lan", "wan", "large_cluster"):
        config = getattr(PlumtreeConfig, name)()
        pings_per_s = swim_module.PINGS_PER_TIMEOUT / config.probe_timeout
        assert 10 * pings_per_s <= swim_module.PINGS_ANSWERED_PER_S


def test_a_fresh_echo_ends_the_wait():
    rig = Rig("a")
    while not (pings := sent(rig.run(0.1), Ping)):
        pass
    rig.receive("a", Ack(pings[-1].nonce))
    assert not of(rig.run(1.0), MemberSuspected)


def test_f12_a_nonce_that_is_used_again_or_invented_proves_nothing():
    rig = Rig("a")
    while not (pings := sent(rig.run(0.1), Ping)):
        pass
    old = pings[0].nonce
    rig.receive("a", Ack(old))
    rig.run(rig.config.probe_interval)
    effects = []
    for _ in range(40):
        rig.receive("a", Ack(old))
        rig.receive("a", Ack(bytes(8)))
        effects += rig.run(0.1)
    assert of(effects, MemberSuspected)


@pytest.mark.parametrize("config", [PlumtreeConfig.lan()])
def test_silence_is_suspected_within_four_seconds_at_lan_values(config):
    for seed in range(20):
        rig = Rig(
            "a",
            "b",
            seed=seed,
            probe_interval=config.probe_interval,
            probe_timeout=config.probe_timeout,
        )
        assert of(rig.run(4.0, alive=("b",)), MemberSuspected) == [MemberSuspected(node_id("a"))]


@pytest.mark.parametrize("how", ["record", "fact"])
def test_m14_the_silence_of_an_old_lifes_link_accuses_no_new_life(how):
    rig = Rig("a", "b", probe_interval=1.0, probe_timeout=0.5)
    # Its process is gone; the link hangs, and the verdict is near.
    while rig.swim._links[node_id("a")].waiting_since is None:
        rig.run(0.05, alive=("b",), step=0.05)
    rig.run(0.45, alive=("b",))
    assert rig.state("a") is ALIVE
    if how == "record":
        rig.receive("b", Records((record("a", epoch=2),)))
    else:
        rig.facts("b", fact("a", ALIVE, incarnation=1))
    assert of(rig.run(0.4, alive=("b",)), MemberSuspected) == []
    # A link that stays silent is judged all the same.
    assert of(rig.run(4.0, alive=("b",)), MemberSuspected) == [MemberSuspected(node_id("a"))]


def test_silence_decides_a_link_that_may_be_silent_for_longer_is_given_longer():
    rig = Rig("a")
    rig.swim.heard(node_id("a"), rig.now, 3.0)
    assert not of(rig.run(3.9), MemberSuspected)
    assert of(rig.run(2.0), MemberSuspected)


def test_a_failed_probe_is_told_to_every_link_the_accused_included():
    rig = Rig("a", "b", "c")
    effects = rig.run(4.0, alive=("b", "c"))
    for peer in ("a", "b", "c"):
        assert (key("a"), SUSPECT, 0) in facts_to(effects, peer)


def test_m11_what_fell_into_our_own_stall_accuses_nobody():
    rig = Rig("a")
    rig.run(rig.swim.next_deadline() - rig.now + 0.01)
    rig.now += 30.0
    rig.swim.late(30.0, rig.now)
    rig.flush()
    assert not of([each for _, each in rig.out], MemberSuspected)
    # The echo was in the socket all the time.
    rig.hear("a")
    assert not of(rig.run(0.5), MemberSuspected)


def test_m11_a_late_timer_of_our_own_is_noticed_without_being_told():
    rig = Rig("a")
    rig.run(rig.swim.next_deadline() - rig.now + 0.01)
    rig.now += 30.0
    rig.flush()
    assert not of([each for _, each in rig.out], MemberSuspected)
    assert rig.swim.counters.late_ms > 29_000
    # Half a minute is the worst score: its time-out is nine times the usual.
    assert rig.swim.health.stretch == 9
    assert not of(rig.run(8 * rig.config.probe_timeout), MemberSuspected)
    assert of(rig.run(rig.config.probe_timeout), MemberSuspected)


def test_m11_a_stall_prolongs_suspicions():
    rig = Rig("a", "b")
    rig.run(3.0, alive=("b",))
    assert rig.state("a") is SUSPECT
    rig.now += 60.0
    rig.swim.late(60.0, rig.now)
    rig.flush()
    assert rig.state("a") is SUSPECT


def test_m11_a_loop_that_is_late_all_the_time_still_knows_of_the_dead():
    rig = Rig("a", "b")
    for _ in range(120):
        rig.now += 0.4
        rig.swim.late(0.3, rig.now)
        rig.hear("b")
        rig.flush()
    assert rig.state("a") is not ALIVE


def test_m11_a_stall_gives_a_suspicion_one_more_probe_interval_and_not_the_whole_stall():
    rig = Rig("a")
    members(rig, "x", "b", "c", "d")
    rig.facts("a", *(fact("x", SUSPECT, signer=name) for name in "bcd"))
    rig.now += 60.0
    rig.swim.late(60.0, rig.now)
    assert not of(rig.run(0.9, alive=("a",)), MemberFailed)
    assert of(rig.run(0.2, alive=("a",)), MemberFailed)


def test_m12_after_a_sleep_that_no_timer_shows_waits_begin_anew_and_suspicions_last_longer():
    rig = Rig("a", "b", "c")
    members(rig, "x", "y", "z")
    rig.facts("a", *(fact("x", SUSPECT, signer=name) for name in ("b", "y", "z")))
    rig.run(3.0, alive=("b", "c"))
    assert rig.swim._links[node_id("a")].waiting_since is not None
    rig.swim.slept(3_600.0, rig.now)
    assert rig.swim.health.stretch == 9
    assert rig.swim._links[node_id("a")].waiting_since == rig.now
    assert not of(rig.run(2.9, alive=("b", "c")), MemberFailed)
    assert of(rig.run(0.2, alive=("b", "c")), MemberFailed) == [MemberFailed(node_id("x"))]


def test_m12_a_sleep_too_short_to_matter_changes_nothing():
    rig = Rig("a", "b")
    rig.run(1.9, alive=("b",))
    before = rig.swim._links[node_id("a")].waiting_since
    rig.swim.slept(0.2, rig.now)
    assert rig.swim._links[node_id("a")].waiting_since == before
    assert rig.swim.health.score == 0
    assert rig.swim.counters.slept_ms == 200


# --- local health ---------------------------------------------------------------------------------


def unwell(rig, score=8):
    rig.swim.health.stalled(score * rig.config.probe_timeout / 2, rig.now)
    assert rig.swim.health.score == score
    return rig


def stay_unwell(rig, seconds, alive):
    """Run without getting any better."""
    effects = []
    for _ in range(round(seconds / 0.1)):
        rig.swim.health.stalled(4.0, rig.now)
        effects += rig.run(0.1, alive=alive)
    return effects


def test_a_failed_probe_while_others_are_heard_says_nothing_of_ourselves():
    rig = Rig("a", "b")
    rig.run(4.0, alive=("b",))
    assert rig.swim.counters.probes_failed == 1
    assert rig.swim.health.score == 0


def test_failed_probes_while_nobody_is_heard_are_held_against_ourselves():
    rig = Rig("a", "b", "c")
    rig.run(4.0)
    assert rig.swim.health.score == 3


def test_a_refutation_is_held_against_ourselves():
    rig = Rig("a", "b")
    rig.facts("a", fact("m", SUSPECT, signer="b"))
    assert rig.swim.health.score == 1


def test_local_health_stretches_the_probe_interval():
    for seed in range(20):
        rig = Rig("a", seed=seed)
        unwell(rig)
        rig.swim._links[node_id("a")].gap_s = rig.swim._gap_s()
        first = next(at for at in range(40) if sent(rig.run(1.0), Ping))
        assert 8 <= first <= 18


def test_local_health_stretches_the_probe_timeout():
    rig = Rig("a", "b")
    while not sent(rig.run(0.05, alive=("b",)), Ping, "a"):
        pass
    assert not of(stay_unwell(rig, 9 * rig.config.probe_timeout - 0.2, ("b",)), MemberSuspected)
    assert of(stay_unwell(rig, 0.4, ("b",)), MemberSuspected)


def test_local_health_stretches_a_suspicion_that_rests_on_our_own_word():
    rig = Rig("a", "b")
    members(rig, "c", "d", "e")
    rig.run(4.0, alive=("b",))
    assert rig.state("a") is SUSPECT
    assert not of(stay_unwell(rig, 9 * 15.0 - 4.0, ("b",)), MemberFailed)
    assert of(stay_unwell(rig, 5.0, ("b",)), MemberFailed)


def test_a_suspicion_that_rested_on_our_own_word_is_shortened_when_we_get_well():
    rig = unwell(Rig("a", "b"))
    members(rig, "c", "d", "e")
    effects = rig.run(40.0, alive=("b",))
    assert rig.swim.health.score == 0
    assert of(effects, MemberFailed) == [MemberFailed(node_id("a"))]


def test_local_health_stretches_no_suspicion_that_three_others_stand_by():
    rig = Rig("a")
    members(rig, "x", "b", "c", "d")
    rig.facts("a", *(fact("x", SUSPECT, signer=name) for name in "bcd"))
    assert not of(stay_unwell(rig, 4.9, ("a",)), MemberFailed)
    assert of(stay_unwell(rig, 0.3, ("a",)), MemberFailed)


def test_who_hears_nothing_on_any_link_asks_the_others_before_it_accuses_one():
    rig = Rig("a", "b", "c")
    rig.swim._links[node_id("a")].due = rig.swim._at(rig.now + 0.6)
    rig.swim._links[node_id("a")].gap_s = 0.6
    # The others are not due yet, and have been silent as long.
    effects = rig.run(1.15)
    assert {each.peer for each in of(effects, SendDatagram)} == {node_id(name) for name in "abc"}
    assert not of(effects, MemberSuspected)
    rig.hear("b")
    assert of(rig.run(0.3, alive=("b",)), MemberSuspected) == [MemberSuspected(node_id("a"))]
    assert rig.swim.health.score == 0


def test_a_node_that_hears_nothing_on_all_links_re_dials_them_before_it_accuses_anybody():
    rig = Rig("a", "b", "c")
    effects = rig.run(2.9)
    assert [each.peer for each in of(effects, Relink)] == [node_id(name) for name in "abc"]
    assert not of(effects, MemberSuspected)
    # Once; and what does not come back is accused all the same.
    effects = rig.run(60.0)
    assert not of(effects, Relink)
    assert {each.node_id for each in of(effects, MemberSuspected)} == {
        node_id(name) for name in "abc"
    }


def test_a_node_with_a_single_link_has_nobody_else_to_ask():
    rig = Rig("a")
    assert of(rig.run(3.0), MemberSuspected)
    assert rig.swim.health.score == 0


# --- members without a link -----------------------------------------------------------------------


def test_a_member_that_we_should_be_linked_with_and_is_not_is_suspected():
    rig = Rig("a", "b")
    rig.take(rig.swim.link_down(node_id("a"), rig.now))
    assert not of(rig.run(2.9, alive=("b",)), MemberSuspected)
    assert of(rig.run(0.2, alive=("b",)), MemberSuspected)


def test_a_link_that_comes_back_in_time_accuses_nobody():
    rig = Rig("a", "b")
    rig.take(rig.swim.link_down(node_id("a"), rig.now))
    rig.run(2.0, alive=("b",))
    rig.link("a")
    assert not of(rig.run(10.0, alive=("a", "b")), MemberSuspected)


def test_a_link_that_nobody_wanted_may_go():
    rig = Rig("a", "b")
    rig.take(rig.swim.link_down(node_id("a"), rig.now, wanted=False))
    assert not of(rig.run(30.0, alive=("b",)), MemberSuspected)


def test_a_member_that_was_never_reached_is_suspected_like_a_silent_one():
    rig = Rig("a")
    rig.know("x")
    rig.take(rig.swim.unreachable(node_id("x"), rig.now))
    rig.run(1.0, alive=("a",))
    rig.take(rig.swim.unreachable(node_id("x"), rig.now))
    assert of(rig.run(2.1, alive=("a",)), MemberSuspected) == [MemberSuspected(node_id("x"))]


# --- suspicion ------------------------------------------------------------------------------------


def members(rig, *names):
    for name in names:
        rig.know(name)
    return names


def test_one_accuser_gives_three_times_the_suspicion_time():
    rig = Rig("a")
    members(rig, "x", "b", "c", "d")
    rig.facts("a", fact("x", SUSPECT, signer="b"))
    assert not of(rig.run(14.9, alive=("a",)), MemberFailed)
    assert of(rig.run(0.2, alive=("a",)), MemberFailed) == [MemberFailed(node_id("x"))]


def test_three_accusers_give_the_suspicion_time():
    rig = Rig("a")
    members(rig, "x", "b", "c", "d")
    rig.facts("a", *(fact("x", SUSPECT, signer=name) for name in "bcd"))
    assert not of(rig.run(4.9, alive=("a",)), MemberFailed)
    assert of(rig.run(0.2, alive=("a",)), MemberFailed)


def test_a_third_accuser_that_comes_late_ends_the_suspicion_and_is_no_stall_of_ours():
    rig = Rig("a")
    members(rig, "x", "b", "c", "d")
    rig.facts("a", *(fact("x", SUSPECT, signer=name) for name in "bc"))
    rig.run(7.0, alive=("a",))
    rig.facts("a", fact("x", SUSPECT, signer="d"))
    assert of(rig.flush(), MemberFailed)
    assert rig.swim.counters.late_ms == 0
    assert rig.swim.health.score == 0


def test_m17_an_accuser_has_one_vote_per_incarnation():
    rig = Rig("a", "l")
    members(rig, "x", "b", "c", "d")
    for stamp in range(10):
        again = wire.build_fact(
            subject=key("x"),
            epoch=1,
            incarnation=0,
            state=SUSPECT,
            signer=key("b"),
            signed_at=stamp,
        )
        rig.facts("a", again)
        # And is told once: a stream of new signatures under one vote is not passed on.
        assert bool(facts_to(rig.flush(), "l")) is (stamp == 0)
    assert not of(rig.run(14.0, alive=("a",)), MemberFailed)


def test_m17_a_strangers_and_a_dead_members_accusations_do_not_count():
    rig = Rig("a")
    members(rig, "x", "b")
    rig.facts("a", fact("b", LEFT))
    rig.facts("a", fact("x", SUSPECT, signer="b"), fact("x", SUSPECT, signer="nobody"))
    assert rig.state("x") is ALIVE
    assert rig.swim.counters.facts_refused == 2


def test_an_accusation_counts_only_from_a_monitor_of_the_accused():
    rig = Rig("a", "b", "c", "d", monitors=("b",))
    rig.facts("a", fact("d", SUSPECT, signer="a"))
    assert rig.state("d") is ALIVE
    assert rig.swim.counters.facts_refused == 1
    rig.facts("b", fact("d", SUSPECT, signer="b"))
    assert rig.state("d") is SUSPECT
    assert list(rig.table.get(key("d")).accusations) == [key("b")]


def test_who_is_no_monitor_of_a_silent_member_does_not_accuse_it():
    rig = Rig("a", "b", monitors=())
    rig.run(10.0, alive=("a",))
    assert rig.state("b") is ALIVE
    assert rig.swim.counters.probes_failed > 0
    assert rig.swim.counters.accusations_made == 0
    rig = Rig("a", "b", monitors=("m",))
    rig.run(10.0, alive=("a",))
    assert rig.swim.counters.accusations_made == 1


def test_whoever_is_linked_with_the_accused_probes_it_at_once():
    rig = Rig("a", "b", "x")
    effects = rig.facts("a", fact("x", SUSPECT, signer="b"))
    assert [each.peer for each in of(effects, SendDatagram)] == [node_id("x")]


def test_our_own_vote_joins_when_the_accused_is_silent_here_too():
    rig = Rig("a", "b", "x")
    rig.facts("a", fact("x", SUSPECT, signer="b"))
    effects = rig.run(0.7, alive=("a", "b"))
    assert (key("x"), SUSPECT, 0) in facts_to(effects, "a")
    assert rig.swim.counters.accusations_made == 1


def test_m18_a_fresh_echo_on_our_own_link_beats_any_vote():
    rig = Rig("a", "b", "c", "x")
    members(rig, "d")
    rig.facts("a", *(fact("x", SUSPECT, signer=name) for name in "abcd"))
    assert not of(rig.run(60.0, alive=("a", "b", "c", "x")), MemberFailed)
    assert rig.state("x") is SUSPECT
    # Once the link falls silent, the votes stand.
    assert of(rig.run(5.0, alive=("a", "b", "c")), MemberFailed)


def test_a_higher_incarnation_refutes():
    rig = Rig("a", "b")
    members(rig, "x")
    rig.facts("a", fact("x", SUSPECT, signer="b"))
    effects = rig.facts("a", fact("x", ALIVE, incarnation=1))
    assert of(effects, MemberUpdated)
    assert rig.state("x") is ALIVE
    assert not of(rig.run(60.0, alive=("a", "b")), MemberFailed)
    assert (key("x"), ALIVE, 1) in facts_to([each for _, each in rig.out], "b")


def test_the_same_incarnation_does_not_refute():
    rig = Rig("a", "b")
    members(rig, "x")
    rig.facts("a", fact("x", SUSPECT, signer="b"))
    rig.facts("a", fact("x", ALIVE))
    assert rig.state("x") is SUSPECT


def test_an_accusation_of_an_older_incarnation_is_answered_with_the_refutation():
    rig = Rig("a", "b")
    members(rig, "x")
    rig.facts("a", fact("x", ALIVE, incarnation=1))
    effects = rig.facts("b", fact("x", SUSPECT, signer="b"))
    assert rig.state("x") is ALIVE
    assert facts_to(effects, "b") == [(key("x"), ALIVE, 1)]


def test_we_refute_what_is_said_of_us_above_its_incarnation():
    rig = Rig("a", "b")
    rig.facts("a", fact("m", SUSPECT, signer="b", incarnation=7))
    effects = rig.flush()
    for peer in ("a", "b"):
        assert facts_to(effects, peer) == [(key("m"), ALIVE, 8)]
    assert rig.table.own.incarnation == 8


def test_m17_an_incarnation_cannot_be_driven_to_its_end():
    rig = Rig("a", "b")
    rig.facts("a", fact("m", SUSPECT, signer="b", incarnation=INCARNATION_STEP_MAX + 1))
    assert rig.table.own.incarnation == 0
    members(rig, "x")
    rig.facts("a", fact("x", ALIVE, incarnation=INCARNATION_STEP_MAX + 1))
    assert rig.table.get(key("x")).rank == (1, 0)


def test_hearsay_never_raises_our_incarnation_further_than_others_believe():
    """One step more than they take, or many that they miss, and nobody would hear us any more."""
    rig = Rig("a", "b")
    rig.facts("a", fact("m", SUSPECT, signer="b", incarnation=INCARNATION_STEP_MAX))
    assert rig.table.own.incarnation == 0
    for _ in range(100):
        incarnation = rig.table.own.incarnation + 60
        rig.facts("a", fact("m", SUSPECT, signer="b", incarnation=incarnation))
        rig.receive("b", Rows((), (Row(key("m"), 1, incarnation, DEAD),), False))
    assert rig.table.own.incarnation <= REFUTED_BURST


def test_a_flood_of_accusations_is_answered_slowly_and_in_time():
    rig = Rig("a", "b")
    began = rig.now
    while rig.now < began + 3600.0:
        for _ in range(20):
            incarnation = rig.table.own.incarnation
            rig.facts("a", fact("m", SUSPECT, signer="b", incarnation=incarnation))
        rig.run(10.0, alive=("a", "b"), step=1.0)
        # Whatever was said of us, our answer leaves before the shortest suspicion ends.
        assert rig.table.own.incarnation > incarnation
    a_day = rig.table.own.incarnation * 24
    assert a_day < INCARNATION_STEP_MAX


def test_an_incarnation_that_we_have_signed_is_no_hearsay():
    rig = Rig("a", "b")
    rig.receive("a", Records((record("m", incarnation=5_000),)))
    assert rig.table.own.incarnation == 5_001


def test_who_passes_on_an_incarnation_that_seems_too_high_is_not_to_blame_for_it():
    """Its subject may have told each of us another one."""
    rig = Rig("a", "b")
    far = record("b", incarnation=INCARNATION_STEP_MAX + 1)
    assert not of(rig.receive("a", Records((far,))), Strike)
    assert of(rig.receive("b", Records((far,))), Strike)
    assert rig.table.get(key("b")).rank == (1, 0)


def test_who_leaves_cannot_leave_in_a_time_far_ahead():
    """Else nobody could come back under that name, who holds its key rightly or not."""
    rig = Rig("a", "b")
    ahead = WALL_MS + EPOCH_AHEAD_MS
    effects = rig.facts("a", fact("b", LEFT, epoch=ahead + 1))
    assert not of(effects, MemberLeft)
    assert rig.table.get(key("b")).rank == (1, 0)
    assert of(rig.facts("a", fact("b", LEFT, epoch=ahead)), MemberLeft)


def test_an_accuser_that_was_refuted_waits_twice_as_long_each_time():
    rig = Rig("a", "b")
    members(rig, "c", "d")
    accused = []
    for incarnation in range(1, 6):
        started = rig.now
        while key("m") not in rig.table.get(key("a")).accusations:
            rig.run(0.1, alive=("b",))
        accused.append(rig.now - started)
        rig.facts("b", fact("a", ALIVE, incarnation=incarnation))
    assert all(b >= 1.5 * a for a, b in itertools.pairwise(accused))


def test_an_accuser_that_was_refuted_reports_a_failed_link_instead():
    rig = Rig("a", "b")
    members(rig, "c", "d")
    rig.run(4.0, alive=("b",))
    assert rig.state("a") is SUSPECT
    rig.out.clear()
    rig.facts("b", fact("a", ALIVE, incarnation=1))
    # Others hear it; we still do not.
    effects = rig.run(1.9, alive=("b",))
    assert of(effects, Relink) == [Relink(node_id("a"))]
    assert rig.swim.counters.links_failed == 1
    assert rig.state("a") is ALIVE


def test_of_many_accusations_four_are_passed_on_for_more_shorten_nothing():
    rig = Rig("a", "l")
    names = members(rig, "x", *(f"v{number}" for number in range(8)))[1:]
    rig.facts("a", *(fact("x", SUSPECT, signer=name) for name in names))
    assert len(facts_to(rig.flush(), "l")) == 4
    assert len(rig.table.get(key("x")).accusations) == 8


def test_of_many_facts_the_first_leaves_at_once_and_the_others_together_a_little_later():
    rig = Rig("a", "l")
    names = members(rig, *(f"x{number}" for number in range(20)), "v")
    rig.run(1.0, alive=("a", "l"))
    effects = []
    for number, name in enumerate(names[:20]):
        effects += rig.facts("a", fact(name, SUSPECT, signer="v"))
        effects += rig.flush()
        if number == 0:
            assert facts_to(effects, "l") == [(key("x0"), SUSPECT, 0)]
        rig.now += 0.001
    assert len(sent(effects, Facts, "l")) == 1
    later = rig.run(swim_module.NEWS_EVERY_S, alive=("a", "l"), step=0.01)
    assert len(sent(later, Facts, "l")) == 1
    assert len(facts_to(later, "l")) == 19
    assert rig.swim.counters.late_ms == 0


def test_a_fact_that_waits_is_not_told_to_whom_brings_it_meanwhile():
    rig = Rig("a", "b", "l")
    members(rig, "x", "y", "v")
    rig.facts("a", fact("x", SUSPECT, signer="v"))
    rig.flush()
    rig.facts("a", fact("y", SUSPECT, signer="v"))
    assert not sent(rig.flush(), Facts, "b")
    rig.facts("b", fact("y", SUSPECT, signer="v"))
    later = rig.run(1.0, alive=("a", "b", "l"), step=0.01)
    assert facts_to(later, "b") == []
    assert facts_to(later, "l") == [(key("y"), SUSPECT, 0)]


def test_an_accusation_that_every_neighbour_brings_is_passed_on_once():
    rig = Rig("a", "b", "l")
    members(rig, "x", "v")
    accusation = fact("x", SUSPECT, signer="v")
    effects = []
    for bringer in ("a", "b", "a", "b"):
        effects += rig.facts(bringer, accusation)
        effects += rig.run(0.1, alive=("a", "b", "l"))
    assert facts_to(effects, "l") == [(key("x"), SUSPECT, 0)]
    assert rig.swim.counters.facts_relayed == 2


def test_what_contradicts_an_accusation_waits_for_nothing_and_takes_along_what_waits():
    rig = Rig("a", "l")
    members(rig, "x", "y", "v")
    rig.facts("a", fact("x", SUSPECT, signer="v"))
    rig.flush()
    rig.facts("a", fact("y", SUSPECT, signer="v"))
    rig.facts("a", fact("x", ALIVE, incarnation=1))
    assert set(facts_to(rig.flush(), "l")) == {(key("y"), SUSPECT, 0), (key("x"), ALIVE, 1)}


def test_our_own_refutation_waits_for_nothing():
    rig = Rig("a", "l")
    members(rig, "x", "v")
    rig.facts("a", fact("x", SUSPECT, signer="v"))
    rig.flush()
    rig.facts("a", fact("m", SUSPECT, signer="v"))
    assert (key("m"), ALIVE, 1) in facts_to(rig.flush(), "l")


def test_pings_go_only_where_a_link_exists():
    rig = Rig("a", "b")
    members(rig, "x", "c", "d")
    effects = rig.facts("a", fact("x", SUSPECT, signer="b"))
    effects += rig.run(20.0, alive=("a",))
    assert {each.peer for each in of(effects, SendDatagram)} == {node_id("b")}


def test_a_member_that_nobody_can_find_is_declared_failed_once():
    rig = Rig("a", "b")
    effects = rig.run(60.0, alive=("b",))
    assert of(effects, (MemberSuspected, MemberFailed)) == [
        MemberSuspected(node_id("a")),
        MemberFailed(node_id("a")),
    ]
    assert rig.state("a") is DEAD


def test_nobody_tells_others_of_a_death():
    rig = Rig("a", "b")
    effects = rig.run(60.0, alive=("b",))
    states = {state for _, state, _ in facts_to(effects, "b")}
    assert states == {SUSPECT}


# --- leaving and coming back ----------------------------------------------------------------------


def test_m02_leaving_is_told_to_every_link():
    rig = Rig("a", "b")
    effects = rig.take(rig.swim.leave(rig.now))
    assert facts_to(effects, "a") == facts_to(effects, "b") == [(key("m"), LEFT, 0)]


def test_m02_who_has_left_probes_and_compares_no_more():
    rig = Rig("a", "z", maintenance_interval=1.0)
    rig.take(rig.swim.leave(rig.now))
    assert not of(rig.run(60.0), (Send, SendDatagram))


def test_m02_a_member_that_left_is_left_and_not_probed():
    rig = Rig("a", "b")
    effects = rig.facts("a", fact("a", LEFT))
    assert of(effects, MemberLeft) == [MemberLeft(node_id("a"))]
    later = rig.run(60.0, alive=("b",))
    assert not sent(later, Ping, "a")
    assert not of(later, (MemberSuspected, MemberFailed))


def test_left_is_final_for_its_epoch():
    rig = Rig("a", "b")
    rig.facts("a", fact("a", LEFT))
    rig.facts("b", fact("a", ALIVE, incarnation=5), fact("a", SUSPECT, signer="b"))
    rig.receive("b", Records((record("a", incarnation=9),)))
    assert rig.state("a") is LEFT


def test_m14_a_higher_epoch_of_a_dead_member_is_alive_at_once():
    rig = Rig("a", "b")
    rig.run(30.0, alive=("b",))
    assert rig.state("a") is DEAD
    rig.take(rig.swim.link_down(node_id("a"), rig.now))
    effects = rig.link("a", of=record("a", epoch=2))
    assert of(effects, MemberJoined) == [MemberJoined(record("a", epoch=2))]


def test_m14_a_higher_epoch_of_a_living_member_is_an_update():
    rig = Rig("a", "b")
    rig.facts("a", fact("a", SUSPECT, signer="b"))
    effects = rig.link("a", of=record("a", epoch=2))
    assert of(effects, (MemberJoined, MemberUpdated)) == [MemberUpdated(record("a", epoch=2))]
    assert rig.state("a") is ALIVE


def test_m14_a_fact_of_a_newer_life_waits_for_its_record():
    rig = Rig("a", "b")
    rig.facts("b", fact("a", ALIVE, epoch=2))
    assert rig.table.get(key("a")).epoch == 1
    assert sent(rig.flush(), RecordsWanted, "b")
    rig.receive("b", Records((record("a", epoch=2),)))
    assert rig.table.get(key("a")).epoch == 2


def test_a_dead_member_that_greets_us_is_told_why_so_that_it_can_refute():
    rig = Rig("a", "b")
    rig.run(30.0, alive=("b",))
    rig.take(rig.swim.link_down(node_id("a"), rig.now))
    effects = rig.link("a")
    assert (key("a"), SUSPECT, 0) in facts_to(effects, "a")
    assert rig.state("a") is DEAD
    effects = rig.facts("a", fact("a", ALIVE, incarnation=1))
    assert of(effects, MemberJoined)


def test_m11_a_dead_member_that_wakes_up_on_its_old_link_is_told_why():
    rig = Rig("a", "b")
    rig.run(30.0, alive=("b",))
    effects = rig.run(2.0, alive=("a", "b"))
    assert (key("a"), SUSPECT, 0) in facts_to(effects, "a")


def test_m15_a_node_that_lost_its_state_moves_above_its_past():
    rig = Rig()
    rig.link("a", yours=record("m", incarnation=40))
    rig.flush()
    assert rig.table.own.incarnation == 41


def test_a_newer_start_of_our_own_identity_stops_us():
    rig = Rig()
    assert of(rig.link("a", yours=record("m", epoch=9)), Superseded) == [Superseded(9)]
    rig = Rig("a")
    assert of(rig.receive("a", Records((record("m", epoch=9),))), Superseded)


def test_an_older_record_of_ours_is_nothing():
    rig = Rig()
    assert not of(rig.link("a", yours=record("m")), Superseded)


# --- comparing tables -----------------------------------------------------------------------------


def test_equal_tables_cost_one_frame():
    rig = Rig("a")
    assert rig.receive("a", BucketHashes(rig.table.bucket_hashes())) == []


def test_m23_rows_of_the_buckets_that_differ_are_sent_and_asked_for():
    rig = Rig("a")
    other = Members(record("a"), lambda: WALL_MS)
    other.enter(record("m"))
    other.enter(record("x"))
    (rows,) = sent(rig.receive("a", BucketHashes(other.bucket_hashes())), Rows)
    assert rows.buckets == (key("x")[0],)
    assert rows.answer


def test_rows_are_answered_once_and_what_is_unknown_is_fetched():
    rig = Rig("a")
    bucket = key("x")[0]
    theirs = Rows((bucket,), (Row(key("x"), 1, 0, ALIVE),), True)
    (answer,) = sent(rig.receive("a", theirs), Rows)
    assert answer == Rows((bucket,), tuple(rig.table.rows(bucket)), False)
    assert sent(rig.flush(), RecordsWanted) == [RecordsWanted((key("x"),))]


def test_rows_alone_change_nothing():
    rig = Rig("a")
    members(rig, "x")
    for state in (SUSPECT, DEAD, LEFT):
        rig.receive("a", Rows((), (Row(key("x"), 1, 5, state),), False))
        assert rig.table.get(key("x")).rank == (1, 0)
        assert rig.state("x") is ALIVE


def test_nobody_learns_of_the_dead_whom_he_never_knew():
    rig = Rig("a")
    rows = (Row(key("x"), 1, 0, DEAD), Row(key("y"), 1, 0, LEFT))
    rig.receive("a", Rows((), rows, False))
    assert not sent(rig.flush(), RecordsWanted)


def test_a_record_that_comes_with_leave_or_accusation_never_joins():
    rig = Rig("a")
    members(rig, "b")
    effects = rig.receive(
        "a",
        Records((record("x"), record("y")), (fact("x", LEFT), fact("y", SUSPECT, signer="b"))),
    )
    effects += rig.run(60.0, alive=("a",))
    assert not of(effects, (MemberJoined, MemberSuspected, MemberFailed, MemberLeft))
    assert rig.state("x") is LEFT
    assert rig.state("y") is DEAD


def test_m06_a_peer_that_holds_our_dead_for_alive_gets_the_accusation():
    rig = Rig("a", "b")
    rig.run(30.0, alive=("b",))
    effects = rig.receive("b", Rows((), (Row(key("a"), 1, 0, ALIVE),), False))
    assert (key("a"), SUSPECT, 0) in facts_to(effects, "b")


def test_m06_we_refute_when_a_row_holds_us_for_dead():
    rig = Rig("a")
    rig.receive("a", Rows((), (Row(key("m"), 1, 3, DEAD),), False))
    assert facts_to(rig.flush(), "a") == [(key("m"), ALIVE, 4)]


def test_m23_a_missed_leave_is_learnt_by_comparing():
    rig = Rig("a", "b")
    rig.receive("a", Rows((), (Row(key("b"), 1, 0, LEFT),), False))
    assert sent(rig.flush(), RecordsWanted, "a") == [RecordsWanted((key("b"),))]
    effects = rig.receive("a", Records((record("b"),), (fact("b", LEFT),)))
    assert of(effects, MemberLeft)


def test_tables_are_compared_every_maintenance_interval_with_a_living_neighbour():
    rig = Rig("a", "b", maintenance_interval=2.0, maintenance_jitter=0.5)
    times = []
    for _ in range(60):
        at = rig.now
        times += [at] * len(sent(rig.run(0.5, alive=("a", "b")), BucketHashes))
    assert 30 / 2.5 - 1 <= len(times) <= 30 / 2.0


def test_a_peer_that_compares_too_often_is_not_answered():
    rig = Rig("a")
    members(rig, "x")
    assert rig.receive("a", BucketHashes(bytes(2_048)))
    assert rig.receive("a", BucketHashes(bytes(2_048))) == []
    rig.run(0.2, alive=("a",))
    assert rig.receive("a", BucketHashes(bytes(2_048)))


def test_a_record_that_lags_behind_a_fact_is_fetched_when_comparing():
    rig = Rig("a", maintenance_interval=1.0)
    members(rig, "x")
    rig.facts("a", fact("x", ALIVE, incarnation=1))
    assert sent(rig.run(2.0, alive=("a",)), RecordsWanted) == [RecordsWanted((key("x"),))]
    rig.receive("a", Records((record("x", incarnation=1),)))
    assert not sent(rig.run(5.0, alive=("a",)), RecordsWanted)


# --- what may not enter ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forged",
    [
        fact("x", ALIVE, signer="evil", incarnation=9),
        fact("x", LEFT, signer="evil"),
        fact("x", SUSPECT, signer="x"),
    ],
)
def test_m17_only_the_subject_says_that_it_lives_or_leaves(forged):
    rig = Rig("a")
    members(rig, "x", "evil")
    assert of(rig.facts("a", forged), Strike)
    assert of(rig.receive("a", Records((), (forged,))), Strike)
    assert rig.table.get(key("x")).rank == (1, 0)
    assert rig.state("x") is ALIVE


def test_an_expired_record_does_not_enter():
    rig = Rig("a")
    rig.receive("a", Records((record("x", valid_until=WALL_MS - 1),)))
    assert rig.state("x") is None


def test_an_epoch_more_than_a_day_ahead_does_not_enter():
    rig = Rig("a")
    rig.receive("a", Records((record("x", epoch=WALL_MS + EPOCH_AHEAD_MS + 1),)))
    assert rig.state("x") is None


def test_m17_invented_members_stop_at_the_size_of_the_table(monkeypatch):
    monkeypatch.setattr(members_module, "MEMBERS_MAX", 50)
    rig = Rig("a")
    for i in range(500):
        rig.receive("a", Records((record(f"n{i}"),)))
    assert rig.table.alive_count() == 50
    assert rig.swim.counters.records_refused == 452


def test_m17_invented_names_cost_bounded_questions():
    rig = Rig("a")
    for page in range(20):
        rig.facts("a", *(fact(f"n{page}x{i}", ALIVE) for i in range(1_000)))
    assert len(rig.swim._links[node_id("a")].queue) <= 10_000
    assert len(rig.swim._early) <= 4_096


def test_messages_on_a_link_that_is_gone_are_nothing():
    rig = Rig("a")
    rig.take(rig.swim.link_down(node_id("a"), rig.now))
    assert rig.receive("a", Ping(bytes(8))) == []
    rig.swim.heard(node_id("a"), rig.now, 0.1)
    assert node_id("a") not in rig.swim._links


# --- slow timers ----------------------------------------------------------------------------------


def test_our_record_is_renewed_half_way_to_its_end():
    rig = Rig("a")
    rig.run(0.1)
    rig.wall += DAY_MS // 2 + 1
    rig.run(12 * 3600 + 1, alive=("a",), step=1_000.0)
    assert rig.table.own.incarnation == 1
    assert rig.table.own.valid_until > rig.wall + DAY_MS - 1


def test_m12_a_jump_of_the_wall_clock_changes_no_state():
    rig = Rig("a", "b")
    for jump in (DAY_MS, -2 * DAY_MS):
        rig.wall += jump
        effects = rig.run(120.0, alive=("a", "b"))
        assert not of(effects, (MemberSuspected, MemberFailed, MemberLeft, MemberJoined))
    assert rig.table.alive_count() == 3


def test_tombstones_are_forgotten_when_their_record_has_expired():
    rig = Rig("a", "b")
    rig.facts("b", fact("b", LEFT))
    rig.wall += DAY_MS
    rig.run(61.0, alive=("a",))
    assert rig.state("b") is None
    assert rig.state("a") is ALIVE


def test_who_is_leaving_hears_one_more_accusation_unmoved():
    rig = Rig("a", "b")
    members(rig, "x")
    rig.facts("a", fact("x", SUSPECT, signer="b"))
    rig.take(rig.swim.leave(rig.now))
    rig.facts("a", fact("x", SUSPECT, signer="a"))
    assert rig.state("x") is SUSPECT
