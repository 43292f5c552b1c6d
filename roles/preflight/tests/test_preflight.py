"""The host is what this site expects: system, Python, size, address, ports and peers."""

import re

import pytest

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"


@pytest.fixture(scope="module")
def expected(site):
    return site["citadel_expected"]


def test_the_operating_system_is_the_expected_one(host, expected):
    found = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', host.file("/etc/os-release").content_string, re.MULTILINE))
    assert found["NAME"].split()[0] == expected["distribution"]
    assert found["VERSION_ID"] == expected["distribution_version"]


def test_systemd_is_the_init(host):
    assert host.file("/proc/1/comm").content_string.strip() == "systemd"


def test_the_system_has_come_up_whole(host):
    assert host.run("systemctl is-system-running").stdout.strip() == "running", host.run("systemctl --failed").stdout


def test_there_are_enough_cores(host, expected):
    assert int(host.check_output("nproc --all")) >= expected["cpu_cores"]


def test_there_is_enough_memory(host, expected, role):
    total_kib = int(re.search(r"MemTotal:\s+(\d+)", host.file("/proc/meminfo").content_string).group(1))
    assert total_kib * 1024 >= expected["memory_gb"] * 10**9 * (1 - role["preflight_memory_tolerance"])


def test_the_disk_is_large_enough(host, expected, site, role):
    size = int(
        host.check_output(f"df --block-size=1 --output=size {site['citadel_root']} /opt 2>/dev/null | sed -n 2p")
    )
    assert size >= expected["disk_gb"] * 10**9 * (1 - role["preflight_disk_tolerance"])


def test_the_host_has_the_inventorys_address(host, site):
    assert site["ansible_host"] in host.check_output("hostname -I").split()


def test_what_listens_at_the_ports_of_the_service_is_the_service(host, site, plan):
    gateway = [site["citadel_gateway_port"], site["citadel_gateway_https_port"]]
    for port in [*gateway, *(model["port"] for model in plan["models"])]:
        pids = re.findall(
            r"pid=(\d+)", host.check_output(f"ss --listening --tcp --processes --no-header sport = {port}")
        )
        for pid in set(pids) - {"1"}:
            assert "citadel-" in host.file(f"/proc/{pid}/cgroup").content_string, f"port {port} is held by pid {pid}"


def test_peers_are_reachable(host, site, role):
    inventory = host.ansible.get_variables()["groups"]
    for group in role["preflight_peer_groups"]:
        for peer in inventory[group]:
            known = type(host).get_host(f"ansible://{peer}", ansible_inventory=host.backend.ansible_inventory)
            peer_site = known.ansible.get_variables()
            for service, port in peer_site["citadel_services"].items():
                tried = host.run("python3 -c %s %s %s", CONNECT, peer_site["ansible_host"], str(port))
                answers = tried.succeeded or "ConnectionRefusedError" in tried.stderr
                enough = answers if service in role["preflight_services_not_rehearsed"] else tried.succeeded
                assert enough, f"{service}: {tried.stderr}"
