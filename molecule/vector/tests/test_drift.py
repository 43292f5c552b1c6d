"""What the role does with a Qdrant that is not as it left it: it mends what loses nothing, and refuses the rest."""

import json
import re
import urllib.request

import pytest

ROLE = ("--tags", "vector", "--diff")


@pytest.fixture
def ask(credentials):
    """`ask(method, path, body)`: what Qdrant answers."""

    def asked(method, path, body=None):
        request = urllib.request.Request(
            f"{credentials['qdrant_url']}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"api-key": credentials["qdrant_api_key"], "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["result"]

    return asked


@pytest.fixture
def aliases(ask):
    """`aliases()`: what each alias leads to."""
    return lambda: {one["alias_name"]: one["collection_name"] for one in ask("GET", "/aliases")["aliases"]}


@pytest.fixture(autouse=True)
def as_it_was(play, ask):
    """Whatever a test leaves is put right for the next one."""
    yield
    for name in [one["name"] for one in ask("GET", "/collections")["collections"]]:
        ask("POST", f"/collections/{name}/points/delete?wait=true", {"filter": {}})
    assert play(*ROLE, "-e", "vector_allow_destructive=true").code == 0


def put(ask, name, size):
    point = {"id": 1, "vector": {"dense": [1.0] + [0.0] * (size - 1)}, "payload": {"tenant": "kept"}}
    ask("PUT", f"/collections/{name}/points?wait=true", {"points": [point]})


def total(played):
    return sum(played.changed.values())


def test_drift_is_shown_and_mended(play, ask, aliases):
    name = aliases()["citadel_phi3"]
    put(ask, name, 384)
    ask("PATCH", f"/collections/{name}", {"hnsw_config": {"m": 7}, "quantization_config": "Disabled"})
    ask("DELETE", f"/collections/{name}/index/version?wait=true")

    dry = play(*ROLE, "--check")
    assert re.search(r'^-\s+"m": 7', dry.text, re.M)
    assert re.search(r'^\+\s+"m": 16', dry.text, re.M)
    assert ask("GET", f"/collections/{name}")["config"]["hnsw_config"]["m"] == 7, "a dry run changes nothing"

    assert total(play(*ROLE)) == 1
    info = ask("GET", f"/collections/{name}")
    assert (info["config"]["hnsw_config"]["m"], info["points_count"]) == (16, 1)
    assert info["config"]["quantization_config"]["scalar"]["type"] == "int8"
    assert "version" in info["payload_schema"]
    assert total(play(*ROLE)) == 0


def test_vectors_of_another_size_are_an_error_and_what_is_in_there_stays(play, ask, aliases):
    name = aliases()["citadel_phi3"]
    ask("DELETE", f"/collections/{name}")
    ask("PUT", f"/collections/{name}", {"vectors": {"dense": {"size": 8, "distance": "Dot"}}})
    put(ask, name, 8)

    refused = play(*ROLE)
    assert refused.code != 0
    assert "Nothing was changed" in refused.text
    assert "vector_allow_destructive" in refused.text
    assert ask("GET", f"/collections/{name}")["points_count"] == 1

    assert play(*ROLE, "-e", "citadel_vector_allow_destructive=true").code == 0
    info = ask("GET", f"/collections/{name}")
    assert (info["config"]["params"]["vectors"]["dense"]["size"], info["points_count"]) == (384, 0)
    assert aliases()["citadel_phi3"] == name
    assert total(play(*ROLE, "-e", "citadel_vector_allow_destructive=true")) == 0


def test_another_embedding_gets_a_collection_beside_the_old_one_until_that_is_empty(play, ask, aliases):
    old = aliases()["citadel_minilm"]
    put(ask, old, 384)
    other = json.dumps({"citadel_model_overrides": {"minilm": {"weights": "path", "path": "/srv/other"}}})

    assert play(*ROLE, "-e", other).code == 0
    assert aliases()["citadel_minilm"] == old, "callers go on seeing what is there"
    made = {one["name"] for one in ask("GET", "/collections")["collections"] if "_minilm-minilm-" in one["name"]}
    [new] = made - {old}
    assert ask("GET", f"/collections/{old}")["points_count"] == 1
    assert f"until {new} is filled" in " ".join(play(*ROLE, "-e", other).text.split())

    ask("POST", f"/collections/{old}/points/delete?wait=true", {"points": [1]})
    assert play(*ROLE, "-e", other).code == 0
    assert aliases()["citadel_minilm"] == new


def test_a_closed_port_is_told_plainly(play):
    refused = play("--tags", "vector", "-e", "vector_url=http://192.168.10.30:1")
    assert refused.code != 0
    assert "http://192.168.10.30:1 does not answer as Qdrant does" in refused.text
