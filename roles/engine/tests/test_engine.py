"""The engine's environment is whole, is the lock's, and serves the user that needs it."""

import json
import re

import pytest


@pytest.fixture(scope="module")
def environment(host, site):
    """The directory that env/vllm leads to."""
    link = host.file(f"{site['citadel_root']}/env/vllm")
    assert link.is_symlink, "env/vllm is not there: --tags engine"
    return link.linked_to


@pytest.fixture(scope="module")
def version(host, site, environment):
    """What the environment in use prints for its vLLM, as the service user."""
    told = host.run(
        f"runuser -u {site['citadel_user']} -- env HOME=/tmp PYTHONDONTWRITEBYTECODE=1 "
        f"{site['citadel_root']}/env/vllm/bin/python -c \"import vllm; print('version', vllm.__version__)\""
    )
    assert told.succeeded, told.stderr
    return re.search(r"^version (\S+)$", told.stdout, re.MULTILINE).group(1)


def test_the_link_leads_to_an_environment_beside_it(environment, site):
    assert re.fullmatch(rf"{site['citadel_root']}/env/vllm-[0-9a-f]{{12}}", environment)


def test_the_engine_has_the_version_of_its_lock(host, environment, version):
    lock = host.file(f"{environment}/citadel-lock.txt").content_string
    assert version == re.search(r"^vllm(?:-cpu)?==([^\s;]+)", lock, re.MULTILINE).group(1)


def test_the_environment_was_finished_and_says_from_what(host, environment, version, site):
    marker = json.loads(host.file(f"{environment}/.citadel.json").content_string)
    assert marker["version"] == version
    assert marker["lock"].startswith(site["citadel_engine_variant"])


def test_every_requirement_of_the_lock_has_hashes(host, environment):
    lock = host.file(f"{environment}/citadel-lock.txt").content_string
    requirements = re.findall(r"^[a-z0-9][^\s=]*==.*(?:\n    --hash=.*)*", lock, re.MULTILINE)
    assert len(requirements) > 100
    assert [r.splitlines()[0] for r in requirements if "--hash=sha256:" not in r] == []


def test_nobody_but_root_may_change_the_environment_and_others_may_not_read_it(host, environment, site):
    wrong = f"! -user root -o ! -group {site['citadel_group']} -o -perm /027"
    found = host.run(f"find {environment} ! -type l \\( {wrong} \\)")
    assert found.stdout == ""


def test_modules_are_compiled_so_that_starts_are_quick(host, environment):
    found = host.run(f"find {environment} -path '*/vllm/__pycache__/__init__*.pyc'")
    assert found.stdout != ""
