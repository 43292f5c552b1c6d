"""Migrations against the lab's PostgreSQL, through Pgpool-II, each test in an empty database of its own.

Run inside the lab: `bin/lab run pytest tests/integration/test_database.py`; it needs the SQL host alone.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import psycopg
import pytest
from llm_rows import made_by, rows_of, up_to
from sql_host import DEADLINE_S, GATEWAY, until

from citadel_llm.integration.database import migrate, privileges, schema
from citadel_llm.integration.database.connection import LOCK, connected, transaction
from citadel_llm.integration.database.migrate import MIGRATIONS
from citadel_llm.integration.database.target import DatabaseError, Target

pytestmark = pytest.mark.lab
REVISIONS = migrate.revisions()
NEWEST = REVISIONS[-1]
NEXT = f"{int(NEWEST) + 1:04}"
EVERYTHING = privileges.WANTED
TABLES = """
select relname from pg_class
where relnamespace = to_regnamespace('llm') and relkind in ('r', 'p') and not relispartition
  and relname <> 'alembic_version'
"""


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
def release(tmp_path, monkeypatch):
    """`release(revision)`: the migrations of the release whose newest revision this is, and what it gave its role."""

    def made(revision):
        folder = tmp_path / f"release-{revision}"
        shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        for later in REVISIONS[REVISIONS.index(revision) + 1 :]:
            for path in [*folder.glob(f"versions/v{later}_*"), *folder.glob(f"sql/{later}_*")]:
                path.unlink()
        made_since = {name for kind in ("table", "function") for name in made_by(kind, *REVISIONS)}
        made_since -= {name for kind in ("table", "function") for name in made_by(kind, *up_to(revision))}
        wanted = {(thing, given) for thing, given in EVERYTHING if not made_since & set(re.findall(r"\w+", thing))}
        monkeypatch.setattr(privileges, "WANTED", frozenset(wanted))
        return folder

    return made


@pytest.fixture
def kept(ask):
    """`kept()`: {table: [row, ...]}, a row as {column: text}."""

    def told():
        return {
            table: [row for (row,) in ask(f"select to_json(t) from llm.{table} t order by to_json(t)::text")]
            for (table,) in ask(TABLES)
        }

    return told


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


def lines(engine):
    with transaction(engine) as connection:
        return schema.lines(connection)


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


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_table_of_a_revision_has_rows_in_these_tests(engine, ask, release, revision):
    migrate.upgrade(engine, GATEWAY, directory=release(revision))
    ask(rows_of(*up_to(revision)))
    empty = [table for (table,) in ask(TABLES) if not ask(f"select 1 from llm.{table} limit 1")]
    assert empty == [], "tests/integration/llm_rows.py needs rows for these"


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_from_every_earlier_revision_with_its_data_the_schema_comes_to_the_newest(
    engine, ask, release, kept, monkeypatch, revision
):
    migrate.upgrade(engine, GATEWAY, directory=release(revision))
    ask(rows_of(*up_to(revision)))
    before = kept()
    monkeypatch.setattr(privileges, "WANTED", EVERYTHING)
    outcome = migrate.upgrade(engine, GATEWAY)
    assert (outcome.before, outcome.applied) == (revision, REVISIONS[REVISIONS.index(revision) + 1 :])
    assert differences(engine) == []
    assert {table: _as_in(before[table], rows) for table, rows in kept().items() if table in before} == before
    assert not migrate.upgrade(engine, GATEWAY).changed


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_back_to_every_earlier_revision_its_own_data_stays_and_forward_again_the_schema_is_whole(
    engine, ask, release, kept, monkeypatch, revision
):
    folder = release(revision)
    migrate.upgrade(engine, GATEWAY, directory=folder)
    ask(rows_of(*up_to(revision)))
    before, schema_before = kept(), lines(engine)
    monkeypatch.setattr(privileges, "WANTED", EVERYTHING)
    migrate.upgrade(engine, GATEWAY)
    ask(rows_of(*REVISIONS[REVISIONS.index(revision) + 1 :]))
    undone = migrate.downgrade(engine, revision)
    assert undone.applied == list(reversed(REVISIONS[REVISIONS.index(revision) + 1 :]))
    assert lines(engine) == schema_before
    after = kept()
    assert {table: [row for row in rows if row not in after[table]] for table, rows in before.items()} == {
        table: [] for table in before
    }
    migrate.upgrade(engine, GATEWAY)
    assert differences(engine) == []


def _as_in(wanted, rows):
    """Rows with those columns alone that the wanted ones have, in the same order."""
    columns = wanted[0].keys()
    cut = [{name: row[name] for name in columns} for row in rows]
    return sorted(cut, key=wanted.index) if all(row in wanted for row in cut) else cut


def test_up_with_data_down_to_nothing_and_up_leaves_what_up_alone_does(engine, ask):
    migrate.upgrade(engine, GATEWAY)
    ask(rows_of(*REVISIONS))
    before = lines(engine)
    assert migrate.downgrade(engine, "base").applied == list(reversed(REVISIONS))
    assert ask("select to_regnamespace('llm')") == [(None,)]
    migrate.upgrade(engine, GATEWAY)
    assert lines(engine) == before
    assert differences(engine) == []


@pytest.mark.parametrize("before", [None, *REVISIONS])
def test_of_deployers_at_once_each_revision_is_one_ones_and_all_end_well(
    engine, ask, deployer, release, later, monkeypatch, before
):
    if before:
        migrate.upgrade(engine, GATEWAY, directory=release(before))
        ask(rows_of(*up_to(before)))
        monkeypatch.setattr(privileges, "WANTED", EVERYTHING)
    folder = later("select pg_sleep(0.5)")
    processes = [deployer(folder) for _ in range(3)]
    said = []
    for process in processes:
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err
        said.append(json.loads(out))
    pending = [*REVISIONS, NEXT][REVISIONS.index(before) + 1 if before else 0 :]
    assert sorted(name for outcome in said for name in outcome["applied"]) == pending
    assert {outcome["after"] for outcome in said} == {NEXT}
    assert sum(outcome["partitions"] for outcome in said) == (0 if before else migrate.MONTHS_AHEAD + 1)
    assert revision(engine) == NEXT


@pytest.mark.parametrize("broken", [*REVISIONS, NEXT])
def test_a_deployer_killed_within_a_revision_leaves_the_one_before_and_the_next_one_goes_on(
    engine, ask, deployer, later, kept, broken
):
    """The pause is at the revision's very end, when everything that it does is done."""
    folder = later("create table llm.halfway (id integer)")
    path = next((folder / "sql").glob(f"{broken}*.up.sql"))
    whole = path.read_text()
    path.write_text(f"{whole.rstrip().rstrip(';')}; select pg_sleep(3)")
    killed = deployer(folder)
    asleep = "select 1 from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
    until(lambda: ask(asleep), "the migration is under way")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = [name for name in [*REVISIONS, NEXT] if name < broken]
    assert revision(engine) == (before[-1] if before else None)
    assert set(kept()) == made_by("table", *[name for name in before if name in REVISIONS])
    path.write_text(whole)
    # The lock is free again by itself: Pgpool-II ends what the dead one had begun.
    assert migrate.upgrade(engine, GATEWAY, directory=folder).applied == [*REVISIONS, NEXT][len(before) :]
    assert ask("select count(*) from llm.halfway") == [(0,)]
    assert ask(f"select count(*) from pg_locks where locktype = 'advisory' and objid = {LOCK & 0xFFFFFFFF}") == [(0,)]


