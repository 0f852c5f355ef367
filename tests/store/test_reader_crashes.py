"""kill -9 at every call that writes: what a node accepted, was given, and had acknowledged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.reader_crash import MESSAGES, OWN

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """By where the first life was killed: (life, kind, *message) in order."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.rigs.reader_crash", str(tmp_path_factory.mktemp("lives"))],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {name: [tuple(each) for each in told] for name, told in json.loads(done.stdout).items()}
    assert len(found) > 60
    return found


def of(told, kind, life=None):
    return [what for number, each, *what in told if each == kind and life in (None, number)]


def test_no_accepted_broadcast_is_lost_or_numbered_anew(lives):
    total = 0
    for name, told in lives.items():
        accepted = of(told, "accepted", 1)
        total += len(accepted)
        for life in (2, 3):
            kept = of(told, "kept", life)
            assert all(each in kept for each in accepted), (name, told)
        # A number means one thing in all lives.
        names = {(epoch, seq): text for epoch, seq, text in of(told, "kept") + of(told, "accepted")}
        assert len({tuple(each) for each in of(told, "kept") + of(told, "accepted")}) == len(names)
        assert len(of(told, "accepted", 2)) == len(of(told, "accepted", 3)) == OWN
    assert total > 0


def test_with_manual_acknowledgement_all_that_was_not_acknowledged_comes_again_marked(lives):
    total = 0
    for name, told in lives.items():
        first, second = of(told, "handed", 1), of(told, "again", 2)
        acked = of(told, "acked", 1)
        for each in first:
            if each not in acked:
                # An acknowledgement that nobody was told of may have been safe all the same.
                may_be_safe = each[0] % 2 == 1
                assert each in second or may_be_safe, (name, told)
                total += each in second
        assert not any(each in of(told, "handed", 2) for each in first), "it comes marked"
    assert total > 0


def test_with_manual_acknowledgement_nothing_acknowledged_comes_again(lives):
    total = 0
    for name, told in lives.items():
        acked = of(told, "acked", 1)
        total += len(acked)
        later = [each for life in (2, 3) for each in of(told, "again", life)]
        assert not any(each in later for each in acked), (name, told)
        # The second life has acknowledged all.
        assert of(told, "again", 3) == of(told, "handed", 3) == []
    assert total > 0


def test_with_manual_acknowledgement_everything_is_handed_over_in_the_end(lives):
    for name, told in lives.items():
        handed = {seq for (seq,) in of(told, "handed") + of(told, "again")}
        assert handed == set(range(1, MESSAGES + 1)), (name, told)


def test_with_automatic_acknowledgement_nothing_comes_twice(lives):
    for name, told in lives.items():
        auto = of(told, "auto")
        assert len({seq for (seq,) in auto}) == len(auto), (name, told)
