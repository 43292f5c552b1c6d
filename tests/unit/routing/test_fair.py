"""The fair queue: bounded, in order for each caller, and no caller ahead of another by more than a request."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from itertools import permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from citadel_llm.api.routing.fair import FairQueue, QueueFull

KEYS = st.sampled_from("abcd")
BOUND, PER_KEY = 12, 6


class AgainstALiteralModel(RuleBasedStateMachine):
    """Pushes, pops and removals in any order, next to plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(BOUND, PER_KEY)
        self.expected: dict[str, list[int]] = defaultdict(list)
        self.serial = 0

    @rule(key=KEYS, cost=st.integers(1, 8))
    def push(self, key: str, cost: int) -> None:
        self.serial += 1
        total = sum(map(len, self.expected.values()))
        try:
            self.queue.push(key, self.serial, float(cost))
        except QueueFull as full:
            if full.of_key:
                assert len(self.expected[key]) >= min(PER_KEY, 4 * (BOUND - total))
            else:
                assert total == BOUND
        else:
            self.expected[key].append(self.serial)

    @rule()
    def pop(self) -> None:
        item = self.queue.pop()
        if item is None:
            assert not any(self.expected.values()), "nothing was taken, and somebody waits"
            return
        firsts = {items[0]: items for items in self.expected.values() if items}
        assert item in firsts, "an item overtook an earlier one of the same key"
        firsts[item].pop(0)

    @precondition(lambda self: any(self.expected.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([key for key, items in self.expected.items() if items]))
        item = data.draw(st.sampled_from(self.expected[key]))
        self.expected[key].remove(item)
        assert self.queue.remove(key, item)
        assert not self.queue.remove(key, item)

    @invariant()
    def counts_hold(self) -> None:
        assert len(self.queue) == sum(map(len, self.expected.values())) <= BOUND
        assert self.queue.keys == sum(1 for items in self.expected.values() if items)
        for key in "abcd":
            assert self.queue.waiting(key) == len(self.expected[key]) <= PER_KEY


TestAgainstALiteralModel = AgainstALiteralModel.TestCase


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 8), min_size=2), st.data())
def test_while_all_wait_what_each_was_served_differs_by_no_more_than_a_request_of_each(
    costs: dict[str, int], data: st.DataObject
) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(100_000)
    order = data.draw(st.permutations([key for key in costs for _ in range(20)]))
    for serial, key in enumerate(order):
        queue.push(key, (key, serial), float(costs[key]))
    served = dict.fromkeys(costs, 0.0)
    while all(queue.waiting(key) for key in costs):
        key, _ = queue.pop() or pytest.fail("somebody waits")
        served[key] += costs[key]
        for one, other in permutations(costs, 2):
            assert served[one] - served[other] <= costs[one] + costs[other]


@given(st.integers(1, 200), st.integers(0, 50))
def test_a_newcomer_is_next_but_one_however_many_wait_for_another_caller(waiting: int, served: int) -> None:
    queue: FairQueue[str] = FairQueue(1000)
    for n in range(waiting + served):
        queue.push("greedy", f"greedy {n}")
    for _ in range(served):
        queue.pop()
    queue.push("modest", "modest")
    assert "modest" in [queue.pop(), queue.pop()]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=100))
def test_nobody_starves_while_others_keep_coming(arrivals: list[tuple[str, bool]]) -> None:
    queue: FairQueue[str] = FairQueue(50)
    queue.push("z", "patient")
    pops = 0
    for n, (key, pop) in enumerate(arrivals):
        with contextlib.suppress(QueueFull):
            queue.push(key, f"{key}{n}")
        if pop:
            pops += 1
            if queue.pop() == "patient":
                break
            assert pops <= 4, "three others wait at most, so the patient one is among the first four"


@given(st.integers(6, 300), st.integers(1, 8))
def test_however_many_callers_fill_the_queue_there_is_room_for_a_newcomer(bound: int, hogs: int) -> None:
    queue: FairQueue[int] = FairQueue(bound)
    serial = 0
    for _ in range(bound):
        for hog in range(hogs):
            serial += 1
            with contextlib.suppress(QueueFull):
                queue.push(f"hog {hog}", serial)
    if len(queue) < bound:
        queue.push("newcomer", 0)
    else:
        assert bound <= 4 * hogs + 4, "a queue that is large for its callers was filled up by them"


@example([(key, 0) for key in "ad" + "b" * 4 + "c" * 10], "b")  # two others wait with fewer than it
@given(st.lists(st.tuples(KEYS, st.integers(0, 3)), min_size=1, max_size=40), KEYS)
def test_the_forecast_of_those_ahead_is_near_the_truth(pushes: list[tuple[str, int]], key: str) -> None:
    queue: FairQueue[int] = FairQueue(1000)
    for serial, (other, pops) in enumerate(pushes):
        queue.push(other, serial)
        for _ in range(pops if serial % 3 == 0 else 0):
            queue.pop()
    forecast, keys = queue.ahead(key), queue.keys
    queue.push(key, -1)
    ahead = 0
    while queue.pop() != -1:
        ahead += 1
    assert abs(ahead - forecast) <= keys
