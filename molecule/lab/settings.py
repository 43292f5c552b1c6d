"""What the lab is: its hosts, where its state lives, and what it carries in from this machine."""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
GATEWAY_ADDRESS = "192.168.10.1"
NETWORK_BITS = 24
LLM_HOST = "hx-llm-server-01"
SQL_HOST = "hx-sql-server-01"
METRICS_HOST = "hx-metrics-server-01"
VECTOR_HOST = "hx-vector-server-01"


class LabError(Exception):
    """A failure that the caller can act on; its text says how."""


def addresses() -> dict[str, str]:
    """Host name to address, read from the inventory, which is the one home of both."""
    pairs: dict[str, str] = {}
    name = ""
    for line in (REPO / "inventory" / "lab.yml").read_text().splitlines():
        if match := re.match(r"\s+(hx-[\w-]+):\s*$", line):
            name = match.group(1)
        elif name and (match := re.match(r"\s+ansible_host:\s*(\S+)", line)):
            pairs[name] = match.group(1)
    if not pairs:
        raise LabError("inventory/lab.yml names no host: restore it from git")
    return pairs


def machine_release() -> str:
    """The release that this machine's own apt archives can build: Ubuntu's on Ubuntu, else Debian's."""
    text = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    return "noble" if re.search(r"^ID=ubuntu", text, re.M) else "trixie"


@dataclass(frozen=True)
class Lab:
    """One lab: LAB_NAME tells several apart (same addresses, separate namespaces and state)."""

    name: str
    directory: Path
    cache: Path
    llm_release: str
    peer_release: str
    hosts: dict[str, str] = field(default_factory=addresses)

    @classmethod
    def from_environment(cls) -> Lab:
        name = os.environ.get("LAB_NAME", "")
        if not re.fullmatch(r"[a-z0-9]{0,8}", name):
            raise LabError(f"LAB_NAME={name!r}: use at most 8 lower-case letters and digits")
        directory = REPO / (f".lab-{name}" if name else ".lab")
        release = machine_release()
        return cls(
            name=f"citadel-{name}" if name else "citadel",
            directory=directory,
            cache=Path(os.environ.get("LAB_CACHE", "/var/cache/citadel-lab")),
            llm_release=os.environ.get("LAB_LLM_BASE") or release,
            peer_release=release,
        )

    def release(self, host: str) -> str:
        return self.llm_release if host == LLM_HOST else self.peer_release

    def address(self, host: str) -> str:
        try:
            return self.hosts[host]
        except KeyError:
            raise LabError(f"no host {host!r} in the lab; there are: {', '.join(self.hosts)}") from None

    def namespace(self, host: str | None = None) -> str:
        return self.name if host is None else f"{self.name}-{self.address(host).rsplit('.', 1)[1]}"

    def host_directory(self, host: str) -> Path:
        self.address(host)
        return self.directory / "hosts" / host

    def layer_directory(self, host: str, layer: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,80}", layer):
            raise LabError(f"layer {layer!r}: use letters, digits, '.', '_' and '-'")
        return self.directory / "layers" / host / layer


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """One at a time makes what is kept at `target`, of all labs of this machine; the others wait, and find it made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it when its holder dies, however it dies
        yield


def apt_mirror(release: str) -> str | None:
    """The archive that this machine's own apt uses for a release's distribution, or None for the default."""
    origin = "Ubuntu" if release in {"noble", "jammy"} else "Debian"
    try:
        listing = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(ORIGIN)|$(LABEL)", "Created-By: Packages"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    for line in listing.splitlines():
        uri, _, rest = line.partition("|")
        if rest == f"{origin}|{origin}" and uri.startswith(("http://", "https://")):
            return uri
    return None


def apt_options() -> list[str]:
    """This machine's apt transport settings (proxies, certificates, dates, retries), as apt.conf lines."""
    try:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    wanted = re.compile(r"^Acquire::(http|https|Retries|Check-|ForceIPv4|ForceIPv6)")
    return [line for line in dump.splitlines() if wanted.match(line) and not line.endswith(' "";')]


CARRIED_VARIABLES = re.compile(
    r"^(PIP_|UV_)\w+$|^(SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE)$|^(https?|no|all|ftp)_proxy$",
    re.I,
)
NOT_CARRIED = {
    "UV_CACHE_DIR",
    "PIP_CACHE_DIR",
    "UV_PYTHON",
    "PIP_REQUIRE_VIRTUALENV",
    "UV_TOOL_DIR",
    "PIP_TARGET",
}
MACHINE_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Carried:
    """What the lab's hosts take over from this machine, so that package installs work there as they do here."""

    environment: dict[str, str]
    pip: str
    apt: list[str]
    binds: list[str]
    certificates: list[str]

    @property
    def digest(self) -> str:
        parts = [self.environment, self.pip, self.apt, self.certificates]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def carried() -> Carried:
    environment = {k: v for k, v in os.environ.items() if CARRIED_VARIABLES.match(k) and k not in NOT_CARRIED}
    for key in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"):
        if key in environment:  # the host's own bundle, which holds this machine's certificates
            environment[key] = str(MACHINE_BUNDLE)
    environment.pop("SSL_CERT_DIR", None)
    merged = configparser.RawConfigParser()
    merged.read([Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf"])
    pip_options = dict(merged["global"]) if merged.has_section("global") else {}
    if "cert" in pip_options:
        merged["global"]["cert"] = str(MACHINE_BUNDLE)
    index = environment.get("PIP_INDEX_URL") or pip_options.get("index-url")
    if index and not any(k in environment for k in ("UV_INDEX_URL", "UV_DEFAULT_INDEX")):
        environment["UV_DEFAULT_INDEX"] = index  # uv reads no pip.conf
    text = ""
    for section in merged.sections():
        text += f"[{section}]\n" + "".join(f"{k} = {v}\n" for k, v in merged[section].items())
    folders = re.findall(r"(?:file://)?(/[\w./-]+)", " ".join([text, *environment.values()]))
    binds: set[str] = set()
    for folder in folders:
        path = Path(folder)
        if path.name == "simple":  # an index, whose pages lead to files beside it
            path = path.parent
        if path.is_dir() and not str(path).startswith(("/etc", "/usr", "/proc", "/sys", "/dev", "/root", "/home")):
            binds.add(str(path))
    outer = sorted(b for b in binds if not any(b != o and b.startswith(o + "/") for o in binds))
    certificates: list[str] = []
    if MACHINE_BUNDLE.exists():
        certificates = re.findall(
            r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----",
            MACHINE_BUNDLE.read_text(errors="replace"),
            re.S,
        )
    return Carried(environment, text, apt_options(), outer, certificates)


def resolvers() -> str:
    """The text of a resolv.conf that also works away from this machine's loopback."""
    if names := os.environ.get("LAB_DNS"):
        return "".join(f"nameserver {name}\n" for name in names.split())
    for candidate in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        if candidate.exists():
            text = candidate.read_text()
            servers = re.findall(r"^nameserver\s+(\S+)", text, re.M)
            if any(not s.startswith("127.") and s != "::1" for s in servers):
                return text
    raise LabError("every name server in /etc/resolv.conf is on loopback: set LAB_DNS to one the lab's hosts can reach")
