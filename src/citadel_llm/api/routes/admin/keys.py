"""`/admin/v1/keys`: everybody's with `keys.read` and `keys.write`, one's own with `own-keys`."""

from collections.abc import Mapping, Sequence
from time import time
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, StringConstraints

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import Guard, denied
from citadel_llm.api.identity.permissions import PERMISSIONS
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.identity.rights import narrowed
from citadel_llm.api.routes.admin.store import (
    Body,
    Cursor,
    Limit,
    Store,
    as_uuid,
    check_within,
    not_found,
    page,
    read_cursor,
    responses,
    rights_by_roles,
)
from citadel_llm.api.routes.admin.users import user_of
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database import accounts
from citadel_llm.utils.keys import PREFIX_LENGTH, digest_of, new_key

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection

__all__ = ["router"]

type Row = Mapping[str, Any]

_TEN_YEARS_S = 315_360_000
_WEEK_S = 604_800
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Model = Annotated[str, StringConstraints(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._/-]{0,127})$")]
Permission = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class NewKey(Body):
    """A key may do what its user may, or of that only what is named here."""

    name: Name
    user: str | None = Field(None, max_length=128, description="Whose; the caller's own where none is named")
    expires_in_s: int | None = Field(None, ge=60, le=_TEN_YEARS_S)
    models: Annotated[list[Model], Field(max_length=256)] | None = None
    permissions: Annotated[list[Permission], Field(max_length=256)] | None = None


class Rotation(Body):
    """The old key goes on working for `overlap_s`."""

    overlap_s: int = Field(3600, ge=0, le=_WEEK_S)
    expires_in_s: int | None = Field(None, ge=60, le=_TEN_YEARS_S, description="None: it ends when the old one would")


class KeyObject(BaseModel):
    """A key, without the key itself."""

    object: str = "key"
    id: str
    user: str
    user_id: str
    name: str
    prefix: str = Field(description="How it begins")
    state: str = Field(description="`active`, `expired` or `revoked`")
    models: list[str] | None
    permissions: list[str] | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    replaced_by: str | None
    origin: str


class NewKeyObject(KeyObject):
    """A key, this once with the key itself."""

    key: str


class KeyList(BaseModel):
    """A page of them, the newest first."""

    object: str = "list"
    data: list[KeyObject]
    next: str | None


def _shown(row: Row, key: str | None = None) -> dict[str, Any]:
    found = {"object": "key", **{name: row[name] for name in KeyObject.model_fields if name != "object"}}
    return found if key is None else {**found, "key": key}


async def _key_of(connection: "Connection", text: str, caller: Principal, permission: str) -> Row:
    """The key of that id, if it is the caller's to look at by `permission`, or its own. Raises ApiError 404."""
    key_id = as_uuid(text)
    found = None if key_id is None else await accounts.find_key(connection, key_id)
    if found is None or not (caller.may(permission) or _own(found, caller)):
        raise not_found("key", text)
    return found


def _own(row: Row, caller: Principal) -> bool:
    return bool(caller.user_id) and row["user_id"] == caller.user_id and caller.may("own-keys")


def _expiry(expires_in_s: int | None) -> float | None:
    """When a key that is made now ends."""
    return None if expires_in_s is None else time() + expires_in_s


def _check_expiry(expires_at: float | None, caller: Principal) -> None:
    """Raises ApiError 403 where a key that ends then would outlive the one that it is made with."""
    if not caller.may("keys.write") and (expires_at or float("inf")) > caller.expires_at:
        raise ApiError(
            403,
            "beyond_own_rights",
            "A key can't make one that outlives it: name a shorter `expires_in_s`, or call with a password.",
            param="body.expires_in_s",
        )


async def _check_rights(
    connection: "Connection",
    user: Row,
    permissions: Sequence[str] | None,
    models: Sequence[str] | None,
    caller: Principal,
) -> None:
    """Raises ApiError 403 where a key of that user could do what the caller may not."""
    rights = narrowed(await rights_by_roles(connection, user["roles"]), permissions, models)
    check_within(caller, rights, "The key")


