"""Who may call, by the lab's PostgreSQL through Pgpool-II: gateways as processes, Redis beside them.

Run inside the lab: `bin/lab run pytest tests/integration/test_identity.py`; it needs the SQL host alone.
"""

import asyncio
import base64
import hashlib
import json
import os
import secrets
import stat
import subprocess
import sys

import pytest
import pytest_asyncio
from sites import every, within
from sql_host import on_the_host

from waiting import until

pytestmark = pytest.mark.lab
NOTICED_S = 2.0  # a revocation is in force everywhere within this


def chat(model="phi3"):
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]}).encode()


def basic(name, password):
    return (b"authorization", b"Basic " + base64.b64encode(f"{name}:{password}".encode()))


@pytest.fixture
def admin(site, gateway):
    """`await admin(method, path, body, key=)`: the admin API's answer."""

    async def asked(method, path, body=None, **options):
        return await site.admin(gateway, method, path, body, **options)

    return asked


@pytest.fixture
def made(admin):
    """`await made(roles=, ...)`: a new user's name and a key of it."""

    async def make(roles=("developer",), name=None, user=None, **key):
        name = name or f"user-{secrets.token_hex(4)}"
        answer = await admin("POST", "/users", {"name": name, "roles": list(roles), **(user or {})})
        assert answer.status == 201, answer.body
        answer = await admin("POST", "/keys", {"name": "first", "user": name, **key})
        assert answer.status == 201, answer.body
        return name, answer.json

    return make


def works(*gateways, key, model="phi3"):
    """An async condition: a chat with that key gets this status at each of the gateways."""

    async def asked(status):
        answers = [await gateway.ask(key=key, body=chat(model)) for gateway in gateways]
        return all(answer.status == status for answer in answers)

    return asked


# -- keys -------------------------------------------------------------------------------------------------------------


async def test_a_key_of_the_database_opens_the_models_and_another_does_not(gateway, site):
    assert (await gateway.ask(key=site.admin_key)).status == 200
    refused = await gateway.ask(key="sk-" + "x" * 43)
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert (await gateway.ask(key=None, headers=[(b"x-api-key", site.admin_key.encode())])).status == 200


async def test_a_key_is_shown_once_and_the_database_has_neither_it_nor_its_plain_digest(site, made, admin):
    name, key = await made()
    assert key["key"].startswith("sk-")
    assert len(key["key"]) >= 46
    assert key["prefix"] == key["key"][:10]
    shown = await admin("GET", f"/keys/{key['id']}")
    listed = await admin("GET", f"/keys?user={name}")
    for answer in (shown, listed):
        assert key["key"].encode() not in answer.body
        assert b"digest" not in answer.body
    rows = site.sql("select cast(to_jsonb(k) as text) from llm.api_keys k where cast(id as text) = %s", [key["id"]])
    assert key["key"] not in rows[0][0]
    assert hashlib.sha256(key["key"].encode()).hexdigest() not in rows[0][0]


async def test_a_new_key_works_at_once_where_it_was_made(made, gateway):
    _, key = await made()
    assert (await gateway.ask(key=key["key"])).status == 200


async def test_an_expired_key_is_refused_without_anybody_being_asked(made, gateway, site):
    _, key = await made()
    site.sql(
        "update llm.api_keys set expires_at = now() + interval '2 seconds' where cast(id as text) = %s", [key["id"]]
    )
    asked = works(gateway, key=key["key"])
    await within(5, lambda: asked(401), "the key has expired")
    refused = await gateway.ask(key=key["key"])
    assert refused.error["code"] in {"expired_api_key", "invalid_api_key"}


async def test_a_rotated_key_works_for_the_overlap_and_no_longer(admin, made, gateway):
    _, old = await made()
    answer = await admin("POST", f"/keys/{old['id']}/rotate", {"overlap_s": 2})
    new = answer.json
    assert (answer.status, new["name"], new["user"]) == (201, old["name"], old["user"])
    assert (await admin("GET", f"/keys/{old['id']}")).json["replaced_by"] == new["id"]
    assert (await gateway.ask(key=old["key"])).status == 200
    assert (await gateway.ask(key=new["key"])).status == 200
    gone = works(gateway, key=old["key"])
    await within(6, lambda: gone(401), "the overlap is over")
    assert (await gateway.ask(key=new["key"])).status == 200
    again = await admin("POST", f"/keys/{old['id']}/rotate", {})
    assert (again.status, again.error["code"]) == (409, "key_not_active")


