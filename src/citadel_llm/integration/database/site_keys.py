"""The keys that a site declares in its secrets file, brought into the database as declared; and a first admin's key.

A declared key belongs to the user of its name, which is made where there is none. What is declared no longer is
revoked, and a user that was made for it is disabled. A key that somebody has revoked by the admin API, or whose user
was disabled by it, stays so: it is told, and wants another one in its place.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import psycopg
from msgspec import Meta

from citadel_llm.integration.database import accounts
from citadel_llm.integration.database.target import ON_PRIMARY, DatabaseError, Target
from citadel_llm.utils.keys import PREFIX_LENGTH, digest_of, new_key, pepper_of

__all__ = ["Declared", "Outcome", "bring_keys"]

_FIRST = "admin"  # the first admin's name
_CONNECT_TIMEOUT_S = 10

_SITE_USERS = """
select cast(id as text), name, disabled_at is not null from llm.users where origin = 'site'
"""
_SITE_KEYS = """
select k.digest, cast(k.id as text), k.name, k.revoked_at is not null, u.name from llm.api_keys k
join llm.users u on u.id = k.user_id where k.origin = 'site'
"""
_OTHERS_DIGESTS = "select digest from llm.api_keys where origin <> 'site' and digest = any(%s)"
_REVOKE = "update llm.api_keys set revoked_at = now() where id = any(%s)"
_RESTORE = """
update llm.api_keys set revoked_at = null, name = %s, user_id = %s where id = %s
"""
# A key that may do whatever its user may, of an admin that is not disabled.
_ADMIN_KEYS = """
select count(*) from llm.api_keys k join llm.users u on u.id = k.user_id join llm.user_roles r on r.user_id = u.id
where r.role = 'admin' and u.disabled_at is null and k.revoked_at is null and k.models is null
  and k.permissions is null and (k.expires_at is null or k.expires_at > now())
"""


class Key(msgspec.Struct, forbid_unknown_fields=True):
    """One that is declared."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    key: Annotated[str, Meta(min_length=16, max_length=512)]
    role: Annotated[str, Meta(min_length=1, max_length=63)] = "admin"

    def __repr__(self) -> str:
        return f"Key({self.name!r}, ...)"


class Declared(msgspec.Struct, forbid_unknown_fields=True):
    """All of them, and the secret that they are digested with."""

    pepper: str
    keys: list[Key]

    def __repr__(self) -> str:
        return f"Declared({len(self.keys)} keys)"


@dataclass
class Outcome:
    """What was done, or would be; by names, without any key."""

    changed: bool = False
    added: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # revoked by somebody, and declared still
    disabled: list[str] = field(default_factory=list)  # users
    roles: list[str] = field(default_factory=list)  # users whose role is another one now
    admin_key_file: str | None = None

    def facts(self) -> dict[str, Any]:
        """As it is told."""
        return asdict(self)


type _Connection = psycopg.AsyncConnection[tuple[Any, ...]]


async def bring_keys(
    target: Target, declared: Declared, *, admin_key_file: Path | None, dry_run: bool = False
) -> Outcome:
    """Do it in one transaction. A first admin's key is made where `admin_key_file` says where to write it.

    Raises DatabaseError, ConfigError for a pepper that is too short, and OSError where the file can't be written.
    """
    pepper = pepper_of(declared.pepper)
    outcome = Outcome()
    try:
        connection = await psycopg.AsyncConnection.connect(
            host=target.host,
            port=target.port,
            dbname=target.database,
            user=target.user,
            password=target.password,
            application_name="citadel-identity",
            connect_timeout=_CONNECT_TIMEOUT_S,
            prepare_threshold=None,
        )
        async with connection:
            await accounts.lock(connection)
            await _bring(connection, declared, pepper, outcome)
            if admin_key_file is not None and not (await _rows(connection, _ADMIN_KEYS))[0][0]:
                outcome.admin_key_file = str(admin_key_file)
                await _first_admin(connection, pepper, None if dry_run else admin_key_file)
            found = outcome.facts()
            outcome.changed = any(value for name, value in found.items() if name != "refused")
            if dry_run:
                await connection.rollback()
    except psycopg.Error as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DatabaseError(f"{target.host}:{target.port}, {target.database} as {target.user}: {said}") from None
    return outcome


