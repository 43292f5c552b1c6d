"""Where a request goes: to the least busy replica that is up, once more if it was not begun, else 503 at once."""

import asyncio

import pytest

from callers import STREAM_BODY
from upstreams import (
    CHAT,
    EVENTS,
    STREAM_HEAD,
    Upstream,
    answers,
    chunk,
    in_turn,
    refused_port,
    says_and_closes,
    says_and_half_closes,
    says_and_resets,
    says_and_stalls,
    stalls,
    streams,
)
from waiting import until

# An engine sends a stream's head as soon as it takes the request, long before a token: the caller has none of it yet.
BEFORE_THE_FIRST_BYTE = {
    "fin": says_and_closes(),
    "reset": says_and_resets(),
    "half-close": says_and_half_closes(),
    "head, fin": says_and_closes(STREAM_HEAD),
    "half a head, reset": says_and_resets(STREAM_HEAD[:30]),
}


@pytest.fixture
def twins(serve, upstream, second_upstream):
    """`async with twins() as gateway`: one model at two engines."""
    return lambda **sections: serve(models={"phi3": [upstream, second_upstream]}, **sections)


@pytest.mark.parametrize("body", [None, STREAM_BODY], ids=["plain", "stream"])
@pytest.mark.parametrize("script", BEFORE_THE_FIRST_BYTE.values(), ids=BEFORE_THE_FIRST_BYTE)
async def test_a_request_that_was_not_begun_goes_to_the_other_replica(twins, upstream, second_upstream, script, body):
    upstream.script = script
    async with twins() as gateway:
        while not upstream.calls:  # of two replicas alike either may be asked first
            answer = await gateway.ask(**({"body": body} if body else {}))
            assert (answer.status, answer.json) == (200, CHAT)
        first, second = upstream.calls[0], second_upstream.calls[-1]
        assert first.body == second.body
        assert first.request_id != second.request_id
        line = await gateway.logged("access", retries=1)
        assert (line["retries"], line["engine"]) == (1, second_upstream.address)
        assert (await gateway.metrics())['citadel_gateway_retries_total{model="phi3"}'] == 1


@pytest.mark.parametrize("script", BEFORE_THE_FIRST_BYTE.values(), ids=BEFORE_THE_FIRST_BYTE)
async def test_a_single_engine_is_asked_a_second_time(serve, upstream, script):
    upstream.script = in_turn(script, answers(CHAT))
    async with serve(models={"phi3": [upstream]}) as gateway:
        assert (await gateway.ask()).status == 200
        assert len(upstream.calls) == 2


async def test_a_stream_that_begins_with_the_engines_error_was_not_begun(serve, upstream):
    dying = b'data: {"error":{"message":"EngineCore died","type":"InternalServerError","code":500}}\n\n'
    upstream.script = in_turn(says_and_closes(STREAM_HEAD, chunk(dying)), streams())
    async with serve(models={"phi3": [upstream]}) as gateway:
        answer = await gateway.ask(body=STREAM_BODY)
        assert answer.status == 200
        assert b"EngineCore" not in answer.body
        assert len(upstream.calls) == 2


