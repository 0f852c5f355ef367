"""Token buckets: so many at once, so many a second, and tables that do not grow."""

import pytest

from plumtree_quic.net.budget import ADDRESSES_MAX, AcceptBudget, TokenBucket


def taken(take, count):
    """How many of `count` tries succeed."""
    return sum(take() for _ in range(count))


def test_a_bucket_starts_full_and_gives_its_burst():
    bucket = TokenBucket(20.0, 100.0)
    assert taken(lambda: bucket.take(5.0), 1_000) == 100


@pytest.mark.parametrize(
    ("wait_s", "more"), [(0.0, 0), (0.04, 0), (0.06, 1), (1.01, 20), (999, 100)]
)
def test_a_bucket_fills_at_its_rate_and_never_beyond_its_burst(wait_s, more):
    bucket = TokenBucket(20.0, 100.0)
    taken(lambda: bucket.take(0.0), 1_000)
    assert taken(lambda: bucket.take(wait_s), 1_000) == more


def test_tries_that_fail_do_not_delay_the_next_token():
    bucket = TokenBucket(20.0, 1.0)
    assert bucket.take(0.0)
    # 900 tries within 45 ms, and the token is there at 50 ms all the same.
    assert not any(bucket.take(number * 0.00005) for number in range(900))
    assert bucket.take(0.0501)


def test_a_time_before_the_last_one_gives_nothing():
    bucket = TokenBucket(20.0, 1.0)
    assert bucket.take(10.0)
    assert not bucket.take(5.0)
    assert not bucket.take(10.0)


def test_a_socket_answers_5000_strangers_a_second_with_retry():
    budget = AcceptBudget()
    assert taken(lambda: budget.may_retry(0.0), 20_000) == 5_000
    assert taken(lambda: budget.may_retry(1.0), 20_000) == 5_000


def test_one_address_has_100_at_once_and_20_a_second():
    budget = AcceptBudget()
    assert taken(lambda: budget.may_accept("192.0.2.1", 0.0), 1_000) == 100
    assert taken(lambda: budget.may_accept("192.0.2.1", 1.01), 1_000) == 20


def test_x02_one_address_over_its_budget_costs_the_others_nothing():
    budget = AcceptBudget()
    taken(lambda: budget.may_accept("192.0.2.1", 0.0), 100_000)
    assert taken(lambda: budget.may_accept("192.0.2.2", 0.0), 100) == 100


def test_all_addresses_together_have_200_a_second():
    budget = AcceptBudget()
    hosts = [f"198.51.100.{number}" for number in range(250)]
    for host in hosts:
        budget.may_accept(host, 0.0)
        budget.may_accept(host, 0.0)
    assert sum(budget.may_accept(host, 1.01) for host in hosts) == 202


def test_spoofed_strangers_spend_nothing_of_the_accept_budget():
    budget = AcceptBudget()
    taken(lambda: budget.may_retry(0.0), 100_000)
    assert budget.may_accept("192.0.2.1", 0.0)


def test_the_table_of_addresses_is_bounded_and_the_longest_unseen_goes_first():
    budget = AcceptBudget()
    taken(lambda: budget.may_accept("busy", 0.0), 1_000)
    bucket = budget._addresses["busy"]
    for number in range(3 * ADDRESSES_MAX):
        budget.may_accept(f"host {number}", 0.0)
        if number % 1_000 == 0:
            budget.may_accept("busy", 0.0)
    assert len(budget._addresses) == ADDRESSES_MAX
    # The same one: a new bucket would be full again.
    assert budget._addresses["busy"] is bucket
    assert "host 0" not in budget._addresses
