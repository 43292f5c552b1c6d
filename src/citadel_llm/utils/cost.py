"""What a request costs: its tokens, at prices that follow from what the hardware costs and how fast it is.

    server, an hour     (price / lifetime + what it costs a year) / 8760 h  +  watts / 1000 * overhead * price of a kWh
    model, an hour      that * the model's share of the server
    token               model, an hour / 3600 s / tokens a second that the model does at most / utilisation

An engine works on many requests at once, so the seconds that a request took say little of what it took from the
others; what it took is its tokens, of which the engine does so many a second and no more. `utilisation` is the part
of that which the site expects to be used: the hours in which nobody asks are paid by those who do. docs/business.md
has an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from citadel_llm.utils.config import Config, Cost, Model

__all__ = ["Price", "cost_of", "model_hour", "prices_of", "server_hour"]

_HOURS_A_YEAR = 8760.0
_SECONDS_AN_HOUR = 3600.0


class Price(NamedTuple):
    """Of one token, in the site's currency."""

    prompt: float
    completion: float


def cost_of(price: Price, prompt_tokens: float, completion_tokens: float) -> float:
    """What so many tokens cost, in the price's currency."""
    return price.prompt * prompt_tokens + price.completion * completion_tokens


def server_hour(cost: Cost) -> float:
    """What one LLM server costs in an hour, whether it is asked or not."""
    owned = (cost.server_price / cost.lifetime_years + cost.yearly) / _HOURS_A_YEAR
    return owned + cost.watts / 1000 * cost.energy_overhead * cost.price_per_kwh


def model_hour(cost: Cost, model: Model) -> float:
    """What a model costs in an hour on one server."""
    return server_hour(cost) * (model.cost_share or 0.0)


def prices_of(config: Config) -> Mapping[str, Price]:
    """The price of each model that has figures; none at all where the site gives no costs."""
    cost = config.cost
    if cost is None:
        return {}
    found = {}
    for name, model in config.models.items():
        if model.cost_share is None or model.prompt_tokens_per_s is None:
            continue
        second = model_hour(cost, model) / _SECONDS_AN_HOUR / cost.utilisation
        completion = second / model.completion_tokens_per_s if model.completion_tokens_per_s else 0.0
        found[name] = Price(second / model.prompt_tokens_per_s, completion)
    return found
