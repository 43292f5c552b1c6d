"""Nothing grows without bound: places and queues at a model, the time of a request, what is held for a slow caller."""

import asyncio
import contextlib
import json

import pytest

from callers import STREAM_BODY
from upstreams import CHAT, EVENTS, STREAM_HEAD, answers, chunk, hung_up, pours, says_and_stalls, stalls, streams, when
from waiting import in_time, until


@pytest.fixture
def narrow(serve, upstream):
    """`async with narrow(queue=1) as gateway`: a model with one place."""

    def start(queue=1, **sections):
        entry = {"upstreams": [upstream], "concurrency": 1}
        return serve(models={"phi3": entry}, limits={"queue": queue, "retry_after_s": 9}, **sections)

    return start


@contextlib.asynccontextmanager
async def asking(gateway, count=1, **options):
    """So many callers that have each sent a request."""
    async with contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(gateway.caller()) for _ in range(count)]
        for caller in callers:
            await caller.request(**options)
        yield callers


# -- the queue --------------------------------------------------------------------------------------------------


async def test_who_finds_the_queue_full_is_told_at_once_when_to_come_again(narrow, upstream):
    upstream.script = stalls()
    async with narrow(queue=2) as gateway, asking(gateway, 3):
        await gateway.seen(in_flight=1, queued=2)
        answer = await in_time(gateway.ask(), 1)
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        assert (answer.error["type"], answer.headers["retry-after"]) == ("rate_limit_error", "9")
        assert len(upstream.calls) == 1


async def test_without_a_queue_the_first_beyond_the_places_is_refused(narrow, upstream):
    upstream.script = stalls()
    async with narrow(queue=0) as gateway, asking(gateway):
        await gateway.seen(in_flight=1)
        assert (await gateway.ask()).status == 429


async def test_who_waits_gets_the_place_in_turn(narrow, upstream):
    go = asyncio.Event()
    upstream.script = when(go, answers(CHAT))
    async with narrow(queue=5) as gateway, contextlib.AsyncExitStack() as stack:
        callers = []
        for number in range(4):
            caller = await stack.enter_async_context(gateway.caller())
            await caller.request(headers=[(b"x-request-id", b"turn-%d" % number)])
            await gateway.seen(in_flight=1, queued=number)
            callers.append(caller)
        go.set()
        for caller in callers:
            assert (await caller.answer()).status == 200
        assert [call.request_id[:6] for call in upstream.calls] == ["turn-0", "turn-1", "turn-2", "turn-3"]


async def test_who_waits_too_long_is_told_so(narrow, upstream):
    upstream.script = stalls()
    async with narrow(timeouts={"queue_s": 0.2}) as gateway, asking(gateway):
        await gateway.seen(in_flight=1)
        answer = await gateway.ask()
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "queue_timeout", "9")
        assert (await gateway.seen(in_flight=1, queued=0))["in_flight"] == 1


async def test_who_hangs_up_in_the_queue_leaves_it(narrow, upstream):
    go = asyncio.Event()
    upstream.script = when(go, answers(CHAT))
    async with narrow(queue=1) as gateway, asking(gateway) as (first,):
        await gateway.seen(in_flight=1)
        async with asking(gateway) as (second,):
            await gateway.seen(queued=1)
            second.hang_up()
            await gateway.seen(queued=0)
        async with asking(gateway) as (third,):
            await gateway.seen(queued=1)
            go.set()
            assert (await first.answer()).status == 200
            assert (await third.answer()).status == 200
        assert len(upstream.calls) == 2
        await gateway.logged("access", status=499)


async def test_a_place_comes_free_whatever_ends_the_request(narrow, upstream):
    async with narrow(queue=0, timeouts={"first_byte_s": 0.2}) as gateway:
        for script in (stalls(), says_and_stalls(b"nonsense\r\n\r\n"), answers(b"", 500)):
            upstream.script = script
            assert (await gateway.ask()).status >= 500
        upstream.script = stalls()
        async with asking(gateway):
            await gateway.seen(in_flight=1)
        await gateway.seen(in_flight=0)
        upstream.script = answers(CHAT)
        assert (await gateway.ask()).status == 200


async def test_models_have_places_of_their_own(serve, upstream, second_upstream):
    upstream.script = stalls()
    models = {"phi3": {"upstreams": [upstream], "concurrency": 1}, "hermes": [second_upstream]}
    async with serve(models=models, limits={"queue": 0}) as gateway, asking(gateway):
        await gateway.seen(in_flight=1)
        assert (await gateway.ask()).status == 429
        assert (await gateway.ask(body=b'{"model": "hermes"}')).status == 200


# -- callers that go --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [stalls(), says_and_stalls(STREAM_HEAD), says_and_stalls(STREAM_HEAD, chunk(EVENTS[0]))],
    ids=["before-the-head", "after-the-head", "amid-the-stream"],
)
@pytest.mark.parametrize("body", [None, STREAM_BODY], ids=["plain", "stream"])
async def test_who_hangs_up_stops_the_engine_within_a_second(gateway, upstream, script, body):
    upstream.script = script
    async with gateway.caller() as caller:
        await caller.request(**({"body": body} if body else {}))
        await upstream.asked()
        caller.hang_up()
        await hung_up(upstream, within_s=1)
    line = await gateway.logged("access")
    assert (line["status"], line["level"]) == (499, "info")
    assert "hung up" in line["error"]
    await gateway.seen(in_flight=0)


