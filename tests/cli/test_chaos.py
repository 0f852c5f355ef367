"""The verdict of the chaos run and its weather (tests/rigs/chaos.py), without any process."""

import json
import sys

import attrs
import pytest

from tests.rigs import chaos
from tests.rigs.chaos import (
    Accepted,
    Acked,
    Cut,
    Failed,
    Got,
    Hole,
    Kill,
    Life,
    Log,
    Plan,
    Record,
    Tried,
    broken_rules,
    figures_of,
    weather_of,
)


def whole():
    """a publishes three in two lives; b reads, and is killed between an acknowledgement and one."""
    return Record(
        names=["a", "b"],
        logs={
            "a": [
                Life(1, 10, 0.0),
                Tried(1, "x"),
                Accepted(1, 10, 1, "x", 0.1, 1.0),
                Tried(1, "y"),
                Accepted(1, 10, 2, "y", 0.1, 2.0),
                Life(2, 20, 5.0),
                Tried(2, "z"),
                Accepted(2, 20, 1, "z", 0.1, 6.0),
            ],
            "b": [
                Life(1, 11, 0.0),
                Got(1, "a", 10, 1, "x", False, 1.5),
                Acked(1, "a", 10, 1),
                Got(1, "a", 10, 2, "y", False, 2.5),
                Life(2, 21, 7.0),
                Got(2, "a", 10, 2, "y", True, 8.0),
                Got(2, "a", 20, 1, "z", False, 9.0),
                Acked(2, "a", 10, 2),
            ],
        },
        counters={"a": dict.fromkeys(chaos.COUNTERS, 0)},
    )


def test_a_run_in_which_all_went_well_broke_no_rule():
    assert broken_rules(whole()) == []


def without(record, name, entry):
    record.logs[name].remove(entry)


BROKEN = {
    "an_accepted_message_that_is_missing": (
        lambda record: without(record, "b", Got(2, "a", 20, 1, "z", False, 9.0)),
        "b lacks 1 accepted messages: a/20/1",
    ),
    "a_message_twice_in_a_life": (
        lambda record: record.logs["b"].append(Got(2, "a", 20, 1, "z", True)),
        "b was given a/20/1 a second time in life 2",
    ),
    "one_that_was_acknowledged_again": (
        lambda record: record.logs["b"].insert(5, Got(2, "a", 10, 1, "x", True)),
        "b was given a/10/1 in life 2, though it had acknowledged it",
    ),
    "one_that_comes_again_and_does_not_say_so": (
        lambda record: record.logs["b"].__setitem__(5, Got(2, "a", 10, 2, "y", False)),
        "b was given a/10/2 in lives 1 and 2, and not as redelivered",
    ),
    "a_wrong_order": (
        lambda record: record.logs["b"].insert(5, record.logs["b"].pop(6)),
        "b was given a/10/2 after a/20/1 in life 2",
    ),
    "an_own_message": (
        lambda record: record.logs["a"].append(Got(2, "a", 20, 1, "z")),
        "a was given a/20/1, its own message",
    ),
    "a_message_that_nobody_broadcast": (
        lambda record: record.logs["b"].append(Got(2, "a", 20, 2, "w")),
        "b was given a/20/2, which nobody had broadcast",
    ),
    "a_number_that_names_two_messages": (
        lambda record: record.logs["a"].extend([Tried(2, "w"), Accepted(2, 20, 1, "w")]),
        "a/20/1 names 2 different messages",
    ),
    "a_message_with_two_names": (
        lambda record: record.logs["b"].append(Got(2, "a", 20, 2, "z")),
        "one message has 2 names: a/20/1, a/20/2",
    ),
    "a_gap_over_what_was_accepted": (
        lambda record: record.logs["b"].append(Hole(2, "a", 20, 1, 3)),
        "b was told in life 2 that 1 accepted messages of a/20 will not come, such as 1",
    ),
    "a_reader_that_failed": (
        lambda record: record.logs["b"].append(Failed(2, "it ended")),
        "b failed in life 2: it ended",
    ),
    "an_equivocation": (
        lambda record: record.counters["a"].update(tree_equivocations=1),
        "a counted 1 tree_equivocations among honest nodes",
    ),
    "what_did_not_come_about": (
        lambda record: record.unmet.append("n1 ended by itself"),
        "n1 ended by itself",
    ),
}


