"""A mistake of the gateway's own is a 500 of the usual shape, told to the log with its traceback, and nobody else's."""

import pytest
from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from callers import STREAM_BODY
from citadel_llm.api import gateway as application
from citadel_llm.api.routes.forward import Forwarder
from upstreams import CHAT


@pytest.fixture
def faulty(monkeypatch):
    """The application with endpoints that fail beside its own."""
    good = application.health.router

    def router(state):
        routes = APIRouter()
        routes.include_router(good(state))

        @routes.get("/faults/{number}")
        async def fault(number: int):
            if number == 0:
                raise RuntimeError("the fault's own words")

            async def pieces():
                yield b"a piece"
                raise RuntimeError("amid the answer")

            return StreamingResponse(pieces())

        return routes

    monkeypatch.setattr(application.health, "router", router)


async def test_a_fault_of_an_endpoint_is_a_500_that_leads_to_the_log(faulty, gateway):
    answer = await gateway.get("/faults/0")
    assert (answer.status, answer.error["code"], answer.error["type"]) == (500, "internal_error", "server_error")
    assert "own words" not in answer.body.decode()
    line = await gateway.logged("unexpected", request_id=answer.headers["x-request-id"])
    assert "the fault's own words" in line["traceback"]
    assert (await gateway.logged("access", request_id=line["request_id"]))["status"] == 500
    assert len(gateway.lines(level="error")) == 1


async def test_a_fault_amid_an_answer_cuts_it_off(faulty, gateway):
    answer = await gateway.get("/faults/1")
    assert (answer.status, answer.complete) == (200, False)
    assert "amid the answer" in (await gateway.logged("unexpected"))["traceback"]
    assert (await gateway.get("/health/live")).status == 200


async def test_a_parameter_of_the_wrong_type_is_a_400_that_names_it(faulty, gateway):
    answer = await gateway.get("/faults/many")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_request", "path.number")


@pytest.mark.parametrize("body", [None, STREAM_BODY], ids=["plain", "stream"])
async def test_a_fault_of_the_hot_path_is_a_500_that_leads_to_the_log(gateway, upstream, monkeypatch, body):
    async def fails(*_, **__):
        raise RuntimeError("the fault's own words")

    with monkeypatch.context() as patched:
        patched.setattr(Forwarder, "forward", fails)
        answer = await gateway.ask(**({"body": body} if body else {}))
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    line = await gateway.logged("unexpected", request_id=answer.headers["x-request-id"])
    assert "the fault's own words" in line["traceback"]
    await gateway.seen(in_flight=0)
    assert (await gateway.ask()).json == CHAT
