"""Conversations and their items, each its user's own: somebody else's is not there.

    sessions = Sessions(database, ttl_s=30 * 86_400)
    await sessions.create(user_id, "conv_…", {"topic": "…"}, [item])

Everything raises DatabaseUnavailable. Times are seconds since 1970, contents are JSON texts as they were written.
"""

# ruff: noqa: S608 — only constants go into the statements

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection, Database

__all__ = ["APPEND", "EXTEND", "LIVE", "Conversation", "Item", "Sessions"]

PAGE = 200  # rows that are read at once where there may be any number


class Conversation(NamedTuple):
    """A conversation without its items."""

    id: str
    metadata: dict[str, str]
    created_at: int
    updated_at: int
    expires_at: int
    items: int
    bytes: int


class Item(NamedTuple):
    """One item: `content` is the whole of it, a JSON object in which its id and type are too."""

    id: str
    type: str
    role: str | None
    content: str

    @property
    def bytes(self) -> int:
        """Its size."""
        return len(self.content.encode())


LIVE: Final = "user_id = %(user)s and expires_at > now()"
_COLUMNS = (
    "id, metadata, cast(extract(epoch from created_at) as bigint), cast(extract(epoch from updated_at) as bigint), "
    "cast(extract(epoch from expires_at) as bigint), items, bytes"
)
CREATE: Final = (
    f"{ON_PRIMARY}insert into llm.sessions (id, user_id, metadata, expires_at) "
    "values (%(id)s, %(user)s, cast(%(metadata)s as jsonb), now() + make_interval(secs => %(ttl_s)s)) "
    f"returning {_COLUMNS}"
)
GET: Final = f"{ON_PRIMARY}select {_COLUMNS} from llm.sessions where id = %(id)s and {LIVE}"
UPDATE: Final = (
    f"{ON_PRIMARY}update llm.sessions set metadata = cast(%(metadata)s as jsonb), updated_at = now(), "
    f"expires_at = now() + make_interval(secs => %(ttl_s)s) where id = %(id)s and {LIVE} returning {_COLUMNS}"
)
DELETE: Final = f"{ON_PRIMARY}delete from llm.sessions where id = %(id)s and {LIVE}"
# Newest first, from one that was seen on.
LIST: Final = (
    f"{ON_PRIMARY}select {_COLUMNS} from llm.sessions where {LIVE} and (%(after)s = '' or (updated_at, id) < "
    "(select updated_at, id from llm.sessions where id = %(after)s and user_id = %(user)s)) "
    "order by updated_at desc, id desc limit %(limit)s"
)
# The row is locked until the transaction's end, so that items of one conversation have an order.
EXTEND: Final = (
    f"{ON_PRIMARY}update llm.sessions set items = items + %(count)s, bytes = bytes + %(bytes)s, "
    "next_position = next_position + %(count)s, updated_at = now(), "
    f"expires_at = now() + make_interval(secs => %(ttl_s)s) where id = %(id)s and {LIVE} "
    "and items + %(count)s <= %(max_items)s and bytes + %(bytes)s <= %(max_bytes)s "
    "returning next_position - %(count)s"
)
APPEND: Final = (
    f"{ON_PRIMARY}insert into llm.messages "
    "(session_id, position, id, type, role, content, bytes, model, request_id) "
    "select %(id)s, %(first)s + n - 1, item, type, role, cast(content as json), octet_length(content), "
    "%(model)s, %(request_id)s "
    "from unnest(cast(%(ids)s as text[]), cast(%(types)s as text[]), cast(%(roles)s as text[]), "
    "cast(%(contents)s as text[])) with ordinality as given (item, type, role, content, n)"
)
_OWN = f"session_id = %(id)s and exists (select 1 from llm.sessions s where s.id = %(id)s and s.{LIVE})"
ITEM: Final = f"{ON_PRIMARY}select cast(content as text) from llm.messages where {_OWN} and id = %(item)s"
POSITION: Final = f"{ON_PRIMARY}select position from llm.messages where {_OWN} and id = %(item)s"
ITEMS: Final = {
    order: f"{ON_PRIMARY}select id, type, role, cast(content as text), position from llm.messages "
    f"where session_id = %(id)s and position {sign} %(from)s order by position {order} limit %(limit)s"
    for order, sign in (("asc", ">"), ("desc", "<"))
}
HISTORY: Final = (
    f"{ON_PRIMARY}select cast(content as text) from llm.messages "
    "where session_id = %(id)s and position < %(before)s order by position"
)
DELETE_ITEM: Final = (
    f"{ON_PRIMARY}with gone as (delete from llm.messages where {_OWN} and id = %(item)s returning bytes) "
    "update llm.sessions set items = items - 1, bytes = bytes - (select bytes from gone), updated_at = now() "
    f"where id = %(id)s and exists (select 1 from gone) returning {_COLUMNS}"
)
_MOST = 2**31 - 1


