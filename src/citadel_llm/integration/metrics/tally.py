"""Counters and histograms of what each request adds to: a value is kept, and written into Prometheus' own from time to
time, many at once.

Values are taken in by one thread, by an append; `flush` may run on another one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from prometheus_client import Counter, Histogram

__all__ = ["Answers", "Distribution"]


def _taken(values: list[float]) -> list[float]:
    """What was in the list, which goes on being appended to."""
    taken = values[:]
    del values[: len(taken)]
    return taken


class Distribution:
    """A histogram, and a counter of the sum of its values where they are worth one."""

    __slots__ = ("_bounds", "_buckets", "_child", "_counter", "_values", "observe", "total")

    def __init__(self, child: Histogram, counter: Counter | None = None) -> None:
        # The library has no way to add many observations at once but that of its own `observe`.
        self._child = child
        self._counter = counter
        self._buckets = child._buckets
        self._bounds: list[float] = list(child._upper_bounds)  # the last is infinity
        self._values: list[float] = []
        self.observe: Callable[[float], None] = self._values.append
        self.total = 0.0  # of the values that were written

    def flush(self) -> None:
        """Write what was taken in. One at a time."""
        if self._values:
            self.add(_taken(self._values))

    def add(self, values: list[float]) -> None:
        """Write these; they are sorted."""
        values.sort()
        added = sum(values)
        self.total += added
        self._child._sum.inc(added)
        if self._counter is not None:
            self._counter.inc(added)
        below = 0
        for bound, bucket in zip(self._bounds, self._buckets, strict=True):
            if below == len(values):
                return
            upto = bisect_right(values, bound, below)
            if upto != below:
                bucket.inc(upto - below)
                below = upto


class Answers:
    """Counters of answers of one kind, each of which took a time that goes into a histogram of several kinds."""

    __slots__ = ("_counters", "_durations", "_values", "took")

    def __init__(self, durations: Distribution, *counters: Counter) -> None:
        self._durations = durations
        self._counters = counters
        self._values: list[float] = []
        self.took: Callable[[float], None] = self._values.append

    def flush(self) -> None:
        """Write what was taken in. One at a time."""
        if not self._values:
            return
        values = _taken(self._values)
        for counter in self._counters:
            counter.inc(len(values))
        self._durations.add(values)
