"""Each model is served by the real engine, on the cores and within the memory of its plan, at its own port."""

import json
import math
import re

import pytest

from citadel_llm.models import profile


def cores(text):
    """Numbers of a list such as "0-2 5" or "0-2,5"."""
    found = set()
    for part in re.split(r"[,\s]+", text.strip()):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


@pytest.fixture(scope="module")
def addresses(host, site):
    """Where colleagues and the gateway ask: an address of the host, and its own loopback."""
    own = host.run("hostname -I").stdout.split()
    return ["127.0.0.1", site.get("ansible_host") or own[0]]


def test_every_unit_is_enabled_and_active(host, plan):
    for model in plan["models"]:
        service = host.service(model["unit"])
        assert service.is_enabled, model["unit"]
        assert service.is_running, model["unit"]


def test_no_unit_serves_a_model_that_the_plan_does_not_name(host, plan):
    listed = host.run("systemctl list-units --all --plain --no-legend 'citadel-model@*' | awk '{print $1}'")
    assert sorted(listed.stdout.split()) == sorted(model["unit"] for model in plan["models"])


def test_every_model_listens_for_the_gateway_and_for_colleagues(host, plan):
    for model in plan["models"]:
        assert host.socket(f"tcp://0.0.0.0:{model['port']}").is_listening


def test_every_engine_is_vllm_of_the_installed_version(ask, host, site, plan, addresses):
    installed = json.loads(host.file(f"{site['citadel_root']}/env/vllm/.citadel.json").content_string)["version"]
    for model in plan["models"]:
        assert json.loads(ask(f"http://{addresses[0]}:{model['port']}/version"))["version"] == installed


def test_every_engine_gives_its_metrics(ask, plan, addresses):
    for model in plan["models"]:
        metrics = ask(f"http://{addresses[0]}:{model['port']}/metrics")
        assert re.search(rf'^vllm:num_requests_running\{{.*model_name="{model["name"]}".*\}}', metrics, re.MULTILINE)


def test_every_generating_model_answers_a_chat_completion(ask, generating, addresses):
    for model in generating:
        for address in addresses:
            answer = json.loads(
                ask(
                    f"http://{address}:{model['port']}/v1/chat/completions",
                    {"model": model["name"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8},
                )
            )
            assert answer["object"] == "chat.completion"
            assert answer["model"] == model["name"]
            assert answer["usage"]["completion_tokens"] >= 1


def test_every_embedding_model_tells_related_texts_from_unrelated_ones(ask, embedding, addresses):
    texts = ["That is a happy person", "That is a very happy person", "Today is a sunny day"]
    for model in embedding:
        for address in addresses:
            answer = json.loads(
                ask(f"http://{address}:{model['port']}/v1/embeddings", {"model": model["name"], "input": texts})
            )
            vectors = [entry["embedding"] for entry in answer["data"]]
            assert {len(vector) for vector in vectors} == {profile(model["profile"])["dimensions"]}
            assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1] * 3, abs=1e-3)
            related, unrelated = (math.sumprod(vectors[0], other) for other in vectors[1:])
            assert related > unrelated + 0.3, f"{model['name']}: {related:.3f} and {unrelated:.3f}"


def test_minilm_gives_its_known_similarities(ask, embedding, addresses):
    # What other runtimes of this model give for these sentences: the weights are the true ones, and so is the pooling.
    for model in embedding:
        if model["profile"] != "minilm":
            continue
        texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
        answer = json.loads(
            ask(f"http://{addresses[0]}:{model['port']}/v1/embeddings", {"model": model["name"], "input": texts})
        )
        first, *others = (entry["embedding"] for entry in answer["data"])
        assert [math.sumprod(first, other) for other in others] == pytest.approx([0.695, 0.943, 0.257], abs=0.005)


def test_every_model_has_its_context(ask, plan, addresses):
    for model in plan["models"]:
        served = json.loads(ask(f"http://{addresses[0]}:{model['port']}/v1/models"))["data"][0]
        assert (served["id"], served["max_model_len"]) == (model["name"], model["max_tokens"])


def test_every_engine_runs_on_the_cores_of_its_plan(show, host, plan):
    for model in plan["models"]:
        main = show(model["unit"], "MainPID", "CPUAffinity")
        assert cores(main["CPUAffinity"]) == set(model["cpus"])
        pids = host.run(f"pgrep --parent {main['MainPID']}").stdout.split()
        for pid in [main["MainPID"], *pids]:
            allowed = re.search(r"^Cpus_allowed_list:\s+(\S+)", host.file(f"/proc/{pid}/status").content_string, re.M)
            assert cores(allowed.group(1)) <= set(model["cpus"]), f"{model['name']}, process {pid}"


def test_cores_of_models_are_disjoint_where_there_are_enough(plan):
    if plan["cores"]["shared"]:
        assert any("not disjoint" in finding["found"] for finding in plan["findings"])
    else:
        given = [core for model in plan["models"] for core in model["cpus"]]
        assert len(given) == len(set(given))


def test_memory_is_bounded_as_planned(show, plan):
    # The setting, and not a kill: the old cgroup hierarchy that a container may have takes the bound and does
    # not hold to it.
    for model in plan["models"]:
        assert show(model["unit"], "MemoryMax")["MemoryMax"] == str(model["memory_bytes"])


def test_limits_and_restarts_are_set(show, plan):
    for model in plan["models"]:
        facts = show(model["unit"], "LimitNOFILE", "Restart", "RestartSteps", "StartLimitBurst", "Type")
        assert facts["LimitNOFILE"] == "65536"
        assert facts["Restart"] == "always"
        assert int(facts["RestartSteps"]) > 0
        assert int(facts["StartLimitBurst"]) > 0


def test_engines_run_as_the_service_user(show, host, plan, site):
    for model in plan["models"]:
        pid = show(model["unit"], "MainPID")["MainPID"]
        assert host.file(f"/proc/{pid}").user == site["citadel_user"]


def test_the_sandbox_is_rated_ok_or_better(host, plan):
    for model in plan["models"]:
        rated = host.run(f"systemd-analyze security --no-pager {model['unit']} | tail -n 1")
        level = float(re.search(r"level for \S+: ([0-9.]+)", rated.stdout).group(1))
        assert level < 5, rated.stdout  # 5 and more is "MEDIUM" in systemd's own words


def test_no_model_is_marked_as_draining_while_it_serves(host, plan):
    for model in plan["models"]:
        assert not host.file(f"/run/citadel/draining/{model['name']}").exists


def test_the_default_temperature_is_the_plans(host, generating, site):
    for model in generating:
        config = host.file(f"{site['citadel_root']}/config/models/{model['name']}.yaml").content_string
        assert f"override-generation-config:\n  temperature: {model['temperature']}\n" in config


def test_a_request_that_names_no_temperature_is_answered_with_the_plans(ask, generating, addresses):
    def said(model, **given):
        url = f"http://{addresses[0]}:{model['port']}/v1/completions"
        body = {"model": model["name"], "prompt": "Once", "max_tokens": 32, "seed": 7, "ignore_eos": True, **given}
        return json.loads(ask(url, body))["choices"][0]["text"]

    for model in generating:
        # One seed and one temperature give one text, so equal texts mean equal temperatures.
        assert said(model) == said(model, temperature=model["temperature"])
        assert said(model) != said(model, temperature=0)
