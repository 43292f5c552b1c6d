"""The gateway's connections to the database: a few, kept open, and never waited for while it is away.

    database = Database(target, options, on_change=tell)
    await database.start()
    async with database.connection() as connection:      # DatabaseUnavailable at once while it is away
        await connection.execute(...)

A transaction begins with its first statement and ends with the block: committed, or rolled back where it raises.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from citadel_llm.integration.database.target import SCHEMA, Target

__all__ = ["Database", "DatabaseUnavailable", "Options"]

type Connection = psycopg.AsyncConnection[TupleRow]


class DatabaseUnavailable(Exception):
    """The database is away, or too slow; nothing is wrong with what was asked of it."""


@dataclass(frozen=True, slots=True)
class Options:
    """How many connections, and how long to wait."""

    connections: int = 4
    timeout_s: float = 2.0  # for a connection, and for a statement
    retry_s: float = 0.5  # while it is away, it is looked for so often


class Database:
    """A pool, and whether there is anything behind it."""

    def __init__(self, target: Target, options: Options, *, on_change: Callable[[bool, str], None]) -> None:
        """`on_change` hears whether the database answers, and why not."""
        self._options = options
        self._on_change = on_change
        self._told: bool | None = None
        self._watch: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.up = False
        self.reason = "not connected yet"  # why it is not
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            kwargs={
                "host": target.host,
                "port": target.port,
                "dbname": target.database,
                "user": target.user,
                "password": target.password,
                "application_name": "citadel-gateway",
                "connect_timeout": max(1, round(options.timeout_s)),
                # A connection whose other end has gone without a word is noticed by the kernel.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 2,
                "tcp_user_timeout": round(options.timeout_s * 1000),
                # Pgpool-II's sessions may be another client's next: nothing is left behind in one.
                "prepare_threshold": None,
            },
            min_size=1,
            max_size=options.connections,
            open=False,
            timeout=options.timeout_s,
            max_waiting=256,
            max_idle=300.0,
            reconnect_timeout=options.retry_s,
            configure=self._configure,
            name="citadel-database",
        )

    async def start(self) -> None:
        """Begin to connect; whether that succeeds is seen later, or by the first use."""
        await self._pool.open(wait=False)
        self._watch = asyncio.create_task(self._keep_watching())

    async def stop(self) -> None:
        """Close what is open."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await self._pool.close(timeout=1.0)

    @contextlib.asynccontextmanager
    async def connection(self, timeout_s: float | None = None) -> AsyncIterator[Connection]:
        """A connection in a transaction. Raises DatabaseUnavailable; what the database refuses goes through."""
        if not self.up:
            raise DatabaseUnavailable(self.reason)
        async with self._lent(timeout_s) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _lent(self, timeout_s: float | None = None) -> AsyncIterator[Connection]:
        limit_s = self._options.timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s), self._pool.connection(timeout=limit_s) as connection:
                yield connection
        except TimeoutError as failure:
            raise self._lost(f"no answer within {limit_s:g} s", away=False) from failure
        except PoolTimeout as failure:
            raise self._lost(f"no connection within {limit_s:g} s", away=False) from failure
        except (psycopg.OperationalError, psycopg.InterfaceError) as failure:
            raise self._lost(" ".join(str(failure).split()) or type(failure).__name__, away=True) from failure

    def _lost(self, reason: str, *, away: bool) -> DatabaseUnavailable:
        if away:
            self._tell(False, reason)
        self._wake.set()
        return DatabaseUnavailable(reason)

    def _tell(self, up: bool, reason: str = "") -> None:
        self.up, self.reason = up, reason
        if self._told is not up:
            self._told = up
            self._on_change(up, reason)

    async def _keep_watching(self) -> None:
        """Ask once in a while; often while it is away, at once when somebody has found it so."""
        while True:
            try:
                async with self._lent() as connection:
                    await connection.execute("select 1")
                self._tell(True)
                pause_s = 5.0
            except DatabaseUnavailable as failure:
                self._tell(False, str(failure))
                pause_s = self._options.retry_s
                self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_s)
            self._wake.clear()

    async def _configure(self, connection: Connection) -> None:
        limit_ms = round(self._options.timeout_s * 1000)
        try:
            # A pooler takes connections while the database behind it is away, and then says nothing: without a limit,
            # the pool's workers would wait for that for ever, and nobody would connect again.
            async with asyncio.timeout(self._options.timeout_s):
                await connection.execute(f"set search_path = {SCHEMA}, pg_catalog")
                await connection.execute(f"set statement_timeout = {limit_ms}")
                await connection.execute("set idle_in_transaction_session_timeout = 10000")
                await connection.commit()
        except BaseException:
            await connection.close()
            raise
