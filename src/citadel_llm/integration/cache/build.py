"""The cache that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from citadel_llm.integration.cache.connection import Options
from citadel_llm.integration.cache.metrics import CacheMetrics
from citadel_llm.integration.cache.redis import Redis, load_credentials
from citadel_llm.integration.cache.response_cache import ResponseCache
from citadel_llm.integration.cache.single_flight import Flights
from citadel_llm.utils.config import Cache

__all__ = ["build_cache", "build_flights"]


def build_cache(config: Cache, metrics: CacheMetrics, on_change: Callable[[bool, str], None]) -> ResponseCache | None:
    """The cache, or None where it is turned off; its `redis` is to be started. `on_change` hears of the connection."""
    if not config.enabled:
        return None
    timeout_s = config.timeout_ms / 1e3
    redis = Redis(
        config.socket,
        lambda: load_credentials(Path(config.credentials_file)),
        Options(timeout_s=timeout_s, stall_s=3 * timeout_s, max_in_flight=config.max_in_flight),
        on_change=on_change,
    )
    return ResponseCache(redis, ttl_s=config.ttl_s, max_answer_bytes=config.max_answer_bytes, metrics=metrics)


def build_flights(config: Cache) -> Flights | None:
    """Where calls are shared, or None where they are not; one for all endpoints."""
    return Flights(config.max_answer_bytes) if config.enabled and config.single_flight else None
