"""What the hot path is given: a request, and the ways to answer it. The server's side of it is in `protocol.py`.

    body = await call.body(limit)
    await call.whole(200, headers, answer)      # or:
    await call.start(200, headers)
    await call.piece(data)
    await call.end()

An answer that was started and never ended is cut off, so that its caller does not take it for whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from citadel_llm.api.errors import Headers

__all__ = ["Call", "CallerGone", "Handler", "Listener", "Reply", "TooLarge"]


class CallerGone(Exception):
    """The caller hung up, or takes nothing any more; there is nobody to answer."""


class TooLarge(Exception):
    """The body has more bytes than were to be read."""


class Reply(Protocol):
    """Where an answer goes. Each method waits while its reader is behind; header names are in lower case."""

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer; its length is added where `headers` have none."""

    async def start(self, status: int, headers: Headers) -> None:
        """The answer's beginning; without a length in `headers` it may have any."""

    async def piece(self, data: bytes) -> None:
        """Some more of the body, at least a byte."""

    async def end(self, data: bytes = b"") -> None:
        """The body's end."""


class Listener(Protocol):
    """Whoever is to know when the caller hangs up."""

    lines: bytes  # of the head of any answer, each with its end

    def interrupt(self, failure: Exception) -> None:
        """Called once, with CallerGone."""


class Call(Reply, Protocol):
    """One request."""

    headers: Headers
    client: str | None  # the caller's address
    exchange: Listener | None  # set by the handler: told when the caller hangs up once its body was read
    before_end: Callable[[], None] | None  # set by the handler: called just before the answer's last bytes go out

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises TooLarge, and CallerGone where the caller hung up amid it."""


type Handler = Callable[[Call], Awaitable[None]]
