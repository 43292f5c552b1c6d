"""Reads a file in a process of its own, and gives its chunks one by one, no faster than they are taken.

    async with reading(path, filename, bounds) as document:
        async for chunk in document:
            ...
    document.size_bytes      # of its text

Raises DocumentError, with what a caller is told, whatever the file does to that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from citadel_llm.integration.documents.chunks import Chunk
from citadel_llm.integration.documents.parsers import DocumentError

__all__ = ["Bounds", "Document", "reading"]

_LINE_BYTES = 8 << 20  # more than the largest chunk


@dataclass(frozen=True, slots=True)
class Bounds:
    """How a file is cut, and what may be spent on it."""

    tokenizer: str  # the path of a tokenizer.json
    max_tokens: int
    overlap_tokens: int
    part_tokens: int  # what the embedding model takes at once
    memory_bytes: int
    cpu_s: int
    text_bytes: int
    silence_s: float = 120.0  # for the next chunk


class _End(msgspec.Struct):
    bytes: int = 0
    code: str = ""
    message: str = ""


_line = msgspec.json.Decoder(tuple[str, list[str]])
_end = msgspec.json.Decoder(_End)


class Document:
    """A file that is being read."""

    def __init__(self, process: asyncio.subprocess.Process, bounds: Bounds) -> None:
        self._process = process
        self._bounds = bounds
        self.size_bytes = 0

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """The chunks. Raises DocumentError."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 — it was asked for
        while True:
            try:
                async with asyncio.timeout(self._bounds.silence_s):
                    line = await stdout.readline()
            except TimeoutError:
                raise DocumentError("invalid_file", "The file takes too long to be read.") from None
            except ValueError:
                raise DocumentError("invalid_file", "The file has a chunk that is too large.") from None
            if not line.endswith(b"\n"):
                raise self._died(await self._process.wait())
            if line.startswith(b"{"):
                end = _end.decode(line)
                if end.code:
                    raise DocumentError(end.code, end.message)
                self.size_bytes = end.bytes
                return
            yield Chunk(*_line.decode(line))

    def _died(self, status: int) -> DocumentError:
        if status in (-signal.SIGXCPU, -signal.SIGKILL):
            return DocumentError("invalid_file", "The file takes too long, or too much memory, to be read.")
        return DocumentError("invalid_file", f"The file broke the program that reads it (status {status}).")


@contextlib.asynccontextmanager
async def reading(path: Path, filename: str, bounds: Bounds) -> AsyncIterator[Document]:
    """Start the process; it is gone when the block ends. Raises OSError where there is no such file."""
    options = {
        "--tokenizer": bounds.tokenizer,
        "--filename": filename,
        "--max-tokens": bounds.max_tokens,
        "--overlap-tokens": bounds.overlap_tokens,
        "--part-tokens": bounds.part_tokens,
        "--memory-bytes": bounds.memory_bytes,
        "--cpu-s": bounds.cpu_s,
        "--text-bytes": bounds.text_bytes,
    }
    words = [f"{name}={value}" for name, value in options.items()]
    file = await asyncio.to_thread(path.open, "rb")
    try:
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "citadel_llm.integration.documents.extract", *words],
            stdin=file,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_LINE_BYTES,
            env={
                "PATH": os.defpath,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "TOKENIZERS_PARALLELISM": "false",
                "RAYON_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "1",
            },
        )
    finally:
        file.close()
    try:
        yield Document(process, bounds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
