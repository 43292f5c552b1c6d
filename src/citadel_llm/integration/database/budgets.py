"""Budgets, and what was spent of them: `llm.budgets`, `llm.usage_rollups`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from citadel_llm.integration.database.limits import rows
from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection, Database

__all__ = ["budgets_page", "drop_budget", "find_budget", "put_budget", "spent", "spent_by_host"]

type _Period = Literal["day", "month"]
type Row = dict[str, Any]

_BUDGETS = """
select scope, subject, period, max_requests, max_tokens, cast(extract(epoch from updated_at) as bigint) as updated_at
from llm.budgets
"""
_PAGE = _BUDGETS + (
    "where (scope, subject, period) > (%(scope)s, %(subject)s, %(period)s) "
    "order by scope, subject, period limit %(limit)s"
)
_ONE = "where scope = %(scope)s and subject = %(subject)s and period = %(period)s"
_FIND = _BUDGETS + _ONE
_PUT = """
insert into llm.budgets (scope, subject, period, max_requests, max_tokens)
values (%(scope)s, %(subject)s, %(period)s, %(max_requests)s, %(max_tokens)s)
on conflict (scope, subject, period) do update set
  max_requests = excluded.max_requests, max_tokens = excluded.max_tokens, updated_at = now()
"""
_DROP = f"delete from llm.budgets {_ONE} returning subject"  # noqa: S608 — constants

# Answered requests and their tokens; who was refused has spent nothing.
_SPENT = f"""{ON_PRIMARY}
select coalesce(sum(requests - failed_requests), 0)::bigint, coalesce(sum(prompt_tokens + completion_tokens), 0)::bigint
from llm.usage_rollups where period = %(period)s and period_start = to_timestamp(%(start)s)
"""  # noqa: S608 — constants
_OF = {
    "user": "and user_id = cast(%(subject)s as uuid)",
    "key": "and key_id = cast(%(subject)s as uuid)",
    "model": "and model = %(subject)s",
    "everyone": "",
}
# The same of each host, with whose name those of its chains begin. The log has no such sums: it may take too long.
_SPENT_BY_HOST = f"""{ON_PRIMARY}
select split_part(chain, ':', 1), count(*) filter (where outcome = 'ok'),
  coalesce(sum(coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0)), 0)::bigint
from llm.audit_log where at >= to_timestamp(%(start)s) and kind = 'request' and model is not null
"""  # noqa: S608 — constants
_PATIENCE_S = 0.1  # for them: no question of the product's takes longer
# The log has no index by key, but one by user.
_OF_ROWS = {
    **_OF,
    "key": _OF["key"] + " and user_id = (select user_id from llm.api_keys where id = cast(%(subject)s as uuid))",  # noqa: S608
}


async def budgets_page(connection: Connection, after: tuple[str, str, str], limit: int) -> list[Row]:
    """Those that follow `after`, by scope, subject and period."""
    return await rows(connection, _PAGE, scope=after[0], subject=after[1], period=after[2], limit=limit)


async def find_budget(connection: Connection, scope: str, subject: str, period: str) -> Row | None:
    """A subject's for that period, if it has one."""
    found = await rows(connection, _FIND, scope=scope, subject=subject, period=period)
    return found[0] if found else None


async def put_budget(
    connection: Connection, scope: str, subject: str, period: str, bounds: Mapping[str, int | None]
) -> None:
    """Set both of it."""
    await rows(connection, _PUT, scope=scope, subject=subject, period=period, **bounds)


async def drop_budget(connection: Connection, scope: str, subject: str, period: str) -> bool:
    """Whether there was one."""
    return bool(await rows(connection, _DROP, scope=scope, subject=subject, period=period))


async def spent(
    database: Database, scope: str, subject: str, starts: Mapping[_Period, int]
) -> dict[_Period, tuple[int, int]] | None:
    """Requests and tokens in each of the periods that began at `starts`, in seconds since 1970; None: not to be had."""
    if scope in {"user", "key"} and not _is_uuid(subject):  # a key of the file: nothing is summed up for it
        return dict.fromkeys(starts, (0, 0))
    found = await _summed_up(database, _SPENT + _OF[scope], subject, starts)
    return None if found is None else {period: (sums[0][0], sums[0][1]) for period, sums in found.items()}


async def spent_by_host(
    database: Database, scope: str, subject: str, starts: Mapping[_Period, int]
) -> dict[_Period, dict[str, tuple[int, int]]] | None:
    """The same by the names of the hosts, from the audit log; None: not to be had, or not in time."""
    statement = f"{_SPENT_BY_HOST}{_OF_ROWS[scope]} group by 1"
    found = await _summed_up(database, statement, subject, starts, _PATIENCE_S)
    if found is None:
        return None
    return {period: {host: (requests, tokens) for host, requests, tokens in sums} for period, sums in found.items()}


async def _summed_up(
    database: Database, statement: str, subject: str, starts: Mapping[_Period, int], timeout_s: float | None = None
) -> dict[_Period, list[tuple[Any, ...]]] | None:
    from citadel_llm.integration.database.pool import DatabaseUnavailable  # noqa: PLC0415 — heavy: only where wanted

    found: dict[_Period, list[tuple[Any, ...]]] = {}
    try:
        async with database.connection(timeout_s) as connection:
            for period, start in starts.items():
                values = {"period": period, "start": start, "subject": subject}
                found[period] = await (await connection.execute(statement, values)).fetchall()
    except DatabaseUnavailable:
        return None
    return found


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
