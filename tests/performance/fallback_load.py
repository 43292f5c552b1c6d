"""The load generator in Python, for machines without a C compiler; the same options and output as `load.c`."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import httptools
import uvloop

__all__ = ["main", "summary"]


def summary(seconds: list[float]) -> dict[str, float]:
    """Count, percentiles by nearest rank, greatest and mean, in microseconds."""
    if not seconds:
        return {"count": 0}
    order = sorted(seconds)
    at = {name: order[math.ceil(share * len(order)) - 1] for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    figures = {**at, "max": order[-1], "mean": sum(order) / len(order)}
    return {"count": len(order), **{name: round(value * 1e6, 1) for name, value in figures.items()}}


class Run:
    """What all connections share: what to send, until when, and what was seen."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.plain = options.plain.read_bytes() if options.plain else b""
        self.stream = options.stream.read_bytes() if options.stream else b""
        self.began = time.monotonic()
        self.end = self.began + options.seconds
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.latency: list[float] = []
        self.first: list[float] = []
        self.refused: list[float] = []
        self.in_time = 0
        self.last = self.began

    @property
    def open(self) -> bool:
        """Whether another request may be sent."""
        limit = self.options.requests
        return time.monotonic() < self.end and (not limit or self.counts["started"] < limit)

    def report(self, unanswered: int) -> dict[str, Any]:
        """What the program prints."""
        window = (self.last - self.began) if self.options.requests else self.options.seconds
        done = self.counts["answered"] if self.options.requests else self.in_time
        names = ("started", "answered", "broken", "unconnected", "hung_up", "streams", "events", "retry_after")
        return {
            "took_s": round(time.monotonic() - self.began, 4),
            "requests_per_s": round(done / window, 1) if window > 0 else 0.0,
            **{name: self.counts[name] for name in names},
            "unanswered": unanswered,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "latency_us": summary(self.latency),
            "first_token_us": summary(self.first),
            "refused_us": summary(self.refused),
        }


class Connection(asyncio.Protocol):
    """One keep-alive connection, with at most one request on it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._clear(0.0)

    def _clear(self, due: float) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._due, self._first, self._tail, self._events = due, 0.0, b"", 0
        self._stream = self._hangup = self._retry_after = self._complete = False

    async def ask(self, due: float) -> None:
        """Send a request that was due then, and wait until it is over."""
        run, options = self._run, self._run.options
        run.counts["started"] += 1
        number = run.counts["started"]
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            try:
                await loop.create_connection(lambda: self, "127.0.0.1", options.port)
            except OSError:
                run.counts["unconnected"] += 1
                await asyncio.sleep(0.02)
                return
        self._clear(due)
        self._stream = bool(options.stream_every) and number % options.stream_every == 0
        if self._stream:
            run.counts["streams"] += 1
            self._hangup = bool(options.hangup_every) and run.counts["streams"] % options.hangup_every == 0
        self._done = loop.create_future()
        cast(asyncio.Transport, self._transport).write(run.stream if self._stream else run.plain)
        await self._done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._transport = None
        if self._done is not None and not self._done.done():
            self._run.counts["broken"] += 1
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._run.options.quickack and self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        if self._done is None or self._done.done():
            self._close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._close()
            return
        if self._complete:
            self._over()
        elif self._hangup and self._events >= self._run.options.hangup_after:
            self._run.counts["hung_up"] += 1
            self._run.counts["events"] += self._events
            self._done.set_result(None)
            self._close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._retry_after |= name.lower() == b"retry-after"

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._first = self._first or time.monotonic()
        if self._stream:
            self._events += body.count(b"\n\n")
            self._tail = (self._tail + body)[-16:]

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._complete = True

    def _over(self) -> None:
        run, now, status = self._run, time.monotonic(), self._parser.get_status_code()
        run.statuses[status] += 1
        run.counts["events"] += self._events
        if status != 200:
            run.refused.append(now - self._due)
            run.counts["retry_after"] += self._retry_after and status in (429, 503)
        elif not self._first or (self._stream and b"[DONE]" not in self._tail):
            run.counts["broken"] += 1
        else:
            run.counts["answered"] += 1
            run.in_time += now <= run.end
            run.last = now
            run.latency.append(now - self._due)
            if self._stream:
                run.first.append(self._first - self._due)
        if not self._parser.should_keep_alive():
            self._close()
        if self._done is not None:
            self._done.set_result(None)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None


async def _closed(run: Run) -> int:
    async def work() -> None:
        connection = Connection(run)
        while run.open:
            await connection.ask(time.monotonic())

    return await _finish(run, [asyncio.create_task(work()) for _ in range(run.options.connections)])


async def _open(run: Run) -> int:
    free = [Connection(run) for _ in range(run.options.connections)]
    tasks: set[asyncio.Task[None]] = set()

    async def once(connection: Connection, due: float) -> None:
        await connection.ask(due)
        free.append(connection)

    scheduled = 0
    while run.open:
        due = run.began + scheduled / run.options.rate
        if due > time.monotonic() or not free:
            await asyncio.sleep(max(due - time.monotonic(), 0.0005))
            continue
        scheduled += 1
        task = asyncio.create_task(once(free.pop(0), due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    return await _finish(run, tasks)


async def _finish(run: Run, tasks: list[asyncio.Task[None]] | set[asyncio.Task[None]]) -> int:
    """Wait for the last answers; how many did not come."""
    if not tasks:
        return 0
    _, waiting = await asyncio.wait(tasks, timeout=max(run.end - time.monotonic(), 0) + run.options.grace)
    for task in waiting:
        task.cancel()
    return len(waiting)


def main() -> None:
    """Load, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("port", 8000), ("connections", 1), ("requests", 0), ("stream-every", 0), ("quickack", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("hangup-every", 0), ("hangup-after", 3), ("rate", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, seconds in (("seconds", 1.0), ("grace", 10.0)):
        parser.add_argument(f"--{name}", type=float, default=seconds)
    for name in ("plain", "stream"):
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    run = Run(options)
    unanswered = uvloop.run(_open(run) if options.rate else _closed(run))
    print(json.dumps(run.report(unanswered)))


if __name__ == "__main__":
    main()
