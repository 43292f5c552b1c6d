"""The dashboards, a module each: a further one is a module with `BOARD`, named here and in `panels.BOARDS`."""

from __future__ import annotations

import json

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from citadel_monitoring.dashboards import business, capacity, gateway, integrations, model, overview
from citadel_monitoring.dashboards.panels import page
from citadel_monitoring.site import Site

__all__ = ["ALL", "dashboards"]

ALL = (overview.BOARD, model.BOARD, gateway.BOARD, integrations.BOARD, business.BOARD, capacity.BOARD)


def dashboards(site: Site) -> dict[str, str]:
    """The dashboards' JSON by their names, as Grafana takes it; the same for the same site."""
    made = {}
    for board in ALL:
        text = JSONEncoder(sort_keys=True, indent=2).encode(page(board, site).build())
        # Grafana counts versions itself, and an id is its own matter.
        found = {key: value for key, value in json.loads(text).items() if key not in ("id", "version")}
        for number, panel in enumerate(found["panels"], start=1):
            panel["id"] = number
        made[board.name] = json.dumps(found, indent=2, sort_keys=True) + "\n"
    return made
