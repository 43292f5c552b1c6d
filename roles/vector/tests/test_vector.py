"""Every model has its collection behind its alias, with the vectors, indexes and settings that the inventory wants."""

import json
import secrets
import uuid

import pytest

from citadel_llm.integration.vector.collections import collections


@pytest.fixture(scope="module")
def wanted(plan, role, peer):
    return collections(
        plan["models"],
        prefix=peer["citadel_vector_prefix"],
        embedder=role["vector_embedder"],
        hnsw=role["vector_hnsw"],
        quantization=role["vector_quantization"],
        on_disk=role["vector_on_disk"],
    )


def test_the_gateways_key_is_open_to_its_group_and_to_nobody_else(host, site, credentials):
    file = host.file(credentials)
    assert (file.user, file.group, file.mode) == ("root", site["citadel_group"], 0o640)
    assert list(json.loads(file.content_string)) == ["api_key"]


def test_every_models_alias_leads_to_its_collection(ask, plan, wanted):
    aliases = {one["alias_name"]: one["collection_name"] for one in ask("GET", "/aliases")["aliases"]}
    assert {one["alias"]: aliases.get(one["alias"]) for one in wanted} == {one["alias"]: one["name"] for one in wanted}
    assert {one["model"] for one in wanted} == {model["name"] for model in plan["models"]}


def test_every_collection_has_the_vectors_settings_and_indexes_that_are_wanted(ask, wanted):
    for one in wanted:
        info = ask("GET", f"/collections/{one['name']}")
        config, settings = info["config"], one["settings"]
        found = config["params"]["vectors"]["dense"]
        assert {key: found[key] for key in ("size", "distance")} == {"size": one["dimensions"], "distance": "Cosine"}
        assert config["params"]["sparse_vectors"]["bm25"]["modifier"] == "idf"
        assert {key: config["hnsw_config"][key] for key in settings["hnsw_config"]} == settings["hnsw_config"]
        [(kind, quantization)] = settings["quantization_config"].items()
        assert {key: config["quantization_config"][kind][key] for key in quantization} == quantization
        for field, schema in one["indexes"].items():
            assert info["payload_schema"][field]["data_type"] == schema["type"]
        assert info["payload_schema"]["tenant"]["params"]["is_tenant"] is True


def test_a_text_is_found_by_meaning_and_by_words_within_its_tenant(ask, wanted):
    """A point of a tenant that nobody else has, gone again afterwards."""
    documents = next(one for one in wanted if one["purpose"] == "documents")
    path = f"/collections/{documents['alias']}/points"
    tenant, point = f"test-{secrets.token_hex(6)}", str(uuid.uuid4())
    mine = {"must": [{"key": "tenant", "match": {"value": tenant}}]}
    vector = [1.0] + [0.0] * (documents["dimensions"] - 1)
    words = {"text": "a particular quokka", "model": "Qdrant/bm25"}
    body = {"points": [{"id": point, "vector": {"dense": vector, "bm25": words}, "payload": {"tenant": tenant}}]}
    assert ask("PUT", f"{path}?wait=true", body)["status"] == "completed"
    try:
        for query, using in ((vector, "dense"), ({"text": "quokka", "model": "Qdrant/bm25"}, "bm25")):
            asked = {"query": query, "using": using, "filter": mine, "limit": 5}
            assert [one["id"] for one in ask("POST", f"{path}/query", asked)["points"]] == [point]
            other = {"must": [{"key": "tenant", "match": {"value": f"{tenant}-other"}}]}
            assert ask("POST", f"{path}/query", {**asked, "filter": other})["points"] == []
    finally:
        ask("POST", f"{path}/delete?wait=true", {"filter": mine})
    assert ask("POST", f"{path}/count", {"filter": mine, "exact": True}) == {"count": 0}


def test_a_stranger_is_refused(host, url):
    said = host.run("curl -s -o /dev/null -w '%%{http_code}' -H 'api-key: wrong' %s/collections", url)
    assert said.stdout == "401"
