"""A backup brought back: in one transaction, so that afterwards there is either all of it, or what there was before."""

from __future__ import annotations

import datetime
import graphlib
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import sqlalchemy
from alembic import command

from citadel_llm.integration.database import migrate, privileges
from citadel_llm.integration.database.connection import locked
from citadel_llm.integration.database.manifest import BLOCK, Manifest, Table, verify
from citadel_llm.integration.database.target import SCHEMA, DatabaseError

__all__ = ["Restored", "restore"]

# Tables that a deployment fills by itself: a schema with rows in these alone holds nothing of anybody's.
_FURNISHED = {"alembic_version", "settings", "roles", "grants", "identity_version"}

_TABLES = f"""
select relname from pg_class where relnamespace = to_regnamespace('{SCHEMA}') and relkind in ('r', 'p')
and not relispartition order by relname
"""  # noqa: S608 — only a constant goes in
_REFERENCES = f"""
select c.relname, f.relname from pg_constraint
join pg_class c on c.oid = conrelid join pg_class f on f.oid = confrelid
where contype = 'f' and connamespace = to_regnamespace('{SCHEMA}') and conparentid = 0 and c.oid <> f.oid
"""  # noqa: S608 — only a constant goes in
_IDENTITIES = f"""
select c.relname, attname from pg_attribute join pg_class c on c.oid = attrelid
where relnamespace = to_regnamespace('{SCHEMA}') and not relispartition and attidentity <> '' and not attisdropped
"""  # noqa: S608 — only a constant goes in
# Those that a partition does not take over from its table.
_STATEMENT_TRIGGERS = """
select pg_get_triggerdef(oid) from pg_trigger
where tgrelid = cast(:parent as regclass) and not tgisinternal and tgtype & 1 = 0
"""
# Each writer's chain: every row's digest is the next one's `previous_digest`, and the last one's is what the next row
# goes on from.
_BROKEN_CHAINS = f"""
with rows as (
  select chain, position, digest, previous_digest,
    lag(position) over w as position_before, lag(digest) over w as digest_before,
    lead(position) over w is null as is_last
  from {SCHEMA}.audit_log window w as (partition by chain order by position)
)
select distinct rows.chain from rows left join {SCHEMA}.audit_chains c on c.chain = rows.chain
where position_before = rows.position - 1 and digest_before <> previous_digest
or is_last and c.chain is not null and (c.position, c.digest) <> (rows.position, rows.digest)
"""  # noqa: S608 — only a constant goes in

# Whoever kept a copy of the identities sees that they are others now, whatever the numbers were.
_OTHER_VERSION = f"""
update {SCHEMA}.identity_version set version = greatest(version, cast(extract(epoch from now()) as bigint))
"""  # noqa: S608 — only a constant goes in


@dataclass(frozen=True)
class Restored:
    """What was brought back; `aside` is the schema that what was there before is kept in."""

    backup: str
    revision: str
    after: str
    rows: int
    aside: str | None
    broken_chains: list[str]


def restore(
    engine: sqlalchemy.Engine,
    folder: Path,
    runtime_user: str,
    *,
    replace: bool = False,
    directory: Path = migrate.MIGRATIONS,
) -> Restored:
    """Bring a backup back as the schema's owner, and the schema then to this release's newest revision.

    Where a schema has rows of somebody's, `replace` says that it may be set aside: it is renamed, not dropped.
    Raises DatabaseError, and then everything is as it was.
    """
    manifest = verify(folder)
    known = migrate.revisions(directory)
    if manifest.revision not in known:
        raise DatabaseError(
            f"{folder.name} is of revision {manifest.revision}, which this release does not know: restore it with "
            f"release {manifest.release}, which made it, or a later one"
        )
    with locked(engine) as connection:
        privileges.need_role(connection, runtime_user)
        aside = _make_room(connection, runtime_user, replace)
        connection.exec_driver_sql(f"create schema {SCHEMA}")
        config = migrate.config(directory, connection)
        command.upgrade(config, manifest.revision)
        _fill(connection, folder, manifest)
        command.upgrade(config, known[-1])
        privileges.bring(connection, runtime_user)
        migrate.partitions(connection)
        connection.exec_driver_sql(_OTHER_VERSION)
        tables = connection.exec_driver_sql(_TABLES).scalars().all()
        for table in tables:
            connection.exec_driver_sql(f'analyze {SCHEMA}."{table}"')
        broken = [str(name) for name in connection.exec_driver_sql(_BROKEN_CHAINS).scalars()]
    return Restored(folder.name, manifest.revision, known[-1], manifest.rows, aside, broken)


