"""Weights from the hub, for real: the role's module and the official client on the lab's LLM server, against the lab's
own hub, with broken connections, damaged files and a disk that is too small.

Run inside the lab, on a host that has the engine: `bin/lab run pytest tests/integration/test_hub.py`.
"""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

REPO = Path(__file__).resolve().parents[2]
ROOT = "/opt/citadel/var/hub-test"
REVISION = "a" * 40
LARGE_BYTES = 24 << 20  # more than two of the client's pieces, so that a cut comes amid them


def load_hub():
    spec = importlib.util.spec_from_file_location("lab_hub", REPO / "molecule/lab/hub.py")
    module = importlib.util.module_from_spec(spec)
    __import__("sys").modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lab_hub = load_hub()


def controller_address():
    """The controller's own address towards the host: where the host finds the hub."""
    said = subprocess.run(["ip", "-j", "addr", "show", "br0"], capture_output=True, text=True, check=True).stdout
    return next(a["local"] for a in json.loads(said)[0]["addr_info"] if a["family"] == "inet")


@pytest.fixture
def repository(tmp_path):
    """A revision of a model of Phi-3's architecture: a large file, a second one, and small ones."""
    directory = tmp_path / "hub/acme/phi" / REVISION
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}))
    (directory / "README.md").write_text("not wanted")
    (directory / "model-00001.safetensors").write_bytes(os.urandom(LARGE_BYTES))
    (directory / "model-00002.safetensors").write_bytes(os.urandom(1 << 20))
    return directory


@pytest.fixture
def hub(tmp_path, repository):
    with lab_hub.Hub(tmp_path / "hub", controller_address()) as running:
        yield running


@pytest.fixture
def files(shell_in):
    """`files(command)`: the output of a command in the test's directory on the host."""
    return shell_in(ROOT)


@pytest.fixture
def fetch(run_module, hub, files):
    """`fetch(refused=False, **changes)`: the module's result, which must be a failure or must not."""

    def fetched(*options, refused=False, **changes):
        arguments = {
            "name": "phi", "root": ROOT, "version": "hub-1", "source": "hub", "repo": "acme/phi", "revision": REVISION,
            "endpoint": hub.url, "profile": "{{ 'phi3' | citadel_profile }}",
            "python": "/opt/citadel/env/vllm/bin/python",
            "helper": f"{{{{ lookup('ansible.builtin.file', '{REPO}/roles/weights/files/weights_helper.py') }}}}",
            "user": "citadel", "group": "citadel", "timeout_s": 120, **changes,
        }  # fmt: skip
        result = run_module("citadel_weights", arguments, *options)
        assert result["failed"] == refused, result.get("msg", result)
        return result

    return fetched


def asked(hub, name):
    """Ranges of the requests for a file's body."""
    return [r.range for r in hub.requests if r.method == "GET" and r.path.endswith(f"/{name}")]


def test_a_revision_is_fetched_verified_and_switched_to_and_a_second_run_changes_nothing(fetch, files, repository, hub):
    assert fetch("--check")["changed"]
    assert hub.requests == []

    assert fetch()["changed"]
    manifest = json.loads(files(f"cat {ROOT}/phi/current/citadel-manifest.json"))
    assert (manifest["repo"], manifest["revision"]) == ("acme/phi", REVISION)
    expected = {p.name: p.stat().st_size for p in repository.iterdir() if p.name != "README.md"}
    assert {entry["file"]: entry["size"] for entry in manifest["files"]} == expected
    sums = "".join(f"{entry['sha256']}  {repository}/{entry['file']}\n" for entry in manifest["files"])
    assert subprocess.run(["sha256sum", "--check"], input=sums, text=True, capture_output=True).returncode == 0
    assert files(f"runuser -u citadel -- head -c 1 {ROOT}/phi/current/model-00001.safetensors | wc -c") == "1"
    assert files(f"readlink {ROOT}/phi/current; ls -A {ROOT}/phi").split() == ["hub-1", "current", "hub-1"]

    seen = len(hub.requests)
    assert not fetch()["changed"]
    assert len(hub.requests) == seen


def test_a_download_goes_on_where_the_connection_was_cut(fetch, hub):
    hub.cuts["model-00001.safetensors"] = lab_hub.Cut(after_bytes=15 << 20, times=1)
    assert fetch()["changed"]
    first, second = asked(hub, "model-00001.safetensors")
    assert first == ""
    assert int(second.removeprefix("bytes=").removesuffix("-")) > 0


