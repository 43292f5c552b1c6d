"""Who may do what, as the database has it: read whole, in one transaction, so that all of it is of one moment.

What a gateway holds of it is made in `api/identity/directory.py`; what changes it is in `accounts.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection

__all__ = [
    "BoundRow",
    "BudgetRow",
    "GrantRow",
    "Identities",
    "KeyRow",
    "UserRow",
    "read_identities",
    "read_version",
]

_CHUNK = 500  # rows between two pauses: about a millisecond
_TIMEOUT_S = 30

_VERSION = "select version from llm.identity_version"
_USERS = """
select cast(u.id as text), u.name, u.password_hash, array(
  select r.role from llm.user_roles r where r.user_id = u.id order by r.role
) from llm.users u where u.disabled_at is null order by u.id
"""
_GRANTS = """
select g.role, g.permission, g.model from llm.grants g join llm.roles r on r.name = g.role where not r.built_in
order by g.role, g.permission, g.model
"""
_KEYS = """
select k.digest, cast(k.id as text), cast(k.user_id as text), k.name,
       cast(extract(epoch from k.expires_at) as double precision), k.models, k.permissions
from llm.api_keys k join llm.users u on u.id = k.user_id
where k.revoked_at is null and u.disabled_at is null and (k.expires_at is null or k.expires_at > now())
order by k.id
"""
_LIMITS = """
select scope, subject, requests_per_minute, tokens_per_minute, concurrent_requests from llm.limits
order by scope, subject
"""
_BUDGETS = """
select scope, subject, period, max_requests, max_tokens from llm.budgets order by scope, subject, period
"""


class UserRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A user that is not disabled."""

    id: str
    name: str
    password_hash: str | None  # argon2id
    roles: list[str]


class GrantRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a role of the site's own permits."""

    role: str
    permission: str
    model: str


class KeyRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A key that is neither revoked nor expired, of a user that is not disabled."""

    digest: bytes
    id: str
    user_id: str
    name: str
    expires_at: float | None  # seconds since 1970
    models: list[str] | None  # none: every model that its user may use
    permissions: list[str] | None  # none: everything that its user may do


class BoundRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Bounds in each minute and at once."""

    scope: str
    subject: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None


class BudgetRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Bounds in a day or a month."""

    scope: str
    subject: str
    period: str
    max_requests: int | None
    max_tokens: int | None


class Identities(msgspec.Struct, forbid_unknown_fields=True):
    """All of it."""

    version: int
    read_at: float  # seconds since 1970
    users: list[UserRow]
    grants: list[GrantRow]
    keys: list[KeyRow]
    limits: list[BoundRow]
    budgets: list[BudgetRow]


async def read_version(connection: Connection) -> int:
    """The number that rises with every change."""
    row = await (await connection.execute(ON_PRIMARY + _VERSION)).fetchone()
    if row is None:
        raise LookupError("llm.identity_version has no row")
    version: int = row[0]
    return version


async def read_identities(connection: Connection) -> Identities:
    """Read everything; `connection` has begun no transaction yet. The loop goes on in between."""
    await connection.execute("set transaction isolation level repeatable read read only")
    await connection.execute(f"set local statement_timeout = '{_TIMEOUT_S}s'")
    version = await read_version(connection)
    return Identities(
        version=version,
        read_at=time(),
        users=await _rows(connection, _USERS, UserRow),
        grants=await _rows(connection, _GRANTS, GrantRow),
        keys=await _rows(connection, _KEYS, KeyRow),
        limits=await _rows(connection, _LIMITS, BoundRow),
        budgets=await _rows(connection, _BUDGETS, BudgetRow),
    )


async def _rows[Row](connection: Connection, statement: str, make: Callable[..., Row]) -> list[Row]:
    cursor = await connection.execute(ON_PRIMARY + statement)
    found: list[Row] = []
    while rows := await cursor.fetchmany(_CHUNK):
        found += [_made(make, row) for row in rows]
        await asyncio.sleep(0)
    return found


def _made[Row](make: Callable[..., Row], row: tuple[Any, ...]) -> Row:
    return make(*row)
