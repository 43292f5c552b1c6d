"""Limits and budgets by the lab's PostgreSQL through Pgpool-II: set by the admin API, in force in every process.

Run inside the lab: `bin/lab run pytest tests/integration/test_limits.py`; it needs the SQL host alone.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime

import psycopg
import pytest
import pytest_asyncio
from sites import migrated_database

from upstreams import Upstream
from waiting import until

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def site(credentials, tmp_path_factory):
    """A database whose one declared key is the admin's."""
    with migrated_database(credentials) as made:
        made.brought(tmp_path_factory.mktemp("site"), {"name": "root", "key": made.admin_key})
        yield made


@pytest_asyncio.fixture
async def engine():
    async with Upstream() as one:
        yield one


@pytest_asyncio.fixture
async def gateway(site, engine, tmp_path):
    async with site.gateway(tmp_path, {"phi3": [engine]}) as running:
        yield running


@pytest.fixture
def admin(site, gateway):
    async def asked(method, path, body=None, **options):
        return await site.admin(gateway, method, path, body, **options)

    return asked


@pytest_asyncio.fixture
async def somebody(admin):
    """A new user's name, and a key of it."""
    name = f"user-{secrets.token_hex(4)}"
    assert (await admin("POST", "/users", {"name": name, "roles": ["developer"]})).status == 201
    answer = await admin("POST", "/keys", {"name": "first", "user": name})
    return name, answer.json


async def in_force(gateway, key, limit):
    """Wait until answers tell of this bound of requests a minute."""

    async def told():
        return (await gateway.ask(key=key)).headers.get("x-ratelimit-limit-requests") == str(limit)

    await until(told, what=f"a bound of {limit} is in force")


async def test_limits_that_are_set_are_in_force_soon_and_gone_when_they_are_deleted(admin, gateway, somebody):
    _, key = somebody
    place = f"/limits/key/{key['id']}"
    assert (await admin("GET", place)).error["code"] == "limits_not_found"
    answer = await admin("PUT", place, {"requests_per_minute": 50, "concurrent_requests": 7})
    assert answer.status == 200, answer.body
    shown = answer.json
    assert (shown["scope"], shown["subject"], shown["tokens_per_minute"]) == ("key", key["id"], None)
    assert abs(shown["updated_at"] - time.time()) < 60
    assert (await admin("GET", place)).json == shown
    await in_force(gateway, key["key"], 50)
    assert (await gateway.ask(key=key["key"])).headers["x-ratelimit-limit-tokens"] == "100000000"  # the default
    now = (await admin("GET", f"{place}/now")).json
    assert now["bounds"]["concurrent_requests"] == 7
    assert 1 <= now["used"]["requests_per_minute"] <= 50
    await admin("PUT", place, {"requests_per_minute": 0})
    await in_force(gateway, key["key"], 0)
    assert (await gateway.ask(key=key["key"])).status == 429
    assert (await admin("DELETE", place)).json["deleted"] is True
    await in_force(gateway, key["key"], 60_000)
    assert (await admin("DELETE", place)).status == 404


async def test_a_users_limits_hold_for_all_of_its_keys_and_are_found_by_its_name(admin, gateway, somebody):
    name, key = somebody
    other = (await admin("POST", "/keys", {"name": "second", "user": name})).json
    assert (await admin("PUT", f"/limits/user/{name}", {"requests_per_minute": 40})).json["subject"] == key["user_id"]
    await in_force(gateway, key["key"], 40)
    left = [int((await gateway.ask(key=one["key"])).headers["x-ratelimit-remaining-requests"]) for one in (key, other)]
    assert left[1] == left[0] - 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"/limits/key/{uuid.uuid4()}", "key_not_found"),
        ("/limits/key/nonsense", "key_not_found"),
        ("/limits/user/nobody-of-that-name", "user_not_found"),
        ("/limits/model/gpt-9", "model_not_found"),
        ("/limits/everyone/me", "subject_not_found"),
        ("/budgets/model/gpt-9/day", "model_not_found"),
    ],
)
async def test_a_subject_that_there_is_not_is_told(admin, path, code):
    body = {"max_tokens": 1} if "budgets" in path else {"requests_per_minute": 1}
    for method, given in (("PUT", body), ("DELETE", None), ("GET", None)):
        answer = await admin(method, path, given)
        assert (answer.status, answer.error["code"]) == (404, code)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/limits/everyone/*", {}),
        ("/limits/everyone/*", {"requests_per_minute": -1}),
        ("/limits/everyone/*", {"requests_per_minute": "5"}),
        ("/limits/everyone/*", {"requests_per_minute": 5, "subject": "other"}),
        ("/limits/everyone/*", {"concurrent_requests": 2**31}),
        ("/limits/planet/*", {"requests_per_minute": 5}),
        ("/budgets/everyone/*/day", {}),
        ("/budgets/everyone/*/year", {"max_tokens": 1}),
        ("/budgets/everyone/*/day", {"max_tokens": 10**13}),
    ],
)
async def test_a_bound_that_is_none_is_refused(admin, path, body):
    assert (await admin("PUT", path, body)).status == 400


