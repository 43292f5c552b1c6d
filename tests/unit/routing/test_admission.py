"""Admission: places, a bounded queue, honest refusals."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.routing.admission import Admission, Refused, cost_of


def made(places: int = 2, queue: int = 4, per_key: int | None = None) -> Admission:
    return Admission(places, queue, per_key, 5, asyncio.get_running_loop())


def fill(admission: Admission, waiting: int, key: str = "a") -> list[asyncio.Future[None]]:
    while admission.inside < admission.places:
        assert admission.enter(key, 60.0) is None
    turns = [admission.enter(key, 60.0) for _ in range(waiting)]
    return [turn for turn in turns if turn is not None]


async def test_given_free_places_when_a_request_comes_then_it_does_not_wait() -> None:
    admission = made()
    assert [admission.enter("a", 1.0), admission.enter("a", 1.0)] == [None, None]
    assert admission.inside == 2


async def test_given_a_full_model_when_one_leaves_then_the_first_who_waits_has_its_place() -> None:
    admission = made()
    first, second = fill(admission, 2)
    admission.leave(0.1)
    assert (first.done(), second.done(), admission.inside) == (True, False, 2)


async def test_given_two_callers_when_places_become_free_then_they_take_turns() -> None:
    admission = made(places=1, queue=20)
    greedy = fill(admission, 4, "greedy")
    modest = fill(admission, 1, "modest")[0]
    admission.leave(0.1)
    admission.leave(0.1)
    assert modest.done()
    assert [turn.done() for turn in greedy] == [True, False, False, False]


async def test_given_a_full_queue_when_a_request_comes_then_it_is_refused_until_the_queue_will_have_drained() -> None:
    admission = made(places=2, queue=4)
    fill(admission, 4)
    admission.leave(2.0)  # each place is held for 2 s: one request a second
    fill(admission, 1)
    with pytest.raises(Refused) as refused:
        admission.enter("a", 60.0)
    assert refused.value.reason == "queue_full"
    assert refused.value.retry_after_s == 5  # four that wait and the newcomer


async def test_given_nothing_measured_when_refused_then_the_configured_pause_is_told() -> None:
    admission = made(queue=1)
    fill(admission, 1)
    with pytest.raises(Refused) as refused:
        admission.enter("a", 60.0)
    assert refused.value.retry_after_s == 5


async def test_given_a_bound_for_each_caller_when_one_reaches_it_then_others_still_find_room() -> None:
    admission = made(queue=10, per_key=2)
    fill(admission, 2)
    with pytest.raises(Refused, match="key_queue_full"):
        admission.enter("a", 60.0)
    assert admission.enter("b", 60.0) is not None


async def test_given_a_wait_longer_than_the_callers_patience_when_it_comes_then_it_is_refused_at_once() -> None:
    admission = made(places=1, queue=100)
    fill(admission, 3)
    admission.leave(1.0)
    assert admission.expected_wait_s("a") == pytest.approx(3.0)
    with pytest.raises(Refused) as refused:
        admission.enter("a", 2.5)
    assert refused.value.reason == "wait_too_long"
    assert admission.enter("a", 3.5) is not None


async def test_given_one_who_waits_when_it_gives_up_then_its_place_in_the_queue_is_free() -> None:
    admission = made(queue=1)
    (turn,) = fill(admission, 1)
    turn.cancel()
    admission.forget("a", turn)
    assert admission.waiting == 0
    admission.leave(0.1)
    assert admission.inside == 1


async def test_given_one_who_gives_up_just_when_its_turn_comes_then_the_place_goes_on() -> None:
    admission = made(places=1)
    first, second = fill(admission, 2)
    admission.leave(0.1)
    admission.forget("a", first)  # its turn had come, and its request was interrupted before it saw that
    assert second.done()
    admission.leave(0.1)
    assert admission.inside == 0


async def test_unanswered_requests_do_not_count_as_fast_ones() -> None:
    admission = made()
    fill(admission, 0)
    admission.leave(1.0)
    admission.leave(None)
    assert admission.rate_per_s == 2.0


@pytest.mark.parametrize(("size", "cost"), [(0, 1), (4095, 1), (4096, 2), (94_000, 23), (8 << 20, 64)])
def test_a_large_request_counts_for_more(size: int, cost: int) -> None:
    assert cost_of(size) == cost


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave", "cancel", "forget", "give up"]), st.integers(0, 9), st.sampled_from("ab")
    )
)


@given(places=st.integers(1, 4), queue=st.integers(0, 4), actions=ACTIONS)
def test_whatever_happens_places_are_never_lost_never_doubled_and_given_in_turn(
    places: int, queue: int, actions: list[tuple[str, int, str]]
) -> None:
    loop = asyncio.new_event_loop()
    try:
        Places(Admission(places, queue, None, 5, loop)).play(actions)
    finally:
        loop.close()


class Places:
    """An admission next to what must be true of it."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.holding = 0
        self.waiting: list[tuple[str, asyncio.Future[None]]] = []
        self.gone: list[tuple[str, asyncio.Future[None]]] = []  # cancelled, but it was not said yet

    def play(self, actions: list[tuple[str, int, str]]) -> None:
        for action, which, key in actions:
            if action == "enter":
                self.enter(key)
            elif action == "leave" and self.holding:
                self.leave()
            elif action == "cancel" and self.waiting:
                self.gone.append(self.waiting.pop(which % len(self.waiting)))
                self.gone[-1][1].cancel()
            elif action == "forget" and self.gone:
                self.admission.forget(*self.gone.pop(which % len(self.gone)))
            elif action == "give up" and self.waiting and self.holding:
                self.leave_to_one_who_gives_up()
            self.settle()
        for who in self.gone:
            self.admission.forget(*who)
        while self.holding:
            self.leave()
            self.settle()
        assert (self.admission.inside, self.admission.waiting, self.waiting) == (0, 0, [])

    def enter(self, key: str) -> None:
        try:
            turn = self.admission.enter(key, 60.0)
        except Refused:
            assert self.holding == self.admission.places
            return
        if turn is None:
            assert not self.waiting
            self.holding += 1
        else:
            assert self.holding == self.admission.places
            self.waiting.append((key, turn))

    def leave(self) -> None:
        self.holding -= 1
        self.admission.leave(None)

    def leave_to_one_who_gives_up(self) -> None:
        self.leave()
        came = [(key, turn) for key, turn in self.waiting if turn.done()]
        if came:
            self.waiting.remove(came[0])
            self.admission.forget(*came[0])

    def settle(self) -> None:
        """Take note of the turns that have come: none before an earlier one of its key."""
        for key in "ab":
            done = [turn.done() for other, turn in self.waiting if other == key]
            assert done == sorted(done, reverse=True)
        self.holding += sum(turn.done() for _, turn in self.waiting)
        self.waiting = [(key, turn) for key, turn in self.waiting if not turn.done()]
        assert self.admission.inside == self.holding <= self.admission.places
        assert not self.waiting or self.holding == self.admission.places
        assert len(self.waiting) <= self.admission.waiting <= len(self.waiting) + len(self.gone)


async def test_who_would_wait_much_longer_than_requests_take_is_refused():
    admission = Admission(4, 100, None, 5, asyncio.get_running_loop(), wait_factor=1.0)
    for _ in range(20):
        admission.enter("a", 30.0)
        admission.leave(2.0)
    for _ in range(4):
        assert admission.enter("a", 30.0) is None
    for number in range(4):  # a request's time is what four places need for four requests
        assert admission.enter(f"caller-{number}", 30.0) is not None
    with pytest.raises(Refused) as refused:
        admission.enter("one-more", 30.0)
    assert refused.value.reason == "wait_too_long"
    assert refused.value.retry_after_s >= 1
