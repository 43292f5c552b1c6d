"""Profiles: each model's architecture, tokens and chat format."""

import pytest
import yaml
from jinja2 import Environment

from citadel_llm.models import ProfileError, generated_version, kind_of, profile

NAMES = ["mixtral", "hermes", "openchat", "phi3"]
TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Why?"},
]


def rendered(name, messages=TALK):
    found = profile(name)
    template = Environment(autoescape=False).from_string(found["chat_template"])
    return template.render(
        messages=messages, bos_token=found["bos"], eos_token=found["eos"], add_generation_prompt=True
    )


def test_every_model_of_the_inventory_has_a_profile(request):
    path = request.config.rootpath / "group_vars/llm_servers/models.yml"
    for name, entry in yaml.safe_load(path.read_text())["citadel_models"].items():
        described = profile(entry.get("profile", name))
        assert entry["max_tokens"] <= described["context"]
        assert entry.get("kind", "generate") == kind_of(described)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mixtral", "<s>[INST] Hello [/INST] Hi</s>[INST] Why? [/INST]"),
        (
            "hermes",
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
            "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "openchat",
            "<s>GPT4 Correct User: Hello<|end_of_turn|>GPT4 Correct Assistant: Hi<|end_of_turn|>"
            "GPT4 Correct User: Why?<|end_of_turn|>GPT4 Correct Assistant:",
        ),
        ("phi3", "<|user|>\nHello<|end|>\n<|assistant|>\nHi<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\n"),
    ],
)
def test_a_talk_is_written_in_the_models_own_format(name, expected):
    assert rendered(name) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_system_message_is_not_lost(name):
    assert "Be brief." in rendered(name, [{"role": "system", "content": "Be brief."}, *TALK])


@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_the_format_uses_are_single_tokens(name):
    found = profile(name)
    assert found["bos"] in found["special_tokens"]
    assert found["eos"] in found["special_tokens"]
    for token in ("<|im_start|>", "<|im_end|>", "<|end_of_turn|>", "<|user|>", "<|assistant|>", "<|end|>"):
        assert token not in rendered(name) or token in found["special_tokens"]


@pytest.mark.parametrize(
    ("name", "architecture", "family"),
    [
        ("mixtral", "MixtralForCausalLM", "mixtral"),
        ("hermes", "MistralForCausalLM", "mistral"),
        ("openchat", "MistralForCausalLM", "mistral"),
        ("phi3", "Phi3ForCausalLM", "phi3"),
    ],
)
def test_generated_weights_are_of_the_true_architecture(name, architecture, family):
    config = profile(name)["tiny_config"]
    assert config["architectures"] == [architecture]
    assert config["model_type"] == family
    assert config["hidden_size"] // config["num_attention_heads"] == 64  # the CPU attention kernel has this one


def test_mixtral_is_a_mixture_of_eight_experts_two_at_work():
    config = profile("mixtral")["tiny_config"]
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (8, 2)


def test_only_phi3_has_as_many_key_value_heads_as_heads():
    heads = {n: profile(n)["tiny_config"]["num_key_value_heads"] for n in NAMES}
    assert heads == {"mixtral": 2, "hermes": 2, "openchat": 2, "phi3": 4}


def test_an_embedding_models_profile_says_how_long_its_vectors_are():
    found = profile("minilm")
    assert (found["architecture"], found["dimensions"], found["context"]) == ("BertModel", 384, 256)
    assert "tiny_config" not in found


@pytest.mark.parametrize("name", ["phi9", "../secrets", "os.path", ""])
def test_a_model_without_a_profile_is_refused(name):
    with pytest.raises(ProfileError):
        profile(name)


def test_generated_versions_tell_models_and_seeds_apart():
    versions = {generated_version(name, seed) for name in NAMES for seed in (0, 1)}
    assert len(versions) == 8
    assert generated_version("phi3", 0) == generated_version("phi3", 0)


def test_generated_weights_are_made_anew_only_on_purpose():
    # Raising RECIPE or changing a profile changes these; anything else that does would rebuild every host's weights.
    assert {name: generated_version(name, 0) for name in NAMES} == {
        "mixtral": "generated-6a3c3987d490",
        "hermes": "generated-26e2e1629d58",
        "openchat": "generated-9e9d9d6aa26b",
        "phi3": "generated-a792029dca4f",
    }
