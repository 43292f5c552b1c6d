"""Merging and indexing a shard's segments, in a process of its own: `python -m qdrant.indexer FOLDER`.

The engine's `optimize` keeps Python's one lock from beginning to end, minutes for 100,000 vectors: in the serving
process nothing else would run meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from qdrant import settings

_NICE = 5


class Indexer:
    """One run at a time; `end` ends it, and any later one at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    @staticmethod
    def copy(source: Path, folder: Path) -> None:
        """A copy of a shard's files, which must not change meanwhile, for `run`."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copytree(source, folder / source.name)

    def run(self, folder: Path, config: dict[str, Any]) -> Path:
        """The copy under `folder`, optimized with these settings. Raises RuntimeError."""
        (folder / "config.json").write_text(json.dumps(config))
        with self._lock:
            if self._ended:
                raise RuntimeError("the collection is closed")
            self._process = subprocess.Popen([sys.executable, "-m", "qdrant.indexer", str(folder)])
        code = self._process.wait()
        if code != 0:
            raise RuntimeError(f"the indexer ended with {code}")
        return folder / "shard"

    def end(self) -> None:
        """Nothing runs any more."""
        with self._lock:
            self._ended = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()


def main() -> None:
    folder = Path(sys.argv[1])
    os.nice(_NICE)  # searches go first
    config = models.CollectionConfig.model_validate(json.loads((folder / "config.json").read_text()))
    shard = edge.EdgeShard.load(str(folder / "shard"), settings.engine_config(config))
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main()
