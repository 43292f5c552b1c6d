"""The console on a host of its own: its files, and a way to one gateway for what the page asks, and for nothing else.

    python3 -m citadel_llm.console.server --listen 192.168.10.37:8080 --gateway http://192.168.10.29:8000

The page then talks to where it came from, so that the gateway need let no other origin in. What is passed on is in
`PASSED`, with a key (`Authorization: Bearer`) or not at all. A connection carries one request, so that nothing can be
smuggled behind it. The server knows no key, keeps nothing, and writes no request down.

Python's standard library alone: the host needs no environment.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import signal
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

from citadel_llm.console import HEADERS, read_pages

__all__ = ["PASSED", "Console", "Gateway", "add_arguments", "main", "run"]

# Method and path of everything that the page asks for; a test holds it against the page's own requests.
PASSED = (
    ("GET", re.compile(r"/admin/v1/(?:status|alerts|audit|keys|usage|usage/me)")),
    ("PUT", re.compile(r"/admin/v1/drain/.+")),
    ("DELETE", re.compile(r"/admin/v1/drain/.+")),
    ("POST", re.compile(r"/v1/chat/completions|/v1/feedback")),
    ("DELETE", re.compile(r"/v1/feedback/[^/]+")),
)
_UP = frozenset({"accept", "authorization", "content-type"})
_DOWN = frozenset(
    {"content-length", "content-type", "retry-after", "transfer-encoding", "x-citadel-model", "x-request-id"}
)
_HEAD_BYTES, _BODY_BYTES, _PIECE_BYTES = 16 << 10, 1 << 20, 64 << 10
_CONNECTIONS = 128
_HEAD_S, _BODY_S, _CONNECT_S, _SILENT_S, _TOTAL_S = 10.0, 30.0, 5.0, 600.0, 1800.0
_TARGET = re.compile(r"/[\x21-\x7e]*")


class _Refused(Exception):
    """An answer of our own instead of the gateway's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Gateway:
    """Where requests are passed on to."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    @classmethod
    def at(cls, url: str, authority: str | None = None) -> Gateway:
        """Of `http://HOST:PORT` or `https://HOST:PORT`, whose certificate `authority` (a PEM file) signed.

        Raises ValueError, and OSError where the file cannot be read.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError(f"expected http://HOST:PORT or https://HOST:PORT, got {url}")
        tls = ssl.create_default_context(cafile=authority) if parts.scheme == "https" else None
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls)

    @property
    def name(self) -> str:
        """As a Host header has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Console:
    """Answers connections; `serve` is what `asyncio.start_server` calls."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pages = read_pages()
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        self._open += 1
        try:
            async with asyncio.timeout(_TOTAL_S):
                try:
                    await self._answer(reader, writer)
                except _Refused as refusal:
                    await _refuse(writer, refusal)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the caller is gone, or is no caller
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open > _CONNECTIONS:
            raise _Refused(503, "The console has too many connections at the moment.")
        async with asyncio.timeout(_HEAD_S):
            method, target, headers = _parsed(await reader.readuntil(b"\r\n\r\n"))
        path = target.partition("?")[0]
        if method in ("GET", "HEAD") and (path in ("/", "/console") or path.startswith("/console/")):
            await self._file(writer, method, path, headers)
            return
        if not any(method == one and pattern.fullmatch(path) for one, pattern in PASSED) or ".." in unquote(path):
            raise _Refused(404, "The console does not pass this on; ask the gateway itself.")
        if not headers.get("authorization", "").lower().startswith("bearer "):
            raise _Refused(401, "The console passes nothing on without a key.")
        await self._pass(reader, writer, method, target, headers, await _body(reader, headers))

    async def _file(self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str]) -> None:
        if path == "/":
            await _write(writer, 308, {**HEADERS, "location": "/console", "content-length": "0"})
            return
        page = self._pages.get(path.removeprefix("/console").strip("/") or "index.html")
        if page is None:
            raise _Refused(404, "There is no such file of the console.")
        if headers.get("if-none-match") == page.headers["etag"]:
            await _write(writer, 304, page.headers)
            return
        said = {**page.headers, "content-length": str(len(page.body))}
        await _write(writer, 200, said, b"" if method == "HEAD" else page.body)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        gateway = self._gateway
        try:
            async with asyncio.timeout(_CONNECT_S):
                there, away = await asyncio.open_connection(
                    gateway.host, gateway.port, ssl=gateway.tls, limit=_HEAD_BYTES
                )
        except (OSError, TimeoutError):
            raise _Refused(503, "The gateway does not answer the console.") from None
        watching = asyncio.create_task(_gone(reader, away))
        try:
            lines = [f"{method} {target} HTTP/1.1", f"host: {gateway.name}", "connection: close"]
            lines += [f"{name}: {value}" for name, value in headers.items() if name in _UP]
            away.write("\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode("latin-1") + body)
            await away.drain()
            await _piped(there, writer)
        finally:
            watching.cancel()
            away.transport.abort()  # the gateway takes that for the caller's hanging up, and stops generating


def _parsed(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, target and headers, their names in lower case. Raises _Refused."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0") or not _TARGET.fullmatch(words[1]):
        raise _Refused(400, "That is no HTTP request.")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9-]+", name) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
            raise _Refused(400, "That is no HTTP header.")
        if headers.setdefault(name.lower(), value.strip()) != value.strip():
            raise _Refused(400, "A header came twice.")
    return words[0], words[1], headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not re.fullmatch(r"[0-9]{1,12}", length):
        raise _Refused(411, "A body needs its length.")
    if int(length) > _BODY_BYTES:
        raise _Refused(413, f"The console passes on no more than {_BODY_BYTES} bytes.")
    async with asyncio.timeout(_BODY_S):
        return await reader.readexactly(int(length))


