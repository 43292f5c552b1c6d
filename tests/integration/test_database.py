"""Migrations against the lab's PostgreSQL, through Pgpool-II, each test in an empty database of its own.

Run inside the lab: `bin/lab run pytest tests/integration/test_database.py`; it needs the SQL host alone.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from citadel_llm.integration.database import migrate, privileges, schema
from citadel_llm.integration.database.connection import LOCK, connected, transaction
from citadel_llm.integration.database.migrate import MIGRATIONS
from citadel_llm.integration.database.target import DatabaseError, Target

pytestmark = pytest.mark.lab
REPO = Path(__file__).resolve().parents[2]
SQL_HOST = "hx-sql-server-01"
GATEWAY = "citadel_gateway"
DEADLINE_S = 60
AUDIT = """
insert into llm.audit_log (at, id, chain, position, previous_digest, digest, kind, action, request_id, outcome)
select now(), gen_random_uuid(), 'a', n, decode(repeat('00', 32), 'hex'), decode(repeat('01', 32), 'hex'),
       'request', 'chat', 'req-' || n, 'ok' from generate_series(1, 100) as n
"""


def on_the_host(*words):
    subprocess.run([str(REPO / "bin/lab"), "exec", SQL_HOST, *words], check=True, timeout=60, stdin=subprocess.DEVNULL)


def until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def database():
    """An empty database of the owner's."""
    name = f"citadel_test_{secrets.token_hex(4)}"
    on_the_host("runuser", "-u", "postgres", "--", "createdb", "--owner=citadel_admin", name)
    yield name
    on_the_host("runuser", "-u", "postgres", "--", "dropdb", "--force", name)


@pytest.fixture
def target(credentials, database):
    """`target(fact)`: the database, by the user of that fact."""

    def made(fact="database_url"):
        url = urlsplit(credentials[fact])
        return Target(url.hostname, url.port, database, url.username, url.password)

    return made


@pytest.fixture
def engine(target):
    with connected(target()) as made:
        yield made


