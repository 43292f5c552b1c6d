"""Bearer keys, known only by their SHA-256 digests."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from citadel_llm.utils.config import ConfigError

__all__ = ["KeyRing", "load_keys"]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class KeyRing:
    """Finds the caller's name for a key."""

    def __init__(self, entries: list[tuple[str, bytes]]) -> None:
        """`entries` are pairs of a name and a digest of 32 bytes."""
        self._names = {digest: (digest, name) for name, digest in entries}

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, key: bytes) -> str | None:
        """The name that goes with `key`, or None.

        The look-up goes by the digest, which tells a caller who times it nothing about any
        key; the comparison that decides takes the same time for every digest.
        """
        digest = hashlib.sha256(key).digest()
        found = self._names.get(digest)
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        return found[1]


def load_keys(path: Path) -> KeyRing:
    """Read the file of digests: a JSON list of `{"name", "sha256"}`. Raises ConfigError, naming the file."""
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[_Entry])
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:  # msgspec's own, and text that is not UTF-8
        raise ConfigError(f'{path}: expected a list of {{"name", "sha256"}}: {error}') from error
    return KeyRing([(entry.name, bytes.fromhex(entry.sha256)) for entry in entries])
