"""Schema `llm`: bring it forward or back, compare it with the migrations, back it up and restore it.

Who asks is read from --credentials, a JSON file or `-` for standard input, with `host`, `port`, `database`, `user` and
`password`. What changes the schema takes its owner's; the others are content with the gateway's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from citadel_llm.integration.database.manifest import Manifest
    from citadel_llm.integration.database.migrate import Outcome
    from citadel_llm.integration.database.target import Target

__all__ = ["add_arguments"]

_CREDENTIALS = "/opt/citadel/config/secrets/database-gateway.json"

_ACTIONS = {
    "upgrade": "bring the schema to this release's newest revision",
    "downgrade": "take the schema back to a revision, with the data that it has not",
    "current": "tell the schema's revision",
    "check": "compare the live schema with the migrations; exit status 1 where they differ",
    "maintain": "make the audit log's next partitions, drop those past the retention, remove what has expired",
    "schema": "print the live schema as `check` compares it",
    "backup": "dump the schema into a folder of its own, and remove old ones",
    "verify-backup": "read a backup whole and compare it with its manifest",
    "restore": "bring a backup back, as the schema's owner, and then forward to the newest revision",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in _ACTIONS.items():
        one = actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".")
        if action != "verify-backup":
            one.add_argument(
                "--credentials",
                metavar="FILE",
                default="-" if action == "restore" else os.environ.get("CITADEL_DATABASE_CREDENTIALS", _CREDENTIALS),
                help="where the database is and who asks; - reads standard input (default: %(default)s)",
            )
        if action in {"upgrade", "check", "restore"}:
            one.add_argument("--runtime-user", default="citadel_gateway", help="the gateway's role (%(default)s)")
        if action in {"upgrade", "downgrade", "backup", "verify-backup", "restore"}:
            one.add_argument("--json", action="store_true", help="say what was done as JSON")
        if action == "upgrade":
            one.add_argument("--dry-run", action="store_true", help="only say what would be done")
            one.add_argument(
                "--audit-retention-months", type=_months, metavar="N", help="how long the audit log is kept"
            )
        if action == "downgrade":
            one.add_argument("revision", help="a revision, or `base` for nothing at all")
        if action == "backup":
            one.add_argument("--to", required=True, type=Path, metavar="DIR", help="where the backups lie")
            one.add_argument("--keep", type=_positive, default=14, metavar="N", help="how many (%(default)s)")
            one.add_argument(
                "--max-age-days", type=_positive, metavar="N", help="and how long; the newest always stays"
            )
            one.add_argument(
                "--config", type=Path, metavar="DIR", help="a configuration to put in too, but its secrets/"
            )
        if action in {"verify-backup", "restore"}:
            one.add_argument("backup", type=Path, metavar="BACKUP", help="a backup's own folder")
        if action == "restore":
            one.add_argument("--replace", action="store_true", help="set a schema aside that has rows in it")
        one.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    try:
        import alembic  # noqa: F401, PLC0415 — the gateway's own environment has no migrations' tools
        import psycopg  # noqa: F401, PLC0415
        import sqlalchemy  # noqa: F401, PLC0415
    except ImportError as error:
        print(
            f"citadel: this Python has no {error.name}: on the server, `citadel database` runs with env/database; "
            "elsewhere, install files/requirements/database.txt",
            file=sys.stderr,
        )
        return 1
    from citadel_llm.integration.database.target import DatabaseError, load_target  # noqa: PLC0415

    try:
        if arguments.action == "verify-backup":
            return _verify(arguments)
        target = load_target(arguments.credentials)
        return {"backup": _back_up, "restore": _restore}.get(arguments.action, _do)(arguments, target)
    except DatabaseError as error:
        print(f"citadel: {error}", file=sys.stderr)
        return 1


def _do(arguments: argparse.Namespace, target: Target) -> int:
    from citadel_llm.integration.database import migrate, schema  # noqa: PLC0415 — heavy, and only wanted here
    from citadel_llm.integration.database.connection import connected, transaction  # noqa: PLC0415
    from citadel_llm.integration.database.expiry import remove_expired  # noqa: PLC0415
    from citadel_llm.integration.database.target import SCHEMA  # noqa: PLC0415

    with connected(target) as engine:
        match arguments.action:
            case "upgrade":
                months = arguments.audit_retention_months
                outcome = migrate.upgrade(
                    engine,
                    arguments.runtime_user,
                    settings={"audit_retention_months": months} if months else {},
                    dry_run=arguments.dry_run,
                )
                if not arguments.dry_run:
                    with transaction(engine) as connection:
                        outcome.drift = schema.differences(connection, arguments.runtime_user)
                return _tell(arguments, outcome)
            case "downgrade":
                return _tell(arguments, migrate.downgrade(engine, arguments.revision))
            case "current":
                with transaction(engine) as connection:
                    print(migrate.current(connection) or "none")
                return 0
            case "check":
                with transaction(engine) as connection:
                    revision = migrate.current(connection)
                    found = schema.differences(connection, arguments.runtime_user)
                    newer = migrate.is_newer(revision)
                print("\n".join(found) if found else f"revision {revision}: ", end="\n" if found else "")
                if not found:
                    print("of a later release, not compared" if newer else "as the migrations make it")
                return 1 if found else 0
            case "maintain":
                with transaction(engine) as connection:
                    made = connection.exec_driver_sql(
                        f"select {SCHEMA}.audit_make_partitions({migrate.MONTHS_AHEAD})"
                    ).scalar_one()
                    dropped = connection.exec_driver_sql(f"select {SCHEMA}.audit_drop_partitions()").scalar_one()
                print(f"partitions of the audit log: {made} made, {dropped} dropped")
                for name, count in remove_expired(engine).items():
                    print(f"expired {name}: {count} removed")
                return 0
            case _:
                with transaction(engine) as connection:
                    print("\n".join(schema.lines(connection)))
                return 0


def _back_up(arguments: argparse.Namespace, target: Target) -> int:
    from citadel_llm import __version__  # noqa: PLC0415
    from citadel_llm.integration.database import backup, manifest  # noqa: PLC0415

    made = backup.make(target, arguments.to, release=__version__, config=arguments.config)
    found = manifest.verify(made)  # before an older one is removed
    removed = backup.prune(arguments.to, keep=arguments.keep, max_age_days=arguments.max_age_days)
    return _tell_backup(arguments, made, found, removed=removed)


def _verify(arguments: argparse.Namespace) -> int:
    from citadel_llm.integration.database import manifest  # noqa: PLC0415

    return _tell_backup(arguments, arguments.backup, manifest.verify(arguments.backup))


def _tell_backup(arguments: argparse.Namespace, folder: Path, found: Manifest, *, removed: Sequence[str] = ()) -> int:
    facts = {
        "backup": str(folder), "revision": found.revision, "release": found.release, "begun": found.begun,
        "tables": len(found.tables), "rows": found.rows, "size_bytes": found.size_bytes, "left_out": found.left_out,
        "removed": list(removed),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(facts))
        return 0
    print(f"{folder}: whole; revision {found.revision} of release {found.release}, begun {found.begun}")
    print(f"{len(found.tables)} tables, {found.rows} rows, {found.size_bytes} bytes")
    for name in found.left_out:
        print(f"not in it, since this user may not read it: {name}")
    for name in removed:
        print(f"removed: {name}")
    return 0


def _restore(arguments: argparse.Namespace, target: Target) -> int:
    from citadel_llm.integration.database.connection import connected  # noqa: PLC0415
    from citadel_llm.integration.database.restore import restore  # noqa: PLC0415

    with connected(target) as engine:
        done = restore(engine, arguments.backup, arguments.runtime_user, replace=arguments.replace)
    if arguments.json:
        print(json.dumps(asdict(done)))
        return 0
    print(f"{done.backup}: {done.rows} rows are back; revision: {done.revision} -> {done.after}")
    if done.aside:
        print(f"what was there is in schema {done.aside}; to drop it: drop schema {done.aside} cascade")
    for chain in done.broken_chains:
        print(f"warning: the audit log's chain {chain} does not fit together")
    return 0


def _tell(arguments: argparse.Namespace, outcome: Outcome) -> int:
    if arguments.json:
        print(json.dumps(outcome.facts()))
        return 1 if outcome.drift else 0
    would = "would be " if getattr(arguments, "dry_run", False) else ""
    print(f"revision: {outcome.before or 'none'} -> {outcome.after or 'none'}")
    if outcome.newer:
        print("the schema is of a later release, and left as it is")
    for what, number in (
        ("revisions applied", len(outcome.applied)),
        ("privileges changed", len(outcome.privileges)),
        ("partitions made", outcome.partitions),
        ("settings changed", len(outcome.settings)),
    ):
        if number:
            thing, done = what.split()
            print(f"{thing}: {number} {would}{done}")
    for line in outcome.drift:
        print(f"drift: {line}")
    return 1 if outcome.drift else 0


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= 10_000:
        raise argparse.ArgumentTypeError(f"expected 1 to 10000, got {text}")
    return number


def _months(text: str) -> int:
    months = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= months <= 1200:
        raise argparse.ArgumentTypeError(f"expected 1 to 1200 months, got {text}")
    return months