async def test_who_hangs_up_while_pieces_flow_stops_the_engine(gateway, upstream):
    upstream.script = pours(EVENTS[0] * 10, 1_000_000)
    async with gateway.caller() as caller:
        await caller.request(body=STREAM_BODY)
        await caller.head()
        assert await caller.piece()
        call = await upstream.asked()
        caller.hang_up()
    await gateway.seen(in_flight=0)
    assert call.sent_bytes < 600_000_000
    assert (await gateway.logged("access"))["status"] == 499


async def test_the_connection_of_one_who_hung_up_is_never_used_again(gateway, upstream):
    upstream.script = says_and_stalls(STREAM_HEAD, chunk(EVENTS[0]))
    async with gateway.caller() as caller:
        await caller.request(body=STREAM_BODY)
        await upstream.asked()
        caller.hang_up()
        await hung_up(upstream)
    upstream.script = answers(CHAT)
    for _ in range(3):
        assert (await gateway.ask()).json == CHAT


# -- slow callers -----------------------------------------------------------------------------------------------

PIECE = b"data: " + b"x" * 16_000 + b"\n\n"
PIECES = 4000  # 64 MB


async def test_for_a_slow_caller_the_engine_is_held_back_and_nothing_is_lost(gateway, upstream):
    upstream.script = pours(PIECE, PIECES)
    async with gateway.caller(receive_buffer_bytes=8192) as caller:
        await caller.request(body=STREAM_BODY)
        await caller.head()
        call = await upstream.asked()
        sent = -1
        while sent != call.sent_bytes:  # until nothing moves any more
            sent = call.sent_bytes
            await asyncio.sleep(0.1)
        assert sent < 16_000_000  # the kernel's own buffers are most of this
        received = 0
        while piece := await caller.piece():
            received += len(piece)
    assert received == len(PIECE) * PIECES


async def stuck_callers(gateway, count, cleanup):
    """Callers that ask for a stream and take nothing; they outlive the gateway."""
    for number in range(count):
        caller = await cleanup.enter_async_context(gateway.caller(receive_buffer_bytes=4096))
        await caller.request(body=STREAM_BODY, headers=[(b"x-request-id", b"stuck-%d" % number)])


async def all_given_up(gateway, count):
    for number in range(count):
        await gateway.logged("access", request_id=f"stuck-{number}")
    await gateway.seen(in_flight=0)


@pytest.mark.parametrize(
    "script",
    [pours(PIECE, PIECES), answers(b"x" * (40 << 20))],
    ids=["stream", "whole"],
)
async def test_a_caller_that_takes_nothing_is_given_up_with_its_connection(serve, upstream, cleanup, script):
    upstream.script = script
    async with serve(models={"phi3": [upstream]}, timeouts={"chunk_s": 0.3}, server={"shutdown_s": 30}) as gateway:
        await stuck_callers(gateway, 2, cleanup)
        await all_given_up(gateway, 2)
        assert {line["status"] for line in gateway.lines("access")} == {499}
    # That the gateway has ended shows that it waits for none of the connections.


async def test_an_error_is_not_kept_for_a_caller_that_takes_nothing(serve, upstream, cleanup):
    """Both ends stall: the engine amid its stream, the caller in front of a full buffer."""
    pieces = iter(range(40_000, 1_000_000, 40_000))

    async def one_large_piece_and_no_more(call):
        await says_and_stalls(STREAM_HEAD, chunk(b"x" * next(pieces)))(call)

    upstream.script = one_large_piece_and_no_more
    async with serve(models={"phi3": [upstream]}, timeouts={"chunk_s": 0.3}, server={"shutdown_s": 30}) as gateway:
        await stuck_callers(gateway, 20, cleanup)
        await all_given_up(gateway, 20)


# -- time -------------------------------------------------------------------------------------------------------


async def test_no_request_takes_longer_than_is_allowed_in_all(serve, upstream):
    upstream.script = streams(*[EVENTS[0]] * 200, pause_s=0.02)
    async with serve(models={"phi3": [upstream]}, timeouts={"total_s": 0.4}) as gateway:
        answer = await gateway.ask(body=STREAM_BODY)
        assert (answer.status, answer.complete) == (200, True)
        assert json.loads(answer.events[-1])["error"]["code"] == "request_timeout"
        assert 2 < len(answer.events) < 60
        assert (await gateway.logged("access"))["status"] == 504


async def test_many_callers_at_once_are_all_answered(serve, upstream):
    entry = {"upstreams": [upstream], "concurrency": 8}
    async with serve(models={"phi3": entry}) as gateway:
        answers_ = await asyncio.gather(*(gateway.ask() for _ in range(100)))
        assert {answer.status for answer in answers_} == {200}
        assert len({answer.headers["x-request-id"] for answer in answers_}) == 100
        assert upstream.connections <= 8 + 1  # and the probe's
        await until(lambda: len(gateway.lines("access")) == 100, what="an access line for each")
