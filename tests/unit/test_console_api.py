"""What the console asks for: the status over all instances, drains, and Alertmanager's alerts."""

import asyncio

import pytest

from callers import BODY, KEY, STREAM_BODY
from citadel_llm.api.fresh import Fresh
from citadel_llm.api.routes.admin.alerts import MATCHERS
from citadel_llm.api.upstream.drains import Drains, drain_name
from citadel_llm.integration.metrics import Metrics
from citadel_llm.integration.metrics.counts import FAMILIES, read_counts
from citadel_monitoring.alertmanager import routes
from citadel_monitoring.rule import PRODUCT
from gateways import spawned_gateway
from upstreams import Upstream, answers, refused_port, streams
from waiting import until

DRAIN = "/admin/v1/drain"


async def status(gateway):
    answer = await gateway.get("/admin/v1/status", key=KEY)
    assert answer.status == 200, answer
    return answer.json


async def counted(gateway, model="phi3", durations=None, **wanted):
    """Wait until the status has these, and so many durations if given; the model's part of it.

    An instance writes what it counted family by family, and another may read amid that.
    """

    async def so():
        found = next(one for one in (await status(gateway))["models"] if one["id"] == model)
        right = all(found[name] == value for name, value in wanted.items())
        return found if right and durations in (None, found["duration"]["counts"][-1]) else None

    return await until(so, what=f"{model} with {wanted}")


# -- the status -------------------------------------------------------------------------------------------------


async def test_the_status_has_models_in_the_order_of_the_plan_with_what_is_required(serve, upstream):
    models = {
        "phi3": {"upstreams": [upstream], "display_name": "Phi", "latency_ms": 500, "latency_target_ms": 300},
        "hermes": {"upstreams": [upstream], "fallback": ["phi3"]},
    }
    async with serve(models=models, console={"status_s": 0.01}) as gateway:
        found = await status(gateway)
        assert (found["status"], found["availability"], found["peers"]) == ("ok", 0.99, {})
        assert found["caller"]["name"] == "alice"
        assert {"operate", "audit.read", "inference"} <= set(found["caller"]["permissions"])
        first, second = found["models"]
        assert (first["id"], first["latency_ms"], first["latency_target_ms"]) == ("phi3", 500, 300)
        assert (second["latency_ms"], second["fallback"], second["statuses"]) == (None, ["phi3"], {})
        assert first["replicas"][0]["address"] == upstream.address
        assert first["duration"] == {"bounds_s": [], "counts": [], "sum_s": 0}


async def test_it_counts_answers_tokens_and_durations(serve, upstream):
    async with serve(models={"phi3": [upstream]}, console={"status_s": 0.01}) as gateway:
        await gateway.ask("POST", "/v1/chat/completions", BODY)
        upstream.script = streams()
        await gateway.ask("POST", "/v1/chat/completions", STREAM_BODY)
        upstream.script = answers({}, 400)
        await gateway.ask("POST", "/v1/chat/completions", BODY)
        found = await counted(gateway, statuses={"200": 2, "400": 1})
        assert found["tokens"] == {"prompt": 14, "completion": 6}
        duration, first = found["duration"], found["first_token"]
        assert duration["counts"][-1] == 3
        assert len(duration["counts"]) == len(duration["bounds_s"]) + 1
        assert duration["counts"] == sorted(duration["counts"])
        assert 0 < duration["sum_s"] < 30
        assert first["counts"][-1] == 1


async def test_it_adds_up_what_all_instances_counted(tmp_path, upstream):
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    options = {"models": {"phi3": [upstream]}, "environ": environ, "console": {"status_s": 0.01}}
    async with (
        spawned_gateway(tmp_path, instance="1", **options) as one,
        spawned_gateway(tmp_path, instance="2", **options) as two,
    ):
        for gateway, times in ((one, 2), (two, 3)):
            for _ in range(times):
                assert (await gateway.ask("POST", "/v1/chat/completions", BODY)).status == 200
        for gateway in (one, two):
            await counted(gateway, statuses={"200": 5}, durations=5)


async def test_the_names_that_are_counted_are_the_metrics_own(tmp_path):
    metrics = Metrics("1")
    metrics.answered("/v1/chat/completions", "phi3", 200, 0.2)
    metrics.first_token("phi3", 0.1)
    metrics.tokens("phi3", 7, 3)
    metrics.in_flight.labels("phi3").set(2)
    metrics.queued.labels("phi3").set(1)
    assert {family.name for family in metrics.collect()} >= FAMILIES
    counts = read_counts(metrics)
    assert list(counts) == ["phi3"]
    found = counts["phi3"]
    assert (found.statuses, found.tokens) == ({"200": 1}, {"prompt": 7, "completion": 3})
    assert (found.in_flight, found.queued) == (2, 1)
    assert found.first.shown()["counts"][-1] == found.duration.shown()["counts"][-1] == 1


