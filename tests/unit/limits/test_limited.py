"""Bounds as callers meet them: refusals, headers, what counts and what does not."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys

import openai
import pytest

from callers import BODY, STREAM_BODY
from citadel_llm.api.limits.bounds import Bounds
from gateways import KEYS, running_gateway
from redis_server import Server
from upstreams import CHAT, EVENTS, STREAM_HEAD, answers, chunk, refused_port, says_and_stalls, stalls, streams, when
from waiting import until

PLAIN_STREAM = b'{"model": "phi3", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
NONE = {f"default_{name}": None for name in ("requests_per_minute", "tokens_per_minute", "concurrent_requests")}
EMBEDDING = {"object": "list", "data": [], "usage": {"prompt_tokens": 9, "total_tokens": 9}}


@pytest.fixture
def redis_cache(tmp_path):
    """The section of a configuration whose cache is there."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with Server(folder) as server:
        yield {
            "enabled": True,
            "socket": server.socket,
            "credentials_file": str(server.credentials_file),
            "timeout_ms": 500,
        }


@pytest.fixture
def limited(tmp_path, upstream):
    """`async with limited({("key", "alice"): Bounds(...)}) as gateway`: a gateway with these bounds and no others."""

    @contextlib.asynccontextmanager
    async def start(bounds, limits=NONE, **sections):
        async with running_gateway(tmp_path, models={"phi3": [upstream]}, limits=limits, **sections) as gateway:
            gateway.state.bounds = bounds
            yield gateway

    return start


def left(answer, what="tokens"):
    return int(answer.headers[f"x-ratelimit-remaining-{what}"])


def used(gateway, scope="key", subject="alice"):
    return gateway.state.limiter.now(scope, subject)


# -- requests a minute ------------------------------------------------------------------------------------------


async def test_as_many_requests_pass_as_a_minute_allows_and_the_next_is_told_when_to_come_back(limited, upstream):
    async with limited({("key", "alice"): Bounds(requests_per_minute=2)}) as gateway:
        answers = [await gateway.ask() for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert [left(answer, "requests") for answer in answers] == [1, 0, 0]
        assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"2"}
        assert answers[0].headers["x-ratelimit-reset-requests"] == "1m0s"
        assert "x-ratelimit-limit-tokens" not in answers[0].headers
        refused = answers[2]
        assert refused.error["code"] == "rate_limit_exceeded"
        assert refused.error["type"] == "rate_limit_error"
        assert "this key may use 2 requests a minute" in refused.error["message"]
        assert 58 <= int(refused.headers["retry-after"]) <= 60
        assert re.fullmatch(r"5\d(\.\d+)?s|1m0s", refused.headers["x-ratelimit-reset-requests"])
        assert refused.headers["x-citadel-model"] == "phi3"
        assert len(upstream.calls) == 2
        assert (await gateway.ask(key=KEYS["bob"])).status == 200
        assert (await gateway.metrics())['citadel_limited_total{kind="requests_per_minute",scope="key"}'] == 1
        assert (await gateway.logged("access", status=429))["error"] == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("scope", "subject", "who"),
    [
        ("model", "phi3", "the model `phi3`, for all callers together"),
        ("everyone", "*", "this server, for all callers together"),
    ],
)
async def test_a_bound_of_all_callers_holds_for_all_of_them_together(limited, scope, subject, who):
    async with limited({(scope, subject): Bounds(requests_per_minute=2)}) as gateway:
        statuses = [(await gateway.ask(key=key)).status for key in (*KEYS.values(), KEYS["bob"])]
        assert statuses == [200, 200, 429]
        assert who in (await gateway.ask()).error["message"]


async def test_the_tightest_of_several_bounds_is_told_and_a_request_that_is_refused_by_one_counts_for_none(limited):
    bounds = {
        ("key", "alice"): Bounds(requests_per_minute=2),
        ("everyone", "*"): Bounds(requests_per_minute=3),
    }
    async with limited(bounds) as gateway:
        assert [(await gateway.ask()).headers["x-ratelimit-limit-requests"] for _ in range(4)] == ["2"] * 4
        assert used(gateway, "everyone", "*")["requests_per_minute"] == 2
        answer = await gateway.ask(key=KEYS["bob"])
        assert (answer.headers["x-ratelimit-limit-requests"], left(answer, "requests")) == ("3", 0)


async def test_what_never_gets_to_a_model_does_not_count(limited):
    async with limited({("key", "alice"): Bounds(requests_per_minute=1)}) as gateway:
        for body in (b"{}", b'{"model": "nobody"}', b"not JSON"):
            assert (await gateway.ask(body=body)).status in (400, 404)
        assert (await gateway.ask(key="sk-wrong")).status == 401
        assert (await gateway.ask()).status == 200


