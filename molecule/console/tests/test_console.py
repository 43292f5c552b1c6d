"""The console on the metrics server: what it serves, what it runs as, and that it leaves without a trace."""

import json
import os
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
HOST = "hx-metrics-server-01"
UNIT = "citadel-console.service"
URL = "http://192.168.10.37:8080"
PLACES = "/opt/citadel-console /etc/systemd/system/citadel-console.service"


def on_peer(command):
    """What a shell command says on the metrics server."""
    words = [str(REPO / "bin/lab"), "exec", HOST, "sh", "-c", command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def play(playbook, *options):
    """Its recap of the metrics server: {what: how many}."""
    command = ["ansible-playbook", f"playbooks/{playbook}.yml", "-i", "inventory/lab.yml", "--limit", HOST, *options]
    plain = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "FORCE_COLOR": "0"}
    environment = {**os.environ, **plain, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")}
    done = subprocess.run(
        command, cwd=REPO, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    recap = re.search(rf"^{HOST} +: (.*)$", done.stdout, re.M).group(1)
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", recap)}


def asked(path, *, url=URL, context=None, headers=None):
    """Status, headers and text."""
    try:
        request = urllib.request.Request(url + path, headers=headers or {})
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def test_the_page_and_each_file_that_it_names_are_there():
    status, headers, page = asked("/console")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert asked(path)[0] == 200, path


def test_what_the_page_does_not_ask_for_is_not_passed_on():
    assert asked("/metrics")[0] == 404
    assert asked("/admin/v1/users", headers={"authorization": "Bearer x"})[0] == 404
    assert asked("/admin/v1/status")[0] == 401


def test_without_a_gateway_it_says_so():
    status, _, text = asked("/admin/v1/status", headers={"authorization": "Bearer sk-nobody"})
    # In the whole site there is a gateway, which does not know the key.
    assert status in (503, 401)
    assert json.loads(text)["error"]["message"]


def test_the_unit_is_hardened_and_of_a_user_of_its_own():
    assert float(on_peer(f"systemd-analyze security {UNIT} --no-pager | tail -1").split()[-3]) <= 2.0
    pid = on_peer(f"systemctl show -P MainPID {UNIT}").strip()
    assert on_peer(f"stat -c %U /proc/{pid}").strip() not in ("root", "prometheus")
    assert on_peer(f"ss -tlnp | grep pid={pid}, | grep -c LISTEN").strip() == "1"


def test_it_is_back_after_it_was_killed():
    pid = on_peer(f"systemctl show -P MainPID {UNIT}").strip()
    on_peer(f"kill -9 {pid}; for i in $(seq 50); do curl -sf {URL}/console >/dev/null && exit; sleep 0.2; done; exit 1")
    assert on_peer(f"systemctl show -P MainPID {UNIT}").strip() != pid


@pytest.fixture
def certificate(tmp_path):
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=console"]
    names = ["-addext", "subjectAltName=IP:192.168.10.37"]
    files = {"console_certificate": tmp_path / "console.crt", "console_certificate_key": tmp_path / "console.key"}
    out = ["-out", str(files["console_certificate"]), "-keyout", str(files["console_certificate_key"])]
    subprocess.run([*command, *names, *out], check=True, capture_output=True)
    return files


def test_it_speaks_https_with_a_certificate_of_the_sites(certificate):
    options = [f"-e{name}={path}" for name, path in certificate.items()]
    assert play("console", *options)["changed"]
    trusted = ssl.create_default_context(cafile=str(certificate["console_certificate"]))
    assert asked("/console", url=URL.replace("http", "https"), context=trusted)[0] == 200
    assert on_peer("stat -c %a:%U /opt/citadel-console/credentials/key.pem").strip() == "600:root"
    assert play("console", *options)["changed"] == 0
    assert play("console")["changed"]
    assert asked("/console")[0] == 200


def test_it_is_taken_out_without_a_trace():
    assert play("decommission", "--check")["changed"]
    assert asked("/console")[0] == 200
    assert play("decommission")["changed"]
    assert on_peer(f"ls -d {PLACES} 2>/dev/null || true") == ""
    assert on_peer("ss -tln | grep -c :8080 || true").strip() == "0"
    assert play("decommission")["changed"] == 0
    assert play("console")["changed"]
