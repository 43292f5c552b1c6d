"""The short way counts as the long way does, word by word, and tells the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.limits.alone import enter_alone
from citadel_llm.api.limits.limiter import Limiter
from citadel_llm.api.limits.plan import make_plan
from citadel_llm.api.limits.refusal import lines_of
from citadel_llm.api.limits.settlement import tell
from citadel_llm.api.limits.table import COLUMNS, HIGH, Table
from citadel_llm.utils.config import Limits

PRINCIPAL = Principal("a", "a", key_id="k")
bound = st.one_of(st.none(), st.integers(0, 8), st.sampled_from([900, 1100, 10**6]))
steps = st.lists(
    st.tuples(
        st.integers(0, 30_000_000_000),  # ns since the one before
        st.sampled_from(["enter", "enter", "enter", "leave", "tell"]),
        st.integers(-60, 900),
    ),
    max_size=40,
)


class Side:
    """One way of counting, with a table of its own."""

    def __init__(self, limits):
        self.table = Table(None)
        self.limiter = Limiter(self.table, limits, None)
        self.plan = make_plan(PRINCIPAL, "m", {}, limits)

    def long(self, tokens, now):
        refusal, fewest, lowest = self.limiter._enter(self.plan, tokens, now)
        return lines_of(self.table.words, fewest, lowest, now, tokens, counted=refusal is None), refusal is None

    def short(self, tokens, now):
        lines = enter_alone(self.table, self.plan.alone, tokens, now)
        return (lines, True) if lines is not None else self.long(tokens, now)

    @property
    def entry(self):
        return self.plan.entries[0]

    def record(self):
        return self.table.view(self.entry.at).tolist()


@pytest.mark.parametrize("processes", [1, 2])
@given(requests=bound, tokens=bound, at_once=bound, steps=steps)
def test_both_ways_count_and_tell_the_same(processes, requests, tokens, at_once, steps):
    limits = Limits(
        default_requests_per_minute=requests, default_tokens_per_minute=tokens, default_concurrent_requests=at_once
    )
    short, long = sides = Side(limits), Side(limits)
    if not short.plan.entries:
        return
    for side in sides:
        side.table.words[HIGH] = processes
    now, inside = 10**15, 0
    for passed, what, count in steps:
        now += passed
        if what == "enter":
            wanted = max(0, count)
            told = [short.short(wanted, now), long.long(wanted, now)]
            assert told[0] == told[1]
            inside += told[0][1]
        elif not short.entry.at:
            continue
        elif what == "leave":
            if inside and at_once is not None:
                inside -= 1
                for side in sides:
                    side.table.words[side.entry.at + COLUMNS + side.table.place] -= 1
        elif short.entry.metered:
            for side in sides:
                tell(side.table.words, side.entry.at, processes - 1, now, count)
        assert short.record() == long.record()
    for side in sides:
        side.table.close()


def test_the_short_way_does_nothing_where_it_takes_the_long_one():
    limits = Limits(default_requests_per_minute=1, default_tokens_per_minute=10, default_concurrent_requests=1)
    side = Side(limits)
    assert enter_alone(side.table, side.plan.alone, 1, 10**15) is None  # nobody has a record yet
    assert side.long(1, 10**15)[1]
    before = side.record()
    for later in (0, 10**9):
        assert enter_alone(side.table, side.plan.alone, 1, 10**15 + later) is None
    assert side.record() == before
