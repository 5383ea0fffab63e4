"""Waits between attempts."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from poplin.datastore.backoff import Backoff, Pace

PACE = Pace(backoff_first_s=1, backoff_max_s=30)


def test_waits_double_up_to_a_bound():
    backoff = Backoff(PACE, Random(1))
    waits = [backoff.after_failure_s(0) for _ in range(8)]
    for wait, least in zip(waits, [1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert least <= wait <= least * 1.5


def test_waits_differ_between_clients():
    assert len({Backoff(PACE, Random(seed)).after_failure_s(0) for seed in range(20)}) == 20


def test_success_and_a_long_attempt_begin_anew():
    for forget in (lambda b: b.after_success_s(5), lambda _: None):
        backoff = Backoff(PACE, Random(1))
        for _ in range(5):
            backoff.after_failure_s(0)
        forget(backoff)
        assert backoff.after_failure_s(31) <= 1.5


def test_a_short_success_waits_the_rest_of_the_first_interval():
    backoff = Backoff(PACE, Random(1))
    assert backoff.after_success_s(0.25) == 0.75
    assert backoff.after_success_s(300) == 0


@given(st.integers(0, 100), st.floats(0, 1000), st.floats(0, 1000))
def test_never_sooner_than_asked_and_bounded(failures, elapsed_s, at_least_s):
    backoff = Backoff(PACE, Random(1))
    for _ in range(failures):
        backoff.after_failure_s(0)
    wait_s = backoff.after_failure_s(elapsed_s, at_least_s=at_least_s)
    assert at_least_s <= wait_s <= max(30, at_least_s) * 1.5