def router(state: GatewayState) -> APIRouter:  # noqa: PLR0915 — a family of endpoints
    """The endpoints of this family."""
    routes = APIRouter(prefix="/admin/v1/keys", tags=["admin"])
    guard, store = Guard(state), Store(state)
    reader = Annotated[Principal, Depends(guard("keys.read", "own-keys"))]
    writer = Annotated[Principal, Depends(guard("keys.write", "own-keys"))]

    @routes.get("", response_model=KeyList, summary="List keys", responses=responses(404))
    async def list_keys(
        caller: reader,
        user: Annotated[str | None, Query(max_length=128, description="Whose; its name or id")] = None,
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> JSONResponse:
        found = read_cursor(cursor, int, str)
        before = None
        if found is not None:
            key_id = as_uuid(found[1])
            if key_id is None or not 0 <= found[0] < 1 << 60:
                raise ApiError(400, "invalid_request", "cursor: expected the `next` of a page.", param="cursor")
            before = found[0], key_id
        async with store.reading() as connection:
            whose: str | None = None
            if not caller.may("keys.read"):
                if user not in (None, caller.user, caller.user_id):
                    raise denied("keys.read")
                whose = caller.user_id
            elif user is not None:
                whose = (await user_of(connection, user))["id"]
            rows = await accounts.keys_page(connection, user_id=whose, before=before, limit=limit + 1)
        shown, following = page(rows, limit, ["at", "id"])
        return JSONResponse({"object": "list", "data": [_shown(row) for row in shown], "next": following})

    @routes.post(
        "",
        response_model=NewKeyObject,
        status_code=201,
        summary="Make a key, which is shown this once",
        responses=responses(404, 409),
    )
    async def create_key(body: NewKey, request: Request, caller: writer) -> JSONResponse:
        request.scope["citadel.audit"] = {"user": body.user or caller.user, "key": body.name}
        for permission in body.permissions or ():
            if permission not in PERMISSIONS:
                message = f"There is no permission `{permission}`."
                raise ApiError(400, "permission_not_found", message, param="body.permissions")
        key = new_key()
        async with store.changing() as connection:
            whose = caller.user_id if body.user is None else body.user
            if not whose:
                message = "body.user: expected a user; this caller is none that could have a key."
                raise ApiError(400, "invalid_request", message, param="body.user")
            if not caller.may("keys.write") and whose not in (caller.user, caller.user_id):
                raise denied("keys.write")
            user = await user_of(connection, whose)
            if user["disabled"]:
                raise ApiError(409, "user_disabled", f"The user `{user['name']}` is disabled.", param="body.user")
            await _check_rights(connection, user, body.permissions, body.models, caller)
            expires_at = _expiry(body.expires_in_s)
            _check_expiry(expires_at, caller)
            key_id = await accounts.add_key(
                connection,
                user["id"],
                body.name,
                prefix=key[:PREFIX_LENGTH],
                digest=digest_of(key.encode(), state.identity.pepper),
                models=body.models,
                permissions=body.permissions,
                expires_at=expires_at,
                by=caller.user_id or None,
            )
            made = await _key_of(connection, key_id, caller, "keys.write")
        return JSONResponse(_shown(made, key), status_code=201, headers={"cache-control": "no-store"})

    @routes.get("/{key_id}", response_model=KeyObject, summary="Show what a key may do", responses=responses(404))
    async def get_key(key_id: str, caller: reader) -> JSONResponse:
        async with store.reading() as connection:
            return JSONResponse(_shown(await _key_of(connection, key_id, caller, "keys.read")))

    @routes.post(
        "/{key_id}/rotate",
        response_model=NewKeyObject,
        status_code=201,
        summary="Put another key in a key's place; the old one works for a while yet",
        responses=responses(404, 409),
    )
    async def rotate_key(key_id: str, body: Rotation, request: Request, caller: writer) -> JSONResponse:
        key = new_key()
        async with store.changing() as connection:
            old = await _key_of(connection, key_id, caller, "keys.write")
            request.scope["citadel.audit"] = {"user": old["user"], "key": old["name"], "key_id": old["id"]}
            if old["state"] != "active" or old["replaced_by"] is not None:
                message = f"The key is {'replaced already' if old['replaced_by'] else old['state']}."
                raise ApiError(409, "key_not_active", message)
            user = await user_of(connection, old["user_id"])
            if user["disabled"]:
                raise ApiError(409, "user_disabled", f"The user `{user['name']}` is disabled.")
            await _check_rights(connection, user, old["permissions"], old["models"], caller)
            expires_at = old["ends_at"] if body.expires_in_s is None else _expiry(body.expires_in_s)
            _check_expiry(expires_at, caller)
            new_id = await accounts.add_key(
                connection,
                old["user_id"],
                old["name"],
                prefix=key[:PREFIX_LENGTH],
                digest=digest_of(key.encode(), state.identity.pepper),
                models=old["models"],
                permissions=old["permissions"],
                expires_at=expires_at,
                by=caller.user_id or None,
            )
            await accounts.supersede_key(connection, old["id"], new_id, body.overlap_s)
            made = await _key_of(connection, new_id, caller, "keys.write")
        return JSONResponse(_shown(made, key), status_code=201, headers={"cache-control": "no-store"})

    @routes.post("/{key_id}/revoke", response_model=KeyObject, summary="Revoke a key", responses=responses(404))
    async def revoke_key(key_id: str, request: Request, caller: writer) -> JSONResponse:
        async with store.changing() as connection:
            old = await _key_of(connection, key_id, caller, "keys.write")
            request.scope["citadel.audit"] = {"user": old["user"], "key": old["name"], "key_id": old["id"]}
            if old["user_id"] != caller.user_id:
                user = await user_of(connection, old["user_id"])
                await _check_rights(connection, user, old["permissions"], old["models"], caller)
            await accounts.revoke_key(connection, old["id"])
            revoked = await _key_of(connection, old["id"], caller, "keys.write")
        return JSONResponse(_shown(revoked))

    return routes