class Sessions:
    """What is asked and told about conversations."""

    def __init__(self, database: Database, *, ttl_s: float) -> None:
        """`ttl_s`: a conversation is kept for so long after its last change."""
        self._database = database
        self._ttl_s = ttl_s

    async def create(self, user_id: str, id: str, metadata: dict[str, str], items: Sequence[Item]) -> Conversation:
        """A new one."""
        values = {"id": id, "user": user_id, "metadata": json.dumps(metadata), "ttl_s": self._ttl_s}
        async with self._database.connection() as connection:
            row = await (await connection.execute(CREATE, values)).fetchone()
            if items:
                await self.append(connection, user_id, id, items)
        return Conversation(*_sure(row))

    async def get(self, user_id: str, id: str) -> Conversation | None:
        """That one."""
        return await self._one(GET, {"id": id, "user": user_id})

    async def update(self, user_id: str, id: str, metadata: dict[str, str]) -> Conversation | None:
        """The same with other metadata."""
        values = {"id": id, "user": user_id, "metadata": json.dumps(metadata), "ttl_s": self._ttl_s}
        return await self._one(UPDATE, values)

    async def delete(self, user_id: str, id: str) -> bool:
        """Whether it was there; it is gone now, with its items."""
        async with self._database.connection() as connection:
            return (await connection.execute(DELETE, {"id": id, "user": user_id})).rowcount > 0

    async def page(self, user_id: str, after: str, limit: int) -> list[Conversation]:
        """At most `limit`, the last changed first, from the one named `after` on."""
        async with self._database.connection() as connection:
            found = await connection.execute(LIST, {"user": user_id, "after": after, "limit": limit})
            return [Conversation(*row) for row in await found.fetchall()]

    async def add(self, user_id: str, id: str, items: Sequence[Item], max_items: int, max_bytes: int) -> bool | None:
        """Add items at its end. None: there is no such conversation; False: it would be more than it may be."""
        async with self._database.connection() as connection:
            first = await self.append(connection, user_id, id, items, max_items=max_items, max_bytes=max_bytes)
            if first is not None:
                return True
            return (
                None if await (await connection.execute(GET, {"id": id, "user": user_id})).fetchone() is None else False
            )

    async def append(
        self,
        connection: Connection,
        user_id: str,
        id: str,
        items: Sequence[Item],
        *,
        max_items: int = _MOST,
        max_bytes: int = _MOST,
        model: str | None = None,
        request_id: str | None = None,
    ) -> int | None:
        """Add items in a transaction of the caller's; the first one's position, None where that can't be."""
        values: dict[str, Any] = {
            "id": id, "user": user_id, "ttl_s": self._ttl_s, "max_items": max_items, "max_bytes": max_bytes,
            "count": len(items), "bytes": sum(item.bytes for item in items), "model": model, "request_id": request_id,
        }  # fmt: skip
        row = await (await connection.execute(EXTEND, values)).fetchone()
        if row is None:
            return None
        first: int = row[0]
        values |= {
            "first": first,
            "ids": [item.id for item in items],
            "types": [item.type for item in items],
            "roles": [item.role for item in items],
            "contents": [item.content for item in items],
        }
        if items:
            await connection.execute(APPEND, values)
        return first

    async def item(self, user_id: str, id: str, item: str) -> str | None:
        """That item, as JSON."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(ITEM, {"id": id, "user": user_id, "item": item})).fetchone()
            return row[0] if row is not None else None

    async def items(self, user_id: str, id: str, after: str, limit: int, *, descending: bool) -> list[Item] | None:
        """At most `limit`, from the one named `after` on. None: there is no such conversation, or no such item."""
        values: dict[str, Any] = {"id": id, "user": user_id, "item": after, "limit": limit}
        async with self._database.connection() as connection:
            if after:
                row = await (await connection.execute(POSITION, values)).fetchone()
                start = row and row[0]
            else:
                row = await (await connection.execute(GET, values)).fetchone()
                start = _MOST if descending else -1
            if row is None:
                return None
            values["from"] = start
            found = await connection.execute(ITEMS["desc" if descending else "asc"], values)
            return [Item(*row[:4]) for row in await found.fetchall()]

    async def pages(self, id: str) -> AsyncIterator[list[Item]]:
        """All items in their order, some at a time; whose conversation it is, the caller has seen."""
        start = -1
        while True:
            async with self._database.connection() as connection:
                found = await connection.execute(ITEMS["asc"], {"id": id, "from": start, "limit": PAGE})
                rows = await found.fetchall()
            if rows:
                yield [Item(*row[:4]) for row in rows]
                start = rows[-1][4]
            if len(rows) < PAGE:
                return

    async def history(self, user_id: str, id: str) -> tuple[Conversation, list[str]] | None:
        """It and all its items, as JSON."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(GET, {"id": id, "user": user_id})).fetchone()
            if row is None:
                return None
            found = await connection.execute(HISTORY, {"id": id, "before": _MOST})
            return Conversation(*row), [content for (content,) in await found.fetchall()]

    async def delete_item(self, user_id: str, id: str, item: str) -> Conversation | None:
        """The conversation without that item; None where it had none of that name."""
        return await self._one(DELETE_ITEM, {"id": id, "user": user_id, "item": item})

    async def _one(self, statement: str, values: dict[str, Any]) -> Conversation | None:
        async with self._database.connection() as connection:
            row = await (await connection.execute(statement, values)).fetchone()
            return None if row is None else Conversation(*row)


def _sure(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    assert row is not None  # noqa: S101 — a row that was inserted is returned
    return row
