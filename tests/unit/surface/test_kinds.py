"""Which endpoints a model can be asked at follows from its kind."""

import pytest

from citadel_llm.api.routes.kinds import ENDPOINTS

GENERATING = [path for path, endpoint in ENDPOINTS.items() if "generate" in endpoint.kinds]
EMBEDDING = [path for path, endpoint in ENDPOINTS.items() if "embedding" in endpoint.kinds]


@pytest.mark.parametrize("path", GENERATING)
async def test_a_generating_models_request_reaches_its_engine_as_it_came(gateway, engines, path):
    body = b'{"model": "phi3",  "unknown": [1, {"a": null}], "max_tokens": 5}'
    answer = await gateway.post(path, body)
    assert (answer.status, answer.headers["x-citadel-model"]) == (200, "phi3")
    assert engines.seen == [(path, body)]


@pytest.mark.parametrize("path", EMBEDDING)
async def test_an_embedding_models_request_reaches_its_engine(gateway, engines, path):
    assert (await gateway.post(path, {"model": "minilm", "input": "a"})).status == 200
    assert [seen for seen, _ in engines.seen] == [path]


@pytest.mark.parametrize("path", sorted(set(GENERATING) - set(EMBEDDING)))
async def test_an_embedding_model_does_not_chat_and_the_refusal_names_those_that_do(gateway, engines, path):
    answer = await gateway.post(path, {"model": "minilm", "messages": []})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_model", "model")
    assert answer.error["type"] == "invalid_request_error"
    assert "`phi3`, `hermes`" in answer.error["message"]
    assert "`minilm` makes embeddings" in answer.error["message"]
    assert "/v1/embeddings" in answer.error["message"]
    assert engines.seen == []


async def test_a_generating_model_does_not_embed(gateway, engines):
    answer = await gateway.post("/v1/embeddings", {"model": "phi3", "input": "a"})
    assert (answer.status, answer.error["code"]) == (400, "unsupported_model")
    assert "These can: `minilm`." in answer.error["message"]
    assert engines.seen == []


async def test_a_model_that_is_not_here_is_a_404_at_every_endpoint(gateway):
    for path in ENDPOINTS:
        answer = await gateway.post(path, {"model": "gpt"})
        assert (answer.status, answer.error["code"]) == (404, "model_not_found"), path


async def test_the_list_of_models_tells_their_kinds(gateway):
    listed = (await gateway.get("/v1/models")).json["data"]
    assert {model["id"]: model["kind"] for model in listed} == {
        "phi3": "generate",
        "hermes": "generate",
        "minilm": "embedding",
    }


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_every_endpoint_wants_a_key_and_a_post(gateway, engines, path):
    assert (await gateway.post(path, {"model": "phi3"}, key=None)).status == 401
    answer = await gateway.get(path)
    assert (answer.status, answer.headers["allow"], answer.error["code"]) == (405, "POST", "method_not_allowed")
    assert engines.seen == []


async def test_a_key_may_come_as_clients_of_the_messages_api_send_it(gateway):
    body = {"model": "phi3", "max_tokens": 1, "messages": []}
    assert (await gateway.post("/v1/messages", body, key=None, headers=[(b"x-api-key", b"sk-test")])).status == 200
    assert (await gateway.post("/v1/messages", body, key=None, headers=[(b"x-api-key", b"sk-no")])).status == 401
    # The usual header decides where both are given.
    assert (await gateway.post("/v1/messages", body, key="sk-no", headers=[(b"x-api-key", b"sk-test")])).status == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("GET", "/v1/responses/resp_1/input_items"),
        ("POST", "/v1/responses/resp_1/cancel"),
    ],
)
async def test_a_response_is_not_to_be_found_later_and_the_answer_says_why(gateway, engines, method, path):
    answer = await gateway.ask(method, path)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "response_not_found", "response_id")
    assert "`resp_1`" in answer.error["message"]
    assert ("in the background" if "cancel" in path else "not kept") in answer.error["message"]
    assert (await gateway.ask(method, path, key=None)).status == 401
    assert engines.seen == []
