"""Everything that is to be watched is watched: no target is down, every series of the rules and panels is there."""

import json
import re
import time

import pytest
from integration.metrics import Metrics, rate, wait_for

from citadel_monitoring.__main__ import REPO

# Counted only once such a thing has happened, and not here: the lab's models have no fallback.
RARE = {"citadel_gateway_fallbacks_total"}
# Of the peers, where the lab has none, or of a history that a young lab has not.
NOT_HERE = {"prometheus_rule_evaluation_failures_total", "alertmanager_notifications_failed_total"}
NAME = re.compile(r"\b((?:citadel|node|redis|vllm|probe|gen_ai)[_:][a-zA-Z0-9_:]+)(?=[{\[\s)]|$)")


@pytest.fixture(scope="module")
def metrics(credentials):
    return Metrics(credentials)


@pytest.fixture(scope="module", autouse=True)
def asked(credentials, metrics, on_host):
    """Each model is asked until what was asked has come to the recorded series; evaluated, and rated, too."""
    on_host("systemctl", "start", "--no-block", "citadel-evaluation.service")
    import openai  # noqa: PLC0415

    with openai.OpenAI(
        base_url=f"{credentials['gateway_url']}/v1", api_key=credentials["admin_key"], timeout=60
    ) as client:

        def ask():
            rate(credentials)
            for model in client.models.list():
                if model.kind != "generate":
                    client.embeddings.create(model=model.id, input="Hello")
            return metrics.query("citadel:latency_seconds:mean1h") and metrics.query(
                'citadel:signal:upper{band="short"}'
            )

        wait_for("the bands of the signals", ask, 480, pause_s=5)
        # Two looks of five minutes with a rise between them: answers are rated until there were.
        stars = "citadel:satisfaction:stars30d"
        wait_for("what opinions come to", lambda: ask() and metrics.query(stars), 780, pause_s=15)
        wanted = sum(model.kind == "generate" for model in client.models.list())
        evaluated = "count(citadel_evaluation_accuracy_ratio)"
        wait_for("evaluations", lambda: metrics.value(evaluated) == wanted, 600, pause_s=5)


def test_a_models_accuracy_is_what_its_answers_came_to(metrics, kinds, on_host):
    results = json.loads(on_host("cat", "/var/lib/citadel-metrics/evaluation.json"))
    assert set(results) == set(kinds["generate"])
    for model, result in results.items():
        told = metrics.value(f'max(citadel_evaluation_accuracy_ratio{{model="{model}"}})')
        assert told == pytest.approx(result["correct"] / result["questions"])
        assert result["questions"] == 60
    # Random weights know nothing: whoever is far better than chance has seen the letters.
    assert all(result["correct"] < 45 for result in results.values())


def test_no_target_is_down(metrics):
    def down():
        return [(one["scrapeUrl"], one["lastError"]) for one in metrics.targets() if one["health"] != "up"]

    wait_for(f"targets that are up; down are: {down()}", lambda: not down(), 60)
    jobs = {one["labels"]["job"] for one in metrics.targets()}
    assert jobs >= {f"citadel-{name}" for name in ("gateway", "model", "node", "redis", "probe")}


def test_every_model_of_the_site_is_a_target(metrics, kinds):
    models = {one["labels"]["model"] for one in metrics.targets() if one["labels"]["job"] == "citadel-model"}
    assert models == {model for found in kinds.values() for model in found}


def test_every_rule_is_evaluated(metrics):
    rules = metrics.rules()
    assert len(rules) > 50
    wait_for("the first evaluation", lambda: all(rule["health"] != "unknown" for rule in metrics.rules()), 60)
    assert [(rule["name"], rule.get("lastError")) for rule in metrics.rules() if rule["health"] != "ok"] == []


def names(text):
    return set(NAME.findall(text))


def missing(metrics, wanted):
    """Names without a sample in the last half hour: a minute without requests ends those of the last minute."""
    return sorted(
        name
        for name in wanted - RARE - NOT_HERE
        if not metrics.query(f"count(present_over_time({{__name__='{name}'}}[30m]))")
    )


def test_every_series_of_the_rules_is_there(metrics):
    wanted = set().union(*(names(rule["query"]) for rule in metrics.rules())) - {"citadel:signal:mean"}
    assert "vllm:kv_cache_usage_perc" in wanted
    assert missing(metrics, wanted) == []


def panels():
    for path in sorted((REPO / "files/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield pytest.param(target["expr"], id=f"{path.stem}-{panel['title']}-{target['refId']}")


@pytest.mark.parametrize("expr", [*panels()])
def test_a_panels_query_gives_data(metrics, expr, kinds):
    for variable, value in (("$server", ".+"), ("$model", kinds["generate"][0]), ("$__rate_interval", "1m")):
        expr = expr.replace(variable, value)
    found = wait_for(f"data of {expr}", lambda: metrics.query(expr), 30)
    assert all(sample["value"][1] != "NaN" for sample in found), found


def test_every_series_of_the_panels_is_there(metrics):
    wanted = set().union(*(names(found.values[0]) for found in panels()))
    assert len(wanted) > 40
    assert missing(metrics, wanted) == []


def test_grafana_has_the_dashboards_of_this_site(credentials):
    from urllib.request import Request, urlopen  # noqa: PLC0415

    for path in (REPO / "files/dashboards").glob("*.json"):
        request = Request(f"{credentials['grafana_url']}/api/dashboards/uid/citadel-{path.stem}")
        request.add_header("Authorization", f"Bearer {credentials['grafana_token']}")
        with urlopen(request, timeout=10) as answer:
            found = json.loads(answer.read())
        assert found["meta"]["folderUid"] == "citadel"
        assert found["dashboard"]["title"] == json.loads(path.read_text())["title"]


def test_the_heartbeat_arrives_where_it_should_and_nowhere_else(metrics):
    since = time.time() - 150
    found = wait_for("a heartbeat", lambda: metrics.told(since, "heartbeat"), 120)
    assert {alert.name for alert in found} == {"CitadelHeartbeat"}
    assert all(alert.name != "CitadelHeartbeat" for alert in metrics.told(0))
