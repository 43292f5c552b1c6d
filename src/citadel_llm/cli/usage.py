"""How much was used, by user, key and model; --me for the own key's user alone."""

from __future__ import annotations

import argparse
import json

from citadel_llm.cli.api import CallFailed, add_call_arguments, call, fail
from citadel_llm.cli.tables import table

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    parser.add_argument("--me", action="store_true", help="one's own, which needs no more than `own-keys`")
    parser.add_argument("--period", choices=("hour", "day", "month"), default="day", help="(default: %(default)s)")
    parser.add_argument("--user", help="a user's name or id")
    parser.add_argument("--model", help="a model")
    parser.add_argument("--since", help="from then on, such as 2026-01-31")
    parser.add_argument("--until", help="before then")
    parser.add_argument("--limit", type=int, default=100, help="at most so many rows (default: %(default)s)")
    parser.add_argument("--cursor", help="`next` of an earlier answer")
    add_call_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    names = ("period", "model", "since", "until", "limit", "cursor", *(() if arguments.me else ("user",)))
    try:
        path = "/admin/v1/usage/me" if arguments.me else "/admin/v1/usage"
        answer = call(arguments, "GET", path, {name: getattr(arguments, name) for name in names})
    except CallFailed as error:
        return fail(error)
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return 0
    head = (arguments.period.upper(), "USER", "KEY", "MODEL", "REQUESTS", "FAILED", "CACHED", "PROMPT", "ANSWER", "MS")
    counts = ("requests", "failed_requests", "cached_requests", "prompt_tokens", "completion_tokens")
    shown = ("user_name", "key_name", "model", *counts, "mean_latency_ms")
    print(table(head, [(row["period_start"][:16], *(row[name] for name in shown)) for row in answer["data"]]))
    if answer["next"]:
        print(f"There is more: --cursor {answer['next']}")
    return 0