@pytest.fixture
def ask(target):
    """`ask(statement, fact)`: its rows, in a transaction of its own."""

    def asked(statement, fact="database_url"):
        place = target(fact)
        with psycopg.connect(
            host=place.host, port=place.port, dbname=place.database, user=place.user, password=place.password
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    return asked


@pytest.fixture
def later(tmp_path):
    """`later(up, down)`: the migrations of a release after this one, with a revision more."""

    def made(up, down=""):
        folder = tmp_path / "migrations"
        if not folder.exists():
            shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        known = migrate.revisions(folder)
        number = f"{int(known[-1]) + 1:04}"
        (folder / f"sql/{number}.up.sql").write_text(up)
        (folder / f"sql/{number}.down.sql").write_text(down or "select 1")
        first = next((folder / "versions").glob("v0001_*.py")).read_text()
        first = first.replace('"0001"', f'"{number}"').replace("down_revision = None", f'down_revision = "{known[-1]}"')
        (folder / f"versions/v{number}.py").write_text(first.replace("0001_first", number))
        return folder

    return made


@pytest.fixture
def deployer(target, tmp_path):
    """`deployer(directory)`: an upgrade in a process of its own."""
    running = []
    script = (
        "import json, pathlib, sys\n"
        "from citadel_llm.integration.database import migrate\n"
        "from citadel_llm.integration.database.connection import connected\n"
        "from citadel_llm.integration.database.target import Target\n"
        "with connected(Target(**json.load(sys.stdin))) as engine:\n"
        f"    outcome = migrate.upgrade(engine, {GATEWAY!r}, directory=pathlib.Path(sys.argv[1]))\n"
        "print(json.dumps(outcome.facts()))\n"
    )

    def started(directory):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(directory)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        place = target()
        process.stdin.write(json.dumps({name: getattr(place, name) for name in Target.__dataclass_fields__}))
        process.stdin.close()
        process.stdin = None
        running.append(process)
        return process

    yield started
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def differences(engine, directory=MIGRATIONS):
    with transaction(engine) as connection:
        return schema.differences(connection, GATEWAY, directory)


def revision(engine):
    with transaction(engine) as connection:
        return migrate.current(connection)


def test_an_empty_database_is_brought_to_the_newest_revision_and_a_second_time_changes_nothing(engine):
    first = migrate.upgrade(engine, GATEWAY)
    assert (first.before, first.after, first.applied) == (None, migrate.revisions()[-1], migrate.revisions())
    assert differences(engine) == []
    assert not migrate.upgrade(engine, GATEWAY).changed
    assert not migrate.upgrade(engine, GATEWAY, dry_run=True).changed


def test_a_dry_run_says_what_would_be_done_and_does_nothing(engine, ask):
    told = migrate.upgrade(engine, GATEWAY, dry_run=True)
    assert (told.changed, told.applied) == (True, migrate.revisions())
    assert ask("select to_regnamespace('llm')") == [(None,)]


def test_up_down_and_up_leaves_what_up_alone_does(engine, ask):
    migrate.upgrade(engine, GATEWAY)
    ask(AUDIT)
    with transaction(engine) as connection:
        before = schema.lines(connection)
    undone = migrate.downgrade(engine, "base")
    assert undone.applied == list(reversed(migrate.revisions()))
    assert ask("select to_regnamespace('llm')") == [(None,)]
    migrate.upgrade(engine, GATEWAY)
    with transaction(engine) as connection:
        assert schema.lines(connection) == before
    assert differences(engine) == []


def test_every_revision_goes_up_with_data_in_it_and_back(engine, ask, later):
    migrate.upgrade(engine, GATEWAY)
    ask(AUDIT)
    folder = later("alter table llm.audit_log add column cost real", "alter table llm.audit_log drop column cost")
    assert migrate.upgrade(engine, GATEWAY, directory=folder).applied == ["0002"]
    assert ask("select count(*), count(cost) from llm.audit_log") == [(100, 0)]
    assert migrate.downgrade(engine, "0001", directory=folder).applied == ["0002"]
    assert ask("select count(*) from llm.audit_log") == [(100,)]
    assert differences(engine) == []


def test_of_two_deployers_at_once_one_migrates_and_both_end_well(engine, deployer, later):
    folder = later("select pg_sleep(0.5)")
    processes = [deployer(folder) for _ in range(3)]
    said = []
    for process in processes:
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err
        said.append(json.loads(out))
    # Each revision by one of them; the others found it done.
    assert sorted(name for outcome in said for name in outcome["applied"]) == ["0001", "0002"]
    assert {outcome["after"] for outcome in said} == {"0002"}
    assert sum(outcome["partitions"] for outcome in said) == migrate.MONTHS_AHEAD + 1
    assert revision(engine) == "0002"


def test_a_deployer_killed_half_way_leaves_the_revision_before_and_the_next_one_goes_on(engine, ask, deployer, later):
    folder = later("create table llm.halfway (id integer); select pg_sleep(3)")
    killed = deployer(folder)
    until(
        lambda: ask("select 1 from pg_stat_activity where query like '%pg_sleep(3)%' and pid <> pg_backend_pid()"),
        "the migration is under way",
    )
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert revision(engine) == "0001"
    assert ask("select to_regclass('llm.halfway')") == [(None,)]
    # The lock is free again by itself: Pgpool-II ends what the dead one had begun.
    assert migrate.upgrade(engine, GATEWAY, directory=folder).applied == ["0002"]
    assert ask("select count(*) from llm.halfway") == [(0,)]
    assert ask(f"select count(*) from pg_locks where locktype = 'advisory' and objid = {LOCK & 0xFFFFFFFF}") == [(0,)]


def test_a_revision_that_fails_leaves_nothing_of_itself(engine, ask, later):
    folder = later("create table llm.halfway (id integer); select 1 / 0")
    with pytest.raises(DatabaseError, match="division by zero"), connected_as(engine) as again:
        migrate.upgrade(again, GATEWAY, directory=folder)
    assert revision(engine) == "0001"
    assert ask("select to_regclass('llm.halfway')") == [(None,)]


@contextlib.contextmanager
def connected_as(engine):
    url = engine.url
    with connected(Target(url.host, url.port, url.database, url.username, url.password)) as made:
        yield made


def test_the_release_before_works_on_the_schema_of_the_next(engine, ask, later):
    """Expand: what a later release adds, this one does not see, and its deployment leaves it alone."""
    migrate.upgrade(engine, GATEWAY)
    folder = later(
        "alter table llm.users add column locale text not null default 'en'; create table llm.extra (id integer);"
        "grant select on llm.extra to citadel_gateway"
    )
    migrate.upgrade(engine, GATEWAY, directory=folder)
    ask("grant select on llm.extra to citadel_gateway")  # as the later release's own list would
    rolled_back = migrate.upgrade(engine, GATEWAY)
    assert (rolled_back.newer, rolled_back.changed, rolled_back.after) == (True, False, "0002")
    assert differences(engine) == []
    ask("insert into llm.users (name) values ('anna')", "database_gateway_url")
    assert ask("select locale from llm.users", "database_gateway_url") == [("en",)]
    assert ask("select count(*) from llm.extra", "database_gateway_url") == [(0,)]
    with pytest.raises(DatabaseError, match="only the release that made it"):
        migrate.downgrade(engine, "0001")


def test_a_change_waits_for_no_table_longer_than_a_caller_can(engine, ask, target, later, monkeypatch):
    migrate.upgrade(engine, GATEWAY)
    monkeypatch.setattr("citadel_llm.integration.database.connection.TABLE_WAIT_S", 1)
    folder = later("alter table llm.users add column locale text")
    place, held, release = target(), threading.Event(), threading.Event()

    def hold():
        with psycopg.connect(
            host=place.host, port=place.port, dbname=place.database, user=place.user, password=place.password
        ) as connection:
            connection.execute("lock table llm.users in access share mode")
            held.set()
            release.wait(DEADLINE_S)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(DEADLINE_S)
        with pytest.raises(DatabaseError, match="lock timeout"), connected_as(engine) as again:
            migrate.upgrade(again, GATEWAY, directory=folder)
    finally:
        release.set()
        holder.join()
    assert revision(engine) == "0001"
    assert migrate.upgrade(engine, GATEWAY, directory=folder).applied == ["0002"]


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("alter table llm.users add column spare text", "unknown: column users.spare text"),
        ("alter table llm.users drop column email", "missing: column users.email text"),
        ("drop index llm.api_keys_by_digest", "missing: index api_keys CREATE UNIQUE INDEX api_keys_by_digest"),
        ("alter table llm.audit_log disable trigger audit_append_only", "missing: trigger audit_log O"),
        ("alter table llm.feedback drop constraint feedback_rating_check", "missing: constraint feedback."),
        ("create table llm.spare (id integer)", "unknown: table spare"),
        ("grant select on llm.users to public", "unknown: to everyone: SELECT on users"),
        ("grant delete on llm.audit_log to citadel_gateway", "privileges: revoke DELETE on table llm.audit_log"),
        ("grant update (outcome) on llm.audit_log to citadel_gateway", "privileges: revoke UPDATE (outcome)"),
        ("grant create on schema llm to citadel_gateway", "may create objects in schema llm"),
        ("revoke insert on llm.audit_log from citadel_gateway", "privileges: grant INSERT on table llm.audit_log"),
        ("create or replace function llm.audit_refuse_change() returns trigger language plpgsql as "
         "'begin return new; end'", "missing: function audit_refuse_change()"),
        ("do $$ begin execute 'drop table llm.audit_log_' || to_char(now() at time zone 'UTC', 'YYYY_MM'); end $$",
         "audit_log: 1 of the partitions"),
        ("do $$ begin execute 'alter table llm.audit_log_' || to_char(now() at time zone 'UTC', 'YYYY_MM') || "
         "' disable trigger audit_append_only'; end $$", "unknown: missing trigger audit_append_only"),
    ],
)  # fmt: skip
def test_drift_is_found_and_named(engine, ask, statement, found):
    migrate.upgrade(engine, GATEWAY)
    ask(statement)
    assert any(found in line for line in differences(engine)), differences(engine)


