"""The host has its packages, service user, names, clock, limits and address."""

import re


def test_the_packages_are_installed(host, role):
    for name in role["base_packages"]:
        assert host.package(name).is_installed, name


def test_the_service_user_is_a_system_user_that_nobody_logs_in_as(host, site):
    user = host.user(site["citadel_user"])
    assert user.exists
    assert user.uid < 1000
    assert user.group == site["citadel_group"]
    assert user.home == f"{site['citadel_root']}/runtime"
    assert user.shell == "/usr/sbin/nologin"
    assert user.password in ("!", "!!", "*", "!*")


def test_every_host_of_the_site_is_known_by_name(host):
    for name, known in host.backend.ansible_runner.inventory["_meta"]["hostvars"].items():
        addresses = {line.split()[0] for line in host.check_output(f"getent ahostsv4 {name}").splitlines()}
        assert known["ansible_host"] in addresses, name


def test_the_time_zone_is_the_sites(host, role):
    assert host.check_output("readlink -f /etc/localtime") == host.check_output(
        f"readlink -f /usr/share/zoneinfo/{role['base_timezone']}"
    )


def test_the_clock_is_kept(host, role):
    if role["base_time_sync"]:
        service = host.service(role["base_time_sync_package"])
        assert service.is_enabled
        assert service.is_running


def test_the_service_user_may_open_many_files(host, site, role):
    limit = host.check_output(f"runuser -s /bin/sh {site['citadel_user']} -c 'ulimit -n'")
    assert limit == "unlimited" or int(limit) >= role["base_open_files"]


def test_kernel_settings_hold_now_and_after_a_boot(host, role):
    written = host.check_output("systemd-analyze cat-config sysctl.d")
    for name, value in role["base_sysctl"].items():
        last = re.findall(rf"^{re.escape(name)}\s*=\s*(\S+)", written, re.MULTILINE)[-1]
        assert last == str(value), name
        if role["base_sysctl_apply"]:
            assert host.sysctl(name) == value, name


def test_the_journal_is_bounded(host, role):
    settings = host.check_output("systemd-analyze cat-config systemd/journald.conf")
    for name in ("SystemMaxUse", "RuntimeMaxUse"):
        assert re.findall(rf"^{name}=(\S+)", settings, re.MULTILINE)[-1] == role["base_journal_max_use"]


def test_the_journal_runs_with_its_present_settings(host):
    started = int(
        host.check_output("systemctl show systemd-journald --property=ExecMainStartTimestampMonotonic --value")
    )
    booted_s = float(host.file("/proc/uptime").content_string.split()[0])
    now_s = float(host.check_output("date +%s.%N"))
    newest_s = host.file("/etc/systemd/journald.conf.d/60-citadel.conf").mtime.timestamp()
    assert now_s - booted_s + started / 1e6 >= newest_s - 1


def test_the_address_is_static(host, site, role):
    if role["base_network_static"]:
        planned = host.check_output("netplan get")
        assert re.search(rf"{re.escape(site['ansible_host'])}/\d+", planned)
        assert site["ansible_host"] in host.check_output("hostname -I").split()


def test_no_firewall_is_in_the_way(host, role):
    if role["base_firewall_disabled"] and host.exists("ufw"):
        assert not host.service("ufw").is_enabled
        assert "inactive" in host.check_output("ufw status")
