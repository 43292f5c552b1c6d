"""`x-citadel-route: explain`: the decision in one response header, for a person with curl.

    model=phi3; policy=least_outstanding; chose=10.0.0.2:11403; loads=10.0.0.2:11403:2+0,10.0.0.3:11403:5+1

A load is what this instance has in flight there + what waits inside the engine. At most `MAX_BYTES`
long; what does not fit ends in `...`.
"""

from __future__ import annotations

import re

__all__ = ["MAX_BYTES", "Explanation", "wants_explanation"]

MAX_BYTES = 1024
_UNFIT = re.compile(r"[^\x20-\x7e]")


def wants_explanation(value: bytes) -> bool:
    """Whether a request header's value asks for it."""
    return value.strip().lower() == b"explain"


class Explanation:
    """Gathers what was decided, in order."""

    __slots__ = ("_size", "_steps")

    def __init__(self) -> None:
        self._steps: list[str] = []
        self._size = 0

    def add(self, name: str, text: str) -> None:
        """Note a step; once there is more than fits, nothing is kept."""
        if self._size <= MAX_BYTES:
            step = f"{name}={text[:MAX_BYTES]}"
            self._steps.append(step)
            self._size += len(step) + 2

    def header(self) -> bytes:
        """The header's value: printable ASCII."""
        text = _UNFIT.sub("?", "; ".join(self._steps))
        return (text if len(text) <= MAX_BYTES else text[: MAX_BYTES - 3] + "...").encode("ascii")
