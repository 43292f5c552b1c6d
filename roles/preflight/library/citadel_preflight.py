"""Ansible module: is this host what the site expects? Every problem in one table, and nothing changed.

Standard library of Python 3.9, since a host that is too old must be able to say so.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import textwrap
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: citadel_preflight
short_description: Compare a host with what the site expects of it, without changing it
options:
  required:
    description: What the requirements ask of a host (C(citadel_required)).
    type: dict
    required: true
  expected:
    description: What this site asks (C(citadel_expected)). What differs from I(required) is reported as not rehearsed.
    type: dict
    required: true
  not_rehearsed:
    description: What this site turns off altogether, each with C(what) and C(why).
    type: list
    elements: dict
    default: []
  root:
    description: Directory that will hold the product; its file system is measured.
    type: path
    required: true
  disk_reserve_gb:
    description: Free space wanted beside the weights, GB of 10^9 bytes.
    type: float
    required: true
  memory_tolerance:
    description: Share of the wanted memory that firmware and kernel may keep for themselves.
    type: float
    required: true
  disk_tolerance:
    description: Share of the wanted disk that the file system may keep for itself.
    type: float
    required: true
  address:
    description: The host's address in the inventory.
    type: str
    required: true
  plan:
    description: The plan of the host's models (C(citadel_plan)).
    type: dict
    required: true
  required_findings:
    description: What the plan of the requirements' own figures finds, where this site plans with other figures.
    type: list
    elements: dict
    default: []
  gateway_ports:
    description: TCP ports of the gateway, by what is spoken there.
    type: dict
    required: true
  peers:
    description: Address by peer.
    type: dict
    default: {}
  services:
    description: By peer, TCP port by service.
    type: dict
    default: {}
  services_not_rehearsed:
    description: Services that this site does not have; for these it is enough that their host answers.
    type: list
    elements: str
    default: []
  timeout_s:
    description: How long a peer may take to answer, in seconds.
    type: float
    default: 5
  secrets:
    description: C(path) of the secrets file on the controller, and whether it is C(present).
    type: dict
    required: true
author: Citadel
"""

EXAMPLES = r"""
- name: Look at the host
  citadel_preflight:
    required: "{{ citadel_required }}"
    expected: "{{ citadel_expected }}"
    root: /opt/citadel
    disk_reserve_gb: 20
    memory_tolerance: 0.03
    disk_tolerance: 0.1
    address: "{{ ansible_host }}"
    plan: "{{ citadel_plan }}"
    gateway_ports: {http: 8000, https: 8443}
    secrets: {path: secrets.yml, present: true}
"""

RETURN = r"""
rows:
  description: One row a check, with C(check), C(wanted), C(found), C(verdict) and C(remedy).
  type: list
  returned: always
problems:
  description: The checks whose verdict is C(problem).
  type: list
  returned: always
report:
  description: The rows as one table.
  type: str
  returned: always
"""

OK, WARN, PROBLEM, NOT_REHEARSED = "ok", "warn", "problem", "not rehearsed here"
COLUMNS = {"check": 30, "wanted": 32, "found": 36, "verdict": len(NOT_REHEARSED), "remedy": 40}
GB = 10**9
LISTEN = "0A"  # the kernel's number for a listening TCP socket

Row = dict  # the five columns, each a str


def row(check: str, wanted: str, found: str, verdict: str, remedy: str = "") -> Row:
    needs_remedy = verdict in (WARN, PROBLEM)
    return {
        "check": check, "wanted": wanted, "found": found, "verdict": verdict, "remedy": remedy if needs_remedy else "",
    }  # fmt: skip


def compared(check: str, required: str, expected: str, found: str, good: bool, remedy: str) -> Row:
    """A row on something that a site may lower: what was lowered is never called ok."""
    if required == expected:
        return row(check, required, found, OK if good else PROBLEM, remedy)
    return row(check, f"{required} (here: {expected})", found, NOT_REHEARSED if good else PROBLEM, remedy)


# -- the host itself ------------------------------------------------------------------------


def release() -> tuple[str, str]:
    """Distribution and version as os-release has them, the name without "GNU/Linux"."""
    text = Path("/etc/os-release").read_text()
    facts = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return facts.get("NAME", "unknown").replace(" GNU/Linux", ""), facts.get("VERSION_ID", "")


