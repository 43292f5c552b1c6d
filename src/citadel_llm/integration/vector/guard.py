"""Calls to Qdrant in bounded time: a deadline, retries within it, and a breaker before them.

Every failure comes out as VectorUnavailable. Nothing has to be restarted when Qdrant is back: an open breaker lets
a trial through after a pause of seconds, and a health check that succeeds closes it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from time import monotonic, perf_counter
from typing import Literal

from citadel_llm.api.routing.breaker import BreakerState, CircuitBreaker
from citadel_llm.integration.vector.errors import VectorError, VectorUnavailable
from citadel_llm.integration.vector.metrics import Operation, VectorMetrics
from citadel_llm.integration.vector.transport import Broken, Denied, Transport, load_key, make_transport
from citadel_llm.utils.config import Vector

__all__ = ["Guard"]

_BASE_S, _MAX_S = 0.02, 0.2  # the pause before a further attempt: at random up to this, doubled each time
_PING_S = 0.5
_SILENCE_S = 1.0  # after so long without an answer, Qdrant is asked for its health before it is given anything to write

type Call[T] = Callable[[Transport], Awaitable[T]]


class Guard:
    """One for a process. `changed` hears when Qdrant begins or ceases to answer, and why."""

    def __init__(
        self, config: Vector, metrics: VectorMetrics, changed: Callable[[bool, str], None], rng: Random | None = None
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._changed = changed
        self._rng = rng or Random()  # noqa: S311 — pauses, not secrets
        self._breaker = CircuitBreaker(config.breaker, monotonic, self._rng, self._breaker_changed)
        self._opening = asyncio.Lock()
        self._transport: Transport | None = None
        self._key = ""
        self._heard_at = 0.0
        self.up: bool | None = None  # None: not asked yet
        self.reason = ""

    @property
    def breaker(self) -> BreakerState:
        """Whether calls are let through."""
        return self._breaker.state

    async def read[T](self, operation: Operation, call: Call[T]) -> T:
        """The answer within `timeout_s`. Raises VectorUnavailable or what Qdrant says of the request."""
        return await self._run(operation, call, self._config.timeout_s)

    async def write[T](self, operation: Operation, call: Call[T]) -> T:
        """The same within `write_timeout_s`; that Qdrant is away still shows as fast. `call` may be made twice."""
        if monotonic() - self._heard_at > _SILENCE_S:
            await self._run("ping", lambda transport: transport.ping(), min(_PING_S, self._config.timeout_s))
        return await self._run(operation, call, self._config.write_timeout_s)

    async def ping(self) -> str:
        """Qdrant's version, whatever the breaker says. Raises VectorUnavailable."""
        began = perf_counter()
        try:
            async with asyncio.timeout(_PING_S):
                version = await self._attempt(lambda transport: transport.ping())
        except (Broken, Denied, TimeoutError) as error:
            self._noted("ping", "unavailable", began)
            raise self._lost(error) from error
        self._noted("ping", "ok", began)
        self._answered()
        self._breaker.reset()
        return version

    async def close(self) -> None:
        """Close what is open."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def _run[T](self, operation: Operation, call: Call[T], timeout_s: float) -> T:
        ticket = self._breaker.begin()
        if ticket is None:
            self._metrics.called(operation, "rejected", 0.0)
            wait_s = max(0.1, self._breaker.retry_at - monotonic())
            raise VectorUnavailable(f"Qdrant did not answer lately: {self.reason}", wait_s)
        began = perf_counter()
        failed: bool | None = None
        try:
            async with asyncio.timeout(timeout_s):
                result = await self._retried(call)
        except (Broken, Denied, TimeoutError) as error:
            failed = True
            self._noted(operation, "unavailable", began)
            raise self._lost(error) from error
        except VectorError as error:
            failed = isinstance(error, VectorUnavailable)  # else it answered
            self._noted(operation, "unavailable" if failed else "refused", began)
            if not failed:
                self._answered()
            raise
        else:
            failed = False
            self._noted(operation, "ok", began)
            self._answered()
            return result
        finally:
            self._breaker.finish(ticket, failed)

    async def _retried[T](self, call: Call[T]) -> T:
        attempt = 1
        while True:
            try:
                return await self._attempt(call)
            except Broken:
                if attempt >= self._config.attempts:
                    raise
            await asyncio.sleep(self._rng.uniform(0, min(_MAX_S, _BASE_S * 2**attempt)))
            attempt += 1
            self._metrics.retried()

    async def _attempt[T](self, call: Call[T]) -> T:
        transport = await self._open()
        try:
            return await call(transport)
        except Denied:
            if not await self._another_key():
                raise
        return await call(await self._open())

    async def _open(self) -> Transport:
        if self._transport is None:
            async with self._opening:
                if self._transport is None:
                    # Its import takes a second where nobody did it before (`prepare`), and reads files.
                    make = await asyncio.to_thread(make_transport, self._config)
                    self._key = await asyncio.to_thread(load_key, Path(self._config.credentials_file))
                    self._transport = make(self._key)
        return self._transport

    async def _another_key(self) -> bool:
        """Whether the file has another key by now; what was open with the old one is then given up."""
        used, key = self._key, await asyncio.to_thread(load_key, Path(self._config.credentials_file))
        if key == used:
            return False
        await self.close()
        return True

    async def prepare(self) -> None:
        """Load what the first call needs, so that it is not late, and see whether Qdrant answers."""
        try:
            await self._open()
            await self.ping()
        except VectorUnavailable as error:
            if self.up is None:
                self.up, self.reason = False, str(error)
                self._changed(False, self.reason)

    def _noted(self, operation: Operation, outcome: Literal["ok", "refused", "unavailable"], began: float) -> None:
        self._metrics.called(operation, outcome, perf_counter() - began)

    def _answered(self) -> None:
        self._heard_at = monotonic()
        if self.up is not True:
            self.up, self.reason = True, ""
            self._changed(True, "")

    def _lost(self, error: BaseException) -> VectorUnavailable:
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        self.reason = reason
        if self.up is not False:
            self.up = False
            self._changed(False, reason)
        return VectorUnavailable(f"Qdrant is not available: {reason}", self._config.breaker.open_s)

    def _breaker_changed(self) -> None:
        self._metrics.breaker(int(self._breaker.state))
