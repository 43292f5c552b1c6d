"""Sends a request to an engine and its answer back, with one second attempt before the first byte."""

from __future__ import annotations

import os
from collections import deque
from time import monotonic

import msgspec

from citadel_llm.api.errors import ApiError, Headers, reshape
from citadel_llm.api.middleware.asgi import Send
from citadel_llm.api.middleware.exchange import Exchange, Phase
from citadel_llm.api.state import GatewayState
from citadel_llm.api.upstream.connection import BadResponse, Connection, ConnectionLost
from citadel_llm.api.upstream.engine import Engine, State
from citadel_llm.api.upstream.model import ServedModel

__all__ = ["Forwarder"]

_WHOLE_BYTES = 4 << 20
_ERROR_BYTES = 1 << 16

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
        b"x-request-id",
    }
)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_answer = msgspec.json.Decoder(_Answer)


class _NotAnsweredError(Exception):
    """The engine went away before its first byte, so that the request may be sent again."""


class Forwarder:
    """For one endpoint."""

    def __init__(self, state: GatewayState, path: str) -> None:
        self._state = state
        self._timeouts = state.config.timeouts
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
            retry_after_s=self._state.config.limits.retry_after_s,
        )

    async def forward(self, exchange: Exchange, model: ServedModel, body: bytes, send: Send, *, given_id: bool) -> None:
        """Answer the exchange. Raises ApiError where that could not begin, or broke off."""
        tried: list[Engine] = []
        while True:
            engine = model.pick(tried)
            if engine is None:
                raise self.unavailable(model)
            exchange.engine = engine.url
            engine.in_flight += 1
            try:
                # Two callers may use one id, and a second attempt uses it again, but an engine
                # wants ids that differ: what it gets begins with the id and ends at random.
                suffix = f"-{os.urandom(4).hex()}" if given_id or tried else ""
                await self._attempt(exchange, model, engine, suffix, body, send, pooled=not tried)
                return
            except _NotAnsweredError as failure:
                if tried:
                    raise self.unavailable(model) from failure
                tried.append(engine)
                exchange.retries += 1
                self._state.metrics.retried(model.name)
            finally:
                engine.in_flight -= 1

    async def _attempt(
        self,
        exchange: Exchange,
        model: ServedModel,
        engine: Engine,
        suffix: str,
        body: bytes,
        send: Send,
        *,
        pooled: bool,
    ) -> None:
        connection = engine.pooled() if pooled else None
        try:
            if connection is None:
                exchange.expect(Phase.CONNECT, monotonic() + self._timeouts.connect_s)
                connection = await engine.open()
            exchange.expect(Phase.FIRST_BYTE, monotonic() + self._timeouts.first_byte_s)
            connection.send(
                b"%b%b%b\r\ncontent-length: %d\r\n\r\n"
                % (
                    self._heads[engine],
                    exchange.request_id.encode("ascii"),
                    suffix.encode("ascii"),
                    len(body),
                ),
                body,
            )
            status, headers = await connection.head()
            await self._answer(exchange, model, connection, status, headers, send)
        except OSError as failure:
            self._state.engine_failed(model, engine, failure.strerror or str(failure))
            raise _NotAnsweredError from failure
        except ConnectionLost as failure:
            if connection is None or not connection.answered:
                raise _NotAnsweredError from failure
            raise ApiError(
                502, "upstream_error", "The model's engine broke off in the middle of its answer."
            ) from failure
        except BadResponse as failure:
            raise ApiError(502, "upstream_error", "The model's engine sent something that is not HTTP.") from failure
        finally:
            if connection is not None:
                engine.give_back(connection)

    async def _answer(
        self,
        exchange: Exchange,
        model: ServedModel,
        connection: Connection,
        status: int,
        headers: Headers,
        send: Send,
    ) -> None:
        if status >= 400:
            said, _ = await connection.read_whole(_ERROR_BYTES)
            raise reshape(status, said, self._state.config.limits.retry_after_s)
        out = [pair for pair in headers if pair[0] not in _NOT_FORWARDED]
        out.append((b"x-request-id", exchange.request_id.encode("ascii")))
        out.append((b"x-citadel-model", model.header))
        out.append((b"x-citadel-cache", b"bypass"))  # where it is not, who asked says so
        if self._state.draining:
            out.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": status, "headers": out}
        if exchange.stream:
            exchange.status = status
            exchange.started = True
            await send(start)
            await self._stream(exchange, connection, send)
            return
        piece, whole = await connection.read_whole(_WHOLE_BYTES)
        exchange.status = status
        exchange.started = True
        await send(start)
        if whole:
            self._note_usage(exchange, piece)
            exchange.expect(Phase.CALLER, monotonic() + self._timeouts.chunk_s)
            await send({"type": "http.response.body", "body": piece, "more_body": False})
        else:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await self._stream(exchange, connection, send)

    async def _stream(self, exchange: Exchange, connection: Connection, send: Send) -> None:
        chunk_s = self._timeouts.chunk_s
        tail: deque[bytes] = deque(maxlen=4)
        exchange.expect(Phase.CHUNK, monotonic() + chunk_s)
        while piece := await connection.read():
            at = monotonic()
            if not exchange.first_token_at:
                exchange.first_token_at = at
            tail.append(piece)
            exchange.expect(Phase.CALLER, at + chunk_s)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            exchange.expect(Phase.CHUNK, at + chunk_s)
        self._note_stream_usage(exchange, b"".join(tail))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _note_usage(self, exchange: Exchange, body: bytes) -> None:
        try:
            usage = _answer.decode(body).usage
        except msgspec.MsgspecError:
            return
        if usage is not None:
            exchange.prompt_tokens = usage.prompt_tokens
            exchange.completion_tokens = usage.completion_tokens

    def _note_stream_usage(self, exchange: Exchange, tail: bytes) -> None:
        """Usage comes in one of a stream's last events, where the caller asked for it."""
        for line in reversed(tail.splitlines()):
            if line.startswith(b"data: {") and b'"usage"' in line:
                self._note_usage(exchange, line[6:])
                if exchange.prompt_tokens is not None:
                    return
