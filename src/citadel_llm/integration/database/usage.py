"""What was used: sums by hour, day and month for each user, key and model, kept with the audit log's rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import psycopg
from psycopg.rows import dict_row

from citadel_llm.integration.database.chain import Row
from citadel_llm.integration.database.target import ON_PRIMARY
from citadel_llm.utils.cost import Price, cost_of

__all__ = ["NOBODY", "PERIODS", "Cursor", "Filter", "Period", "Sums", "add", "find", "first_of", "statement"]

type Connection = psycopg.AsyncConnection[Any]
type Period = Literal["hour", "day", "month"]

PERIODS: tuple[Period, ...] = ("hour", "day", "month")
# Whoever has no id here: a key of the file, a password.
NOBODY = "00000000-0000-0000-0000-000000000000"

ADD = f"""{ON_PRIMARY}
insert into llm.usage_rollups as u (period, period_start, user_id, key_id, model, requests, failed_requests,
  prompt_tokens, completion_tokens, cached_requests, latency_ms_sum, cost)
select * from unnest(%s::text[], %s::timestamptz[], %s::uuid[], %s::uuid[], %s::text[], %s::bigint[], %s::bigint[],
  %s::bigint[], %s::bigint[], %s::bigint[], %s::float8[], %s::float8[])
on conflict (period, period_start, user_id, key_id, model) do update set
  requests = u.requests + excluded.requests,
  failed_requests = u.failed_requests + excluded.failed_requests,
  prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
  completion_tokens = u.completion_tokens + excluded.completion_tokens,
  cached_requests = u.cached_requests + excluded.cached_requests,
  latency_ms_sum = u.latency_ms_sum + excluded.latency_ms_sum,
  cost = u.cost + excluded.cost,
  updated_at = now()
"""  # noqa: S608 — only a constant goes in

_SHOWN = """r.period_start, r.user_id, r.key_id, r.model, r.requests, r.failed_requests, r.prompt_tokens,
  r.completion_tokens, r.cached_requests, r.latency_ms_sum, r.cost"""

FIND = f"""{ON_PRIMARY}
select {_SHOWN}, users.name as user_name, keys.name as key_name
from (
  select {_SHOWN} from llm.usage_rollups r where {{where}}
  order by r.period_start desc, r.user_id desc, r.key_id desc, r.model desc limit %(limit)s
) r
left join llm.users on users.id = r.user_id
left join llm.api_keys keys on keys.id = r.key_id
order by r.period_start desc, r.user_id desc, r.key_id desc, r.model desc
"""  # noqa: S608 — only constants go in


class Cursor(NamedTuple):
    """The row after which a page begins."""

    period_start: datetime
    user_id: str
    key_id: str
    model: str


@dataclass(frozen=True, slots=True)
class Filter:
    """What is asked for; None is anything. `user` is an id or a name."""

    period: Period
    since: datetime
    until: datetime | None = None
    user: str | None = None
    user_id: str | None = None
    model: str | None = None


class Sums:
    """What a batch of rows adds; what it cost goes by `prices`, a model's each."""

    def __init__(self, prices: Mapping[str, Price] | None = None) -> None:
        self._prices = prices or {}
        self._found: dict[tuple[str, datetime, str, str, str], list[Any]] = {}

    def note(self, row: Row) -> None:
        """Take a row in, if it is of a model's use."""
        if row.model is None or row.kind != "request":
            return
        at = datetime.fromtimestamp(row.at_us // 1_000_000, UTC)
        hour = at.replace(minute=0, second=0)
        day = hour.replace(hour=0)
        prompt, completion = row.prompt_tokens or 0, row.completion_tokens or 0
        price = None if row.cached else self._prices.get(row.model)
        whose = (row.user_id or NOBODY, row.key_id or NOBODY, row.model)
        added = (
            1,
            int(row.outcome != "ok"),
            prompt,
            completion,
            int(bool(row.cached)),
            row.latency_ms or 0.0,
            0.0 if price is None else cost_of(price, prompt, completion),
        )
        for period, start in (("hour", hour), ("day", day), ("month", day.replace(day=1))):
            sums = self._found.setdefault((period, start, *whose), [0, 0, 0, 0, 0, 0.0, 0.0])
            for index, value in enumerate(added):
                sums[index] += value

    def columns(self) -> list[tuple[Any, ...]]:
        """One tuple a column, in an order that is the same for every writer, so that no two wait for each other."""
        return list(zip(*((*key, *sums) for key, sums in sorted(self._found.items())), strict=True))


async def add(connection: Connection, rows: Iterable[Row], prices: Mapping[str, Price] | None = None) -> None:
    """Add what these rows used, and what that cost."""
    sums = Sums(prices)
    for row in rows:
        sums.note(row)
    columns = sums.columns()
    if columns:
        await connection.execute(ADD, [list(column) for column in columns])


def first_of(period: Period, now: datetime) -> datetime:
    """From when on is shown where nobody said: a day of hours, a month of days, a year of months."""
    return now - {"hour": timedelta(hours=24), "day": timedelta(days=31), "month": timedelta(days=366)}[period]


def statement(wanted: Filter, after: Cursor | None, limit: int) -> tuple[str, dict[str, Any]]:
    """The query for a page, and its parameters."""
    values: dict[str, Any] = {"limit": limit, "period": wanted.period, "since": wanted.since}
    conditions = ["r.period = %(period)s", "r.period_start >= %(since)s"]
    if wanted.until is not None:
        conditions.append("r.period_start < %(until)s")
        values["until"] = wanted.until
    if wanted.user_id is not None:
        conditions.append("r.user_id = %(user_id)s::uuid")
        values["user_id"] = wanted.user_id
    if wanted.user is not None:
        conditions.append("r.user_id = (select id from llm.users where name = %(user)s)")
        values["user"] = wanted.user
    if wanted.model is not None:
        conditions.append("r.model = %(model)s")
        values["model"] = wanted.model
    if after is not None:
        conditions.append(
            "(r.period_start, r.user_id, r.key_id, r.model) < (%(start)s, %(u)s::uuid, %(k)s::uuid, %(m)s)"
        )
        values["start"], values["u"], values["k"], values["m"] = after
    return FIND.format(where=" and ".join(conditions)), values


async def find(connection: Connection, wanted: Filter, after: Cursor | None, limit: int) -> list[dict[str, Any]]:
    """A page of sums, the newest first."""
    query, values = statement(wanted, after, limit)
    if any("\x00" in value for value in values.values() if isinstance(value, str)):
        return []  # PostgreSQL's texts have none
    async with connection.cursor(row_factory=dict_row) as cursor:
        return await (await cursor.execute(query, values)).fetchall()
