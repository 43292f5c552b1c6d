"""What was used of a budget before this host's table began to count it: from the database's sums, in the background.

A request waits for it once, and not for long: where the database is away, it passes by what is known here.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns, time
from typing import TYPE_CHECKING

from citadel_llm.api.limits import budget
from citadel_llm.api.limits.plan import Entry, Plan
from citadel_llm.api.limits.table import BUDGET, Table, TableFull
from citadel_llm.integration.database.budgets import spent

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Database

__all__ = ["CatchUp"]

_WAIT_S = 0.5
_AGAIN_S = 1.0
_LOCK_TRIES = 1000


class CatchUp:
    """For one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._calendar = budget.Calendar()
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}

    async def ensure(self, table: Table, plan: Plan) -> None:
        """Bring the plan's budgets up to date, or let it be for a second."""
        for entry in plan.entries:
            now_s = time()
            if not entry.budgeted or now_s < entry.caught_up_until:
                continue
            periods = self._calendar.at(now_s)
            behind = await self._behind(table, entry, now_s)
            if not behind:
                entry.caught_up_until = periods.day_end
                continue
            task = self._tasks.get(entry.digest)
            if task is None:
                task = self._tasks[entry.digest] = asyncio.create_task(self._load(table, entry, periods, behind))
                task.add_done_callback(lambda _, digest=entry.digest: self._tasks.pop(digest, None))  # type: ignore[misc]
            if not entry.caught_up_until:
                await asyncio.wait({task}, timeout=_WAIT_S)
            entry.caught_up_until = min(periods.day_end, time() + _AGAIN_S)

    async def _locked(self, table: Table) -> bool:
        for _ in range(_LOCK_TRIES):
            if table.lock():
                return True
            await asyncio.sleep(0.001)
        return False

    async def _behind(self, table: Table, entry: Entry, now_s: float) -> list[budget.Period]:
        periods = self._calendar.at(now_s)
        if not await self._locked(table):
            return []
        try:
            at = table.record(entry.digest, monotonic_ns(), now_s)
            entry.found(table, at)
            budget.roll(table.words, at + BUDGET, periods, now_s)
            budget.keep(table.words, at + BUDGET, periods.month_end)
            return budget.behind(table.words, at + BUDGET, periods)
        except TableFull:
            return []  # the request itself will be told
        finally:
            table.unlock()

    async def _load(self, table: Table, entry: Entry, periods: budget.Periods, behind: list[budget.Period]) -> None:
        found = await spent(self._database, entry.scope, entry.subject, {one: getattr(periods, one) for one in behind})
        if found is None or not await self._locked(table):
            return
        try:
            if table.holds(entry.at, entry.digest):
                for period, (requests, tokens) in found.items():
                    budget.catch_up(table.words, entry.at + BUDGET, periods, period, requests, tokens)
        finally:
            table.unlock()
