"""Writes down which models there are, and what this host's engines run, in the database.

registrar = Registrar(models, database, log.event, host="hx-llm-server-01", release="0.1.0", timeout_s=5.0)
registrar.start()
registrar.wake()            # the database, or an engine, is there again
await registrar.stop()

An engine is asked itself, each time that it has come up: what runs counts, not what was meant to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from citadel_llm.api.upstream.connection import BadResponse, ConnectionLost
from citadel_llm.api.upstream.engine import Engine
from citadel_llm.api.upstream.model import ServedModel

if TYPE_CHECKING:
    from citadel_llm.integration.database.deployments import Served
    from citadel_llm.integration.database.pool import Database

__all__ = ["Registrar"]

_HERE = frozenset({"127.0.0.1", "::1", "localhost"})
_AGAIN_S = 30.0  # after an engine did not say what it runs
_MAX_BODY = 1 << 16
_MAX_TEXT = 256


class _Version(msgspec.Struct):
    version: str


class _Card(msgspec.Struct):
    id: str
    root: str


class _Cards(msgspec.Struct):
    data: list[_Card]


class Registrar:
    """Of one instance; the others of the host find that all is written down."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        database: Database,
        tell: Callable[..., None],
        *,
        host: str,
        release: str,
        timeout_s: float,
    ) -> None:
        """`timeout_s` is for an engine to answer."""
        self._models = models
        self._database = database
        self._tell = tell
        self._host = host
        self._release = release
        self._timeout_s = timeout_s
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._written: list[Served] | None = None  # of those that are up, what the database has

    def start(self) -> None:
        """Begin; the first time is when the database is there."""
        self._task = asyncio.create_task(self._run(), name="registrar")

    def wake(self) -> None:
        """Something has come up: look again."""
        self._wake.set()

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        import psycopg  # noqa: PLC0415 — where there is no database, it is not installed either

        from citadel_llm.integration.database.pool import DatabaseUnavailable  # noqa: PLC0415

        failed = ""
        whole = True
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if whole else _AGAIN_S):
                    await self._wake.wait()
            self._wake.clear()
            if not self._database.up:
                whole = True  # its coming back wakes
                continue
            try:
                whole = await self._record()
            except (DatabaseUnavailable, psycopg.Error) as failure:
                whole = False
                said = " ".join(str(failure).split())
                if said != failed:
                    self._tell("warning", "deployments_not_recorded", error=said)
                failed = said
            else:
                failed = ""

    async def _record(self) -> bool:
        """Whether every engine that is up has said what it runs."""
        from citadel_llm.integration.database import deployments  # noqa: PLC0415

        models = {name: model for name, model in self._models.items() if deployments.is_recorded(name, model.config)}
        here = [
            (model, engine) for model in models.values() for engine in model.engines if engine.upstream.host in _HERE
        ]
        asked = [(model, engine) for model, engine in here if engine.reachable]
        answers = await asyncio.gather(*(self._ask(model, engine) for model, engine in asked))
        served = [answer for answer in answers if answer is not None]
        if served != self._written:
            configured = {name: model.config for name, model in models.items()}
            ports = {engine.upstream.port for _, engine in here}
            async with self._database.connection() as connection:
                changed = await deployments.record(connection, configured, self._host, ports, served, self._release)
            self._written = served
            if changed:
                self._tell("info", "deployments_recorded", rows=changed)
        return len(served) == len(asked)

    async def _ask(self, model: ServedModel, engine: Engine) -> Served | None:
        from citadel_llm.integration.database.deployments import Served  # noqa: PLC0415

        try:
            async with asyncio.timeout(self._timeout_s):
                version = msgspec.json.decode(await self._get(engine, b"/version"), type=_Version).version
                cards = msgspec.json.decode(await self._get(engine, b"/v1/models"), type=_Cards).data
        except (TimeoutError, OSError, BadResponse, ConnectionLost, ValueError):
            return None
        root = next((card.root for card in cards if card.id == model.name), "")
        return Served(model.name, engine.upstream.port, _weights(root)[:_MAX_TEXT], version[:_MAX_TEXT])

    async def _get(self, engine: Engine, path: bytes) -> bytes:
        connection = await engine.open()
        try:
            status, body = await connection.get(engine.host_header, path, _MAX_BODY)
        finally:
            connection.close()
        if status != 200:
            raise BadResponse(f"GET {path.decode()} answered with status {status}")
        return body


def _weights(root: str) -> str:
    """The version in force, where the engine was given a link to it."""
    return Path(os.path.realpath(root)).name if root.startswith("/") else root
