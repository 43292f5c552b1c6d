"""Ask models a set of multiple-choice questions, and tell how many they answer rightly.

Each generating model of the configuration is asked, at its engine on this host where it has one, one request at a time.
With --to the results are kept in that folder, also for node exporter's textfile collector; a model that could not be
evaluated keeps its result from before. Exit status 1 where there was such a model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from citadel_llm.evaluation.results import Result
    from citadel_llm.utils.config import Config, Upstream

__all__ = ["add_arguments"]

_QUESTIONS = "/opt/citadel/config/evals/knowledge.json"
_HERE = ("127.0.0.1", "::1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="these alone (default: all that generate)")
    parser.add_argument(
        "--config",
        type=Path,
        default=os.environ.get("CITADEL_CONFIG", "/opt/citadel/config/citadel.yaml"),
        help="the configuration file (default: $CITADEL_CONFIG, else %(default)s)",
    )
    parser.add_argument("--questions", type=Path, default=_QUESTIONS, metavar="FILE", help="(default: %(default)s)")
    parser.add_argument(
        "--score",
        choices=("length", "sum"),
        default="length",
        help="a choice's log-likelihood, divided by its length in bytes or as it is (default: %(default)s)",
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="keep the results there")
    parser.add_argument(
        "--patience-s",
        type=float,
        default=600.0,
        metavar="S",
        help="how long to give way to others, a model (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and tell."""
    from citadel_llm.evaluation.questions import QuestionError  # noqa: PLC0415 — as all below: this verb's alone
    from citadel_llm.evaluation.results import Busy, alone  # noqa: PLC0415
    from citadel_llm.utils.config import ConfigError  # noqa: PLC0415

    try:
        if arguments.to is None:
            return _run(arguments)
        with alone(arguments.to):
            return _run(arguments)
    except (ConfigError, QuestionError) as error:
        print(f"citadel: {error}", file=sys.stderr)
    except Busy:
        print(f"citadel: another evaluation into {arguments.to} is under way", file=sys.stderr)
    except BrokenPipeError:
        raise  # of the output's reader: `main` knows
    except OSError as error:
        print(f"citadel: {arguments.to}: {error.strerror}", file=sys.stderr)
    return 1


def _run(arguments: argparse.Namespace) -> int:
    from citadel_llm.evaluation.evaluation import evaluate  # noqa: PLC0415
    from citadel_llm.evaluation.questions import load_questions  # noqa: PLC0415
    from citadel_llm.evaluation.results import load_results, store_results  # noqa: PLC0415
    from citadel_llm.utils.config import load_config  # noqa: PLC0415

    config = load_config(arguments.config)
    questions = load_questions(arguments.questions)
    names = arguments.models or [name for name, model in config.models.items() if model.kind == "generate"]
    before = {} if arguments.to is None else load_results(arguments.to)
    results = {name: before[name] for name in config.models if name in before}
    failed = False
    for name in names:
        upstream = _upstream(config, name)
        marker = upstream.draining_marker
        if marker is not None and os.path.exists(marker):
            print(f"citadel: {name}: its engine drains, and is left alone", file=sys.stderr)
            continue
        results[name] = evaluate(
            upstream.url, name, questions, before.get(name), score=arguments.score, patience_s=arguments.patience_s
        )
        if results[name].error is not None:
            failed = True
            print(f"citadel: {name}: {results[name].error}", file=sys.stderr)
        if arguments.to is not None:
            store_results(arguments.to, results)
    shown = {name: results[name] for name in names if name in results}
    print(json.dumps({name: _facts(one) for name, one in shown.items()}, indent=2) if arguments.json else _table(shown))
    return 1 if failed else 0


def _upstream(config: Config, name: str) -> Upstream:
    """The engine to ask: the one on this host, else the first. Raises ConfigError."""
    from citadel_llm.utils.config import ConfigError  # noqa: PLC0415

    model = config.models.get(name)
    if model is None or model.kind != "generate":
        able = ", ".join(other for other, found in config.models.items() if found.kind == "generate")
        raise ConfigError(f"{name}: no model that generates; there are: {able}")
    return next((one for one in model.upstreams if one.host in _HERE), model.upstreams[0])


def _facts(result: Result) -> dict[str, Any]:
    return {
        "accuracy": None if result.at is None else round(result.accuracy, 4),
        "correct": result.correct,
        "questions": result.questions,
        "subjects": {name: {"correct": good, "questions": every} for name, (good, every) in result.subjects.items()},
        "evaluated_at": None if result.at is None else int(result.at),
        "seconds": round(result.seconds, 1),
        "failures": result.failures,
        "error": result.error,
    }


def _table(results: dict[str, Result]) -> str:
    from citadel_llm.cli.api import table, when  # noqa: PLC0415

    rows = []
    for name, one in results.items():
        seen = one.at is not None
        by_subject = ", ".join(f"{subject} {good}/{every}" for subject, (good, every) in one.subjects.items())
        rows.append(
            [
                name,
                f"{one.accuracy:.1%}" if seen else "-",
                f"{one.correct}/{one.questions}" if seen else "-",
                when(None if one.at is None else int(one.at)),
                by_subject or "-",
            ]
        )
    return table(("MODEL", "ACCURACY", "RIGHT", "EVALUATED", "BY SUBJECT"), rows)
