"""The peers' own configuration with our pieces in it, and without."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from citadel_monitoring import alertmanager
from citadel_monitoring.rule import PRODUCT
from citadel_monitoring.splice import Piece, SpliceError, covered, insert, items, remove

__all__ = ["alertmanager_config", "prometheus_config", "without"]

without = remove


def prometheus_config(text: str, rules: str, scrape: str, folder: str) -> str:
    """Prometheus' configuration that reads our two files; as it is where its own patterns take them in already.

    `rules` and `scrape` are the files' absolute paths, `folder` is the configuration's own.
    """
    owners = remove(text)
    wanted = {"rule_files": rules, "scrape_config_files": scrape}
    pieces = [Piece((key,), [path]) for key, path in wanted.items() if not covered(owners, key, path, folder)]
    return insert(text, pieces) if pieces else owners


def drop_in(text: str, key: str, name: str, folder: str, default: str) -> str:
    """Where a file of ours goes: to the owner's drop-ins for `key` where a pattern takes `name` in, else `default`."""
    owners = remove(text)
    for one in items(owners, [key]):
        home, last = posixpath.split(posixpath.join(folder, str(one)))
        path = posixpath.join(home, name)
        if "*" in last and "*" not in home and covered(owners, key, path, folder):
            return path
    return default


def alertmanager_config(text: str, alerts: Mapping[str, Any], heartbeat: Mapping[str, Any]) -> str:
    """Alertmanager's configuration with our route before the owner's own, our receivers and inhibitions after them.

    `alerts` and `heartbeat` are Alertmanager's settings of a receiver, without its name. Raises SpliceError where the
    owner has a receiver of our name.
    """
    ours = alertmanager.receivers(alerts, heartbeat)
    taken = {str(one.get("name")) for one in items(remove(text), ["receivers"])} & {one["name"] for one in ours}
    if taken:
        raise SpliceError(f"the owner's configuration has a receiver named {sorted(taken)[0]} already: rename it there")
    return insert(
        text,
        [
            Piece(("route", "routes"), alertmanager.routes(PRODUCT if alerts else None), first=True),
            Piece(("receivers",), ours),
            Piece(("inhibit_rules",), alertmanager.inhibitions()),
        ],
    )
