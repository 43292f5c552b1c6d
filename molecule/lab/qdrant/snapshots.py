"""Snapshots: a collection's folder as one file, to be fetched, and to be made a collection from again.

The file is this host's own format, not that of a Qdrant server.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tarfile
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from qdrant_client import models

from qdrant.errors import NotFound, Refused
from qdrant.store import Store

_FETCH_TIMEOUT_S = 300


class Snapshots:
    """Under `snapshots/NAME/` of the store's folder."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = store.folder / "snapshots"

    def create(self, name: str) -> models.SnapshotDescription:
        """The collection as it is now."""
        collection = self._store.get(name)
        folder = self._folder / collection.folder.name
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{collection.folder.name}-{time.time_ns()}.snapshot"
        partial = target.with_suffix(".partial")
        # The engine's log is mostly room kept free: compressed, the little that is left of it.
        with collection.still() as files, tarfile.open(partial, "w:gz", compresslevel=1) as archive:
            archive.add(files, arcname=".")
        _checksum_path(target).write_text(_checksum(partial))
        partial.rename(target)
        return _described(target)

    def list(self, name: str) -> list[models.SnapshotDescription]:
        """All of a collection's, the oldest first."""
        folder = self._folder / self._store.get(name).folder.name
        found = sorted(folder.glob("*.snapshot"), key=lambda path: path.stat().st_mtime)
        return [_described(path) for path in found]

    def path(self, name: str, snapshot: str) -> Path:
        """Where a snapshot lies. Raises NotFound."""
        folder = self._folder / self._store.get(name).folder.name
        path = folder / Path(snapshot).name
        if path.suffix != ".snapshot" or not path.is_file():
            raise NotFound(f"Not found: Snapshot {snapshot} not found")
        return path

    def delete(self, name: str, snapshot: str) -> bool:
        """One away."""
        path = self.path(name, snapshot)
        _checksum_path(path).unlink(missing_ok=True)
        path.unlink()
        return True

    def recover(self, name: str, asked: models.SnapshotRecover) -> bool:
        """The collection as the snapshot at `location` has it, there before or not."""
        with self._fetched(asked.location, asked.api_key) as path:
            self._unpack(name, path, asked.checksum)
        return True

    def upload(self, name: str, file: BinaryIO, checksum: str | None) -> bool:
        """The same, from what the caller sends."""
        with self._temporary() as path:
            with path.open("wb") as target:
                shutil.copyfileobj(file, target, 1 << 20)
            self._unpack(name, path, checksum)
        return True

    def _unpack(self, name: str, path: Path, checksum: str | None) -> None:
        if checksum and _checksum(path) != checksum:
            raise Refused("Wrong input: Snapshot checksum mismatch")
        folder = self._store.folder / f"new-{secrets.token_hex(6)}"
        try:
            folder.mkdir()
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
            if not (folder / "collection.json").is_file():
                raise Refused("Wrong input: this is no snapshot of this host's")
            self._store.install(name, folder)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise Refused(f"Wrong input: this is no snapshot: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        path = self._store.folder / f"new-{secrets.token_hex(6)}.partial"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _fetched(self, location: str, api_key: str | None) -> Iterator[Path]:
        parts = urllib.parse.urlsplit(location)
        if parts.scheme == "file":
            path = Path(parts.path).resolve()
            if not path.is_relative_to(self._folder.resolve()) or not path.is_file():
                raise NotFound(f"Not found: Snapshot file {location} does not exist among this host's snapshots")
            yield path
            return
        if parts.scheme not in {"http", "https"}:
            raise Refused(f"Wrong input: a snapshot's location is a file:// or an http:// address, not {location}")
        with self._temporary() as path:
            request = urllib.request.Request(location, headers={"api-key": api_key} if api_key else {})
            try:
                with urllib.request.urlopen(request, timeout=_FETCH_TIMEOUT_S) as answer, path.open("wb") as target:
                    shutil.copyfileobj(answer, target, 1 << 20)
            except OSError as error:
                raise Refused(f"Wrong input: the snapshot cannot be fetched: {error}") from error
            yield path


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.checksum")


def _described(path: Path) -> models.SnapshotDescription:
    status = os.stat(path)
    made = datetime.fromtimestamp(status.st_mtime, UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    return models.SnapshotDescription(
        name=path.name, creation_time=made, size=status.st_size, checksum=_checksum_path(path).read_text()
    )
