"""The audit log against the lab's PostgreSQL and Pgpool-II: two gateways under load, and whatever may go wrong.

Run inside the lab: `bin/lab run pytest tests/integration/test_audit.py`; it needs the SQL host alone.
CITADEL_OUTAGE_S says how long the database is away (60 s where nothing is said).
"""

import asyncio
import contextlib
import io
import os
import signal
import sys
import urllib.parse

import pytest
import pytest_asyncio
from audited import (
    ROWS,
    START_PGPOOL,
    START_POSTGRESQL,
    STOP_PGPOOL,
    STOP_POSTGRESQL,
    Load,
    compare,
    made_key,
    on_the_host,
    prepared,
    spawn,
    verdicts,
)

from callers import KEY
from citadel_llm.cli import main
from gateways import spawned_gateway
from upstreams import CHAT, EVENTS, Upstream, answers, streams
from waiting import until

pytestmark = pytest.mark.lab
OUTAGE_S = float(os.environ.get("CITADEL_OUTAGE_S", "60"))


async def chat(call):
    await (streams(*EVENTS) if b'"stream": true' in call.body else answers(CHAT))(call)


@pytest_asyncio.fixture
async def upstream():
    async with Upstream(chat) as engine:
        yield engine


@pytest.fixture
def sections(target, tmp_path):
    return prepared(target, tmp_path)


@pytest.fixture
def host():
    """The SQL host; whatever a test stopped runs again afterwards."""
    yield on_the_host
    on_the_host(*START_POSTGRESQL)
    on_the_host(*START_PGPOOL)


async def arrived(gateway):
    """Wait until all that was written is in the database."""

    async def so():
        audit = (await gateway.get("/health")).json["audit"]
        return audit["pending"] == 0

    await until(so, 60, what="the journal is carried")


async def in_state(gateway, state):
    async def so():
        return (await gateway.get("/health")).json["audit"]["state"] == state

    await until(so, 30, what=f"the audit log is {state}")


async def database_is(gateway, state):
    async def so():
        return (await gateway.get("/health")).json["dependencies"]["database"] == state

    await until(so, 60, what=f"the database is {state}")


async def test_a_request_is_found_by_its_id_a_moment_later(sections, upstream, tmp_path, ask, target):
    async with spawn(tmp_path, upstream, sections) as gateway:
        answer = await gateway.ask()
        await arrived(gateway)
        found = await gateway.get(f"/admin/v1/audit?request_id={answer.headers['x-request-id']}", key=KEY)
    assert found.status == 200, found.body
    (row,) = found.json["data"]
    assert (row["user_name"], row["action"], row["model"], row["outcome"]) == (
        "alice", "chat.completions", "phi3", "ok",
    )  # fmt: skip
    assert (row["prompt_tokens"], row["completion_tokens"], row["served_by"]) == (7, 3, upstream.address)
    assert (row["status"], row["streamed"], row["client_address"], row["content"]) == (200, False, "127.0.0.1", None)
    assert row["latency_ms"] > 0
    assert [wrong for _, wrong, _ in verdicts(target("database_gateway_url")).values()] == [None]


async def test_nothing_is_lost_or_there_twice_while_the_database_goes_the_pooler_goes_and_a_gateway_is_killed(
    sections, upstream, host, tmp_path, ask, target
):
    """And no answer to a key of the database's fails meanwhile, the killed process's own connections apart."""
    async with contextlib.AsyncExitStack() as stack:
        gateways = []
        for number in ("1", "2", "3"):
            gateways.append(await stack.enter_async_context(spawn(tmp_path, upstream, sections, number)))
            gateways[-1].number = number
        for gateway in gateways:
            await database_is(gateway, "up")
        first, second, third = gateways
        async with Load(gateways, await made_key(gateways)) as load:

            async def goes_on(seconds=0.0):
                """Load is answered for a while."""
                end, least = asyncio.get_running_loop().time() + seconds, len(load.answered) + 100
                await until(
                    lambda: len(load.answered) >= least and asyncio.get_running_loop().time() >= end,
                    seconds + 60, what="answers go on",
                )  # fmt: skip

            await goes_on()
            await asyncio.to_thread(host, *STOP_POSTGRESQL)
            await database_is(first, "down")
            await goes_on(OUTAGE_S)
            await asyncio.to_thread(host, *START_POSTGRESQL)
            await database_is(first, "up")
            await goes_on()
            await asyncio.to_thread(host, *STOP_PGPOOL)
            await database_is(first, "down")
            await goes_on(OUTAGE_S / 2)
            # Killed while its journal is not carried: nobody of its name comes back, another carries it.
            load.spare(third)
            third.signal(signal.SIGKILL)
            await third.ended()
            await goes_on()
            await asyncio.to_thread(host, *START_PGPOOL)
            await database_is(second, "up")
            await goes_on()
        assert load.failed == []
        await until(lambda: not (tmp_path / "spool/3").exists(), 60, what="the killed one's journal is adopted")
        await arrived(first)
        await arrived(second)
        found = verdicts(target("database_gateway_url"))
    compare(ask(ROWS), load)
    assert len(found) == 3
    assert [wrong for _, wrong, _ in found.values()] == [None] * 3
    used = ask("select sum(requests) from llm.usage_rollups where period = 'month'")
    assert used == ask("select count(*) from llm.audit_log where kind = 'request' and model is not null")


