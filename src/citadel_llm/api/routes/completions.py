"""The endpoints of `kinds.py`: forwarded to an engine as they came.

This is the hot path, ahead of ASGI and the FastAPI application. The body is parsed once, for
what the gateway must know, and its original bytes go on; an answer is never re-serialised.
"""

from __future__ import annotations

import asyncio
import re
import traceback
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from citadel_llm.api.call import Call, CallerGone, Reply, TooLarge
from citadel_llm.api.errors import ApiError, Headers, error_body, error_event
from citadel_llm.api.middleware.auth import authenticate
from citadel_llm.api.middleware.correlation import new_request_id, sane_request_id
from citadel_llm.api.middleware.exchange import Exchange, Phase
from citadel_llm.api.routes.cached import CachedAnswers
from citadel_llm.api.routes.forward import Forwarder, Unanswered
from citadel_llm.api.routes.kinds import ENDPOINTS, wrong_kind
from citadel_llm.api.routes.limits import MAX_DEADLINE_MS, asks_too_much, check_max_tokens
from citadel_llm.api.routes.resolve import Resolver, affinity_of
from citadel_llm.api.routing.admission import Refused, cost_of
from citadel_llm.api.routing.explain import Explanation, wants_explanation
from citadel_llm.api.routing.splice import splice_model
from citadel_llm.api.state import GatewayState
from citadel_llm.api.upstream.model import ServedModel

__all__ = ["Completions"]

_X = ord("x")


class _Request(msgspec.Struct):
    """What the gateway must know of a body; the rest is skipped, not built."""

    model: str
    stream: bool | None = None
    # 64.0 is a whole number to JSON, and some clients write it so; `check_max_tokens` refuses 64.5.
    max_tokens: int | float | None = None
    max_completion_tokens: int | float | None = None
    max_output_tokens: int | float | None = None
    temperature: Any = None
    seed: Any = None


_request = msgspec.json.Decoder(_Request)


