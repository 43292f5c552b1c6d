"""The audit log's statements: adding to it, in order and once, and asking it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import dict_row

from citadel_llm.integration.database.chain import COLUMNS
from citadel_llm.integration.database.target import ON_PRIMARY

__all__ = ["Cursor", "Filter", "Place", "add", "chains", "find", "make_partitions", "statement", "take", "touch_keys"]

type Connection = psycopg.AsyncConnection[Any]

# Locks the chain for its writer, and tells how far it has come; one that is new begins after `taken`.
TAKE = f"""{ON_PRIMARY}
insert into llm.audit_chains (chain, position, taken, digest) values (%s, 0, %s, decode(repeat('00', 32), 'hex'))
on conflict (chain) do update set updated_at = now()
returning position, taken, digest
"""  # noqa: S608 — only constants go in, here and below

COPY = f"""{ON_PRIMARY}
copy llm.audit_log (chain, position, previous_digest, digest, {", ".join(COLUMNS)}) from stdin
"""

ADVANCE = f"""{ON_PRIMARY}
update llm.audit_chains set position = %s, taken = %s, digest = %s, updated_at = now() where chain = %s
"""  # noqa: S608

MAKE_PARTITIONS = f"{ON_PRIMARY} select llm.audit_make_partitions(2)"

TOUCH_KEYS = f"""{ON_PRIMARY}
update llm.api_keys k set last_used_at = used.at
from unnest(%s::uuid[], %s::timestamptz[]) as used (id, at)
where k.id = used.id and (k.last_used_at is null or k.last_used_at < used.at)
"""  # noqa: S608

CHAINS = f"{ON_PRIMARY} select chain, position, digest from llm.audit_chains order by chain"  # noqa: S608

_SHOWN = ("at", "id", "chain", "position", *COLUMNS[2:])

FIND = f"""{ON_PRIMARY}
select {", ".join(_SHOWN)} from llm.audit_log {{where}} order by at desc, id desc limit %(limit)s
"""  # noqa: S608


class Place(NamedTuple):
    """How far a chain has come: its last row, and the journal's number that was taken over last."""

    position: int
    taken: int
    digest: bytes


class Cursor(NamedTuple):
    """The row after which a page begins."""

    at: datetime
    id: str


@dataclass(frozen=True, slots=True)
class Filter:
    """What is asked for; None is anything."""

    request_id: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    model: str | None = None
    kind: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def take(connection: Connection, chain: str, after: int) -> Place:
    """Lock the chain until the transaction's end; its place."""
    found = await (await connection.execute(TAKE, (chain, after))).fetchone()
    assert found is not None  # noqa: S101 — `returning` of one row
    return Place(found[0], found[1], bytes(found[2]))


async def add(connection: Connection, chain: str, lines: Sequence[str], place: Place) -> None:
    """Add rows, as `copy_line` has them, and bring the chain, which was taken, to its new place."""
    async with connection.cursor() as cursor:
        async with cursor.copy(COPY) as copy:
            await copy.write("".join(lines))
        await cursor.execute(ADVANCE, (place.position, place.taken, place.digest, chain))


async def make_partitions(connection: Connection) -> None:
    """See that this month's partition is there."""
    await connection.execute(MAKE_PARTITIONS)


async def touch_keys(connection: Connection, used: Sequence[tuple[str, datetime]]) -> None:
    """Note when keys were last used."""
    await connection.execute(TOUCH_KEYS, ([key for key, _ in used], [at for _, at in used]))


async def chains(connection: Connection) -> list[tuple[str, int, bytes]]:
    """Every chain: name, last position, last digest."""
    rows = await (await connection.execute(CHAINS)).fetchall()
    return [(name, position, bytes(digest)) for name, position, digest in rows]


def statement(wanted: Filter, after: Cursor | None, limit: int) -> tuple[str, dict[str, Any]]:
    """The query for a page, and its parameters."""
    values: dict[str, Any] = {"limit": limit}
    conditions = []
    for name in ("request_id", "user_id", "user_name", "model", "kind", "outcome"):
        value = getattr(wanted, name)
        if value is not None:
            conditions.append(f"{name} = %({name})s")
            values[name] = value
    if wanted.since is not None:
        conditions.append("at >= %(since)s")
        values["since"] = wanted.since
    if wanted.until is not None:
        conditions.append("at < %(until)s")
        values["until"] = wanted.until
    if after is not None:
        # The first half alone bounds the partitions and the index; the second decides among rows of the same moment.
        conditions.append("at <= %(after_at)s and (at, id) < (%(after_at)s, %(after_id)s::uuid)")
        values["after_at"], values["after_id"] = after
    where = f"where {' and '.join(conditions)}" if conditions else ""
    return FIND.format(where=where), values


async def find(connection: Connection, wanted: Filter, after: Cursor | None, limit: int) -> list[dict[str, Any]]:
    """A page of rows, the newest first."""
    query, values = statement(wanted, after, limit)
    if any("\x00" in value for value in values.values() if isinstance(value, str)):
        return []  # PostgreSQL's texts have none
    async with connection.cursor(row_factory=dict_row) as cursor:
        return await (await cursor.execute(query, values)).fetchall()
