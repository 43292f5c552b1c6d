"""What several rounds say together: medians, ranges, and ratios taken within each round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Spread", "added", "cell", "ratio", "spread"]


@dataclass(frozen=True)
class Spread:
    """A figure over rounds."""

    middle: float
    low: float
    high: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median and range of the values that there are, or None."""
    known = [value for value in values if value is not None]
    return Spread(median(known), min(known), max(known)) if known else None


def ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Spread | None:
    """`ours / theirs`, round by round; a round that lacks either is left out."""
    return spread(a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b)


def added(through: Sequence[float | None], direct: Sequence[float | None]) -> Spread | None:
    """`through - direct`, round by round; a round that lacks either is left out."""
    return spread(a - b for a, b in zip(through, direct, strict=True) if a is not None and b is not None)


def cell(figure: Spread | None, digits: int = 0, unit: str = "") -> str:
    """A table's cell: the median, and the range where it differs from it."""
    if figure is None:
        return "-"
    middle, low, high = (f"{value:,.{digits}f}" for value in (figure.middle, figure.low, figure.high))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low} to {high})"
