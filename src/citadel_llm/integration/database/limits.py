"""Bounds in each minute and at once: `llm.limits`. Triggers there see to it that every gateway hears of a change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection

__all__ = ["drop_limits", "find_limits", "limits_page", "put_limits", "rows"]

type Row = dict[str, Any]

_LIMITS = """
select scope, subject, requests_per_minute, tokens_per_minute, concurrent_requests,
       cast(extract(epoch from updated_at) as bigint) as updated_at
from llm.limits
"""
_PAGE = _LIMITS + "where (scope, subject) > (%(scope)s, %(subject)s) order by scope, subject limit %(limit)s"
_FIND = _LIMITS + "where scope = %(scope)s and subject = %(subject)s"
_PUT = """
insert into llm.limits (scope, subject, requests_per_minute, tokens_per_minute, concurrent_requests)
values (%(scope)s, %(subject)s, %(requests_per_minute)s, %(tokens_per_minute)s, %(concurrent_requests)s)
on conflict (scope, subject) do update set
  requests_per_minute = excluded.requests_per_minute, tokens_per_minute = excluded.tokens_per_minute,
  concurrent_requests = excluded.concurrent_requests, updated_at = now()
"""
_DROP = "delete from llm.limits where scope = %(scope)s and subject = %(subject)s returning subject"


async def rows(connection: Connection, statement: str, **values: Any) -> list[Row]:
    """What a statement gives, each row by its columns' names."""
    from psycopg.rows import dict_row  # noqa: PLC0415 — heavy: only where there is a database

    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(ON_PRIMARY + statement, values)
        return await cursor.fetchall() if cursor.description else []


async def limits_page(connection: Connection, after: tuple[str, str], limit: int) -> list[Row]:
    """Those that follow `after`, by scope and subject."""
    return await rows(connection, _PAGE, scope=after[0], subject=after[1], limit=limit)


async def find_limits(connection: Connection, scope: str, subject: str) -> Row | None:
    """A subject's, if it has any of its own."""
    found = await rows(connection, _FIND, scope=scope, subject=subject)
    return found[0] if found else None


async def put_limits(connection: Connection, scope: str, subject: str, bounds: Mapping[str, int | None]) -> None:
    """Set all three of them."""
    await rows(connection, _PUT, scope=scope, subject=subject, **bounds)


async def drop_limits(connection: Connection, scope: str, subject: str) -> bool:
    """Whether there were any."""
    return bool(await rows(connection, _DROP, scope=scope, subject=subject))
