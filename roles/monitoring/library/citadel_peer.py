"""Ansible module: files of a daemon that is not ours, changed, checked, and put in force by a reload, or put back.

It runs where the daemon does. The daemon is never restarted or started.
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_peer
short_description: Change files of someone else's daemon and reload it, or put everything back
description:
  - Each file's check must accept its new text before anything is changed, and again once all files are in their places.
    Then the daemon is reloaded, and says by its own metrics whether it took the new configuration. Where a check or the
    reload fails, every file is put back, the daemon is reloaded once more, and the module fails.
  - A file that was changed after the daemon's last reload, by a run that broke off, is put in force as well.
options:
  files:
    description: The files; those that are there keep their owner and mode, new ones are root's and 0644.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the file lies.
        type: path
        required: true
      content:
        description: Its text, which is never shown, since a receiver's settings may hold a secret.
        type: str
        required: true
      check:
        description: Command that must accept the text; C(%s) is the file it lies in.
        type: str
  absent:
    description: Files to be removed.
    type: list
    elements: path
    default: []
  unit:
    description: The daemon's unit, which is reloaded.
    type: str
    required: true
  metrics_url:
    description: The daemon's own metrics.
    type: str
    required: true
  metrics_prefix:
    description: What its metrics of the last reload begin with, such as C(prometheus).
    type: str
    required: true
  timeout_s:
    description: How long to wait for the reload, in seconds.
    type: int
    default: 30
author: Citadel
"""

EXAMPLES = r"""
- name: Let Alertmanager tell of them
  citadel_peer:
    unit: prometheus-alertmanager.service
    files:
      - {path: /etc/prometheus/alertmanager.yml, content: "{{ text }}", check: amtool check-config %s}
    metrics_url: http://127.0.0.1:9093/metrics
    metrics_prefix: alertmanager
"""

RETURN = r"""
written:
  description: Paths of the files that changed or were removed.
  type: list
  returned: always
reloaded:
  description: Whether the daemon was reloaded, or would be.
  type: bool
  returned: always
"""

import os
import re
import shlex
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

MODE = 0o644


class Failure(Exception):
    """Why the new configuration is not in force."""


def read(path):
    """A file's bytes, or None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write(path, data, kept=None):
    """Replace a file in one step; it keeps its owner and mode, or gets those of `kept`, a stat result."""
    status = kept or (path.stat() if path.exists() else None)
    for parent in reversed([parent for parent in path.parents if not parent.exists()]):
        parent.mkdir()
        parent.chmod(0o755)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        if status:
            os.chown(partial, status.st_uid, status.st_gid)
        os.chmod(partial, status.st_mode & 0o7777 if status else MODE)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def check(module, entry, path):
    """Raises Failure where the entry's command does not accept the file at `path`."""
    if entry["check"]:
        command = [word.replace("%s", str(path)) for word in shlex.split(entry["check"])]
        code, out, err = module.run_command(command, check_rc=False)
        if code != 0:
            said = (err.strip() + "\n" + out.strip()).strip().replace(str(path), entry["path"])
            raise Failure(f"{command[0]} refuses {entry['path']}: {said}")


def check_beside(module, entry):
    """The check of a text that is not in force yet: beside its place, so that relative paths in it hold."""
    path = Path(entry["path"])
    folder = path.parent if path.parent.is_dir() else Path(module.tmpdir)
    handle, trial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=folder)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(entry["content"])
        check(module, entry, trial)
    finally:
        Path(trial).unlink()


def last_reload(module):
    """(whether the last reload succeeded, when the last good one was in s of the epoch), as the daemon says."""
    url, prefix = module.params["metrics_url"], module.params["metrics_prefix"]
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the address is the inventory's
            text = answer.read().decode()
    except (urllib.error.URLError, OSError) as error:
        raise Failure(f"{url} does not answer, so nothing can be put in force: {error}") from error
    found = dict(re.findall(rf"^({prefix}_config_last_reload_\w+) (\S+)$", text, re.MULTILINE))
    try:
        good = float(found[f"{prefix}_config_last_reload_successful"]) == 1
        return good, float(found[f"{prefix}_config_last_reload_success_timestamp_seconds"])
    except KeyError as error:
        raise Failure(f"{url} does not tell of {error.args[0]}: is it that daemon?") from None


