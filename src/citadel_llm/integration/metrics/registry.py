"""The gateway's metrics.

Instances behind one socket share a directory (`PROMETHEUS_MULTIPROC_DIR`), and whichever
answers a scrape adds them all up. Files there are named after the instance, not the process,
so that restarts go on counting in the same files instead of leaving new ones behind.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from citadel_llm.integration.metrics.cache import CacheCounters

__all__ = ["Metrics"]

_PREFIX = "citadel_gateway"
_DURATION = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.8, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """All of them, with the children of a label set kept once they were used."""

    def __init__(self, instance: str, directory: str | None = None) -> None:
        """`directory` is shared with the other instances; None counts for this process alone."""
        self._instance = instance
        self._directory = directory
        if directory is not None:
            Path(directory).mkdir(parents=True, exist_ok=True)
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # where the library looks, on every use
            values.ValueClass = values.MultiProcessValue(process_identifier=lambda: instance)  # type: ignore[no-untyped-call]
            mark_process_dead(instance, directory)  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}_requests",
            "Answered requests; status 499 is a caller that hung up",
            ["route", "model", "status"],
            registry=registry,
        )
        self._duration = Histogram(
            f"{_PREFIX}_request_duration_seconds",
            "From the request's headers to the last byte of the answer",
            ["route", "model"],
            buckets=_DURATION,
            registry=registry,
        )
        self._first = Histogram(
            f"{_PREFIX}_time_to_first_token_seconds",
            "From the request's headers to the first byte of a stream's body",
            ["model"],
            buckets=_FIRST,
            registry=registry,
        )
        self._tokens = Counter(
            f"{_PREFIX}_tokens", "Tokens that the engines reported", ["model", "kind"], registry=registry
        )
        self._retries = Counter(
            f"{_PREFIX}_retries", "Requests sent a second time before any answer", ["model"], registry=registry
        )
        self.in_flight = Gauge(
            f"{_PREFIX}_in_flight",
            "Requests at the engines",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queued = Gauge(
            f"{_PREFIX}_queued",
            "Requests that wait for a place at a model",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.engine_up = Gauge(
            f"{_PREFIX}_engine_up",
            "1 where new requests may be sent to the engine; the least that any instance says",
            ["model", "engine"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.cache = CacheCounters(registry)
        self._answers: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._firsts: dict[str, Histogram] = {}
        self._token_pairs: dict[str, tuple[Counter, Counter]] = {}

    def answered(self, route: str, model: str, status: int, duration_s: float) -> None:
        """Count an answer. `route` and `model` are names of ours, never text of a caller."""
        key = (route, model, status)
        children = self._answers.get(key)
        if children is None:
            children = self._answers[key] = (
                self._requests.labels(route, model, str(status)),
                self._duration.labels(route, model),
            )
        children[0].inc()
        children[1].observe(duration_s)

    def first_token(self, model: str, seconds: float) -> None:
        """Note the time to the first piece of a stream."""
        child = self._firsts.get(model)
        if child is None:
            child = self._firsts[model] = self._first.labels(model)
        child.observe(seconds)

    def tokens(self, model: str, prompt: int, completion: int) -> None:
        """Add what an engine reported as used."""
        pair = self._token_pairs.get(model)
        if pair is None:
            pair = self._token_pairs[model] = (
                self._tokens.labels(model, "prompt"),
                self._tokens.labels(model, "completion"),
            )
        pair[0].inc(prompt)
        pair[1].inc(completion)

    def retried(self, model: str) -> None:
        """Count a second attempt."""
        self._retries.labels(model).inc()

    def exposition(self) -> tuple[bytes, str]:
        """The text for a scrape and its content type. Reads files: not for the event loop's thread."""
        registry = self._registry
        if self._directory is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, self._directory)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def close(self) -> None:
        """Withdraw this instance's gauges; what it counted stays."""
        if self._directory is not None:
            mark_process_dead(self._instance, self._directory)  # type: ignore[no-untyped-call]
