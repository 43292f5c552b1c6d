"""A Redis client for the hot path: one connection a process, kept up in the background, and never waited for.

    redis = Redis("/run/citadel-redis/redis.sock", load_credentials, options, on_change=tell)
    redis.start()
    value = await redis.call(b"GET", b"citadel:x")      # CacheUnavailable at once while Redis is gone

A call costs a few microseconds: see `Connection`. Nobody waits for a connection: while there is none, calls fail, and
whoever makes them goes on without Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from time import monotonic
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from citadel_llm.integration.cache.connection import (
    CacheUnavailable,
    CommandRefused,
    Connection,
    Options,
    Word,
    connect,
)

__all__ = ["Credentials", "Link", "Redis", "Script", "load_credentials"]

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_LASTING_S = 1.0  # a connection that lived so long was a good one: the pauses begin anew


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user of Redis."""

    user: Annotated[str, Meta(min_length=1)]
    password: Annotated[str, Meta(min_length=1)]

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, ...)"


def load_credentials(path: Path) -> Credentials:
    """Read `{"user", "password"}`. Raises CacheUnavailable, which names the file and never its content."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Credentials)
    except OSError as error:
        raise CacheUnavailable(f"{path}: can't be read: {error.strerror}") from error
    except msgspec.MsgspecError:
        raise CacheUnavailable(f'{path}: expected {{"user", "password"}}') from None


class Script:
    """A Lua script, known to Redis by its SHA-1."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Link:
    """Keeps a connection up: tries again with growing, random pauses for as long as it is started."""

    def __init__(
        self,
        path: str,
        credentials: Callable[[], Credentials],
        options: Options,
        *,
        on_change: Callable[[bool, str], None] | None = None,
        rng: Random | None = None,
    ) -> None:
        """`credentials` is asked before each connection; `on_change` hears whether there is one, and why not."""
        self.path = path
        self.load = credentials
        self.options = options
        self._on_change = on_change or (lambda _up, _reason: None)
        self._rng = rng or Random()  # noqa: S311 — spreads attempts over time
        self._task: asyncio.Task[None] | None = None
        self.connection: Connection | None = None
        self.credentials: Credentials | None = None  # those of the last connection
        self.reason = "not connected yet"  # why there is no connection

    def start(self) -> None:
        """Begin to connect, inside the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Close, and do not come back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    @property
    def up(self) -> bool:
        """Whether there is a connection."""
        return self.connection is not None and not self.connection.closed

    async def opened(self, connection: Connection) -> None:
        """What is to happen on a new connection before it is used."""

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        told: bool | None = None
        while True:
            connection: Connection | None = None
            try:
                credentials = self.load()
                connection = await connect(loop, self.path, credentials.user, credentials.password, self.options)
                await self.opened(connection)
                began = monotonic()
                self.connection, self.credentials = connection, credentials
                told = True
                self._on_change(True, "")
                await connection.lost
                self.reason = connection.reason
                if monotonic() - began >= _LASTING_S:
                    failures = 0
            except TimeoutError:
                self.reason = f"{self.path}: no connection within {self.options.handshake_s:g} s"
            except (OSError, CacheUnavailable) as error:
                self.reason = str(error)
            finally:
                if connection is not None:
                    connection.close("closed here")
                self.connection = None
            if told is not False:
                told = False
                self._on_change(False, self.reason)
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures, 16))
            failures += 1
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))


class Redis(Link):
    """The client."""

    def call(self, *words: Word) -> asyncio.Future[Any]:
        """Send a command; await the result for the reply. Raises CacheUnavailable, at once where Redis is gone."""
        connection = self.connection
        if connection is None:
            raise CacheUnavailable(self.reason)
        return connection.call(*words)

    async def run(self, script: Script, keys: Sequence[Word], arguments: Sequence[Word] = ()) -> Any:
        """A script's reply; Redis gets its text where it does not know it yet. Raises CacheUnavailable."""
        try:
            return await self.call(b"EVALSHA", script.sha, len(keys), *keys, *arguments)
        except CommandRefused as refused:
            if refused.code != "NOSCRIPT":
                raise
        await self.call(b"SCRIPT", b"LOAD", script.text)
        return await self.call(b"EVALSHA", script.sha, len(keys), *keys, *arguments)
