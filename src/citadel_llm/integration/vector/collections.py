"""Which collections the models need: names, vectors and payload indexes, derived from the plan.

Pure standard library, since Ansible's filter plugin reads it on the controller.

Every model has one. An embedding model's holds the `documents` that it embedded; a generating model's holds `answers`:
texts of its own, looked up by meaning. Callers use the alias, `PREFIX_MODEL`; the collection behind it is named after
what its vectors come from, so that another embedding model, or another version of it, gets a collection beside the old
one, and the alias moves when that is filled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from citadel_llm.models import profile

__all__ = ["BM25", "DENSE", "CollectionError", "collections"]

DENSE, BM25 = "dense", "bm25"  # the vectors' names: of a model, and of the words
INDEXES: dict[str, dict[str, Any]] = {
    "documents": {
        "tenant": {"type": "keyword", "is_tenant": True},
        "store_id": {"type": "keyword"},
        "file_id": {"type": "keyword"},
        "chunk": {"type": "integer", "lookup": False, "range": True},
        "created_at": {"type": "integer", "lookup": False, "range": True},
    },
    "answers": {
        "tenant": {"type": "keyword", "is_tenant": True},
        "version": {"type": "keyword"},
        "expires_at": {"type": "integer", "lookup": False, "range": True},
    },
}


class CollectionError(ValueError):
    """No collections can be derived; the text says what is missing."""


def collections(
    models: Iterable[Mapping[str, Any]],
    *,
    prefix: str = "citadel",
    embedder: str = "",
    hnsw: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
    on_disk: bool = False,
) -> list[dict[str, Any]]:
    """By model of the plan: `model`, `purpose`, `embedder`, `dimensions`, `alias`, `name`, `settings`, `indexes`.

    `embedder` makes the vectors of generating models, by default the plan's first embedding model. `settings` is the
    body of Qdrant's call that makes the collection, `indexes` the schemas by field. Raises CollectionError.
    """
    planned = {str(model["name"]): model for model in models}
    embedders = [name for name, model in planned.items() if model["kind"] == "embedding"]
    if not embedders:
        raise CollectionError("no model of kind `embedding` in citadel_models: nothing makes vectors")
    chosen = embedder or embedders[0]
    if chosen not in embedders:
        raise CollectionError(f"{chosen!r} is no model of kind `embedding`; there are: {', '.join(embedders)}")
    made = []
    for name, model in planned.items():
        embeds = model["kind"] == "embedding"
        source = planned[name if embeds else chosen]
        vectors = _vectors(source)
        version = hashlib.sha256(json.dumps([source["weights_version"], vectors], sort_keys=True).encode())
        purpose = "documents" if embeds else "answers"
        settings: dict[str, Any] = {
            "vectors": {DENSE: {**vectors, "on_disk": on_disk}},
            "sparse_vectors": {BM25: {"modifier": "idf"}},
            "on_disk_payload": True,
            "metadata": {"model": name, "purpose": purpose, "embedder": source["name"]},
        }
        if hnsw:
            settings["hnsw_config"] = dict(hnsw)
        if quantization:
            settings["quantization_config"] = dict(quantization)
        made.append(
            {
                "model": name,
                "purpose": purpose,
                "embedder": source["name"],
                "dimensions": vectors["size"],
                "alias": f"{prefix}_{name}",
                "name": f"{prefix}_{name}-{source['name']}-{version.hexdigest()[:8]}",
                "settings": settings,
                "indexes": INDEXES[purpose],
            }
        )
    return made


def _vectors(model: Mapping[str, Any]) -> dict[str, Any]:
    described = profile(str(model.get("profile") or model["name"]))
    return {"size": int(described["dimensions"]), "distance": str(described["distance"])}
