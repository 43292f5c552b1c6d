"""What somebody may do, as one value: by permission, the models that it holds for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from citadel_llm.api.identity.permissions import BUILT_IN, PER_MODEL, PERMISSIONS
from citadel_llm.api.identity.principal import EVERY_MODEL, Principal

__all__ = ["ROLES", "Rights", "group_of", "narrowed", "rights_of", "within"]

type Rights = Mapping[str, frozenset[str]]

_EVERY = frozenset({EVERY_MODEL})
ROLES: Mapping[str, Rights] = {role: dict.fromkeys(held, _EVERY) for role, held in BUILT_IN.items()}


def rights_of(roles: Iterable[str], grants: Mapping[str, Iterable[tuple[str, str]]]) -> Rights:
    """What these roles permit together. `grants` has the (permission, model) of each role that is not built in."""
    found: dict[str, set[str]] = {}
    for role in roles:
        for permission, models in ROLES.get(role, {}).items():
            found.setdefault(permission, set()).update(models)
        if role not in ROLES:
            for permission, model in grants.get(role, ()):
                if permission in PERMISSIONS:  # what a release does not know it does not permit
                    found.setdefault(permission, set()).add(model)
    return {permission: _EVERY if EVERY_MODEL in models else frozenset(models) for permission, models in found.items()}


def group_of(roles: Iterable[str]) -> str:
    """The strongest built-in role among these; `custom` where all are the site's own, `none` where there are none."""
    found = set(roles)
    return next((role for role in BUILT_IN if role in found), "custom" if found else "none")


def narrowed(rights: Rights, permissions: Iterable[str] | None, models: Iterable[str] | None) -> Rights:
    """What of it is left for a key that was given these permissions and models; None is no narrower."""
    kept = rights if permissions is None else {name: rights[name] for name in permissions if name in rights}
    if models is None:
        return kept
    wanted = frozenset(models)
    return {name: _both(held, wanted) if name in PER_MODEL else held for name, held in kept.items()}


def _both(held: frozenset[str], wanted: frozenset[str]) -> frozenset[str]:
    if EVERY_MODEL in wanted:
        return held
    return wanted if EVERY_MODEL in held else held & wanted


def within(rights: Rights, principal: Principal) -> bool:
    """Whether `principal` may do all of it: who may not, must not give it to anybody, nor take hold of it."""
    return all(principal.may(permission, model) for permission, models in rights.items() for model in models)
