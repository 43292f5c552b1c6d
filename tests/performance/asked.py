"""Everything that the product asks its database beside the audit log: its own functions, whose statements are noted.

    async with noting(place) as (connection, notes):
        await ask_everything(connection, notes)
    notes.asked        # {(what, statement): Asked}

Each call is a transaction that is undone, three times over; a statement's time is the most that it took in the last
two.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

from citadel_llm.integration.database import accounts, audit, budgets, feedback, identity, limits, user_data
from citadel_llm.integration.database.audit import Place
from citadel_llm.integration.database.deployments import Served, record
from citadel_llm.integration.database.files import File, Files, Page
from citadel_llm.integration.database.ingestion import Ingestion
from citadel_llm.integration.database.responses import Answer, Responses
from citadel_llm.integration.database.sessions import Item, Sessions
from citadel_llm.integration.database.target import Target
from citadel_llm.integration.database.vector_stores import NewFile, VectorStores
from citadel_llm.utils.config import Model, Upstream

__all__ = ["Asked", "Notes", "ask_everything", "noting"]

# Of a transaction, not of the tables.
_NOT_ASKED = ("set ", "begin", "rollback", "savepoint", "release", "select pg_advisory_xact_lock")
_LONG_S = 86_400.0
_MANY = 10**9


@dataclass
class Asked:
    """A statement, with what it was asked with last."""

    statement: str
    values: Any
    first_ms: float = 0.0  # the most that it took in the first of the three
    then_ms: float = 0.0  # and in the others
    rows: int = 0


@dataclass
class Notes:
    """What was asked, by the call that asked it and the statement."""

    asked: dict[tuple[str, str], Asked] = field(default_factory=dict)
    call: str = ""
    first: bool = True

    def note(self, statement: str, values: Any, took_ms: float, rows: int) -> None:
        """One more."""
        if statement.rsplit("*/", maxsplit=1)[-1].strip().startswith(_NOT_ASKED):
            return
        found = self.asked.setdefault((self.call, statement), Asked(statement, values))
        found.values, found.rows = values, max(rows, found.rows)
        if self.first:
            found.first_ms = max(found.first_ms, took_ms)
        else:
            found.then_ms = max(found.then_ms, took_ms)


class _Lent:
    """The connection, as the product's functions are lent it."""

    up = True

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    @contextlib.asynccontextmanager
    async def connection(self, timeout_s: float | None = None) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """The same for all: what a call has done is seen by what it does next, and undone with it."""
        yield self._connection


@contextlib.asynccontextmanager
async def noting(place: Target) -> AsyncIterator[tuple[psycopg.AsyncConnection[Any], Notes]]:
    """A connection as the gateway has them, and what is asked by it."""
    notes = Notes()

    class Noted(psycopg.AsyncCursor[Any]):
        async def execute(self, query: Any, params: Any = None, **more: Any) -> Any:
            began = time.perf_counter()
            done = await super().execute(query, params, **more)
            notes.note(str(query), params, (time.perf_counter() - began) * 1000, self.rowcount)
            return done

    connection = await psycopg.AsyncConnection.connect(
        host=place.host, port=place.port, dbname=place.database, user=place.user, password=place.password,
        prepare_threshold=None, autocommit=True, cursor_factory=Noted, options="-c search_path=llm,pg_catalog",
    )  # fmt: skip
    async with connection:
        yield connection, notes


def _id(of: str) -> str:
    """As the data has it: PostgreSQL's cast(md5(of) as uuid)."""
    return str(uuid.UUID(bytes=hashlib.md5(of.encode(), usedforsecurity=False).digest()))


async def ask_everything(connection: psycopg.AsyncConnection[Any], notes: Notes) -> None:
    """Each function of the product once and twice more, for the users that have most."""
    for what, call in _calls(connection).items():
        for turn in range(3):
            notes.call, notes.first = what, turn == 0
            async with connection.transaction(force_rollback=True):
                await call()


