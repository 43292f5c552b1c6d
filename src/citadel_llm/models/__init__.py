"""Each model's facts, once: its architecture, and its tokens and chat format or the length of its vectors.

A profile is plain data. The gateway does not need it to forward a request; the weights role does, to
make weights of the true architecture at a size that a small machine serves (`weights: generated`).
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import asdict, dataclass
from typing import Any

# Width and depth of generated weights. head_dim (HIDDEN / HEADS) must be one that vLLM's CPU attention has.
HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, VOCABULARY = 256, 2, 4, 2, 512, 4096
RECIPE = 1  # raise it when the generator makes other bytes from the same profile


class ProfileError(LookupError):
    """No module in this package describes the model; the text says where to add it."""


@dataclass(frozen=True)
class Profile:
    """What a model is, apart from its size.

    `config` holds the facts of the model's own config.json that do not scale with width or depth.
    `bos`, `eos`, `special_tokens` and `chat_template` are the tokenizer's; with `add_bos` a plain prompt begins
    with `bos`.
    """

    family: str
    architecture: str
    config: dict[str, Any]
    bos: str
    eos: str
    special_tokens: tuple[str, ...]
    chat_template: str
    add_bos: bool = True


@dataclass(frozen=True)
class EmbeddingProfile:
    """What an embedding model is: it answers with vectors of `dimensions` numbers, and has no chat format.

    `context` is the most tokens that it takes; `distance` is how alike two of its vectors are, by Qdrant's name.
    """

    family: str
    architecture: str
    dimensions: int
    context: int
    distance: str = "Cosine"


def profile(name: str) -> dict[str, Any]:
    """The profile of a model as plain data.

    Beside its fields: `context`, the most tokens that the model can attend to, and for a `Profile` also
    `tiny_config`, the config.json of its generated weights. Raises ProfileError for a model that no module describes.
    """
    if not name.isidentifier():
        raise ProfileError(f"{name!r} is no model's name")
    try:
        module = importlib.import_module(f"citadel_llm.models.{name}")
    except ModuleNotFoundError:
        raise ProfileError(f"model {name!r} has no profile: add src/citadel_llm/models/{name}.py") from None
    found: Profile | EmbeddingProfile = module.PROFILE
    if isinstance(found, EmbeddingProfile):
        return asdict(found)
    tiny = {
        "architectures": [found.architecture],
        "model_type": found.family,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS if found.config.get("multi_head") else KV_HEADS,
        "vocab_size": VOCABULARY,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **{key: value for key, value in found.config.items() if key != "multi_head"},
    }
    return {
        **asdict(found),
        "special_tokens": list(found.special_tokens),
        "context": found.config["max_position_embeddings"],
        "tiny_config": tiny,
    }


def kind_of(described: dict[str, Any]) -> str:
    """What a model of this profile is for: `generate` or `embedding`."""
    return "embedding" if "dimensions" in described else "generate"


def generated_version(name: str, seed: int) -> str:
    """Names the bytes that the generator makes for a model: the same name, the same bytes."""
    text = json.dumps([RECIPE, seed, profile(name)], sort_keys=True)
    return f"generated-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
