"""What was counted of each model, over all instances, as numbers and not as text.

counts = read_counts(metrics)            # reads files: not for the event loop's thread
counts["phi3"].duration.counts           # how many took at most `bounds`, for each bound
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import Metric

from citadel_llm.integration.metrics.registry import Metrics

__all__ = ["Buckets", "Counts", "counts_in", "read_counts"]

_REQUESTS = "citadel_gateway_requests"
_DURATION = "citadel_gateway_request_duration_seconds"
_FIRST = "citadel_gateway_time_to_first_token_seconds"
_TOKENS = "citadel_gateway_tokens"
_IN_FLIGHT = "citadel_gateway_in_flight"
_QUEUED = "citadel_gateway_queued"
FAMILIES = frozenset({_REQUESTS, _DURATION, _FIRST, _TOKENS, _IN_FLIGHT, _QUEUED})


@dataclass
class Buckets:
    """A histogram: how many values were at most `bound` seconds, for each; `inf` is all of them."""

    counts: dict[float, float] = field(default_factory=lambda: defaultdict(float))
    sum_s: float = 0.0

    def shown(self) -> dict[str, object]:
        """As JSON: the bounds without the last, infinite one; so there is one count more than bounds."""
        bounds = sorted(self.counts)
        return {
            "bounds_s": bounds[:-1],
            "counts": [int(self.counts[bound]) for bound in bounds],
            "sum_s": round(self.sum_s, 6),
        }


@dataclass
class Counts:
    """Of one model, since the host's instances began to count."""

    statuses: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # of its answers
    duration: Buckets = field(default_factory=Buckets)  # of the whole answer
    first: Buckets = field(default_factory=Buckets)  # to a stream's first piece
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # prompt, completion
    in_flight: int = 0
    queued: int = 0


def read_counts(metrics: Metrics) -> dict[str, Counts]:
    """By model, of every instance. Reads the instances' files."""
    return counts_in(metrics.collect())


def counts_in(families: Iterable[Metric]) -> dict[str, Counts]:
    """By model; whatever else a sample is labelled with is added up."""
    found: dict[str, Counts] = defaultdict(Counts)
    for family in families:
        if family.name not in FAMILIES:
            continue
        for sample in family.samples:
            model = sample.labels.get("model")
            if not model or sample.name.endswith("_created"):
                continue
            counts = found[model]
            if family.name == _REQUESTS:
                counts.statuses[sample.labels["status"]] += int(sample.value)
            elif family.name == _TOKENS:
                counts.tokens[sample.labels["kind"]] += int(sample.value)
            elif family.name == _IN_FLIGHT:
                counts.in_flight += int(sample.value)
            elif family.name == _QUEUED:
                counts.queued += int(sample.value)
            else:
                buckets = counts.duration if family.name == _DURATION else counts.first
                if sample.name.endswith("_bucket"):
                    buckets.counts[float(sample.labels["le"])] += sample.value
                elif sample.name.endswith("_sum"):
                    buckets.sum_s += sample.value
    return found
