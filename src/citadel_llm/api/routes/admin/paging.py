"""Cursors: where a page of a list begins, as a caller carries it from one page to the next."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from citadel_llm.api.errors import ApiError

__all__ = ["moment", "packed", "unpacked", "uuid_or_none"]


def packed(values: tuple[object, ...]) -> str:
    """The cursor for a row with these values: points in time and texts."""
    return base64.urlsafe_b64encode(msgspec.json.encode(values)).decode().rstrip("=")


def unpacked[T](cursor: str, shape: type[T]) -> T:
    """The values of a cursor. Raises ApiError 400."""
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=shape)
    except (ValueError, RecursionError) as error:
        raise ApiError(
            400, "invalid_cursor", "cursor: expected the `next` of an earlier answer.", param="cursor"
        ) from error


def moment(text: str | None, name: str) -> datetime | None:
    """A point in time, `2026-01-31` or `2026-01-31T08:00:00Z`; UTC where no zone is named. Raises ApiError 400."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        # Beyond these the database's own calendar, and sums with time zones, end.
        if not datetime(1970, 1, 1) <= found.replace(tzinfo=None) <= datetime(9000, 1, 1):
            raise ValueError
    except ValueError as error:
        raise ApiError(
            400, "invalid_time", f"{name}: expected a time such as 2026-01-31T08:00:00Z.", param=name
        ) from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def uuid_or_none(text: str) -> str | None:
    """The text, if it is a UUID."""
    try:
        return str(UUID(text)) if len(text) == 36 else None
    except ValueError:
        return None
