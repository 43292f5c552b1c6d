"""One model: how fast it is, what it is asked, how its engine is, what is not as usual."""

from __future__ import annotations

from collections.abc import Sequence

from citadel_monitoring.dashboards.panels import Board, Panel, Query, Row, graph
from citadel_monitoring.rules.anomaly import SIGNALS
from citadel_monitoring.rules.streams import PACE
from citadel_monitoring.site import Site

__all__ = ["BOARD"]

_OF = 'server=~"$server", model="$model"'
_UNITS = {"latency": "s", "errors": "percentunit", "traffic": "reqps", "tokens": "short"}


def rows(site: Site) -> Sequence[Row]:
    """Latency against the requirements, use, engine, and each signal with its bands."""
    return (
        Row("Latency", _latency()),
        Row("Use", _use()),
        Row("Engine", _engine()),
        Row("As usual?", _bands()),
    )


def quantile(q: float, histogram: str, of: str) -> str:
    """A quantile of a histogram over the panel's interval; 0 where nothing was counted."""
    return (
        f"histogram_quantile({q}, sum by (le) (rate({histogram}_bucket{{{of}}}[$__rate_interval]))) >= 0 or vector(0)"
    )


def _quantiles(histogram: str, of: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(q, histogram, of), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99))


def _latency() -> Sequence[Panel]:
    limits = [
        Query(f'max(citadel:latency_{word}_seconds{{model="$model"}}) or vector(0)', word)
        for word in ("limit", "target")
    ]
    mean = Query(f"avg(citadel:latency_seconds:mean2m{{{_OF}}}) or vector(0)", "mean")
    return (
        graph(
            "Answers, against the requirement",
            mean,
            *limits,
            unit="s",
            text="0 where the requirements name none for this model.",
        ),
        graph("Answers", *_quantiles("citadel_gateway_request_duration_seconds", _OF), unit="s"),
        graph(
            "To the first token of streams", *_quantiles("citadel_gateway_time_to_first_token_seconds", _OF), unit="s"
        ),
        graph(
            "Each token after the first of streams",
            *_quantiles(PACE, 'server=~"$server", gen_ai_request_model="$model"'),
            unit="s",
        ),
        graph("Waiting for a place", *_quantiles("citadel_gateway_queue_wait_seconds", _OF), unit="s"),
    )


def _use() -> Sequence[Panel]:
    rate = "[$__rate_interval]"
    return (
        graph("Requests by status", Query(f"sum by (status) (rate(citadel_gateway_requests_total{{{_OF}}}{rate})) or on () vector(0)", "{{status}}"), unit="reqps", stacked=True),
        graph("Tokens a second", Query(f"sum by (kind) (rate(citadel_gateway_tokens_total{{{_OF}}}{rate})) or on () vector(0)", "{{kind}}")),
        graph("At the engines, and waiting", Query(f"sum(citadel_gateway_in_flight{{{_OF}}}) or vector(0)", "in flight"), Query(f"sum(citadel_gateway_queued{{{_OF}}}) or vector(0)", "queued")),
        graph(
            "Retries, refusals, fallbacks",
            *(Query(f"sum(rate(citadel_gateway_{name}_total{{{_OF}}}{rate})) or vector(0)", name) for name in ("retries", "retries_denied", "refusals", "fallbacks", "ejections")),
            unit="reqps",
        ),
    )  # fmt: skip


def _engine() -> Sequence[Panel]:
    rate = "[$__rate_interval]"
    return (
        graph("Requests", *(Query(f"sum(vllm:num_requests_{name}{{{_OF}}}) or vector(0)", name) for name in ("running", "waiting"))),
        graph("KV cache used", Query(f"max(vllm:kv_cache_usage_perc{{{_OF}}}) or vector(0)", "used"), unit="percentunit", limit=0.95),
        graph("Prompts found in the prefix cache", Query(f"sum(rate(vllm:prefix_cache_hits_total{{{_OF}}}{rate})) / (sum(rate(vllm:prefix_cache_queries_total{{{_OF}}}{rate})) > 0) or vector(0)", "hits"), unit="percentunit"),
        graph("There", Query(f'min(up{{{_OF}, job="citadel-model"}})', "engine answers"), Query(f"min(citadel_gateway_engine_up{{{_OF}}})", "gateway sends to it"), Query(f"max(citadel_gateway_breaker_state{{{_OF}}})", "breaker (2 is open)")),
    )  # fmt: skip


def _bands() -> Sequence[Panel]:
    shown = []
    for signal in SIGNALS:
        of = f'{_OF}, signal="{signal.name}"'
        edges = [
            Query(f'max(citadel:signal:{edge}{{{of}, band="short"}}) or vector(0)', edge) for edge in ("upper", "lower")
        ]
        shown.append(
            graph(
                signal.name.capitalize(),
                Query(f"max(citadel:signal{{{of}}}) or vector(0)", "now"),
                *edges,
                unit=_UNITS[signal.name],
            )
        )
    return shown


BOARD = Board("model", rows, by_model=True)
