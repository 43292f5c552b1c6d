"""Cursors: where a page of a list begins, as a caller carries it from one page to the next."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import msgspec

from citadel_llm.api.errors import ApiError

__all__ = ["Aware", "packed", "unpacked", "utc", "uuid_or_none"]

Aware = Annotated[datetime, msgspec.Meta(tz=True)]


def packed(values: tuple[object, ...]) -> str:
    """The cursor for a row with these values: points in time, ids and texts."""
    return base64.urlsafe_b64encode(msgspec.json.encode(values)).decode().rstrip("=")


def unpacked[T](cursor: str, shape: type[T]) -> T:
    """The values of a cursor. Raises ApiError 404."""
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=shape)
    except (ValueError, RecursionError) as error:
        raise ApiError(
            404, "cursor_not_found", "cursor: expected the `next` of an earlier answer.", param="cursor"
        ) from error


def utc(moment: datetime | None) -> datetime | None:
    """The point in time; UTC where it names no zone."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def uuid_or_none(text: str) -> str | None:
    """The text, if it is a UUID."""
    try:
        return str(UUID(text)) if len(text) == 36 else None
    except ValueError:
        return None
