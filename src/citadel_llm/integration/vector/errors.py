"""What may become of a call to Qdrant, other than an answer."""

from __future__ import annotations

__all__ = ["VectorError", "VectorReadOnly", "VectorRefused", "VectorUnavailable"]


class VectorError(Exception):
    """Base of all that the client raises."""


class VectorUnavailable(VectorError):
    """Qdrant does not answer, not in time, or not to us: try later. `retry_after_s` is when it may be worth it."""

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class VectorRefused(VectorError):
    """Qdrant answered that the request is wrong; `status` is HTTP's: 404 where there is no such collection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class VectorReadOnly(VectorError):
    """The protocol that is configured can't do this: GraphQL only reads."""
