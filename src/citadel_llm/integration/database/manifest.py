"""What a backup is: its manifest, read as what anybody might have written, and its files, compared with it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from citadel_llm.integration.database.target import DatabaseError

__all__ = ["BLOCK", "MANIFEST", "NAMED", "File", "Manifest", "Table", "backups", "verify"]

FORMAT = 1
MANIFEST = "manifest.json"
NAMED = "%Y-%m-%dT%H-%M-%SZ"  # a backup's folder, after when it was begun
BLOCK = 1 << 18
_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ")
# These come into statements of the owner's.
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_BOUND = re.compile(r"FOR VALUES FROM \('[0-9 :+-]+'\) TO \('[0-9 :+-]+'\)")
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class File:
    """A file of a backup."""

    file: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Table(File):
    """A table's rows; `partitions` are {name: bound}, of those tables that have them."""

    name: str
    rows: int
    columns: list[str]
    partitions: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """What a backup is. Times are ISO 8601, in UTC."""

    revision: str
    release: str
    database: str
    server: str
    begun: str
    ended: str
    tables: list[Table]
    config: File | None = None
    left_out: list[str] = field(default_factory=list)  # files of the configuration that the user may not read
    format: int = FORMAT

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def files(self) -> list[File]:
        return [*self.tables, *([self.config] if self.config else [])]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """A backup's own; raises DatabaseError where there is none, or one that cannot be."""
        try:
            found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            if found["format"] != FORMAT:
                raise DatabaseError(f"{folder}: of format {found['format']}, this release reads {FORMAT}")
            tables = [Table(**table) for table in found.pop("tables")]
            config = File(**found.pop("config")) if found["config"] else found.pop("config")
            manifest = cls(tables=tables, config=config, **found)
            names = [name for table in tables for name in (table.name, *table.columns, *table.partitions)]
            bounds = [bound for table in tables for bound in table.partitions.values()]
            plain = all(_IDENTIFIER.fullmatch(name) for name in names) and all(map(_BOUND.fullmatch, bounds))
            if not plain or any("/" in file.file for file in manifest.files) or not manifest.revision.isdigit():
                raise ValueError
        except FileNotFoundError:
            raise DatabaseError(f"{folder}: no backup: it has no {MANIFEST}") from None
        except _UNREADABLE:
            raise DatabaseError(f"{folder}: its {MANIFEST} is damaged") from None
        return manifest


def backups(directory: Path) -> list[Path]:
    """The whole ones, the newest first."""
    found = directory.iterdir() if directory.is_dir() else iter(())
    return sorted((path for path in found if _NAME.fullmatch(path.name) and path.is_dir()), reverse=True)


def verify(folder: Path) -> Manifest:
    """Read everything and compare it with the manifest; raises DatabaseError that names the first bad file."""
    manifest = Manifest.read(folder)
    for file in manifest.files:
        digest, size = hashlib.sha256(), 0
        try:
            with (folder / file.file).open("rb") as opened:
                while block := opened.read(BLOCK):
                    digest.update(block)
                    size += len(block)
        except OSError as error:
            raise DatabaseError(f"{folder / file.file}: {error.strerror}") from None
        if size != file.size_bytes:
            raise DatabaseError(f"{folder / file.file}: {size} bytes, the manifest says {file.size_bytes}")
        if digest.hexdigest() != file.sha256:
            raise DatabaseError(f"{folder / file.file}: its SHA-256 is not the manifest's")
    return manifest
