"""Kept answers of /v1/responses: each with what its request added, and the one before it.

    responses = Responses(database, sessions, ttl_s=30 * 86_400)
    chain = await responses.chain(user_id, "resp_…", max_items=1000, max_bytes=4 << 20)
    await responses.keep(answer, refresh=chain.ids)

Everything raises DatabaseUnavailable. What is somebody else's is not there.
"""

# ruff: noqa: S608 — only constants go into the statements

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from citadel_llm.integration.database.sessions import HISTORY, LIVE, Item, Sessions
from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection, Database

__all__ = ["Answer", "Chain", "ConversationGone", "Kept", "Responses"]


class ConversationGone(Exception):
    """The conversation that an answer belongs to is not there any more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is to be kept."""

    id: str
    user_id: str
    model: str
    input: Sequence[Item]
    output: Sequence[Item]
    body: str  # the answer without its output
    request_id: str
    previous_id: str | None = None
    conversation: str | None = None
    response: bool = True  # whether the answer itself is kept, and not only added to its conversation


class Kept(NamedTuple):
    """An answer that was kept."""

    id: str
    input: str  # a JSON array
    output: str  # the same
    body: str


@dataclass(slots=True)
class Chain:
    """What went before a request, the oldest first. `broken`: something of it is not there any more."""

    ids: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)  # JSON arrays of items
    items: int = 0
    bytes: int = 0
    broken: bool = False
    too_long: bool = False


GET: Final = (
    f"{ON_PRIMARY}select id, cast(input as text), cast(output as text), cast(body as text) "
    f"from llm.responses where id = %(id)s and {LIVE}"
)
DELETE: Final = f"{ON_PRIMARY}delete from llm.responses where id = %(id)s and {LIVE}"
# Sums are carried, texts are read at the end: what is too long is known without reading it. `bytes` are at least one
# for each answer, so that even a chain of empty ones has an end.
CHAIN: Final = f"""{ON_PRIMARY}with recursive chain as (
  select id, previous_id, session_id, session_position, 1 as depth, items as all_items,
    cast(bytes as bigint) as all_bytes
  from llm.responses where id = %(id)s and {LIVE}
  union all
  select r.id, r.previous_id, r.session_id, r.session_position, depth + 1, all_items + r.items, all_bytes + r.bytes
  from chain c join llm.responses r on r.id = c.previous_id and r.user_id = %(user)s
  where all_items <= %(max_items)s and all_bytes <= %(max_bytes)s and depth <= %(max_items)s
)
select c.id, c.previous_id, c.session_id, c.session_position, c.all_items, c.all_bytes, c.depth,
  cast(r.input as text), cast(r.output as text)
from chain c join llm.responses r on r.id = c.id
order by depth desc"""
KEEP: Final = (
    f"{ON_PRIMARY}insert into llm.responses (id, user_id, session_id, session_position, previous_id, model, input, "
    "output, body, items, bytes, request_id, expires_at) values (%(id)s, %(user)s, %(session)s, %(position)s, "
    "%(previous)s, %(model)s, cast(%(input)s as json), cast(%(output)s as json), cast(%(body)s as json), %(items)s, "
    "%(bytes)s, %(request_id)s, now() + make_interval(secs => %(ttl_s)s))"
)
# What a follow-up needs lives a day longer than it, so that it is not written anew for each follow-up.
REFRESH: Final = (
    f"{ON_PRIMARY}update llm.responses set expires_at = now() + make_interval(secs => %(ttl_s)s + 86400) "
    "where id = any(%(ids)s) and user_id = %(user)s and expires_at < now() + make_interval(secs => %(ttl_s)s)"
)


class Responses:
    """What is asked and told about kept answers."""

    def __init__(self, database: Database, sessions: Sessions, *, ttl_s: float) -> None:
        """`ttl_s`: an answer is kept for so long after it, or one that follows it, was made."""
        self._database = database
        self._sessions = sessions
        self._ttl_s = ttl_s

    async def get(self, user_id: str, id: str) -> Kept | None:
        """That one."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(GET, {"id": id, "user": user_id})).fetchone()
            return None if row is None else Kept(*row)

    async def delete(self, user_id: str, id: str) -> bool:
        """Whether it was there; it is gone now."""
        async with self._database.connection() as connection:
            return (await connection.execute(DELETE, {"id": id, "user": user_id})).rowcount > 0

    async def chain(self, user_id: str, id: str, max_items: int, max_bytes: int) -> Chain | None:
        """That answer and all before it. None: there is none of that name."""
        values = {"id": id, "user": user_id, "max_items": max_items, "max_bytes": max_bytes}
        async with self._database.connection() as connection:
            rows = await (await connection.execute(CHAIN, values)).fetchall()
            if not rows:
                return None
            found = Chain()
            _, previous_id, session_id, position, found.items, found.bytes, depth, *_ = rows[0]
            found.too_long = found.items > max_items or found.bytes > max_bytes or depth > max_items
            if found.too_long:
                return found
            if previous_id is not None or (position is not None and session_id is None):
                found.broken = True
                return found
            if position:
                await self._begun_by(connection, found, session_id, position)
                found.too_long = found.items > max_items or found.bytes > max_bytes
            for row in rows:
                found.ids.append(row[0])
                found.arrays += row[7:9]
            return found

    async def _begun_by(self, connection: Connection, chain: Chain, session_id: str, position: int) -> None:
        """The first answer of a chain was one of a conversation: what the conversation had before it."""
        found = await connection.execute(HISTORY, {"id": session_id, "before": position})
        contents = [content for (content,) in await found.fetchall()]
        chain.items += len(contents)
        chain.bytes += sum(len(content.encode()) for content in contents)
        chain.arrays.append("[" + ",".join(contents) + "]")

    async def keep(self, answer: Answer, refresh: Sequence[str] = ()) -> None:
        """Keep it, and add it to its conversation. `refresh`: the answers before it. Raises ConversationGone."""
        items = [*answer.input, *answer.output]
        values: dict[str, Any] = {
            "id": answer.id, "user": answer.user_id, "session": answer.conversation, "position": None,
            "previous": answer.previous_id, "model": answer.model, "input": _array(answer.input),
            "output": _array(answer.output), "body": answer.body, "items": len(items),
            "bytes": max(1, sum(item.bytes for item in items)), "request_id": answer.request_id, "ttl_s": self._ttl_s,
        }  # fmt: skip
        async with self._database.connection() as connection:
            if answer.conversation is not None:
                values["position"] = await self._sessions.append(
                    connection, answer.user_id, answer.conversation, items,
                    model=answer.model, request_id=answer.request_id,
                )  # fmt: skip
                if values["position"] is None:
                    raise ConversationGone
            if answer.response:
                await connection.execute(KEEP, values)
                if refresh:
                    await connection.execute(REFRESH, {**values, "ids": list(refresh)})


def _array(items: Sequence[Item]) -> str:
    return "[" + ",".join([item.content for item in items]) + "]"
