"""Show and set how much a key, a user, a model or everyone may use.

A subject is `key/ID`, `user/NAME`, `model/NAME` or `everyone`. With --day or --month it is about a budget, else about
what holds in each minute and at once.
"""

from __future__ import annotations

import argparse
import re
from typing import Any
from urllib.parse import quote

from citadel_llm.cli.api import Api, add_options, show, table

__all__ = ["add_arguments"]

_LIMITS = {"requests": "requests_per_minute", "tokens": "tokens_per_minute", "at_once": "concurrent_requests"}
_BUDGET = {"requests": "max_requests", "tokens": "max_tokens"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_options(actions.add_parser("list", help="list all limits and budgets that are set"), _list)
    one = actions.add_parser("now", help="show what a subject uses at the moment, on the host that answers")
    _subject(one)
    add_options(one, _now)
    one = actions.add_parser("set", help="set a subject's limits, or its budget; what is not named has no bound")
    _subject(one)
    one.add_argument("--requests", type=_number, metavar="N", help="a minute, or in the budget's period")
    one.add_argument("--tokens", type=_number, metavar="N", help="a minute, or in the budget's period")
    one.add_argument("--at-once", type=_number, metavar="N", help="requests at once; not of a budget")
    _period(one)
    add_options(one, _set)
    one = actions.add_parser("delete", help="set no limits, or no budget, of its own for a subject")
    _subject(one)
    _period(one)
    add_options(one, _delete)


def _subject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", type=_path, help="key/ID, user/NAME, model/NAME or everyone")


def _period(parser: argparse.ArgumentParser) -> None:
    period = parser.add_mutually_exclusive_group()
    period.add_argument("--day", dest="period", action="store_const", const="day", help="the budget of a day")
    period.add_argument("--month", dest="period", action="store_const", const="month", help="the budget of a month")


def _path(text: str) -> str:
    scope, _, subject = text.partition("/")
    if text == "everyone":
        return "everyone/*"
    if scope not in {"key", "user", "model"} or not subject:
        raise argparse.ArgumentTypeError(f"expected key/ID, user/NAME, model/NAME or everyone, got {text}")
    return f"{scope}/{quote(subject)}"


def _number(text: str) -> int:
    found = re.fullmatch(r"(\d{1,12})([kKmM]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a number such as 60, 500k or 2M, got {text}")
    return int(found[1]) * {"": 1, "k": 1000, "m": 1_000_000}[found[2].lower()]


def _list(api: Api, arguments: argparse.Namespace) -> int:
    limits, budgets = list(api.pages("/limits")), list(api.pages("/budgets"))
    rows = [[one["scope"], one["subject"], "minute", *_cells(one, _LIMITS)] for one in limits]
    rows += [[one["scope"], one["subject"], one["period"], *_cells(one, _BUDGET), "-"] for one in budgets]
    head = ["SCOPE", "SUBJECT", "IN A", "REQUESTS", "TOKENS", "AT ONCE"]
    return show(arguments, {"limits": limits, "budgets": budgets}, table(head, sorted(rows)))


def _cells(found: dict[str, Any], names: dict[str, str]) -> list[str]:
    return ["-" if found[name] is None else str(found[name]) for name in names.values()]


def _now(api: Api, arguments: argparse.Namespace) -> int:
    found = api.call("GET", f"/limits/{arguments.subject}/now")
    rows = [
        [name.replace("_", " "), str(used), "-" if found["bounds"][name] is None else str(found["bounds"][name])]
        for name, used in found["used"].items()
    ]
    return show(arguments, found, table(["", "USED", "BOUND"], rows))


def _set(api: Api, arguments: argparse.Namespace) -> int:
    names = _BUDGET if arguments.period else _LIMITS
    body = {field: getattr(arguments, name) for name, field in names.items() if getattr(arguments, name) is not None}
    found = api.call("PUT", _place(arguments), body)
    return show(arguments, found, table([name.upper().replace("_", " ") for name in names], [_cells(found, names)]))


def _delete(api: Api, arguments: argparse.Namespace) -> int:
    found = api.call("DELETE", _place(arguments))
    return show(arguments, found, f"{found['scope']} {found['subject']}: none of its own any more")


def _place(arguments: argparse.Namespace) -> str:
    if arguments.period:
        return f"/budgets/{arguments.subject}/{arguments.period}"
    return f"/limits/{arguments.subject}"
