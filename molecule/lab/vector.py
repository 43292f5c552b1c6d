"""The lab's vector host: Qdrant's engine on 8000, by REST, gRPC and GraphQL (`qdrant/`, docs/lab-qdrant.md).

The service and its environment are in an addition to the image; the API key is placed at each boot, from the lab's
secrets. Data lies in /var/lib/qdrant and survives `down` and `up`.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from settings import REPO, VECTOR_HOST, Lab

PACKAGES: list[str] = []  # Python is in the image
PORT = 8000
SECRET = "vault_qdrant_api_key"
PROBE = f"systemctl is-system-running --wait >/dev/null; curl -fsS -o /dev/null http://127.0.0.1:{PORT}/readyz"

_SERVICE = Path(__file__).resolve().parent / "qdrant"
_LOCK = REPO / "files/requirements/lab-qdrant.txt"
SOURCES = [*sorted(_SERVICE.glob("*.py")), _LOCK]
_HOME = "opt/citadel-lab-qdrant"
AFTER = f"""
python3 -m venv /{_HOME}/env
/{_HOME}/env/bin/pip install --quiet --no-cache-dir --require-hashes -r /{_HOME}/requirements.txt
/{_HOME}/env/bin/python -m compileall -q /{_HOME}/qdrant
"""

UNIT = f"""\
[Unit]
Description=Qdrant's engine, as the lab serves it
After=network.target

[Service]
Type=notify
DynamicUser=yes
StateDirectory=qdrant
StateDirectoryMode=0700
WorkingDirectory=/{_HOME}
LoadCredential=key:/etc/citadel-lab/qdrant.key
ExecStart=/{_HOME}/env/bin/python -m qdrant /var/lib/qdrant %d/key {PORT}
Environment=PYTHONDONTWRITEBYTECODE=1 GRPC_VERBOSITY=ERROR MALLOC_ARENA_MAX=2
Restart=always
RestartSec=1
TimeoutStopSec=30
LimitNOFILE=16384
NoNewPrivileges=yes
ProtectHome=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX

[Install]
WantedBy=multi-user.target
"""


def url(lab: Lab) -> str:
    """Where it is."""
    return f"http://{lab.address(VECTOR_HOST)}:{PORT}"


def place(root: Path) -> None:
    """The service's files, before `AFTER` runs."""
    home = root / _HOME
    home.mkdir(parents=True)
    shutil.copytree(_SERVICE, home / "qdrant", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(_LOCK, home / "requirements.txt")


def furnish(root: Path) -> None:
    """The unit."""
    units = root / "etc/systemd/system"
    (units / "citadel-lab-qdrant.service").write_text(UNIT)
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "citadel-lab-qdrant.service").symlink_to("../citadel-lab-qdrant.service")


def personalise(root: Path, lab: Lab) -> None:
    """The API key, where only the host's root may read it."""
    found = re.search(rf"^{SECRET}: (\S+)$", (lab.directory / "secrets.yml").read_text(), re.M)
    assert found is not None
    target = root / "etc/citadel-lab/qdrant.key"
    target.parent.mkdir(exist_ok=True)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(found[1] + "\n")