def test_a_broken_off_download_is_said_and_the_next_run_fetches_only_what_is_missing(fetch, files, hub):
    hub.cuts["model-00001.safetensors"] = lab_hub.Cut(after_bytes=1 << 20, times=1000)
    failed = fetch(refused=True)
    assert "run again to go on from there" in failed["msg"]
    assert files(f"ls {ROOT}/phi") == ""

    hub.cuts.clear()
    hub.requests.clear()
    assert fetch()["changed"]
    assert asked(hub, "model-00001.safetensors") == [""]
    assert asked(hub, "model-00002.safetensors") == []
    assert files(f"readlink {ROOT}/phi/current") == "hub-1"


def test_a_file_that_is_not_what_the_hub_says_is_refused_and_fetched_anew(fetch, files, repository, hub):
    assert fetch()["changed"]
    damaged = repository / "model-00002.safetensors"
    good = damaged.read_bytes()
    hub.sha256(damaged)
    damaged.write_bytes(b"\0" + good[1:])

    refused = fetch(refused=True, version="hub-2")
    assert "checksums do not match" in refused["msg"]
    assert "model-00002.safetensors: expected" in refused["msg"]
    assert files(f"readlink {ROOT}/phi/current") == "hub-1"

    damaged.write_bytes(good)
    hub.requests.clear()
    assert fetch(version="hub-2")["changed"]
    assert asked(hub, "model-00001.safetensors") == []
    assert files(f"readlink {ROOT}/phi/current") == "hub-2"


def test_weights_that_do_not_fit_on_the_disk_are_refused_before_anything_is_fetched(fetch, repository, hub):
    with (repository / "huge.json").open("wb") as sparse:
        sparse.truncate(8 * 10**12)
    refused = fetch(refused=True)
    assert "make room or mount a larger disk" in refused["msg"]
    assert "8000.0 GB" in refused["msg"]
    assert not [r for r in hub.requests if "/resolve/" in r.path]


def test_weights_of_another_architecture_are_refused(fetch, files):
    refused = fetch(refused=True, profile="{{ 'mixtral' | citadel_profile }}")
    assert "the weights are Phi3ForCausalLM, the model's profile says MixtralForCausalLM" in refused["msg"]
    assert files(f"ls {ROOT}/phi") == ""


def test_a_revision_that_is_not_there_is_named(fetch):
    refused = fetch(refused=True, revision="b" * 40)
    assert f"acme/phi@{'b' * 40}" in refused["msg"]
    assert "mend repo and revision in citadel_models" in refused["msg"]


def test_a_gated_repository_needs_the_token_of_the_file(fetch, files, hub):
    hub.tokens["acme/phi"] = "hf_let_me_in"
    refused = fetch(refused=True)
    assert "weights_hub_token_file" in refused["msg"]

    files(f"umask 077; printf 'hf_let_me_in\\n' > {ROOT}/token")
    result = fetch(token_file=f"{ROOT}/token")
    assert result["changed"]
    assert "hf_let_me_in" not in json.dumps(result)


def test_old_versions_are_dropped_but_never_the_current_one(fetch, files):
    for number in (1, 2, 3):
        assert fetch(version=f"hub-{number}")["changed"]
    assert files(f"ls {ROOT}/phi").split() == ["current", "hub-2", "hub-3"]


def test_damage_on_the_disk_is_found_when_asked_for_and_mended(fetch, files):
    assert fetch()["changed"]
    files(f"printf x | dd of={ROOT}/phi/hub-1/model-00002.safetensors conv=notrunc bs=1 seek=9 status=none")
    assert not fetch()["changed"]
    assert fetch(verify=True)["changed"]
    assert not fetch(verify=True)["changed"]


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_a_mirror_on_the_host_is_held_to_its_manifest(fetch, files, mode):
    assert fetch()["changed"]
    files(f"cp -r {ROOT}/phi/hub-1 {ROOT}/mirror && chgrp -R citadel {ROOT}/mirror && chmod -R g+rX {ROOT}/mirror")
    mirrored = {"name": "mirrored", "source": "path", "path": f"{ROOT}/mirror", "path_mode": mode}
    assert fetch(version="path-1", **mirrored)["changed"]
    assert not fetch(version="path-1", **mirrored)["changed"]
    linked = files(f"test -L {ROOT}/mirrored/current/config.json && echo linked || echo copied")
    assert linked == {"copy": "copied", "link": "linked"}[mode]

    files(f"printf x | dd of={ROOT}/mirror/model-00002.safetensors conv=notrunc bs=1 seek=9 status=none")
    refused = fetch(refused=True, version="path-2", **mirrored)
    assert "checksums do not match" in refused["msg"]
    assert files(f"test -s {ROOT}/mirror/model-00002.safetensors && echo there") == "there"
