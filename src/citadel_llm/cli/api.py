"""How the verbs that ask the gateway's administration do it: where it is, with which key, and what went wrong."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["CallFailed", "add_call_arguments", "call", "fail"]

_TIMEOUT_S = 30.0
_KEY_FILE = "/root/.citadel-admin-key"


class CallFailed(Exception):
    """The gateway did not answer, or refused; the text says why."""


def add_call_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--url`, `--config` and `--json`."""
    parser.add_argument("--url", help="the gateway's address (default: `server.url` of the configuration)")
    parser.add_argument(
        "--config",
        type=Path,
        default=os.environ.get("CITADEL_CONFIG", "/opt/citadel/config/citadel.yaml"),
        help="the configuration file (default: $CITADEL_CONFIG, else %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as it came")


def call(arguments: argparse.Namespace, method: str, path: str, query: Mapping[str, Any] | None = None) -> Any:
    """Ask, with the key of $CITADEL_API_KEY or of the file; the answer's JSON. Raises CallFailed."""
    given = {name: str(value) for name, value in (query or {}).items() if value is not None}
    url = _base(arguments) + path + (f"?{urllib.parse.urlencode(given)}" if given else "")
    if not url.startswith(("http://", "https://")):
        raise CallFailed("expected an address that begins with http:// or https://")
    request = urllib.request.Request(url, method=method, headers={"authorization": f"Bearer {_key()}"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 — the scheme is checked
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise CallFailed(_said(error)) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CallFailed(f"no answer from {url.partition('?')[0]}: {getattr(error, 'reason', error)}") from error


def fail(error: CallFailed) -> int:
    """Tell it; the exit status."""
    print(f"citadel: {error}", file=sys.stderr)
    return 1


def _base(arguments: argparse.Namespace) -> str:
    from citadel_llm.utils.config import ConfigError, load_config  # noqa: PLC0415 — not needed with --url

    try:
        url: str = arguments.url or load_config(arguments.config).server.url
    except ConfigError as error:
        raise CallFailed(f"{error}\nName the gateway with --url.") from error
    return url.rstrip("/")


def _key() -> str:
    if key := os.environ.get("CITADEL_API_KEY"):
        return key
    path = Path(os.environ.get("CITADEL_API_KEY_FILE", _KEY_FILE))
    try:
        return path.read_text().strip()
    except OSError as error:
        raise CallFailed(f"no key: set CITADEL_API_KEY, or CITADEL_API_KEY_FILE ({path}: {error.strerror})") from error


def _said(error: urllib.error.HTTPError) -> str:
    try:
        found = json.loads(error.read())["error"]
        return f"{error.code} {found['code']}: {found['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the gateway answered with status {error.code}"
