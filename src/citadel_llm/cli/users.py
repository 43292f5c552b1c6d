"""List, make, change and disable users, give them roles and passwords."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from typing import Any
from urllib.parse import quote

from citadel_llm.cli.api import Api, ApiFailure, add_options, show, table, tell

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_options(actions.add_parser("list", help="list the users"), _list)
    one = actions.add_parser("show", help="show a user")
    one.add_argument("user")
    add_options(one, _show)
    one = actions.add_parser("add", help="make a user")
    one.add_argument("user", metavar="NAME")
    _facts(one)
    one.add_argument("--password", action="store_true", help="ask for a password, or read it from standard input")
    add_options(one, _add)
    one = actions.add_parser("change", help="change a user; what is not named stays")
    one.add_argument("user")
    _facts(one)
    add_options(one, _change)
    for action in ("disable", "enable"):
        one = actions.add_parser(action, help=f"{action} a user, with all of its keys")
        one.add_argument("user")
        add_options(one, _switch)
    one = actions.add_parser("password", help="set a user's password: asked for, or read from standard input")
    one.add_argument("user")
    one.add_argument("--remove", action="store_true", help="let no password open the account")
    add_options(one, _password)


def _facts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--role", action="append", metavar="ROLE", help="a role that it has; all of them are to be named"
    )
    parser.add_argument("--display-name")
    parser.add_argument("--email")


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {"roles": arguments.role, "display_name": arguments.display_name, "email": arguments.email}
    return {name: value for name, value in given.items() if value is not None}


def _list(api: Api, arguments: argparse.Namespace) -> int:
    found = list(api.pages("/users"))
    rows = [
        [user["name"], ", ".join(user["roles"]) or "-", "disabled" if user["disabled"] else "active", user["origin"]]
        for user in found
    ]
    return show(arguments, found, table(["NAME", "ROLES", "STATE", "ORIGIN"], rows))


def _told(arguments: argparse.Namespace, user: dict[str, Any]) -> int:
    names = ("name", "id", "display_name", "email", "roles", "has_password", "disabled", "origin", "created_at")
    return show(arguments, user, tell(user, *names))


def _show(api: Api, arguments: argparse.Namespace) -> int:
    return _told(arguments, api.call("GET", _path(arguments)))


def _add(api: Api, arguments: argparse.Namespace) -> int:
    body = {"name": arguments.user, **_given(arguments)}
    if arguments.password:
        body["password"] = _read()
    return _told(arguments, api.call("POST", "/users", body))


def _change(api: Api, arguments: argparse.Namespace) -> int:
    return _told(arguments, api.call("PATCH", _path(arguments), _given(arguments)))


def _switch(api: Api, arguments: argparse.Namespace) -> int:
    return _told(arguments, api.call("PATCH", _path(arguments), {"disabled": arguments.action == "disable"}))


def _password(api: Api, arguments: argparse.Namespace) -> int:
    api.call("PUT", _path(arguments) + "/password", {"password": None if arguments.remove else _read()})
    if arguments.json:
        print(json.dumps({"user": arguments.user, "has_password": not arguments.remove}))
    return 0


def _path(arguments: argparse.Namespace) -> str:
    return f"/users/{quote(arguments.user, safe='')}"


def _read() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("New password: ")
    if first != getpass.getpass("Again: "):
        raise ApiFailure("the two were not the same")
    return first
