"""The few kinds of panels that the dashboards are made of, so that all of them look alike."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from citadel_monitoring.site import Site

__all__ = ["BOARDS", "SOURCE", "Board", "Panel", "Query", "Row", "graph", "number", "page"]

SOURCE = models.DataSourceRef(type_val="prometheus", uid="citadel-prometheus")
# Every dashboard's name and title, in the order of their links.
BOARDS = {
    "overview": "Overview",
    "model": "Model",
    "gateway": "Gateway",
    "integrations": "Integrations",
    "business": "Business",
    "capacity": "Capacity",
}
_WIDTH = 24
Panel = timeseries.Panel | stat.Panel


@dataclass(frozen=True)
class Query:
    """PromQL and what its series are called. `$server` and `$model` are the dashboard's variables."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Row:
    """Panels under a heading, each as wide as there is room for, at most four beside each other."""

    title: str
    panels: Sequence[Panel]
    height: int = 8


@dataclass(frozen=True)
class Board:
    """A dashboard: what it is called, what it shows."""

    name: str
    rows: Callable[[Site], Sequence[Row]]
    by_model: bool = False


def graph(
    title: str,
    *queries: Query,
    unit: str = "short",
    text: str = "",
    least: float | None = 0,
    limit: float | None = None,
    stacked: bool = False,
) -> timeseries.Panel:
    """Lines over time. `limit` is drawn as a line: beyond it something is wrong."""
    made = timeseries.Panel().title(title).datasource(SOURCE).unit(unit).fill_opacity(30 if stacked else 8)
    made = made.line_width(1).show_points(common_models.VisibilityMode.NEVER)
    made = made.tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    made = made.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    if text:
        made = made.description(text)
    if least is not None:
        made = made.min(least)
    if stacked:
        made = made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if limit is not None:
        made = made.thresholds(_thresholds([(None, "transparent"), (limit, "red")]))
        style = common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.LINE)
        made = made.thresholds_style(style)
    for target in _targets(queries, instant=False):
        made = made.with_target(target)
    return made


def number(
    title: str,
    *queries: Query,
    unit: str = "short",
    text: str = "",
    bad: float | None = None,
    warn: float | None = None,
    good_is_high: bool = False,
    decimals: int | None = None,
) -> stat.Panel:
    """The present value, coloured: green, then orange at `warn` and red at `bad`, in the direction that is bad."""
    made = stat.Panel().title(title).datasource(SOURCE).unit(unit)
    made = made.color_mode(common_models.BigValueColorMode.BACKGROUND).graph_mode(common_models.BigValueGraphMode.NONE)
    if text:
        made = made.description(text)
    if decimals is not None:
        made = made.decimals(decimals)
    if bad is None:
        steps: list[tuple[float | None, str]] = [(None, "blue")]
    elif good_is_high:
        steps = [
            (None, "red"),
            *([(bad, "orange")] if warn is not None else []),
            (bad if warn is None else warn, "green"),
        ]
    else:
        steps = [(None, "green"), *([(warn, "orange")] if warn is not None else []), (bad, "red")]
    made = made.thresholds(_thresholds(steps))
    for target in _targets(queries, instant=True):
        made = made.with_target(target)
    return made


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> dashboard.ThresholdsConfig:
    made = [models.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def _targets(queries: Sequence[Query], *, instant: bool) -> list[prometheus.Dataquery]:
    made = []
    for ref, query in zip(string.ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend or "__auto").ref_id(ref)
        made.append(target.instant() if instant else target.range())
    return made


def page(board: Board, site: Site) -> dashboard.Dashboard:
    """The dashboard with its variables, links to the others, and its rows."""
    made = (
        dashboard.Dashboard(f"Citadel {BOARDS[board.name]}")
        .uid(f"citadel-{board.name}")
        .tags(["citadel"])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Citadel")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["citadel"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(_variable("server", 'label_values(up{job="citadel-gateway"}, server)'))
    )
    if board.by_model:
        made = made.with_variable(_models(site))
    for row in board.rows(site):
        made = made.with_row(dashboard.Row(row.title))
        width = _WIDTH // min(len(row.panels), 4)
        for panel in row.panels:
            made = made.with_panel(panel.span(width).height(row.height))
    return made


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(query)
        .include_all(True)
        .all_value(".+")
        .multi(False)
        .refresh(models.VariableRefresh.ON_DASHBOARD_LOAD)
    )


def _models(site: Site) -> dashboard.CustomVariable:
    names = [model.name for model in site.models]
    options = [models.VariableOption(selected=n == 0, text=name, value=name) for n, name in enumerate(names)]
    return dashboard.CustomVariable("model").label("Model").values(",".join(names)).options(options).current(options[0])
