"""The lab's metrics host: Prometheus on 9090 and Alertmanager on 9093, with a configuration that is somebody else's.

Beside them: what stands in for Grafana on 3000 (`grafana.py`), and a sink on 9099 for what Alertmanager sends
(`sink.py`). All of it is there before any role of this project runs, as the site has it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

from settings import METRICS_HOST, Lab, LabError

PACKAGES = ["prometheus", "prometheus-alertmanager"]  # Debian 13: 2.53 and 0.28
HERE = Path(__file__).resolve().parent
INPUTS = [HERE / "grafana.py", HERE / "sink.py"]
SINK_PORT = 9099
TOKEN = "vault_grafana_token"
# The variables of the secrets file, and the names by which the sink knows who was told.
RECEIVERS = {"vault_alert_receiver": "citadel", "vault_heartbeat_receiver": "heartbeat"}
PROBE = (
    "systemctl is-system-running --wait >/dev/null; "
    f'for port in 9090 9093 3000 {SINK_PORT}; do bash -c "</dev/tcp/127.0.0.1/$port" || exit 1; done'
)

# The owner's: comments, quotes and order as people write them, so that a test can tell whether they stay.
PROMETHEUS = """\
# Metrics server. Managed by the operations team; ask before you change it.
global:
  scrape_interval:     15s # Default is every 1 minute.
  evaluation_interval: 15s
  external_labels:
      site: "citadel"

alerting:
  alertmanagers:
  - static_configs:
    - targets: ['localhost:9093']

# Load rules once and periodically evaluate them.
rule_files:
  - "rules/operations.yml"

scrape_configs:
  - job_name: 'prometheus'
    static_configs:
      - targets: ['localhost:9090']

  - job_name: alertmanager
    static_configs:
      - targets: ["localhost:9093"]
"""
RULES = """\
groups:
- name: operations
  rules:
  - alert: PrometheusTargetDown
    expr: up{job=~"prometheus|alertmanager"} == 0
    for: 5m
    labels: {severity: ticket, team: operations}
"""
ALERTMANAGER = """\
global:
  resolve_timeout: 5m

templates: ['/etc/prometheus/alertmanager_templates/*.tmpl']

# Everything goes to operations unless a team takes it.
route:
  receiver: operations
  group_by: ['alertname']
  group_wait: 30s
  group_interval: 5m
  repeat_interval: 4h
  routes:
  - matchers: [ 'team="storage"' ]
    receiver: storage

inhibit_rules:
- source_matchers: [severity="critical"]
  target_matchers: [severity="warning"]
  equal: ['alertname', 'instance']

receivers:
- name: 'operations'
  webhook_configs:
  - url: 'http://127.0.0.1:9099/operations'
- name: 'storage'
  webhook_configs:
  - url: 'http://127.0.0.1:9099/storage'
"""
OWNERS = {
    "folders": {"infrastructure": {"id": 1, "uid": "infrastructure", "title": "Infrastructure", "version": 1}},
    "datasources": {
        "prometheus": {
            "id": 1, "uid": "prometheus", "name": "Prometheus", "type": "prometheus", "url": "http://localhost:9090",
            "access": "proxy", "isDefault": True, "readOnly": True, "version": 1,
        }
    },
    "dashboards": {
        "nodes": {
            "dashboard": {"id": 1, "uid": "nodes", "title": "Nodes", "panels": [], "schemaVersion": 36, "version": 3},
            "meta": {"folderUid": "infrastructure", "version": 3},
        }
    },
}  # fmt: skip
UNIT = """\
[Unit]
Description={description}
Before=multi-user.target

[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/citadel-lab/{command}
Environment=PYTHONPATH=/usr/local/lib/citadel-lab PYTHONDONTWRITEBYTECODE=1
StateDirectory=citadel-lab
Restart=always

[Install]
WantedBy=multi-user.target
"""
SERVICES = {
    "citadel-lab-grafana.service": (
        "What stands in for Grafana",
        "grafana.py /var/lib/citadel-lab/grafana.json --settings /etc/citadel-lab/metrics.json",
    ),
    "citadel-lab-sink.service": (
        "What Alertmanager sends, kept",
        f"sink.py /var/lib/citadel-lab/notifications.jsonl --port {SINK_PORT}",
    ),
}


def sdk() -> tuple[Path, str]:
    """Where Grafana's SDK lies in this Python, and its version."""
    found = importlib.util.find_spec("grafana_foundation_sdk")
    if found is None or found.origin is None:
        raise LabError("the metrics host needs grafana-foundation-sdk from the controller's lock; run: make setup")
    return Path(found.origin).parent, importlib.metadata.version("grafana-foundation-sdk")


def recipe() -> bytes:
    """What the addition is made from beside this file."""
    return b"".join(path.read_bytes() for path in INPUTS) + sdk()[1].encode()


def furnish(root: Path) -> None:
    """The owner's configuration, and the two services of the lab's own."""
    folder = root / "etc/prometheus"
    (folder / "rules").mkdir(exist_ok=True)
    for name, text in (
        ("prometheus.yml", PROMETHEUS), ("rules/operations.yml", RULES), ("alertmanager.yml", ALERTMANAGER),
    ):  # fmt: skip
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
    library = root / "usr/local/lib/citadel-lab"
    library.mkdir(parents=True, exist_ok=True)
    for path in INPUTS:
        shutil.copy(path, library / path.name)
    shutil.copytree(sdk()[0], library / "grafana_foundation_sdk", ignore=shutil.ignore_patterns("__pycache__"))
    units = root / "etc/systemd/system"
    wants = units / "multi-user.target.wants"
    for name, (description, command) in SERVICES.items():
        (units / name).write_text(UNIT.format(description=description, command=command))
        (wants / name).symlink_to(f"../{name}")


def personalise(root: Path, lab: Lab) -> None:
    """Grafana's token, where only the host's root may read it."""
    secrets = dict(re.findall(r"^(\w+): (\S+)$", (lab.directory / "secrets.yml").read_text(), re.M))
    target = root / "etc/citadel-lab/metrics.json"
    target.parent.mkdir(exist_ok=True)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"grafana_token": secrets[TOKEN], "grafana_owners": OWNERS}, file)


def secrets_text(token: str, lab: Lab) -> str:
    """Lines of the lab's secrets file: Grafana's token, and who is told of alerts."""
    text = f"{TOKEN}: {token}\n"
    for variable, name in RECEIVERS.items():
        url = f"http://{lab.address(METRICS_HOST)}:{SINK_PORT}/{name}"
        text += f"{variable}:\n  webhook_configs:\n    - url: {url}\n"
    return text


def facts(token: str, lab: Lab) -> dict[str, str]:
    """What the lab tells its users."""
    host = lab.address(METRICS_HOST)
    return {
        "prometheus_url": f"http://{host}:9090",
        "alertmanager_url": f"http://{host}:9093",
        "grafana_url": f"http://{host}:3000",
        "grafana_token": token,
        "webhook_url": f"http://{host}:{SINK_PORT}",
    }
