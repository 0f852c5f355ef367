"""`plumtree-quic sim`: figures for people and programs, pictures, a trace, and what went wrong."""

import json

import pytest

from plumtree_quic.cli.main import run
from plumtree_quic.sim import scenarios
from plumtree_quic.sim.scenarios import Figure, Outcome


def test_json_is_one_object_on_the_last_line(capsys):
    assert run(["sim", "stable", "--nodes", "8", "--seed", "3", "--json"]) == 0
    out = capsys.readouterr()
    summary = json.loads(out.out.splitlines()[-1])
    assert summary["scenario"] == "stable"
    assert (summary["nodes"], summary["seed"], summary["holds"]) == (8, 3, True)
    assert summary["figures"]["reliability"] == 100.0
    assert summary["virtual_s"] > 70
    assert len(summary["trace"]) == 32
    assert "links at rest" in out.err


def test_people_get_a_table_and_the_command_that_runs_it_again(capsys):
    assert run(["sim", "stable", "--nodes", "4"]) == 0
    out = capsys.readouterr().out
    assert "reliability" in out
    assert "again: plumtree-quic sim stable --nodes 4 --seed 1" in out


def test_rings_are_the_number_of_links_that_each_node_wants(capsys):
    most = {}
    for rings in (5, 7):
        assert run(["sim", "bootstrap", "--nodes", "60", "--rings", str(rings)]) == 0
        out = capsys.readouterr().out
        assert f"--rings {rings}" in out
        (line,) = [each for each in out.splitlines() if "links per node, most" in each]
        most[rings] = int(line.split("│")[2])
    assert most == {5: 12, 7: 16}


def test_a_missed_bound_is_exit_status_1_and_marked(capsys, monkeypatch):
    def bad(_run):
        return Outcome([Figure("lost", 3, bound=0), Figure("after", float("inf"), "s")])

    monkeypatch.setitem(scenarios.SCENARIOS, "stable", scenarios.Scenario(bad, 4, "bad"))
    assert run(["sim", "stable"]) == 1
    out = capsys.readouterr().out
    assert "MISSED" in out
    assert "never" in out
    assert run(["sim", "stable", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]["after"] is None


def test_pictures_and_trace_are_files_that_hold_something(capsys, tmp_path):
    trace, folder = tmp_path / "trace.txt", tmp_path / "pictures"
    options = ["--nodes", "20", "--trace", str(trace), "--pictures", str(folder)]
    assert run(["sim", "origins", *options]) == 0
    assert "n000 broadcasts" in trace.read_text()
    drawn = {path.name for path in folder.iterdir()}
    assert "overlay.png" in drawn
    assert len(drawn) == 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())


def test_without_matplotlib_pictures_say_what_to_install(capsys, tmp_path, monkeypatch):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    assert run(["sim", "stable", "--nodes", "4", "--pictures", str(tmp_path)]) == 2
    assert "plumtree-quic[sim]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "'nothing' is not one of"),
        (["stable", "--nodes", "1"], "1 is not in the range"),
        (["stable", "--preset", "lunar"], "'lunar' is not one of"),
        (["stable", "--trace", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_arguments_are_named(capsys, arguments, told):
    assert run(["sim", *arguments]) != 0
    assert told in capsys.readouterr().err
