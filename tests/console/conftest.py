"""The console in a real Chromium, at gateways in processes of their own, whose engines the tests script."""

import json
from dataclasses import dataclass

import pytest
import pytest_asyncio
from console.pages import HOSTILE, ROLE_KEYS, browser, opened

from citadel_llm.api.identity.permissions import BUILT_IN
from citadel_llm.api.identity.snapshot import write_snapshot
from citadel_llm.utils.keys import digest_of, pepper_of
from gateways import spawned_gateway
from identity.rows import identities
from upstreams import Upstream, refused_port, streams

PEPPER = "a pepper of the tests, long enough for it"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium():
    async with browser() as running:
        yield running


@dataclass
class Engines:
    """The engines of a site; `script` sets what all of them answer."""

    first: Upstream
    second: Upstream

    def script(self, script):
        self.first.script = self.second.script = script


def models_of(engines):
    """Two models; one has two replicas and a latency that is required, one has a name that is markup."""
    return {
        "phi3": {
            "upstreams": [engines.first, engines.second],
            "display_name": "Phi-3 Mini",
            "latency_ms": 500,
            "latency_target_ms": 300,
        },
        "lab/hostile": {"upstreams": [engines.first], "display_name": HOSTILE},
    }


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engines():
    async with Upstream() as first, Upstream() as second:
        yield Engines(first, second)


@pytest.fixture(autouse=True)
def answering(engines):
    """Each test begins with engines that stream."""
    engines.script(streams())


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(engines, tmp_path_factory):
    """One without a database, whose file's keys may do everything."""
    folder = tmp_path_factory.mktemp("gateway")
    # Counts are as of each reading: what was asked for just before it is in it.
    async with spawned_gateway(folder, models=models_of(engines), console={"status_s": 0.001}) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def roled(engines, tmp_path_factory):
    """One with users of each role, as it knew them before its database went away; it audits."""
    folder = tmp_path_factory.mktemp("roled")
    (folder / "pepper").write_text(PEPPER)
    pepper = pepper_of(PEPPER)
    known = identities(
        users={role: ([role], None) for role in BUILT_IN},
        keys={digest_of(key.encode(), pepper): (role, None, None, None) for role, key in ROLE_KEYS.items()},
    )
    assert write_snapshot(folder / "identity.json", known)
    with refused_port() as port:
        place = {"host": "127.0.0.1", "port": port, "database": "d", "user": "u", "password": "p"}
        (folder / "database.json").write_text(json.dumps(place))
        sections = {
            "auth": {
                "keys_file": None,
                "pepper_file": str(folder / "pepper"),
                "snapshot_file": str(folder / "identity.json"),
            },
            "database": {"enabled": True, "credentials_file": str(folder / "database.json")},
            "audit": {"enabled": True, "directory": str(folder / "audit")},
        }
        async with spawned_gateway(folder, models=models_of(engines), **sections) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="session")
async def console(chromium, gateway):
    """The page of the gateway without a database, before somebody signs in."""
    async with opened(chromium, gateway) as seen:
        yield seen


@pytest_asyncio.fixture(loop_scope="session")
async def roled_console(chromium, roled):
    async with opened(chromium, roled) as seen:
        yield seen
