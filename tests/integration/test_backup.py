"""Backups of the lab's PostgreSQL through Pgpool-II, each test with a database of its own, and what brings them back.

Run inside the lab: `bin/lab run pytest tests/integration/test_backup.py`; it needs the SQL host alone.
"""

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import psycopg
import pytest
from llm_rows import ANNA, rows_of, up_to
from sql_host import DEADLINE_S, GATEWAY, until

from citadel_llm.integration.database import backup, migrate, schema
from citadel_llm.integration.database.connection import locked, transaction
from citadel_llm.integration.database.manifest import Manifest, backups, verify
from citadel_llm.integration.database.restore import restore
from citadel_llm.integration.database.target import DatabaseError

pytestmark = pytest.mark.lab
REVISIONS = migrate.revisions()
TABLES = """
select relname from pg_class where relnamespace = to_regnamespace('llm') and relkind in ('r', 'p')
and not relispartition and relname not in ('alembic_version', 'identity_version')
"""
ASIDE = "select nspname from pg_namespace where nspname like 'llm_before_%'"
AUDIT = "at, id, chain, position, previous_digest, digest, kind, action, request_id, outcome"
OLD_MONTH = f"""
create table llm.audit_log_2020_02 partition of llm.audit_log
  for values from ('2020-02-01 00:00+00') to ('2020-03-01 00:00+00');
create trigger audit_no_truncate before truncate on llm.audit_log_2020_02
  for each statement execute function llm.audit_refuse_change();
insert into llm.audit_log ({AUDIT})
values ('2020-02-29 23:59:59.999999+00', gen_random_uuid(), 'old', 0, decode(repeat('00', 32), 'hex'),
  decode(repeat('01', 32), 'hex'), 'security', 'login', 'req-old', 'refused')
"""


@pytest.fixture
def filled(engine, ask):
    """The newest schema with rows in every table, of an old month too."""
    migrate.upgrade(engine, GATEWAY)
    ask(OLD_MONTH)
    ask(rows_of(*REVISIONS))


@pytest.fixture
def kept(ask):
    """`kept()`: {table: [row, ...]}, a row as text, to the last digit; without the identities' version."""

    def told():
        return {
            table: [row for (row,) in ask(f"select t::text from llm.{table} t order by t::text")]
            for (table,) in ask(TABLES)
        }

    return told


@pytest.fixture
def made(target, tmp_path):
    """`made()`: the folder of a new backup, made by the gateway's user."""

    def making(directory=tmp_path / "backups", **options):
        return backup.make(target("database_gateway_url"), directory, release="1.2.3", **options)

    return making


@pytest.fixture
def citadel(target):
    """`citadel(*words)`: the command, by the user of that fact."""

    def ran(*words, fact="database_gateway_url", **options):
        place = target(fact)
        return subprocess.run(
            ["citadel", "database", *map(str, words)], capture_output=True, text=True, timeout=DEADLINE_S,
            input=json.dumps({name: getattr(place, name) for name in type(place).__dataclass_fields__}), **options,
        )  # fmt: skip

    return ran


def lose(ask):
    ask("drop schema llm cascade")


def differences(engine):
    with transaction(engine) as connection:
        return schema.differences(connection, GATEWAY)


# -- there and back ---------------------------------------------------------------------------------------------


def test_after_the_loss_of_the_schema_every_row_is_back_and_the_gateway_goes_on(engine, ask, filled, kept, made):
    before = kept()
    assert [table for table, rows in before.items() if not rows] == []
    folder = made()
    lose(ask)
    done = restore(engine, folder, GATEWAY)
    assert kept() == before
    assert (done.rows, done.aside, done.broken_chains) == (Manifest.read(folder).rows, None, [])
    assert differences(engine) == []
    # What makes numbers goes on after the highest, and the gateway's user may do what it has to.
    as_gateway = "database_gateway_url"
    assert ask("select max(id) from llm.deployments") == [(2,)]
    ask("update llm.deployments set retired_at = now()", as_gateway)
    ask(
        "insert into llm.deployments (model, host, port, weights_version, engine_version, release) "
        "values ('mixtral', 'hx-llm-server-01', 11400, 'v3', '0.32.0', '0.3.0')", as_gateway,
    )  # fmt: skip
    assert ask("select max(id) from llm.deployments") == [(3,)]
    ask("insert into llm.users (name) values ('carla')", as_gateway)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask("create table llm.own (id integer)", as_gateway)


