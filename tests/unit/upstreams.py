"""Scripted engines: servers on loopback that answer, stall, cut off or talk nonsense as a test wants.

    async with Upstream() as engine:
        engine.script = answers({"id": "1"})
        ...                              # a gateway at engine.url is asked
        assert engine.calls[0].body == b"..."

A script is a coroutine function of one Call, and is run for each request but `GET /health`, which
`engine.health` answers. When it returns, the connection waits for its next request unless the script
ended it. `in_turn(a, b)` runs `a` for the first request and `b` for all that follow.
"""

import asyncio
import contextlib
import json
import socket
import struct

from waiting import in_time, until

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "phi3",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}
EVENTS = (
    b'data: {"choices": [{"index": 0, "delta": {"content": "Hel"}}]}\n\n',
    b'data: {"choices": [{"index": 0, "delta": {"content": "lo."}}]}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}\n\n',
    b"data: [DONE]\n\n",
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data):
    """`data` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Call:
    """One request to an engine, and the means to answer it."""

    def __init__(self, engine, reader, writer, request_line, headers, body):
        self.engine = engine
        self.method, self.path, _ = request_line.split(" ")
        self.headers = headers
        self.body = body
        self.sent_bytes = 0
        self._reader = reader
        self._writer = writer
        self.ended = False

    @property
    def request_id(self):
        return self.headers.get("x-request-id")

    async def send(self, data):
        """Write and wait until the socket took it."""
        self._writer.write(data)
        await self._writer.drain()
        self.sent_bytes += len(data)

    async def close(self):
        """End the connection in order (FIN)."""
        self.ended = True
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def close_in(self, seconds):
        """End the connection in order a little later, whether it is idle then or not."""
        asyncio.get_running_loop().call_later(seconds, self._writer.close)

    async def reset(self):
        """End the connection abruptly (RST)."""
        self.ended = True
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def half_close(self):
        """Say that nothing more comes, but go on listening."""
        self.ended = True
        self._writer.write_eof()

    async def hang_up(self):
        """Wait until the other side ends the connection."""
        self.ended = True
        with contextlib.suppress(OSError):
            while await self._reader.read(1 << 16):
                pass
        self.engine.hang_ups += 1


class Upstream:
    """One engine on a port of its own; an async context manager."""

    def __init__(self, script=None):
        self.script = script or answers(CHAT)
        self.health = 200  # the status for GET /health; None never answers
        # What it says of itself: the path of its weights, by its model's name; its engine's version.
        self.weights, self.version = {"phi3": "/models/phi3/current"}, "0.32.0"
        self.calls = []
        self.probes = 0
        self.hang_ups = 0
        self.connections = 0
        self.port = 0
        self._server = None
        self._tasks = set()
        self._writers = set()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def url(self):
        return f"http://{self.address}"

    async def __aenter__(self):
        await self.open()
        return self

    async def __aexit__(self, *_):
        await self.shut()

    async def open(self):
        """Listen; after `shut`, on the same port again."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self):
        """Stop listening and cut every connection, as a killed engine does."""
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut_idle(self):
        """End all connections in order, as an engine does with idle ones."""
        for writer in tuple(self._writers):
            writer.close()

    async def asked(self, count=1):
        """Wait until so many requests have come; the last of them."""
        await until(lambda: len(self.calls) >= count, what=f"{count} requests at the engine, got {len(self.calls)}")
        return self.calls[count - 1]

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if head[0].startswith("GET /health "):
            self.probes += 1
            if self.health is None:
                await reader.read()
                return False
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % self.health)
            return True
        if (said := self._says(head[0])) is not None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said))
            return True
        call = Call(self, reader, writer, head[0], headers, body)
        self.calls.append(call)
        await self.script(call)
        return not call.ended

    def _says(self, line):
        if line.startswith("GET /version "):
            return json.dumps({"version": self.version}).encode()
        if line.startswith("GET /v1/models "):
            return json.dumps({"data": [{"id": name, "root": root} for name, root in self.weights.items()]}).encode()
        return None


# -- scripts ----------------------------------------------------------------------------------------------------


def answers(value=CHAT, status=200, *, content_type="application/json", headers=()):
    """A whole answer with a length. `value` is bytes, or becomes JSON."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    extra = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    head = b"HTTP/1.1 %d Status\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n"
    return says(head % (status, content_type.encode(), extra, len(body)) + body)


def says(*pieces, pause_s=0.0):
    """These bytes, whatever they are; the connection stays open."""

    async def script(call):
        for piece in pieces:
            await call.send(piece)
            await asyncio.sleep(pause_s)

    return script


def says_and_closes(*pieces):
    """These bytes, then the end of the connection: a body without a length ends so; another is cut."""

    async def script(call):
        for piece in pieces:
            await call.send(piece)
        await call.close()

    return script


def says_and_resets(*pieces):
    """These bytes, and once they were read a reset."""

    async def script(call):
        for piece in pieces:
            await call.send(piece)
        if pieces:
            await asyncio.sleep(0.05)  # a reset overtakes what the other side has not read yet
        await call.reset()

    return script


def says_and_half_closes(*pieces):
    """These bytes, then FIN; the other direction stays open until the gateway ends it."""

    async def script(call):
        for piece in pieces:
            await call.send(piece)
        await call.half_close()
        await call.hang_up()

    return script


def says_and_stalls(*pieces):
    """These bytes, then nothing until the gateway hangs up."""

    async def script(call):
        for piece in pieces:
            await call.send(piece)
        await call.hang_up()

    return script


def stalls():
    """Nothing at all until the gateway hangs up."""
    return says_and_stalls()


def streams(*events, pause_s=0.0):
    """Server-sent events in chunks."""
    return says(STREAM_HEAD, *(chunk(event) for event in events or EVENTS), b"0\r\n\r\n", pause_s=pause_s)


def chunked(*pieces):
    """A JSON answer in chunks."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    return says(head, *(chunk(piece) for piece in pieces), b"0\r\n\r\n")


def until_close(body):
    """A JSON answer without a length."""
    return says_and_closes(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n", body)


def pours(piece, times):
    """A stream of many pieces, as fast as the gateway takes them."""

    async def script(call):
        await call.send(STREAM_HEAD)
        for _ in range(times):
            await call.send(chunk(piece))
        await call.send(b"0\r\n\r\n")

    return script


def when(event, then):
    """`then`, once the event is set or the gateway hung up."""

    async def script(call):
        opened = asyncio.ensure_future(event.wait())
        gone = asyncio.ensure_future(call.hang_up())
        await asyncio.wait((opened, gone), return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        if gone.done():
            return
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        call.ended = False
        await then(call)

    return script


def in_turn(*scripts):
    """The first script for the first request, and so on; the last for all that follow."""
    left = list(scripts)

    async def script(call):
        await (left.pop(0) if len(left) > 1 else left[0])(call)

    return script


@contextlib.contextmanager
def refused_port():
    """A port of loopback where nothing listens, and nothing will meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


async def hung_up(engine, count=1, within_s=10.0):
    """Wait until the gateway ended so many of the engine's connections."""
    await in_time(until(lambda: engine.hang_ups >= count, within_s, what="the engine sees the connection end"))
