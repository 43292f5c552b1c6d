"""The lab's hosts: an overlay over an image, booted by systemd-nspawn in a network namespace of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import additions
import network
from additions import Base
from settings import Carried, Lab, LabError, resolvers

BOOT_TIMEOUT_S = 120
STOP_TIMEOUT_S = 150
GONE_AFTER_LOOKS = 5
CGROUP_ROOT = Path("/sys/fs/cgroup")
# Enters the given number of cgroups, then becomes the command: nothing of the host runs outside them.
LAUNCH = """
count=$1; shift
while [ "$count" -gt 0 ]; do echo $$ >"$1/cgroup.procs"; shift; count=$((count - 1)); done
exec "$@"
"""


@dataclass(frozen=True)
class Machine:
    """One host of a lab. Its state on disk: `upper` (what it wrote), `root` (the mount), `state.json`."""

    lab: Lab
    name: str

    @property
    def directory(self) -> Path:
        return self.lab.host_directory(self.name)

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def upper(self) -> Path:
        return self.directory / "upper"

    # -- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """`image`: path of the image, `additions`: paths of what lies above it, lowest first; `layers`: names, oldest
        first. Empty before the first boot."""
        path = self.directory / "state.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def save(self, state: dict[str, object]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "state.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(state, indent=2))
        partial.rename(path)

    def layers(self) -> list[str]:
        return list(self.state().get("layers", []))  # type: ignore[call-overload]

    def base(self) -> Base:
        """What the host's overlay rests on; it must have a state."""
        return Base.read(self.state())

    def release(self) -> str:
        """The release that this host's overlay rests on; the one chosen for it while it has none."""
        image = Path(str(self.state().get("image", ""))).name
        return image.rsplit("-", 1)[0] or self.lab.release(self.name)

    # -- processes --------------------------------------------------------------------------

    def nspawn(self) -> int | None:
        """The pid of this host's systemd-nspawn, found by its exact command line."""
        argument = f"--directory={self.root}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if argument in words and b"systemd-nspawn" in words:  # also in the shell that becomes it
                    return int(entry.name)
        return None

    def leftovers(self) -> list[int]:
        """Processes of this host that outlived its systemd-nspawn."""
        found = set(network.pids(self.lab.namespace(self.name)))
        for directory in self._cgroups():
            for procs in directory.rglob("cgroup.procs"):
                try:
                    found.update(int(pid) for pid in procs.read_text().split())
                except OSError:
                    continue
        return sorted(found - {os.getpid(), 0})

    def _cgroups(self) -> list[Path]:
        return [d for h in _hierarchies() if (d := h / "citadel-lab" / self.lab.name / self.name).is_dir()]

    def running(self) -> bool:
        return self.nspawn() is not None

    # -- verbs ------------------------------------------------------------------------------

    def boot(self, base: Base, settings: Carried) -> None:
        """Mounts and starts the host; what a killed start left behind is cleared first."""
        if self.leftovers() or self._mounted():
            self.stop()
        state = self.state()
        if state and not self.base().there():
            print(f"lab: the image under {self.name} is gone, so it starts afresh", flush=True)
            state = {}
        elif state and len(self.base().additions) < len(base.additions):
            print(f"lab: {self.name} was made without its services, so it starts afresh", flush=True)
            state = {}
        if not state:
            self.reset(base, [])
        for part in ("upper", "work", "root"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        lower = [str(self.lab.layer_directory(self.name, layer) / "tree") for layer in reversed(self.layers())]
        lower += [str(path) for path in self.base().lower()]
        options = f"lowerdir={':'.join(lower)},upperdir={self.upper},workdir={self.directory / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "citadel-lab", "-o", options, str(self.root)], check=True)
        self._personalise()
        network.add_host(self.lab, self.name)
        command = [
            "systemd-nspawn", "--quiet", f"--directory={self.root}", "--boot", "--register=no", "--settings=no",
            f"--network-namespace-path=/run/netns/{self.lab.namespace(self.name)}",
            f"--machine={self.lab.name}-{self.name}",
            f"--hostname={self.name}", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
            *[f"--bind-ro={path}" for path in settings.binds],
        ]  # fmt: skip
        # The machine's name is the lab's too: what nspawn keeps under a name in /run is shared by all who have it.
        if _hierarchies():
            command.append("--keep-unit")
        command += [f"systemd.mask={unit}" for unit in os.environ.get("LAB_MASKED", "").split()]  # read by its init
        cgroups = [str(directory) for directory in self._make_cgroups()]
        with (self.directory / "console.log").open("ab") as console:
            subprocess.Popen(
                ["sh", "-c", LAUNCH, "launch", str(len(cgroups)), *cgroups, *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def _personalise(self) -> None:
        """What only this host has: name, resolver, ssh keys."""
        (self.root / "etc/hostname").write_text(self.name + "\n")
        (self.root / "etc/resolv.conf").unlink(missing_ok=True)
        (self.root / "etc/resolv.conf").write_text(resolvers())
        keys = self.lab.directory / "ssh"
        for suffix, mode in (("", 0o600), (".pub", 0o644)):
            target = self.root / f"etc/ssh/ssh_host_ed25519_key{suffix}"
            target.write_bytes((keys / f"host_key{suffix}").read_bytes())
            target.chmod(mode)
        authorized = self.root / "root/.ssh/authorized_keys"
        authorized.parent.mkdir(mode=0o700, exist_ok=True)
        authorized.write_bytes((keys / "id_ed25519.pub").read_bytes())
        authorized.chmod(0o600)
        if service := additions.of(self.name):
            service.personalise(self.root, self.lab)

    def _make_cgroups(self) -> list[Path]:
        # A cgroup of its own: in a shared one, units of the same name on two hosts would be one cgroup.
        made = [hierarchy / "citadel-lab" / self.lab.name / self.name for hierarchy in _hierarchies()]
        for directory in made:
            directory.mkdir(parents=True, exist_ok=True)
        return made

    def await_ssh(self, *, booted: bool = False) -> None:
        """Until the host's sshd lets the lab's key in; where it was `booted` now, until its services answer too."""
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        service = additions.of(self.name) if booted else None
        command = ssh(self.lab, self.name, [service.PROBE] if service else ["true"])
        missed = 0
        while subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode != 0:
            # While a process becomes another program its command line is empty: one look is no proof that it has gone.
            missed = 0 if self.running() else missed + 1
            if missed >= GONE_AFTER_LOOKS or time.monotonic() > deadline:
                log = self.directory / "console.log"
                tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-8:]) if log.exists() else ""
                raise LabError(f"{self.name} did not come up; its console ({log}) ends with:\n  {tail}")
            time.sleep(0.2)

    def stop(self) -> None:
        """An orderly shutdown, then whatever is left is killed: init before nspawn, since an orphaned init lives on."""
        if (pid := self.nspawn()) is not None:
            children = _children(pid)
            os.kill(pid, signal.SIGTERM)
            if not _await_end(pid, STOP_TIMEOUT_S):
                for child in children:
                    _kill(child)
                if not _await_end(pid, 10):
                    _kill(pid)
                    _await_end(pid, 10)
        deadline = time.monotonic() + 10
        while left := self.leftovers():
            for process in left:
                _kill(process)
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: processes {left} do not end; look at them with ps, then run bin/lab down")
            time.sleep(0.05)
        self._unmount()
        for directory in self._cgroups():
            for part in sorted(directory.rglob("*"), key=lambda p: -len(p.parts)):
                if part.is_dir():
                    _rmdir(part)
            _rmdir(directory)
            _rmdir(directory.parent)
            _rmdir(directory.parent.parent)

    def _mounted(self) -> bool:
        return any(line.split()[1] == str(self.root) for line in Path("/proc/mounts").read_text().splitlines())

    def _unmount(self) -> None:
        while self._mounted():
            if subprocess.run(["umount", str(self.root)], capture_output=True).returncode != 0:
                subprocess.run(["umount", "--lazy", str(self.root)], check=True)

    def reset(self, base: Base, layers: list[str]) -> None:
        """A fresh overlay over the base and the given layers; the host must be stopped."""
        for part in ("upper", "work"):
            shutil.rmtree(self.directory / part, ignore_errors=True)
        (self.directory / "console.log").unlink(missing_ok=True)
        self.save({**base.facts(), "layers": layers})

    def snapshot(self, layer: str) -> None:
        """Freezes what the stopped host wrote as a layer, in constant time, and goes on above it."""
        target = self.lab.layer_directory(self.name, layer)
        if target.exists():
            raise LabError(
                f"{self.name} has a layer {layer!r} already; drop it first: bin/lab forget {self.name} {layer}"
            )
        state = self.state()
        if not state:
            raise LabError(f"{self.name} was never up: nothing to keep")
        before = self.layers()
        target.mkdir(parents=True)
        self.upper.rename(target / "tree")
        (target / "meta.json").write_text(json.dumps({**self.base().facts(), "layers": [*before, layer]}))
        self.save({**state, "layers": [*before, layer]})
        shutil.rmtree(self.directory / "work", ignore_errors=True)

    def layer(self, layer: str) -> dict[str, object]:
        meta = self.lab.layer_directory(self.name, layer) / "meta.json"
        if not meta.exists():
            raise LabError(f"{self.name} has no layer {layer!r}; there are: {', '.join(self.kept()) or 'none'}")
        found: dict[str, object] = json.loads(meta.read_text())
        if not Base.read(found).there():
            raise LabError(
                f"layer {layer!r} of {self.name} rests on an image that is gone: drop it with bin/lab forget"
            )
        return found

    def kept(self) -> list[str]:
        folder = self.lab.directory / "layers" / self.name
        return sorted(p.parent.name for p in folder.glob("*/meta.json")) if folder.is_dir() else []

    def forget(self, layer: str) -> None:
        target = self.lab.layer_directory(self.name, layer)
        users = [k for k in self.kept() if k != layer and layer in list(self.layer(k)["layers"])]  # type: ignore[call-overload]
        if layer in self.layers():
            users.append("the host itself")
        if users:
            raise LabError(f"layer {layer!r} of {self.name} carries {', '.join(users)}: forget or reset those first")
        shutil.rmtree(target, ignore_errors=True)


def ssh(lab: Lab, host: str, command: list[str]) -> list[str]:
    """The command line that runs `command` (already quoted words) on a host, from any namespace."""
    keys = lab.directory / "ssh"
    options = [
        f"UserKnownHostsFile={keys / 'known_hosts'}", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes",
        "BatchMode=yes",
        "ConnectTimeout=5", "LogLevel=ERROR",
    ]  # fmt: skip
    flags = [word for option in options for word in ("-o", option)]
    target = ["ssh", "-F", "none", "-i", str(keys / "id_ed25519"), *flags, f"root@{lab.address(host)}"]
    return network.inside(lab.namespace(), [*target, "--", *command])


def _hierarchies() -> list[Path]:
    """Cgroup hierarchies that we place hosts in ourselves; none where a systemd runs the machine and does it."""
    if Path("/run/systemd/system").is_dir():
        return []
    if (CGROUP_ROOT / "cgroup.procs").exists():
        return [CGROUP_ROOT]
    return [h for n in ("systemd", "unified", "memory") if (h := CGROUP_ROOT / n).is_dir() and os.access(h, os.W_OK)]


def _children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _await_end(pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                os.waitpid(pid, os.WNOHANG)
                return True
        except (OSError, ChildProcessError):
            return True
        time.sleep(0.05)
    return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _rmdir(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()