def test_what_the_role_may_is_mended_by_the_next_upgrade(engine, ask):
    migrate.upgrade(engine, GATEWAY)
    ask("grant delete, truncate on llm.audit_log to citadel_gateway")
    ask("grant update (outcome) on llm.audit_log to citadel_gateway")
    ask("revoke insert on llm.audit_log from citadel_gateway")
    assert len(migrate.upgrade(engine, GATEWAY).privileges) == 4
    assert differences(engine) == []


def test_a_role_that_is_not_there_is_told_before_anything_is_done(engine, ask):
    with pytest.raises(DatabaseError, match="create role nobody_here login password"):
        migrate.upgrade(engine, "nobody_here")
    assert ask("select to_regnamespace('llm')") == [(None,)]


def test_the_role_is_the_sites_choice(engine, target):
    migrate.upgrade(engine, GATEWAY)
    told = migrate.upgrade(engine, "citadel_admin", dry_run=True)
    assert all(line.endswith("citadel_admin") for line in told.privileges)
    with transaction(engine) as connection:
        assert privileges.excesses(connection, GATEWAY) == []
        assert "owns llm.users" in privileges.excesses(connection, "citadel_admin")


def test_the_command_says_what_is_wrong_and_never_the_password(target):
    place = target()
    wrong = {"host": place.host, "port": place.port, "database": place.database, "user": place.user}
    said = subprocess.run(
        ["citadel", "database", "current", "--credentials", "-"],
        input=json.dumps({**wrong, "password": "not-the-password"}), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert said.returncode == 1
    assert said.stderr.startswith(f"citadel: {place.host}:{place.port}, {place.database} as {place.user}: ")
    assert "not-the-password" not in said.stderr + said.stdout
