"""Qdrant's REST surface. Bodies are checked by qdrant-client's own models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from qdrant_client import models
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from qdrant.access import Access
from qdrant.errors import NotDone, NotFound, Refused
from qdrant.snapshots import Snapshots
from qdrant.store import Store

VERSION = "1.20.0"  # of the server that this stands in for; qdrant-client compares it with its own
OPEN = {"/", "/healthz", "/livez", "/readyz"}  # to callers without a key
type Handler = Callable[[Request], Awaitable[Response]]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.__dict__  # null is a value of a payload: nothing may be left out of that
    raise TypeError(type(value).__name__)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content, default=_plain), status, media_type="application/json")


def answered(handler: Callable[[Request], Awaitable[Any]]) -> Handler:
    """The handler's result in Qdrant's envelope, and its refusals too."""

    async def answer(request: Request) -> Response:
        began = time.perf_counter()
        try:
            result = await handler(request)
        except Refused as error:
            status = {"error": str(error)}
            return _json({"status": status, "time": time.perf_counter() - began}, error.status)
        if isinstance(result, Response):
            return result
        return _json({"result": result, "status": "ok", "time": time.perf_counter() - began})

    return answer


class _Body:
    """A JSON body of one type, checked."""

    def __init__(self, kind: Any) -> None:
        self._adapter = TypeAdapter(kind)

    async def __call__(self, request: Request) -> Any:
        text = await request.body()
        try:
            return await asyncio.to_thread(self._adapter.validate_json, text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Refused(f"Format error in JSON body: {where}: {first['msg']}") from error


class Api:
    """The handlers, over one store."""

    def __init__(self, store: Store, snapshots: Snapshots) -> None:
        self._store = store
        self._snapshots = snapshots

    def routes(self) -> list[Route]:
        """All of them."""
        one = "/collections/{name}"
        points = f"{one}/points"
        collections = self._store
        return [
            self._route("GET", "/", self._root),
            *[self._route("GET", path, self._healthy) for path in ("/healthz", "/livez", "/readyz")],
            self._route("GET", "/metrics", self._metrics),
            self._route("GET", "/collections", self._list),
            self._route("GET", f"{one}/exists", self._exists),
            self._route("GET", f"{one}/aliases", self._aliases_of),
            self._route("GET", "/aliases", self._aliases),
            self._with("POST", "/collections/aliases", models.ChangeAliasesOperation,
                       lambda r, b: collections.change_aliases(b.actions)),
            self._route("GET", one, self._info),
            self._with("PUT", one, models.CreateCollection, lambda r, b: collections.create(r.path_params["name"], b)),
            self._with("PATCH", one, models.UpdateCollection, lambda r, b: self._of(r).configure(b) or True),
            self._route("DELETE", one, self._delete),
            self._with("PUT", f"{one}/index", models.CreateFieldIndex, self._index),
            self._route("DELETE", f"{one}/index/{{field}}", self._drop_index),
            self._with("PUT", points, models.PointInsertOperations, lambda r, b: self._of(r).upsert(b)),
            self._with("POST", points, models.PointRequest, lambda r, b: self._of(r).retrieve(b)),
            self._with("POST", f"{points}/delete", models.PointsSelector, lambda r, b: self._of(r).delete(b)),
            self._with("PUT", f"{points}/vectors", models.UpdateVectors, lambda r, b: self._of(r).update_vectors(b)),
            self._with("POST", f"{points}/vectors/delete", models.DeleteVectors,
                       lambda r, b: self._of(r).delete_vectors(b)),
            self._with("POST", f"{points}/payload", models.SetPayload, lambda r, b: self._of(r).set_payload(b)),
            self._with("PUT", f"{points}/payload", models.SetPayload, lambda r, b: self._of(r).overwrite_payload(b)),
            self._with("POST", f"{points}/payload/delete", models.DeletePayload,
                       lambda r, b: self._of(r).delete_payload(b)),
            self._with("POST", f"{points}/payload/clear", models.PointsSelector,
                       lambda r, b: self._of(r).clear_payload(b)),
            self._with("POST", f"{points}/batch", models.UpdateOperations, self._batch),
            self._with("POST", f"{points}/scroll", models.ScrollRequest, self._scroll),
            self._with("POST", f"{points}/count", models.CountRequest,
                       lambda r, b: {"count": self._of(r).count(b)}),
            self._with("POST", f"{points}/query", models.QueryRequest,
                       lambda r, b: {"points": self._of(r).query(b)}),
            self._with("POST", f"{points}/query/batch", models.QueryRequestBatch,
                       lambda r, b: [{"points": self._of(r).query(each)} for each in b.searches]),
            self._route("GET", f"{points}/{{id}}", self._point),
            self._with("POST", f"{one}/facet", models.FacetRequest, lambda r, b: {"hits": self._of(r).facet(b)}),
            self._route("GET", f"{one}/snapshots", self._list_snapshots),
            self._route("POST", f"{one}/snapshots", self._create_snapshot),
            self._with("PUT", f"{one}/snapshots/recover", models.SnapshotRecover,
                       lambda r, b: self._snapshots.recover(r.path_params["name"], b)),
            self._route("POST", f"{one}/snapshots/upload", self._upload),
            self._route("GET", f"{one}/snapshots/{{snapshot}}", self._download),
            self._route("DELETE", f"{one}/snapshots/{{snapshot}}", self._delete_snapshot),
        ]  # fmt: skip

    @staticmethod
    def _route(method: str, path: str, handler: Callable[[Request], Awaitable[Any]]) -> Route:
        return Route(path, answered(handler), methods=[method])

    @staticmethod
    def _with(method: str, path: str, kind: Any, call: Callable[[Request, Any], Any]) -> Route:
        read = _Body(kind)

        async def handler(request: Request) -> Any:
            body = await read(request)
            return await asyncio.to_thread(call, request, body)

        return Route(path, answered(handler), methods=[method])

    def _of(self, request: Request) -> Any:
        return self._store.get(request.path_params["name"])

    async def _root(self, request: Request) -> Response:
        return _json({"title": "qdrant - vector search engine", "version": VERSION})

    async def _healthy(self, request: Request) -> Response:
        return PlainTextResponse("healthz check passed")

    async def _metrics(self, request: Request) -> Response:
        infos = {name: await asyncio.to_thread(self._store.get(name).info) for name in self._store.names()}
        lines = [
            "# TYPE app_info gauge",
            f'app_info{{name="qdrant",version="{VERSION}"}} 1',
            "# TYPE collections_total gauge",
            f"collections_total {len(infos)}",
            "# TYPE collection_points gauge",
            *[f'collection_points{{id="{name}"}} {info.points_count}' for name, info in infos.items()],
            "# TYPE collection_vectors gauge",
            *[f'collection_indexed_vectors{{id="{n}"}} {info.indexed_vectors_count}' for n, info in infos.items()],
        ]
        return PlainTextResponse("\n".join(lines) + "\n")

    async def _list(self, request: Request) -> Any:
        return {"collections": [{"name": name} for name in self._store.names()]}

    async def _exists(self, request: Request) -> Any:
        return {"exists": self._store.exists(request.path_params["name"])}

    async def _aliases_of(self, request: Request) -> Any:
        name = self._of(request).folder.name
        return {"aliases": self._store.aliases(name)}

    async def _aliases(self, request: Request) -> Any:
        return {"aliases": self._store.aliases()}

    async def _info(self, request: Request) -> Any:
        return await asyncio.to_thread(self._of(request).info)

    async def _delete(self, request: Request) -> Any:
        return await asyncio.to_thread(self._store.delete, request.path_params["name"])

    def _index(self, request: Request, body: models.CreateFieldIndex) -> Any:
        if body.field_schema is None:
            raise NotDone("an index whose type is to be guessed")
        return self._of(request).index(body.field_name, body.field_schema)

    async def _drop_index(self, request: Request) -> Any:
        return await asyncio.to_thread(self._of(request).drop_index, request.path_params["field"])

    def _batch(self, request: Request, body: models.UpdateOperations) -> Any:
        return [apply(self._of(request), operation) for operation in body.operations]

    def _scroll(self, request: Request, body: models.ScrollRequest) -> Any:
        found, following = self._of(request).scroll(body)
        return {"points": found, "next_page_offset": following}

    async def _point(self, request: Request) -> Any:
        text = request.path_params["id"]
        asked = models.PointRequest(ids=[int(text) if text.isdigit() else text], with_payload=True, with_vector=True)
        found = await asyncio.to_thread(self._of(request).retrieve, asked)
        if not found:
            raise NotFound(f"Not found: Point with id {text} does not exists!")
        return found[0]

    async def _list_snapshots(self, request: Request) -> Any:
        return await asyncio.to_thread(self._snapshots.list, request.path_params["name"])

    async def _create_snapshot(self, request: Request) -> Any:
        return await asyncio.to_thread(self._snapshots.create, request.path_params["name"])

    async def _delete_snapshot(self, request: Request) -> Any:
        return await asyncio.to_thread(
            self._snapshots.delete, request.path_params["name"], request.path_params["snapshot"]
        )

    async def _download(self, request: Request) -> Any:
        path = self._snapshots.path(request.path_params["name"], request.path_params["snapshot"])
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    async def _upload(self, request: Request) -> Any:
        async with request.form(max_files=1) as form:
            file = form.get("snapshot")
            if file is None or isinstance(file, str):
                raise Refused("Wrong input: the form has no file `snapshot`")
            checksum = request.query_params.get("checksum")
            return await asyncio.to_thread(self._snapshots.upload, request.path_params["name"], file.file, checksum)


def apply(collection: Any, operation: Any) -> Any:
    """One operation of a batch."""
    [(verb, asked)] = dict(operation).items()
    return getattr(collection, verb)(asked)


class Guarded:
    """Nothing but the open paths without the key."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            refusal = self._access.refusal({name.decode(): value.decode("latin-1") for name, value in scope["headers"]})
            if refusal:
                await _json({"status": {"error": refusal}, "time": 0.0}, 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def application(store: Store, snapshots: Snapshots, access: Access, more: list[Route]) -> ASGIApp:
    """The whole HTTP surface; `more` are routes beside Qdrant's own."""

    async def missing(request: Request, error: Exception) -> Response:
        return _json(
            {"status": {"error": f"{request.method} {request.url.path}: not done by the lab's vector host"}}, 404
        )

    return Guarded(
        Starlette(routes=[*Api(store, snapshots).routes(), *more], exception_handlers={404: missing}), access
    )
