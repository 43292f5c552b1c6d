"""A gateway in this process before two engines that answer what a test puts into `replies`."""

import asyncio
import hashlib
import json
import os
from dataclasses import dataclass, field

import pytest

from applications import application
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.metrics import Metrics
from citadel_llm.utils.config import parse_config
from citadel_llm.utils.keys import KeyRing
from citadel_llm.utils.logging import LogWriter

KEY = "sk-test"


class Engines:
    """One server in the place of every engine: it notes what it is sent, and answers by path."""

    def __init__(self):
        self.seen = []  # (path, body)
        self.replies = {}  # path: (status, content type, pieces)

    def reply(self, path, body, status=200):
        self.replies[path] = (status, "application/json", [json.dumps(body).encode()])

    def stream(self, path, *pieces, cut=False):
        self.replies[path] = (200, "text/event-stream", [*pieces, *([None] if cut else [])])

    async def serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((int(v) for k, _, v in _headers(head) if k == b"content-length"), 0)
                path = head.split(b" ")[1].decode()
                body = await reader.readexactly(length)
                if path != "/health":
                    self.seen.append((path, body))
                await self._answer(writer, *self.replies.get(path, (200, "application/json", [b"{}"])))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the gateway has gone, or the test is over
        finally:
            writer.close()

    async def _answer(self, writer, status, kind, pieces):
        chunked = kind == "text/event-stream"
        framing = "transfer-encoding: chunked" if chunked else f"content-length: {len(pieces[0])}"
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{framing}\r\n\r\n".encode())
        for piece in pieces:
            if piece is None:  # it breaks off here
                await writer.drain()
                raise ConnectionError
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")


def _headers(head):
    return [line.lower().partition(b": ") for line in head.split(b"\r\n")[1:]]


@dataclass
class Answer:
    status: int = 0
    headers: dict = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


class Caller:
    """Calls the gateway's application as a server would."""

    def __init__(self, app, state, log):
        self._app, self.state, self._log = app, state, log

    async def ask(self, method, path, body=b"", headers=None, key=KEY):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = [(b"content-length", b"%d" % len(raw)), *(headers or [])]
        if key:
            sent.append((b"authorization", f"Bearer {key}".encode()))
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "scheme": "http", "http_version": "1.1", "headers": sent, "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        answer, given = Answer(), asyncio.Event()

        async def receive():
            if given.is_set():
                await asyncio.Event().wait()  # the caller stays
            given.set()
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(message):
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                answer.body += message.get("body", b"")

        await asyncio.wait_for(self._app(scope, receive, send), 10)
        return answer

    async def post(self, path, body, **options):
        return await self.ask("POST", path, body, **options)

    async def get(self, path, **options):
        return await self.ask("GET", path, **options)

    def counted(self):
        """Tokens so far: {(model, kind): number}."""
        text = self.state.metrics.exposition()[0].decode()
        found = {}
        for line in text.splitlines():
            if line.startswith("citadel_gateway_tokens_total{"):
                labels = dict(pair.split("=") for pair in line[line.index("{") + 1 : line.index("}")].split(","))
                found[labels["model"].strip('"'), labels["kind"].strip('"')] = float(line.rsplit(" ", 1)[1])
        return found


@pytest.fixture
def engines():
    return Engines()


@pytest.fixture
async def gateway(engines, tmp_path):
    server = await asyncio.start_server(engines.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = parse_config(
        {
            "auth": {"keys_file": "unused"},
            "models": {
                "phi3": {"upstreams": [{"url": url}], "max_tokens": 4096},
                "hermes": {"upstreams": [{"url": url}]},
                "minilm": {"upstreams": [{"url": url}], "max_tokens": 256, "kind": "embedding"},
            },
        }
    )
    sink = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    log = LogWriter(sink)
    log.start()
    digest = hashlib.sha256(KEY.encode()).digest()
    state = GatewayState(config, lambda: KeyRing([("alice", digest)]), Metrics("1"), log, instance="1", version="0")
    await state.start()
    try:
        yield Caller(application(state), state, log)
    finally:
        await state.stop()
        log.close()
        os.close(sink)
        server.close()