async def test_there_is_no_third_attempt(twins, upstream, second_upstream):
    upstream.script = second_upstream.script = says_and_closes()
    async with twins() as gateway:
        answer = await gateway.ask()
        assert (answer.status, answer.error["code"]) == (503, "model_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert len(upstream.calls) + len(second_upstream.calls) == 2


async def test_a_request_whose_answer_began_is_never_sent_again(twins, upstream, second_upstream):
    upstream.script = second_upstream.script = says_and_closes(STREAM_HEAD, chunk(EVENTS[0]))
    async with twins() as gateway:
        assert (await gateway.ask()).status == 502
        answer = await gateway.ask(body=STREAM_BODY)
        assert answer.body.startswith(EVENTS[0] + b"\n\ndata: ")
        assert len(upstream.calls) + len(second_upstream.calls) == 2


async def test_an_idle_connection_that_the_engine_closed_costs_nobody_an_error(gateway, upstream):
    for _ in range(10):
        assert (await gateway.ask()).status == 200
        upstream.cut_idle()
    assert not gateway.lines("access", status=503)


async def test_a_connection_that_closes_as_it_is_used_again_is_no_break(gateway, upstream):
    """The engine's end of an idle connection and the next request cross on the way."""

    async def answers_and_ends_late(call):
        await answers(CHAT)(call)
        call.close_in(0.0002 * (len(upstream.calls) % 10))

    upstream.script = answers_and_ends_late
    async with gateway.caller() as caller:
        for _ in range(200):
            await caller.request()
            assert (await caller.answer()).status == 200


async def test_connections_to_an_engine_are_kept(gateway, upstream):
    probing = upstream.connections
    for _ in range(10):
        await gateway.ask()
    assert upstream.connections == probing + 1


async def test_requests_go_to_the_replica_with_the_fewest(twins, upstream, second_upstream):
    upstream.script = second_upstream.script = stalls()
    async with twins() as gateway, gateway.caller() as first, gateway.caller() as second, gateway.caller() as third:
        for caller in (first, second, third):
            await caller.request()
            await asyncio.sleep(0.02)
        await gateway.seen(in_flight=3)
        assert sorted([len(upstream.calls), len(second_upstream.calls)]) == [1, 2]


# -- down, starting, draining -----------------------------------------------------------------------------------


async def test_an_engine_that_never_answered_is_starting(serve):
    with refused_port() as port:
        async with serve(models={"phi3": [f"http://127.0.0.1:{port}"]}, limits={"retry_after_s": 7}) as gateway:
            answer = await gateway.ask()
            assert (answer.status, answer.error["code"]) == (503, "model_unavailable")
            assert answer.error["type"] == "service_unavailable"
            assert "is starting" in answer.error["message"]
            assert answer.headers["retry-after"] == "7"
            assert (await gateway.health())["state"] == "starting"


async def test_an_engine_that_says_it_is_not_well_is_not_asked(serve, upstream):
    upstream.health = 503
    async with serve(models={"phi3": [upstream]}) as gateway:
        assert (await gateway.ask()).status == 503
        assert upstream.calls == []
        upstream.health = 200
        await gateway.seen(state="up")
        assert (await gateway.ask()).status == 200


async def test_a_killed_engine_is_noticed_by_a_request_at_once_and_its_return_by_a_probe(serve, upstream):
    async with serve(models={"phi3": [upstream]}, probe={"interval_s": 0.2}) as gateway:
        assert (await gateway.ask()).status == 200
        await upstream.shut()
        began = asyncio.get_running_loop().time()
        answer = await gateway.ask()
        assert asyncio.get_running_loop().time() - began < 1
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert "does not answer" in answer.error["message"]
        state = await gateway.seen(state="down")
        assert "refused" in state["engines"][0]["last_error"]
        down = await gateway.logged("engine_state", state="down")
        assert (down["level"], down["engine"]) == ("warning", upstream.address)
        await upstream.open()
        await gateway.seen(state="up")
        assert (await gateway.ask()).status == 200


async def test_a_killed_replica_costs_nobody_an_error(twins, upstream, second_upstream):
    async with twins() as gateway:
        await upstream.shut()
        for _ in range(5):
            assert (await gateway.ask()).status == 200
        assert len(second_upstream.calls) == 5

        async def down():  # found by a request, or by a probe where chance sent all of them to the other one
            said = await gateway.health()
            assert said["state"] == "up"
            return {one["address"]: one["state"] for one in said["engines"]}[upstream.address] == "down"

        await until(down)


async def test_an_engine_that_stops_answering_probes_counts_as_down_after_some(serve, upstream):
    probe = {"interval_s": 0.02, "timeout_s": 0.1, "failures": 3}
    async with serve(models={"phi3": [upstream]}, probe=probe) as gateway:
        upstream.health = None
        before = upstream.probes
        state = await gateway.seen(state="down")
        assert upstream.probes - before >= 3
        assert "no answer to GET /health within 0.1 s" in state["engines"][0]["last_error"]


@pytest.mark.parametrize("nonsense", [b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b""])
async def test_an_engine_that_answers_probes_with_nonsense_counts_as_down(serve, nonsense):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(nonsense)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with serve(models={"phi3": [f"http://127.0.0.1:{port}"]}) as gateway:
            said = await gateway.health()
            assert said["state"] == "starting"
            assert said["engines"][0]["last_error"]
            assert (await gateway.ask()).status == 503


async def test_an_engine_that_closes_after_each_probe_is_up(serve):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nwell")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with serve(models={"phi3": [f"http://127.0.0.1:{port}"]}) as gateway:
            assert (await gateway.health())["state"] == "up"


async def test_an_engine_with_a_draining_marker_finishes_and_gets_nothing_new(serve, upstream, tmp_path):
    marker = tmp_path / "draining"
    entry = {"upstreams": [{"url": upstream.url, "draining_marker": str(marker)}]}
    upstream.script = in_turn(says_and_stalls(STREAM_HEAD, chunk(EVENTS[0])), answers(CHAT))
    async with serve(models={"phi3": entry}) as gateway, gateway.caller() as streaming:
        await streaming.request(body=STREAM_BODY)
        await streaming.head()
        marker.touch()
        state = await gateway.seen(state="draining")
        assert (state["in_flight"], state["engines"][0]["draining"]) == (1, True)
        answer = await gateway.ask()
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert "taken out of service" in answer.error["message"]
        assert await streaming.piece() == EVENTS[0]
        marker.unlink()
        await gateway.seen(state="up")
        assert (await gateway.ask()).status == 200


async def test_a_draining_replica_leaves_its_part_to_the_other(serve, upstream, second_upstream, tmp_path):
    marker = tmp_path / "draining"
    marker.touch()
    entry = {"upstreams": [{"url": upstream.url, "draining_marker": str(marker)}, {"url": second_upstream.url}]}
    async with serve(models={"phi3": entry}) as gateway:
        for _ in range(4):
            assert (await gateway.ask()).status == 200
        assert (len(upstream.calls), len(second_upstream.calls)) == (0, 4)


async def test_one_models_trouble_is_not_anothers(serve, upstream):
    with refused_port() as port:
        models = {"phi3": [upstream], "hermes": [f"http://127.0.0.1:{port}"]}
        async with serve(models=models) as gateway:
            assert (await gateway.ask(body=b'{"model": "hermes"}')).status == 503
            assert (await gateway.ask()).status == 200


async def test_an_engine_that_cannot_be_connected_to_in_time_is_a_503(serve, upstream):
    """A full backlog: the kernel takes no more connections, and says nothing of it."""
    import socket  # noqa: PLC0415

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            fillers.append(sock)
        async with serve(
            models={"phi3": [f"http://127.0.0.1:{port}"]}, probe={"timeout_s": 0.1}, timeouts={"connect_s": 0.2}
        ) as gateway:
            answer = await gateway.ask()
            assert (answer.status, answer.error["code"]) == (503, "model_unavailable")
        for sock in fillers:
            sock.close()


async def test_a_replica_that_never_comes_does_not_hold_up_the_other(serve, upstream):
    async with Upstream() as other, serve(models={"phi3": [upstream, other]}) as gateway:
        upstream.health = 500
        await gateway.seen(state="up")
        for _ in range(3):
            assert (await gateway.ask()).status == 200
