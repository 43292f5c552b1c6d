"""`/admin/v1/users`: who there is, and which roles each has."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, SecretStr, StringConstraints

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.admin.store import (
    Body,
    Cursor,
    Limit,
    Store,
    Text,
    as_uuid,
    check_within,
    not_found,
    page,
    read_cursor,
    responses,
    rights_by_roles,
)
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database import accounts

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection

__all__ = ["router", "user_of"]

type Row = Mapping[str, Any]
_PASSWORD = (12, 256)  # characters

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@+-]{0,127}$")]
Role = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Roles = Annotated[list[Role], Field(max_length=32)]
Password = Annotated[SecretStr, Field(min_length=_PASSWORD[0], max_length=_PASSWORD[1])]


class NewUser(Body):
    """Somebody, at first with neither a key nor, unless one is given, a password."""

    name: Name
    display_name: Text = ""
    email: Text | None = None
    roles: Roles = Field(default_factory=list)
    password: Password | None = None


class UserChange(Body):
    """What is not named stays."""

    display_name: Text | None = None
    email: Text | None = None
    roles: Roles | None = None
    disabled: bool | None = None


class NewPassword(Body):
    """None: no password opens the user's account any more."""

    password: Password | None


class UserObject(BaseModel):
    """A user."""

    object: str = "user"
    id: str
    name: str
    display_name: str
    email: str | None
    roles: list[str]
    has_password: bool
    disabled: bool
    origin: str = Field(description="`site`: declared in the site's secrets file; `api`: made here")
    created_at: int


class UserList(BaseModel):
    """A page of them, by name."""

    object: str = "list"
    data: list[UserObject]
    next: str | None


def _shown(row: Row) -> dict[str, Any]:
    return {"object": "user", **{name: row[name] for name in UserObject.model_fields if name != "object"}}


async def user_of(connection: "Connection", text: str) -> Row:
    """The user of that name or id. Raises ApiError 404."""
    user_id = as_uuid(text)
    found = None
    if user_id is not None:
        found = await accounts.find_user(connection, user_id=user_id)
    elif 0 < len(text) <= 128 and "\0" not in text:
        found = await accounts.find_user(connection, name=text)
    if found is None:
        raise not_found("user", text)
    return found


async def _check_roles(connection: "Connection", caller: Principal, roles: Sequence[str]) -> None:
    """Raises ApiError 400 for a role that there is not, 403 for one that permits more than the caller may."""
    missing = set(roles) - await accounts.known_roles(connection, roles)
    if missing:
        raise ApiError(400, "role_not_found", f"There is no role `{min(missing)}`.", param="roles")
    check_within(caller, await rights_by_roles(connection, roles), "Somebody with these roles")


async def _check_not_last(connection: "Connection", user: Row, *, still: bool) -> None:
    """Raises ApiError 409 where the only admin would be one no longer."""
    was = "admin" in user["roles"] and not user["disabled"]
    if was and not still and not await accounts.other_admins(connection, user["id"]):
        raise ApiError(409, "last_admin", f"`{user['name']}` is the only admin. Make another one first.")


def router(state: GatewayState) -> APIRouter:  # noqa: PLR0915 — a family of endpoints
    """The endpoints of this family."""
    routes = APIRouter(prefix="/admin/v1/users", tags=["admin"])
    guard, store = Guard(state), Store(state)
    reader = Annotated[Principal, Depends(guard("users.read"))]
    writer = Annotated[Principal, Depends(guard("users.write"))]

    async def hashed(password: SecretStr | None) -> str | None:
        if password is None:
            return None
        if state.identity.passwords is None:
            raise ApiError(400, "passwords_off", "Passwords are turned off on this server.", param="password")
        return await state.identity.passwords.hash(password.get_secret_value())

    @routes.get("", response_model=UserList, summary="List the users", responses=responses())
    async def list_users(caller: reader, limit: Limit = 50, cursor: Cursor = None) -> JSONResponse:
        after = (read_cursor(cursor, str) or ("",))[0]
        async with store.reading() as connection:
            rows = await accounts.users_page(connection, after, limit + 1)
        shown, following = page(rows, limit, ["name"])
        return JSONResponse({"object": "list", "data": [_shown(row) for row in shown], "next": following})

    @routes.post("", response_model=UserObject, status_code=201, summary="Make a user", responses=responses(409))
    async def create_user(body: NewUser, request: Request, caller: writer) -> JSONResponse:
        request.scope["citadel.audit"] = {"user": body.name, "roles": body.roles}
        if as_uuid(body.name) is not None:
            raise ApiError(400, "invalid_request", "body.name: expected a name that is no id.", param="body.name")
        password_hash = await hashed(body.password)
        async with store.changing() as connection:
            await _check_roles(connection, caller, body.roles)
            user_id = await accounts.add_user(
                connection,
                body.name,
                display_name=body.display_name,
                email=body.email,
                password_hash=password_hash,
            )
            if user_id is None:
                raise ApiError(409, "already_exists", f"There is a user `{body.name}` already.", param="body.name")
            await accounts.put_roles(connection, user_id, body.roles, caller.user_id or None)
            made = await user_of(connection, user_id)
        return JSONResponse(_shown(made), status_code=201)

    @routes.get("/{user}", response_model=UserObject, summary="Show a user", responses=responses(404))
    async def get_user(user: str, caller: reader) -> JSONResponse:
        async with store.reading() as connection:
            return JSONResponse(_shown(await user_of(connection, user)))

    @routes.patch(
        "/{user}",
        response_model=UserObject,
        summary="Change a user, disable one, give it other roles",
        responses=responses(404, 409),
    )
    async def change_user(user: str, body: UserChange, request: Request, caller: writer) -> JSONResponse:
        changes = body.model_dump(exclude_unset=True)
        said = {"user": user[:128], "changes": sorted(changes), "roles": body.roles, "disabled": body.disabled}
        request.scope["citadel.audit"] = said
        for name, value in changes.items():
            if value is None and name != "email":
                raise ApiError(400, "invalid_request", f"body.{name}: expected a value.", param=f"body.{name}")
        async with store.changing() as connection:
            found = await user_of(connection, user)
            check_within(caller, await rights_by_roles(connection, found["roles"]), f"`{found['name']}`")
            roles = found["roles"] if body.roles is None else body.roles
            disabled = found["disabled"] if body.disabled is None else body.disabled
            if body.roles is not None:
                await _check_roles(connection, caller, body.roles)
            await _check_not_last(connection, found, still="admin" in roles and not disabled)
            if body.disabled:
                changes["origin"] = "api"  # so that the next deployment does not bring it back
            await accounts.change_user(connection, found["id"], changes)
            if body.roles is not None:
                await accounts.put_roles(connection, found["id"], body.roles, caller.user_id or None)
            changed = await user_of(connection, found["id"])
        return JSONResponse(_shown(changed))

    @routes.put(
        "/{user}/password",
        status_code=204,
        response_class=Response,
        summary="Set a user's password, or take it away",
        responses=responses(404),
    )
    async def set_password(user: str, body: NewPassword, request: Request, caller: writer) -> Response:
        request.scope["citadel.audit"] = {"user": user[:128], "password": "set" if body.password else "none"}
        password_hash = await hashed(body.password)
        async with store.changing() as connection:
            found = await user_of(connection, user)
            check_within(caller, await rights_by_roles(connection, found["roles"]), f"`{found['name']}`")
            await accounts.change_user(connection, found["id"], {"password_hash": password_hash})
        return Response(status_code=204)

    return routes