async def _gone(reader: asyncio.StreamReader, away: asyncio.StreamWriter) -> None:
    """Hang up on the gateway once the caller did; nothing that follows a request is looked at."""
    with contextlib.suppress(OSError):
        while await reader.read(_PIECE_BYTES):
            pass
    away.transport.abort()


async def _piped(there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The gateway's answer, as it comes: its status, some of its headers, and its body to the connection's end."""
    try:
        async with asyncio.timeout(_SILENT_S):
            head = await there.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        status = int(first.split(" ")[1])
    except (OSError, TimeoutError, ValueError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise _Refused(502, "The gateway's answer broke off.") from None
    pairs = (line.partition(":")[::2] for line in lines)
    kept = {name.lower(): value.strip() for name, value in pairs if name.lower() in _DOWN}
    await _write(writer, status, {**kept, "cache-control": "no-store", "x-content-type-options": "nosniff"})
    while True:
        async with asyncio.timeout(_SILENT_S):
            piece = await there.read(_PIECE_BYTES)
        if not piece:
            return
        writer.write(piece)
        await writer.drain()


async def _write(writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: bytes = b"") -> None:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1") + body)
    await writer.drain()


async def _refuse(writer: asyncio.StreamWriter, refusal: _Refused) -> None:
    body = b'{"error":{"message":"%b","type":"console_error","param":null,"code":"console"}}' % str(refusal).encode()
    said = {"content-type": "application/json", "content-length": str(len(body)), "cache-control": "no-store"}
    await _write(writer, refusal.status, said, body)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what it takes."""
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="ADDRESS:PORT", help="default: %(default)s")
    parser.add_argument("--gateway", default="http://127.0.0.1:8000", metavar="URL", help="default: %(default)s")
    parser.add_argument("--authority", metavar="FILE", help="PEM: who signed the gateway's certificate, for https")
    parser.add_argument("--certificate", metavar="FILE", help="PEM: the console's own certificate, to speak HTTPS")
    parser.add_argument("--key", metavar="FILE", help="PEM: its key")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    try:
        host, _, port = arguments.listen.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--listen: expected ADDRESS:PORT, got {arguments.listen}")
        gateway = Gateway.at(arguments.gateway, arguments.authority)
        tls = None
        if arguments.certificate:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(arguments.certificate, arguments.key)
        asyncio.run(_serve(Console(gateway), host.strip("[]"), int(port), tls))
    except (OSError, ValueError) as error:
        print(f"citadel: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(console: Console, host: str, port: int, tls: ssl.SSLContext | None) -> None:
    server = await asyncio.start_server(console.serve, host, port, ssl=tls, limit=_HEAD_BYTES)
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    where = server.sockets[0].getsockname()
    print(f"the console is at {'https' if tls else 'http'}://{where[0]}:{where[1]}/console", flush=True)
    async with server:
        await end.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Without the `citadel` command."""
    parser = argparse.ArgumentParser(prog="citadel console", description="The console, on a host of its own.")
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
