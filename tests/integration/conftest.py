"""The running lab, as its callers know it."""

import contextlib
import json
import os
import re
import secrets
import subprocess
import urllib.request
from pathlib import Path

import openai
import psycopg
import pytest
import pytest_asyncio
from anyio.from_thread import start_blocking_portal
from running_lab import known_credentials
from sites import migrated_database
from sql_host import create_database, drop_database, place

from citadel_llm.integration.database.connection import connected
from citadel_llm.integration.database.target import Target
from redis_server import Server
from upstreams import Upstream

REPO = Path(__file__).resolve().parents[2]
HOST = "hx-llm-server-01"


@pytest.fixture(scope="session")
def credentials():
    """`gateway_url`, `admin_key` and whatever else the lab tells its users."""
    if "LAB_DIR" not in os.environ:
        raise pytest.UsageError("these tests need the running lab: bin/lab run pytest tests/integration")
    return known_credentials()


@pytest.fixture
def client(credentials):
    """The official client, which does not retry: what fails is seen."""
    with openai.OpenAI(
        base_url=f"{credentials['gateway_url']}/v1", api_key=credentials["admin_key"], timeout=60, max_retries=0
    ) as made:
        yield made


@pytest.fixture(scope="session")
def kinds(credentials):
    """{kind: [model]}"""
    found = {"generate": [], "embedding": []}
    with openai.OpenAI(base_url=f"{credentials['gateway_url']}/v1", api_key=credentials["admin_key"]) as asking:
        for model in asking.models.list():
            found[model.kind].append(model.id)
    return found


@pytest.fixture(scope="session")
def engine_metric(credentials):
    """`engine_metric(model, name, ...)`: the sum of these metrics of the model's own engines, from the engines."""
    gateway = credentials["gateway_url"].split("/")[2].split(":")[0]

    def read(url):
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()

    def told(model, *names):
        engines = json.loads(read(f"{credentials['gateway_url']}/health"))["models"][model]["engines"]
        addresses = [engine["address"].replace("127.0.0.1", gateway) for engine in engines]
        samples = "\n".join(read(f"http://{address}/metrics") for address in addresses)
        return sum(
            float(value)
            for name in names
            for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", samples, re.MULTILINE)
        )

    return told


@pytest.fixture(scope="session")
def gateway_metric(credentials):
    """`gateway_metric(name, model)`: the sum of a metric's samples of that model, over all instances."""

    def told(name, model):
        with urllib.request.urlopen(f"{credentials['gateway_url']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        samples = re.findall(rf'^{name}\{{[^}}]*model="{model}"[^}}]*\}} (\S+)$', text, re.MULTILINE)
        return sum(map(float, samples))

    return told


@pytest.fixture(scope="session")
def on_host():
    """`on_host(word, ...)`: the output of a command on the LLM server."""

    def told(*words):
        done = subprocess.run([str(REPO / "bin/lab"), "exec", HOST, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return told


@pytest.fixture
def database():
    """An empty database of the owner's, on the lab's SQL host."""
    name = f"citadel_test_{secrets.token_hex(4)}"
    create_database(name)
    yield name
    drop_database(name)


@pytest.fixture
def target(credentials, database):
    """`target(fact)`: the database, by the user of that fact."""

    def made(fact="database_url"):
        return Target(**place(credentials[fact], database))

    return made


@pytest.fixture
def engine(target):
    """The owner's engine for it."""
    with connected(target()) as made:
        yield made


@pytest.fixture
def ask(target):
    """`ask(statement, fact)`: its rows, in a transaction of its own."""

    def asked(statement, fact="database_url"):
        place = target(fact)
        with psycopg.connect(
            host=place.host, port=place.port, dbname=place.database, user=place.user, password=place.password
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    return asked


@pytest.fixture
def run_module(tmp_path):
    """`run_module(module, arguments, *options)`: the result of an Ansible module on the LLM server."""
    results = tmp_path / "results"
    environment = {**os.environ, "ANSIBLE_LIBRARY": f"{REPO}/roles/weights/library:{REPO}/plugins/modules"}

    def ran(module, arguments, *options):
        command = ["ansible", HOST, "-i", "inventory/lab.yml", "-m", module, "-a", json.dumps(arguments)]
        done = subprocess.run(
            [*command, "--tree", str(results), *options],
            cwd=REPO,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        path = results / HOST
        assert path.exists(), done.stdout + done.stderr
        result = json.loads(path.read_text())
        path.unlink()
        return {**result, "failed": done.returncode != 0}

    return ran


@pytest.fixture
def shell_in():
    """`shell_in(folder)`: a function that runs a command on the LLM server, where `folder` is empty meanwhile."""
    folders = []

    def told(command):
        done = subprocess.run(
            [str(REPO / "bin/lab"), "exec", HOST, "sh", "-c", f"cd /; {command}"],
            timeout=120, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.removesuffix("\n")

    def opened(folder):
        told(f"rm -rf {folder} && install -d -o root -g citadel -m 0750 {folder}")
        folders.append(folder)
        return told

    yield opened
    for folder in folders:
        told(f"rm -rf {folder}")


# -- gateways of a test's own, beside the lab's SQL host --------------------------------------------------------------


@pytest.fixture(scope="module")
def site(credentials, tmp_path_factory):
    """A database of the module's own, whose one declared key is the admin's."""
    with migrated_database(credentials) as made:
        made.brought(tmp_path_factory.mktemp("site"), {"name": "root", "key": made.admin_key})
        yield made


@pytest.fixture
def empty_site(credentials):
    """A database in which nobody is."""
    with migrated_database(credentials) as made:
        yield made


@contextlib.asynccontextmanager
async def two_engines():
    """Two models' engines, of which one also answers for the other and for embeddings."""
    async with Upstream() as phi3, Upstream() as mixtral:
        yield {
            "phi3": {"upstreams": [phi3], "fallback": ["mixtral"], "size_gb": 1},
            "mixtral": {"upstreams": [mixtral], "size_gb": 2},
            "minilm": {"upstreams": [phi3], "kind": "embedding"},
        }


@pytest_asyncio.fixture
async def engines():
    """The test's own."""
    async with two_engines() as models:
        yield models


@pytest.fixture(scope="module")
def gateway(site, tmp_path_factory):
    """A gateway of that site for the whole module, on a loop in a thread of its own."""

    @contextlib.asynccontextmanager
    async def running():
        folder = tmp_path_factory.mktemp("gateway")
        audit = {"enabled": True, "directory": str(folder / "spool")}
        async with two_engines() as models, site.gateway(folder, models, audit=audit) as started:
            yield started

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running()) as started:
        yield started


@pytest.fixture
def redis(tmp_path):
    """A real Redis, as the role `cache` sets it up."""
    with Server(tmp_path) as server:
        yield server
