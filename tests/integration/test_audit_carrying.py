"""Carrying a journal to the lab's PostgreSQL through Pgpool-II: once and in order after any end, whatever is in it.

Run inside the lab: `bin/lab run pytest tests/integration/test_audit_carrying.py`; it needs the SQL host alone.
"""

import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import pytest_asyncio
from audited import prepared, verdicts
from sql_host import until

import waiting
from citadel_llm.api.audit.journal import Journal, Options, sync
from citadel_llm.api.audit.record import Record, encode
from citadel_llm.api.audit.shipper import Shipper
from citadel_llm.cli import main
from citadel_llm.integration.database import audit as table
from citadel_llm.integration.database.pool import Database
from citadel_llm.integration.database.pool import Options as PoolOptions
from citadel_llm.integration.database.target import load_target
from citadel_llm.integration.metrics import Metrics

pytestmark = pytest.mark.lab
USER, KEY = "00000000-0000-4000-8000-00000000000a", "10000000-0000-4000-8000-000000000001"
ROUNDS = 12
# Writes without a pause, carries meanwhile, and is ended from outside: each number that it prints was written before.
WRITER = """
import asyncio, itertools, sys, time
from pathlib import Path
from citadel_llm.api.audit.audit import Audit
from citadel_llm.api.audit.record import Record
from citadel_llm.integration.database.pool import Database, Options
from citadel_llm.integration.database.target import load_target
from citadel_llm.integration.metrics import Metrics
from citadel_llm.utils.config import Audit as Section

async def main(folder, credentials, first):
    database = Database(load_target(credentials), Options(), on_change=lambda *_: None)
    await database.start()
    section = Section(enabled=True, directory=folder, segment_bytes=4096)
    audit = Audit(section, database, Metrics("1").audit, lambda *_, **__: None, instance="1")
    audit.start()
    for number in itertools.count(first):
        audit.write(Record(time.time_ns() // 1000, "request", "chat", f"req-{number}", model="phi3", latency_us=1))
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
        await asyncio.sleep(0.001)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.fixture
def sections(target, tmp_path):
    return prepared(target, tmp_path)


@pytest_asyncio.fixture
async def pool(sections):
    made = Database(load_target(sections["database"]["credentials_file"]), PoolOptions(), on_change=lambda *_: None)
    await made.start()
    while not made.up:
        await asyncio.sleep(0.02)
    yield made
    await made.stop()


@pytest.fixture
def told():
    return []


@pytest.fixture
def journal(tmp_path, told):
    """`journal()`: a journal, again where it was."""

    def made(folder="spool", name="1", **sizes):
        return Journal.open(
            tmp_path / folder, name, Options(**sizes), lambda level, event, **fields: told.append((event, fields))
        )

    return made


def write(journal, *records):
    for record in records:
        journal.append(record if isinstance(record, bytes) else encode(record))
    ticket = journal.begin_sync()
    sync(ticket)
    journal.end_sync(ticket)


def record(number, **more):
    at_us = more.pop("at_us", time.time_ns() // 1000)
    return Record(at_us, "request", "chat", f"req-{number}", **{"model": "phi3", "latency_us": 1500, **more})


@pytest.fixture
def carry(pool, told):
    """`await carry(journal)`: all of it, to the database."""

    async def carried(one):
        await Shipper(one, pool, Metrics("1").audit, lambda level, event, **f: told.append((event, f))).drain()

    return carried


def test_each_record_arrives_once_and_in_order_however_often_its_writer_is_killed(sections, ask, target, tmp_path):
    seed = int(os.environ.get("CITADEL_TEST_SEED", "0")) or random.randrange(1 << 30)
    rng = random.Random(seed)
    written, environment = 0, {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "spool"), sections["database"]["credentials_file"]]
    for turn in range(ROUNDS):
        process = subprocess.Popen([*command, str(written + 1)], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(rng.randrange(1, 400)):
            written = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].splitlines()
        # The last line may have been cut, and a record may have been written of which nothing was printed.
        written = max([written, *(int(line) for line in rest if line)]) if turn < ROUNDS - 1 else written
        journals = list((tmp_path / "spool/1").glob("*.journal"))
        assert journals, f"seed {seed}"
        written += 1  # that one, if it was: numbers are never used again
    with subprocess.Popen([*command, str(written + 1)], stdout=subprocess.PIPE, text=True, env=environment) as process:
        last = int(process.stdout.readline())
        until(lambda: ask(f"select 1 from llm.audit_log where request_id = 'req-{last}'"), "the last one arrives")
        process.kill()
    rows = [int(row[0][4:]) for row in ask("select request_id from llm.audit_log order by chain, position")]
    assert rows == sorted(set(rows)), f"seed {seed}"
    # Between a write and the line that tells of it, a kill leaves at most one number a round without a record.
    absent = set(range(1, last)) - set(rows)
    assert len(absent) <= ROUNDS, f"seed {seed}: {sorted(absent)[:50]}"
    ((rows_seen, wrong, _),) = verdicts(target("database_gateway_url")).values()
    assert (rows_seen, wrong) == (len(rows), None), f"seed {seed}"
    assert ask("select sum(requests) from llm.usage_rollups where period = 'day'")[0][0] == len(rows)


async def test_a_batch_whose_commit_was_not_answered_is_not_carried_twice(carry, journal, ask):
    one = journal()
    write(one, *(record(n) for n in range(10)))
    await carry(one)
    one.rewind()
    one.done_to = 0
    await carry(one)
    assert ask("select count(*), max(position) from llm.audit_log") == [(10, 10)]


async def test_a_journal_that_cannot_be_read_for_a_while_is_carried_afterwards(pool, journal, ask, told):
    one, wake = journal(segment_bytes=4096), asyncio.Event()
    write(one, *(record(number) for number in range(100)))
    shipper = Shipper(one, pool, Metrics("1").audit, lambda level, event, **f: told.append((event, f)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    running = asyncio.create_task(shipper.run(wake))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))  # no file can be opened any more
        await waiting.until(lambda: shipper.error or running.done(), what="it is told")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "Too many open files" in shipper.error
        assert shipper.broken
        await waiting.until(lambda: one.done_to == one.last or running.done(), what="all of it is carried")
        await waiting.until(lambda: not shipper.broken, what="it is well again")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert [event for event, _ in told] == ["audit_waits", "audit_goes_on"]
    assert ask("select request_id from llm.audit_log order by position") == [(f"req-{n}",) for n in range(100)]


async def test_what_the_database_refuses_is_put_aside_and_holds_up_nothing(carry, journal, ask, told, target, tmp_path):
    one = journal()
    records = [record(n) for n in range(100)]
    records[13] = record(13, prompt_tokens=-1)  # a check of the table refuses it
    records[77] = record(77, user_id="not a uuid")
    records[78] = record(78, status=100_000)
    write(one, *records, b"\xc1 not even a record")
    await carry(one)
    rows = ask("select request_id, action, position from llm.audit_log order by position")
    assert [name for name, _, _ in rows] == [
        *(f"req-{n}" if n not in (13, 77, 78) else "-" for n in range(100)), "-",
    ]  # fmt: skip
    assert {action for name, action, _ in rows if name == "-"} == {"audit.rejected"}
    aside = [json.loads(line) for line in (tmp_path / "spool/1/rejected").read_text().splitlines()]
    assert sorted(entry["sequence"] for entry in aside) == [14, 78, 79, 101]
    assert "req-13" in next(entry["record"] for entry in aside if entry["sequence"] == 14)
    assert [event for event, _ in told].count("audit_rejected") == 4
    assert list(verdicts(target("database_gateway_url")).values()) == [(101, None, "")]
    assert one.pending_bytes == 0


async def test_a_record_of_a_month_that_has_no_partition_is_put_aside(carry, journal, ask):
    one = journal()
    write(one, record(1, at_us=1_000_000_000_000_000), record(2))
    await carry(one)
    assert ask("select request_id, action from llm.audit_log order by position") == [
        ("-", "audit.rejected"), ("req-2", "chat"),
    ]  # fmt: skip


async def test_what_was_lost_of_a_journal_shows_as_a_row_in_its_place(carry, journal, ask, target):
    one = journal(segment_bytes=4096)
    write(one, *(record(n) for n in range(300)))
    second = sorted(one.folder.glob("*.journal"))[1]
    second.unlink()
    second.write_bytes(b"")
    await carry(one)
    ((detail,),) = ask("select detail from llm.audit_log where action = 'audit.lost'")
    count = detail["to"] - detail["from"] + 1
    assert count > 10
    assert ask("select count(*) from llm.audit_log where action = 'chat'") == [(300 - count,)]
    assert list(verdicts(target("database_gateway_url")).values()) == [(301 - count, None, "")]


async def test_a_file_of_a_journal_that_was_removed_shows_as_a_row_in_its_place(carry, journal, ask, target, tmp_path):
    one = journal(segment_bytes=4096)
    write(one, *(record(number) for number in range(200)))
    names = sorted((tmp_path / "spool/1").glob("*.journal"))
    begin, end = (int(path.stem) for path in names[1:3])
    names[1].unlink()
    await carry(one)
    rows = ask("select request_id, action, detail from llm.audit_log order by position")
    assert [name for name, _, _ in rows if name != "-"] == [f"req-{n}" for n in range(200) if not begin <= n + 1 < end]
    [(place, detail)] = [(i, detail) for i, (_, action, detail) in enumerate(rows) if action == "audit.lost"]
    assert (place, detail["from"], detail["to"]) == (begin - 1, begin, end - 1)
    assert list(verdicts(target("database_gateway_url")).values()) == [(len(rows), None, "")]


async def test_a_loss_that_nothing_follows_shows_at_once_and_is_counted(journal, pool, told, ask, target, tmp_path):
    one, metrics = journal(segment_bytes=1), Metrics("1")  # a file for each record: none of the next is open yet
    write(one, record(1))
    shipper = Shipper(one, pool, metrics.audit, lambda level, event, **f: told.append((event, f)))
    await shipper.drain()
    write(one, record(2), record(3))
    for path in (tmp_path / "spool/1").glob("*.journal"):
        path.unlink()
    await shipper.drain()
    rows = ask("select action, request_id, detail from llm.audit_log order by position")
    assert rows == [
        ("chat", "req-1", None),
        ("audit.lost", "-", {"from": 2, "to": 3, "why": "the journal was damaged"}),
    ]
    assert b"citadel_audit_lost_total 2.0" in metrics.exposition()[0]
    assert (one.done_to, one.pending_bytes, {event for event, _ in told}) == (3, 0, {"audit_removed"})
    write(one, record(4))
    await shipper.drain()
    assert ask("select request_id from llm.audit_log order by position desc limit 1") == [("req-4",)]
    assert list(verdicts(target("database_gateway_url")).values()) == [(3, None, "")]


async def test_an_old_copy_of_a_journal_begins_another_chain_and_loses_nothing(carry, journal, ask, target, tmp_path):
    one = journal()
    write(one, record(1))
    one.close()
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    again = journal()
    write(again, record(2), record(3))
    await carry(again)
    again.close()
    restored = journal("copy")
    write(restored, record("4"), record("5"))
    await carry(restored)
    restored.close()
    assert ask("select request_id from llm.audit_log order by at") == [(f"req-{n}",) for n in (1, 2, 3, 4, 5)]
    assert sorted(verdicts(target("database_gateway_url")).values()) == [(2, None, ""), (3, None, "")]


async def test_a_journal_that_was_removed_begins_another_chain(carry, journal, ask, tmp_path):
    one = journal()
    write(one, record(1))
    await carry(one)
    one.close()
    shutil.rmtree(tmp_path / "spool")
    again = journal()
    write(again, record(2))
    await carry(again)
    assert ask("select request_id from llm.audit_log order by at") == [("req-1",), ("req-2",)]


AWKWARD = "a\tb\nc\\d\re'f \\. \\N ü 漢 🏛"


async def test_whatever_is_in_a_record_comes_back_as_it_was(carry, journal, ask, target):
    one = journal()
    detail = {"text": AWKWARD + "\x00", "n": [1.5, 1e22, -0.0, 1e-7, 2**63 - 1, None, True], "é": {}}
    full = record(
        1, user_id=USER, user_name=AWKWARD, key_id=KEY, key_name="\\N", served_by="127.0.0.1:1", status=200,
        error_code="", streamed=True, cached=False, prompt_tokens=0, completion_tokens=2**31 - 1, first_token_us=1,
        latency_us=123_456_789, client="fe80::1%eth0", content_policy="full", content={"request": [AWKWARD]},
        detail=detail,
    )  # fmt: skip
    write(one, full, record(2, client="::ffff:192.0.2.1"), record(3, client="/run/socket"))
    await carry(one)
    columns = "user_name, key_name, client_address::text, content, detail, at"
    (row,) = ask(f"select {columns} from llm.audit_log where position = 1")
    assert row[:4] == (AWKWARD, "\\N", "fe80::1/128", {"request": [AWKWARD]})
    assert row[4]["text"] == AWKWARD + "�"
    assert row[4]["n"] == detail["n"]
    assert int(row[5].timestamp() * 1e6) in range(full.at_us - 1, full.at_us + 2)
    assert ask("select host(client_address) from llm.audit_log where position = 2") == [("::ffff:192.0.2.1",)]
    assert list(verdicts(target("database_gateway_url")).values()) == [(3, None, "")]


async def test_usage_is_summed_up_by_hour_day_and_month(carry, journal, ask):
    one = journal()
    noon = 1_000_000 * (int(time.time()) // 86400 * 86400 + 12 * 3600)
    used = {"user_id": USER, "key_id": KEY, "prompt_tokens": 10, "completion_tokens": 5}
    write(
        one,
        record(1, at_us=noon, **used),
        record(2, at_us=noon + 1, **used, cached=True),
        record(3, at_us=noon + 3_600_000_000, **used, outcome="error"),
        record(4, at_us=noon, **used | {"key_id": None}),
        record(5, at_us=noon, model=None, outcome="refused"),
    )
    await carry(one)
    columns = "period, requests, failed_requests, cached_requests, prompt_tokens, completion_tokens, latency_ms_sum"
    whose = f"user_id = '{USER}' and key_id = '{KEY}'"
    assert ask(f"select {columns} from llm.usage_rollups where {whose} order by period desc, period_start") == [
        ("month", 3, 1, 1, 30, 15, 4.5), ("hour", 2, 0, 1, 20, 10, 3.0), ("hour", 1, 1, 0, 10, 5, 1.5),
        ("day", 3, 1, 1, 30, 15, 4.5),
    ]  # fmt: skip
    assert ask("select count(*) from llm.usage_rollups where key_id = '00000000-0000-0000-0000-000000000000'") == [(3,)]


async def test_a_keys_last_use_is_noted(carry, journal, ask):
    ask(f"insert into llm.users (id, name) values ('{USER}', 'anna')")
    ask(
        "insert into llm.api_keys (id, user_id, name, prefix, digest) "
        f"values ('{KEY}', '{USER}', 'k', 'ck_k', decode(repeat('a1', 32), 'hex'))"
    )
    one = journal()
    write(one, record(1, key_id=KEY))
    await carry(one)
    assert ask("select last_used_at = (select at from llm.audit_log) from llm.api_keys") == [(True,)]
    assert ask("select version from llm.identity_version") == ask("select 3")  # the two inserts, and no more


@pytest.mark.parametrize(
    ("tamper", "at", "why"),
    [
        ("update llm.audit_log set outcome = 'error' where position = 5", 5, "not as it was written"),
        ("update llm.audit_log set detail = '{\"a\": 1}' where position = 1", 1, "not as it was written"),
        ("delete from llm.audit_log where position between 4 and 6", 4, "rows 4 to 6 are missing"),
        ("delete from llm.audit_log where position > 8", 9, "rows 9 to 10 are missing"),
        ("update llm.audit_log set previous_digest = digest where position = 7", 7, "does not follow"),
        ("update llm.audit_log set chain = 'another' where position = 10", 10, "missing"),
    ],
)
async def test_whoever_changes_the_log_is_found_out(carry, journal, ask, target, sections, capsys, tamper, at, why):
    one = journal()
    write(one, *(record(n) for n in range(1, 11)))
    await carry(one)
    # The owner, who can do anything, has taken the trigger away for it.
    ask(f"alter table llm.audit_log disable trigger audit_append_only; {tamper}")
    found = verdicts(target("database_gateway_url"))
    assert found[one.mark.chain][1:] == (at, pytest.approx(found[one.mark.chain][2]))
    assert why in found[one.mark.chain][2]
    assert main(["audit", "verify", "--credentials", sections["database"]["credentials_file"]]) == 1
    assert f"{one.mark.chain}: WRONG at {at}" in capsys.readouterr().out


async def test_the_command_says_that_all_is_well(carry, journal, sections, capsys):
    one = journal()
    write(one, record(1))
    await carry(one)
    assert main(["audit", "verify", "--credentials", sections["database"]["credentials_file"]]) == 0
    assert capsys.readouterr().out == f"{one.mark.chain}: 1 rows, good\n"


async def test_pages_follow_one_another_without_a_row_lost_or_twice(carry, journal, pool):
    """Rows of one moment among them."""
    one = journal()
    now = time.time_ns() // 1000
    write(one, *(record(n, at_us=now + n // 3, user_name="a" if n % 2 else "b") for n in range(50)))
    await carry(one)
    seen, after = [], None
    while True:
        async with pool.connection() as connection:
            rows = await table.find(connection, table.Filter(user_name="a"), after, 4)
        if not rows:
            break
        seen += [row["request_id"] for row in rows]
        after = table.Cursor(rows[-1]["at"], str(rows[-1]["id"]))
    assert sorted(seen) == sorted(f"req-{n}" for n in range(50) if n % 2)
    assert len(set(seen)) == 25


async def test_every_filter_finds_what_it_names(carry, journal, pool):
    one = journal()
    now = time.time_ns() // 1000
    write(
        one,
        record(1, at_us=now, user_id=USER, user_name="anna", model="phi3"),
        record(2, at_us=now + 1_000_000, user_name="bert", model="hermes", outcome="error"),
        Record(now + 2_000_000, "admin", "keys.create", "req-3", user_name="anna"),
    )
    await carry(one)

    async def found(**wanted):
        async with pool.connection() as connection:
            rows = await table.find(connection, table.Filter(**wanted), None, 10)
        return [row["request_id"][4:] for row in rows]

    async with pool.connection() as connection:
        times = [row["at"] for row in await table.find(connection, table.Filter(), None, 10)]
    assert await found() == ["3", "2", "1"]
    assert await found(request_id="req-2") == ["2"]
    assert await found(user_id=USER) == ["1"]
    assert await found(user_name="anna") == ["3", "1"]
    assert await found(user_name="anna", kind="request") == ["1"]
    assert await found(model="hermes") == ["2"]
    assert await found(outcome="error", model="phi3") == []
    assert await found(since=times[1]) == ["3", "2"]
    assert await found(until=times[1]) == ["1"]
    with contextlib.suppress(KeyError):
        assert await found(user_name="'; drop table llm.audit_log --") == []
