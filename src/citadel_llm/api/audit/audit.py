"""The audit log of one instance: records into its journal as they are made, and from there to the database.

audit = Audit(config.audit, database, metrics.audit, log.event, instance="1")
audit.start()
if audit.closed: raise audit.refusal()
audit.write(record)
await audit.stop()
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any

import psycopg

from citadel_llm.api.audit import journal as journals
from citadel_llm.api.audit.action import action_of, is_admin
from citadel_llm.api.audit.content import Content
from citadel_llm.api.audit.journal import Journal, JournalError, Options
from citadel_llm.api.audit.record import Record, encode
from citadel_llm.api.audit.refusals import Refusals
from citadel_llm.api.audit.shipper import Shipper, Tell
from citadel_llm.api.errors import ApiError
from citadel_llm.integration.database.pool import Database, DatabaseUnavailable
from citadel_llm.integration.metrics.audit import AuditMetrics
from citadel_llm.utils import config
from citadel_llm.utils.outcomes import Outcome, outcome_of

if TYPE_CHECKING:
    from citadel_llm.api.identity.principal import Principal
    from citadel_llm.api.middleware.exchange import Exchange
    from citadel_llm.utils.cost import Price

__all__ = ["Audit", "build_audit"]

SYNC_S = 0.1
_ROW_S = 60.0  # one row about refused callers in so long
_ADOPT_S = 15.0  # the journals of instances that are gone are looked for so often
_LAST_S = 3.0  # for what is left at the end
_RESUME = 0.9  # of the bound: a full journal takes something again below this
_MAX_TEXT = 256


def build_audit(
    section: config.Audit,
    database: Database | None,
    metrics: AuditMetrics,
    tell: Tell,
    *,
    instance: str,
    prices: Mapping[str, Price] | None = None,
) -> Audit | None:
    """Usage is summed up at `prices`. Raises ConfigError where the journal's folder can't be used."""
    if not section.enabled:
        return None
    try:
        return Audit(section, database, metrics, tell, instance=instance, prices=prices)
    except JournalError as error:
        raise config.ConfigError(str(error)) from None


class Audit:
    """See the module."""

    def __init__(
        self,
        section: config.Audit,
        database: Database | None,
        metrics: AuditMetrics,
        tell: Tell,
        *,
        instance: str,
        prices: Mapping[str, Price] | None = None,
    ) -> None:
        self._section = section
        self._database = database
        self._metrics = metrics
        self._tell = tell
        self._instance = instance
        self._prices = prices
        self._options = Options(section.segment_bytes, section.spool_bytes)
        self._base = Path(section.directory)
        content = Content(section)
        self.content = content if content.policy != "none" else None
        self.journal = Journal.open(self._base, instance, self._options, tell)
        self._refusals = Refusals()
        self._dropped = self._told_dropped = 0
        self._wake = asyncio.Event()
        self._shipper = None if database is None else Shipper(self.journal, database, metrics, tell, prices)
        self._tasks: list[asyncio.Task[None]] = []
        self._drops = section.when_full == "drop"
        self.closed = False  # new requests are to be refused
        self._no_room = False
        self._failed = ""  # why the last look after the journal ended early
        metrics.spool_limit_bytes.set(section.spool_bytes)

    # What is written

    def write(self, record: Record) -> None:
        """Write it to the journal. Whatever is wrong with it, or with the disk, its request is answered."""
        if self._no_room and self._drops:
            self._dropped += 1
            return
        try:
            payload = encode(record)
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            self._tell("error", "audit_unencodable", request_id=record.request_id, error=str(error))
            record.content = record.error_code = None
            record.detail = {"unencodable": str(error)[:_MAX_TEXT].encode("ascii", "replace").decode()}
            payload = encode(record)
        if not self.journal.append(payload):
            self._look()

    def request(
        self, action: str, exchange: Exchange, principal: Principal, client: str | None, status: int, latency_s: float
    ) -> None:
        """Write down a request of the hot path."""
        error = exchange.error
        detail: dict[str, Any] | None = None
        if exchange.fallback_from or exchange.retries:
            detail = {"fallback_from": exchange.fallback_from or None, "retries": exchange.retries}
        first = exchange.first_token_at
        record = Record(
            time_ns() // 1000,
            "request",
            action,
            exchange.request_id,
            principal.user_id or None,
            principal.user,
            principal.key_id or None,
            principal.key_name or None,
            exchange.model or None,
            exchange.engine or None,
            outcome_of(status),
            status,
            None if error is None else _code(error),
            exchange.stream,
            exchange.cache == "hit",
            exchange.prompt_tokens,
            exchange.completion_tokens,
            int((first - exchange.began) * 1e6) if first and exchange.stream else None,
            int(latency_s * 1e6),
            client,
            detail=detail,
        )
        if self.content is not None:
            record.content_policy = self.content.policy
            if exchange.kept is not None:
                record.content = self.content.of(exchange.kept)
        self.write(record)

    def cold(self, scope: Mapping[str, Any], route: str, request_id: str, status: int, latency_s: float) -> None:
        """Write down any other request of somebody who is known; what its handler adds is in `citadel.audit`."""
        principal: Principal | None = scope.get("citadel.principal")
        if principal is None:
            return
        said: dict[str, Any] = dict(scope.get("citadel.audit") or {})
        client = scope.get("client")
        method = scope["method"]
        self.write(
            Record(
                time_ns() // 1000,
                "admin" if is_admin(route) else "request",
                str(said.pop("action", None) or action_of(method, route)),
                request_id,
                principal.user_id or None,
                principal.user,
                principal.key_id or None,
                principal.key_name or None,
                outcome=outcome_of(status),
                status=status,
                error_code=said.pop("error_code", None),
                latency_us=int(latency_s * 1e6),
                client=client[0] if client else None,
                detail=said or None,
            )
        )

    def refused(self, reason: str, client: str | None) -> None:
        """A caller that nobody knows."""
        self._refusals.note(reason, client)

    def _security(self, action: str, outcome: Outcome, detail: dict[str, Any]) -> None:
        detail = {"instance": self._instance, **detail}
        self.write(Record(time_ns() // 1000, "security", action, "-", outcome=outcome, detail=detail))

    def tell_refused(self) -> None:
        """A row about the callers that were refused since the last one, if there were any."""
        detail = self._refusals.take()
        if detail is not None:
            self._security("callers.refused", "refused", detail)

    # Whether there is room

    def refusal(self) -> ApiError:
        """The 503 for a request whose record would find no room."""
        self._metrics.refused()
        return ApiError(
            503,
            "audit_unavailable",
            "What is done here must be written down, and there is no room for it at the moment. Try again later.",
            retry_after_s=5,
        )

    def _look(self) -> None:
        journal = self.journal
        if self._no_room:
            full = bool(journal.waiting) or journal.pending_bytes >= _RESUME * self._options.spool_bytes
        else:
            full = journal.full
        if full and self._database is None and not journal.waiting:
            self._count_dropped(journal.trim())
            full = journal.full
        if full != self._no_room:
            self._no_room = full
            self.closed = full and not self._drops
            self._metrics.full.set(int(full))
            self._tell("error" if full else "info", "audit_full" if full else "audit_has_room", dropped=self._dropped)
            if not full:
                self._tell_dropped()

    def _tell_dropped(self) -> None:
        """A row in the place of those that were given up."""
        count = self._dropped + self.journal.dropped - self._told_dropped
        if count:
            self._told_dropped += count
            self._count_dropped(count)
            self._security("audit.dropped", "lost", {"records": count})

    def _count_dropped(self, records: int) -> None:
        if records:
            self._metrics.dropped(records)

    @property
    def state(self) -> dict[str, Any]:
        """For /health."""
        journal = self.journal
        waits = self._failed or (self._shipper.error if self._shipper is not None else "")
        return {
            "state": "full" if self._no_room else "waiting" if waits else "ok",
            "pending": journal.last - journal.done_to + journal.waiting,
            "spool_bytes": journal.pending_bytes,
            "spool_limit_bytes": self._options.spool_bytes,
            "error": journal.stalled or waits or None,
        }

    def publish(self) -> None:
        """Bring the gauges up to date."""
        journal = self.journal
        self._metrics.queue.set(journal.last - journal.done_to + journal.waiting)
        self._metrics.spool_bytes.set(journal.pending_bytes)
        broken = self._shipper is not None and self._shipper.broken
        self._metrics.failing.set(int(broken or bool(self._failed)))

    # What runs beside

    def start(self) -> None:
        """Begin to carry records away."""
        self._tasks.append(asyncio.create_task(self._keep()))
        if self._shipper is not None:
            self._tasks.append(asyncio.create_task(self._shipper.run(self._wake)))
            self._tasks.append(asyncio.create_task(self._adopt()))

    async def stop(self) -> None:
        """Carry what is left, as far as that is quick; the rest is found by the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.tell_refused()
        self._tell_dropped()
        await self._sync()
        if self._database is not None and self._database.up:
            with contextlib.suppress(TimeoutError, DatabaseUnavailable, psycopg.Error):
                async with asyncio.timeout(_LAST_S):
                    await self._carry_rest(self._database)
        self.publish()
        self.journal.close()

    async def _carry_rest(self, database: Database) -> None:
        # What a cancelled task had read is read again: the chain knows what of it has arrived.
        self.journal.rewind()
        await Shipper(self.journal, database, self._metrics, self._tell, self._prices).drain()

    async def _sync(self) -> None:
        ticket = self.journal.begin_sync()
        if ticket is None:
            return
        failure: OSError | None = None
        try:
            await asyncio.to_thread(journals.sync, ticket)
        except OSError as error:
            failure = error
        self.journal.end_sync(ticket, failure)
        self._wake.set()

    async def _keep(self) -> None:
        """Bring what was written to the disk ten times a second, and look after the room."""
        told = monotonic()
        while True:
            await asyncio.sleep(SYNC_S)
            try:
                if self.journal.waiting:
                    self.journal.retry()
                await self._sync()
                if monotonic() - told >= _ROW_S:
                    told = monotonic()
                    self.tell_refused()
                if self._no_room or self.journal.full:
                    self._look()
            except Exception as failure:  # whatever it is, what comes later is to get to the disk
                before, self._failed = self._failed, f"{type(failure).__name__}: {failure}"
                if self._failed != before:
                    self._tell("error", "audit_upkeep_failed", error=self._failed)
            else:
                self._failed = ""

    async def _adopt(self) -> None:
        """Carry away what instances that are gone have left."""
        while True:
            up = self._database is not None and self._database.up
            if up:
                try:
                    await self._adopt_all()
                except (DatabaseUnavailable, psycopg.Error, JournalError, OSError) as failure:
                    self._tell("warning", "audit_not_adopted", error=" ".join(str(failure).split()))
            await asyncio.sleep(_ADOPT_S if up else 1.0)

    async def _adopt_all(self) -> None:
        database = self._database
        if database is None:
            return
        for folder in sorted(self._base.iterdir()):
            if folder == self.journal.folder or not folder.is_dir() or Journal.is_carried(folder):
                continue
            left = Journal.adopt(folder, self._options, self._tell)
            if left is None:
                continue
            count = left.last - left.done_to
            try:
                await Shipper(left, database, self._metrics, self._tell, self._prices).drain()
            finally:
                left.close(remove=True)
            self._tell("info", "audit_adopted", folder=str(folder), records=count)


def _code(error: Exception) -> str:
    found = getattr(error, "code", None)
    return str(found)[:_MAX_TEXT].replace("\x00", "") if found else type(error).__name__
