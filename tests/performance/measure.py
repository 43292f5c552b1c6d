"""One turn of one subject, and the interleaved rounds of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from performance.load import Load, Outcome
from performance.procs import Cores, NotStarted, Process, free_port
from performance.subjects import Launch, launch

__all__ = ["CONNECTIONS", "Bench", "Plan", "Point", "Turn", "rounds"]

CONNECTIONS = (1, 16, 64)
STREAMS = 16  # streams at once where the cost of a chunk is measured
LONG, SHORT = 100, 8  # events of a stream: for the cost of a chunk, and for the time to the first token
FIRST_US, GAP_US = 5_000, 2_000


@dataclass(frozen=True)
class Plan:
    """How long everything takes, in seconds."""

    rounds: int = 3
    warm_s: float = 1.0
    load_s: float = 3.0
    stream_s: float = 3.0
    first_s: float = 2.0


@dataclass(frozen=True)
class Point:
    """One load at a number of connections."""

    outcome: Outcome
    cpu_us: float | None  # of the subject, for a request; None where there is no subject in between
    core_share: float | None  # how much of its core the subject had; well below 1 under load, others used it too


@dataclass
class Turn:
    """What one subject did in one round."""

    points: dict[int, Point] = field(default_factory=dict)
    stream: Outcome | None = None
    cpu_us_per_chunk: float | None = None
    first: Outcome | None = None
    first_quickack: Outcome | None = None
    rss_mb: float | None = None
    start_s: float | None = None
    reason: str = ""  # why it was not measured
    command: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """What all parts of a run share."""

    engine_command: list[str]
    load_command: list[str]
    cores: Cores
    folder: Path

    @contextmanager
    def engine(self, **options: int) -> Iterator[tuple[Process, int]]:
        """A scripted engine and its port; options are its own, with `_` for `-`."""
        port = free_port()
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        command = [*self.engine_command, "--port", str(port), *words]
        process = Process(command, self.cores.others, self.folder / "engine.log", {})
        try:
            process.ready(f"http://127.0.0.1:{port}/health", 10)
            yield process, port
        finally:
            process.stop()

    @contextmanager
    def subject(self, name: str, engine_port: int, **limits: int) -> Iterator[tuple[Process, int, Launch]]:
        """A subject that is ready, and its port. Raises NotStarted."""
        folder, port = self.folder / name, free_port()
        how = launch(name, folder, port, f"http://127.0.0.1:{engine_port}", **limits)
        process = Process(how.command, self.cores.subject, folder / "log", how.environment, how.silent)
        try:
            process.ready(f"http://127.0.0.1:{port}{how.ready_path}", how.limit_s)
            yield process, port, how
        finally:
            process.stop()

    def load(self, port: int, *, key: str | None, events: int = SHORT) -> Load:
        """A load generator against `port`."""
        return Load(self.load_command, self.cores.others, port, self.folder / "requests", key=key, events=events)


def turn(bench: Bench, name: str, engine_port: int, plan: Plan) -> Turn:
    """Start the subject, load it in all ways, end it."""
    result = Turn()
    if name == "direct":
        _measure(bench, result, None, engine_port, None, plan)
        return result
    began = time.monotonic()
    try:
        with bench.subject(name, engine_port) as (process, port, how):
            result.start_s = time.monotonic() - began
            result.command = process.command
            _measure(bench, result, process, port, how.key, plan)
    except NotStarted as failure:
        result.reason = str(failure)
    return result


def _measure(bench: Bench, result: Turn, process: Process | None, port: int, key: str | None, plan: Plan) -> None:
    long, short = (bench.load(port, key=key, events=events) for events in (LONG, SHORT))
    warm = short.run(16, plan.warm_s, stream_every=10)
    if not warm.answered:
        raise NotStarted(f"it is up but answers no request: {warm.failures}")
    for connections in CONNECTIONS:
        outcome, cpu_us, share = _costed(process, partial(short.run, connections, plan.load_s), _requests)
        result.points[connections] = Point(outcome, cpu_us, share)
    result.stream, result.cpu_us_per_chunk, _ = _costed(
        process, partial(long.run, STREAMS, plan.stream_s, stream_every=1), lambda outcome: outcome.events
    )
    result.first = short.run(1, plan.first_s, stream_every=1)
    result.first_quickack = short.run(1, plan.first_s, stream_every=1, quickack=1)
    if process is not None:
        result.rss_mb = process.rss_mb()
        if not process.alive:
            raise NotStarted("it ended in the middle of the measurement")


def _requests(outcome: Outcome) -> int:
    return outcome.answered + outcome.failed


def _costed(
    process: Process | None, work: Callable[[], Outcome], count: Callable[[Outcome], int]
) -> tuple[Outcome, float | None, float | None]:
    """The outcome, the subject's CPU for each unit in microseconds, and its share of the core meanwhile."""
    if process is None:
        return work(), None, None
    before = process.cpu_s()
    outcome = work()
    spent = process.cpu_s() - before
    units = count(outcome)
    return outcome, spent / units * 1e6 if units else None, spent / outcome.took_s if outcome.took_s else None


def rounds(
    bench: Bench, names: list[str], absent: dict[str, str], plan: Plan, say: Callable[[str], None]
) -> dict[str, list[Turn]]:
    """All rounds, A B C A B C. `absent` says why some subjects are not there."""
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    with bench.engine(first_us=FIRST_US, gap_us=GAP_US) as (_, engine_port):
        for number in range(1, plan.rounds + 1):
            for name in names:
                if name in absent:
                    turns[name].append(Turn(reason=absent[name]))
                    continue
                result = turn(bench, name, engine_port, plan)
                turns[name].append(result)
                if result.reason:
                    say(f"round {number}: {name}: not measured: {result.reason}")
                    absent[name] = result.reason
                else:
                    rates = ", ".join(f"{p.outcome.requests_per_s:,.0f}" for p in result.points.values())
                    say(f"round {number}: {name}: {rates} req/s at {', '.join(map(str, CONNECTIONS))} connections")
    return turns
