"""What evaluations came to: a file of results, and the same for node exporter's textfile collector.

Each file is replaced as a whole. A model that could not be evaluated keeps the result from before, whose age shows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

__all__ = ["Busy", "Result", "alone", "exposition", "load_results", "store_results"]

_RESULTS, _METRICS, _LOCK = "evaluation.json", "evaluation.prom", ".evaluation.lock"


class Busy(Exception):
    """Another evaluation is under way."""


class Result(msgspec.Struct, kw_only=True):
    """Of one model. `at` is in seconds of the epoch, None where it was never evaluated."""

    at: float | None = None
    correct: int = 0
    questions: int = 0
    subjects: dict[str, tuple[int, int]] = {}  # correct ones, and all
    seconds: float = 0.0  # how long it took
    digest: str = ""  # of the set of questions
    failures: int = 0  # evaluations that came to nothing, since the file was made
    error: str | None = None  # why the last one did

    @property
    def accuracy(self) -> float:
        """The part of the questions that was answered rightly, 0 to 1."""
        return self.correct / self.questions if self.questions else 0.0


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else evaluates into this folder meanwhile. Raises Busy, OSError."""
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None
        yield


def load_results(folder: Path) -> dict[str, Result]:
    """The results there; none where the file is missing, or is not one of ours. Raises OSError."""
    try:
        return msgspec.json.decode((folder / _RESULTS).read_bytes(), type=dict[str, Result])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def store_results(folder: Path, results: Mapping[str, Result]) -> None:
    """Put both files into their place. Raises OSError."""
    _replace(folder / _RESULTS, msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    _replace(folder / _METRICS, exposition(results))


def _replace(path: Path, text: bytes) -> None:
    # node exporter reads what ends in .prom: the file in the making does not.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def exposition(results: Mapping[str, Result]) -> bytes:
    """The results as Prometheus reads them."""
    registry = CollectorRegistry()
    by_model, by_subject = ["model"], ["model", "subject"]
    prefix = "citadel_evaluation"
    accuracy = Gauge(
        f"{prefix}_accuracy_ratio", "Part of the questions that the model answered rightly", by_model, registry=registry
    )
    subject = Gauge(f"{prefix}_subject_accuracy_ratio", "The same by subject", by_subject, registry=registry)
    at = Gauge(f"{prefix}_timestamp_seconds", "When the model was last evaluated", by_model, registry=registry)
    questions = Gauge(f"{prefix}_questions", "Questions that it answered then", by_model, registry=registry)
    seconds = Gauge(f"{prefix}_duration_seconds", "How long that took", by_model, registry=registry)
    failures = Counter(f"{prefix}_failures", "Evaluations that came to nothing", by_model, registry=registry)
    failed = Gauge(f"{prefix}_failed", "1 where the last evaluation came to nothing", by_model, registry=registry)
    for model, result in results.items():
        failures.labels(model).inc(result.failures)
        failed.labels(model).set(int(result.error is not None))
        if result.at is None:
            continue
        accuracy.labels(model).set(result.accuracy)
        at.labels(model).set(result.at)
        questions.labels(model).set(result.questions)
        seconds.labels(model).set(result.seconds)
        for name, (correct, every) in result.subjects.items():
            subject.labels(model, name).set(correct / every)
    return generate_latest(registry)
