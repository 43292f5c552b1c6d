"""Bearer keys, known only by their digests.

The keys of a file are known by their SHA-256; those of the database by a keyed digest, whose pepper is a secret that
the database does not hold: whoever reads its rows can neither recognise a key that they have got hold of nor make one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from citadel_llm.utils.config import ConfigError

__all__ = ["PREFIX_LENGTH", "KeyRing", "digest_of", "load_keys", "load_pepper", "new_key", "pepper_of"]

PREFIX_LENGTH = 10  # of a key, shown so that people know which one it is; 214 of its 256 bits stay unknown
_LEAST_PEPPER = 32  # characters


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class KeyRing:
    """Finds the caller's name for a key of the file."""

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
        if not self._names:
            return None
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


def new_key() -> str:
    """A key: 256 bits of the system's randomness, as text."""
    return f"sk-{secrets.token_urlsafe(32)}"


def digest_of(key: bytes, pepper: bytes) -> bytes:
    """What the database knows a key by: BLAKE2b, keyed, 256 bits."""
    return hashlib.blake2b(key, digest_size=32, key=pepper).digest()


def pepper_of(secret: str) -> bytes:
    """The key of `digest_of`, 256 bits, of a site's secret. Raises ConfigError where that is too short to be one."""
    text = secret.strip()
    if len(text) < _LEAST_PEPPER:
        raise ConfigError(f"the pepper: expected at least {_LEAST_PEPPER} characters")
    return hashlib.blake2b(text.encode(), digest_size=32, person=b"citadel-pepper").digest()


def load_pepper(path: Path) -> bytes:
    """The pepper of a file. Raises ConfigError, naming the file and not its content."""
    try:
        return pepper_of(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except (UnicodeDecodeError, ConfigError):
        raise ConfigError(f"{path}: expected a secret of at least {_LEAST_PEPPER} characters") from None
