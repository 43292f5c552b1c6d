"""Identical requests at the same time share one call: the first begins it, the others follow it from its beginning.

    flight = flights.get(key) or flights.begin(key, call)      # call(flight) feeds it: head, pieces
    with flight.reader() as reader:
        head = await reader.head()
        while piece := await reader.read():
            ...

The call belongs to nobody among those who read: it runs in a task of its own, goes on when the reader that began it
leaves, and is cancelled when the last reader has left. Its failure is raised to every reader at the place where it
came.

Memory is bounded: up to `keep_bytes` are kept for readers that join late and for whoever stores the whole. Beyond,
nobody may join any more, what all have read is dropped, and the call waits for the slowest reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Any

__all__ = ["Aborted", "Flight", "Flights", "Reader"]


class Aborted(Exception):
    """The call was ended from outside; its readers were not."""


class Flight:
    """One call and its answer so far. `head` is whatever the call makes of an answer's beginning."""

    def __init__(self, keep_bytes: int, forget: Callable[[], None]) -> None:
        self._keep_bytes = keep_bytes
        self._forget = forget
        self._readers: set[Reader] = set()
        self._head: Any = None
        self._pieces: list[bytes] = []
        self._dropped = 0  # pieces before the first of `_pieces`
        self._held_bytes = 0
        self._room: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.whole = True  # nothing was dropped
        self.done = False
        self.failure: Exception | None = None
        self.note: Any = None  # what the call leaves for its readers to know at the end

    # The call's side

    def start(self, head: Any) -> None:
        """The answer begins."""
        self._head = head
        self._wake()

    async def put(self, piece: bytes) -> None:
        """The answer's next piece, at least a byte; waits while too much is unread."""
        self._pieces.append(piece)
        self._held_bytes += len(piece)
        self._wake()
        if self._held_bytes > self._keep_bytes:
            self.whole = False
            self._forget()
            self._drop()
            while self._held_bytes > self._keep_bytes:
                self._room = asyncio.get_running_loop().create_future()
                await self._room
                self._drop()

    @property
    def pieces(self) -> list[bytes]:
        """The body's pieces; all of them if `whole`."""
        return self._pieces

    # The readers' side

    def reader(self) -> Reader:
        """One that reads from the beginning; to be closed."""
        reader = Reader(self)
        self._readers.add(reader)
        return reader

    def _run(self, call: Callable[[Flight], Awaitable[None]]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._called(call))

    async def _called(self, call: Callable[[Flight], Awaitable[None]]) -> None:
        try:
            await call(self)
        except asyncio.CancelledError:
            self.failure = Aborted("the call was cancelled")
            raise
        except Exception as failure:
            self.failure = failure
        finally:
            self.done = True
            self._forget()
            self._wake()

    def _wake(self) -> None:
        for reader in self._readers:
            reader._wake()

    def _drop(self) -> None:
        """Let go of what every reader has read."""
        read = min((reader._at for reader in self._readers), default=self._dropped + len(self._pieces))
        count = read - self._dropped
        if count > 0:
            self._held_bytes -= sum(map(len, self._pieces[:count]))
            del self._pieces[:count]
            self._dropped = read

    def _has_read(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _left(self, reader: Reader) -> None:
        self._readers.discard(reader)
        self._has_read()
        if not self._readers and not self.done and self._task is not None:
            self._forget()
            self._task.cancel()


class Reader:
    """Reads a flight at its own pace."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self._at = 0
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def head(self) -> Any:
        """The answer's beginning. Raises the call's failure."""
        flight = self.flight
        while flight._head is None:
            await self._more()
        return flight._head

    async def read(self) -> bytes:
        """The next piece as it was put, `b""` at the end. Raises the call's failure."""
        flight = self.flight
        while self._at >= flight._dropped + len(flight._pieces):
            if flight.done and flight.failure is None:
                return b""
            await self._more()
        piece = flight._pieces[self._at - flight._dropped]
        self._at += 1
        flight._has_read()
        return piece

    def close(self) -> None:
        """Leave; the last to leave ends the call."""
        self.flight._left(self)

    async def _more(self) -> None:
        if self.flight.done:
            raise self.flight.failure or Aborted("the call ended without an answer")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Flights:
    """Those of one process that may still be joined."""

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._by_key: dict[Hashable, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: Hashable) -> Flight | None:
        """The flight of that key, if there is one to join. Take a reader of it at once, before awaiting anything."""
        return self._by_key.get(key)

    def begin(self, key: Hashable | None, call: Callable[[Flight], Awaitable[None]]) -> Flight:
        """Begin a flight; nobody can join one without a key. Take a reader of it at once."""

        def forget() -> None:
            if key is not None and self._by_key.get(key) is flight:
                del self._by_key[key]

        flight = Flight(self._keep_bytes, forget)
        if key is not None:
            self._by_key[key] = flight
        flight._run(call)
        return flight
