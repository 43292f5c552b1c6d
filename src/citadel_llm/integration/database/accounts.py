"""Users, their keys and roles, as rows that are shown and changed. Whoever changes takes `lock` first.

Times are whole seconds since 1970. A row never has a key's digest or a password's hash in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection

__all__ = [
    "add_key",
    "add_role",
    "add_user",
    "change_user",
    "drop_role",
    "find_key",
    "find_role",
    "find_user",
    "grants_of",
    "keys_page",
    "known_roles",
    "lock",
    "other_admins",
    "put_grants",
    "put_roles",
    "revoke_key",
    "roles_page",
    "supersede_key",
    "users_page",
]

type Row = dict[str, Any]

# One change at a time, so that what was looked at before it still holds: rights, the last admin.
_LOCK = "select pg_advisory_xact_lock(hashtext('llm.identity'))"

_USER = """
select cast(u.id as text) as id, u.name, u.display_name, u.email, u.origin, u.disabled_at is not null as disabled,
       u.password_hash is not null as has_password, cast(extract(epoch from u.created_at) as bigint) as created_at,
       array(select r.role from llm.user_roles r where r.user_id = u.id order by r.role) as roles
from llm.users u
"""
_USERS_PAGE = _USER + "where u.name > %(after)s order by u.name limit %(limit)s"
_USER_BY_ID = _USER + "where u.id = %(user)s"
_USER_BY_NAME = _USER + "where u.name = %(user)s"
_ADD_USER = """
insert into llm.users (name, display_name, email, password_hash, origin)
values (%(name)s, %(display_name)s, %(email)s, %(password_hash)s, %(origin)s)
on conflict (name) do nothing returning cast(id as text) as id
"""
_CHANGE_USER = """
update llm.users set
  display_name = coalesce(%(display_name)s, display_name),
  email = case when %(set_email)s then %(email)s else email end,
  password_hash = case when %(set_password)s then %(password_hash)s else password_hash end,
  origin = coalesce(%(origin)s, origin),
  disabled_at = case when cast(%(disabled)s as boolean) is null then disabled_at
                     when %(disabled)s then coalesce(disabled_at, now()) end,
  updated_at = now()
where id = %(id)s
"""
_DROP_ROLES = "delete from llm.user_roles where user_id = %(id)s and not role = any(%(roles)s)"
_GIVE_ROLES = """
insert into llm.user_roles (user_id, role, granted_by)
select %(id)s, role, cast(%(by)s as uuid) from unnest(cast(%(roles)s as text[])) as role on conflict do nothing
"""
_OTHER_ADMINS = """
select count(*) as count from llm.user_roles r join llm.users u on u.id = r.user_id
where r.role = 'admin' and u.disabled_at is null and u.id <> %(id)s
"""

# `at` and `ends_at` are exact: where a page goes on, and when a key ends that takes this one's place.
_KEY = """
select cast(k.id as text) as id, cast(k.user_id as text) as user_id, u.name as user, k.name, k.prefix, k.origin,
       k.models, k.permissions, cast(extract(epoch from k.created_at) as bigint) as created_at,
       cast(extract(epoch from k.expires_at) as bigint) as expires_at,
       cast(extract(epoch from k.revoked_at) as bigint) as revoked_at, cast(k.replaced_by as text) as replaced_by,
       case when k.revoked_at is not null then 'revoked' when k.expires_at <= now() then 'expired' else 'active' end
         as state,
       cast(extract(epoch from k.created_at) * 1000000 as bigint) as at,
       cast(extract(epoch from k.expires_at) as double precision) as ends_at
from llm.api_keys k join llm.users u on u.id = k.user_id
"""
_KEYS_PAGE = (
    _KEY
    + """
where (cast(%(user)s as uuid) is null or k.user_id = %(user)s)
  and (cast(%(at)s as bigint) is null
       or (k.created_at, k.id) < (to_timestamp(0) + %(at)s * interval '1 microsecond', cast(%(id)s as uuid)))
