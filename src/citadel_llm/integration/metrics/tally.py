"""Counters and histograms that are added to by plain arithmetic, and written into Prometheus' own from time to time.

Totals only grow, and `flush` writes what they grew by: it may run on another thread than the one that adds.
"""

from __future__ import annotations

from bisect import bisect_left

from prometheus_client import Counter, Histogram

__all__ = ["Distribution", "Tally"]


class Tally:
    """A counter: `total += n`."""

    __slots__ = ("_child", "_written", "total")

    def __init__(self, child: Counter) -> None:
        self._child = child
        self._written = 0
        self.total = 0

    def flush(self) -> None:
        """Write what was added. One at a time."""
        total = self.total
        if total != self._written:
            self._child.inc(total - self._written)
            self._written = total


class Distribution:
    """A histogram."""

    __slots__ = ("_bounds", "_buckets", "_child", "_counts", "_sum", "_written", "_written_sum")

    def __init__(self, child: Histogram) -> None:
        # The library has no way to add many observations at once but that of its own `observe`.
        self._child = child
        self._buckets = child._buckets
        self._bounds: list[float] = list(child._upper_bounds)  # the last is infinity
        self._counts = [0] * len(self._bounds)
        self._written = [0] * len(self._bounds)
        self._sum = self._written_sum = 0.0

    def observe(self, value: float) -> None:
        """Take a value in."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        """Write what was added. One at a time."""
        total = self._sum
        counts = self._counts.copy()
        if counts == self._written:
            return
        self._child._sum.inc(total - self._written_sum)
        self._written_sum = total
        for index, count in enumerate(counts):
            if count != self._written[index]:
                self._buckets[index].inc(count - self._written[index])
        self._written = counts
