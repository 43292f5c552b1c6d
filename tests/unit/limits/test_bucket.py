"""The level of tokens against the same in fractions."""

import array
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.limits import bucket
from citadel_llm.api.limits.bucket import SCALE

S = 1_000_000_000
AT = 3
steps = st.lists(st.tuples(st.integers(0, 90 * S), st.integers(1, 120), st.integers(0, 200)), max_size=60)


def words():
    return memoryview(array.array("q", bytes(8 * (AT + bucket.WORDS))))


@given(steps, st.integers(1, 100))
def test_the_level_is_what_was_charged_less_what_came_back_rounded_up(steps, rate):
    table, now, level = words(), 5 * S, Fraction(0)
    for count, (gap, tokens, _) in enumerate(steps, 1):
        now += gap
        level = max(Fraction(0), level - Fraction(gap * rate, 60 * S)) + tokens
        bucket.charge(table, AT, now, rate, tokens)
        assert 0 <= Fraction(bucket.level(table, AT, now, rate), SCALE) - level <= Fraction(count, SCALE)


@given(steps, st.integers(1, 100))
def test_in_any_time_no_more_is_used_than_a_minutes_worth_and_what_came_back(steps, rate):
    """Each request reserves, and at once turns out to have used something else: what it owes is paid first."""
    table, now = words(), 5 * S
    used = []
    for gap, reserved, actual in steps:
        now += gap
        if bucket.level(table, AT, now, rate) + reserved * SCALE <= rate * SCALE:
            bucket.charge(table, AT, now, rate, reserved)
            bucket.charge(table, AT, now, rate, actual - reserved)
            used.append((now, actual))
    for first, (began, _) in enumerate(used):
        total = 0
        for at, tokens in used[first:]:
            if tokens <= rate:  # what the last one took beyond its estimate is owed
                assert total <= rate + Fraction((at - began) * rate, 60 * S)
            total += tokens


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))
def test_the_wait_it_tells_is_enough_and_hardly_more(rate, owed, tokens):
    tokens = min(tokens, rate)
    table, now = words(), 5 * S
    bucket.charge(table, AT, now, rate, owed)
    wait = bucket.wait_ns(bucket.level(table, AT, now, rate), rate, tokens)
    assert bucket.level(table, AT, now + wait, rate) + tokens * SCALE <= rate * SCALE
    if wait > 60_000:
        other = words()
        bucket.charge(other, AT, now, rate, owed)
        assert bucket.level(other, AT, now + wait - 60_000, rate) + tokens * SCALE > rate * SCALE


def test_what_was_not_used_comes_back_and_never_more_than_that():
    table = words()
    bucket.charge(table, AT, S, 60, 50)
    bucket.charge(table, AT, S, 60, -20)
    assert bucket.level(table, AT, S, 60) == 30 * SCALE
    bucket.charge(table, AT, 100 * S, 60, -50)
    assert bucket.level(table, AT, 100 * S, 60) == 0
    assert bucket.drained(table, AT, 100 * S)


def test_it_is_drained_when_all_that_was_owed_has_been_paid():
    table = words()
    bucket.charge(table, AT, S, 60, 120)
    assert not bucket.drained(table, AT, 120 * S)
    assert bucket.drained(table, AT, 121 * S)
