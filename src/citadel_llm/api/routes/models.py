"""`/v1/models`: what is served here, and in what state."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from citadel_llm.api.identity.guard import SECURITY, Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.middleware.auth import credentials_of
from citadel_llm.api.routes.kinds import PERMISSION
from citadel_llm.api.routes.resolve import unknown_model
from citadel_llm.api.routes.schemas import ModelList, ModelObject, refused
from citadel_llm.api.state import GatewayState
from citadel_llm.api.upstream.model import ServedModel
from citadel_llm.utils.config import AUTO

__all__ = ["may_use", "router"]


def may_use(caller: Principal | None, model: ServedModel) -> bool:
    """Whether the caller is shown the model. Who may ask no model at all looks after them, and sees every one."""
    if caller is None or caller.unbounded or caller.permissions.keys().isdisjoint(PERMISSION.values()):
        return True
    return caller.may(PERMISSION[model.config.kind], model.name)


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(prefix="/v1/models", tags=["models"])
    security = {"security": [*SECURITY, *([{}] if state.config.auth.public_model_list else [])]}

    guard = Guard(state)

    asked = guard("models")

    async def admit(request: Request) -> Principal | None:
        # A key that is given must be right even where none is needed, so that a client which
        # lists the models to try its key learns the truth about it.
        if not state.config.auth.public_model_list or credentials_of(request.scope["headers"]) is not None:
            return await asked(request)
        return None

    admit.permissions = ("models",)  # type: ignore[attr-defined]
    Admitted = Annotated[Principal | None, Depends(admit)]

    def show(model: ServedModel) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": state.config.created,
            "owned_by": model.config.owned_by,
            "display_name": model.config.display_name or model.name,
            "kind": model.config.kind,
            "max_model_len": model.config.max_tokens,
            "aliases": [alias for alias, name in state.config.aliases.items() if name == model.name],
            "state": model.state,
        }

    def show_auto(models: list[ServedModel]) -> dict[str, Any]:
        lengths = [model.config.max_tokens for model in models]
        return {
            "object": "model",
            "created": state.config.created,
            "owned_by": "citadel",
            "display_name": "The smallest model that fits the request",
            "max_model_len": None if None in lengths else max(length or 0 for length in lengths),
            "aliases": [alias for alias, name in state.config.aliases.items() if name == AUTO],
            "state": "up" if any(model.candidates for model in models) else "down",
        }

    @routes.get(
        "",
        response_model=ModelList,
        summary="List the models",
        responses={401: refused()},
        openapi_extra=security,
    )
    async def list_models(caller: Admitted) -> JSONResponse:
        seen = [show(model) for model in state.models.values() if may_use(caller, model)]
        return JSONResponse({"object": "list", "data": seen})

    @routes.get(
        "/{model_id:path}",
        response_model=ModelObject,
        summary="Show one model",
        responses={401: refused(), 404: refused()},
        openapi_extra=security,
    )
    async def get_model(model_id: str, caller: Admitted) -> JSONResponse:
        name = state.config.aliases.get(model_id, model_id)
        sized = [
            model
            for model in state.models.values()
            if model.config.size_gb is not None and model.config.kind == "generate" and may_use(caller, model)
        ]
        if name == AUTO and sized:
            return JSONResponse({**show_auto(sized), "id": model_id})
        model = state.models.get(name)
        if model is None or not may_use(caller, model):
            raise unknown_model(model_id, state)
        # An alias is shown under the name that was asked for, as OpenAI's clients expect.
        return JSONResponse({**show(model), "id": model_id}, headers={"x-citadel-model": model.name})

    return routes