def test_a_revision_that_fails_leaves_nothing_of_itself(engine, ask, later):
    folder = later("create table llm.halfway (id integer); select 1 / 0")
    with pytest.raises(DatabaseError, match="division by zero"), connected_as(engine) as again:
        migrate.upgrade(again, GATEWAY, directory=folder)
    assert revision(engine) == NEWEST
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
    assert (rolled_back.newer, rolled_back.changed, rolled_back.after) == (True, False, NEXT)
    assert differences(engine) == []
    ask("insert into llm.users (name) values ('anna')", "database_gateway_url")
    assert ask("select locale from llm.users", "database_gateway_url") == [("en",)]
    assert ask("select count(*) from llm.extra", "database_gateway_url") == [(0,)]
    with pytest.raises(DatabaseError, match="only the release that made it"):
        migrate.downgrade(engine, "0001")


@pytest.mark.parametrize("revision", REVISIONS)
def test_what_every_earlier_release_writes_it_can_write_on_the_newest_schema(engine, ask, release, kept, revision):
    """As the gateway's user, and the deployment of that release leaves the schema as it is."""
    migrate.upgrade(engine, GATEWAY)
    ask(rows_of(*up_to(revision)), "database_gateway_url")
    filled = {table for table, rows in kept().items() if rows}
    assert filled >= made_by("table", *up_to(revision))
    if revision != NEWEST:
        rolled_back = migrate.upgrade(engine, GATEWAY, directory=release(revision))
        assert (rolled_back.newer, rolled_back.changed, rolled_back.after) == (True, False, NEWEST)


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
    assert revision(engine) == NEWEST
    assert migrate.upgrade(engine, GATEWAY, directory=folder).applied == [NEXT]


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


def test_an_upgrade_that_finds_drift_names_it_and_fails(engine, ask, target):
    migrate.upgrade(engine, GATEWAY)
    ask("alter table llm.users add column x text")
    place = target()
    said = subprocess.run(
        ["citadel", "database", "upgrade", "--credentials", "-", "--runtime-user", GATEWAY, "--json"],
        input=json.dumps({name: getattr(place, name) for name in Target.__dataclass_fields__}),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert said.returncode == 1, said.stderr
    assert json.loads(said.stdout)["drift"] == ["unknown: column users.x text"]


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
