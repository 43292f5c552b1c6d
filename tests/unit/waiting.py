"""Waiting for a condition instead of for a time."""

import asyncio
import time

DEADLINE_S = 30.0  # far more than anything takes; a wait that gets here has failed


async def until(condition, within_s=DEADLINE_S, *, what=""):
    """The first true value that `condition()` gives; fails where there is none in time."""
    end = time.monotonic() + within_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < end, f"not within {within_s} s: {what or condition}"
        await asyncio.sleep(0.005)


async def in_time(awaitable, within_s=DEADLINE_S):
    """The result of `awaitable`, which must come in time."""
    return await asyncio.wait_for(awaitable, within_s)
