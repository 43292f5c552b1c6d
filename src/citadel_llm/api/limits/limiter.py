"""Whether a request may pass, by all the bounds that hold for it, and what it used in the end.

    if not limiter.admit(exchange, model, tokens):       # raises ApiError 429, 503
        await limiter.admit_patiently(exchange, model, tokens)
    ...
    limiter.settle(exchange, used)                       # once, whatever became of it

A request passes under all of its bounds or counts under none. The counts are in a table that all processes of the host
share, so that this is exact over them, and asks nobody else: see docs/limits.md for why, and what it costs.
"""

from __future__ import annotations

import asyncio
from time import monotonic, monotonic_ns, time
from typing import TYPE_CHECKING

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.limits import bucket, budget, settlement, window
from citadel_llm.api.limits.alone import enter_alone
from citadel_llm.api.limits.bounds import BoundsTable, Scope
from citadel_llm.api.limits.bucket import SCALE
from citadel_llm.api.limits.plan import Charge, Entry, Plan, make_plan, model_plan
from citadel_llm.api.limits.refusal import Fewest, Lowest, Refusal, lines_of, refusal_error
from citadel_llm.api.limits.table import BUCKET, BUDGET, COLUMNS, TOUCHED, WINDOW, Table, TableFull, digest_of
from citadel_llm.integration.metrics import Metrics
from citadel_llm.utils.config import Limits

if TYPE_CHECKING:
    from citadel_llm.api.limits.catchup import CatchUp
    from citadel_llm.api.middleware.exchange import Exchange

__all__ = ["Limiter"]

_MOST_PLANS = 8192
_PATIENCE_S = 0.25  # for the lock, which is held for microseconds; by a process that was stopped amid it, for longer
_PAUSE_S = 0.001
_REAP_S = 1.0
_NS_PER_S = 1_000_000_000
_NOTHING: Charge = (Plan([], budgeted=False), 0)


