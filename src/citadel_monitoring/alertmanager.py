"""What Alertmanager is told: who is notified, when, and which alert makes which others needless."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from citadel_monitoring.rule import PRODUCT

__all__ = ["inhibitions", "receivers", "routes"]

# The first notification comes GROUP_WAIT_S after the alert: long enough for a cause to be known before its symptoms.
GROUP_WAIT_S = 5
GROUP_INTERVAL_S = 30
REPEAT = "4h"
HEARTBEAT = "1m"
_OURS = f'product="{PRODUCT}"'
_LATE = 'kind=~"symptom|anomaly"'


def routes(receiver: str | None) -> list[dict[str, Any]]:
    """The routes, to stand before the owner's own. Without a receiver of its own the product's alerts go to the owner's
    default one, in groups of their own all the same.
    """
    to = {"receiver": receiver} if receiver else {}
    return [
        {
            "matchers": [_OURS],
            **to,
            "group_by": ["alertname", "server", "model"],
            "group_wait": f"{GROUP_WAIT_S}s",
            "group_interval": f"{GROUP_INTERVAL_S}s",
            "repeat_interval": REPEAT,
            "routes": [
                {
                    "matchers": ['kind="heartbeat"'],
                    "receiver": f"{PRODUCT}-heartbeat",
                    "group_wait": "0s",
                    "group_interval": HEARTBEAT,
                    "repeat_interval": HEARTBEAT,
                }
            ],
        }
    ]


def receivers(alerts: Mapping[str, Any], heartbeat: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The receivers, from Alertmanager's own settings of one without its name. An empty heartbeat goes nowhere."""
    found = [{"name": f"{PRODUCT}-heartbeat", **heartbeat}]
    return [{"name": PRODUCT, **alerts}, *found] if alerts else found


def inhibitions() -> list[dict[str, Any]]:
    """One fault, one page: what follows from a known cause is not told as well."""

    def rule(source: list[str], target: list[str], equal: list[str]) -> dict[str, Any]:
        return {"source_matchers": [_OURS, *source], "target_matchers": [_OURS, *target], "equal": equal}

    return [
        # A server that is down is everything that is down on it.
        rule(['component="server"'], ['component!="server"', 'kind!="heartbeat"'], ["server"]),
        # Without a gateway there is no traffic, and a pool or a cache that it has no connection to.
        rule(['alertname="CitadelGatewayDown"'], [_LATE], ["server"]),
        # A model that is down fails, queues and falls back; and the whole server's availability suffers from it.
        rule(['component="model"', 'kind="cause"'], ['component="model"', _LATE], ["server", "model"]),
        rule(['component="model"', 'kind="cause"'], ['component="availability"'], ["server"]),
        rule(['alertname="CitadelModelDown"'], ['alertname="CitadelModelRestarts"'], ["server", "model"]),
        # Redis, the database, a disk, a certificate: what is wrong with the same thing, in more than one way.
        rule(
            ['kind="cause"'],
            ['kind="symptom"', 'component!="model"'],
            ["server", "component", "mountpoint", "instance"],
        ),
        # The audit log waits for the database.
        rule(
            ['alertname="CitadelDatabaseDown"'], ['component="audit"', 'alertname="CitadelAuditSpoolFull"'], ["server"]
        ),
        # What is full was nearly full; and it is for the disk where that is full too.
        rule(['alertname="CitadelAuditLost"'], ['alertname="CitadelAuditSpoolFull"'], ["server"]),
        rule(['alertname="CitadelDiskFull"'], ['component="audit"'], ["server"]),
        # Files wait for all that they need.
        rule(
            ['alertname=~"CitadelDatabaseDown|CitadelVectorsDown|CitadelModelDown"'], ['component="files"'], ["server"]
        ),
        # Failures are named by their alert; that they are also unusual, or make the budget shrink, is no second page.
        rule(
            ['alertname="CitadelModelErrors"'],
            ['component="model"', _LATE, 'alertname!="CitadelModelErrors"'],
            ["server", "model"],
        ),
        rule(['alertname="CitadelModelErrors"'], ['component="availability"'], ["server"]),
        rule(
            ['alertname="CitadelLatencyOverRequirement"'],
            [
                'component="model"',
                'alertname=~"CitadelLatencyOverTarget|CitadelFirstTokenSlow|CitadelTokensSlow|CitadelModelQueues|.*Anomaly"',
            ],
            ["server", "model"],
        ),
        # A slow model is asked less, and says less.
        rule(
            ['alertname="CitadelLatencyAnomaly"'], ['alertname=~"Citadel(Traffic|Tokens)Anomaly"'], ["server", "model"]
        ),
        rule(['alertname="CitadelTrafficAnomaly"'], ['alertname="CitadelTokensAnomaly"'], ["server", "model"]),
        # Of several burn rates the fastest.
        rule(['alertname="CitadelAvailabilityBurn1h"'], ['alertname=~"CitadelAvailabilityBurn(6h|1d|3d)"'], ["server"]),
        rule(['alertname="CitadelAvailabilityBurn6h"'], ['alertname=~"CitadelAvailabilityBurn(1d|3d)"'], ["server"]),
    ]
