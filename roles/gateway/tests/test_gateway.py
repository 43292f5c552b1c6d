"""One OpenAI-compatible door to every model: instances behind one socket, keys, correlation ids, health, metrics."""

import json
import re
import ssl
import time
import uuid

import httpx2
import pytest


def said(host, unit, name):
    return host.check_output(f"systemctl show {unit} --property={name} --value")


def completion(model, **more):
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, **more}


# -- the host ---------------------------------------------------------------------------------


def test_socket_and_instances_are_up_and_come_up_at_boot(host, units):
    for unit in ["citadel-gateway.socket", *units]:
        service = host.service(unit)
        assert service.is_enabled, unit
        assert service.is_running, unit


def test_no_more_instances_run_than_the_site_wants(host, units):
    listed = host.check_output("systemctl list-units --plain --no-legend 'citadel-gateway@*' | awk '{print $1}'")
    assert sorted(listed.split()) == sorted(units)


def test_systemd_holds_the_socket_so_that_a_roll_refuses_nobody(host, site, role):
    listening = host.check_output(
        f"ss --listening --tcp --processes --no-header --numeric sport = {site['citadel_gateway_port']}"
    )
    assert f"{role['gateway_listen_address']}:{site['citadel_gateway_port']}" in listening
    assert "pid=1," in listening


def test_every_instance_runs_the_current_release_as_the_service_user(host, site, units):
    release = host.file(f"{site['citadel_root']}/src/current").linked_to
    assert release.startswith(f"{site['citadel_root']}/src/releases/")
    for unit in units:
        pid = said(host, unit, "MainPID")
        assert host.check_output(f"ps -o user= -p {pid}").strip() == site["citadel_user"]
        assert f"PYTHONPATH={release}" in host.check_output(f"tr '\\0' '\\n' </proc/{pid}/environ")


def test_the_package_is_where_the_requirements_put_it(host, site):
    package = f"{site['citadel_root']}/src/citadel_llm"
    for part in ("models", "api/gateway.py", "api/routes", "api/middleware", "integration/database",
                 "integration/vector", "integration/metrics", "utils/config.py", "utils/logging.py",
                 "utils/monitoring.py"):  # fmt: skip
        assert host.file(f"{package}/{part}").exists, part


def test_the_configuration_in_force_is_a_good_one(host, site):
    assert host.run(
        f"{site['citadel_root']}/bin/citadel config check {site['citadel_root']}/config/citadel.yaml"
    ).succeeded


def test_the_instances_are_hardened(host, units):
    for unit in units:
        judged = json.loads(host.check_output(f"systemd-analyze security --no-pager --json=short {unit}"))
        exposed = sum(float(entry["exposure"] or 0) for entry in judged if entry.get("set") is False)
        overall = host.run(f"systemd-analyze security --no-pager --threshold=40 {unit}")
        assert overall.succeeded, f"{unit}: {exposed:.1f}\n{overall.stdout[-400:]}"


def test_what_digests_the_keys_is_open_to_the_service_and_to_nobody_else(host, site, role):
    pepper = host.file(f"{site['citadel_root']}/config/secrets/gateway-pepper")
    digests = host.file(f"{site['citadel_root']}/config/secrets/gateway-keys.json")
    there, gone = (pepper, digests) if role["gateway_database"] else (digests, pepper)
    assert (there.user, there.group, oct(there.mode)) == ("root", site["citadel_group"], "0o640")
    assert not gone.exists


def test_who_may_call_is_kept_on_disk_for_a_start_without_the_database(host, site, role):
    if role["gateway_database"]:
        kept = host.file(f"{site['citadel_root']}/var/identity.json")
        assert (kept.user, oct(kept.mode)) == (site["citadel_user"], "0o600")
        assert json.loads(kept.content_string)["keys"]


def test_a_key_is_nowhere_on_the_host_in_plain(host, site, key, units):
    # Only its first letters go to the host: a key in a command line would be the very leak that is looked for.
    root = site["citadel_root"]
    places = f"/etc /run/citadel-gateway {root}/config {root}/src {root}/var /var/log /var/lib/systemd"
    alike = host.run(f"grep -rahoE -e '{re.escape(key[:4])}[A-Za-z0-9_-]{{16,}}' {places} 2>/dev/null").stdout
    assert key not in alike
    for unit in units:
        pid = said(host, unit, "MainPID")
        for file in ("environ", "cmdline"):
            assert key not in host.check_output(f"tr '\\0' '\\n' </proc/{pid}/{file}")
    assert key not in host.check_output("journalctl --no-pager -u 'citadel-gateway@*' -o cat")


