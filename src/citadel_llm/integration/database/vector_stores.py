"""Vector stores and the files in them, as callers see them. Somebody else's is not there.

What puts files into a store, and takes them out, is in `ingestion.py`. Everything raises DatabaseUnavailable.
"""

# ruff: noqa: S608 — only constants go into the statements

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from citadel_llm.integration.database.files import Page, page_clause
from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Database

__all__ = ["Batch", "Counts", "NewFile", "Store", "StoreFile", "VectorStores"]


class Counts(NamedTuple):
    """How many files are in which state."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Store(NamedTuple):
    """A vector store; times are seconds since 1970."""

    id: str
    user_id: str
    name: str
    description: str
    metadata: dict[str, str]
    model: str
    created_at: int
    last_active_at: int
    expires_days: int | None
    expires_at: int | None
    expired: bool
    usage_bytes: int
    in_progress: int
    completed: int
    failed: int
    cancelled: int

    @property
    def counts(self) -> Counts:
        """Its files."""
        return Counts(self.in_progress, self.completed, self.failed, self.cancelled)


class StoreFile(NamedTuple):
    """A file in a store."""

    store_id: str
    file_id: str
    batch_id: str | None
    status: str
    attributes: dict[str, Any]
    max_tokens: int
    overlap_tokens: int
    created_at: int
    usage_bytes: int
    error_code: str | None
    error_message: str | None
    chunks_done: int


class NewFile(NamedTuple):
    """What is to be put into a store."""

    file_id: str
    attributes: dict[str, Any]
    max_tokens: int
    overlap_tokens: int


class Batch(NamedTuple):
    """Files that were added at once."""

    id: str
    store_id: str
    created_at: int
    cancelled: bool
    in_progress: int
    completed: int
    failed: int
    cancelled_files: int

    @property
    def counts(self) -> Counts:
        """Its files."""
        return Counts(self.in_progress, self.completed, self.failed, self.cancelled_files)


_COUNTS = ", ".join(
    f"(select count(*) from llm.vector_store_files f where f.store_id = s.id and f.status = '{status}')"
    for status in ("in_progress", "completed", "failed", "cancelled")
)
_EXPIRES = "(last_active_at + make_interval(days => expires_days))"
_STORE = (
    "id, cast(user_id as text), name, description, metadata, model, cast(extract(epoch from created_at) as bigint), "
    "cast(extract(epoch from last_active_at) as bigint), expires_days, "
    f"cast(extract(epoch from {_EXPIRES}) as bigint), coalesce({_EXPIRES} <= now(), false), "
    "(select coalesce(sum(usage_bytes), 0)::bigint from llm.vector_store_files f "
    f"where f.store_id = s.id and f.status <> 'deleting'), {_COUNTS}"
)
_FILE = (
    "store_id, file_id, batch_id, status, attributes, max_tokens, overlap_tokens, "
    "cast(extract(epoch from created_at) as bigint), usage_bytes, error_code, error_message, chunks_done"
)
_OWN = "user_id = %(user)s and deleted_at is null"
_SEEN = "store_id = %(store)s and user_id = %(user)s and status <> 'deleting'"

CREATE: Final = (
    f"{ON_PRIMARY}insert into llm.vector_stores (id, user_id, name, description, metadata, model, expires_days) values "
    "(%(id)s, %(user)s, %(name)s, %(description)s, cast(%(metadata)s as jsonb), %(model)s, %(expires_days)s)"
)
STORES_OF: Final = f"{ON_PRIMARY}select count(*) from llm.vector_stores where {_OWN}"
GET: Final = f"{ON_PRIMARY}select {_STORE} from llm.vector_stores s where id = %(id)s and {_OWN}"
LIST: Final = f"{ON_PRIMARY}select {_STORE} from llm.vector_stores s where {_OWN}"
UPDATE: Final = (
    f"{ON_PRIMARY}update llm.vector_stores set name = %(name)s, metadata = cast(%(metadata)s as jsonb), "
    f"expires_days = %(expires_days)s, last_active_at = now() where id = %(id)s and {_OWN}"
)
DELETE: Final = f"{ON_PRIMARY}update llm.vector_stores set deleted_at = now() where id = %(id)s and {_OWN}"
# Some at a time, so that nobody waits for it. Nobody sees what is in a deleted store, emptied or not.
EMPTY: Final = (
    f"{ON_PRIMARY}update llm.vector_store_files set status = 'deleting', try_at = now() "
    "where store_id = %(store)s and file_id in (select file_id from llm.vector_store_files "
    # In the order of the primary key, from where the last ones ended: else all stores' files are looked through.
    "where store_id = %(store)s and file_id > %(after)s and status <> 'deleting' order by file_id limit 200) "
    "returning file_id"
)
LEFT: Final = (
    f"{ON_PRIMARY}select id from llm.vector_stores s where deleted_at is not null and exists "
    "(select from llm.vector_store_files f where f.store_id = s.id and f.status <> 'deleting') limit 1"
)
# Of several stores: those that are the caller's own and alive, and used by that.
USE: Final = (
    f"{ON_PRIMARY}update llm.vector_stores set last_active_at = now() where id = any(%(ids)s) and {_OWN} "
    f"and ({_EXPIRES} is null or {_EXPIRES} > now()) returning id, model"
)
# A file that is there already begins anew; its lease stays, so that two never work at once.
ADD: Final = (
    f"{ON_PRIMARY}insert into llm.vector_store_files "
    "(store_id, file_id, user_id, batch_id, attributes, max_tokens, overlap_tokens) "
    "select %(store)s, g.file_id, %(user)s, %(batch)s, g.attributes, g.max_tokens, g.overlap_tokens "
    "from jsonb_to_recordset(cast(%(files)s as jsonb)) "
    "as g (file_id text, attributes jsonb, max_tokens integer, overlap_tokens integer) "
    "join llm.files n on n.id = g.file_id and n.user_id = %(user)s "
    "where exists (select from llm.vector_stores where id = %(store)s and deleted_at is null for share) "
    "on conflict (store_id, file_id) do update set "
    "batch_id = excluded.batch_id, attributes = excluded.attributes, max_tokens = excluded.max_tokens, "
    "overlap_tokens = excluded.overlap_tokens, created_at = now(), status = 'in_progress', chunks_done = 0, "
    "usage_bytes = 0, error_code = null, error_message = null, attempts = 0, try_at = now(), "
    f"generation = vector_store_files.generation + 1 returning {_FILE}"
)
FILE: Final = f"{ON_PRIMARY}select {_FILE} from llm.vector_store_files where {_SEEN} and file_id = %(file)s"
FILES: Final = (
    f"{ON_PRIMARY}select {_FILE} from llm.vector_store_files where {_SEEN} "
    "and (%(status)s = '' or status = %(status)s) and (%(batch)s = '' or batch_id = %(batch)s)"
)
# What is being put in begins anew, with the new ones.
SET_ATTRIBUTES: Final = (
    f"{ON_PRIMARY}update llm.vector_store_files set attributes = cast(%(attributes)s as jsonb), "
    "generation = generation + cast(status = 'in_progress' as integer), "
    "chunks_done = case when status = 'in_progress' then 0 else chunks_done end "
    f"where {_SEEN} and file_id = %(file)s returning {_FILE}"
)
TAKE_OUT: Final = (
    f"{ON_PRIMARY}update llm.vector_store_files set status = 'deleting', try_at = now() "
    f"where {_SEEN} and file_id = %(file)s"
)
READY: Final = (
    f"{ON_PRIMARY}select f.store_id, f.file_id, n.filename, f.attributes "
    "from llm.vector_store_files f join llm.files n on n.id = f.file_id "
    "where f.store_id = any(%(stores)s) and f.file_id = any(%(files)s) and f.user_id = %(user)s "
    "and f.status = 'completed' and (n.expires_at is null or n.expires_at > now())"
)
NEW_BATCH: Final = f"{ON_PRIMARY}insert into llm.vector_store_batches (id, store_id) values (%(batch)s, %(store)s)"
_BATCH_COUNTS = ", ".join(
    f"(select count(*) from llm.vector_store_files f where f.batch_id = b.id and f.status = '{status}')"
    for status in ("in_progress", "completed", "failed", "cancelled")
)
BATCH: Final = (
    f"{ON_PRIMARY}select b.id, b.store_id, cast(extract(epoch from b.created_at) as bigint), "
    f"b.cancelled_at is not null, {_BATCH_COUNTS} from llm.vector_store_batches b "
    "join llm.vector_stores s on s.id = b.store_id "
    "where b.id = %(batch)s and b.store_id = %(store)s and s.user_id = %(user)s and s.deleted_at is null"
)
CANCEL: Final = (
    f"{ON_PRIMARY}update llm.vector_store_files set status = 'cancelled', try_at = now() "
    "where batch_id = %(batch)s and store_id = %(store)s and user_id = %(user)s and status = 'in_progress'"
)
CANCELLED: Final = (
    f"{ON_PRIMARY}update llm.vector_store_batches set cancelled_at = coalesce(cancelled_at, now()) "
    "where id = %(batch)s and store_id = %(store)s"
)


class VectorStores:
    """The tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, user_id: str, id: str, *, most: int, files: list[NewFile], **given: Any) -> Store | None:
        """A new store with these files; None where the user has `most` already."""
        values = {**given, "id": id, "user": user_id, "metadata": json.dumps(given["metadata"])}
        async with self._database.connection() as connection:
            row = await (await connection.execute(STORES_OF, values)).fetchone()
            if row is None or row[0] >= most:
                return None
            await connection.execute(CREATE, values)
            if files:
                await connection.execute(ADD, _adding(user_id, id, None, files))
            found = await (await connection.execute(GET, values)).fetchone()
        return None if found is None else Store(*found)

    async def get(self, user_id: str, id: str) -> Store | None:
        """The store."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(GET, {"id": id, "user": user_id})).fetchone()
        return None if row is None else Store(*row)

    async def page(self, user_id: str, page: Page) -> list[Store]:
        """A page of the user's."""
        values = {"user": user_id, **page._asdict()}
        async with self._database.connection() as connection:
            rows = await (await connection.execute(LIST + page_clause("llm.vector_stores", page), values)).fetchall()
        return [Store(*row) for row in rows]

    async def update(self, store: Store) -> None:
        """Name, metadata and expiry become this store's."""
        values = {**store._asdict(), "user": store.user_id, "metadata": json.dumps(store.metadata)}
        async with self._database.connection() as connection:
            await connection.execute(UPDATE, values)

    async def delete(self, user_id: str, id: str) -> bool:
        """Nobody sees it any more, nor what is in it; whether it was there."""
        async with self._database.connection() as connection:
            if not (await connection.execute(DELETE, {"id": id, "user": user_id})).rowcount:
                return False
        await self.empty(id)
        return True

    async def empty(self, id: str) -> None:
        """What is in a deleted store is to go."""
        after: str | None = ""
        while after is not None:
            async with self._database.connection() as connection:
                emptied = await (await connection.execute(EMPTY, {"store": id, "after": after})).fetchall()
            after = max((str(row[0]) for row in emptied), default=None)

    async def left(self) -> str | None:
        """A deleted store in which something is that is not to go yet: where deleting it was broken off."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(LEFT)).fetchone()
        return None if row is None else str(row[0])

    async def use(self, user_id: str, ids: list[str]) -> dict[str, str]:
        """{store: model} of those that may be searched."""
        async with self._database.connection() as connection:
            rows = await (await connection.execute(USE, {"ids": ids, "user": user_id})).fetchall()
        return dict(rows)

    async def add(self, user_id: str, store: str, files: list[NewFile], batch: str | None = None) -> list[StoreFile]:
        """Put files into the store; those that there are none of are left out."""
        async with self._database.connection() as connection:
            if batch is not None:
                await connection.execute(NEW_BATCH, {"batch": batch, "store": store})
            rows = await (await connection.execute(ADD, _adding(user_id, store, batch, files))).fetchall()
        return [StoreFile(*row) for row in rows]

    async def file(self, user_id: str, store: str, file: str) -> StoreFile | None:
        """A file in a store."""
        values = {"user": user_id, "store": store, "file": file}
        async with self._database.connection() as connection:
            row = await (await connection.execute(FILE, values)).fetchone()
        return None if row is None else StoreFile(*row)

    async def files(
        self, user_id: str, store: str, page: Page, *, status: str = "", batch: str = ""
    ) -> list[StoreFile]:
        """A page of a store's, or of a batch's."""
        values = {"user": user_id, "store": store, "status": status, "batch": batch, **page._asdict()}
        end = page_clause("llm.vector_store_files", page, id="file_id", alike="store_id = %(store)s")
        async with self._database.connection() as connection:
            rows = await (await connection.execute(FILES + end, values)).fetchall()
        return [StoreFile(*row) for row in rows]

    async def set_attributes(self, user_id: str, store: str, file: str, attributes: dict[str, Any]) -> StoreFile | None:
        """The file with other attributes."""
        values = {"user": user_id, "store": store, "file": file, "attributes": json.dumps(attributes)}
        async with self._database.connection() as connection:
            row = await (await connection.execute(SET_ATTRIBUTES, values)).fetchone()
        return None if row is None else StoreFile(*row)

    async def take_out(self, user_id: str, store: str, file: str) -> bool:
        """Nobody sees it in the store any more; whether it was there."""
        values = {"user": user_id, "store": store, "file": file}
        async with self._database.connection() as connection:
            return bool((await connection.execute(TAKE_OUT, values)).rowcount)

    async def ready(
        self, user_id: str, stores: list[str], files: list[str]
    ) -> dict[tuple[str, str], tuple[str, dict[str, Any]]]:
        """(filename, attributes) by store and file, of those that are whole."""
        values = {"user": user_id, "stores": stores, "files": files}
        async with self._database.connection() as connection:
            rows = await (await connection.execute(READY, values)).fetchall()
        return {(store, file): (name, attributes) for store, file, name, attributes in rows}

    async def batch(self, user_id: str, store: str, batch: str) -> Batch | None:
        """A batch of files."""
        values = {"user": user_id, "store": store, "batch": batch}
        async with self._database.connection() as connection:
            row = await (await connection.execute(BATCH, values)).fetchone()
        return None if row is None else Batch(*row)

    async def cancel(self, user_id: str, store: str, batch: str) -> Batch | None:
        """The batch; what of it was not put in is not put in any more."""
        values = {"user": user_id, "store": store, "batch": batch}
        async with self._database.connection() as connection:
            row = await (await connection.execute(BATCH, values)).fetchone()
            if row is None:
                return None
            if Batch(*row).in_progress:
                await connection.execute(CANCEL, values)
                await connection.execute(CANCELLED, values)
            row = await (await connection.execute(BATCH, values)).fetchone()
        return None if row is None else Batch(*row)


def _adding(user_id: str, store: str, batch: str | None, files: list[NewFile]) -> dict[str, Any]:
    told = json.dumps([file._asdict() for file in {file.file_id: file for file in files}.values()])
    return {"user": user_id, "store": store, "batch": batch, "files": told}
