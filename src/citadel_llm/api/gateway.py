"""The gateway's application: handlers for the hot path, FastAPI for everything else.

    gateway = Gateway(state)      # inside the running loop
    await state.start()

`gateway.hot` holds the handlers by path, for POST; what a server does not give to them it gives to the gateway itself,
an ASGI application.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI

from citadel_llm.api.call import Handler
from citadel_llm.api.errors import ApiError, error_body
from citadel_llm.api.middleware.asgi import App, Message, Receive, Scope, Send
from citadel_llm.api.middleware.auth import credentials_of
from citadel_llm.api.middleware.context import RequestContext, install_error_handlers
from citadel_llm.api.openapi import DESCRIPTION, install_openapi
from citadel_llm.api.routes import (
    console,
    conversation_items,
    conversations,
    feedback,
    files,
    health,
    metrics,
    models,
    responses,
    vector_store_files,
    vector_stores,
)
from citadel_llm.api.routes.admin import alerts, audit, budgets, data, drain, keys, limits, roles, status, usage, users
from citadel_llm.api.routes.completions import Completions
from citadel_llm.api.routes.kept import KeptResponses
from citadel_llm.api.routes.kinds import ENDPOINTS
from citadel_llm.api.state import GatewayState

__all__ = ["Gateway", "build_fastapi"]

_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_OF_CALLERS = ("/v1/", "/admin/")  # nothing with a body there is for anybody
_OF_ANY_SIZE = ("/v1/files",)  # read piece by piece by their own endpoints


def build_fastapi(state: GatewayState) -> FastAPI:
    """The application for all that is not hot."""
    app = FastAPI(title="Citadel LLM gateway", version=state.version, description=DESCRIPTION, redoc_url=None)
    own = (models, responses, conversations, conversation_items, feedback, files, vector_stores, vector_store_files)
    administration = (users, keys, roles, limits, budgets, data, audit, usage, status, alerts, drain)
    families = (*own, *administration, health, metrics, console)
    routes = [route for family in families for route in family.router(state).routes]
    # As they are: `include_router` would make each a second time, and amid the first request that comes.
    app.router.routes.extend(routes)
    install_error_handlers(app, routes)
    install_openapi(app)
    return app


class Gateway:
    """The whole."""

    def __init__(self, state: GatewayState) -> None:
        hot: dict[str, Handler] = {path: Completions(state, path) for path in ENDPOINTS}
        hot["/v1/responses"] = KeptResponses(state)
        self.hot: Mapping[str, Handler] = hot
        self._state = state
        self._rest: App = RequestContext(self._cold, state)
        self._fastapi: FastAPI | None = None

    def prepare(self) -> FastAPI:
        """Make the application for all that is not hot: it takes a fifth of a second, better before anybody asks."""
        if self._fastapi is None:
            self._fastapi = build_fastapi(self._state)
        return self._fastapi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the server for each request that is not for a hot handler."""
        if scope["type"] == "http":
            await self._rest(scope, receive, send)

    async def _cold(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] in self.hot:
                error = ApiError(405, "method_not_allowed", f"{scope['path']} takes POST; see /docs.")
                error.headers.append((b"allow", b"POST"))
                raise error
            if scope["method"] in _WITH_BODY and scope["path"].startswith(_OF_CALLERS):
                await self._admit(scope)
                if not scope["path"].startswith(_OF_ANY_SIZE):
                    receive = _bounded(scope, receive, self._state.config.limits.body_bytes)
        except ApiError as error:
            body = error_body(error, scope["citadel.request_id"])
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                *error.headers,
            ]
            await send({"type": "http.response.start", "status": error.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            await self.prepare()(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        """See who calls before the body is read, as FastAPI would do first. Raises ApiError."""
        client = scope.get("client")
        authorization = credentials_of(scope["headers"])
        scope["citadel.principal"] = await self._state.verify(authorization, client[0] if client else None)


def _bounded(scope: Scope, receive: Receive, limit: int) -> Receive:
    """A `receive` that gives no more than `limit` bytes. Raises ApiError 413 where more are announced."""
    error = ApiError(413, "request_too_large", f"The body is larger than the {limit} bytes that this server takes.")
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise error
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise error
        return message

    return bounded
