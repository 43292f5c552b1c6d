"""What the configuration says of routing, and how it refuses what makes no sense."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from citadel_llm.utils.config import ConfigError, parse_config

GOOD: dict[str, Any] = {
    "auth": {"keys_file": "keys.json"},
    "models": {
        "mixtral": {
            "upstreams": [{"url": "http://h:1"}, {"url": "http://h:2"}],
            "policy": "prefix",
            "fallback": ["phi3"],
        },
        "phi3": {"upstreams": [{"url": "http://h:3"}], "size_gb": 7.6, "features": ["tools"]},
    },
    "aliases": {"gpt-4o-mini": "phi3", "gpt-4o": "auto"},
    "retry": {"attempts": 2},
}


def test_a_good_one_is_taken_and_the_rest_has_defaults() -> None:
    config = parse_config(GOOD)
    assert config.models["mixtral"].policy == "prefix"
    assert (config.retry.attempts, config.retry.budget_share, config.breaker.trials) == (2, 0.2, 2)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("models.mixtral.policy", "random", "$.models.mixtral.policy"),
        ("models.mixtral.fallback", ["mixtral"], "models.mixtral.fallback"),
        ("models.mixtral.fallback", ["gone"], "got `gone`"),
        ("models.mixtral.fallback", ["phi3", "phi3"], "each model once"),
        ("models.phi3.features", ["music"], "$.models.phi3.features"),
        ("models.phi3.size_gb", 0, "$.models.phi3.size_gb"),
        ("models.auto", {"upstreams": [{"url": "http://h:1"}]}, "`auto`"),
        ("aliases.x", "gone", "got `gone`"),
        ("aliases.phi3", "mixtral", "not a model's own"),
        ("aliases.auto", "mixtral", "not a model's own"),
        ("aliases.a b", "phi3", "Alias `a b`"),
        ("retry.statuses", [404], "$.retry.statuses"),
        ("retry.budget_share", 2, "$.retry.budget_share"),
        ("breaker", {"window": 5, "min_requests": 6}, "min_requests"),
        ("breaker", {"open_s": 90}, "max_open_s"),
        ("balance", {"load_factor": 0.5}, "$.balance.load_factor"),
        ("ejection", {"failure": 1}, "unknown field `failure`"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(path: str, value: object, says: str) -> None:
    data = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    entry = data
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    with pytest.raises(ConfigError) as refused:
        parse_config(data)
    assert says in str(refused.value)


def test_an_alias_of_auto_needs_a_model_with_a_size() -> None:
    data = copy.deepcopy(GOOD)
    del data["models"]["phi3"]["size_gb"]
    with pytest.raises(ConfigError, match="size_gb"):
        parse_config(data)
