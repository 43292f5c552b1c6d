"""Endpoints of gateways that are configured otherwise, or have no engine that answers."""

from callers import KEY
from upstreams import refused_port


async def test_health_is_down_and_no_instance_ready_where_no_model_can_be_asked(serve):
    with refused_port() as port:
        async with serve(models={"phi3": [f"http://127.0.0.1:{port}"]}) as gateway:
            answer = await gateway.get("/health")
            assert (answer.status, answer.json["status"]) == (503, "down")
            answer = await gateway.get("/health/ready")
            assert (answer.status, answer.json["status"], answer.headers["retry-after"]) == (503, "not ready", "5")
            assert (await gateway.get("/health/live")).status == 200


async def test_where_the_list_is_not_public_it_takes_a_key(serve, upstream):
    auth = {"public_model_list": False}
    async with serve(models={"phi3": [upstream]}, auth=auth) as gateway:
        for path in ("/v1/models", "/v1/models/phi3", "/v1/models/phi4"):
            answer = await gateway.get(path)
            assert (answer.status, answer.error["code"]) == (401, "missing_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert (await gateway.get("/v1/models", key=KEY)).status == 200
