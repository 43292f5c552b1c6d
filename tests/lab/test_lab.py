"""`bin/lab` itself, from outside, in a lab of its own (LAB_NAME), with the real kernel underneath."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
NAME = os.environ.get("LAB_NAME", "self")
HOST = "hx-sql-server-01"
ENVIRONMENT = {**os.environ, "LAB_NAME": NAME}


def lab(*words: str, code: int = 0, name: str = NAME) -> str:
    result = subprocess.run(
        [str(REPO / "bin/lab"), *words],
        env={**ENVIRONMENT, "LAB_NAME": name},
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == code, (
        f"bin/lab {' '.join(words)}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    )
    return result.stdout + result.stderr


def status() -> dict[str, Any]:
    hosts: dict[str, Any] = json.loads(lab("status", "--json"))["hosts"]
    return hosts


def credentials() -> dict[str, str]:
    facts: dict[str, str] = json.loads((REPO / f".lab-{NAME}/credentials.json").read_text())
    return facts


def query(url: str, text: str) -> str:
    """What psql on the SQL host prints, asked by the address that the lab names."""
    command = f"PGPASSWORD=$(cut -d: -f3 <<<'{url}' | cut -d@ -f1) psql -qAtX '{re.sub(':[^:@/]+@', '@', url)}'"
    return lab("exec", HOST, "bash", "-c", f'{command} -c "{text}" 2>&1 || {{ echo; exit 7; }}').strip()


def traces() -> list[str]:
    """Whatever of this lab the machine still holds: mounts, namespaces, interfaces, tables, cgroups, processes."""
    directory = str(REPO / f".lab-{NAME}")
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if directory in line]
    found += [str(p) for p in Path("/run/netns").glob(f"citadel-{NAME}*")]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    found += [line for line in tables.splitlines() if f"citadel_{NAME}" in line]
    found += [str(p) for p in Path("/sys/fs/cgroup").glob(f"**/citadel-lab/citadel-{NAME}")]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if directory in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(f"process {entry.name}")
            except OSError:
                continue
    return found


@pytest.fixture(autouse=True, scope="module")
def _own_lab() -> Iterator[None]:
    lab("down")
    yield
    lab("down")


def test_up_boots_a_real_systemd_that_answers_over_ssh() -> None:
    lab("up", HOST)
    assert lab("exec", HOST, "cat", "/proc/1/comm").strip() == "systemd"
    assert lab("exec", HOST, "hostname").strip() == HOST
    assert lab("exec", HOST, "systemctl", "is-system-running", "--wait").strip() == "running"


def test_up_again_changes_nothing() -> None:
    before = status()[HOST]["pid"]
    lab("up", HOST)
    assert status()[HOST]["pid"] == before


def test_a_lab_that_would_have_the_number_of_one_that_is_up_gets_another() -> None:
    def number(name: str) -> int:
        return zlib.crc32(f"citadel-{name}".encode()) % 250

    def uplinks() -> set[str]:
        links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout)
        return {link["ifname"] for link in links if re.fullmatch(r"cl\d+up", link["ifname"])}

    other = next(name for name in (f"x{count}" for count in range(10**6)) if number(name) == number(NAME))
    before = uplinks()
    try:
        lab("up", "hx-metrics-server-01", name=other)
        assert uplinks() > before
        assert lab("exec", HOST, "hostname").strip() == HOST
        assert lab("exec", "hx-metrics-server-01", "hostname", name=other).strip() == "hx-metrics-server-01"
    finally:
        lab("down", name=other)
        shutil.rmtree(REPO / f".lab-{other}", ignore_errors=True)
    assert uplinks() == before


def test_the_sql_host_answers_for_each_user_through_pgpool() -> None:
    facts = credentials()
    assert facts["database_url"].startswith("postgresql://citadel_admin:")
    for user in ("database_url", "database_gateway_url"):
        said = query(facts[user], "select current_user, current_database(), inet_client_addr()")
        assert said.split("|")[0] in facts[user]
        assert said.split("|")[1:] == ["citadel_ai", "127.0.0.1"], "PostgreSQL sees Pgpool-II, not the caller"
    assert query(facts["database_url"], "show server_version").startswith("17.")
    assert query(facts["database_url"], "show password_encryption") == "scram-sha-256"
    ask = ["psql", "-qAtX", "-c", "select type, auth_method from pg_hba_file_rules"]
    rules = lab("exec", HOST, "runuser", "-u", "postgres", "--", *ask)
    assert set(re.findall(r"^(host\w*)\|(\S*)$", rules, re.M)) == {("host", "scram-sha-256")}, rules
    with pytest.raises(AssertionError, match="authentication failed"):
        query(facts["database_url"].replace("@", "x@"), "select 1")


def test_the_database_secrets_are_private_and_in_both_files() -> None:
    for name in ("secrets.yml", "credentials.json"):
        assert (REPO / f".lab-{NAME}" / name).stat().st_mode & 0o777 == 0o600
    password = re.search(r"^vault_database_password: (\S+)$", (REPO / f".lab-{NAME}/secrets.yml").read_text(), re.M)
    assert password
    assert f":{password[1]}@" in credentials()["database_url"]


def test_a_lab_made_without_a_database_gets_its_secrets_and_keeps_its_keys() -> None:
    folder = REPO / f".lab-{NAME}"
    before = credentials()
    kept = {name: before[name] for name in ("gateway_url", "admin_key")}
    (folder / "credentials.json").write_text(json.dumps(kept))
    text = (folder / "secrets.yml").read_text()
    (folder / "secrets.yml").write_text("".join(x for x in text.splitlines(True) if "database" not in x))
    lab("reset", "--halt", HOST)
    lab("up", HOST)
    assert {name: credentials()[name] for name in kept} == kept
    assert credentials()["database_url"] != before["database_url"]
    assert query(credentials()["database_url"], "select 1") == "1"


def test_data_survives_down_and_up() -> None:
    query(credentials()["database_url"], "create table public.kept as select 42 as answer")
    lab("down")
    lab("up", HOST)
    assert query(credentials()["database_url"], "select answer from public.kept") == "42"


def test_run_is_inside_and_finds_back_outside() -> None:
    inside = lab("run", "readlink", "/proc/self/ns/net").strip()
    assert inside != os.readlink("/proc/self/ns/net")
    assert (
        status()[HOST]["pid"] == json.loads(lab("run", str(REPO / "bin/lab"), "status", "--json"))["hosts"][HOST]["pid"]
    )


def test_the_machine_itself_has_no_way_to_the_hosts() -> None:
    routes = json.loads(subprocess.run(["ip", "-j", "route"], capture_output=True, text=True, check=True).stdout)
    assert not [route for route in routes if route["dst"].startswith("192.168.10.")]


def test_exec_passes_words_and_exit_status_unharmed() -> None:
    assert lab("exec", HOST, "printf", "%s|", "a b", "$HOME", "'") == "a b|$HOME|'|"
    lab("exec", HOST, "sh", "-c", "exit 7", code=7)


def test_hosts_keep_their_cgroups_apart() -> None:
    lab("up", HOST, "hx-metrics-server-01")
    lab("exec", "hx-metrics-server-01", "systemctl", "restart", "dbus.service")
    lab("exec", HOST, "systemctl", "stop", "dbus.service")
    assert lab("exec", "hx-metrics-server-01", "systemctl", "is-active", "dbus.service").strip() == "active"


def test_snapshot_and_reset_from_it() -> None:
    lab("exec", HOST, "touch", "/root/kept")
    if "layer-one" in lab("layers"):
        lab("reset", HOST)
        lab("forget", HOST, "layer-one")
        lab("exec", HOST, "touch", "/root/kept")
    lab("snapshot", HOST, "layer-one")
    lab("exec", HOST, "touch", "/root/later")
    lab("reset", HOST, "--from", "layer-one")
    assert lab("exec", HOST, "ls", "/root").split() == ["kept"]
    lab("reset", HOST)
    assert lab("exec", HOST, "ls", "/root").split() == []
    lab("forget", HOST, "layer-one")
    assert "layer-one" not in lab("layers")


def test_wrong_words_get_an_answer_that_helps() -> None:
    assert "hx-llm-server-01" in lab("up", "no-such-host", code=1)
    assert "no layer 'nope'" in lab("reset", HOST, "--from", "nope", code=1)
    assert "layers" in lab("frobnicate", code=2)


@pytest.mark.parametrize("delay_s", [0.15, 0.4, 0.8])
def test_up_killed_half_way_leaves_nothing_that_up_cannot_mend(delay_s: float) -> None:
    lab("down")
    process = subprocess.Popen(
        [str(REPO / "bin/lab"), "up"],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout=delay_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    lab("up")
    deadline = time.monotonic() + 60
    while (states := {host["state"] for host in status().values()}) != {"running"}:
        assert states <= {"running", "starting"}, states
        assert time.monotonic() < deadline, states
        time.sleep(0.2)


def test_a_host_whose_nspawn_was_killed_comes_back() -> None:
    lab("up", HOST)
    os.kill(status()[HOST]["pid"], signal.SIGKILL)
    lab("up", HOST)
    assert lab("exec", HOST, "systemctl", "is-system-running", "--wait").strip() == "running"
    assert status()[HOST]["state"] == "running"


def test_down_leaves_nothing_even_after_a_killed_up() -> None:
    process = subprocess.Popen(
        [str(REPO / "bin/lab"), "reset"],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    lab("down")
    deadline = time.monotonic() + 10
    while (left := traces()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def test_what_all_labs_share_is_made_by_one_of_them_while_the_others_wait(tmp_path: Path) -> None:
    """Two labs on a machine that has no image yet: the second finds the first one's."""
    script = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(REPO / "molecule/lab")!r})
