"""Answers a request from the cache or another caller's call, else by a call that others may share.

    cached = CachedAnswers(cache, flights, state, path)
    if cached.wants(request.temperature, request.seed, headers):
        await cached.serve(exchange, version, headers, body, send, answer)
    else:
        await answer(exchange, send)

`answer(exchange, send)` is the whole of what happens without a cache, from the model's queue to the last byte. It is
given an exchange of its own, since the call may outlive the caller that began it, and `send`s as to a server.

`x-citadel-cache` says what came of it: `hit` (from the cache, or from a call that was under way), `miss` (from the
engine), `store` (from the engine because the caller asked for that; kept), `bypass` (no part taken, or no Redis).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic, time
from typing import Any, NamedTuple

from citadel_llm.api.errors import ApiError, Headers
from citadel_llm.api.middleware.asgi import Message, Send
from citadel_llm.api.middleware.exchange import Exchange, Phase
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.cache.metrics import Outcome
from citadel_llm.integration.cache.response_cache import Plan, ResponseCache, Stored, allowed, complete, deterministic
from citadel_llm.integration.cache.single_flight import Aborted, Flight, Flights, Reader

__all__ = ["Answer", "CachedAnswers"]

type Answer = Callable[[Exchange, Send], Awaitable[None]]

# Each caller's answer has its own of these.
_OWN = frozenset({b"connection", b"content-length", b"x-citadel-cache", b"x-request-id"})
_HEADER: dict[Outcome, bytes] = {"hit": b"hit", "shared": b"hit", "miss": b"miss", "store": b"store"}


class _Head(NamedTuple):
    status: int
    headers: Headers
    length: bytes | None


class CachedAnswers:
    """For one endpoint. `state` lends its configuration and its sweeper."""

    def __init__(self, cache: ResponseCache, flights: Flights | None, state: GatewayState, path: str) -> None:
        self._cache = cache
        self._flights = flights
        self._state = state
        self._path = path
        self._chunk_s = state.config.timeouts.chunk_s

    def wants(self, temperature: Any, seed: Any, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether to `serve` a request with these fields and headers; every request is looked at by this."""
        return deterministic(temperature, seed) or allowed(headers)

    async def serve(
        self,
        exchange: Exchange,
        version: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        send: Send,
        answer: Answer,
    ) -> None:
        """Answer the exchange, whose model is the one that is to answer, of that version."""
        plan = self._cache.plan(exchange.caller, self._path, exchange.model, version, body, headers)
        if plan is None:
            await self._alone(exchange, send, answer)
            return
        flight = self._joinable(plan)
        if flight is None and plan.read:
            exchange.expect(Phase.FIRST_BYTE, exchange.last_call)
            stored = await self._cache.get(plan.key)
            if stored is not None:
                await self._replay(exchange, stored, send)
                return
            flight = self._joinable(plan)  # one may have begun meanwhile
        if flight is not None:
            await self._follow(exchange, flight, send, answer)
            return
        outcome: Outcome = "miss" if plan.read else "store"
        await self._relay(exchange, self._begin(exchange, plan, answer).reader(), outcome, send)

    def _joinable(self, plan: Plan) -> Flight | None:
        return self._flights.get(plan.key) if plan.read and self._flights is not None else None

    async def _alone(self, exchange: Exchange, send: Send, answer: Answer) -> None:
        self._cache.metrics.answered("bypass")
        await answer(exchange, send)

    # From the cache

    async def _replay(self, exchange: Exchange, stored: Stored, send: Send) -> None:
        exchange.cache = "hit"
        size = sum(map(len, stored.pieces))
        headers: Headers = [
            (b"content-type", stored.content_type),
            (b"age", b"%d" % max(0, int(time()) - stored.created)),
            (b"x-citadel-model", exchange.model.encode("ascii")),
        ]
        length = None if exchange.stream else b"%d" % size
        await self._start(exchange, _Head(200, headers, length), "hit", send)
        if exchange.stream:
            exchange.first_token_at = monotonic()
        *pieces, last = stored.pieces
        for piece in pieces:
            exchange.expect(Phase.CALLER, monotonic() + self._chunk_s)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        exchange.expect(Phase.CALLER, monotonic() + self._chunk_s)
        await send({"type": "http.response.body", "body": last, "more_body": False})
        self._cache.metrics.replayed(size)

    # From a call

    async def _follow(self, exchange: Exchange, flight: Flight, send: Send, answer: Answer) -> None:
        """Read another's call; where that fails before it began, and another try may not, go on alone."""
        try:
            await self._relay(exchange, flight.reader(), "shared", send)
        except (ApiError, Aborted) as failure:
            if exchange.started or (isinstance(failure, ApiError) and failure.status not in (429, 500, 502, 503)):
                raise
            await self._alone(exchange, send, answer)

    async def _relay(self, exchange: Exchange, reader: Reader, outcome: Outcome, send: Send) -> None:
        with reader:
            exchange.expect(Phase.FIRST_BYTE, exchange.last_call)  # the call has limits of its own
            try:
                head: _Head = await reader.head()
                await self._start(exchange, head, outcome, send)
                while piece := await reader.read():
                    now = monotonic()
                    if exchange.stream and not exchange.first_token_at:
                        exchange.first_token_at = now
                    exchange.expect(Phase.CALLER, now + self._chunk_s)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    exchange.expect(Phase.CHUNK, exchange.last_call)
            finally:
                self._account(exchange, reader.flight)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, exchange: Exchange, head: _Head, outcome: Outcome, send: Send) -> None:
        self._cache.metrics.answered(outcome)
        exchange.cache = _HEADER[outcome].decode("ascii")
        out = [*head.headers, (b"x-request-id", exchange.request_id.encode("ascii"))]
        out.append((b"x-citadel-cache", _HEADER[outcome]))
        if head.length is not None:
            out.append((b"content-length", head.length))
        if self._state.draining:
            out.append((b"connection", b"close"))
        exchange.takes_events = exchange.stream and head.length is None
        exchange.status = head.status
        exchange.started = True
        await send({"type": "http.response.start", "status": head.status, "headers": out})

    def _begin(self, exchange: Exchange, plan: Plan, answer: Answer) -> Flight:
        request = exchange.detached

        async def call(flight: Flight) -> None:  # in a task of its own, where it is to be interrupted
            await self._call(flight, request(self._state.config.timeouts), plan, answer)

        if self._flights is None:
            return Flights(self._cache.max_answer_bytes).begin(None, call)
        return self._flights.begin(plan.key if plan.read else None, call)

    async def _call(self, flight: Flight, exchange: Exchange, plan: Plan, answer: Answer) -> None:
        """Answer into the flight, in the flight's task; keep what is worth it."""
        model = exchange.model
        found: dict[bytes, bytes] = {}

        async def send(message: Message) -> None:
            # How long a caller may take, each reader says for itself.
            exchange.expect(Phase.CALLER, exchange.last_call)
            if message["type"] == "http.response.start":
                found.update(message["headers"])
                headers = [pair for pair in message["headers"] if pair[0] not in _OWN]
                flight.start(_Head(message["status"], headers, found.get(b"content-length")))
            elif piece := message.get("body"):
                await flight.put(piece)

        flight.note = exchange
        self._state.sweeper.add(exchange)
        try:
            await answer(exchange, send)
        except asyncio.CancelledError:
            failure = exchange.recovered()
            if failure is None:
                raise
            raise failure if isinstance(failure, ApiError) else Aborted(str(failure)) from None
        finally:
            self._state.sweeper.discard(exchange)
        # Another model that answered in this one's place answers only now.
        if (
            flight.whole
            and exchange.status == 200
            and exchange.model == model
            and b"content-encoding" not in found
            and complete(flight.pieces, stream=exchange.stream)
        ):
            self._cache.put(plan.key, found.get(b"content-type", b""), flight.pieces)

    def _account(self, exchange: Exchange, flight: Flight) -> None:
        """Who answered; what was used is written down once, with the first of those that it was used for."""
        call: Exchange | None = flight.note
        if call is not None:
            exchange.model = call.model
            exchange.fallback_from = call.fallback_from
            exchange.engine = call.engine
            exchange.retries = call.retries
            exchange.prompt_tokens, call.prompt_tokens = call.prompt_tokens, None
            exchange.completion_tokens, call.completion_tokens = call.completion_tokens, None