async def _rows(connection: _Connection, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(ON_PRIMARY + statement, values)
    return await cursor.fetchall() if cursor.description else []


async def _bring(connection: _Connection, declared: Declared, pepper: bytes, outcome: Outcome) -> None:
    wanted = {digest_of(key.key.encode(), pepper): key for key in declared.keys}
    roles: dict[str, set[str]] = {}
    for key in declared.keys:
        roles.setdefault(key.name.lower(), set()).add(key.role)
    if roles.get(_FIRST, {"admin"}) != {"admin"}:
        # Else each play would make that user an admin again, and a key for it, and the next take the role away.
        raise DatabaseError(f"the declared key `{_FIRST}`: that is the first admin's name; name it otherwise")
    missing = {key.role for key in declared.keys} - await accounts.known_roles(
        connection, {k.role for k in declared.keys}
    )
    if missing:
        raise DatabaseError(f"no such role: {', '.join(sorted(missing))}")
    ids = {name: await _user(connection, name, sorted(held), outcome) for name, held in roles.items()}
    taken = {digest for (digest,) in await _rows(connection, _OTHERS_DIGESTS, list(wanted))}
    kept = {digest: row for digest, *row in await _rows(connection, _SITE_KEYS)}
    for digest, key in wanted.items():
        user = key.name.lower()
        if digest in taken:
            outcome.refused.append(key.name)
        elif digest not in kept:
            prefix = key.key[:PREFIX_LENGTH] if len(key.key) >= 3 * PREFIX_LENGTH else key.key[:4]
            await accounts.add_key(connection, ids[user], key.name, prefix=prefix, digest=digest, origin="site")
            outcome.added.append(key.name)
        else:
            key_id, name, revoked, owner = kept[digest]
            if revoked or (name, owner) != (key.name, user):
                await _rows(connection, _RESTORE, key.name, ids[user], key_id)
                outcome.restored.append(key.name)
    gone = [
        (key_id, name) for digest, (key_id, name, revoked, _) in kept.items() if digest not in wanted and not revoked
    ]
    if gone:
        await _rows(connection, _REVOKE, [key_id for key_id, _ in gone])
        outcome.revoked = sorted(name for _, name in gone)
    for user_id, name, disabled in await _rows(connection, _SITE_USERS):
        if name not in roles and not disabled and name != _FIRST:
            await accounts.change_user(connection, user_id, {"disabled": True})
            outcome.disabled.append(name)


async def _user(connection: _Connection, name: str, roles: list[str], outcome: Outcome) -> str:
    """The id of the user of that name, with at least these roles; one of the site's own has no others."""
    found = await accounts.find_user(connection, name=name)
    if found is None:
        made = await accounts.add_user(connection, name, origin="site")
        assert made is not None  # noqa: S101 — the lock is held
        await accounts.put_roles(connection, made, roles, None)
        return made
    user_id: str = found["id"]
    have = set(found["roles"])
    will = set(roles) if found["origin"] == "site" else have | set(roles)
    if will != have:
        await accounts.put_roles(connection, user_id, sorted(will), None)
        outcome.roles.append(name)
    if found["disabled"] and found["origin"] == "site":
        await accounts.change_user(connection, user_id, {"disabled": False})
        outcome.restored.append(name)
    elif found["disabled"]:
        outcome.refused.append(name)
    return user_id


async def _first_admin(connection: _Connection, pepper: bytes, path: Path | None) -> None:
    """A key for the user `admin`: in the file before it is in the database, for one that nobody has is of no use."""
    found = await accounts.find_user(connection, name=_FIRST)
    user_id = found["id"] if found else await accounts.add_user(connection, _FIRST, display_name="The first admin")
    assert user_id is not None  # noqa: S101 — the lock is held
    await accounts.change_user(connection, user_id, {"disabled": False})
    await accounts.put_roles(connection, user_id, sorted({"admin", *(found["roles"] if found else ())}), None)
    key = new_key()
    if path is not None:
        _write(path, key)
    await accounts.add_key(
        connection, user_id, "first", prefix=key[:PREFIX_LENGTH], digest=digest_of(key.encode(), pepper)
    )


def _write(path: Path, key: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
