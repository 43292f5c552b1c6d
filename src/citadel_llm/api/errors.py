"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code", "request_id"}}`."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

__all__ = ["ApiError", "Headers", "error_body", "error_event", "reshape"]

type Headers = list[tuple[bytes, bytes]]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "upstream_error",
    503: "service_unavailable",
    504: "timeout_error",
}


class ApiError(Exception):
    """An answer that is an error. `retry_after_s` becomes the header of that name."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = list(headers or ())
        if retry_after_s is not None:
            self.headers.append((b"retry-after", b"%d" % retry_after_s))

    @property
    def type(self) -> str:
        """OpenAI's error type for this status."""
        return error_type(self.status)


def error_type(status: int) -> str:
    """OpenAI's error type for an HTTP status."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def _envelope(error: ApiError, request_id: str) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
            "request_id": request_id,
        }
    }


def error_body(error: ApiError, request_id: str) -> bytes:
    """The JSON body of an error."""
    return orjson.dumps(_envelope(error, request_id))


def error_event(error: ApiError, request_id: str) -> bytes:
    """The error as the last event of a stream that had already begun.

    It opens with a blank line: the piece before may have ended inside an event.
    """
    return b"\n\ndata: " + error_body(error, request_id) + b"\n\n"


class _EngineError(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None
    type: str | None = None


class _EngineAnswer(msgspec.Struct):
    error: _EngineError


_engine_answer = msgspec.json.Decoder(_EngineAnswer)


def reshape(status: int, body: bytes, retry_after_s: int) -> ApiError:
    """An engine's own error as ours: its words where it spoke OpenAI's shape, else a plain statement."""
    try:
        said = _engine_answer.decode(body).error
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        said = _EngineError()
    message = said.message or f"The model answered with HTTP status {status}."
    code = said.code if isinstance(said.code, str) else said.type
    return ApiError(
        status,
        code or "upstream_error",
        message,
        param=said.param,
        retry_after_s=retry_after_s if status in (429, 503) else None,
    )
