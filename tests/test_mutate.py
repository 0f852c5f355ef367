"""scripts/mutate can begin: each check that it is to take out is still in the source."""

from tests.rigs.mutate import ROOT, TARGETS, WIRED, mutations


def test_each_check_that_mutate_takes_out_is_in_the_source():
    # It runs for half an hour, by hand; a line that was renamed since would end it at its start.
    checks = [what for path in TARGETS | WIRED for what, _ in mutations(ROOT, path)]
    assert len(checks) > 200


def test_each_test_file_that_mutate_runs_is_there():
    named = {test for tests in (TARGETS | WIRED).values() for test in tests}
    assert [test for test in named if not (ROOT / test.partition("::")[0]).exists()] == []
