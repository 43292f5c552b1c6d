"""The Python that the site expects, able to make environments, and uv of the locked version."""

import re
from pathlib import Path

LOCK = Path(__file__).resolve().parents[3] / "files/requirements/uv.txt"


def test_python_has_the_expected_version(host, site):
    assert host.check_output("/usr/bin/python3 --version") == f"Python {site['citadel_expected']['python_version']}"


def test_python_makes_environments_with_pip(host):
    made = host.run(
        "d=$(mktemp -d) && /usr/bin/python3 -m venv $d && $d/bin/python -m pip --version; "
        "code=$?; rm -rf $d; exit $code"
    )
    assert made.succeeded, made.stderr


def test_uv_has_the_version_of_its_lock(host):
    locked = re.search(r"^uv==(\S+)", LOCK.read_text(), re.MULTILINE).group(1)
    assert host.check_output("uv --version").split()[1] == locked


def test_nobody_but_root_may_change_uv(host, role):
    found = host.check_output(
        f"find /usr/local/bin/uv {role['python_uv_root']} ! -type l \\( ! -user root -o -perm /022 \\)"
    )
    assert found == ""
