"""Sends a request to a replica and its answer back; to another one, within bounds, before the answer's first byte."""

from __future__ import annotations

import asyncio
import os
from time import monotonic
from typing import TYPE_CHECKING

from citadel_llm.api.call import Reply
from citadel_llm.api.errors import ApiError, Headers, reshape
from citadel_llm.api.middleware.exchange import Exchange, Overdue, Phase
from citadel_llm.api.routes.unasked import Unasked
from citadel_llm.api.routes.usage import note_stream_usage, note_usage
from citadel_llm.api.routing.admission import Admission
from citadel_llm.api.routing.breaker import CLOSED
from citadel_llm.api.routing.retry import backoff_s
from citadel_llm.api.upstream.connection import BadResponse, Connection, ConnectionLost
from citadel_llm.api.upstream.engine import Engine, State
from citadel_llm.api.upstream.model import ServedModel

if TYPE_CHECKING:
    from citadel_llm.api.state import GatewayState

__all__ = ["Forwarder", "Unanswered"]

_WHOLE_BYTES = 4 << 20
_ERROR_EVENT = b'data: {"error"'
_ERROR_BYTES = 1 << 16
# A kept connection that ends so soon after a request was sent had been closed before it came.
_CROSSING_S = 0.02
_TAIL_BYTES = 1 << 12  # of a stream: more than its last events, of which one says how many tokens there were

# Headers that end at a hop, and those that this server sets itself.
_NOT_FORWARDED = frozenset(
    {
        b"connection",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"server",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-limit-tokens",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-remaining-tokens",
        b"x-ratelimit-reset-requests",
        b"x-ratelimit-reset-tokens",
        b"x-request-id",
    }
)
# The length of what is in hand is known better.
_NOT_FORWARDED_WHOLE = _NOT_FORWARDED | {b"content-length"}


