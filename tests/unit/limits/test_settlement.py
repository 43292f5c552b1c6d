"""What was used is told by column, and counts as if it had been charged when it was told."""

import array

from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.limits import bucket, settlement

S = 1_000_000_000
RATE = 60
steps = st.lists(st.tuples(st.integers(0, 40 * S), st.integers(0, 2), st.integers(-30, 90), st.booleans()), max_size=40)


def words():
    return memoryview(array.array("q", bytes(8 * 1536)))


@given(steps)
def test_told_in_any_column_and_folded_later_it_is_never_less_than_charged_at_once(steps):
    told, charged, now = words(), words(), 5 * S
    for gap, place, tokens, looked in steps:
        now += gap
        bucket.charge(charged, settlement.BUCKET, now, RATE, tokens)
        settlement.tell(told, 0, place, now, tokens)
        if looked:
            settlement.fold(told, 0, 3, now + 1, RATE, False)
            level = bucket.level(told, settlement.BUCKET, now + 1, RATE)
            if all(step[2] >= 0 for step in steps):  # what comes back can't be lost to an empty bucket
                assert level >= bucket.level(charged, settlement.BUCKET, now + 1, RATE) - 100


@given(st.integers(1, 500), st.integers(0, 1000 * S))
def test_it_counts_from_when_it_was_told_however_late_somebody_looks(tokens, later):
    told, charged = words(), words()
    settlement.tell(told, 0, 1, 7 * S, tokens)
    bucket.charge(charged, settlement.BUCKET, 7 * S, RATE, tokens)
    settlement.fold(told, 0, 2, 7 * S + later, RATE, False)
    now = 7 * S + later
    assert bucket.level(told, settlement.BUCKET, now, RATE) == bucket.level(charged, settlement.BUCKET, now, RATE)


def test_it_is_folded_once():
    table = words()
    settlement.tell(table, 0, 0, S, 5)
    settlement.tell(table, 0, 1, S, 7)
    for _ in range(2):
        settlement.fold(table, 0, 2, S, RATE, True)
        assert bucket.level(table, settlement.BUCKET, S, RATE) == 12 * bucket.SCALE
    settlement.tell(table, 0, 1, S, -4)
    settlement.fold(table, 0, 2, S, RATE, True)
    assert bucket.level(table, settlement.BUCKET, S, RATE) == 8 * bucket.SCALE
