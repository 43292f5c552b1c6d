"""What is set as bounds: in a minute, at once, in a day and a month. Rows of `llm.limits` and `llm.budgets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Bounds", "BoundsTable", "Scope"]

type Scope = Literal["key", "user", "model", "everyone"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one subject; None is no bound."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    requests_per_month: int | None = None
    tokens_per_month: int | None = None


type BoundsTable = Mapping[tuple[Scope, str], Bounds]
"""By scope and subject: a key's or a user's id, a model's name; `*` with `everyone`, whose bounds hold for all
together. Never changed in place: another table is another object."""
