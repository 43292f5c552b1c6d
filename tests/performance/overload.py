"""The gateway at four times what its engine can take: what do those feel who are let in, and what the others?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from performance.measure import Bench

__all__ = ["Overload", "overload"]

SERVICE_S = 0.2
PLACES, QUEUE = 32, 32  # of the model; the shipped configuration has as many in the queue as at the engine, too
FACTOR = 4


@dataclass(frozen=True)
class Overload:
    """Both loads, open loop. Capacity is places / service time; times in milliseconds."""

    service_ms: float
    places: int
    queue: int
    capacity_per_s: float
    offered_per_s: float
    unloaded_p50_ms: float | None
    unloaded_p99_ms: float | None
    admitted_per_s: float
    admitted_p50_ms: float | None
    admitted_p99_ms: float | None
    sent: int
    admitted: int
    refused: int
    refused_share: float
    refused_with_retry_after: int
    refused_p99_ms: float | None
    other_failures: dict[str, int]
    core_share: float  # of its core, that the gateway had at four times the capacity

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def overload(bench: Bench, seconds: float, say: Callable[[str], None]) -> Overload:
    """Half of the capacity first, then four times of it."""
    capacity = PLACES / SERVICE_S
    with ExitStack() as stack:
        _, engine_port = stack.enter_context(bench.engine(service_us=round(SERVICE_S * 1e6)))
        ours = bench.subject("citadel", engine_port, concurrency=PLACES, queue=QUEUE)
        process, port, how = stack.enter_context(ours)
        load = bench.load(port, key=how.key)
        load.run(64, 1.0, rate=capacity / 2)
        calm = load.run(512, seconds, rate=capacity / 2)
        before = process.cpu_s()
        full = load.run(512, seconds, rate=capacity * FACTOR)
        share = (process.cpu_s() - before) / full.took_s
    others = {name: count for name, count in full.failures.items() if name not in ("status 429", "status 503")}
    result = Overload(
        service_ms=SERVICE_S * 1e3,
        places=PLACES,
        queue=QUEUE,
        capacity_per_s=capacity,
        offered_per_s=capacity * FACTOR,
        unloaded_p50_ms=calm.p50_ms,
        unloaded_p99_ms=calm.p99_ms,
        admitted_per_s=full.requests_per_s,
        admitted_p50_ms=full.p50_ms,
        admitted_p99_ms=full.p99_ms,
        sent=full.started,
        admitted=full.answered,
        refused=full.refused,
        refused_share=round(full.refused / full.started, 4) if full.started else 0.0,
        refused_with_retry_after=full.retry_after,
        refused_p99_ms=full.refused_p99_ms,
        other_failures=others,
        core_share=round(share, 3),
    )
    say(f"overload: {result.admitted:,} admitted, p99 {result.admitted_p99_ms} ms; {result.refused:,} refused")
    return result
