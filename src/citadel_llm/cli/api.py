"""What the verbs that talk to the admin API share: where it is, by which key, and how an answer is shown.

The key is $CITADEL_API_KEY, else in the file $CITADEL_API_KEY_FILE, else in /root/.citadel-admin-key: never in a
command line, where others would see it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["Api", "ApiFailure", "add_options", "duration", "show", "table", "tell", "when"]

_TIMEOUT_S = 30.0
_KEY_FILE = "/root/.citadel-admin-key"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class ApiFailure(Exception):
    """What went wrong, for the person who called."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key goes where it was meant for and nowhere else."""

    def redirect_request(self, *_arguments: Any) -> None:
        """Do not follow."""


class Api:
    """The admin API of one gateway."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Raises ApiFailure where there is no address or no key."""
        from citadel_llm.utils.config import ConfigError, load_config  # noqa: PLC0415 — not needed with --url

        try:
            url: str = arguments.url or load_config(arguments.config).server.url
        except ConfigError as error:
            raise ApiFailure(f"{error}\nName the gateway with --url.") from None
        if not url.startswith(("http://", "https://")):
            raise ApiFailure(f"--url: expected an address that begins with http:// or https://, got {url}")
        self._url = url.rstrip("/")
        self._key = _key()
        self._opener = urllib.request.build_opener(_NoRedirects)

    def call(self, method: str, path: str, body: Any = None, *, base: str = "/admin/v1", **query: Any) -> Any:
        """What the API under `base` answers, None where it answers nothing. Raises ApiFailure."""
        given = {name: value for name, value in query.items() if value is not None}
        url = f"{self._url}{base}{path}" + (f"?{urllib.parse.urlencode(given)}" if given else "")
        request = urllib.request.Request(url, method=method)  # noqa: S310 — the scheme is checked
        request.add_header("authorization", f"Bearer {self._key}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("content-type", "application/json")
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise ApiFailure(_said(error)) from None
        except (OSError, http.client.HTTPException) as error:
            raise ApiFailure(f"no answer from {self._url}: {getattr(error, 'reason', error)}") from None
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise ApiFailure(f"{self._url} is no Citadel gateway: its answer is no JSON") from None

    def pages(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """All entries of a list."""
        cursor = None
        while True:
            found = self.call("GET", path, **query, limit=200, cursor=cursor)
            yield from found["data"]
            cursor = found["next"]
            if cursor is None:
                return


def add_options(parser: argparse.ArgumentParser, run: Callable[[Api, argparse.Namespace], int]) -> None:
    """What each of these verbs takes; `run` is called with the API."""
    parser.add_argument("--url", help="the gateway's address (default: `server.url` of the configuration)")
    parser.add_argument(
        "--config",
        type=Path,
        default=os.environ.get("CITADEL_CONFIG", "/opt/citadel/config/citadel.yaml"),
        help="the configuration file (default: $CITADEL_CONFIG, else %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as it came")
    parser.set_defaults(run=lambda arguments: _run(run, arguments))


def _run(run: Callable[[Api, argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        return run(Api(arguments), arguments)
    except ApiFailure as failure:
        print(f"citadel: {failure}", file=sys.stderr)
        return 1


def _key() -> str:
    given = os.environ.get("CITADEL_API_KEY", "")
    if not given:
        path = os.environ.get("CITADEL_API_KEY_FILE", _KEY_FILE)
        try:
            given = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", "is not text")
            raise ApiFailure(f"no key: $CITADEL_API_KEY is not set, and {path}: {reason}") from None
    key = given.strip()
    if not re.fullmatch(r"[\x21-\x7e]{1,512}", key):
        raise ApiFailure("the key is not one: expected letters, digits and signs, without spaces")
    return key


def _said(error: urllib.error.HTTPError) -> str:
    try:
        found = json.loads(error.read())["error"]
        return f"{found['message']} ({error.code} {found['code']}, request {found['request_id']})"
    except (ValueError, KeyError, TypeError, OSError):
        return f"the gateway answered {error.code}"


def duration(text: str) -> int:
    """Seconds of `90s`, `15m`, `12h`, `30d` or `2w`."""
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 90s, 15m, 12h, 30d or 2w, got {text}")
    return int(found[1]) * _UNITS[found[2]]


def when(seconds: int | None) -> str:
    """A point in time, in UTC."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns, as wide as what is in them."""
    # What somebody has written must not move a terminal's cursor.
    cells = [head, *([re.sub(r"[^ -~\u00a0-\uffff]", "?", cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def show(arguments: argparse.Namespace, found: Any, text: str) -> int:
    """Print the answer, as JSON where that is wanted."""
    print(json.dumps(found, indent=2) if arguments.json else text)
    return 0


def tell(found: Mapping[str, Any], *names: str) -> str:
    """One thing, a line for each of these of it."""
    width = max(map(len, names))
    lines = [(name, found[name]) for name in names]
    return "\n".join(f"{name.ljust(width)}  {_word(name, value)}" for name, value in lines)


def _word(name: str, value: Any) -> str:
    if name.endswith("_at"):
        return when(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else {True: "yes", False: "no"}.get(value, str(value))
