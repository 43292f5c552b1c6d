"""The gateway's connections, and what its callers see while the database is away: PostgreSQL and Pgpool-II of the lab.

Run inside the lab: `bin/lab run pytest tests/integration/test_pool.py`; it needs the SQL host alone, and stops what is
on it.
"""

import asyncio
import contextlib
import subprocess
import time

import psycopg
import pytest
import sql_host
from sql_host import DEADLINE_S, on_the_host

from citadel_llm.integration.database.pool import Database, DatabaseUnavailable, Options
from citadel_llm.integration.database.target import Target

pytestmark = [pytest.mark.lab, pytest.mark.disruptive]
POSTGRESQL, PGPOOL = "postgresql@17-main", "pgpool2"
CHILDREN = 32  # Pgpool-II's, in the lab
OPTIONS = Options(connections=4, timeout_s=1.0, retry_s=0.2)
# A call waits for a connection, then for an answer; what comes on top is the machine's.
BOUND_S = 2 * OPTIONS.timeout_s + 5


def in_the_network(*words):
    """A command in the lab's own network, where these tests run."""
    subprocess.run(words, check=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL, capture_output=True)


class Nowhere:
    """Packets to the host go to a card that nobody has: not even a refusal comes back."""

    def __init__(self, address):
        self.entry = [address, "dev", "br0"]

    def begin(self):
        in_the_network("ip", "neigh", "replace", *self.entry, "lladdr", "02:00:00:00:00:01", "nud", "permanent")

    def end(self):
        in_the_network("ip", "neigh", "del", *self.entry)


class Units:
    """Something is done to units of the host, and undone."""

    def __init__(self, begin, end, *units):
        self._begin, self._end, self._units = begin, end, units

    def begin(self):
        on_the_host("systemctl", *self._begin, *self._units)

    def end(self):
        on_the_host("systemctl", *self._end, *self._units)


def trouble(name, address):
    return {
        "postgresql stopped": Units(["stop"], ["start"], POSTGRESQL),
        "pgpool stopped": Units(["stop"], ["start"], PGPOOL),
        "postgresql silent": Units(["kill", "-s", "STOP"], ["kill", "-s", "CONT"], POSTGRESQL),
        "pgpool silent": Units(["kill", "-s", "STOP"], ["kill", "-s", "CONT"], PGPOOL),
        "host unreachable": Nowhere(address),
    }[name]


# How PostgreSQL's end looks through Pgpool-II differs from time to time: three times, for what is rare.
TROUBLES = [
    "postgresql stopped",
    "postgresql stopped",
    "postgresql stopped",
    "pgpool stopped",
    "postgresql silent",
    "pgpool silent",
    "host unreachable",
]


@pytest.fixture
def place(credentials):
    """The gateway's own user and database, as the deployment has them."""
    return Target(**sql_host.place(credentials["database_gateway_url"]))


@pytest.fixture
async def opened(place):
    """`opened(options)`: a database with what it told, `events`; none of its tasks is left afterwards."""
    before = asyncio.all_tasks()
    made = []

    async def opening(options=OPTIONS):
        events = []
        database = Database(place, options, on_change=lambda up, reason: events.append((up, reason)))
        made.append(database)
        await database.start()
        await until(lambda: database.up, "it answers")
        return database, events

    yield opening
    for database in made:
        await database.stop()
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


async def until(condition, what):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.01)
    assert condition(), f"not within {DEADLINE_S} s: {what}"


async def ask(database, *statements, **options):
    """What the last one gives, all in one block."""
    async with database.connection(**options) as connection:
        for statement in statements or ("select 1",):
            cursor = await connection.execute(statement)
        return await cursor.fetchall()


async def connected(place):
    return await psycopg.AsyncConnection.connect(
        host=place.host, port=place.port, dbname=place.database, user=place.user, password=place.password
    )


