"""Processes under measurement: started on their core, watched through /proc, ended with their children."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["Cores", "NotStarted", "Process", "free_port", "pick_cores", "wait_for"]

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class NotStarted(Exception):
    """A process could not be started, or did not become ready; the text says why."""


class Cores:
    """Which core the subject has, and which one the engine and the load generator share."""

    def __init__(self, subject: int, others: int) -> None:
        self.subject = subject
        self.others = others


def pick_cores(allowed: set[int], siblings: Callable[[int], str]) -> Cores:
    """Two of the allowed cores, of two physical ones where there are such. Raises NotStarted."""
    order = sorted(allowed)
    if len(order) < 2:
        raise NotStarted("two cores are needed: one for the gateway, one for the engine and the load generator")
    first = order[0]
    apart = [core for core in order[1:] if siblings(core) != siblings(first)]
    return Cores(first, (apart or order[1:])[0])


def siblings_of(core: int) -> str:
    """The hardware threads that share a physical core with this one, as the kernel writes them."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(core)


def free_port() -> int:
    """A TCP port that nothing listens on just now, below those that outgoing connections take."""
    for _ in range(200):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise NotStarted("no free port was found")


def wait_for(condition: Callable[[], bool], limit_s: float, pause_s: float = 0.05) -> bool:
    """Whether the condition became true in time."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(pause_s)
    return True


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status) == 200
    except (OSError, ValueError):
        return False


class Process:
    """One command with all its children, in a session of its own."""

    def __init__(
        self, command: Sequence[str], core: int, log: Path, environment: Mapping[str, str], silent: bool = False
    ) -> None:
        """`silent` sends its standard output to /dev/null instead of the log file. Raises NotStarted."""
        self.command = list(command)
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            try:
                self._process = subprocess.Popen(
                    ["taskset", "-c", str(core), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL if silent else output,
                    stderr=output,
                    env={**os.environ, **environment},
                    start_new_session=True,
                )
            except OSError as error:
                raise NotStarted(f"{command[0]}: {error.strerror}") from error

    def ready(self, url: str, limit_s: float) -> None:
        """Wait until `url` is answered with 200. Raises NotStarted with the end of the log."""
        if not wait_for(lambda: self._process.poll() is not None or answers(url), limit_s):
            raise NotStarted(f"not ready within {limit_s:.0f} s: {self._last_words()}")
        if self._process.poll() is not None:
            raise NotStarted(f"ended with status {self._process.returncode}: {self._last_words()}")

    def stop(self) -> None:
        """End the whole session, gently first."""
        for number, patience_s in ((signal.SIGTERM, 8.0), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(timeout=patience_s)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    @property
    def tree(self) -> list[int]:
        """The process and all that descend from it."""
        found, waiting = [], [self._process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").glob("*"):
                try:
                    waiting += [int(child) for child in (task / "children").read_text().split()]
                except OSError:
                    continue
        return found

    def cpu_s(self) -> float:
        """Processor time so far, in seconds, of the whole tree; in steps of a clock tick."""
        return sum(ticks_of(_read(f"/proc/{pid}/stat")) for pid in self.tree) * _TICK_S

    def rss_mb(self) -> float:
        """Resident memory now, in units of 10^6 bytes, of the whole tree."""
        return sum(rss_kib_of(_read(f"/proc/{pid}/status")) for pid in self.tree) * 1024 / 1e6

    def open_files(self) -> int:
        """Open file descriptors of the whole tree."""
        return sum(len(list(Path(f"/proc/{pid}/fd").glob("*"))) for pid in self.tree)

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-400:] or "it said nothing"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def ticks_of(stat: str) -> int:
    """User and system time in clock ticks, its own and its ended children's, of a /proc/PID/stat text."""
    fields = stat.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])


def rss_kib_of(status: str) -> int:
    """Resident memory in KiB of a /proc/PID/status text; 0 where it has none."""
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
