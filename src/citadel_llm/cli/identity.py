"""Bring the keys that the site declares into the database; the deployment does this.

Standard input holds `{"pepper": "…", "keys": [{"name": "…", "key": "…", "role": "admin"}]}`, so that no key is in a
command line or a file. A key that is declared no longer is revoked. Where no admin has a key afterwards, one is made
and written to --admin-key-file. What was done is told as JSON, by names.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("import", help="bring the declared keys into the database", description=__doc__)
    one.add_argument(
        "--stdin", action="store_true", required=True, help="they come by standard input, and no other way"
    )
    one.add_argument(
        "--credentials",
        metavar="FILE",
        default="/opt/citadel/config/secrets/database-gateway.json",
        help="where the database is and who asks (default: %(default)s)",
    )
    one.add_argument("--admin-key-file", type=Path, metavar="FILE", help="where a first admin's key is written, 0600")
    one.add_argument("--dry-run", action="store_true", help="only say what would be done")
    one.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    import asyncio  # noqa: PLC0415 — the other verbs must not wait for these imports

    import msgspec  # noqa: PLC0415

    from citadel_llm.integration.database.site_keys import Declared, bring_keys  # noqa: PLC0415
    from citadel_llm.integration.database.target import DatabaseError, load_target  # noqa: PLC0415
    from citadel_llm.utils.config import ConfigError  # noqa: PLC0415

    try:
        declared = msgspec.json.decode(sys.stdin.buffer.read(), type=Declared)
    except msgspec.ValidationError as error:  # it names the place and what was expected there, not what was found
        print(f"citadel: standard input: {error}", file=sys.stderr)
        return 1
    except ValueError:
        print("citadel: standard input: expected JSON", file=sys.stderr)
        return 1
    try:
        outcome = asyncio.run(
            bring_keys(
                load_target(arguments.credentials),
                declared,
                admin_key_file=arguments.admin_key_file,
                dry_run=arguments.dry_run,
            )
        )
    except (DatabaseError, ConfigError) as error:
        print(f"citadel: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"citadel: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(json.dumps(outcome.facts()))
    return 0
