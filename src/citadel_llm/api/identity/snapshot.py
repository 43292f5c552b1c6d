"""The identities on disk, so that a gateway which starts while the database is away knows every key.

Digests, names and rights; no key. Only the service's own user may read it. The instances of a host share the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

import msgspec

from citadel_llm.integration.database.identity import Identities

__all__ = ["SnapshotError", "read_snapshot", "write_snapshot"]

_decoder = msgspec.json.Decoder(Identities)


class SnapshotError(Exception):
    """The file can't be used; the text says why, and nothing of its content."""


def read_snapshot(path: Path) -> Identities | None:
    """What was kept, None where nothing was. Raises SnapshotError."""
    try:
        return _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SnapshotError(f"{path}: can't be read: {error.strerror}") from None
    except ValueError:
        raise SnapshotError(f"{path}: is not a snapshot of identities") from None


def write_snapshot(path: Path, identities: Identities) -> bool:
    """Keep it, unless a newer one is kept already; whether it was. Raises OSError.

    Whatever happens in between, the file is one that was written whole, and is on the disk.
    """
    with open(path.with_name(path.name + ".lock"), "ab", opener=_private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file
        with contextlib.suppress(SnapshotError):
            kept = read_snapshot(path)
            if kept is not None and kept.read_at >= identities.read_at:
                return False
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb", opener=_private) as file:
            file.write(msgspec.json.encode(identities))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
