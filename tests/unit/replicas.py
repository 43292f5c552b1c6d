"""Replicas for tests: small HTTP servers on loopback that do what a test tells them, and a gateway on them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from applications import application
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.metrics import Metrics
from citadel_llm.utils.config import parse_config
from citadel_llm.utils.keys import KeyRing
from citadel_llm.utils.logging import LogWriter

ANSWER = {"usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}}


class Replica:
    """One engine. Its attributes may be changed at any time; `requests` holds the bodies that came."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.delay_s = 0.0
        self.status = 200
        self.healthy = True
        self.breaks = False  # closes the connection in the answer's place
        self.breaks_after_head = False
        self.hangs = False  # until its caller hangs up
        self.hung_up = 0
        self.places: asyncio.Semaphore | None = None  # works on so many at once
        self.piece_s = 0.0  # between the pieces of a stream
        self.waiting = 0
        self.requests: list[dict[str, Any]] = []
        self.open = 0
        self.most_open = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def kill(self) -> None:
        """As `kill -9` does: the port refuses, and every connection is reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.split(b"\r\n")
                path = lines[0].split()[1]
                headers = dict(line.lower().split(b": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
                if not await self._answer(path, body, reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answer(
        self, path: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if path == b"/health":
            writer.write(_http(200 if self.healthy else 503, b""))
        elif path == b"/metrics":
            gauge = b'vllm:num_requests_waiting{engine="0",model_name="m"} %d.0\n' % self.waiting
            writer.write(_http(200, b"# TYPE vllm:num_requests_waiting gauge\n" + gauge))
        else:
            self.requests.append(json.loads(body))
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            try:
                if self.places is None:
                    return await self._complete(json.loads(body), reader, writer)
                async with self.places:
                    return await self._complete(json.loads(body), reader, writer)
            finally:
                self.open -= 1
        return True

    async def _complete(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if self.hangs:
            while not reader.at_eof():
                await asyncio.sleep(0.005)
            self.hung_up += 1
            return False
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.breaks:
            return False
        if self.breaks_after_head:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            await writer.drain()
            return False
        if self.status != 200:
            writer.write(_http(self.status, b'{"error":{"message":"not well","type":"x","code":"broken"}}'))
            return True
        if not request.get("stream"):
            answer = {"replica": self.name, "model": request["model"], **ANSWER}
            writer.write(_http(200, json.dumps(answer).encode()))
            return True
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in [b'data: {"replica":"%b"}\n\n' % self.name.encode()] * 3 + [b"data: [DONE]\n\n"]:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(self.piece_s)
        writer.write(b"0\r\n\r\n")
        return True


def _http(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


@dataclass
class Answer:
    """What a caller got. `status` is 0 where it got nothing at all."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    complete: bool = False

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json()["error"]["code"])


class Caller:
    """Asks a gateway, in process."""

    def __init__(self, state: GatewayState) -> None:
        self.state = state
        self.gone = asyncio.Event()  # set: every caller hangs up
        self._app = application(state)

    async def ask(
        self, model: str = "m", key: str = "alice", headers: dict[str, str] | None = None, **body: Any
    ) -> Answer:
        data = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **body}
        return await self.post(json.dumps(data).encode(), key, headers)

    async def post(self, body: bytes, key: str = "alice", headers: dict[str, str] | None = None) -> Answer:
        all_headers = {"authorization": f"Bearer {key}", **(headers or {})}
        return await self._call("POST", "/v1/chat/completions", body, all_headers)

    async def get(self, path: str) -> Answer:
        return await self._call("GET", path, b"", {})

    async def _call(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        answer, began = Answer(), time.monotonic()
        request = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not request:
                await self.gone.wait()
                return {"type": "http.disconnect"}
            return request.pop()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += message["body"]
                answer.complete = not message.get("more_body", False)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        await self._app(scope, receive, send)
        answer.seconds = time.monotonic() - began
        return answer

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value now; 0 where nothing was counted."""
        return self.state.metrics._registry.get_sample_value(f"citadel_gateway_{name}", labels) or 0.0


@asynccontextmanager
async def gateway(models: dict[str, dict[str, Any]], **sections: Any) -> AsyncIterator[Caller]:
    """A gateway in front of `models`, whose `upstreams` are replicas; `sections` are the configuration's."""
    data = {
        "auth": {"keys_file": "unused"},
        "probe": {"interval_s": 0.05, "timeout_s": 0.5},
        "balance": {"slow_start_s": 0},
        **sections,
        "models": {
            name: {**entry, "upstreams": [{"url": replica.url} for replica in entry["upstreams"]]}
            for name, entry in models.items()
        },
    }
    keys = KeyRing([(name, hashlib.sha256(name.encode()).digest()) for name in ("alice", "bob", "carol")])
    sink = os.open(os.devnull, os.O_WRONLY)
    log = LogWriter(sink)
    state = GatewayState(
        parse_config(data), lambda: keys, Metrics("test"), log, instance="test", version="0", rng=Random(7)
    )
    await state.start()
    try:
        yield Caller(state)
    finally:
        await state.stop()
        os.close(sink)


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for a condition, for a bounded time."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def replicas(*names: str) -> AsyncIterator[list[Replica]]:
    """Replicas that run until the end."""
    made = [Replica(name) for name in names]
    for replica in made:
        await replica.start()
    try:
        yield made
    finally:
        for replica in made:
            replica.kill()
