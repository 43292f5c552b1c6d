"""What the service is worth: how well models answer, what callers say, what it costs, what it is used for, what is saved."""

from __future__ import annotations

from collections.abc import Sequence

from citadel_monitoring.dashboards.panels import Board, Panel, Query, Row, graph, number
from citadel_monitoring.rules.business import HOURLY, SATISFACTION, STANDING, STARS
from citadel_monitoring.site import Site

__all__ = ["BOARD"]

_S = 'server=~"$server"'


def _day(metric: str, by: str = "", more: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (increase({metric}{{{_S}{more}}}[1d])) or on () vector(0)"


def rows(site: Site) -> Sequence[Row]:
    """The last day in numbers, then accuracy, satisfaction and cost, then its course by model."""
    return (
        Row("The last day", _numbers(), 5),
        Row("Accuracy", _accuracy()),
        Row("Satisfaction, 30 days", _satisfaction()),
        Row("Cost, in the currency of gateway_cost", _cost()),
        Row("By model", _by_model()),
        Row("Saved", _saved()),
    )


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


def _accuracy() -> Sequence[Panel]:
    name = "citadel_evaluation_accuracy_ratio"
    return (
        graph(
            "Questions answered rightly",
            Query(f"max by (server, model) ({name}{{{_S}}})", "{{model}}"),
            Query("vector(0.25)", "by chance"),
            unit="percentunit",
            text="Of the site's multiple-choice questions, by log-likelihood, as of the last evaluation.",
        ),
        graph(
            "By subject",
            Query(f"avg by (subject) (citadel_evaluation_subject_accuracy_ratio{{{_S}}})", "{{subject}}"),
            unit="percentunit",
            text="The mean of the models.",
        ),
        graph(
            "Age of the evaluation",
            Query(f"time() - max by (server, model) (citadel_evaluation_timestamp_seconds{{{_S}}})", "{{model}}"),
            unit="s",
            limit=3 * 86400,
        ),
        number(
            "Could not be evaluated",
            Query(f"sum(citadel_evaluation_failed{{{_S}}})"),
            bad=1,
            decimals=0,
            text="Models whose last evaluation came to nothing; their result from before stands.",
        ),
    )


def _satisfaction() -> Sequence[Panel]:
    return (
        number(
            "Content",
            Query(f'sum({STANDING}{{{_S}, kind=~"up|stars_4|stars_5"}}) / (sum({STANDING}{{{_S}}}) > 0)'),
            unit="percentunit",
            bad=0.9,
            good_is_high=True,
            decimals=1,
            text="Thumbs up and four stars or more, of all opinions that stand. Empty where nobody said anything.",
        ),
        graph("Content, by model", Query(f"{SATISFACTION}{{{_S}}}", "{{model}}"), unit="percentunit"),
        graph("Stars, by model", Query(f"{STARS}{{{_S}}}", "{{model}}")),
        graph("Opinions that stand", Query(f"sum by (kind) ({STANDING}{{{_S}}})", "{{kind}}"), stacked=True),
    )


def _cost() -> Sequence[Panel]:
    hours = f"sum by (model) (citadel_cost_per_hour{{{_S}}})"
    tokens = f"sum by (model) (increase(citadel_gateway_tokens_total{{{_S}}}[1d]))"
    return (
        graph(
            "Cost of the tokens a day",
            Query(f"sum by (model) (increase(citadel_cost_total{{{_S}}}[1d]))", "{{model}}"),
            stacked=True,
            text="At the prices that follow from gateway_cost and the models' figures.",
        ),
        graph(
            "Cost of the hardware a day",
            Query(f"24 * {hours}", "{{model}}"),
            stacked=True,
            text="Each model's part of the servers, asked or not.",
        ),
        graph(
            "Paid by callers",
            Query(f"sum by (model) ({HOURLY}{{{_S}}}) / ({hours} > 0)", "{{model}}"),
            unit="percentunit",
            limit=1,
            text="The tokens' cost of an hour to the hardware's: below 1 less is used than gateway_cost.utilisation expects.",
        ),
        graph(
            "Cost of a thousand tokens",
            Query(f"1000 * sum by (model) (increase(citadel_cost_total{{{_S}}}[1d])) / ({tokens} > 0)", "{{model}}"),
            text="Read and written ones together, as they came in a day.",
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
