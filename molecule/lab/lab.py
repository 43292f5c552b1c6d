"""`bin/lab`: the production inventory's hosts, rehearsed on this machine. See docs/lab.md."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import additions
import images
import metrics
import network
import sql
from additions import Base
from machines import Machine, ssh
from settings import LLM_HOST, REPO, Carried, Lab, LabError, carried

import vector

TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "nsenter": "util-linux",
}


def say(text: str) -> None:
    print(f"lab: {text}", flush=True)


def each(machines: list[Machine], work: Callable[[Machine], None]) -> None:
    """Runs `work` on all machines at once; the first failure is raised after all have ended."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        for future in [pool.submit(work, machine) for machine in machines]:
            future.result()


@contextlib.contextmanager
def locked(lab: Lab) -> Iterator[None]:
    """One changing verb at a time; the kernel frees the lock when its holder dies, however it dies."""
    lab.directory.mkdir(parents=True, exist_ok=True)
    with (lab.directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another bin/lab is at work; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), False)
        yield


def check_machine() -> None:
    if os.geteuid() != 0:
        raise LabError("the lab makes namespaces and mounts: run it as root")
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing:
        raise LabError(f"missing tools; run: make setup   (or: apt-get install {' '.join(missing)})")


# -- keys, secrets, facts -------------------------------------------------------------------


def write_private(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    partial.rename(path)


def ensure_keys(lab: Lab) -> None:
    keys = lab.directory / "ssh"
    keys.mkdir(mode=0o700, exist_ok=True)
    for name in ("id_ed25519", "host_key"):
        if not (keys / f"{name}.pub").exists():
            (keys / name).unlink(missing_ok=True)
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", lab.name, "-f", str(keys / name)],
                check=True,
            )
    public = " ".join((keys / "host_key.pub").read_text().split()[:2])
    known = "".join(f"{address},{host} {public}\n" for host, address in lab.hosts.items())
    (keys / "known_hosts").write_text(known)


def ensure_secrets(lab: Lab) -> None:
    """The lab's own secrets, each made once; production's are an Ansible Vault file (inventory/secrets/README.md)."""
    secrets_file, credentials = lab.directory / "secrets.yml", lab.directory / "credentials.json"
    facts: dict[str, str] = json.loads(credentials.read_text()) if credentials.exists() else {}
    text = secrets_file.read_text() if secrets_file.exists() and facts else "---\n"
    before = (text, dict(facts))
    if "vault_gateway_api_keys:" not in text:
        key = f"sk-{secrets.token_urlsafe(32)}"
        text += f"vault_gateway_api_keys:\n  - name: admin\n    key: {key}\n"
        facts |= {"gateway_url": f"http://{lab.address(LLM_HOST)}:8000", "admin_key": key}
    if "vault_gateway_pepper:" not in text:
        text += f"vault_gateway_pepper: {secrets.token_urlsafe(32)}\n"
    if "vault_audit_hash_key:" not in text:
        text += f"vault_audit_hash_key: {secrets.token_urlsafe(32)}\n"
    for variable, fact, user in sql.ACCOUNTS:
        if f"{variable}:" not in text:
            password = secrets.token_urlsafe(24)
            text += f"{variable}: {password}\n"
            facts[fact] = sql.url(lab, user, password)
    if f"{metrics.TOKEN}:" not in text:
        token = secrets.token_urlsafe(24)
        text += metrics.secrets_text(token, lab)
        facts |= metrics.facts(token, lab)
    if f"{vector.SECRET}:" not in text:
        key = secrets.token_urlsafe(32)
        text += f"{vector.SECRET}: {key}\n"
        facts |= {"qdrant_url": vector.url(lab), "qdrant_api_key": key}
    if before != (text, facts):
        write_private(secrets_file, text)
        write_private(credentials, json.dumps(facts, indent=2) + "\n")


# -- verbs ----------------------------------------------------------------------------------


def chosen(lab: Lab, names: list[str]) -> list[Machine]:
    for name in names:
        lab.address(name)
    return [Machine(lab, name) for name in (names or list(lab.hosts))]


def ensure_bases(lab: Lab, machines: list[Machine], settings: Carried) -> dict[str, Base]:
    """By host, the image of its release and what is added to it."""
    releases = sorted({lab.release(machine.name) for machine in machines})
    with ThreadPoolExecutor(max_workers=4) as pool:
        made = dict(zip(releases, pool.map(lambda r: images.ensure_image(lab, r, settings), releases), strict=True))
    return {m.name: additions.ensure(lab, m.name, made[lab.release(m.name)], settings) for m in machines}


def bring_up(lab: Lab, machines: list[Machine]) -> None:
    began = time.monotonic()
    settings = carried()
    ready = ensure_bases(lab, machines, settings)
    ensure_keys(lab)
    ensure_secrets(lab)
    network.up(lab)
    starting = [machine for machine in machines if not machine.running()]
    each(starting, lambda machine: machine.boot(ready[machine.name], settings))
    (lab.directory / "lab.json").write_text(json.dumps({"llm_release": Machine(lab, LLM_HOST).release()}) + "\n")
    each(machines, lambda machine: machine.await_ssh(booted=machine in starting))
    if starting:
        say(f"{', '.join(m.name for m in starting)} up after {time.monotonic() - began:.1f} s")


def up(lab: Lab, options: argparse.Namespace) -> None:
    bring_up(lab, chosen(lab, options.hosts))


