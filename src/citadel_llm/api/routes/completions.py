"""The endpoints of `kinds.py`: forwarded to an engine as they came.

This is the hot path, ahead of ASGI and the FastAPI application. The body is parsed once, for
what the gateway must know, and its original bytes go on; an answer is never re-serialised.
"""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import Coroutine
from functools import partial
from time import monotonic, time_ns
from typing import Any

import msgspec

from citadel_llm.api.audit.action import hot_action
from citadel_llm.api.call import Call, CallerGone, Reply, TooLarge
from citadel_llm.api.errors import ApiError, Headers, error_body, error_event
from citadel_llm.api.files.retrieval import WORDS, Retrieval
from citadel_llm.api.identity.guard import denied
from citadel_llm.api.middleware.auth import TWICE
from citadel_llm.api.middleware.correlation import sane_request_id
from citadel_llm.api.middleware.exchange import Exchange, Phase
from citadel_llm.api.routes.cached import CachedAnswers
from citadel_llm.api.routes.forward import Forwarder, Unanswered
from citadel_llm.api.routes.kinds import ENDPOINTS, PERMISSION, wrong_kind
from citadel_llm.api.routes.limits import MAX_DEADLINE_MS, asks_too_much, check_max_tokens
from citadel_llm.api.routes.resolve import Resolver, affinity_of
from citadel_llm.api.routing.admission import Refused, cost_of
from citadel_llm.api.routing.explain import Explanation, wants_explanation
from citadel_llm.api.routing.splice import splice_model, splice_usage
from citadel_llm.api.state import GatewayState
from citadel_llm.api.tracing.context import trace_headers, trace_of
from citadel_llm.api.upstream.model import ServedModel
from citadel_llm.utils.logging import Access

__all__ = ["Completions"]

_READ = frozenset(
    {
        b"authorization",
        b"content-length",
        b"traceparent",
        b"x-api-key",
        b"x-citadel-deadline-ms",
        b"x-citadel-route",
        b"x-citadel-session",
        b"x-request-id",
    }
)
_SEARCHING = frozenset({"/v1/chat/completions", "/v1/responses"})  # those that take the tool `file_search`


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
    stream_options: msgspec.Raw = msgspec.Raw(b"")


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


_stream_options = msgspec.json.Decoder(_StreamOptions | None)
_request = msgspec.json.Decoder(_Request)


