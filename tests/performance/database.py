"""A database of the lab for the gateway that is measured: who may call is read there, and the audit log carried there.

It is made before the bench goes on inside the image, where the lab's hosts can't be prepared any more, and stays until
the next run makes it anew, or the lab's SQL host is reset.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import sql_host
from running_lab import known_credentials

from performance.procs import NotStarted
from performance.subjects import DATABASE, KEY, OTHERS, REPO

__all__ = ["audited", "prepare"]

_NAME = "citadel_bench"


def prepare(folder: Path, journal: Path) -> None:
    """Make it, with the keys that the load uses; what a gateway needs of it goes into `folder`. Raises NotStarted.

    What an earlier gateway has written down, in `journal`, belongs to another database and is removed.
    """
    if "LAB_DIR" not in os.environ:
        raise NotStarted("--database needs the running lab: bin/lab up hx-sql-server-01, then bin/lab run bin/bench …")
    known = known_credentials()
    try:
        sql_host.drop_database(_NAME)
        sql_host.create_database(_NAME)
    except RuntimeError as failure:
        raise NotStarted(f"the database: {failure}") from None
    shutil.rmtree(journal, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    citadel = [sys.executable, "-m", "citadel_llm.cli"]
    owner, gateway = (sql_host.place(known[fact], _NAME) for fact in ("database_url", "database_gateway_url"))
    _run([*citadel, "database", "upgrade", "--credentials", "-", "--runtime-user", sql_host.GATEWAY], json.dumps(owner))
    pepper = secrets.token_urlsafe(32)
    for name, text in (("database.json", json.dumps(gateway)), ("pepper", pepper)):
        path = folder / name
        path.unlink(missing_ok=True)
        path.touch(0o600)
        path.write_text(text)
    callers = [("bench", KEY), *((name, f"{KEY}-{name}") for name in OTHERS)]
    keys = [{"name": name, "key": key, "role": "developer"} for name, key in callers]
    bring = [*citadel, "identity", "import", "--stdin", "--credentials", str(folder / "database.json")]
    _run(bring, json.dumps({"pepper": pepper, "keys": keys}))
    os.environ[DATABASE] = str(folder)


def audited() -> int:
    """Rows of the audit log there."""
    import psycopg  # noqa: PLC0415 — only where there is one

    place = json.loads((Path(os.environ[DATABASE]) / "database.json").read_text())
    place["dbname"] = place.pop("database")
    with psycopg.connect(**place) as connection:
        [(rows,)] = connection.execute("select count(*) from llm.audit_log").fetchall()
    return int(rows)


def _run(command: list[str], given: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPO / "src")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, input=given)
    if done.returncode:
        raise NotStarted(f"the database: {(done.stderr or done.stdout).strip()}")
