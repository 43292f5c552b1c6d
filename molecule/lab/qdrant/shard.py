"""A collection's shard: the engine's, with what must not disturb each other kept apart.

Reading and writing may run side by side, the engine sees to that. What replaces the shard, or copies its files, runs
alone and takes no time. What takes long is done to a copy, by another process (indexer.py).
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from qdrant import settings
from qdrant.errors import Refused
from qdrant.indexer import Indexer

MANY = 1 << 40  # points that an operation may touch, where nobody counted them
_THRESHOLD_KB = 10_000
_SHARE = 0.1
_LATE = 100  # so few operations may be repeated while everybody waits


class Gate:
    """Many may pass together, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        with self._condition:
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._inside == 0)
            yield


class Shard:
    """Its files are under `folder`, in `shard`."""

    def __init__(self, folder: Path, config: models.CollectionConfig, *, new: bool = False) -> None:
        """A new one, or what is there. Raises Refused for settings that the engine does not take."""
        self._folder = folder
        self._home = folder / "shard"
        self._gate = Gate()
        self._upkeep = threading.Lock()
        self._order = threading.Lock()  # the journal has the engine's own order
        self._journal: list[Any] | None = None  # what is written while a copy is being indexed
        self._indexer = Indexer()
        self._config = config
        self._stale = False  # it runs with older settings than `config`
        self.written_at = 0.0  # of time.monotonic(); nothing to optimize where it is 0
        made = settings.engine_config(config)
        if new:
            self._home.mkdir()
            self._shard = told(lambda: edge.EdgeShard.create(str(self._home), made))
            self._touched = 0  # points, since the segments were made
            return
        if (folder / "shard-before").exists() and not self._home.exists():
            (folder / "shard-before").rename(self._home)  # it ended between two steps of `_index`
        for left in ("shard-before", "shard-indexed"):
            shutil.rmtree(folder / left, ignore_errors=True)
        self._shard = edge.EdgeShard.load(str(self._home), made)
        self._touched = MANY
        self.written_at = time.monotonic()

    def close(self) -> None:
        """All on the disk, and nothing more to be asked."""
        self._indexer.end()
        with self._upkeep, self._gate.alone():
            self._shard.flush()
            self._shard.close()

    def read[T](self, call: Callable[[Any], T]) -> T:
        """What the engine answers. Raises Refused."""
        with self._gate.together():
            return told(lambda: call(self._shard))

    def write(self, operation: Any, touched: int) -> None:
        """Done when it returns; `touched` points at most. Raises Refused."""
        with self._gate.together(), self._order:
            told(lambda: self._shard.update(operation))
            if self._journal is not None:
                self._journal.append(operation)
        self._touched += touched
        self.written_at = time.monotonic()

    def configure(self, config: models.CollectionConfig) -> None:
        """Other settings, which the next optimizing brings about."""
        settings.engine_config(config)
        self._config, self._stale = config, True
        self.written_at = time.monotonic()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Its files complete and unchanging, while the block runs."""
        with self._upkeep, self._gate.alone():
            self._shard.flush()
            yield

    def optimize(self) -> None:
        """Merges and indexes what has to be; searches and writes go on meanwhile."""
        with self._upkeep:
            began, config = self.written_at, self._config
            stale, self._stale = self._stale, False
            count = self.read(lambda shard: shard.info().points_count)
            if not _large(config, count):
                with self._gate.alone():
                    if stale:
                        self._shard.flush()
                        self._shard.close()
                        self._shard = edge.EdgeShard.load(str(self._home), settings.engine_config(config))
                    self._shard.optimize()
            elif stale or self._touched > _SHARE * count:
                self._index(config)
            if self.written_at == began:
                self.written_at = 0.0

    def _index(self, config: models.CollectionConfig) -> None:
        aside, before = self._folder / "shard-indexed", self._folder / "shard-before"
        with self._gate.alone():
            self._shard.flush()
            self._indexer.copy(self._home, aside)
            self._journal, self._touched = [], 0
        try:
            ready = self._indexer.run(aside, config.model_dump(mode="json"))
            shard = edge.EdgeShard.load(str(ready), settings.engine_config(config))
            while len(self._journal) > _LATE:
                shard.update(self._journal.pop(0))
            with self._gate.alone():
                for operation in self._journal:
                    shard.update(operation)
                shard.flush()
                shard.close()
                self._shard.close()
                self._home.rename(before)
                ready.rename(self._home)
                self._shard = edge.EdgeShard.load(str(self._home), settings.engine_config(config))
            shutil.rmtree(before, ignore_errors=True)
        except BaseException:
            self._touched = MANY
            raise
        finally:
            self._journal = None
            shutil.rmtree(aside, ignore_errors=True)


def _large(config: models.CollectionConfig, count: int) -> bool:
    """Whether there is enough for an index, which takes long to make."""
    size = sum(one.size for one in settings.vectors(config).values())
    return bool(count * size * 4 / 1024 > (config.optimizer_config.indexing_threshold or _THRESHOLD_KB))


def told[T](call: Callable[[], T]) -> T:
    """What the engine says, with its refusals as ours: it raises `Exception` itself for all of them."""
    try:
        return call()
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"Wrong input: {error}") from error
