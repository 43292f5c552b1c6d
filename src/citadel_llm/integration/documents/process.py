"""Reads files in processes of their own, and gives their chunks one by one, no faster than they are taken.

    readers = Readers()
    async with readers.reading(path, task) as document:
        async for chunk in document:
            ...
    document.size_bytes      # of its text
    await readers.stop()

Raises DocumentError, with what a caller is told, whatever the file does to its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from citadel_llm.integration.documents.chunks import Chunk
from citadel_llm.integration.documents.extract import Task
from citadel_llm.integration.documents.parsers import DocumentError

__all__ = ["Document", "Readers", "Task"]

_LINE_BYTES = 8 << 20  # more than the largest chunk
_SILENCE_S = 120.0  # for the next chunk


class _End(msgspec.Struct):
    bytes: int = 0
    code: str = ""
    message: str = ""


_line = msgspec.json.Decoder(tuple[str, list[str]])
_end = msgspec.json.Decoder(_End)


class Document:
    """A file that is being read."""

    def __init__(self, lines: asyncio.StreamReader) -> None:
        self._lines = lines
        self.size_bytes = 0

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """The chunks. Raises DocumentError."""
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    line = await self._lines.readline()
            except TimeoutError:
                raise DocumentError("invalid_file", "The file takes too long to be read.") from None
            except ValueError:
                raise DocumentError("invalid_file", "The file has a chunk that is too large.") from None
            if not line.endswith(b"\n"):
                raise DocumentError(
                    "invalid_file", "The file takes too long or too much memory to be read, or broke what reads it."
                )
            if line.startswith(b"{"):
                end = _end.decode(line)
                if end.code:
                    raise DocumentError(end.code, end.message)
                self.size_bytes = end.bytes
                return
            yield Chunk(*_line.decode(line))


class Readers:
    """The process that forks for each file; it runs while it is needed."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._starting = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def reading(self, path: Path, task: Task) -> AsyncIterator[Document]:
        """Begin to read. After the block nobody takes the file's chunks any more. Raises OSError: no such file."""
        file = await asyncio.to_thread(path.open, "rb")
        out, into = os.pipe()
        try:
            with file:
                await self._ask(task, file.fileno(), into)
        except BaseException:
            os.close(out)
            raise
        finally:
            os.close(into)
        lines = asyncio.StreamReader(limit=_LINE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(out, "rb", 0)
        )
        try:
            yield Document(lines)
        finally:
            transport.close()

    async def stop(self) -> None:
        """End the process; what it forked ends by itself. It is started again when it is needed."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask(self, task: Task, *descriptors: int) -> None:
        message = msgspec.json.encode(task)
        async with self._starting:
            for again in (True, False):
                if self._socket is None or self._process is None or self._process.returncode is not None:
                    await self.stop()
                    await self._start()
                assert self._socket is not None  # noqa: S101 — it was just made
                try:
                    socket.send_fds(self._socket, [message], descriptors)
                    return
                except (BrokenPipeError, ConnectionResetError):
                    await self.stop()
                    if not again:
                        raise

    async def _start(self) -> None:
        own, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with others:
                self._process = await asyncio.create_subprocess_exec(
                    *[sys.executable, "-m", "citadel_llm.integration.documents.extract"],
                    stdin=others.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    env={
                        "PATH": os.defpath,
                        "PYTHONPATH": os.pathsep.join(sys.path),
                        "TOKENIZERS_PARALLELISM": "false",
                        "MALLOC_ARENA_MAX": "1",
                    },
                )
        except BaseException:
            own.close()
            raise
        self._socket = own
