"""What the cache counts, as Prometheus metrics."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from citadel_llm.integration.cache.metrics import Outcome

__all__ = ["CacheCounters"]

_PREFIX = "citadel_gateway_cache"
_OUTCOMES: tuple[Outcome, ...] = ("hit", "shared", "miss", "store", "bypass")
_LOOKUP = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05)


class CacheCounters:
    """Implements `CacheMetrics`; all children are bound at once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        requests = Counter(
            f"{_PREFIX}_requests",
            "Requests that could be cached: hit from Redis, shared with one under way, miss, store, bypass",
            ["outcome"],
            registry=registry,
        )
        failures = Counter(f"{_PREFIX}_failures", "Calls that Redis did not answer", ["operation"], registry=registry)
        moved = Counter(f"{_PREFIX}_bytes", "Bytes of answers, replayed and stored", ["direction"], registry=registry)
        self._lookup = Histogram(
            f"{_PREFIX}_lookup_seconds", "How long Redis took to look", buckets=_LOOKUP, registry=registry
        )
        self._answered = {outcome: requests.labels(outcome) for outcome in _OUTCOMES}
        self._failed = {operation: failures.labels(operation) for operation in ("get", "set")}
        self._replayed = moved.labels("replayed")
        self._stored = moved.labels("stored")

    @cached_property
    def up(self) -> Gauge:
        """Made when first used: where it is turned off, it is not down."""
        return Gauge(
            f"{_PREFIX}_up",
            "1 where there is a connection to Redis; the least that any instance says",
            registry=self._registry,
            multiprocess_mode="livemin",
        )

    def answered(self, outcome: Outcome) -> None:
        """A request that could have been cached was answered."""
        self._answered[outcome].inc()

    def looked_up(self, seconds: float) -> None:
        """Redis answered a look-up."""
        self._lookup.observe(seconds)

    def replayed(self, size_bytes: int) -> None:
        """An answer was sent from the cache."""
        self._replayed.inc(size_bytes)

    def stored(self, size_bytes: int) -> None:
        """An answer was given to Redis."""
        self._stored.inc(size_bytes)

    def failed(self, operation: Literal["get", "set"]) -> None:
        """Redis did not do it."""
        self._failed[operation].inc()
