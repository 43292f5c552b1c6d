"""Whose limits and budgets: `key/ID`, `user/NAME-OR-ID`, `model/NAME`, `everyone/*`."""

from typing import TYPE_CHECKING, Annotated

from fastapi import Path
from pydantic import Field

from citadel_llm.api.limits.bounds import Scope
from citadel_llm.api.routes.admin.store import as_uuid, not_found
from citadel_llm.api.routes.admin.users import user_of
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database import accounts

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection

__all__ = ["Bound", "ScopePath", "SubjectPath", "subject_of"]

Bound = Annotated[int | None, Field(ge=0, le=1_000_000_000_000)]
ScopePath = Annotated[Scope, Path(description="Whose: a key's, a user's over all of its keys, a model's, everyone's")]
SubjectPath = Annotated[str, Path(max_length=128, description="The key's id, the user's name or id, the model, or `*`")]


async def subject_of(connection: "Connection", state: GatewayState, scope: Scope, text: str) -> str:
    """Under which name it is kept. Raises ApiError 404 where there is nobody of that name."""
    match scope:
        case "key":
            key_id = as_uuid(text)
            if key_id is None or await accounts.find_key(connection, key_id) is None:
                raise not_found("key", text)
            return key_id
        case "user":
            found: str = (await user_of(connection, text))["id"]
            return found
        case "model":
            name = state.config.aliases.get(text, text)
            if name not in state.models:
                raise not_found("model", text)
            return name
        case _:
            if text != "*":
                raise not_found("subject", text)
            return text
