"""Clocks that jump against each other."""

import pytest

from plumtree_quic.clocks import Clocks, Jump


class Machine:
    """Three clocks; the monotonic one stands still while the machine sleeps."""

    def __init__(self, *, counts_sleep=True):
        self.monotonic, self.wall, self.boot = 500.0, 1_700_000_000.0, 900.0
        # What other processes take of the machine right after each reading, in turn.
        self.taken = []
        boottime = (lambda: self.read("boot")) if counts_sleep else None
        self.clocks = Clocks(lambda: self.read("monotonic"), lambda: self.read("wall"), boottime)

    def read(self, clock):
        value = getattr(self, clock)
        self.run(self.taken.pop(0) if self.taken else 0.0)
        return value

    def run(self, seconds):
        self.monotonic += seconds
        self.sleep(seconds)

    def sleep(self, seconds):
        self.boot += seconds
        self.wall += seconds

    def look(self):
        return self.clocks.look()


def near(slept_s, stepped_s):
    return Jump(pytest.approx(slept_s, abs=1e-3), pytest.approx(stepped_s, abs=1e-3))


def test_clocks_that_go_on_together_tell_nothing():
    machine = Machine()
    for _ in range(100):
        machine.run(3_600.0)
        assert machine.look() is None


def test_m12_a_suspended_machine_is_told_once_with_how_long_it_slept():
    machine = Machine()
    machine.run(5.0)
    machine.sleep(40.0)
    assert machine.look() == near(40.0, 0.0)
    machine.run(5.0)
    assert machine.look() is None


@pytest.mark.parametrize("step_s", [86_400.0, -86_400.0, 3.0])
def test_m12_a_wall_clock_that_is_set_is_told_once_and_is_no_sleep(step_s):
    machine = Machine()
    machine.run(5.0)
    machine.wall += step_s
    assert machine.look() == near(0.0, step_s)
    machine.run(5.0)
    assert machine.look() is None


def test_without_a_clock_that_counts_sleep_the_wall_clock_shows_it():
    machine = Machine(counts_sleep=False)
    machine.sleep(40.0)
    assert machine.look() == near(0.0, 40.0)


def test_a_leap_second_and_a_moment_between_two_readings_are_no_jump():
    machine = Machine()
    machine.wall += 1.0
    assert machine.look() is None
    for _ in range(100):
        machine.run(1.0)
        machine.boot += 0.3
        assert machine.look() is None
        machine.boot -= 0.3
        assert machine.look() is None


def test_this_machines_clocks_agree_with_one_another():
    clocks = Clocks()
    jumps = [clocks.look() for _ in range(100)]
    assert jumps.count(None) > 90


@pytest.mark.parametrize("taken", [[3.0], [0.0, 3.0], [0.0, 0.0, 3.0], [3.0, 3.0, 0.0, 3.0]])
def test_what_other_processes_take_between_two_readings_is_no_jump(taken):
    machine = Machine()
    for _ in range(3):
        machine.run(5.0)
        machine.taken = list(taken)
        assert machine.look() is None


def test_what_other_processes_take_while_the_clocks_are_read_first_is_no_jump_later():
    machine = Machine()
    machine.taken = [3.0, 3.0, 3.0]
    clocks = Clocks(
        lambda: machine.read("monotonic"),
        lambda: machine.read("wall"),
        lambda: machine.read("boot"),
    )
    machine.run(5.0)
    assert clocks.look() is None


def test_a_true_jump_is_told_also_when_each_reading_is_disturbed():
    machine = Machine()
    machine.run(5.0)
    machine.sleep(40.0)
    machine.taken = [0.02] * 60
    jump = machine.look()
    assert jump.slept_s == pytest.approx(40.0, abs=0.1)
    assert jump.stepped_s == 0.0
