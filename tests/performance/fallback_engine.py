"""The scripted engine in Python, for machines without a C compiler; the same options and answers as `engine.c`."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from typing import Any, cast

import uvloop

__all__ = ["Script"]

ANSWER_BYTES = 618
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
_EVENTS = re.compile(rb'"max_tokens": *(\d+)')
_STREAM = re.compile(rb'"stream": *true')
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n"
    return head % len(body) + body


def _plain() -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    document = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [choice],
        "usage": {"prompt_tokens": 32, "total_tokens": 48, "completion_tokens": 16, "prompt_tokens_details": None},
    }
    bare = len(json.dumps(document, separators=(",", ":")))
    message["content"] = ("words " * 100)[: ANSWER_BYTES - bare]
    return json.dumps(document, separators=(",", ":")).encode()


def _event(content: str, finish: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": finish}
    document = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [choice],
    }
    return _chunk(b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Script:
    """What all connections share: the answers, ready made, and what was counted."""

    def __init__(self, service_s: float, first_s: float, gap_s: float, idle_s: float) -> None:
        self.service_s, self.first_s, self.gap_s, self.idle_s = service_s, first_s, gap_s, idle_s
        self.plain = _answer(_plain())
        self.event = _event(" token", None)
        self.finish = _event("", "stop") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.models = _answer(b'{"object":"list","data":[{"id":"bench","object":"model","owned_by":"vllm"}]}')
        self.info = _answer(b'{"model_path":"bench","served_model_name":"bench","is_generation":true}')
        self.requests = self.streams = self.cut = self.busy = 0
        self.connections: set[Connection] = set()

    def stats(self) -> bytes:
        """The answer to /stats."""
        counted = {"requests": self.requests, "streams": self.streams, "cut": self.cut, "busy": self.busy}
        return _answer(json.dumps(counted).encode())

    async def sweep(self) -> None:
        """Close idle connections, for ever."""
        while True:
            await asyncio.sleep(1)
            oldest = time.monotonic() - self.idle_s
            for connection in tuple(self.connections):
                connection.close_if_idle(oldest)


class Connection(asyncio.Protocol):
    """One caller."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None
        self._events_left = 0
        self._used = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._script.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._script.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._script.busy -= 1
            self._script.cut += self._events_left > 0

    def close_if_idle(self, oldest: float) -> None:
        """Close where nothing is owed and the last use was before `oldest`."""
        if self._timer is None and self._used < oldest and self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Called by the loop. One request at a time: none of our callers sends two."""
        self._data += data
        head, separator, body = self._data.partition(b"\r\n\r\n")
        found = _LENGTH.search(head)
        if separator and len(body) >= (int(found[1]) if found else 0):
            self._data = b""
            self._used = time.monotonic()
            self._respond(head, body)

    def _respond(self, head: bytes, body: bytes) -> None:
        script = self._script
        if head.startswith(b"POST /v1/"):
            script.requests += 1
            if _STREAM.search(body):
                script.streams += 1
                events = _EVENTS.search(body)
                self._events_left = int(events[1]) if events else 16
                self._write(STREAM_HEAD)
                self._owe(script.first_s)
            elif script.service_s:
                self._owe(script.service_s)
            else:
                self._write(script.plain)
        elif head.startswith(b"GET /v1/models"):
            self._write(script.models)
        elif head.startswith(b"GET /stats"):
            self._write(script.stats())
        elif head.startswith(b"GET /health"):
            self._write(_answer(b""))
        else:
            self._write(script.info)

    def _owe(self, delay_s: float) -> None:
        self._script.busy += 1
        self._timer = self._loop.call_later(delay_s, self._pay, self._loop.time() + delay_s)

    def _pay(self, due: float) -> None:
        self._used = time.monotonic()
        if self._events_left > 1:
            self._events_left -= 1
            self._write(self._script.event)
            due += self._script.gap_s
            self._timer = self._loop.call_at(due, self._pay, due)
            return
        self._timer = None
        self._script.busy -= 1
        self._write(self._script.finish if self._events_left else self._script.plain)
        self._events_left = 0

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def _serve(port: int, script: Script) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(script), "127.0.0.1", port, backlog=4096)
    async with server:
        await script.sweep()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    for name, default in (("service-us", 0), ("first-us", 5_000), ("gap-us", 2_000), ("idle-s", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    said = parser.parse_args()
    script = Script(said.service_us / 1e6, said.first_us / 1e6, said.gap_us / 1e6, said.idle_s)
    uvloop.run(_serve(said.port, script))


if __name__ == "__main__":
    main()
