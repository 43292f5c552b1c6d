"""All that is kept of one user: shown line by line, and deleted. And what nobody used for long enough: removed.

Everything raises DatabaseUnavailable. The audit log is no part of it: it is not the user's to change.
"""

# ruff: noqa: S608 — only constants go into the statements

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from citadel_llm.integration.database.target import ON_PRIMARY
from citadel_llm.integration.database.vector_stores import VectorStores

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Database

__all__ = ["EXPIRED", "delete", "exists", "export"]

_ROWS = 20  # of a page, which is read whole: each may be as large as a conversation may be
# Each with what its next page begins after: pairs of a text and a number, which are all kinds of keys here. Items are
# looked for conversation by conversation: by their own order, everybody's would be gone through.
EXPORTED: Final[Mapping[str, str]] = {
    "conversation": f"""{ON_PRIMARY}select json_build_object('object', 'conversation', 'id', id,
      'created_at', cast(extract(epoch from created_at) as bigint),
      'updated_at', cast(extract(epoch from updated_at) as bigint),
      'expires_at', cast(extract(epoch from expires_at) as bigint), 'metadata', metadata)::text, id, 0
    from llm.sessions where user_id = %(user)s and id > %(after)s and %(number)s = %(number)s
    order by id limit %(limit)s""",
    "conversation.item": f"""{ON_PRIMARY}select
      '{{"object":"conversation.item","conversation_id":' || to_json(m.session_id)
      || ',"item":' || cast(m.content as text) || '}}', m.session_id, m.position
    from llm.sessions s cross join lateral (
      select session_id, position, content from llm.messages
      where session_id = s.id and (s.id > %(after)s or position > %(number)s) order by position limit %(limit)s) m
    where s.user_id = %(user)s and s.id >= %(after)s order by s.id, m.position limit %(limit)s""",
    "response": f"""{ON_PRIMARY}select '{{"object":"kept_response","response_id":' || to_json(id)
      || ',"input":' || cast(input as text) || ',"output":' || cast(output as text)
      || ',"response":' || cast(body as text) || '}}', id, 0
    from llm.responses where user_id = %(user)s and id > %(after)s and %(number)s = %(number)s
    order by id limit %(limit)s""",
    "feedback": f"""{ON_PRIMARY}select json_build_object('object', 'feedback', 'request_id', request_id,
      'rating', rating, 'stars', stars, 'labels', labels, 'comment', comment, 'model', model,
      'created_at', cast(extract(epoch from created_at) as bigint))::text, request_id, 0
    from llm.feedback where user_id = %(user)s and request_id > %(after)s and %(number)s = %(number)s
    order by request_id limit %(limit)s""",
    "file": f"""{ON_PRIMARY}select json_build_object('object', 'file', 'id', id, 'filename', filename,
      'purpose', purpose, 'bytes', bytes, 'created_at', cast(extract(epoch from created_at) as bigint))::text, id, 0
    from llm.files where user_id = %(user)s and id > %(after)s and %(number)s = %(number)s
    order by id limit %(limit)s""",
    "vector_store": f"""{ON_PRIMARY}select json_build_object('object', 'vector_store', 'id', id, 'name', name,
      'description', description, 'metadata', metadata,
      'created_at', cast(extract(epoch from created_at) as bigint), 'files', (
        select coalesce(json_agg(json_build_object('id', file_id, 'attributes', attributes)), '[]')
        from llm.vector_store_files f where f.store_id = s.id and f.status <> 'deleting'))::text, id, 0
    from llm.vector_stores s where user_id = %(user)s and deleted_at is null and id > %(after)s
      and %(number)s = %(number)s
    order by id limit %(limit)s""",
}
DELETED: Final[Mapping[str, str]] = {
    "conversations": f"{ON_PRIMARY}delete from llm.sessions where user_id = %(user)s",
    "responses": f"{ON_PRIMARY}delete from llm.responses where user_id = %(user)s",
    "feedback": f"{ON_PRIMARY}delete from llm.feedback where user_id = %(user)s",
    # The points in Qdrant and the contents on disk follow in the background (api/files/worker.py).
    "vector_stores": f"{ON_PRIMARY}update llm.vector_stores set deleted_at = now() "
    "where user_id = %(user)s and deleted_at is null",
    "files": f"{ON_PRIMARY}delete from llm.files where user_id = %(user)s",
}
EXISTS: Final = f"{ON_PRIMARY}select 1 from llm.users where id = %(user)s"
# A conversation has many items, which go with it: fewer at once.
EXPIRED: Final[Mapping[str, str]] = {
    "responses": "delete from llm.responses where id in "
    "(select id from llm.responses where expires_at <= now() order by expires_at limit 1000)",
    "conversations": "delete from llm.sessions where id in "
    "(select id from llm.sessions where expires_at <= now() order by expires_at limit 50)",
}


async def export(database: Database, user_id: str) -> AsyncIterator[bytes]:
    """JSON lines, some at a time. Nothing is held between them, so that a slow reader keeps nobody waiting."""
    for statement in EXPORTED.values():
        values: dict[str, Any] = {"user": user_id, "after": "", "number": -1, "limit": _ROWS}
        while True:
            async with database.connection() as connection:
                rows = await (await connection.execute(statement, values)).fetchall()
            if rows:
                yield "".join([f"{line}\n" for line, _, _ in rows]).encode()
                _, values["after"], values["number"] = rows[-1]
            if len(rows) < _ROWS:
                break


async def delete(database: Database, user_id: str) -> dict[str, int]:
    """Delete it; how many of each."""
    async with database.connection() as connection:
        deleted = {
            name: (await connection.execute(statement, {"user": user_id})).rowcount
            for name, statement in DELETED.items()
        }
    stores = VectorStores(database)
    while (left := await stores.left()) is not None:
        await stores.empty(left)
    return deleted


async def exists(database: Database, user_id: str) -> bool:
    """Whether there is such a user."""
    async with database.connection() as connection:
        return await (await connection.execute(EXISTS, {"user": user_id})).fetchone() is not None
