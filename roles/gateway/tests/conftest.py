"""How the tests of the gateway ask it: from where its callers are, with one of the site's own keys."""

import os
import subprocess

import httpx2
import pytest
import yaml


@pytest.fixture(scope="session")
def read_key():
    """`read_key(file)`: a caller's key from $CITADEL_API_KEY, else from the site's secrets file, vault or plain."""

    def read(path):
        if given := os.environ.get("CITADEL_API_KEY"):
            return given
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if text.startswith("$ANSIBLE_VAULT"):
            shown = subprocess.run(["ansible-vault", "view", path], capture_output=True, text=True, check=False)
            assert shown.returncode == 0, (
                f"{path} cannot be opened: set CITADEL_API_KEY, or ANSIBLE_VAULT_PASSWORD_FILE ({shown.stderr.strip()})"
            )
            text = shown.stdout
        return yaml.safe_load(text)["vault_gateway_api_keys"][0]["key"]

    return read


@pytest.fixture(scope="module")
def key(site, read_key):
    return read_key(site["citadel_secrets_file"])


@pytest.fixture(scope="module")
def url(site):
    return f"http://{site['ansible_host']}:{site['citadel_gateway_port']}"


@pytest.fixture(scope="module")
def client(url):
    """A caller without a key."""
    with httpx2.Client(base_url=url, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def caller(url, key):
    """A caller with a key."""
    with httpx2.Client(base_url=url, timeout=60, headers={"authorization": f"Bearer {key}"}) as made:
        yield made


@pytest.fixture(scope="module")
def units(role):
    """The instances' units."""
    return [f"citadel-gateway@{number}.service" for number in range(1, role["gateway_instances"] + 1)]


@pytest.fixture(scope="module")
def writers(plan):
    """The plan's models that write text."""
    return [model for model in plan["models"] if model["kind"] == "generate"]
