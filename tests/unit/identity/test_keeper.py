"""The directory is read again at once where another instance has changed something: by Redis, long before its turn."""

import contextlib
import os

import pytest

from citadel_llm.api.identity.keeper import Keeper
from citadel_llm.utils.logging import LogWriter
from redis_server import connected
from waiting import until

NOTICED_S = 5.0  # on a busy machine; on any other it takes milliseconds
LONG_S = 60.0  # until its next look of its own


class Database:
    """In which nobody is; its version is what a test says."""

    version = 1

    @contextlib.asynccontextmanager
    async def connection(self, timeout_s=None):
        yield self

    async def execute(self, statement):
        return self

    async def fetchone(self):
        return (self.version,)

    async def fetchmany(self, size):
        return []


@pytest.fixture
def log():
    with open(os.devnull, "wb") as nowhere:
        writer = LogWriter(nowhere.fileno())
        yield writer
        writer.close()


@pytest.fixture
def keeper(log):
    """`keeper(database, redis)`: one that has not started; `loaded` are its directories' versions, `seen` its looks."""

    def made(database, redis):
        loaded, seen = [], []
        one = Keeper(
            database, redis, snapshot=None, refresh_s=LONG_S, log=log,
            on_loaded=lambda directory: loaded.append(directory.version), on_seen=lambda: seen.append(True),
        )  # fmt: skip
        one.loaded, one.seen = loaded, seen
        return one

    return made


async def test_what_another_instance_changed_is_read_as_soon_as_redis_has_told_it(redis, keeper):
    database = Database()
    async with connected(redis) as here, connected(redis) as there:
        told, teller = keeper(database, here), keeper(database, there)
        await told.start()
        try:
            # Once at its start, and once when it has begun to listen: from then on nothing but a message wakes it.
            await until(lambda: len(told.seen) == 2, what="it listens")
            assert told.loaded == [1]
            database.version = 2
            await teller.changed()
            await until(lambda: told.loaded == [1, 2], NOTICED_S, what="the change is read")
        finally:
            await told.stop()
