"""What is not as usual: bands of mean ± k standard deviations around each signal, over the last hour and the seasons.

A signal is anomalous where it leaves the band of the last hour, and, once there is as much history, also that of the same
time yesterday and a week ago: what comes every day is no news. The bands move with the signal, so that they need no
number of a model; what they never go below is a share of the mean, since a very even signal has hardly a deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

from citadel_monitoring.rule import Alert, Case, Group, Record
from citadel_monitoring.rules.signals import answers, labelled, latency_series, model_labels
from citadel_monitoring.site import Site

__all__ = ["SIGNALS", "Signal", "groups"]

WIDTH = 3  # k, in standard deviations
LEAST_SHARE = 0.15  # of the mean: the least that counts as a standard deviation
# The newest minute is left out of its own band, and a band needs five minutes of samples.
SHORT, GAP, LEAST_SAMPLES = "1h", "1m", 30
SEASONS = ("23h30m", "167h30m")  # half an hour before and after the same time, a day and a week ago
_BY = "server, model, signal"


@dataclass(frozen=True)
class Signal:
    """A signal of each model. `floor` is the least standard deviation, `least` the mean below which nothing is usual."""

    name: str
    source: str
    title: str
    below: bool
    floor: float
    least: float
    for_s: int
    shows: str


SIGNALS = (
    Signal("latency", "citadel:latency_seconds:mean1m", "Answers of", False, 0.01, 0, 20, "takes unusually long"),
    Signal("errors", "citadel:errors:ratio_rate1m", "Requests to", False, 0.02, 0, 60, "fail unusually often"),
    Signal("traffic", "citadel:requests:rate1m", "Traffic to", True, 0.05, 0.1, 120, "is not as usual"),
    Signal("tokens", "citadel:tokens:rate1m", "Tokens of", True, 1, 2, 120, "are not as many as usual"),
)


def groups(site: Site) -> tuple[Group, ...]:
    """The groups of this area."""
    return (
        Group("anomaly-records", (*(_signal(signal) for signal in SIGNALS), *_bands())),
        Group("anomaly", tuple(_alert(signal) for signal in SIGNALS)),
    )


def _signal(signal: Signal) -> Record:
    shown, nothing = _example(signal, 0.25, 60)
    value = {"latency": 0.25, "errors": 0, "traffic": 1, "tokens": 5}[signal.name]
    return Record(
        "citadel:signal",
        signal.source,
        works=Case(shown, at="5m", labels=model_labels(), value=value),
        empty=Case(nothing, at="5m"),
        labels={"signal": signal.name},
    )


def _example(signal: Signal, level: float, length: int) -> tuple[dict[str, str], dict[str, str]]:
    """Series that make the signal be there, and series that do not."""
    tokens = labelled("citadel_gateway_tokens_total", job="citadel-gateway", model="phi3", kind="completion")
    if signal.name == "latency":
        return latency_series(level, length=length), {}
    if signal.name == "tokens":
        return {tokens: f"0+50x{length}"}, {}
    return answers(f"0+10x{length}"), {}


def _over(function: str, window: str, offset: str) -> str:
    return f"{function}(citadel:signal[{window}] offset {offset})"


def _bands() -> tuple[Record, ...]:
    enough = f"count_over_time(citadel:signal[{SHORT}] offset {GAP}) >= {LEAST_SAMPLES}"
    short = {"band": "short"}
    seasonal = {"band": "seasonal"}

    def seasons(function: str) -> str:
        each = [f'label_replace({_over(function, "1h", offset)}, "season", "{offset}", "", "")' for offset in SEASONS]
        return f"avg by ({_BY}) ({' or '.join(each)})"

    tokens = labelled("citadel_gateway_tokens_total", job="citadel-gateway", model="phi3", kind="completion")
    labels = {**model_labels(), "signal": "tokens"}
    even = Case({tokens: "0+100x600"}, at="75m", labels=labels, value=10, step_s=60)
    day = Case({tokens: "0+100x9000"}, at="24h45m", labels=labels, value=10, step_s=300)
    young = Case({tokens: "0+100x20"}, at="3m")
    floors = " or ".join(f'0 * citadel:signal:mean{{signal="{signal.name}"}} + {signal.floor:g}' for signal in SIGNALS)

    def least(case: Case) -> Case:
        return Case(case.series, case.at, case.labels, LEAST_SHARE * case.value, case.step_s)

    def sigma(band: str, function: str) -> str:
        mean = f'citadel:signal:mean{{band="{band}"}}'
        floor = floors.replace("citadel:signal:mean{", f'citadel:signal:mean{{band="{band}", ')
        # The greatest of three: how much it moves, a share of the mean, the signal's own floor.
        return (
            f"max by ({_BY}) ("
            f'label_replace({function} and on ({_BY}) {mean}, "of", "signal", "", "")'
            f' or label_replace({LEAST_SHARE} * {mean}, "of", "mean", "", "")'
            f' or label_replace({floor}, "of", "floor", "", ""))'
        )

    return (
        Record("citadel:signal:mean", f"{_over('avg_over_time', SHORT, GAP)} and ({enough})", even, young, short),
        Record("citadel:signal:mean", seasons("avg_over_time"), day, young, seasonal),
        Record(
            "citadel:signal:sigma", sigma("short", _over("stddev_over_time", SHORT, GAP)), least(even), young, short
        ),
        Record("citadel:signal:sigma", sigma("seasonal", seasons("stddev_over_time")), least(day), young, seasonal),
        *_edges(even, young),
    )


def _edges(even: Case, young: Case) -> tuple[Record, ...]:
    found = []
    for name, sign in (("upper", "+"), ("lower", "-")):
        share = 1 + WIDTH * LEAST_SHARE if sign == "+" else 1 - WIDTH * LEAST_SHARE
        labels = {**(even.labels or {}), "band": "short"}
        works = Case(even.series, even.at, labels, even.value * share, even.step_s)
        expr = f"citadel:signal:mean {sign} {WIDTH} * citadel:signal:sigma"
        found.append(Record(f"citadel:signal:{name}", f"clamp_min({expr}, 0)", works, young))
    return tuple(found)


def _alert(signal: Signal) -> Alert:
    def outside(edge: str, sign: str) -> str:
        now, inside = f'citadel:signal{{signal="{signal.name}"}}', "<=" if sign == ">" else ">="
        bands = [f'citadel:signal:{edge}{{band="{band}", signal="{signal.name}"}}' for band in ("short", "seasonal")]
        return f"({now} {sign} on ({_BY}) {bands[0]} unless on ({_BY}) ({now} {inside} on ({_BY}) {bands[1]}))"

    expr = outside("upper", ">")
    if signal.below:
        expr += f" or {outside('lower', '<')}"
    if signal.least:
        expr = (
            f'({expr}) and on ({_BY}) (citadel:signal:mean{{band="short", signal="{signal.name}"}} > {signal.least:g})'
        )
    fires, quiet = _cases(signal)
    return Alert(
        name=f"Citadel{signal.name.capitalize()}Anomaly",
        expr=expr,
        for_s=signal.for_s,
        severity="ticket",
        kind="anomaly",
        component="model",
        summary=f"{signal.title} {{{{ $labels.model }}}} on {{{{ $labels.server }}}}: {signal.name} {signal.shows}",
        meaning=f"The {signal.name} of this model left the band of the last hour ({WIDTH} standard deviations around the mean), "
        "and that of the same time yesterday and a week ago where there is one. Within its limits or not, it is news.",
        look=(
            "the model's dashboard: the signal with its bands",
            "what was changed at that time? `journalctl --since`",
        ),
        remedy="If something broke, its own alert says what to do. If usage has changed, the band follows within the hour.",
        # Groups are gone through in any order, so that each may see the one before a step late; there is time for that.
        fires=Case(fires, at="60m", labels={**model_labels(), "signal": signal.name}, step_s=30),
        quiet=Case(quiet, at="60m", step_s=30),
        dashboard="model",
    )


def _cases(signal: Signal) -> tuple[dict[str, str], dict[str, str]]:
    """Fifty-five minutes as usual, then otherwise; and with no more than some noise."""
    name = "citadel_gateway_request_duration_seconds"
    common = {"job": "citadel-gateway", "route": "/v1/chat/completions", "model": "phi3"}
    total, count = labelled(f"{name}_sum", **common), labelled(f"{name}_count", **common)
    tokens = labelled("citadel_gateway_tokens_total", job="citadel-gateway", model="phi3", kind="completion")
    match signal.name:
        case "latency":
            counted = {count: "0+10x370"}
            return {total: "0+2x330 666+6x40", **counted}, {total: "0+2x330 662.4+2.4x40", **counted}
        case "errors":
            good, bad = answers("0+10x370"), next(iter(answers("", "502")))
            return {**good, bad: "0x330 2+2x40"}, {**good, bad: "0x330 1x40"}
        case "traffic":
            return answers("0+10x330 3330+30x40"), answers("0+10x330 3311+11x40")
        case _:
            return {tokens: "0+500x330 165010+10x40"}, {tokens: "0+500x330 165550+550x40"}
