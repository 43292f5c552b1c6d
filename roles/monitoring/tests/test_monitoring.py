"""The server is watched: its exporters answer, and the metrics server knows it, its rules and whom to tell."""

import base64
import re
import time

import pytest

from citadel_monitoring.__main__ import REPO
from citadel_monitoring.rule import cases_texts
from citadel_monitoring.rules import all_groups
from citadel_monitoring.site import Site
from citadel_monitoring.splice import BEGIN, remove

EXPORTERS = {
    "node": "prometheus-node-exporter",
    "redis": "prometheus-redis-exporter",
    "probe": "prometheus-blackbox-exporter",
}


@pytest.fixture(scope="module")
def watched(site, plan):
    """The site as the role sees it, of this server."""
    name, address = site["inventory_hostname"], site["ansible_host"]
    return Site.read([{"name": name, "address": address, "models": plan["models"]}])


@pytest.mark.parametrize("name", EXPORTERS)
def test_an_exporter_runs_under_the_target_and_answers_at_the_servers_address_alone(host, site, role, name):
    unit = f"citadel-exporter-{name}.service"
    assert host.service(unit).is_running
    assert host.service(unit).is_enabled
    port = role[f"monitoring_{name}_port"]
    listening = host.check_output(f"ss -Hltn sport = :{port}").split()
    assert f"{site['ansible_host']}:{port}" in listening
    assert not {f"0.0.0.0:{port}", f"*:{port}", f"[::]:{port}"} & set(listening)
    assert "# HELP" in host.check_output(f"curl -fsS http://{site['ansible_host']}:{port}/metrics")


@pytest.mark.parametrize("name", EXPORTERS)
def test_an_exporter_may_do_little(host, name):
    rated = host.run(f"systemd-analyze security --no-pager citadel-exporter-{name}.service | tail -n 1")
    assert float(re.search(r"level for \S+: ([0-9.]+)", rated.stdout).group(1)) < 5, rated.stdout


@pytest.mark.parametrize("package", EXPORTERS.values())
def test_the_distributions_own_instance_is_off(host, package):
    own = host.service(f"{package}.service")
    assert not own.is_running
    assert not own.is_enabled


def test_what_the_host_writes_down_for_it_is_told_by_the_machines_exporter(host, site, role):
    """How well models answer is a file, which nothing else serves."""
    path = f"{site['citadel_metrics_directory']}/test-of-the-role.prom"
    url = f"http://{site['ansible_host']}:{role['monitoring_node_port']}/metrics"
    try:
        host.check_output(f"printf 'citadel_test_of_the_role 7\\n' >{path} && chmod 644 {path}")
        said = host.check_output(f"curl -fsS {url}")
    finally:
        host.check_output(f"rm -f {path}")
    assert re.search(r"^citadel_test_of_the_role 7$", said, re.MULTILINE)
    assert re.search(r"^node_textfile_scrape_error 0$", said, re.MULTILINE)


def test_redis_lets_its_exporter_in(host, site, role):
    said = host.check_output(f"curl -fsS http://{site['ansible_host']}:{role['monitoring_redis_port']}/metrics")
    assert re.search(r"^redis_up 1$", said, re.MULTILINE)


def test_redis_password_is_in_no_command_line_no_environment_and_no_unit(host, site):
    passwords = site["citadel_redis_observer_passwords"]
    # The password comes from the file by a pipe; what is told is where it was found.
    look = (
        "words() { python3 -c 'import json, sys; print(*json.load(open(sys.argv[1])).values(), sep=chr(10))' "
        f"{passwords}; }}; words | grep -cE '^.{{32,}}$'; "
        "grep -rlFf <(words) /etc/systemd/system; grep -lsFf <(words) /proc/[0-9]*/cmdline /proc/[0-9]*/environ; true"
    )
    known, *found = host.check_output("bash -c %s", look).split()
    assert int(known) > 0, "nothing was looked for"
    assert found == []


def test_the_redis_exporter_sees_none_of_the_products_files(host, site):
    pid = host.check_output("systemctl show citadel-exporter-redis --property=MainPID --value")
    assert host.check_output(f"ls -A /proc/{pid}/root{site['citadel_root']}") == ""


def test_every_target_of_the_server_is_scraped(ask, site):
    deadline = time.monotonic() + 60
    while True:
        targets = ask("prometheus", "/api/v1/targets?state=active&scrapePool=citadel")["data"]["activeTargets"]
        ours = [one for one in targets if one["labels"]["server"] == site["inventory_hostname"]]
        down = [(one["scrapeUrl"], one["lastError"]) for one in ours if one["health"] != "up"]
        if ours and not down:
            return
        assert time.monotonic() < deadline, down
        time.sleep(2)


def test_every_rule_of_ours_is_evaluated_without_an_error(ask, watched):
    groups = {one["name"]: one for one in ask("prometheus", "/api/v1/rules")["data"]["groups"]}
    for group in all_groups(watched):
        found = groups[f"citadel-{group.name}"]
        assert len(found["rules"]) == len(group.rules)
        assert [(rule["name"], rule.get("lastError")) for rule in found["rules"] if rule["health"] == "err"] == []


@pytest.mark.thorough
def test_every_rule_fires_and_does_not_by_prometheus_own_tests(peer, watched):
    """Each rule's two cases, by the metrics server's own promtool."""
    folder = peer.check_output("mktemp -d /tmp/citadel-rules.XXXXXX")
    try:
        texts = {"citadel.yml": (REPO / "files/rules/citadel.yml").read_text()}
        texts |= cases_texts(all_groups(watched), "citadel.yml")
        for name, text in texts.items():
            packed = base64.b64encode(text.encode()).decode()
            for start in range(0, len(packed), 100_000):  # a command's word has a bound
                peer.check_output(f"printf %s %s >>{folder}/packed", "%s", packed[start : start + 100_000])
            peer.check_output(f"base64 -d {folder}/packed >{folder}/{name} && rm {folder}/packed")
        said = peer.run(f"cd {folder} && promtool check rules citadel.yml && promtool test rules *.test.yml")
        assert said.succeeded, said.stdout + said.stderr
    finally:
        peer.run(f"rm -rf {folder}")


def test_prometheus_and_alertmanager_run_with_what_is_on_disk(peer, role):
    for path, tool in (
        (role["monitoring_prometheus_config"], "promtool check config"),
        (role["monitoring_alertmanager_config"], "amtool check-config"),
    ):
        said = peer.run(f"{tool} {path}")
        assert said.succeeded, said.stdout + said.stderr


def test_our_alerts_go_to_our_receiver_and_nobody_elses_do(peer, role):
    path = role["monitoring_alertmanager_config"]
    text = peer.file(path).content_string

    def receiver(*labels):
        return peer.check_output(f"amtool config routes test --config.file={path} {' '.join(labels)}")

    if re.search(r"^ *- name: citadel$", text, re.MULTILINE):
        assert receiver("product=citadel", "kind=cause") == "citadel"
    assert receiver("product=citadel", "kind=heartbeat") == "citadel-heartbeat"
    assert not receiver("alertname=SomebodyElses").startswith("citadel")
    assert BEGIN in text
    assert "citadel" not in remove(text)


def test_the_peers_daemons_were_reloaded_and_never_restarted(peer, role):
    for unit in (role["monitoring_prometheus_unit"], role["monitoring_alertmanager_unit"]):
        assert peer.check_output(f"systemctl show {unit} --property=NRestarts --value") == "0"