def _make_room(connection: sqlalchemy.Connection, runtime_user: str, replace: bool) -> str | None:
    """No schema of the name; the name of the one that what was there is kept in, if it was worth it."""
    if connection.exec_driver_sql(f"select to_regnamespace('{SCHEMA}')").scalar_one() is None:
        return None
    tables = connection.exec_driver_sql(_TABLES).scalars().all()
    used = [
        table for table in tables
        if table not in _FURNISHED and connection.exec_driver_sql(_any(table)).scalar_one()
    ]  # fmt: skip
    if not used:
        connection.exec_driver_sql(f"drop schema {SCHEMA} cascade")
        return None
    if not replace:
        raise DatabaseError(
            f"schema {SCHEMA} has rows in {', '.join(used)}; with --replace it is set aside, under another name"
        )
    aside = f"{SCHEMA}_before_{datetime.datetime.now(datetime.UTC):%Y%m%dt%H%M%S}"
    connection.exec_driver_sql(f"alter schema {SCHEMA} rename to {aside}")
    connection.exec_driver_sql(f"revoke all on schema {aside} from {runtime_user}")
    return aside


def _any(table: str) -> str:
    return f'select exists (select from {SCHEMA}."{table}")'  # noqa: S608 — a name from the catalogue


def _fill(connection: sqlalchemy.Connection, folder: Path, manifest: Manifest) -> None:
    """Every table with its rows, those that others refer to first."""
    graph: dict[str, set[str]] = {table.name: set() for table in manifest.tables}
    live = set(connection.exec_driver_sql(_TABLES).scalars()) - {"alembic_version"}
    if live != set(graph):
        raise DatabaseError(f"{folder.name}: its tables are not those of revision {manifest.revision}")
    for table, referred in connection.exec_driver_sql(_REFERENCES):
        graph[table].add(referred)
    order = list(graphlib.TopologicalSorter(graph).static_order())
    for name in reversed(order):  # what the migrations put in is in the backup too, as it was then
        if connection.exec_driver_sql(_any(name)).scalar_one():
            connection.exec_driver_sql(f'delete from {SCHEMA}."{name}"')  # noqa: S608
    tables = {table.name: table for table in manifest.tables}
    for name in order:
        for partition, bound in tables[name].partitions.items():
            _partition(connection, name, partition, bound)
        _copy(connection, folder, tables[name])
    for table, column in connection.exec_driver_sql(_IDENTITIES).all():
        connection.exec_driver_sql(
            f"select setval(pg_get_serial_sequence('{SCHEMA}.{table}', '{column}'), "  # noqa: S608
            f'(select coalesce(max("{column}"), 0) + 1 from {SCHEMA}."{table}"), false)'
        )


def _partition(connection: sqlalchemy.Connection, parent: str, name: str, bound: str) -> None:
    connection.exec_driver_sql(f'create table {SCHEMA}."{name}" partition of {SCHEMA}."{parent}" {bound}')
    found = connection.execute(sqlalchemy.text(_STATEMENT_TRIGGERS), {"parent": f'{SCHEMA}."{parent}"'})
    for definition in found.scalars().all():
        connection.exec_driver_sql(definition.replace(f" ON {SCHEMA}.{parent} ", f' ON {SCHEMA}."{name}" '))


def _copy(connection: sqlalchemy.Connection, folder: Path, table: Table) -> None:
    columns = ", ".join(f'"{column}"' for column in table.columns)
    driver = connection.connection.driver_connection
    try:
        with cast(Any, driver).cursor() as cursor, gzip.open(folder / table.file) as packed:
            with cursor.copy(f'copy {SCHEMA}."{table.name}" ({columns}) from stdin') as copy:
                while block := packed.read(BLOCK):
                    copy.write(block)
            rows = cursor.rowcount
    except (OSError, EOFError, zlib.error) as error:
        raise DatabaseError(f"{folder / table.file}: {error}") from None
    if rows != table.rows:
        raise DatabaseError(f"{folder / table.file}: {rows} rows, the manifest says {table.rows}")