from settings import alone
target = Path({str(tmp_path)!r}) / "images" / "made"
with alone(target):
    if not target.is_dir():
        building = target.with_name("building")
        building.mkdir()  # fails where another one builds
        while not Path({str(tmp_path)!r}, "go").exists():
            time.sleep(0.01)
        building.rename(target)
        print("built")
"""
    ones = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    (tmp_path / "go").touch()
    said = [one.communicate(timeout=30)[0] for one in ones]
    assert [one.returncode for one in ones] == [0, 0, 0]
    assert sorted(said) == ["", "", "built\n"]


def test_labs_that_come_and_go_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Of the network alone, which takes no time to boot; each is of its own lab, with a number of its own."""
    script = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(REPO / "molecule/lab")!r})
import network
from settings import Lab
lab, folder = Lab.from_environment(), Path({str(tmp_path)!r})
for turn in range(5):
    (folder / f"{{lab.name}}-{{turn}}").touch()
    while len(list(folder.glob(f"*-{{turn}}"))) < 4:
        time.sleep(0.001)
    network.up(lab)
    assert network._is_namespace(network.OUTSIDE)
    print((network.RUN / lab.name).read_text().split()[1])
    (folder / f"{{lab.name}}-{{turn}}.up").touch()
    while len(list(folder.glob(f"*-{{turn}}.up"))) < 4:
        time.sleep(0.001)
    network.down(lab)
"""
    names = [f"{NAME[:7]}{count}" for count in range(4)]
    ones = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**ENVIRONMENT, "LAB_NAME": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    try:
        said = [one.communicate(timeout=60) for one in ones]
    finally:
        for one in ones:
            one.kill()
        for name in names:
            lab("down", name=name)
            shutil.rmtree(REPO / f".lab-{name}", ignore_errors=True)
    assert [(one.returncode, errors) for one, (_, errors) in zip(ones, said, strict=True)] == [(0, "")] * 4
    for turn in zip(*[out.split() for out, _ in said], strict=True):
        assert len(set(turn)) == 4, "each has a number that no other has"
    assert traces() == []
