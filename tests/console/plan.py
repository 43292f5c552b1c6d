"""The page shows what the gateway's configuration has, and that is rendered from `citadel_models`."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[2]
HOST = "hx-llm-server-01"
MODELS = yaml.safe_load((REPO / "group_vars/llm_servers/models.yml").read_text())["citadel_models"]


def rendered(models):
    """citadel.yaml of the lab's LLM server with these `citadel_models`, as the role renders it; no host is asked."""
    role = REPO / "roles/gateway"
    variables = {"citadel_models": models, "ansible_managed": "", "role_path": str(role)}
    text = f"{{{{ lookup('ansible.builtin.template', '{role}/templates/citadel.yaml.j2') }}}}"
    with tempfile.TemporaryDirectory() as folder:
        ansible = str(Path(sys.executable).with_name("ansible"))
        command = [ansible, HOST, "-i", "inventory/lab.yml", "--tree", folder, "-m", "ansible.builtin.debug"]
        command += ["-a", f"msg={json.dumps(text)}", "-e", json.dumps(variables)]
        command += [f"-e@{role}/{part}/main.yml" for part in ("defaults", "vars")]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")}
        done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return yaml.safe_load(json.loads((Path(folder) / HOST).read_text())["msg"])
