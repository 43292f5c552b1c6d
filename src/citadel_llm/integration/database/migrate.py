"""The schema, forward and backward: one revision, one transaction, one deployer at a time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from citadel_llm.integration.database import privileges
from citadel_llm.integration.database.connection import locked
from citadel_llm.integration.database.target import SCHEMA, DatabaseError

__all__ = ["MIGRATIONS", "Outcome", "config", "current", "downgrade", "is_newer", "partitions", "revisions", "upgrade"]

MIGRATIONS = Path(__file__).with_name("migrations")
MONTHS_AHEAD = 2

_SETTINGS = "select name, value from llm.settings"
_SET = """
insert into llm.settings (name, value) values (:name, to_jsonb(cast(:value as integer)))
on conflict (name) do update set value = excluded.value, updated_at = now()
"""


@dataclass
class Outcome:
    """What an upgrade or a downgrade did, or would do."""

    before: str | None
    after: str | None
    applied: list[str] = field(default_factory=list)
    privileges: list[str] = field(default_factory=list)
    partitions: int = 0
    settings: list[str] = field(default_factory=list)
    newer: bool = False
    drift: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.applied or self.privileges or self.partitions or self.settings)

    def facts(self) -> dict[str, Any]:
        return {"changed": self.changed, **asdict(self)}


def revisions(directory: Path = MIGRATIONS) -> list[str]:
    """The names of all revisions of this release, the oldest first."""
    return [script.revision for script in reversed(list(_script(directory).walk_revisions()))]


def current(connection: sqlalchemy.Connection) -> str | None:
    """The live schema's revision, or None where there is none."""
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    return context.get_current_revision()


def is_newer(revision: str | None, directory: Path = MIGRATIONS) -> bool:
    """Whether a later release made the live schema. Revisions are numbers, so that an older release knows."""
    known = revisions(directory)
    if revision is None or revision in known:
        return False
    if revision.isdigit() and int(revision) > int(known[-1]):
        return True
    raise DatabaseError(f"the live schema is of a revision that no release has: {revision!r}")


def upgrade(
    engine: sqlalchemy.Engine,
    runtime_user: str,
    *,
    settings: dict[str, int] | None = None,
    dry_run: bool = False,
    directory: Path = MIGRATIONS,
) -> Outcome:
    """Bring the schema to this release's newest revision, and what the run-time role may do with it.

    A schema that a later release made is left as it is: that release keeps it working for this one.
    """
    outcome: Outcome | None = None
    while True:
        with locked(engine) as connection:
            before = current(connection)
            outcome = outcome or Outcome(before=before, after=before)
            outcome.newer = is_newer(before, directory)
            pending = [] if outcome.newer else _after(revisions(directory), before)
            if dry_run and pending:
                outcome.applied, outcome.after = pending, pending[-1]
                return outcome
            if not pending:
                outcome.after = before
                if not outcome.newer:
                    privileges.need_role(connection, runtime_user)
                    outcome.settings = _set(connection, settings or {}, dry_run)
                    outcome.privileges = privileges.bring(connection, runtime_user, dry_run)
                    outcome.partitions = partitions(connection, dry_run)
                return outcome
            privileges.need_role(connection, runtime_user)
            connection.exec_driver_sql(f"create schema if not exists {SCHEMA}")
            command.upgrade(config(directory, connection), pending[0])
            outcome.applied.append(pending[0])


def downgrade(engine: sqlalchemy.Engine, revision: str, *, directory: Path = MIGRATIONS) -> Outcome:
    """Take the schema back to a revision, or to `base`: nothing, not even the schema's own name."""
    outcome: Outcome | None = None
    known = revisions(directory)
    if revision != "base" and revision not in known:
        raise DatabaseError(f"no revision {revision!r}; there are: base, {', '.join(known)}")
    while True:
        with locked(engine) as connection:
            before = current(connection)
            outcome = outcome or Outcome(before=before, after=before)
            if is_newer(before, directory):
                raise DatabaseError(f"the schema is of revision {before}: only the release that made it takes it back")
            outcome.after = before
            if before is None or before == revision:
                return outcome
            position = known.index(before)
            if revision != "base" and known.index(revision) > position:
                raise DatabaseError(f"the schema is of revision {before}, before {revision}: that is an upgrade")
            to = known[position - 1] if position else "base"
            command.downgrade(config(directory, connection), to)
            outcome.applied.append(before)
            if to == "base":
                connection.exec_driver_sql(f"drop table {SCHEMA}.alembic_version")
                connection.exec_driver_sql(f"drop schema {SCHEMA}")


def _after(known: list[str], revision: str | None) -> list[str]:
    return known[known.index(revision) + 1 :] if revision else known


def _set(connection: sqlalchemy.Connection, wanted: dict[str, int], dry_run: bool) -> list[str]:
    """Names of the settings that changed."""
    live = {name: value for name, value in connection.exec_driver_sql(_SETTINGS)}  # noqa: C416 — rows are no pairs
    changed = [name for name, value in wanted.items() if live.get(name) != value]
    for name in [] if dry_run else changed:
        connection.execute(sqlalchemy.text(_SET), {"name": name, "value": wanted[name]})
    return changed


def partitions(connection: sqlalchemy.Connection, dry_run: bool = False) -> int:
    """How many partitions of the audit log were made, or are missing."""
    function = "audit_missing_partitions" if dry_run else "audit_make_partitions"
    return int(connection.exec_driver_sql(f"select {SCHEMA}.{function}({MONTHS_AHEAD})").scalar_one())


def config(directory: Path, connection: sqlalchemy.Connection) -> Config:
    """Alembic's, for the revisions in a directory and the caller's own transaction."""
    made = Config()
    made.set_main_option("script_location", str(directory).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def _script(directory: Path) -> ScriptDirectory:
    return ScriptDirectory(str(directory))
