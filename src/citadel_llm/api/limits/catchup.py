"""What was used of a budget before this host's table began to count it: from the database's sums, in the background.

A request waits for it once, and not for long: where the database is away, or the table can't be had, it passes by what
is known here, and the next one of a second later tries again.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns, time
from typing import TYPE_CHECKING

from citadel_llm.api.audit.journal import chain_host
from citadel_llm.api.limits import budget
from citadel_llm.api.limits.plan import Entry, Plan
from citadel_llm.api.limits.table import BUDGET, Table, TableFull
from citadel_llm.integration.database.budgets import spent, spent_by_host

if TYPE_CHECKING:
    from collections.abc import Mapping

    from citadel_llm.integration.database.pool import Database

__all__ = ["CatchUp"]

_WAIT_S = 0.5
_AGAIN_S = 1.0
_LOCK_TRIES = 1000


class CatchUp:
    """For one process."""

    def __init__(self, database: Database, hosts: int = 1) -> None:
        """So many hosts share each budget."""
        self._database = database
        self._hosts = hosts
        self._host = chain_host()
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
            if behind is None:
                entry.caught_up_until = min(periods.day_end, time() + _AGAIN_S)
                continue
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

    async def _behind(self, table: Table, entry: Entry, now_s: float) -> list[budget.Period] | None:
        """The periods to catch up with; None where the table can't be asked."""
        periods = self._calendar.at(now_s)
        if not await self._locked(table):
            return None
        try:
            at = table.record(entry.digest, monotonic_ns(), now_s)
            entry.found(table, at)
            budget.roll(table.words, at + BUDGET, periods, now_s)
            budget.keep(table.words, at + BUDGET, periods.month_end)
            return budget.behind(table.words, at + BUDGET, periods)
        except TableFull:
            return None  # the request itself will be told
        finally:
            table.unlock()

    async def _load(self, table: Table, entry: Entry, periods: budget.Periods, behind: list[budget.Period]) -> None:
        found = await self._spent(entry, {one: getattr(periods, one) for one in behind})
        if found is None or not await self._locked(table):
            return
        try:
            if table.holds(entry.at, entry.digest):
                for period, (requests, tokens) in found.items():
                    budget.catch_up(table.words, entry.at + BUDGET, periods, period, requests, tokens)
        finally:
            table.unlock()

    async def _spent(
        self, entry: Entry, starts: Mapping[budget.Period, int]
    ) -> dict[budget.Period, tuple[int, int]] | None:
        """Requests and tokens that count against this host's share; None: not to be had.

        Where it can't be told in time which host used what, all of it counts: that is too much, never too little.
        """
        found = await spent(self._database, entry.scope, entry.subject, starts)
        if self._hosts == 1 or found is None or not any(sum(used) for used in found.values()):
            return found
        by_host = await spent_by_host(self._database, entry.scope, entry.subject, starts)
        if by_host is None:
            return found
        bounds = entry.bounds
        shares = {
            "day": (bounds.requests_per_day, bounds.tokens_per_day),
            "month": (bounds.requests_per_month, bounds.tokens_per_month),
        }

        def counts(used: Mapping[str, tuple[int, int]], which: int, share: int | None) -> int:
            of_host = {host: both[which] for host, both in used.items()}
            return budget.part(of_host, self._host, self._hosts, share)

        return {
            period: (counts(used, 0, shares[period][0]), counts(used, 1, shares[period][1]))
            for period, used in by_host.items()
        }