def _calls(connection: psycopg.AsyncConnection[Any]) -> dict[str, Callable[[], Awaitable[Any]]]:
    lent: Any = _Lent(connection)
    sessions = Sessions(lent, ttl_s=_LONG_S)
    responses = Responses(lent, sessions, ttl_s=_LONG_S)
    files, stores, ingestion = Files(lent), VectorStores(lent), Ingestion(lent)
    user, quiet, key, at = _id("user1"), _id("user979"), _id("key1-1"), int(time.time()) // 86_400 * 86_400
    items = [Item(f"msg_new_{n}", "message", "user", '{"type": "message", "content": "Hello"}') for n in range(20)]
    new = [NewFile(f"file-{1 + 1000 * n}", {"year": n}, 400, 100) for n in range(1, 51)]
    digest = bytes(32)

    async def everybody() -> None:
        # It sets the isolation first, which nothing may go before.
        for statement in (identity._USERS, identity._GRANTS, identity._KEYS, identity._LIMITS, identity._BUDGETS):
            await connection.execute(statement)
        await identity.read_version(connection)

    async def exported(of: str) -> None:
        async for _ in user_data.export(lent, of):
            pass

    async def expired() -> None:
        for statement in user_data.EXPIRED.values():
            await connection.execute(statement)

    async def recorded() -> None:
        model = Model(upstreams=[Upstream(url="http://127.0.0.1:11403")], max_tokens=4096)
        served = [Served("phi3", 11403, "hub-0123456789ab", "0.32.0")]
        await record(connection, {"phi3": model}, "hx-llm-server-01", [11403], served, "0.1.0")

    async def carried() -> None:
        place = await audit.take(connection, "hx-llm-server-01:1", 0)
        await audit.add(connection, "hx-llm-server-01:1", [], Place(place.position, place.taken, place.digest))
        await audit.make_partitions(connection)

    async def placed() -> None:
        pass

    async def uploaded() -> None:
        file = File("file-new", user, "new.md", "assistants", 1000, digest)
        await files.add(file, placed, ttl_s=None, most=(_MANY, _MANY * 1000, _MANY * 1000))

    async def worked() -> None:
        job = await ingestion.claim(60)
        assert job is not None, "the data has files that are to be put into their stores"
        await ingestion.renew(job, 60, 5)
        await ingestion.completed(job, 10, 1000)
        job = await ingestion.claim(60)
        assert job is not None
        await ingestion.give_back(job)

    async def failed() -> None:
        job = await ingestion.claim(60)
        assert job is not None
        await ingestion.failed(job, "invalid_file", "No.")

    async def role_made() -> None:
        await accounts.add_role(connection, "made", "")
        await accounts.put_grants(connection, "made", [("inference", "phi3")])
        await accounts.drop_role(connection, "made")

    async def key_made() -> None:
        made = await accounts.add_key(connection, user, "made", prefix="ck_made", digest=digest)
        await accounts.supersede_key(connection, key, made, 3600)
        await accounts.revoke_key(connection, made)

    async def user_made() -> None:
        made = await accounts.add_user(connection, "made")
        assert made is not None
        await accounts.put_roles(connection, made, ["developer"], None)
        await accounts.change_user(connection, made, {"disabled": True})

    async def bound() -> None:
        await limits.put_limits(
            connection, "user", quiet,
            {"requests_per_minute": 9, "tokens_per_minute": 9, "concurrent_requests": None},
        )  # fmt: skip
        await limits.drop_limits(connection, "user", quiet)
        await budgets.put_budget(connection, "user", quiet, "day", {"max_requests": 5, "max_tokens": None})
        await budgets.drop_budget(connection, "user", quiet, "day")

    return {
        "identity: the version": lambda: identity.read_version(connection),
        "identity: all of it, as every process reads it": everybody,
        "users: a page": lambda: accounts.users_page(connection, "user-5", 101),
        "users: by name": lambda: accounts.find_user(connection, name="user-500"),
        "users: by id": lambda: accounts.find_user(connection, user_id=user),
        "users: made, given a role, disabled": user_made,
        "users: other admins": lambda: accounts.other_admins(connection, user),
        "keys: a page of all": lambda: accounts.keys_page(connection, user_id=None, before=None, limit=101),
        "keys: a page of a user's": lambda: accounts.keys_page(connection, user_id=user, before=None, limit=101),
        "keys: one": lambda: accounts.find_key(connection, key),
        "keys: made, superseding another, revoked": key_made,
        "keys: used": lambda: audit.touch_keys(connection, [(key, datetime.now(UTC))]),
        "roles: a page": lambda: accounts.roles_page(connection, "", 101),
        "roles: one": lambda: accounts.find_role(connection, "developer"),
        "roles: which there are": lambda: accounts.known_roles(connection, ["developer", "none"]),
        "roles: what they permit": lambda: accounts.grants_of(connection, ["developer", "custom"]),
        "roles: made, given permissions, deleted": role_made,
        "limits: a page": lambda: limits.limits_page(connection, ("user", ""), 101),
        "limits: one": lambda: limits.find_limits(connection, "user", user),
        "budgets: a page": lambda: budgets.budgets_page(connection, ("user", "", ""), 101),
        "budgets: one": lambda: budgets.find_budget(connection, "user", user, "day"),
        "limits and budgets: set and deleted": bound,
        **{
            f"budgets: what {of} has spent": lambda of=of, subject=subject: budgets.spent(
                lent, of, subject, {"day": at, "month": at}
            )
            for of, subject in (("user", user), ("key", key), ("model", "phi3"), ("everyone", "*"))
        },
        "models and deployments: recorded": recorded,
        "audit: rows carried": carried,
        "conversations: made with items": lambda: sessions.create(user, "conv_new", {"a": "b"}, items),
        "conversations: one": lambda: sessions.get(user, "conv_1000"),
        "conversations: changed": lambda: sessions.update(user, "conv_1000", {"a": "b"}),
        "conversations: a page": lambda: sessions.page(user, "", 101),
        "conversations: a page in the middle": lambda: sessions.page(user, "conv_50000", 101),
        "conversations: items added": lambda: sessions.add(user, "conv_1000", items, _MANY, _MANY),
        "conversations: an item": lambda: sessions.item(user, "conv_1000", "msg_1000_5"),
        "conversations: a page of items": lambda: sessions.items(user, "conv_1000", "", 101, descending=True),
        "conversations: a page of items in the middle": lambda: sessions.items(
            user, "conv_1000", "msg_1000_5", 101, descending=False
        ),
        "conversations: all items": lambda: sessions.history(user, "conv_1000"),
        "conversations: an item deleted": lambda: sessions.delete_item(user, "conv_1000", "msg_1000_5"),
        "conversations: deleted": lambda: sessions.delete(user, "conv_1000"),
        "responses: one": lambda: responses.get(user, "resp_1000"),
        "responses: one with the 299 before it": lambda: responses.chain(user, "resp_300000", 10_000, _MANY),
        "responses: kept in a conversation, those before it kept longer": lambda: responses.keep(
            Answer("resp_new", user, "phi3", items[:1], items[1:2], "{}", "req-new", conversation="conv_1000"),
            [f"resp_{1000 * n}" for n in range(1, 301)],
        ),
        "responses: deleted": lambda: responses.delete(user, "resp_1000"),
        "conversations and responses: those that have expired are deleted": expired,
        "feedback: given": lambda: feedback.put(lent, user, "req-new", 1, 5, ["good"], "Yes."),
        "feedback: a page": lambda: feedback.page(lent, user, "", 101),
        "feedback: deleted": lambda: feedback.delete(lent, user, "fb-1000"),
        "a user's data: exported, page by page": lambda: exported(quiet),
        "a user's data: deleted": lambda: user_data.delete(lent, quiet),
        "a user's data: whether there is such a user": lambda: user_data.exists(lent, user),
        "files: uploaded": uploaded,
        "files: one": lambda: files.get(user, "file-1000"),
        "files: several": lambda: files.many(user, [f"file-{1000 * n}" for n in range(1, 101)]),
        "files: a page": lambda: files.page(user, Page(101)),
        "files: a page in the middle": lambda: files.page(user, Page(101, after="file-100000")),
        "files: a page of one purpose": lambda: files.page(user, Page(101), "batch"),
        "files: deleted": lambda: files.delete(user, "file-1000"),
        "files: whose time is over": files.expired,
        "files: which contents nobody has": lambda: files.nobodys([digest, *(bytes([n]) * 32 for n in range(200))]),
        "files: a content that nobody has any more": lambda: files.release(digest, placed),
        "stores: made": lambda: stores.create(
            user, "vs_new", most=_MANY, files=new, name="n", description="", metadata={}, model="minilm",
            expires_days=None,
        ),
        "stores: one": lambda: stores.get(user, "vs_1000"),
        "stores: a page": lambda: stores.page(user, Page(101)),
        "stores: used": lambda: stores.use(user, ["vs_1000", "vs_2000"]),
        "stores: files added": lambda: stores.add(user, "vs_1000", new, "vsb_new"),
        "stores: a file": lambda: stores.file(user, "vs_1000", "file-1000"),
        "stores: a page of files": lambda: stores.files(user, "vs_1000", Page(101)),
        "stores: a page of files that failed": lambda: stores.files(user, "vs_1000", Page(101), status="failed"),
        "stores: a file's attributes set": lambda: stores.set_attributes(user, "vs_1000", "file-1000", {"a": 1}),
        "stores: a file taken out": lambda: stores.take_out(user, "vs_1000", "file-1000"),
        "stores: what of a search's findings is whole": lambda: stores.ready(
            user, ["vs_1000", "vs_2000"], [f"file-{1000 * n}" for n in range(1, 51)]
        ),
        "stores: a batch": lambda: stores.batch(user, "vs_1000", "vsb_1000"),
        "stores: a batch cancelled": lambda: stores.cancel(user, "vs_1000", "vsb_1000"),
        "stores: deleted": lambda: stores.delete(user, "vs_1000"),
        "stores: deleted ones that are not empty yet": stores.left,
        "ingestion: a file taken up, worked on, done": worked,
        "ingestion: a file that cannot be read": failed,
        "ingestion: stores that nobody used": ingestion.sweep,
        "ingestion: how much waits": ingestion.waiting,
    }  # fmt: skip
