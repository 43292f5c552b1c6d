"""`/admin/v1/roles`: what each role permits. The built-in ones cannot be changed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.permissions import BUILT_IN, PER_MODEL, PERMISSIONS
from citadel_llm.api.identity.principal import EVERY_MODEL, Principal
from citadel_llm.api.identity.rights import rights_of
from citadel_llm.api.routes.admin.keys import Model, Permission
from citadel_llm.api.routes.admin.store import (
    Body,
    Cursor,
    Limit,
    Store,
    Text,
    check_within,
    not_found,
    page,
    read_cursor,
    responses,
)
from citadel_llm.api.routes.admin.users import Role
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database import accounts

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection

__all__ = ["router"]

type Row = Mapping[str, Any]


class Grant(Body):
    """A permission; for `inference` and `embeddings` a model, or `*` for every one."""

    permission: Permission
    model: Model = EVERY_MODEL


Grants = Annotated[list[Grant], Field(max_length=512)]


class NewRole(Body):
    """What is not granted is denied."""

    name: Role
    description: Text = ""
    grants: Grants = Field(default_factory=list)


class GrantsChange(Body):
    """All that the role permits from now on."""

    grants: Grants


class GrantObject(BaseModel):
    """A grant."""

    permission: str
    model: str


class RoleObject(BaseModel):
    """A role."""

    object: str = "role"
    name: str
    description: str
    built_in: bool
    grants: list[GrantObject]
    users: int = Field(description="How many have it")
    created_at: int


class RoleList(BaseModel):
    """A page of them, by name."""

    object: str = "list"
    data: list[RoleObject]
    next: str | None


def _shown(row: Row) -> dict[str, Any]:
    found = {"object": "role", **{name: row[name] for name in RoleObject.model_fields if name != "object"}}
    if row["built_in"]:
        held = sorted(BUILT_IN.get(row["name"], ()))
        found["grants"] = [{"permission": permission, "model": EVERY_MODEL} for permission in held]
    return found


async def _role_of(connection: "Connection", name: str) -> Row:
    found = await accounts.find_role(connection, name) if 0 < len(name) <= 63 and "\0" not in name else None
    if found is None:
        raise not_found("role", name)
    return found


def _checked(grants: Sequence[Grant]) -> list[tuple[str, str]]:
    """Raises ApiError 400."""
    for grant in grants:
        if grant.permission not in PERMISSIONS:
            message = f"There is no permission `{grant.permission}`; there are: {', '.join(PERMISSIONS)}."
            raise ApiError(400, "permission_not_found", message, param="body.grants")
        if grant.model != EVERY_MODEL and grant.permission not in PER_MODEL:
            message = f"`{grant.permission}` is not about a model: expected `*`, got `{grant.model}`."
            raise ApiError(400, "invalid_request", message, param="body.grants")
    return [(grant.permission, grant.model) for grant in grants]


def _check_grants(caller: Principal, grants: Sequence[tuple[str, str]], what: str) -> None:
    check_within(caller, rights_of([""], {"": grants}), what)


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(prefix="/admin/v1/roles", tags=["admin"])
    guard, store = Guard(state), Store(state)
    reader = Annotated[Principal, Depends(guard("roles.read"))]
    writer = Annotated[Principal, Depends(guard("roles.write"))]

    async def own(connection: "Connection", name: str, caller: Principal) -> Row:
        """A role that the caller may change. Raises ApiError 404, 409 and 403."""
        found = await _role_of(connection, name)
        if found["built_in"]:
            raise ApiError(409, "built_in_role", f"The role `{name}` is built in. Make another one.")
        _check_grants(caller, [(grant["permission"], grant["model"]) for grant in found["grants"]], "Who has the role")
        return found

    @routes.get("", response_model=RoleList, summary="List the roles", responses=responses())
    async def list_roles(caller: reader, limit: Limit = 50, cursor: Cursor = None) -> JSONResponse:
        after = (read_cursor(cursor, str) or ("",))[0]
        async with store.reading() as connection:
            rows = await accounts.roles_page(connection, after, limit + 1)
        shown, following = page(rows, limit, ["name"])
        return JSONResponse({"object": "list", "data": [_shown(row) for row in shown], "next": following})

    @routes.post("", response_model=RoleObject, status_code=201, summary="Make a role", responses=responses(409))
    async def create_role(body: NewRole, request: Request, caller: writer) -> JSONResponse:
        grants = _checked(body.grants)
        request.scope["citadel.audit"] = {"role": body.name, "grants": [f"{p} {m}" for p, m in grants]}
        _check_grants(caller, grants, "Who has the role")
        async with store.changing() as connection:
            if not await accounts.add_role(connection, body.name, body.description):
                raise ApiError(409, "already_exists", f"There is a role `{body.name}` already.", param="body.name")
            await accounts.put_grants(connection, body.name, grants)
            made = await _role_of(connection, body.name)
        return JSONResponse(_shown(made), status_code=201)

    @routes.get("/{role}", response_model=RoleObject, summary="Show a role", responses=responses(404))
    async def get_role(role: str, caller: reader) -> JSONResponse:
        async with store.reading() as connection:
            return JSONResponse(_shown(await _role_of(connection, role)))

    @routes.put(
        "/{role}/grants", response_model=RoleObject, summary="Set what a role permits", responses=responses(404, 409)
    )
    async def put_grants(role: str, body: GrantsChange, request: Request, caller: writer) -> JSONResponse:
        grants = _checked(body.grants)
        request.scope["citadel.audit"] = {"role": role[:63], "grants": [f"{p} {m}" for p, m in grants]}
        _check_grants(caller, grants, "Who has the role")
        async with store.changing() as connection:
            await own(connection, role, caller)
            await accounts.put_grants(connection, role, grants)
            changed = await _role_of(connection, role)
        return JSONResponse(_shown(changed))

    @routes.delete(
        "/{role}",
        status_code=204,
        response_class=Response,
        summary="Delete a role that nobody has",
        responses=responses(404, 409),
    )
    async def delete_role(role: str, request: Request, caller: writer) -> Response:
        request.scope["citadel.audit"] = {"role": role[:63]}
        async with store.changing() as connection:
            found = await own(connection, role, caller)
            if found["users"]:
                raise ApiError(409, "role_in_use", f"{found['users']} users have the role `{role}`.")
            await accounts.drop_role(connection, role)
        return Response(status_code=204)

    return routes
