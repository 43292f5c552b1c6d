"""The `citadel gateway` command as a process of its own: signals, draining, sockets handed over, shared metrics."""

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import sys
import time

import pytest

from callers import BODY, KEY, STREAM_BODY, ask
from gateways import KEYS, Manager, spawned_gateway, write_config, write_keys
from upstreams import CHAT, EVENTS, STREAM_HEAD, answers, chunk, in_turn, says_and_stalls, when
from waiting import in_time, until

PHI3 = b'{"model": "phi3"}'


@pytest.fixture
def spawn(tmp_path, upstream):
    """`async with spawn() as gateway`: the command, with one model at `upstream`."""
    return lambda **options: spawned_gateway(tmp_path, models={"phi3": [upstream]}, **options)


def stream_that_ends_after(event):
    """A stream whose first event comes at once, and the others once `event` is set."""

    async def script(call):
        await call.send(STREAM_HEAD + chunk(EVENTS[0]))
        await event.wait()
        await call.send(b"".join(chunk(one) for one in EVENTS[1:]) + b"0\r\n\r\n")

    return script


# -- the end ----------------------------------------------------------------------------------------------------


async def test_a_stop_finishes_what_is_in_flight_and_takes_nothing_new(spawn, upstream):
    go = asyncio.Event()
    upstream.script = in_turn(stream_that_ends_after(go), answers(CHAT))
    async with (
        spawn(server={"drain_s": 1}) as gateway,
        gateway.caller() as streaming,
        gateway.caller() as kept,
        gateway.caller() as idle,
    ):
        await streaming.request(body=STREAM_BODY)
        await streaming.head()
        assert await streaming.piece() == EVENTS[0]
        await kept.request()
        assert "connection" not in (await kept.answer()).headers

        gateway.signal(signal.SIGTERM)
        await gateway.logged("stopping", in_flight=1)

        await kept.request("GET", "/health/ready", None)
        answer = await kept.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert await kept.end() == b""
        with pytest.raises(ConnectionRefusedError):
            await ask(gateway.port)
        assert await idle.end() == b""

        go.set()
        rest = b""
        while piece := await streaming.piece():
            rest += piece
        assert rest == b"".join(EVENTS[1:])
        assert await gateway.ended() == 0
    line = gateway.lines("access", stream=True)[0]
    assert (line["status"], line["completion_tokens"]) == (200, 3)
    assert gateway.lines()[-1]["event"] == "stopped"


async def test_while_it_drains_every_answer_asks_its_caller_to_reconnect(spawn):
    requests = [("POST", "/v1/completions", PHI3), ("POST", "/v1/completions", b"{}"), ("GET", "/v1/models", None)]
    async with spawn(server={"drain_s": 5}) as gateway, contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(gateway.caller()) for _ in requests]
        for caller in callers:
            await caller.request("GET", "/health/live", None)
            await caller.answer()
        gateway.signal(signal.SIGINT)  # from the keyboard; it means the same
        await gateway.logged("stopping")
        statuses = []
        for caller, (method, path, body) in zip(callers, requests, strict=True):
            await caller.request(method, path, body)
            answer = await caller.answer()
            statuses.append(answer.status)
            assert answer.headers["connection"] == "close"
            assert await caller.end() == b""
        assert statuses == [200, 400, 200]
        assert await gateway.ended() == 0  # at once, for nobody is connected any more


async def test_a_stream_that_takes_too_long_does_not_hold_up_the_stop_for_ever(spawn, upstream):
    upstream.script = says_and_stalls(STREAM_HEAD, chunk(EVENTS[0]))
    async with spawn(server={"shutdown_s": 0.5}) as gateway, gateway.caller() as caller:
        await caller.request(body=STREAM_BODY)
        await upstream.asked()
        gateway.signal(signal.SIGTERM)
        assert await in_time(gateway.ended(), 5) == 0
    assert gateway.lines("access", stream=True)


# -- keys -------------------------------------------------------------------------------------------------------


async def test_a_hangup_signal_reloads_the_keys_and_keeps_the_old_ones_where_the_new_cannot_be_read(spawn):
    async with spawn() as gateway:
        write_keys(gateway.keys_file, {"carol": "sk-test-of-carol-1"})
        gateway.signal(signal.SIGHUP)
        assert (await gateway.logged("keys_reloaded"))["count"] == 1
        assert (await gateway.ask(key="sk-test-of-carol-1")).status == 200
        assert (await gateway.ask(key=KEY)).status == 401

        gateway.keys_file.write_text('[{"name": "dave"}]')
        gateway.signal(signal.SIGHUP)
        line = await gateway.logged("keys_not_reloaded")
        assert (line["level"], str(gateway.keys_file) in line["message"]) == ("error", True)
        assert (await gateway.ask(key="sk-test-of-carol-1")).status == 200


async def test_no_key_is_ever_logged_and_no_digest(spawn, upstream, tmp_path):
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in KEYS.values()]
    async with spawn() as gateway:
        for key in (*KEYS.values(), "sk-not-known-here-1", "sk-" + "z" * 600):
            await gateway.ask(key=key)
            await gateway.get("/v1/models", key=key)
            await gateway.get(f"/nowhere?key={key}", key=key)
        gateway.keys_file.write_text("sk-in-the-file")
        gateway.signal(signal.SIGHUP)
        await gateway.logged("keys_not_reloaded")
        async with gateway.caller() as caller:
            await caller.send(f"nonsense {KEY}\r\n\r\n".encode())
            await caller.answer()
    text = gateway.log_text + (tmp_path / "gateway-1.err").read_text()
    assert "sk-" not in text
    assert not [digest for digest in digests if digest in text]
    assert {line.get("caller") for line in gateway.lines("access", status=200)} >= {"alice", "bob"}


