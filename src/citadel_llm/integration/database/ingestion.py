"""The work on files in stores: claimed under a lease, taken up by another process where its holder is gone.

    job = await work.claim(lease_s=60)
    await work.renew(job, lease_s=60, chunks=64)     # raises LeaseLost where it is not ours any more
    await work.completed(job, chunks, size_bytes)

Everything raises DatabaseUnavailable.
"""

# ruff: noqa: S608 — only constants go into the statements

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Database

__all__ = ["Ingestion", "Job", "LeaseLost"]


class LeaseLost(Exception):
    """The work is not ours any more: it was cancelled, begun anew, or taken up by another."""


class Job(NamedTuple):
    """A file that is to be put into a store, or whose points are to go."""

    store_id: str
    file_id: str
    user_id: str
    status: str  # in_progress; deleting, cancelled or failed where its points are to go
    attributes: dict[str, Any]
    max_tokens: int
    overlap_tokens: int
    chunks_done: int
    attempts: int
    generation: int
    created_at: int
    model: str
    filename: str | None  # none: the file is gone
    digest: bytes | None
    lease: str


# Deletions first: they are quick. Then whoever has waited longest, one user's after another's by chance of the time.
CLAIM: Final = f"""{ON_PRIMARY}with chosen as (
  select store_id, file_id from llm.vector_store_files
  where (status in ('in_progress', 'deleting') or (dirty and status in ('cancelled', 'failed'))) and try_at <= now()
    and (lease_until is null or lease_until <= now())
  order by status <> 'in_progress' desc, try_at, created_at limit 1 for update skip locked
), taken as (
  update llm.vector_store_files f set lease = %(lease)s, lease_until = now() + make_interval(secs => %(lease_s)s),
    attempts = attempts + 1, dirty = true
  from chosen c where f.store_id = c.store_id and f.file_id = c.file_id returning f.*
)
select t.store_id, t.file_id, cast(t.user_id as text), t.status, t.attributes, t.max_tokens, t.overlap_tokens,
  t.chunks_done, t.attempts, t.generation, cast(extract(epoch from t.created_at) as bigint), s.model,
  n.filename, n.digest
from taken t join llm.vector_stores s on s.id = t.store_id left join llm.files n on n.id = t.file_id"""
_MINE = (
    "where store_id = %(store)s and file_id = %(file)s and lease = %(lease)s and generation = %(generation)s "
    "and status = %(status)s"
)
RENEW: Final = (
    f"{ON_PRIMARY}update llm.vector_store_files set lease_until = now() + make_interval(secs => %(lease_s)s), "
    f"attempts = case when %(chunks)s > chunks_done then 0 else attempts end, chunks_done = %(chunks)s {_MINE} "
    "and lease_until > now()"
)
COMPLETED: Final = (
    f"{ON_PRIMARY}update llm.vector_store_files set status = 'completed', dirty = false, chunks_done = %(chunks)s, "
    f"usage_bytes = %(size)s, lease = null, lease_until = null {_MINE}"
)
FAILED: Final = (
    f"{ON_PRIMARY}update llm.vector_store_files set status = 'failed', error_code = %(code)s, "
    f"error_message = %(message)s, try_at = now(), lease = null, lease_until = null {_MINE}"
)
# Whatever became of it meanwhile: the next one need not wait for the lease to run out.
GIVE_BACK: Final = (
    f"{ON_PRIMARY}update llm.vector_store_files set lease = null, lease_until = null, "
    "attempts = case when %(blameless)s then greatest(attempts - 1, 0) else attempts end, "
    "try_at = now() + make_interval(secs => %(pause_s)s) "
    "where store_id = %(store)s and file_id = %(file)s and lease = %(lease)s"
)
CLEANED: Final = (
    f"{ON_PRIMARY}update llm.vector_store_files set dirty = false, chunks_done = 0, lease = null, "
    f"lease_until = null {_MINE}"
)
REMOVED: Final = f"{ON_PRIMARY}delete from llm.vector_store_files {_MINE}"
# Stores that nobody sees any more, or that were not used for as long as they were to be kept.
EXPIRE: Final = (
    f"{ON_PRIMARY}update llm.vector_stores set deleted_at = now() where deleted_at is null "
    "and last_active_at + make_interval(days => expires_days) <= now() - interval '30 days'"
)
SWEEP: Final = (
    f"{ON_PRIMARY}delete from llm.vector_stores s where deleted_at < now() - interval '1 minute' "
    "and not exists (select from llm.vector_store_files f where f.store_id = s.id)"
)
WAITING: Final = f"{ON_PRIMARY}select count(*) from llm.vector_store_files where status in ('in_progress', 'deleting')"


class Ingestion:
    """The table, as those see it who work on it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, lease_s: float) -> Job | None:
        """Something to do; None where there is nothing."""
        lease = str(uuid.uuid4())
        async with self._database.connection() as connection:
            row = await (await connection.execute(CLAIM, {"lease": lease, "lease_s": lease_s})).fetchone()
        return None if row is None else Job(*row, lease)  # type: ignore[call-arg]

    async def renew(self, job: Job, lease_s: float, chunks: int) -> None:
        """Go on working; so many chunks are done. Raises LeaseLost."""
        await self._mine(RENEW, job, lease_s=lease_s, chunks=chunks)

    async def completed(self, job: Job, chunks: int, size_bytes: int) -> None:
        """It is whole. Raises LeaseLost."""
        await self._mine(COMPLETED, job, chunks=chunks, size=size_bytes)

    async def failed(self, job: Job, code: str, message: str) -> None:
        """It can't be done, and another try would not help. Raises LeaseLost."""
        await self._mine(FAILED, job, code=code, message=message[:1000])

    async def cleaned(self, job: Job) -> None:
        """Qdrant has nothing of it, and is not to get it. Raises LeaseLost."""
        await self._mine(CLEANED, job)

    async def removed(self, job: Job) -> None:
        """Nothing is left of it. Raises LeaseLost."""
        await self._mine(REMOVED, job)

    async def give_back(self, job: Job, pause_s: float = 0.0, *, blameless: bool = True) -> None:
        """Somebody may go on with it, after `pause_s`; an attempt that was nobody's fault does not count."""
        values = _values(job, pause_s=pause_s, blameless=blameless)
        async with self._database.connection() as connection:
            await connection.execute(GIVE_BACK, values)

    async def sweep(self) -> None:
        """Stores that nobody used go, and those of which nothing is left."""
        async with self._database.connection() as connection:
            await connection.execute(EXPIRE)
            await connection.execute(SWEEP)

    async def waiting(self) -> int:
        """How many files are to be worked on."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(WAITING)).fetchone()
        return int(row[0]) if row else 0

    async def _mine(self, statement: str, job: Job, **values: Any) -> None:
        async with self._database.connection() as connection:
            if not (await connection.execute(statement, _values(job, **values))).rowcount:
                raise LeaseLost


def _values(job: Job, **more: Any) -> dict[str, Any]:
    return {
        "store": job.store_id, "file": job.file_id, "lease": job.lease, "generation": job.generation,
        "status": job.status, **more,
    }  # fmt: skip
