"""Structured logging: one JSON object a line, written in batches by a thread of its own.

    log = LogWriter(fd=1)
    log.start()
    log.event("info", "ready", instance="1")
    log.close()

`event` costs a microsecond and never blocks: lines wait in a bounded queue, and where the
reader of the log is slower than the gateway, lines are dropped and counted, not awaited.
Nothing here looks at what it logs, so callers pass no secrets.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
from collections import deque
from typing import Any

import msgspec
import orjson

__all__ = ["Access", "LogWriter", "StdlibHandler"]

_BATCH_S = 0.05
_CLOSE_S = 2.0
_MAX_TEXT = 8192


class Access(msgspec.Struct, gc=False):
    """The line of an answered request of the hot path, in the order of its members."""

    ts: float  # seconds since 1970, to the microsecond
    level: str
    event: str
    instance: str
    request_id: str
    method: str
    path: str
    status: int
    duration_ms: float
    ttft_ms: float | None
    model: str | None
    fallback_from: str | None
    engine: str | None
    caller: str | None
    client: str | None
    stream: bool
    cache: str
    prompt_tokens: int | None
    completion_tokens: int | None
    tokens_estimated: bool
    retries: int
    error: str | None


_access = msgspec.json.Encoder().encode


class LogWriter:
    """Writes events to a file descriptor. Start it after forking, close it before exit."""

    def __init__(self, fd: int, *, capacity: int = 20_000, static: dict[str, Any] | None = None) -> None:
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._capacity = capacity
        self._static = static or {}
        self._fixed: dict[tuple[str, str], bytes] = {}  # our own words, of which there are few
        self._wake = threading.Event()
        self._awake = False  # the same, found sooner
        self._closed = False
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def event(self, level: str, event: str, **fields: Any) -> None:
        """Queue one line. `fields` hold what JSON can say; other objects are shown by `str`."""
        self.record(level, event, fields)

    def record(self, level: str, event: str, fields: dict[str, Any]) -> None:
        """The same, without a dictionary more."""
        fixed = self._fixed.get((level, event))
        if fixed is None:
            fixed = self._fixed[level, event] = _members({"level": level, "event": event, **self._static})
        # Put together by hand, so that what is the same each time is encoded once; `round` would cost a microsecond.
        ts = orjson.dumps(time.time_ns() // 1000 / 1e6)
        self._queue(b"".join((b'{"ts":', ts, b",", fixed, b"," if fields else b"", _members(fields), b"}\n")))

    def access(self, line: Access) -> None:
        """Queue the line of a request, in half the time of any other."""
        try:
            self._queue(_access(line) + b"\n")
        except ValueError:  # half of a surrogate pair
            fields = msgspec.structs.asdict(line)
            del fields["ts"], fields["instance"]
            self.record(fields.pop("level"), fields.pop("event"), fields)

    def _queue(self, line: bytes) -> None:
        if len(self._lines) >= self._capacity:
            self.dropped += 1
            return
        self._lines.append(line)
        if self._closed:
            self._drain()
        elif not self._awake:
            self._awake = True
            self._wake.set()

    def close(self) -> None:
        """Write what is queued and end the thread; later events are written at once.

        Where the reader stands still, what is left is given up after two seconds: the end must not wait for it.
        """
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=_CLOSE_S)
            if self._thread.is_alive():
                self._capacity = 0
                self._lines.clear()
                return
        self._drain()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            if not self._closed:
                time.sleep(_BATCH_S)  # what makes a batch: lines gather meanwhile
            self._wake.clear()
            self._awake = False  # before it looks: whoever comes later wakes it anew
            self._drain()

    def _drain(self) -> None:
        while self._lines:
            batch = b"".join([self._lines.popleft() for _ in range(min(len(self._lines), 512))])
            view = memoryview(batch)
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError:
                self._capacity = 0  # the reader has gone for good, and there is nowhere left to say so
                self._lines.clear()
                return
        if self.dropped and not self._lines:
            dropped, self.dropped = self.dropped, 0
            self.event("warning", "log_lines_dropped", count=dropped)


def _members(fields: dict[str, Any]) -> bytes:
    """The members of an object, without its braces."""
    try:
        return orjson.dumps(fields, default=str)[1:-1]
    except TypeError:  # a number beyond 64 bits, or half of a surrogate pair
        return json.dumps(fields, default=str).encode()[1:-1]


class StdlibHandler(logging.Handler):
    """Carries the records of libraries that use `logging` into the same stream."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, with its traceback if it has one."""
        fields: dict[str, Any] = {"logger": record.name, "message": record.getMessage()[:_MAX_TEXT]}
        if record.exc_info and record.exc_info[0] is not None:
            fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))[-_MAX_TEXT:]
        self._writer.event(record.levelname.lower(), "log", **fields)
