"""What tests do to the lab's SQL host, and how they wait."""

import subprocess
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SQL_HOST = "hx-sql-server-01"
OWNER, GATEWAY = "citadel_admin", "citadel_gateway"
DEADLINE_S = 60


def on_the_host(*words):
    """Run a command there; its output."""
    done = subprocess.run(
        [str(REPO / "bin/lab"), "exec", SQL_HOST, *words],
        timeout=DEADLINE_S, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(condition, what):
    """Wait for it, not for ever; what it gave."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)
    return found
