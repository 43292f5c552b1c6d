"""What callers have uploaded: rows here, contents on disk. Somebody else's file is not there.

    files = Files(database)
    await files.add(new, place)          # `place` puts the content where it belongs, before the row is seen
    gone = await files.delete(user_id, "file-…")

Everything raises DatabaseUnavailable. Times are seconds since 1970.
"""

# ruff: noqa: S608 — only constants go into the statements

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Database

__all__ = ["File", "Files", "Page", "QuotaExceeded", "page_clause"]


class QuotaExceeded(Exception):
    """There is no room for this file; the text says whose bound it is."""


class File(NamedTuple):
    """A file without its content."""

    id: str
    user_id: str
    filename: str
    purpose: str
    size_bytes: int
    digest: bytes
    created_at: int = 0
    expires_at: int | None = None


class Page(NamedTuple):
    """Which part of a list: `limit` rows after, or before, the one of that id, by age."""

    limit: int
    ascending: bool = False
    after: str = ""
    before: str = ""


def page_clause(table: str, page: Page, *, id: str = "id", alike: str = "") -> str:
    """The end of a statement that lists such a page; it takes `after`, `before` and `limit`.

    `alike` is a condition that the named row has to meet too.
    """
    further, nearer = (">", "<") if page.ascending else ("<", ">")
    word = "asc" if page.ascending else "desc"
    named = f"(select created_at, {id} from {table} where {id} = %({{}})s{f' and {alike}' if alike else ''})"
    text = ""
    if page.after:
        text += f" and (created_at, {id}) {further} {named.format('after')}"
    if page.before:
        text += f" and (created_at, {id}) {nearer} {named.format('before')}"
    return f"{text} order by created_at {word}, {id} {word} limit %(limit)s"


LIVE: Final = "user_id = %(user)s and (expires_at is null or expires_at > now())"
_COLUMNS = (
    "id, cast(user_id as text), filename, purpose, bytes, digest, cast(extract(epoch from created_at) as bigint), "
    "cast(extract(epoch from expires_at) as bigint)"
)
# Uploads of one content, and its removal, take turns; so do one user's uploads, for their sum is bounded.
LOCK: Final = f"{ON_PRIMARY}select pg_advisory_xact_lock(hashtextextended(%(name)s, 6))"
USED: Final = (
    f"{ON_PRIMARY}select count(*) filter (where user_id = %(user)s), "
    "coalesce(sum(bytes) filter (where user_id = %(user)s), 0), coalesce(sum(bytes), 0) from llm.files"
)
ADD: Final = (
    f"{ON_PRIMARY}insert into llm.files (id, user_id, filename, purpose, bytes, digest, expires_at) values "
    "(%(id)s, %(user)s, %(filename)s, %(purpose)s, %(size_bytes)s, %(digest)s, "
    f"now() + make_interval(secs => %(ttl_s)s)) returning {_COLUMNS}"
)
GET: Final = f"{ON_PRIMARY}select {_COLUMNS} from llm.files where id = %(id)s and {LIVE}"
MANY: Final = f"{ON_PRIMARY}select {_COLUMNS} from llm.files where id = any(%(ids)s) and {LIVE}"
LIST: Final = (
    f"{ON_PRIMARY}select {_COLUMNS} from llm.files where {LIVE} and (%(purpose)s = '' or purpose = %(purpose)s)"
)
TAKE_OUT: Final = (
    f"{ON_PRIMARY}update llm.vector_store_files set status = 'deleting', try_at = now() "
    "where file_id = %(id)s and user_id = %(user)s and status <> 'deleting'"
)
DELETE: Final = f"{ON_PRIMARY}delete from llm.files where id = %(id)s and user_id = %(user)s returning digest"
HELD: Final = f"{ON_PRIMARY}select exists (select from llm.files where digest = %(digest)s)"
SOMEBODYS: Final = f"{ON_PRIMARY}select distinct digest from llm.files where digest = any(%(digests)s)"
EXPIRED: Final = (
    f"{ON_PRIMARY}select id, cast(user_id as text) from llm.files "
    "where expires_at <= now() order by expires_at limit 100"
)


class Files:
    """The table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self,
        new: File,
        place: Callable[[], Awaitable[None]],
        *,
        ttl_s: float | None,
        most: tuple[int, int, int],
        timeout_s: float = 10.0,
    ) -> File:
        """The file with its time; `most` is how many a user may have, their bytes, and everybody's bytes.

        Raises QuotaExceeded.
        """
        async with self._database.connection(timeout_s) as connection:
            for name in (f"files {new.user_id}", f"content {new.digest.hex()}"):
                await connection.execute(LOCK, {"name": name})
            row = await (await connection.execute(USED, {"user": new.user_id})).fetchone()
            assert row is not None  # noqa: S101 — sums have a row
            count, own, everybodys = (int(value) for value in row)
            if count >= most[0]:
                raise QuotaExceeded(f"A user may have {most[0]} files here; delete some first.")
            if own + new.size_bytes > most[1]:
                raise QuotaExceeded(f"A user's files may have {most[1]} bytes here; {own} are used.")
            if everybodys + new.size_bytes > most[2]:
                raise QuotaExceeded("This server has no room for more files.")
            await place()
            values = {**new._asdict(), "user": new.user_id, "ttl_s": ttl_s}
            found = await (await connection.execute(ADD, values)).fetchone()
            return File(*found)  # type: ignore[misc]

    async def get(self, user_id: str, id: str) -> File | None:
        """The file."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(GET, {"id": id, "user": user_id})).fetchone()
        return None if row is None else File(*row)

    async def many(self, user_id: str, ids: list[str]) -> dict[str, File]:
        """Those of these ids that there are."""
        async with self._database.connection() as connection:
            rows = await (await connection.execute(MANY, {"ids": ids, "user": user_id})).fetchall()
        return {row[0]: File(*row) for row in rows}

    async def page(self, user_id: str, page: Page, purpose: str = "") -> list[File]:
        """A page of the user's."""
        values: dict[str, Any] = {"user": user_id, "purpose": purpose, **page._asdict()}
        async with self._database.connection() as connection:
            rows = await (await connection.execute(LIST + page_clause("llm.files", page), values)).fetchall()
        return [File(*row) for row in rows]

    async def delete(self, user_id: str, id: str) -> bytes | None:
        """Delete it, take it out of its stores; its content's digest. None where there is none."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(DELETE, {"id": id, "user": user_id})).fetchone()
            if row is None:
                return None
            await connection.execute(TAKE_OUT, {"id": id, "user": user_id})
        return bytes(row[0])

    async def expired(self) -> list[tuple[str, str]]:
        """(id, user's id) of some whose time is over."""
        async with self._database.connection() as connection:
            rows = await (await connection.execute(EXPIRED)).fetchall()
        return [(id, user_id) for id, user_id in rows]

    async def nobodys(self, digests: list[bytes]) -> set[bytes]:
        """Those of these contents that no file has, a moment ago: `release` looks again."""
        async with self._database.connection() as connection:
            rows = await (await connection.execute(SOMEBODYS, {"digests": digests})).fetchall()
        return set(digests) - {bytes(digest) for (digest,) in rows}

    async def release(self, digest: bytes, remove: Callable[[], Awaitable[None]]) -> None:
        """Call `remove` where no file has this content any more; none is added meanwhile."""
        async with self._database.connection() as connection:
            await connection.execute(LOCK, {"name": f"content {digest.hex()}"})
            row = await (await connection.execute(HELD, {"digest": digest})).fetchone()
            if row is not None and not row[0]:
                await remove()
