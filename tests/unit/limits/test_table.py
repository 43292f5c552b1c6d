"""The table that processes share: its lock, their places in it, the records of subjects."""

import asyncio
import contextlib
import os
import signal
import sys

import pytest

from citadel_llm.api.limits import bucket, window
from citadel_llm.api.limits import table as tables
from citadel_llm.api.limits.table import BUCKET, COLUMNS, TOUCHED, WINDOW, Table, TableFull, digest_of
from citadel_llm.utils.config import ConfigError
from waiting import in_time, until

S = 1_000_000_000


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "limits")


@pytest.fixture
def new_table(path):
    made = []

    def make():
        made.append(Table(path))
        return made[-1]

    yield make
    for table in made:
        with contextlib.suppress(ValueError, OSError):  # closed already
            table.close()


@contextlib.asynccontextmanager
async def process(path, code):
    """Another process with the table open as `table`; it is killed at the end."""
    code = f"import os, signal, sys\nfrom citadel_llm.api.limits.table import *\ntable = Table({path!r})\n{code}"
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": "src"}
    )
    try:
        await in_time(running.stdout.readline(), 30)
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


def test_what_one_writes_the_other_reads(new_table):
    one, other = new_table(), new_table()
    digest = digest_of("key", "alice")
    assert one.lock()
    at = one.record(digest, S, 0)
    one.words[at + WINDOW] = 7
    assert not other.lock()
    one.unlock()
    assert other.lock()
    assert (other.find(digest), other.words[at + WINDOW]) == (at, 7)
    assert other.find(digest_of("key", "bob")) == 0
    other.unlock()


def test_what_was_counted_outlives_the_processes(new_table):
    table = new_table()
    at = table.record(digest_of("key", "alice"), S, 0)
    table.words[at + WINDOW] = 7
    table.close()
    again = new_table()
    assert again.words[again.find(digest_of("key", "alice")) + WINDOW] == 7


def test_a_record_takes_up_memory_only_once_it_is_used(new_table, path):
    table = new_table()
    before = os.stat(f"{path}-1").st_blocks
    table.record(digest_of("key", "alice"), S, 0)
    assert (os.stat(f"{path}-1").st_blocks - before) * 512 <= 16_384
    assert before * 512 < 1 << 20


def test_requests_at_once_are_those_of_all_processes_and_end_with_them(new_table):
    one, other = new_table(), new_table()
    at = one.record(digest_of("key", "alice"), S, 0)
    one.words[at + COLUMNS + one.place] += 2
    other.words[at + COLUMNS + other.place] += 1
    assert (one.at_once(at), other.at_once(at)) == (3, 3)
    other.close()
    assert one.at_once(at) == 2


async def test_what_a_killed_process_held_at_once_is_free(new_table, path):
    table = new_table()
    at = table.record(digest_of("key", "alice"), S, 0)
    code = f"table.words[{at} + COLUMNS + table.place] += 5\nprint(flush=True)\nsignal.pause()"
    async with process(path, code) as other:
        table.free_places()
        assert table.at_once(at) == 5
        other.kill()
        await other.wait()
        table.free_places()
        assert table.at_once(at) == 0
        assert new_table().place == 1  # its place is another's


async def test_a_process_that_is_killed_amid_the_table_leaves_no_lock(new_table, path):
    table = new_table()
    async with process(path, "assert table.lock()\nprint(flush=True)\nsignal.pause()") as other:
        assert not table.lock()
        other.kill()
        await other.wait()
        assert table.lock()
        table.unlock()


async def test_a_process_that_is_stopped_amid_the_table_hangs_nobody(new_table, path):
    table = new_table()
    code = (
        "assert table.lock()\nprint(flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)\ntable.unlock()\nsignal.pause()"
    )
    async with process(path, code) as other:
        assert not table.lock()
        os.kill(other.pid, signal.SIGCONT)
        await until(table.lock, what="it goes on, and gives the lock up")
        table.unlock()


def test_a_record_of_whom_nothing_counts_any_more_is_taken_for_another(new_table, monkeypatch):
    monkeypatch.setattr(tables, "_PROBES", 2)
    table = new_table()
    digests = [(n, 0) for n in range(1, 6)]
    first, second = (table.record(one, S, 0) for one in digests[:2])
    window.add(table.words, first + WINDOW, 2 * S)
    bucket.charge(table.words, second + BUCKET, 2 * S, 60, 120)  # paid off after two minutes
    table.words[first + TOUCHED] = table.words[second + TOUCHED] = 2 * S
    with pytest.raises(TableFull):
        table.record(digests[2], 62 * S, 0)
    assert table.record(digests[2], 63 * S, 0) == first
    assert not table.holds(first, digests[0])
    assert window.used(table.words, first + WINDOW, 63 * S, 10) == 0
    table.words[first + COLUMNS + table.place] = 1
    with pytest.raises(TableFull):
        table.record(digests[3], 100 * S, 0)
    assert table.record(digests[3], 125 * S, 0) == second


def test_a_table_of_before_the_host_was_started_begins_anew(new_table):
    table = new_table()
    table.record(digest_of("key", "alice"), S, 0)
    table.words[1] = 1 << 62  # made at a time that is yet to come
    table.close()
    assert new_table().find(digest_of("key", "alice")) == 0


@pytest.mark.parametrize("content", [b"x", b"x" * tables._SIZE])
def test_a_file_that_is_no_table_is_refused(path, content):
    with open(f"{path}-1", "wb") as file:
        file.write(content)
    with pytest.raises(ConfigError, match="not a table of limits"):
        Table(path)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        Table(str(tmp_path / "nowhere" / "limits"))


def test_there_are_places_for_so_many_processes_and_no_more(new_table, monkeypatch):
    monkeypatch.setattr(tables, "_PLACES", 3)
    for _ in range(3):
        new_table()
    with pytest.raises(ConfigError, match="3 processes use it already"):
        new_table()