def memory_bytes() -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def host_rows(params: dict[str, Any]) -> list[Row]:
    required, expected = params["required"], params["expected"]
    name, version = release()
    system = f"{expected['distribution']} {expected['distribution_version']}"
    cores, memory = os.cpu_count() or 0, memory_bytes()
    enough = expected["memory_gb"] * GB * (1 - params["memory_tolerance"])
    init = Path("/proc/1/comm").read_text().strip()
    return [
        compared(
            "operating system",
            f"{required['distribution']} {required['distribution_version']}",
            system,
            f"{name} {version}",
            f"{name} {version}" == system,
            f"install {system}",
        ),
        compared(
            "Python",
            required["python_version"],
            expected["python_version"],
            platform.python_version(),
            platform.python_version() == expected["python_version"],
            f"use the release whose /usr/bin/python3 is {expected['python_version']} ({system})",
        ),
        row(
            "init",
            "systemd",
            init,
            OK if init == "systemd" and Path("/run/systemd/system").is_dir() else PROBLEM,
            "boot the host with systemd as its init",
        ),
        compared(
            "cores",
            f"{required['cpu_cores']}",
            f"{expected['cpu_cores']}",
            f"{cores}",
            cores >= expected["cpu_cores"],
            f"use a host with at least {expected['cpu_cores']} cores, or lower citadel_expected.cpu_cores",
        ),
        compared(
            "memory",
            f"{required['memory_gb']} GB",
            f"{expected['memory_gb']} GB",
            f"{memory / GB:.1f} GB",
            memory >= enough,
            f"add memory up to {expected['memory_gb']} GB, or lower citadel_expected.memory_gb",
        ),
        *disk_rows(params),
        root_row(),
        address_row(params["address"]),
    ]


def disk_rows(params: dict[str, Any]) -> list[Row]:
    required, expected = params["required"]["disk_gb"], params["expected"]["disk_gb"]
    root = Path(params["root"])
    there = next(path for path in (root, *root.parents) if path.is_dir())
    status = os.statvfs(there)
    size, free = status.f_blocks * status.f_frsize / GB, status.f_bavail * status.f_frsize / GB
    missing = [
        model for model in params["plan"]["models"]
        if not (root / "models" / model["name"] / model["weights_version"]).is_dir()
    ]  # fmt: skip
    weights = sum(float(model["weights_gb"]) for model in missing)
    wanted = weights + params["disk_reserve_gb"]
    return [
        compared(
            "disk",
            f"{required} GB",
            f"{expected} GB",
            f"{size:.0f} GB at {there}",
            size >= expected * (1 - params["disk_tolerance"]),
            f"mount a larger file system at {root}, or lower citadel_expected.disk_gb",
        ),
        row(
            "free disk",
            f"{wanted:.0f} GB, {weights:.0f} of it for weights",
            f"{free:.0f} GB at {there}",
            OK if free >= wanted else PROBLEM,
            f"free space at {there}, or mount a larger file system at {root}",
        ),
    ]


def root_row() -> Row:
    through = os.environ.get("SUDO_USER")
    found = f"uid {os.geteuid()}" + (f", through sudo from {through}" if through else "")
    remedy = "set ansible_become: true in the inventory, and let the ssh user use sudo"
    return row("root on the host", "uid 0", found, OK if os.geteuid() == 0 else PROBLEM, remedy)


def address_row(address: str) -> Row:
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(target)  # the kernel takes only an address of this host
        found, verdict = "on this host", OK
    except OSError:
        found, verdict = "on no interface of this host", WARN
    remedy = "callers and peers use this address: give it to the host, or correct ansible_host"
    return row("address", address, found, verdict, remedy)


# -- ports ----------------------------------------------------------------------------------


def listening_inodes() -> dict[int, set[str]]:
    """Socket inodes by TCP port that something listens on."""
    found: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == LISTEN:
                found.setdefault(int(fields[1].rsplit(":", 1)[1], 16), set()).add(fields[9])
    return found


def holders(inodes: set[str]) -> list[int]:
    """Pids that have one of these sockets open, as far as this user may see."""
    wanted, found = {f"socket:[{inode}]" for inode in inodes}, []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(os.readlink(entry) in wanted for entry in os.scandir(process / "fd")):
                found.append(int(process.name))
        except OSError:
            continue  # it ended meanwhile, or is not ours to look into
    return sorted(found)


