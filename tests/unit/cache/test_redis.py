"""The Redis client: many calls in flight, and none that waits for a Redis that is not there."""

import asyncio
import json
import os
import statistics
import time

import pytest

from citadel_llm.integration.cache.connection import CacheUnavailable, CommandRefused
from citadel_llm.integration.cache.pubsub import Listener
from citadel_llm.integration.cache.redis import Options, Script, load_credentials
from redis_server import PASSWORD, connected, until

FAST_S = 0.05  # what a call may take at most when Redis does not answer
COUNT_UP = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


async def outcome(redis, *words):
    """A call's reply or its failure, and how long that took."""
    began = time.monotonic()
    try:
        said = await redis.call(*words)
    except CacheUnavailable as error:
        said = error
    return said, time.monotonic() - began


async def test_replies_go_to_the_calls_that_they_answer(redis):
    async def one(number):
        key = f"citadel:{number}"
        await redis.call(b"SET", key, f"value {number}")
        return await redis.call(b"GET", key)

    assert await asyncio.gather(*(one(n) for n in range(500))) == [f"value {n}".encode() for n in range(500)]


async def test_calls_of_one_tick_go_out_in_one_write(redis, monkeypatch):
    writes = []
    transport = redis.connection._transport

    class Counting:
        def write(self, data):
            writes.append(bytes(data))
            transport.write(data)

    monkeypatch.setattr(redis.connection, "_transport", Counting())
    replies = await asyncio.gather(*(redis.call(b"PING") for _ in range(100)))
    monkeypatch.undo()
    assert replies == [b"PONG"] * 100
    assert [write.count(b"PING") for write in writes] == [100]


async def test_a_call_whose_caller_leaves_does_not_disturb_the_others(redis):
    await redis.call(b"SET", b"citadel:a", b"1")
    leaving = asyncio.ensure_future(redis.call(b"GET", b"citadel:none"))
    staying = redis.call(b"GET", b"citadel:a")
    leaving.cancel()
    assert await staying == b"1"


async def test_a_large_value_comes_back_as_it_was(redis):
    value = bytes(range(256)) * 8192
    await redis.call(b"SET", b"citadel:large", value)
    assert await redis.call(b"GET", b"citadel:large") == value


async def test_a_refusal_is_the_failure_of_its_own_call_alone(redis):
    refused, good = redis.call(b"GET", b"other:key"), redis.call(b"PING")
    with pytest.raises(CommandRefused) as failure:
        await refused
    assert failure.value.code == "NOPERM"
    assert await good == b"PONG"


@pytest.mark.parametrize(
    "words",
    ["KEYS *", "FLUSHALL", "CONFIG GET *", "ACL LIST", "EVAL return 0", "SHUTDOWN", "MONITOR", "DUMP citadel:x",
     "SET x y", "PUBLISH other x", "CLIENT LIST", "MODULE LIST", "REPLICAOF 127.0.0.1 1", "SAVE", "INFO"],
)  # fmt: skip
async def test_the_gateways_user_may_do_nothing_else(redis, words):
    said, _ = await outcome(redis, *words.split())
    assert isinstance(said, CommandRefused), said
    assert said.code == "NOPERM"


async def test_a_script_is_loaded_once_and_again_after_redis_forgot_it(redis, server):
    assert await redis.run(COUNT_UP, ["citadel:n"], [2]) == 2
    assert await redis.run(COUNT_UP, ["citadel:n"], [2]) == 4
    server.ask("SCRIPT", "FLUSH")
    assert await redis.run(COUNT_UP, ["citadel:n"], [2]) == 6


async def test_a_script_may_do_no_more_than_its_user(redis):
    with pytest.raises(CommandRefused):
        await redis.run(Script("return redis.call('KEYS', '*')"), [])
    with pytest.raises(CommandRefused):
        await redis.run(COUNT_UP, ["other:n"], [1])


async def test_calls_beyond_the_bound_fail_at_once_and_the_others_succeed(server):
    async with connected(server, timeout_s=1, max_in_flight=10) as redis:
        calls = [redis.call(b"PING") for _ in range(10)]
        with pytest.raises(CacheUnavailable):
            redis.call(b"PING")
        assert await asyncio.gather(*calls) == [b"PONG"] * 10
        assert await redis.call(b"PING") == b"PONG"


async def test_bytes_beyond_the_bound_are_not_taken(server):
    async with connected(server, timeout_s=1, max_queued_bytes=1 << 16) as redis:
        with pytest.raises(CacheUnavailable):
            redis.call(b"SET", b"citadel:x", b"x" * (1 << 17))
        assert await redis.call(b"PING") == b"PONG"


async def load(redis, results, ends):
    """Callers that go on calling until `ends` is set; what each call came to."""

    async def one(number):
        while not ends.is_set():
            results.append(await outcome(redis, b"GET", f"citadel:{number}"))
            await asyncio.sleep(0.002)

    await asyncio.gather(*(one(n) for n in range(20)))


async def under_load(redis, trouble, mend, server):
    """Break Redis while calls go on, mend it; the failed calls' times, and that it came back by itself."""
    results, ends = [], asyncio.Event()
    task = asyncio.create_task(load(redis, results, ends))
    await until(lambda: len(results) > 100, "calls are answered")
    assert all(said is None for said, _ in results)
    results.clear()
    trouble()
    await until(lambda: len([1 for said, _ in results if isinstance(said, CacheUnavailable)]) > 500, "calls fail")
    failed = [took for said, took in results if isinstance(said, CacheUnavailable)]
    mend()
    results.clear()
    await until(lambda: any(said is None for said, _ in results), "calls are answered again")
    ends.set()
    await asyncio.wait_for(task, 5)
    return failed


