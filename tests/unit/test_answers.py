"""What an engine may answer, and what its caller gets: good answers byte for byte, bad ones as errors of one shape."""

import json

import pytest
import pytest_asyncio

from callers import STREAM_BODY
from gateways import running_gateway
from upstreams import (
    CHAT,
    EVENTS,
    STREAM_HEAD,
    Upstream,
    answers,
    chunk,
    chunked,
    hung_up,
    in_turn,
    pours,
    says,
    says_and_closes,
    says_and_half_closes,
    says_and_resets,
    says_and_stalls,
    stalls,
    streams,
    until_close,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMEOUT_S = 0.3
PLAIN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
ODD_JSON = b'{ "id":"x",\t"n": 1.0, "text": "Gr\xc3\xbc\xc3\x9fe \\u00e9" }\n\n'
WITH_LENGTH = PLAIN_HEAD + b"content-length: %d\r\n\r\n%b" % (len(ODD_JSON), ODD_JSON)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    async with Upstream() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory, engine):
    folder = tmp_path_factory.mktemp("answers")
    timeouts = {"first_byte_s": TIMEOUT_S, "chunk_s": TIMEOUT_S}
    async with running_gateway(folder, models={"phi3": [engine]}, timeouts=timeouts) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def fresh(gateway, engine):
    engine.script = answers(CHAT)
    engine.calls.clear()
    engine.hang_ups = 0
    await gateway.seen(state="up", in_flight=0)


async def logged(gateway, answer):
    """The access line of an answer."""
    return await gateway.logged("access", request_id=answer.headers["x-request-id"])


# -- plain answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        answers(ODD_JSON),
        chunked(ODD_JSON[:7], ODD_JSON[7:8], ODD_JSON[8:]),
        until_close(ODD_JSON),
        says(*(bytes([byte]) for byte in WITH_LENGTH)),
        says(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nlink: a\r\n\r\n", WITH_LENGTH),
        says_and_half_closes(WITH_LENGTH),
    ],
    ids=["length", "chunks", "until-close", "byte-by-byte", "after-1xx", "half-closed"],
)
async def test_a_plain_answer_comes_back_byte_for_byte(gateway, engine, script):
    engine.script = script
    answer = await gateway.ask()
    assert (answer.status, answer.body, answer.complete) == (200, ODD_JSON, True)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-citadel-model"] == "phi3"
    assert "link" not in answer.headers
    assert (await gateway.ask()).body == ODD_JSON


async def test_an_answer_larger_than_what_is_held_at_once_comes_back_whole(gateway, engine):
    large = bytes(range(256)) * (5 << 12)
    assert len(large) > 4 << 20
    for script in (answers(large), chunked(*(large[at : at + 100_000] for at in range(0, len(large), 100_000)))):
        engine.script = script
        answer = await gateway.ask()
        assert (answer.status, answer.body == large) == (200, True)


async def test_headers_of_the_hop_stay_behind_and_others_come_along(gateway, engine):
    hop = [(b"Connection", b"keep-alive"), (b"Keep-Alive", b"timeout=5"), (b"Server", b"uvicorn"), (b"Date", b"old")]
    own = [(b"X-Request-Id", b"the-engines"), (b"X-Engine", b"Yes"), (b"Set-Cookie", b"a=1"), (b"Trailer", b"x")]
    engine.script = answers(CHAT, headers=[*hop, *own])
    answer = await gateway.ask(headers=[(b"x-request-id", b"mine")])
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-engine"] == "Yes"
    assert answer.headers["date"] != "old"
    assert not {"connection", "keep-alive", "server", "trailer"} & set(answer.headers)


@pytest.mark.parametrize("status", [200, 201, 202, 203, 299, 301, 302, 307])
async def test_a_status_below_400_is_passed_on(gateway, engine, status):
    engine.script = answers(ODD_JSON, status)
    answer = await gateway.ask()
    assert (answer.status, answer.body) == (status, ODD_JSON)


