"""Whoever a request comes from, once its key or password was found to be right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["EVERY_MODEL", "Principal"]

EVERY_MODEL = "*"


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """A user, by one of its keys or by its password. Made when keys are read, shared by all of its requests."""

    caller: str  # tells one key from another wherever requests are told apart: queues, the cache, log lines
    user: str  # its name
    user_id: str = ""  # a UUID; none where the key is of the file, and not of the database
    key_id: str = ""  # a UUID; none for the file's keys and for passwords
    key_name: str = ""
    expires_at: float = float("inf")  # seconds since 1970
    # By permission, the models that it holds for; `*` stands for every one.
    permissions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unbounded: bool = False  # may do everything
    group: str = "none"  # its strongest role among the built-in ones, `custom` where it has only others

    def may(self, permission: str, model: str = EVERY_MODEL) -> bool:
        """Whether this is permitted, for that model where it is about one. What is not granted is denied."""
        if self.unbounded:
            return True
        models = self.permissions.get(permission)
        return models is not None and (model in models or EVERY_MODEL in models)
