"""What is done to whole collections: another embedding, snapshots to a folder and back.

await reindex(client, alias, target, embed, tell)
for name in await backup(config, folder): ...
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from citadel_llm.integration.vector.errors import VectorError, VectorRefused, VectorUnavailable
from citadel_llm.integration.vector.points import Hit, Point
from citadel_llm.integration.vector.requests import TENANT
from citadel_llm.integration.vector.transport import load_key

if TYPE_CHECKING:
    from citadel_llm.integration.vector.client import VectorClient
    from citadel_llm.utils.config import Vector

__all__ = ["backup", "reindex", "restore"]

_BATCH = 32
_PIECE_BYTES = 1 << 20
_TIMEOUT_S = 600.0

type Embed = Callable[[Sequence[str]], Awaitable[list[list[float]]]]


async def reindex(
    client: VectorClient, alias: str, target: str, embed: Embed, tell: Callable[[str], None]
) -> tuple[int, int]:
    """Fill the collection `target` with what the alias leads to, its texts embedded anew, and let the alias lead there.

    What is written meanwhile is taken over in further rounds, the last one after the alias has moved. The counts are
    of what was written and removed. The old collection stays as it is.
    """
    source = (await client.aliases()).get(alias)
    if source is None or target not in await client.collections():
        raise VectorRefused(404, f"there is no alias {alias}, or no collection {target}")
    if source == target:
        return 0, 0
    written = removed = 0
    for step in ("copied", "caught up", None, "caught up once more"):
        if step is None:
            await client.point_alias(alias, target)
            tell(f"{alias} leads to {target}")
            continue
        more, less = await _round(client, source, target, embed)
        written, removed = written + more, removed + less
        tell(f"{step}: {more} written, {less} removed")
    return written, removed


async def _round(client: VectorClient, source: str, target: str, embed: Embed) -> tuple[int, int]:
    there = {hit.id: _stamp(hit) async for hit in client.each(target, tenant=None)}
    waiting: list[Hit] = []
    seen: set[Any] = set()
    written = 0
    async for hit in client.each(source, tenant=None):
        seen.add(hit.id)
        if there.get(hit.id) != _stamp(hit):
            waiting.append(hit)
        if len(waiting) >= _BATCH:
            written += await _write(client, target, embed, waiting)
            waiting.clear()
    written += await _write(client, target, embed, waiting)
    gone = [id for id in there if id not in seen]
    for begin in range(0, len(gone), _BATCH):
        await client.delete(target, tenant=None, ids=gone[begin : begin + _BATCH])
    return written, len(gone)


async def _write(client: VectorClient, target: str, embed: Embed, hits: Sequence[Hit]) -> int:
    vectors = await embed([str(hit.payload["text"]) for hit in hits]) if hits else []
    for hit, vector in zip(hits, vectors, strict=True):
        tenant = str(hit.payload[TENANT])
        payload = {name: value for name, value in hit.payload.items() if name != TENANT}
        await client.upsert(
            target, [Point(id=hit.id, vector=vector, text=payload["text"], payload=payload)], tenant=tenant
        )
    return len(hits)


def _stamp(hit: Hit) -> str:
    return json.dumps(hit.payload, sort_keys=True)


async def backup(config: Vector, folder: Path) -> dict[str, Path]:
    """A snapshot of each collection of the site's prefix, in the folder; {collection: file}. Raises VectorError."""
    made = {}
    async with _asking(config) as http:
        names = [one["name"] for one in (await _result(http, "GET", "/collections"))["collections"]]
        aliases = (await _result(http, "GET", "/aliases"))["aliases"]
        for name in names:
            if not name.startswith(f"{config.prefix}_"):
                continue
            snapshot = (await _result(http, "POST", f"/collections/{name}/snapshots"))["name"]
            path = folder / f"{name}.snapshot"
            part = path.with_suffix(".part")
            async with http.stream("GET", f"/collections/{name}/snapshots/{snapshot}") as answer:
                answer.raise_for_status()
                with part.open("wb") as file:
                    async for piece in answer.aiter_bytes(_PIECE_BYTES):
                        file.write(piece)
            await _result(http, "DELETE", f"/collections/{name}/snapshots/{snapshot}")
            part.rename(path)
            made[name] = path
    told = {one["alias_name"]: one["collection_name"] for one in aliases if one["collection_name"] in made}
    (folder / "aliases.json").write_text(json.dumps(told, indent=2) + "\n")
    return made


async def restore(config: Vector, folder: Path) -> list[str]:
    """The collections of a backup, and their aliases, as they were; what is there of these names is replaced."""
    aliases, names = _kept_in(folder)
    async with _asking(config) as http:
        for name in names:
            with (folder / f"{name}.snapshot").open("rb") as file:
                await _result(
                    http, "POST", f"/collections/{name}/snapshots/upload?priority=snapshot", files={"snapshot": file}
                )
        known = {one["alias_name"] for one in (await _result(http, "GET", "/aliases"))["aliases"]}
        changes: list[dict[str, Any]] = [{"delete_alias": {"alias_name": name}} for name in aliases if name in known]
        changes += [{"create_alias": {"alias_name": alias, "collection_name": name}} for alias, name in aliases.items()]
        await _result(http, "POST", "/collections/aliases", json={"actions": changes})
    return names


def _kept_in(folder: Path) -> tuple[dict[str, str], list[str]]:
    aliases: dict[str, str] = json.loads((folder / "aliases.json").read_text())
    return aliases, sorted(path.stem for path in folder.glob("*.snapshot"))


@asynccontextmanager
async def _asking(config: Vector) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"api-key": load_key(Path(config.credentials_file))}
    try:
        async with httpx.AsyncClient(base_url=config.url, headers=headers, timeout=_TIMEOUT_S) as http:
            yield http
    except httpx.HTTPStatusError as failure:
        raise VectorRefused(failure.response.status_code, str(failure)) from None
    except httpx.HTTPError as failure:
        raise VectorUnavailable(f"{type(failure).__name__}: {failure}") from None


async def _result(http: httpx.AsyncClient, method: str, path: str, **more: Any) -> Any:
    answer = await http.request(method, path, **more)
    if answer.status_code >= 500:
        raise VectorUnavailable(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
    if answer.status_code >= 400:
        raise VectorRefused(answer.status_code, f"{method} {path}: {answer.text[:300]}")
    found: dict[str, Any] = answer.json()
    if "result" not in found:
        raise VectorError(f"{method} {path}: no answer of Qdrant's")
    return found["result"]
