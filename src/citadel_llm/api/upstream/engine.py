"""What this instance knows of one engine: its pool of connections, its state, its load."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from time import monotonic

from citadel_llm.api.upstream.connection import Connection, connect
from citadel_llm.utils.config import Upstream

__all__ = ["Engine", "State"]

_MAX_IDLE = 256
# Below the five seconds after which vLLM's server closes idle connections.
_IDLE_S = 4.0


class State(StrEnum):
    """An engine's, or a model's, state as callers see it."""

    UP = "up"
    STARTING = "starting"  # has not answered yet since this instance began to watch it
    DOWN = "down"
    DRAINING = "draining"  # finishes what it has; gets nothing new


class Engine:
    """One upstream. `pick` and `release` bracket each use, so that `in_flight` is exact."""

    def __init__(self, upstream: Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self.upstream = upstream
        self.url = f"{upstream.host}:{upstream.port}"
        host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
        self.host_header = f"{host}:{upstream.port}".encode("ascii")
        self.in_flight = 0
        self.reachable = False
        self.ever_up = False
        self.draining = False
        self.failures = 0
        self.latency_s: float | None = None
        self.last_error: str | None = None
        self.changed_at = monotonic()
        self._loop = loop
        self._idle: list[Connection] = []

    # State

    @property
    def available(self) -> bool:
        """Whether new requests may be sent here."""
        return self.reachable and not self.draining

    @property
    def state(self) -> State:
        """The state in one word."""
        if self.draining:
            return State.DRAINING
        if self.reachable:
            return State.UP
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
        self.changed_at = monotonic()
        return True

    def seen_down(self, error: str, allowed_failures: int = 1) -> bool:
        """The engine did not answer. True if it now counts as down and did not before."""
        self.failures += 1
        self.last_error = error
        if not self.reachable or self.failures < allowed_failures:
            return False
        self.reachable = False
        self.latency_s = None
        self.changed_at = monotonic()
        self.close_idle()
        return True

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
        if connection.reusable and len(self._idle) < _MAX_IDLE and self.reachable:
            connection.busy = False
            connection.idle_since = monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def close_idle(self) -> None:
        """Close every idle connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
