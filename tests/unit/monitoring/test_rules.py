"""The rules: each has its cases, its page and its dashboard, and a further model needs none."""

import json
import re
from pathlib import Path

import pytest
import yaml

from citadel_monitoring.__main__ import REPO, files, production
from citadel_monitoring.alertmanager import GROUP_WAIT_S
from citadel_monitoring.dashboards.panels import BOARDS
from citadel_monitoring.rule import Alert, Record, rules_text
from citadel_monitoring.rules import all_groups
from citadel_monitoring.site import Server
from citadel_monitoring.targets import SCRAPE_INTERVAL_S, scrape_config, targets, targets_text

SITE = production()
RULES = [rule for group in all_groups(SITE) for rule in group.rules]
ALERTS = [rule for rule in RULES if isinstance(rule, Alert)]
FIFTH = {
    "sixth": {
        "port": 11499, "memory": "8GB", "cpu_cores": 2, "max_tokens": 4096, "temperature": 0.7, "display_name": "Sixth",
        "weights": "generated", "profile": "phi3", "kv_cache": "2GB", "latency_ms": 700, "latency_target_ms": 450,
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def written():
    return files(SITE)


def test_the_committed_files_are_what_the_code_makes(written):
    there = {
        str(path.relative_to(REPO)) for part in ("dashboards", "rules") for path in (REPO / "files" / part).iterdir()
    }
    assert there | {"docs/runbooks.md"} == set(written), "run: make monitoring"
    for path, text in written.items():
        assert (REPO / path).read_text() == text, f"{path} is not what the code makes; run: make monitoring"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_has_a_case_that_fires_and_one_that_does_not(alert):
    assert alert.fires.labels is not None
    if alert.kind != "heartbeat":  # which always fires
        assert alert.quiet.labels is None
        assert dict(alert.quiet.series) != dict(alert.fires.series)


@pytest.mark.parametrize("record", [rule for rule in RULES if isinstance(rule, Record)], ids=lambda rule: rule.name)
def test_a_record_has_a_case_of_what_it_records(record):
    assert record.works.labels is not None


def test_every_case_is_among_promtools_tests(written):
    tests = [yaml.safe_load(text)["tests"] for path, text in written.items() if path.endswith(".test.yml")]
    names = [test["name"] for found in tests for test in found]
    for rule in RULES:
        assert {f"{rule.name} does", f"{rule.name} does not"} <= set(names)
    assert len(names) == 2 * len(RULES)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_leads_to_its_runbook_and_its_dashboard(alert, written):
    told = alert.annotations(SITE)
    anchor = told["runbook_url"].partition("#")[2]
    headings = re.findall(r"^### (\w+)$", written["docs/runbooks.md"], re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}
    uid = re.search(r"/d/citadel-(\w+)", told["dashboard_url"]).group(1)
    assert uid in BOARDS
    assert json.loads(written[f"files/dashboards/{uid}.json"])["uid"] == f"citadel-{uid}"
    assert alert.severity in ("page", "ticket", "none")
    assert alert.kind in ("cause", "symptom", "anomaly", "heartbeat")


def test_a_page_comes_within_two_minutes():
    """A scrape, an evaluation, `for`, another evaluation, and what Alertmanager waits: well under two minutes."""
    for group in all_groups(SITE):
        for rule in group.rules:
            if isinstance(rule, Alert) and rule.severity == "page":
                waits = SCRAPE_INTERVAL_S + 2 * group.interval_s + rule.for_s + GROUP_WAIT_S
                assert waits < 100, (rule.name, waits)


def test_names_are_unique_and_every_rule_of_ours_says_whose_it_is():
    names = [alert.name for alert in ALERTS]
    assert len(names) == len(set(names))
    for group in yaml.safe_load(rules_text(all_groups(SITE), SITE, "x"))["groups"]:
        assert group["name"].startswith("citadel-")
        assert all(rule["labels"]["product"] == "citadel" for rule in group["rules"] if "alert" in rule)


def test_a_further_model_is_in_targets_rules_and_dashboards_and_in_no_other_file():
    more = production(more_models=FIFTH)
    assert {"job": "citadel-model", "server": "hx-llm-server-01", "model": "sixth"} in [
        target["labels"] for target in targets(more.servers[0])
    ]
    before, after = files(SITE), files(more)
    assert (
        "record: citadel:latency_limit_seconds\n    expr: vector(0.7)\n    labels:\n      model: sixth"
        in after["files/rules/citadel.yml"]
    )
    assert "sixth" in after["files/dashboards/overview.json"]
    assert "sixth" in after["files/dashboards/model.json"]
    assert [rule.name for group in all_groups(more) for rule in group.rules if isinstance(rule, Alert)] == [
        alert.name for alert in ALERTS
    ]
    assert after["docs/runbooks.md"] == before["docs/runbooks.md"]


def test_every_target_says_its_server_and_its_job():
    found = json.loads(targets_text(SITE.servers[0]))
    assert all({"job", "server"} <= set(target["labels"]) for target in found)
    jobs = {target["labels"]["job"] for target in found}
    assert jobs == {"citadel-gateway", "citadel-node", "citadel-redis", "citadel-model", "citadel-probe"}
    probes = {target["labels"].get("probe") for target in found} - {None}
    assert probes == {"gateway", "certificate", "database", "vector"}


def test_a_server_without_https_has_no_certificate_to_watch():
    plain = Server.read({"name": "a", "address": "b", "models": [], "https": False})
    assert "certificate" not in targets_text(plain)


def test_the_scrape_job_is_bounded():
    job = yaml.safe_load(scrape_config("/etc/p/targets", "x"))["scrape_configs"][0]
    assert job["file_sd_configs"][0]["files"] == ["/etc/p/targets/*.json"]
    assert job["sample_limit"] > 0


def test_every_variable_of_an_alerts_words_is_a_label_that_its_case_has():
    """A label that the expression does not keep would be empty in the words that wake someone."""
    for alert in ALERTS:
        used = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.meaning))
        kept = set(re.findall(r"by \(([^)]*)\)", alert.expr)) or {"*"}
        if kept != {"*"} and not re.match(r"^(min|max|sum|count|avg) without", alert.expr):
            names = {name.strip() for group in kept for name in group.split(",")}
            assert used <= names | {"job", "instance", "server", "model", "signal"}, alert.name
    assert Path(REPO / "docs/runbooks.md").exists()