def assert_fast(failed):
    # All but those that the machine itself held up: the test shares it.
    late = [took for took in failed if took > FAST_S]
    assert statistics.median(failed) < FAST_S / 2
    assert len(late) <= len(failed) * 0.05, sorted(late)[-10:]


async def test_a_killed_redis_fails_calls_fast_and_comes_back_by_itself(server):
    async with connected(server) as redis:
        assert_fast(await under_load(redis, server.kill, server.start, server))
        assert [up for up, _ in redis.changes][:3] == [True, False, True]


async def test_a_hanging_redis_fails_calls_fast_and_comes_back_by_itself(server):
    async with connected(server) as redis:
        failed = await under_load(redis, server.hang, server.go_on, server)
        assert_fast(failed)
        # The first calls wait out their time limit; then the connection is given up, and calls fail at once.
        assert statistics.median(failed[-100:]) < 0.005


async def test_a_slow_answer_fails_one_call_and_keeps_the_connection(server):
    async with connected(server, timeout_s=0.05, stall_s=60) as redis:
        connection = redis.connection
        server.hang()
        said, took = await outcome(redis, b"GET", b"citadel:x")
        server.go_on()
        assert isinstance(said, CacheUnavailable)
        assert took >= 0.05
        await until(lambda: not connection._pending, "the late reply is taken off")
        assert await redis.call(b"SET", b"citadel:x", b"1") == b"OK"
        assert await redis.call(b"GET", b"citadel:x") == b"1"
        assert redis.connection is connection


async def test_a_busy_gateway_does_not_take_its_own_delay_for_redis(server):
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()

    def hold_up():  # as the handling of another connection's bytes may
        os.read(reading, 1)
        time.sleep(0.1)

    loop.add_reader(reading, hold_up)
    try:
        async with connected(server, timeout_s=0.02, stall_s=0.06) as redis:
            for _ in range(10):
                call = redis.call(b"PING")
                await asyncio.sleep(0)  # it is written
                os.write(writing, b"x")
                assert await call == b"PONG"
    finally:
        loop.remove_reader(reading)
        os.close(reading)
        os.close(writing)


async def test_without_redis_a_client_starts_all_the_same(tmp_path, server):
    server.kill()
    async with connected(server, wait=False) as redis:
        said, took = await outcome(redis, b"PING")
        assert isinstance(said, CacheUnavailable)
        assert took < FAST_S
        await until(lambda: redis.changes, "told that there is no Redis")
        assert redis.changes[0][0] is False
        server.start()
        await until(lambda: redis.up, "connected")


async def test_a_wrong_password_is_told_and_a_changed_one_is_read(server):
    good = server.credentials_file.read_text()
    server.credentials_file.write_text(json.dumps({"user": "gateway", "password": "wrong"}))
    async with connected(server, wait=False) as redis:
        await until(lambda: redis.changes, "told why there is no connection")
        assert "WRONGPASS" in redis.changes[0][1]
        server.credentials_file.write_text(good)
        await until(lambda: redis.up, "connected with what is in the file now")


@pytest.mark.parametrize("text", ["", "{}", '{"user": "gateway"}', "not json", f'"{PASSWORD}"', '{"password": 1}'])
def test_unusable_credentials_are_refused_without_a_word_of_them(tmp_path, text):
    path = tmp_path / "account.json"
    path.write_text(text)
    with pytest.raises(CacheUnavailable) as failure:
        load_credentials(path)
    assert str(path) in str(failure.value)
    assert PASSWORD not in str(failure.value)


def test_credentials_do_not_show_their_password(server):
    assert PASSWORD not in repr(load_credentials(server.credentials_file))


async def test_after_a_stop_nothing_is_left(server):
    async with connected(server) as redis:
        call = redis.call(b"GET", b"citadel:x")
    with pytest.raises(CacheUnavailable):
        await call
    with pytest.raises(CacheUnavailable):
        redis.call(b"PING")
    await until(lambda: server.ask("CLIENT", "LIST").count("user=gateway") == 0, "the connection is closed")


async def test_a_listener_hears_messages_and_is_told_of_each_gap(server):
    heard, gaps = [], []
    listener = Listener(
        server.socket, server.load_credentials, Options(), ["citadel:keys", "citadel:other"],
        on_message=lambda channel, payload: heard.append((channel, payload)), on_gap=lambda: gaps.append(1),
    )  # fmt: skip
    listener.start()
    try:
        await until(lambda: len(gaps) == 1, "listening")
        async with connected(server, timeout_s=1) as redis:
            assert await redis.call(b"PUBLISH", b"citadel:keys", b"revoked") == 1
            await until(lambda: heard == [("citadel:keys", b"revoked")], "heard")
            server.kill()
            server.start()
            await until(lambda: len(gaps) == 2 and redis.up, "listening again")
            assert await redis.call(b"PUBLISH", b"citadel:other", b"x") == 1
            await until(lambda: heard[-1] == ("citadel:other", b"x"), "heard again")
    finally:
        await listener.stop()
