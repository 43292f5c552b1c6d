"""Admission to a model: at most so many requests at once, a bounded and fair queue, and refusal without delay.

    turn = admission.enter("alice", patience_s=30.0)    # raises Refused
    if turn is not None:
        await turn                                      # else: admission.forget("alice", turn)
    ...
    admission.leave(held_s)

How long a request holds its place is a moving average; by Little's law the model then serves
`places` / average requests a second, which gives the expected wait of a newcomer and the Retry-After
of one that is refused.
"""

from __future__ import annotations

import asyncio
import math

from citadel_llm.api.routing.fair import FairQueue, QueueFull
from citadel_llm.utils.outcomes import NotAdmitted

__all__ = ["Admission", "Refused", "cost_of"]

_MAX_RETRY_AFTER_S = 3600
_WAIT_FLOOR_S = 0.05  # a wait that nobody notices is nobody's reason to be refused
_COST_BYTES = 4096
_HELD_WEIGHT = 0.1
_MAX_COST = 64


class Refused(Exception):
    """No place, and none in time."""

    def __init__(self, reason: NotAdmitted, retry_after_s: int, expected_wait_s: float | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.expected_wait_s = expected_wait_s


def cost_of(body_bytes: int) -> int:
    """What a request counts in the fair queue: 1, and 1 more for each 4 KiB of its body, up to 64."""
    return min(_MAX_COST, 1 + body_bytes // _COST_BYTES)


class Admission:
    """Bounds the requests of one model in this instance."""

    __slots__ = ("_held_s", "_loop", "_queue", "inside", "places", "retry_after_s", "wait_factor")

    def __init__(
        self,
        places: int,
        queue: int,
        per_key: int | None,
        retry_after_s: int,
        loop: asyncio.AbstractEventLoop,
        wait_factor: float = math.inf,
    ) -> None:
        """`retry_after_s` is told where nothing was measured yet.

        `wait_factor`: who would wait more than so many times as long as requests hold their places is refused, so
        that those who are let in keep their latency.
        """
        self.places = places
        self.retry_after_s = retry_after_s
        self.wait_factor = wait_factor
        self.inside = 0
        self._loop = loop
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(queue, per_key)
        self._held_s: float | None = None  # a place, a moving average

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def rate_per_s(self) -> float | None:
        """Requests that the model serves in a second with all places taken; None before one was served."""
        held = self._held_s
        return None if held is None else self.places / max(held, 1e-6)

    def expected_wait_s(self, key: str) -> float:
        """How long a request of `key` that came now would wait; 0 where nothing is known."""
        if self.inside < self.places:
            return 0.0
        rate = self.rate_per_s
        return 0.0 if rate is None else (self._queue.ahead(key) + 1) / rate

    @property
    def full(self) -> bool:
        """Whether a newcomer would find neither a place nor room in the queue."""
        return self.inside >= self.places and len(self._queue) >= self._queue.bound

    def drained_in_s(self) -> int:
        """Whole seconds, at least 1, until all that wait now will have been served."""
        rate = self.rate_per_s
        if rate is None:
            return self.retry_after_s
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil((len(self._queue) + 1) / rate)))

    def enter(self, key: str, patience_s: float, cost: float = 1.0) -> asyncio.Future[None] | None:
        """Take a place (None), or a turn in the queue: done when a place has been handed over. Raises Refused."""
        if self.inside < self.places:
            self.inside += 1
            return None
        try:
            self._queue.room(key)
        except QueueFull as full:
            raise Refused("key_queue_full" if full.of_key else "queue_full", self.drained_in_s(), None) from None
        wait_s = self.expected_wait_s(key)
        held_s = self._held_s
        if held_s is not None:
            patience_s = min(patience_s, max(_WAIT_FLOOR_S, self.wait_factor * held_s))
        if wait_s > patience_s:
            raise Refused("wait_too_long", self.drained_in_s(), wait_s)
        turn = self._loop.create_future()
        self._queue.push(key, turn, cost)
        return turn

    def forget(self, key: str, turn: asyncio.Future[None]) -> None:
        """Leave the queue, or the place that was just handed over."""
        if not self._queue.remove(key, turn) and turn.done() and not turn.cancelled():
            self._hand_over()

    def leave(self, held_s: float | None) -> None:
        """Give a place up, to whoever is next. `held_s`: for how long it was held; None where that measures nothing."""
        if held_s is not None:
            mean = self._held_s  # `latency.moved`, without a call
            self._held_s = held_s if mean is None else mean + (held_s - mean) * _HELD_WEIGHT
        if self.inside < self.places:  # then nobody waits
            self.inside -= 1
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        while (turn := self._queue.pop()) is not None:
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1
