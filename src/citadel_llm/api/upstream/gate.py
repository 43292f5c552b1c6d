"""Admission to a model: at most so many requests at once, at most so many waiting, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Gate", "QueueFull"]


class QueueFull(Exception):
    """As many requests wait as may wait."""


class Gate:
    """Bounds the requests of one model in this instance.

    `enter` returns None where there is a place, which is then taken; else a future that
    becomes done when a place has been handed over. `leave` gives a place up. Whoever stops
    waiting calls `forget`.
    """

    def __init__(self, places: int, queue: int, loop: asyncio.AbstractEventLoop) -> None:
        self.places = places
        self.queue = queue
        self.inside = 0
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def enter(self) -> asyncio.Future[None] | None:
        """Take a place, or a place in the queue. Raises QueueFull."""
        if self.inside < self.places and not self._waiting:
            self.inside += 1
            return None
        if len(self._waiting) >= self.queue:
            raise QueueFull
        turn = self._loop.create_future()
        self._waiting.append(turn)
        return turn

    def forget(self, turn: asyncio.Future[None]) -> None:
        """Leave the queue, or the place that was just handed over."""
        if turn.done() and not turn.cancelled():
            self.leave()
            return
        try:
            self._waiting.remove(turn)
        except ValueError:
            return

    def leave(self) -> None:
        """Give a place up: to the first who waits, if any."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1
