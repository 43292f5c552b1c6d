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
from citadel_llm.api.middleware.asgi import App, Receive, Scope, Send
from citadel_llm.api.middleware.context import RequestContext, install_error_handlers
from citadel_llm.api.openapi import DESCRIPTION, install_openapi
from citadel_llm.api.routes import health, metrics, models, responses
from citadel_llm.api.routes.admin import audit, usage
from citadel_llm.api.routes.completions import Completions
from citadel_llm.api.routes.kinds import ENDPOINTS
from citadel_llm.api.state import GatewayState

__all__ = ["Gateway", "build_fastapi"]


def build_fastapi(state: GatewayState) -> FastAPI:
    """The application for all that is not hot."""
    app = FastAPI(title="Citadel LLM gateway", version=state.version, description=DESCRIPTION, redoc_url=None)
    routers = [family.router(state) for family in (models, responses, health, metrics, audit, usage)]
    for router in routers:
        app.include_router(router)
    install_error_handlers(app, [route for router in routers for route in router.routes])
    install_openapi(app)
    return app


class Gateway:
    """The whole."""

    def __init__(self, state: GatewayState) -> None:
        self.hot: Mapping[str, Handler] = {path: Completions(state, path) for path in ENDPOINTS}
        self._rest: App = RequestContext(self._cold, state)
        self._fastapi = build_fastapi(state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the server for each request that is not for a hot handler."""
        if scope["type"] == "http":
            await self._rest(scope, receive, send)

    async def _cold(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in self.hot:
            await self._fastapi(scope, receive, send)
            return
        error = ApiError(405, "method_not_allowed", f"{scope['path']} takes POST; see /docs.")
        body = error_body(error, scope["citadel.request_id"])
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"allow", b"POST"),
        ]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