class Completions:
    """One endpoint."""

    def __init__(self, state: GatewayState, path: str) -> None:
        self._state = state
        self._path = path
        self._endpoint = ENDPOINTS[path]
        self._forwarder = Forwarder(state, path)
        self._resolver = Resolver(state, interchangeable=self._endpoint.streams)
        cache = state.cache
        self._cached = None if cache is None else CachedAnswers(cache, state.flights, state, path)

    async def __call__(self, call: Call) -> None:
        """Answer one POST."""
        authorization, length, request_id, session, deadline, explain = _headers(call.headers)
        state = self._state
        call.exchange = exchange = Exchange(request_id or new_request_id(), monotonic(), state.config.timeouts)
        if request_id is not None:
            exchange.given_id = True
        state.sweeper.active.add(exchange)
        error: Exception | None = None
        try:
            exchange.caller = authenticate(state.keys, authorization)
            if explain:
                exchange.explanation = Explanation()
            if deadline is not None:
                exchange.limit(_milliseconds(deadline))
            limit = state.config.limits.body_bytes
            if length is not None and int(length) > limit:
                raise TooLarge
            await self._serve(exchange, call, await call.body(limit), session)
        except asyncio.CancelledError:
            error = exchange.recovered()
            if error is None:
                raise
        except (ApiError, CallerGone) as failure:
            error = failure
        except TooLarge:
            error = _too_large(state.config.limits.body_bytes)
        except Exception as failure:
            error = self._unexpected(exchange, failure)
        finally:
            state.sweeper.active.discard(exchange)
            exchange.close()
            try:
                if error is not None:
                    await self._fail(exchange, error, call)
            finally:
                self._finish(exchange, call, error)

    async def _serve(self, exchange: Exchange, call: Call, body: bytes, session: bytes | None) -> None:
        try:
            request = _request.decode(body)
        except msgspec.ValidationError as failure:
            raise _invalid(failure) from failure
        except RecursionError as failure:
            raise ApiError(400, "invalid_json", "The body is nested too deeply.") from failure
        except ValueError as failure:  # msgspec's own, or a text that is not UTF-8
            raise ApiError(400, "invalid_json", f"The body is not valid JSON: {failure}") from failure
        exchange.stream = bool(request.stream) and self._endpoint.streams
        chain = self._resolver.chain(request.model, exchange, body)
        model = chain[0]
        exchange.model = model.name
        if model.config.kind not in self._endpoint.kinds:
            raise wrong_kind(self._path, model, self._state.models)
        if model.config.max_tokens is not None:
            check_max_tokens(request, model)
        cached = self._cached
        # Who wants the decision explained wants it made.
        if (
            cached is not None
            and exchange.explanation is None
            and cached.wants(request.temperature, request.seed, call.headers)
        ):
            answer = partial(self._answer, chain, request, body, session)
            await cached.serve(exchange, model.config.version, call.headers, body, call, answer)
        else:
            await self._answer(chain, request, body, session, exchange, call)

    async def _answer(
        self,
        chain: tuple[ServedModel, ...],
        request: _Request,
        body: bytes,
        session: bytes | None,
        exchange: Exchange,
        reply: Reply,
    ) -> None:
        """Answer by the first model of the chain, else by the next that can."""
        try:
            await self._ask(exchange, chain[0], request.model, body, reply, session)
        except Unanswered as failure:
            if len(chain) == 1:
                raise failure.error from failure
            await self._fall_back(exchange, chain, failure, request, body, reply, session)

    async def _fall_back(
        self,
        exchange: Exchange,
        chain: tuple[ServedModel, ...],
        failure: Unanswered,
        request: _Request,
        body: bytes,
        reply: Reply,
        session: bytes | None,
    ) -> None:
        """Ask the other models of the chain, those that can be asked. Raises the first model's error."""
        first = chain[0].name
        for model in chain[1:]:
            if exchange.explanation is not None:
                exchange.explanation.add("fallback", f"from {exchange.model} ({failure.error.code})")
            if not model.candidates or asks_too_much(request, model):
                continue
            exchange.model, exchange.fallback_from = model.name, first
            self._state.metrics.fell_back(first, model.name)
            try:
                await self._ask(exchange, model, request.model, body, reply, session)
                return
            except Unanswered:
                continue
        exchange.model, exchange.fallback_from = first, ""
        raise failure.error from failure

    async def _ask(
        self, exchange: Exchange, model: ServedModel, named: str, body: bytes, reply: Reply, session: bytes | None
    ) -> None:
        """Answer the exchange by `model`. Raises Unanswered where another model may."""
        if not model.candidates:
            raise Unanswered(self._forwarder.unavailable(model))
        key: int | None = None
        if model.by_prefix or model.by_session:
            key = affinity_of(model, session, body, self._state.config.balance.prefix_bytes)
        if named != model.name:
            body = _renamed(body, model.name)
        admission = model.admission
        if admission.inside < admission.places:
            admission.inside += 1
        else:
            await self._enter(exchange, model, len(body))
        entered = monotonic()
        try:
            await self._forwarder.forward(exchange, model, body, reply, key)
        finally:
            admission.leave(monotonic() - entered if exchange.started else None)

    async def _enter(self, exchange: Exchange, model: ServedModel, body_bytes: int) -> None:
        state = self._state
        began = monotonic()
        patience_s = min(state.config.timeouts.queue_s, exchange.last_call - began)
        try:
            turn = model.admission.enter(exchange.caller, patience_s, cost_of(body_bytes))
        except Refused as refused:
            state.metrics.refused(model.name, refused.reason)
            raise _refusal(model.name, refused) from None
        if turn is None:
            return
        exchange.expect(Phase.QUEUE, began + state.config.timeouts.queue_s)
        try:
            await turn
        except BaseException:
            model.admission.forget(exchange.caller, turn)
            raise
        state.metrics.queue_waited(model.name, monotonic() - began)

    async def _fail(self, exchange: Exchange, error: Exception, reply: Reply) -> None:
        """Tell the caller, as far as that can still be done."""
        if not isinstance(error, ApiError):
            exchange.status = 499
            return
        if exchange.started:
            # The status line has gone out: a stream gets an error event, unless its length was promised,
            # and anything else is cut off, which the server does with an answer that is left incomplete.
            if exchange.takes_events:
                event = error_event(error, exchange.request_id, named=self._endpoint.named_events)
                await reply.end(event)
            exchange.status = error.status
            return
        exchange.status = error.status
        body = error_body(error, exchange.request_id)
        headers = [
            (b"content-type", b"application/json"),
            (b"x-request-id", exchange.request_id.encode("ascii")),
            *error.headers,
        ]
        if exchange.model:
            headers.append((b"x-citadel-model", exchange.model.encode("ascii")))
        headers.extend(exchange.notes())
        if error.status == 408 or self._state.draining:
            headers.append((b"connection", b"close"))
        await reply.whole(error.status, headers, body)

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

    def _finish(self, exchange: Exchange, call: Call, error: Exception | None) -> None:
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
            ttft_ms = int(ttft * 1e6) / 1e3
        state.log.record(
            "info" if status < 500 else "warning",
            "access",
            {
                "request_id": exchange.request_id,
                "method": "POST",
                "path": self._path,
                "status": status,
                "duration_ms": int(duration * 1e6) / 1e3,
                "ttft_ms": ttft_ms,
                "model": exchange.model or None,
                "fallback_from": exchange.fallback_from or None,
                "engine": exchange.engine or None,
                "caller": exchange.caller or None,
                "client": call.client,
                "stream": exchange.stream,
                "cache": exchange.cache,
                "prompt_tokens": exchange.prompt_tokens,
                "completion_tokens": exchange.completion_tokens,
                "retries": exchange.retries,
                "error": None if error is None else getattr(error, "code", str(error)),
            },
        )


