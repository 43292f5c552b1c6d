"""The circuit breaker, driven by every order of outcomes and pauses."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.routing.breaker import BreakerState, CircuitBreaker
from citadel_llm.utils.config import Breaker

CONFIG = Breaker(window=6, min_requests=3, failure_share=0.5, open_s=2.0, max_open_s=10.0, trials=2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(clock: Clock, seed: int = 0) -> CircuitBreaker:
    return CircuitBreaker(CONFIG, clock, Random(seed))


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        ticket = breaker.begin()
        assert ticket is not None
        breaker.finish(ticket, True)


def opened() -> tuple[CircuitBreaker, Clock]:
    clock = Clock()
    breaker = made(clock)
    fail(breaker, 3)
    assert breaker.state is BreakerState.OPEN
    return breaker, clock


def test_given_too_few_requests_when_all_fail_then_it_stays_closed() -> None:
    breaker = made(Clock())
    fail(breaker, 2)
    assert breaker.state is BreakerState.CLOSED


def test_given_mostly_good_answers_when_some_fail_then_it_stays_closed() -> None:
    breaker = made(Clock())
    for failed in (False, False, True, False, False, True, False, False, True):
        breaker.finish(breaker.begin(), failed)
    assert breaker.state is BreakerState.CLOSED


def test_given_an_open_breaker_when_its_pause_is_not_over_then_nothing_passes() -> None:
    breaker, clock = opened()
    clock.now += CONFIG.open_s * 0.79
    assert not breaker.admits
    assert breaker.begin() is None


def test_given_an_open_breaker_when_its_pause_is_over_then_only_the_trials_pass() -> None:
    breaker, clock = opened()
    clock.now += CONFIG.open_s
    assert [breaker.begin() is not None for _ in range(4)] == [True, True, False, False]


def test_given_half_open_when_the_trials_succeed_then_it_closes() -> None:
    breaker, clock = opened()
    clock.now += CONFIG.open_s
    for ticket in [breaker.begin(), breaker.begin()]:
        breaker.finish(ticket, False)
    assert breaker.state is BreakerState.CLOSED


def test_given_half_open_when_a_trial_fails_then_it_opens_for_longer() -> None:
    breaker, clock = opened()
    clock.now += CONFIG.open_s
    fail(breaker)
    assert breaker.state is BreakerState.OPEN
    assert breaker.retry_at - clock.now >= 2 * CONFIG.open_s * 0.8


def test_given_half_open_when_a_trial_says_nothing_then_its_place_is_free_again() -> None:
    breaker, clock = opened()
    clock.now += CONFIG.open_s
    tickets = [breaker.begin(), breaker.begin()]
    breaker.finish(tickets[0], None)
    assert breaker.begin() is not None


def test_given_a_request_from_before_it_opened_when_it_fails_late_then_the_trial_is_not_judged_by_it() -> None:
    clock = Clock()
    breaker = made(clock)
    old = breaker.begin()
    fail(breaker, 3)
    clock.now += CONFIG.open_s
    assert breaker.begin() is not None
    breaker.finish(old, True)
    assert breaker.state is BreakerState.HALF_OPEN


ALLOWED = {
    (BreakerState.CLOSED, BreakerState.OPEN),
    (BreakerState.OPEN, BreakerState.HALF_OPEN),
    (BreakerState.HALF_OPEN, BreakerState.OPEN),
    (BreakerState.HALF_OPEN, BreakerState.CLOSED),
}


@given(
    st.lists(
        st.one_of(
            st.just(("begin", 0)),
            st.tuples(st.sampled_from(["good", "bad", "none", "broke"]), st.integers(0, 5)),
            st.tuples(st.just("wait"), st.integers(0, 12)),
        ),
        max_size=120,
    ),
    st.integers(),
)
def test_whatever_happens_it_moves_only_along_its_transitions_and_bounds_its_trials(
    steps: list[tuple[str, int]], seed: int
) -> None:
    clock = Clock()
    seen: list[BreakerState] = [BreakerState.CLOSED]
    breaker = made(clock, seed)

    def note() -> None:
        if breaker.state is not seen[-1]:
            seen.append(breaker.state)

    breaker.changed = note
    out: list[int] = []
    for what, number in steps:
        if what == "begin":
            could = breaker.admits
            ticket = breaker.begin()
            assert (ticket is not None) == could
            if ticket is not None:
                out.append(ticket)
        elif what == "wait":
            clock.now += number
            breaker.tick()
        elif out:
            ticket = out.pop(number % len(out))
            if what == "broke":
                breaker.finish(ticket, False)
                breaker.broke(ticket)
            else:
                breaker.finish(ticket, {"good": False, "bad": True, "none": None}[what])
        if breaker.state is BreakerState.HALF_OPEN:
            assert sum(ticket == breaker.epoch for ticket in out) <= CONFIG.trials
        if breaker.state is BreakerState.OPEN:
            assert breaker.retry_at - clock.now <= CONFIG.max_open_s
    assert set(pairwise(seen)) <= ALLOWED


@given(st.integers())
def test_however_often_it_opens_some_trial_comes_within_the_longest_pause(seed: int) -> None:
    clock = Clock()
    breaker = made(clock, seed)
    fail(breaker, 3)
    for _ in range(20):
        clock.now += CONFIG.max_open_s
        fail(breaker)
    clock.now += CONFIG.max_open_s
    assert breaker.begin() is not None