def reload(module):
    """Reloads the daemon and waits until it says how that went."""
    unit = module.params["unit"]
    was_good, before = last_reload(module)
    code, out, err = module.run_command(["systemctl", "reload", unit], check_rc=False)
    if code != 0:
        raise Failure(f"systemctl reload {unit}: {err.strip() or out.strip()}")
    deadline = time.monotonic() + module.params["timeout_s"]
    while time.monotonic() < deadline:
        good, at = last_reload(module)
        if good and at > before:
            return
        if not good and was_good:  # else it may be the last one that it still tells of
            raise Failure(f"{unit} refuses the configuration; its journal says why: journalctl -u {unit} -n 20")
        time.sleep(0.2)
    raise Failure(f"{unit} was told to reload, and has not after {module.params['timeout_s']} s")


def touched(changing, removing):
    """The paths of the files that are changed or removed."""
    return [Path(entry["path"]) for entry in changing] + removing


def put_in_force(module, changing, removing):
    """Writes and removes the files, checks them in their places, and reloads the daemon."""
    for entry in changing:
        write(Path(entry["path"]), entry["content"].encode())
    for path in removing:
        path.unlink()
    for entry in changing:
        check(module, entry, entry["path"])
    reload(module)


def put_back(module, before, kept, made):
    """Puts the files back as they were, removes the directories that were made, and says what became of it."""
    for path, data in before.items():
        if data is None:
            path.unlink(missing_ok=True)
        else:
            write(path, data, kept[path])
    for folder in made:
        if folder.is_dir():
            folder.rmdir()
    try:
        reload(module)
    except Failure as again:
        return f"Everything was put back, and yet: {again}"
    return "Everything was put back, and is in force."


def main():
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True, "no_log": True},
                    "check": {"type": "str"},
                },
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            "unit": {"type": "str", "required": True},
            "metrics_url": {"type": "str", "required": True},
            "metrics_prefix": {"type": "str", "required": True},
            "timeout_s": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    entries = module.params["files"]
    before = {Path(entry["path"]): read(Path(entry["path"])) for entry in entries}
    changing = [entry for entry in entries if before[Path(entry["path"])] != entry["content"].encode()]
    removing = [Path(path) for path in module.params["absent"] if os.path.lexists(path)]
    before.update({path: read(path) for path in removing})
    kept = {path: path.stat() for path, data in before.items() if data is not None}
    making = sorted({parent for path in before for parent in path.parents if not parent.exists()}, reverse=True)
    written = [entry["path"] for entry in changing] + [str(path) for path in removing]
    try:
        _, at = last_reload(module)
        reloading = bool(written) or any(status.st_mtime > at for status in kept.values())
        # A text that names files which are not there yet is checked once they are.
        lonely = [entry for entry in changing if entry["content"].encode() and before[Path(entry["path"])] is None]
        for entry in changing if not lonely else [one for one in lonely if one["check"]]:
            check_beside(module, entry)
    except Failure as failure:
        module.fail_json(msg=f"{failure}. Nothing was changed.")
    if module.check_mode or not reloading:
        module.exit_json(changed=reloading, written=written, reloaded=reloading)
    try:
        put_in_force(module, changing, removing)
    except (Failure, OSError) as failure:
        after = put_back(module, {path: before[path] for path in touched(changing, removing)}, kept, making)
        module.fail_json(msg=f"{failure}. {after}")
    module.exit_json(changed=True, written=written, reloaded=True)


if __name__ == "__main__":
    main()