class Unanswered(Exception):
    """No replica of the model answered, and the caller was told nothing yet: another model may answer."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


def _opened(status: int, piece: bytes) -> tuple[int, bytes]:
    """Status and first piece of a stream. A dying engine says so in the stream that it has just opened: a 500."""
    if piece.startswith(_ERROR_EVENT):
        return 500, piece.removeprefix(b"data: ").split(b"\n", 1)[0]
    return status, piece


class _NotAnsweredError(Exception):
    """The replica went away, or was not well, before its first byte: the request may be sent again."""

    def __init__(self, reason: str, error: ApiError | None = None, *, crossed: bool = False) -> None:
        super().__init__(reason)
        self.error = error  # the replica's own words, where it had any
        self.crossed = crossed  # the end of an idle connection and the request met on the way


class Forwarder:
    """For one endpoint."""

    def __init__(self, state: GatewayState, path: str) -> None:
        self._state = state
        self._timeouts = state.config.timeouts
        self._retry = state.config.retry
        self._retried_statuses = frozenset(state.config.retry.statuses)
        self._heads = {
            engine: b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\nx-request-id: "
            % (path.encode("ascii"), engine.host_header)
            for model in state.models.values()
            for engine in model.engines
        }

    def unavailable(self, model: ServedModel) -> ApiError:
        """The 503 for a model that has no engine to send to; it says why."""
        why = {
            State.STARTING: "is starting",
            State.DRAINING: "is being taken out of service",
            State.DOWN: "does not answer",
            State.UP: "does not answer",
        }[model.state]
        return ApiError(
            503,
            "model_unavailable",
            f"The model `{model.name}` {why} at the moment. Try again later.",
            retry_after_s=model.retry_after_s,
        )

    async def forward(  # noqa: PLR0912, PLR0915 — one coroutine: each that waits inside another costs every request
        self,
        exchange: Exchange,
        model: ServedModel,
        body: bytes,
        reply: Reply,
        key: int | None = None,
        admission: Admission | None = None,
    ) -> None:
        """Answer the exchange. Raises Unanswered where that could not begin, ApiError where it broke off.

        A place that was taken at `admission` is given up at the end.
        """
        entered = monotonic()
        model.budget.deposit()
        tried: list[Engine] = []
        again = False
        try:
            while True:
                candidates = model.candidates
                if len(candidates) == 1 and not tried and candidates[0].breaker.state is CLOSED:
                    engine = candidates[0]  # as `_pick` would find
                    ticket = engine.breaker.epoch
                    if exchange.explanation is not None:
                        exchange.explanation.add("model", model.describe(engine, key))
                else:
                    engine, ticket = self._pick(exchange, model, key, tried)
                exchange.engine = engine.url
                engine.in_flight += 1
                # One attempt; its outcome is told to the model once, and once more where an answer broke off.
                connection = None if again else engine.pooled()
                failed: bool | None = None  # None: this attempt says nothing of the replica
                begun = False
                try:
                    if connection is None:
                        exchange.expect(Phase.CONNECT, monotonic() + self._timeouts.connect_s)
                        connection = await engine.open()
                    # Two callers may use one id, and a second attempt uses it again, but an engine
                    # wants ids that differ: what it gets begins with the id and ends at random.
                    suffix = f"-{os.urandom(4).hex()}" if exchange.given_id or again else ""
                    self._send(exchange, engine, connection, suffix, body)
                    # The first piece of the body too, before the caller is told anything: until then another
                    # replica may answer in this one's place.
                    if exchange.stream:
                        status, headers = await connection.head()
                        whole = False
                        if 200 <= status < 400:
                            status, piece = _opened(status, await connection.read())
                        else:
                            piece, _ = await connection.read_whole(_ERROR_BYTES)
                    else:
                        await connection.whole(_WHOLE_BYTES)
                        status, headers, piece, whole = connection.taken()
                    if not 200 <= status < 400:
                        failed = status >= 500
                        raise self._refusal(status, piece)
                    begun, failed = True, False
                    model.answered(engine, ticket)
                    out = self._begin(exchange, model, connection, status, headers, whole=whole)
                    if whole:
                        now = monotonic()
                        note_usage(exchange, piece)
                        exchange.phase, exchange.deadline = Phase.CALLER, now + self._timeouts.chunk_s
                        await reply.whole(status, out, piece)
                        if exchange.completion_tokens:
                            model.latency.answered(now - exchange.sent_at, exchange.completion_tokens)
                    else:
                        await self._stream(exchange, model, connection, status, out, piece, reply)
                    return
                except (OSError, ConnectionLost, BadResponse) as failure:
                    broken = self._broken(exchange, model, engine, connection, failure, begun=begun)
                    if not isinstance(broken, _NotAnsweredError):
                        failed = True
                        raise broken from failure
                    failed = not broken.crossed or None
                    missed = broken
                except _NotAnsweredError as failure:
                    missed = failure
                except asyncio.CancelledError:
                    if not isinstance(exchange.failure, Overdue):
                        raise
                    failed = True
                    if exchange.phase != Phase.CONNECT:
                        raise
                    exchange.forgive()
                    late = TimeoutError(f"no connection within {self._timeouts.connect_s:g} s")
                    missed = self._unreachable(model, engine, late)
                finally:
                    if connection is not None:
                        engine.give_back(connection)
                    if failed:
                        model.failed(engine, ticket, begun=begun)
                    elif not begun:
                        model.released(engine, ticket, failed)
                    engine.in_flight -= 1
                if missed.crossed and not again:
                    # Nobody's failure: sent once more, on a new connection, and not out of the budget.
                    exchange.retries += 1
                    self._state.metrics.retried(model.name)
                else:
                    tried.append(engine)
                    if exchange.explanation is not None:
                        exchange.explanation.add("failed", f"{engine.url} ({missed})")
                    await self._before_next(exchange, model, tried, missed)
                again = True
        finally:
            if admission is not None:
                admission.leave(monotonic() - entered if exchange.started else None)

    def _pick(self, exchange: Exchange, model: ServedModel, key: int | None, tried: list[Engine]) -> tuple[Engine, int]:
        while (engine := model.pick(key, tried)) is not None:
            ticket = engine.breaker.begin()
            if ticket is not None:
                if exchange.explanation is not None:
                    exchange.explanation.add("model", model.describe(engine, key))
                return engine, ticket
            model.refresh()
        raise Unanswered(self.unavailable(model))

    async def _before_next(
        self, exchange: Exchange, model: ServedModel, tried: list[Engine], failure: _NotAnsweredError
    ) -> None:
        """Wait until the next attempt may begin. Raises Unanswered where there is none."""
        error = failure.error or self.unavailable(model)
        if len(tried) >= self._retry.attempts or not model.candidates:
            raise Unanswered(error) from failure
        if not model.budget.withdraw():
            self._state.metrics.retry_denied(model.name)
            raise Unanswered(error) from failure
        exchange.retries += 1
        self._state.metrics.retried(model.name)
        if not model.untried(tried):
            # A replica that was not asked yet is asked at once; one that has just failed needs a moment.
            pause_s = backoff_s(self._retry, len(tried), self._state.rng)
            exchange.expect(Phase.RETRY, monotonic() + pause_s + self._timeouts.connect_s)
            await asyncio.sleep(pause_s)

    def _send(self, exchange: Exchange, engine: Engine, connection: Connection, suffix: str, body: bytes) -> None:
        exchange.sent_at = now = monotonic()
        exchange.phase, exchange.deadline = Phase.FIRST_BYTE, now + self._timeouts.first_byte_s
        trace = exchange.trace
        of_trace = "" if trace is None else trace.lines
        rest = f"{exchange.request_id}{suffix}\r\n{of_trace}content-length: {len(body)}\r\n\r\n"
        connection.send(self._heads[engine] + rest.encode("ascii"), body)

    def _broken(
        self,
        exchange: Exchange,
        model: ServedModel,
        engine: Engine,
        connection: Connection | None,
        failure: Exception,
        *,
        begun: bool,
    ) -> Exception:
        """What becomes of a request whose connection to the replica failed; `begun`: the caller has got some of it.

        A head alone begins nothing: a stream's comes as the replica takes the request, long before a token.
        """
        if isinstance(failure, BadResponse):
            return ApiError(502, "upstream_error", "The model's engine sent something that is not HTTP.")
        if begun or (connection is not None and connection.holds_body):
            return ApiError(502, "upstream_error", "The model's engine broke off in the middle of its answer.")
        if isinstance(failure, OSError):
            return self._unreachable(model, engine, failure)
        crossed = connection is not None and connection.idle_since > 0 and monotonic() - exchange.sent_at < _CROSSING_S
        return _NotAnsweredError("connection lost", crossed=crossed)

    def _unreachable(self, model: ServedModel, engine: Engine, failure: OSError) -> _NotAnsweredError:
        reason = failure.strerror or str(failure)
        self._state.engine_failed(model, engine, reason)
        return _NotAnsweredError(reason)

    def _refusal(self, status: int, said: bytes) -> Exception:
        """What an error of the replica's comes to."""
        if not 400 <= status < 600:
            return BadResponse(f"status {status}")
        error = reshape(status, said[:_ERROR_BYTES], self._state.config.limits.retry_after_s)
        return _NotAnsweredError(f"status {status}", error) if status in self._retried_statuses else error

    def _begin(
        self,
        exchange: Exchange,
        model: ServedModel,
        connection: Connection,
        status: int,
        headers: Headers,
        *,
        whole: bool,
    ) -> Headers:
        """The replica answers: the headers for the caller."""
        left_out = _NOT_FORWARDED_WHOLE if whole else _NOT_FORWARDED
        out = [pair for pair in headers if pair[0] not in left_out]
        out += model.headers
        if exchange.fallback_from or exchange.explanation is not None:
            out.extend(exchange.notes())
        if self._state.draining:
            out.append((b"connection", b"close"))
        exchange.takes_events = exchange.stream and connection.content_length is None
        exchange.status = status
        exchange.started = True
        return out

    async def _stream(
        self,
        exchange: Exchange,
        model: ServedModel,
        connection: Connection,
        status: int,
        out: Headers,
        piece: bytes,
        reply: Reply,
    ) -> None:
        """Forward the body from `piece` on."""
        exchange.first_token_at = now = monotonic()
        exchange.expect(Phase.CALLER, now + self._timeouts.chunk_s)
        await reply.start(status, out)
        chunk_s = self._timeouts.chunk_s
        tail = bytearray()
        pieces = 0
        # Where the length was promised, nothing may be left out.
        unasked = Unasked() if exchange.hides_usage and connection.content_length is None else None
        while piece:
            pieces += 1
            tail += piece
            if len(tail) > 8 * _TAIL_BYTES:
                del tail[:-_TAIL_BYTES]
            if unasked is not None and not unasked.clean(piece):
                piece = unasked.sift(piece)
            if piece:
                exchange.events += piece.count(b"\n\n")
                await reply.piece(piece)
            exchange.phase, exchange.deadline = Phase.CHUNK, monotonic() + chunk_s
            piece = await connection.read()
            exchange.phase, exchange.deadline = Phase.CALLER, monotonic() + chunk_s
        note_stream_usage(exchange, bytes(tail[-_TAIL_BYTES:]))
        await reply.end(unasked.rest() if unasked is not None else b"")
        model.latency.streamed(
            exchange.first_token_at - exchange.sent_at,
            monotonic() - exchange.first_token_at,
            exchange.completion_tokens or pieces,
        )
