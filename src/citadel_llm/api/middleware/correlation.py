"""The correlation id of a request: the caller's `x-request-id` if it is sane, else one made here."""

from __future__ import annotations

import os
import re
from itertools import count

__all__ = ["new_request_id", "request_id_of", "sane_request_id"]

_SANE = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


# An id names a request and opens nothing, so that it may be foreseen: 80 random bits for the process, then a number
# of 12 digits, decimal ones, for these are made sooner.
_process = "req-" + os.urandom(10).hex()
_numbers = count(10**11)


def new_request_id() -> str:
    """An id that no other request has: `req-` and 32 hexadecimal digits."""
    return f"{_process}{next(_numbers)}"


def sane_request_id(value: bytes) -> str | None:
    """`value` as text if it may be logged and echoed: 1 to 128 letters, digits, `.`, `_`, `:` or `-`."""
    return value.decode("ascii") if _SANE.fullmatch(value) else None


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The id for a request with these headers."""
    for name, value in headers:
        if name == b"x-request-id":
            return sane_request_id(value) or new_request_id()
    return new_request_id()
