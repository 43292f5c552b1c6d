"""The response cache: what counts as the same request, who may take part, and what is kept for how long."""

import asyncio
import itertools
import json

import pytest

from citadel_llm.integration.cache.response_cache import (
    IGNORED,
    ResponseCache,
    allowed,
    complete,
    deterministic,
)
from redis_server import connected, until

PATH = "/v1/chat/completions"
BODY = {"model": "phi3", "messages": [{"role": "user", "content": "Hello, ü"}], "temperature": 0}
ANSWER = [b'{"choices": [{"index": 0}]}']
EVENTS = [b"data: {}\n\n", b"data: {}\n\ndata: {", b"}\n\n", b"data: [DONE]\n\n"]


class Counted:
    """Metrics that remember."""

    def __init__(self):
        self.seen = []

    def __getattr__(self, name):
        return lambda value: self.seen.append((name, value))

    def count(self, name):
        return sum(seen == name for seen, _ in self.seen)


def new_cache(redis, **options):
    return ResponseCache(redis, metrics=Counted(), **{"ttl_s": 60, "max_answer_bytes": 1 << 16, **options})


@pytest.fixture
async def cache(redis):
    return new_cache(redis)


def plan_of(cache, body=None, *, caller="alice", path=PATH, model="phi3", version="1", headers=(), **fields):
    text = body if isinstance(body, bytes) else json.dumps({**BODY, **(body or {}), **fields}).encode()
    return cache.plan(caller, path, model, version, text, headers)


def key_of(*arguments, **options):
    return plan_of(*arguments, **options).key


async def kept(cache, key, pieces=ANSWER, content_type=b"application/json"):
    """Store, and wait until that is done one way or the other."""
    before = len(cache.metrics.seen)
    cache.put(key, content_type, pieces)
    await until(lambda: len(cache.metrics.seen) > before, "stored or failed")


@pytest.mark.parametrize(
    ("temperature", "seed", "is_so"),
    [(0, None, True), (0.0, None, True), (-0.0, None, True), (1, 7, True), (None, 0, True), (1, None, False),
     (None, None, False), ("0", None, False), (False, None, False), (1, "7", False), (1, True, False), ([], {}, False)],
)  # fmt: skip
def test_a_request_determines_its_answer_by_temperature_nought_or_a_seed(temperature, seed, is_so):
    assert deterministic(temperature, seed) is is_so


def test_a_header_lets_others_take_part():
    assert allowed([(b"accept", b"*/*"), (b"x-citadel-cache", b"allow")])
    assert not allowed([(b"x-citadel-cache", b"please"), (b"accept", b"allow")])


async def test_the_same_request_has_the_same_key_however_it_is_spelled(cache):
    spelled = [
        json.dumps(BODY).encode(),
        json.dumps(dict(reversed(BODY.items())), indent=3).encode(),
        json.dumps(BODY, ensure_ascii=False).encode(),
        json.dumps({**BODY, "stream": False}).encode(),
        json.dumps({**BODY, "stream": None}).encode(),
        *(json.dumps({**BODY, field: "anything"}).encode() for field in sorted(IGNORED)),
    ]
    assert len({key_of(cache, text) for text in spelled}) == 1


async def test_a_name_for_a_model_has_the_models_key(cache):
    assert key_of(cache, body={"model": "an-alias"}) == key_of(cache)


async def test_whatever_may_change_the_answer_changes_the_key(cache):
    keys = {
        "as it is": key_of(cache),
        "caller": key_of(cache, caller="bob"),
        "path": key_of(cache, path="/v1/completions"),
        "model": key_of(cache, model="mixtral"),
        "version": key_of(cache, version="2"),
        "text": key_of(cache, messages=[{"role": "user", "content": "Hello, u"}]),
        "role": key_of(cache, messages=[{"role": "system", "content": "Hello, ü"}]),
        "seed": key_of(cache, seed=1),
        "large seed": key_of(cache, seed=2**63),
        "next large seed": key_of(cache, seed=2**63 + 1),
        "number": key_of(cache, top_k=1),
        "number with a point": key_of(cache, top_k=1.0),
        "number as text": key_of(cache, top_k="1"),
        "max_tokens": key_of(cache, max_tokens=5),
        "stream": key_of(cache, stream=True),
        "usage in a stream": key_of(cache, stream=True, stream_options={"include_usage": True}),
        "salt": key_of(cache, cache_salt="a"),
        "tools": key_of(cache, tools=[]),
        "unknown": key_of(cache, a_field_of_next_year=1),
    }
    for (one, first), (other, second) in itertools.combinations(keys.items(), 2):
        assert first != second, f"{one} and {other}"


async def test_fields_can_not_be_moved_between_the_parts_of_a_key(cache):
    assert key_of(cache, caller="a", path="bc") != key_of(cache, caller="ab", path="c")
    assert key_of(cache, model='phi3","1') != key_of(cache, model="phi3", version='1","')


async def test_who_sees_the_keys_can_not_test_a_guess_of_the_prompt(cache, server):
    key = key_of(cache)
    server.credentials_file.write_text(json.dumps({"user": "gateway", "password": "another"}))
    server.ask("ACL", "SETUSER", "gateway", ">another")
    async with connected(server) as redis:
        assert key_of(new_cache(redis)) != key
    assert key.startswith(b"citadel:answer:")


