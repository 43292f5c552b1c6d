"""Everybody who may call, in memory: a key is found, or known to be none, without asking anybody.

    directory = await assemble(identities)
    directory.key(digest)            # a Principal, or None
    directory.users["anna"].principal

A directory is never changed: another state of the database is another directory.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.identity.rights import Rights, group_of, narrowed, rights_of
from citadel_llm.api.limits.bounds import Bounds, BoundsTable, Scope

if TYPE_CHECKING:
    from citadel_llm.integration.database.identity import Identities

__all__ = ["Directory", "User", "assemble"]

_CHUNK = 200  # entries between two pauses: less than a millisecond
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a name; `principal` is who it is by its password."""

    name: str
    password_hash: str | None
    principal: Principal


class Directory:
    """What `assemble` made of the database's rows."""

    __slots__ = ("_keys", "bounds", "read_at", "users", "version")

    def __init__(
        self,
        version: int,
        read_at: float,
        keys: Mapping[bytes, tuple[bytes, Principal]],
        users: Mapping[str, User],
        bounds: BoundsTable,
    ) -> None:
        self.version = version
        self.read_at = read_at  # seconds since 1970
        self.users = users  # by name
        self.bounds = bounds
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, digest: bytes) -> Principal | None:
        """Whose key has this digest.

        Finding the entry takes a time that depends on the digest alone, which a caller cannot foresee without the
        pepper; the comparison that decides takes the same time for every digest.
        """
        found = self._keys.get(digest)
        if found is None or not hmac.compare_digest(found[0], digest):
            return None
        return found[1]


async def assemble(identities: Identities) -> Directory:
    """The directory of these rows. The loop goes on in between."""
    grants: dict[str, list[tuple[str, str]]] = {}
    for grant in identities.grants:
        grants.setdefault(grant.role, []).append((grant.permission, grant.model))
    by_roles: dict[tuple[str, ...], Rights] = {}  # few, however many users there are
    users: dict[str, User] = {}
    by_id: dict[str, Principal] = {}
    for count, user in enumerate(identities.users, 1):
        roles = tuple(user.roles)
        rights = by_roles.get(roles)
        if rights is None:
            rights = by_roles[roles] = rights_of(roles, grants)
        principal = Principal(f"{user.name}/password", user.name, user.id, permissions=rights, group=group_of(roles))
        users[user.name] = User(user.name, user.password_hash, principal)
        by_id[user.id] = principal
        if count % _CHUNK == 0:
            await asyncio.sleep(0)
    keys: dict[bytes, tuple[bytes, Principal]] = {}
    for count, key in enumerate(identities.keys, 1):
        owner = by_id.get(key.user_id)
        if owner is not None:
            keys[key.digest] = (
                key.digest,
                replace(
                    owner,
                    caller=f"{owner.user}/{key.id}",
                    key_id=key.id,
                    key_name=key.name,
                    expires_at=float("inf") if key.expires_at is None else key.expires_at,
                    permissions=narrowed(owner.permissions, key.permissions, key.models),
                ),
            )
        if count % _CHUNK == 0:
            await asyncio.sleep(0)
    return Directory(identities.version, identities.read_at, keys, users, _bounds(identities))


def _bounds(identities: Identities) -> BoundsTable:
    found: dict[tuple[Scope, str], Bounds] = {}
    for limit in identities.limits:
        found[cast(Scope, limit.scope), limit.subject] = Bounds(
            requests_per_minute=limit.requests_per_minute,
            tokens_per_minute=limit.tokens_per_minute,
            concurrent_requests=limit.concurrent_requests,
        )
    for budget in identities.budgets:
        subject = cast(Scope, budget.scope), budget.subject
        before = found.get(subject, Bounds())
        if budget.period == "day":
            found[subject] = replace(before, requests_per_day=budget.max_requests, tokens_per_day=budget.max_tokens)
        else:
            found[subject] = replace(before, requests_per_month=budget.max_requests, tokens_per_month=budget.max_tokens)
    return found
