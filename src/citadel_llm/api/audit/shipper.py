"""Carries a journal to the database: in order, in batches, each record once, whatever ends meanwhile.

Each batch is one transaction, which locks the journal's chain, leaves out what the chain says was taken over already,
adds the others and brings the chain forward. Where the outcome of a transaction is not known, it is simply tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import monotonic, time_ns
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from citadel_llm.api.audit.journal import Entry, Journal
from citadel_llm.api.audit.record import Record, decode
from citadel_llm.integration.database import audit as table
from citadel_llm.integration.database import usage
from citadel_llm.integration.database.audit import Place
from citadel_llm.integration.database.chain import Row, address_of, copy_line, digest_of, json_text, narrowed, row_id
from citadel_llm.integration.database.pool import Database, DatabaseUnavailable

if TYPE_CHECKING:
    from citadel_llm.integration.metrics.audit import AuditMetrics
    from citadel_llm.utils.cost import Price

__all__ = ["BATCH", "Shipper"]

BATCH = 1000
_SLICE = 25  # rows read, or made, in one go: a third of a millisecond in which nobody is answered
_TIMEOUT_S = 10.0  # for a batch
_TOUCH_S = 60.0  # a key's last use is noted so often
_MAX_TOUCHED = 10_000
_PAUSE_S, _MAX_PAUSE_S = 0.25, 5.0
_NO_PARTITION = "no partition of relation"

type Tell = Callable[..., None]


class _Made(NamedTuple):
    """Of a batch: what of it the chain has not yet."""

    lines: list[str]  # as COPY takes them
    sums: usage.Sums
    keys: dict[str | None, int]  # when each was last used
    after: Place  # where they bring the chain to
    lost: int  # records of which the chain is told that they are


class Shipper:
    """Of one journal."""

    def __init__(
        self,
        journal: Journal,
        database: Database,
        metrics: AuditMetrics,
        tell: Tell,
        prices: Mapping[str, Price] | None = None,
    ) -> None:
        """What was used is summed up at these prices; without any it costs nothing."""
        self._journal = journal
        self._database = database
        self._metrics = metrics
        self._tell = tell
        self._prices = prices
        self._place: Place | None = None  # as the last batch left it
        self._rejected: set[int] = set()  # of the batch that is carried
        self._touched: dict[str, float] = {}
        self._used: dict[str, datetime] = {}
        self.error = ""  # why nothing is carried
        self.broken = False  # for a reason that is not the database's

    async def run(self, wake: asyncio.Event) -> None:
        """Carry what comes, for ever; `wake` is set when there is something."""
        pause_s = _PAUSE_S
        batch: list[Entry] = []
        while True:
            try:
                if not batch:
                    wake.clear()
                    batch = await self._read()
                if not batch:
                    await wake.wait()
                    continue
                await self.carry(batch)
            except Exception as failure:
                self._failed(failure)
                self.broken = not isinstance(failure, DatabaseUnavailable | psycopg.Error)
                if self.broken:
                    # Of the journal itself, such as a segment that can't be opened: it is read anew, and nothing of it
                    # is left out.
                    self._journal.rewind()
                    batch = []
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            else:
                batch, pause_s, self.broken = [], _PAUSE_S, False
                await self._touch()

    async def drain(self) -> None:
        """Carry what is there, and no more. Raises DatabaseUnavailable, psycopg.Error."""
        while batch := await self._read():
            await self.carry(batch)
        await self._touch()

    async def _read(self) -> list[Entry]:
        """The next batch; requests are answered in between."""
        batch: list[Entry] = []
        while len(batch) < BATCH and (found := self._journal.read(_SLICE)):
            batch += found
            await asyncio.sleep(0)
        return batch

    def _failed(self, failure: Exception) -> None:
        said = " ".join(str(failure).split()) or type(failure).__name__
        if not self.error:
            self._tell("warning", "audit_waits", error=said)
        self.error = said

    async def carry(self, batch: list[Entry]) -> None:
        """Carry these. Afterwards they are in the database, or beside the journal where it takes them in no form."""
        try:
            await self._transact(batch, None)
        except psycopg.errors.CheckViolation as refusal:
            if _NO_PARTITION not in str(refusal):
                await self._bisect(batch, refusal)
                return
            async with self._database.connection(_TIMEOUT_S) as connection:
                await table.make_partitions(connection)
            try:
                await self._transact(batch, None)
            except (psycopg.DataError, psycopg.IntegrityError) as again:
                await self._bisect(batch, again)
        except (psycopg.DataError, psycopg.IntegrityError) as refusal:
            await self._bisect(batch, refusal)

    async def _bisect(self, batch: list[Entry], refusal: psycopg.Error) -> None:
        """Carry all but those that are refused, in whose place a row tells so."""
        if len(batch) == 1:
            await self._transact(batch, refusal)
            return
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            try:
                await self._transact(part, None)
            except (psycopg.DataError, psycopg.IntegrityError) as again:
                await self._bisect(part, again)

    async def _transact(self, batch: list[Entry], refusal: psycopg.Error | None) -> None:
        journal = self._journal
        place = self._place
        made = None if place is None else await self._make(batch, place, refusal)
        began = monotonic()
        async with self._database.connection(_TIMEOUT_S) as connection:
            live = await table.take(connection, journal.mark.chain, journal.mark.after)
            if not journal.known and live.taken > journal.began_after:
                # The journal is an older copy of what was carried before: what it says now is not what was meant then.
                self._tell("warning", "audit_new_chain", old=journal.mark.chain, taken=live.taken)
                journal.begin_chain(journal.began_after)
                live = await table.take(connection, journal.mark.chain, journal.mark.after)
            journal.known = True
            if made is None or live != place:
                made = await self._make(batch, live, refusal)
            if made.lines:
                await table.add(connection, journal.mark.chain, made.lines, made.after)
                await usage.add(connection, made.sums)
        self._place = made.after
        journal.done(batch[-1].sequence, sum(e.size_bytes for e in batch if e.sequence > journal.done_to))
        self._rejected.difference_update([entry.sequence for entry in batch] if self._rejected else ())
        self._metrics.wrote(len(made.lines), monotonic() - began)
        self._metrics.lost(made.lost)
        if self.error:
            self.error = ""
            self._tell("info", "audit_goes_on")
        self._note_keys(made.keys)

    async def _make(self, batch: list[Entry], place: Place, refusal: psycopg.Error | None) -> _Made:
        """The rows for what the chain has not yet."""
        chain = self._journal.mark.chain
        lines: list[str] = []
        sums = usage.Sums(self._prices)
        keys: dict[str | None, int] = {}
        position, taken, digest = place
        lost = 0
        for index, entry in enumerate(batch):
            if index % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            if entry.sequence <= taken:
                continue
            found = [self._row(chain, entry, refusal)] if entry.payload else []
            if (end := entry.sequence - len(found)) > taken:
                found.insert(0, _gap(chain, taken, end))
                lost += end - taken
            for row in found:
                position += 1
                previous, digest = digest, digest_of(digest, chain, position, row)
                lines.append(copy_line(chain, position, previous, digest, row))
                sums.note(row)
                keys[row.key_id] = row.at_us
            taken = entry.sequence
        return _Made(lines, sums, keys, Place(position, taken, digest), lost)

    def _row(self, chain: str, entry: Entry, refusal: psycopg.Error | None) -> Row:
        try:
            record = decode(entry.payload)
        except (ValueError, RecursionError) as error:  # whole, and not of this release's making
            return self._reject(chain, entry, None, str(error))
        if refusal is not None:
            return self._reject(chain, entry, record, f"{refusal.sqlstate}: {refusal}")
        return row_of(chain, entry.sequence, record)

    def _reject(self, chain: str, entry: Entry, record: Record | None, why: str) -> Row:
        """Put the record aside; the row that tells so."""
        if entry.sequence not in self._rejected:  # else its row did not get there the last time
            self._rejected.add(entry.sequence)
            self._keep(chain, entry, record, why)
        return _note(chain, entry.sequence, "audit.rejected", {"sequence": entry.sequence, "why": why[:500]})

    def _keep(self, chain: str, entry: Entry, record: Record | None, why: str) -> None:
        facts = {"chain": chain, "sequence": entry.sequence, "why": why, "record": record or entry.payload}
        try:
            self._journal.reject(facts)
        except (OSError, TypeError, ValueError) as error:
            self._tell("error", "audit_reject_not_kept", error=str(error), sequence=entry.sequence)
        self._metrics.rejected()
        self._tell("error", "audit_rejected", sequence=entry.sequence, error=why)

    def _note_keys(self, keys: Mapping[str | None, int]) -> None:
        now = monotonic()
        for key, at_us in keys.items():
            if key is not None and now - self._touched.get(key, -_TOUCH_S) >= _TOUCH_S:
                self._used[key] = datetime.fromtimestamp(at_us / 1e6, UTC)

    async def _touch(self) -> None:
        """Note the keys' last use, apart from the records: what goes wrong here is tried again with their next one."""
        used, self._used = self._used, {}
        if not used:
            return
        if len(self._touched) > _MAX_TOUCHED:
            self._touched.clear()
        self._touched.update(dict.fromkeys(used, monotonic()))
        try:
            async with self._database.connection() as connection:
                await table.touch_keys(connection, sorted(used.items()))
        except (DatabaseUnavailable, psycopg.Error) as failure:
            self._tell("warning", "audit_keys_not_touched", error=" ".join(str(failure).split()))


def row_of(chain: str, sequence: int, record: Record) -> Row:
    """A record as a row."""
    first, latency = record.first_token_us, record.latency_us
    return Row(
        record.at_us,
        row_id(chain, sequence),
        record.kind,
        record.action,
        record.request_id,
        record.user_id,
        record.user_name,
        record.key_id,
        record.key_name,
        record.model,
        record.served_by,
        record.outcome,
        record.status,
        record.error_code,
        record.streamed,
        record.cached,
        record.prompt_tokens,
        record.completion_tokens,
        None if first is None else narrowed(first / 1e3),
        None if latency is None else narrowed(latency / 1e3),
        address_of(record.client),
        record.content_policy,
        json_text(record.content),
        json_text(record.detail),
    )


def _gap(chain: str, taken: int, end: int) -> Row:
    detail = {"from": taken + 1, "to": end, "why": "the journal was damaged"}
    return _note(chain, end + 1, "audit.lost", detail)


def _note(chain: str, sequence: int, action: str, detail: dict[str, object]) -> Row:
    """What the log says about itself."""
    return Row(
        time_ns() // 1000,
        row_id(chain, sequence, action),
        "security",
        action,
        "-",
        outcome="lost",
        detail=json_text(detail),
    )
