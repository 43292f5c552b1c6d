"""What tokens cost: from the server's price and power, the model's part of it, and how fast the model is."""

from pathlib import Path

import pytest
import yaml

from citadel_llm.integration.database.chain import Row
from citadel_llm.integration.database.usage import Sums
from citadel_llm.utils.config import ConfigError, parse_config
from citadel_llm.utils.cost import Price, cost_of, model_hour, prices_of, server_hour
from citadel_llm.utils.plan import PlanError, make_plan

REPO = Path(__file__).resolve().parents[2]
COST = {
    "currency": "EUR", "server_price": 26280, "lifetime_years": 5, "yearly": 3504, "watts": 500, "price_per_kwh": 0.3,
    "energy_overhead": 2, "utilisation": 0.5,
}  # fmt: skip
PHI3 = {"cost_share": 0.25, "prompt_tokens_per_s": 100, "completion_tokens_per_s": 20}


def config(cost=COST, **models):
    entries = models or {"phi3": PHI3}
    return parse_config(
        {
            "auth": {"keys_file": "unused"},
            "models": {n: {"upstreams": [{"url": "http://h:1"}], **e} for n, e in entries.items()},
            **({} if cost is None else {"cost": cost}),
        }
    )


def test_the_hour_of_a_server_is_its_price_over_its_life_its_upkeep_and_its_energy():
    # 26280 / 5 + 3504 = 8760 a year: 1 an hour; 0.5 kW * 2 * 0.3 a kWh
    assert server_hour(config().cost) == pytest.approx(1 + 0.3)


def test_a_model_costs_its_part_of_the_server_and_a_token_its_part_of_a_second_that_is_used():
    made = config()
    assert model_hour(made.cost, made.models["phi3"]) == pytest.approx(1.3 / 4)
    price = prices_of(made)["phi3"]
    second = 1.3 / 4 / 3600 / 0.5
    assert price.prompt == pytest.approx(second / 100)
    assert price.completion == pytest.approx(second / 20)
    assert cost_of(price, 1000, 200) == pytest.approx(second * (10 + 10))


def test_a_model_that_is_busy_as_expected_pays_for_its_hours_and_no_more():
    made = config()
    hour = model_hour(made.cost, made.models["phi3"])
    tokens = int(20 * 3600 * made.cost.utilisation)
    assert cost_of(prices_of(made)["phi3"], 0, tokens) == pytest.approx(hour)


def test_an_embedding_model_costs_what_it_reads():
    made = config(minilm={"kind": "embedding", "cost_share": 0.1, "prompt_tokens_per_s": 3000})
    assert prices_of(made)["minilm"].completion == 0
    assert prices_of(made)["minilm"].prompt > 0


def test_without_costs_and_without_figures_there_are_no_prices():
    assert prices_of(config(cost=None)) == {}
    assert prices_of(config(phi3={})) == {}
    assert prices_of(config(phi3={"cost_share": 0.5})) == {}


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ({"server_price": -1}, "server_price"), ({"lifetime_years": 0}, "lifetime_years"), ({"watts": "much"}, "watts"),
        ({"utilisation": 0}, "utilisation"), ({"utilisation": 1.1}, "utilisation"),
        ({"energy_overhead": 0.9}, "energy_overhead"),
        ({"currency": "euro"}, "currency"), ({"price": 1}, "price"), ({"price_per_kwh": None}, "price_per_kwh"),
    ],
)  # fmt: skip
def test_a_figure_that_is_none_is_refused_by_its_name(cost, said):
    with pytest.raises(ConfigError, match=said):
        config(cost={**COST, **cost})


@pytest.mark.parametrize(
    "models",
    [
        {"phi3": {"cost_share": 0.5, "prompt_tokens_per_s": 1}},
        {"phi3": {"prompt_tokens_per_s": 1, "completion_tokens_per_s": 1}},
        {"phi3": {**PHI3, "cost_share": 0.6}, "hermes": {**PHI3, "cost_share": 0.6}},
    ],
)
def test_figures_of_models_that_do_not_add_up_are_refused(models):
    with pytest.raises(ConfigError, match="cost_share"):
        config(**models)
    assert config(cost=None, **models)


def entry(port, cores, **more):
    return {
        "port": port, "memory": "8GB", "cpu_cores": cores, "max_tokens": 1024, "temperature": 0.7,
        "weights": "generated", "profile": "phi3", "kv_cache": "64MB", **more,
    }  # fmt: skip


def shares(**models):
    return make_plan(models)["cost_shares"]


def test_models_share_a_server_by_their_cores_where_nobody_says_else():
    assert shares(a=entry(2000, 3), b=entry(2001, 1)) == {"a": 0.75, "b": 0.25}
    assert shares(a=entry(2000, 3), b=entry(2001, 1), c=entry(2002, 9, cost_share=0.6)) == {
        "a": 0.3,
        "b": 0.1,
        "c": 0.6,
    }
    assert shares(a=entry(2000, 1, cost_share=1.0)) == {"a": 1.0}


@pytest.mark.parametrize("wrong", [{"cost_share": 0}, {"cost_share": 1.5}, {"prompt_tokens_per_s": "many"},
                                   {"completion_tokens_per_s": True}])  # fmt: skip
def test_a_wrong_figure_of_a_model_is_named(wrong):
    with pytest.raises(PlanError, match=rf"citadel_models\.a\.{next(iter(wrong))}"):
        make_plan({"a": entry(2000, 1, **wrong)})


def test_shares_of_more_than_the_server_are_refused():
    with pytest.raises(PlanError, match=r"cost_share come to 1\.2"):
        make_plan({"a": entry(2000, 1, cost_share=0.6), "b": entry(2001, 1, cost_share=0.6)})


def test_the_documents_example_is_what_this_sites_figures_come_to():
    """docs/business.md, from group_vars/llm_servers/cost.yml and models.yml."""
    read = {
        name: yaml.safe_load((REPO / f"group_vars/llm_servers/{name}.yml").read_text()) for name in ("cost", "models")
    }
    plan = make_plan(read["models"]["citadel_models"])
    names = ("prompt_tokens_per_s", "completion_tokens_per_s")
    models = {
        model["name"]: {
            "kind": model["kind"],
            "cost_share": plan["cost_shares"][model["name"]],
            **{name: model[name] for name in names if model[name]},
        }
        for model in plan["models"]
    }
    made = config(cost=read["cost"]["gateway_cost"], **models)
    text = (REPO / "docs/business.md").read_text()
    for name, price in prices_of(made).items():
        share, hour = made.models[name].cost_share, model_hour(made.cost, made.models[name])
        written = f"{price.completion * 1e6:.2f}" if price.completion else "\u2013"
        assert f"| {name} | {share:.1%} | {hour:.4f} | {price.prompt * 1e6:.2f} | {written} |" in text
    assert f"= {cost_of(prices_of(made)['mixtral'], 500, 200):.4f}." in text
    assert f"=  {server_hour(made.cost):.4f}" in text


def test_usage_has_the_cost_of_its_tokens_and_a_kept_answer_has_none():
    row = Row(1, "id", "request", "chat", "req-1", model="phi3", prompt_tokens=10, completion_tokens=2)
    sums = Sums({"phi3": Price(0.5, 2.0)})
    for one in (row, row._replace(cached=True), row._replace(model="hermes"), row._replace(kind="admin")):
        sums.note(one)
    *_, model, requests, _, _, _, _, _, cost = (list(column) for column in sums.columns())
    assert dict(zip(model, zip(requests, cost, strict=True), strict=True)) == {"phi3": (2, 9.0), "hermes": (1, 0.0)}