def unit_of(pid: int) -> str:
    """The systemd unit of a process; in a container its path in the hierarchy begins with the container's own."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""
    units = re.findall(r"/([^/\n]+\.(?:service|scope))(?=/|$)", text, re.MULTILINE)
    return str(units[-1]) if units else ""


def socket_unit(module: AnsibleModule, port: int) -> str:
    """The socket unit for which systemd itself listens on a port."""
    _, out, _ = module.run_command(["systemctl", "show", "*.socket", "--property=Id,Listen"], check_rc=False)
    for block in out.split("\n\n"):
        if re.search(rf"^Listen=\S*:{port} \(Stream\)$", block, re.MULTILINE):
            match = re.search(r"^Id=(.*)$", block, re.MULTILINE)
            return match.group(1) if match else ""
    return ""


def is_main(module: AnsibleModule, pid: int, unit: str) -> bool:
    """Whether stopping the unit is stopping this process: what somebody started over ssh is not sshd."""
    if pid == 1:
        return bool(unit)
    _, out, _ = module.run_command(["systemctl", "show", "--property=MainPID", "--value", "--", unit], check_rc=False)
    return unit.endswith(".service") and out.strip() == str(pid)


def ours(unit: str) -> bool:
    return unit.startswith(("citadel-model@", "citadel-gateway@", "citadel-gateway."))


def port_row(module: AnsibleModule, what: str, port: int, inodes: set[str] | None) -> Row:
    check, wanted = f"port {port} ({what})", "free, or ours"
    if not inodes:
        return row(check, wanted, "free", OK)
    pids = holders(inodes)
    units = {pid: socket_unit(module, port) if pid == 1 else unit_of(pid) for pid in pids}
    if pids and all(ours(unit) for unit in units.values()):
        return row(check, wanted, f"ours: {', '.join(sorted(set(units.values())))}", OK)
    stranger = next((pid for pid, unit in units.items() if not ours(unit)), None)
    if stranger is None:
        return row(
            check, wanted, "taken by a process that cannot be seen", PROBLEM, f"free it: ss -ltnp sport = {port}"
        )
    unit = units[stranger]
    try:
        name = Path(f"/proc/{stranger}/comm").read_text().strip()
    except OSError:
        name = "ended meanwhile"
    found = f"taken by {name} (pid {stranger}{', ' + unit if unit else ''})"
    stop = f"systemctl disable --now {unit}" if is_main(module, stranger, unit) else f"kill {stranger}"
    return row(check, wanted, found, PROBLEM, f"stop it ({stop}), or choose another port in the inventory")


def port_rows(module: AnsibleModule, params: dict[str, Any]) -> list[Row]:
    open_ports = listening_inodes()
    ports = [(f"gateway, {what}", int(port)) for what, port in params["gateway_ports"].items()]
    ports += [(model["name"], int(model["port"])) for model in params["plan"]["models"]]
    return [port_row(module, what, port, open_ports.get(port)) for what, port in ports]


# -- peers ----------------------------------------------------------------------------------


def knock(address: str, port: int, timeout_s: float) -> str:
    """ "open", "closed" (the host answers, nothing listens), or why there was no answer."""
    try:
        with socket.create_connection((address, port), timeout=timeout_s):
            return "open"
    except ConnectionRefusedError:
        return "closed"
    except OSError as error:  # a timeout, no route, or a name that is not known
        return "closed" if _on_the_link(address) else str(error).strip() or type(error).__name__


def _on_the_link(address: str) -> bool:
    """Whether the address answered at least to the question for its link address."""
    try:
        lines = Path("/proc/net/arp").read_text().splitlines()[1:]
    except OSError:
        return False
    return any(fields[0] == address and int(fields[2], 16) & 2 for fields in map(str.split, lines))


def peer_rows(params: dict[str, Any]) -> list[Row]:
    wanted = [
        (peer, address, service, int(port))
        for peer, address in params["peers"].items()
        for service, port in params["services"].get(peer, {}).items()
    ]
    with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
        answers = list(pool.map(lambda w: knock(w[1], w[3], params["timeout_s"]), wanted))
    away = set(params["services_not_rehearsed"])
    return [peer_row(*want, answer, want[2] in away) for want, answer in zip(wanted, answers)]  # noqa: B905


def peer_row(peer: str, address: str, service: str, port: int, answer: str, not_rehearsed: bool) -> Row:
    place = f"{address}:{port}"
    if answer == "open":
        return row(service, place, "answers", OK)
    if answer != "closed":
        remedy = f"start {peer}, or mend the route to it (ip route get {address})"
        return row(service, place, f"{peer} does not answer: {answer}", PROBLEM, remedy)
    if not_rehearsed:
        return row(service, f"{place} (here: host)", "the host answers", NOT_REHEARSED)
    remedy = f"start {service} on {peer}, or correct its port in group_vars"
    return row(service, place, "the host answers, the port does not", PROBLEM, remedy)


# -- the controller's side ------------------------------------------------------------------


def site_rows(params: dict[str, Any]) -> list[Row]:
    plan, secrets = params["plan"], params["secrets"]
    rows = [
        row(
            "secrets file",
            "on the controller",
            f"{secrets['path']}{'' if secrets['present'] else ' is missing'}",
            OK if secrets["present"] else PROBLEM,
            "make it with ansible-vault create; inventory/secrets/README.md shows what goes in",
        )
    ]
    for finding in plan["findings"]:
        verdict = PROBLEM if finding["severity"] == "fail" else WARN
        rows.append(row(finding["check"], finding["wanted"], finding["found"], verdict, finding["remedy"]))
    if not plan["findings"]:
        cores, memory = plan["cores"], plan["memory"]
        rows.append(
            row(
                "budgets of all models",
                f"at most {cores['available']} cores, {memory['available_bytes'] / GB:.0f} GB",
                f"{cores['wanted']} cores, {memory['wanted_bytes'] / GB:.0f} GB",
                OK,
            )
        )
    rows += [
        row(f"{finding['check']}, as required", finding["wanted"], finding["found"], NOT_REHEARSED)
        for finding in params["required_findings"]
    ]
    rows += [row(entry["what"], "in production", entry["why"], NOT_REHEARSED) for entry in params["not_rehearsed"]]
    return rows


# -- the table ------------------------------------------------------------------------------


def table(rows: Iterable[Row]) -> str:
    """The rows under a head; long cells go on in further lines."""
    rows = list(rows)
    widths = {
        name: min(limit, max(len(name), *(len(entry[name]) for entry in rows))) for name, limit in COLUMNS.items()
    }
    lines = [" | ".join(name.ljust(width) for name, width in widths.items())]
    lines.append("-+-".join("-" * width for width in widths.values()))
    for entry in rows:
        cells = [textwrap.wrap(entry[name], width, break_on_hyphens=False) or [""] for name, width in widths.items()]
        for number in range(max(len(cell) for cell in cells)):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            lines.append(" | ".join(part.ljust(width) for part, width in zip(parts, widths.values())))  # noqa: B905
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "required": {"type": "dict", "required": True},
            "expected": {"type": "dict", "required": True},
            "not_rehearsed": {"type": "list", "elements": "dict", "default": []},
            "root": {"type": "path", "required": True},
            "disk_reserve_gb": {"type": "float", "required": True},
            "memory_tolerance": {"type": "float", "required": True},
            "disk_tolerance": {"type": "float", "required": True},
            "address": {"type": "str", "required": True},
            "plan": {"type": "dict", "required": True},
            "required_findings": {"type": "list", "elements": "dict", "default": []},
            "gateway_ports": {"type": "dict", "required": True},
            "peers": {"type": "dict", "default": {}},
            "services": {"type": "dict", "default": {}},
            "services_not_rehearsed": {"type": "list", "elements": "str", "default": []},
            "timeout_s": {"type": "float", "default": 5},
            # paths and whether they are there: nothing secret
            "secrets": {"type": "dict", "required": True, "no_log": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    rows = [*host_rows(params), *port_rows(module, params), *peer_rows(params), *site_rows(params)]
    counts = {
        verdict: sum(entry["verdict"] == verdict for entry in rows) for verdict in (OK, WARN, PROBLEM, NOT_REHEARSED)
    }
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    module.exit_json(
        changed=False,
        rows=rows,
        problems=[entry["check"] for entry in rows if entry["verdict"] == PROBLEM],
        report=f"{table(rows)}\n\n{summary}",
    )


if __name__ == "__main__":
    main()
