"""All collections of the host, their aliases, and the thread that optimizes them."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import time
from pathlib import Path

from qdrant_client import models

from qdrant import settings
from qdrant.collection import Collection, write_json
from qdrant.errors import AlreadyThere, NotFound, Refused

_NAME = re.compile(r"[^/\\<>:\"|?*\0\x1f]{1,255}")
_QUIET_S, _PATIENCE_S = 0.5, 60.0  # optimized once nothing was written for so long, or after so long in any case


class Store:
    """What lies under one folder: `collections/NAME/`, `aliases.json`; each name leads to one collection."""

    def __init__(self, folder: Path) -> None:
        """Loads all that is there."""
        self.folder = folder
        self._collections = folder / "collections"
        self._lock = threading.RLock()
        self._ended = threading.Event()
        for left in [*folder.glob("trash-*"), *folder.glob("new-*")]:
            shutil.rmtree(left, ignore_errors=True)
        self._collections.mkdir(parents=True, exist_ok=True)
        self._open = {entry.name: Collection.load(entry) for entry in sorted(self._collections.iterdir())}
        aliases = folder / "aliases.json"
        self._aliases: dict[str, str] = json.loads(aliases.read_text()) if aliases.exists() else {}
        self._optimizer = threading.Thread(target=self._optimize, name="optimizer", daemon=True)
        self._optimizer.start()

    def close(self) -> None:
        """Everything on the disk. What the optimizer is at is left, and done at the next start."""
        self._ended.set()
        for collection in self._open.values():
            collection.close()

    # -- collections ------------------------------------------------------------------------

    def names(self) -> list[str]:
        """All collections."""
        with self._lock:
            return sorted(self._open)

    def get(self, name: str) -> Collection:
        """The collection of a name or an alias. Raises NotFound."""
        with self._lock:
            found = self._open.get(self._aliases.get(name, name))
        if found is None:
            raise NotFound(f"Not found: Collection `{name}` doesn't exist!")
        return found

    def exists(self, name: str) -> bool:
        """Whether a name or an alias leads to a collection."""
        with self._lock:
            return self._aliases.get(name, name) in self._open

    def create(self, name: str, asked: models.CreateCollection) -> bool:
        """A new collection. Raises AlreadyThere where the name is taken."""
        if not _NAME.fullmatch(name) or name in {".", ".."}:
            raise Refused(f"Wrong input: `{name}` is no name of a collection")
        with self._lock:
            if name in self._open or name in self._aliases:
                raise AlreadyThere(f"Wrong input: Collection `{name}` already exists!")
            making = self.folder / f"new-{secrets.token_hex(6)}"
            try:
                Collection.create(making, settings.created(asked)).close()
                self.install(name, making)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        return True

    def delete(self, name: str) -> bool:
        """The collection and its aliases away; whether there was one. An alias does not lead here."""
        with self._lock:
            found = self._open.pop(name, None)
            if found is None:
                return False
            self._save_aliases({alias: to for alias, to in self._aliases.items() if to != name})
            self._discard(found)
        return True

    def install(self, name: str, folder: Path) -> None:
        """A collection's folder, made elsewhere under this store, in the place of what bore the name."""
        with self._lock:
            if before := self._open.pop(name, None):
                self._discard(before)
            folder.rename(self._collections / name)
            self._open[name] = Collection.load(self._collections / name)

    def _discard(self, collection: Collection) -> None:
        collection.close()
        trash = self.folder / f"trash-{secrets.token_hex(6)}"
        collection.folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    # -- aliases ----------------------------------------------------------------------------

    def aliases(self, name: str | None = None) -> list[models.AliasDescription]:
        """All aliases, or those of one collection."""
        with self._lock:
            found = sorted(self._aliases.items())
        return [
            models.AliasDescription(alias_name=alias, collection_name=to)
            for alias, to in found
            if name is None or to == name
        ]

    def change_aliases(self, actions: list[models.AliasOperations]) -> bool:
        """All of the changes, or none; nobody sees a state between."""
        with self._lock:
            made = dict(self._aliases)
            for action in actions:
                match action:
                    case models.CreateAliasOperation(create_alias=one):
                        if one.alias_name in self._open:
                            raise AlreadyThere(f"Wrong input: Collection `{one.alias_name}` already exists!")
                        if one.collection_name not in self._open:
                            raise NotFound(f"Not found: Collection `{one.collection_name}` doesn't exist!")
                        made[one.alias_name] = one.collection_name
                    case models.DeleteAliasOperation(delete_alias=gone):
                        made.pop(gone.alias_name, None)
                    case models.RenameAliasOperation(rename_alias=moved):
                        if moved.old_alias_name not in made:
                            raise NotFound(f"Not found: Alias {moved.old_alias_name} does not exists!")
                        made[moved.new_alias_name] = made.pop(moved.old_alias_name)
            self._save_aliases(made)
        return True

    def _save_aliases(self, aliases: dict[str, str]) -> None:
        write_json(self.folder / "aliases.json", aliases)
        self._aliases = aliases

    # -- upkeep -----------------------------------------------------------------------------

    def _optimize(self) -> None:
        waiting: dict[str, float] = {}
        while not self._ended.wait(_QUIET_S / 2):
            with self._lock:
                opened = dict(self._open)
            now = time.monotonic()
            for name, collection in opened.items():
                if not collection.shard.written_at:
                    continue
                since = waiting.setdefault(name, now)
                if now - collection.shard.written_at >= _QUIET_S or now - since >= _PATIENCE_S:
                    waiting.pop(name)
                    self._look_after(name, collection)

    def _look_after(self, name: str, collection: Collection) -> None:
        try:
            collection.shard.optimize()
        except Exception as error:  # closed meanwhile, or trouble of its own: the next write asks again
            collection.shard.written_at = 0.0
            if not self._ended.is_set() and self._open.get(name) is collection:
                print(f"optimizing {name}: {error}", flush=True)
