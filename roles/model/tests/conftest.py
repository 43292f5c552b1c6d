"""How the tests of models ask systemd and the engines."""

import json

import pytest

ASK = (
    "import sys, urllib.request as u; "
    "r = u.Request(sys.argv[1], sys.argv[2].encode() or None, {'content-type': 'application/json'}); "
    "print(u.urlopen(r, timeout=60).read().decode())"
)


@pytest.fixture(scope="module")
def show(host):
    """`show(unit, *properties)`: properties of a unit by name."""

    def shown(unit, *properties):
        said = host.run(f"systemctl show {unit} --property={','.join(properties)}")
        return dict(line.split("=", 1) for line in said.stdout.splitlines())

    return shown


@pytest.fixture(scope="module")
def ask(host):
    """`ask(url, body=None)`: what an engine answers, asked from the host itself, where only Python is sure to be."""

    def asked(url, body=None):
        said = host.run("python3 -c %s %s %s", ASK, url, json.dumps(body) if body else "")
        assert said.succeeded, f"{url}: {said.stderr}"
        return said.stdout

    return asked


@pytest.fixture(scope="module")
def generating(plan):
    """Models that go on with a text."""
    return [model for model in plan["models"] if model["kind"] == "generate"]


@pytest.fixture(scope="module")
def embedding(plan):
    """Models that turn a text into a vector."""
    return [model for model in plan["models"] if model["kind"] == "embedding"]