async def test_who_may_not_set_limits_is_refused(admin, somebody):
    _, key = somebody
    for method, body in (("GET", None), ("PUT", {"requests_per_minute": 1}), ("DELETE", None)):
        assert (await admin(method, "/limits/everyone/*", body, key=key["key"])).status == 403
    assert (await admin("GET", "/budgets", key=key["key"])).status == 403


async def test_what_is_set_is_listed_page_by_page(admin, somebody):
    _, key = somebody
    for place in (f"key/{key['id']}", "model/phi3"):
        await admin("PUT", f"/limits/{place}", {"tokens_per_minute": 10**9})
        for period in ("day", "month"):
            await admin("PUT", f"/budgets/{place}/{period}", {"max_tokens": 10**9})
    for family, names in (("limits", ["scope", "subject"]), ("budgets", ["scope", "subject", "period"])):
        found, cursor = [], None
        while True:
            answer = (await admin("GET", f"/{family}?limit=1" + (f"&cursor={cursor}" if cursor else ""))).json
            assert answer["object"] == "list"
            found += answer["data"]
            cursor = answer["next"]
            if cursor is None:
                break
        listed = [tuple(one[name] for name in names) for one in found]
        assert listed == sorted(set(listed))
        assert {("key", key["id"]), ("model", "phi3")} <= {one[:2] for one in listed}
    for place in (f"key/{key['id']}", "model/phi3"):
        assert (await admin("DELETE", f"/limits/{place}")).status == 200
        for period in ("day", "month"):
            assert (await admin("DELETE", f"/budgets/{place}/{period}")).status == 200


async def test_a_budget_knows_what_was_used_before_this_host_began_to_count(admin, gateway, site, somebody):
    _, key = somebody
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    site.sql(
        "insert into llm.usage_rollups (period, period_start, user_id, key_id, model, requests, failed_requests, "
        "prompt_tokens, completion_tokens) values ('day', %s, %s, %s, 'phi3', 12, 4, 100, 50)",
        [day, key["user_id"], key["id"]],
    )
    await admin("PUT", f"/budgets/key/{key['id']}/day", {"max_requests": 10})

    async def refused():
        return (await gateway.ask(key=key["key"])).status == 429

    await until(refused, what="the budget is used up")
    answer = await gateway.ask(key=key["key"])
    assert answer.error["code"] == "insufficient_quota"
    used = (await admin("GET", f"/limits/key/{key['id']}/now")).json["used"]
    assert used["requests_per_day"] == 10
    assert used["tokens_per_day"] >= 150


