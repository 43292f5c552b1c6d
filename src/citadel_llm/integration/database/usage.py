"""What was used: sums by hour, day and month for each user, key and model, kept with the audit log's rows."""

from __future__ import annotations

from collections.abc import Mapping
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
_HOUR_US = 3_600_000_000
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
        self._hours: dict[tuple[int, str | None, str | None, str], list[Any]] = {}

    def note(self, row: Row) -> None:
        """Take a row in, if it is of a model's use."""
        model = row.model
        if model is None or row.kind != "request":
            return
        key = (row.at_us // _HOUR_US, row.user_id, row.key_id, model)
        sums = self._hours.get(key)
        if sums is None:
            sums = self._hours[key] = _nothing()
        prompt, completion = row.prompt_tokens or 0, row.completion_tokens or 0
        sums[0] += 1
        if row.outcome != "ok":
            sums[1] += 1
        sums[2] += prompt
        sums[3] += completion
        if row.latency_ms is not None:
            sums[5] += row.latency_ms
        if row.cached:
            sums[4] += 1
        elif (price := self._prices.get(model)) is not None:
            sums[6] += cost_of(price, prompt, completion)

    def columns(self) -> list[tuple[Any, ...]]:
        """One tuple a column, in an order that is the same for every writer, so that no two wait for each other."""
        found: dict[tuple[str, datetime, str, str, str], list[Any]] = {}
        for (count, user, key, model), added in self._hours.items():
            hour = datetime.fromtimestamp(count * 3600, UTC)
            day = hour.replace(hour=0)
            for period, start in (("hour", hour), ("day", day), ("month", day.replace(day=1))):
                sums = found.setdefault((period, start, user or NOBODY, key or NOBODY, model), _nothing())
                for index, value in enumerate(added):
                    sums[index] += value
        return list(zip(*((*key, *sums) for key, sums in sorted(found.items())), strict=True))


def _nothing() -> list[Any]:
    """Requests, failed ones, tokens of prompts and answers, cached ones, ms, cost."""
    return [0, 0, 0, 0, 0, 0.0, 0.0]


async def add(connection: Connection, sums: Sums) -> None:
    """Add them."""
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
