"""Watches the engines: `GET /health` on each at an interval, and the markers of those that drain."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from time import monotonic

from citadel_llm.api.upstream.connection import BadResponse, Connection, ConnectionLost
from citadel_llm.api.upstream.engine import Engine
from citadel_llm.api.upstream.model import ServedModel
from citadel_llm.utils.config import Probe

__all__ = ["Prober"]

_MAX_BODY = 1 << 16

type OnChange = Callable[[ServedModel, Engine], None]


class Prober:
    """One task an engine. `on_change` is called after each change of an engine's state."""

    def __init__(self, models: Iterable[ServedModel], config: Probe, on_change: OnChange) -> None:
        self._config = config
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
        """Take note of which engines drain. Cheap: one look at a file in memory for each engine."""
        for model, engine in self._watched:
            marker = engine.upstream.draining_marker
            draining = marker is not None and os.path.exists(marker)
            if draining != engine.draining:
                engine.draining = draining
                self._on_change(model, engine)

    async def probe(self, model: ServedModel, engine: Engine) -> None:
        """Ask the engine once how it is, and note the answer."""
        began = monotonic()
        allowed = self._config.failures
        try:
            async with asyncio.timeout(self._config.timeout_s):
                status = await self._ask(engine)
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

    async def _ask(self, engine: Engine) -> int:
        connection = self._connections.pop(engine, None)
        if connection is None or connection.closed:
            connection = await engine.open()
        self._connections[engine] = connection
        connection.send(b"GET /health HTTP/1.1\r\nhost: " + engine.host_header + b"\r\n\r\n", b"")
        status, _ = await connection.head()
        await connection.read_whole(_MAX_BODY)
        if connection.reusable:
            connection.busy = False
        else:
            self._drop(engine)
        return status

    def _drop(self, engine: Engine) -> None:
        connection = self._connections.pop(engine, None)
        if connection is not None:
            connection.close()

    async def _watch(self, model: ServedModel, engine: Engine) -> None:
        while True:
            await asyncio.sleep(self._config.interval_s)
            await self.probe(model, engine)
