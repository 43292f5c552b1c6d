"""`/admin/v1/status`: every model, replica and peer, with what was counted: what the console shows.

Counts are of all instances of this host and only grow; whoever asks twice knows what happened in between. States, and a
replica's own numbers, are those of the instance that answers.
"""

from time import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from citadel_llm.api.fresh import Fresh
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.permissions import PERMISSIONS
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.health import dependencies, show_engine, verdict
from citadel_llm.api.routes.models import may_use
from citadel_llm.api.routes.schemas import EngineHealth, StateName, refused
from citadel_llm.api.state import GatewayState
from citadel_llm.api.upstream.model import ServedModel
from citadel_llm.integration.metrics.counts import Counts, read_counts

__all__ = ["router"]


class Histogram(BaseModel):
    """How long things took."""

    bounds_s: list[float] = Field(description="Seconds")
    counts: list[int] = Field(description="How many took at most so long, for each bound; the last is all of them")
    sum_s: float


class ModelStatus(BaseModel):
    """One model."""

    id: str
    display_name: str
    kind: Literal["generate", "embedding"]
    state: StateName
    max_model_len: int | None
    latency_ms: float | None = Field(description="What its requests take at most in the mean, as was required")
    latency_target_ms: float | None = Field(description="What they should take")
    concurrency: int = Field(description="Requests at once that one instance sends there")
    fallback: list[str]
    in_flight: int = Field(description="From all instances of this host")
    queued: int
    statuses: dict[str, int] = Field(description="Answers, by their status; 499 is a caller that hung up")
    tokens: dict[str, int] = Field(description="`prompt` and `completion`")
    duration: Histogram = Field(description="Of the whole answers")
    first_token: Histogram = Field(description="From a stream's request to its first piece")
    replicas: list[EngineHealth]


class CallerStatus(BaseModel):
    """Whoever asks, so that a page shows what it may."""

    name: str
    key: str
    permissions: list[str]


class GatewayStatus(BaseModel):
    """The whole."""

    object: Literal["status"]
    at: float = Field(description="Seconds since 1970")
    status: Literal["ok", "degraded", "down"]
    version: str
    instance: str
    availability: float = Field(description="The part of requests that is to be answered")
    caller: CallerStatus
    peers: dict[str, str] = Field(description="Those that are configured: `up`, `down`, or the audit log's state")
    models: list[ModelStatus] = Field(description="Those that the caller may use, or every one")


def router(state: GatewayState) -> APIRouter:
    """The endpoint; it needs `models`."""
    routes = APIRouter(prefix="/admin/v1/status", tags=["administration"])
    Caller = Annotated[Principal, Depends(Guard(state)("models"))]

    async def read() -> dict[str, Counts]:
        state.publish()
        return await run_in_threadpool(read_counts, state.metrics)

    counted = Fresh(state.config.console.status_s, read)

    @routes.get(
        "",
        summary="Models, replicas and peers, with what was counted",
        response_model=GatewayStatus,
        responses={401: refused(), 403: refused()},
        openapi_extra={"security": [{"bearer": []}]},
    )
    async def get_status(caller: Caller) -> JSONResponse:
        counts = await counted.get()
        seen = [model for model in state.models.values() if may_use(caller, model)]
        return JSONResponse(
            {
                "object": "status",
                "at": round(time(), 3),
                "status": verdict(state),
                "version": state.version,
                "instance": state.instance,
                "availability": state.config.console.availability,
                "caller": {
                    "name": caller.user,
                    "key": caller.key_name,
                    "permissions": sorted(PERMISSIONS if caller.unbounded else caller.permissions),
                },
                "peers": _peers(state),
                "models": [_show(model, counts.get(model.name, Counts())) for model in seen],
            }
        )

    return routes


def _peers(state: GatewayState) -> dict[str, str]:
    peers = dependencies(state)
    if state.vector is not None:
        peers["vector"] = {True: "up", False: "down", None: "unknown"}[state.vector.state["up"]]
    if state.audit is not None:
        peers["audit"] = state.audit.state["state"]
    return peers


def _show(model: ServedModel, counts: Counts) -> dict[str, Any]:
    return {
        "id": model.name,
        "display_name": model.config.display_name or model.name,
        "kind": model.config.kind,
        "state": model.state,
        "max_model_len": model.config.max_tokens,
        "latency_ms": model.config.latency_ms or None,
        "latency_target_ms": model.config.latency_target_ms or None,
        "concurrency": model.admission.places,
        "fallback": model.config.fallback,
        "in_flight": counts.in_flight,
        "queued": counts.queued,
        "statuses": counts.statuses,
        "tokens": counts.tokens,
        "duration": counts.duration.shown(),
        "first_token": counts.first.shown(),
        "replicas": [show_engine(engine) for engine in model.engines],
    }
