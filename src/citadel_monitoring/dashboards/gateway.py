"""The gateway: what it is asked, how it answers, what it does about engines and callers."""

from __future__ import annotations

from collections.abc import Sequence

from citadel_monitoring.dashboards.model import quantile
from citadel_monitoring.dashboards.panels import Board, Panel, Query, Row, graph, number
from citadel_monitoring.site import Site

__all__ = ["BOARD"]

_S = 'server=~"$server"'
_RATE = "[$__rate_interval]"


def rows(site: Site) -> Sequence[Row]:
    """State, requests, engines, cache, callers."""
    return (
        Row("State", _state(), 5),
        Row("Requests", _requests()),
        Row("Engines", _engines()),
        Row("Cache and callers", _callers()),
    )


def _state() -> Sequence[Panel]:
    active = f'node_systemd_unit_state{{{_S}, name=~"citadel-gateway@.+", state="active"}}'
    ends = f'(min(probe_ssl_earliest_cert_expiry{{{_S}, probe="certificate"}}) - time()) / 86400'
    return (
        number("Answers its probe", Query(f'min(probe_success{{{_S}, probe="gateway"}})'), bad=1, good_is_high=True),
        number("Instances that run", Query(f"sum({active})"), bad=1, good_is_high=True),
        number("Certificate ends in", Query(ends), unit="d", bad=2, warn=10, good_is_high=True, decimals=0),
        number("Waiting", Query(f"sum(citadel_gateway_queued{{{_S}}}) or vector(0)"), warn=1, bad=50),
    )


def _requests() -> Sequence[Panel]:
    durations = "citadel_gateway_request_duration_seconds"
    return (
        graph("By route", Query(f"sum by (route) (rate(citadel_gateway_requests_total{{{_S}}}{_RATE})) or on () vector(0)", "{{route}}"), unit="reqps", stacked=True),
        graph("By status", Query(f"sum by (status) (rate(citadel_gateway_requests_total{{{_S}}}{_RATE})) or on () vector(0)", "{{status}}"), unit="reqps", stacked=True),
        graph("Answers", *(Query(quantile(q, durations, f'{_S}, model!=""'), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)), unit="s"),
        graph("Waiting for a place, p95", Query(quantile(0.95, "citadel_gateway_queue_wait_seconds", _S), "p95"), unit="s"),
    )  # fmt: skip


def _engines() -> Sequence[Panel]:
    def each(name: str, by: str = "model") -> Query:
        return Query(
            f"sum by ({by}) (rate(citadel_gateway_{name}_total{{{_S}}}{_RATE})) or on () vector(0)", f"{{{{{by}}}}}"
        )

    return (
        graph("Engines that take requests", Query(f"min by (model) (citadel_gateway_engine_up{{{_S}}})", "{{model}}")),
        graph("Breakers (2 is open)", Query(f"max by (model) (citadel_gateway_breaker_state{{{_S}}})", "{{model}}")),
        graph("Further attempts", each("retries"), unit="reqps"),
        graph("Refused at once", each("refusals", "reason"), unit="reqps"),
        graph("Answered by another model", each("fallbacks"), unit="reqps"),
        graph("Left out for failing", each("ejections"), unit="reqps"),
        graph("Chosen for auto", each("auto_choices"), unit="reqps"),
        graph(
            "At the engines",
            Query(f"sum by (model) (citadel_gateway_in_flight{{{_S}}}) or on () vector(0)", "{{model}}"),
            stacked=True,
        ),
    )


def _callers() -> Sequence[Panel]:
    outcome = Query(
        f"sum by (outcome) (rate(citadel_gateway_cache_requests_total{{{_S}}}{_RATE})) or on () vector(0)",
        "{{outcome}}",
    )
    lookups = "citadel_gateway_cache_lookup_seconds"
    return (
        graph("Cacheable requests", outcome, unit="reqps", stacked=True),
        graph("Looking up in Redis", *(Query(quantile(q, lookups, _S), f"p{q * 100:g}") for q in (0.5, 0.95)), unit="s"),
        graph("Limits hit", Query(f"sum by (scope, kind) (rate(citadel_limited_total{{{_S}}}{_RATE})) or on () vector(0)", "{{scope}} {{kind}}"), unit="reqps"),
        graph("By the callers' roles", Query(f"sum by (group) (rate(citadel_gateway_group_requests_total{{{_S}}}{_RATE})) or on () vector(0)", "{{group}}"), unit="reqps", stacked=True),
        graph("Failed, by the callers' roles", Query(f'sum by (group) (rate(citadel_gateway_group_requests_total{{{_S}, outcome!="ok"}}{_RATE})) or on () vector(0)', "{{group}}"), unit="reqps"),
        graph("Refused callers", Query(f"sum by (reason) (rate(citadel_refused_total{{{_S}}}{_RATE})) or on () vector(0)", "{{reason}}"), unit="reqps"),
    )  # fmt: skip


BOARD = Board("gateway", rows)