order by k.created_at desc, k.id desc limit %(limit)s
"""
)
_KEY_BY_ID = _KEY + "where k.id = %(id)s"
_ADD_KEY = """
insert into llm.api_keys (user_id, name, prefix, digest, origin, models, permissions, created_by, expires_at)
values (%(user_id)s, %(name)s, %(prefix)s, %(digest)s, %(origin)s, %(models)s, %(permissions)s, cast(%(by)s as uuid),
        to_timestamp(cast(%(expires_at)s as double precision)))
returning cast(id as text) as id
"""
# A key that is replaced works for a while yet, and no longer than it would have.
_SUPERSEDE = """
update llm.api_keys set replaced_by = %(by)s, origin = 'api',
  revoked_at = case when %(overlap_s)s = 0 then now() else revoked_at end,
  expires_at = case when %(overlap_s)s = 0 then expires_at
                    else least(expires_at, now() + %(overlap_s)s * interval '1 second') end
where id = %(id)s
"""
# It is the site's no longer, so that the next deployment does not bring it back.
_REVOKE = "update llm.api_keys set revoked_at = coalesce(revoked_at, now()), origin = 'api' where id = %(id)s"

_ROLE = """
select r.name, r.description, r.built_in, cast(extract(epoch from r.created_at) as bigint) as created_at,
       coalesce((select json_agg(json_build_object('permission', g.permission, 'model', g.model)
                                 order by g.permission, g.model)
                 from llm.grants g where g.role = r.name), '[]') as grants,
       (select count(*) from llm.user_roles u where u.role = r.name) as users
from llm.roles r
"""
_ROLES_PAGE = _ROLE + "where r.name > %(after)s order by r.name limit %(limit)s"
_ROLE_BY_NAME = _ROLE + "where r.name = %(name)s"
_ADD_ROLE = """
insert into llm.roles (name, description) values (%(name)s, %(description)s) on conflict do nothing returning name
"""
_DROP_ROLE = "delete from llm.roles where name = %(name)s"
_DROP_GRANTS = "delete from llm.grants where role = %(name)s"
_GIVE_GRANTS = """
insert into llm.grants (role, permission, model)
select %(name)s, permission, model
from unnest(cast(%(permissions)s as text[]), cast(%(models)s as text[])) as given (permission, model)
"""
_KNOWN_ROLES = "select name from llm.roles where name = any(%(names)s)"
_GRANTS_OF = "select role, permission, model from llm.grants where role = any(%(roles)s)"


async def _all(connection: Connection, statement: str, **values: Any) -> list[Row]:
    from psycopg.rows import dict_row  # noqa: PLC0415 — heavy: only where there is a database

    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(ON_PRIMARY + statement, values)
        return await cursor.fetchall() if cursor.description else []


async def _one(connection: Connection, statement: str, **values: Any) -> Row | None:
    found = await _all(connection, statement, **values)
    return found[0] if found else None


async def lock(connection: Connection) -> None:
    """Wait for other changes; the transaction's end lets the next one begin."""
    await _all(connection, _LOCK)


# Users ---------------------------------------------------------------------------------------------------------------


async def users_page(connection: Connection, after: str, limit: int) -> list[Row]:
    """Users by name, those after `after`."""
    return await _all(connection, _USERS_PAGE, after=after, limit=limit)


async def find_user(connection: Connection, *, name: str | None = None, user_id: str | None = None) -> Row | None:
    """One, by its name or its id, disabled or not."""
    if user_id is not None:
        return await _one(connection, _USER_BY_ID, user=user_id)
    return await _one(connection, _USER_BY_NAME, user=name)


async def add_user(
    connection: Connection,
    name: str,
    *,
    display_name: str = "",
    email: str | None = None,
    password_hash: str | None = None,
    origin: str = "api",
) -> str | None:
    """Its id, None where there is one of that name."""
    values = {"display_name": display_name, "email": email, "password_hash": password_hash, "origin": origin}
    row = await _one(connection, _ADD_USER, name=name, **values)
    return None if row is None else str(row["id"])


async def change_user(connection: Connection, user_id: str, changes: Mapping[str, Any]) -> None:
    """Change what `changes` names: display_name, email, password_hash, disabled, origin."""
    await _all(
        connection,
        _CHANGE_USER,
        id=user_id,
        display_name=changes.get("display_name"),
        set_email="email" in changes,
        email=changes.get("email"),
        set_password="password_hash" in changes,
        password_hash=changes.get("password_hash"),
        disabled=changes.get("disabled"),
        origin=changes.get("origin"),
    )