# -- the service ------------------------------------------------------------------------------


def test_it_is_alive_and_ready(client):
    for path in ("/health/live", "/health/ready"):
        assert client.get(path).status_code == 200, path


def test_health_names_every_model_of_the_plan_and_each_is_up(client, plan):
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert {name: model["state"] for name, model in health["models"].items()} == {
        model["name"]: "up" for model in plan["models"]
    }


def test_the_list_of_models_is_the_plans(client, plan):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [model["name"] for model in plan["models"]]
    for model in plan["models"]:
        assert client.get(f"/v1/models/{model['name']}").json()["max_model_len"] == model["max_tokens"]


def test_every_model_answers_a_chat(caller, writers):
    for model in writers:
        answer = caller.post("/v1/chat/completions", json=completion(model["name"]))
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-citadel-model"] == answer.json()["model"] == model["name"]
        assert answer.json()["usage"]["completion_tokens"] >= 1


def test_every_model_streams_a_chat(caller, writers):
    for model in writers:
        with caller.stream("POST", "/v1/chat/completions", json=completion(model["name"], stream=True)) as answer:
            events = [line for line in answer.iter_lines() if line]
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert events[-1] == "data: [DONE]"
        assert all(json.loads(event.removeprefix("data: "))["model"] == model["name"] for event in events[:-1])


def test_every_model_completes_a_text(caller, writers):
    for model in writers:
        answer = caller.post("/v1/completions", json={"model": model["name"], "prompt": "Once", "max_tokens": 4})
        assert answer.json()["object"] == "text_completion"


def test_every_embedding_model_embeds(caller, plan):
    for model in plan["models"]:
        if model["kind"] == "embedding":
            answer = caller.post("/v1/embeddings", json={"model": model["name"], "input": ["a cat", "a kitten"]})
            assert [len(entry["embedding"]) > 100 for entry in answer.json()["data"]] == [True, True]


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic d3Jvbmc6d3Jvbmc="])
def test_a_caller_without_a_known_key_is_refused(client, writers, header):
    answer = client.post(
        "/v1/chat/completions",
        json=completion(writers[0]["name"]),
        headers={"authorization": header} if header else {},
    )
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"


def test_an_unknown_model_is_refused_with_those_that_there_are(caller, writers):
    error = caller.post("/v1/chat/completions", json=completion("gpt-9")).json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert all(model["name"] in error["message"] for model in writers)


def test_an_engines_own_refusal_comes_in_openais_shape(caller, writers):
    answer = caller.post("/v1/chat/completions", json=completion(writers[0]["name"], temperature=-1))
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code", "request_id"}


def test_the_correlation_id_is_in_the_answer_and_in_the_log(host, caller, writers):
    model, mine = writers[-1]["name"], f"conformance-{uuid.uuid4()}"
    answer = caller.post("/v1/chat/completions", json=completion(model), headers={"x-request-id": mine})
    assert answer.headers["x-request-id"] == mine
    log = host.check_output(
        "for i in $(seq 50); do journalctl --no-pager -u 'citadel-gateway@*' -o cat --since -5m "
        f"| grep -F {mine} && exit 0; sleep 0.1; done; exit 1"
    )
    entry = json.loads(log.splitlines()[0])
    assert (entry["request_id"], entry["model"], entry["status"]) == (mine, model, 200)
    assert entry["completion_tokens"] >= 1


def test_answers_of_all_instances_tell_one_count_of_what_is_left(host, site, caller, writers):
    """Whichever instance answers: what is left falls by each request."""
    body = {"model": writers[0]["name"], "prompt": "Hello"}

    def ask():
        # A connection of its own for each, so that the kernel hands them to all instances.
        answer = caller.post("/tokenize", json=body, headers={"connection": "close"})
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-tokens"]
        return int(answer.headers["x-ratelimit-remaining-requests"])

    # What was asked with this key before passes out of the last minute, and gives room back: that has an end.
    deadline = time.monotonic() + 90
    while (left := [ask() for _ in range(12)]) != sorted(set(left), reverse=True):
        assert time.monotonic() < deadline, left
        time.sleep(5)
    table = host.file("/run/citadel-gateway/limits-1")
    assert (table.user, table.group, table.mode) == (site["citadel_user"], site["citadel_group"], 0o600)


