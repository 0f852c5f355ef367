"""Whatever ends a life, and wherever: the file holds what was done up to some point, and no less
than was told.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from plumtree_quic.errors import StoreError
from tests.rigs.store import SCRIPT, memory_states, opened, run_script, sqlite_store, state, streams

ROOT = Path(__file__).parents[2]
FRAME_BYTES = 4_096 + 24
WAL_HEAD_BYTES = 32


@pytest.fixture(scope="module")
def states():
    """What a store knows after each number of batches, by one that never crashes."""
    made = memory_states()
    assert all(a != b for i, a in enumerate(made) for b in made[:i]), "no two look alike"
    return made


def known(directory):
    with opened(sqlite_store(directory)) as store:
        return state(store, store.recovered)


def test_a_life_without_a_crash_ends_as_the_script_says(tmp_path, states):
    with opened(sqlite_store(tmp_path)) as store:
        run_script(store)
    assert known(tmp_path) == states[-1]


def test_after_kill_9_at_any_call_the_file_holds_all_that_was_told(tmp_path, states):
    done = subprocess.run(
        [sys.executable, "-m", "tests.rigs.store_crash", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lives = json.loads(done.stdout)
    assert len(lives) > 150
    found = set()
    for name, told in lives.items():
        directory = tmp_path / name
        # `state` asks for readers and thereby changes the file: the rest is lived by a copy.
        shutil.copytree(directory, tmp_path / "copy")
        have = known(directory)
        # Of what was told nothing is missing, and what is beyond it is whole.
        count = next((n for n in range(told, len(states)) if states[n] == have), None)
        assert count is not None, f"{name}: {told} batches were told, and {have} is there"
        assert count <= told + 1, f"{name}: each batch is told before the next one begins"
        found.add(count)
        with opened(sqlite_store(tmp_path / "copy")) as store:
            run_script(store, begin=count)
        assert known(tmp_path / "copy") == states[-1], f"{name}: no going on from {count}"
        shutil.rmtree(tmp_path / "copy")
    assert found == set(range(len(SCRIPT) + 1))


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    """The file and its log in the middle of a life, nothing of it in the file yet."""
    directory = tmp_path_factory.mktemp("torn")
    with opened(sqlite_store(directory / "live")) as store:
        run_script(store)
        for suffix in ("", "-wal"):
            shutil.copy(directory / "live" / f"store.db{suffix}", directory / f"store.db{suffix}")
    return (directory / "store.db").read_bytes(), (directory / "store.db-wal").read_bytes()


def left_by(directory, database, log):
    """What a store knows that finds these two; None when it refuses them in words."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "store.db").write_bytes(database)
    (directory / "store.db-wal").write_bytes(log)
    try:
        return known(directory)
    except StoreError as error:
        text = str(error)
    assert str(directory / "store.db") in text
    assert "move it away" in text or "choose another path" in text
    return None


def test_a_log_that_ends_anywhere_leaves_a_first_part_of_what_was_done(tmp_path, torn, states):
    database, log = torn
    frames = (len(log) - WAL_HEAD_BYTES) // FRAME_BYTES
    ends = {0, 1, 31, 32, 33, len(log) - 1, len(log)}
    for frame in range(frames + 1):
        edge = WAL_HEAD_BYTES + frame * FRAME_BYTES
        ends |= {edge - 1, edge, edge + 1, edge + FRAME_BYTES // 2}
    found = []
    for end in sorted(end for end in ends if end <= len(log)):
        have = left_by(tmp_path / "t", database, log[:end])
        assert have in states, f"the log ends at {end}"
        found.append(states.index(have))
    assert found == sorted(found)
    assert set(found) == set(range(len(SCRIPT) + 1))


def test_a_log_with_flipped_bits_leaves_a_first_part_of_what_was_done(tmp_path, torn, states):
    database, log = torn
    random = Random(7)
    found = set()
    for at in [*range(0, WAL_HEAD_BYTES, 3), *(random.randrange(len(log)) for _ in range(150))]:
        bad = bytearray(log)
        bad[at] ^= 1 << random.randrange(8)
        have = left_by(tmp_path / "t", database, bytes(bad))
        assert have in states, f"a bit of byte {at} is flipped"
        found.add(states.index(have))
    assert len(found) > 5


def test_a_file_with_flipped_bits_is_refused_or_lacks_what_was_hit(tmp_path, states):
    with opened(sqlite_store(tmp_path)) as store:
        run_script(store)
    whole = (tmp_path / "store.db").read_bytes()
    random = Random(11)
    outcomes = {"refused": 0, "whole": 0, "lacking": 0}
    # Most of what is in the file are the bundles; the rest is hit on purpose.
    places = [random.randrange(len(whole)) for _ in range(300)]
    places += [at for at, byte in enumerate(whole) if byte][::11]
    for at in places:
        bad = bytearray(whole)
        bad[at] ^= 1 << random.randrange(8)
        outcomes[hit(tmp_path / "t", bytes(bad), states[-1])] += 1
    assert all(outcomes.values()), outcomes


def hit(directory, database, truth):
    have = left_by(directory, database, b"")
    if have is None:
        return "refused"
    if have == truth:
        return "whole"
    seen, chains, joined, shown, head, readers = have
    all_seen, all_chains, all_joined, all_shown, *rest = truth
    assert [joined, head, readers] == [all_joined, *rest]
    assert {key: each[:2] for key, each in seen.items()} == {
        key: each[:2] for key, each in all_seen.items()
    }
    assert chains.items() <= all_chains.items()
    assert [each for each in all_shown if each in shown] == shown
    return "lacking"


def test_a_page_of_zeros_is_refused_or_lacks_what_was_hit(tmp_path, states):
    with opened(sqlite_store(tmp_path)) as store:
        run_script(store)
    whole = (tmp_path / "store.db").read_bytes()
    outcomes = set()
    for begin in range(0, len(whole), 4_096):
        bad = whole[:begin] + bytes(4_096) + whole[begin + 4_096 :]
        outcomes.add(hit(tmp_path / "t", bad, states[-1]))
    for end in range(0, len(whole), 2_048):
        if end:
            outcomes.add(hit(tmp_path / "t", whole[:end], states[-1]))
    assert "refused" in outcomes


def test_an_empty_file_beside_a_log_is_a_store_without_a_past(tmp_path, torn, states):
    assert left_by(tmp_path / "t", b"", torn[1]) == states[0]


def test_what_is_held_was_seen_even_when_a_life_ended_in_between(tmp_path, torn):
    database, log = torn
    for frame in range((len(log) - WAL_HEAD_BYTES) // FRAME_BYTES):
        directory = tmp_path / str(frame)
        directory.mkdir()
        (directory / "store.db").write_bytes(database)
        (directory / "store.db-wal").write_bytes(log[: WAL_HEAD_BYTES + frame * FRAME_BYTES])
        with opened(sqlite_store(directory)) as store:
            for seen, _, held in streams(store.recovered).values():
                assert all(any(a <= c and d <= b for a, b in seen) for c, d in held)
