"""What a request is called in the audit log, from its method and its route."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["action_of", "hot_action", "is_admin"]

_VERBS = {"GET": "read", "HEAD": "read", "POST": "create", "PUT": "update", "PATCH": "update", "DELETE": "delete"}
_PREFIX = re.compile(r"^/(?:admin/)?(?:v\d+/)?")


def is_admin(route: str) -> bool:
    """Whether a route is of the administration."""
    return route.startswith("/admin/")


@lru_cache(1024)
def action_of(method: str, route: str) -> str:
    """`POST /admin/v1/keys` is `keys.create`, `POST /admin/v1/keys/{key_id}/rotate` is `keys.rotate`."""
    parts = [part for part in _PREFIX.sub("", route).split("/") if part]
    names = [part for part in parts if not part.startswith("{")]
    # What is done to one thing names itself: the word after its id.
    if method == "POST" and len(parts) > 2 and parts[-2].startswith("{") and not parts[-1].startswith("{"):
        return ".".join(names)
    return ".".join([*names, _VERBS.get(method, method.lower())])


def hot_action(path: str) -> str:
    """`/v1/chat/completions` is `chat.completions`."""
    return _PREFIX.sub("", path).replace("/", ".")
