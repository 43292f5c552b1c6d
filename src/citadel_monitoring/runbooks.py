"""The runbook: a section an alert, from what the alerts themselves say."""

from __future__ import annotations

from collections.abc import Iterable

from citadel_monitoring.rule import Alert, Group, duration

__all__ = ["runbooks_text"]

_HEAD = """\
# Runbooks

What each alert means, where to look first, and what to do. This page is written by `make monitoring` from the alerts
(`src/citadel_monitoring/rules/`): change it there. How alerts get to people is in [monitoring](monitoring.md).

*page* wakes someone; *ticket* waits for the day. `NAME` and `SERVER` are the alert's labels.
"""


def runbooks_text(groups: Iterable[Group]) -> str:
    """The page docs/runbooks.md."""
    parts = [_HEAD]
    for group in groups:
        alerts = [rule for rule in group.rules if isinstance(rule, Alert)]
        if alerts:
            parts.append(f"\n## {group.name.capitalize()}\n")
            parts += [_section(alert) for alert in alerts]
    return "".join(parts)


def _section(alert: Alert) -> str:
    looks = "".join(f"- {look}\n" for look in alert.look)
    return (
        f"\n### {alert.name}\n\n*{alert.severity}*, after {duration(alert.for_s)}. {alert.meaning}\n\n"
        f"Look at:\n\n{looks}\nDo: {alert.remedy}\n"
    )
