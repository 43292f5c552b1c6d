"""The lab's private network: a namespace with a bridge, one namespace a host, and NAT to the outside.

The machine's own namespace gets one veth (the uplink) and no route to the hosts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import zlib
from pathlib import Path

from settings import GATEWAY_ADDRESS, NETWORK_BITS, Lab, LabError, alone

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
RUN = Path("/run/citadel-lab")
OUTSIDE = "citadel-outside"  # a name for the machine's own namespace, so that a process inside a lab's finds back

# Declared, flushed and filled in one transaction, so that a second run replaces the first.
MASQUERADE = """
table ip {table} {{
}}
delete table ip {table}
table ip {table} {{
  chain out {{
    type nat hook postrouting priority 100
    {match} masquerade
  }}
}}
"""


def leave_namespace() -> None:
    """Re-executes this process in the machine's own network namespace when it was called inside a lab's."""
    if _is_namespace(OUTSIDE) and os.stat("/proc/self/ns/net").st_ino != os.stat(f"/run/netns/{OUTSIDE}").st_ino:
        command = inside(OUTSIDE, _own_command())
        os.execvp(command[0], command)


def _own_command() -> list[str]:
    return [part.decode() for part in Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]]


def inside(namespace: str, command: list[str]) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{namespace}", "--", *command]


def exists(namespace: str) -> bool:
    return Path("/run/netns", namespace).exists()


def _is_namespace(name: str) -> bool:
    """Whether the name leads to one: it is a plain file before it is attached, and where an attaching was killed."""
    try:
        return os.stat(f"/run/netns/{name}").st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


def _ip(*arguments: str, namespace: str | None = None, check: bool = True) -> str:
    command = ["ip", *(["-n", namespace] if namespace else []), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if check and result.returncode != 0:
        raise LabError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


def _link_exists(name: str, namespace: str | None = None) -> bool:
    return any(link["ifname"] == name for link in json.loads(_ip("-j", "link", "show", namespace=namespace) or "[]"))


def _nft(script: str, namespace: str | None = None) -> None:
    command = ["nft", "-f", "-"]
    if namespace:
        command = inside(namespace, command)
    result = subprocess.run(command, input=script, text=True, capture_output=True)
    if result.returncode != 0:
        raise LabError(f"nft refused the lab's NAT rules: {result.stderr.strip()}")


def _table(lab: Lab) -> str:
    return lab.name.replace("-", "_") + "_lab"


def _mark(name: str) -> tuple[str, int]:
    """What a lab has written of itself under /run: its state's folder and its uplink's number; ("", 0) without."""
    try:
        folder, _, number = (RUN / name).read_text().partition("\n")
    except FileNotFoundError:  # also where its `down` ends just now
        return "", 0
    return folder, int(number or 0)


def _index(lab: Lab) -> int:
    """A number 1..250 that no other lab that is up has; it tells their uplinks and subnets apart."""
    marks = {p.name: _mark(p.name)[1] for p in RUN.glob("citadel*")}
    if marks.get(lab.name):
        return marks[lab.name]
    first = zlib.crc32(lab.name.encode())
    return next(n for n in ((first + i) % 250 + 1 for i in range(250)) if n not in marks.values())


def up(lab: Lab) -> None:
    """Builds what is missing of the network; idempotent, and mends what a killed run left half-made."""
    check_owner(lab)
    with alone(RUN):  # what all labs of the machine share
        RUN.mkdir(exist_ok=True)
        if not (RUN / "ip_forward").exists():
            (RUN / "ip_forward").write_text(FORWARD.read_text())
        index = _index(lab)
        (RUN / lab.name).write_text(f"{lab.directory}\n{index}")
        FORWARD.write_text("1\n")
        if not _is_namespace(OUTSIDE):
            Path("/run/netns", OUTSIDE).unlink(missing_ok=True)
            _ip("netns", "attach", OUTSIDE, str(os.getpid()))
    uplink, subnet = f"cl{index}up", f"10.199.{index}"
    _make_namespace(lab.namespace())
    if not (_link_exists(uplink) and _link_exists("up0", lab.namespace())):
        _ip("link", "del", uplink, check=False)
        _ip("link", "add", uplink, "type", "veth", "peer", "name", "up0", "netns", lab.namespace())
    _ip("addr", "replace", f"{subnet}.1/30", "dev", uplink)
    _ip("link", "set", uplink, "up")
    _ip("addr", "replace", f"{subnet}.2/30", "dev", "up0", namespace=lab.namespace())
    _ip("link", "set", "up0", "up", namespace=lab.namespace())
    _ip("route", "replace", "default", "via", f"{subnet}.1", namespace=lab.namespace())
    if not _link_exists("br0", lab.namespace()):
        _ip("link", "add", "br0", "type", "bridge", "forward_delay", "0", namespace=lab.namespace())
    _ip("addr", "replace", f"{GATEWAY_ADDRESS}/{NETWORK_BITS}", "dev", "br0", namespace=lab.namespace())
    _ip("link", "set", "br0", "up", namespace=lab.namespace())
    _nft(MASQUERADE.format(table=_table(lab), match=f"ip saddr {subnet}.0/30"))
    _nft(MASQUERADE.format(table=_table(lab), match='oifname "up0"'), namespace=lab.namespace())
    subprocess.run(inside(lab.namespace(), ["sh", "-c", f"echo 1 > {FORWARD}"]), check=True)


def check_owner(lab: Lab) -> None:
    """Two checkouts must not share one network: the second is told so."""
    owner = _mark(lab.name)[0]
    if owner and owner != str(lab.directory) and Path(owner).is_dir():
        raise LabError(
            f"the lab of another checkout ({Path(owner).parent}) is up: run `bin/lab down` there, "
            "or tell this one apart, for example: LAB_NAME=b bin/lab up"
        )


def _make_namespace(name: str) -> None:
    if exists(name) and subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], capture_output=True).returncode:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)  # a name whose mount is gone
        Path("/run/netns", name).unlink(missing_ok=True)
    if not exists(name):
        _ip("netns", "add", name)
    _ip("link", "set", "lo", "up", namespace=name)


def add_host(lab: Lab, host: str) -> None:
    namespace, address = lab.namespace(host), lab.address(host)
    port = "v" + address.rsplit(".", 1)[1]
    _make_namespace(namespace)
    if not (_link_exists("host0", namespace) and _link_exists(port, lab.namespace())):
        _ip("link", "del", port, namespace=lab.namespace(), check=False)
        _ip("link", "del", "host0", namespace=namespace, check=False)
        _ip(
            "link",
            "add",
            port,
            "type",
            "veth",
            "peer",
            "name",
            "host0",
            "netns",
            namespace,
            namespace=lab.namespace(),
        )
    _ip("link", "set", port, "master", "br0", "up", namespace=lab.namespace())
    _ip("addr", "replace", f"{address}/{NETWORK_BITS}", "dev", "host0", namespace=namespace)
    _ip("link", "set", "host0", "up", namespace=namespace)
    _ip("route", "replace", "default", "via", GATEWAY_ADDRESS, namespace=namespace)


def pids(namespace: str) -> list[int]:
    """Processes inside a namespace, this process and its ancestors left out."""
    if not exists(namespace):
        return []
    listing = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout
    return [pid for pid in map(int, listing.split()) if pid not in _ancestors()]


def _ancestors() -> set[int]:
    found, pid = set(), os.getpid()
    while pid > 1:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return found


def remove(namespace: str) -> None:
    for pid in pids(namespace):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if exists(namespace):
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True)
        Path("/run/netns", namespace).unlink(missing_ok=True)


def down(lab: Lab) -> None:
    """Leaves no namespace, interface or rule of this lab; gives ip_forward back when it was the last lab."""
    check_owner(lab)
    for host in lab.hosts:
        remove(lab.namespace(host))
    remove(lab.namespace())
    subprocess.run(["nft", "delete", "table", "ip", _table(lab)], capture_output=True)
    with alone(RUN):
        if index := _mark(lab.name)[1]:
            _ip("link", "del", f"cl{index}up", check=False)
        (RUN / lab.name).unlink(missing_ok=True)
        before = RUN / "ip_forward"
        if before.exists() and not [p for p in RUN.iterdir() if p != before]:
            FORWARD.write_text(before.read_text())
            before.unlink()
            RUN.rmdir()
            subprocess.run(["ip", "netns", "del", OUTSIDE], capture_output=True)
