"""Whether the live schema is what the migrations make: both as lines of text, so that a difference can be read.

`migrations/schema.txt` is what the newest revision makes; `citadel database schema` prints the live one in its form.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy

from citadel_llm.integration.database import privileges
from citadel_llm.integration.database.migrate import MIGRATIONS, current, is_newer, revisions
from citadel_llm.integration.database.target import SCHEMA

__all__ = ["differences", "lines"]

# Partitions are left out, since months come and go; that none lacks a trigger of its parent is asked apart.
_LINES = f"""
with
  tables as (
    select oid, relname, relkind, relowner, relacl, relrowsecurity from pg_class
    where relnamespace = to_regnamespace('{SCHEMA}') and relkind in ('r', 'p', 'v', 'm', 'f') and not relispartition
  ),
  partitions as (
    select inhrelid as oid, c.relname, t.relname as parent, t.oid as parent_oid
    from pg_inherits join tables t on t.oid = inhparent join pg_class c on c.oid = inhrelid
  )
select 'table ' || relname || case relkind when 'p' then ' partition by ' || pg_get_partkeydef(oid) when 'r' then ''
  else ' of kind ' || cast(relkind as text) end || case when relrowsecurity then ' with row security' else '' end
from tables
union all
select 'column ' || relname || '.' || attname || ' ' || format_type(atttypid, atttypmod)
  || case when attnotnull then ' not null' else '' end
  || coalesce(' default ' || pg_get_expr(adbin, adrelid), '')
  || case attidentity when '' then '' else ' identity ' || cast(attidentity as text) end
from tables join pg_attribute a on attrelid = tables.oid and attnum > 0 and not attisdropped
left join pg_attrdef d on d.adrelid = attrelid and d.adnum = attnum
union all
select 'constraint ' || relname || '.' || conname || ' ' || pg_get_constraintdef(c.oid)
  || case when convalidated then '' else ' (not validated)' end
from tables join pg_constraint c on conrelid = tables.oid where contype in ('p', 'u', 'f', 'c', 'x')
union all
select 'index ' || relname || ' ' || pg_get_indexdef(indexrelid) || case when indisvalid then '' else ' (invalid)' end
from tables join pg_index on indrelid = tables.oid
union all
select 'trigger ' || relname || ' ' || cast(tgenabled as text) || ' ' || pg_get_triggerdef(t.oid)
from tables join pg_trigger t on tgrelid = tables.oid where not tgisinternal
union all
select 'missing trigger ' || t.tgname || ' of ' || p.relname
from partitions p join pg_trigger t on t.tgrelid = p.parent_oid and not t.tgisinternal
where not exists (
  select from pg_trigger own where own.tgrelid = p.oid and own.tgfoid = t.tgfoid and own.tgtype = t.tgtype
  and own.tgenabled = t.tgenabled
)
union all
select 'sequence ' || c.relname from pg_class c
where relnamespace = to_regnamespace('{SCHEMA}') and relkind = 'S'
and not exists (select from pg_depend where objid = c.oid and deptype = 'i')
union all
select 'function ' || proname || '(' || pg_get_function_identity_arguments(p.oid) || ')'
  || case when prosecdef then ' security definer' else '' end || ' ' || md5(pg_get_functiondef(p.oid))
from pg_proc p where pronamespace = to_regnamespace('{SCHEMA}') and prokind in ('f', 'p')
union all
select 'type ' || typname from pg_type t
where typnamespace = to_regnamespace('{SCHEMA}') and typtype in ('d', 'e', 'r')
union all
select 'to everyone: ' || privilege_type || ' on ' || relname
from tables, aclexplode(relacl) where grantee = 0
union all
select 'to everyone: ' || privilege_type || ' on function ' || proname
from pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))
where pronamespace = to_regnamespace('{SCHEMA}') and grantee = 0
union all
select 'to everyone: ' || privilege_type || ' on the schema'
from pg_namespace, aclexplode(nspacl) where nspname = '{SCHEMA}' and grantee = 0
union all
select 'not owned by the owner of the schema: ' || relname
from tables join pg_namespace n on n.nspname = '{SCHEMA}' where relowner <> nspowner
"""  # noqa: S608 — only a constant goes in


def lines(connection: sqlalchemy.Connection) -> list[str]:
    """The live schema, one line a thing, sorted."""
    return sorted(str(line) for line in connection.exec_driver_sql(_LINES).scalars())


def differences(connection: sqlalchemy.Connection, runtime_user: str, directory: Path = MIGRATIONS) -> list[str]:
    """Everything in which the live schema is not what this release's migrations make; none is good.

    A schema that a later release made is not compared: this release does not know it.
    """
    revision = current(connection)
    if is_newer(revision, directory):
        return []
    if revision != revisions(directory)[-1]:
        return [f"revision: {revision or 'none'}, this release's is {revisions(directory)[-1]}"]
    wanted, live = set((directory / "schema.txt").read_text().splitlines()), set(lines(connection))
    found = [f"missing: {line}" for line in sorted(wanted - live)]
    found += [f"unknown: {line}" for line in sorted(live - wanted)]
    found += [f"privileges: {line}" for line in privileges.bring(connection, runtime_user, dry_run=True)]
    found += [f"run-time role {runtime_user} {line}" for line in privileges.excesses(connection, runtime_user)]
    if missing := connection.exec_driver_sql(f"select {SCHEMA}.audit_missing_partitions(1)").scalar_one():
        found.append(f"audit_log: {missing} of the partitions for this month and the next are missing")
    return found