async def test_an_answer_without_a_body_is_passed_on(gateway, engine):
    engine.script = says(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (await gateway.ask()).status == 204
    engine.script = answers(CHAT)
    assert (await gateway.ask()).status == 200


@pytest.mark.parametrize("content_type", ["text/html", "application/octet-stream", "text/plain; charset=latin-1"])
async def test_another_content_type_is_none_of_the_gateways_business(gateway, engine, content_type):
    engine.script = answers(b"\x00\xff<html>", content_type=content_type)
    answer = await gateway.ask()
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"\x00\xff<html>", content_type)


async def test_the_tokens_that_the_engine_reports_are_logged_and_counted(gateway):
    def counted(metrics):
        return [
            metrics.get(f'citadel_gateway_tokens_total{{kind="{k}",model="phi3"}}', 0) for k in ("prompt", "completion")
        ]

    before = counted(await gateway.metrics())
    line = await logged(gateway, await gateway.ask())
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 3)
    after = counted(await gateway.metrics())
    assert [new - old for new, old in zip(after, before, strict=True)] == [7, 3]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b'{"usage": null}',
        b'{"usage": []}',
        b'{"usage": {"prompt_tokens": "7", "completion_tokens": 3}}',
        b'{"usage": {"prompt_tokens": -7, "completion_tokens": 3}}',
        b'{"usage": {"prompt_tokens": 123456789012345678901234567890, "completion_tokens": 3}}',
        b'{"usage": {"prompt_tokens": 1.5, "completion_tokens": 3}}',
        b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b', "usage": {"prompt_tokens": 7, "completion_tokens": 3}}',
        b'{"\xff": "\xff"}',
    ],
    ids=lambda body: repr(body[:40]),
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_strange_report_of_tokens_is_passed_on_and_not_believed(gateway, engine, body, stream):
    if stream:
        engine.script = streams(b"data: " + body + b' "usage"\n\n', b"data: " + body + b"\n\n")
        answer = await gateway.ask(body=STREAM_BODY)
        assert answer.body.endswith(b"data: " + body + b"\n\n")
    else:
        engine.script = answers(body)
        answer = await gateway.ask()
        assert answer.body == body
    assert (answer.status, answer.complete) == (200, True)
    line = await logged(gateway, answer)
    assert line["status"] == 200
    assert not gateway.lines("unexpected", request_id=line["request_id"])


# -- streams ----------------------------------------------------------------------------------------------------


async def test_a_stream_comes_back_event_by_event(gateway, engine):
    engine.script = streams(pause_s=0.02)
    answer = await gateway.ask(body=STREAM_BODY)
    assert (answer.status, answer.complete, answer.pieces) == (200, True, list(EVENTS))
    assert answer.headers["content-type"] == "text/event-stream"
    line = await logged(gateway, answer)
    assert (line["stream"], line["prompt_tokens"], line["completion_tokens"]) == (True, 7, 3)
    assert 0 < line["ttft_ms"] < line["duration_ms"]


async def test_a_piece_is_passed_on_before_the_next_one_comes(gateway, engine):
    engine.script = says_and_stalls(STREAM_HEAD, chunk(EVENTS[0]))
    async with gateway.caller() as caller:
        await caller.request(body=STREAM_BODY)
        assert (await caller.head()).status == 200
        assert await caller.piece() == EVENTS[0]


async def test_a_piece_may_end_anywhere(gateway, engine):
    text = b"".join(EVENTS)
    engine.script = streams(*(text[at : at + 5] for at in range(0, len(text), 5)), pause_s=0.001)
    answer = await gateway.ask(body=STREAM_BODY)
    assert answer.body == text
    assert (await logged(gateway, answer))["completion_tokens"] == 3


async def test_a_long_stream_comes_back_whole(gateway, engine):
    engine.script = pours(EVENTS[0], 2000)
    answer = await gateway.ask(body=STREAM_BODY)
    assert answer.body == EVENTS[0] * 2000


async def test_a_plain_answer_to_one_who_asked_for_a_stream_is_passed_on(gateway):
    answer = await gateway.ask(body=STREAM_BODY)
    assert (answer.status, answer.json) == (200, CHAT)