@pytest.mark.parametrize(
    ("value", "plan"),
    [(b"no-store", None), (b"No-Store, max-age=0", None), (b"no-cache", False), (b"max-age=0", False),
     (b"max-age=60", True), (b"", True)],
)  # fmt: skip
async def test_cache_control_is_respected(cache, value, plan):
    found = plan_of(cache, headers=[(b"cache-control", value)])
    assert (found if plan is None else found.read) == plan


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b"1",
        b'{"seed": 18446744073709551616}',
        b'{"a": ' + b"[" * 100_000,
    ],
)
async def test_what_can_not_be_read_takes_no_part(cache, text):
    assert plan_of(cache, text) is None


async def test_what_lies_at_an_address_takes_part_only_where_that_is_allowed(cache):
    def message(part):
        return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]

    remote = message({"type": "image_url", "image_url": {"url": "https://images.example/1.png"}})
    inline = message({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})
    odd = message({"type": "image_url", "image_url": 7})
    assert plan_of(cache, messages=remote) is None
    assert plan_of(cache, messages=odd) is None
    assert plan_of(cache, messages=inline) is not None
    assert plan_of(cache, messages=remote, headers=[(b"x-citadel-cache", b"allow")]) is not None
    assert plan_of(cache, messages=["?", {"content": ["?"]}]) is not None


async def test_an_answer_comes_back_in_its_very_pieces(cache):
    key = key_of(cache, stream=True)
    assert await cache.get(key) is None
    await kept(cache, key, EVENTS, b"text/event-stream; charset=utf-8")
    found = await cache.get(key)
    assert found.pieces == EVENTS
    assert found.content_type == b"text/event-stream; charset=utf-8"
    assert cache.metrics.count("stored") == 1
    assert cache.metrics.count("looked_up") == 2


async def test_an_answer_is_found_by_other_processes_too(cache, server):
    await kept(cache, key_of(cache))
    async with connected(server, timeout_s=1) as redis:
        other = new_cache(redis)
        assert (await other.get(key_of(other))).pieces == ANSWER


async def test_an_answer_lives_as_long_as_it_was_said(redis, server):
    cache = new_cache(redis, ttl_s=0.2)
    key = key_of(cache)
    await kept(cache, key)
    assert 0 < int(server.ask("PTTL", key.decode())) <= 200

    async def gone():
        return await cache.get(key) is None

    end = asyncio.get_running_loop().time() + 5
    while not await gone():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.01)


async def test_an_answer_beyond_the_size_is_not_kept(redis, server):
    cache = new_cache(redis, max_answer_bytes=1000)
    key = key_of(cache)
    cache.put(key, b"application/json", [b"x" * 1000])
    await redis.call(b"PING")  # whatever went out before this was done before it
    assert server.ask("DBSIZE") == "0"


async def test_where_memory_is_short_what_was_not_used_for_longest_makes_room(new_server):
    server = new_server(cache_memory_mb=8)
    async with connected(server, timeout_s=2, stall_s=5) as redis:
        cache = new_cache(redis)
        favourite = key_of(cache, seed=0)
        for n in range(60):
            await kept(cache, key_of(cache, seed=n), [b"x" * 50_000])
        # Redis counts the time since a key's last use in seconds.
        await until(lambda: int(server.ask("OBJECT", "IDLETIME", key_of(cache, seed=59).decode())) >= 2, "they are old")
        for n in range(100, 200):
            assert await cache.get(favourite) is not None, n
            await kept(cache, key_of(cache, seed=n), [b"x" * 50_000])
        assert cache.metrics.count("failed") == 0
        left = [n for n in range(60) if await cache.get(key_of(cache, seed=n)) is not None]
        assert 0 in left
        assert len(left) < 40


async def test_without_redis_there_is_no_plan_no_answer_and_no_error(cache, server):
    key = key_of(cache)
    server.kill()
    await until(lambda: not cache.redis.up, "seen that Redis is gone")
    assert plan_of(cache) is None
    assert await cache.get(key) is None
    cache.put(key, b"application/json", ANSWER)
    assert cache.metrics.seen == [("failed", "get"), ("failed", "set")]


@pytest.mark.parametrize("value", [b"", b"nonsense", b"\x94\x02\x00\xc4\x00\x90"])
async def test_what_is_not_ours_under_a_key_is_not_an_answer(cache, redis, value):
    key = key_of(cache)
    await redis.call(b"SET", key, value)
    assert await cache.get(key) is None


@pytest.mark.parametrize(
    ("stream", "pieces", "is_so"),
    [
        (False, ANSWER, True),
        (False, [b'{"choices": [', b'{"index": 0}]}'], True),
        (False, [b'{"choices": [{"index": 0}'], False),
        (False, [b'{"choices": []}'], False),
        (False, [b'{"error": {"message": "?"}}'], False),
        (False, [], False),
        (True, EVENTS, True),
        (True, EVENTS[:-1], False),
        (True, [*EVENTS[:-1], b'data: {"error": {}}\n\n', EVENTS[-1]], False),
        (True, [b"data: [DONE", b"]\n\n"], True),
        (True, [], False),
    ],
)
def test_only_a_whole_answer_without_an_error_is_complete(stream, pieces, is_so):
    assert complete(pieces, stream=stream) is is_so
