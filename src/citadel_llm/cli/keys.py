"""List, make, rotate and revoke keys. A new key is printed once, alone, to standard output."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any
from urllib.parse import quote

from citadel_llm.cli.api import Api, add_options, duration, show, table, tell, when

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("list", help="list keys, the newest first")
    one.add_argument("--user", help="whose; everybody's where none is named, as far as one may see them")
    one.add_argument("--all", action="store_true", help="also those that are expired or revoked")
    add_options(one, _list)
    one = actions.add_parser("show", help="show what a key may do")
    one.add_argument("key", metavar="ID")
    add_options(one, _show)
    one = actions.add_parser("add", help="make a key")
    one.add_argument("name", metavar="NAME", help="what it is for")
    one.add_argument("--user", help="whose; one's own where none is named")
    one.add_argument("--expires", type=duration, metavar="TIME", help="it ends after so long, as 12h or 30d")
    one.add_argument("--model", action="append", metavar="MODEL", help="only for this model, and others that are named")
    one.add_argument("--permission", action="append", metavar="PERMISSION", help="only this, and others that are named")
    add_options(one, _add)
    one = actions.add_parser("rotate", help="put another key in a key's place")
    one.add_argument("key", metavar="ID")
    one.add_argument("--overlap", type=duration, metavar="TIME", help="the old one works for so long (default: 1h)")
    one.add_argument(
        "--expires", type=duration, metavar="TIME", help="when the new one ends (default: when the old one would)"
    )
    add_options(one, _rotate)
    one = actions.add_parser("revoke", help="end a key, everywhere and at once")
    one.add_argument("key", metavar="ID")
    add_options(one, _revoke)


def _list(api: Api, arguments: argparse.Namespace) -> int:
    found = [key for key in api.pages("/keys", user=arguments.user) if arguments.all or key["state"] == "active"]
    rows = [
        [key["id"], key["user"], key["name"], key["prefix"] + "…", key["state"], when(key["expires_at"])]
        for key in found
    ]
    return show(arguments, found, table(["ID", "USER", "NAME", "BEGINS", "STATE", "ENDS"], rows))


def _told(arguments: argparse.Namespace, key: dict[str, Any]) -> int:
    names = ("id", "user", "name", "prefix", "state", "models", "permissions", "created_at", "expires_at", "revoked_at")
    return show(arguments, key, tell(key, *names, "replaced_by", "origin"))


def _new(arguments: argparse.Namespace, key: dict[str, Any]) -> int:
    if arguments.json:
        print(json.dumps(key, indent=2))
        return 0
    print(f"{key['id']}, of {key['user']}, until {when(key['expires_at'])}; it is shown this once:", file=sys.stderr)
    print(key["key"])
    return 0


def _show(api: Api, arguments: argparse.Namespace) -> int:
    return _told(arguments, api.call("GET", f"/keys/{quote(arguments.key, safe='')}"))


def _add(api: Api, arguments: argparse.Namespace) -> int:
    body = {
        "name": arguments.name,
        "user": arguments.user,
        "expires_in_s": arguments.expires,
        "models": arguments.model,
        "permissions": arguments.permission,
    }
    return _new(arguments, api.call("POST", "/keys", body))


def _rotate(api: Api, arguments: argparse.Namespace) -> int:
    given = {"overlap_s": arguments.overlap, "expires_in_s": arguments.expires}
    body = {name: value for name, value in given.items() if value is not None}
    return _new(arguments, api.call("POST", f"/keys/{quote(arguments.key, safe='')}/rotate", body))


def _revoke(api: Api, arguments: argparse.Namespace) -> int:
    return _told(arguments, api.call("POST", f"/keys/{quote(arguments.key, safe='')}/revoke"))