def test_the_audit_log_goes_on_where_it_was_and_is_as_closed_as_before(engine, ask, filled, made):
    folder = made()
    chains = "select chain, position, digest from llm.audit_chains order by chain"
    before = ask(chains)
    lose(ask)
    restore(engine, folder, GATEWAY)
    assert ask(chains) == before
    ask(
        f"insert into llm.audit_log ({AUDIT})"
        " select now(), gen_random_uuid(), chain, position + 1, digest, digest, 'request', 'chat', 'req-101', 'ok'"
        " from llm.audit_chains", "database_gateway_url",
    )  # fmt: skip
    for statement in (
        "update llm.audit_log set outcome = 'other'",
        "delete from llm.audit_log",
        "truncate llm.audit_log",
        "truncate llm.audit_log_2020_02",
        "delete from llm.audit_log_2020_02",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ask(statement)
    assert ask("select llm.audit_drop_partitions()") == [(1,)]


def test_a_chain_that_does_not_fit_together_is_told(engine, ask, filled, made):
    ask(
        f"insert into llm.audit_log ({AUDIT})"
        " select now(), gen_random_uuid(), 'torn', n, decode(repeat('0' || n, 32), 'hex'),"
        " decode(repeat('07', 32), 'hex'), 'request', 'chat', 'r', 'ok' from generate_series(1, 2) n"
    )
    folder = made()
    lose(ask)
    assert restore(engine, folder, GATEWAY).broken_chains == ["torn"]


def test_whoever_kept_the_identities_sees_that_they_are_others_now(engine, ask, filled, made):
    folder = made()
    ((before,),) = ask("select version from llm.identity_version")
    lose(ask)
    restore(engine, folder, GATEWAY)
    ((after,),) = ask("select version from llm.identity_version")
    assert after > before + 1_000_000
    ask("update llm.users set name = 'anne' where name = 'anna'", "database_gateway_url")
    assert ask("select version from llm.identity_version") == [(after + 1,)]


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_a_backup_of_an_earlier_revision_comes_back_and_then_forward(engine, ask, kept, made, revision):
    migrate.upgrade(engine, GATEWAY)
    migrate.downgrade(engine, revision)
    ask(rows_of(*up_to(revision)))
    users = ask("select name from llm.users order by name")
    folder = made()
    assert Manifest.read(folder).revision == revision
    lose(ask)
    done = restore(engine, folder, GATEWAY)
    assert (done.revision, done.after) == (revision, REVISIONS[-1])
    assert ask("select name from llm.users order by name") == users
    assert differences(engine) == []


def test_a_fresh_schema_gives_way_and_one_in_use_does_not_unless_told(engine, ask, filled, kept, made):
    folder = made()
    before = kept()
    ask("insert into llm.users (name) values ('dora')", "database_gateway_url")
    with pytest.raises(DatabaseError, match=r"has rows in api_keys, .*; with --replace"):
        restore(engine, folder, GATEWAY)
    assert ask("select 1 from llm.users where name = 'dora'") == [(1,)]
    done = restore(engine, folder, GATEWAY, replace=True)
    assert kept() == before
    assert differences(engine) == []
    # What was there is not lost, and not the gateway's any more.
    assert ask(ASIDE) == [(done.aside,)]
    assert ask(f"select 1 from {done.aside}.users where name = 'dora'") == [(1,)]
    assert ask(f"select has_schema_privilege('{GATEWAY}', '{done.aside}', 'usage')") == [(False,)]
    migrate.downgrade(engine, "base")
    migrate.upgrade(engine, GATEWAY)
    assert restore(engine, folder, GATEWAY).aside is None
    assert kept() == before


def test_a_backup_is_of_one_moment(engine, ask, filled, made, target, monkeypatch):
    """A row that comes while it is made is in no table of it, though its table's turn is later."""
    table = backup._table

    def slowly(asking, folder, name, *others):
        if name == "users":
            ask("insert into llm.users (name) values ('late')", "database_gateway_url")
        return table(asking, folder, name, *others)

    monkeypatch.setattr(backup, "_table", slowly)
    folder = made()
    assert ask("select 1 from llm.users where name = 'late'") == [(1,)]
    assert b"\tlate\t" not in gzip.decompress((folder / "users.copy.gz").read_bytes())


def test_a_change_of_the_schema_waits_for_a_backup_and_a_backup_for_it(
    engine, ask, filled, made, monkeypatch, tmp_path
):
    table, began, go_on = backup._table, threading.Event(), threading.Event()

    def held(*arguments):
        began.set()
        assert go_on.wait(DEADLINE_S)
        return table(*arguments)

    monkeypatch.setattr(backup, "_table", held)
    making = threading.Thread(target=made)
    making.start()
    assert began.wait(DEADLINE_S)
    changing = threading.Thread(target=migrate.upgrade, args=(engine, GATEWAY))
    changing.start()
    until(lambda: ask("select 1 from pg_locks where locktype = 'advisory' and not granted"), "the change waits")
    go_on.set()
    making.join(DEADLINE_S)
    changing.join(DEADLINE_S)
    assert not changing.is_alive()
    with locked(engine):
        making = threading.Thread(target=made, args=(tmp_path / "others",))
        making.start()
        until(lambda: ask("select 1 from pg_locks where locktype = 'advisory' and not granted"), "the backup waits")
    making.join(DEADLINE_S)
    assert len(backups(tmp_path / "others")) == 1


# -- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: os.truncate(folder / "audit_log.copy.gz", 10), "audit_log.copy.gz: 10 bytes, the manifest"),
        (lambda folder: (folder / "users.copy.gz").unlink(), "users.copy.gz: No such file"),
        (lambda folder: flip(folder / "users.copy.gz"), "users.copy.gz: its SHA-256 is not the manifest's"),
        (lambda folder: (folder / "manifest.json").unlink(), "no backup: it has no manifest.json"),
        (lambda folder: os.truncate(folder / "manifest.json", 100), "its manifest.json is damaged"),
        (lambda folder: edit(folder, lambda found: found.update(format=2)), "of format 2, this release reads 1"),
        (lambda folder: edit(folder, lambda found: found.update(revision="9999")), "restore it with release 1.2.3"),
        (lambda folder: edit(folder, lambda found: found["tables"][0].update(name="a; drop")), "json is damaged"),
        (lambda folder: edit(folder, lambda found: found["tables"][0].update(file="../x")), "manifest.json is damaged"),
        (lambda folder: edit(folder, lambda found: found["tables"].pop()), "its tables are not those of revision"),
        (lambda folder: edit(folder, lambda found: found["tables"][0].update(rows=7)), "rows, the manifest says 7"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_not_restored_and_nothing_is_changed(engine, ask, filled, kept, made, damage, said):
    folder = made()
    damage(folder)
    before = kept()
    with pytest.raises(DatabaseError) as refused:
        restore(engine, folder, GATEWAY, replace=True)
    assert said in str(refused.value)
    assert kept() == before
    assert ask(ASIDE) == []
    assert differences(engine) == []


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(folder, change):
    found = json.loads((folder / "manifest.json").read_text())
    change(found)
    (folder / "manifest.json").write_text(json.dumps(found))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_earlier_ones_untouched_and_says_what_to_do(engine, ask, filled, citadel, small_disk):
    def run():
        return citadel("backup", "--to", small_disk, "--keep", "1", "--credentials", "-")

    assert run().returncode == 0
    (first,) = backups(small_disk)
    ask(
        "insert into llm.messages (session_id, position, id, role, content) select 'conv_1', n, 'big_' || n, 'user', "
        "to_jsonb((select string_agg(gen_random_uuid()::text, '') from generate_series(1, 100) where n > 0)) "
        "from generate_series(10, 2000) n"
    )
    said = run()
    assert said.returncode == 1
    assert said.stderr.startswith(f"citadel: {small_disk}: the disk is full, no backup was made; the one before took ")
    assert "The 1 that are there are untouched: free some space, or keep fewer" in said.stderr
    assert sorted(path.name for path in small_disk.iterdir()) == [".lock", first.name]
    verify(first)


def test_one_that_was_killed_is_no_backup_and_the_next_one_clears_it_away(engine, ask, filled, target, made, tmp_path):
    directory = tmp_path / "backups"
    script = (
        "import json, sys, time, pathlib\n"
        "from citadel_llm.integration.database import backup\n"
        "from citadel_llm.integration.database.target import Target\n"
        "table = backup._table\n"
        "def slowly(ask, folder, name, *others):\n"
        "    made = table(ask, folder, name, *others)\n"
        "    if name == 'messages':\n"
        "        print('half', flush=True); time.sleep(600)\n"
        "    return made\n"
        "backup._table = slowly\n"
        "backup.make(Target(**json.load(sys.stdin)), pathlib.Path(sys.argv[1]), release='1')\n"
    )
    place = target("database_gateway_url")
    process = subprocess.Popen(
        [sys.executable, "-c", script, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        process.stdin.write(json.dumps({name: getattr(place, name) for name in type(place).__dataclass_fields__}))
        process.stdin.close()
        assert process.stdout.readline() == "half\n"
        with pytest.raises(DatabaseError, match="another backup is being made there"):
            made()
        os.kill(process.pid, signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
    assert backups(directory) == []
    assert list(directory.glob("*.partial"))
    folder = made()
    assert backups(directory) == [folder]
    assert list(directory.glob("*.partial")) == []
    # What the dead one held in the database it holds no more.
    assert not migrate.upgrade(engine, GATEWAY).changed


def test_a_database_that_is_away_or_empty_is_told_and_no_half_is_left(engine, citadel, tmp_path):
    said = citadel("backup", "--to", tmp_path / "backups", "--credentials", "-")
    assert said.returncode == 1
    assert "has no schema llm: nothing to back up" in said.stderr
    assert [path.name for path in (tmp_path / "backups").iterdir()] == [".lock"]


def test_a_restore_that_fails_half_way_leaves_everything_as_it_was(engine, ask, filled, kept, made, monkeypatch):
    folder = made()
    before = kept()
    monkeypatch.setattr(migrate, "partitions", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        restore(engine, folder, GATEWAY, replace=True)
    assert kept() == before
    assert ask(ASIDE) == []


# -- the command, and what stays --------------------------------------------------------------------------------


def test_the_command_makes_verifies_and_restores(engine, ask, filled, kept, citadel, tmp_path):
    config = tmp_path / "config"
    (config / "secrets").mkdir(parents=True)
    (config / "secrets/key").write_text("planted-secret")
    (config / "citadel.yaml").write_text("server: {}\n")
    before = kept()
    words = ["backup", "--to", tmp_path / "backups", "--config", config, "--json", "--credentials", "-"]
    facts = json.loads(citadel(*words).stdout)
    folder = tmp_path / "backups" / facts["backup"].rsplit("/", 1)[1]
    assert (facts["revision"], facts["removed"], facts["left_out"]) == (REVISIONS[-1], [], [])
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}
    names = subprocess.run(["tar", "-tzf", folder / "config.tar.gz"], capture_output=True, text=True, check=True)
    assert names.stdout.split() == ["config/", "config/citadel.yaml"]
    said = citadel("verify-backup", folder)
    assert (said.returncode, said.stderr) == (0, "")
    assert f"{folder}: whole; revision {REVISIONS[-1]}" in said.stdout
    lose(ask)
    refused = citadel("restore", folder)
    assert refused.returncode == 1
    assert "permission denied" in refused.stderr
    said = citadel("restore", folder, fact="database_url")
    assert said.returncode == 0, said.stderr
    assert f"{facts['rows']} rows are back" in said.stdout
    assert kept() == before
    flip(folder / "users.copy.gz")
    assert citadel("verify-backup", folder).returncode == 1


def test_the_newest_stay_and_old_ones_go_and_the_newest_of_all_never(engine, filled, made, tmp_path):
    directory = tmp_path / "backups"
    newest = made()
    for day in range(1, 6):
        shutil.copytree(newest, directory / f"2020-01-0{day}T00-00-00Z")
    (directory / "mine").mkdir()
    assert backup.prune(directory, keep=4) == ["2020-01-02T00-00-00Z", "2020-01-01T00-00-00Z"]
    assert backup.prune(directory, keep=4, max_age_days=30) == [f"2020-01-0{day}T00-00-00Z" for day in (5, 4, 3)]
    shutil.rmtree(newest)
    shutil.copytree(directory / "mine", directory / "2020-01-01T00-00-00Z")
    assert backup.prune(directory, keep=1, max_age_days=30) == []
    assert sorted(path.name for path in directory.iterdir()) == [".lock", "2020-01-01T00-00-00Z", "mine"]


def test_no_password_is_in_a_backup_in_clear(engine, ask, filled, made, target):
    folder = made()
    text = b"".join(gzip.decompress(path.read_bytes()) for path in folder.glob("*.gz"))
    assert ANNA.encode() in text
    for fact in ("database_url", "database_gateway_url"):
        assert target(fact).password.encode() not in text + (folder / "manifest.json").read_bytes()
