"""The gate in front of a model: places, a queue, first come first served."""

import asyncio

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from citadel_llm.api.upstream.gate import Gate, QueueFull


@pytest.fixture
async def gate():
    return Gate(places=2, queue=2, loop=asyncio.get_running_loop())


async def test_places_are_taken_at_once_and_then_the_queue_grows(gate):
    assert gate.enter() is None
    assert gate.enter() is None
    turns = [gate.enter(), gate.enter()]
    assert (gate.inside, gate.waiting) == (2, 2)
    with pytest.raises(QueueFull):
        gate.enter()
    gate.leave()
    assert [turn.done() for turn in turns] == [True, False]
    assert (gate.inside, gate.waiting) == (2, 1)


async def test_a_place_that_nobody_waits_for_is_free(gate):
    gate.enter()
    gate.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_who_forgets_a_place_just_handed_over_passes_it_on(gate):
    for _ in range(2):
        gate.enter()
    first, second = gate.enter(), gate.enter()
    gate.leave()
    gate.forget(first)
    assert second.done()
    assert (gate.inside, gate.waiting) == (2, 0)


async def test_who_was_cancelled_is_passed_over(gate):
    for _ in range(2):
        gate.enter()
    first, second = gate.enter(), gate.enter()
    first.cancel()
    gate.leave()
    assert second.done()
    gate.forget(first)
    assert (gate.inside, gate.waiting) == (2, 0)


ACTIONS = st.lists(st.tuples(st.sampled_from(["enter", "leave", "cancel", "forget", "give up"]), st.integers(0, 9)))


@settings(max_examples=300, deadline=None)
@given(places=st.integers(1, 4), queue=st.integers(0, 4), actions=ACTIONS)
def test_whatever_happens_places_are_never_lost_never_doubled_and_given_in_turn(places, queue, actions):
    loop = uvloop.new_event_loop()
    try:
        check(Gate(places, queue, loop), places, queue, actions)
    finally:
        loop.close()


def check(gate, places, queue, actions):
    holding, waiting, gone = 0, [], []  # who is inside; whose turn is to come; who was cancelled but did not say so yet

    def settle():
        """Take note of the turns that have come: none may come before an earlier one."""
        nonlocal holding
        came = [turn for turn in waiting if turn.done()]
        assert came == waiting[: len(came)]
        holding += len(came)
        del waiting[: len(came)]

    for action, which in actions:
        if action == "enter":
            try:
                turn = gate.enter()
            except QueueFull:
                assert len(waiting) + len(gone) >= queue
            else:
                if turn is None:
                    assert not waiting
                    holding += 1
                else:
                    assert holding == places
                    waiting.append(turn)
        elif action == "leave" and holding:
            holding -= 1
            gate.leave()
        elif action == "cancel" and waiting:
            turn = waiting.pop(which % len(waiting))
            turn.cancel()
            gone.append(turn)
        elif action == "forget" and gone:
            gate.forget(gone.pop(which % len(gone)))
        elif action == "give up" and waiting and holding:
            turn = waiting[0]
            holding -= 1
            gate.leave()
            assert turn.done()
            waiting.pop(0)
            gate.forget(turn)
        settle()
        assert gate.inside == holding <= places
        assert len(waiting) <= queue
        assert not waiting or holding == places
        assert len(waiting) <= gate.waiting <= len(waiting) + len(gone)
    for turn in gone:
        gate.forget(turn)
    while holding:
        gate.leave()
        holding -= 1
        settle()
    assert (gate.inside, gate.waiting, waiting) == (0, 0, [])
