"""The running lab, as its callers know it."""

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path

import openai
import pytest

REPO = Path(__file__).resolve().parents[2]
HOST = "hx-llm-server-01"


@pytest.fixture(scope="session")
def credentials():
    """`gateway_url`, `admin_key` and whatever else the lab tells its users."""
    if "LAB_DIR" not in os.environ:
        raise pytest.UsageError("these tests need the running lab: bin/lab run pytest tests/integration")
    return json.loads((Path(os.environ["LAB_DIR"]) / "credentials.json").read_text())


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
def shell_in(run_module):
    """`shell_in(folder)`: a function that runs a command on the LLM server, where `folder` is empty meanwhile."""
    folders = []

    def told(command):
        result = run_module("ansible.builtin.shell", {"cmd": command, "chdir": "/"})
        assert result["rc"] == 0, result
        return result["stdout"]

    def opened(folder):
        told(f"rm -rf {folder} && install -d -o root -g citadel -m 0750 {folder}")
        folders.append(folder)
        return told

    yield opened
    for folder in folders:
        told(f"rm -rf {folder}")