@pytest.mark.parametrize(("harm", "sentence"), BROKEN.values(), ids=BROKEN)
def test_each_broken_rule_is_told(harm, sentence):
    record = whole()
    harm(record)
    assert broken_rules(record) == [sentence]


def test_what_was_broadcast_and_not_accepted_may_come_or_not():
    record = whole()
    record.logs["a"].append(Tried(2, "w"))
    assert broken_rules(record) == []
    record.logs["b"].append(Got(2, "a", 20, 2, "w"))
    assert broken_rules(record) == []
    assert figures_of(record)["delivered_though_broadcast_did_not_return"] == 1


def test_the_figures_are_those_of_the_logs():
    figures = figures_of(whole())
    assert (figures["accepted"], figures["deliveries"], figures["acked"]) == (3, 4, 2)
    assert (figures["lives"], figures["redelivered"], figures["given_again"]) == (4, 1, 1)
    # a/20/1 was accepted before the second life of b, and came two seconds after its start.
    assert figures["catch_up_s"]["most"] == 2.0


def test_half_a_line_of_a_killed_life_is_passed_over(tmp_path):
    path = tmp_path / "log"
    log = Log(path, {"spiffe://a": "a"})
    log.read_on()
    path.write_text('["life", 1, 10, 0.5]\n["got", 1, "spiffe://a", 9, 1, "x", false, 1.0]\n["ack')
    log.read_on()
    assert log.entries == [Life(1, 10, 0.5), Got(1, "a", 9, 1, "x", False, 1.0)]
    with path.open("a") as file:
        file.write('\n["life", 2, 11, 2.0]\n')
    log.read_on()
    assert log.entries[2:] == [Life(2, 11, 2.0)]
    assert log.torn == 1


def test_the_weather_is_the_seeds_and_kills_who_runs():
    plan, names = Plan(minutes=10.0), [f"n{number}" for number in range(7)]
    weather = weather_of(plan, names)
    assert weather == weather_of(plan, names)
    assert weather != weather_of(attrs.evolve(plan, seed=2), names)
    assert [each.at for each in weather] == sorted(each.at for each in weather)
    down_until = dict.fromkeys(names, 0.0)
    for each in weather:
        assert each.at < plan.storm_s
        if isinstance(each, Kill):
            assert each.at >= down_until[each.name]
            down_until[each.name] = each.at + each.down_s
    cuts = [each for each in weather if isinstance(each, Cut)]
    assert cuts
    assert all(0 < len(each.some) < len(names) for each in cuts)
    assert max(each.lasts_s for each in cuts) <= 60.0
    short = weather_of(attrs.evolve(plan, minutes=1.0), names)
    assert max(each.lasts_s for each in short if isinstance(each, Cut)) <= 15.0


@pytest.mark.parametrize("is_broken", [False, True], ids=["well", "broken"])
def test_the_command_exits_with_1_when_a_rule_was_broken(monkeypatch, capsys, is_broken):
    record = whole()
    if is_broken:
        record.unmet.append("it was not so")

    async def run(plan, say, keep):
        assert plan == attrs.evolve(Plan(), nodes=4, minutes=2.0, seed=9)
        return record

    monkeypatch.setattr(chaos, "run", run)
    arguments = ["chaos", "--nodes", "4", "--minutes", "2", "--seed", "9", "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert chaos.main() == (1 if is_broken else 0)
    out, err = capsys.readouterr()
    assert json.loads(out)["broken_rules"] == broken_rules(record)
    assert ("BROKEN: it was not so" if is_broken else "no rule was broken") in err
    assert "scripts/soak chaos --seed 9 --minutes 2 --nodes 4" in err
