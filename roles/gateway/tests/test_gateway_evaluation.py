"""How well models answer is asked from time to time, quietly; and what tokens cost is in the configuration."""

import json

import pytest
import yaml

SERVICE, TIMER = "citadel-evaluation.service", "citadel-evaluation.timer"


@pytest.fixture(autouse=True)
def wanted(role):
    if not role["gateway_evaluation"]:
        pytest.skip("this site does not evaluate its models")


def test_it_is_done_from_time_to_time(host):
    timer = host.service(TIMER)
    assert timer.is_running
    assert timer.is_enabled


def test_it_is_hardened_comes_after_everybody_and_leaves_no_core(host):
    overall = host.run(f"systemd-analyze security --no-pager --threshold=20 {SERVICE}")
    assert overall.succeeded, overall.stdout[-300:]
    for name, value in (("Nice", "15"), ("LimitCORE", "0"), ("IOSchedulingClass", "3")):
        assert host.check_output(f"systemctl show --value -p {name} {SERVICE}") == value, name


def test_results_lie_where_the_exporter_reads_them_and_only_the_service_writes(host, site):
    folder = site["citadel_metrics_directory"]
    assert host.run(f"runuser -u nobody -- ls {folder}").succeeded
    assert not host.run(f"runuser -u nobody -- touch {folder}/x.prom").succeeded


def test_a_model_answers_questions_of_the_sites_set_by_their_likelihood(host, site, plan):
    """As the service's user; two of the questions, so that a large model is not kept busy for long."""
    root = site["citadel_root"]
    every = json.loads(host.file(f"{root}/config/evals/knowledge.json").content_string)["questions"]
    assert len(every) >= 20
    model = next(model["name"] for model in plan["models"] if model["kind"] == "generate")
    few = json.dumps({"questions": every[:2]})
    said = host.run(
        "f=$(mktemp) && printf %s " + _quoted(few) + f" >$f && chmod 644 $f && runuser -u {site['citadel_user']} -- "
        f"{root}/bin/citadel evaluate {model} --questions $f --json; s=$?; rm $f; exit $s"
    )
    assert said.rc == 0, said.stdout + said.stderr
    found = json.loads(said.stdout)[model]
    assert (found["questions"], found["error"]) == (2, None)
    assert 0 <= found["correct"] <= 2


def test_the_gateway_knows_what_a_token_of_each_model_costs(host, site, plan):
    cost = site.get("gateway_cost")
    made = yaml.safe_load(host.file(f"{site['citadel_root']}/config/citadel.yaml").content_string)
    assert made.get("cost") == (cost or None)
    priced = [name for name, model in made["models"].items() if "prompt_tokens_per_s" in model]
    assert priced == [model["name"] for model in plan["models"] if model["prompt_tokens_per_s"]]
    assert sum(model.get("cost_share", 0) for model in made["models"].values()) <= 1.001


def _quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"
