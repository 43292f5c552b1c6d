"""A circuit breaker: closed while a replica answers, open while it does not, half open to try it again.

    ticket = breaker.begin()          # None: send nothing there now
    ...
    breaker.finish(ticket, failed=True)

Closed, it looks at the last `window` outcomes and opens at `failure_share` of failures among at
least `min_requests`. Open, it refuses for a pause that doubles each time, up to `max_open_s`, less
up to a fifth at random so that instances do not try again in step. Half open, it lets `trials`
requests through at once; as many good answers close it, one failure opens it again.

A ticket is good for the state it was given in: what began before a change says nothing after it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from random import Random

from citadel_llm.utils.config import Breaker

__all__ = ["CLOSED", "BreakerState", "CircuitBreaker"]

_JITTER = 0.2


class BreakerState(IntEnum):
    """The values are those of the metric `citadel_gateway_breaker_state`."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


# An enumeration's members are found through its metaclass: slowly.
CLOSED, HALF_OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN


class CircuitBreaker:
    """One replica's breaker. `clock` counts seconds; `changed` is called after each change of state."""

    __slots__ = (
        "_bits",
        "_clock",
        "_closed_at",
        "_config",
        "_good",
        "_mask",
        "_opened",
        "_rng",
        "_seen",
        "_trying",
        "calm",
        "changed",
        "epoch",
        "retry_at",
        "state",
    )

    def __init__(
        self, config: Breaker, clock: Callable[[], float], rng: Random, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._config = config
        self._clock = clock
        self._rng = rng
        self._mask = (1 << config.window) - 1
        self._opened = 0  # how many times in a row
        self._closed_at = clock()
        self.changed = changed
        self.epoch = 0
        self.retry_at = 0.0  # when an open breaker will be half open
        self.state = BreakerState.CLOSED
        self._bits = self._seen = self._good = self._trying = 0
        self.calm = False  # closed, and all of its window was good: one more good outcome changes nothing

    @property
    def admits(self) -> bool:
        """Whether `begin` would give a ticket now."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.HALF_OPEN:
            return self._trying < self._config.trials
        return self._clock() >= self.retry_at

    def begin(self) -> int | None:
        """A ticket for one request, or None where the replica gets none now."""
        if self.state is BreakerState.CLOSED:
            return self.epoch
        self.tick()
        if self.state is BreakerState.OPEN or self._trying >= self._config.trials:
            return None
        self._trying += 1
        if self._trying == self._config.trials:
            self.changed()
        return self.epoch

    def finish(self, ticket: int, failed: bool | None) -> None:
        """The outcome of a request: failed, good, or None where it says nothing of the replica."""
        if ticket != self.epoch:
            return
        if self.state is HALF_OPEN:
            self._trying -= 1
            self._tried(failed)
        elif failed or (failed is False and not self.calm):
            self._note(failed)

    def broke(self, ticket: int) -> None:
        """A failure after the good outcome was told already: an answer that broke off."""
        if ticket != self.epoch:
            return
        if self.state is BreakerState.HALF_OPEN:
            self._open()
        else:
            self._note(True)

    def tick(self) -> None:
        """An open breaker whose pause is over becomes half open."""
        if self.state is BreakerState.OPEN and self._clock() >= self.retry_at:
            self._good = self._trying = 0
            self._become(BreakerState.HALF_OPEN)

    def reset(self) -> None:
        """Close, and forget: the replica is a new process."""
        self._opened = 0
        if self.state is not BreakerState.CLOSED:
            self._close()
        self._bits = self._seen = 0
        self.calm = False

    def _note(self, failed: bool) -> None:
        config = self._config
        self._bits = ((self._bits << 1) | failed) & self._mask
        if self._seen < config.window:
            self._seen += 1
        self.calm = not self._bits and self._seen >= config.window
        enough = failed and self._seen >= config.min_requests
        if enough and self._bits.bit_count() >= config.failure_share * self._seen:
            self._open()

    def _tried(self, failed: bool | None) -> None:
        if failed:
            self._open()
        elif failed is False and self._good + 1 >= self._config.trials:
            self._close()
        else:
            self._good += failed is False
            self.changed()

    def _open(self) -> None:
        now = self._clock()
        config = self._config
        if self.state is BreakerState.CLOSED and now - self._closed_at > config.max_open_s:
            self._opened = 0
        pause_s = min(config.max_open_s, config.open_s * 2.0 ** min(self._opened, 32))
        self._opened += 1
        self.retry_at = now + pause_s * (1 - _JITTER * self._rng.random())
        self._become(BreakerState.OPEN)

    def _close(self) -> None:
        self._closed_at = self._clock()
        self._bits = self._seen = 0
        self._become(BreakerState.CLOSED)

    def _become(self, state: BreakerState) -> None:
        self.state = state
        self.calm = False
        self.epoch += 1
        self.changed()
