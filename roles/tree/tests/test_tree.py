"""The requirements' sixteen directories, with least privilege, and the target over all units."""

import pytest

REQUIRED = [
    "architecture", "infrastructure", "frameworks", "operations", "config", "validation", "execution", "bin",
    "data", "env", "logs", "models", "runtime", "src", "var",
]  # fmt: skip


def test_the_sixteen_directories_are_there(host, site):
    for name in ["", *REQUIRED]:
        assert host.file(f"{site['citadel_root']}/{name}").is_directory, name


def test_code_belongs_to_root_and_state_to_the_service(host, site, role):
    root, group = site["citadel_root"], site["citadel_group"]
    for name in ["", *role["tree_code"]]:
        found = host.file(f"{root}/{name}")
        assert (found.user, found.group, oct(found.mode)) == ("root", group, "0o750"), name
    for name in role["tree_state"]:
        found = host.file(f"{root}/{name}")
        assert (found.user, found.group, oct(found.mode)) == (site["citadel_user"], group, "0o750"), name


@pytest.mark.parametrize(("name", "may"), [("config", False), ("src", False), ("env", False), ("var", True)])
def test_the_service_writes_its_state_and_nothing_else(host, site, name, may):
    assert host.run(f"runuser -u {site['citadel_user']} -- test -w {site['citadel_root']}/{name}").succeeded is may


def test_strangers_read_nothing(host, site):
    assert not host.run(f"runuser -u nobody -- ls {site['citadel_root']}").succeeded
    assert not host.run(f"runuser -u nobody -- ls {site['citadel_root']}/config/secrets").succeeded


def test_runtime_directories_are_there_and_made_anew_at_boot(host, site, role):
    planned = host.check_output("systemd-tmpfiles --cat-config")
    for path in role["tree_runtime"]:
        assert (host.file(path).is_directory, host.file(path).user) == (True, site["citadel_user"])
        assert f"d {path} 0755 {site['citadel_user']} {site['citadel_group']}" in planned


def test_the_target_is_up_and_comes_up_at_boot(host):
    target = host.service("citadel.target")
    assert target.is_enabled
    assert target.is_running
