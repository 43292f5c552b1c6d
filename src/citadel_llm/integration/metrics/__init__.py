"""Prometheus: what the gateway counts, and the text that the metrics server scrapes."""

from citadel_llm.integration.metrics.registry import Metrics

__all__ = ["Metrics"]
