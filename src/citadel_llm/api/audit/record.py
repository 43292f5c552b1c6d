"""One thing that was done, as the journal holds it: a row of `llm.audit_log` without its place in a chain."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from citadel_llm.utils.outcomes import Outcome

__all__ = ["Kind", "Record", "decode", "encode"]

type Kind = Literal["request", "admin", "security"]


class Record(msgspec.Struct, array_like=True, gc=False):
    """Times are in microseconds, `at_us` since 1970; new fields go to the end, so that older journals are read."""

    at_us: int
    kind: Kind
    action: str
    request_id: str
    user_id: str | None = None
    user_name: str | None = None
    key_id: str | None = None
    key_name: str | None = None
    model: str | None = None
    served_by: str | None = None
    outcome: Outcome = "ok"
    status: int | None = None
    error_code: str | None = None
    streamed: bool | None = None
    cached: bool | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_us: int | None = None
    latency_us: int | None = None
    client: str | None = None
    content_policy: str = "none"
    content: dict[str, Any] | None = None
    detail: dict[str, Any] | None = None


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode
