"""A value that is costly to get, got at most once in a while however many ask for it.

counts = Fresh(1.0, read)
await counts.get()         # whoever comes meanwhile waits for the same one
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

__all__ = ["Fresh"]


class Fresh[T]:
    """Made for one event loop. A failure is kept as long as a value: what does not answer is not asked more often."""

    def __init__(self, age_s: float, read: Callable[[], Awaitable[T]], clock: Callable[[], float] = monotonic) -> None:
        self._age_s = age_s
        self._read = read
        self._clock = clock
        self._until = float("-inf")
        self._pending: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """The value, at most `age_s` seconds old. Raises what `read` raises."""
        pending = self._pending
        if pending is None or (pending.done() and self._clock() >= self._until):
            pending = self._pending = asyncio.create_task(self._again())
        return await asyncio.shield(pending)  # who hangs up takes it from nobody else

    async def _again(self) -> T:
        try:
            return await self._read()
        finally:
            self._until = self._clock() + self._age_s
