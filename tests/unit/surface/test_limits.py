"""Requests that ask for too much, or are no requests: told by the gateway, without troubling an engine."""

import json

import pytest

from citadel_llm.api.routes.kinds import ENDPOINTS

FIELDS = ["max_tokens", "max_completion_tokens", "max_output_tokens"]


@pytest.mark.parametrize("field", FIELDS)
async def test_more_tokens_than_the_models_context_are_refused_and_the_field_is_named(gateway, engines, field):
    answer = await gateway.post("/v1/chat/completions", {"model": "phi3", "messages": [], field: 4097})
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert (answer.error["code"], answer.error["param"]) == ("context_length_exceeded", field)
    assert "4097" in answer.error["message"]
    assert "4096 tokens" in answer.error["message"]
    assert answer.error["request_id"] == answer.headers["x-request-id"]
    assert engines.seen == []


@pytest.mark.parametrize("value", [4096, 1, None, 16.0, 4096.0])
async def test_what_fits_is_the_engines_to_judge(gateway, engines, value):
    assert (await gateway.post("/v1/completions", {"model": "phi3", "prompt": "a", "max_tokens": value})).status == 200
    assert len(engines.seen) == 1


async def test_a_model_without_a_stated_context_is_not_limited_here(gateway):
    assert (await gateway.post("/v1/completions", {"model": "hermes", "max_tokens": 10**9})).status == 200


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", ["64", 1.5, 4097.5, True, [64], {}])
async def test_a_limit_that_is_no_whole_number_is_refused_and_named(gateway, engines, field, value):
    answer = await gateway.post("/v1/responses", {"model": "phi3", "input": "a", field: value})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_request", field)
    assert engines.seen == []


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"[]", "invalid_request", None),
        (b'"phi3"', "invalid_request", None),
        (b"null", "invalid_request", None),
        (b"{}", "invalid_request", "model"),
        (b'{"model": null}', "invalid_request", "model"),
        (b'{"model": ["phi3"]}', "invalid_request", "model"),
        (b'{"model": "\xff"}', "invalid_json", None),
        (b'{"model": "\\ud800"}', "invalid_json", None),
        (b'{"model": "phi3", "stream": "yes"}', "invalid_request", "stream"),
        (b'{"model": "phi3", "stream": 1}', "invalid_request", "stream"),
        (b'{"model": "phi3"} {}', "invalid_json", None),
    ],
)
async def test_a_body_that_is_no_request_is_a_400_everywhere(gateway, engines, path, body, code, param):
    answer = await gateway.post(path, body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)
    assert engines.seen == []


@pytest.mark.parametrize("depth", [10_000, 400_000])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
async def test_a_body_that_is_nested_too_deeply_is_never_an_error_of_ours(gateway, depth, begin, end):
    body = b'{"model": "phi3", "x": ' + begin * depth + b"1" + end * depth + b"}"
    answer = await gateway.post("/v1/chat/completions", body)
    assert answer.status in (200, 400), answer.body
    if answer.status == 400:
        assert answer.error["code"] == "invalid_json"


@pytest.mark.parametrize("value", [b"1" + b"0" * 40, b"1" + b"0" * 5000, b"1e400", b"-1e400"])
async def test_a_limit_beyond_all_measure_is_refused_like_any_other(gateway, engines, value):
    answer = await gateway.post("/v1/completions", b'{"model": "phi3", "max_tokens": ' + value + b"}")
    assert (answer.status, answer.error["param"]) == (400, "max_tokens")
    assert engines.seen == []


async def test_an_engines_word_on_a_prompt_that_is_too_long_has_the_code_that_clients_look_for(gateway, engines):
    said = (
        "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens."
    )
    engines.reply("/v1/completions", {"error": {"message": said, "type": "BadRequestError", "code": 400}}, status=400)
    answer = await gateway.post("/v1/completions", {"model": "phi3", "prompt": "a"})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert answer.error["message"] == said


async def test_an_error_amid_a_stream_of_named_events_has_a_name(gateway, engines):
    engines.stream("/v1/messages", b'event: message_start\ndata: {"type": "message_start"}\n\n', cut=True)
    answer = await gateway.post("/v1/messages", {"model": "phi3", "max_tokens": 1, "messages": [], "stream": True})
    name, data = answer.body.split(b"\n\n")[-2].split(b"\n")
    assert name == b"event: error"
    said = json.loads(data.removeprefix(b"data: "))
    assert (said["type"], said["error"]["code"]) == ("error", "upstream_error")
