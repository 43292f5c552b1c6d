"""The gateway's connections to the database: a few, kept open, and never waited for while it is away.

    database = Database(target, options, on_change=tell)
    await database.start()
    async with database.connection() as connection:      # DatabaseUnavailable at once while it is away
        await connection.execute(...)

A transaction begins with its first statement and ends with the block: committed, or rolled back where it raises. Where
the connection is lost within the block, or just at its end, what was asked may have been done or not.

Whether the database is away is found out by one task alone, which asks it now and then, at once when a caller has had
trouble, and often while it is away. An answer that does not come is not waited for with a cancelled task, since the
driver would then ask the silent server to cancel, and wait again: the connection is hung up under it instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from citadel_llm.integration.database.target import ON_PRIMARY, SCHEMA, DatabaseUnavailable, Target
from citadel_llm.integration.metrics.database import DatabaseMetrics

__all__ = ["Database", "DatabaseUnavailable", "Options"]

type Connection = psycopg.AsyncConnection[TupleRow]

_LOOK_S = 5.0  # while it is there, it is asked so often
_MAX_WAITING = 256  # callers for a connection; more are told at once
_MAX_IDLE_S, _MAX_AGE_S = 300.0, 3600.0


@dataclass(frozen=True, slots=True)
class Options:
    """How many connections, and how long to wait."""

    connections: int = 4
    timeout_s: float = 2.0  # for a connection, and then for what is done with it
    retry_s: float = 0.5  # while it is away, it is looked for so often


@dataclass(slots=True)
class _Held:
    connection: Connection
    born_s: float
    idle_since_s: float = 0.0


class Database:
    """A few connections, and whether there is anything behind them."""

    def __init__(
        self,
        target: Target,
        options: Options,
        *,
        on_change: Callable[[bool, str], None],
        metrics: DatabaseMetrics | None = None,
    ) -> None:
        """`on_change` hears whether the database answers, and why not."""
        self._options = options
        self._metrics = metrics
        self._on_change = on_change
        self._told: bool | None = None
        self._watch: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(options.connections)
        self._waiting = 0
        self._idle: deque[_Held] = deque()  # the one used last is lent first
        self._lent: set[Connection] = set()
        self._answered_s = 0.0  # when something was last done with success
        self._stopped = False
        self.up = False
        self.reason = "not connected yet"  # why it is not
        self._parameters: dict[str, Any] = {
            "host": target.host,
            "port": target.port,
            "dbname": target.database,
            "user": target.user,
            "password": target.password,
            "application_name": "citadel-gateway",
            # A connection whose other end has gone without a word is noticed by the kernel.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "tcp_user_timeout": round(options.timeout_s * 1000),
            # Pgpool-II's sessions may be another client's next: nothing is left behind in one.
            "prepare_threshold": None,
        }

    async def start(self) -> None:
        """Begin to connect; whether that succeeds is seen later, or by the first use."""
        self._watch = asyncio.create_task(self._keep_watching(), name="database-watch")

    async def stop(self) -> None:
        """Close what is open; a block that is under way ends with DatabaseUnavailable."""
        self._stopped, self.up, self.reason = True, False, "the gateway is stopping"
        self._wake.set()
        for connection in self._lent:
            _hang_up(connection)
        await self._close_idle()
        if self._watch is not None:
            ended, _ = await asyncio.wait([self._watch], timeout=0.2)
            if not ended:
                self._watch.cancel()
                await asyncio.wait([self._watch])

    @contextlib.asynccontextmanager
    async def connection(self, timeout_s: float | None = None) -> AsyncIterator[Connection]:
        """A connection in a transaction. Raises DatabaseUnavailable; what the database refuses goes through.

        `timeout_s` bounds the wait for the connection and then, anew, the whole block; the configuration's by default.
        """
        metrics = self._metrics
        if not self.up:
            if metrics is not None:
                metrics.unavailable()
            raise DatabaseUnavailable(self.reason)
        limit_s = self._options.timeout_s if timeout_s is None else timeout_s
        began = time.monotonic()
        try:
            await self._take_slot(limit_s)
            try:
                async with self._lend(limit_s) as connection:
                    lent = time.monotonic()
                    if timeout_s is not None:
                        await connection.execute(f"set local statement_timeout = {_limit_ms(limit_s)}")
                    yield connection
                if metrics is not None:
                    metrics.used(lent - began, time.monotonic() - lent)
            finally:
                self._slots.release()
        except DatabaseUnavailable:
            self._wake.set()
            if metrics is not None:
                metrics.unavailable()
            raise

    async def _take_slot(self, limit_s: float) -> None:
        if self._waiting >= _MAX_WAITING:
            raise DatabaseUnavailable(f"{self._waiting} callers are waiting for a connection already")
        self._waiting += 1
        try:
            async with asyncio.timeout(limit_s):
                await self._slots.acquire()
        except TimeoutError:
            self._wake.set()
            raise DatabaseUnavailable(f"every connection was in use for {limit_s:g} s") from None
        finally:
            self._waiting -= 1

    @contextlib.asynccontextmanager
    async def _lend(self, limit_s: float) -> AsyncIterator[Connection]:
        held = self._idle_one() or await self._connect(limit_s)
        connection = held.connection
        self._lent.add(connection)
        try:
            with _bounded(connection, limit_s) as overdue:
                try:
                    yield connection
                    await connection.commit()
                except BaseException:
                    await _undo(connection)
                    raise
            self._answered_s = time.monotonic()
        except psycopg.Error as failure:
            if not overdue and _is_the_callers(failure, connection):
                raise
            raise DatabaseUnavailable(_said(failure, overdue)) from failure
        finally:
            self._lent.discard(connection)
            await self._take_back(held, usable=not overdue)

    def _idle_one(self) -> _Held | None:
        while self._idle:
            held = self._idle.pop()
            if _is_quiet(held.connection):
                return held
            held.connection.pgconn.finish()
        return None

    async def _connect(self, limit_s: float) -> _Held:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(limit_s):
                connection = await psycopg.AsyncConnection.connect(**self._parameters)
            with _bounded(connection, limit_s):
                await connection.execute(f"set search_path = {SCHEMA}, pg_catalog")
                await connection.execute(f"set statement_timeout = {_limit_ms(self._options.timeout_s)}")
                await connection.execute("set idle_in_transaction_session_timeout = 10000")
                await connection.commit()
        except TimeoutError:
            raise DatabaseUnavailable(f"no connection within {limit_s:g} s") from None
        except BaseException as failure:
            if connection is not None:
                connection.pgconn.finish()
            if isinstance(failure, psycopg.Error):
                raise DatabaseUnavailable(_said(failure)) from failure
            raise
        return _Held(connection, time.monotonic())

    async def _take_back(self, held: _Held, *, usable: bool) -> None:
        now = time.monotonic()
        idle = held.connection.pgconn.transaction_status == TransactionStatus.IDLE
        room = len(self._idle) < self._options.connections
        if usable and idle and room and not self._stopped and now - held.born_s < _MAX_AGE_S:
            held.idle_since_s = now
            self._idle.append(held)
        else:
            await held.connection.close()

    async def _close_idle(self, before_s: float = float("inf")) -> None:
        while self._idle and self._idle[0].idle_since_s < before_s:
            await self._idle.popleft().connection.close()

    async def _keep_watching(self) -> None:
        while not self._stopped:
            self._wake.clear()
            pause_s = await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _look(self) -> float:
        """Ask whether it is there; the pause until the next time, in seconds."""
        now = time.monotonic()
        if self.up and self._slots.locked() and now - self._answered_s < self._options.timeout_s / 2:
            return self._options.retry_s  # all are at work, and one has just been answered: that says it
        try:
            async with self._lend(self._options.timeout_s) as connection:
                await connection.execute(ON_PRIMARY + "select 1")
        except (DatabaseUnavailable, psycopg.Error, OSError) as failure:
            await self._close_idle()  # they lead to what has gone
            self._tell(False, _said(failure))
            return self._options.retry_s
        await self._close_idle(now - _MAX_IDLE_S)
        self._tell(True)
        return _LOOK_S

    def _tell(self, up: bool, reason: str = "") -> None:
        if self._stopped:
            return
        self.up, self.reason = up, reason
        if self._told is not up:
            self._told = up
            self._on_change(up, reason)


async def _undo(connection: Connection) -> None:
    """Roll back where that is possible, else close: nobody after this one finds a transaction of another's."""
    if connection.pgconn.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
        with contextlib.suppress(psycopg.Error):
            await connection.rollback()
            return
    await connection.close()


