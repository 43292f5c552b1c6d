"""`/console`: the page for people. It holds nothing; what it shows it asks the API for, with the viewer's key."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import public
from citadel_llm.api.state import GatewayState
from citadel_llm.console import read_pages

__all__ = ["router"]


def router(state: GatewayState) -> APIRouter:
    """The page and its files; they need no key."""
    routes = APIRouter(prefix="/console", include_in_schema=False, dependencies=[Depends(public)])
    pages = read_pages()

    def page(request: Request, name: str) -> Response:
        found = pages.get(name)
        if found is None:
            raise ApiError(404, "unknown_url", "There is no such file of the console.")
        if request.headers.get("if-none-match") == found.headers["etag"]:
            return Response(status_code=304, headers=found.headers)
        return Response(found.body, headers=found.headers)

    @routes.get("")
    async def get_console(request: Request) -> Response:
        return page(request, "index.html")

    @routes.get("/{name}")
    async def get_console_file(request: Request, name: str) -> Response:
        return page(request, name)

    return routes
