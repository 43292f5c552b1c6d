"""What the service is worth and what it costs: opinions of answers, and the cost of the tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from citadel_llm.integration.metrics.tally import Distribution
from citadel_llm.utils.cost import Price, cost_of

__all__ = ["KINDS", "BusinessMetrics", "CostTally", "kinds_of"]

KINDS = ("up", "down", "stars_1", "stars_2", "stars_3", "stars_4", "stars_5")
_UNKNOWN = "unknown"  # an answer of which it is not known, or not yet, which model gave it


def kinds_of(rating: int | None, stars: int | None) -> Iterable[str]:
    """What an opinion says: a thumb (1, -1), stars (1 to 5), or both."""
    if rating:
        yield "up" if rating > 0 else "down"
    if stars is not None:
        yield f"stars_{stars}"


class CostTally:
    """What a model's tokens cost, written when the metrics are: it adds nothing to a request."""

    __slots__ = ("_child", "_completion", "_price", "_prompt", "_written")

    def __init__(self, child: Counter, price: Price, prompt: Distribution, completion: Distribution) -> None:
        self._child, self._price = child, price
        self._prompt, self._completion = prompt, completion
        self._written = 0.0

    def flush(self) -> None:
        """Write what was added. One at a time."""
        total = cost_of(self._price, self._prompt.total, self._completion.total)
        if total > self._written:
            self._child.inc(total - self._written)
            self._written = total


class BusinessMetrics:
    """Counters begin at nought for every model and kind, so that the first vote is seen as a rise."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._given = Counter(
            "citadel_feedback",
            "Opinions of answers by what they say: up, down, stars_1 to stars_5; one that says both counts as both",
            ["model", "kind"],
            registry=registry,
        )
        self._withdrawn = Counter(
            "citadel_feedback_withdrawn",
            "Those that were taken back, or that another one of the same caller replaced",
            ["model", "kind"],
            registry=registry,
        )
        self._cost = Counter(
            "citadel_cost",
            "What the tokens cost that the engines reported, in the site's currency",
            ["model"],
            registry=registry,
        )
        self._hour = Gauge(
            "citadel_cost_per_hour",
            "What a model costs in an hour on this server, asked or not, in the site's currency",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._models: frozenset[str] = frozenset()
        self._prices: Mapping[str, Price] = {}

    def begin(self, models: Iterable[str], prices: Mapping[str, Price], hours: Mapping[str, float]) -> None:
        """Know the site's models, the prices of those that have one, and what these cost in an hour."""
        self._models = frozenset(models)
        self._prices = prices
        for model in (*self._models, _UNKNOWN):
            for kind in KINDS:
                self._given.labels(model, kind)
                self._withdrawn.labels(model, kind)
        for model in prices:
            self._cost.labels(model)
            self._hour.labels(model).set(hours[model])

    def said(self, model: str | None, rating: int | None, stars: int | None) -> None:
        """Count an opinion."""
        for kind in kinds_of(rating, stars):
            self._given.labels(self._known(model), kind).inc()

    def withdrawn(self, model: str | None, rating: int | None, stars: int | None) -> None:
        """Count one that does not stand any more."""
        for kind in kinds_of(rating, stars):
            self._withdrawn.labels(self._known(model), kind).inc()

    def cost(self, model: str, prompt: Distribution, completion: Distribution) -> CostTally | None:
        """The cost of these tokens of a model; None where it has no price."""
        price = self._prices.get(model)
        return None if price is None else CostTally(self._cost.labels(model), price, prompt, completion)

    def _known(self, model: str | None) -> str:
        return model if model in self._models and model is not None else _UNKNOWN
