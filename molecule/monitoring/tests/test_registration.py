"""The metrics server is somebody else's: what we put there is checked, put back where it fails, and taken out whole."""

import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO / "molecule/lab"))

import metrics as owners  # noqa: E402 - the lab's own code, which is no package

HOST = "hx-metrics-server-01"
CONFIGS = {"/etc/prometheus/prometheus.yml": owners.PROMETHEUS, "/etc/prometheus/alertmanager.yml": owners.ALERTMANAGER}
DROP_INS = (
    owners.PROMETHEUS.replace('rules/operations.yml"', 'rules/*.yml"') + "scrape_config_files: [scrape.d/*.yml]\n"
)

pytestmark = pytest.mark.disruptive


@pytest.fixture(scope="module")
def on_peer():
    """`on_peer(command)`: what a shell command says on the metrics server."""

    def told(command, text=None):
        done = subprocess.run(
            [str(REPO / "bin/lab"), "exec", HOST, "sh", "-c", command],
            input=text, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return told


@pytest.fixture(scope="module")
def ansible():
    """`ansible(*words)`: a playbook or an ad-hoc module, as an operator calls them."""

    def called(*words):
        library = f"{REPO}/roles/monitoring/library:{REPO}/plugins/modules"
        environment = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_LIBRARY": library}
        return subprocess.run(
            [*words], cwd=REPO, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
        )

    return called


@pytest.fixture
def peer_module(ansible):
    """`peer_module(**arguments)`: the end of `citadel_peer` on the metrics server."""

    def called(**arguments):
        return ansible("ansible", HOST, "-i", "inventory/lab.yml", "-m", "citadel_peer", "-a", json.dumps(arguments))

    return called


def digests(on_peer):
    """Everything that the owner keeps there, by its content."""
    return on_peer("cd /etc/prometheus && find . -type f -exec sha256sum {} + | sort -k2; find . -type d | sort")


def grafana(credentials):
    found = {}
    for kind in ("folders", "datasources", "search"):
        request = urllib.request.Request(f"{credentials['grafana_url']}/api/{kind}")
        request.add_header("Authorization", f"Bearer {credentials['grafana_token']}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            found[kind] = sorted(entry["uid"] for entry in json.loads(answer.read()))
    return found


def started(on_peer):
    return on_peer("systemctl show prometheus prometheus-alertmanager --property=MainPID,NRestarts")


PROMETHEUS = {
    "unit": "prometheus.service", "metrics_url": "http://127.0.0.1:9090/metrics", "metrics_prefix": "prometheus",
}  # fmt: skip


def test_a_text_that_the_tool_refuses_changes_nothing(peer_module, on_peer):
    before = digests(on_peer)
    path = "/etc/prometheus/prometheus.yml"
    said = peer_module(
        files=[{"path": path, "content": "scrape_configs: 1\n", "check": "promtool check config %s"}], **PROMETHEUS
    )
    assert said.returncode != 0
    assert "promtool refuses /etc/prometheus/prometheus.yml" in said.stdout
    assert "Nothing was changed" in said.stdout
    assert digests(on_peer) == before


def test_a_configuration_that_the_daemon_refuses_is_put_back_and_it_goes_on_with_the_one_before(peer_module, on_peer):
    """Nothing checks it here, so that the daemon itself has to."""
    before, processes = digests(on_peer), started(on_peer)
    files = [
        {"path": "/etc/prometheus/prometheus.yml", "content": "scrape_configs: 1\n"},
        {"path": "/etc/prometheus/new/extra.yml", "content": "groups: []\n"},
    ]
    said = peer_module(files=files, **PROMETHEUS)
    assert said.returncode != 0
    assert "refuses the configuration" in said.stdout
    assert "Everything was put back, and is in force" in said.stdout
    assert digests(on_peer) == before
    assert started(on_peer) == processes
    metrics = on_peer("curl -s http://127.0.0.1:9090/metrics")
    assert "\nprometheus_config_last_reload_successful 1\n" in metrics


def test_a_run_that_broke_off_before_the_reload_is_made_good_by_the_next(peer_module, on_peer):
    path = "/etc/prometheus/prometheus.yml"
    text = on_peer(f"cat {path}")
    on_peer(f"touch {path}")
    said = peer_module(files=[{"path": path, "content": text}], **PROMETHEUS)
    assert said.returncode == 0, said.stdout
    assert '"reloaded": true' in said.stdout or "reloaded: true" in said.stdout
    again = peer_module(files=[{"path": path, "content": text}], **PROMETHEUS)
    assert '"changed": false' in again.stdout or "changed: false" in again.stdout


def test_a_receiver_that_alertmanager_refuses_stops_the_play_and_says_why(play, on_peer, credentials):
    before = digests(on_peer)
    wrong = {
        "vault_grafana_token": credentials["grafana_token"],
        "vault_alert_receiver": {"webhook_configs": [{"uri": "x"}]},
    }
    said = play("--tags", "monitoring", "-e", json.dumps({"__monitoring_secrets": wrong}))
    assert said.code != 0
    assert "amtool refuses /etc/prometheus/alertmanager.yml" in said.text
    assert digests(on_peer) == before


def test_a_wrong_token_stops_the_play_before_grafana_is_touched(play, credentials):
    before = grafana(credentials)
    said = play(
        "--tags", "monitoring", "-e", json.dumps({"__monitoring_secrets": {"vault_grafana_token": "wrong"}}), "--check"
    )
    assert said.code != 0
    assert "vault_grafana_token" in said.text
    assert grafana(credentials) == before


def test_decommissioned_the_metrics_server_is_its_owners_again_byte_for_byte(ansible, play, on_peer, credentials):
    processes = started(on_peer)
    done = ansible("ansible-playbook", "playbooks/decommission.yml", "-i", "inventory/lab.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    for path, text in CONFIGS.items():
        assert on_peer(f"sha256sum <{path}").split()[0] == hashlib.sha256(text.encode()).hexdigest(), path
    assert "citadel" not in digests(on_peer)
    assert grafana(credentials) == {"folders": ["infrastructure"], "datasources": ["prometheus"], "search": ["nodes"]}
    assert started(on_peer) == processes

    on_peer("cat >/etc/prometheus/prometheus.yml && mkdir -p /etc/prometheus/scrape.d", DROP_INS)
    try:
        said = play("--tags", "monitoring")
        assert said.code == 0, said.text
        assert on_peer("cat /etc/prometheus/prometheus.yml") == DROP_INS, "the owner's drop-ins take ours in"
        assert "./rules/citadel.yml" in digests(on_peer)
        assert "./scrape.d/citadel.yml" in digests(on_peer)
        gone = ansible("ansible-playbook", "playbooks/decommission.yml", "-i", "inventory/lab.yml")
        assert gone.returncode == 0, gone.stdout
        assert on_peer("cat /etc/prometheus/prometheus.yml") == DROP_INS
        assert "citadel" not in digests(on_peer)
        again = ansible("ansible-playbook", "playbooks/decommission.yml", "-i", "inventory/lab.yml")
        assert "changed=0" in again.stdout, again.stdout
    finally:
        on_peer("cat >/etc/prometheus/prometheus.yml && rm -rf /etc/prometheus/scrape.d", owners.PROMETHEUS)
        said = play("--tags", "monitoring")
    assert said.code == 0, said.text
