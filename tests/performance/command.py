"""The command line of `make bench`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from performance import database, interpreter, machine
from performance.measure import CONNECTIONS, Bench, Plan, rounds
from performance.overload import overload
from performance.procs import NotStarted, pick_cores, siblings_of
from performance.report import as_list, between_markers, markdown
from performance.soak import soak
from performance.subjects import DATABASE, NAMES, REPO, UNCOUNTED, install, version
from performance.targets import Target, missed, targets

__all__ = ["main"]

HERE = Path(__file__).parent
BUILD = REPO / "build" / "bench"


def say(text: str) -> None:
    """Progress, at once."""
    print(f"bench: {text}", flush=True)


def arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bin/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, about two minutes")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: 3, with --quick 1)")
    parser.add_argument("--only", default="", help="names, with commas; `direct` and `citadel` are always measured")
    parser.add_argument(
        "--without",
        choices=["metrics"],
        help="our gateway a second time, side by side, counting nothing: what do metrics cost?",
    )
    parser.add_argument(
        "--soak", type=int, metavar="N", help="requests of the soak (default: 50000, --quick 5000); 0: none"
    )
    parser.add_argument("--overload", action=argparse.BooleanOptionalAction, default=True, help="the overload part")
    parser.add_argument(
        "--database",
        action="store_true",
        help="our gateway with one, as on a host: keys read there, the audit log carried there; in bin/lab run",
    )
    parser.add_argument("--alone", action="store_true", help="only what --soak and --overload ask for, no peers")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/bench.md too")
    parser.add_argument(
        "--interpreter",
        choices=["host", "own"],
        help="a host's Python, inside the lab's image, or .venv's (default: this one if it is the distribution's)",
    )
    parser.add_argument("--python-tools", action="store_true", help="the engine and load generator in Python, not C")
    found = parser.parse_args(words)
    unknown = set(filter(None, found.only.split(","))) - set(NAMES)
    if unknown:
        parser.error(f"--only: expected some of {', '.join(NAMES)}, got {', '.join(sorted(unknown))}")
    return found


def _tools(*, python: bool) -> tuple[dict[str, list[str]], str]:
    """The commands of the engine and the load generator, and what they are made of: C if it can be compiled."""
    names = ("engine", "load")
    problem = None if python else next(filter(None, (machine.build(HERE / f"{n}.c", BUILD / n) for n in names)), None)
    if python or problem:
        if problem:
            say(f"using the slower tools in Python: {problem} (apt-get install gcc libc6-dev)")
        return {n: [sys.executable, str(HERE / f"fallback_{n}.py")] for n in names}, "Python, uvloop"
    return {n: [str(BUILD / n)] for n in names}, "C, epoll"


def _set_up(options: argparse.Namespace, words: list[str]) -> tuple[Bench, str]:
    """What measures, and what it is made of; goes on inside the image where that is wanted. Raises NotStarted."""
    if options.database and DATABASE not in os.environ:
        database.prepare(BUILD / "database", BUILD / "run" / "citadel" / "audit")
    tools, kind = _tools(python=options.python_tools)
    wanted = options.interpreter or ("own" if interpreter.distributions() else "host")
    if wanted == "host" and not interpreter.inside():
        say("going on inside the image of the lab's LLM server, for the Python of a host")
        reason = interpreter.enter(words)
        if options.interpreter:
            raise NotStarted(reason)
        say(f"going on with the slower Python of .venv: {reason}")
    cores = pick_cores(os.sched_getaffinity(0), siblings_of)
    return Bench(tools["engine"], tools["load"], cores, BUILD / "run"), kind


def main(words: list[str]) -> int:
    """Measure and write. 1 where our gateway missed a target or could not be measured, 2 for a wrong call."""
    options = arguments(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended, too
    began = time.monotonic()
    plan = Plan(1, 0.5, 1.5, 1.5, 1.0) if options.quick else Plan()
    if options.rounds:
        plan = Plan(options.rounds, plan.warm_s, plan.load_s, plan.stream_s, plan.first_s)
    requests = options.soak if options.soak is not None else 5_000 if options.quick else 50_000
    try:
        bench, kind = _set_up(options, words)
        soaked = soak(bench, requests, say) if requests else None
        overloaded = overload(bench, 3 if options.quick else 8, say) if options.overload else None
    except NotStarted as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 1
    for name, part in (("soak", soaked), ("overload", overloaded)):
        if part is not None:
            (BUILD / f"{name}.json").write_text(json.dumps(part.as_dict(), indent=1) + "\n")
    if options.alone:
        return _judged(targets({}, soaked, overloaded))

    chosen = set(filter(None, options.only.split(","))) or set(NAMES) - {UNCOUNTED}
    if options.without == "metrics":
        chosen.add(UNCOUNTED)
    names = [name for name in NAMES if name in chosen | {"direct", "citadel"}]
    absent: dict[str, str] = {}
    for name in names:
        try:
            install(name)
        except NotStarted as failure:
            absent[name] = str(failure)
            say(f"{name}: {failure}")
    versions = {name: version(name) for name in names if name not in absent}
    turns = rounds(bench, names, absent, plan, say)
    (BUILD / "gateway.json").write_text(json.dumps(as_list(turns, versions), indent=1) + "\n")
    carried = ""
    if options.database:
        carried = f" that is carried to PostgreSQL on the same cores meanwhile ({database.audited():,} rows at the end)"
    notes = [
        f"Machine: {machine.describe()} ({interpreter.words()}).",
        f"The subject alone on one core, the engine and the load generator (both {kind}) on another.",
        f"A request of 200 bytes, an answer of 618; closed loop at {', '.join(map(str, CONNECTIONS))} connections, "
        f"{plan.load_s:g} s each; streams of 100 chunks, 2 ms apart.",
        f"Ours with keys, limits, an audit journal on the disk{carried}, metrics in files, and its JSON log to "
        "/dev/null; LiteLLM with a master key; the routers without keys and with `--log-level error`.",
        f"Load when the run began, over one minute: {machine.LOAD_AT_START:.1f}; the run took "
        f"{(time.monotonic() - began) / 60:.1f} minutes.",
    ]
    reached = targets(turns, soaked, overloaded, shared=options.database)
    text = markdown(turns, versions, notes, soaked, overloaded, reached)
    (BUILD / "gateway.md").write_text(text + "\n")
    print(text)
    if options.write:
        between_markers(REPO / "docs" / "bench.md", text)
    say(f"written: build/bench/gateway.json, gateway.md{', docs/bench.md' if options.write else ''}")
    return _judged(reached)


def _judged(reached: Sequence[Target]) -> int:
    failures = missed(reached)
    for target in failures:
        print(f"bench: target missed: {target.what}: {target.found}, {target.bound}", file=sys.stderr)
    if unmeasured := [target.what for target in reached if target.kind == "must" and target.met is None]:
        print(f"bench: not measured: {', '.join(unmeasured)}", file=sys.stderr)
    return 1 if failures or unmeasured else 0
