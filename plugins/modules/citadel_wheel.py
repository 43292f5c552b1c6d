#!/usr/bin/python
"""Builds the project's wheel on the controller, once for each content of its source."""

import hashlib
import os
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: citadel_wheel
short_description: Build a Python project's wheel, named after the content of its source
description:
  - Hashes the wheel's packages and C(pyproject.toml), and builds the wheel only where none of that content is there.
  - Runs on the controller. It touches no host, and what it writes is a cache named after its content, so check mode
    builds too, for the tasks after it to have something to compare with.
options:
  source:
    description: The project's directory, with C(pyproject.toml) and C(src/).
    type: path
    required: true
  dest:
    description: The directory for wheels; each content gets a directory of its own in it.
    type: path
    required: true
author: Citadel AI Infrastructure Team
"""

RETURN = r"""
wheel:
  description: Path of the wheel.
  type: str
  returned: success
version:
  description: The package's version.
  type: str
  returned: success
release:
  description: Version and content in one name, such as C(0.1.0-3f2a9c81d4e5).
  type: str
  returned: success
"""

LEFT_OUT = {"__pycache__"}


def content_hash(source):
    """The first 12 hexadecimal digits of the SHA-256 over names and contents, in a fixed order."""
    digest = hashlib.sha256()
    files = [source / "pyproject.toml"]
    # What the wheel holds, and no other package beside it: its change would be no other release.
    held = tomllib.loads(files[0].read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for folder, folders, names in (found for package in sorted(held) for found in os.walk(source / package)):
        folders[:] = sorted(set(folders) - LEFT_OUT)
        files.extend(Path(folder, name) for name in sorted(names) if not name.endswith(".pyc"))
    for path in files:
        data = path.read_bytes()
        digest.update(f"{path.relative_to(source)}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:12]


def build(module, source, folder):
    """Build into a directory beside `folder`, then move it there, so that `folder` is never half made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(part), str(source)]
        status, out, err = module.run_command(command)
        if status != 0:
            module.fail_json(
                msg=f"The wheel of {source} could not be built. The controller's environment needs the packages"
                " `build` and `hatchling`: they are in files/requirements/controller.txt.",
                stdout=out,
                stderr=err,
                rc=status,
            )
        part.chmod(0o755)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # else someone built the same content meanwhile, which is as good
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "dest": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    source = Path(module.params["source"])
    if not (source / "pyproject.toml").is_file():
        module.fail_json(msg=f"{source} has no pyproject.toml, so it is not a Python project's directory.")
    content = content_hash(source)
    folder = Path(module.params["dest"]) / content
    missing = not list(folder.glob("*.whl"))
    if missing:
        build(module, source, folder)
    wheel = next(folder.glob("*.whl"))
    version = wheel.name.split("-")[1]
    module.exit_json(changed=missing, wheel=str(wheel), version=version, release=f"{version}-{content}")


if __name__ == "__main__":
    main()
