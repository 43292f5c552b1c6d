"""Files and vector stores, where the configuration has them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from citadel_llm.api.files.content import Content
from citadel_llm.api.files.embedder import Embedder
from citadel_llm.api.files.search import Searcher
from citadel_llm.api.files.worker import Worker
from citadel_llm.integration.database.files import Files
from citadel_llm.integration.database.ingestion import Ingestion
from citadel_llm.integration.database.vector_stores import VectorStores
from citadel_llm.utils.config import ConfigError

if TYPE_CHECKING:
    from citadel_llm.api.state import GatewayState

__all__ = ["FileService", "build_files"]


class FileService:
    """What the endpoints and the hot path need of it."""

    def __init__(self, state: GatewayState) -> None:
        database, vector, section = state.database, state.vector, state.config.files
        assert database is not None  # noqa: S101 — the configuration was checked
        assert vector is not None  # noqa: S101
        embedding = {name: model for name, model in state.models.items() if model.config.kind == "embedding"}
        self.section = section
        self.embedders = {name: Embedder(state, model) for name, model in embedding.items()}
        self.embedder = section.embedder or next(iter(embedding))
        self.content = Content(Path(section.path))
        self.files = Files(database)
        self.stores = VectorStores(database)
        self.vector = vector
        self.counters = state.metrics.files
        self.searcher = Searcher(vector, self.stores, self.embedders)
        self.worker = Worker(
            section,
            self.content,
            self.files,
            self.stores,
            Ingestion(database),
            vector,
            self.embedders,
            state.metrics.files,
            state.log,
            state.rng,
        )

    async def start(self) -> None:
        """Begin to work. Raises ConfigError where the folder or the tokenizer can't be used."""
        try:
            await asyncio.to_thread(self.content.prepare)
            await asyncio.to_thread(Path(self.section.tokenizer).read_bytes)
        except OSError as failure:
            raise ConfigError(f"`files`: {failure.filename}: {failure.strerror}") from None
        self.worker.start()

    async def stop(self) -> None:
        """End it."""
        await self.worker.stop()


def build_files(state: GatewayState) -> FileService | None:
    """None where the section is turned off."""
    return FileService(state) if state.config.files.enabled else None
