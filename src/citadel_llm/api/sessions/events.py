"""The events of a stream of responses, put together again from the pieces in which they come."""

from __future__ import annotations

import re

__all__ = ["Events", "data_of", "is_last", "with_data"]

_ENDS = (b"\n\n", b"\r\n\r\n")
# Those that hold the response itself.
_WHOLE = re.compile(rb"\s*event: ?response\.(created|queued|in_progress|completed|incomplete|failed)\r?\n")
_LAST = frozenset({b"completed", b"incomplete", b"failed"})
_DATA = re.compile(rb"^data: ?(.*)$", re.MULTILINE)


class Events:
    """A splitter. What belongs to no event of interest comes out as it came in."""

    def __init__(self, max_bytes: int) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes
        self.overflowed = False  # an event was too long to be put together: what follows goes through

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are complete now; those without the response in them may come as one."""
        if self.overflowed:
            return [data]
        buffer = self._buffer
        begin = max(0, len(buffer) - 3)
        buffer += data
        end = max(buffer.rfind(mark, begin) + len(mark) if mark in buffer[begin:] else 0 for mark in _ENDS)
        if not end:
            if len(buffer) > self._max_bytes:
                self.overflowed = True
                return [self.rest()]
            return []
        whole = bytes(buffer[:end])
        del buffer[:end]
        if b"event: response." not in whole and b"event:response." not in whole:
            return [whole]
        found: list[bytes] = []
        plain = b""
        for event in re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", whole):
            if _WHOLE.match(event):
                found += [plain, event] if plain else [event]
                plain = b""
            else:
                plain += event
        return [*found, plain] if plain else found

    def rest(self) -> bytes:
        """What has come of an event that is not complete."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


def data_of(event: bytes) -> bytes | None:
    """The data of an event that holds the response; None for any other."""
    if not _WHOLE.match(event):
        return None
    found = _DATA.search(event)
    return found[1].rstrip(b"\r") if found else None


def is_last(event: bytes) -> bool:
    """Whether an event that holds the response is its end."""
    found = _WHOLE.match(event)
    return found is not None and found[1] in _LAST


def with_data(event: bytes, data: bytes) -> bytes:
    """The event with other data."""
    return _DATA.sub(lambda _: b"data: " + data, event, count=1)
