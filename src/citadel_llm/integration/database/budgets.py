"""Budgets, and what was spent of them: `llm.budgets`, `llm.usage_rollups`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Database

__all__ = ["spent"]

type _Period = Literal["day", "month"]

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


async def spent(
    database: Database, scope: str, subject: str, starts: Mapping[_Period, int]
) -> dict[_Period, tuple[int, int]] | None:
    """Requests and tokens in each of the periods that began at `starts`, in seconds since 1970; None: not to be had."""
    from citadel_llm.integration.database.pool import DatabaseUnavailable  # noqa: PLC0415 — heavy: only where wanted

    if scope in {"user", "key"} and not _is_uuid(subject):  # a key of the file: nothing is summed up for it
        return dict.fromkeys(starts, (0, 0))
    found: dict[_Period, tuple[int, int]] = {}
    try:
        async with database.connection() as connection:
            for period, start in starts.items():
                cursor = await connection.execute(
                    _SPENT + _OF[scope], {"period": period, "start": start, "subject": subject}
                )
                row = await cursor.fetchone()
                assert row is not None  # noqa: S101 — sums always are one row
                found[period] = (row[0], row[1])
    except DatabaseUnavailable:
        return None
    return found


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