async def test_rotation_without_overlap_ends_the_old_key_at_once(admin, made, gateway):
    _, old = await made()
    await admin("POST", f"/keys/{old['id']}/rotate", {"overlap_s": 0})
    assert (await gateway.ask(key=old["key"])).status == 401


@pytest.mark.parametrize("redis_is", ["running", "stopped", "not configured"])
async def test_a_revoked_key_fails_at_every_process_within_two_seconds(site, engines, tmp_path, redis, redis_is):
    """Two gateways, told by Redis; and where Redis is gone, by themselves."""
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    use = None if redis_is == "not configured" else redis
    async with (
        site.gateway(folders[0], engines, instance="1", redis=use) as first,
        site.gateway(folders[1], engines, instance="2", redis=use) as second,
    ):
        if use is not None:
            await first.logged("cache_state", up=True)
            await second.logged("cache_state", up=True)
        name = f"user-{secrets.token_hex(4)}"
        await site.admin(first, "POST", "/users", {"name": name, "roles": ["developer"]})
        key = (await site.admin(first, "POST", "/keys", {"name": "k", "user": name})).json
        asked = works(first, second, key=key["key"])
        await within(NOTICED_S, lambda: asked(200), "the new key works at both")
        if redis_is == "stopped":
            redis.kill()
            await first.logged("cache_state", up=False)
        revoked = await site.admin(first, "POST", f"/keys/{key['id']}/revoke")
        assert (revoked.status, revoked.json["state"]) == (200, "revoked")
        assert (await first.ask(key=key["key"])).status == 401  # the one that was asked knows at once
        took = await within(NOTICED_S, lambda: asked(401), "the key is refused at both")
        assert took < NOTICED_S
        await every(0.3, lambda: asked(401))


async def test_what_is_changed_in_the_database_by_hand_is_seen_too(site, made, gateway):
    name, key = await made()
    site.sql("update llm.users set disabled_at = now() where name = %s", [name])
    asked = works(gateway, key=key["key"])
    await within(NOTICED_S, lambda: asked(401), "the disabled user's key is refused")


# -- the database away ------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def stopped():
    """`stop()` takes Pgpool-II away; it is there again afterwards."""

    async def stop():
        await asyncio.to_thread(on_the_host, "systemctl", "stop", "pgpool2")

    async def start():
        await asyncio.to_thread(on_the_host, "systemctl", "start", "pgpool2")

    stop.undo = start
    yield stop
    await start()


@pytest.mark.disruptive
async def test_known_keys_go_on_and_a_start_knows_them_from_the_disk_while_the_database_is_away(
    site, engines, tmp_path, stopped
):
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    async with site.gateway(tmp_path, engines, instance="1") as gateway:
        kept = tmp_path / "identity.json"
        await until(kept.exists, what="the snapshot")
        assert stat.S_IMODE(os.stat(kept).st_mode) == 0o600
        assert site.admin_key not in kept.read_text()
        await stopped()
        await gateway.logged("database_state", up=False)
        assert (await gateway.ask(key=site.admin_key)).status == 200
        change = await site.admin(gateway, "POST", "/users", {"name": "nobody"})
        assert (change.status, change.error["code"]) == (503, "database_unavailable")
        assert int(change.headers["retry-after"]) >= 1
        async with site.gateway(tmp_path, engines, instance="2") as second:
            assert second.lines("identities_read")[0]["source"] == "snapshot"
            assert (await second.ask(key=site.admin_key)).status == 200
            assert (await second.ask(key="sk-" + "y" * 43)).status == 401
        async with site.gateway(nowhere, engines, instance="3", ready=False) as third:
            unready = await third.ask(key=site.admin_key)
            assert (unready.status, unready.error["code"]) == (503, "identity_unavailable")
            assert "retry-after" in unready.headers
            await stopped.undo()
            asked = works(third, key=site.admin_key)
            await within(20, lambda: asked(200), "it knows the key once the database is back")


async def test_a_broken_snapshot_is_told_and_the_database_asked(site, engines, tmp_path):
    (tmp_path / "identity.json").write_text('{"version": 1, "users"')
    async with site.gateway(tmp_path, engines) as gateway:
        assert gateway.lines("snapshot_not_read")
        assert gateway.lines("identities_read")[0]["source"] == "database"
        assert (await gateway.ask(key=site.admin_key)).status == 200


