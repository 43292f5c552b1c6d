"""What kind of machine a run was on, in words that name no machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

__all__ = ["LOAD_AT_START", "build", "describe", "memory_gib"]

LOAD_AT_START = os.getloadavg()[0]  # before this program adds its own


def memory_gib(meminfo: str) -> float:
    """All memory, of a /proc/meminfo text."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.M)
    return int(found[1]) / 2**20 if found else 0.0


def describe() -> str:
    """Cores, processor, memory, kernel and Python."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.M)
    kind = re.sub(r"\s+", " ", found[1]) if found else platform.machine()
    kernel = re.match(r"\d+\.\d+", platform.release())
    return (
        f"{os.cpu_count()} cores ({kind}), {memory_gib(Path('/proc/meminfo').read_text()):.0f} GiB of memory, "
        f"Linux {kernel[0] if kernel else ''}, Python {platform.python_version()}"
    )


def build(source: Path, program: Path) -> str | None:
    """Compile a C source if it is newer than the program. None where it worked, else why not."""
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return None
    program.parent.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except OSError:
        return "there is no C compiler"
    return done.stderr.strip()[:400] if done.returncode else None