async def test_a_host_that_begins_to_count_anew_counts_what_it_used_itself_and_not_what_another_host_did(
    site, engine, tmp_path, somebody
):
    _, key = somebody
    budget = f"/budgets/key/{key['id']}/day"
    folder = tmp_path / "host"
    folder.mkdir()
    sections = {
        "limits": {"hosts": 2, "host": 0},  # and no table that outlives the process
        "audit": {"enabled": True, "directory": str(folder / "spool")},
    }

    async def statuses(count):
        async with site.gateway(folder, {"phi3": [engine]}, **sections) as one:
            await site.admin(one, "PUT", budget, {"max_requests": 10})

            async def known():
                place = f"/limits/key/{key['id']}/now"
                return (await site.admin(one, "GET", place)).json["bounds"]["requests_per_day"] == 10

            await until(known, what="the budget is known")
            return [(await one.ask(key=key["key"])).status for _ in range(count)]

    def summed_up():
        return site.sql(
            "select sum(requests) from llm.usage_rollups where period = 'day' and key_id = %s", [key["id"]]
        ) == [(3,)]

    assert await statuses(3) == [200] * 3
    await until(summed_up, what="what was used is summed up")
    # Another host's four: as many as make the site's sum more than one host's part.
    site.sql(
        "insert into llm.audit_log (at, id, chain, position, previous_digest, digest, kind, action, request_id, "
        "user_id, key_id, model, outcome, prompt_tokens) "
        "select now(), gen_random_uuid(), 'another-host:1:0', n, sha256(''), sha256(''), 'request', 'chat', "
        "'req-' || n, %s, %s, 'phi3', 'ok', 10 from generate_series(1, 4) as n",
        [key["user_id"], key["id"]],
    )
    site.sql(
        "update llm.usage_rollups set requests = requests + 4, prompt_tokens = prompt_tokens + 40 where key_id = %s",
        [key["id"]],
    )
    assert await statuses(3) == [200, 200, 429]


async def test_while_the_sums_are_locked_a_request_waits_for_them_once_and_not_for_long(
    site, engine, tmp_path, somebody
):
    _, key = somebody
    folder = tmp_path / "other"
    folder.mkdir()
    held, release = threading.Event(), threading.Event()

    def hold():
        place = site.target("database_url")
        with psycopg.connect(
            host=place.host, port=place.port, dbname=place.database, user=place.user, password=place.password
        ) as connection:
            connection.execute("lock table llm.usage_rollups in access exclusive mode")
            held.set()
            release.wait(20)

    async with site.gateway(folder, {"phi3": [engine]}) as other:
        await site.admin(other, "PUT", f"/budgets/key/{key['id']}/month", {"max_requests": 1000})

        async def known():
            return (await site.admin(other, "GET", f"/limits/key/{key['id']}/now")).json["bounds"]["requests_per_month"]

        await until(known, what="the budget is known")
        holding = asyncio.create_task(asyncio.to_thread(hold))
        await until(held.is_set, what="the sums are locked")
        began = time.monotonic()
        statuses = [(await other.ask(key=key["key"])).status for _ in range(5)]
        assert statuses == [200] * 5
        assert time.monotonic() - began < 2  # half a second is what the first one waits
        release.set()
        await holding


async def test_the_command_sets_shows_and_deletes(gateway, site, somebody, tmp_path):
    name, key = somebody
    config = tmp_path / "citadel.yaml"

    def citadel(*words, status=0):
        done = subprocess.run(
            [sys.executable, "-m", "citadel_llm.cli", "limits", *words, "--url", gateway.url, "--config", str(config)],
            env={**os.environ, "PYTHONPATH": "src", "CITADEL_API_KEY": site.admin_key},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    async def run(*words, **options):
        return await asyncio.to_thread(citadel, *words, **options)

    assert "500" in await run("set", f"user/{name}", "--requests", "500", "--tokens", "2M")
    assert "2000000" in await run("set", f"user/{name}", "--tokens", "2M", "--month")
    listed = await run("list")
    assert ["user", key["user_id"], "minute", "500", "2000000", "-"] in [line.split() for line in listed.splitlines()]
    assert ["user", key["user_id"], "month", "-", "2000000", "-"] in [line.split() for line in listed.splitlines()]
    budgets = json.loads(await run("list", "--json"))["budgets"]
    assert [one["max_tokens"] for one in budgets if one["subject"] == key["user_id"]] == [2_000_000]
    assert "requests per minute" in await run("now", f"user/{name}")
    await run("delete", f"user/{name}")
    await run("delete", f"user/{name}", "--month")
    assert "limits_not_found" in await run("delete", f"user/{name}", status=1)
    assert "user_not_found" in await run("set", "user/nobody", "--requests", "1", status=1)
    assert "expected key/ID" in await run("set", "planet/x", "--requests", "1", status=2)