async def test_a_gateway_that_was_killed_carries_what_it_left_when_it_comes_back(
    sections, upstream, host, tmp_path, ask, target
):
    await asyncio.to_thread(host, *STOP_PGPOOL)
    async with spawn(tmp_path, upstream, sections) as gateway:
        ids = [(await gateway.ask()).headers["x-request-id"] for _ in range(20)]
        gateway.signal(signal.SIGKILL)
        await gateway.ended()
    await asyncio.to_thread(host, *START_PGPOOL)
    async with spawn(tmp_path, upstream, sections) as gateway:
        ids.append((await gateway.ask()).headers["x-request-id"])
        await database_is(gateway, "up")
        await arrived(gateway)
    assert ask("select request_id from llm.audit_log where model is not null order by position") == [(i,) for i in ids]
    assert list(verdicts(target("database_gateway_url")).values()) == [(21, None, "")]


async def test_a_full_journal_refuses_by_policy_and_takes_requests_again_once_it_is_carried(
    sections, upstream, host, tmp_path, ask, target
):
    small = {"spool_bytes": 16384, "segment_bytes": 4096}
    await asyncio.to_thread(host, *STOP_PGPOOL)
    async with spawn(tmp_path, upstream, sections, audit=small) as gateway:
        good = 0
        while (answer := await gateway.ask()).status == 200:
            good += 1
            assert good < 1000
        engine_calls = len(upstream.calls)
        assert (answer.status, answer.error["code"]) == (503, "audit_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert (await gateway.get("/admin/v1/audit", key=KEY)).error["code"] == "audit_unavailable"
        assert (await gateway.get("/health")).json["audit"]["state"] == "full"
        assert (await gateway.metrics())["citadel_audit_refused_total"] == 2
        assert len(upstream.calls) == engine_calls == good
        await asyncio.to_thread(host, *START_PGPOOL)
        await in_state(gateway, "ok")
        assert (await gateway.ask()).status == 200
        await arrived(gateway)
    assert ask("select count(*) from llm.audit_log where model is not null") == [(good + 1,)]
    assert [wrong for _, wrong, _ in verdicts(target("database_gateway_url")).values()] == [None]


async def test_a_full_journal_drops_by_policy_and_says_how_many(sections, upstream, host, tmp_path, ask):
    small = {"spool_bytes": 16384, "segment_bytes": 4096, "when_full": "drop"}
    await asyncio.to_thread(host, *STOP_PGPOOL)
    async with spawn(tmp_path, upstream, sections, audit=small) as gateway:
        for _ in range(200):
            assert (await gateway.ask()).status == 200
        await asyncio.to_thread(host, *START_PGPOOL)
        await in_state(gateway, "ok")

        async def told():
            await arrived(gateway)
            return ask("select detail from llm.audit_log where action = 'audit.dropped'")

        ((detail,),) = await until(told, 30, what="a row tells of those that were dropped")
        dropped = (await gateway.metrics())["citadel_audit_dropped_total"]
    assert detail["records"] == dropped > 0
    assert ask("select count(*) from llm.audit_log where model is not null") == [(200 - dropped,)]


async def test_pages_and_usage_are_asked_over_http_and_by_command(sections, upstream, tmp_path):
    async with spawn(tmp_path, upstream, sections) as gateway:
        ids = [(await gateway.ask()).headers["x-request-id"] for _ in range(7)]
        await arrived(gateway)
        seen, cursor = [], ""
        while cursor is not None:
            answer = (await gateway.get(f"/admin/v1/audit?model=phi3&limit=3{cursor}", key=KEY)).json
            assert len(answer["data"]) <= 3
            seen += [row["request_id"] for row in answer["data"]]
            cursor = f"&cursor={answer['next']}" if answer["next"] else None
        assert seen == ids[::-1]
        assert (await gateway.get("/admin/v1/audit?cursor=nonsense", key=KEY)).status == 404

        async def found(query):
            return [row["request_id"] for row in (await gateway.get(f"/admin/v1/audit?{query}", key=KEY)).json["data"]]

        times = [row["at"] for row in (await gateway.get("/admin/v1/audit?model=phi3", key=KEY)).json["data"]][::-1]
        since = urllib.parse.quote(times[4])
        assert await found(f"model=phi3&since={since}") == ids[:3:-1]
        assert await found(f"model=phi3&until={since}") == ids[3::-1]
        assert await found(f"user=alice&model=phi3&since={since}") == ids[:3:-1]
        assert await found("user=bob&model=phi3") == []
        assert await found("user=alice&model=mixtral") == []
        assert (await gateway.get("/admin/v1/audit?since=yesterday", key=KEY)).status == 400
        assert (await gateway.get("/admin/v1/audit?user=%00", key=KEY)).json["data"] == []
        assert (await gateway.get("/admin/v1/usage?model=%00", key=KEY)).json["data"] == []
        assert (await gateway.get("/admin/v1/audit?user='%20or%201=1%20--", key=KEY)).json["data"] == []
        (row,) = (await gateway.get("/admin/v1/usage?period=hour", key=KEY)).json["data"]
        assert (row["model"], row["requests"], row["prompt_tokens"], row["completion_tokens"]) == ("phi3", 7, 49, 21)
        assert (row["user_id"], row["failed_requests"], row["cost"]) == (None, 0, None)

        async def command(*words):
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "citadel_llm.cli", *words, "--url", gateway.url],
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CITADEL_API_KEY": KEY},
            )  # fmt: skip
            out, errors = await process.communicate()
            return process.returncode, (out or errors).decode()

        status, out = await command("audit", "--user", "alice", "--model", "phi3", "--since", times[4])
        assert status == 0
        assert [name in out for name in ids] == [False] * 4 + [True] * 3
        status, out = await command("audit", "--user", "bob")
        assert status == 0
        assert not any(name in out for name in ids)
        status, out = await command("audit", "--request-id", ids[3])
        assert status == 0
        assert ids[3] in out
        assert "chat.completions" in out
        status, out = await command("usage", "--period", "month")
        assert status == 0
        assert "phi3" in out
        assert await command("usage", "--cost") == (
            1, "citadel: this site gives no costs: see `gateway_cost` in docs/business.md\n"
        )  # fmt: skip
        status, out = await command("audit", "--kind", "nothing")
        assert status == 1
        assert "400 invalid_request" in out
        # Looking is an act too.
        await arrived(gateway)
        rows = (await gateway.get("/admin/v1/audit?kind=admin&outcome=refused", key=KEY)).json["data"]
        assert {row["action"] for row in rows} == {"audit.read"}


