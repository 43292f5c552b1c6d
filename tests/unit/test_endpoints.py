"""What FastAPI serves: models, health, metrics and the documentation."""

import re

import pytest
import pytest_asyncio

from callers import STREAM_BODY
from citadel_llm import __version__
from gateways import running_gateway
from upstreams import Upstream, answers, refused_port, streams

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    async with Upstream() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory, engine):
    folder = tmp_path_factory.mktemp("endpoints")
    with refused_port() as port:
        models = {
            "phi3": {"upstreams": [engine], "display_name": "Phi-3 Mini", "max_tokens": 4096, "owned_by": "acme"},
            "lab/hermes-2": [f"http://127.0.0.1:{port}"],
        }
        async with running_gateway(folder, models=models) as running:
            yield running


# -- models -----------------------------------------------------------------------------------------------------


async def test_the_models_are_listed_in_openais_shape_with_their_state(gateway):
    answer = await gateway.get("/v1/models")
    assert (answer.status, answer.json["object"]) == (200, "list")
    first, second = answer.json["data"]
    created = first.pop("created")
    assert abs(created - gateway.keys_file.stat().st_mtime) < 60
    assert first == {
        "id": "phi3",
        "object": "model",
        "kind": "generate",
        "owned_by": "acme",
        "display_name": "Phi-3 Mini",
        "max_model_len": 4096,
        "state": "up",
        "aliases": [],
    }
    assert (second["id"], second["display_name"], second["max_model_len"]) == ("lab/hermes-2", "lab/hermes-2", None)
    assert (second["owned_by"], second["state"]) == ("citadel", "starting")


@pytest.mark.parametrize("name", ["phi3", "lab/hermes-2", "lab%2Fhermes-2"])
async def test_one_model_is_shown(gateway, name):
    answer = await gateway.get(f"/v1/models/{name}")
    assert answer.status == 200
    assert answer.json["id"] == answer.headers["x-citadel-model"] == name.replace("%2F", "/")


@pytest.mark.parametrize("name", ["phi4", "phi3/x", "%F0%9F%A6%9C", "%ff"])
async def test_a_model_that_is_not_here_is_a_404_that_names_those_that_are(gateway, name):
    answer = await gateway.get(f"/v1/models/{name}")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "`phi3`, `lab/hermes-2`" in answer.error["message"]


# -- health -----------------------------------------------------------------------------------------------------


async def test_an_instance_that_answers_is_alive(gateway):
    answer = await gateway.get("/health/live")
    assert (answer.status, answer.json) == (200, {"status": "ok", "instance": "1", "version": __version__})


async def test_one_model_that_can_be_asked_makes_an_instance_ready(gateway):
    answer = await gateway.get("/health/ready")
    assert (answer.status, answer.json["status"]) == (200, "ready")


async def test_health_tells_of_every_engine(gateway, engine):
    answer = await gateway.get("/health")
    said = answer.json
    assert (answer.status, said["status"], said["draining"]) == (200, "degraded", False)
    assert (said["instance"], said["version"]) == ("1", __version__)
    up, down = said["models"]["phi3"]["engines"][0], said["models"]["lab/hermes-2"]["engines"][0]
    assert (up["address"], up["state"], up["reachable"], up["draining"]) == (engine.address, "up", True, False)
    assert 0 < up["latency_ms"] < 1000
    assert up["last_error"] is None
    assert (down["state"], down["reachable"], down["latency_ms"]) == ("starting", False, None)
    assert "refused" in down["last_error"]


async def test_good_answers_to_probes_are_counted_and_not_logged(gateway):
    for path in ("/health", "/health/live", "/health/ready", "/metrics"):
        assert (await gateway.get(path)).status == 200
    await gateway.get("/v1/models/phi3", headers=[(b"x-request-id", b"after-the-probes")])
    line = await gateway.logged("access", request_id="after-the-probes")
    assert (line["method"], line["path"], line["client"]) == ("GET", "/v1/models/phi3", "127.0.0.1")
    assert not [line for line in gateway.lines("access") if line["path"].startswith(("/health", "/metrics"))]
    counted = await gateway.metrics()
    assert counted['citadel_gateway_requests_total{model="",route="/health/live",status="200"}'] >= 1


# -- metrics ----------------------------------------------------------------------------------------------------


async def test_metrics_are_in_prometheus_own_format(gateway):
    answer = await gateway.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    sample = re.compile(r'[a-z_]+(\{([a-z_]+="[^"]*",?)*\})? [0-9.e+-]+(\.[0-9]+)?|[a-z_]+(\{.*\})? \+Inf')
    for line in answer.body.decode().splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line), line


