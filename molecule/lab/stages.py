#!/usr/bin/env python3
"""The LLM server before and after each role of site.yml, kept as the lab's layers, for the molecule scenarios.

    stages.py begin ROLE   the host as the roles before ROLE leave it; `begin site` is a bare host
    stages.py keep ROLE    the host's present state is what ROLE leaves
    stages.py end          the host stopped, and what it wrote dropped

A stage's name carries a digest of everything that it is made from, so that a kept one is used only for the same
roles, variables and image. What is missing is played with site.yml and kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
HOST = "hx-llm-server-01"
SQL_HOST, VECTOR_HOST, METRICS_HOST = "hx-sql-server-01", "hx-vector-server-01", "hx-metrics-server-01"
SITE = REPO / "playbooks/site.yml"
SHARED = [
    "plugins", "group_vars", "inventory/lab.yml", "files/requirements/uv.txt", "files/requirements/engine-*.txt",
    "src/citadel_llm/models", "src/citadel_llm/utils/plan.py", "molecule/lab/images.py",
]  # fmt: skip
# What a role is made from beside its own folder.
BESIDE = {
    "database": ["src/citadel_llm/integration/database", "files/requirements/database.txt", "roles/gateway/tasks"],
    "vector": ["src/citadel_llm/integration/vector/collections.py"],
    "monitoring": ["src/citadel_monitoring"],
}
CHANGES_NOTHING = {"preflight"}
# These have nothing to do with the engines, whose start would take both cores for a minute.
WITHOUT_ENGINES = {"cache", "database", "vector"}


def roles() -> list[str]:
    """The roles that change a host, in the order in which it meets them: site.yml is the one home of both."""
    found = re.findall(r"role: (\w+)", SITE.read_text())
    return [name for name in found if name not in CHANGES_NOTHING]


def files(part: str) -> list[Path]:
    found = [entry for path in REPO.glob(part) for entry in ([path] if path.is_file() else path.rglob("*"))]
    apart = {"tests", "__pycache__"}
    return sorted(entry for entry in found if entry.is_file() and not apart & set(entry.relative_to(REPO).parts))


def name(done: list[str]) -> str:
    """The layer of a host that these roles have been played on: the last one's name and the digest of all."""
    digest = hashlib.sha256()
    for part in [
        *SHARED,
        *(f"roles/{role}" for role in done),
        *(part for role in done for part in BESIDE.get(role, [])),
    ]:
        for path in files(part):
            digest.update(f"{path.relative_to(REPO)}\0".encode() + path.read_bytes() + b"\0")
    return f"{done[-1]}-{digest.hexdigest()[:12]}"


def lab(*words: str) -> str:
    done = subprocess.run([str(REPO / "bin/lab"), *words], stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        sys.exit(f"stages: bin/lab {' '.join(words)} failed; its message is above")
    return done.stdout


def kept() -> list[str]:
    found: list[str] = json.loads(lab("layers", "--json"))[HOST]
    return found


def begin(role: str) -> None:
    order = roles()
    before = order[: order.index(role)] if role in order else []
    there = kept()
    ready = next((before[:count] for count in range(len(before), 0, -1) if name(before[:count]) in there), [])
    missing = before[len(ready) :]
    masked = {"LAB_MASKED": "citadel-model@.service"} if role in WITHOUT_ENGINES else {}
    if "model" not in missing:  # that role starts them
        os.environ.update(masked)
    lab("reset", HOST, *(["--from", name(ready)] if ready else []))
    if role in {"database", "site"}:
        lab("reset", SQL_HOST)  # an empty database
    if role in {"monitoring", "site"}:
        lab("reset", METRICS_HOST)  # as its owner has it
    if role in {"vector", "site"}:
        lab("reset", VECTOR_HOST)  # no collections
    lab("up")
    # What these make lies on hosts that are not among what is kept.
    elsewhere = [part for part in ("database", "vector") if part in before and part not in missing]
    missing = [*elsewhere, *missing]
    if missing:
        print(f"stages: playing {', '.join(missing)} first", flush=True)
        command = ["ansible-playbook", str(SITE), "-i", str(REPO / "inventory/lab.yml"), "--tags", ",".join(missing)]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")}
        if subprocess.run(command, cwd=REPO, env=environment, check=False).returncode != 0:
            sys.exit(f"stages: site.yml with {', '.join(missing)} failed; its message is above")
        keep(before[-1])
        os.environ.update(masked)
        lab("up")
    lab("exec", HOST, "systemctl", "is-system-running", "--wait")  # what its units start is up too


def keep(role: str) -> None:
    order = roles()
    if role not in order[:-1]:  # nothing starts from what the last one leaves
        return
    layer = name(order[: order.index(role) + 1])
    if layer not in kept():
        lab("snapshot", "--halt", HOST, layer)
    wanted = {name(order[: count + 1]) for count in range(len(order))}
    # Stale ones, the outermost first: `forget` refuses a layer that another one rests on.
    while stale := [entry for entry in kept() if entry not in wanted]:
        dropped = [
            entry for entry in stale
            if subprocess.run([str(REPO / "bin/lab"), "forget", HOST, entry], capture_output=True).returncode == 0
        ]  # fmt: skip
        if not dropped:
            return


def end() -> None:
    lab("reset", "--halt", HOST)


def main() -> None:
    verbs = {"begin": begin, "keep": keep, "end": end}
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    verbs[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
