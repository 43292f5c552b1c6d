"""The unified port: gRPC's connections begin with HTTP/2's preface, all others are HTTP/1."""

from __future__ import annotations

import asyncio
import contextlib

_PREFACE = b"PRI"  # of "PRI * HTTP/2.0"; no method of HTTP/1 begins so
_CHUNK = 1 << 16
_FIRST_BYTES_S = 75.0


class Port:
    """Takes connections and hands their bytes on to one of two sockets on this host."""

    def __init__(self, http: str, grpc: str) -> None:
        """Paths of the sockets."""
        self._http = http
        self._grpc = grpc

    async def open(self, host: str, port: int) -> asyncio.Server:
        """Listens."""
        return await asyncio.start_server(self._taken, host, port, limit=_CHUNK, backlog=512)

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(_FIRST_BYTES_S):
                first = await reader.readexactly(len(_PREFACE))
            inner, outward = await asyncio.open_unix_connection(self._grpc if first == _PREFACE else self._http)
            outward.write(first)
            await asyncio.gather(_carry(reader, outward), _carry(inner, writer))
            outward.close()
        writer.close()


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(_CHUNK):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()  # the other direction ends with it: neither protocol goes on half-closed
