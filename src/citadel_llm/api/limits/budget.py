"""Requests and tokens of the day and of the month, in UTC.

    roll(words, at, calendar.at(now_s), now_s)
    spend(words, at, requests=1, tokens=17)

Counting begins anew by itself where a period ends. Who was not counted from a period's beginning on (the host was
restarted, the budget is new) is behind by what was used before: `behind` says so, and `catch_up` takes it from
elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

__all__ = [
    "DAY_REQUESTS",
    "DAY_TOKENS",
    "MONTH_REQUESTS",
    "MONTH_TOKENS",
    "SINCE",
    "SPENT",
    "WORDS",
    "Calendar",
    "Period",
    "Periods",
    "behind",
    "catch_up",
    "forget",
    "keep",
    "kept",
    "part",
    "roll",
    "spend",
]

type Words = MutableSequence[int] | memoryview[int]
type Period = Literal["day", "month"]

# From `at` on
_DAY: Final = 0  # when it began, in seconds since 1970
DAY_REQUESTS: Final = 1
DAY_TOKENS: Final = 2
_MONTH: Final = 3
MONTH_REQUESTS: Final = 4
MONTH_TOKENS: Final = 5
SINCE: Final = 6  # counted from then on, in seconds since 1970
_DAY_CAUGHT_UP: Final = 7  # the beginning of the day, or month, for which the rest was taken from elsewhere
_MONTH_CAUGHT_UP: Final = 8
_KEPT_UNTIL: Final = 9
WORDS: Final = 10
SPENT: Final = (DAY_REQUESTS, DAY_TOKENS, MONTH_REQUESTS, MONTH_TOKENS)


class Periods(NamedTuple):
    """The day and the month of a moment, in seconds since 1970."""

    day: int
    day_end: int
    month: int
    month_end: int


class Calendar:
    """Remembers the day that it is."""

    def __init__(self) -> None:
        self._now = Periods(0, 0, 0, 0)

    def at(self, now_s: float) -> Periods:
        """The day and the month of `now_s`."""
        if not self._now.day <= now_s < self._now.day_end:
            midnight = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            first = midnight.replace(day=1)
            moments = (midnight, midnight + timedelta(days=1), first, (first + timedelta(days=31)).replace(day=1))
            self._now = Periods(*(int(moment.timestamp()) for moment in moments))
        return self._now


def roll(words: Words, at: int, now: Periods, now_s: float) -> None:
    """Begin anew what has ended. A clock that is set back begins nothing."""
    if not words[at + SINCE]:
        words[at + SINCE] = int(now_s) + 1  # what came earlier in this second was not counted
    if words[at + _DAY] < now.day:
        words[at + DAY_REQUESTS] = words[at + DAY_TOKENS] = 0
        words[at + _DAY] = now.day
    if words[at + _MONTH] < now.month:
        words[at + MONTH_REQUESTS] = words[at + MONTH_TOKENS] = 0
        words[at + _MONTH] = now.month


def spend(words: Words, at: int, requests: int, tokens: int) -> None:
    """So much more; or less, where it is negative."""
    for word, more in zip(SPENT, (requests, tokens, requests, tokens), strict=True):
        if more:
            words[at + word] = max(0, words[at + word] + more)


def forget(words: Words, at: int) -> None:
    """Something passed that was not counted."""
    if words[at + SINCE]:
        words[at + SINCE] = 0


def behind(words: Words, at: int, now: Periods) -> list[Period]:
    """The periods that were not counted from their beginning on, nor caught up with."""
    found: list[Period] = []
    if words[at + SINCE] > now.day and words[at + _DAY_CAUGHT_UP] != now.day:
        found.append("day")
    if words[at + SINCE] > now.month and words[at + _MONTH_CAUGHT_UP] != now.month:
        found.append("month")
    return found


def catch_up(words: Words, at: int, now: Periods, period: Period, requests: int, tokens: int) -> None:
    """So much was used, says somebody who knows all but the last moments of it; what was counted here may be part."""
    counts = at + (DAY_REQUESTS if period == "day" else MONTH_REQUESTS)
    words[counts] = max(words[counts], requests)
    words[counts + 1] = max(words[counts + 1], tokens)
    words[at + (_DAY_CAUGHT_UP if period == "day" else _MONTH_CAUGHT_UP)] = now.day if period == "day" else now.month


def part(used: Mapping[str, int], host: str, hosts: int, share: int | None) -> int:
    """What counts against the share of `host`, one of so many, of what each host has used; None: it has no share.

    That is its own, and what others have used beyond shares of theirs, so that all together use no more than the bound.
    """
    own = used.get(host, 0)
    if share is None:
        return own
    others = sorted(one for name, one in used.items() if name != host)
    there, gone = others[: hosts - 1], others[hosts - 1 :]
    return own + sum(max(0, one - share) for one in there) + sum(gone)


def kept(words: Words, at: int, now_s: float) -> bool:
    """Whether anything is counted that must not be forgotten."""
    return words[at + _KEPT_UNTIL] > now_s


def keep(words: Words, at: int, until_s: int) -> None:
    """What is counted must not be forgotten until then."""
    words[at + _KEPT_UNTIL] = max(words[at + _KEPT_UNTIL], until_s)