async def test_requests_streams_and_engines_are_measured(gateway, engine):
    engine.script = streams()
    await gateway.ask(body=STREAM_BODY)
    engine.script = answers(b"", 500)
    await gateway.ask()
    await gateway.ask(body=b"{")
    said = await gateway.metrics()
    route = 'route="/v1/chat/completions"'
    assert said[f'citadel_gateway_requests_total{{model="phi3",{route},status="200"}}'] >= 1
    assert said[f'citadel_gateway_requests_total{{model="phi3",{route},status="500"}}'] >= 1
    assert said[f'citadel_gateway_requests_total{{model="",{route},status="400"}}'] >= 1
    assert said[f'citadel_gateway_request_duration_seconds_count{{model="phi3",{route}}}'] >= 2
    assert said['citadel_gateway_time_to_first_token_seconds_count{model="phi3"}'] >= 1
    assert said[f'citadel_gateway_engine_up{{engine="{engine.address}",model="phi3"}}'] == 1
    assert min(value for name, value in said.items() if name.startswith("citadel_gateway_engine_up")) == 0
    assert said['citadel_gateway_in_flight{model="phi3"}'] == 0
    assert said['citadel_gateway_queued{model="phi3"}'] == 0


async def test_no_caller_can_make_new_time_series(gateway):
    for number in range(5):
        await gateway.get(f"/made-up/{number}")
        await gateway.ask("PUT", f"/made-up/{number}", b"{}")
        await gateway.ask(body=b'{"model": "made-up-%d"}' % number)
        await gateway.get(f"/v1/models/made-up-{number}")
    assert not [name for name in await gateway.metrics() if "made-up" in name]


# -- documentation ----------------------------------------------------------------------------------------------


async def test_the_documentation_describes_every_endpoint(gateway):
    page = await gateway.get("/docs")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    answer = await gateway.get("/openapi.json")
    document = answer.json
    kept = ("/v1/responses/", "/v1/conversations", "/v1/feedback", "/v1/me/", "/v1/files", "/v1/vector_", "/admin/")
    told = {path for path in document["paths"] if not path.startswith(kept)}
    assert told == {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"),
        *("/v1/embeddings", "/tokenize", "/detokenize", "/v1/models", "/v1/models/{model_id}"),
        *("/health", "/health/live", "/health/ready", "/metrics"),
    }
    assert {
        *("/v1/conversations", "/v1/conversations/{conversation_id}", "/v1/conversations/{conversation_id}/export"),
        *(f"/v1/conversations/{{conversation_id}}/items{one}" for one in ("", "/{item_id}")),
        *("/v1/responses/{response_id}", "/v1/responses/{response_id}/input_items"),
        *("/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content", "/v1/vector_stores"),
        *(f"/v1/vector_stores/{{vector_store_id}}/{one}" for one in ("search", "files", "file_batches")),
        *("/v1/feedback", "/v1/feedback/{request_id}", "/v1/me/data", "/admin/v1/users/{user_id}/data"),
    } <= set(document["paths"])
    assert document["info"]["version"] == __version__
    assert (await gateway.get("/openapi.json")).json == document
    assert (await gateway.get("/redoc")).status == 404


async def test_every_reference_in_the_document_leads_somewhere(gateway):
    answer = await gateway.get("/openapi.json")
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', answer.body.decode()))
    assert names
    assert names <= set(answer.json["components"]["schemas"])


async def test_the_document_says_which_errors_a_caller_may_meet(gateway):
    operation = (await gateway.get("/openapi.json")).json["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "404", "408", "413", "429", "502", "503", "504"} <= set(operation["responses"])
    assert operation["security"] == [{"bearer": []}, {"api_key": []}, {"basic": []}]
    assert "text/event-stream" in operation["responses"]["200"]["content"]


# -- for all ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/metrics", "/docs", "/openapi.json", "/v1/models", "/nowhere"])
async def test_every_answer_carries_the_callers_id(gateway, path):
    answer = await gateway.get(path, headers=[(b"x-request-id", b"mine-1")])
    assert answer.headers["x-request-id"] == "mine-1"


async def test_a_head_request_has_no_body(gateway):
    assert (await gateway.ask("HEAD", "/health/live", None)).status == 405
    assert (await gateway.ask("HEAD", "/docs", None)).status == 200
