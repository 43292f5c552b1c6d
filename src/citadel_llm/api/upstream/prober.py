"""Watches the engines: `GET /health` on each at an interval, and the markers of those that drain.

Where a model has several replicas, they are also asked how many requests wait inside them (`GET /metrics`,
the gauge `vllm:num_requests_waiting`); what comes of that decides about load only, never about health.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterable
from time import monotonic

from citadel_llm.api.upstream.connection import BadResponse, Connection, ConnectionLost
from citadel_llm.api.upstream.drains import Drains, drain_name
from citadel_llm.api.upstream.engine import Engine
from citadel_llm.api.upstream.model import ServedModel
from citadel_llm.utils.config import Probe

__all__ = ["Prober", "waiting_in"]

_MAX_BODY = 1 << 16
_MAX_METRICS_BYTES = 1 << 20
_WAITING = re.compile(rb"^vllm:num_requests_waiting(?:\{[^}\n]*\})? ([0-9.e+]+)", re.MULTILINE)

type OnChange = Callable[[ServedModel, Engine], None]


class Prober:
    """One task an engine. `on_change` is called after each change of an engine's state."""

    def __init__(self, models: Iterable[ServedModel], config: Probe, drains: Drains, on_change: OnChange) -> None:
        self._config = config
        self._drains = drains
        self._on_change = on_change
        self._watched = [(model, engine) for model in models for engine in model.engines]
        self._tasks: list[asyncio.Task[None]] = []
        self._connections: dict[Engine, Connection] = {}

    async def start(self) -> None:
        """Probe every engine once, then go on in the background."""
        self.look_at_markers()
        await asyncio.gather(*(self.probe(model, engine) for model, engine in self._watched))
        self._tasks = [
            asyncio.create_task(self._watch(model, engine), name=f"probe {engine.url}")
            for model, engine in self._watched
        ]

    async def stop(self) -> None:
        """End the background tasks and close their connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def look_at_markers(self) -> None:
        """Take note of which engines drain. Cheap: one look at a file in memory for each engine, and at a folder."""
        drained = self._drains.look()
        for model, engine in self._watched:
            marker = engine.upstream.draining_marker
            engine.drained = bool(drained) and drain_name(model.name, engine.url) in drained
            draining = engine.drained or (marker is not None and os.path.exists(marker))
            if draining != engine.draining:
                engine.draining = draining
                self._on_change(model, engine)

    async def probe(self, model: ServedModel, engine: Engine) -> None:
        """Ask the engine once how it is, and note the answer."""
        began = monotonic()
        allowed = self._config.failures
        try:
            async with asyncio.timeout(self._config.timeout_s):
                status, _ = await self._ask(engine, b"/health", _MAX_BODY)
        except TimeoutError:
            error = f"no answer to GET /health within {self._config.timeout_s:g} s"
        except OSError as failure:
            error, allowed = failure.strerror or str(failure), 1
        except (BadResponse, ConnectionLost) as failure:
            error = str(failure)
        else:
            if status == 200:
                if engine.seen_up(monotonic() - began):
                    self._on_change(model, engine)
                return
            error, allowed = f"GET /health answered with status {status}", 1
        self._drop(engine)
        if engine.seen_down(error, allowed):
            self._on_change(model, engine)

    async def ask_load(self, engine: Engine) -> None:
        """Ask the engine once how many requests wait inside it; without an answer it counts as none."""
        waiting = 0
        try:
            async with asyncio.timeout(self._config.timeout_s):
                status, body = await self._ask(engine, b"/metrics", _MAX_METRICS_BYTES)
            if status == 200:
                waiting = waiting_in(body)
        except (TimeoutError, OSError, BadResponse, ConnectionLost, ValueError):
            self._drop(engine)
        engine.waiting = waiting

    async def _ask(self, engine: Engine, path: bytes, limit: int) -> tuple[int, bytes]:
        connection = self._connections.pop(engine, None)
        if connection is None or connection.closed:
            connection = await engine.open()
        self._connections[engine] = connection
        status, body = await connection.get(engine.host_header, path, limit)
        if not connection.rest():
            self._drop(engine)
        return status, body

    def _drop(self, engine: Engine) -> None:
        connection = self._connections.pop(engine, None)
        if connection is not None:
            connection.close()

    async def _watch(self, model: ServedModel, engine: Engine) -> None:
        with_load = len(model.engines) > 1 and self._config.load == "metrics"
        while True:
            await asyncio.sleep(self._config.interval_s)
            await self.probe(model, engine)
            if with_load and engine.reachable:
                await self.ask_load(engine)


def waiting_in(metrics: bytes) -> int:
    """The requests that wait inside an engine, of all its parts, from the text of its `/metrics`."""
    return round(sum(float(value) for value in _WAITING.findall(metrics)))
