"""What the audit log counts about itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["AuditMetrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class AuditMetrics:
    """Gauges are each instance's own, and add up."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.queue = Gauge(
            "citadel_audit_queue",
            "Records that are not in the database yet",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.spool_bytes = Gauge(
            "citadel_audit_spool_bytes",
            "What of the journals is not in the database yet",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.spool_limit_bytes = Gauge(
            "citadel_audit_spool_limit_bytes",
            "The bound of that",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.full = Gauge(
            "citadel_audit_full",
            "Instances whose journal takes no more: its bound is reached, or the disk takes nothing",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.failing = Gauge(
            "citadel_audit_failing",
            "Instances that could not bring their journal to the disk, or read it, the last time that they tried",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._written = Counter("citadel_audit_written", "Rows written to the database", registry=registry)
        self._rejected = Counter(
            "citadel_audit_rejected", "Records that the database refused, kept beside the journal", registry=registry
        )
        self._dropped = Counter(
            "citadel_audit_dropped", "Records that were given up, for there was no room", registry=registry
        )
        self._lost = Counter(
            "citadel_audit_lost",
            "Records of which nothing is left: their file was damaged or removed",
            registry=registry,
        )
        self._refused = Counter(
            "citadel_audit_refused", "Requests refused, for there was no room for their record", registry=registry
        )
        self._seconds = Histogram(
            "citadel_audit_write_seconds",
            "How long a batch took in the database",
            buckets=_SECONDS,
            registry=registry,
        )

    def wrote(self, rows: int, seconds: float) -> None:
        """Count a batch."""
        self._written.inc(rows)
        self._seconds.observe(seconds)

    def rejected(self) -> None:
        """Count a record."""
        self._rejected.inc()

    def dropped(self, records: int) -> None:
        """Count records."""
        self._dropped.inc(records)

    def lost(self, records: int) -> None:
        """Count records."""
        if records:
            self._lost.inc(records)

    def refused(self) -> None:
        """Count a request."""
        self._refused.inc()
