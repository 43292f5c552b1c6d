"""List models with their replicas; take a model, or one replica of it, out of service and put it back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from citadel_llm.cli.api import Api, add_options, show, table

__all__ = ["add_arguments"]

_HEAD = ["MODEL", "STATE", "REPLICA", "ITS STATE", "DRAINED", "IN FLIGHT HERE", ""]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("list", help="list models and their replicas, as the instance that answers sees them")
    add_options(one, _list)
    for action, method, told in (
        ("drain", "PUT", "take out of service: what runs there ends in order, nothing new comes"),
        ("undrain", "DELETE", "put back into service"),
    ):
        one = actions.add_parser(action, help=told)
        one.add_argument("model", metavar="MODEL")
        one.add_argument("--replica", metavar="ADDRESS", help="this one alone, as `list` has it (default: all)")
        one.set_defaults(method=method)
        add_options(one, _change)


def _rows(name: str, model: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            model["state"],
            replica["address"],
            replica["state"],
            "yes" if replica["drained"] else "no",
            str(replica["in_flight"]),
            replica["last_error"] or "",
        ]
        for replica in model["replicas"]
    ]


def _list(api: Api, arguments: argparse.Namespace) -> int:
    found = api.call("GET", "/status")["models"]
    return show(arguments, found, table(_HEAD, [row for model in found for row in _rows(model["id"], model)]))


def _change(api: Api, arguments: argparse.Namespace) -> int:
    path = f"/drain/{quote(arguments.model, safe='')}"
    found = api.call(arguments.method, path, replica=arguments.replica)
    return show(arguments, found, table(_HEAD, _rows(found["model"], found)))
