"""Start-time fair queueing between callers, after Goyal, Vin and Cheng (SIGCOMM 1996).

Each caller has a queue of its own, first come first served. A request's start tag is the later of the
virtual time and its predecessor's finish tag, which is its start plus its cost; the queue whose first
request has the smallest start tag is served next. So while two callers both wait, what they were served
differs by no more than one request's cost of each, however many requests either has sent.

Taking and leaving cost O(log callers).
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush

__all__ = ["FairQueue", "QueueFull"]

# A caller may hold so many times the places that are still free: alone it gets most of the queue, and
# however many callers fill theirs, a newcomer finds room (dynamic thresholds, Choudhury and Hahne 1998).
_GREED = 4
_FORGET_ABOVE = 1024


class QueueFull(Exception):
    """As many requests wait as may wait; `of_key` where that holds for this caller only."""

    def __init__(self, of_key: bool) -> None:
        super().__init__("the caller's part of the queue is full" if of_key else "the queue is full")
        self.of_key = of_key


class _Flow[T]:
    __slots__ = ("finish", "heaped", "items", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self.items: OrderedDict[T, float] = OrderedDict()  # each with its cost
        self.finish = 0.0  # of the last request that was served
        self.heaped = False


class FairQueue[T]:
    """At most `bound` items, at most `per_key` of one key. Items must be hashable and differ."""

    def __init__(self, bound: int, per_key: int | None = None) -> None:
        self.bound = bound
        self.per_key = bound if per_key is None else per_key
        self._flows: dict[str, _Flow[T]] = {}
        self._heap: list[tuple[float, int, _Flow[T]]] = []
        self._virtual = 0.0
        self._count = 0
        self._serial = 0
        self.keys = 0  # that wait

    def __len__(self) -> int:
        return self._count

    def waiting(self, key: str) -> int:
        """How many items of `key` wait."""
        flow = self._flows.get(key)
        return len(flow.items) if flow is not None else 0

    def ahead(self, key: str) -> int:
        """About how many items will be taken before one that `key` adds now: its own, and as many of each other key."""
        mine = self.waiting(key)
        if not mine:
            return self.keys
        # Of those that have fewer, all of theirs.
        return sum(min(len(flow.items), mine + (flow.key != key)) for flow in self._flows.values())

    def room(self, key: str) -> None:
        """Raises QueueFull where `key` may add none now."""
        free = self.bound - self._count
        if free <= 0:
            raise QueueFull(False)
        if self.waiting(key) >= min(self.per_key, _GREED * free):
            raise QueueFull(True)

    def push(self, key: str, item: T, cost: float = 1.0) -> None:
        """Add an item. Raises QueueFull."""
        self.room(key)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(key)
        if not flow.items:
            self.keys += 1
        flow.items[item] = cost
        self._count += 1
        if not flow.heaped:
            self._offer(flow)

    def pop(self) -> T | None:
        """Take the next item, or None where there is none."""
        while self._heap:
            start, _, flow = heappop(self._heap)
            flow.heaped = False
            if not flow.items:
                continue  # all of them were removed
            item, cost = flow.items.popitem(last=False)
            self._virtual = max(self._virtual, start)
            flow.finish = start + cost
            self._count -= 1
            if flow.items:
                self._offer(flow)
            else:
                self.keys -= 1
                self._tidy()
            return item
        return None

    def remove(self, key: str, item: T) -> bool:
        """Take an item out before its turn; False where it is not there."""
        flow = self._flows.get(key)
        if flow is None or flow.items.pop(item, None) is None:
            return False
        self._count -= 1
        if not flow.items:
            self.keys -= 1
            self._tidy()
        return True

    def _offer(self, flow: _Flow[T]) -> None:
        flow.heaped = True
        self._serial += 1
        heappush(self._heap, (max(self._virtual, flow.finish), self._serial, flow))

    def _tidy(self) -> None:
        if self._count == 0:
            # The end of a busy period: nobody waits, so nobody is owed anything.
            self._flows.clear()
            self._heap.clear()
            self._virtual = 0.0
        elif len(self._flows) > _FORGET_ABOVE + 2 * self.keys:
            for key, flow in tuple(self._flows.items()):
                if not flow.items and not flow.heaped and flow.finish <= self._virtual:
                    del self._flows[key]
