"""Contents of files on disk, each once, under the SHA-256 of it.

    incoming = await content.incoming(limit)
    await incoming.write(data)
    digest = await incoming.sealed()       # on the disk, for good, but not yet at its place
    await content.place(incoming)          # now it is; whoever holds the digest's lock in the database does this

What was begun and never placed is removed at the next start, and what no file has any more by `sweep`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

__all__ = ["Content", "Incoming", "TooLarge"]

_PIECE_BYTES = 1 << 18
_STALE_S = 86_400.0


class TooLarge(Exception):
    """More bytes than a file may have."""


class Incoming:
    """A content that is being written."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.size_bytes = 0
        self._limit = limit
        self._digest = hashlib.sha256()
        self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)

    async def write(self, data: bytes) -> None:
        """Add some. Raises TooLarge, and OSError where the disk is full."""
        self.size_bytes += len(data)
        if self.size_bytes > self._limit:
            raise TooLarge
        await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    async def sealed(self) -> bytes:
        """All of it is on the disk; its digest."""
        await asyncio.to_thread(os.fsync, self._descriptor)
        return self._digest.digest()

    def discard(self) -> None:
        """Close it, and remove what was not placed."""
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)


class Content:
    """A folder of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def prepare(self) -> None:
        """Make the folder, and remove what a killed process had begun long ago. Raises OSError."""
        self._new.mkdir(parents=True, exist_ok=True, mode=0o750)
        for path in self._new.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()

    @property
    def _new(self) -> Path:
        return self._folder / "new"

    def path(self, digest: bytes) -> Path:
        """Where a content is."""
        name = digest.hex()
        return self._folder / name[:2] / name

    @contextlib.asynccontextmanager
    async def incoming(self, limit: int) -> AsyncIterator[Incoming]:
        """A new content of at most `limit` bytes; it is gone after the block where it was not placed."""
        self._count += 1
        name = f"{os.getpid()}-{self._count}-{os.urandom(8).hex()}"
        made = await asyncio.to_thread(Incoming, self._new / name, limit)
        try:
            yield made
        finally:
            await asyncio.to_thread(made.discard)

    async def place(self, incoming: Incoming, digest: bytes) -> None:
        """Put it where its digest says, for good."""
        await asyncio.to_thread(self._place, incoming.path, self.path(digest))

    def _place(self, source: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True, mode=0o750)
        if not target.exists():
            os.link(source, target)
        for folder in (target.parent, self._folder):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    async def remove(self, digest: bytes) -> None:
        """Remove it; whoever holds the digest's lock in the database does this."""
        await asyncio.to_thread(self.path(digest).unlink, True)

    def digests(self, older_s: float = 600.0) -> Iterator[bytes]:
        """Of all contents that were placed longer ago than that."""
        until = time.time() - older_s
        for path in self._folder.glob("[0-9a-f][0-9a-f]/" + "[0-9a-f]" * 64):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ctime < until:
                    yield bytes.fromhex(path.name)

    async def read(self, digest: bytes) -> AsyncIterator[bytes]:
        """The content, piece by piece. Raises FileNotFoundError before the first."""
        file = await asyncio.to_thread(self.path(digest).open, "rb")
        with file:
            while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
                yield piece
