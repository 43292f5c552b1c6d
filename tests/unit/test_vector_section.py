"""The gateway with the section `vector`: it starts whether Qdrant is there or not, and tells which."""

import json

import pytest

from citadel_llm.utils.config import ConfigError, parse_config

MODELS = {"m": {"upstreams": [{"url": "http://127.0.0.1:1"}]}}


def vector(**section):
    return parse_config({"auth": {"keys_file": "k"}, "models": MODELS, "vector": section}).vector


def test_it_is_off_until_it_is_turned_on():
    config = parse_config({"auth": {"keys_file": "k"}, "models": MODELS})
    assert config.vector.enabled is False
    assert vector(enabled=True, url="https://qdrant.example:8000/base", protocol="grpc").grpc_port is None


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"url": "qdrant:8000"}, "Expected `http://HOST:PORT`"),
        ({"url": "http://key@qdrant:8000"}, "the API key is in `credentials_file`"),
        ({"protocol": "soap"}, r"\$\.vector\.protocol"),
        ({"timeout_s": 0}, r"\$\.vector\.timeout_s"),
        ({"api_key": "secret"}, "unknown field `api_key`"),
    ],
)
def test_a_wrong_one_is_refused_and_says_where(section, said):
    with pytest.raises(ConfigError, match=said):
        vector(**section)


async def test_without_it_the_health_says_so(gateway):
    assert (await gateway.get("/health")).json["vector"] is None


async def test_qdrant_that_is_away_stops_nothing(serve, upstream, tmp_path):
    credentials = tmp_path / "vector.json"
    credentials.write_text(json.dumps({"api_key": "k"}))
    section = {"enabled": True, "url": "http://127.0.0.1:9", "credentials_file": str(credentials)}
    async with serve(models={"m": [upstream]}, vector=section) as gateway:
        answer = await gateway.get("/health")
        assert (answer.status, answer.json["status"]) == (200, "ok")
        assert answer.json["vector"]["up"] is False
        assert (await gateway.logged("vector_state"))["up"] is False
        assert (await gateway.metrics())["citadel_gateway_vector_up"] == 0
