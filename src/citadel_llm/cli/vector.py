"""See and search one's vector stores; re-embed, back up and bring back the site's collections in Qdrant."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from citadel_llm.cli.api import Api, ApiFailure, add_options, show, table, when

if TYPE_CHECKING:
    from citadel_llm.utils.config import Config

__all__ = ["add_arguments"]

_TEXT = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("stores", help="list one's own vector stores, the newest first")
    add_options(one, _stores)
    one = actions.add_parser("search", help="search a vector store of one's own")
    one.add_argument("store", metavar="STORE", help="its id")
    one.add_argument("query", metavar="QUESTION")
    one.add_argument("--limit", type=int, default=5, metavar="N", help="passages at most (default: %(default)s)")
    add_options(one, _search)
    one = actions.add_parser(
        "reindex", help="fill another collection with the documents, embedded anew, and let callers have that one"
    )
    one.add_argument("collection", metavar="COLLECTION", help="made by the role `vector` beside the old one")
    one.add_argument("--model", help="whose documents (default: the first embedding model)")
    add_options(one, _reindex)
    one = actions.add_parser("backup", help="write snapshots of the collections, and the files' contents, to a folder")
    one.add_argument("folder", type=Path, metavar="FOLDER")
    add_options(one, lambda _api, arguments: 0)
    one.set_defaults(run=_backup)
    one = actions.add_parser("restore", help="bring back what `backup` has written; what is there is replaced")
    one.add_argument("folder", type=Path, metavar="FOLDER")
    add_options(one, lambda _api, arguments: 0)
    one.set_defaults(run=_restore)


def _stores(api: Api, arguments: argparse.Namespace) -> int:
    found: list[dict[str, Any]] = []
    after = None
    while True:
        page = api.call("GET", "/vector_stores", base="/v1", limit=100, after=after)
        found += page["data"]
        if not page["has_more"]:
            break
        after = page["last_id"]
    rows = [
        [
            store["id"],
            store["name"] or "-",
            store["status"],
            f"{store['file_counts']['completed']}/{store['file_counts']['total']}",
            str(store["usage_bytes"]),
            when(store["last_active_at"]),
        ]
        for store in found
    ]
    return show(arguments, found, table(["ID", "NAME", "STATE", "FILES", "BYTES", "LAST USED"], rows))


def _search(api: Api, arguments: argparse.Namespace) -> int:
    body = {"query": arguments.query, "max_num_results": arguments.limit}
    found = api.call("POST", f"/vector_stores/{quote(arguments.store, safe='')}/search", body, base="/v1")
    rows = [
        [f"{one['score']:.3f}", one["filename"], " ".join(one["content"][0]["text"].split())[:_TEXT]]
        for one in found["data"]
    ]
    return show(arguments, found, table(["SCORE", "FILE", "TEXT"], rows))


def _reindex(api: Api, arguments: argparse.Namespace) -> int:
    from citadel_llm.integration.vector.upkeep import reindex  # noqa: PLC0415 — heavy, and for these alone

    config = _config(arguments)
    model = arguments.model or next((name for name, one in config.models.items() if one.kind == "embedding"), "")

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        body = {"model": model, "input": list(texts), "truncate_prompt_tokens": -1}
        found = await asyncio.to_thread(api.call, "POST", "/embeddings", body, base="/v1")
        return [one["embedding"] for one in sorted(found["data"], key=lambda one: int(one["index"]))]

    async def work() -> int:
        client = _client(config)
        try:
            await client.prepare()
            written, removed = await reindex(client, client.alias(model), arguments.collection, embed, _tell)
        finally:
            await client.close()
        told = {"collection": arguments.collection, "written": written, "removed": removed}
        return show(arguments, told, f"{written} written, {removed} removed")

    return _guarded(work)


def _backup(arguments: argparse.Namespace) -> int:
    from citadel_llm.integration.vector.upkeep import backup  # noqa: PLC0415

    folder: Path = arguments.folder

    async def work() -> int:
        config = _config(arguments)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        made = await backup(config.vector, folder)
        count = await asyncio.to_thread(_copy, Path(config.files.path), folder / "files") if config.files.enabled else 0
        told = {"collections": {name: str(path) for name, path in made.items()}, "files": count}
        return show(arguments, told, f"{len(made)} collections and {count} files' contents in {folder}")

    return _guarded(work)


def _restore(arguments: argparse.Namespace) -> int:
    from citadel_llm.integration.vector.upkeep import restore  # noqa: PLC0415

    async def work() -> int:
        config = _config(arguments)
        names = await restore(config.vector, arguments.folder)
        count = 0
        if config.files.enabled and (arguments.folder / "files").is_dir():
            count = await asyncio.to_thread(_copy, arguments.folder / "files", Path(config.files.path))
        told = {"collections": names, "files": count}
        return show(arguments, told, f"{len(names)} collections and {count} files' contents are back")

    return _guarded(work)


def _copy(source: Path, target: Path) -> int:
    """Contents never change: what is there already is whole."""
    count = 0
    for path in source.glob("[0-9a-f][0-9a-f]/*"):
        to = target / path.parent.name / path.name
        count += 1
        if to.exists():
            continue
        to.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        part = to.with_name(f".{to.name}.part")
        shutil.copyfile(path, part)
        with contextlib.suppress(PermissionError):
            shutil.chown(part, target.stat().st_uid, target.stat().st_gid)
        os.replace(part, to)
    return count


def _config(arguments: argparse.Namespace) -> Config:
    from citadel_llm.utils.config import ConfigError, load_config  # noqa: PLC0415

    try:
        config = load_config(Path(arguments.config))
    except ConfigError as error:
        raise ApiFailure(str(error)) from None
    if not config.vector.enabled:
        raise ApiFailure(f"{arguments.config}: the section `vector` is turned off")
    return config


def _client(config: Config) -> Any:
    from prometheus_client import CollectorRegistry  # noqa: PLC0415

    from citadel_llm.integration.metrics.vector import VectorCounters  # noqa: PLC0415
    from citadel_llm.integration.vector.build import build_vector  # noqa: PLC0415

    return build_vector(config.vector, VectorCounters(CollectorRegistry()), lambda _up, _reason: None)


def _guarded(work: Callable[[], Awaitable[int]]) -> int:
    from citadel_llm.integration.vector.errors import VectorError  # noqa: PLC0415

    async def run() -> int:
        return await work()

    try:
        return asyncio.run(run())
    except (ApiFailure, VectorError, OSError, ValueError) as failure:
        print(f"citadel: {failure}", file=sys.stderr)
        return 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
