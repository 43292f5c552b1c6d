"""The OpenAPI document describes every endpoint, with schemas and examples."""

import pytest

from citadel_llm.api.routes.kinds import ENDPOINTS


@pytest.fixture
async def document(gateway):
    return (await gateway.get("/openapi.json", key=None)).json


async def test_every_forwarded_endpoint_is_described_with_an_example_of_its_request(document):
    for path, endpoint in ENDPOINTS.items():
        operation = document["paths"][path]["post"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
        assert schema["examples"], path
        assert set(schema["required"]) > {"model"} or "model" in schema["required"], path
        assert ("text/event-stream" in operation["responses"]["200"]["content"]) == endpoint.streams, path
        assert {"400", "401", "404", "429", "503"} <= set(operation["responses"])


async def test_what_is_not_kept_is_described_too(document):
    assert {"get", "delete"} <= set(document["paths"]["/v1/responses/{response_id}"])
    assert "post" in document["paths"]["/v1/responses/{response_id}/cancel"]


async def test_every_reference_leads_to_a_schema_and_no_operation_shares_its_name(document):
    references, names = [], []

    def walk(node):
        if isinstance(node, dict):
            if "$ref" in node:
                references.append(node["$ref"])
            if "operationId" in node:
                names.append(node["operationId"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references) <= known
    assert len(names) == len(set(names))


async def test_the_page_of_the_documentation_is_there(gateway):
    answer = await gateway.get("/docs", key=None)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
