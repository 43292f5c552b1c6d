"""The collections that the models need, derived from the plan."""

import pytest
import yaml

from citadel_llm.integration.vector.collections import CollectionError, collections
from citadel_llm.utils.plan import make_plan


@pytest.fixture
def models(request):
    """The plan of the production inventory."""
    path = request.config.rootpath / "group_vars/llm_servers/models.yml"
    return make_plan(yaml.safe_load(path.read_text())["citadel_models"], host_cores=16)["models"]


def test_every_model_has_a_collection_of_its_own(models):
    made = collections(models)
    assert [one["model"] for one in made] == [model["name"] for model in models]
    assert len({one["name"] for one in made} | {one["alias"] for one in made}) == 2 * len(made)
    assert {one["purpose"] for one in made if one["model"] == "minilm"} == {"documents"}


def test_vectors_are_those_of_the_embedding_model(models):
    for one in collections(models):
        assert (one["embedder"], one["dimensions"]) == ("minilm", 384)
        assert one["settings"]["vectors"]["dense"] == {"size": 384, "distance": "Cosine", "on_disk": False}
        assert one["indexes"]["tenant"] == {"type": "keyword", "is_tenant": True}


def test_another_version_of_the_weights_is_another_collection_behind_the_same_alias(models):
    changed = [{**model, "weights_version": "hub-other"} if model["name"] == "minilm" else model for model in models]
    before, after = collections(models), collections(changed)
    assert [one["alias"] for one in before] == [one["alias"] for one in after]
    assert not {one["name"] for one in before} & {one["name"] for one in after}


def test_settings_do_not_change_the_name(models):
    plain = collections(models)
    tuned = collections(models, hnsw={"m": 32}, quantization={"scalar": {"type": "int8"}}, on_disk=True)
    assert [one["name"] for one in plain] == [one["name"] for one in tuned]
    assert tuned[0]["settings"]["hnsw_config"] == {"m": 32}


def test_without_an_embedding_model_there_are_none(models):
    with pytest.raises(CollectionError, match="no model of kind `embedding`"):
        collections([model for model in models if model["kind"] == "generate"])
    with pytest.raises(CollectionError, match="minilm"):
        collections(models, embedder="mixtral")