type _Read = tuple[bytes | None, bytes | None, str | None, bytes | None, bytes | None, bool]


def _headers(headers: Headers) -> _Read:
    """Of a request: authorization, content-length, a sane id, session, deadline, and whether to explain the route."""
    authorization: bytes | None = None
    length: bytes | None = None
    request_id: str | None = None
    session: bytes | None = None
    deadline: bytes | None = None
    explain = False
    for name, value in headers:
        if name == b"authorization":
            authorization = value
        elif name == b"content-length":
            length = value
        elif name[0] == _X:
            if name == b"x-request-id":
                request_id = sane_request_id(value)
            elif name == b"x-api-key" and authorization is None:  # as clients of the messages API send it
                authorization = b"Bearer " + value
            elif name == b"x-citadel-session":
                session = value
            elif name == b"x-citadel-deadline-ms":
                deadline = value
            elif name == b"x-citadel-route":
                explain = wants_explanation(value)
    return authorization, length, request_id, session, deadline, explain


def _refusal(model: str, refused: Refused) -> ApiError:
    if refused.reason == "wait_too_long":
        return ApiError(
            503,
            "overloaded",
            f"The model `{model}` is busy: a place would become free in about {refused.expected_wait_s:.1f} s, "
            "which is too late for this request. Try again later.",
            retry_after_s=refused.retry_after_s,
        )
    whose = " of this key" if refused.reason == "key_queue_full" else ""
    return ApiError(
        429,
        "queue_full",
        f"The model `{model}` is busy and as many requests{whose} as allowed are waiting. Try again later.",
        retry_after_s=refused.retry_after_s,
    )


def _milliseconds(value: bytes) -> int:
    if value.isdigit() and len(value) <= len(str(MAX_DEADLINE_MS)) and int(value) > 0:
        return int(value)
    raise ApiError(400, "invalid_deadline", "x-citadel-deadline-ms: expected a whole number of milliseconds above 0.")


def _renamed(body: bytes, name: str) -> bytes:
    try:
        return splice_model(body, name)
    except (ValueError, RecursionError) as failure:
        raise ApiError(400, "invalid_json", f"The body is not valid JSON: {failure}") from failure


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "request_too_large", f"The body is larger than the {limit} bytes that this server takes.")


def _invalid(failure: msgspec.ValidationError) -> ApiError:
    text = str(failure)
    found = re.search(r"`\$\.(\w+)|required field `(\w+)`", text)
    param = (found[1] or found[2]) if found else None
    return ApiError(400, "invalid_request", f"The body is not a valid request: {text}", param=param)