async def listening(place):
    """Until Pgpool-II takes calls: its unit says that it has started before it does."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                return await (await connected(place)).close()
            await asyncio.sleep(0.05)


def refused_at_once(database):
    """Without a turn of the loop: nothing is waited for."""
    with pytest.raises(DatabaseUnavailable) as refused:
        database.connection().__aenter__().send(None)
    return str(refused.value)


class Callers:
    """Some who ask all the time, and note how each call ended and how long it took."""

    def __init__(self, database, count=8):
        self.calls = []
        self._database, self._ending = database, False
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(count)]

    async def _ask(self):
        while not self._ending:
            began = time.monotonic()
            try:
                await ask(self._database)
                ended = "answered"
            except DatabaseUnavailable as failure:
                ended = str(failure)
            self.calls.append((ended, time.monotonic() - began))
            await asyncio.sleep(0.01)

    async def end(self):
        self._ending = True
        await asyncio.gather(*self._tasks)


# -- what a block is --------------------------------------------------------------------------------------------


async def test_a_block_is_a_transaction_kept_at_its_end_and_undone_where_it_raises(opened):
    database, _ = await opened(Options(connections=1))
    async with database.connection() as connection:
        await connection.execute("create temporary table here (id integer)")
        await connection.execute("insert into here values (1)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await ask(database, "insert into here values (2)", "select 1 / 0")
    assert await ask(database, "select id from here") == [(1,)]


async def test_what_the_database_refuses_goes_through_and_the_connection_stays(opened):
    database, events = await opened(Options(connections=1))
    (before,) = await ask(database, "select pg_backend_pid()")
    with pytest.raises(psycopg.errors.UndefinedTable):
        await ask(database, "select 1 from there_is_none")
    assert await ask(database, "select pg_backend_pid()") == [before]
    assert events == [(True, "")]


async def test_every_connection_looks_into_the_schema_first(opened):
    database, _ = await opened()
    assert await ask(database, "show search_path") == [("llm, pg_catalog",)]


async def test_a_statement_that_takes_too_long_is_ended_by_the_server_and_the_database_is_not_away_for_it(opened):
    # Its own limit is a tenth shorter than ours, which is what a held-up machine may take to tell of it.
    database, events = await opened(Options(connections=1, timeout_s=3.0))
    (before,) = await ask(database, "select pg_backend_pid()")
    with pytest.raises(DatabaseUnavailable, match="statement timeout"):
        await ask(database, "select pg_sleep(30)")
    assert await ask(database, "select pg_backend_pid()") == [before]
    assert events == [(True, "")]


async def test_a_caller_may_say_how_long_it_can_wait(opened):
    database, _ = await opened(Options(connections=1, timeout_s=0.3))
    assert await ask(database, "select 1 from pg_sleep(1)", timeout_s=30) == [(1,)]
    # Of the server's limit and ours, which are close here, either may come first: the long one of before is gone.
    with pytest.raises(DatabaseUnavailable, match=r"statement timeout|no answer within 0\.3 s"):
        await ask(database, "select pg_sleep(30)")


async def test_many_short_statements_that_take_too_long_together_are_ended_too(opened):
    database, events = await opened(Options(connections=1, timeout_s=0.5))
    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.5 s"):
        await ask(database, *["select pg_sleep(0.1)"] * 100)
    assert await ask(database) == [(1,)]
    assert events == [(True, "")]


async def test_more_callers_than_connections_take_turns_and_a_full_house_is_not_away(opened):
    database, events = await opened(Options(connections=2, timeout_s=5.0))
    pids = await asyncio.gather(*(ask(database, "select pg_backend_pid() from pg_sleep(0.01)") for _ in range(40)))
    assert len({pid for ((pid,),) in pids}) <= 2
    blockers = [asyncio.create_task(ask(database, "select pg_sleep(1)", timeout_s=30)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(DatabaseUnavailable, match=r"every connection was in use for 0\.1 s"):
        await ask(database, timeout_s=0.1)
    await asyncio.gather(*blockers)
    assert events == [(True, "")]


async def test_a_caller_that_goes_away_leaves_the_connection_as_it_found_it(opened):
    database, _ = await opened(Options(connections=1, timeout_s=10.0))
    asking = asyncio.create_task(ask(database, "select pg_sleep(9)"))
    await asyncio.sleep(0)
    await until(lambda: database._lent, "it is asking")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await ask(database) == [(1,)]


async def test_a_connection_that_was_ended_while_idle_is_not_lent(opened, place):
    database, events = await opened(Options(connections=4, timeout_s=2.0))
    await asyncio.gather(*(ask(database, "select pg_sleep(0.2)") for _ in range(4)))
    await asyncio.to_thread(on_the_host, "systemctl", "restart", PGPOOL)
    await listening(place)
    assert await asyncio.gather(*(ask(database) for _ in range(8))) == [[(1,)]] * 8
    assert events == [(True, "")]


# -- while it is away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TROUBLES)
async def test_while_it_is_away_callers_are_told_at_once_and_soon_after_it_is_back_they_are_answered(
    opened, place, caplog, capsys, name
):
    database, events = await opened()
    callers = Callers(database)
    await until(lambda: len(callers.calls) > 50, "they are answered")
    what = trouble(name, place.host)
    await asyncio.to_thread(what.begin)
    began = time.monotonic()
    try:
        await until(lambda: not database.up, "it is seen to be away")
        away_s = time.monotonic() - began
        assert refused_at_once(database) == database.reason
        seen = len(callers.calls)
        await until(lambda: len(callers.calls) > seen + 500, "they are refused")
        # Each try to connect may fail in words of its own.
        assert "answered" not in {ended for ended, _ in callers.calls[-200:]}
    finally:
        await asyncio.to_thread(what.end)
    ended = time.monotonic()
    await until(lambda: database.up, "it is seen to be back")
    back_s = time.monotonic() - ended
    back = len(callers.calls)
    await until(lambda: len(callers.calls) > back + 100, "they are answered again")
    await callers.end()
    with capsys.disabled():
        longest = max(took for _, took in callers.calls)
        print(f"\n{name}: away seen {away_s:.2f} s, back seen {back_s:.2f} s, longest call {longest:.2f} s")
        print("  " + "; ".join(sorted({ended for ended, _ in callers.calls})))
    assert max(took for _, took in callers.calls) < BOUND_S
    assert {ended for ended, _ in callers.calls[-50:]} == {"answered"}
    # It is told once that it has gone, and once that it is back; the driver adds nothing of its own.
    assert [up for up, _ in events] == [True, False, True]
    assert [record for record in caplog.records if record.name.startswith("psycopg")] == []


async def test_pgpool_without_a_child_to_spare_is_away_for_who_comes_and_not_for_who_is_connected(opened, place):
    await asyncio.to_thread(on_the_host, "systemctl", "restart", PGPOOL)  # what tests before this one left is gone
    await listening(place)
    database, events = await opened(Options(connections=1, timeout_s=1.0, retry_s=0.2))
    others = []
    try:
        assert await ask(database) == [(1,)]  # it holds a child itself
        others.extend(await asyncio.gather(*(connected(place) for _ in range(CHILDREN - 1))))
        assert await ask(database) == [(1,)]
        late = Database(place, Options(connections=1, timeout_s=0.5, retry_s=0.1), on_change=lambda *_: None)
        await late.start()
        await until(lambda: late.reason == "no connection within 0.5 s", "the late one is told")
        assert refused_at_once(late) == "no connection within 0.5 s"
        assert await ask(database) == [(1,)]
        while others:
            await others.pop().close()
        await until(lambda: late.up, "there is room again")
        assert await ask(late) == [(1,)]
        await late.stop()
    finally:
        for other in others:
            await other.close()
    assert events == [(True, "")]


@pytest.mark.parametrize("name", ["pgpool stopped", "pgpool silent", "host unreachable"])
async def test_it_starts_and_stops_without_a_database_and_finds_one_that_comes(opened, place, name):
    what = trouble(name, place.host)
    tasks = asyncio.all_tasks()
    events = []
    await asyncio.to_thread(what.begin)
    try:
        for _ in range(2):
            database = Database(place, OPTIONS, on_change=lambda up, reason: events.append(up))
            await database.start()
            await until(lambda: events == [False], "it is told")
            async with asyncio.timeout(DEADLINE_S):
                await database.stop()
            assert asyncio.all_tasks() <= tasks
            events.clear()
        database = Database(place, OPTIONS, on_change=lambda up, reason: events.append(up))
        await database.start()
    finally:
        await asyncio.to_thread(what.end)
    await until(lambda: database.up, "it is found")
    assert await ask(database) == [(1,)]
    await database.stop()


async def test_it_stops_at_once_while_somebody_waits_for_a_silent_server(opened, place):
    database, _ = await opened(Options(connections=2, timeout_s=30.0))
    await asyncio.gather(*(ask(database, "select pg_sleep(0.2)") for _ in range(2)))
    what = trouble("pgpool silent", place.host)
    await asyncio.to_thread(what.begin)
    try:
        asking = asyncio.create_task(ask(database))
        await until(lambda: database._lent, "it is asking")
        async with asyncio.timeout(5):
            await database.stop()
            with pytest.raises(DatabaseUnavailable):
                await asking
    finally:
        await asyncio.to_thread(what.end)
    assert refused_at_once(database) == "the gateway is stopping"