@contextlib.contextmanager
def _bounded(connection: Connection, limit_s: float) -> Iterator[list[float]]:
    """Whoever still waits for the connection's answers after `limit_s` finds it hung up; then the list holds that."""
    overdue: list[float] = []

    def end() -> None:
        overdue.append(limit_s)
        _hang_up(connection)

    timer = asyncio.get_running_loop().call_later(limit_s, end)
    try:
        yield overdue
    finally:
        timer.cancel()


def _hang_up(connection: Connection) -> None:
    """End the connection under whoever uses it, who sees it at once."""
    if connection.closed:
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def _is_quiet(connection: Connection) -> bool:
    """Whether an idle connection is as it was left: a server that has gone leaves its farewell to be read."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


def _is_the_callers(failure: psycopg.Error, connection: Connection) -> bool:
    """Whether it is about what was asked.

    It is not where the server is stopping, full, too slow or a standby by now, nor where Pgpool-II has lost the server
    behind it: it then says XX000, or breaks off in the middle of an answer, which the driver says without a code.
    """
    lost = isinstance(failure, psycopg.InternalError) and failure.sqlstate in {None, "XX000"}
    away = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction)
    return not (
        lost or isinstance(failure, away) or (isinstance(failure, psycopg.InterfaceError) and connection.closed)
    )


def _limit_ms(limit_s: float) -> int:
    """The server gives up a little before we do: then the connection can be kept."""
    return max(1, round(limit_s * 900))


def _said(failure: Exception, overdue: list[float] | None = None) -> str:
    if overdue:
        return f"no answer within {overdue[0]:g} s"
    return " ".join(str(failure).split()) or type(failure).__name__
