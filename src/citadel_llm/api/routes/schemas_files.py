"""The shapes of files and vector stores, for the documentation; what comes in is checked elsewhere."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from citadel_llm.api.routes.schemas_sessions import errors

__all__ = [
    "BatchObject",
    "ContentPage",
    "Deleted",
    "FileObject",
    "FilePage",
    "SearchPage",
    "StoreFileObject",
    "StoreFilePage",
    "StoreObject",
    "StorePage",
    "errors",
]


class _Page(BaseModel):
    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileObject(BaseModel):
    """A file that was uploaded. Times are seconds since 1970."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]


class FilePage(_Page):
    """Some of them."""

    data: list[FileObject]


class Deleted(BaseModel):
    """It is gone."""

    id: str
    object: str
    deleted: Literal[True]


class FileCounts(BaseModel):
    """How many files are in which state."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int


class StoreObject(BaseModel):
    """A vector store."""

    id: str
    object: Literal["vector_store"]
    created_at: int
    name: str
    description: str
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["expired", "in_progress", "completed"]
    expires_after: dict[str, Any] | None
    expires_at: int | None
    last_active_at: int
    metadata: dict[str, str]
    model: str = Field(description="Whose vectors are in it")


class StorePage(_Page):
    """Some of them."""

    data: list[StoreObject]


class LastError(BaseModel):
    """Why a file could not be put in."""

    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class StoreFileObject(BaseModel):
    """A file in a store."""

    id: str
    object: Literal["vector_store.file"]
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    usage_bytes: int
    last_error: LastError | None
    attributes: dict[str, str | float | bool]
    chunking_strategy: dict[str, Any]
    chunks: int = Field(description="How many of its chunks are in")


class StoreFilePage(_Page):
    """Some of them."""

    data: list[StoreFileObject]


class BatchObject(BaseModel):
    """Files that were added at once."""

    id: str
    object: Literal["vector_store.files_batch"]
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    file_counts: FileCounts


class Text(BaseModel):
    """Some text."""

    type: Literal["text"]
    text: str


class Result(BaseModel):
    """What was found in a file."""

    file_id: str
    filename: str
    score: float
    attributes: dict[str, str | float | bool]
    content: list[Text]


class SearchPage(BaseModel):
    """What was found, the best first."""

    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[Result]
    has_more: bool
    next_page: None


class ContentPage(BaseModel):
    """A file's chunks as they are in the store."""

    object: Literal["vector_store.file_content.page"]
    data: list[Text]
    has_more: bool
    next_page: None
