"""Keeps the directory as the database has it, told by Redis, and without Redis by asking once a second.

    keeper = Keeper(database, redis, snapshot=path, refresh_s=1.0, on_loaded=take, log=log)
    await keeper.start()              # the first directory, if there is one to be had within a moment
    keeper.directory                  # None: neither the database nor a snapshot was there yet
    await keeper.changed()            # after a change of one's own: here at once, and everywhere else

While the database is away the directory stays as it is, and what expires in it does. The instances of a host share the
snapshot, so that one which cannot reach the database learns from it what another one learnt.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from citadel_llm.api.identity.directory import Directory, assemble
from citadel_llm.api.identity.snapshot import SnapshotError, read_snapshot, write_snapshot
from citadel_llm.integration.cache.connection import CacheUnavailable
from citadel_llm.integration.cache.pubsub import Listener
from citadel_llm.integration.database.identity import Identities, read_identities, read_version
from citadel_llm.utils.logging import LogWriter

if TYPE_CHECKING:
    from citadel_llm.integration.cache.redis import Redis
    from citadel_llm.integration.database.pool import Database

__all__ = ["CHANNEL", "Keeper"]

CHANNEL = "citadel:identity"
_START_S = 2.0  # a start waits so long for the database
_LOAD_S = 30.0  # a load may take so long


class Keeper:
    """One for an instance."""

    def __init__(
        self,
        database: Database,
        redis: Redis | None,
        *,
        snapshot: Path | None,
        refresh_s: float,
        on_loaded: Callable[[Directory], None],
        on_seen: Callable[[], None],
        log: LogWriter,
    ) -> None:
        """`on_loaded` gets each directory; `on_seen` hears each time that the database says it is still true."""
        self._database = database
        self._redis = redis
        self._listener = redis and Listener(
            redis.path, redis.load, redis.options, [CHANNEL], on_message=lambda _c, _m: self.wake(), on_gap=self.wake
        )
        self._snapshot = snapshot
        self._refresh_s = refresh_s
        self._on_loaded = on_loaded
        self._on_seen = on_seen
        self._log = log
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._first = asyncio.Event()  # the database was read once
        self._tasks: list[asyncio.Task[None]] = []
        self._trouble = ""  # the last one that was told
        self._kept_at = 0  # of the snapshot that was read, in ns: another one is newer
        self._unwritten: Identities | None = None
        self._write = asyncio.Event()
        self.directory: Directory | None = None

    async def start(self) -> None:
        """Read what is there, and keep it as it should be from now on."""
        await self._from_snapshot()
        if self._listener is not None:
            self._listener.start()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._keep())]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._first.wait(), _START_S)

    async def stop(self) -> None:
        """Leave it as it is."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._listener is not None:
            await self._listener.stop()
        await self._write_out()

    def wake(self) -> None:
        """Something may have changed: look now."""
        self._wake.set()

    async def changed(self) -> None:
        """Somebody has changed something, by this instance. Raises nothing: whoever missed it sees it in a second."""
        with contextlib.suppress(Exception):
            await self._look()
        if self._redis is not None:
            with contextlib.suppress(CacheUnavailable):
                await self._redis.call(b"PUBLISH", CHANNEL, b"changed")

    async def _follow(self) -> None:
        while True:
            self._wake.clear()
            began = monotonic()
            try:
                await self._look()
                self._trouble = ""
            except Exception as failure:  # whatever it is, the directory in force stays
                self._say(failure)
                await self._from_snapshot()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.01, self._refresh_s - (monotonic() - began)))

    def _say(self, failure: Exception) -> None:
        trouble = " ".join(f"{type(failure).__name__}: {failure}".split())[:512]
        if trouble != self._trouble:
            self._trouble = trouble
            self._log.event("warning", "identities_not_read", error=trouble, in_force=self.directory is not None)

    async def _look(self) -> None:
        """See whether the directory is still true; make another one where not."""
        async with self._lock:
            if self._first.is_set() and self.directory is not None:
                async with self._database.connection() as connection:
                    version = await read_version(connection)
                if version == self.directory.version:
                    self._on_seen()
                    return
            async with self._database.connection(_LOAD_S) as connection:
                identities = await read_identities(connection)
            await self._take(identities, "database")
            self._on_seen()
            self._first.set()
            self._unwritten = identities
            self._write.set()

    async def _take(self, identities: Identities, source: str) -> None:
        began = monotonic()
        self.directory = directory = await assemble(identities)
        self._on_loaded(directory)
        self._log.event(
            "info",
            "identities_read",
            source=source,
            version=directory.version,
            users=len(directory.users),
            keys=len(directory),
            took_ms=round((monotonic() - began) * 1e3, 1),
        )

    async def _from_snapshot(self) -> None:
        """Take what is on disk, where that is newer than what is held."""
        if self._snapshot is None:
            return
        try:
            kept_at = self._snapshot.stat().st_mtime_ns
            if kept_at == self._kept_at:
                return
            self._kept_at = kept_at
            identities = await asyncio.to_thread(read_snapshot, self._snapshot)
        except FileNotFoundError:
            return
        except (OSError, SnapshotError) as failure:
            self._log.event("warning", "snapshot_not_read", error=str(failure))
            return
        if identities is not None and (self.directory is None or identities.read_at > self.directory.read_at):
            await self._take(identities, "snapshot")

    async def _keep(self) -> None:
        """Write each directory down, as far as the disk keeps up."""
        while True:
            await self._write.wait()
            self._write.clear()
            await self._write_out()

    async def _write_out(self) -> None:
        identities, self._unwritten = self._unwritten, None
        if self._snapshot is None or identities is None:
            return
        try:
            await asyncio.to_thread(write_snapshot, self._snapshot, identities)
        except OSError as failure:
            self._log.event("warning", "snapshot_not_written", error=f"{self._snapshot}: {failure.strerror}")