class Completions:
    """One endpoint."""

    def __init__(self, state: GatewayState, path: str) -> None:
        self._state = state
        self._path = path
        self._endpoint = ENDPOINTS[path]
        self._action = hot_action(path)
        self._count_answer, self._count_tokens = state.metrics.answered, state.metrics.tokens
        self._bytes_per_token = state.config.auto.bytes_per_token
        self._forwarder = Forwarder(state, path)
        self._resolver = Resolver(state, interchangeable=self._endpoint.streams)
        self._retrieval = Retrieval(state, path) if path in _SEARCHING else None
        self._semantic = state.semantic if path == "/v1/chat/completions" else None
        cache = state.cache
        self._cached = None if cache is None else CachedAnswers(cache, state.flights, state, path)

    async def __call__(self, call: Call) -> None:
        """Answer one POST."""
        authorization, length, request_id, session, deadline, explain, traced = _headers(call.headers)
        state = self._state
        call.exchange = exchange = self._begun(request_id, call.headers, traced=traced)
        # What is answered is written down before its last bytes go out, so that no answer is ever without its record.
        call.before_end = partial(self._settle, exchange, call)
        state.sweeper.active.add(exchange)
        error: Exception | None = None
        try:
            principal = state.identify(authorization, call.client) or await state.verify(authorization, call.client)
            exchange.principal = principal
            exchange.caller = principal.caller
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
            exchange.error = error
            try:
                if error is not None:
                    await self._fail(exchange, error, call)
            finally:
                if not exchange.finished:
                    self._settle(exchange, call)
                self._tell(exchange, call)

    def _begun(self, request_id: str | None, headers: Headers, *, traced: bool) -> Exchange:
        exchange = Exchange.begin(request_id, self._state.config.timeouts)
        tracer = self._state.tracer
        if traced or tracer is not None:
            parent, state = trace_headers(headers)
            exchange.trace = trace_of(parent, state) if tracer is None else tracer.begin(parent, state)
        return exchange

    async def _serve(  # noqa: PLR0912 — one coroutine: each that waits inside another costs every request
        self, exchange: Exchange, call: Call, body: bytes, session: bytes | None
    ) -> None:
        audit = self._state.audit
        if audit is not None and audit.content is not None:
            call = exchange.kept = audit.content.keep(call, body)
        request = _decoded(body)
        exchange.stream = bool(request.stream) and self._endpoint.streams
        chain = self._resolver.chain(request.model, exchange, body)
        model = chain[0]
        exchange.model = model.name
        if model.config.kind not in self._endpoint.kinds:
            raise wrong_kind(self._path, model, self._state.models)
        principal = exchange.principal
        if principal is not None and not principal.unbounded:
            permission = PERMISSION[model.config.kind]
            if not principal.may(permission, model.name):
                raise denied(permission, model.name)
            if len(chain) > 1:
                chain = tuple(other for other in chain if principal.may(permission, other.name))
        if model.config.max_tokens is not None:
            check_max_tokens(request, model)
        tokens = self._estimate(model, len(body))
        limiter = self._state.limiter
        if not limiter.admit(exchange, model.name, tokens):
            await limiter.admit_patiently(exchange, model.name, tokens)
        # `in` would raise an exception of its own inside before it looks.
        if self._retrieval is not None and body.find(WORDS) >= 0:
            body, call = await self._retrieval(exchange, call, body, model)
        elif self._semantic is not None and self._semantic.wanted(principal):
            asking = await self._semantic(exchange, call, body, model)
            if asking is None:
                return
            call = asking
        cached = self._cached
        # Who wants the decision explained wants it made.
        if (
            cached is not None
            and exchange.explanation is None
            and cached.wants(request.temperature, request.seed, call.headers)
        ):
            answer = partial(self._answer, chain, request, body, session)
            await cached.serve(exchange, model.config.version, call.headers, body, call, answer)
        elif len(chain) == 1 and not exchange.stream:  # as `_answer` would, which is one coroutine less
            try:
                await self._ask(exchange, model, request.model, body, call, session)
            except Unanswered as failure:
                raise failure.error from failure
        else:
            await self._answer(chain, request, body, session, exchange, call)

    def _estimate(self, model: ServedModel, body_bytes: int) -> int:
        """Tokens of the prompt, as far as that can be told without counting; what was used is known afterwards."""
        if not self._endpoint.tokens:
            return 0
        tokens = int(body_bytes / self._bytes_per_token) or 1
        most = model.config.max_tokens
        # One prompt has room in the context, whatever its images weigh; embeddings are of many texts at once.
        return tokens if most is None or model.config.kind == "embedding" else min(tokens, most)

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
        if exchange.stream and not self._endpoint.tells_usage and not _asks_for_usage(request):
            body = splice_usage(body, bytes(request.stream_options))
            exchange.hides_usage = True
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
            limiter = self._state.limiter
            charge = limiter.admit_fallback(model.name, self._estimate(model, len(body)))
            if charge is None:  # it has bounds of its own, and no room under them
                continue
            exchange.model, exchange.fallback_from = model.name, first
            self._state.metrics.fell_back(first, model.name)
            try:
                await self._ask(exchange, model, request.model, body, reply, session)
                return
            except Unanswered:
                continue
            finally:
                told = exchange.prompt_tokens is not None
                used = (exchange.prompt_tokens or 0) + (exchange.completion_tokens or 0)
                limiter.settle_fallback(charge, used if told else None)
        exchange.model, exchange.fallback_from = first, ""
        raise failure.error from failure

    def _ask(
        self, exchange: Exchange, model: ServedModel, named: str, body: bytes, reply: Reply, session: bytes | None
    ) -> Coroutine[Any, Any, None]:
        """Answer the exchange by `model`; to be awaited at once. Both raise Unanswered where another model may."""
        if not model.candidates:
            raise Unanswered(self._forwarder.unavailable(model))
        key: int | None = None
        if model.by_prefix or model.by_session:
            key = affinity_of(model, session, body, self._state.config.balance.prefix_bytes)
        if named != model.name:
            body = _renamed(body, model.name)
        admission = model.admission
        if admission.inside >= admission.places:
            return self._ask_in_turn(exchange, model, body, reply, key)
        admission.inside += 1
        return self._forwarder.forward(exchange, model, body, reply, key, admission)

    async def _ask_in_turn(
        self, exchange: Exchange, model: ServedModel, body: bytes, reply: Reply, key: int | None
    ) -> None:
        await self._enter(exchange, model, len(body))
        await self._forwarder.forward(exchange, model, body, reply, key, model.admission)

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
            exchange.status = error.status
            if exchange.takes_events:
                event = error_event(error, exchange.request_id, named=self._endpoint.named_events)
                await reply.end(event)
            return
        exchange.status = error.status
        body = error_body(error, exchange.request_id)
        headers = [(b"content-type", b"application/json"), *error.headers]
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

    def _settle(self, exchange: Exchange, call: Call) -> None:
        """Once, before the answer's end: what it used, and the audit log's record."""
        if exchange.finished:
            return
        exchange.finished = True
        call.before_end = None  # it holds the call: both would wait for the garbage collector
        state, principal = self._state, exchange.principal
        exchange.took = duration = monotonic() - exchange.began
        status = exchange.status or 499
        told, completion_tokens = exchange.prompt_tokens, exchange.completion_tokens
        if told is None:
            state.limiter.settle(exchange, _estimated(exchange, status))
        else:
            state.limiter.settle(exchange, told if completion_tokens is None else told + completion_tokens)
        if state.audit is not None and principal is not None:
            state.audit.request(self._action, exchange, principal, call.client, status, duration)

    def _tell(self, exchange: Exchange, call: Call) -> None:
        """Once, after the answer's end, for which nobody need wait: metrics, trace, log."""
        state, error, principal, duration = self._state, exchange.error, exchange.principal, exchange.took
        status = exchange.status or 499
        self._count_answer(
            self._path, exchange.model, status, duration, "none" if principal is None else principal.group
        )
        prompt_tokens, completion_tokens = exchange.prompt_tokens, exchange.completion_tokens
        if exchange.tokens_estimated:
            prompt_tokens = completion_tokens = None
        if prompt_tokens is not None and completion_tokens is not None:
            self._count_tokens(exchange.model, prompt_tokens, completion_tokens)
        ttft_ms: float | None = None
        if exchange.first_token_at and exchange.stream:
            ttft = exchange.first_token_at - exchange.began
            state.metrics.first_token(exchange.model, ttft)
            ttft_ms = int(ttft * 1e6) / 1e3
            if completion_tokens is not None and completion_tokens > 1 and status < 400:
                state.metrics.pace(exchange.model, (duration - ttft) / (completion_tokens - 1))
        if state.tracer is not None:
            state.tracer.end(self._path, exchange, status, duration)
        state.log.access(
            Access(
                time_ns() // 1000 / 1e6,
                "info" if status < 500 else "warning",
                "access",
                state.instance,
                exchange.request_id,
                "POST",
                self._path,
                status,
                int(duration * 1e6) / 1e3,
                ttft_ms,
                exchange.model or None,
                exchange.fallback_from or None,
                exchange.engine or None,
                exchange.caller or None,
                call.client,
                exchange.stream,
                exchange.cache,
                exchange.prompt_tokens,
                exchange.completion_tokens,
                exchange.tokens_estimated,
                exchange.retries,
                None if error is None else getattr(error, "code", str(error)),
            )
        )


