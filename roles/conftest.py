"""What the roles' tests know of a host: its inventory's variables, rendered, and the plan computed from them.

testinfra reads an inventory without rendering it. Here every variable of ours and of the connection is rendered once,
by Ansible, so that `host.ansible.get_variables()` holds values and that a templated connection works over plain ssh.
"""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from testinfra.utils.ansible_runner import AnsibleRunner

from citadel_llm.utils.plan import make_plan

NOT_RENDERED = {"citadel_plan"}  # it needs facts of the host: see the fixture `plan`


def pytest_sessionstart(session: pytest.Session) -> None:
    inventory = session.config.getoption("ansible_inventory")
    if not inventory:
        return
    hosts = AnsibleRunner.get_runner(inventory).inventory["_meta"]["hostvars"]
    names = {name for known in hosts.values() for name in known if name.startswith(("ansible_", "citadel_"))}
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
