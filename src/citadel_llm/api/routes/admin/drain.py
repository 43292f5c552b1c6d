"""`/admin/v1/drain`: takes a model, or one replica of it, out of service, and puts it back.

A replica that is drained finishes what it has and gets nothing new from this host's instances. That holds over restarts
of the engine and of the gateway, until it is put back or the host starts anew.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.routes.health import show_engine
from citadel_llm.api.routes.resolve import unknown_model
from citadel_llm.api.routes.schemas import EngineHealth, StateName, refused
from citadel_llm.api.state import GatewayState
from citadel_llm.api.upstream.engine import Engine

__all__ = ["router"]

_Replica = Annotated[
    str | None, Query(max_length=300, description="Its address, as /health has it; by default all of the model's")
]


class Drained(BaseModel):
    """A model after it was drained or put back."""

    object: Literal["drain"]
    model: str
    state: StateName
    replicas: list[EngineHealth]


def router(state: GatewayState) -> APIRouter:
    """The endpoints; they need `operate`."""
    routes = APIRouter(
        prefix="/admin/v1/drain", tags=["administration"], dependencies=[Depends(Guard(state)("operate"))]
    )
    documented: dict[str, Any] = {
        "response_model": Drained,
        "responses": {
            **{status: refused() for status in (400, 401, 403)},
            404: refused("There is no such model, or no such replica of it"),
            503: refused("It cannot be written down for the host's other instances"),
        },
        "openapi_extra": {"security": [{"bearer": []}]},
    }

    def chosen(name: str, replica: str | None) -> tuple[str, list[Engine]]:
        known = state.config.aliases.get(name, name)
        model = state.models.get(known)
        if model is None:
            raise unknown_model(name, state)
        engines = [engine for engine in model.engines if replica in (None, engine.url)]
        if not engines:
            there = ", ".join(f"`{engine.url}`" for engine in model.engines)
            raise ApiError(
                404, "replica_not_found", f"The model `{known}` has no such replica. It has: {there}.", param="replica"
            )
        return known, engines

    def change(request: Request, name: str, replica: str | None, *, out: bool) -> JSONResponse:
        known, engines = chosen(name, replica)
        request.scope["citadel.audit"] = {
            "action": "models.drain" if out else "models.undrain",
            "model": known,
            "replicas": [engine.url for engine in engines],
        }
        try:
            for engine in engines:
                (state.drains.put if out else state.drains.take)(known, engine.url)
        except OSError as error:
            raise ApiError(
                503, "drain_unavailable", f"This could not be written down on the host: {error.strerror}."
            ) from error
        state.prober.look_at_markers()  # this instance at once, the others within their next look
        model = state.models[known]
        return JSONResponse(
            {
                "object": "drain",
                "model": known,
                "state": model.state,
                "replicas": [show_engine(engine) for engine in model.engines],
            }
        )

    @routes.put("/{model:path}", summary="Take a model, or a replica, out of service", **documented)
    async def drain_model(request: Request, model: str, replica: _Replica = None) -> JSONResponse:
        return change(request, model, replica, out=True)

    @routes.delete("/{model:path}", summary="Put it back into service", **documented)
    async def undrain_model(request: Request, model: str, replica: _Replica = None) -> JSONResponse:
        return change(request, model, replica, out=False)

    return routes