def test_its_metrics_count_over_all_instances(caller, client, writers):
    model = writers[0]["name"]
    pattern = rf'^citadel_gateway_requests_total\{{model="{model}",route="/tokenize",status="200"\}} (\S+)$'

    # A route that nothing before this test asks: each instance writes its own part ten times a second, so that a count
    # of one in use may still lack what was asked just before.
    def count():
        found = re.search(pattern, client.get("/metrics").text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    before = count()
    for _ in range(10):
        assert caller.post("/tokenize", json={"model": model, "prompt": "one"}).status_code == 200
    deadline = time.monotonic() + 10
    while count() < before + 10:
        assert time.monotonic() < deadline, f"{count()} counted, {before} before ten requests"
    assert count() == before + 10


def test_its_documentation_describes_what_it_serves(client):
    assert "swagger" in client.get("/docs").text.lower()
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/models", "/v1/chat/completions", "/v1/completions", "/health"} <= set(paths)


# -- HTTPS ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trusted(host, site, role):
    """A TLS context that trusts what the host's certificate is signed by."""
    if not role["gateway_https"]:
        pytest.skip("this site has turned HTTPS off (gateway_https)")
    context = ssl.create_default_context()
    if not role["gateway_certificate"]:
        context.load_verify_locations(cadata=host.file(f"{site['citadel_root']}/config/tls/ca.crt").content_string)
    return context


def test_https_serves_the_same_with_a_certificate_for_the_hosts_address(site, key, plan, trusted):
    address = f"https://{site['ansible_host']}:{site['citadel_gateway_https_port']}"
    with httpx2.Client(base_url=address, verify=trusted, timeout=60) as secured:
        answer = secured.post(
            "/v1/chat/completions",
            json=completion(plan["models"][0]["name"]),
            headers={"authorization": f"Bearer {key}"},
        )
    assert answer.status_code == 200, answer.text


def test_only_the_service_may_read_the_certificates_key(host, site, role, trusted):
    found = host.file(f"{site['citadel_root']}/config/secrets/gateway.key")
    assert (found.user, found.group, oct(found.mode)) == ("root", site["citadel_group"], "0o640")
    if not role["gateway_certificate"]:
        authority = host.file(f"{site['citadel_root']}/config/secrets/gateway-ca.key")
        assert (authority.user, oct(authority.mode)) == ("root", "0o600")


def test_a_certificate_of_the_hosts_own_is_renewed_by_a_timer(host, role, trusted):
    if not role["gateway_certificate"]:
        assert host.service("citadel-certificate.timer").is_enabled
        assert host.service("citadel-certificate.timer").is_running


# -- the audit log ----------------------------------------------------------------------------


def test_the_journal_of_the_audit_log_is_the_services_alone(host, site, role):
    folder = f"{site['citadel_root']}/var/spool/audit"
    found = host.file(folder)
    assert (found.user, found.group, oct(found.mode)) == (site["citadel_user"], site["citadel_group"], "0o700")
    journals = host.check_output(f"find {folder} -mindepth 1 -maxdepth 1 -type d -printf '%m %u %f\\n'").splitlines()
    assert journals, "every instance has one"
    assert {tuple(line.split()[:2]) for line in journals} == {("700", site["citadel_user"])}


def test_a_request_is_in_the_audit_log_a_moment_later_and_what_was_said_is_not(caller, client, writers):
    model = writers[0]["name"]
    named = f"audit-{uuid.uuid4()}"
    answer = caller.post("/v1/chat/completions", json=completion(model), headers={"x-request-id": named})
    assert answer.status_code == 200, answer.text
    end = time.monotonic() + 15
    while not (rows := caller.get("/admin/v1/audit", params={"request_id": named}).json()["data"]):
        assert time.monotonic() < end, client.get("/health").json()["audit"]
        time.sleep(0.1)
    (row,) = rows
    assert (row["kind"], row["action"], row["model"], row["outcome"]) == ("request", "chat.completions", model, "ok")
    assert row["completion_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert (row["content_policy"], row["content"]) == ("none", None)


def test_nobody_unknown_reads_the_audit_log(client):
    assert client.get("/admin/v1/audit").status_code == 401
