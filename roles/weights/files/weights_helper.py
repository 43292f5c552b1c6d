"""What needs the engine environment's libraries: asking the hub, fetching from it, and making tiny weights.

Run by the module citadel_weights with the engine's Python: a JSON object on stdin, one on stdout, an error's text on
stderr with exit status 1.
"""

import fnmatch
import json
import os
import sys
import zlib
from pathlib import Path


class HelperError(Exception):
    """What went wrong and what to do about it."""


# -- hub ------------------------------------------------------------------------------------------------------


def hub_list(job):
    """The revision's files that the patterns choose: [{"file", "size", "sha256"}]; sha256 is None for small ones."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=job["endpoint"] or None, token=job["token"] or False)
    found = api.model_info(job["repo"], revision=job["revision"], files_metadata=True, timeout=60)
    files = []
    for entry in found.siblings or []:
        name = entry.rfilename
        wanted = any(fnmatch.fnmatch(name, pattern) for pattern in job["patterns"])
        if wanted and not any(fnmatch.fnmatch(name, pattern) for pattern in job["ignore_patterns"]):
            lfs = entry.lfs
            size = lfs.size if lfs else entry.size
            if size is None:
                raise HelperError(f"the hub does not say how large {name} is")
            files.append({"file": name, "size": size, "sha256": lfs.sha256 if lfs else None})
    if not any(entry["file"].endswith(".safetensors") for entry in files):
        raise HelperError(
            "the revision has no *.safetensors that weights_patterns choose; name a revision that has them"
        )
    return {"commit": found.sha, "files": files}


def hub_fetch(job):
    """Fetches the listed files into a directory. What is whole there already is not fetched again."""
    from huggingface_hub import snapshot_download

    snapshot_download(
        job["repo"], revision=job["commit"], local_dir=job["directory"], endpoint=job["endpoint"] or None,
        token=job["token"] or False, allow_patterns=[glob_escape(name) for name in job["files"]],
        max_workers=job["workers"],
    )  # fmt: skip
    return {}


def glob_escape(name):
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def explained(job, error):
    """A hub error in words that say what to do."""
    what = f"{job['repo']}@{job['revision']} at {job['endpoint'] or 'the hub'}"
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return f"{what} is gated: accept its terms with an account, and put its token into weights_hub_token_file"
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        return f"{what} is not there or not open to this token: mend repo and revision in citadel_models"
    text = str(error).strip().splitlines()
    said = text[0] if text else "no message"
    return f"{what}: {kind}: {said}. What was fetched whole is kept; run again to go on from there"


# -- generation -----------------------------------------------------------------------------------------------


def generate(job):
    """Random weights of a profile's architecture, with a tokenizer of its own. The same job makes the same bytes."""
    directory, profile = Path(job["directory"]), job["profile"]
    config = dict(profile["tiny_config"])
    tokenizer = train_tokenizer(directory, profile, config["vocab_size"], job["corpus"])
    ids = {name: tokenizer.token_to_id(profile[name]) for name in ("bos", "eos")}
    config.setdefault("bos_token_id", ids["bos"])
    config.setdefault("eos_token_id", ids["eos"])
    ends = list(dict.fromkeys([ids["eos"], config["eos_token_id"]]))
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {"bos_token_id": ids["bos"], "eos_token_id": ends})
    # Models of one shape get different numbers.
    seed = [job["seed"], zlib.crc32(job["model"].encode())]
    write_safetensors(directory / "model.safetensors", tensors(config), seed, config["initializer_range"])
    return {"commit": ""}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def corpus_texts(directory):
    """Texts of the system, each once (many are links to one another), in the order of their names."""
    paths = sorted({path.resolve() for path in Path(directory).iterdir() if path.is_file()})
    if not paths:
        raise HelperError(
            f"{directory} has no texts to train a tokenizer on: set weights_corpus to a directory that has"
        )
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def train_tokenizer(directory, profile, vocabulary, corpus):
    """A byte-level BPE with the model's special tokens first and its chat template beside it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=profile["special_tokens"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus_texts(corpus), trainer)
    if profile["add_bos"]:
        bos = profile["bos"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": profile["bos"],
        "eos_token": profile["eos"],
        "unk_token": profile["special_tokens"][0],
        "pad_token": profile["special_tokens"][0],
        "chat_template": profile["chat_template"],
        "model_max_length": profile["tiny_config"]["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    write_json(directory / "tokenizer_config.json", facts)
    return tokenizer


def tensors(config):
    """(name, shape) of every tensor as the architecture's checkpoints name them; one-dimensional ones are norms."""
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    groups = config["num_key_value_heads"] * (width // heads)
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (width,)
        yield f"{at}.post_attention_layernorm.weight", (width,)
        if config["model_type"] == "phi3":
            yield f"{at}.self_attn.qkv_proj.weight", (width + 2 * groups, width)
        else:
            yield f"{at}.self_attn.q_proj.weight", (width, width)
            yield f"{at}.self_attn.k_proj.weight", (groups, width)
            yield f"{at}.self_attn.v_proj.weight", (groups, width)
        yield f"{at}.self_attn.o_proj.weight", (width, width)
        yield from feed_forward(config, at, width, inner)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (config["vocab_size"], width)


def feed_forward(config, at, width, inner):
    if config["model_type"] == "mixtral":
        yield f"{at}.block_sparse_moe.gate.weight", (config["num_local_experts"], width)
        for expert in range(config["num_local_experts"]):
            for name, shape in (("w1", (inner, width)), ("w2", (width, inner)), ("w3", (inner, width))):
                yield f"{at}.block_sparse_moe.experts.{expert}.{name}.weight", shape
    elif config["model_type"] == "phi3":
        yield f"{at}.mlp.gate_up_proj.weight", (2 * inner, width)
        yield f"{at}.mlp.down_proj.weight", (width, inner)
    else:
        yield f"{at}.mlp.gate_proj.weight", (inner, width)
        yield f"{at}.mlp.up_proj.weight", (inner, width)
        yield f"{at}.mlp.down_proj.weight", (width, inner)


def write_safetensors(path, shapes, seed, deviation):
    """The safetensors format by hand, since NumPy has no bfloat16: 8 bytes of header length, the header, the data."""
    import numpy

    generator = numpy.random.Generator(numpy.random.PCG64(seed))
    header, parts, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, shape in shapes:
        norm = len(shape) == 1
        values = numpy.ones(shape) if norm else generator.standard_normal(shape) * deviation
        bits = values.astype("<f4").view("<u4")
        data = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()  # round to nearest even
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(parts)


VERBS = {"hub_list": hub_list, "hub_fetch": hub_fetch, "generate": generate}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not spoil the answer
    job = json.load(sys.stdin)
    try:
        answer = VERBS[job["verb"]](job)
    except HelperError as error:
        sys.exit(str(error))
    except Exception as error:
        if not job["verb"].startswith("hub"):
            raise
        sys.exit(explained(job, error))
    json.dump(answer, answers)


if __name__ == "__main__":
    main()
