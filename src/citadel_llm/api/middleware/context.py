"""For the endpoints that FastAPI serves: correlation id, access line, metrics, and errors in one shape."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from http import HTTPStatus
from time import monotonic

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from citadel_llm.api.errors import ApiError, error_body
from citadel_llm.api.middleware.asgi import App, Message, Receive, Scope, Send
from citadel_llm.api.middleware.correlation import request_id_of
from citadel_llm.api.routes.kinds import ENDPOINTS
from citadel_llm.api.state import GatewayState

__all__ = ["RequestContext", "install_error_handlers"]

# Asked every few seconds by machines: their good answers are counted, not logged.
_QUIET = ("/health", "/metrics", "/console", "/admin/v1/status", "/admin/v1/alerts")
# Answered outside the router, so that no route names them for the metrics.
_UNROUTED = ("/docs", "/openapi.json", *ENDPOINTS)


class RequestContext:
    """Wraps an application."""

    def __init__(self, app: App, state: GatewayState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        began = monotonic()
        request_id = request_id_of(scope["headers"])
        scope["citadel.request_id"] = request_id
        status = 0
        complete = finished = False

        def finish() -> None:
            nonlocal finished
            if not finished:
                finished = True
                self._finish(scope, request_id, status or 499, monotonic() - began)

        async def send_with_id(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode("ascii"))]
                if self._state.draining:
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            else:
                complete = not message.get("more_body")
                if complete:
                    finish()  # what is answered is written down before its last bytes go out
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as failure:
            self._state.log.event(
                "error",
                "unexpected",
                request_id=request_id,
                traceback="".join(traceback.format_exception(failure))[-8192:],
            )
            if not status:
                await _respond(_internal_error(), request_id)(scope, receive, send_with_id)
            elif not complete:
                raise  # so that the server cuts the answer off
        finally:
            finish()

    def _finish(self, scope: Scope, request_id: str, status: int, duration_s: float) -> None:
        route: str = getattr(scope.get("route"), "path", "")
        if not route:
            route = scope["path"] if scope["path"] in _UNROUTED else "other"
        principal = scope.get("citadel.principal")
        self._state.metrics.answered(route, "", status, duration_s, "none" if principal is None else principal.group)
        if status < 400 and route.startswith(_QUIET):
            return
        if self._state.audit is not None:
            self._state.audit.cold(scope, route, request_id, status, duration_s)
        client = scope.get("client")
        self._state.log.event(
            "info" if status < 500 else "warning",
            "access",
            request_id=request_id,
            method=scope["method"],
            path=scope["path"][:256],
            status=status,
            duration_ms=round(duration_s * 1e3, 3),
            client=client[0] if client else None,
        )


def _internal_error() -> ApiError:
    return ApiError(500, "internal_error", "Something went wrong inside the gateway; its log names this request_id.")


def _respond(error: ApiError, request_id: str) -> Response:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in error.headers}
    return Response(error_body(error, request_id), error.status, headers=headers, media_type="application/json")


def _methods_at(scope: Scope, routes: Sequence[BaseRoute]) -> set[str]:
    matching = (route for route in routes if route.matches(scope)[0] is not Match.NONE)
    return {method for route in matching if isinstance(route, Route) for method in route.methods or ()}


def install_error_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make the application answer every error in OpenAI's shape. `routes` are what its routers have."""

    async def on_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)  # noqa: S101 — registered for this class only
        return _respond(error, request.scope["citadel.request_id"])

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        known = {
            404: ("unknown_url", f"There is nothing at {request.method} {request.url.path[:256]}; see /docs."),
            405: ("method_not_allowed", f"{request.url.path[:256]} does not take {request.method}; see /docs."),
        }
        code, message = known.get(error.status_code, (HTTPStatus(error.status_code).name.lower(), str(error.detail)))
        headers = [(k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items()]
        # Where each of a path's methods has a route of its own, the router's refusal names the first one's only.
        if error.status_code == 405 and (methods := _methods_at(request.scope, routes)):
            headers = [(b"allow", ", ".join(sorted(methods)).encode())]
        return _respond(
            ApiError(error.status_code, code, message, headers=headers), request.scope["citadel.request_id"]
        )

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _respond(
            ApiError(400, "invalid_request", f"{where}: {first['msg']}", param=where),
            request.scope["citadel.request_id"],
        )

    async def on_fault(request: Request, error: Exception) -> Response:
        return _respond(_internal_error(), request.scope["citadel.request_id"])  # it is raised again, and logged above

    app.add_exception_handler(Exception, on_fault)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
