"""Who may use an endpoint that FastAPI serves.

    guard = Guard(state)

    @routes.get("/admin/v1/users")
    async def list_users(caller: Annotated[Principal, Depends(guard("users.read"))]) -> ...

The caller is then in `request.scope["citadel.principal"]` too, where the audit log finds it. A handler that wants more
said there puts it into `request.scope["citadel.audit"]`: a mapping of names to plain values, never a secret.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fastapi import Request

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.permissions import PERMISSIONS
from citadel_llm.api.identity.principal import Principal

if TYPE_CHECKING:
    from citadel_llm.api.state import GatewayState

__all__ = ["Guard", "denied"]


class Guard:
    """Makes the dependencies."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state

    def __call__(self, permission: str) -> Callable[[Request], Awaitable[Principal]]:
        """A dependency: the caller, who holds `permission`. It raises ApiError 401 or 403."""
        if permission not in PERMISSIONS:
            raise ValueError(f"no such permission: {permission}")

        async def caller(request: Request) -> Principal:
            principal = await self.identify(request)
            if permission not in principal.permissions and not principal.unbounded:
                raise denied(permission)
            return principal

        return caller

    async def identify(self, request: Request) -> Principal:
        """The caller, whatever it may do. Raises ApiError 401."""
        given = request.headers.get("authorization")
        client = request.client.host if request.client else None
        principal = self._state.identify(given.encode("latin-1") if given is not None else None, client)
        request.scope["citadel.principal"] = principal
        return principal


def denied(permission: str, model: str = "") -> ApiError:
    """The 403 for a caller that does not hold `permission`, for that model."""
    what = f" for the model `{model}`" if model else ""
    return ApiError(
        403,
        "permission_denied",
        f"This key may not do that: it lacks the permission `{permission}`{what}. "
        "Ask the operator of this server for it.",
        param="model" if model else None,
    )
