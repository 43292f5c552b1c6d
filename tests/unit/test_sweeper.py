"""What looks after all requests at once."""

import asyncio

from citadel_llm.api.middleware.exchange import Sweeper
from waiting import until


async def test_a_tick_that_fails_is_told_and_the_sweeping_goes_on():
    ticks, told = 0, []

    def tick():
        nonlocal ticks
        ticks += 1
        raise RuntimeError("a disk")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    sweeper = Sweeper(1, tick)
    sweeper.start(loop)
    try:
        await until(lambda: ticks >= 3)
    finally:
        sweeper.stop()
    assert [str(error) for error in told] == ["a disk"] * ticks
