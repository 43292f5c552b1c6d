"""What a caller may send: keys, ids, bodies. What is wrong is refused in OpenAI's shape, never with a 500."""

import asyncio
import contextlib
import json
import re

import pytest
import pytest_asyncio

from callers import BODY, CHAT_PATH, KEY, STREAM_BODY
from gateways import running_gateway
from upstreams import CHAT, EVENTS, STREAM_HEAD, Upstream, answers, chunk, hung_up, says_and_stalls

pytestmark = pytest.mark.asyncio(loop_scope="module")

MADE_ID = re.compile(r"req-[0-9a-f]{32}")
BODY_LIMIT = 64 << 10


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    async with Upstream() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory, engine):
    folder = tmp_path_factory.mktemp("requests")
    async with running_gateway(
        folder,
        models={"phi3": [engine]},
        limits={"body_bytes": BODY_LIMIT},
        timeouts={"body_s": 0.5},
        server={"keepalive_s": 1},
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def answering(engine):
    engine.script = answers(CHAT)
    engine.calls.clear()


async def still_serves(gateway):
    return (await gateway.ask()).status == 200


# -- keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "missing_api_key"),
        ([(b"authorization", KEY.encode())], "invalid_api_key"),
        ([(b"authorization", b"Basic " + KEY.encode())], "invalid_api_key"),
        ([(b"authorization", b"Bearer")], "invalid_api_key"),
        ([(b"authorization", b"Bearer   ")], "invalid_api_key"),
        ([(b"authorization", b"Bearer sk-nobody")], "invalid_api_key"),
        ([(b"authorization", b"Bearer " + KEY.encode() + b"x")], "invalid_api_key"),
        ([(b"authorization", b"Bearer " + b"k" * 513)], "invalid_api_key"),
        ([(b"authorization", b"Bearer " + b"k" * 30_000)], "invalid_api_key"),
        ([(b"authorization", b"Bearer \xff\xfe\x80")], "invalid_api_key"),
    ],
)
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions"])
async def test_without_a_known_key_nothing_reaches_an_engine(gateway, engine, path, headers, code):
    answer = await gateway.ask(path=path, key=None, headers=headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (answer.error["type"], answer.error["code"]) == ("authentication_error", code)
    assert engine.calls == []


@pytest.mark.parametrize("value", [b"Bearer ", b"bearer ", b"BEARER ", b"Bearer   "])
async def test_a_known_key_is_taken_however_the_scheme_is_written(gateway, value):
    answer = await gateway.ask(key=None, headers=[(b"authorization", value + KEY.encode())])
    assert answer.status == 200


async def test_the_key_stays_here(gateway, engine):
    await gateway.ask()
    assert "authorization" not in engine.calls[0].headers


async def test_the_models_are_listed_without_a_key_but_not_with_a_wrong_one(gateway):
    assert (await gateway.get("/v1/models")).status == 200
    assert (await gateway.get("/v1/models", key=KEY)).status == 200
    answer = await gateway.get("/v1/models", key="sk-nobody")
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


# -- correlation ids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["a", "trace-1", "0af7:651916cd.43dd_8448", "A" * 128])
async def test_a_sane_id_is_the_callers_own_everywhere(gateway, engine, given):
    answer = await gateway.ask(headers=[(b"x-request-id", given.encode())])
    assert answer.headers["x-request-id"] == given
    assert engine.calls[0].request_id.startswith(f"{given}-".lower())
    line = await gateway.logged("access", request_id=given)
    assert line["status"] == 200


@pytest.mark.parametrize("given", [b"", b"A" * 129, b"a b", b"a\tb", b"-a", b"a/b", b'"x"', b"\xc3\xa9", b"a;b", b"{}"])
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/models"])
async def test_an_insane_id_is_replaced(gateway, given, path):
    method = "POST" if path == CHAT_PATH else "GET"
    answer = await gateway.ask(method, path, BODY if method == "POST" else None, headers=[(b"x-request-id", given)])
    assert answer.status == 200
    assert MADE_ID.fullmatch(answer.headers["x-request-id"])


async def test_a_caller_without_an_id_is_given_a_new_one_each_time(gateway, engine):
    ids = {(await gateway.ask()).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5
    assert all(MADE_ID.fullmatch(one) for one in ids)
    assert {call.request_id for call in engine.calls} == ids


async def test_callers_that_share_an_id_are_told_apart_at_the_engine(gateway, engine):
    for _ in range(3):
        await gateway.ask(headers=[(b"x-request-id", b"same")])
    ids = [call.request_id for call in engine.calls]
    assert len(set(ids)) == 3
    assert all(one.startswith("same-") for one in ids)


async def test_an_error_carries_the_callers_id(gateway):
    answer = await gateway.ask(body=b"{", headers=[(b"x-request-id", b"mine")])
    assert answer.error["request_id"] == "mine"


# -- bodies -----------------------------------------------------------------------------------------------------

DEEP = 20_000


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"hello", "invalid_json", None),
        (b'{"model": "phi3"} {}', "invalid_json", None),
        (b"\xef\xbb\xbf" + BODY, "invalid_json", None),
        (b'{"model": "phi3", "temperature": NaN}', "invalid_json", None),
        (b'{"model": "\xff\xfe"}', "invalid_json", None),
        (b'{"model": "\\ud800"}', "invalid_json", None),
        (b"\x00" * 100, "invalid_json", None),
        (b'{"model": "phi3", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}", "invalid_json", None),
        (b"[" * DEEP, "invalid_request", None),
        (b'{"model": "phi3", "x": ' + b'{"a":' * (DEEP // 3) + b"1" + b"}" * (DEEP // 3 + 1), "invalid_json", None),
        (b"null", "invalid_request", None),
        (b"[]", "invalid_request", None),
        (b'"phi3"', "invalid_request", None),
        (b"7", "invalid_request", None),
        (b"{}", "invalid_request", "model"),
        (b'{"model": null}', "invalid_request", "model"),
        (b'{"model": 7}', "invalid_request", "model"),
        (b'{"model": ["phi3"]}', "invalid_request", "model"),
        (b'{"model": "phi3", "stream": "yes"}', "invalid_request", "stream"),
        (b'{"model": "phi3", "stream": 1}', "invalid_request", "stream"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else None,
)
async def test_a_body_that_is_no_request_is_refused_here(gateway, engine, body, code, param):
    answer = await gateway.ask(body=body)
    assert answer.status == 400
    assert (answer.error["type"], answer.error["code"]) == ("invalid_request_error", code)
    assert answer.error["param"] == param
    assert engine.calls == []
    assert await still_serves(gateway)


@pytest.mark.parametrize("name", ["gpt-4", "", "PHI3", "phi3 ", "a/../b", "\u0000", "n" * 5000, "größe", "🦜"])
async def test_an_unknown_model_is_named_with_those_that_are_known(gateway, engine, name):
    answer = await gateway.ask(body=json.dumps({"model": name}).encode())
    assert answer.status == 404
    error = answer.error
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
    assert "`phi3`" in error["message"]
    assert f"`{name[:128]}`" in error["message"]
    assert len(error["message"]) < 300
    assert engine.calls == []


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        b'{\n\t"model" :"phi3" ,\r\n "n":1e2, "x": [1.0, 1.00], "model":"phi3"}  \n',
        '{"model": "phi3", "prompt": "Grüße, 世界 🦜", "u": "\\u00e9\\ud83d\\ude00"}'.encode(),
        b'{"stream": null, "model": "phi3"}',
        b'{"stream": false, "model": "phi3", "big": 123456789012345678901234567890}',
        b'{"model": "phi3", "pad": "' + b"x" * (BODY_LIMIT - 30) + b'"}',
    ],
    ids=["plain", "blanks", "unicode", "null", "big-number", "large"],
)
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions"])
async def test_a_body_reaches_the_engine_byte_for_byte(gateway, engine, path, body):
    assert (await gateway.ask(path=path, body=body)).status == 200
    (call,) = engine.calls
    assert call.body == body
    assert (call.method, call.path) == ("POST", path)
    assert call.headers["content-type"] == "application/json"


async def test_a_body_in_chunks_reaches_the_engine_whole_and_with_a_length(gateway, engine):
    async with gateway.caller() as caller:
        await caller.request(body=None, headers=[(b"transfer-encoding", b"chunked")])
        for at in range(0, len(BODY), 10):
            piece = BODY[at : at + 10]
            await caller.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(0)
        await caller.send(b"0\r\n\r\n")
        assert (await caller.answer()).status == 200
    assert engine.calls[0].body == BODY
    assert engine.calls[0].headers["content-length"] == str(len(BODY))


async def test_a_caller_that_expects_a_go_ahead_gets_it(gateway):
    async with gateway.caller() as caller:
        await caller.request(body=None, headers=[(b"expect", b"100-continue"), (b"content-length", b"%d" % len(BODY))])
        assert (await caller.head()).status == 100
        await caller.send(BODY)
        assert (await caller.answer()).status == 200


async def test_a_caller_with_a_wrong_key_is_not_asked_for_its_body(gateway):
    async with gateway.caller() as caller:
        await caller.request(
            body=None, key="sk-no", headers=[(b"expect", b"100-continue"), (b"content-length", b"100")]
        )
        assert (await caller.answer()).status == 401


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(gateway, engine):
    async with gateway.caller() as caller:
        await caller.request(body=None, headers=[(b"content-length", b"%d" % (BODY_LIMIT + 1))])
        answer = await caller.answer()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert str(BODY_LIMIT) in answer.error["message"]
    assert engine.calls == []


async def test_a_body_that_grows_too_large_is_refused_as_it_comes(gateway, engine):
    piece = b"%x\r\n%b\r\n" % (8192, b"x" * 8192)
    async with gateway.caller() as caller:
        await caller.request(body=None, headers=[(b"transfer-encoding", b"chunked")])
        for _ in range(BODY_LIMIT // 8192 + 1):
            await caller.send(piece)
        answer = await caller.answer()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert engine.calls == []


async def test_a_chunked_body_that_comes_at_once_is_measured_too(gateway):
    piece = b"%x\r\n%b\r\n" % (BODY_LIMIT + 1, b"x" * (BODY_LIMIT + 1))
    async with gateway.caller() as caller:
        await caller.request(body=None, headers=[(b"transfer-encoding", b"chunked")])
        await caller.send(piece + b"0\r\n\r\n")
        assert (await caller.answer()).status == 413


async def test_a_body_that_drips_is_refused_in_time_and_the_connection_ends(gateway, engine):
    async with gateway.caller() as caller:
        await caller.request(body=None, headers=[(b"content-length", b"1000")])

        async def drip():
            while True:
                await caller.send(b" ")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        answer = await caller.answer()
        dripping.cancel()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert answer.error["type"] == "timeout_error"
        assert answer.headers["connection"] == "close"
        assert await caller.end() == b""
    assert engine.calls == []


async def test_a_caller_that_goes_amid_its_body_is_logged_as_gone(gateway, engine):
    async with gateway.caller() as caller:
        await caller.request(body=None, headers=[(b"content-length", b"1000"), (b"x-request-id", b"gone-amid-body")])
        await caller.send(b"{")
    line = await gateway.logged("access", request_id="gone-amid-body")
    assert line["status"] == 499
    assert engine.calls == []


# -- HTTP -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused_in_the_same_shape(gateway, data):
    async with gateway.caller() as caller:
        await caller.send(data)
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid_http")
        assert MADE_ID.fullmatch(answer.headers["x-request-id"])
        assert await caller.end() == b""
    assert await still_serves(gateway)


async def test_a_broken_chunk_ends_the_request(gateway, engine):
    async with gateway.caller() as caller:
        await caller.request(body=None, headers=[(b"transfer-encoding", b"chunked")])
        await caller.send(b"not-a-size\r\n")
        assert (await caller.answer()).status == 400
    assert engine.calls == []
    assert await still_serves(gateway)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_the_hot_endpoints_take_post_only(gateway, method):
    answer = await gateway.ask(method, CHAT_PATH, None)
    assert (answer.status, answer.error["code"], answer.headers["allow"]) == (405, "method_not_allowed", "POST")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/models", "GET"),
        ("OPTIONS", "/v1/responses/resp_1", "DELETE, GET"),  # two routes
        ("GET", "/v1/responses/resp_1/cancel", "POST"),
        ("DELETE", "/health", "GET"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
async def test_other_endpoints_say_what_they_do_not_take(gateway, method, path, allowed):
    answer = await gateway.ask(method, path, BODY)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert ", ".join(sorted(answer.headers["allow"].split(", "))) == allowed


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/chat/completions", "/v1/completions/", "/%00", "/..%2f..%2fetc"])
async def test_an_unknown_address_is_a_404_in_openais_shape(gateway, path):
    answer = await gateway.get(path)
    assert (answer.status, answer.error["code"]) == (404, "unknown_url")


async def test_many_requests_share_a_connection(gateway, engine):
    async with gateway.caller() as caller:
        for _ in range(20):
            await caller.request()
            assert (await caller.answer()).status == 200
    assert len(engine.calls) == 20


async def test_requests_sent_ahead_are_answered_in_order(gateway, engine):
    async with gateway.caller() as caller:
        for number in range(5):
            await caller.request(headers=[(b"x-request-id", b"ahead-%d" % number)])
        ids = [(await caller.answer()).headers["x-request-id"] for _ in range(5)]
    assert ids == [f"ahead-{number}" for number in range(5)]


async def test_a_caller_of_http_1_0_is_answered_and_its_connection_closed(gateway):
    async with gateway.caller() as caller:
        head = f"POST {CHAT_PATH} HTTP/1.0\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(BODY)}\r\n\r\n"
        await caller.send(head.encode() + BODY)
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert answer.json == CHAT
        assert await caller.end() == b""


async def test_a_request_to_upgrade_is_answered_as_if_it_had_not_asked(gateway):
    answer = await gateway.get("/health", headers=[(b"connection", b"upgrade"), (b"upgrade", b"websocket")])
    assert answer.status == 200


async def test_headers_without_end_are_refused(gateway):
    async with gateway.caller() as caller:
        await caller.send(b"GET /health HTTP/1.1\r\nhost: a\r\nx: ")

        async def pour():
            with contextlib.suppress(OSError):
                for _ in range(64):
                    await caller.send(b"x" * 16384)
                    await asyncio.sleep(0.005)

        pouring = asyncio.create_task(pour())
        answer = await caller.answer()
        await pouring
    assert (answer.status, answer.error["code"]) == (431, "headers_too_large")


async def test_a_caller_that_never_finishes_its_headers_is_refused_in_time(gateway):
    async with gateway.caller() as caller:
        await caller.request()
        assert (await caller.answer()).status == 200
        await caller.send(b"GET /health HTTP/1.1\r\nhost: a\r\n")
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert await caller.end() == b""


async def test_headers_that_come_in_pieces_are_put_together(gateway):
    async with gateway.caller() as caller:
        for byte in b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n":
            await caller.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await caller.answer()).status == 200


async def test_a_caller_that_never_asks_is_sent_away_as_an_idle_one_is(gateway):
    async with gateway.caller() as caller, gateway.caller() as asked_once:
        await asked_once.request()
        await asked_once.answer()
        assert await caller.end() == b""
        assert await asked_once.end() == b""


async def test_nonsense_sent_ahead_never_gets_into_the_answer_under_way(gateway, engine):
    engine.script = says_and_stalls(STREAM_HEAD, chunk(EVENTS[0]))
    async with gateway.caller() as caller:
        await caller.request(body=STREAM_BODY)
        await caller.head()
        assert await caller.piece() == EVENTS[0]
        await caller.send(b"nonsense\r\n\r\n")
        assert await caller.end() == b""
    await hung_up(engine)
