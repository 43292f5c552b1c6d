"""The gateway in front of replicas that die, fail, hang and are too slow."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

from citadel_llm.api.upstream.prober import waiting_in

from .replicas import Answer, gateway, replicas, until


async def load(caller, workers: int, seconds: float, **ask) -> list[Answer]:
    """Ask without a pause from `workers` callers at once for so long; all answers."""
    end = asyncio.get_running_loop().time() + seconds
    answers: list[Answer] = []

    async def work() -> None:
        while asyncio.get_running_loop().time() < end:
            answers.append(await caller.ask(**ask))

    await asyncio.gather(*(work() for _ in range(workers)))
    return answers


async def until_ejected(caller, replica) -> None:
    async with asyncio.timeout(5):
        while not caller.metric("ejections_total", model="m", engine=replica.address):
            await caller.ask()


# Replicas


@pytest.mark.parametrize("stream", [False, True])
async def test_given_two_replicas_under_load_when_one_is_killed_then_no_request_fails_that_had_not_begun(
    stream,
) -> None:
    async with replicas("a", "b") as (a, b), gateway({"m": {"upstreams": [a, b]}}) as caller:
        a.delay_s = b.delay_s = 0.02
        work = asyncio.create_task(load(caller, 16, 1.2, stream=stream))
        await until(lambda: len(a.requests) > 30 and a.open > 3)
        a.kill()
        answers = await work
        assert {answer.status for answer in answers} == {200}
        assert all(answer.complete for answer in answers)
        assert caller.metric("retries_total", model="m") > 0


async def test_given_a_killed_replica_when_it_is_back_then_it_gets_its_share_slowly() -> None:
    config = {"balance": {"slow_start_s": 30}}
    async with replicas("a", "b") as (a, b), gateway({"m": {"upstreams": [a, b]}}, **config) as caller:
        a.kill()
        await until(lambda: len(caller.state.models["m"].candidates) == 1)
        await a.start()
        await until(lambda: len(caller.state.models["m"].candidates) == 2)
        a.requests.clear()
        b.requests.clear()
        a.delay_s = b.delay_s = 0.01
        await load(caller, 12, 0.5)
        assert 0 < len(a.requests) < len(b.requests) / 2


async def test_given_replicas_of_unlike_speed_when_asked_then_the_slow_one_gets_less() -> None:
    async with replicas("fast", "slow") as (fast, slow), gateway({"m": {"upstreams": [fast, slow]}}) as caller:
        fast.delay_s, slow.delay_s = 0.005, 0.1
        await load(caller, 16, 0.8)
        assert len(fast.requests) > 3 * len(slow.requests)


async def test_given_a_replica_with_requests_waiting_inside_when_asked_then_others_are_preferred() -> None:
    async with replicas("a", "b") as (a, b), gateway({"m": {"upstreams": [a, b]}}) as caller:
        a.waiting = 50
        await until(lambda: caller.state.models["m"].engines[0].waiting == 50)
        for _ in range(20):
            await caller.ask()
        assert (len(a.requests), len(b.requests)) == (0, 20)


def test_what_waits_in_all_parts_of_an_engine_is_added_up() -> None:
    text = (
        b"# HELP vllm:num_requests_waiting Number\n# TYPE vllm:num_requests_waiting gauge\n"
        b'vllm:num_requests_waiting{engine="0",model_name="m"} 3.0\n'
        b'vllm:num_requests_waiting{engine="1",model_name="m"} 1e+01\n'
        b'vllm:num_requests_waiting_by_reason{engine="0"} 99.0\nvllm:num_requests_running{engine="0"} 7.0\n'
    )
    assert waiting_in(text) == 13


async def test_given_a_replica_that_answers_503_when_asked_then_another_answers_and_it_is_left_out() -> None:
    async with replicas("a", "b") as (a, b), gateway({"m": {"upstreams": [a, b]}}) as caller:
        a.status = 503
        answers = [await caller.ask() for _ in range(60)]
        assert {answer.status for answer in answers} == {200}
        assert caller.metric("ejections_total", model="m", engine=a.address) == 1
        assert len(a.requests) < 10


async def test_given_the_only_replica_failing_when_asked_often_then_its_breaker_opens_and_closes_again() -> None:
    config = {"breaker": {"open_s": 0.3, "min_requests": 5}, "retry": {"attempts": 1}}
    async with replicas("a") as (a,), gateway({"m": {"upstreams": [a]}}, **config) as caller:
        a.status = 500
        states = [(await caller.ask()).status for _ in range(8)]
        assert states == [500] * 5 + [503] * 3
        assert len(a.requests) == 5
        assert caller.metric("breaker_state", model="m", engine=a.address) == 2
        assert (await caller.get("/health")).json()["models"]["m"]["engines"][0]["breaker"] == "open"
        refused = await caller.ask()
        assert (refused.code, refused.headers["retry-after"]) == ("model_unavailable", "1")
        a.status = 200
        await until(lambda: caller.metric("breaker_state", model="m", engine=a.address) == 1)
        assert [(await caller.ask()).status for _ in range(2)] == [200, 200]
        assert caller.metric("breaker_state", model="m", engine=a.address) == 0


async def test_given_a_replica_that_breaks_off_before_the_first_byte_when_asked_then_another_answers() -> None:
    async with replicas("a", "b") as (a, b), gateway({"m": {"upstreams": [a, b]}}) as caller:
        a.breaks_after_head = True
        answers = [await caller.ask(stream=True) for _ in range(10)]
        assert all(b'"replica":"b"' in answer.body for answer in answers)


async def test_given_a_replica_that_takes_no_connection_when_asked_then_another_answers_after_the_connect_timeout() -> (
    None
):
    config = {"timeouts": {"connect_s": 0.1}, "probe": {"interval_s": 60}}
    async with replicas("a", "b") as (a, b), gateway({"m": {"upstreams": [a, b]}}, **config) as caller:
        black_hole = caller.state.models["m"].engines[0]
        black_hole.open = lambda: asyncio.sleep(60)
        answers = await asyncio.gather(*(caller.ask() for _ in range(8)))
        assert {(answer.status, answer.json()["replica"]) for answer in answers} == {(200, "b")}
        assert not black_hole.reachable
        assert "no connection within 0.1 s" in black_hole.last_error


async def test_given_a_replica_that_hangs_when_requests_time_out_then_it_is_left_out() -> None:
    config = {"timeouts": {"first_byte_s": 0.1}, "ejection": {"failures": 3}}
    async with replicas("a", "b") as (a, b), gateway({"m": {"upstreams": [a, b]}}, **config) as caller:
        a.hangs = True
        first = await asyncio.gather(*(caller.ask() for _ in range(12)))
        assert {answer.status for answer in first} == {200, 504}
        assert caller.metric("ejections_total", model="m", engine=a.address) == 1
        assert {(await caller.ask()).status for _ in range(10)} == {200}


async def test_given_an_ejected_replica_when_all_others_go_then_it_is_used_again() -> None:
    config = {"ejection": {"base_s": 60, "max_s": 60}}
    async with replicas("a", "b") as (a, b), gateway({"m": {"upstreams": [a, b]}}, **config) as caller:
        a.status = 503
        await until_ejected(caller, a)
        a.status = 200
        b.kill()
        assert {(await caller.ask()).json()["replica"] for _ in range(5)} == {"a"}


async def test_given_every_replica_breaking_when_asked_then_attempts_and_budget_bound_the_retries() -> None:
    config = {
        "retry": {"attempts": 3, "budget_burst": 4, "budget_floor_per_s": 0, "budget_share": 0.1, "base_s": 0.001}
    }
    config["breaker"] = {"min_requests": 1000, "window": 1000}
    async with replicas("a", "b") as (a, b), gateway({"m": {"upstreams": [a, b]}}, **config) as caller:
        a.breaks = b.breaks = True
        answers = [await caller.ask() for _ in range(20)]
        assert {answer.status for answer in answers} == {503}
        sent = len(a.requests) + len(b.requests)
        assert 24 <= sent <= 20 + 4 + 0.1 * 20
        assert caller.metric("retries_denied_total", model="m") > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_given_callers_that_hang_up_when_one_works_and_one_waits_then_both_places_are_free_again(stream) -> None:
    async with replicas("a") as (a,), gateway({"m": {"upstreams": [a], "concurrency": 1}}) as caller:
        a.hangs = True
        admission = caller.state.models["m"].admission
        asks = [asyncio.create_task(caller.ask(stream=stream)) for _ in range(2)]
        await until(lambda: a.open == 1 and admission.waiting == 1)
        caller.gone.set()
        assert {answer.status for answer in await asyncio.gather(*asks)} == {0}
        await until(lambda: a.hung_up == 1, within_s=1.0)
        assert (admission.inside, admission.waiting) == (0, 0)
        assert caller.state.models["m"].engines[0].in_flight == 0
        assert caller.metric("breaker_state", model="m", engine=a.address) == 0


# Policies


async def test_given_the_session_policy_when_a_session_asks_then_one_replica_answers_it_always() -> None:
    models = {"m": {"policy": "session"}}
    async with replicas("a", "b", "c") as found:
        models["m"]["upstreams"] = found
        async with gateway(models) as caller:
            by_session = {}
            for session in range(12):
                headers = {"x-citadel-session": f"s{session}"}
                by_session[session] = {(await caller.ask(headers=headers)).json()["replica"] for _ in range(4)}
                by_user = {(await caller.ask(user=f"s{session}")).json()["replica"] for _ in range(2)}
                assert by_user == by_session[session]
            assert {len(answering) for answering in by_session.values()} == {1}
            assert len(set.union(*by_session.values())) == 3


async def test_given_the_prefix_policy_when_prompts_begin_alike_then_one_replica_answers_them() -> None:
    system = {"role": "system", "content": "You are terse. " * 80}
    async with replicas("a", "b", "c") as found, gateway({"m": {"upstreams": found, "policy": "prefix"}}) as caller:
        answering = set()
        for n in range(10):
            messages = [system, {"role": "user", "content": f"Question {n}"}]
            answering.add((await caller.ask(messages=messages)).json()["replica"])
        assert len(answering) == 1


# Overload


async def test_given_four_times_the_load_when_it_lasts_then_the_queue_is_bounded_and_the_admitted_are_quick() -> None:
    # 4 places of 20 ms: 200 requests a second; 32 callers who ask without a pause and retry at once.
    models = {"m": {"concurrency": 4}}
    async with replicas("a") as (a,):
        a.delay_s = 0.02
        models["m"]["upstreams"] = [a]
        async with gateway(models, limits={"queue": 8}) as caller:
            admission = caller.state.models["m"].admission
            await caller.ask()  # so that the service rate is known
            most = 0

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, admission.waiting)
                    await asyncio.sleep(0.001)

            watcher = asyncio.create_task(watch())
            end = asyncio.get_running_loop().time() + 1.5
            answers: list[Answer] = []

            async def work() -> None:
                while asyncio.get_running_loop().time() < end:
                    answers.append(await caller.ask())
                    if answers[-1].status != 200:
                        await asyncio.sleep(0.02)

            await asyncio.gather(*(work() for _ in range(32)))
            watcher.cancel()
        admitted = sorted(answer.seconds for answer in answers if answer.status == 200)
        refused = [answer for answer in answers if answer.status != 200]
        assert most <= 8
        assert a.most_open <= 4
        assert {answer.status for answer in refused} <= {429, 503}
        assert len(refused) > 50
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        assert len(admitted) > 100
        p99 = admitted[math.ceil(len(admitted) * 0.99) - 1]
        assert p99 < 0.4, "8 that wait, 4 at once, 20 ms each: 60 ms, and room for a slow machine"


async def test_given_a_greedy_caller_when_another_asks_then_it_is_served_among_the_first() -> None:
    async with replicas("a") as (a,):
        a.delay_s = 0.03
        async with gateway({"m": {"upstreams": [a], "concurrency": 1}}) as caller:
            greedy = [asyncio.create_task(caller.ask(key="alice")) for _ in range(20)]
            await until(lambda: caller.state.models["m"].admission.waiting == 19)
            modest = await caller.ask(key="bob")
            assert modest.status == 200
            assert sum(task.done() for task in greedy) <= 4
            for task in greedy:
                task.cancel()
            await asyncio.gather(*greedy, return_exceptions=True)
            await until(lambda: caller.state.models["m"].admission.inside == 0)


async def test_given_a_wait_longer_than_the_deadline_when_a_request_comes_then_it_is_refused_at_once() -> None:
    async with replicas("a") as (a,):
        a.delay_s = 0.2
        async with gateway({"m": {"upstreams": [a], "concurrency": 1}}, limits={"wait_factor": 100}) as caller:
            await caller.ask()  # so that the service rate is known
            tasks = [asyncio.create_task(caller.ask()) for _ in range(6)]
            admission = caller.state.models["m"].admission
            await until(lambda: admission.waiting == 5)
            before = admission.rate_per_s
            refused = await caller.ask(headers={"x-citadel-deadline-ms": "500"})
            assert (refused.status, refused.code) == (503, "overloaded")
            assert refused.seconds < 0.4, "it did not wait for its deadline"
            # Five that wait and this one, 0.2 s each, or as much longer as the first took on a busy machine.
            told = int(refused.headers["retry-after"])
            assert told >= 2
            assert told in {math.ceil(6 / before), math.ceil(6 / admission.rate_per_s)}
            assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}


# Deadlines


@pytest.mark.parametrize("stream", [False, True])
async def test_given_a_deadline_when_the_replica_is_slower_then_504_comes_in_time(stream) -> None:
    async with replicas("a") as (a,), gateway({"m": {"upstreams": [a]}}) as caller:
        a.hangs = True
        answer = await caller.ask(headers={"x-citadel-deadline-ms": "150"}, stream=stream)
        assert (answer.status, answer.code) == (504, "deadline_exceeded")
        assert 0.14 < answer.seconds < 1


async def test_given_a_deadline_when_a_stream_runs_into_it_then_its_last_event_says_so() -> None:
    async with replicas("a") as (a,), gateway({"m": {"upstreams": [a]}}) as caller:
        a.piece_s = 0.5
        answer = await caller.ask(headers={"x-citadel-deadline-ms": "1200"}, stream=True)
        assert answer.status == 200
        assert json.loads(answer.body.strip().split(b"data: ")[-1])["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", "9" * 12, ""])
async def test_a_deadline_that_is_no_number_of_milliseconds_is_refused(value: str) -> None:
    async with replicas("a") as (a,), gateway({"m": {"upstreams": [a]}}) as caller:
        answer = await caller.ask(headers={"x-citadel-deadline-ms": value})
        assert (answer.status, answer.code) == (400, "invalid_deadline")


async def test_a_callers_short_deadline_does_not_speak_against_the_replica() -> None:
    async with replicas("a") as (a,), gateway({"m": {"upstreams": [a]}}) as caller:
        a.hangs = True
        asks = [caller.ask(headers={"x-citadel-deadline-ms": "50"}) for _ in range(20)]
        assert {answer.status for answer in await asyncio.gather(*asks)} == {504}
        assert caller.metric("breaker_state", model="m", engine=a.address) == 0


# Fallback, aliases, auto, explain


async def test_given_a_model_down_when_asked_then_its_fallback_answers_and_says_so() -> None:
    async with replicas("a", "b") as (a, b):
        models = {"mixtral": {"upstreams": [a], "fallback": ["phi3"]}, "phi3": {"upstreams": [b]}}
        async with gateway(models) as caller:
            a.kill()
            await until(lambda: not caller.state.models["mixtral"].candidates)
            answer = await caller.ask("mixtral", temperature=0.50)
            assert (answer.status, answer.json()["replica"]) == (200, "b")
            assert answer.headers["x-citadel-model"] == "phi3"
            assert answer.headers["x-citadel-fallback"] == "from=mixtral"
            assert b.requests[0]["model"] == "phi3"
            assert caller.metric("fallbacks_total", model="mixtral", answered_by="phi3") == 1


async def test_given_a_replica_that_dies_with_the_request_when_there_is_no_other_then_the_fallback_answers_it() -> None:
    async with replicas("a", "b") as (a, b):
        models = {"mixtral": {"upstreams": [a], "fallback": ["phi3"]}, "phi3": {"upstreams": [b]}}
        async with gateway(models) as caller:
            a.delay_s = 5
            task = asyncio.create_task(caller.ask("mixtral", stream=True))
            await until(lambda: a.open == 1)
            a.kill()
            answer = await task
            assert (answer.status, answer.headers["x-citadel-fallback"]) == (200, "from=mixtral")
            assert caller.state.models["mixtral"].admission.inside == 0


async def test_given_the_whole_chain_down_when_asked_then_503_names_the_model_that_was_asked_for() -> None:
    async with replicas("a", "b") as (a, b):
        models = {"mixtral": {"upstreams": [a], "fallback": ["phi3"]}, "phi3": {"upstreams": [b]}}
        async with gateway(models) as caller:
            a.kill()
            b.kill()
            await until(lambda: not any(model.candidates for model in caller.state.models.values()))
            answer = await caller.ask("mixtral")
            assert (answer.status, answer.code) == (503, "model_unavailable")
            assert answer.headers["x-citadel-model"] == "mixtral"
            assert "x-citadel-fallback" not in answer.headers
            assert "retry-after" in answer.headers


async def test_given_an_alias_when_asked_then_the_engine_sees_its_own_name_and_all_else_as_it_came() -> None:
    async with replicas("a") as (a,), gateway({"phi3": {"upstreams": [a]}}, aliases={"gpt-4o-mini": "phi3"}) as caller:
        answer = await caller.post(b'{ "n": 1,  "model" : "gpt-4o-mini", "messages": [] }')
        assert answer.headers["x-citadel-model"] == "phi3"
        assert a.requests == [{"n": 1, "model": "phi3", "messages": []}]
        shown = (await caller.get("/v1/models/gpt-4o-mini")).json()
        assert (shown["id"], shown["aliases"]) == ("gpt-4o-mini", ["gpt-4o-mini"])
        assert [model["id"] for model in (await caller.get("/v1/models")).json()["data"]] == ["phi3"]


async def test_given_auto_when_asked_then_the_smallest_model_that_fits_answers() -> None:
    async with replicas("a", "b") as (a, b):
        models = {
            "mixtral": {"upstreams": [a], "size_gb": 93, "max_tokens": 32768, "features": ["tools"]},
            "phi3": {"upstreams": [b], "size_gb": 8, "max_tokens": 4096},
        }
        async with gateway(models) as caller:
            assert (await caller.ask("auto")).headers["x-citadel-model"] == "phi3"
            assert (await caller.ask("auto", tools=[{"type": "function"}])).headers["x-citadel-model"] == "mixtral"
            long = [{"role": "user", "content": "x" * 20_000}]
            answer = await caller.ask("auto", messages=long, headers={"x-citadel-route": "explain"})
            assert answer.headers["x-citadel-model"] == "mixtral"
            assert answer.headers["x-citadel-route"].startswith("auto=mixtral, not phi3 (about 5")
            assert {request["model"] for request in a.requests} == {"mixtral"}
            assert caller.metric("auto_choices_total", model="mixtral") == 2
            too_long = await caller.ask("auto", messages=[{"role": "user", "content": "x" * 200_000}])
            assert (too_long.status, too_long.code) == (400, "context_length_exceeded")


async def test_auto_and_its_aliases_are_shown() -> None:
    async with replicas("a") as (a,):
        models = {"phi3": {"upstreams": [a], "size_gb": 8, "max_tokens": 4096}}
        async with gateway(models, aliases={"gpt-4o": "auto"}) as caller:
            assert (await caller.ask("gpt-4o")).headers["x-citadel-model"] == "phi3"
            shown = (await caller.get("/v1/models/gpt-4o")).json()
            assert (shown["id"], shown["max_model_len"], shown["state"]) == ("gpt-4o", 4096, "up")
            assert (await caller.get("/openapi.json")).status == 200


async def test_given_no_model_with_a_size_then_auto_is_unknown() -> None:
    async with replicas("a") as (a,), gateway({"m": {"upstreams": [a]}}) as caller:
        assert (await caller.ask("auto")).status == 404


async def test_given_explain_when_asked_then_a_header_tells_policy_replicas_and_who_was_left_out() -> None:
    async with replicas("a", "b") as (a, b), gateway({"m": {"upstreams": [a, b]}}) as caller:
        b.kill()
        await until(lambda: len(caller.state.models["m"].candidates) == 1)
        answer = await caller.ask(headers={"x-citadel-route": "explain"})
        assert answer.headers["x-citadel-route"] == (
            f"model=m; policy=least_outstanding; chose={a.address}; loads={a.address}:0+0; not={b.address} down"
        )
        assert "x-citadel-route" not in (await caller.ask()).headers
