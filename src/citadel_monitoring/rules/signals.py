"""What several areas look at, written once: the selectors, and the series of their cases."""

from __future__ import annotations

__all__ = ["ANSWERS", "ERRORS", "SERVER", "answers", "buckets", "labelled", "latency_series", "model_labels"]

# An answer of the gateway to a caller's request, and one that failed for a reason of ours: 499 is a caller that hung up.
ANSWERS = 'citadel_gateway_requests_total{route=~"/v1/.*", model!=""}'
ERRORS = 'citadel_gateway_requests_total{route=~"/v1/.*", model!="", status=~"5.."}'
SERVER = "s1"  # the server of the cases


def labelled(name: str, /, **labels: str) -> str:
    """A series of a case, of the cases' server."""
    every = {**labels, "server": SERVER}
    return f"{name}{{{', '.join(f'{key}="{value}"' for key, value in every.items())}}}"


def answers(values: str, status: str = "200", model: str = "phi3") -> dict[str, str]:
    """A series of answers of the gateway."""
    name = "citadel_gateway_requests_total"
    return {labelled(name, job="citadel-gateway", route="/v1/chat/completions", model=model, status=status): values}


def latency_series(seconds_per_answer: float, rate_10s: float = 10, length: int = 60, start: int = 0) -> dict[str, str]:
    """The sum and count of a model's durations: `rate_10s` answers each 10 s that take so long, in seconds."""
    common = {"job": "citadel-gateway", "route": "/v1/chat/completions", "model": "phi3"}
    name = "citadel_gateway_request_duration_seconds"
    return {
        labelled(f"{name}_sum", **common): f"{start}+{seconds_per_answer * rate_10s:g}x{length}",
        labelled(f"{name}_count", **common): f"{start}+{rate_10s:g}x{length}",
    }


def model_labels(model: str = "phi3") -> dict[str, str]:
    """What a sample of a model carries."""
    return {"server": SERVER, "model": model}


def buckets(name: str, below: str, above: str, /, **labels: str) -> dict[str, str]:
    """A histogram of a case with two buckets: values of `below` are within 10 ms, of `above` within 50 ms."""
    return {
        labelled(f"{name}_bucket", **labels, le="0.01"): below,
        labelled(f"{name}_bucket", **labels, le="0.05"): above,
        labelled(f"{name}_bucket", **labels, le="+Inf"): above,
    }
