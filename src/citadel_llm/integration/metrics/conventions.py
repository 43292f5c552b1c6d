"""The gateway's metrics under the names that OpenTelemetry's conventions for generative AI give them.

They are what is there already, told twice: a scrape costs more for it, and a request nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

__all__ = ["OPERATIONS", "Conventional"]

OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_NAMES: Final = {
    "citadel_gateway_request_duration_seconds": "gen_ai_server_request_duration_seconds",
    "citadel_gateway_time_to_first_token_seconds": "gen_ai_server_time_to_first_token_seconds",
}


class Conventional(Collector):
    """What `registry` has, and those of it that have a conventional name once more by that."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """All of it."""
        for metric in self._registry.collect():
            yield metric
            name = _NAMES.get(metric.name)
            if name is not None:
                yield _renamed(metric, name)


def _renamed(metric: Metric, name: str) -> Metric:
    found: dict[tuple[str, str, str, str], float] = {}  # several routes are one operation
    for sample in metric.samples:
        labels = sample.labels
        operation = OPERATIONS.get(labels["route"], "") if "route" in labels else "chat"
        if operation:
            key = (sample.name.removeprefix(metric.name), operation, labels["model"], labels.get("le", ""))
            found[key] = found.get(key, 0.0) + sample.value
    other = Metric(name, metric.documentation, metric.type)
    for (suffix, operation, model, le), value in found.items():
        named = {"gen_ai_operation_name": operation, "gen_ai_request_model": model}
        other.add_sample(name + suffix, {**named, "le": le} if le else named, value)
    return other
