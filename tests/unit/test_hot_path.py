"""The way of hot requests through the server: in turn, within bounds, and over as soon as their caller is gone."""

import asyncio
import gc
import time

import pytest
import uvicorn
from uvicorn.server import ServerState

from callers import BODY, CHAT_PATH, KEY, STREAM_BODY
from citadel_llm.api.call import CallerGone, TooLarge
from citadel_llm.api.middleware.exchange import Exchange
from citadel_llm.api.protocol import bounded_protocol
from citadel_llm.api.upstream.connection import Connection
from upstreams import CHAT, EVENTS, STREAM_HEAD, answers, chunk, hung_up, in_turn, says_and_stalls, stalls
from waiting import in_time, until


def request(number=0, *, body=BODY, path=CHAT_PATH, key=KEY):
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\nx-request-id: r-{number}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


# -- in turn ----------------------------------------------------------------------------------------------------


async def test_hundreds_of_requests_in_one_piece_are_answered_in_order(gateway):
    async with gateway.caller() as caller:
        await caller.send(b"".join(request(number, key="sk-no") for number in range(300)))
        got = [await caller.answer() for _ in range(300)]
    assert {answer.status for answer in got} == {401}
    assert [answer.headers["x-request-id"] for answer in got] == [f"r-{number}" for number in range(300)]


async def test_hot_requests_and_others_take_turns_on_a_connection(gateway):
    other = b"GET /health/live HTTP/1.1\r\nhost: a\r\nx-request-id: o-%d\r\n\r\n"
    async with gateway.caller() as caller:
        await caller.send(request(1) + other % 2 + request(3) + request(4) + other % 5 + other % 6 + request(7))
        ids = [(await caller.answer()).headers["x-request-id"] for _ in range(7)]
    assert ids == ["r-1", "o-2", "r-3", "r-4", "o-5", "o-6", "r-7"]


async def test_the_rest_of_a_refused_body_is_not_taken_for_a_request(gateway):
    async with gateway.caller() as caller:
        refused = request(1, key="sk-no")
        await caller.send(refused[:-20])
        assert (await caller.answer()).status == 401
        await caller.send(refused[-20:] + request(2))
        answer = await caller.answer()
    assert (answer.status, answer.headers["x-request-id"]) == (200, "r-2")


@pytest.mark.parametrize("path", [f"{CHAT_PATH}?api-version=1", "/v1/chat/%63ompletions", f"http://a{CHAT_PATH}"])
async def test_an_endpoint_is_found_however_its_address_is_written(gateway, path):
    async with gateway.caller() as caller:
        await caller.send(request(path=path))
        assert (await caller.answer()).status == 200


# -- gone -------------------------------------------------------------------------------------------------------


async def test_who_hangs_up_with_requests_sent_ahead_stops_the_engine(gateway, upstream):
    upstream.script = stalls()
    async with gateway.caller() as caller:
        await caller.send(request(1) + request(2) + request(3))
        await upstream.asked()
        caller.hang_up()
        await hung_up(upstream, within_s=1)
    assert (await gateway.logged("access", request_id="r-1"))["status"] == 499
    assert len(upstream.calls) == 1


async def test_nothing_of_callers_that_hung_up_waits_for_the_garbage_collector(gateway, upstream):
    """A full collection comes once in hundreds of thousands of requests, and stops everybody meanwhile."""
    upstream.script = says_and_stalls(STREAM_HEAD, chunk(EVENTS[0]))

    def over():
        return [one for one in gc.get_objects() if type(one) is Exchange or (type(one) is Connection and one.closed)]

    gc.collect()
    gc.disable()
    try:
        before = over()  # what other tests hold
        for number in range(3):
            async with gateway.caller() as caller:
                await caller.send(request(number, body=STREAM_BODY))
                await caller.head()
        await until(lambda: all(any(one is other for other in before) for one in over()))
    finally:
        gc.enable()
    assert len(upstream.calls) == 3


async def test_nonsense_behind_requests_sent_ahead_never_gets_into_the_answer_under_way(gateway, upstream):
    upstream.script = in_turn(says_and_stalls(STREAM_HEAD, chunk(EVENTS[0])), answers(CHAT))
    async with gateway.caller() as caller:
        await caller.send(request(1, body=STREAM_BODY))
        await caller.head()
        assert await caller.piece() == EVENTS[0]
        await caller.send(request(2) + b"nonsense\r\n\r\n")
        assert await caller.end() == b""
    await hung_up(upstream)


# -- the protocol by itself -------------------------------------------------------------------------------------


class Transport:
    """Takes everything and notes it."""

    def __init__(self):
        self.written, self.reading, self.closed = b"", True, False

    def write(self, data):
        self.written += data

    def writelines(self, pieces):
        self.written += b"".join(pieces)

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def get_extra_info(self, name, default=None):
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)


