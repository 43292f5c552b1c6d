"""List, make, change and delete roles. What a role does not permit is denied."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import quote

from citadel_llm.cli.api import Api, add_options, show, table

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_options(actions.add_parser("list", help="list the roles"), _list)
    one = actions.add_parser("show", help="show what a role permits")
    one.add_argument("role")
    add_options(one, _show)
    one = actions.add_parser("add", help="make a role")
    one.add_argument("role", metavar="NAME")
    one.add_argument("--description", default="")
    _grants(one)
    add_options(one, _add)
    one = actions.add_parser("set", help="set what a role permits: this, and nothing else")
    one.add_argument("role")
    _grants(one)
    add_options(one, _set)
    one = actions.add_parser("delete", help="delete a role that nobody has")
    one.add_argument("role")
    add_options(one, _delete)


def _grants(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grant",
        action="append",
        default=[],
        metavar="PERMISSION[:MODEL]",
        help="a permission, `inference` and `embeddings` also for one model alone; may be given more than once",
    )


def _given(arguments: argparse.Namespace) -> list[dict[str, str]]:
    parts = [text.partition(":") for text in arguments.grant]
    return [{"permission": permission, "model": model or "*"} for permission, _, model in parts]


def _list(api: Api, arguments: argparse.Namespace) -> int:
    found = list(api.pages("/roles"))
    rows = [
        [role["name"], "built in" if role["built_in"] else "own", str(role["users"]), role["description"] or "-"]
        for role in found
    ]
    return show(arguments, found, table(["NAME", "KIND", "USERS", "DESCRIPTION"], rows))


def _told(arguments: argparse.Namespace, role: dict[str, Any]) -> int:
    rows = [[grant["permission"], grant["model"]] for grant in role["grants"]]
    return show(arguments, role, table(["PERMISSION", "MODEL"], rows))


def _show(api: Api, arguments: argparse.Namespace) -> int:
    return _told(arguments, api.call("GET", _path(arguments)))


def _add(api: Api, arguments: argparse.Namespace) -> int:
    body = {"name": arguments.role, "description": arguments.description, "grants": _given(arguments)}
    return _told(arguments, api.call("POST", "/roles", body))


def _set(api: Api, arguments: argparse.Namespace) -> int:
    return _told(arguments, api.call("PUT", _path(arguments) + "/grants", {"grants": _given(arguments)}))


def _delete(api: Api, arguments: argparse.Namespace) -> int:
    api.call("DELETE", _path(arguments))
    if arguments.json:
        print(json.dumps({"role": arguments.role, "deleted": True}))
    return 0


def _path(arguments: argparse.Namespace) -> str:
    return f"/roles/{quote(arguments.role, safe='')}"