async def test_a_bound_of_nothing_lets_nothing_pass(limited, upstream):
    async with limited({("key", "alice"): Bounds(requests_per_minute=0)}) as gateway:
        assert (await gateway.ask()).error["code"] == "rate_limit_exceeded"
        assert not upstream.calls


async def test_bounds_that_change_are_in_force_at_once_and_know_what_passed_before(limited):
    async with limited({("key", "alice"): Bounds(requests_per_minute=1)}) as gateway:
        assert [(await gateway.ask()).status for _ in range(2)] == [200, 429]
        gateway.state.bounds = {("key", "alice"): Bounds(requests_per_minute=3)}
        assert [(await gateway.ask()).status for _ in range(3)] == [200, 200, 429]


async def test_every_answer_tells_what_is_left_by_the_defaults_that_hold_for_every_key(gateway, upstream):
    upstream.script = streams()
    streamed = await gateway.ask(body=STREAM_BODY)
    upstream.script = answers({"error": {"message": "no"}}, 400)
    refused = await gateway.ask()
    upstream.script = stalls()
    late = await gateway.ask(headers=[(b"x-citadel-deadline-ms", b"50")])
    for answer, status in ((streamed, 200), (refused, 400), (late, 504)):
        assert answer.status == status
        assert answer.headers["x-ratelimit-limit-requests"] == "60000"
        assert answer.headers["x-ratelimit-limit-tokens"] == "100000000"
        assert re.fullmatch(r"\d+ms", answer.headers["x-ratelimit-reset-tokens"])
        assert left(answer, "requests") < 60_000


async def test_an_answer_has_these_headers_once_though_its_engine_has_them_too(gateway, upstream):
    upstream.script = answers(CHAT, headers=[(b"x-ratelimit-limit-requests", b"7")])
    assert (await gateway.ask()).headers["x-ratelimit-limit-requests"] == "60000"


async def test_two_hosts_that_share_a_bound_let_no_more_pass_than_it(limited):
    bounds = {("key", "alice"): Bounds(requests_per_minute=3)}
    passed = []
    for host in range(2):
        async with limited(bounds, {**NONE, "hosts": 2, "host": host}) as gateway:
            passed.append(sum([(await gateway.ask()).status == 200 for _ in range(4)]))
    assert passed == [2, 1]


async def test_a_model_that_answers_in_anothers_place_counts_under_its_own_bounds_and_is_passed_over_by_them(
    tmp_path, upstream
):
    with refused_port() as port:
        models = {
            "phi3": {"upstreams": [f"http://127.0.0.1:{port}"], "fallback": ["hermes", "mixtral"]},
            "hermes": [upstream],
            "mixtral": [upstream],
        }
        async with running_gateway(tmp_path, models=models, limits=NONE) as gateway:
            gateway.state.bounds = {("model", "hermes"): Bounds(2, 120, 1)}
            answered = [(await gateway.ask()).headers["x-citadel-model"] for _ in range(3)]
            assert answered == ["hermes", "hermes", "mixtral"]
            spent = used(gateway, "model", "hermes")
            assert (spent["requests_per_minute"], spent["concurrent_requests"]) == (2, 0)
            assert 18 <= spent["tokens_per_minute"] <= 20


# -- tokens -----------------------------------------------------------------------------------------------------


async def test_tokens_are_estimated_before_and_exact_after(limited, upstream):
    async with limited({("key", "alice"): Bounds(tokens_per_minute=60)}) as gateway:
        answer = await gateway.ask()
        estimate = int(len(BODY) / 3.5)
        assert left(answer) == 60 - estimate
        assert used(gateway)["tokens_per_minute"] == 10
        assert answer.headers["x-ratelimit-limit-tokens"] == "60"


async def test_what_an_answer_costs_beyond_the_bound_is_owed(limited, upstream):
    upstream.script = answers({**CHAT, "usage": {"prompt_tokens": 7, "completion_tokens": 1193}})
    async with limited({("key", "alice"): Bounds(tokens_per_minute=600)}) as gateway:
        assert (await gateway.ask()).status == 200
        refused = await gateway.ask()
        assert refused.error["code"] == "rate_limit_exceeded"
        assert "this key may use 600 tokens a minute" in refused.error["message"]
        assert 55 <= int(refused.headers["retry-after"]) <= 65
        assert left(refused) == 0
        assert re.fullmatch(r"1m5\d(\.\d+)?s|2m0s", refused.headers["x-ratelimit-reset-tokens"])


