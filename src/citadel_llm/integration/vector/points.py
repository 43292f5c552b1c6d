"""What goes into Qdrant and what comes out of it, without any of its own types.

Filters, where a call takes one, are Qdrant's own, as its REST API writes them:
`{"must": [{"key": "file_id", "match": {"value": "file-1"}}]}`.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Filter", "Hit", "Page", "Point", "PointId"]

type PointId = int | str  # a whole number, or a UUID's text
type Filter = dict[str, Any]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One text. `vector` has the collection's length; `text` is looked up by words, and kept only in a payload."""

    id: PointId
    vector: list[float]
    text: str | None = None
    payload: dict[str, Any] = msgspec.field(default_factory=dict)


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A point that was found. `score`, larger is better, is what a search sorted by, and None where none did."""

    id: PointId
    score: float | None = None
    payload: dict[str, Any] = msgspec.field(default_factory=dict)
    vector: list[float] | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Some points, and the id to go on from; None at the end."""

    points: list[Hit]
    following: PointId | None = None
