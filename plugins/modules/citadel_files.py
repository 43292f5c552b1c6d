"""Ansible module: several directories, small files and links, made and written in one round trip.

`ansible.builtin.copy` takes one file at a time, two round trips each, and fails in a dry run where the directory
would only be made by the run itself.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: citadel_files
short_description: Make several directories, small files and links at once
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
      validate:
        description: Command that must accept the new text before it takes effect; C(%s) is the file it lies in. Nothing
          is changed where it does not.
        type: str
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
  links:
    description: Symbolic links, each replaced in one step, after the files.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the link lies on the host.
        type: path
        required: true
      to:
        description: What it leads to, as written into the link; it need not be there.
        type: str
        required: true
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
  description: Paths of the files, directories and links that changed, and of what was removed.
  type: list
  returned: always
undo:
  description: Options of this module that put the files and links back as they were.
  type: dict
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


def validate(module: AnsibleModule, entry: dict[str, Any]) -> None:
    """Fails where the entry's command does not accept its text."""
    handle, trial = tempfile.mkstemp(prefix=f".{Path(entry['path']).name}.", dir=module.tmpdir)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(entry["content"])
        command = [word.replace("%s", trial) for word in shlex.split(entry["validate"])]
        code, out, err = module.run_command(command, check_rc=False)
    finally:
        Path(trial).unlink()
    if code != 0:
        said = (err.strip() or out.strip()).replace(trial, entry["path"])
        module.fail_json(msg=f"{entry['path']} was not replaced, since its new text was refused: {said}")


def link_differs(entry: dict[str, Any]) -> bool:
    try:
        return os.readlink(entry["path"]) != entry["to"]
    except OSError:
        return True


def make_link(entry: dict[str, Any], directory_mode: int) -> None:
    path = Path(entry["path"])
    make_directories(path, directory_mode)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        (folder / "link").symlink_to(entry["to"])
        os.replace(folder / "link", path)
    finally:
        (folder / "link").unlink(missing_ok=True)
        folder.rmdir()


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


def undo(changing: list[dict[str, Any]], linking: list[dict[str, Any]]) -> dict[str, Any]:
    """This module's options that undo the given changes; to be asked for before they are made."""
    files, links, absent = [], [], []
    for entry in changing:
        path = Path(entry["path"])
        try:
            status, text = path.stat(), path.read_text()
            owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
        except (OSError, KeyError, UnicodeDecodeError):
            absent.append(str(path))
            continue
        mode = f"{status.st_mode & 0o7777:04o}"
        files.append({"path": str(path), "content": text, "owner": owner, "group": group, "mode": mode})
    for entry in linking:
        if os.path.islink(entry["path"]):
            links.append({"path": entry["path"], "to": os.readlink(entry["path"])})
        else:
            absent.append(entry["path"])
    return {"files": files, "links": links, "absent": absent}


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
                    "validate": {"type": "str"},
                },
            },
            "links": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "path", "required": True}, "to": {"type": "str", "required": True}},
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
    linking = [entry for entry in module.params["links"] if link_differs(entry)]
    removing = [Path(path) for path in module.params["absent"] if os.path.lexists(path)]
    back = undo([entry for entry, _ in changing], linking)
    try:
        if not module.check_mode:
            for entry, _ in changing:
                if entry["validate"]:
                    validate(module, entry)
            directory_mode = int(module.params["directory_mode"], 8)
            for entry in making:
                make_directory(entry)
            for entry, _ in changing:
                write(entry, directory_mode)
            for entry in linking:
                make_link(entry, directory_mode)
            for path in removing:
                remove(path)
    except KeyError as error:
        module.fail_json(msg=f"{error.args[0]}; the role `base` makes the service's user and group: --tags base")
    except OSError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(making or changing or linking or removing),
        written=[e["path"] for e in making]
        + [e["path"] for e, _ in changing]
        + [e["path"] for e in linking]
        + [str(path) for path in removing],
        undo=back,
        diff=[
            {"before_header": e["path"], "after_header": e["path"], "before": before, "after": e["content"]}
            for e, before in changing
        ],
    )


if __name__ == "__main__":
    main()