type _Read = tuple[bytes | None, bytes | None, str | None, bytes | None, bytes | None, bool, bool]


def _headers(headers: Headers) -> _Read:
    """Of a request: authorization, content-length, a sane id, session, deadline; to be explained? traced?"""
    authorization: bytes | None = None
    api_key: bytes | None = None
    length: bytes | None = None
    request_id: str | None = None
    session: bytes | None = None
    deadline: bytes | None = None
    explain = False
    traced = False
    for name, value in headers:
        if name not in _READ:
            continue
        if name == b"content-length":
            length = value
        elif name == b"authorization":
            authorization = value if authorization is None else TWICE
        elif name == b"x-request-id":
            request_id = sane_request_id(value)
        elif name == b"x-api-key":  # as clients of the messages API send it
            api_key = b"Bearer " + value if api_key is None else TWICE
        elif name == b"x-citadel-session":
            session = value
        elif name == b"x-citadel-deadline-ms":
            deadline = value
        elif name == b"x-citadel-route":
            explain = wants_explanation(value)
        else:
            traced = True
    if authorization is None:
        authorization = api_key
    return authorization, length, request_id, session, deadline, explain, traced


def _asks_for_usage(request: _Request) -> bool:
    if not request.stream_options:
        return False
    try:
        options = _stream_options.decode(request.stream_options)
    except (ValueError, RecursionError):
        return True  # the engine's to refuse, as it came
    return options is not None and bool(options.include_usage)


def _estimated(exchange: Exchange, status: int) -> int:
    """Tokens that a finished request comes to of which no engine has said it: it broke off before."""
    # An answer that was kept, or another's, has cost nothing; nor has one that the engine refused or never got.
    if exchange.charge is None or exchange.cache == "hit":
        return 0
    worked = exchange.sent_at and status in (499, 504)
    if not exchange.events and not worked:
        return 0
    exchange.tokens_estimated = True
    exchange.prompt_tokens, exchange.completion_tokens = exchange.charge[1], exchange.events
    return exchange.charge[1] + exchange.events


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


def _decoded(body: bytes) -> _Request:
    try:
        return _request.decode(body)
    except msgspec.ValidationError as failure:
        raise _invalid(failure) from failure
    except RecursionError as failure:
        raise ApiError(400, "invalid_json", "The body is nested too deeply.") from failure
    except ValueError as failure:  # msgspec's own, or a text that is not UTF-8
        raise ApiError(400, "invalid_json", f"The body is not valid JSON: {failure}") from failure


def _invalid(failure: msgspec.ValidationError) -> ApiError:
    text = str(failure)
    found = re.search(r"`\$\.(\w+)|required field `(\w+)`", text)
    param = (found[1] or found[2]) if found else None
    return ApiError(400, "invalid_request", f"The body is not a valid request: {text}", param=param)
