"""A caller of the gateway on a raw socket, so that a test decides every byte and sees every byte."""

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass, field

from waiting import in_time

KEY = "sk-test-of-alice-0123456789"
CHAT_PATH = "/v1/chat/completions"
BODY = b'{"model": "phi3", "messages": [{"role": "user", "content": "Hello"}]}'
STREAM_BODY = (
    b'{"model": "phi3", "stream": true, "stream_options": {"include_usage": true}, "messages": [{"role": "user", '
    b'"content": "Hello"}]}'
)


@dataclass
class Answer:
    """What came back. `headers` has lower-case names; `complete` is False where the body was cut off."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    complete: bool = True
    pieces: list[bytes] = field(default_factory=list)

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """The error, in OpenAI's shape; fails where the body has another."""
        assert self.headers["content-type"] == "application/json", self
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code", "request_id"}, error
        assert error["message"]
        assert error["request_id"] == self.headers["x-request-id"]
        return error

    @property
    def events(self):
        """The data of each event of a stream."""
        return [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]


class Caller:
    """One connection to the gateway."""

    def __init__(self, port, *, receive_buffer_bytes=None):
        self._port = port
        self._receive_buffer = receive_buffer_bytes
        self.reader = None
        self.writer = None

    async def __aenter__(self):
        sock = socket.socket()
        if self._receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        sock.setblocking(False)
        await in_time(asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port)))
        limit = 1 << 12 if self._receive_buffer else 1 << 20
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=limit)
        return self

    async def __aexit__(self, *_):
        self.hang_up()

    def hang_up(self):
        """Be gone at once."""
        self.writer.transport.abort()

    async def send(self, data):
        """Write raw bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def request(self, method="POST", path=CHAT_PATH, body=BODY, *, key=KEY, headers=()):
        """Write a request; `key=None` sends none, and a `body` of None no length either."""
        lines = [f"{method} {path} HTTP/1.1".encode(), b"host: gateway"]
        if key is not None:
            lines.append(b"authorization: Bearer " + (key if isinstance(key, bytes) else key.encode()))
        if body is not None:
            lines += [b"content-type: application/json", b"content-length: %d" % len(body)]
        lines += [b"%b: %b" % pair for pair in headers]
        await self.send(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""))

    async def head(self):
        """Read a status line and headers."""
        text = (await in_time(self.reader.readuntil(b"\r\n\r\n"))).decode("latin-1")
        first, *lines = text.rstrip("\r\n").split("\r\n")
        version, status, *_ = first.split(" ")
        assert version == "HTTP/1.1", text
        return Answer(int(status), dict(_split(line) for line in lines))

    async def piece(self):
        """Read one chunk of a chunked body; empty at its end."""
        size = int(await in_time(self.reader.readuntil(b"\r\n")), 16)
        data = await in_time(self.reader.readexactly(size + 2))
        return data[:-2]

    async def answer(self, *, to_head=False):
        """Read a whole answer, as far as it comes."""
        answer = await self.head()
        if to_head or answer.status in (204, 304):
            return answer
        try:
            if answer.headers.get("transfer-encoding") == "chunked":
                while piece := await self.piece():
                    answer.pieces.append(piece)
                answer.body = b"".join(answer.pieces)
            else:
                answer.body = await in_time(self.reader.readexactly(int(answer.headers["content-length"])))
        except (asyncio.IncompleteReadError, OSError) as broken:
            answer.complete = False
            answer.body = b"".join(answer.pieces) or getattr(broken, "partial", b"")
        return answer

    async def end(self):
        """Read until the gateway closes the connection; what came."""
        with contextlib.suppress(ConnectionResetError):
            return await in_time(self.reader.read())
        return b""


def _split(line):
    name, _, value = line.partition(":")
    assert name == name.lower(), f"header {name} is not in lower case"
    return name, value.strip()


async def ask(port, method="POST", path=CHAT_PATH, body=BODY, *, key=KEY, headers=()):
    """One request on a connection of its own, and its answer."""
    async with Caller(port) as caller:
        await caller.request(method, path, body, key=key, headers=headers)
        return await caller.answer(to_head=method == "HEAD")


async def get(port, path, *, key=None, headers=()):
    """A GET, without a key unless one is given."""
    return await ask(port, "GET", path, None, key=key, headers=headers)