async def put_roles(connection: Connection, user_id: str, roles: Sequence[str], by: str | None) -> None:
    """Let the user have these roles and no others."""
    await _all(connection, _DROP_ROLES, id=user_id, roles=list(roles))
    await _all(connection, _GIVE_ROLES, id=user_id, roles=list(roles), by=by)


async def other_admins(connection: Connection, user_id: str) -> int:
    """How many admins there are besides this user, disabled ones not counted."""
    row = await _one(connection, _OTHER_ADMINS, id=user_id)
    return int(row["count"]) if row else 0


# Keys ----------------------------------------------------------------------------------------------------------------


async def keys_page(
    connection: Connection, *, user_id: str | None, before: tuple[int, str] | None, limit: int
) -> list[Row]:
    """Keys, the newest first; `before` is the `at` and `id` of the last one that was shown."""
    at, key_id = before or (None, None)
    return await _all(connection, _KEYS_PAGE, user=user_id, at=at, id=key_id, limit=limit)


async def find_key(connection: Connection, key_id: str) -> Row | None:
    """One, whatever its state."""
    return await _one(connection, _KEY_BY_ID, id=key_id)


async def add_key(
    connection: Connection,
    user_id: str,
    name: str,
    *,
    prefix: str,
    digest: bytes,
    models: Sequence[str] | None = None,
    permissions: Sequence[str] | None = None,
    expires_at: float | None = None,
    origin: str = "api",
    by: str | None = None,
) -> str:
    """Its id."""
    row = await _one(
        connection,
        _ADD_KEY,
        user_id=user_id,
        name=name,
        prefix=prefix,
        digest=digest,
        models=None if models is None else list(models),
        permissions=None if permissions is None else list(permissions),
        expires_at=expires_at,
        origin=origin,
        by=by,
    )
    assert row is not None  # noqa: S101 — returning
    return str(row["id"])


async def supersede_key(connection: Connection, key_id: str, by: str, overlap_s: int) -> None:
    """Let the key work for `overlap_s` more, and point to the one that takes its place."""
    await _all(connection, _SUPERSEDE, id=key_id, by=by, overlap_s=overlap_s)


async def revoke_key(connection: Connection, key_id: str) -> None:
    """Let it work no more."""
    await _all(connection, _REVOKE, id=key_id)


# Roles ---------------------------------------------------------------------------------------------------------------


async def roles_page(connection: Connection, after: str, limit: int) -> list[Row]:
    """Roles by name, those after `after`; of a built-in one the grants are the product's, not rows."""
    return await _all(connection, _ROLES_PAGE, after=after, limit=limit)


async def find_role(connection: Connection, name: str) -> Row | None:
    """One."""
    return await _one(connection, _ROLE_BY_NAME, name=name)


async def known_roles(connection: Connection, names: Iterable[str]) -> set[str]:
    """Which of these there are."""
    return {row["name"] for row in await _all(connection, _KNOWN_ROLES, names=list(names))}


async def grants_of(connection: Connection, roles: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """The (permission, model) of each of these roles, where it is one of the site's own."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in await _all(connection, _GRANTS_OF, roles=list(roles)):
        found.setdefault(row["role"], []).append((row["permission"], row["model"]))
    return found


async def add_role(connection: Connection, name: str, description: str) -> bool:
    """Make one, which permits nothing yet; False where there is one of that name."""
    return await _one(connection, _ADD_ROLE, name=name, description=description) is not None


async def put_grants(connection: Connection, name: str, grants: Sequence[tuple[str, str]]) -> None:
    """Let the role permit these (permission, model) and nothing else."""
    await _all(connection, _DROP_GRANTS, name=name)
    given = sorted(set(grants))
    await _all(connection, _GIVE_GRANTS, name=name, permissions=[p for p, _ in given], models=[m for _, m in given])


async def drop_role(connection: Connection, name: str) -> None:
    """Delete it."""
    await _all(connection, _DROP_ROLE, name=name)
