"""The rules, a module an area. A further area is a module with `groups(site)`, named in `AREAS`."""

from __future__ import annotations

from collections.abc import Callable

from citadel_monitoring.rule import Group
from citadel_monitoring.rules import anomaly, business, gateway, host, integrations, models, stores, streams, watch
from citadel_monitoring.site import Site

__all__ = ["AREAS", "all_groups"]

AREAS: tuple[Callable[[Site], tuple[Group, ...]], ...] = (
    watch.groups,
    models.groups,
    streams.groups,
    gateway.groups,
    integrations.groups,
    stores.groups,
    host.groups,
    anomaly.groups,
    business.groups,
)


def all_groups(site: Site) -> tuple[Group, ...]:
    """Every group of rules, in the order of the areas."""
    return tuple(group for area in AREAS for group in area(site))