async def test_looking_at_it_is_neither_logged_nor_is_it_traffic_of_a_model(serve, upstream):
    async with serve(models={"phi3": [upstream]}) as gateway:
        for path in ("/admin/v1/status", "/console", "/console/app.js"):
            assert (await gateway.get(path, key=KEY)).status == 200
        assert (await gateway.get("/console/none")).status == 404
        await gateway.logged("access", path="/console/none")
        assert len(gateway.lines("access")) == 1
        assert (await status(gateway))["models"][0]["statuses"] == {}


async def test_it_needs_a_key(gateway):
    assert (await gateway.get("/admin/v1/status", key=None)).status == 401
    assert (await gateway.get("/admin/v1/alerts", key="sk-wrong")).status == 401


async def test_what_is_costly_is_got_once_for_all_who_ask():
    now, calls, go_on = [0.0], [], asyncio.Event()

    async def read():
        calls.append(now[0])
        await go_on.wait()
        if len(calls) == 2:
            raise OSError("not now")
        return len(calls)

    value = Fresh(10.0, read, lambda: now[0])
    asking = [asyncio.create_task(value.get()) for _ in range(5)]
    await until(lambda: calls)
    asking[0].cancel()  # takes it from nobody else
    go_on.set()
    assert (await asyncio.gather(*asking[1:])) == [1, 1, 1, 1]
    now[0] = 9.9
    assert await value.get() == 1
    now[0] = 10.1
    for _ in range(3):  # a failure is kept as long
        with pytest.raises(OSError, match="not now"):
            await value.get()
    now[0] = 20.2
    assert (await value.get(), calls) == (3, [0.0, 10.1, 20.2])


# -- drains -----------------------------------------------------------------------------------------------------


async def test_a_replica_is_drained_for_all_instances_and_over_a_restart(tmp_path, upstream, second_upstream):
    options = {"models": {"lab/phi3": [upstream, second_upstream]}, "server": {"drained_folder": str(tmp_path / "out")}}
    body = BODY.replace(b"phi3", b"lab/phi3")

    async def drained(gateway, *expected):
        async def so():
            return [one["drained"] for one in (await gateway.health("lab/phi3"))["engines"]] == list(expected)

        await until(so, what=f"drained {expected}")

    async with spawned_gateway(tmp_path, instance="1", **options) as one:
        async with spawned_gateway(tmp_path, instance="2", **options) as two:
            answer = await one.ask("PUT", f"{DRAIN}/lab/phi3?replica={upstream.address}", None)
            assert (answer.status, answer.json["state"]) == (200, "up")
            assert [replica["drained"] for replica in answer.json["replicas"]] == [True, False]
            await drained(two, True, False)
        for _ in range(4):
            assert (await one.ask("POST", "/v1/chat/completions", body)).status == 200
        assert not upstream.calls
    async with spawned_gateway(tmp_path, instance="1", **options) as again:
        await drained(again, True, False)
        answer = await again.ask("PUT", f"{DRAIN}/lab%2Fphi3", None)
        assert (answer.status, answer.json["state"]) == (200, "draining")
        refused = await again.ask("POST", "/v1/chat/completions", body)
        assert (refused.status, "retry-after" in refused.headers) == (503, True)
        assert (await again.ask("DELETE", f"{DRAIN}/lab/phi3", None)).json["state"] == "up"
        assert (await again.ask("POST", "/v1/chat/completions", body)).status == 200
    assert not list((tmp_path / "out").iterdir())


async def test_a_running_request_ends_in_order_on_a_drained_replica(gateway, upstream):
    go_on = asyncio.Event()

    async def script(call):
        await go_on.wait()
        await answers()(call)

    upstream.script = script
    running = asyncio.create_task(gateway.ask("POST", "/v1/chat/completions", BODY))
    await upstream.asked()
    assert (await gateway.ask("PUT", f"{DRAIN}/phi3", None)).status == 200
    go_on.set()
    assert (await running).status == 200


@pytest.mark.parametrize(
    ("path", "code"), [("/phi4", "model_not_found"), ("/phi3?replica=10.0.0.1:1", "replica_not_found")]
)
async def test_what_is_not_here_cannot_be_drained(gateway, path, code):
    for method in ("PUT", "DELETE"):
        answer = await gateway.ask(method, f"{DRAIN}{path}", None)
        assert (answer.status, answer.error["code"]) == (404, code)


