"""One keep-alive HTTP/1.1 connection to an engine, over an asyncio transport and httptools.

    connection = await connect(loop, host, port)
    connection.send(head, body)
    status, headers = await connection.head()
    while piece := await connection.read():
        ...

At most one request is on the connection at a time. Reading stops while more than
`HIGH_WATER` bytes wait to be forwarded, so a slow caller slows the engine, not the memory.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import cast

import httptools

from citadel_llm.api.errors import Headers

__all__ = ["HIGH_WATER", "BadResponse", "Connection", "ConnectionLost", "connect"]

HIGH_WATER = 1 << 16
_MAX_HEADER_BYTES = 1 << 16

# What the reader waits for.
_NOTHING, _HEAD, _PIECE, _WHOLE = range(4)


class ConnectionLost(Exception):
    """The engine closed or reset the connection before its answer was complete."""


class BadResponse(Exception):
    """What the engine sent is not HTTP."""


class Connection(asyncio.Protocol):
    """The protocol object of one connection; made by `connect`."""

    __slots__ = (
        "_buffer",
        "_buffered",
        "_by_length",
        "_complete",
        "_failure",
        "_has_head",
        "_head_bytes",
        "_headers",
        "_keep_alive",
        "_loop",
        "_parser",
        "_paused",
        "_status",
        "_transport",
        "_waiter",
        "_want",
        "_whole_limit",
        "busy",
        "closed",
        "content_length",
        "has_body",
        "idle_since",
        "uses",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._want = _NOTHING
        self._paused = False
        self.closed = False
        self.busy = False
        self.uses = 0
        self._status = 0
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self._buffer: list[bytes] = []
        self._headers: Headers = []
        self._failure: Exception | None = None
        self.content_length: int | None = None
        self._has_head = self._complete = self._by_length = self._keep_alive = self.has_body = False
        self._head_bytes = self._buffered = self._whole_limit = 0  # of the head: while it is incomplete

    # The caller's side

    def send(self, head: bytes, body: bytes) -> None:
        """Write a request: `head` with its final blank line, then `body`."""
        transport = self._transport
        self._reset()  # first of all: what the last exchange left must not speak for this one
        if self.closed or transport is None or transport.is_closing():
            raise ConnectionLost("the connection was closed while idle")
        self.busy = True
        self.uses += 1
        if len(body) < HIGH_WATER:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

    async def head(self) -> tuple[int, Headers]:
        """Wait for the status and headers of the answer, names in lower case."""
        if not self._has_head:
            await self._wait(_HEAD)
        return self._status, self._headers

    async def read(self) -> bytes:
        """All that has come since the last call, at least a byte; `b""` at the end."""
        if not self._buffer:
            if self._complete:
                return b""
            await self._wait(_PIECE)
        return self._take()

    def whole(self, limit: int) -> asyncio.Future[None]:
        """To be awaited, just after `send`: then `taken` has the whole answer if its body has at most `limit` bytes.

        No coroutine of its own, for this is the wait of every plain request. Who is cancelled meanwhile must close.
        """
        self._whole_limit = limit
        self._want = _WHOLE
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def taken(self) -> tuple[int, Headers, bytes, bool]:
        """Status, headers, body and whether that is whole."""
        self._waiter = None
        self._want = _NOTHING
        buffer = self._buffer
        if len(buffer) != 1 or self._paused:
            return self._status, self._headers, self._take(), self._complete
        self._buffer = []
        self._buffered = 0
        return self._status, self._headers, buffer[0], self._complete

    async def read_whole(self, limit: int) -> tuple[bytes, bool]:
        """The whole body if it has at most `limit` bytes, else what came so far; and whether it is whole."""
        self._whole_limit = limit
        self._resume()
        if not self._complete and self._buffered <= limit:
            await self._wait(_WHOLE)
        return self._take(), self._complete

    async def get(self, host: bytes, path: bytes, limit: int) -> tuple[int, bytes]:
        """Ask for `path`; the status, and the body up to `limit` bytes. Raises ConnectionLost and BadResponse."""
        self.send(b"GET %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (path, host), b"")
        status, _ = await self.head()
        body, _ = await self.read_whole(limit)
        return status, body

    @property
    def answered(self) -> bool:
        """Whether any byte of the answer's body has come; before that the request may be sent elsewhere."""
        return self.has_body

    @property
    def holds_body(self) -> bool:
        """Whether some of the answer's body has come and was not read yet."""
        return self._buffered > 0

    def rest(self) -> bool:
        """The exchange is over: whether the connection may be kept for another one, in which case it is idle now."""
        if self._complete and not self._buffer and self._keep_alive and not self.closed:
            self.busy = False
            self.idle_since = monotonic()
            return True
        return False

    def close(self) -> None:
        """Close at once; an engine takes that for the caller's hanging up, and stops generating."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self, want: int) -> None:
        if self._failure is not None:
            raise self._failure
        self._want = want
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._want = _NOTHING

    def _take(self) -> bytes:
        buffer = self._buffer
        if not buffer:
            return b""
        data = buffer[0] if len(buffer) == 1 else b"".join(buffer)
        self._buffer = []
        self._buffered = 0
        self._resume()
        return data

    def _resume(self) -> None:
        if self._paused and self._transport is not None and not self.closed:
            self._paused = False
            self._transport.resume_reading()

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if not self.busy or self._complete:
            self.close()  # bytes that nobody asked for: out of step, never to be used again
            return
        want, in_head = self._want, not self._has_head
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(BadResponse(str(error)))
            self.close()
            return
        complete = self._complete
        if complete and want == _WHOLE and in_head and not self._head_bytes and len(data) <= _MAX_HEADER_BYTES:
            # All of a plain answer at once, as most come.
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            return
        if (
            in_head
            and (not self._has_head or self._head_bytes or len(data) > _MAX_HEADER_BYTES)
            and not self._head_fits(len(data))
        ):
            self._fail(BadResponse("the answer's headers are too large"))
            self.close()
            return
        if want and (
            complete
            or (want == _HEAD and self._has_head)
            or (want == _PIECE and self._buffer)
            or (want == _WHOLE and self._buffered > self._whole_limit)
        ):
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if self._buffered > HIGH_WATER and want != _WHOLE and not complete and not self._paused:
            self._paused = True
            self._transport.pause_reading()  # type: ignore[union-attr]

    def _head_fits(self, more: int) -> bool:
        """Whether what was read of the head so far, with `more` bytes, keeps within its bound."""
        if self._has_head:
            return sum(len(name) + len(value) for name, value in self._headers) <= _MAX_HEADER_BYTES
        self._head_bytes += more
        return self._head_bytes <= _MAX_HEADER_BYTES

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.closed = True
        del self._parser  # it leads back here: both would wait for the garbage collector
        if self._has_head and not self._by_length and not self._complete and exc is None and self.busy:
            self._complete = True  # an answer without a length ends with its connection
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
            return
        if not self._complete:
            self._fail(ConnectionLost(str(exc) if exc else "the engine closed the connection"))

    # The parser's side

    def on_message_begin(self) -> None:
        """Called by the parser."""
        if self._complete:
            raise httptools.HttpParserError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._status = self._parser.get_status_code()
        if self._status < 200:  # 1xx: the real answer follows
            self._headers = []
            return
        known = dict(self._headers)
        length = known.get(b"content-length")
        if length is not None:
            self.content_length = int(length)
            self._by_length = True
        elif b"transfer-encoding" in known:
            self._by_length = True
        self._has_head = True
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self.has_body = True
        self._buffer.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._has_head:
            self._complete = True


async def connect(loop: asyncio.AbstractEventLoop, host: str, port: int) -> Connection:
    """Open a connection. Raises OSError; the caller bounds the time."""
    _, connection = await loop.create_connection(lambda: Connection(loop), host, port)
    return connection
