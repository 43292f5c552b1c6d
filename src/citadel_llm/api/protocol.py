"""uvicorn's HTTP/1.1 with bounds on what callers may keep waiting, refusals in our shape, and a short way for the
hot path: its requests are answered without ASGI in between, most of them in one task step and one write each way.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httptools
import msgspec
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from citadel_llm.api.call import CallerGone, Handler, Listener, TooLarge
from citadel_llm.api.errors import ApiError, Headers, error_body
from citadel_llm.api.middleware.correlation import new_request_id

__all__ = ["bounded_protocol"]

_MAX_HEAD_BYTES = 1 << 16
# So many requests may wait for their turn on a connection before it is not read any more: who hangs up while
# one is answered is noticed in spite of them.
_MAX_AHEAD = 16

_logger = logging.getLogger("uvicorn.error")


class _Call(msgspec.Struct, eq=False):
    """One request of the hot path; implements `Call`. A struct for the reasons of `Exchange`."""

    _protocol: _Protocol
    handler: Handler
    keep_alive: bool
    headers: Headers
    client: str | None
    exchange: Listener | None = None
    before_end: Callable[[], None] | None = None
    more_body: bool = True
    disconnected: bool = False
    response_started: bool = False
    response_complete: bool = False
    _body: bytes | list[bytes] = b""
    _size: int = 0
    _limit: int = 0
    _waiter: asyncio.Future[None] | None = None
    _chunked: bool = False
    _left: int = 0

    # The request

    async def body(self, limit: int) -> bytes:
        """See `Call`."""
        if self.more_body and not self.disconnected and self._size <= limit:
            await self._rest(limit)
        if self._size > limit:
            raise TooLarge
        if self.disconnected:
            raise CallerGone("the caller hung up before its request was complete")
        body = self._body
        self._body = b""
        return b"".join(body) if isinstance(body, list) else body

    async def _rest(self, limit: int) -> None:
        protocol = self._protocol
        if _expects(self.headers):
            protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._limit = limit
        self._waiter = protocol.loop.create_future()
        protocol.flow.resume_reading()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def fed(self, data: bytes) -> None:
        """More of the body has come."""
        body = self._body
        if not body:
            self._body = data
        elif isinstance(body, list):
            body.append(data)
        else:
            self._body = [body, data]
        self._size += len(data)
        if self._waiter is None:
            if self._size > HIGH_WATER_LIMIT:
                self._protocol.flow.pause_reading()
        elif self._size > self._limit:
            self._wake()

    def complete(self) -> None:
        """All of the body has come."""
        self.more_body = False
        if self._waiter is not None:
            self._wake()

    def gone(self) -> None:
        """The caller hung up."""
        if self.response_complete or self.disconnected:
            return
        self.disconnected = True
        if self._waiter is not None:
            self._wake()
        elif self.exchange is not None:
            self.exchange.interrupt(CallerGone("the caller hung up"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The answer

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """See `Call`."""
        protocol = self._protocol
        if protocol.flow.write_paused:
            await protocol.flow.drain()
        if self.disconnected:
            return
        head = self._head(status, headers, len(body))
        if self._chunked or self._left != len(body):
            raise RuntimeError("an answer that differs from its length")
        if self.before_end is not None:
            self.before_end()
        if len(body) < HIGH_WATER_LIMIT:
            protocol.transport.write(head + body)
        else:
            protocol.transport.writelines((head, body))
        self._done()

    async def start(self, status: int, headers: Headers) -> None:
        """See `Call`."""
        protocol = self._protocol
        if protocol.flow.write_paused:
            await protocol.flow.drain()
        if not self.disconnected:
            protocol.transport.write(self._head(status, headers, None))

    async def piece(self, data: bytes) -> None:
        """See `Call`."""
        protocol = self._protocol
        if protocol.flow.write_paused:
            await protocol.flow.drain()
        if self.disconnected or not data:
            return
        if self._chunked:
            protocol.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
            return
        self._left -= len(data)
        if self._left < 0:
            raise RuntimeError("an answer that is longer than its length")
        if not self._left and self.before_end is not None:
            self.before_end()
        protocol.transport.write(data)

    async def end(self, data: bytes = b"") -> None:
        """See `Call`."""
        if data:
            await self.piece(data)
        elif self._protocol.flow.write_paused:
            await self._protocol.flow.drain()
        if self.disconnected:
            return
        if self._chunked:
            if self.before_end is not None:
                self.before_end()
            self._protocol.transport.write(b"0\r\n\r\n")
        elif self._left:
            raise RuntimeError("an answer that is shorter than its length")
        self._done()

    def _head(self, status: int, headers: Headers, length: int | None) -> bytes:
        """The answer's head, which has its `length` unless `headers` have one. What is no header raises RuntimeError.

        httptools lets none through with an end of a line in it, so that this finds mistakes of our own.
        """
        if self.response_started:
            raise RuntimeError("an answer that begins twice")
        # What an engine's answers have in their heads, and ours, is mostly the same each time.
        found = _rendered.get(key := tuple(headers))
        if found is None:
            found = _render(key)
        lines, given, closes = found
        if given is not None:
            left = given
        else:
            left = length or 0
            if length is None and status not in (204, 304):
                self._chunked = True
                lines += b"transfer-encoding: chunked\r\n"
            elif length or (length is not None and status not in (204, 304)):
                lines += f"content-length: {left}\r\n".encode()
        self._left = left
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            lines += b"connection: close\r\n"
        self.response_started = True
        common = b"" if self.exchange is None else self.exchange.lines
        return b"".join((STATUS_LINE[status], self._protocol.default_head(), lines, common, b"\r\n"))

    def _done(self) -> None:
        self.response_complete = True
        self._body = b""
        if not self.keep_alive:
            self._protocol.transport.close()
        self._protocol.on_response_complete()


class _Settings(NamedTuple):
    head_s: float = 30.0
    write_s: float = 120.0
    hot: Mapping[bytes, Handler] = {}


# Lines, each with its end; the length that they give; whether the connection ends.
type _Rendered = tuple[bytes, int | None, bool]

_MAX_RENDERED = 256
_rendered: dict[tuple[tuple[bytes, bytes], ...], _Rendered] = {}


def _render(headers: tuple[tuple[bytes, bytes], ...]) -> _Rendered:
    """The same for those that were not met before; those with a length, or long, are not kept."""
    # `%` takes several times as long for bytes as joining them.
    lines = b"\r\n".join((*map(b": ".join, headers), b""))
    if len(lines) - len(lines.translate(None, b"\r\n")) != 2 * len(headers):
        raise RuntimeError("a header with the end of a line in it")
    known = dict(headers)
    length = known.get(b"content-length")
    closes = b"connection" in known
    if closes and known[b"connection"] != b"close":
        lines += b"connection: close\r\n"
    found = lines, None if length is None else int(length), closes
    if length is None and len(lines) <= 512:
        if len(_rendered) >= _MAX_RENDERED:
            _rendered.clear()
        _rendered[headers] = found
    return found


# What uvicorn gives to each answer, and the same rendered.
_default_head: tuple[list[tuple[bytes, bytes]] | None, bytes] = (None, b"")


class _Protocol(HttpToolsProtocol):
    """uvicorn bounds neither the headers of a request, in bytes and time, nor the time for taking an answer.

    A connection has one timer for its idleness: it looks, when it goes off, at how long nothing has happened.
    """

    settings = _Settings()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_s, self._write_s, self._hot = self.settings
        self.client_host: str | None = None
        self._in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._keeps: bool | None = None  # whether it is a caller whose connection may be kept
        self._ready: _Call | None = None  # to be started once the parser has had all that came
        self._current: Any = None  # the call, or uvicorn's cycle, that is being answered

    # The transport's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Called by the loop. A connection that never asks is idle, and ends as idle ones do."""
        super().connection_made(transport)
        self.client_host = self.client[0] if self.client else None
        self._idle_since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._look_whether_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._end_head()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        self.resume_writing()
        current = self._current
        if isinstance(current, _Call):
            current.gone()
        elif current is not None:
            current.disconnected = True
            current.message_event.set()
        if isinstance(self.cycle, _Call):  # the newest; uvicorn's code would take it for one of its own
            self.cycle = None
        self.pipeline.clear()
        super().connection_lost(exc)
        # They lead back here: left alone, all of it would wait for the garbage collector.
        self._current = self.cycle = None  # type: ignore[assignment] # as uvicorn has it

    def data_received(self, data: bytes) -> None:
        """Called by the loop. Headers that come in one piece, as almost all do, cost no timer."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._unsupported_upgrade_warning()
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)
        if self._ready is not None:
            call, self._ready = self._ready, None
            # It runs here and now, as far as it gets without waiting for anything.
            # Without a name, each would have one made for it.
            asyncio.Task(self._answer(call), loop=self.loop, name="request", eager_start=True)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(431, "headers_too_large", f"The headers are larger than {_MAX_HEAD_BYTES} bytes.")
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(self._head_s, self._head_overdue)

    def pause_writing(self) -> None:
        """Called by the loop: the caller does not take what it gets.

        An orderly close would wait for it, and so for ever; where it goes on like this, the end is abrupt.
        """
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._write_s, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Called by the loop: the caller has taken most of it."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    # The parser's side

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._in_head = True
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._head_timer is not None:
            self._end_head()
        self._in_head = False
        self._head_bytes = 0
        parser = self.parser
        if parser.get_method() == b"POST":
            handler = self._hot.get(self.url) or self._hot.get(_path_of(self.url))
            if handler is not None:
                if self._keeps is None:  # a caller's version stays the same
                    self._keeps = parser.get_http_version() != "1.0"
                keep_alive = self._keeps and parser.should_keep_alive()
                call = _Call(self, handler, keep_alive, self.headers, self.client_host)
                self.cycle = call  # type: ignore[assignment] # what uvicorn's code asks of it, it has
                if self._current is None:
                    self._current = self._ready = call
                else:
                    self._queue(call)
                return
        self._cold()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        cycle: Any = self.cycle
        if isinstance(cycle, _Call):
            if not cycle.response_complete:
                cycle.fed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        cycle: Any = self.cycle
        if isinstance(cycle, _Call):
            cycle.complete()
        else:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called where a request can't be parsed."""
        self._refuse(400, "invalid_http", msg)

    # Requests in turn

    def _cold(self) -> None:
        """Hand the request over to uvicorn."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.headers.extend(headers)
        self.url, self.expect_100_continue = url, _expects(headers)
        # uvicorn looks at the newest request to see whether one is under way; which one is, is ours to know.
        self.cycle = self._current
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._current = cycle
        if isinstance(cycle, _Call):
            self.loop.create_task(self._answer(cycle))
        else:
            super()._start_asgi_task(cycle, app)

    def _queue(self, call: _Call) -> None:
        self.pipeline.appendleft((call, None))  # type: ignore[arg-type]
        if len(self.pipeline) >= _MAX_AHEAD:
            self.flow.pause_reading()

    def on_response_complete(self) -> None:
        """Called when an answer is complete: the next request's turn, or none's."""
        self.server_state.total_requests += 1
        self._current = None
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_since = self.loop.time()

    async def _answer(self, call: _Call) -> None:
        task: Any = asyncio.current_task()
        self.tasks.add(task)
        try:
            await call.handler(call)
        except BaseException as failure:  # the server's end cancels what still runs, and waits for nobody
            if not isinstance(failure, asyncio.CancelledError):
                _logger.error("Exception in the hot path", exc_info=failure)
        finally:
            self.tasks.discard(task)
            if not call.response_complete and not call.disconnected:
                self.transport.close()

    def default_head(self) -> bytes:
        """The headers that uvicorn gives to each answer, as bytes; it makes new ones each second."""
        global _default_head  # noqa: PLW0603 — one for all connections
        headers = self.server_state.default_headers
        known, rendered = _default_head
        if known is not headers:
            rendered = b"".join([b"%b: %b\r\n" % pair for pair in headers])
            _default_head = (headers, rendered)
        return rendered

    # Limits

    def _unset_keepalive_if_required(self) -> None:
        """Called by uvicorn, whose timer is another."""

    def _look_whether_idle(self) -> None:
        idle_s = 0.0
        if self._current is None and not self._in_head:
            idle_s = self.loop.time() - self._idle_since
        if idle_s < self.timeout_keep_alive:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive - idle_s, self._look_whether_idle
            )
        else:
            self.timeout_keep_alive_handler()

    def _end_head(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._refuse(408, "request_timeout", "The request's headers did not arrive in time.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._end_head()
        if self._current is None or not self._current.response_started:
            request_id = new_request_id()
            body = error_body(ApiError(status, code, message), request_id)
            self.transport.write(
                b"HTTP/1.1 %d Refused\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (status, request_id.encode(), len(body), body)
            )
        # Else an answer is under way, and what was sent ahead of its end is what is wrong: nothing may be put amid it.
        self.transport.close()
        if isinstance(self._current, _Call):
            self._current.gone()


def _expects(headers: Headers) -> bool:
    """Whether the caller waits for a word before it sends the body."""
    return (b"expect", b"100-continue") in [(name, value.lower()) for name, value in headers]


def _path_of(url: bytes) -> bytes:
    """The path of a URL as it stands in a request's first line, as uvicorn reads it."""
    path: bytes = httptools.parse_url(url).path
    return urllib.parse.unquote_to_bytes(path) if b"%" in path else path


def bounded_protocol(hot: Mapping[str, Handler], head_s: float, write_s: float) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn.

    A POST to a path of `hot` is answered by its handler. A request's headers may take `head_s` seconds, and a full
    buffer stay full for `write_s`.
    """
    handlers = {path.encode("ascii"): handler for path, handler in hot.items()}
    return type("BoundedProtocol", (_Protocol,), {"settings": _Settings(head_s, write_s, handlers)})
