"""The window against a list of all times: exact up to 1,000 a minute, never too many above."""

import array

from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.limits import window
from citadel_llm.api.limits.window import EXACT, MINUTE_NS, QUANTUM_NS

S = 1_000_000_000
AT = 7  # somewhere in the table


def words():
    return memoryview(array.array("q", bytes(8 * (AT + window.WORDS))))


gaps = st.lists(
    st.one_of(
        st.integers(0, 2 * S),
        st.integers(59 * S, 61 * S),
        st.sampled_from([0, 1, MINUTE_NS - 1, MINUTE_NS, MINUTE_NS + 1, QUANTUM_NS, 1000 * S]),
    ),
    max_size=120,
)


def passes(table, now, limit):
    if window.used(table, AT, now, limit) < limit:
        window.add(table, AT, now)
        return True
    assert window.wait_ns(table, AT, now, limit) > 0
    return False


@given(gaps, st.integers(1, 20))
def test_below_a_thousand_it_lets_exactly_those_pass_that_a_list_of_all_times_does(gaps, limit):
    table, passed, now = words(), [], 5 * S
    for gap in gaps:
        now += gap
        expected = sum(one > now - MINUTE_NS for one in passed) < limit
        assert passes(table, now, limit) == expected
        if expected:
            passed.append(now)
        assert window.used(table, AT, now, limit) == sum(one > now - MINUTE_NS for one in passed)


@given(gaps, st.integers(1, 20))
def test_the_wait_it_tells_is_exact(gaps, limit):
    table, now = words(), 5 * S
    for gap in gaps:
        now += gap
        if not passes(table, now, limit):
            wait = window.wait_ns(table, AT, now, limit)
            assert window.used(table, AT, now + wait - 1, limit) >= limit
            now += wait
            assert passes(table, now, limit)


@given(gaps, st.integers(EXACT + 1, EXACT + 3), st.integers(1, 40))
def test_above_it_never_lets_more_pass_and_lets_a_whole_bound_pass_after_a_pause(gaps, limit, burst):
    table, passed, now = words(), [], 5 * S
    for gap in gaps:
        now += gap
        passed += [now for _ in range(burst * 20) if passes(table, now, limit)]
        assert sum(one > now - MINUTE_NS for one in passed) <= limit
        assert window.used(table, AT, now, limit) >= sum(one > now - MINUTE_NS for one in passed)
    now += MINUTE_NS + QUANTUM_NS
    assert sum(passes(table, now, limit) for _ in range(limit + 1)) == limit


@given(gaps, st.integers(EXACT + 1, EXACT + 3))
def test_above_the_wait_it_tells_is_enough(gaps, limit):
    table, now = words(), 5 * S
    for gap in gaps:
        now += gap
        while passes(table, now, limit):
            pass
        now += window.wait_ns(table, AT, now, limit)
        assert passes(table, now, limit)


@given(st.lists(st.tuples(st.integers(0, 20 * S), st.sampled_from([3, 5, 900, EXACT + 50])), max_size=150))
def test_a_bound_that_changes_holds_for_what_passed_before(steps):
    table, passed, now = words(), [], 5 * S
    for gap, limit in steps:
        now += gap
        if passes(table, now, limit):
            assert sum(one > now - MINUTE_NS for one in passed) < limit
            passed.append(now)


def test_it_is_as_it_began_when_nothing_counts_any_more():
    table = words()
    window.add(table, AT, 100 * S)
    window.add(table, AT, 110 * S)
    assert window.reset_ns(table, AT, 120 * S) == 50 * S
    assert window.used(table, AT, 170 * S, 5) == 0
    assert window.reset_ns(words(), AT, 120 * S) == 0
