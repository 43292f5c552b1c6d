"""Ansible module: a user of Redis, with a password that is made on the host and never leaves it.

The password lies in one file, for the client; Redis gets an ACL file with its SHA-256 alone. Nothing that this module
takes or returns is a secret. It tells too what the role must know of the host, in the same round trip.
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_redis_account
short_description: Make a Redis user whose password never leaves the host
options:
  user:
    description: The user's name; Redis' own user C(default) is turned off.
    type: str
    required: true
  rules:
    description: What the user may do, in the notation of Redis' ACL; nothing else is allowed.
    type: list
    elements: str
    required: true
  credentials:
    description: JSON file with the user and its password, made if it is missing or can't be used.
    type: path
    required: true
  acl:
    description: Redis' ACL file, derived from the other one and the rules.
    type: path
    required: true
  observer:
    description:
      - A second user, for what watches Redis, C(user), with C(rules) as above, and C(passwords), a JSON file as the
        exporter of Redis reads it, from the C(address) that it asks to the password, for root alone.
    type: dict
    suboptions:
      user:
        description: Its name.
        type: str
        required: true
      rules:
        description: What it may do.
        type: list
        elements: str
        required: true
      address:
        description: Where its client finds Redis, as a URL.
        type: str
        required: true
      passwords:
        description: The file with its password, made if it is missing or can't be used.
        type: path
        required: true
  group:
    description: Group of both files, which may read them.
    type: str
    required: true
  unit:
    description: The unit that runs Redis.
    type: str
    required: true
  distribution_unit:
    description: The unit that the package brings.
    type: str
    required: true
author: Citadel
"""

EXAMPLES = r"""
- name: Make the gateway's account
  citadel_redis_account:
    user: gateway
    rules: ["~citadel:*", "+get", "+set"]
    credentials: /opt/citadel/config/secrets/redis-gateway.json
    acl: /opt/citadel/config/secrets/redis-users.acl
    group: citadel
    unit: citadel-redis.service
    distribution_unit: redis-server.service
"""

RETURN = r"""
acl_digest:
  description: Digest of the ACL file's text, empty where a dry run would make the password.
  type: str
  returned: always
installed:
  description: Whether the host has a Redis.
  type: bool
  returned: always
distribution_instance:
  description: Whether the package's own instance runs or would at boot.
  type: bool
  returned: always
outdated:
  description: Whether the unit runs a Redis that is not the installed one any more.
  type: bool
  returned: always
"""

import grp
import hashlib
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

SERVER = Path("/usr/bin/redis-server")
MODE = 0o640
MODE_OBSERVER = 0o600


def read_password(path: Path, user: str) -> str:
    """The password of the user in the file; empty where there is none that can be used."""
    try:
        found = json.loads(path.read_text())
        return str(found["password"]) if found["user"] == user else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def addresses(observer: dict[str, Any]) -> tuple[str, str]:
    """What the exporter looks its password up by: the address, from 1.69 on the address with the user in it."""
    address = observer["address"]
    return address, address.replace("://", f"://{observer['user']}@", 1)


def read_passwords(path: Path, wanted: tuple[str, ...]) -> str:
    """The password of all these addresses in the file; empty where there is none that can be used."""
    try:
        found = json.loads(path.read_text())
        first, *others = {found[address] for address in wanted}
        return first if isinstance(first, str) and not others else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def acl_text(accounts: list[tuple[str, str, list[str]]]) -> str:
    """The ACL file of (user, password, rules)."""
    lines = ["user default reset off"]
    for user, password, rules in accounts:
        lines.append(f"user {user} reset on #{hashlib.sha256(password.encode()).hexdigest()} {' '.join(rules)}")
    return "\n".join(lines) + "\n"


def as_it_should_be(path: Path, text: str, gid: int | None, mode: int) -> bool:
    try:
        status = path.stat()
        return path.read_text() == text and (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, gid, mode)
    except OSError:
        return False


def write(path: Path, text: str, gid: int, mode: int) -> None:
    """Replace the file in one step; its text is never readable by others, not for a moment."""
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chown(partial, 0, gid)
        os.chmod(partial, mode)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def runs_or_would(module: AnsibleModule, unit: str) -> bool:
    """Whether the unit is active, on its way there, or enabled."""
    _, out, _ = module.run_command(["systemctl", "show", unit, "--property=ActiveState,UnitFileState"])
    facts = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return facts.get("ActiveState", "inactive") not in ("inactive", "failed") or facts.get("UnitFileState") in (
        "enabled",
        "enabled-runtime",
    )


def runs_what_is_gone(module: AnsibleModule, unit: str) -> bool:
    """Whether the unit's process was started from a file that has been replaced since."""
    _, out, _ = module.run_command(["systemctl", "show", unit, "--property=MainPID", "--value"])
    try:
        return out.strip() not in ("", "0") and os.readlink(f"/proc/{out.strip()}/exe").endswith(" (deleted)")
    except OSError:
        return False


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            "rules": {"type": "list", "elements": "str", "required": True},
            "credentials": {"type": "path", "required": True, "no_log": False},
            "acl": {"type": "path", "required": True},
            "observer": {
                "type": "dict",
                "options": {
                    "user": {"type": "str", "required": True},
                    "rules": {"type": "list", "elements": "str", "required": True},
                    "address": {"type": "str", "required": True},
                    "passwords": {"type": "path", "required": True, "no_log": False},
                },
            },
            "group": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "distribution_unit": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    user, rules = module.params["user"], module.params["rules"]
    credentials, acl = Path(module.params["credentials"]), Path(module.params["acl"])
    try:
        gid = grp.getgrnam(module.params["group"]).gr_gid
    except KeyError:
        gid = None
    if gid is None and not module.check_mode:
        module.fail_json(msg=f"no group {module.params['group']}; the role `base` makes it: --tags base")
    password = read_password(credentials, user)
    made = not password
    password = password or secrets.token_urlsafe(32)
    accounts = [(user, password, rules)]
    wanted = {credentials: (json.dumps({"user": user, "password": password}) + "\n", gid, MODE)}
    if observer := module.params["observer"]:
        passwords, asked = Path(observer["passwords"]), addresses(observer)
        its = read_passwords(passwords, asked)
        made = made or not its
        its = its or secrets.token_urlsafe(32)
        accounts.append((observer["user"], its, observer["rules"]))
        wanted[passwords] = (json.dumps(dict.fromkeys(asked, its)) + "\n", 0, MODE_OBSERVER)
    wanted[acl] = (acl_text(accounts), gid, MODE)
    changing = [path for path, entry in wanted.items() if not as_it_should_be(path, *entry)]
    if not module.check_mode and gid is not None:
        try:
            for path in changing:
                write(path, *wanted[path])
        except OSError as error:
            module.fail_json(msg=f"{error.strerror}: {error.filename}; the role `tree` makes the folder: --tags tree")
    module.exit_json(
        changed=bool(changing),
        acl_digest="" if made and module.check_mode else hashlib.sha256(wanted[acl][0].encode()).hexdigest(),
        installed=SERVER.exists(),
        distribution_instance=runs_or_would(module, module.params["distribution_unit"]),
        outdated=runs_what_is_gone(module, module.params["unit"]),
    )


if __name__ == "__main__":
    main()
