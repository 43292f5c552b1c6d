"""What callers send about vector stores, checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.filters import checked_attributes
from citadel_llm.api.files.search import Ranking
from citadel_llm.integration.database.vector_stores import NewFile
from citadel_llm.utils.config import Files as Section

__all__ = ["AddFile", "Attributes", "ChangeStore", "NewBatch", "NewStore", "RankingOptions", "SearchStore", "new_file"]

BATCH = 2000
type _Id = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    pass


class ExpiresAfter(_Body):
    """When an unused store goes."""

    anchor: Literal["last_active_at"]
    days: Annotated[int, Meta(ge=1, le=365)]


class _Auto(_Body, tag="auto"):
    pass


class _Sizes(_Body):
    max_chunk_size_tokens: Annotated[int, Meta(ge=100, le=4096)]
    chunk_overlap_tokens: Annotated[int, Meta(ge=0)]


class _Static(_Body, tag="static"):
    static: _Sizes


type Strategy = _Auto | _Static


class NewStore(_Body):
    """POST /v1/vector_stores"""

    name: Annotated[str, Meta(max_length=512)] | None = None
    description: Annotated[str, Meta(max_length=2048)] | None = None
    file_ids: Annotated[list[_Id], Meta(max_length=BATCH)] | None = None
    expires_after: ExpiresAfter | None = None
    chunking_strategy: Strategy | None = None
    metadata: dict[str, str] | None = None


class ChangeStore(_Body):
    """POST /v1/vector_stores/ID"""

    name: Annotated[str, Meta(max_length=512)] | UnsetType | None = UNSET
    expires_after: ExpiresAfter | UnsetType | None = UNSET
    metadata: dict[str, str] | UnsetType | None = UNSET


class AddFile(_Body):
    """POST /v1/vector_stores/ID/files"""

    file_id: _Id
    attributes: Any = None
    chunking_strategy: Strategy | None = None


class NewBatch(_Body):
    """POST /v1/vector_stores/ID/file_batches"""

    file_ids: Annotated[list[_Id], Meta(max_length=BATCH)] | None = None
    files: Annotated[list[AddFile], Meta(max_length=BATCH)] | None = None
    attributes: Any = None
    chunking_strategy: Strategy | None = None


class Attributes(_Body):
    """POST /v1/vector_stores/ID/files/ID"""

    attributes: Any


class RankingOptions(msgspec.Struct):
    """How what is found is sorted."""

    ranker: Literal["auto", "default-2024-11-15", "none"] = "auto"
    score_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.0

    @property
    def ranking(self) -> Ranking:
        """The same for the search."""
        return Ranking(self.ranker, self.score_threshold)


type _Query = Annotated[str, Meta(min_length=1, max_length=65_536)]


class SearchStore(_Body):
    """POST /v1/vector_stores/ID/search"""

    query: _Query | Annotated[list[_Query], Meta(min_length=1, max_length=16)]
    filters: Any = None
    max_num_results: Annotated[int, Meta(ge=1, le=50)] = 10
    ranking_options: RankingOptions | None = None
    rewrite_query: bool = False


def new_file(id: str, attributes: Any, strategy: Strategy | None, section: Section) -> NewFile:
    """What is put into a store. Raises ApiError 400."""
    if isinstance(strategy, _Static):
        sizes = strategy.static
        if 2 * sizes.chunk_overlap_tokens > sizes.max_chunk_size_tokens:
            raise ApiError(
                400,
                "invalid_request",
                "chunking_strategy: expected `chunk_overlap_tokens` of at most half of `max_chunk_size_tokens`",
                param="chunking_strategy",
            )
        most, overlap = sizes.max_chunk_size_tokens, sizes.chunk_overlap_tokens
    else:
        most, overlap = section.chunk_tokens, section.overlap_tokens
    return NewFile(id, checked_attributes(attributes), most, overlap)
