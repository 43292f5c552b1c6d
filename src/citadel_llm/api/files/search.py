"""What is found in a user's stores: by meaning and by words, of the files that are whole.

Here, and nowhere else, a search of stores is made: the tenant is the stores' owner, whose points alone the client
sees, and the database says which of the named stores and files are that one's and there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.embedder import Embedder, EmbeddingUnavailable
from citadel_llm.integration.database.vector_stores import VectorStores
from citadel_llm.integration.vector.errors import VectorError, VectorRefused, VectorUnavailable
from citadel_llm.integration.vector.points import Filter

if TYPE_CHECKING:
    from citadel_llm.integration.vector.client import VectorClient

__all__ = ["Found", "Ranking", "Searcher", "embedding_unavailable", "missing_store", "vector_unavailable"]

_EMBED_S = 10.0
_SPARE = 8  # more than are wanted: of files that are being put in or taken out nothing is told

type Ranker = Literal["auto", "default-2024-11-15", "none"]


class Ranking(NamedTuple):
    """How what is found is sorted. `none`: by meaning alone."""

    ranker: Ranker = "auto"
    score_threshold: float = 0.0


class Found(NamedTuple):
    """A passage."""

    store_id: str
    file_id: str
    filename: str
    chunk: int
    score: float
    attributes: dict[str, Any]
    text: str


def vector_unavailable(failure: VectorError) -> ApiError:
    """The 503 while Qdrant is away; what it refuses is ours to mend."""
    retry_after_s = max(1, round(failure.retry_after_s)) if isinstance(failure, VectorUnavailable) else 5
    why = " (its collection is not there)" if isinstance(failure, VectorRefused) and failure.status == 404 else ""
    return ApiError(
        503,
        "vector_store_unavailable",
        f"Vector stores can't be reached at the moment{why}. Try again later.",
        retry_after_s=retry_after_s,
    )


def embedding_unavailable(model: str, reason: str) -> ApiError:
    """The 503 where nothing makes vectors now."""
    return ApiError(
        503,
        "embedding_unavailable",
        f"The model `{model}`, which makes vectors of texts, can't be asked at the moment: {reason}",
        retry_after_s=5,
    )


def missing_store(id: str) -> ApiError:
    """The 404."""
    return ApiError(
        404, "vector_store_not_found", f"There is no vector store `{id[:64]}` of yours.", param="vector_store_id"
    )


class Searcher:
    """Searches stores."""

    def __init__(self, vector: VectorClient, stores: VectorStores, embedders: dict[str, Embedder]) -> None:
        self._vector = vector
        self._stores = stores
        self._embedders = embedders

    async def search(
        self,
        user_id: str,
        store_ids: Sequence[str],
        queries: Sequence[str],
        *,
        caller: str,
        limit: int,
        allowed: Filter | None = None,
        ranking: Ranking = Ranking(),  # noqa: B008 — immutable
        fresh: bool = False,
    ) -> list[Found]:
        """The best passages, the best first. Raises ApiError 404 and 503, and DatabaseUnavailable."""
        own = await self._stores.use(user_id, list(store_ids))
        for id in store_ids:
            if id not in own:
                raise missing_store(id)
        best: dict[tuple[str, str, int], Found] = {}
        for model in sorted(set(own.values())):
            ids = [id for id, its in own.items() if its == model]
            for found in await self._of_model(
                user_id, model, ids, queries, caller=caller, limit=limit, allowed=allowed, ranking=ranking, fresh=fresh
            ):
                key = (found.store_id, found.file_id, found.chunk)
                if key not in best or best[key].score < found.score:
                    best[key] = found
        ordered = sorted(best.values(), key=lambda one: (-one.score, one.store_id, one.file_id, one.chunk))
        return ordered[:limit]

    async def _of_model(
        self,
        user_id: str,
        model: str,
        store_ids: list[str],
        queries: Sequence[str],
        *,
        caller: str,
        limit: int,
        allowed: Filter | None,
        ranking: Ranking,
        fresh: bool,
    ) -> list[Found]:
        embedder = self._embedders.get(model)
        if embedder is None:
            raise embedding_unavailable(model, "it is not served here any more.")
        try:
            vectors = await embedder.embed(queries, caller=caller, timeout_s=_EMBED_S)
        except EmbeddingUnavailable as failure:
            raise embedding_unavailable(model, str(failure)) from None
        in_stores: dict[str, Any] = {"key": "store_id", "match": {"any": store_ids}}
        wanted: Filter = {"must": [in_stores] if allowed is None else [in_stores, allowed]}
        hits = []
        for query, vector in zip(queries, vectors, strict=True):
            try:
                hits += await self._vector.search(
                    self._vector.alias(model),
                    tenant=user_id,
                    vector=vector,
                    text=None if ranking.ranker == "none" else query,
                    allowed=wanted,
                    limit=limit + _SPARE,
                    score_threshold=ranking.score_threshold or None,
                    fresh=fresh,
                )
            except VectorError as failure:
                raise vector_unavailable(failure) from None
        payloads = [hit.payload for hit in hits]
        ready = await self._stores.ready(user_id, store_ids, list({one["file_id"] for one in payloads}))
        return [
            Found(
                store_id=of["store_id"],
                file_id=of["file_id"],
                filename=ready[place][0],
                chunk=of["chunk"],
                score=hit.score or 0.0,
                attributes=ready[place][1],
                text=of["text"],
            )
            for hit, of in zip(hits, payloads, strict=True)
            if (place := (of["store_id"], of["file_id"])) in ready
        ]
