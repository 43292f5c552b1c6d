"""The `citadel` command. Each verb is a module here; it is loaded only when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from citadel_llm import __version__

__all__ = ["main"]

DEFAULT_CONFIG = "/opt/citadel/config/citadel.yaml"

_VERBS = {
    "audit": "show what was done, by whom; verify that no row of it was changed",
    "config": "check a configuration file",
    "console": "serve the console's page on a host of its own",
    "database": "bring the database's schema forward or back, check it",
    "evaluate": "ask models questions, and tell how many they answer rightly",
    "gateway": "run one gateway instance",
    "identity": "bring the keys that the site declares into the database",
    "keys": "list, make, rotate and revoke keys",
    "limits": "show and set how much keys, users, models and everyone may use",
    "models": "list models and replicas, take them out of service and put them back",
    "roles": "list, make, change and delete roles",
    "status": "show what the gateway says of every model",
    "usage": "show how much was used",
    "users": "list, make, change and disable users",
    "vector": "see and search vector stores; re-embed, back up and bring back collections",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; the result is the exit status: 0 good, 1 bad, 2 called wrongly."""
    parser = argparse.ArgumentParser(prog="citadel", description="The Citadel LLM server.")
    parser.add_argument("--version", action="version", version=f"citadel {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, help_text in _VERBS.items():
        module = importlib.import_module(f"citadel_llm.cli.{verb}")
        module.add_arguments(verbs.add_parser(verb, help=help_text, description=module.__doc__))
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return status
