"""What the roles' tests know of a host: its inventory's variables, rendered, and the plan computed from them.

testinfra reads an inventory without rendering it. Here every variable is rendered once, by Ansible, so that
`host.ansible.get_variables()` holds values and that a templated connection works over plain ssh.

Without `-m`, tests that break something on purpose are left out. What the site lowers or turns off is listed last.
"""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from testinfra.utils.ansible_runner import AnsibleRunner

from citadel_llm.utils.plan import make_plan

ROLES = Path(__file__).resolve().parent
NOT_RENDERED = {"citadel_plan"}  # it needs facts of the host: see the fixture `plan`


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.markexpr:
        config.option.markexpr = "not disruptive"


def pytest_sessionstart(session: pytest.Session) -> None:
    inventory = session.config.getoption("ansible_inventory")
    if not inventory:
        return
    hosts = AnsibleRunner.get_runner(inventory).inventory["_meta"]["hostvars"]
    names = {name for known in hosts.values() for name in known}
    pairs = ", ".join(f"'{name}': {name} | default(none)" for name in sorted(names - NOT_RENDERED))
    with tempfile.TemporaryDirectory() as folder:
        # As text, since a result's own keys come back sorted, and the models' order decides on their cores.
        message = f"msg={{{{ {{{pairs}}} | to_json }}}}"
        command = ["ansible", "all", "-i", inventory, "-m", "ansible.builtin.debug", "-a", message]
        done = subprocess.run([*command, "--tree", folder], capture_output=True, text=True, check=False)
        for path in Path(folder).iterdir():
            said = json.loads(path.read_text())
            if said.get("failed"):
                raise pytest.UsageError(f"the inventory's variables of {path.name} cannot be rendered: {said['msg']}")
            rendered = json.loads(said["msg"])
            hosts[path.name].update({name: value for name, value in rendered.items() if value is not None})
    if done.returncode != 0:
        raise pytest.UsageError(f"ansible cannot render the variables of {inventory}:\n{done.stdout}{done.stderr}")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    inventory = config.getoption("ansible_inventory")
    if not inventory:
        return
    lines: dict[str, None] = {}
    for known in AnsibleRunner.get_runner(inventory).inventory["_meta"]["hostvars"].values():
        expected = known.get("citadel_expected", {})
        for name, required in known.get("citadel_required", {}).items():
            if expected.get(name) != required:
                lines[f"{name}: required is {required}, held to {expected.get(name)} here"] = None
        for entry in known.get("citadel_not_rehearsed", []):
            lines[f"{entry['what']}: {entry['why']}"] = None
    if lines:
        terminalreporter.section("not rehearsed here")
        for line in lines:
            terminalreporter.line(line)


@functools.lru_cache
def _facts(host: Any) -> dict[str, Any]:
    said = host.ansible("setup", "gather_subset=!all,!min,hardware")
    assert "ansible_facts" in said, f"no facts of the host: {said.get('msg', said)}"
    found: dict[str, Any] = said["ansible_facts"]
    return found


@pytest.fixture(scope="module")
def site(host: Any) -> dict[str, Any]:
    """The inventory's variables of this host, rendered."""
    found: dict[str, Any] = host.ansible.get_variables()
    return found


@pytest.fixture(scope="module")
def role(request: pytest.FixtureRequest, site: dict[str, Any]) -> dict[str, Any]:
    """The variables of the role whose tests these are: its plain defaults, under what the inventory says."""
    name = request.path.parent.parent.name
    defaults: dict[str, Any] = yaml.safe_load((ROLES / name / "defaults/main.yml").read_text())
    return {**defaults, **{key: value for key, value in site.items() if key.startswith(f"{name}_")}}


@pytest.fixture(scope="module")
def plan(host: Any, site: dict[str, Any]) -> dict[str, Any]:
    """`citadel_plan` of this host."""
    facts = _facts(host)
    return make_plan(
        site["citadel_models"],
        overrides=site.get("citadel_model_overrides", {}),
        host_cores=facts["ansible_processor_vcpus"],
        host_memory_bytes=facts["ansible_memtotal_mb"] * 2**20,
        overcommit=site["citadel_overcommit"],
    )
