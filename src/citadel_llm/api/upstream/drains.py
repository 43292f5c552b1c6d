"""Which replicas operators have taken out of service: files in a folder that the host's instances share.

    drains = Drains("/run/citadel-gateway/drained")
    drains.put("phi3", "127.0.0.1:11403")
    drain_name("phi3", "127.0.0.1:11403") in drains.look()

They are beside the markers of the models' units (`draining_marker`), which come and go with a unit's stop and start:
what an operator has taken out stays out over a restart of the engine and of the gateway, until it is put back or the
host starts anew.
"""

from __future__ import annotations

import os
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

__all__ = ["Drains", "drain_name"]


@lru_cache(4096)
def drain_name(model: str, address: str) -> str:
    """The file's name of a model's replica; a model may have a `/` in its name."""
    return sha256(f"{model}\n{address}".encode()).hexdigest()


class Drains:
    """All of them."""

    def __init__(self, folder: str | None) -> None:
        """`folder` is made where it is not there; None: this process alone knows."""
        self._folder = None if folder is None else Path(folder)
        self._seen: frozenset[str] = frozenset()
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def look(self) -> frozenset[str]:
        """Their names now. Where the folder cannot be read, as they were: nothing comes back by accident."""
        if self._folder is not None:
            try:
                self._seen = frozenset(os.listdir(self._folder))
            except OSError:
                return self._seen
        return self._seen

    def put(self, model: str, address: str) -> None:
        """Take a replica out. Raises OSError."""
        name = drain_name(model, address)
        if self._folder is not None:
            # The text is for whoever looks into the folder.
            (self._folder / name).write_text(f"{model} {address}\n")
        else:
            self._seen |= {name}

    def take(self, model: str, address: str) -> None:
        """Put it back. Raises OSError."""
        name = drain_name(model, address)
        if self._folder is not None:
            (self._folder / name).unlink(missing_ok=True)
        else:
            self._seen -= {name}