async def test_what_was_used_has_its_cost_of_the_time_and_a_request_that_of_now(sections, upstream, tmp_path, ask):
    """The price doubles between two answers: what was counted stays as it was."""
    figures = {"cost_share": 1, "prompt_tokens_per_s": 1, "completion_tokens_per_s": 0.5}
    cost = {"currency": "CHF", "server_price": 26280, "watts": 0, "price_per_kwh": 0, "utilisation": 1}
    second = 26280 / 5 / 8760 / 3600
    answer = (7 + 2 * 3) * second  # 7 tokens read, 3 written
    out = io.StringIO()
    for factor in (1, 2):
        priced = {**sections, "cost": {**cost, "server_price": factor * cost["server_price"]}}
        async with spawned_gateway(
            tmp_path, models={"phi3": {"upstreams": [upstream], **figures}}, **priced
        ) as gateway:
            request_id = (await gateway.ask()).headers["x-request-id"]
            await arrived(gateway)
            (row,) = (await gateway.get(f"/admin/v1/audit?request_id={request_id}", key=KEY)).json["data"]
            assert row["cost"] == pytest.approx(factor * answer, rel=1e-3)
            found = (await gateway.get("/admin/v1/usage?period=day", key=KEY)).json
            assert found["currency"] == "CHF"
            assert found["data"][0]["cost"] == pytest.approx({1: 1, 2: 3}[factor] * answer, rel=1e-3)
            if factor == 2:
                url = gateway.url

                def run(url=url):
                    with contextlib.redirect_stdout(out):
                        return main(["usage", "--cost", "--period", "month", "--url", url])

                with pytest.MonkeyPatch.context() as environment:
                    environment.setenv("CITADEL_API_KEY", KEY)
                    assert await asyncio.to_thread(run) == 0
    head, line, together = out.getvalue().splitlines()
    assert head.endswith("COST CHF")
    assert float(line.split()[-1]) == pytest.approx(3 * answer, abs=1e-6)
    assert together == f"Together {3 * answer:.6f} CHF"
    assert ask("select count(*) from llm.usage_rollups where cost > 0") == [(3,)]
