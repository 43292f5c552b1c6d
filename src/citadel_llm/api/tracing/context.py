"""W3C trace context, as a request brings it and as it goes on to the engine.

trace = trace_of(traceparent, tracestate)      # None where there is none, or none that is right
trace.lines                                     # for the request to the engine
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from citadel_llm.api.errors import Headers

__all__ = ["Trace", "trace_headers", "trace_of"]

# A version that is not known yet may have more behind these four.
_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-[!-~]*)?")
_MAX_PARENT = 128
_STATE = re.compile(rb"[\x20-\x7e]{1,512}")


@dataclass(slots=True)
class Trace:
    """Which trace a request is part of."""

    trace_id: str  # 32 hexadecimal digits
    parent_id: str  # 16, of the caller's span; none where the trace begins here
    sampled: bool
    state: str = ""
    span_id: str = ""  # 16, of the gateway's own span; none where it tells nobody
    lines: str = ""  # the headers of requests to engines, each with its end

    def __post_init__(self) -> None:
        self.lines = f"traceparent: 00-{self.trace_id}-{self.span_id or self.parent_id}-{int(self.sampled):02x}\r\n"
        if self.state:
            self.lines += f"tracestate: {self.state}\r\n"


def trace_headers(headers: Headers) -> tuple[bytes, bytes]:
    """The values of both; a parent that is there twice is none."""
    parent = state = b""
    for name, value in headers:
        if name == b"traceparent":
            parent = b"twice" if parent else value
        elif name == b"tracestate":
            state = b"%b,%b" % (state, value) if state else value
    return parent, state


def trace_of(parent: bytes, state: bytes, span_id: str = "") -> Trace | None:
    """The trace that these headers' values tell of; what is not as the standard has it is no trace."""
    found = _PARENT.fullmatch(parent) if len(parent) <= _MAX_PARENT else None
    if found is None or (len(parent) > 55 and parent.startswith(b"00")):
        return None
    good = state if _STATE.fullmatch(state) else b""
    trace_id, parent_id, flags = (one.decode("ascii") for one in found.groups())
    return Trace(trace_id, parent_id, bool(int(flags, 16) & 1), good.decode("ascii"), span_id)
