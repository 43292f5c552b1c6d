"""The schema is there as the migrations make it, and the gateway's user may do with it what it has to, and no more."""

import datetime
import json
import re

import psycopg
import pytest

DENIED = "42501"  # insufficient_privilege
TABLES = {
    "models", "deployments", "users", "roles", "grants", "user_roles", "api_keys", "sessions", "messages", "audit_log",
    "usage_rollups", "feedback", "budgets", "settings",
}  # fmt: skip
AUDIT = """
insert into llm.audit_log (at, id, chain, position, previous_digest, digest, kind, action, request_id, outcome)
values (now(), gen_random_uuid(), 'a test', 0, decode(repeat('00', 32), 'hex'), decode(repeat('01', 32), 'hex'),
        'request', 'chat', 'req-of-a-test', 'ok')
"""
FORBIDDEN = [
    "update llm.audit_log set outcome = 'other'",
    "delete from llm.audit_log",
    "truncate llm.audit_log",
    "drop table llm.audit_log",
    "alter table llm.audit_log disable trigger audit_append_only",
    "create table llm.own (id integer)",
    "create table public.own (id integer)",
    "create schema own",
    "alter table llm.users add column own text",
    "drop index llm.users_by_name",
    "create function llm.own() returns integer language sql as 'select 1'",
    "update llm.settings set value = '1'",
    "update llm.alembic_version set version_num = '0'",
    "delete from llm.users",
    "delete from llm.api_keys",
    "set role citadel_admin",
    "set session_replication_role = replica",
]
# What the product asks while it works.
QUERIES = [
    "select user_id, expires_at, revoked_at, limits from llm.api_keys where digest = decode(repeat('ab', 32), 'hex')",
    "select permission, model from llm.user_roles join llm.grants using (role) where user_id = gen_random_uuid()",
    "select * from llm.audit_log where request_id = 'req-none'",
    "select * from llm.audit_log where user_id = gen_random_uuid() order by at desc limit 100",
    "select * from llm.audit_log where at > now() - interval '1 day' order by at desc, id desc limit 100",
    "select * from llm.messages where session_id = 'none' order by position",
    "select * from llm.sessions where user_id = gen_random_uuid() order by updated_at desc limit 20",
    "select sum(requests), sum(completion_tokens) from llm.usage_rollups where user_id = gen_random_uuid()"
    " and period = 'day' and period_start > now() - interval '31 days'",
]


def months(count):
    """This month and those after it, in UTC, as the names of partitions have them."""
    today = datetime.datetime.now(datetime.UTC)
    first = today.year * 12 + today.month - 1
    return {f"audit_log_{month // 12}_{month % 12 + 1:02}" for month in range(first, first + count)}


def test_the_gateways_credentials_are_open_to_its_group_and_to_nobody_else(host, site, credentials, place):
    file = host.file(credentials)
    assert (file.user, file.group, file.mode) == ("root", site["citadel_group"], 0o640)
    found = json.loads(file.content_string)
    assert (found["host"], found["port"], found["database"]) == (place["host"], place["port"], place["dbname"])
    assert found["user"] == place["gateway"]


def test_the_owners_account_is_nowhere_on_the_host(host, site, place):
    said = host.run(f"grep -rlIwF {place['owner']} {site['citadel_root']}/config /etc/systemd/system")
    assert (said.rc, said.stdout) == (1, "")


def test_every_table_is_there(gateway):
    rows = gateway("select relname from pg_class where relnamespace = 'llm'::regnamespace and relkind in ('r', 'p')")
    assert {name for (name,) in rows[0]["rows"]} >= TABLES


def test_the_live_schema_is_what_the_migrations_make(host, run_as, site, credentials):
    newest = host.check_output(f"ls -td {site['citadel_root']}/src/releases/[0-9]*").split("\n")[0]
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); from citadel_llm.cli import main; sys.exit(main())"
    said = run_as(site["citadel_user"], "-c", script, newest, "database", "check", "--credentials", credentials)
    assert said.rc == 0, said.stdout + said.stderr
    assert "as the migrations make it" in said.stdout


def test_this_month_and_the_next_have_partitions(gateway):
    rows = gateway("select inhrelid::regclass::text from pg_inherits where inhparent = 'llm.audit_log'::regclass")
    assert {name.removeprefix("llm.") for (name,) in rows[0]["rows"]} >= months(2)


def test_the_gateway_may_add_to_the_audit_log(gateway):
    said = gateway([AUDIT, "select outcome from llm.audit_log where request_id = 'req-of-a-test'"])[0]
    assert (said["refused"], said["rows"]) == (None, [["ok"]]), said["text"]


def test_the_gateway_may_do_nothing_else(gateway):
    said = gateway(*FORBIDDEN)
    assert {statement: entry["refused"] for statement, entry in zip(FORBIDDEN, said, strict=True)} == dict.fromkeys(
        FORBIDDEN, DENIED
    )


def test_no_partition_lets_the_gateway_round_the_log(gateway):
    part = sorted(months(1))[0]
    said = gateway(f"select * from llm.{part}", f"delete from llm.{part}", f"update llm.{part} set outcome = ''")
    assert [entry["refused"] for entry in said] == [DENIED] * 3


