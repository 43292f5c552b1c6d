"""Ansible module: several directories and small files, made and written in one round trip.

`ansible.builtin.copy` takes one file at a time, two round trips each, and fails in a dry run where the directory
would only be made by the run itself.
"""

from __future__ import annotations

import grp
import os
import pwd
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: citadel_files
short_description: Make several directories and write several small files at once
description:
  - Each file is replaced in one step. Directories that are missing are made (root, mode C(directory_mode)); those that
    are there are left as they are. In check mode nothing is made, and nothing needs to be there.
options:
  files:
    description: The files.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the file lies on the host.
        type: path
        required: true
      content:
        description: Its text.
        type: str
        required: true
      owner:
        description: Its owner.
        type: str
        default: root
      group:
        description: Its group.
        type: str
        default: root
      mode:
        description: Its mode, four octal digits.
        type: str
        default: "0644"
  directories:
    description: Directories by owner and mode, both held to; made before the files, in the order given.
    type: list
    elements: dict
    default: []
    suboptions:
      paths:
        description: Where the directories lie on the host.
        type: list
        elements: path
        required: true
      owner:
        description: Its owner.
        type: str
        default: root
      group:
        description: Its group.
        type: str
        default: root
      mode:
        description: Its mode, four octal digits.
        type: str
        default: "0755"
  absent:
    description: Files and directories with plain files in them, to be removed.
    type: list
    elements: path
    default: []
  directory_mode:
    description: Mode of directories that are made above the files.
    type: str
    default: "0755"
author: Citadel
"""

EXAMPLES = r"""
- name: Write a drop-in
  citadel_files:
    files:
      - path: /etc/systemd/system/citadel-model@phi3.service.d/plan.conf
        content: "{{ lookup('ansible.builtin.template', 'plan.conf.j2') }}"
"""

RETURN = r"""
written:
  description: Paths of the files and directories that changed, and of what was removed.
  type: list
  returned: always
"""


def permitted(entry: dict[str, Any], status: os.stat_result) -> bool:
    """Whether owner, group and mode are as they should be; raises KeyError for one that is not known here."""
    owner, group = pwd.getpwnam(entry["owner"]).pw_uid, grp.getgrnam(entry["group"]).gr_gid
    return (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (owner, group, int(entry["mode"], 8))


def differs(entry: dict[str, Any]) -> tuple[bool, str]:
    """Whether a file is not as it should be, and its present text."""
    path = Path(entry["path"])
    try:
        text = path.read_text()
        return text != entry["content"] or not permitted(entry, path.stat()), text
    except (OSError, KeyError, UnicodeDecodeError):
        return True, ""


def directory_differs(entry: dict[str, Any]) -> bool:
    path = Path(entry["path"])
    try:
        return not path.is_dir() or not permitted(entry, path.stat())
    except (OSError, KeyError):
        return True


def make_directory(entry: dict[str, Any]) -> None:
    path = Path(entry["path"])
    owner, group = pwd.getpwnam(entry["owner"]).pw_uid, grp.getgrnam(entry["group"]).gr_gid
    if path.is_symlink() and path.lstat().st_uid != 0:  # it would make root give away what it leads to
        raise OSError(f"{path} is a link that somebody other than root made: look where it leads, and remove it")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chown(path, owner, group)
    path.chmod(int(entry["mode"], 8))


def make_directories(path: Path, mode: int) -> None:
    missing = [parent for parent in path.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir()
        parent.chmod(mode)


def write(entry: dict[str, Any], directory_mode: int) -> None:
    path = Path(entry["path"])
    make_directories(path, directory_mode)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(entry["content"])
        os.chown(partial, pwd.getpwnam(entry["owner"]).pw_uid, grp.getgrnam(entry["group"]).gr_gid)
        os.chmod(partial, int(entry["mode"], 8))
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            inner.unlink()
        path.rmdir()
    else:
        path.unlink()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "paths": {"type": "list", "elements": "path", "required": True},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0755"},
                },
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            "directory_mode": {"type": "str", "default": "0755"},
        },
        supports_check_mode=True,
    )
    directories = [{**entry, "path": path} for entry in module.params["directories"] for path in entry["paths"]]
    making = [entry for entry in directories if directory_differs(entry)]
    found = [(entry, *differs(entry)) for entry in module.params["files"]]
    changing = [(entry, before) for entry, changed, before in found if changed]
    removing = [Path(path) for path in module.params["absent"] if os.path.lexists(path)]
    try:
        if not module.check_mode:
            for entry in making:
                make_directory(entry)
            for entry, _ in changing:
                write(entry, int(module.params["directory_mode"], 8))
            for path in removing:
                remove(path)
    except KeyError as error:
        module.fail_json(msg=f"{error.args[0]}; the role `base` makes the service's user and group: --tags base")
    except OSError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(making or changing or removing),
        written=[e["path"] for e in making] + [e["path"] for e, _ in changing] + [str(path) for path in removing],
        diff=[
            {"before_header": e["path"], "after_header": e["path"], "before": before, "after": e["content"]}
            for e, before in changing
        ],
    )


if __name__ == "__main__":
    main()
