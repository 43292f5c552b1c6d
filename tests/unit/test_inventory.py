"""The inventories: the requirements' hosts, addresses and models, complete and without a secret."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from citadel_llm.utils.plan import make_plan

REPO = Path(__file__).resolve().parents[2]
ADDRESSES = {
    "hx-llm-server-01": "192.168.10.29",
    "hx-vector-server-01": "192.168.10.30",
    "hx-sql-server-01": "192.168.10.35",
    "hx-metrics-server-01": "192.168.10.37",
}
# The requirements' own configuration of the models (9.2.2).
MODELS = {
    "mixtral": {"port": 11400, "memory": "90GB", "cpu_cores": 8, "max_tokens": 32768, "temperature": 0.7},
    "hermes": {"port": 11401, "memory": "30GB", "cpu_cores": 4, "max_tokens": 8192, "temperature": 0.7},
    "openchat": {"port": 11402, "memory": "25GB", "cpu_cores": 4, "max_tokens": 8192, "temperature": 0.7},
    "phi3": {"port": 11403, "memory": "8GB", "cpu_cores": 2, "max_tokens": 4096, "temperature": 0.7},
}


@pytest.fixture(scope="module", params=["production", "lab"])
def inventory(request):
    """`ansible-inventory --list` of each inventory."""
    command = [Path(sys.executable).with_name("ansible-inventory"), "-i", f"inventory/{request.param}.yml", "--list"]
    said = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def test_it_holds_the_requirements_hosts_with_their_addresses(inventory):
    hosts = inventory["_meta"]["hostvars"]
    assert {name: known["ansible_host"] for name, known in hosts.items()} == ADDRESSES


def test_the_requirements_models_have_the_requirements_values(inventory):
    models = inventory["_meta"]["hostvars"]["hx-llm-server-01"]["citadel_models"]
    assert {name: {key: models[name][key] for key in asked} for name, asked in MODELS.items()} == MODELS


def test_the_plan_can_be_made_of_it(inventory):
    known = inventory["_meta"]["hostvars"]["hx-llm-server-01"]
    overrides = known.get("citadel_model_overrides", {})
    planned = make_plan(known["citadel_models"], overrides, host_cores=32, host_memory_bytes=512 * 10**9)
    assert {model["name"] for model in planned["models"]} >= set(MODELS)


def test_every_alias_leads_to_a_model(inventory):
    known = inventory["_meta"]["hostvars"]["hx-llm-server-01"]
    assert set(known["citadel_model_aliases"].values()) <= {*known["citadel_models"], "auto"}


def test_it_holds_no_secret(inventory):
    text = json.dumps(inventory)
    assert "ansible_password" not in text
    assert not re.search(r"sk-[A-Za-z0-9_-]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY|vault_gateway_api_keys", text)
