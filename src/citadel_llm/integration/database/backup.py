"""A dump of schema `llm`, made with the gateway's own user: every row as of one moment, and a manifest that says so.

    DIR/2026-01-31T02-03-04Z/manifest.json   revision, release, and each file with its rows, size and SHA-256
                             TABLE.copy.gz   what COPY gives, as text
                             config.tar.gz   the configuration, without secrets, where that is wanted

It is written beside its final name and renamed when everything lies on the disk: what is there by its name is whole.
No tool of PostgreSQL's is used, since a host's own may be older than the server.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import psycopg

from citadel_llm.integration.database.connection import CONNECT_TIMEOUT_S, LOCK, LOCK_WAIT_S
from citadel_llm.integration.database.manifest import MANIFEST, NAMED, File, Manifest, Table, backups
from citadel_llm.integration.database.target import ON_PRIMARY, SCHEMA, DatabaseError, Target

__all__ = ["make", "prune"]

# What makes COPY's text the same everywhere.
_SETTINGS = (
    "set datestyle = 'ISO'", "set intervalstyle = 'postgres'", "set timezone = 'UTC'", "set extra_float_digits = 3",
    "set bytea_output = 'hex'", "set client_encoding = 'UTF8'", "set statement_timeout = 0",
)  # fmt: skip
_TABLES = f"""
select c.relname, (
  select array_agg(cast(attname as text) order by attnum) from pg_attribute
  where attrelid = c.oid and attnum > 0 and not attisdropped and attgenerated = ''
), (
  select coalesce(json_object_agg(p.relname, pg_get_expr(p.relpartbound, p.oid)), '{{}}')
  from pg_inherits join pg_class p on p.oid = inhrelid where inhparent = c.oid
)
from pg_class c where relnamespace = to_regnamespace('{SCHEMA}') and relkind in ('r', 'p') and not relispartition
and relname <> 'alembic_version' order by relname
"""  # noqa: S608 — only a constant goes in


def make(target: Target, directory: Path, *, release: str, config: Path | None = None) -> Path:
    """Make one; its folder. Nothing of those that are there is touched, whatever happens."""
    try:
        with _alone(directory), _cleared(directory):
            begun = _now()
            final = directory / begun.strftime(NAMED)
            if final.exists():
                raise DatabaseError(f"{final}: is there already: one backup a second")
            partial = directory / f"{final.name}.partial"
            partial.mkdir(mode=0o700)
            _dump(target, partial, release=release, config=config, begun=begun)
            partial.rename(final)
            _sync(directory)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DatabaseError(_full(directory)) from None
        raise DatabaseError(f"{error.filename or directory}: {error.strerror or error}") from None
    return final


def prune(directory: Path, *, keep: int, max_age_days: int | None = None) -> list[str]:
    """Remove all but the newest `keep`, and those that are too old; never the newest. The names of those removed."""
    whole = backups(directory)
    oldest = (_now() - datetime.timedelta(days=max_age_days)).strftime(NAMED) if max_age_days else ""
    gone = [path for number, path in enumerate(whole) if number and (number >= keep or path.name < oldest)]
    for path in gone:
        going = path.with_name(f"{path.name}.partial")  # what is left of it, if we are stopped now, is no backup
        path.rename(going)
        shutil.rmtree(going)
    return [path.name for path in gone]


def _dump(target: Target, folder: Path, *, release: str, config: Path | None, begun: datetime.datetime) -> None:
    try:
        with _connected(target) as ask:
            # Against a change of the schema meanwhile. The snapshot is taken after it, not while waiting for it.
            ask(f"set lock_timeout = '{LOCK_WAIT_S}s'")
            ask(f"select pg_advisory_lock_shared({LOCK})")
            ask("begin transaction isolation level repeatable read read only")
            if not ask(f"select to_regclass('{SCHEMA}.alembic_version')").fetchone()[0]:
                raise DatabaseError(f"{target.database} has no schema {SCHEMA}: nothing to back up")
            revision, server = ask(
                f"select version_num, current_setting('server_version') from {SCHEMA}.alembic_version"  # noqa: S608
            ).fetchone()
            tables = [_table(ask, folder, *row) for row in ask(_TABLES).fetchall()]
    except psycopg.Error as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DatabaseError(f"{target.host}:{target.port}, {target.database} as {target.user}: {said}") from None
    archive, left_out = _archive(config, folder) if config else (None, [])
    manifest = Manifest(
        revision=revision, release=release, database=target.database, server=server, begun=begun.isoformat(),
        ended=_now().isoformat(), tables=tables, config=archive, left_out=left_out,
    )  # fmt: skip
    with _written(folder / MANIFEST) as (out, _):
        out.write(json.dumps(asdict(manifest), indent=2).encode() + b"\n")
    _sync(folder)


@contextlib.contextmanager
def _connected(target: Target) -> Iterator[Callable[[str], Any]]:
    with psycopg.connect(
        host=target.host, port=target.port, dbname=target.database, user=target.user, password=target.password,
        connect_timeout=CONNECT_TIMEOUT_S, application_name="citadel-backup", keepalives_idle=30, autocommit=True,
        prepare_threshold=None,
    ) as connection:  # fmt: skip

        def ask(statement: str) -> Any:
            return connection.execute(ON_PRIMARY + statement)

        for setting in _SETTINGS:
            ask(setting)
        yield ask


def _table(ask: Callable[[str], Any], folder: Path, name: str, columns: list[str], partitions: dict[str, str]) -> Table:
    chosen = ", ".join(f'"{column}"' for column in columns)
    cursor = ask("select 1").connection.cursor()
    with _written(folder / f"{name}.copy.gz") as (out, told):
        packed = gzip.GzipFile(fileobj=out, mode="wb", compresslevel=3, mtime=0)
        selected = f'select {chosen} from {SCHEMA}."{name}"'  # noqa: S608 — names from the catalogue
        with cursor.copy(f"{ON_PRIMARY}copy ({selected}) to stdout") as copy:
            for block in copy:
                packed.write(block)
        packed.close()
    return Table(**asdict(told()), name=name, rows=cursor.rowcount, columns=columns, partitions=partitions)


def _archive(config: Path, folder: Path) -> tuple[File, list[str]]:
    """The configuration without its secrets, and without what this user may not read."""
    left_out: list[str] = []

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        inner = Path(entry.name).relative_to("config")
        if inner.parts[:1] == ("secrets",) or not (entry.isreg() or entry.isdir() or entry.issym()):
            return None
        if not entry.issym() and not os.access(config / inner, os.R_OK):
            left_out.append(str(inner))
            return None
        return entry

    with _written(folder / "config.tar.gz") as (out, told), tarfile.open(fileobj=out, mode="w|gz") as tar:
        tar.add(config, arcname="config", filter=wanted)
    return told(), left_out


class _Hashed:
    """A file being written, with its size and SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        self.size += len(block)
        return self._file.write(block)

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def _written(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], File]]]:
    """A new file, on the disk when the block ends; the function then tells of it."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        out = _Hashed(file)
        yield cast(BinaryIO, out), lambda: File(path.name, out.size, out.digest.hexdigest())
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    directory.mkdir(mode=0o700, exist_ok=True)
    with open(os.open(directory / ".lock", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatabaseError(f"{directory}: another backup is being made there") from None
        yield


@contextlib.contextmanager
def _cleared(directory: Path) -> Iterator[None]:
    """No half of a backup: neither of one that was killed before, nor of this one, should it fail."""
    _clear(directory)
    try:
        yield
    except BaseException:
        _clear(directory)
        raise


def _clear(directory: Path) -> None:
    for path in directory.glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _full(directory: Path) -> str:
    before = backups(directory)
    needs = f"; the one before took {Manifest.read(before[0]).size_bytes} bytes" if before else ""
    return (
        f"{directory}: the disk is full, no backup was made{needs}. The {len(before)} that are there are untouched: "
        "free some space, or keep fewer"
    )


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