async def test_a_snapshot_that_is_behind_is_replaced_by_what_the_database_says(site, engines, tmp_path, made):
    _, key = await made()
    kept = tmp_path / "old.json"
    async with site.gateway(tmp_path, engines, instance="2") as gateway:
        await until((tmp_path / "identity.json").exists, what="the snapshot")
        assert (await gateway.ask(key=key["key"])).status == 200
    kept.write_bytes((tmp_path / "identity.json").read_bytes())
    site.sql("update llm.api_keys set revoked_at = now() where cast(id as text) = %s", [key["id"]])
    async with site.gateway(tmp_path, engines, instance="3", auth={"snapshot_file": str(kept)}) as gateway:
        assert [line["source"] for line in gateway.lines("identities_read")] == ["snapshot", "database"]
        assert (await gateway.ask(key=key["key"])).status == 401


# -- passwords --------------------------------------------------------------------------------------------------------


async def test_a_user_may_call_with_its_password(made, gateway):
    name, _ = await made(user={"password": "correct horse battery"})
    for _ in range(2):
        answer = await gateway.ask(key=None, headers=[basic(name, "correct horse battery")])
        assert answer.status == 200
    wrong = await gateway.ask(key=None, headers=[basic(name, "correct horse batterz")])
    assert (wrong.status, wrong.error["code"]) == (401, "invalid_credentials")
    assert wrong.headers["www-authenticate"].startswith("Basic ")
    nobody = await gateway.ask(key=None, headers=[basic("nobody-" + name, "correct horse battery")])
    assert nobody.error["message"] == wrong.error["message"]


async def test_another_password_ends_the_one_before_at_once(admin, made, gateway):
    name, _ = await made(user={"password": "the first password"})
    assert (await gateway.ask(key=None, headers=[basic(name, "the first password")])).status == 200
    assert (await admin("PUT", f"/users/{name}/password", {"password": "the second password"})).status == 204
    assert (await gateway.ask(key=None, headers=[basic(name, "the first password")])).status == 401
    assert (await gateway.ask(key=None, headers=[basic(name, "the second password")])).status == 200
    assert (await admin("PUT", f"/users/{name}/password", {"password": None})).status == 204
    assert (await gateway.ask(key=None, headers=[basic(name, "the second password")])).status == 401


@pytest.mark.parametrize("with_redis", [True, False], ids=["with Redis", "without Redis"])
async def test_whoever_guesses_is_locked_out_with_growing_pauses_and_the_users_keys_go_on(
    site, engines, tmp_path, redis, with_redis
):
    async with site.gateway(tmp_path, engines, redis=redis if with_redis else None) as gateway:
        if with_redis:
            await gateway.logged("cache_state", up=True)
        name = f"user-{secrets.token_hex(4)}"
        await site.admin(
            gateway, "POST", "/users", {"name": name, "roles": ["developer"], "password": "right password"}
        )
        key = (await site.admin(gateway, "POST", "/keys", {"name": "k", "user": name})).json["key"]
        statuses = [(await gateway.ask(key=None, headers=[basic(name, f"guess {n} of many")])).status for n in range(6)]
        assert statuses == [401] * 5 + [429]
        # Whoever has the right password waits too: else the answer would tell that it is right.
        locked = await gateway.ask(key=None, headers=[basic(name, "right password")])
        assert (locked.status, locked.error["code"]) == (429, "too_many_attempts")
        assert 1 <= int(locked.headers["retry-after"]) <= 900
        assert (await gateway.ask(key=key)).status == 200

        async def free():
            return (await gateway.ask(key=None, headers=[basic(name, "right password")])).status == 200

        await within(5, free, "the pause is over")


async def test_the_lockout_is_one_for_all_processes_where_redis_is(site, engines, tmp_path, redis):
    async with (
        site.gateway(tmp_path, engines, instance="1", redis=redis) as first,
        site.gateway(tmp_path, engines, instance="2", redis=redis) as second,
    ):
        await first.logged("cache_state", up=True)
        await second.logged("cache_state", up=True)
        guesses = [
            (await (first, second)[n % 2].ask(key=None, headers=[basic("root", f"guess {n} of many")])).status
            for n in range(6)
        ]
        assert guesses == [401] * 5 + [429]


# -- the first deployment ---------------------------------------------------------------------------------------------