async def test_a_request_that_alone_is_more_than_a_minute_allows_is_told_that_it_never_passes(limited):
    async with limited({("key", "alice"): Bounds(tokens_per_minute=10)}) as gateway:
        refused = await gateway.ask()
        assert refused.error["code"] == "rate_limit_exceeded"
        assert "too large" in refused.error["message"]
        assert "never" in refused.error["message"]


@pytest.mark.parametrize("failure", [answers({"error": {"message": "no"}}, 400), answers({"error": {}}, 503)])
async def test_what_an_engine_refused_costs_no_tokens(limited, upstream, failure):
    upstream.script = failure
    async with limited({("key", "alice"): Bounds(tokens_per_minute=600)}) as gateway:
        assert (await gateway.ask()).status >= 400
        assert used(gateway)["tokens_per_minute"] == 0


async def test_counting_tokens_costs_none(limited, upstream):
    upstream.script = answers({"count": 2})
    async with limited({("key", "alice"): Bounds(requests_per_minute=9, tokens_per_minute=5)}) as gateway:
        assert (await gateway.ask(path="/tokenize")).status == 200
        assert used(gateway)["tokens_per_minute"] == 0
        assert used(gateway)["requests_per_minute"] == 1


async def test_a_streams_tokens_are_exact_though_its_caller_did_not_ask_for_them(limited, upstream):
    upstream.script = streams()
    async with limited({("key", "alice"): Bounds(tokens_per_minute=60)}) as gateway:
        answer = await gateway.ask(body=PLAIN_STREAM)
        assert answer.body == EVENTS[0] + EVENTS[1] + EVENTS[3]
        assert json.loads(upstream.calls[0].body)["stream_options"] == {"include_usage": True}
        assert used(gateway)["tokens_per_minute"] == 10
        assert (await gateway.logged("access"))["tokens_estimated"] is False


async def test_a_caller_that_asks_for_a_streams_tokens_is_told_and_its_body_goes_on_as_it_came(limited, upstream):
    upstream.script = streams()
    async with limited({("key", "alice"): Bounds(tokens_per_minute=60)}) as gateway:
        answer = await gateway.ask(body=STREAM_BODY)
        assert answer.body == b"".join(EVENTS)
        assert upstream.calls[0].body == STREAM_BODY
        assert used(gateway)["tokens_per_minute"] == 10


async def test_a_stream_that_is_hung_up_on_costs_what_went_out_by_estimate(limited, upstream):
    upstream.script = says_and_stalls(STREAM_HEAD, chunk(EVENTS[0]), chunk(EVENTS[1]))
    async with limited({("key", "alice"): Bounds(tokens_per_minute=60)}) as gateway:
        async with gateway.caller() as caller:
            await caller.request(body=PLAIN_STREAM)
            await caller.head()
            came = b""
            while came != EVENTS[0] + EVENTS[1]:
                came += await caller.piece()
        line = await gateway.logged("access", status=499)
        estimate = int(len(PLAIN_STREAM) / 3.5)
        assert (line["tokens_estimated"], line["prompt_tokens"], line["completion_tokens"]) == (True, estimate, 2)
        assert used(gateway)["tokens_per_minute"] == estimate + 2
        assert not any(name.startswith("citadel_gateway_tokens_total") for name in await gateway.metrics())


async def test_a_request_that_is_hung_up_on_before_its_answer_costs_its_prompt(limited, upstream):
    upstream.script = stalls()
    async with limited({("key", "alice"): Bounds(tokens_per_minute=60)}) as gateway:
        async with gateway.caller() as caller:
            await caller.request()
            await upstream.asked()
        await gateway.logged("access", status=499)
        assert used(gateway)["tokens_per_minute"] == int(len(BODY) / 3.5)


# -- at once ----------------------------------------------------------------------------------------------------


async def test_so_many_requests_at_once_and_no_more(limited, upstream):
    go = asyncio.Event()
    upstream.script = when(go, answers(CHAT))
    async with limited({("key", "alice"): Bounds(9, concurrent_requests=2)}) as gateway:
        first = [asyncio.create_task(gateway.ask()) for _ in range(2)]
        await upstream.asked(2)
        refused = await gateway.ask()
        assert (refused.status, refused.headers["retry-after"]) == (429, "5")
        assert "2 requests at once" in refused.error["message"]
        assert left(refused, "requests") == 7
        go.set()
        assert [(await one).status for one in first] == [200, 200]
        assert (await gateway.ask()).status == 200
        assert used(gateway)["concurrent_requests"] == 0


