"""The client that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable

from citadel_llm.integration.vector.client import VectorClient
from citadel_llm.integration.vector.guard import Guard
from citadel_llm.integration.vector.metrics import VectorMetrics
from citadel_llm.utils.config import Vector

__all__ = ["build_vector"]


def build_vector(config: Vector, metrics: VectorMetrics, changed: Callable[[bool, str], None]) -> VectorClient | None:
    """The client, or None where the section is turned off. `changed` hears whether Qdrant answers, and why not.

    The client library is imported at the first call, or by `prepare`.
    """
    if not config.enabled:
        return None
    return VectorClient(config, Guard(config, metrics, changed), metrics)
