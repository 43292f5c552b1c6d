"""Puts files into stores, and takes them out: in the background, by whichever gateway instance comes first.

A file is read and cut again by whoever goes on with it, always into the same chunks; those that the database says are
done are passed over. A chunk's id follows from its store, file and number, so that what is written twice is there once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import traceback
import uuid
from collections.abc import Sequence
from random import Random
from time import monotonic
from typing import TYPE_CHECKING

from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.content import Content
from citadel_llm.api.files.embedder import Embedder, EmbeddingUnavailable, mean
from citadel_llm.api.files.filters import payload_of
from citadel_llm.integration.database.files import Files
from citadel_llm.integration.database.ingestion import Ingestion, Job, LeaseLost
from citadel_llm.integration.database.target import DatabaseUnavailable
from citadel_llm.integration.database.vector_stores import VectorStores
from citadel_llm.integration.documents.chunks import Chunk
from citadel_llm.integration.documents.parsers import DocumentError
from citadel_llm.integration.documents.process import Readers, Task
from citadel_llm.integration.vector.errors import VectorError
from citadel_llm.integration.vector.points import Filter, Point

if TYPE_CHECKING:
    from citadel_llm.integration.metrics.files import FileCounters
    from citadel_llm.integration.vector.client import VectorClient
    from citadel_llm.utils.config import Files as Section
    from citadel_llm.utils.logging import LogWriter

__all__ = ["CALLER", "Worker", "point_id"]

CALLER = "ingestion"  # waits for places at the embedding model as one caller among others
_NAMESPACE = uuid.UUID("5f0c7d5e-3a0c-4d39-9a1b-6e8f5f2b7c11")
_ATTEMPTS = 20  # without getting any further
_EMBED_S = 120.0
_SWEEP_S = 600.0
_LOOKED_FOR = 500  # contents in one question
_IDLE_S = 30.0  # then what reads files needs no memory any more


def point_id(store_id: str, file_id: str, chunk: int) -> str:
    """The id of a chunk's point."""
    return str(uuid.uuid5(_NAMESPACE, f"{store_id}/{file_id}/{chunk}"))


