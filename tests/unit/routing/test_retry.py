"""The retry budget and the pause before a retry."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.routing.retry import RetryBudget, backoff_s
from citadel_llm.utils.config import Retry

SHARE, FLOOR, BURST = 0.2, 1.0, 5.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.one_of(st.just("request"), st.just("retry"), st.floats(0.0, 3.0)), max_size=200))
def test_over_any_window_there_are_no_more_retries_than_the_budget(steps: list[str | float]) -> None:
    clock = Clock()
    budget = RetryBudget(SHARE, FLOOR, BURST, clock)
    # At each moment: time, requests and granted retries so far.
    history = [(0.0, 0, 0)]
    requests = retries = 0
    for step in steps:
        if step == "request":
            budget.deposit()
            requests += 1
        elif step == "retry":
            retries += budget.withdraw()
        else:
            clock.now += float(step)
        history.append((clock.now, requests, retries))
    for i, (t0, q0, r0) in enumerate(history):
        for t1, q1, r1 in history[i:]:
            assert r1 - r0 <= BURST + SHARE * (q1 - q0) + FLOOR * (t1 - t0) + 1e-6


def test_given_an_empty_budget_then_a_share_of_requests_fills_it_again() -> None:
    budget = RetryBudget(SHARE, 0.0, BURST, Clock())
    assert [budget.withdraw() for _ in range(6)] == [True] * 5 + [False]
    for _ in range(6):
        budget.deposit()
    assert [budget.withdraw(), budget.withdraw()] == [True, False]


def test_given_few_requests_then_the_floor_still_allows_some() -> None:
    clock = Clock()
    budget = RetryBudget(0.0, FLOOR, BURST, clock)
    for _ in range(5):
        budget.withdraw()
    clock.now = 2.5
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]


@given(st.integers(1, 100), st.integers())
def test_a_pause_is_random_below_a_bound_that_doubles(attempt: int, seed: int) -> None:
    config = Retry(base_s=0.1, max_s=2.0)
    assert 0.0 <= backoff_s(config, attempt, Random(seed)) <= min(2.0, 0.1 * 2 ** (attempt - 1))
