"""Second attempts: how many there may be, and how long to wait before one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from citadel_llm.utils.config import Retry

__all__ = ["RetryBudget", "backoff_s"]


def backoff_s(config: Retry, attempt: int, rng: Random) -> float:
    """Seconds before attempt `attempt` + 1, `attempt` having been made: full jitter over a doubling bound."""
    return rng.uniform(0.0, min(config.max_s, config.base_s * 2.0 ** min(attempt - 1, 32)))


class RetryBudget:
    """A token bucket that requests fill: retries cannot multiply the load of an outage.

    Over any stretch of time there are at most `burst` + `share` times its requests + `floor_per_s`
    times its seconds of them. It begins full.
    """

    __slots__ = ("_clock", "_filled_at", "_floor_per_s", "_share", "burst", "tokens")

    def __init__(self, share: float, floor_per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self._share = share
        self._floor_per_s = floor_per_s
        self._clock = clock
        self._filled_at = clock()
        self.burst = burst
        self.tokens = burst

    def deposit(self) -> None:
        """A request came: its first attempt, not a later one."""
        tokens = self.tokens + self._share
        self.tokens = tokens if tokens < self.burst else self.burst

    def withdraw(self) -> bool:
        """Take the right to one retry, if there is one."""
        now = self._clock()
        self.tokens = min(self.burst, self.tokens + self._floor_per_s * (now - self._filled_at))
        self._filled_at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
