"""uvicorn's HTTP/1.1, with bounds on what callers may keep waiting, and refusals in our shape."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from citadel_llm.api.errors import ApiError, error_body
from citadel_llm.api.middleware.correlation import new_request_id

__all__ = ["bounded_protocol"]

_MAX_HEAD_BYTES = 1 << 16


class _Protocol(HttpToolsProtocol):
    """uvicorn bounds neither the headers of a request, in bytes and time, nor the time for taking an answer."""

    head_s = 30.0
    write_s = 120.0
    _in_head = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Called by the loop. A connection that never asks is idle, and ends as idle ones do."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._end_head()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by the loop. Headers that come in one piece, as almost all do, cost no timer."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(431, "headers_too_large", f"The headers are larger than {_MAX_HEAD_BYTES} bytes.")
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(self.head_s, self._head_overdue)

    def pause_writing(self) -> None:
        """Called by the loop: the caller does not take what it gets.

        An orderly close would wait for it, and so for ever; where it goes on like this, the end is abrupt.
        """
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.write_s, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Called by the loop: the caller has taken most of it."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._end_head()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn where a request can't be parsed."""
        self._refuse(400, "invalid_http", msg)

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
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            request_id = new_request_id()
            body = error_body(ApiError(status, code, message), request_id)
            self.transport.write(
                b"HTTP/1.1 %d Refused\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (status, request_id.encode(), len(body), body)
            )
        # Else an answer is under way, and what was sent ahead of its end is what is wrong: nothing may be put amid it.
        self.transport.close()


def bounded_protocol(head_s: float, write_s: float) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn.

    A request's headers may take `head_s` seconds, and a full buffer stay full for `write_s`.
    """
    return type("BoundedProtocol", (_Protocol,), {"head_s": head_s, "write_s": write_s})
