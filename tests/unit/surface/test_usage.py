"""Tokens are counted whatever shape an endpoint gives them."""

import json

import pytest

CHAT = {"usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}
EMBEDDING = {"usage": {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0, "prompt_tokens_details": None}}
INPUT = {"usage": {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 5}}


def event(data, name=""):
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("path", "model", "body", "expected"),
    [
        ("/v1/chat/completions", "phi3", CHAT, 5),
        ("/v1/completions", "phi3", CHAT, 5),
        ("/v1/responses", "phi3", INPUT, 5),
        ("/v1/messages", "phi3", INPUT, 5),
        ("/v1/embeddings", "minilm", EMBEDDING, 0),
    ],
)
async def test_a_whole_answers_usage_is_counted(gateway, engines, path, model, body, expected):
    engines.reply(path, body)
    assert (await gateway.post(path, {"model": model})).json == body
    assert gateway.counted() == {(model, "prompt"): 7, (model, "completion"): expected}


@pytest.mark.parametrize(
    ("path", "pieces"),
    [
        ("/v1/chat/completions", [event({"choices": [], **CHAT}), b"data: [DONE]\n\n"]),
        ("/v1/responses", [event({"type": "response.completed", "response": INPUT}, "response.completed")]),
        (
            "/v1/messages",
            [
                event({"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 0}}}),
                event({"type": "message_delta", "delta": {}, **INPUT}, "message_delta"),
                event({"type": "message_stop"}, "message_stop"),
            ],
        ),
    ],
)
async def test_a_streams_usage_is_counted(gateway, engines, path, pieces):
    engines.stream(path, *pieces)
    answer = await gateway.post(path, {"model": "phi3", "stream": True, "stream_options": {"include_usage": True}})
    assert answer.body == b"".join(pieces)
    assert gateway.counted() == {("phi3", "prompt"): 7, ("phi3", "completion"): 5}


async def test_the_usage_of_a_long_response_is_counted_though_its_last_event_comes_in_many_pieces(gateway, engines):
    text = 'said: "usage":{"input_tokens":999} ' * 20_000
    whole = event({"type": "response.completed", "response": {"output": [{"text": text}], **INPUT, "user": None}})
    engines.stream("/v1/responses", *(whole[at : at + 10_000] for at in range(0, len(whole), 10_000)))
    answer = await gateway.post("/v1/responses", {"model": "phi3", "stream": True})
    assert answer.body == whole
    assert gateway.counted() == {("phi3", "prompt"): 7, ("phi3", "completion"): 5}


@pytest.mark.parametrize(
    "body",
    [{}, {"usage": None}, {"usage": 5}, {"usage": {"prompt_tokens": "7"}}, {"response": {}}, {"response": 1}, [], 1],
)
async def test_an_answer_without_usage_is_passed_on_and_counts_nothing(gateway, engines, body):
    engines.reply("/tokenize", body)
    assert (await gateway.post("/tokenize", {"model": "phi3", "prompt": "a"})).json == body
    assert sum(gateway.counted().values()) == 0


async def test_an_endpoint_that_does_not_stream_is_not_taken_for_one_that_does(gateway, engines):
    engines.reply("/v1/embeddings", EMBEDDING)
    answer = await gateway.post("/v1/embeddings", {"model": "minilm", "input": "a", "stream": True})
    assert answer.headers["content-type"] == "application/json"
    assert gateway.counted()["minilm", "prompt"] == 7
