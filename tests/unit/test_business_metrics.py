"""What is counted of opinions and of costs: from nought on, in names of ours alone, over restarts and processes."""

import subprocess
import sys

import pytest

from citadel_llm.integration.metrics import Metrics
from citadel_llm.integration.metrics.business import KINDS
from citadel_llm.utils.cost import Price
from gateways import spawned_gateway

COST = {"server_price": 26280, "watts": 0, "price_per_kwh": 0, "utilisation": 1}
PHI3 = {"cost_share": 1, "prompt_tokens_per_s": 1, "completion_tokens_per_s": 0.5}
SECOND = 26280 / 5 / 8760 / 3600  # what a second of the server costs


def samples(metrics, prefix="citadel_"):
    text = metrics.exposition()[0].decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(prefix))
    return {name: float(value) for name, value in lines}


@pytest.fixture
def metrics():
    made = Metrics("1")
    made.business.begin(["phi3", "hermes"], {"phi3": Price(0.5, 2.0)}, {"phi3": 1.25})
    return made


def test_opinions_are_counted_by_what_they_say_and_an_unknown_model_is_one_name(metrics):
    metrics.business.said("phi3", 1, 5)
    metrics.business.said("phi3", -1, None)
    metrics.business.withdrawn("phi3", -1, None)
    for model in (None, "http://127.0.0.1:11403", 'x"\n'):
        metrics.business.said(model, None, 1)
    found = samples(metrics, "citadel_feedback")
    assert found['citadel_feedback_total{kind="up",model="phi3"}'] == 1
    assert found['citadel_feedback_total{kind="stars_5",model="phi3"}'] == 1
    assert found['citadel_feedback_withdrawn_total{kind="down",model="phi3"}'] == 1
    assert found['citadel_feedback_total{kind="stars_1",model="unknown"}'] == 3
    # All are there from the beginning, and none is added.
    assert sum(name.startswith("citadel_feedback_total") for name in found) == 3 * len(KINDS)


def test_the_cost_of_tokens_is_counted_and_a_model_without_a_price_has_none(metrics):
    assert samples(metrics)['citadel_cost_total{model="phi3"}'] == 0
    metrics.tokens("phi3", 10, 3)
    metrics.tokens("hermes", 10, 3)
    found = samples(metrics)
    assert found['citadel_cost_total{model="phi3"}'] == pytest.approx(11)
    assert found['citadel_cost_per_hour{model="phi3"}'] == 1.25
    metrics.tokens("phi3", 2, 0)
    found = samples(metrics)
    assert found['citadel_cost_total{model="phi3"}'] == pytest.approx(12)
    assert not [name for name in found if "cost" in name and "hermes" in name]


RUN = """
import sys
from citadel_llm.integration.metrics import Metrics
from citadel_llm.utils.cost import Price
metrics = Metrics(sys.argv[1], sys.argv[2])
metrics.business.begin(["phi3"], {"phi3": Price(1.0, 1.0)}, {"phi3": 2.5})
metrics.business.said("phi3", 1, None)
metrics.tokens("phi3", 2, 1)
print(metrics.exposition()[0].decode())
metrics.close()
"""


def test_instances_add_up_and_restarts_go_on(tmp_path):
    for instance in ("1", "2", "1"):
        done = subprocess.run([sys.executable, "-c", RUN, instance, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert 'citadel_feedback_total{kind="up",model="phi3"} 3.0' in lines
    assert 'citadel_cost_total{model="phi3"} 9.0' in lines
    assert 'citadel_cost_per_hour{model="phi3"} 2.5' in lines


async def test_a_gateway_counts_what_its_answers_cost(serve, upstream):
    async with serve(models={"phi3": {"upstreams": [upstream], **PHI3}}, cost=COST) as gateway:
        assert (await gateway.metrics())['citadel_cost_total{model="phi3"}'] == 0
        for _ in range(3):
            assert (await gateway.ask()).status == 200  # 7 tokens read, 3 written
        found = await gateway.metrics()
        assert found['citadel_cost_total{model="phi3"}'] == pytest.approx(3 * (7 + 6) * SECOND)
        assert found['citadel_cost_per_hour{model="phi3"}'] == pytest.approx(3600 * SECOND)


async def test_a_gateway_without_costs_has_no_such_series(gateway):
    assert (await gateway.ask()).status == 200
    assert not [name for name in await gateway.metrics() if name.startswith("citadel_cost")]


async def test_what_it_cost_is_still_counted_after_a_restart(tmp_path, upstream):
    options = {
        "models": {"phi3": {"upstreams": [upstream], **PHI3}},
        "cost": COST,
        "environ": {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")},
    }
    for times in (1, 2):
        async with spawned_gateway(tmp_path, **options) as gateway:
            assert (await gateway.ask()).status == 200
            counted = (await gateway.metrics())['citadel_cost_total{model="phi3"}']
            assert counted == pytest.approx(times * 13 * SECOND)
