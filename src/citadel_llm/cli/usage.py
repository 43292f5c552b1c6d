"""How much was used, by user, key and model, and what it cost; --me for the own key's user alone."""

from __future__ import annotations

import argparse
import json
import sys

from citadel_llm.cli.api import Api, add_options, table

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
    parser.add_argument("--cost", action="store_true", help="what it cost too, and the sum of what is shown")
    parser.add_argument("--cursor", help="`next` of an earlier answer")
    add_options(parser, run)


def run(api: Api, arguments: argparse.Namespace) -> int:
    """Ask and print."""
    names = ("period", "model", "since", "until", "limit", "cursor", *(() if arguments.me else ("user",)))
    answer = api.call(
        "GET", "/usage/me" if arguments.me else "/usage", **{name: getattr(arguments, name) for name in names}
    )
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return 0
    currency: str | None = answer["currency"]
    if arguments.cost and currency is None:
        print("citadel: this site gives no costs: see `gateway_cost` in docs/business.md", file=sys.stderr)
        return 1
    head = [arguments.period.upper(), "USER", "KEY", "MODEL", "REQUESTS", "FAILED", "CACHED", "PROMPT", "ANSWER", "MS"]
    counts = ("requests", "failed_requests", "cached_requests", "prompt_tokens", "completion_tokens")
    shown = ("user_name", "key_name", "model", *counts, "mean_latency_ms")
    rows = [[row["period_start"][:16], *(row[name] for name in shown)] for row in answer["data"]]
    if arguments.cost:
        head.append(f"COST {currency}")
        for row, shown_row in zip(answer["data"], rows, strict=True):
            shown_row.append(f"{row['cost']:.6f}")
    print(table(head, [["-" if cell is None else str(cell) for cell in row] for row in rows]))
    if arguments.cost:
        print(f"Together {sum(row['cost'] for row in answer['data']):.6f} {currency}")
    if answer["next"]:
        print(f"There is more: --cursor {answer['next']}")
    return 0
