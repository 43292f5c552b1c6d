"""What the service is used for: requests and tokens by model and day, and what the cache and `auto` save."""

from __future__ import annotations

from collections.abc import Sequence

from citadel_monitoring.dashboards.panels import Board, Panel, Query, Row, graph, number
from citadel_monitoring.site import Site

__all__ = ["BOARD"]

_S = 'server=~"$server"'


def _day(metric: str, by: str = "", more: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (increase({metric}{{{_S}{more}}}[1d])) or on () vector(0)"


def rows(site: Site) -> Sequence[Row]:
    """The last day in numbers, then its course by model."""
    return (Row("The last day", _numbers(), 5), Row("By model", _by_model()), Row("Saved", _saved()))


def _numbers() -> Sequence[Panel]:
    asked = 'citadel_gateway_requests_total{server=~"$server", model!=""%s}'
    answered = f"sum(increase({asked % ', status=~"2.."'}[1d]))"
    every = f"(sum(increase({asked % ''}[1d])) > 0)"
    return (
        number("Requests", Query(_day("citadel_gateway_requests_total", more=', model!=""')), decimals=0),
        number("Tokens written", Query(_day("citadel_gateway_tokens_total", more=', kind="completion"')), decimals=0),
        number("Tokens read", Query(_day("citadel_gateway_tokens_total", more=', kind="prompt"')), decimals=0),
        number(
            "Answered well",
            Query(f"{answered} / {every} or vector(1)"),
            unit="percentunit",
            bad=0.99,
            good_is_high=True,
            decimals=2,
        ),
    )


def _by_model() -> Sequence[Panel]:
    return (
        graph("Requests a day", Query(_day("citadel_gateway_requests_total", "model", ', model!=""'), "{{model}}"), stacked=True),
        graph("Tokens a day", Query(_day("citadel_gateway_tokens_total", "model"), "{{model}}"), stacked=True),
        graph("Share of the requests", Query(
            f'sum by (model) (increase(citadel_gateway_requests_total{{{_S}, model!=""}}[1d])) / on () group_left () '
            f'(sum(increase(citadel_gateway_requests_total{{{_S}, model!=""}}[1d])) > 0) or on () vector(0)', "{{model}}"), unit="percentunit", stacked=True),
    )  # fmt: skip


def _saved() -> Sequence[Panel]:
    hits = f'sum(increase(citadel_gateway_cache_requests_total{{{_S}, outcome=~"hit|shared"}}[1d]))'
    every = f"(sum(increase(citadel_gateway_cache_requests_total{{{_S}}}[1d])) > 0)"
    return (
        graph("Answered without an engine", Query(f"{hits} / {every} or vector(0)", "share"), unit="percentunit"),
        graph(
            "Bytes replayed a day",
            Query(_day("citadel_gateway_cache_bytes_total", "direction"), "{{direction}}"),
            unit="bytes",
        ),
        graph(
            "Chosen by auto a day",
            Query(_day("citadel_gateway_auto_choices_total", "model"), "{{model}}"),
            stacked=True,
        ),
    )


BOARD = Board("business", rows)
