"""Where the database is and who asks: read from a file or from standard input, never from a command line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ON_PRIMARY", "SCHEMA", "DatabaseError", "DatabaseUnavailable", "Target", "load_target"]

SCHEMA = "llm"
# Pgpool-II sends no statement that begins with this to a standby, where what was just written might not be yet.
ON_PRIMARY = "/*NO LOAD BALANCE*/ "


class DatabaseError(Exception):
    """Something that the caller can act on; its text says what."""


class DatabaseUnavailable(Exception):
    """The database is away, or too slow; nothing is wrong with what was asked of it."""


@dataclass(frozen=True)
class Target:
    """A database and a user of it."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)


def load_target(path: str) -> Target:
    """The target in a JSON file, `-` for standard input; raises `DatabaseError` that names what is missing."""
    where = "standard input" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
    except OSError as error:
        raise DatabaseError(f"{path}: {error.strerror}") from None
    try:
        found: Any = json.loads(text)
    except ValueError:
        raise DatabaseError(f"{where}: expected JSON") from None
    if not isinstance(found, dict):
        raise DatabaseError(f"{where}: expected an object")
    kinds = {"host": str, "port": int, "database": str, "user": str, "password": str}
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            raise DatabaseError(f"{where}: `{name}`: expected {'a number' if kind is int else 'text'}")
    return Target(**{name: found[name] for name in kinds})
