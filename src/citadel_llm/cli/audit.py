"""What was done, by whom: look it up, or verify that nothing of it was changed.

`citadel audit` asks the gateway and needs a key with `audit.read`. `citadel audit verify` reads the database itself and
walks every chain; exit status 1 where a row is wrong or missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from citadel_llm.cli.api import Api, add_options, table

__all__ = ["add_arguments"]

_FILTERS = {
    "request_id": "the request of this id",
    "user": "a user's name or id",
    "model": "a model",
    "kind": "request, admin or security",
    "outcome": "ok, refused, error, cancelled or lost",
    "since": "from then on, such as 2026-01-31T08:00:00Z",
    "until": "before then",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("show", help="show rows, the newest first (the default)", description=__doc__)
    for one in (parser, show):
        for name, text in _FILTERS.items():
            one.add_argument(f"--{name.replace('_', '-')}", help=text)
        one.add_argument("--limit", type=int, default=50, help="at most so many rows (default: %(default)s)")
        one.add_argument("--cursor", help="`next` of an earlier answer")
        add_options(one, run_show)
    verify = actions.add_parser("verify", help="verify that no row was changed or is missing", description=__doc__)
    verify.add_argument("--chain", help="this chain alone")
    verify.add_argument(
        "--credentials",
        metavar="FILE",
        default=os.environ.get("CITADEL_DATABASE_CREDENTIALS", "/opt/citadel/config/secrets/database-gateway.json"),
        help="where the database is and who asks; - reads standard input (default: %(default)s)",
    )
    verify.add_argument("--json", action="store_true", help="one JSON object a chain")
    verify.set_defaults(run=run_verify)


def run_show(api: Api, arguments: argparse.Namespace) -> int:
    """Ask and print."""
    query = {name: getattr(arguments, name) for name in (*_FILTERS, "limit", "cursor")}
    answer = api.call("GET", "/audit", **query)
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return 0
    head = ("AT", "USER", "KEY", "ACTION", "MODEL", "OUTCOME", "STATUS", "TOKENS", "MS", "REQUEST")
    print(table(head, [_line(row) for row in answer["data"]]))
    if answer["next"]:
        print(f"There is more: --cursor {answer['next']}")
    return 0


def _line(row: dict[str, Any]) -> list[str]:
    tokens = None if row["prompt_tokens"] is None else f"{row['prompt_tokens']}+{row['completion_tokens']}"
    latency = None if row["latency_ms"] is None else f"{row['latency_ms']:.1f}"
    outcome = row["outcome"] if row["error_code"] is None else f"{row['outcome']} ({row['error_code']})"
    at = row["at"][:23].replace("T", " ")
    names = (row["user_name"], row["key_name"], row["action"], row["model"])
    cells = (at, *names, outcome, row["status"], tokens, latency, row["request_id"])
    return ["-" if cell is None else str(cell) for cell in cells]


def run_verify(arguments: argparse.Namespace) -> int:
    """Walk the chains."""
    import psycopg  # noqa: PLC0415 — heavy, and wanted by this alone

    from citadel_llm.integration.database.target import DatabaseError, load_target  # noqa: PLC0415
    from citadel_llm.integration.database.verify import connect, verify  # noqa: PLC0415

    wrong = 0
    try:
        with connect(load_target(arguments.credentials)) as connection:
            for verdict in verify(connection, arguments.chain):
                wrong += verdict.wrong_at is not None
                if arguments.json:
                    print(json.dumps({name: getattr(verdict, name) for name in type(verdict).__slots__}))
                elif verdict.wrong_at is not None:
                    print(f"{verdict.chain}: WRONG at {verdict.wrong_at}: {verdict.why}")
                else:
                    begins = f", from {verdict.first} on" if verdict.first and verdict.first > 1 else ""
                    print(f"{verdict.chain}: {verdict.rows} rows{begins}, good")
    except (DatabaseError, psycopg.Error) as error:
        print(f"citadel: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 1 if wrong else 0
