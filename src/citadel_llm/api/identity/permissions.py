"""What there is to be permitted, and what the built-in roles may do. What is not granted is denied.

A permission is a family of endpoints. Those of `PER_MODEL` are granted for one model or, with `*`, for every one. The
built-in roles are these and cannot be changed; a site's own roles are rows of `llm.roles` and `llm.grants`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["BUILT_IN", "PERMISSIONS", "PER_MODEL"]

PERMISSIONS: Final[Mapping[str, str]] = {
    "inference": "Chat and text completions, responses, messages, counting tokens",
    "embeddings": "Embeddings",
    "models": "See the models and their state",
    "conversations": "Keep conversations and responses of one's own",
    "files": "Keep files and vector stores of one's own, and search them",
    "feedback": "Rate answers",
    "own-keys": "See, make, rotate and revoke one's own keys, see one's own usage",
    "users.read": "See the users and their roles",
    "users.write": "Make, change and disable users, give them roles and passwords",
    "roles.read": "See the roles and what they permit",
    "roles.write": "Make, change and delete roles",
    "keys.read": "See everybody's keys (never a key itself)",
    "keys.write": "Make, rotate and revoke everybody's keys",
    "limits.read": "See limits and budgets",
    "limits.write": "Set limits and budgets",
    "usage.read": "See everybody's usage",
    "audit.read": "Read the audit log",
    "operate": "Drain models and put them back into service",
}

PER_MODEL: Final = frozenset({"inference", "embeddings"})

_OWN = frozenset({"inference", "embeddings", "models", "conversations", "files", "feedback", "own-keys"})

BUILT_IN: Final[Mapping[str, frozenset[str]]] = {
    "admin": frozenset(PERMISSIONS),
    "operator": _OWN | {"users.read", "roles.read", "keys.read", "limits.read", "usage.read", "audit.read", "operate"},
    "developer": _OWN,
    "viewer": frozenset({"models", "roles.read", "limits.read", "usage.read"}),
}