def down(lab: Lab, options: argparse.Namespace) -> None:
    machines = chosen(lab, [])
    if any(machine.running() for machine in machines):
        say("stopping the hosts")
    each(machines, Machine.stop)
    network.down(lab)


def reset(lab: Lab, options: argparse.Namespace) -> None:
    machines = chosen(lab, options.hosts)
    if options.layer and len(machines) != 1:
        raise LabError("--from belongs to one host: bin/lab reset HOST --from LAYER")
    running = [machine for machine in machines if machine.running()]
    metas = {machine.name: machine.layer(options.layer) for machine in machines if options.layer}
    ready = ensure_bases(lab, machines, carried())
    each(machines, Machine.stop)
    for machine in machines:
        if meta := metas.get(machine.name):
            machine.reset(Base.read(meta), list(meta["layers"]))  # type: ignore[call-overload]
        else:
            machine.reset(ready[machine.name], [])
    if running and not options.halt:
        bring_up(lab, running)


def snapshot(lab: Lab, options: argparse.Namespace) -> None:
    machine = chosen(lab, [options.host])[0]
    if options.layer in machine.kept():
        raise LabError(
            f"{machine.name} has a layer {options.layer!r} already: bin/lab forget {machine.name} {options.layer}"
        )
    running = machine.running()
    machine.stop()
    machine.snapshot(options.layer)
    if running and not options.halt:
        bring_up(lab, [machine])


def forget(lab: Lab, options: argparse.Namespace) -> None:
    chosen(lab, [options.host])[0].forget(options.layer)


def layers(lab: Lab, options: argparse.Namespace) -> None:
    kept = {machine.name: machine.kept() for machine in chosen(lab, [])}
    if options.json:
        print(json.dumps(kept, indent=2))
    else:
        for host, names in kept.items():
            for name in names:
                print(f"{host}  {name}")


def status(lab: Lab, options: argparse.Namespace) -> None:
    report = {}
    for machine in chosen(lab, []):
        pid = machine.nspawn()
        state = "absent"
        if pid is not None:
            answer = subprocess.run(
                ssh(lab, machine.name, ["systemctl", "is-system-running"]), capture_output=True, text=True
            )
            state = answer.stdout.strip() or "unreachable"
        elif machine.state():
            state = "stopped"
        report[machine.name] = {
            "address": lab.address(machine.name),
            "state": state,
            "pid": pid,
            "release": machine.release(),
            "layers": machine.layers(),
        }
    if options.json:
        print(json.dumps({"lab": lab.name, "directory": str(lab.directory), "hosts": report}, indent=2))
    else:
        for host, facts in report.items():
            print(f"{host:<22} {facts['address']:<15} {facts['release']:<9} {facts['state']}")


def need_up(lab: Lab) -> None:
    if not network.exists(lab.namespace()):
        raise LabError("the lab is down; run: bin/lab up")


def run(lab: Lab, options: argparse.Namespace) -> None:
    need_up(lab)
    os.environ["LAB_DIR"] = str(lab.directory)
    os.environ["PATH"] = f"{REPO / '.venv/bin'}:{os.environ.get('PATH', '')}"
    command = network.inside(lab.namespace(), options.command)
    os.execvp(command[0], command)


def execute(lab: Lab, options: argparse.Namespace) -> None:
    need_up(lab)
    command = ssh(lab, options.host, [shlex.join(options.command)])
    os.execvp(command[0], command)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="bin/lab", description=__doc__)
    verbs = main.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(
        name: str, call: Callable[[Lab, argparse.Namespace], None], text: str, *, locks: bool
    ) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text)
        one.set_defaults(call=call, locks=locks)
        return one

    verb("up", up, "build what is missing, boot, wait for ssh; idempotent", locks=True).add_argument("hosts", nargs="*")
    verb("down", down, "stop all; keeps images, overlays and layers", locks=True)
    one = verb("reset", reset, "fresh overlays over the same images; running hosts boot again", locks=True)
    one.add_argument("hosts", nargs="*")
    one.add_argument("--from", dest="layer", help="start from a kept layer of the host")
    one.add_argument("--halt", action="store_true", help="leave the hosts stopped")
    verb("status", status, "hosts, addresses, state", locks=False).add_argument("--json", action="store_true")
    one = verb("run", run, "run a command on the controller's side, inside the lab's network", locks=False)
    one.add_argument("command", nargs=argparse.REMAINDER)
    one = verb("exec", execute, "run a command on a host", locks=False)
    one.add_argument("host")
    one.add_argument("command", nargs=argparse.REMAINDER)
    for verb_name, call, text in (
        ("snapshot", snapshot, "keep a host's state as a layer to start from"),
        ("forget", forget, "drop a kept layer"),
    ):
        one = verb(verb_name, call, text, locks=True)
        one.add_argument("host")
        one.add_argument("layer")
        if verb_name == "snapshot":
            one.add_argument("--halt", action="store_true", help="leave the host stopped")
    verb("layers", layers, "the kept layers", locks=False).add_argument("--json", action="store_true")
    return main


def main() -> int:
    options = parser().parse_args()
    if options.verb in {"run", "exec"} and not options.command:
        parser().error(f"{options.verb}: a command is missing")
    try:
        check_machine()
        network.leave_namespace()
        lab = Lab.from_environment()
        with locked(lab) if options.locks else contextlib.nullcontext():
            options.call(lab, options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; `bin/lab up` goes on, `bin/lab down` cleans up", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
