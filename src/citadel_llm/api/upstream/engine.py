"""What this instance knows of one engine, a model's replica: its connections, its state, its load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from random import Random
from time import monotonic

from citadel_llm.api.routing.balance import replica_seed
from citadel_llm.api.routing.breaker import BreakerState, CircuitBreaker
from citadel_llm.api.routing.outlier import Outlier
from citadel_llm.api.upstream.connection import Connection, connect
from citadel_llm.utils.config import Config, Upstream

__all__ = ["Engine", "State"]

_MAX_IDLE = 256
# Below the five seconds after which vLLM's server closes idle connections.
_IDLE_S = 4.0
# A replica that starts slowly has at least this weight, so that it gets anything at all.
_LEAST_WEIGHT = 0.1


class State(StrEnum):
    """An engine's, or a model's, state as callers see it."""

    UP = "up"
    STARTING = "starting"  # has not answered yet since this instance began to watch it
    DOWN = "down"
    DRAINING = "draining"  # finishes what it has; gets nothing new


class Engine:
    """One upstream. Whoever sends a request there counts it in `in_flight`, and tells its outcome to the model."""

    def __init__(
        self,
        upstream: Upstream,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        *,
        clock: Callable[[], float] = monotonic,
        rng: Random,
    ) -> None:
        self.upstream = upstream
        self.url = f"{upstream.host}:{upstream.port}"
        host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
        self.host_header = f"{host}:{upstream.port}".encode("ascii")
        self.seed = replica_seed(self.url)
        self.in_flight = 0
        self.waiting = 0  # requests inside the engine that it has not begun, from every gateway, as it last said
        self.weight = 1.0  # below 1 while it starts slowly
        self.breaker = CircuitBreaker(config.breaker, clock, rng)
        self.outlier = Outlier(config.ejection, clock)
        self.reachable = False
        self.ever_up = False
        self.draining = False
        self.drained = False  # it drains for an operator said so; its unit may have said so as well
        self.failures = 0
        self.latency_s: float | None = None
        self.last_error: str | None = None
        self._slow_start_s = config.balance.slow_start_s
        self._back_at: float | None = None
        self._was_away = False
        self._clock = clock
        self._loop = loop
        self._idle: list[Connection] = []

    # State

    @property
    def available(self) -> bool:
        """Whether new requests may be sent here, as far as this engine alone is concerned."""
        return self.reachable and not self.draining and self.breaker.admits

    @property
    def state(self) -> State:
        """The state in one word."""
        if self.draining:
            return State.DRAINING
        if self.reachable:
            return State.UP if self.breaker.state is not BreakerState.OPEN else State.DOWN
        return State.DOWN if self.ever_up else State.STARTING

    def seen_up(self, latency_s: float | None = None) -> bool:
        """The engine answered. True if that is news."""
        self.failures = 0
        self.last_error = None
        if latency_s is not None:
            self.latency_s = latency_s
        if self.reachable:
            return False
        self.reachable = self.ever_up = True
        if self._was_away:
            self.breaker.reset()
            self.outlier.end()
            self.start_slowly()
        return True

    def seen_down(self, error: str, allowed_failures: int = 1) -> bool:
        """The engine did not answer. True if it now counts as down and did not before."""
        self.failures += 1
        self.last_error = error
        self._was_away = True
        if not self.reachable or self.failures < allowed_failures:
            return False
        self.reachable = False
        self.latency_s = None
        self.waiting = 0
        self.close_idle()
        return True

    def start_slowly(self) -> None:
        """The engine is back after an absence: its caches are cold, so its share grows from now on."""
        if self._slow_start_s > 0:
            self._back_at = self._clock()
            self.weight = _LEAST_WEIGHT

    def tick(self) -> bool:
        """Called by the sweeper: what time alone changes. True where the engine may be used again."""
        self.breaker.tick()
        back = self.outlier.tick()
        if back:
            self.start_slowly()
        if self._back_at is not None:
            self.weight = min(1.0, max(_LEAST_WEIGHT, (self._clock() - self._back_at) / self._slow_start_s))
            if self.weight >= 1.0:
                self._back_at = None
        return back

    # Connections

    def pooled(self) -> Connection | None:
        """An idle connection that is still open, the most recently used first."""
        idle = self._idle
        oldest = monotonic() - _IDLE_S
        while idle:
            connection = idle.pop()
            if not connection.closed:
                if connection.idle_since >= oldest:
                    return connection
                connection.close()
        return None

    async def open(self) -> Connection:
        """A new connection. Raises OSError."""
        return await connect(self._loop, self.upstream.host, self.upstream.port)

    def give_back(self, connection: Connection) -> None:
        """Keep the connection for the next request if its exchange ended in order, else close it."""
        if self.reachable and len(self._idle) < _MAX_IDLE and connection.rest():
            self._idle.append(connection)
        else:
            connection.close()

    def close_idle(self) -> None:
        """Close every idle connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
