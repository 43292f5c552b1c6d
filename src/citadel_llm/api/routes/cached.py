"""Answers a request from the cache or another caller's call, else by a call that others may share.

    cached = CachedAnswers(cache, flights, state, path)
    if cached.wants(request.temperature, request.seed, headers):
        await cached.serve(exchange, version, headers, body, reply, answer)
    else:
        await answer(exchange, reply)

`answer(exchange, reply)` is the whole of what happens without a cache, from the model's queue to the last byte. It is
given an exchange of its own, since the call may outlive the caller that began it, and a reply that is not the caller's.

`x-citadel-cache` says what came of it: `hit` (from the cache, or from a call that was under way), `miss` (from the
engine), `store` (from the engine because the caller asked for that; kept), `bypass` (no part taken, or no Redis).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic, time
from typing import Any, NamedTuple

from citadel_llm.api.call import Reply
from citadel_llm.api.errors import ApiError, Headers
from citadel_llm.api.middleware.exchange import Exchange, Phase
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.cache.metrics import Outcome
from citadel_llm.integration.cache.response_cache import Plan, ResponseCache, Stored, allowed, complete, deterministic
from citadel_llm.integration.cache.single_flight import Aborted, Flight, Flights, Reader

__all__ = ["Answer", "CachedAnswers"]

type Answer = Callable[[Exchange, Reply], Awaitable[None]]

# Each caller's answer has its own of these.
_OWN = frozenset({b"connection", b"content-length", b"x-citadel-cache", b"x-request-id"})
_HEADER: dict[Outcome, bytes] = {"hit": b"hit", "shared": b"hit", "miss": b"miss", "store": b"store"}


class _Head(NamedTuple):
    status: int
    headers: Headers
    length: bytes | None


class _IntoFlight:
    """An answer that goes into a flight."""

    def __init__(self, exchange: Exchange, flight: Flight) -> None:
        self._exchange = exchange
        self._flight = flight
        self.found: dict[bytes, bytes] = {}  # the headers

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """See `Reply`."""
        length = b"%d" % len(body)
        await self.start(status, [*headers, (b"content-length", length)])
        await self.end(body)

    async def start(self, status: int, headers: Headers) -> None:
        """See `Reply`."""
        # How long a caller may take, each reader says for itself.
        self._exchange.expect(Phase.CALLER, self._exchange.last_call)
        self.found.update(headers)
        others = [pair for pair in headers if pair[0] not in _OWN]
        self._flight.start(_Head(status, others, self.found.get(b"content-length")))

    async def piece(self, data: bytes) -> None:
        """See `Reply`."""
        self._exchange.expect(Phase.CALLER, self._exchange.last_call)
        await self._flight.put(data)

    async def end(self, data: bytes = b"") -> None:
        """See `Reply`."""
        if data:
            await self.piece(data)


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
        reply: Reply,
        answer: Answer,
    ) -> None:
        """Answer the exchange, whose model is the one that is to answer, of that version."""
        plan = self._cache.plan(exchange.caller, self._path, exchange.model, version, body, headers)
        if plan is None:
            await self._alone(exchange, reply, answer)
            return
        flight = self._joinable(plan)
        if flight is None and plan.read:
            exchange.expect(Phase.FIRST_BYTE, exchange.last_call)
            stored = await self._cache.get(plan.key)
            if stored is not None:
                await self._replay(exchange, stored, reply)
                return
            flight = self._joinable(plan)  # one may have begun meanwhile
        if flight is not None:
            await self._follow(exchange, flight, reply, answer)
            return
        outcome: Outcome = "miss" if plan.read else "store"
        await self._relay(exchange, self._begin(exchange, plan, answer).reader(), outcome, reply)

    def _joinable(self, plan: Plan) -> Flight | None:
        return self._flights.get(plan.key) if plan.read and self._flights is not None else None

    async def _alone(self, exchange: Exchange, reply: Reply, answer: Answer) -> None:
        self._cache.metrics.answered("bypass")
        await answer(exchange, reply)

    # From the cache

    async def _replay(self, exchange: Exchange, stored: Stored, reply: Reply) -> None:
        exchange.cache = "hit"
        size = sum(map(len, stored.pieces))
        headers: Headers = [
            (b"content-type", stored.content_type),
            (b"age", b"%d" % max(0, int(time()) - stored.created)),
            (b"x-citadel-model", exchange.model.encode("ascii")),
        ]
        length = None if exchange.stream else b"%d" % size
        await self._start(exchange, _Head(200, headers, length), "hit", reply)
        if exchange.stream:
            exchange.first_token_at = monotonic()
        *pieces, last = stored.pieces
        for piece in pieces:
            exchange.expect(Phase.CALLER, monotonic() + self._chunk_s)
            await reply.piece(piece)
        exchange.expect(Phase.CALLER, monotonic() + self._chunk_s)
        await reply.end(last)
        self._cache.metrics.replayed(size)

    # From a call

    async def _follow(self, exchange: Exchange, flight: Flight, reply: Reply, answer: Answer) -> None:
        """Read another's call; where that fails before it began, and another try may not, go on alone."""
        try:
            await self._relay(exchange, flight.reader(), "shared", reply)
        except (ApiError, Aborted) as failure:
            if exchange.started or (isinstance(failure, ApiError) and failure.status not in (429, 500, 502, 503)):
                raise
            await self._alone(exchange, reply, answer)

    async def _relay(self, exchange: Exchange, reader: Reader, outcome: Outcome, reply: Reply) -> None:
        with reader:
            exchange.expect(Phase.FIRST_BYTE, exchange.last_call)  # the call has limits of its own
            try:
                head: _Head = await reader.head()
                await self._start(exchange, head, outcome, reply)
                while piece := await reader.read():
                    now = monotonic()
                    if exchange.stream and not exchange.first_token_at:
                        exchange.first_token_at = now
                    exchange.expect(Phase.CALLER, now + self._chunk_s)
                    self._account(exchange, reader.flight)  # before what may be the last bytes
                    await reply.piece(piece)
                    exchange.expect(Phase.CHUNK, exchange.last_call)
            finally:
                self._account(exchange, reader.flight)
            await reply.end()

    async def _start(self, exchange: Exchange, head: _Head, outcome: Outcome, reply: Reply) -> None:
        self._cache.metrics.answered(outcome)
        exchange.cache = _HEADER[outcome].decode("ascii")
        out = [*head.headers, (b"x-citadel-cache", _HEADER[outcome])]
        if head.length is not None:
            out.append((b"content-length", head.length))
        if self._state.draining:
            out.append((b"connection", b"close"))
        exchange.takes_events = exchange.stream and head.length is None
        exchange.status = head.status
        exchange.started = True
        await reply.start(head.status, out)

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
        into = _IntoFlight(exchange, flight)
        flight.note = exchange
        self._state.sweeper.active.add(exchange)
        try:
            await answer(exchange, into)
        except asyncio.CancelledError:
            failure = exchange.recovered()
            if failure is None:
                raise
            raise failure if isinstance(failure, ApiError) else Aborted(str(failure)) from None
        finally:
            self._state.sweeper.active.discard(exchange)
            exchange.close()
        # Another model that answered in this one's place answers only now.
        if (
            flight.whole
            and exchange.status == 200
            and exchange.model == model
            and b"content-encoding" not in into.found
            and complete(flight.pieces, stream=exchange.stream)
        ):
            self._cache.put(plan.key, into.found.get(b"content-type", b""), flight.pieces)

    def _account(self, exchange: Exchange, flight: Flight) -> None:
        """Who answered; what was used is written down once, with the first of those that it was used for."""
        call: Exchange | None = flight.note
        if call is not None:
            exchange.model = call.model
            exchange.fallback_from = call.fallback_from
            exchange.engine = call.engine
            exchange.retries = call.retries
            if call.prompt_tokens is not None:
                exchange.prompt_tokens, call.prompt_tokens = call.prompt_tokens, None
                exchange.completion_tokens, call.completion_tokens = call.completion_tokens, None
            exchange.events, call.events = exchange.events + call.events, 0
