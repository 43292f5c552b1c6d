"""The first look: is everything there, is it good enough, what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from citadel_monitoring.dashboards.panels import Board, Panel, Query, Row, graph, number
from citadel_monitoring.site import Model, Site

__all__ = ["BOARD"]

_S = 'server=~"$server"'


def rows(site: Site) -> Sequence[Row]:
    """A row of numbers for the whole, a row a model, then the course of things."""
    return (
        Row("Now", _now(site), 5),
        *(Row(model.title, _model(model), 5) for model in site.models),
        Row("Course", _course()),
    )


def _now(site: Site) -> Sequence[Panel]:
    firing = 'ALERTS{product="citadel", alertstate="firing", severity=~"page|ticket"}'
    return (
        number(
            "Availability over 3 days", Query(f"1 - max(citadel:unavailability:ratio3d{{{_S}}})"), unit="percentunit",
            bad=site.availability, good_is_high=True, decimals=2, text="Answered requests and answered probes; required is 99%.",
        ),
        number(
            "Alerts", Query(f"count({firing}) or vector(0)"), bad=1,
            text="Firing now, pages and tickets; Alertmanager's own page lists them.",
        ),
        number("Requests a second", Query(f"sum(citadel:requests:rate1m{{{_S}}}) or vector(0)"), unit="reqps"),
        number("Tokens a second", Query(f"sum(citadel:tokens:rate1m{{{_S}}}) or vector(0)"), unit="short", decimals=1),
    )  # fmt: skip


def _model(model: Model) -> Sequence[Panel]:
    of = f'{{{_S}, model="{model.name}"}}'
    latency = Query(f"avg(citadel:latency_seconds:mean1h{of}) or vector(0)")
    return [
        number("Engine", Query(f'min(up{{{_S}, job="citadel-model", model="{model.name}"}})'), bad=1, good_is_high=True, text="1 where it answers."),
        number("Latency, mean of an hour", latency, unit="s", bad=model.limit_s, warn=model.target_s,
               text=f"Required are {model.limit_s:g} s, the target is {model.target_s:g} s.") if model.limit_s
        else number("Latency, mean of an hour", latency, unit="s"),
        number("Failed in the last minute", Query(f"max(citadel:errors:ratio_rate1m{of}) or vector(0)"), unit="percentunit", warn=0.01, bad=0.05),
        number("Requests a second", Query(f"sum(citadel:requests:rate1m{of}) or vector(0)"), unit="reqps"),
    ]  # fmt: skip


def _course() -> Sequence[Panel]:
    return (
        graph(
            "Requests a second",
            Query(f"sum by (model) (citadel:requests:rate1m{{{_S}}})", "{{model}}"),
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Latency, mean of two minutes",
            Query(f"avg by (model) (citadel:latency_seconds:mean2m{{{_S}}}) or on () vector(0)", "{{model}}"),
            unit="s",
        ),
        graph(
            "Failed requests",
            Query(f"max by (model) (citadel:errors:ratio_rate1m{{{_S}}}) or on () vector(0)", "{{model}}"),
            unit="percentunit",
            limit=0.05,
        ),
        graph(
            "Not answered, of requests and of time",
            *(Query(f"max(citadel:unavailability:ratio{window}{{{_S}}})", window) for window in ("5m", "1h", "1d")),
            unit="percentunit",
        ),
    )


BOARD = Board("overview", rows)
