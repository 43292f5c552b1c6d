"""What the run-time role may do: said once here, and brought about, or found to be otherwise, in any database.

Privileges are no part of a revision, since the role's name is the site's choice.
"""

from __future__ import annotations

import re

import sqlalchemy

from citadel_llm.integration.database.target import SCHEMA, DatabaseError

__all__ = ["WANTED", "bring", "excesses", "need_role"]

_READ = ("SELECT",)
_ADD = ("INSERT", "SELECT")
_KEEP = ("INSERT", "SELECT", "UPDATE")
_ALL = ("DELETE", "INSERT", "SELECT", "UPDATE")
_TABLES = {
    "alembic_version": _READ,
    "settings": _READ,
    "models": _KEEP,
    "deployments": _KEEP,
    "users": _KEEP,
    "roles": _ALL,
    "grants": _ALL,
    "user_roles": _ALL,
    "api_keys": _KEEP,
    "sessions": _ALL,
    "messages": _ALL,
    "responses": _ALL,
    "audit_log": _ADD,
    "audit_chains": _KEEP,
    "usage_rollups": _KEEP,
    "feedback": _ALL,
    "budgets": _ALL,
    "limits": _ALL,
    "identity_version": _READ,
    "files": _ALL,
    "vector_stores": _ALL,
    "vector_store_batches": _ALL,
    "vector_store_files": _ALL,
}
_FUNCTIONS = (
    "audit_missing_partitions(integer)",
    "audit_make_partitions(integer)",
    "audit_drop_partitions()",
)

# (kind and name of the object, privilege)
WANTED: frozenset[tuple[str, str]] = frozenset(
    [(f"schema {SCHEMA}", "USAGE")]
    + [(f"table {SCHEMA}.{table}", privilege) for table, privileges in _TABLES.items() for privilege in privileges]
    + [(f"function {SCHEMA}.{function}", "EXECUTE") for function in _FUNCTIONS]
)

_LIVE = f"""
select 'schema ' || nspname, privilege_type
from pg_namespace, aclexplode(nspacl) where nspname = '{SCHEMA}' and grantee = :role
union all
select case relkind when 'S' then 'sequence ' else 'table ' end || '{SCHEMA}.' || relname, privilege_type
from pg_class, aclexplode(relacl) where relnamespace = to_regnamespace('{SCHEMA}') and grantee = :role
union all
select 'table {SCHEMA}.' || relname || ' (' || attname || ')', privilege_type
from pg_attribute join pg_class c on c.oid = attrelid, aclexplode(attacl)
where relnamespace = to_regnamespace('{SCHEMA}') and grantee = :role
union all
select 'function ' || cast(cast(p.oid as regprocedure) as text), privilege_type
from pg_proc p, aclexplode(proacl) where pronamespace = to_regnamespace('{SCHEMA}') and grantee = :role
"""  # noqa: S608 — only a constant goes in

# Ways around the list above, each of which must not be.
_EXCESSES = f"""
select 'is a superuser' from pg_roles where oid = :role and rolsuper
union all select 'may create roles' from pg_roles where oid = :role and rolcreaterole
union all select 'may create databases' from pg_roles where oid = :role and rolcreatedb
union all select 'passes row security by' from pg_roles where oid = :role and rolbypassrls
union all select 'is a member of ' || r.rolname from pg_auth_members m join pg_roles r on r.oid = m.roleid
where m.member = :role
union all select 'may create schemas in the database'
where has_database_privilege(cast(:role as oid), current_database(), 'CREATE')
union all select 'may create objects in schema ' || nspname from pg_namespace
where nspname in ('public', '{SCHEMA}') and has_schema_privilege(cast(:role as oid), oid, 'CREATE')
union all select 'owns ' || cast(oid as regclass) from pg_class
where relnamespace = to_regnamespace('{SCHEMA}') and relowner = :role
"""  # noqa: S608 — only a constant goes in


def need_role(connection: sqlalchemy.Connection, name: str) -> int:
    """The role's oid; raises `DatabaseError` that says how to make it."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
        raise DatabaseError(f"run-time role {name!r}: use lower-case letters, digits and underscores")
    found = connection.execute(sqlalchemy.text("select oid from pg_roles where rolname = :name"), {"name": name})
    oid = found.scalar_one_or_none()
    if oid is None:
        raise DatabaseError(
            f"there is no role {name!r}. On the database's host: create role {name} login password '…', grant connect "
            "and temporary on the database to it, give Pgpool-II an entry with `pg_enc`, and reload it"
        )
    return int(oid)


def bring(connection: sqlalchemy.Connection, name: str, dry_run: bool = False) -> list[str]:
    """Grant what is missing and revoke what is too much; the statements, done or to be done."""
    role = need_role(connection, name)
    rows = connection.execute(sqlalchemy.text(_LIVE), {"role": role})
    live = {(thing, privilege) for thing, privilege in rows}
    statements = [f"grant {privilege} on {thing} to {name}" for thing, privilege in sorted(WANTED - live)]
    statements += [_revoke(thing, privilege, name) for thing, privilege in sorted(live - WANTED)]
    for statement in [] if dry_run else statements:
        connection.exec_driver_sql(statement)
    return statements


def excesses(connection: sqlalchemy.Connection, name: str) -> list[str]:
    """What the role could do beside its privileges, and should not."""
    role = need_role(connection, name)
    return [str(line) for line in connection.execute(sqlalchemy.text(_EXCESSES), {"role": role}).scalars()]


def _revoke(thing: str, privilege: str, name: str) -> str:
    if column := re.fullmatch(r"(table \S+) (\(.+\))", thing):
        return f"revoke {privilege} {column[2]} on {column[1]} from {name}"
    return f"revoke {privilege} on {thing} from {name}"
