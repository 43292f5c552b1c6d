"""Runs the load generator and reads what it says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["MODEL", "Load", "Outcome", "parse", "write_request"]

MODEL = "bench"
BODY_BYTES = 200


def write_request(path: Path, port: int, *, key: str | None, events: int | None = None) -> None:
    """Write a whole request: a plain one of 200 bytes, or one for a stream of so many events."""
    document: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": ""}],
        "max_tokens": events or 16,
    }
    if events is not None:
        document["stream"] = True
    bare = len(json.dumps(document, separators=(",", ":")))
    words = "What is the capital of France? " * 5
    document["messages"][0]["content"] = words[: BODY_BYTES - bare]
    body = json.dumps(document, separators=(",", ":")).encode()
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    if key is not None:
        head.append(f"authorization: Bearer {key}")
    path.write_bytes("\r\n".join([*head, "", ""]).encode() + body)


@dataclass(frozen=True)
class Outcome:
    """What one run of the load generator found. Times in milliseconds, of answers with status 200."""

    requests_per_s: float
    answered: int
    failed: int
    events: int
    hung_up: int
    p50_ms: float | None
    p99_ms: float | None
    first_p50_ms: float | None
    first_p99_ms: float | None
    refused: int = 0  # answers with 429 or 503
    retry_after: int = 0  # those of them that said when to come again
    refused_p99_ms: float | None = None
    started: int = 0
    took_s: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)


def parse(line: str) -> Outcome:
    """Read the line that the generator prints. Raises ValueError where it is none."""
    said = json.loads(line)
    statuses: dict[str, int] = said["statuses"]
    refused = statuses.get("429", 0) + statuses.get("503", 0)
    failures = {name: said[name] for name in ("broken", "unconnected", "unanswered") if said[name]}
    failures.update({f"status {status}": count for status, count in statuses.items() if status != "200"})
    return Outcome(
        requests_per_s=said["requests_per_s"],
        answered=said["answered"],
        failed=sum(failures.values()),
        events=said["events"],
        hung_up=said["hung_up"],
        p50_ms=_ms(said["latency_us"].get("p50")),
        p99_ms=_ms(said["latency_us"].get("p99")),
        first_p50_ms=_ms(said["first_token_us"].get("p50")),
        first_p99_ms=_ms(said["first_token_us"].get("p99")),
        refused=refused,
        retry_after=said["retry_after"],
        refused_p99_ms=_ms(said["refused_us"].get("p99")),
        started=said["started"],
        took_s=said["took_s"],
        failures=failures,
    )


def _ms(microseconds: float | None) -> float | None:
    return None if microseconds is None else round(microseconds / 1000, 4)


class Load:
    """The generator, on its core, against one port."""

    def __init__(
        self, program: Sequence[str], core: int, port: int, folder: Path, *, key: str | None, events: int
    ) -> None:
        """`events` is the length of a stream. The requests are written into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._start = ["taskset", "-c", str(core), *program, "--port", str(port)]
        plain, stream = folder / f"plain-{port}", folder / f"stream-{port}-{events}"
        write_request(plain, port, key=key)
        write_request(stream, port, key=key, events=events)
        self._start += ["--plain", str(plain), "--stream", str(stream)]

    def run(self, connections: int, seconds: float, **options: float) -> Outcome:
        """Load for so long; options are the generator's own, with `_` for `-`."""
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", f"{value:g}")]
        command = [*self._start, "--connections", str(connections), "--seconds", f"{seconds:g}", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
        if done.returncode:
            raise RuntimeError(f"the load generator failed: {done.stderr.strip()}")
        return parse(done.stdout)
