"""Check a configuration file: exit status 0 if it is good, else 1 and what is wrong where."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="check FILE", description=__doc__)
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    """Check the file."""
    from citadel_llm.utils.config import ConfigError, load_config  # noqa: PLC0415 — only this verb needs it

    try:
        config = load_config(arguments.file)
    except ConfigError as error:
        print(f"citadel: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.file}: good; models: {', '.join(config.models)}")
    return 0
