"""What is put into vector stores, as Prometheus metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["FileCounters"]

_PREFIX = "citadel_gateway_files"
_OUTCOMES = ("completed", "failed", "removed", "paused", "lost", "interrupted", "error")


class FileCounters:
    """Files and the work on them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._worked = Counter(
            f"{_PREFIX}_ingestions",
            "Work on files in stores: completed, failed, removed, paused, lost, interrupted, error",
            ["outcome"],
            registry=registry,
        )
        for outcome in _OUTCOMES:
            self._worked.labels(outcome)
        self._chunks = Counter(f"{_PREFIX}_chunks", "Chunks that were put into stores", registry=registry)
        self._embedding = Histogram(
            f"{_PREFIX}_embedding_seconds",
            "How long the embedding model took for some chunks",
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60),
            registry=registry,
        )
        self._uploaded = Counter(f"{_PREFIX}_uploaded_bytes", "Bytes of files that were uploaded", registry=registry)
        self._searches = Counter(f"{_PREFIX}_searches", "Searches of stores", ["by"], registry=registry)
        self.waiting = Gauge(
            f"{_PREFIX}_waiting",
            "Files that are to be put in or taken out, as an instance last looked",
            registry=registry,
            multiprocess_mode="livemax",
        )

    def worked(self, outcome: str) -> None:
        """Work on a file ended so."""
        self._worked.labels(outcome).inc()

    def chunks(self, count: int) -> None:
        """So many were written."""
        self._chunks.inc(count)

    def uploaded(self, size_bytes: int) -> None:
        """A file was taken in."""
        self._uploaded.inc(size_bytes)

    def searched(self, by: str) -> None:
        """A store was searched, `by` an endpoint of ours."""
        self._searches.labels(by).inc()

    @contextlib.contextmanager
    def embedding(self) -> Iterator[None]:
        """Time it."""
        began = perf_counter()
        try:
            yield
        finally:
            self._embedding.observe(perf_counter() - began)
