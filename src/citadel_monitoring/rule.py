"""Rules with the cases that prove them: what Prometheus and `promtool test rules` read is made from these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from citadel_monitoring.site import Site

__all__ = ["INTERVAL_S", "PRODUCT", "Alert", "Case", "Group", "Record", "cases_texts", "rules_text", "seconds"]

INTERVAL_S = 10  # how often rules are evaluated, and the distance of a case's samples
PRODUCT = "citadel"


@dataclass(frozen=True)
class Case:
    """Series by their selectors, in promtool's notation of values 10 s apart (`1+2x30`), looked at after `at`.

    For an alert, `labels` tell the one that is to fire; for a record, `labels` and `value` are the sample that is to be
    there. Without `labels` there is to be nothing. `step_s`: a case that takes long can be evaluated less often.
    """

    series: Mapping[str, str]
    at: str = "2m"
    labels: Mapping[str, str] | None = None
    value: float = 1
    step_s: int = INTERVAL_S


@dataclass(frozen=True)
class Record:
    """A recording rule, with a case of what it records and one where it records nothing."""

    name: str
    expr: str
    works: Case
    empty: Case
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Alert:
    """An alert, with a case that fires and one that does not, and its page of the runbook.

    `severity`: page wakes someone, ticket waits for the day. `kind`: a cause silences the symptoms of its server and
    model (`alertmanager.py`). `dashboard` is the name of the one to look at.
    """

    name: str
    expr: str
    for_s: int
    severity: str
    kind: str
    component: str
    summary: str
    meaning: str
    look: tuple[str, ...]
    remedy: str
    fires: Case
    quiet: Case
    dashboard: str = "overview"
    labels: Mapping[str, str] = field(default_factory=dict)

    def annotations(self, site: Site) -> dict[str, str]:
        """What a person who is woken needs, in the alert itself."""
        chosen = "&".join(f"var-{name}={{{{ $labels.{name} }}}}" for name in ("server", "model"))
        return {
            "summary": self.summary,
            "description": self.meaning,
            "runbook_url": f"{site.runbooks}#{self.name.lower()}",
            "dashboard_url": f"{site.grafana_url}/d/citadel-{self.dashboard}?{chosen}",
        }


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated in order."""

    name: str
    rules: tuple[Record | Alert, ...]
    interval_s: int = INTERVAL_S


def duration(seconds: int) -> str:
    """Seconds as Prometheus writes them."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def seconds(text: str) -> int:
    """A duration of one unit, as Prometheus writes it, in seconds."""
    return int(text[:-1]) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[text[-1]]


def rules_text(groups: Iterable[Group], site: Site, header: str) -> str:
    """The file of rules."""
    found = [
        {
            "name": f"{PRODUCT}-{group.name}",
            "interval": duration(group.interval_s),
            "rules": [_rule(rule, site) for rule in group.rules],
        }
        for group in groups
    ]
    return f"# {header}\n{yaml.safe_dump({'groups': found}, sort_keys=False, width=1000)}"


def _rule(rule: Record | Alert, site: Site) -> dict[str, Any]:
    if isinstance(rule, Record):
        more = {"labels": dict(rule.labels)} if rule.labels else {}
        return {"record": rule.name, "expr": rule.expr, **more}
    labels = {
        "product": PRODUCT,
        "severity": rule.severity,
        "kind": rule.kind,
        "component": rule.component,
        **rule.labels,
    }
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": duration(rule.for_s),
        "labels": labels,
        "annotations": rule.annotations(site),
    }


def cases_texts(groups: Iterable[Group], rules_file: str) -> dict[str, str]:
    """The files for `promtool test rules` by their names, one for each step of evaluation: each rule's two cases."""
    groups = tuple(groups)
    # Without it promtool takes them in any order, and what a rule reads of another group may be a step old.
    order = [f"{PRODUCT}-{group.name}" for group in groups]
    tests: dict[int, list[dict[str, Any]]] = {}
    for group in groups:
        for rule in group.rules:
            cases = (rule.works, rule.empty) if isinstance(rule, Record) else (rule.fires, rule.quiet)
            for word, case in zip(("does", "does not"), cases, strict=True):
                tests.setdefault(case.step_s, []).append(_test(f"{rule.name} {word}", rule, case))
    return {
        f"{PRODUCT}.{duration(step)}.test.yml": yaml.safe_dump(
            {
                "rule_files": [rules_file],
                "evaluation_interval": duration(step),
                "group_eval_order": order,
                "tests": found,
            },
            sort_keys=False,
            width=1000,
        )
        for step, found in tests.items()
    }


def _test(name: str, rule: Record | Alert, case: Case) -> dict[str, Any]:
    if isinstance(rule, Record):
        wanted = {**rule.labels, **(case.labels or {})}
        expr = f"{rule.name}{{{', '.join(f'{key}={quoted(value)}' for key, value in rule.labels.items())}}}"
        sample = rule.name + _braces(wanted)
    else:
        wanted = dict(case.labels or {})
        expr = f'ALERTS{{alertname="{rule.name}", alertstate="firing"}}'
        if wanted:
            expr = f"sum by ({', '.join(sorted(wanted))}) ({expr})"
        sample = _braces(wanted)
    expected = [] if case.labels is None else [{"labels": sample, "value": case.value}]
    return {
        "name": name,
        "interval": duration(INTERVAL_S),
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "promql_expr_test": [{"expr": expr, "eval_time": case.at, "exp_samples": expected}],
    }


def _braces(labels: Mapping[str, str]) -> str:
    return f"{{{', '.join(f'{key}={quoted(value)}' for key, value in sorted(labels.items()))}}}"


def quoted(text: str) -> str:
    """A label's value as PromQL writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
