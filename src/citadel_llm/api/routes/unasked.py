"""Takes the event out of a stream that tells how many tokens there were, where the engine was asked and the caller did
not ask. What goes on is otherwise what came, byte for byte.

    sieve = Unasked()
    out = piece if sieve.clean(piece) else sieve.sift(piece)     # may be empty
    rest = sieve.rest()                                          # at the end
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

__all__ = ["Unasked"]

_ENDS = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")
_MOST_HELD = 1 << 20  # an event that is longer is not the one, and goes on in parts


class _Told(msgspec.Struct):
    choices: list[msgspec.Raw]
    usage: dict[str, Any]


_told = msgspec.json.Decoder(_Told)


class Unasked:
    """For one stream. An event that has not come to its end is held back until it has."""

    def __init__(self) -> None:
        self._held = b""

    def clean(self, piece: bytes) -> bool:
        """Whether all of it may go on: whole events, and none tells of tokens. Inside a string quotes are escaped."""
        return piece.find(b'"usage"') < 0 and not self._held and piece.endswith(b"\n\n")

    def sift(self, piece: bytes) -> bytes:
        """What may go on now."""
        data = self._held + piece
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4)
        if end < 4:
            end = len(data) if len(data) > _MOST_HELD else 0
        self._held = data[end:]
        if b'"usage"' not in data[:end]:
            return data[:end]
        return b"".join(event for event in _ENDS.split(data[:end]) if not _tells(event))

    def rest(self) -> bytes:
        """What was held back, where the stream ended amid an event."""
        return b"" if _tells(self._held) else self._held


def _tells(event: bytes) -> bool:
    if not event.startswith(b"data: {") or b'"usage"' not in event:
        return False
    try:
        return not _told.decode(event[6:]).choices
    except (ValueError, RecursionError):
        return False
