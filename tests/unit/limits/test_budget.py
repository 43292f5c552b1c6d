"""Days and months in UTC, and what was used before anybody counted."""

import array
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.limits import budget

AT = 2


def words():
    return memoryview(array.array("q", bytes(8 * (AT + budget.WORDS))))


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def spent(table):
    return [table[AT + word] for word in budget.SPENT]


@given(st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)))
def test_a_day_and_a_month_begin_and_end_where_the_calendar_says(moment):
    moment = moment.replace(tzinfo=UTC)
    periods = budget.Calendar().at(moment.timestamp())
    day, day_end, month, month_end = (datetime.fromtimestamp(one, UTC) for one in periods)
    assert day.date() == moment.date()
    assert (day_end - day).total_seconds() == 86_400
    assert (month.year, month.month, month.day, month.hour) == (moment.year, moment.month, 1, 0)
    assert month_end.day == 1
    assert month < month_end
    assert 28 <= (month_end - month).days <= 31


def test_counting_begins_anew_with_each_period_and_not_where_the_clock_is_set_back():
    table, calendar = words(), budget.Calendar()
    for moment in ("2026-01-30T23:59:59", "2026-01-31T00:00:01", "2026-01-31T12:00:00", "2026-01-30T23:59:59"):
        budget.roll(table, AT, calendar.at(at(moment)), at(moment))
        budget.spend(table, AT, 1, 10)
    assert spent(table) == [3, 30, 4, 40]
    budget.roll(table, AT, calendar.at(at("2026-02-01T00:00:00")), at("2026-02-01T00:00:00"))
    assert spent(table) == [0, 0, 0, 0]


def test_who_was_counted_from_the_beginning_of_a_period_is_not_behind():
    table, calendar = words(), budget.Calendar()
    first, next_day, next_month = (at(one) for one in ("2026-01-30T12:00", "2026-01-31T12:00", "2026-02-01T12:00"))
    budget.roll(table, AT, calendar.at(first), first)
    assert budget.behind(table, AT, calendar.at(first)) == ["day", "month"]
    budget.roll(table, AT, calendar.at(next_day), next_day)
    assert budget.behind(table, AT, calendar.at(next_day)) == ["month"]
    budget.roll(table, AT, calendar.at(next_month), next_month)
    assert budget.behind(table, AT, calendar.at(next_month)) == []


def test_what_is_caught_up_with_is_the_larger_of_both_counts_and_is_asked_for_once():
    table, calendar, now = words(), budget.Calendar(), at("2026-01-30T12:00")
    periods = calendar.at(now)
    budget.roll(table, AT, periods, now)
    budget.spend(table, AT, 2, 500)
    budget.catch_up(table, AT, periods, "day", 7, 300)
    assert spent(table) == [7, 500, 2, 500]
    assert budget.behind(table, AT, periods) == ["month"]


def test_what_passed_uncounted_is_caught_up_with():
    table, calendar = words(), budget.Calendar()
    first, second = at("2026-01-30T12:00"), at("2026-01-31T12:00")
    budget.roll(table, AT, calendar.at(first), first)
    budget.forget(table, AT)
    budget.roll(table, AT, calendar.at(second), second)
    assert budget.behind(table, AT, calendar.at(second)) == ["day", "month"]
    budget.keep(table, AT, 100)
    assert budget.kept(table, AT, 99)
    assert not budget.kept(table, AT, 100)


def test_what_counts_against_a_hosts_share_is_its_own_part_where_no_other_used_more_than_its_own():
    assert budget.part({"a": 30, "b": 30}, "a", 2, 50) == 30
    assert budget.part({"a": 50, "b": 10}, "a", 2, 50) == 50
    assert budget.part({"b": 50}, "a", 2, 50) == 0
    assert budget.part({"a": 30, "b": 60}, "a", 2, 50) == 40  # b had more, before there was a
    assert budget.part({"a": 5, "b": 10, "gone": 30}, "a", 2, 50) == 35
    assert budget.part({"a": 30, "b": 60}, "a", 2, None) == 30


@given(
    st.lists(st.integers(0, 150), min_size=1, max_size=6),
    st.lists(st.integers(0, 150), max_size=3),
    st.integers(0, 300),
    st.booleans(),
)
def test_hosts_that_begin_to_count_anew_let_no_more_pass_than_the_bound(there, gone, bound, at_once):
    share = bound // len(there)
    before = {f"host-{number}": used for number, used in enumerate(there + gone)}
    after = dict(before)
    for name in list(before)[: len(there)]:
        known = before if at_once else after
        after[name] += max(0, share - budget.part(known, name, len(there), share))
    assert sum(after.values()) <= max(bound, sum(before.values()))
