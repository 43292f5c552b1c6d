"""The gateway with a cache: the whole application over a scripted engine and a real Redis."""

import asyncio
import contextlib
import hashlib
import json
import time

import msgspec
import pytest

from applications import application
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.metrics import Metrics
from citadel_llm.utils.config import parse_config
from citadel_llm.utils.keys import KeyRing
from redis_server import until

KEYS = {"alice": "sk-of-alice", "bob": "sk-of-bob"}
BODY = {"model": "phi3", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
EVENTS = [
    b'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n',
    b'data: {"choices": [{"delta": {"content": "lo"}}]}\n\ndata: {"cho',
    b'ices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}\n\n',
    b"data: [DONE]\n\n",
]


class Engine:
    """An engine on loopback whose answers count up, and whose streams pause where the test says."""

    def __init__(self):
        self.calls = []
        self.hang_ups = 0
        self.status = 200
        self.events = EVENTS
        self.release = asyncio.Event()  # while it is not set, nothing is answered
        self.release.set()
        self.pause_after = None  # a stream waits for `release` after so many events
        self.cut_after = None  # and breaks off after so many
        self.plain_bytes = 0  # of padding
        self._connections = set()

    async def serve(self, reader, writer):
        task = asyncio.current_task()
        self._connections.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = next((line[16:] for line in head.split("\r\n") if line.startswith("content-length: ")), "0")
                body = await reader.readexactly(int(length))
                if head.startswith("get"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    continue
                self.calls.append(json.loads(body))
                await self._answer(self.calls[-1], reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _wait(self, reader):
        """Until released; notices when the gateway hangs up."""
        released = asyncio.ensure_future(self.release.wait())
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait((released, gone), return_when=asyncio.FIRST_COMPLETED)
        released.cancel()
        if gone.done():
            self.hang_ups += 1
            raise OSError("hung up")
        gone.cancel()
        await asyncio.wait((gone,))

    async def _answer(self, request, reader, writer):
        number = len(self.calls)
        if not request.get("stream"):
            await self._wait(reader)
            answer = {"choices": [{"n": number}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
            text = json.dumps({**answer, "padding": "x" * self.plain_bytes}).encode()
            writer.write(
                b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (self.status, len(text), text)
            )
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for count, event in enumerate([b": %d\n\n" % number, *self.events]):
            if count == self.pause_after:
                await self._wait(reader)
            if count == self.cut_after:
                raise OSError("cut")
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(0.005)  # each in a piece of its own, as a model's tokens come
        writer.write(b"0\r\n\r\n")

    async def end(self):
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


class Answered:
    """What a caller got."""

    def __init__(self):
        self.status = 0
        self.headers = {}
        self.pieces = []
        self.began = asyncio.Event()

    @property
    def body(self):
        return b"".join(self.pieces)

    @property
    def cache(self):
        return self.headers.get(b"x-citadel-cache", b"").decode()


class Log:
    """Remembers events."""

    def __init__(self):
        self.events = []

    def event(self, level, event, **fields):
        self.record(level, event, fields)

    def record(self, level, event, fields):
        self.events.append((event, fields))

    def access(self, line):
        self.events.append((line.event, msgspec.structs.asdict(line)))


class Rig:
    """The application and its engine."""

    def __init__(self, app, state, engine, log):
        self.app, self.state, self.engine, self.log = app, state, engine, log

    def begin(self, body=None, *, caller="alice", headers=(), got=None, **fields):
        """Ask; a task. It may be told to hang up by cancelling `got.hang_up`."""
        got = got or Answered()
        got.hang_up = asyncio.Event()
        text = json.dumps({**BODY, **(body or {}), **fields}).encode()
        given = [(b"authorization", b"Bearer " + KEYS[caller].encode()), *headers]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": given}
        messages = [{"type": "http.request", "body": text, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await got.hang_up.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                got.status, got.headers = message["status"], dict(message["headers"])
                got.began.set()
            elif message["body"]:
                got.pieces.append(message["body"])

        async def run():
            await self.app(scope, receive, send)
            return got

        task = asyncio.create_task(run())
        task.got = got
        return task

    async def ask(self, *arguments, **options):
        return await asyncio.wait_for(self.begin(*arguments, **options), 10)

    async def kept(self, count):
        """Wait until Redis took so many answers."""
        await until(lambda: self.sample("bytes_total", direction="stored") > 0, "an answer is kept")
        await until(lambda: self.stored() >= count, f"{count} answers are kept")

    def stored(self):
        return int(self.server.ask("DBSIZE"))

    def sample(self, name, **labels):
        found = self.state.metrics._registry.get_sample_value(f"citadel_gateway_cache_{name}", labels)
        return found or 0

    def access(self):
        return [fields for event, fields in self.log.events if event == "access"]


@contextlib.asynccontextmanager
async def rigged(server, **cache):
    engine, log = Engine(), Log()
    listening = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    config = parse_config(
        {
            "auth": {"keys_file": "-"},
            "models": {
                "phi3": {"upstreams": [{"url": f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"}]}
            },
            "cache": {
                "enabled": True, "socket": server.socket, "credentials_file": str(server.credentials_file),
                "timeout_ms": 200, **cache,
            },
        }
    )  # fmt: skip
    ring = KeyRing([(name, hashlib.sha256(key.encode()).digest()) for name, key in KEYS.items()])
    state = GatewayState(config, lambda: ring, Metrics("1"), log, instance="1", version="0")
    await state.start()
    rig = Rig(application(state), state, engine, log)
    rig.server = server
    try:
        await until(lambda: state.cache is None or state.cache.redis.up, "connected")
        yield rig
    finally:
        engine.release.set()
        await state.stop()
        listening.close()
        await engine.end()


@pytest.fixture
async def rig(server):
    async with rigged(server) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_given_again_byte_by_byte(rig, stream):
    asked = {"stream": stream, "stream_options": {"include_usage": True}} if stream else {}
    first = await rig.ask(**asked)
    await rig.kept(1)
    second = await rig.ask(**asked, user="somebody", headers=[(b"x-request-id", b"mine")])
    assert (first.cache, second.cache) == ("miss", "hit")
    assert second.pieces == first.pieces
    assert len(first.pieces) == (5 if stream else 1)
    assert len(rig.engine.calls) == 1
    assert second.status == 200
    assert second.headers[b"content-type"] == first.headers[b"content-type"]
    assert second.headers.get(b"content-length") == first.headers.get(b"content-length")
    assert second.headers[b"x-citadel-model"] == b"phi3"
    assert second.headers[b"x-request-id"] == b"mine" != first.headers[b"x-request-id"]
    assert b"age" in second.headers
    assert [line["cache"] for line in rig.access()] == ["miss", "hit"]
    assert [line["completion_tokens"] for line in rig.access()] == [3, None], "used once, written down once"


async def test_callers_do_not_see_each_others_answers(rig):
    first = await rig.ask(caller="alice")
    await rig.kept(1)
    second = await rig.ask(caller="bob")
    assert second.cache == "miss"
    assert second.body != first.body


async def test_a_plain_answer_is_none_for_a_stream(rig):
    await rig.ask()
    await rig.kept(1)
    assert (await rig.ask(stream=True)).cache == "miss"


async def test_what_is_not_determined_takes_part_only_where_the_caller_allows_it(rig):
    assert [(await rig.ask(temperature=1)).cache for _ in range(2)] == ["bypass", "bypass"]
    assert rig.stored() == 0
    allow = {"temperature": 1, "headers": [(b"x-citadel-cache", b"allow")]}
    first = await rig.ask(**allow)
    await rig.kept(1)
    assert [first.cache, (await rig.ask(**allow)).cache] == ["miss", "hit"]


async def test_no_store_neither_reads_nor_writes(rig):
    headers = [(b"cache-control", b"no-store")]
    assert (await rig.ask(headers=headers)).cache == "bypass"
    assert rig.stored() == 0
    await rig.ask()
    await rig.kept(1)
    assert (await rig.ask(headers=headers)).cache == "bypass"
    assert len(rig.engine.calls) == 3


async def test_no_cache_asks_afresh_and_keeps_what_comes(rig):
    await rig.ask()
    await rig.kept(1)
    fresh = await rig.ask(headers=[(b"cache-control", b"no-cache")])
    assert fresh.cache == "store"
    assert len(rig.engine.calls) == 2
    await until(lambda: rig.sample("bytes_total", direction="stored") > len(fresh.body) * 2, "kept")
    assert (await rig.ask()).body == fresh.body


async def test_an_error_is_not_kept(rig):
    rig.engine.status = 500
    assert (await rig.ask()).status == 500
    rig.engine.status = 200
    answered = await rig.ask()
    assert (answered.status, answered.cache) == (200, "miss")


async def test_a_stream_that_broke_off_or_holds_an_error_is_not_kept(rig):
    rig.engine.cut_after = 3
    broken = await rig.ask(stream=True)
    assert b'"code":"upstream_error"' in broken.body
    rig.engine.cut_after = None
    rig.engine.events = [EVENTS[0], b'data: {"error": {"message": "?"}}\n\n', EVENTS[-1]]
    assert (await rig.ask(stream=True)).cache == "miss"
    rig.engine.events = EVENTS
    assert (await rig.ask(stream=True)).cache == "miss"
    assert len(rig.engine.calls) == 3


async def test_what_is_too_large_is_answered_and_not_kept(server):
    async with rigged(server, max_answer_bytes=2000) as rig:
        rig.engine.plain_bytes = 5000
        for _ in range(2):
            answered = await rig.ask()
            assert (answered.status, answered.cache) == (200, "miss")
            assert len(answered.body) > 5000


async def test_a_kept_answer_is_given_while_the_model_is_down(rig):
    kept = await rig.ask()
    await rig.kept(1)
    model = rig.state.models["phi3"]
    for engine in model.engines:
        rig.state.engine_failed(model, engine, "gone")
    assert (await rig.ask()).body == kept.body
    assert (await rig.ask(seed=5)).status == 503


# -- identical requests at the same time -------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_identical_requests_at_once_are_one_call(rig, stream):
    rig.engine.release.clear()
    rig.engine.pause_after = 2
    asking = [rig.begin(stream=stream) for _ in range(10)]
    await until(lambda: rig.engine.calls, "the engine is asked")
    if stream:
        await until(lambda: all(len(task.got.pieces) == 2 for task in asking), "all have the first pieces")
    late = rig.begin(stream=stream)
    rig.engine.release.set()
    answered = await asyncio.gather(*asking, late)
    assert len(rig.engine.calls) == 1
    assert len({answer.body for answer in answered}) == 1
    assert answered[-1].pieces == answered[0].pieces
    assert [answer.cache for answer in answered].count("miss") == 1
    assert [answer.cache for answer in answered].count("hit") == 10
    assert len({answer.headers[b"x-request-id"] for answer in answered}) == 11
    assert sum(line["completion_tokens"] or 0 for line in rig.access()) == 3, "used once, written down once"
    assert rig.sample("requests_total", outcome="shared") == 10


async def test_one_call_takes_one_place_at_the_model(rig):
    rig.engine.release.clear()
    asking = [rig.begin() for _ in range(10)]
    await until(lambda: rig.engine.calls, "the engine is asked")
    assert rig.state.models["phi3"].in_flight == 1
    rig.engine.release.set()
    await asyncio.gather(*asking)


async def test_requests_of_other_callers_are_calls_of_their_own(rig):
    rig.engine.release.clear()
    asking = [rig.begin(caller="alice"), rig.begin(caller="bob")]
    await until(lambda: len(rig.engine.calls) == 2, "both are asked")
    rig.engine.release.set()
    await asyncio.gather(*asking)


@pytest.mark.parametrize("leaver", [0, 1])
async def test_one_that_hangs_up_does_not_disturb_the_other(rig, leaver):
    rig.engine.release.clear()
    rig.engine.pause_after = 2
    asking = [rig.begin(stream=True), rig.begin(stream=True)]
    await until(lambda: all(len(task.got.pieces) == 2 for task in asking), "both have the first pieces")
    leaving, staying = asking[leaver], asking[1 - leaver]
    leaving.got.hang_up.set()
    await asyncio.wait_for(leaving, 5)
    rig.engine.release.set()
    answered = await asyncio.wait_for(staying, 5)
    assert answered.body.endswith(b"data: [DONE]\n\n")
    assert (len(rig.engine.calls), rig.engine.hang_ups) == (1, 0)
    assert sorted(line["status"] for line in rig.access()) == [200, 499]


async def test_when_all_hang_up_the_engine_is_told(rig):
    rig.engine.release.clear()
    rig.engine.pause_after = 2
    asking = [rig.begin(stream=True), rig.begin(stream=True)]
    await until(lambda: all(len(task.got.pieces) == 2 for task in asking), "both have the first pieces")
    for task in asking:
        task.got.hang_up.set()
    await asyncio.gather(*asking)
    await until(lambda: rig.engine.hang_ups == 1, "the engine sees the connection end")
    assert rig.state.models["phi3"].in_flight == 0
    assert len(rig.state.sweeper) == 0


async def test_a_failed_call_lets_its_followers_go_on_their_own(rig):
    rig.engine.release.clear()
    asking = [rig.begin(), rig.begin()]
    await until(lambda: rig.engine.calls, "the engine is asked")
    await until(lambda: len(rig.state.sweeper) == 3, "the second follows")
    statuses = iter([500, 500, 200])  # a second attempt is the leader's own
    answer = rig.engine._answer

    async def failing_first(*arguments):
        rig.engine.status = next(statuses)
        await answer(*arguments)

    rig.engine.status, rig.engine._answer = next(statuses), failing_first
    rig.engine.release.set()
    answered = await asyncio.gather(*asking)
    assert sorted(answer.status for answer in answered) == [200, 500]
    assert len(rig.engine.calls) == 3


async def test_an_error_of_the_request_is_everyones(rig):
    rig.engine.release.clear()
    rig.engine.status = 400
    asking = [rig.begin(), rig.begin()]
    await until(lambda: rig.engine.calls, "the engine is asked")
    await until(lambda: len(rig.state.sweeper) == 3, "the second follows")
    rig.engine.release.set()
    answered = await asyncio.gather(*asking)
    assert [answer.status for answer in answered] == [400, 400]
    assert len(rig.engine.calls) == 1


async def test_a_stream_that_breaks_off_tells_everyone(rig):
    rig.engine.release.clear()
    rig.engine.pause_after = rig.engine.cut_after = 2
    asking = [rig.begin(stream=True), rig.begin(stream=True)]
    await until(lambda: all(len(task.got.pieces) == 2 for task in asking), "both have the first pieces")
    rig.engine.release.set()
    for answered in await asyncio.gather(*asking):
        assert b'"code":"upstream_error"' in answered.body
    assert len(rig.engine.calls) == 1


async def test_without_single_flight_each_asks(server):
    async with rigged(server, single_flight=False) as rig:
        rig.engine.release.clear()
        asking = [rig.begin(), rig.begin()]
        await until(lambda: len(rig.engine.calls) == 2, "both are asked")
        rig.engine.release.set()
        await asyncio.gather(*asking)


# -- trouble with Redis ------------------------------------------------------------------------------------------


async def load(rig, answered, ends):
    async def one(number):
        while not ends.is_set():
            began = time.monotonic()
            got = await rig.ask(seed=number)
            answered.append((got, time.monotonic() - began))

    await asyncio.gather(*(one(n) for n in range(8)))


@pytest.mark.parametrize("trouble", ["kill", "hang"])
async def test_without_redis_answers_go_on_and_with_it_again_they_are_kept_again(server, trouble):
    async with rigged(server, timeout_ms=20) as rig:
        answered, ends = [], asyncio.Event()
        task = asyncio.create_task(load(rig, answered, ends))
        await until(lambda: any(got.cache == "hit" for got, _ in answered), "answers come from the cache")
        getattr(server, trouble)()
        del answered[:]
        # So many that those which the machine itself held up, eight each time, are few among them.
        await until(lambda: sum(got.cache == "bypass" for got, _ in answered) > 1000, "answers go past the cache")
        late = [took for got, took in answered if took > 0.05]
        assert len(late) <= len(answered) * 0.1, sorted(late)
        {"kill": server.start, "hang": server.go_on}[trouble]()
        del answered[:]
        await until(lambda: any(got.cache == "hit" for got, _ in answered), "the cache is back by itself")
        ends.set()
        await asyncio.wait_for(task, 10)
        assert {fields["status"] for fields in rig.access()} == {200}
        changes = [fields["up"] for event, fields in rig.log.events if event == "cache_state"]
        assert changes[:3] == [True, False, True]


async def test_without_a_cache_nothing_changes(server):
    async with rigged(server, enabled=False) as rig:
        assert [(await rig.ask()).cache for _ in range(2)] == ["bypass", "bypass"]
        assert len(rig.engine.calls) == 2
