"""The lab's metrics server, as the tests ask it: Prometheus, and the sink of Alertmanager's notifications."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Told:
    """An alert in a notification that arrived `at`, in seconds of the epoch."""

    at: float
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def name(self) -> str:
        return self.labels["alertname"]


def read(url: str, query: dict[str, str] | None = None) -> Any:
    full = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    with urllib.request.urlopen(full, timeout=20) as answer:
        return json.loads(answer.read())


class Metrics:
    """What the metrics server says."""

    def __init__(self, credentials: dict[str, str]) -> None:
        self._prometheus, self._sink = credentials["prometheus_url"], credentials["webhook_url"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an expression now. An expression that Prometheus does not take is an HTTPError."""
        found: list[dict[str, Any]] = read(f"{self._prometheus}/api/v1/query", {"query": expr})["data"]["result"]
        return found

    def value(self, expr: str) -> float | None:
        """The value of an expression that gives one sample; None where it gives none."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = read(f"{self._prometheus}/api/v1/targets", {"state": "active"})["data"][
            "activeTargets"
        ]
        return found

    def rules(self) -> list[dict[str, Any]]:
        groups = read(f"{self._prometheus}/api/v1/rules")["data"]["groups"]
        return [rule for group in groups if group["name"].startswith("citadel-") for rule in group["rules"]]

    def told(self, since: float, receiver: str = "citadel") -> list[Told]:
        """The alerts of all notifications since then, the oldest first."""
        kept = read(f"{self._sink}/notifications", {"since": str(since), "receiver": receiver})
        return [
            Told(one["at"], alert["status"], alert["labels"], alert["annotations"])
            for one in kept
            for alert in one["body"]["alerts"]
        ]


def wait_for[T](what: str, look: Callable[[], T], timeout_s: float, pause_s: float = 1) -> T:
    """What `look` gives once it is true; fails with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(pause_s)
    return found


def rate(credentials: dict[str, str]) -> None:
    """Ask each model that writes text, and say that its answer is good."""
    import openai  # noqa: PLC0415

    with openai.OpenAI(
        base_url=f"{credentials['gateway_url']}/v1", api_key=credentials["admin_key"], timeout=60
    ) as client:
        for model in client.models.list():
            if getattr(model, "kind", "") == "generate":
                answer = client.chat.completions.with_raw_response.create(
                    model=model.id, max_tokens=2, messages=[{"role": "user", "content": f"Hello at {time.time()}"}]
                )
                opinion = {"request_id": answer.headers["x-request-id"], "thumb": "up", "stars": 4}
                client.post("/feedback", body=opinion, cast_to=object)