async def test_a_drain_that_cannot_be_written_down_is_refused(serve, upstream, tmp_path):
    folder = tmp_path / "out"
    async with serve(models={"phi3": [upstream]}, server={"drained_folder": str(folder)}) as gateway:
        folder.rmdir()
        answer = await gateway.ask("PUT", f"{DRAIN}/phi3", None)
        assert (answer.status, answer.error["code"]) == (503, "drain_unavailable")
        assert (await gateway.ask("POST", "/v1/chat/completions", BODY)).status == 200


def test_what_was_out_stays_out_where_the_folder_cannot_be_read(tmp_path):
    drains = Drains(str(tmp_path / "out"))
    drains.put("phi3", "127.0.0.1:1")
    assert drains.look() == {drain_name("phi3", "127.0.0.1:1")}
    (tmp_path / "out").rename(tmp_path / "gone")
    assert drains.look() == {drain_name("phi3", "127.0.0.1:1")}


# -- alerts -----------------------------------------------------------------------------------------------------


def firing(name="CitadelModelDown", **more):
    return {
        "labels": {"alertname": name, "severity": "page", "model": "phi3", **more},
        "annotations": {"summary": "x" * 5000},
        "startsAt": "2026-01-31T08:00:00Z",
        "status": {"state": "active", "silencedBy": []},
        "receivers": [{"name": "citadel"}],
    }


@pytest.fixture
async def alertmanager():
    async with Upstream() as running:
        yield running


async def test_without_an_alertmanager_there_are_no_alerts(gateway):
    answer = await gateway.get("/admin/v1/alerts", key=KEY)
    assert (answer.status, answer.error["code"]) == (501, "no_alertmanager")


async def test_alerts_are_asked_for_once_and_bounded(serve, upstream, alertmanager):
    alertmanager.script = answers([firing(f"A{number}") for number in range(130)])
    async with serve(models={"phi3": [upstream]}, console={"alertmanager": {"url": alertmanager.url}}) as gateway:
        found = await asyncio.gather(*(gateway.get("/admin/v1/alerts", key=KEY) for _ in range(5)))
        assert {answer.status for answer in found} == {200}
        assert (len(found[0].json["data"]), found[0].json["more"]) == (100, 30)
        assert len(found[0].json["data"][0]["summary"]) == 600
        assert len(alertmanager.calls) == 1
        for matcher in MATCHERS:
            name, _, value = matcher.partition("=")
            assert f"filter={name.replace('!', '%21')}%3D{value.replace(chr(34), '%22')}" in alertmanager.calls[0].path
        assert "authorization" not in alertmanager.calls[0].headers


@pytest.mark.parametrize(
    "script",
    [
        answers({"error": "x"}, 500),
        answers(b"not json"),
        answers([{"labels": {}}]),
        answers(b"[" + b" " * (3 << 20) + b"]"),
    ],
    ids=["error", "no json", "another shape", "too much"],
)
async def test_an_alertmanager_out_of_order_is_a_503(serve, upstream, alertmanager, script):
    alertmanager.script = script
    async with serve(models={"phi3": [upstream]}, console={"alertmanager": {"url": alertmanager.url}}) as gateway:
        answer = await gateway.get("/admin/v1/alerts", key=KEY)
        assert (answer.status, answer.error["code"]) == (503, "alertmanager_unavailable")
        assert "retry-after" in answer.headers


async def test_an_alertmanager_that_is_gone_or_hangs_is_a_503(serve, upstream, alertmanager):
    async def hangs(call):
        await call.hang_up()

    alertmanager.script = hangs
    console = {"alertmanager": {"url": alertmanager.url}, "timeout_s": 0.2, "alerts_s": 0.01}
    async with serve(models={"phi3": [upstream]}, console=console) as gateway:
        assert (await gateway.get("/admin/v1/alerts", key=KEY)).status == 503
    with refused_port() as port:
        console = {"alertmanager": {"url": f"http://127.0.0.1:{port}"}}
        async with serve(models={"phi3": [upstream]}, console=console) as gateway:
            assert (await gateway.get("/admin/v1/alerts", key=KEY)).status == 503


def test_the_alerts_that_are_asked_for_are_the_products_own():
    assert MATCHERS[0] == f'product="{PRODUCT}"' == routes(None)[0]["matchers"][0]
    assert MATCHERS[1].replace("!=", "=") in routes(None)[0]["routes"][0]["matchers"]