# -- errors of the engine's own ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_the_engines_own_error_keeps_its_words(gateway, engine, stream):
    said = {"message": "max_tokens is too large: 9000", "type": "BadRequestError", "param": "max_tokens", "code": 400}
    engine.script = answers({"error": said}, 400)
    answer = await gateway.ask(**({"body": STREAM_BODY} if stream else {}))
    assert answer.status == 400
    error = answer.error
    assert (error["message"], error["param"]) == (said["message"], "max_tokens")
    assert (error["type"], error["code"]) == ("invalid_request_error", "BadRequestError")
    assert answer.headers["x-citadel-model"] == "phi3"


@pytest.mark.parametrize(
    ("status", "body", "type_", "code"),
    [
        (
            400,
            {"error": {"message": "no", "code": "context_length_exceeded"}},
            "invalid_request_error",
            "context_length_exceeded",
        ),
        (400, {"detail": "no"}, "invalid_request_error", "upstream_error"),
        (404, b"<html>", "invalid_request_error", "upstream_error"),
        (418, b"", "invalid_request_error", "upstream_error"),
        (422, {"error": "plain text"}, "invalid_request_error", "upstream_error"),
        (429, {"error": {"message": "busy"}}, "rate_limit_error", "upstream_error"),
        (500, b"Internal Server Error", "server_error", "upstream_error"),
        (500, b"[" * 5000, "server_error", "upstream_error"),
        (500, b'{"error": {"message": "\xff"}}', "server_error", "upstream_error"),
        (502, b"", "upstream_error", "upstream_error"),
        (503, {"error": {"message": "loading"}}, "service_unavailable", "upstream_error"),
        (507, b"x" * 200_000, "server_error", "upstream_error"),
        (599, b"", "server_error", "upstream_error"),
    ],
)
async def test_an_error_of_any_shape_gets_openais(gateway, engine, status, body, type_, code):
    engine.script = answers(body, status)
    answer = await gateway.ask()
    assert answer.status == status
    assert (answer.error["type"], answer.error["code"]) == (type_, code)
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    line = await logged(gateway, answer)
    assert (line["status"], line["error"]) == (status, code)
    assert not gateway.lines("unexpected", request_id=line["request_id"])


@pytest.mark.parametrize("status", [600, 999])
async def test_a_status_that_http_does_not_have_is_nonsense(gateway, engine, status):
    engine.script = answers(b"", status)
    answer = await gateway.ask()
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")


