"""Two real gateway processes, one key, one table: what passes in any minute, and what a killed process leaves."""

import asyncio
import bisect
import json
import time
from collections import Counter

import pytest

from citadel_llm.api.identity.snapshot import write_snapshot
from citadel_llm.integration.database.identity import BudgetRow, Identities
from gateways import KEYS, spawned_gateway
from upstreams import CHAT, answers, refused_port, stalls
from waiting import until

MINUTE_S = 60.0


@pytest.fixture
def pair(tmp_path, cleanup, upstream):
    """`await pair(**limits)`: two gateways of these limits, in processes of their own; `sections` are of both."""

    async def start(sections=None, **limits):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        table = str(tmp_path / "limits")
        return [
            await cleanup.enter_async_context(
                spawned_gateway(
                    tmp_path / name,
                    models={"phi3": [upstream]},
                    instance=name,
                    limits={"table_file": table, **limits},
                    **(sections or {}),
                )
            )
            for name in ("a", "b")
        ]

    return start


async def hammer(gateway, passed, refused, until_s, pause_s):
    """Ask again and again; of each request that passed, when it was sent and when it was answered."""
    async with gateway.caller() as caller:
        while (began := time.monotonic()) < until_s:
            await caller.request()
            answer = await caller.answer()
            if answer.status == 200:
                passed.append((began, time.monotonic()))
            else:
                assert answer.status == 429
                refused.append(int(answer.headers["retry-after"]))
            await asyncio.sleep(pause_s)


async def test_two_processes_and_one_key_of_60_a_minute_let_60_pass_in_any_minute(pair):
    """Each request passed at some moment between its sending and its answer: so much is known of every minute."""
    first, second = await pair(default_requests_per_minute=60)
    passed, refused = [], []
    end = time.monotonic() + 2 * MINUTE_S + 6
    # Two callers at each, some quick: the first minute's 60 are gone in a moment, and each later one is fought for.
    await asyncio.gather(
        *(hammer(gateway, passed, refused, end, pause) for gateway in (first, second) for pause in (0.005, 0.02))
    )
    assert len(refused) > 1000
    assert all(1 <= seconds <= 60 for seconds in refused)
    sent, answered = sorted(began for began, _ in passed), sorted(done for _, done in passed)
    assert len(passed) == 180  # at 0, 60 and 120 s
    for moment in sent:
        # None is in the minute for certain that is one too many...
        within = sum(began >= moment and done < moment + MINUTE_S for began, done in passed)
        assert within <= 60
    longest = max(done - began for began, done in passed)
    for index in range(len(passed) - 60):
        # ... and the 60th after one passed as soon as that one was a minute old.
        wait = sent[index + 60] - answered[index]
        assert wait <= MINUTE_S + 0.5
        assert answered[index + 60] - sent[index] >= MINUTE_S - longest
    assert bisect.bisect(answered, sent[0] + MINUTE_S / 2) == 60


async def test_what_a_killed_process_had_under_way_is_free_again(pair, upstream):
    first, second = await pair(default_concurrent_requests=2)
    upstream.script = stalls()
    async with first.caller() as one, first.caller() as other:
        await one.request()
        await other.request()
        await upstream.asked(2)
        assert (await second.ask()).status == 429
        first.process.kill()
        await first.process.wait()
    upstream.script = answers(CHAT)

    async def passes():
        return (await second.ask()).status == 200

    await until(passes, what="the places of the dead are free")


async def test_requests_at_once_and_tokens_are_one_count_over_both(pair, upstream):
    first, second = await pair(default_concurrent_requests=1, default_tokens_per_minute=1000)
    for gateway in (first, second, first, second):
        answer = await gateway.ask()
        assert answer.status == 200
    # Three that are settled with 10 tokens each, and this one's estimate.
    estimate = 1000 - 30 - int(answer.headers["x-ratelimit-remaining-tokens"])
    assert 10 <= estimate <= 21
    assert (await second.ask(key=KEYS["bob"])).headers["x-ratelimit-remaining-tokens"] == str(1000 - 19)


async def test_two_processes_and_a_budget_of_10_requests_a_day_let_10_pass(pair, tmp_path):
    """The database is away: both go by the snapshot, and by what the host has counted."""
    budget = BudgetRow("everyone", "*", "day", 10, None)
    snapshot = tmp_path / "identity.json"
    write_snapshot(snapshot, Identities(1, 1.0, users=[], grants=[], keys=[], limits=[], budgets=[budget]))
    (tmp_path / "pepper").write_text("p" * 43 + "\n")
    with refused_port() as port:
        target = {"host": "127.0.0.1", "port": port, "database": "d", "user": "u", "password": "p"}
        (tmp_path / "database.json").write_text(json.dumps(target))
        sections = {
            "auth": {"pepper_file": str(tmp_path / "pepper"), "snapshot_file": str(snapshot)},
            "database": {"enabled": True, "credentials_file": str(tmp_path / "database.json")},
        }
        gateways = await pair(sections)
        asked = [gateway.ask(key=key) for _ in range(8) for gateway in gateways for key in KEYS.values()]
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status for answer in answers) == {200: 10, 429: 22}
        assert {answer.error["code"] for answer in answers if answer.status == 429} == {"insufficient_quota"}
        assert [(await gateway.ask()).status for gateway in gateways] == [429, 429]


async def test_what_passed_is_known_after_a_restart(tmp_path, upstream):
    limits = {"table_file": str(tmp_path / "limits"), "default_requests_per_minute": 2}
    statuses = []
    for _ in range(2):
        async with spawned_gateway(tmp_path, models={"phi3": [upstream]}, limits=limits) as gateway:
            statuses += [(await gateway.ask()).status for _ in range(2)]
            gateway.process.kill()
            await gateway.process.wait()
    assert statuses == [200, 200, 429, 429]
