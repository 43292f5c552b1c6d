"""Results of searches that were asked lately, in this process: few, for a short time, and none from before a write.

A write here forgets what its collection has; a write by another process shows after `ttl_s` at the latest.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import orjson

from citadel_llm.integration.vector.points import Hit

__all__ = ["Results"]


class Results:
    """At most `size` of them, each for `ttl_s` seconds; `clock` counts seconds."""

    def __init__(self, size: int, ttl_s: float, clock: Callable[[], float]) -> None:
        self._size = size
        self._ttl_s = ttl_s
        self._clock = clock
        self._kept: OrderedDict[tuple[str, bytes], tuple[float, list[Hit]]] = OrderedDict()
        self._generations: dict[str, int] = {}
        self._generation = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""
        return self._size > 0 and self._ttl_s > 0

    @staticmethod
    def key(collection: str, body: dict[str, Any]) -> tuple[str, bytes]:
        """What a search is known by: all that its answer depends on, the tenant in its filter among it."""
        text = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        return collection, hashlib.blake2b(text, digest_size=16).digest()

    def get(self, key: tuple[str, bytes]) -> list[Hit] | None:
        """What was found, where that is young enough."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        expires, hits = entry
        if self._clock() >= expires:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return list(hits)

    def generation(self, collection: str) -> tuple[int, int]:
        """What must be the same at the end of a search as at its beginning, for its results to be kept."""
        return self._generation, self._generations.get(collection, 0)

    def put(self, key: tuple[str, bytes], hits: list[Hit], generation: tuple[int, int]) -> None:
        """Keep results of a search that began in that generation."""
        if generation != self.generation(key[0]):
            return
        self._kept[key] = (self._clock() + self._ttl_s, list(hits))
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def forget(self, collection: str | None = None) -> None:
        """All results of a collection, or of all."""
        if collection is None:
            self._generation += 1
            self._kept.clear()
            return
        self._generations[collection] = self._generations.get(collection, 0) + 1
        for key in [key for key in self._kept if key[0] == collection]:
            del self._kept[key]