@pytest.mark.parametrize("verb", ["update llm.audit_log set outcome = 'other'", "delete from llm.audit_log"])
def test_even_the_owner_changes_no_row_of_the_audit_log(owner, verb):
    with owner.transaction(force_rollback=True):
        owner.execute(AUDIT)
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            owner.execute(verb)


@pytest.mark.parametrize("table", ["audit_log", sorted(months(1))[0]])
def test_even_the_owner_does_not_empty_the_audit_log(owner, table):
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"), owner.transaction():
        owner.execute(f"truncate llm.{table}")


def test_the_gateway_makes_the_next_partitions_and_asking_again_makes_none(gateway):
    said = gateway(["select llm.audit_make_partitions(4)", "select llm.audit_make_partitions(4)"])[0]
    assert (said["refused"], said["rows"]) == (None, [[0]]), said["text"]


def test_only_partitions_past_the_retention_are_dropped(owner, role):
    """Two old months, one within the retention and one past it, all undone afterwards."""
    today = datetime.datetime.now(datetime.UTC)
    count = today.year * 12 + today.month - 1 - role["database_audit_retention_months"]

    def month(number):
        return f"{number // 12}_{number % 12 + 1:02}", f"{number // 12}-{number % 12 + 1:02}-01 00:00+00"

    with owner.transaction(force_rollback=True):
        for number in (count - 1, count):
            owner.execute(
                f"create table llm.audit_log_{month(number)[0]} partition of llm.audit_log "
                f"for values from ('{month(number)[1]}') to ('{month(number + 1)[1]}')"
            )
        assert owner.execute("select llm.audit_drop_partitions()").fetchone() == (1,)
        left = owner.execute("select to_regclass(%s), to_regclass(%s)", [
            f"llm.audit_log_{month(count - 1)[0]}", f"llm.audit_log_{month(count)[0]}",
        ]).fetchone()  # fmt: skip
    assert left[0] is None
    assert left[1] is not None


def test_everything_goes_through_pgpool_which_keeps_connections(gateway, place):
    version, kept = gateway(
        "show pool_version",
        f"select count(*) from pg_stat_activity where usename = '{place['gateway']}' and pid <> pg_backend_pid()",
    )
    assert re.match(r"\d+\.\d+", version["rows"][0][0])
    assert kept["rows"][0][0] >= 1, "Pgpool-II keeps what callers before this one left"


def test_what_the_product_asks_takes_less_than_a_tenth_of_a_second(gateway):
    said = gateway(*QUERIES, *QUERIES)[len(QUERIES) :]
    assert [entry["text"] for entry in said] == [""] * len(QUERIES)
    took = dict(zip(QUERIES, (entry["took_ms"] for entry in said), strict=True))
    assert max(took.values()) < 100, took


@pytest.mark.parametrize("name", ["citadel-database.timer", "citadel-backup.timer"])
def test_the_partitions_are_looked_at_and_a_backup_is_made_every_day(host, name):
    timer = host.service(name)
    assert timer.is_running
    assert timer.is_enabled


def test_what_the_timer_starts_ends_well_or_waits_for_the_release_that_brings_its_command(host, site):
    unit, properties = "citadel-database.service", "Result,ConditionResult,ExecMainStatus"
    there = "yes" if host.file(f"{site['citadel_root']}/bin/citadel").exists else "no"
    host.check_output(f"systemctl start {unit}")
    ended = host.check_output(f"systemctl show -p {properties} {unit}").split()
    assert sorted(ended) == [f"ConditionResult={there}", "ExecMainStatus=0", "Result=success"]


def test_backups_are_the_service_users_alone(host, site):
    folder = host.file(f"{site['citadel_root']}/data/backups")
    assert (folder.user, folder.group, folder.mode) == (site["citadel_user"], site["citadel_group"], 0o700)


def test_a_backup_is_made_by_the_gateways_user_and_is_whole(host, run_as, site, credentials):
    newest = host.check_output(f"ls -td {site['citadel_root']}/src/releases/[0-9]*").split("\n")[0]
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); from citadel_llm.cli import main; sys.exit(main())"
    folder = f"{site['citadel_root']}/data/backups"
    words = ["-c", script, newest, "database", "backup", "--to", folder, "--config", f"{site['citadel_root']}/config"]
    said = run_as(site["citadel_user"], *words, "--credentials", credentials, "--json")
    assert said.rc == 0, said.stdout + said.stderr
    made = json.loads(said.stdout)
    held = host.check_output(f"tar -tzf {made['backup']}/config.tar.gz").split()
    assert "config/models/" in held
    assert [name for name in held if "secrets" in name] == []
    assert made["tables"] >= len(TABLES)
    host.check_output(f"rm -r {made['backup']}")


@pytest.mark.parametrize("name", ["citadel-database.service", "citadel-backup.service"])
def test_what_runs_daily_is_hardened_and_leaves_no_core(host, name):
    assert host.check_output(f"systemctl show --value -p LimitCORE {name}") == "0"
    overall = host.run(f"systemd-analyze security --no-pager --threshold=40 {name}")
    assert overall.succeeded, overall.stdout[-300:]