@pytest.mark.parametrize("ending", ["hang-up", "error", "deadline", "broken off"])
async def test_however_a_request_ends_its_place_is_free(limited, upstream, ending):
    scripts = {"error": answers({"error": {}}, 500), "broken off": says_and_stalls(STREAM_HEAD, chunk(EVENTS[0]))}
    upstream.script = scripts.get(ending, stalls())
    async with limited({("key", "alice"): Bounds(concurrent_requests=1)}) as gateway:
        async with gateway.caller() as caller:
            headers = [(b"x-citadel-deadline-ms", b"1000")] if ending == "deadline" else []
            await caller.request(body=PLAIN_STREAM if ending == "broken off" else BODY, headers=headers)
            await upstream.asked()
            if ending != "error":
                assert used(gateway)["concurrent_requests"] == 1
            if ending == "hang-up":
                caller.hang_up()
            elif ending == "broken off":
                await caller.head()
                await caller.piece()
                await upstream.shut()
                while await caller.piece():
                    pass
            else:
                assert (await caller.answer()).status == {"error": 500, "deadline": 504}[ending]
        await until(lambda: used(gateway)["concurrent_requests"] == 0, what="its place is free")


# -- budgets ----------------------------------------------------------------------------------------------------


async def test_a_days_requests_and_a_months_tokens_are_budgets_that_can_be_used_up(limited, upstream):
    async with limited({("key", "alice"): Bounds(requests_per_day=2)}) as gateway:
        assert [(await gateway.ask()).status for _ in range(3)] == [200, 200, 429]
        refused = await gateway.ask()
        assert refused.error["code"] == "insufficient_quota"
        assert "2 requests a day" in refused.error["message"]
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        gateway.state.bounds = {("key", "alice"): Bounds(tokens_per_month=40)}
        assert used(gateway)["tokens_per_month"] == 20
        assert (await gateway.ask()).status == 200
        assert "40 tokens a month" in (await gateway.ask()).error["message"]
        assert used(gateway)["requests_per_month"] == 3


# -- the cache --------------------------------------------------------------------------------------------------


async def test_a_cached_answer_counts_as_a_request_and_costs_no_tokens(limited, upstream, redis_cache):
    body = b'{"model": "phi3", "temperature": 0, "messages": []}'
    async with limited({("key", "alice"): Bounds(9, 30)}, cache=redis_cache) as gateway:
        await until(lambda: gateway.state.cache.redis.up, what="Redis is there")
        first = await gateway.ask(body=body)
        second = await gateway.ask(body=body)
        assert [one.headers["x-citadel-cache"] for one in (first, second)] == ["miss", "hit"]
        assert used(gateway)["requests_per_minute"] == 2
        assert used(gateway)["tokens_per_minute"] == 10
        assert [left(one, "requests") for one in (first, second)] == [8, 7]
        await until(lambda: len(gateway.lines("access")) == 2, what="both are logged")
        assert [line["completion_tokens"] for line in gateway.lines("access")] == [3, None]


# -- trouble ----------------------------------------------------------------------------------------------------


async def test_while_a_stopped_process_keeps_the_table_requests_are_refused_without_delay(limited, tmp_path):
    path = str(tmp_path / "limits")
    code = (
        "import os, signal\nfrom citadel_llm.api.limits.table import Table\n"
        f"table = Table({path!r})\nassert table.lock()\nprint(flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)"
    )
    async with limited({("key", "alice"): Bounds(5, 600)}, {**NONE, "table_file": path}) as gateway:
        stopped = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": "src"}
        )
        await stopped.stdout.readline()
        refused = await gateway.ask()
        assert (refused.status, refused.error["code"]) == (503, "limits_unavailable")
        assert refused.headers["retry-after"] == "5"
        stopped.send_signal(signal.SIGKILL)
        await stopped.wait()
        assert (await gateway.ask()).status == 200


async def test_what_was_used_counts_though_the_table_was_locked_when_the_answer_ended(limited, upstream):
    go = asyncio.Event()
    upstream.script = when(go, answers(CHAT))
    async with limited({("key", "alice"): Bounds(5, 60, 5)}) as gateway:
        asking = asyncio.create_task(gateway.ask())
        await upstream.asked()
        table = gateway.state.limiter.table
        assert table.lock()
        go.set()
        assert (await asking).status == 200
        table.unlock()
        assert used(gateway)["tokens_per_minute"] == 10
        assert used(gateway)["concurrent_requests"] == 0


# -- the official client ----------------------------------------------------------------------------------------


async def test_the_official_client_sees_what_is_left_and_that_nothing_is(limited):
    async with limited({("key", "alice"): Bounds(1, 600)}) as gateway:
        client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["alice"], max_retries=0)
        messages = [{"role": "user", "content": "Hello"}]
        raw = await client.chat.completions.with_raw_response.create(model="phi3", messages=messages)
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model="phi3", messages=messages)
        assert refused.value.code == "rate_limit_exceeded"
        assert 58 <= int(refused.value.response.headers["retry-after"]) <= 60
        await client.close()
