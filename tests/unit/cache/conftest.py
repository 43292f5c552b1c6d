"""What the tests of the cache begin with."""

import asyncio

import pytest
import pytest_asyncio
import uvloop

from redis_server import Server, connected


def pytest_asyncio_loop_factories():
    """Both loops: they differ in whether timers or sockets are looked at first."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path) as running:
        yield running


@pytest.fixture
def new_server(tmp_path):
    """`new_server(**variables of the role)`: one that is not the usual."""
    made = []

    def start(**variables):
        running = Server(tmp_path, **variables)
        made.append(running)
        running.start()
        return running

    yield start
    for running in made:
        running.stop()


@pytest_asyncio.fixture
async def redis(server):
    # A call's time limit is the production one times ten, where it is not what is tested: the machine may be busy.
    async with connected(server, timeout_s=0.2, stall_s=0.6) as client:
        yield client
