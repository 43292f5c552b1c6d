"""Ansible's view of `citadel_monitoring`: texts for the metrics server, from plain data."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))

from citadel_monitoring import peers, targets
from citadel_monitoring.rule import rules_text
from citadel_monitoring.rules import all_groups
from citadel_monitoring.site import Server, Site
from citadel_monitoring.splice import SpliceError


def _plain(value: Any) -> Any:
    """Without Ansible's own kinds of text and numbers."""
    return json.loads(json.dumps(value))


def _told(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def filtered(first: Any, *more: Any, **options: Any) -> Any:
        try:
            return call(_plain(first), *_plain(more), **_plain(options))
        except SpliceError as error:
            raise AnsibleFilterError(str(error)) from error

    return filtered


def rules(servers: Any, site: Any, header: str) -> str:
    made = Site.read(servers, **site)
    return rules_text(all_groups(made), made, header)


def dashboards(servers: Any, site: Any) -> list[Any]:
    """Each dashboard as Grafana takes it."""
    # Here, for it takes half a second: Ansible reads this file anew for every task of a play.
    from citadel_monitoring.dashboards import dashboards as made_dashboards  # noqa: PLC0415

    return [json.loads(text) for text in made_dashboards(Site.read(servers, **site)).values()]


class FilterModule:
    """Filters by their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        found = {
            "citadel_targets": lambda server: targets.targets_text(Server.read(server)),
            "citadel_scrape": targets.scrape_config,
            "citadel_rules": rules,
            "citadel_dashboards": dashboards,
            "citadel_drop_in": peers.drop_in,
            "citadel_prometheus_config": peers.prometheus_config,
            "citadel_alertmanager_config": peers.alertmanager_config,
            "citadel_without": peers.without,
        }
        return {name: _told(call) for name, call in found.items()}
