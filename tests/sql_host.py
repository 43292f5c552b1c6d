"""The lab's SQL host, for tests and benchmarks: databases of their own there, and how they wait."""

import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

REPO = Path(__file__).resolve().parents[1]
SQL_HOST = "hx-sql-server-01"
OWNER, GATEWAY = "citadel_admin", "citadel_gateway"
DEADLINE_S = 60


def on_the_host(*words):
    """Run a command there; its output. RuntimeError with it where the command fails."""
    done = subprocess.run(
        [str(REPO / "bin/lab"), "exec", SQL_HOST, *words],
        timeout=DEADLINE_S, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{SQL_HOST}: {' '.join(words)}: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def place(url, database=None):
    """The parts of a connection string, by the names of a `Target`; another database than its own if one is named."""
    parts = urlsplit(url)
    return {
        "host": parts.hostname,
        "port": parts.port,
        "database": database or parts.path[1:],
        "user": parts.username,
        "password": parts.password,
    }


def create_database(name):
    """An empty one, of the owner's."""
    on_the_host("runuser", "-u", "postgres", "--", "createdb", f"--owner={OWNER}", name)


def drop_database(name):
    """End what uses it, and remove it, if it is there."""
    on_the_host("runuser", "-u", "postgres", "--", "dropdb", "--force", "--if-exists", name)


def until(condition, what):
    """Wait for it, not for ever; what it gave."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)
    return found
