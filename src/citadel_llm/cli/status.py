"""Show what the gateway says of every model and engine: exit status 0 if all are up, else 1."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ["add_arguments"]

_TIMEOUT_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    parser.add_argument("--url", help="the gateway's address (default: `server.url` of the configuration)")
    parser.add_argument(
        "--config",
        type=Path,
        default=os.environ.get("CITADEL_CONFIG", "/opt/citadel/config/citadel.yaml"),
        help="the configuration file (default: $CITADEL_CONFIG, else %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as it came")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    from citadel_llm.utils.config import ConfigError, load_config  # noqa: PLC0415 — not needed with --url

    try:
        url = arguments.url or load_config(arguments.config).server.url
        health = _ask(url.rstrip("/") + "/health")
    except ConfigError as error:
        print(f"citadel: {error}\nName the gateway with --url.", file=sys.stderr)
        return 1
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        print(
            f"citadel: no answer from {url}: {reason}\nOn the server, see `systemctl status 'citadel-gateway*'`.",
            file=sys.stderr,
        )
        return 1
    print(json.dumps(health, indent=2) if arguments.json else _table(url, health))
    return 0 if health["status"] == "ok" else 1


def _ask(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise ValueError("expected an address that begins with http://")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 — the scheme is checked
            body = answer.read()
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        body = error.read()
    health = json.loads(body)
    if not isinstance(health, dict) or not isinstance(health.get("models"), dict) or "status" not in health:
        raise ValueError("the answer is not a Citadel gateway's")
    return health


def _table(url: str, health: dict[str, Any]) -> str:
    rows = [("MODEL", "STATE", "ENGINE", "LATENCY", "IN FLIGHT", "QUEUED", "")]
    for name, model in health["models"].items():
        for engine in model["engines"]:
            latency = engine["latency_ms"]
            rows.append(
                (
                    name,
                    engine["state"],
                    engine["address"],
                    "-" if latency is None else f"{latency:.1f} ms",
                    str(engine["in_flight"]),
                    str(model["queued"]),
                    engine["last_error"] or "",
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    title = f"{url}: {health['status']} (instance {health['instance']}, version {health['version']})"
    return "\n".join([title, *lines])
