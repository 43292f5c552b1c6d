"""The console on a host of its own: it serves its files, passes on what the page asks for, and nothing else."""

import asyncio
import contextlib
import os
import subprocess
import sys

import pytest

from callers import BODY, KEY, STREAM_BODY, Caller, ask
from citadel_llm.console.server import PASSED, Gateway
from upstreams import EVENTS, STREAM_HEAD, chunk, refused_port, says_and_stalls, streams
from waiting import until


class Served:
    """A process of it."""

    def __init__(self, process, port):
        self.process, self.port = process, port


@contextlib.asynccontextmanager
async def console(gateway_url, *arguments):
    """`citadel console` as the metrics server runs it: the system's Python, isolated from every package."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-S", "-m", "citadel_llm.console.server", "--listen", "127.0.0.1:0"],
        *["--gateway", gateway_url],
        *arguments,
        env={"PYTHONPATH": next(path for path in sys.path if path.endswith("/src")), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
    )
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        assert line.startswith("the console is at http"), line
        yield Served(process, int(line.rsplit(":", 1)[1].split("/")[0]))
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.fixture
async def served(gateway):
    async with console(gateway.url) as running:
        yield running


async def test_it_serves_the_page_under_the_same_policy_as_the_gateway(gateway, served):
    for path in ("/console", "/console/app.js", "/console/console.css"):
        here, there = [await ask(port, "GET", path, None, key=None) for port in (served.port, gateway.port)]
        assert (here.status, here.body) == (200, there.body)
        for name in ("content-security-policy", "content-type", "x-frame-options", "etag"):
            assert here.headers[name] == there.headers[name]
        tag = [(b"if-none-match", here.headers["etag"].encode())]
        again = await ask(served.port, "GET", path, None, key=None, headers=tag)
        assert again.status == 304
    moved = await ask(served.port, "GET", "/", None, key=None)
    assert (moved.status, moved.headers["location"]) == (308, "/console")
    head = await ask(served.port, "HEAD", "/console", None, key=None)
    assert (head.status, int(head.headers["content-length"]) > 1000) == (200, True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/health"),
        ("GET", "/v1/files"),
        ("GET", "/admin/v1/users"),
        ("POST", "/admin/v1/keys"),
        ("PUT", "/admin/v1/drain/../keys"),
        ("PUT", "/admin/v1/drain/%2e%2e/keys"),
        ("GET", "/console/../server.py"),
        ("GET", "/console/__init__.py"),
        ("GET", "//elsewhere/admin/v1/status"),
        ("CONNECT", "/admin/v1/status"),
    ],
)
async def test_nothing_else_is_passed_on(gateway, served, method, path):
    assert (await ask(served.port, method, path, None)).status == 404
    assert not gateway.lines("access")


async def test_without_a_key_nothing_is_passed_on(gateway, served):
    for key in (None, b"", b"x"):
        headers = [] if key is None else [(b"authorization", b"Basic YTpi")]
        assert (await ask(served.port, "GET", "/admin/v1/status", None, key=None, headers=headers)).status == 401
    assert (await ask(served.port, "GET", "/admin/v1/status", None, key="sk-wrong")).status == 401
    assert (await ask(served.port, "GET", "/admin/v1/status", None, key=KEY)).json["object"] == "status"


async def test_an_answer_and_a_stream_come_as_the_gateway_gives_them(gateway, upstream, served):
    answer = await ask(served.port, "POST", "/v1/chat/completions", BODY)
    assert (answer.status, answer.json["choices"][0]["message"]["content"]) == (200, "Hello.")
    assert answer.headers["x-request-id"]
    upstream.script = streams()
    answer = await ask(served.port, "POST", "/v1/chat/completions", STREAM_BODY)
    assert (answer.status, answer.body) == (200, b"".join(EVENTS))
    assert (await ask(served.port, "POST", "/v1/chat/completions", b"{")).error["code"] == "invalid_json"


async def test_a_stream_is_passed_on_piece_by_piece_and_hanging_up_ends_it_at_the_engine(upstream, served):
    upstream.script = says_and_stalls(STREAM_HEAD, chunk(EVENTS[0]))
    async with Caller(served.port) as caller:
        await caller.request("POST", "/v1/chat/completions", STREAM_BODY)
        assert (await caller.head()).status == 200
        assert await caller.piece() == EVENTS[0]
    await until(lambda: upstream.hang_ups, what="the engine is hung up on")


async def test_what_is_sent_behind_a_request_is_not_looked_at(gateway, served):
    async with Caller(served.port) as caller:
        await caller.request("GET", "/admin/v1/status", None)
        await caller.request("GET", "/admin/v1/keys", None)
        assert (await caller.answer()).status == 200
        assert await caller.end() == b""
    assert not [line for line in gateway.lines("access") if line["path"] == "/admin/v1/keys"]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /console HTTP/1.1\r\nno header\r\n\r\n", 400),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", 400),
        (b"POST /v1/feedback HTTP/1.1\r\nauthorization: Bearer a\r\ntransfer-encoding: chunked\r\n\r\n", 411),
        (b"POST /v1/feedback HTTP/1.1\r\nauthorization: Bearer a\r\ncontent-length: -1\r\n\r\n", 411),
        (b"POST /v1/feedback HTTP/1.1\r\nauthorization: Bearer a\r\ncontent-length: 9999999\r\n\r\n", 413),
        (b"POST /v1/feedback HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"GET /admin/v1/status HTTP/1.1\r\nauthorization: Bearer a\x00b\r\n\r\n", 400),
    ],
)
async def test_what_is_out_of_order_is_refused(gateway, served, raw, status):
    async with Caller(served.port) as caller:
        await caller.send(raw)
        assert (await caller.answer()).status == status
    assert not gateway.lines("access")


async def test_a_gateway_that_is_gone_is_a_503(tmp_path):
    with refused_port() as port:
        async with console(f"http://127.0.0.1:{port}") as served:
            assert (await ask(served.port, "GET", "/admin/v1/status", None)).status == 503
            assert (await ask(served.port, "GET", "/console", None)).status == 200


@pytest.mark.parametrize("url", ["ftp://a:1", "http://", "http://a:1/path", "a:1"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        Gateway.at(url)


def test_what_is_passed_on_is_what_the_page_asks_for():
    """Each of the page's paths, as its modules have them."""
    asked = [
        ("GET", "/admin/v1/status"),
        ("GET", "/admin/v1/alerts"),
        ("GET", "/admin/v1/usage"),
        ("GET", "/admin/v1/usage/me"),
        ("GET", "/admin/v1/keys"),
        ("GET", "/admin/v1/audit"),
        ("PUT", "/admin/v1/drain/lab%2Fphi3"),
        ("DELETE", "/admin/v1/drain/phi3"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/feedback"),
        ("DELETE", "/v1/feedback/req-1"),
    ]
    for method, path in asked:
        assert any(method == one and pattern.fullmatch(path) for one, pattern in PASSED), (method, path)