class Worker:
    """The background tasks of one gateway instance."""

    def __init__(
        self,
        section: Section,
        content: Content,
        files: Files,
        stores: VectorStores,
        work: Ingestion,
        vector: VectorClient,
        embedders: dict[str, Embedder],
        counters: FileCounters,
        log: LogWriter,
        rng: Random,
    ) -> None:
        self._section = section
        self._content = content
        self._files = files
        self._stores = stores
        self._work = work
        self._vector = vector
        self._embedders = embedders
        self._counters = counters
        self._log = log
        self._rng = rng
        self._readers = Readers()
        self._working = 0
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._run(), name="ingestion") for _ in range(self._section.workers)]
        self._tasks.append(asyncio.create_task(self._upkeep(), name="files upkeep"))

    async def stop(self) -> None:
        """End; what was under way is left for others to go on with."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._readers.stop()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    async def _run(self) -> None:
        idle_since = monotonic()
        while True:
            try:
                job = await self._work.claim(self._section.lease_s)
            except DatabaseUnavailable:
                job = None
            except Exception as failure:
                self._unexpected(failure)
                job = None
            if job is not None:
                self._working += 1
                try:
                    await self._do(job)
                finally:
                    self._working -= 1
                idle_since = monotonic()
                continue
            if not self._working and monotonic() - idle_since > _IDLE_S:
                await self._readers.stop()
            pause_s = self._section.poll_s * self._rng.uniform(0.75, 1.25)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_s)
            self._wake.clear()

    async def _do(self, job: Job) -> None:
        outcome = "interrupted"
        try:
            outcome = await self._done(job)
        except LeaseLost:
            outcome = "lost"
            with contextlib.suppress(DatabaseUnavailable):
                await self._work.give_back(job)
        except (DatabaseUnavailable, VectorError, EmbeddingUnavailable, TimeoutError) as failure:
            self._log.event(
                "warning", "ingestion_paused", store=job.store_id, file=job.file_id, error=str(failure)[:512]
            )
            outcome = "paused"
            with contextlib.suppress(DatabaseUnavailable):
                await self._work.give_back(job, self._section.retry_s * self._rng.uniform(0.75, 1.25))
            await asyncio.sleep(min(1.0, self._section.retry_s))
        except asyncio.CancelledError:
            with contextlib.suppress(DatabaseUnavailable, asyncio.CancelledError):
                async with asyncio.timeout(1.0):
                    await self._work.give_back(job)
            raise
        except Exception as failure:
            self._unexpected(failure)
            outcome = "error"
            with contextlib.suppress(DatabaseUnavailable):
                await self._work.give_back(job, self._section.retry_s, blameless=False)
        finally:
            self._counters.worked(outcome)

    async def _done(self, job: Job) -> str:
        if job.status != "in_progress":
            await self._clear(job)
            return "removed"
        if job.attempts > _ATTEMPTS:
            await self._fail(
                job, "server_error", "The file could not be put in, again and again; the gateway's log says why."
            )
            return "failed"
        try:
            await self._ingest(job)
        except DocumentError as failure:
            await self._fail(job, failure.code, str(failure))
            return "failed"
        except ApiError as failure:
            await self._fail(job, "server_error", f"The embedding model refuses it: {failure.message}")
            return "failed"
        return "completed"

    async def _fail(self, job: Job, code: str, message: str) -> None:
        await self._work.failed(job, code, message)
        self._log.event(
            "info", "ingestion_failed", store=job.store_id, file=job.file_id, code=code, message=message[:512]
        )
        self.wake()  # what was written of it goes

    async def _clear(self, job: Job) -> None:
        await self._vector.delete(self._vector.alias(job.model), tenant=job.user_id, allowed=_points_of(job))
        if job.status == "deleting":
            await self._work.removed(job)
        else:
            await self._work.cleaned(job)

    async def _ingest(self, job: Job) -> None:
        embedder = self._embedders.get(job.model)
        if embedder is None:
            raise DocumentError("server_error", f"The model `{job.model}` of this store is not served here any more.")
        if job.digest is None or job.filename is None:
            raise DocumentError("invalid_file", "The file was deleted.")
        section = self._section
        task = Task(
            filename=job.filename,
            tokenizer=section.tokenizer,
            max_tokens=job.max_tokens,
            overlap_tokens=job.overlap_tokens,
            part_tokens=max(16, (embedder.model.config.max_tokens or 512) - 10),  # what begins and ends a text too
            memory_bytes=section.read_memory_bytes,
            cpu_s=section.read_cpu_s,
            text_bytes=section.max_text_bytes,
        )
        done, count = job.chunks_done, 0
        waiting: list[tuple[int, Chunk]] = []
        try:
            async with self._readers.reading(self._content.path(job.digest), task) as document:
                async for chunk in document:
                    if count >= section.max_chunks:
                        raise DocumentError("invalid_file", f"The file has more than {section.max_chunks} chunks.")
                    if count >= done:
                        waiting.append((count, chunk))
                    count += 1
                    if len(waiting) >= section.batch:
                        await self._write(job, embedder, waiting)
                        waiting.clear()
                size_bytes = document.size_bytes
        except FileNotFoundError:
            raise DocumentError("server_error", "The file's content is not on this server.") from None
        if waiting:
            await self._write(job, embedder, waiting)
        if count == 0:
            raise DocumentError("invalid_file", "The file has no text.")
        if job.generation > 1:  # of an earlier time, with smaller chunks
            beyond: Filter = {"must": [_points_of(job), {"key": "chunk", "range": {"gte": count}}]}
            await self._work.renew(job, section.lease_s, max(count, done))
            await self._vector.delete(self._vector.alias(job.model), tenant=job.user_id, allowed=beyond)
        await self._work.completed(job, count, size_bytes)

    async def _write(self, job: Job, embedder: Embedder, some: Sequence[tuple[int, Chunk]]) -> None:
        """Write these chunks. Raises LeaseLost where they are not ours to write any more."""
        texts = [part for _, chunk in some for part in chunk.parts]
        vectors: list[list[float]] = []
        with self._counters.embedding():
            for begin in range(0, len(texts), self._section.batch):
                vectors += await embedder.embed(
                    texts[begin : begin + self._section.batch], caller=CALLER, timeout_s=_EMBED_S
                )
        points, at = [], 0
        for number, chunk in some:
            own = vectors[at : at + len(chunk.parts)]
            at += len(chunk.parts)
            points.append(
                Point(
                    id=point_id(job.store_id, job.file_id, number),
                    vector=own[0] if len(own) == 1 else mean(own),
                    text=chunk.text,
                    payload={
                        "store_id": job.store_id,
                        "file_id": job.file_id,
                        "chunk": number,
                        "created_at": job.created_at,
                        "attributes": payload_of(job.attributes),
                        "text": chunk.text,
                    },
                )
            )
        # All before these is done. The lease outlasts the write: whoever claims the row next finds it there.
        await self._work.renew(job, self._section.lease_s, some[0][0])
        async with asyncio.timeout(self._section.lease_s / 2):
            await self._vector.upsert(self._vector.alias(job.model), points, tenant=job.user_id)
        self._counters.chunks(len(points))

    async def _upkeep(self) -> None:
        """What nobody asks for: files and stores whose time is over, contents that no file has."""
        while True:
            try:
                while (left := await self._stores.left()) is not None:
                    await self._stores.empty(left)
                await self._work.sweep()
                for id, user_id in await self._files.expired():
                    digest = await self._files.delete(user_id, id)
                    if digest is not None:
                        await self.release(digest)
                there = await asyncio.to_thread(lambda: list(self._content.digests()))
                for some in itertools.batched(there, _LOOKED_FOR):
                    for digest in await self._files.nobodys(list(some)):
                        await self.release(digest)
                self._counters.waiting.set(await self._work.waiting())
            except DatabaseUnavailable:
                pass
            except Exception as failure:
                self._unexpected(failure)
            await asyncio.sleep(_SWEEP_S * self._rng.uniform(0.75, 1.25))

    async def release(self, digest: bytes) -> None:
        """Remove a content from the disk where no file has it."""

        async def remove() -> None:
            await self._content.remove(digest)

        await self._files.release(digest, remove)

    def _unexpected(self, failure: Exception) -> None:
        text = "".join(traceback.format_exception(failure))[-8192:]
        self._log.event("error", "ingestion_unexpected", traceback=text)


def _points_of(job: Job) -> Filter:
    return {
        "must": [
            {"key": "store_id", "match": {"value": job.store_id}},
            {"key": "file_id", "match": {"value": job.file_id}},
        ]
    }
