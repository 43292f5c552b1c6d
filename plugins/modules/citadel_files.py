"""Ansible module: several small files and the directories above them, written in one round trip.

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
short_description: Write several small files, and the directories above them, at once
description:
  - Each file is replaced in one step. Directories that are missing are made (root, mode C(directory_mode)); those that
    are there are left as they are. In check mode nothing is made, and nothing needs to be there.
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
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
  absent:
    description: Files and directories with plain files in them, to be removed.
    type: list
    elements: path
    default: []
  directory_mode:
    description: Mode of directories that are made.
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
  description: Paths of the files whose text, owner or mode changed, and of what was removed.
  type: list
  returned: always
"""


def differs(entry: dict[str, Any]) -> tuple[bool, str]:
    """Whether a file is not as it should be, and its present text."""
    path = Path(entry["path"])
    try:
        text, status = path.read_text(), path.stat()
        owner, group = pwd.getpwnam(entry["owner"]).pw_uid, grp.getgrnam(entry["group"]).gr_gid
    except (OSError, KeyError, UnicodeDecodeError):
        return True, ""
    same_owner = (status.st_uid, status.st_gid) == (owner, group)
    return text != entry["content"] or not same_owner or status.st_mode & 0o7777 != int(entry["mode"], 8), text


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
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            "directory_mode": {"type": "str", "default": "0755"},
        },
        supports_check_mode=True,
    )
    found = [(entry, *differs(entry)) for entry in module.params["files"]]
    changing = [(entry, before) for entry, changed, before in found if changed]
    removing = [Path(path) for path in module.params["absent"] if os.path.lexists(path)]
    try:
        if not module.check_mode:
            for entry, _ in changing:
                write(entry, int(module.params["directory_mode"], 8))
            for path in removing:
                remove(path)
    except KeyError as error:
        module.fail_json(msg=f"{error.args[0]}; the role `base` makes the service's user and group: --tags base")
    except OSError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(changing or removing),
        written=[entry["path"] for entry, _ in changing] + [str(path) for path in removing],
        diff=[
            {"before_header": e["path"], "after_header": e["path"], "before": before, "after": e["content"]}
            for e, before in changing
        ],
    )


if __name__ == "__main__":
    main()