# -- nonsense and breaks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        says(b"hello\r\n\r\n"),
        says(b"\x16\x03\x01\x02\x00"),
        says(b"HTTP/1.1 two hundred\r\n\r\n"),
        says(b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n"),
        says(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello"),
        says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot-a-size\r\n"),
        says(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n"),
        says(b"HTTP/1.1 200 OK\r\n" + b"x-many: headers\r\n" * 6000 + b"content-length: 0\r\n\r\n"),
        says(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
    ],
    ids=["text", "tls", "status", "length", "two-lengths", "chunk", "large-header", "many-headers", "upgrade"],
)
@pytest.mark.parametrize("body", [None, STREAM_BODY], ids=["plain", "stream"])
async def test_nonsense_is_a_502_and_is_not_sent_for_again(gateway, engine, script, body, request):
    engine.script = script
    answer = await gateway.ask(**({"body": body} if body else {}))
    if answer.status == 200 and body:
        # The head of a stream was good and has gone out; what is wrong follows as its last event.
        assert "chunk" in request.node.name
        assert json.loads(answer.events[-1])["error"]["code"] == "upstream_error"
    else:
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert len(engine.calls) == 1
    engine.script = answers(CHAT)
    assert (await gateway.ask()).status == 200


@pytest.mark.parametrize("end", [says_and_closes, says_and_resets, says_and_half_closes])
@pytest.mark.parametrize(
    "pieces",
    [
        (PLAIN_HEAD + b"content-length: 100\r\n\r\n", b'{"half": '),
        (PLAIN_HEAD + b"transfer-encoding: chunked\r\n\r\n", chunk(b'{"half": ')),
    ],
    ids=["length", "chunks"],
)
async def test_a_break_amid_the_body_is_a_502_and_is_not_sent_for_again(gateway, engine, end, pieces):
    engine.script = end(*pieces)
    answer = await gateway.ask()
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert len(engine.calls) == 1
    assert (await logged(gateway, answer))["retries"] == 0


@pytest.mark.parametrize("piece", [b"HTTP/1.1 20", PLAIN_HEAD])
async def test_a_break_amid_the_head_is_an_error(gateway, engine, piece):
    engine.script = says_and_closes(piece)
    answer = await gateway.ask()
    assert answer.status in (502, 503)
    assert answer.error["code"] in ("upstream_error", "model_unavailable")


async def test_a_reset_amid_an_answer_without_a_length_is_a_break(gateway, engine):
    engine.script = says_and_resets(PLAIN_HEAD + b"connection: close\r\n\r\n", b'{"half": ')
    assert (await gateway.ask()).status == 502


@pytest.mark.parametrize("end", [says_and_closes, says_and_resets])
async def test_a_stream_that_breaks_ends_with_an_error_event(gateway, engine, end):
    engine.script = end(STREAM_HEAD, chunk(EVENTS[0]), chunk(EVENTS[1][:10]))
    answer = await gateway.ask(body=STREAM_BODY)
    assert (answer.status, answer.complete) == (200, True)
    assert answer.body.startswith(EVENTS[0] + EVENTS[1][:10] + b"\n\ndata: ")
    error = json.loads(answer.events[-1])["error"]
    assert (error["code"], error["type"]) == ("upstream_error", "upstream_error")
    assert error["request_id"] == answer.headers["x-request-id"]
    assert len(engine.calls) == 1
    assert (await logged(gateway, answer))["status"] == 502


@pytest.mark.parametrize("content_type", [b"text/event-stream", b"application/json"])
async def test_a_stream_with_a_length_that_breaks_is_cut_off_and_still_logged(gateway, engine, content_type):
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: 5000\r\n\r\n" % content_type
    engine.script = says_and_closes(head, EVENTS[0])
    answer = await gateway.ask(body=STREAM_BODY)
    assert (answer.status, answer.complete, answer.body) == (200, False, EVENTS[0])
    line = await logged(gateway, answer)
    assert (line["status"], line["error"]) == (502, "upstream_error")


async def test_a_large_plain_answer_that_breaks_is_cut_off(gateway, engine):
    engine.script = says_and_closes(PLAIN_HEAD + b"content-length: 9000000\r\n\r\n", b"x" * (5 << 20))
    answer = await gateway.ask()
    assert (answer.status, answer.complete) == (200, False)
    assert (await logged(gateway, answer))["status"] == 502


async def test_more_than_one_answer_to_a_request_never_reaches_the_next_caller(gateway, engine):
    second = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nSECOND"
    engine.script = in_turn(says(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nFIRST", second), answers(CHAT))
    assert (await gateway.ask()).body == b"FIRST"
    for _ in range(3):
        assert (await gateway.ask()).json == CHAT


# -- stalls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        stalls(),
        says_and_stalls(b"HTTP/1.1 100 Continue\r\n\r\n"),
        says_and_stalls(PLAIN_HEAD),
        says_and_stalls(PLAIN_HEAD + b"content-length: 100\r\n\r\n{"),
    ],
    ids=["nothing", "only-1xx", "half-a-head", "half-a-body"],
)
async def test_an_engine_that_does_not_answer_in_time_is_a_504_and_is_hung_up_on(gateway, engine, script):
    engine.script = script
    answer = await gateway.ask()
    assert (answer.status, answer.error["code"], answer.error["type"]) == (504, "upstream_timeout", "timeout_error")
    assert len(engine.calls) == 1
    await hung_up(engine, within_s=1)


async def test_a_stream_that_stalls_ends_with_an_error_event(gateway, engine):
    engine.script = says_and_stalls(STREAM_HEAD, chunk(EVENTS[0]))
    answer = await gateway.ask(body=STREAM_BODY)
    assert (answer.status, answer.complete) == (200, True)
    assert json.loads(answer.events[-1])["error"]["code"] == "upstream_timeout"
    await hung_up(engine, within_s=1)
    assert (await logged(gateway, answer))["status"] == 504


async def test_a_stream_may_take_long_while_pieces_come(gateway, engine):
    engine.script = streams(*[EVENTS[0]] * 6, pause_s=TIMEOUT_S / 4)
    answer = await gateway.ask(body=STREAM_BODY)
    assert (answer.complete, len(answer.events)) == (True, 6)
