"""The gateway's tests run on the loop that the product runs on."""

import contextlib

import pytest
import pytest_asyncio
import uvloop

from gateways import running_gateway
from redis_server import Server
from upstreams import Upstream


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def upstream():
    """An engine whose behaviour a test scripts: `upstream.script = answers(...)`."""
    async with Upstream() as engine:
        yield engine


@pytest_asyncio.fixture
async def second_upstream():
    """A replica of `upstream`."""
    async with Upstream() as engine:
        yield engine


@pytest.fixture
def redis(tmp_path):
    """A real Redis, as the role `cache` sets it up."""
    with Server(tmp_path) as server:
        yield server


@pytest.fixture
def serve(tmp_path):
    """`async with serve(models={"phi3": [upstream]}, timeouts={...}) as gateway`: a gateway of that configuration."""

    def start(**sections):
        return running_gateway(tmp_path, **sections)

    return start


@pytest_asyncio.fixture
async def gateway(serve, upstream):
    """A gateway with one model, `phi3`, at one engine, `upstream`."""
    async with serve(models={"phi3": [upstream]}) as running:
        yield running


@pytest_asyncio.fixture
async def cleanup():
    """Contexts that a test enters as it goes; they are left in reverse order when it ends."""
    async with contextlib.AsyncExitStack() as stack:
        yield stack