class Limiter:
    """For one process; `table` is shared."""

    def __init__(
        self,
        table: Table,
        limits: Limits,
        metrics: Metrics,
        catch_up: CatchUp | None = None,
    ) -> None:
        """`catch_up` knows what was used before; None where nobody does."""
        self.table = table
        self._limits = limits
        self._bounds: BoundsTable = {}
        self._metrics = metrics
        self._catch_up = catch_up
        self._plans: dict[tuple[Principal | None, str], Plan] = {}
        self._calendar = budget.Calendar()
        self._reap_at = 0.0

    @property
    def bounds(self) -> BoundsTable:
        """What is in force."""
        return self._bounds

    @bounds.setter
    def bounds(self, bounds: BoundsTable) -> None:
        self._bounds = bounds
        self._plans.clear()

    # Before

    def admit(self, exchange: Exchange, model: str, tokens: int, *, spin: bool = True) -> bool:
        """Count the request of `exchange.principal` in, with `tokens` for now; False where that takes patience.

        Raises ApiError: 429 with the bound that it does not fit under, 503 where nothing can be counted.
        """
        plan = self._plans.get((exchange.principal, model)) or self._plan(exchange, model)
        if plan.budgeted and time() >= min(entry.caught_up_until for entry in plan.entries if entry.budgeted):
            return False
        if not plan.entries:
            return True
        table = self.table
        if not (table.lock() if spin else table.lock(0)):
            return False
        now = monotonic_ns()
        try:
            if plan.alone is not None and (lines := enter_alone(table, plan.alone, tokens, now)) is not None:
                exchange.lines += lines
                exchange.charge = (plan, tokens)
                return True
            refusal, fewest, lowest = self._enter(plan, tokens, now)
        except TableFull as full:
            raise self._unavailable(str(full)) from full
        finally:
            table.unlock()
        exchange.lines += lines_of(table.words, fewest, lowest, now, tokens, counted=refusal is None)
        if refusal is not None:
            self._metrics.limited(refusal.entry.scope, refusal.kind)
            raise refusal_error(refusal)
        exchange.charge = (plan, tokens)
        return True

    async def admit_patiently(self, exchange: Exchange, model: str, tokens: int) -> None:
        """The same, with a little time for it."""
        end = monotonic() + _PATIENCE_S
        while True:
            plan = self._plan(exchange, model)
            if plan.budgeted:
                began = monotonic()
                await self._caught_up(plan)
                end += monotonic() - began
            if self.admit(exchange, model, tokens, spin=False):
                return
            if monotonic() > end:
                raise self._unavailable("another process keeps the table of limits locked")
            await asyncio.sleep(_PAUSE_S)

    def admit_fallback(self, model: str, tokens: int) -> Charge | None:
        """Count a request that another model was asked for under the bounds of `model`, by which it does not fit: None.

        It is the caller's to `settle_fallback`, once.
        """
        bounds = self._bounds.get(("model", model))
        if bounds is None:
            return _NOTHING
        plan = model_plan(model, bounds, self._limits)
        if not self.table.lock():
            return None
        try:
            refusal, _, _ = self._enter(plan, tokens, monotonic_ns())
        except TableFull:
            return None
        finally:
            self.table.unlock()
        if refusal is not None:
            self._metrics.limited(refusal.entry.scope, refusal.kind)
            return None
        return plan, tokens

    async def _caught_up(self, plan: Plan) -> None:
        if self._catch_up is not None:
            await self._catch_up.ensure(self.table, plan)
            return
        for entry in plan.entries:
            entry.caught_up_until = float("inf")

    def _plan(self, exchange: Exchange, model: str) -> Plan:
        principal = exchange.principal
        assert principal is not None  # noqa: S101 — who asks is known before what is asked for
        plan = self._plans.get((principal, model))
        if plan is None:
            if len(self._plans) > _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[principal, model] = make_plan(principal, model, self._bounds, self._limits)
        return plan

    def _unavailable(self, why: str) -> ApiError:
        self._metrics.limited("everyone", "unavailable")
        return ApiError(
            503,
            "limits_unavailable",
            f"Whether the request is within its limits can't be told at the moment: {why}. Try again later.",
            retry_after_s=self._limits.retry_after_s,
        )

    def _enter(self, plan: Plan, tokens: int, now: int) -> tuple[Refusal | None, Fewest | None, Lowest | None]:
        """Under the lock. What a process that dies amid it has written counts too much, if anything."""
        table, words = self.table, self.table.words
        refusal: Refusal | None = None
        fewest: Fewest | None = None
        lowest: Lowest | None = None
        for entry in plan.entries:
            at, (high, low) = entry.at, entry.digest
            if words[entry.index] != high or words[entry.index + 1] != low:
                at = table.record(entry.digest, now, time())
                entry.found(table, at)
            if entry.metered:
                settlement.fold(words, at, table.places, now, entry.tokens, entry.budgeted)
            if (limit := entry.requests) is not None:
                left = limit - window.used(words, at + WINDOW, now, limit) - 1
                if left < 0:
                    wait = window.wait_ns(words, at + WINDOW, now, limit) if limit else None
                    refusal = _later(refusal, Refusal(wait, entry, "requests_per_minute"))
                if fewest is None or left < fewest[0]:
                    fewest = left, entry
            if (rate := entry.tokens) is not None:
                level = bucket.level(words, at + BUCKET, now, rate)
                left = rate - tokens - -(-level // SCALE)
                if left < 0 and tokens:
                    wait = bucket.wait_ns(level, rate, tokens) if tokens <= rate else None
                    refusal = _later(refusal, Refusal(wait, entry, "tokens_per_minute", tokens))
                if lowest is None or left < lowest[0]:
                    lowest = left, level, entry
            if entry.at_once is not None and table.at_once(at) >= entry.at_once and self._crowded(entry):
                wait = self._limits.retry_after_s * _NS_PER_S if entry.at_once else None
                refusal = _later(refusal, Refusal(wait, entry, "concurrent_requests"))
            if entry.budgeted:
                refusal = self._look_at_budgets(entry, tokens, refusal)
        if refusal is None:
            self._count(plan, tokens, now)
        return refusal, fewest, lowest

    def _crowded(self, entry: Entry) -> bool:
        """Whether as many as allowed are under way, in processes that live."""
        self.table.free_places()
        return entry.at_once is not None and self.table.at_once(entry.at) >= entry.at_once

    def _count(self, plan: Plan, tokens: int, now: int) -> None:
        words, column = self.table.words, COLUMNS + self.table.place
        for entry in plan.entries:
            at = entry.at
            words[at + TOUCHED] = now
            if entry.requests is not None:
                window.add(words, at + WINDOW, now)
            if tokens and entry.tokens is not None:
                bucket.lift(words, at + BUCKET, entry.tokens, tokens)
            if entry.at_once is not None:
                words[at + column] += 1
            if entry.budgeted:
                budget.spend(words, at + BUDGET, 1, tokens)
            elif words[at + BUDGET + budget.SINCE]:
                budget.forget(words, at + BUDGET)

    def _look_at_budgets(self, entry: Entry, tokens: int, refusal: Refusal | None) -> Refusal | None:
        now_s = time()
        periods = self._calendar.at(now_s)
        words, at, bounds = self.table.words, entry.at + BUDGET, entry.bounds
        budget.roll(words, at, periods, now_s)
        budget.keep(words, at, periods.month_end)
        for kind, bound, word, more, end in (
            ("requests_per_day", bounds.requests_per_day, budget.DAY_REQUESTS, 1, periods.day_end),
            ("tokens_per_day", bounds.tokens_per_day, budget.DAY_TOKENS, tokens, periods.day_end),
            ("requests_per_month", bounds.requests_per_month, budget.MONTH_REQUESTS, 1, periods.month_end),
            ("tokens_per_month", bounds.tokens_per_month, budget.MONTH_TOKENS, tokens, periods.month_end),
        ):
            if bound is not None and more and words[at + word] + more > bound:
                wait = int((end - now_s) * _NS_PER_S) if more <= bound else None
                refusal = _later(refusal, Refusal(wait, entry, kind, tokens))
        return refusal

    # After

    def settle(self, exchange: Exchange, used: int) -> None:
        """The request is over, and used so many tokens. Takes no lock: nobody else writes to this process's columns."""
        charge = exchange.charge
        if charge is not None:
            exchange.charge = None
            self._settle(charge, used)

    def settle_fallback(self, charge: Charge, used: int | None) -> None:
        """The same for `admit_fallback`; None where it is not known, and the estimate stays."""
        self._settle(charge, charge[1] if used is None else used)

    def _settle(self, charge: Charge, used: int) -> None:
        plan, reserved = charge
        table = self.table
        place, more = table.place, used - reserved
        for entry in plan.entries:
            record = entry.record
            if entry.at_once is not None:
                record[COLUMNS + place] -= 1
            # Who uses nothing for a minute may lose its record amid a long request.
            if more and entry.metered and table.words[entry.index] == entry.digest[0]:
                settlement.tell(record, 0, place, monotonic_ns(), more)

    def tick(self) -> None:
        """Called several times a second: the dead are found."""
        now = monotonic()
        if now >= self._reap_at and self.table.lock():
            self._reap_at = now + _REAP_S
            try:
                self.table.free_places()
            finally:
                self.table.unlock()

    # To be shown

    def now(self, scope: Scope, subject: str) -> dict[str, int]:
        """What the subject uses on this host; raises ApiError 503."""
        if not self.table.lock():
            raise self._unavailable("another process keeps the table of limits locked")
        try:
            words, now, now_s = self.table.words, monotonic_ns(), time()
            at = self.table.find(digest_of(scope, subject))
            if not at:
                return dict.fromkeys(_SHOWN, 0)
            rate = words[at + BUCKET + 2]
            periods = self._calendar.at(now_s)
            counted = bool(words[at + BUDGET + budget.SINCE])
            settlement.fold(words, at, self.table.places, now, rate or None, counted)
            if counted:
                budget.roll(words, at + BUDGET, periods, now_s)
            requests = window.used(words, at + WINDOW, now, window.EXACT)
            values = (
                requests if requests < window.EXACT else window.used(words, at + WINDOW, now, window.EXACT + 1),
                -(-bucket.level(words, at + BUCKET, now, rate) // SCALE) if rate else 0,
                self.table.at_once(at),
                *(words[at + BUDGET + word] for word in budget.SPENT),
            )
            return dict(zip(_SHOWN, values, strict=True))
        finally:
            self.table.unlock()


_SHOWN = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "requests_per_day",
    "tokens_per_day",
    "requests_per_month",
    "tokens_per_month",
)


def _later(one: Refusal | None, other: Refusal) -> Refusal:
    """The one that takes longer to wait for."""
    if one is None or one.wait_ns is None:
        return one or other
    return other if other.wait_ns is None or other.wait_ns > one.wait_ns else one
