"""How long the database takes, as its callers in the gateway see it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["DatabaseMetrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class DatabaseMetrics:
    """Of the connections that are lent; the audit log's batches are among them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._wait = Histogram(
            "citadel_database_wait_seconds",
            "How long callers waited for a connection of their own",
            buckets=_SECONDS,
            registry=registry,
        )
        self._seconds = Histogram(
            "citadel_database_seconds",
            "How long they had it: one transaction",
            buckets=_SECONDS,
            registry=registry,
        )
        self._unavailable = Counter(
            "citadel_database_unavailable", "Callers who were told that the database is away", registry=registry
        )

    def used(self, wait_s: float, took_s: float) -> None:
        """A connection was lent, and is back."""
        self._wait.observe(wait_s)
        self._seconds.observe(took_s)

    def unavailable(self) -> None:
        """Nothing came of it."""
        self._unavailable.inc()