async def _cold(scope, receive, send):
    raise AssertionError("not a hot request")


def connected(handler, *, keepalive_s=5):
    """A connection whose hot path is `handler` at /hot: the protocol, its transport, the server's state."""
    made = bounded_protocol({"/hot": handler}, 30, 30)
    options = {"interface": "asgi3", "ws": "none", "lifespan": "off", "log_config": None}
    config = uvicorn.Config(_cold, http=made, timeout_keep_alive=keepalive_s, **options)
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"today")]
    protocol, transport = made(config=config, server_state=state, app_state={}), Transport()
    protocol.connection_made(transport)
    return protocol, transport, state


POST = b"POST /hot HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b"


async def test_an_answer_that_is_there_at_once_is_written_before_anything_else_happens():
    async def handler(call):
        await call.whole(200, [(b"x-a", b"b")], (await call.body(100))[::-1])

    protocol, transport, state = connected(handler)
    protocol.data_received(POST % (3, b"abc"))
    assert transport.written == b"HTTP/1.1 200 OK\r\ndate: today\r\nx-a: b\r\ncontent-length: 3\r\n\r\ncba"
    assert (state.total_requests, state.tasks, transport.closed) == (1, set(), False)
    protocol.connection_lost(None)
    assert state.connections == set()


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb: c", b"a\rb"])
async def test_no_header_can_hold_another(value):
    async def handler(call):
        await call.whole(200, [(b"x-a", value)], b"")

    protocol, transport, _ = connected(handler)
    protocol.data_received(POST % (0, b""))
    assert (transport.written, transport.closed) == (b"", True)


@pytest.mark.parametrize("given", [b"ab", b"abcd"])
async def test_an_answer_of_another_length_than_was_promised_is_cut_off(given):
    async def handler(call):
        await call.start(200, [(b"content-length", b"3")])
        await call.end(given)

    protocol, transport, state = connected(handler)
    protocol.data_received(POST % (0, b""))
    assert (transport.closed, state.total_requests) == (True, 0)


async def test_a_body_beyond_the_limit_is_not_gathered():
    seen = []

    async def handler(call):
        try:
            await call.body(1000)
        except TooLarge as failure:
            seen.append(failure)
        await call.whole(413, [], b"")

    protocol, transport, _ = connected(handler)
    protocol.data_received(b"POST /hot HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n")
    for _ in range(3):
        protocol.data_received(b"x" * 500)
    await until(lambda: b" 413 " in transport.written)
    assert len(seen) == 1


async def test_who_sends_many_requests_ahead_is_not_read_any_more_until_they_are_answered():
    go = asyncio.Event()

    async def handler(call):
        await call.body(100)
        await go.wait()
        await call.whole(200, [], b"")

    protocol, transport, state = connected(handler)
    for _ in range(8):
        protocol.data_received(POST % (1, b"x"))
    assert transport.reading
    for _ in range(16):
        protocol.data_received(POST % (1, b"x"))
    assert not transport.reading
    go.set()
    await until(lambda: state.total_requests == 24)
    assert transport.reading
    assert transport.written.count(b" 200 ") == 24


async def test_a_large_body_sent_ahead_waits_in_the_kernel():
    go = asyncio.Event()
    sizes = []

    async def handler(call):
        sizes.append(len(await call.body(1 << 20)))
        await go.wait()
        await call.whole(200, [], b"")

    protocol, transport, state = connected(handler)
    protocol.data_received(POST % (1, b"x"))
    protocol.data_received(POST % (200_000, b"x" * 100_000))
    assert not transport.reading
    go.set()
    await until(lambda: transport.reading)
    protocol.data_received(b"x" * 100_000)
    await until(lambda: state.total_requests == 2)
    assert sizes == [1, 200_000]


async def test_the_handler_of_one_who_hangs_up_is_told_at_once():
    told = []

    class Exchange:
        def interrupt(self, failure):
            told.append(failure)

    async def handler(call):
        call.exchange = Exchange()
        await call.body(100)
        await asyncio.Event().wait()

    protocol, _, state = connected(handler)
    protocol.data_received(POST % (1, b"x"))
    protocol.connection_lost(None)
    assert [type(failure) for failure in told] == [CallerGone]
    (task,) = state.tasks
    task.cancel()  # as the server's end does
    await in_time(task)
    assert state.tasks == set()


async def test_a_connection_is_idle_only_while_nothing_is_asked_on_it():
    go = asyncio.Event()

    async def handler(call):
        await go.wait()
        await call.whole(200, [], b"")

    protocol, transport, _ = connected(handler, keepalive_s=0.1)
    protocol.data_received(POST % (0, b""))
    await asyncio.sleep(0.25)  # more than twice the time for idle ones
    assert not transport.closed
    go.set()
    await until(lambda: transport.written)
    answered = time.monotonic()
    await until(lambda: transport.closed)
    assert time.monotonic() - answered > 0.08
