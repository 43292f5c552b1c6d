"""Connections for migrations and checks, whose every statement runs on the primary, whatever Pgpool-II balances."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy
from sqlalchemy.pool import NullPool

from citadel_llm.integration.database.target import ON_PRIMARY, DatabaseError, Target

__all__ = ["connected", "locked", "transaction"]

# Two deployers, one at a time: 'citadel' in ASCII, as a number.
LOCK = int.from_bytes(b"citadel")
CONNECT_TIMEOUT_S = 10
LOCK_WAIT_S = 300
# A change that cannot get at a table soon gives up, rather than holding up everyone behind it.
TABLE_WAIT_S = 10


@contextlib.contextmanager
def connected(target: Target) -> Iterator[sqlalchemy.Engine]:
    """An engine without a pool of its own; the database's refusals become `DatabaseError`."""
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        username=target.user,
        password=target.password,
        host=target.host,
        port=target.port,
        database=target.database,
    )
    options = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "citadel-database",
        "prepare_threshold": None,
        "keepalives_idle": 30,
    }
    engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=options)
    sqlalchemy.event.listen(engine, "before_cursor_execute", _on_primary, retval=True)
    try:
        yield engine
    except sqlalchemy.exc.DBAPIError as error:
        said = " ".join(str(error.orig).split()) or type(error.orig).__name__
        raise DatabaseError(f"{target.host}:{target.port}, {target.database} as {target.user}: {said}") from error
    finally:
        engine.dispose()


def _on_primary(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
) -> tuple[str, Any]:
    return ON_PRIMARY + statement, parameters


@contextlib.contextmanager
def transaction(engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
    """A transaction in which every name of ours is told with its schema, whatever the user's own search path."""
    with engine.begin() as connection:
        connection.exec_driver_sql("set local search_path = pg_catalog")
        connection.exec_driver_sql("set local jit = off")  # compiling takes longer than what catalogues are asked
        yield connection


@contextlib.contextmanager
def locked(engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
    """A transaction that no other deployer's runs beside; the lock ends with it, however it ends."""
    with transaction(engine) as connection:
        connection.exec_driver_sql(f"set local lock_timeout = '{LOCK_WAIT_S}s'")
        connection.exec_driver_sql(f"select pg_advisory_xact_lock({LOCK})")
        connection.exec_driver_sql(f"set local lock_timeout = '{TABLE_WAIT_S}s'")
        yield connection