def test_declared_keys_are_brought_as_declared_and_a_second_time_changes_nothing(empty_site, tmp_path):
    one = {"name": "Research", "key": "sk-of-research-0123456789abcdef"}
    two = {"name": "reader", "key": "sk-of-reader-0123456789abcdefgh", "role": "viewer"}
    first = empty_site.brought(tmp_path, one, two)
    assert (first["changed"], first["added"], first["admin_key_file"]) == (True, ["Research", "reader"], None)
    assert not empty_site.brought(tmp_path, one, two)["changed"]
    roles = dict(empty_site.sql("select u.name, r.role from llm.users u join llm.user_roles r on r.user_id = u.id"))
    assert roles == {"research": "admin", "reader": "viewer"}
    version = empty_site.sql("select version from llm.identity_version")
    gone = empty_site.brought(tmp_path, {**two, "role": "developer"})
    assert (gone["revoked"], gone["disabled"], gone["roles"]) == (["Research"], ["research"], ["reader"])
    assert empty_site.sql("select version from llm.identity_version") > version
    back = empty_site.brought(tmp_path, one, {**two, "role": "developer"})
    assert back["restored"] == ["research", "Research"]


def test_a_dry_run_of_the_import_tells_and_changes_nothing(empty_site, tmp_path):
    file = tmp_path / "first.key"
    told = empty_site.brought(
        tmp_path, {"name": "a", "key": "sk-of-a-0123456789", "role": "viewer"},
        options=["--dry-run", "--admin-key-file", str(file)],
    )  # fmt: skip
    assert (told["changed"], told["added"], told["admin_key_file"]) == (True, ["a"], str(file))
    assert not file.exists()
    assert empty_site.sql("select count(*) from llm.users") == [(0,)]


def test_the_first_admins_name_is_no_other_users(empty_site, tmp_path):
    key = f"sk-{secrets.token_urlsafe(32)}"
    for keys in (
        [{"name": "admin", "key": key, "role": "developer"}],
        [{"name": "Admin", "key": key, "role": "viewer"}, {"name": "admin", "key": f"{key}-2"}],
    ):
        done = empty_site.bring(tmp_path, *keys)
        assert done.returncode == 1
        assert "the declared key `admin`: that is the first admin's name; name it otherwise" in done.stderr
        assert key not in done.stdout + done.stderr
    assert empty_site.sql("select count(*) from llm.users") == [(0,)]
    assert empty_site.brought(tmp_path, {"name": "admin", "key": key})["added"] == ["admin"]


async def test_where_no_admin_has_a_key_one_is_made_and_lies_in_a_file_of_roots_alone(empty_site, engines, tmp_path):
    file = tmp_path / "admin.key"
    done = empty_site.bring(tmp_path, options=["--admin-key-file", str(file)])
    assert done.returncode == 0, done.stderr
    key = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in done.stdout + done.stderr
    assert json.loads(done.stdout)["admin_key_file"] == str(file)
    again = empty_site.brought(tmp_path, options=["--admin-key-file", str(file)])
    assert (again["changed"], again["admin_key_file"]) == (False, None)
    async with empty_site.gateway(tmp_path, engines) as gateway:
        assert (await empty_site.admin(gateway, "GET", "/users", key=key)).json["data"][0]["name"] == "admin"


async def test_a_declared_key_that_was_revoked_by_the_api_is_not_brought_back(empty_site, engines, tmp_path):
    leaked = {"name": "leaky", "key": "sk-of-leaky-0123456789abcdef", "role": "developer"}
    root = {"name": "root", "key": empty_site.admin_key}
    empty_site.brought(tmp_path, root, leaked)
    async with empty_site.gateway(tmp_path, engines) as gateway:
        keys = (await empty_site.admin(gateway, "GET", "/keys?user=leaky")).json["data"]
        await empty_site.admin(gateway, "POST", f"/keys/{keys[0]['id']}/revoke")
        told = empty_site.brought(tmp_path, root, leaked)
        assert (told["changed"], told["refused"]) == (False, ["leaky"])
        assert (await gateway.ask(key=leaked["key"])).status == 401


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("not json", "expected JSON"),
        ('{"pepper": "p"}', "missing required field `keys`"),
        ('{"pepper": "short", "keys": []}', "the pepper: expected at least 32 characters"),
        ('{"pepper": "%s", "keys": [{"name": "a", "key": "sk-short"}]}' % ("p" * 32), "$.keys[0].key"),
    ],
)
def test_what_is_no_import_is_told_without_its_content(site, tmp_path, given, said):
    site.place(tmp_path)
    words = [sys.executable, "-m", "citadel_llm.cli", "identity", "import", "--stdin", "--credentials"]
    done = subprocess.run(
        [*words, str(tmp_path / "database.json")], input=given, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr
    assert "sk-short" not in done.stderr
