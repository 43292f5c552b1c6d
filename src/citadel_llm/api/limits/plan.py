"""Which bounds a request of a caller for a model is under, worked out once for many requests."""

from __future__ import annotations

from dataclasses import dataclass

from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.limits.bounds import Bounds, BoundsTable, Scope
from citadel_llm.api.limits.lines import passed_reset, requests_line, tokens_line
from citadel_llm.api.limits.table import Table, digest_of
from citadel_llm.utils.config import Limits

__all__ = ["Charge", "Entry", "Plan", "key_subject", "make_plan", "model_plan", "shares"]

_FIELDS = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "requests_per_day",
    "tokens_per_day",
    "requests_per_month",
    "tokens_per_month",
)
_NOWHERE = memoryview(bytes(8)).cast("q")


@dataclass(slots=True, eq=False)
class Entry:
    """What one subject may use on this host. `at` is where its record was seen last."""

    scope: Scope
    subject: str
    bounds: Bounds
    digest: tuple[int, int]
    requests: int | None
    tokens: int | None
    at_once: int | None
    budgeted: bool
    metered: bool = False  # tokens matter
    at: int = 0
    index: int = 0  # where the table says whose record that is
    record: memoryview[int] = _NOWHERE
    requests_line: str = ""  # of an answer's head, up to what is left
    tokens_line: str = ""
    caught_up_until: float = 0.0  # seconds since 1970: until then nobody needs to look

    def found(self, table: Table, at: int) -> None:
        """Remember where the record is."""
        self.at, self.index, self.record = at, table.entry_of(at), table.view(at)


@dataclass(slots=True, eq=False)
class Plan:
    """All of them, of those that have bounds."""

    entries: list[Entry]
    budgeted: bool
    alone: Entry | None = None  # where there is one subject only, and no budgets

    def __post_init__(self) -> None:
        if len(self.entries) == 1 and not self.budgeted:
            self.alone = self.entries[0]


type Charge = tuple[Plan, int]  # what a request counts under, and the tokens that were reserved for it


def key_subject(principal: Principal) -> str:
    """Under which name a caller's own bounds are found: its key's id, where it has one."""
    return principal.key_id or principal.caller


def make_plan(principal: Principal, model: str, table: BoundsTable, limits: Limits) -> Plan:
    """The bounds in force for a request of `principal` for `model`."""
    defaults = Bounds(
        limits.default_requests_per_minute, limits.default_tokens_per_minute, limits.default_concurrent_requests
    )
    found: list[tuple[Scope, str, Bounds | None]] = [
        ("key", key_subject(principal), _filled(table.get(("key", key_subject(principal))), defaults)),
        ("user", principal.user_id, table.get(("user", principal.user_id)) if principal.user_id else None),
        ("model", model, table.get(("model", model))),
        ("everyone", "*", table.get(("everyone", "*"))),
    ]
    entries = [
        _entry(scope, subject, shares(bounds, limits))
        for scope, subject, bounds in found
        if bounds is not None and any(getattr(bounds, field) is not None for field in _FIELDS)
    ]
    return Plan(entries, budgeted=any(entry.budgeted for entry in entries))


def model_plan(model: str, bounds: Bounds, limits: Limits) -> Plan:
    """A model's bounds alone."""
    entry = _entry("model", model, shares(bounds, limits))
    return Plan([entry], budgeted=entry.budgeted)


def _filled(bounds: Bounds | None, defaults: Bounds) -> Bounds:
    if bounds is None:
        return defaults
    values = (getattr(bounds, field) for field in _FIELDS)
    return Bounds(
        *(getattr(defaults, name) if value is None else value for name, value in zip(_FIELDS, values, strict=True))
    )


def shares(bounds: Bounds, limits: Limits) -> Bounds:
    """This host's part: all hosts' parts add up to the bound, and differ by 1 at most."""
    if limits.hosts == 1:
        return bounds
    values = (getattr(bounds, field) for field in _FIELDS)
    return Bounds(*(None if one is None else (one + limits.hosts - 1 - limits.host) // limits.hosts for one in values))


def _entry(scope: Scope, subject: str, bounds: Bounds) -> Entry:
    budgeted = any(getattr(bounds, field) is not None for field in _FIELDS[3:])
    requests, tokens = bounds.requests_per_minute, bounds.tokens_per_minute
    return Entry(
        scope=scope,
        subject=subject,
        bounds=bounds,
        digest=digest_of(scope, subject),
        requests=requests,
        tokens=tokens,
        at_once=bounds.concurrent_requests,
        budgeted=budgeted,
        metered=budgeted or tokens is not None,
        requests_line="" if requests is None else requests_line(requests, passed_reset(requests)),
        tokens_line="" if tokens is None else tokens_line(tokens),
    )
