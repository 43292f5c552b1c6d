"""`/v1/chat/completions` and `/v1/completions`: forwarded to an engine as they came.

This is the hot path: plain ASGI, ahead of the FastAPI application. The body is parsed once,
for what the gateway must know, and its original bytes go on; an answer is never re-serialised.
"""

from __future__ import annotations

import asyncio
import traceback
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from citadel_llm.api.errors import ApiError, error_body, error_event
from citadel_llm.api.middleware.asgi import Receive, Scope, Send
from citadel_llm.api.middleware.auth import authenticate
from citadel_llm.api.middleware.correlation import new_request_id, sane_request_id
from citadel_llm.api.middleware.exchange import CallerGone, Exchange, Phase
from citadel_llm.api.routes.cached import CachedAnswers
from citadel_llm.api.routes.forward import Forwarder
from citadel_llm.api.state import GatewayState
from citadel_llm.api.upstream.gate import QueueFull
from citadel_llm.api.upstream.model import ServedModel

__all__ = ["Completions", "unknown_model"]


class _Request(msgspec.Struct):
    """What the gateway must know of a body; the rest is skipped, not built."""

    model: str
    stream: bool | None = None
    temperature: Any = None
    seed: Any = None


_request = msgspec.json.Decoder(_Request)


class Completions:
    """One endpoint, as an ASGI application."""

    def __init__(self, state: GatewayState, path: str) -> None:
        self._state = state
        self._path = path
        self._forwarder = Forwarder(state, path)
        cache = state.cache
        self._cached = None if cache is None else CachedAnswers(cache, state.flights, state, path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST."""
        authorization: bytes | None = None
        length: bytes | None = None
        request_id: str | None = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"content-length":
                length = value
            elif name == b"x-request-id":
                request_id = sane_request_id(value)
        state = self._state
        exchange = Exchange(request_id or new_request_id(), receive, monotonic(), state.config.timeouts)
        state.sweeper.add(exchange)
        error: Exception | None = None
        try:
            exchange.caller = authenticate(state.keys, authorization)
            body = await self._read(exchange, receive, length)
            await self._serve(exchange, scope, body, send, given_id=request_id is not None)
        except asyncio.CancelledError:
            error = exchange.recovered()
            if error is None:
                raise
        except (ApiError, CallerGone) as failure:
            error = failure
        except Exception as failure:
            error = self._unexpected(exchange, failure)
        finally:
            state.sweeper.discard(exchange)
            if error is not None:
                await self._fail(exchange, error, send)
            self._finish(exchange, scope, error)

    async def _read(self, exchange: Exchange, receive: Receive, length: bytes | None) -> bytes:
        limit = self._state.config.limits.body_bytes
        if length is not None and int(length) > limit:
            raise _too_large(limit)
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            pieces, size = [body], len(body)
            while message.get("more_body"):
                message = await receive()
                piece = message.get("body", b"")
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise _too_large(limit)
            body = b"".join(pieces)
        if message["type"] == "http.disconnect":
            raise CallerGone("the caller hung up before its request was complete")
        if len(body) > limit:
            raise _too_large(limit)
        exchange.body_read = True
        return body

    async def _serve(self, exchange: Exchange, scope: Scope, body: bytes, send: Send, *, given_id: bool) -> None:
        state = self._state
        try:
            request = _request.decode(body)
        except msgspec.ValidationError as failure:
            raise _invalid(failure) from failure
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
            raise ApiError(400, "invalid_json", f"The body is not valid JSON: {failure}") from failure
        model = state.models.get(request.model)
        if model is None:
            raise unknown_model(request.model, state)
        exchange.model = model.name
        exchange.stream = bool(request.stream)
        cached, headers = self._cached, scope["headers"]
        if cached is not None and cached.wants(request.temperature, request.seed, headers):
            answer = partial(self._answer, model, body, given_id)
            await cached.serve(exchange, model.config.version, headers, body, send, answer)
        else:
            await self._answer(model, body, given_id, exchange, send)

    async def _answer(self, model: ServedModel, body: bytes, given_id: bool, exchange: Exchange, send: Send) -> None:
        """Answer by an engine."""
        if model.pick() is None:
            raise self._forwarder.unavailable(model)
        await self._enter(exchange, model)
        try:
            await self._forwarder.forward(exchange, model, body, send, given_id=given_id)
        finally:
            model.gate.leave()

    async def _enter(self, exchange: Exchange, model: ServedModel) -> None:
        config = self._state.config
        try:
            turn = model.gate.enter()
        except QueueFull:
            raise ApiError(
                429,
                "queue_full",
                f"The model `{model.name}` is busy and as many requests as allowed are waiting. Try again later.",
                retry_after_s=config.limits.retry_after_s,
            ) from None
        if turn is not None:
            exchange.expect(Phase.QUEUE, monotonic() + config.timeouts.queue_s)
            try:
                await turn
            except BaseException:
                model.gate.forget(turn)
                raise

    async def _fail(self, exchange: Exchange, error: Exception, send: Send) -> None:
        """Tell the caller, as far as that can still be done."""
        if not isinstance(error, ApiError):
            exchange.status = 499
            return
        if exchange.started:
            # The status line has gone out: a stream gets an error event, and anything else is
            # cut off, which the server does with an answer that is left incomplete.
            if exchange.stream:
                event = error_event(error, exchange.request_id)
                await send({"type": "http.response.body", "body": event, "more_body": False})
            exchange.status = error.status
            return
        exchange.status = error.status
        body = error_body(error, exchange.request_id)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", exchange.request_id.encode("ascii")),
            *error.headers,
        ]
        if exchange.model:
            headers.append((b"x-citadel-model", exchange.model.encode("ascii")))
        if error.status == 408 or self._state.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _unexpected(self, exchange: Exchange, failure: Exception) -> ApiError:
        self._state.log.event(
            "error",
            "unexpected",
            request_id=exchange.request_id,
            traceback="".join(traceback.format_exception(failure))[-8192:],
        )
        return ApiError(
            500, "internal_error", "Something went wrong inside the gateway; its log names this request_id."
        )

    def _finish(self, exchange: Exchange, scope: Scope, error: Exception | None) -> None:
        state = self._state
        duration = monotonic() - exchange.began
        status = exchange.status or 499
        state.metrics.answered(self._path, exchange.model, status, duration)
        if exchange.prompt_tokens is not None and exchange.completion_tokens is not None:
            state.metrics.tokens(exchange.model, exchange.prompt_tokens, exchange.completion_tokens)
        ttft_ms: float | None = None
        if exchange.first_token_at and exchange.stream:
            ttft = exchange.first_token_at - exchange.began
            state.metrics.first_token(exchange.model, ttft)
            ttft_ms = round(ttft * 1e3, 3)
        client = scope.get("client")
        state.log.event(
            "info" if status < 500 else "warning",
            "access",
            request_id=exchange.request_id,
            method="POST",
            path=self._path,
            status=status,
            duration_ms=round(duration * 1e3, 3),
            ttft_ms=ttft_ms,
            model=exchange.model or None,
            engine=exchange.engine or None,
            caller=exchange.caller or None,
            client=client[0] if client else None,
            stream=exchange.stream,
            cache=exchange.cache,
            prompt_tokens=exchange.prompt_tokens,
            completion_tokens=exchange.completion_tokens,
            retries=exchange.retries,
            error=None if error is None else getattr(error, "code", str(error)),
        )


def unknown_model(name: str, state: GatewayState) -> ApiError:
    """The 404 for a model that is not served here; it says which are."""
    known = ", ".join(f"`{known}`" for known in state.models)
    return ApiError(
        404,
        "model_not_found",
        f"The model `{name[:128]}` does not exist here. These do: {known}.",
        param="model",
    )


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "request_too_large", f"The body is larger than the {limit} bytes that this server takes.")


def _invalid(failure: msgspec.ValidationError) -> ApiError:
    text = str(failure)
    param = "stream" if "$.stream" in text else "model" if "model" in text else None
    return ApiError(400, "invalid_request", f"The body is not a valid request: {text}", param=param)
