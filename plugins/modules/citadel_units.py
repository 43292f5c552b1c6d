"""Ansible module: several systemd units enabled and brought to a state together, and awaited.

`ansible.builtin.systemd_service` takes one unit at a time, and fails in a dry run for a unit whose file
the same run would write. Models take a minute to start, so they start side by side.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: citadel_units
short_description: Enable several systemd units and bring them to a state together
options:
  names:
    description: Units by their full names.
    type: list
    elements: str
    required: true
  state:
    description: started leaves running units alone; restarted does not; stopped also disables.
    type: str
    choices: [started, restarted, stopped]
    default: started
  marks:
    description:
      - By unit, the value that C(mark_variable) must have in the environment of its running process. A unit that runs
        with another one is restarted, whenever and by whomever its files were changed.
    type: dict
    default: {}
  mark_variable:
    description: Name of that environment variable.
    type: str
    default: CITADEL_SPEC
  rolling:
    description:
      - One unit after the other, each awaited before the next is touched, so that those behind one socket go on
        answering. The first that does not come up ends it, and the rest stay as they are.
    type: bool
    default: false
  tries:
    description: Restarts by systemd after which a unit that should start counts as failing, though it goes on trying.
    type: int
    default: 3
  timeout_s:
    description: How long to wait for all units, in seconds.
    type: int
    default: 120
author: Citadel
"""

EXAMPLES = r"""
- name: Start the models
  citadel_units:
    names: [citadel-model@phi3.service]
    timeout_s: 600
"""

RETURN = r"""
states:
  description: Each unit's ActiveState afterwards.
  type: dict
  returned: always
"""

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "MainPID",
    "Job",
    "NRestarts",
)


def systemctl(module: AnsibleModule, *words: str, check: bool = True) -> str:
    code, out, err = module.run_command(["systemctl", *words], check_rc=False)
    if check and code != 0:
        module.fail_json(msg=f"systemctl {' '.join(words)}: {err.strip() or out.strip()}")
    return out


def show(module: AnsibleModule, name: str) -> dict[str, str]:
    out = systemctl(module, "show", name, f"--property={','.join(PROPERTIES)}", check=False)
    facts = dict.fromkeys(PROPERTIES, "")
    facts.update(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return facts


def running_mark(facts: dict[str, str], variable: str) -> str:
    """The variable's value in the environment of a unit's main process; empty without either."""
    try:
        environment = Path("/proc", facts["MainPID"], "environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    found = [entry for entry in environment if entry.startswith(variable.encode() + b"=")]
    return found[0].split(b"=", 1)[1].decode() if found else ""


def await_units(module: AnsibleModule, names: list[str], wanted: str) -> dict[str, str]:
    """The units' states once each is `wanted`; fails with a unit's last words when it will not be."""
    deadline = time.monotonic() + module.params["timeout_s"]
    while True:
        facts = {name: show(module, name) for name in names}
        # A queued job has not shown in the state yet: a unit that is to restart still says "active".
        waiting = [n for n in names if facts[n]["ActiveState"] != wanted or facts[n]["Job"] not in ("", "0")]
        failed = [n for n in waiting if facts[n]["ActiveState"] == "failed" or _keeps_failing(module, facts[n])]
        late = time.monotonic() > deadline
        if failed or (late and waiting):
            name = (failed or waiting)[0]
            _, journal, _ = module.run_command(["journalctl", "-u", name, "-n", "25", "--no-pager", "-o", "cat"])
            module.fail_json(
                msg=f"{name} is {facts[name]['ActiveState']}, not {wanted}"
                + (f", after {module.params['timeout_s']} s" if late else "")
                + (f", after {facts[name]['NRestarts']} restarts" if failed else "")
                + f"; look with: journalctl -u {name}. Its last lines:\n{journal}"
            )
        if not waiting:
            return {name: facts[name]["ActiveState"] for name in names}
        time.sleep(0.5)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["started", "restarted", "stopped"], "default": "started"},
            "marks": {"type": "dict", "default": {}},
            "mark_variable": {"type": "str", "default": "CITADEL_SPEC"},
            "rolling": {"type": "bool", "default": False},
            "tries": {"type": "int", "default": 3},
            "timeout_s": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    names, state = module.params["names"], module.params["state"]
    before = {name: show(module, name) for name in names}
    result: dict[str, Any] = {name: facts["ActiveState"] for name, facts in before.items()}
    if state == "stopped":
        acting = [n for n in names if before[n]["ActiveState"] not in ("inactive", "") or _enabled(before[n])]
        enabling: list[str] = []
    else:
        enabling = [name for name in names if not _enabled(before[name])]
        outdated = [
            name
            for name, mark in module.params["marks"].items()
            if before[name]["MainPID"] not in ("", "0")
            and running_mark(before[name], module.params["mark_variable"]) != str(mark)
        ]
        acting = [n for n in names if state == "restarted" or n in outdated or before[n]["ActiveState"] != "active"]
    if module.check_mode or not (acting or enabling):
        module.exit_json(changed=bool(acting or enabling), states=result)
    if any(facts["NeedDaemonReload"] == "yes" or facts["LoadState"] != "loaded" for facts in before.values()):
        systemctl(module, "daemon-reload")
    if state == "stopped":
        systemctl(module, "disable", "--now", *acting, check=False)
        systemctl(module, "reset-failed", *acting, check=False)
        module.exit_json(changed=True, states=await_units(module, acting, "inactive"))
    if enabling:
        systemctl(module, "enable", *enabling)
    if acting:
        systemctl(module, "reset-failed", *acting, check=False)  # start limits of the past
        # A unit that waits for its next try is not started by "start"; one that is on its way is left alone.
        restarting = [
            n for n in acting if state == "restarted" or n in outdated or before[n]["SubState"] == "auto-restart"
        ]
        for group in [[n] for n in acting] if module.params["rolling"] else [acting]:
            for verb, units in (
                ("restart", [n for n in group if n in restarting]),
                ("start", [n for n in group if n not in restarting]),
            ):
                if units:
                    systemctl(module, verb, "--no-block", *units)
            if module.params["rolling"]:
                await_units(module, group, "active")
    module.exit_json(changed=True, states=await_units(module, names, "active"))


def _keeps_failing(module: AnsibleModule, facts: dict[str, str]) -> bool:
    return int(facts["NRestarts"] or 0) >= module.params["tries"] and facts["SubState"] == "auto-restart"


def _enabled(facts: dict[str, str]) -> bool:
    return facts["UnitFileState"] in ("enabled", "static", "alias", "indirect", "generated", "enabled-runtime")


if __name__ == "__main__":
    main()