# -- the log ----------------------------------------------------------------------------------------------------


async def test_every_request_has_one_access_line_and_every_line_is_json(spawn, upstream):
    upstream.script = in_turn(answers(CHAT), answers(b"", 501), answers(CHAT))
    async with spawn(instance="7") as gateway:
        asked = [
            await gateway.ask(body=BODY),
            await gateway.ask(body=BODY),
            await gateway.ask(body=STREAM_BODY),
            await gateway.ask(body=b"{"),
            await gateway.ask(key=None),
            await gateway.get("/v1/models"),
            await gateway.get("/nowhere"),
            await gateway.ask("GET"),
        ]
        ids = [answer.headers["x-request-id"] for answer in asked]
        await gateway.logged("access", request_id=ids[-1])
    lines = gateway.lines("access")
    assert [line["request_id"] for line in lines] == ids
    assert [line["status"] for line in lines] == [200, 501, 200, 400, 401, 200, 404, 405]
    assert [line["level"] for line in lines] == ["info", "warning"] + ["info"] * 6
    for line in gateway.lines():
        assert line["instance"] == "7"
        assert abs(line["ts"] - time.time()) < 120
        assert {"level", "event"} <= set(line)
    assert {line["duration_ms"] > 0 for line in lines} == {True}
    first = lines[0]
    assert (first["model"], first["engine"], first["caller"]) == ("phi3", upstream.address, "alice")
    assert (first["method"], first["path"], first["client"]) == ("POST", "/v1/chat/completions", "127.0.0.1")


# -- more than one ----------------------------------------------------------------------------------------------


async def test_the_metrics_of_instances_that_share_a_folder_add_up_across_restarts(spawn, upstream, tmp_path):
    go = asyncio.Event()
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    total = 'citadel_gateway_requests_total{model="phi3",route="/v1/chat/completions",status="200"}'
    seconds = 'citadel_gateway_request_duration_seconds_count{model="phi3",route="/v1/chat/completions"}'
    in_flight = 'citadel_gateway_in_flight{model="phi3"}'
    up = f'citadel_gateway_engine_up{{engine="{upstream.address}",model="phi3"}}'

    async def counted(gateway, number):
        """The metrics, once they show so many requests: another instance writes its own ten times a second."""

        async def so():
            said = await gateway.metrics()
            assert said.get(total, 0) <= number
            return said if said.get(total) == said.get(seconds) == number else None

        return await until(so, what=f"{number} requests are counted")

    async with spawn(instance="1", environ=environ) as one:
        async with spawn(instance="2", environ=environ) as two:
            for gateway, times in ((one, 3), (two, 4)):
                for _ in range(times):
                    assert (await gateway.ask()).status == 200
            for gateway in (one, two):
                said = await counted(gateway, 7)
                assert (said[total], said[seconds], said[up]) == (7, 7, 1)
            upstream.script = when(go, answers(CHAT))
            async with one.caller() as first, two.caller() as second:
                await first.request()
                await second.request()

                async def both():
                    return (await one.metrics())[in_flight] == 2

                await until(both, what="two requests in flight, one at each instance")
                go.set()
                assert (await first.answer()).status == (await second.answer()).status == 200
        said = await one.metrics()
        assert said[total] == 9
        async with spawn(instance="2", environ=environ) as again:
            assert (await again.ask()).status == 200
            await counted(one, 10)
    assert len(list((tmp_path / "metrics").glob("counter_*.db"))) == 2


# -- the service manager ----------------------------------------------------------------------------------------

HANDED_OVER = """
import os, sys
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="http")
os.dup2(int(sys.argv[1]), 3)
os.execv(sys.executable, [sys.executable, "-m", "citadel_llm.cli", "gateway", *sys.argv[2:]])
"""


async def test_it_serves_on_the_socket_that_the_service_manager_hands_over_and_tells_it_so(tmp_path, upstream):
    path = write_config(tmp_path, {"phi3": [upstream]})
    with socket.socket() as sock, Manager(tmp_path) as manager:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        environ = {
            "NOTIFY_SOCKET": manager.path,
            "WATCHDOG_USEC": "300000",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-c", HANDED_OVER, str(sock.fileno()), "--config", str(path)],
            stdout=asyncio.subprocess.DEVNULL,
            pass_fds=[sock.fileno()],
            env={**os.environ, **environ},
        )
        try:
            await until(lambda: manager.heard("READY=1"), 30)
            assert (await ask(port)).status == 200
            assert manager.heard("STATUS=serving 1 models, 2 keys") == 1
            await until(lambda: manager.heard("WATCHDOG=1") >= 3)
            process.send_signal(signal.SIGHUP)
            await until(lambda: manager.heard("RELOADING=1") and manager.heard("READY=1") == 2)
        finally:
            process.terminate()
            assert await in_time(process.wait()) == 0
        assert manager.heard("STOPPING=1") == 1
        # The socket is still open here, as it is at the service manager: callers wait for the next instance.
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            pass
