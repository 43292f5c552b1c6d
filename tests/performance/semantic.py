"""How often the semantic cache would answer wrongly: files/evals/semantic-pairs.json, with real vectors.

The vectors come from a gateway (`--url`, key in $CITADEL_API_KEY), or are made here from the weights of MiniLM
(`--weights`, the folder that the role `weights` has made), which takes no engine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import sys
import urllib.request
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy

from citadel_llm.integration.cache.alike import alike
from citadel_llm.utils.config import Semantic

REPO = Path(__file__).resolve().parents[2]
PAIRS = REPO / "files/evals/semantic-pairs.json"
THRESHOLDS = (0.80, 0.85, 0.90, 0.92, 0.95, 0.97)
WANTED = 0.99

type Embed = Callable[[Sequence[str]], Any]


def pairs(path: Path = PAIRS) -> list[tuple[str, str, bool]]:
    """(one question, another, whether they ask for the same), those of different topics included.

    The file is a list of `question`, what asks for the `same`, and `other` that look alike and ask for something else.
    """
    groups = [([one["question"], *one["same"]], one["other"]) for one in json.loads(path.read_text())]
    found = []
    for same, other in groups:
        found += [(*pair, True) for pair in combinations(same, 2)]
        found += [(one, another, False) for one in same for another in other]
        found += [(*pair, False) for pair in combinations(other, 2)]
    for (one, _), (another, _) in combinations(groups, 2):
        found += [(a, b, False) for a in one for b in another]
    return found


def by_gateway(url: str, model: str) -> Embed:
    """What makes vectors by a gateway's embedding model."""

    def embed(texts: Sequence[str]) -> Any:
        found = []
        for begin in range(0, len(texts), 64):
            request = urllib.request.Request(
                f"{url}/v1/embeddings", json.dumps({"model": model, "input": texts[begin : begin + 64]}).encode(),
                {"authorization": f"Bearer {os.environ['CITADEL_API_KEY']}", "content-type": "application/json"},
            )  # fmt: skip
            with urllib.request.urlopen(request, timeout=60) as answer:
                found += [one["embedding"] for one in json.load(answer)["data"]]
        vectors = numpy.array(found)
        return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)

    return embed


class MiniLM:
    """The model's forward pass, in numpy: BERT's encoder, the mean over the tokens, length 1."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415

        data = (folder / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        self._weights = {}
        for name, told in json.loads(data[8 : 8 + size]).items():
            if told.get("dtype") == "F32":
                begin, end = (8 + size + offset for offset in told["data_offsets"])
                self._weights[name.removeprefix("bert.")] = numpy.frombuffer(
                    data[begin:end], dtype=numpy.float32
                ).reshape(told["shape"])
        config = json.loads((folder / "config.json").read_text())
        self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._erf = numpy.vectorize(math.erf)

    def __call__(self, texts: Sequence[str]) -> Any:
        """Vectors, one after the other."""
        return numpy.array([self._of(text) for text in texts])

    def _of(self, text: str) -> Any:
        ids = self._tokenizer.encode(text).ids
        embeddings = (
            self._weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
        )
        words, positions, kinds = embeddings
        found = self._normal(words[ids] + positions[: len(ids)] + kinds[0], "embeddings.LayerNorm")
        for number in range(self._layers):
            at = f"encoder.layer.{number}."
            query, key, value = (
                self._linear(found, f"{at}attention.self.{name}").reshape(len(ids), self._heads, -1).transpose(1, 0, 2)
                for name in ("query", "key", "value")
            )
            scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
            shares = numpy.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            seen = (shares @ value).transpose(1, 0, 2).reshape(len(ids), -1)
            found = self._normal(
                found + self._linear(seen, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm"
            )
            inner = self._linear(found, f"{at}intermediate.dense")
            inner = 0.5 * inner * (1 + self._erf(inner / math.sqrt(2)))
            found = self._normal(found + self._linear(inner, f"{at}output.dense"), f"{at}output.LayerNorm")
        vector = found.mean(0)
        return vector / numpy.linalg.norm(vector)

    def _linear(self, given: Any, name: str) -> Any:
        return given @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _normal(self, given: Any, name: str) -> Any:
        spread = given.std(-1, keepdims=True)
        scaled = (given - given.mean(-1, keepdims=True)) / numpy.sqrt(spread**2 + 1e-12)
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def main(words: Sequence[str]) -> int:
    """Print a table; status 1 where the default threshold is not precise enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", help="a gateway's address; the key is $CITADEL_API_KEY")
    source.add_argument("--weights", type=Path, help="the folder of MiniLM's weights")
    parser.add_argument("--model", default="minilm")
    given = parser.parse_args(words)
    embed: Embed = by_gateway(given.url, given.model) if given.url else MiniLM(given.weights)
    labelled = pairs()
    texts = sorted({text for one, another, _ in labelled for text in (one, another)})
    vectors = dict(zip(texts, embed(texts), strict=True))
    scored = [(float(vectors[a] @ vectors[b]), alike(a, b), same, a, b) for a, b, same in labelled]
    total = sum(same for _, _, same, _, _ in scored)
    default = Semantic().threshold
    print(f"{len(scored)} pairs, {total} of them the same; default threshold {default}")
    print("threshold  guard  hits  false  precision  recall")
    good = False
    for threshold in sorted({*THRESHOLDS, default}):
        for guard in (False, True):
            hits = [one for one in scored if one[0] >= threshold and (one[1] or not guard)]
            right = sum(one[2] for one in hits)
            precision = right / len(hits) if hits else 1.0
            print(
                f"{threshold:9.2f}  {'yes' if guard else 'no':>5}  {len(hits):4}  {len(hits) - right:5}  "
                f"{precision:9.4f}  {right / total:6.3f}"
            )
            good |= guard and threshold == default and precision >= WANTED
    for score, passed, same, one, another in sorted(scored, reverse=True):
        if passed and not same and score >= default:
            print(f"false at {score:.3f}: {one} | {another}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
