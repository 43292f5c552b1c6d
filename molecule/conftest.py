"""What the scenarios' own tests share: a playbook, played on the lab as an operator would."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Played:
    """How a play ended."""

    code: int
    text: str

    @property
    def changed(self) -> dict[str, int]:
        """Tasks that changed something, by host."""
        return {host: int(changed) for host, _, changed, _, _ in RECAP.findall(self.text)}


@pytest.fixture(scope="session")
def play():
    """`play(*options)`: site.yml, or another playbook, on the lab's inventory, whatever its end."""

    def played(*options, playbook="site", environment=None):
        command = ["ansible-playbook", f"playbooks/{playbook}.yml", "-i", "inventory/lab.yml", *options]
        own = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), **(environment or {})}
        done = subprocess.run(
            command, cwd=REPO, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
        )
        return Played(done.returncode, done.stdout + done.stderr)

    return played


@pytest.fixture(scope="session")
def credentials():
    """What the lab tells its users: `gateway_url`, `admin_key`."""
    return json.loads((Path(os.environ["LAB_DIR"]) / "credentials.json").read_text())
