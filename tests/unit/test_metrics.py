"""What the gateway counts: correct over its processes, by conventional names too, and of a bounded number of series."""

import contextlib
import random

import pytest

from callers import KEY, STREAM_BODY
from citadel_llm import __version__
from gateways import spawned_gateway, write_keys
from upstreams import Upstream, answers, streams
from waiting import until

CHAT = "gen_ai_server_request_duration_seconds"
OF = 'gen_ai_operation_name="chat",gen_ai_request_model="phi3"'


@pytest.fixture
async def pair(tmp_path):
    """Two processes that share their metrics, and their engine."""
    async with Upstream() as engine, contextlib.AsyncExitStack() as stack:
        write_keys(tmp_path / "keys.json", {"alice": KEY})
        running = [
            await stack.enter_async_context(
                spawned_gateway(
                    tmp_path,
                    models={"phi3": [engine]},
                    instance=instance,
                    environ={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")},
                )
            )
            for instance in ("1", "2")
        ]
        yield engine, *running


async def written_by_both(gateway):
    """What `gateway` tells, once the other process has written all that it counted: it does so family by family."""
    wanted = {
        f"{CHAT}_count{{{OF}}}": 5,
        'gen_ai_client_token_usage_sum{gen_ai_request_model="phi3",gen_ai_token_type="output"}': 15,
        'gen_ai_server_time_per_output_token_seconds_count{gen_ai_request_model="phi3"}': 2,
        'citadel_gateway_group_requests_total{group="admin",model="phi3",outcome="ok"}': 5,
    }

    async def so():
        said = await gateway.metrics()
        return said if all(said.get(name) == value for name, value in wanted.items()) else None

    return await until(so, what=f"both have counted {wanted}")


async def test_every_process_tells_what_all_have_counted(pair):
    engine, first, second = pair
    engine.script = answers()
    for gateway in (first, first, second):
        assert (await gateway.ask()).status == 200
    engine.script = streams(pause_s=0.01)
    for gateway in (first, second):
        assert (await gateway.ask(body=STREAM_BODY)).status == 200
    await first.get("/v1/models/none")
    for gateway in (first, second):
        said = await written_by_both(gateway)
        # The same numbers by the names that OpenTelemetry gives them.
        own = sum(said[f'citadel_gateway_request_duration_seconds_count{{model="phi3",{route}}}'] for route in ROUTES)
        assert said[f"{CHAT}_count{{{OF}}}"] == own == 5
        assert said[f'{CHAT}_bucket{{{OF},le="+Inf"}}'] == 5
        assert said[f"gen_ai_server_time_to_first_token_seconds_count{{{OF}}}"] == 2
        pace = 'gen_ai_server_time_per_output_token_seconds_{}{{gen_ai_request_model="phi3"}}'
        assert said[pace.format("count")] == 2
        assert said[pace.format("sum")] > 0.01  # three tokens, events 10 ms apart
        usage = 'gen_ai_client_token_usage_sum{{gen_ai_request_model="phi3",gen_ai_token_type="{}"}}'
        assert (said[usage.format("input")], said[usage.format("output")]) == (5 * 7, 5 * 3)
        assert said['citadel_gateway_group_requests_total{group="admin",model="phi3",outcome="ok"}'] == 5
        [build] = [name for name in said if name.startswith("citadel_build_info")]
        assert f'version="{__version__}"' in build
        assert said['citadel_refused_total{reason="invalid_api_key"}'] == 0, "it is there before it happens"


ROUTES = ('route="/v1/chat/completions"',)


async def test_hostile_callers_make_no_series(gateway, upstream):
    upstream.script = answers()
    rng = random.Random(7)

    def word():
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12))

    async def hostile():
        for _ in range(30):
            one, other = word(), word()
            await gateway.get(f"/{one}/{other}?{one}={other}")
            await gateway.get(f"/v1/models/{one}")
            await gateway.get(f"/v1/responses/{one}")
            await gateway.ask("DELETE", f"/v1/files/{one}", b"")
            await gateway.ask("PATCH", f"/admin/v1/users/{one}", b'{"name": "x"}')
            await gateway.ask(one.upper(), "/v1/chat/completions", b"{}")
            await gateway.ask(body=b'{"model": "%b"}' % one.encode())
            await gateway.ask(key=f"sk-{one}")
            await gateway.ask(key=None, headers=[(b"authorization", b"Basic %b" % one.encode())])
            names = (b"user-agent", b"x-request-id", b"x-forwarded-for", b"traceparent", b"x-session-id")
            await gateway.ask(headers=[(name, one.encode()) for name in names])

    await hostile()
    await gateway.metrics()  # which counts itself, once it has been asked for
    before = set(await gateway.metrics())
    await hostile()
    after = set(await gateway.metrics())
    assert after == before
    assert len(after) < 1500


async def test_what_may_happen_to_a_model_is_there_at_0_before_it_does(serve, upstream):
    models = {"phi3": {"upstreams": [{"url": upstream.url}], "fallback": ["hermes"]}, "hermes": [upstream]}
    async with serve(models=models) as gateway:
        said = await gateway.metrics()
        for name in ("retries", "retries_denied", "auto_choices"):
            assert said[f'citadel_gateway_{name}_total{{model="phi3"}}'] == 0
        for reason in ("queue_full", "key_queue_full", "wait_too_long"):
            assert said[f'citadel_gateway_refusals_total{{model="phi3",reason="{reason}"}}'] == 0
        assert said['citadel_gateway_fallbacks_total{answered_by="hermes",model="phi3"}'] == 0
        assert said[f'citadel_gateway_ejections_total{{engine="{upstream.address}",model="phi3"}}'] == 0
        assert said['citadel_limited_total{kind="unavailable",scope="everyone"}'] == 0
        assert said['citadel_trace_spans_total{outcome="failed"}'] == 0


async def test_what_is_turned_off_is_not_told_to_be_down(gateway):
    said = await gateway.metrics()
    for name in (
        "citadel_database_up",
        "citadel_identity_seen_timestamp_seconds",
        "citadel_gateway_cache_up",
        "citadel_gateway_vector_up",
    ):
        assert name not in said, "0 would be an alert"
