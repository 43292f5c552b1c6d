"""One connection to Redis: calls of one tick go out in one write, replies come back in order (RESP2, by hiredis).

    connection = await connect(loop, "/run/citadel-redis/redis.sock", options)
    await connection.call(b"GET", b"citadel:x")

Many calls are in flight at once. Each has the same deadline, so the oldest one's is the next to pass and a single
timer serves them all. A call that is late fails alone; where nothing at all comes back, the connection is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast

import hiredis

__all__ = ["CacheUnavailable", "CommandRefused", "Connection", "Options", "Word", "connect"]

type Word = bytes | str | int | float

# A timer that is due may run ahead of bytes that came before it: uvloop looks at timers first. After this much longer
# the bytes have been seen, and what is late then is truly late.
_GRACE_S = 0.001
_MORE = object()


class CacheUnavailable(Exception):
    """Redis does not answer, or not in time: go on without."""


class CommandRefused(CacheUnavailable):
    """Redis answered with an error; `code` is its first word, such as NOSCRIPT or NOPERM."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Options:
    """How long to wait, and how much may wait."""

    timeout_s: float = 0.02  # for one call
    stall_s: float = 0.06  # nothing came for so long, though something should have: the connection is given up
    handshake_s: float = 1.0  # to connect, and again to authenticate
    max_in_flight: int = 1024  # calls
    max_queued_bytes: int = 4 << 20  # written by callers and not yet taken by the kernel


class Connection(asyncio.Protocol):
    """The protocol object; made by `connect`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Options) -> None:
        self._loop = loop
        self._options = options
        self._transport: asyncio.WriteTransport | None = None
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._pending: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._blocked = False
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0  # when bytes came last, or when something began to be awaited
        self.timeout_s = options.timeout_s
        self.closed = False
        self.reason = ""  # why it closed
        self.lost: asyncio.Future[None] = loop.create_future()
        self.on_push: Callable[[list[Any]], None] | None = None  # takes replies that belong to no call

    def call(self, *words: Word) -> asyncio.Future[Any]:
        """Send a command; the future is its reply. Raises CacheUnavailable at once, or through the future."""
        if self.closed:
            raise CacheUnavailable(self.reason)
        pending = self._pending
        if self._blocked or len(pending) >= self._options.max_in_flight:
            raise CacheUnavailable("as much as may wait for Redis is waiting")
        command = hiredis.pack_command(words)  # type: ignore[arg-type] # takes any sequence; its stub says a tuple of fewer
        self._out_bytes += len(command)
        if self._out_bytes > self._options.max_queued_bytes:
            self._out_bytes -= len(command)
            raise CacheUnavailable("as much as may wait for Redis is waiting")
        now = monotonic()
        if not pending:
            self._heard = now
        future = self._loop.create_future()
        pending.append((future, now + self.timeout_s))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(command)
        if self._timer is None:
            self._timer = self._loop.call_later(self.timeout_s, self._due)
        return future

    def close(self, reason: str) -> None:
        """Close at once; what is in flight fails."""
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        self._fail_all()
        if not self.lost.done():
            self.lost.set_result(None)

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._out_bytes = 0
        if self._transport is not None and not self.closed:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _due(self) -> None:
        self._timer = self._loop.call_later(_GRACE_S, self._expire)

    def _expire(self) -> None:
        """Fail what is late, and look again when the next call will be."""
        self._timer = None
        now = monotonic()
        pending = self._pending
        if pending and now - self._heard >= self._options.stall_s and pending[0][1] <= now:
            self.close(f"Redis said nothing for {now - self._heard:.3f} s")
            return
        for future, deadline in pending:
            if deadline > now:
                self._timer = self._loop.call_later(deadline - now, self._due)
                return
            if not future.done():  # it stays in its place: its reply may still come
                future.set_exception(CacheUnavailable(f"Redis did not answer within {self.timeout_s:g} s"))
        if pending:
            self._timer = self._loop.call_later(max(0.0, self._heard + self._options.stall_s - now), self._due)

    def _fail_all(self) -> None:
        pending, self._pending = self._pending, deque()
        for future, _ in pending:
            if not future.done():
                future.set_exception(CacheUnavailable(self.reason))

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.set_write_buffer_limits(high=self._options.max_queued_bytes)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._heard = monotonic()
        reader, pending = self._reader, self._pending
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _MORE:
                if self.on_push is not None and type(reply) is list and reply[0] in (b"message", b"subscribe"):
                    self.on_push(reply)
                    if reply[0] == b"message":
                        continue
                future, _ = pending.popleft()
                if future.done():
                    continue
                if type(reply) is hiredis.ReplyError:
                    future.set_exception(CommandRefused(str(reply)))
                else:
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.close("Redis sent something that was not asked for")

    def pause_writing(self) -> None:
        """Called by the loop."""
        self._blocked = True

    def resume_writing(self) -> None:
        """Called by the loop."""
        self._blocked = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.close(str(exc) if exc else "Redis closed the connection")


async def connect(loop: asyncio.AbstractEventLoop, path: str, user: str, password: str, options: Options) -> Connection:
    """Open a connection to the socket at `path` and authenticate. Raises OSError, TimeoutError or CacheUnavailable."""
    async with asyncio.timeout(options.handshake_s):
        _, connection = await loop.create_unix_connection(lambda: Connection(loop, options), path)
    connection.timeout_s = options.handshake_s
    try:
        await connection.call(b"AUTH", user, password)
    except BaseException as error:
        connection.close(str(error) or "not authenticated")
        raise
    connection.timeout_s = options.timeout_s
    return connection
