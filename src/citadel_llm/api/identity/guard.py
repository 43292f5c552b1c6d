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
from citadel_llm.api.middleware.auth import credentials_of

if TYPE_CHECKING:
    from citadel_llm.api.state import GatewayState

__all__ = ["SECURITY", "Guard", "denied", "public"]

# The ways to say who calls, for the documentation.
SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"api_key": []}, {"basic": []}]


class Guard:
    """Makes the dependencies."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state

    def __call__(self, *permissions: str) -> Callable[[Request], Awaitable[Principal]]:
        """A dependency: the caller, who holds one of these. It raises ApiError 401 or 403."""
        if not permissions or not PERMISSIONS.keys() >= set(permissions):
            raise ValueError(f"no such permission: {', '.join(permissions)}")

        async def caller(request: Request) -> Principal:
            principal = await self.identify(request)
            if not principal.unbounded and principal.permissions.keys().isdisjoint(permissions):
                raise denied(permissions[-1])
            return principal

        setattr(caller, "permissions", permissions)  # noqa: B010 — the test of the whole matrix reads it
        return caller

    async def identify(self, request: Request) -> Principal:
        """The caller, whatever it may do. Raises ApiError 401."""
        known: Principal | None = request.scope.get("citadel.principal")
        if known is not None:
            return known
        client = request.client.host if request.client else None
        principal = await self._state.verify(credentials_of(request.scope["headers"]), client)
        request.scope["citadel.principal"] = principal
        return principal


async def public() -> None:
    """A dependency that says of an endpoint that it needs no key."""


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
