"""Vectors of texts, from the model of kind `embedding` that this gateway serves: by its own replicas, not by HTTP
to itself, with their breakers, retries and places.
"""

from __future__ import annotations

import asyncio
import base64
import math
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import orjson

from citadel_llm.api.errors import ApiError, Headers
from citadel_llm.api.middleware.exchange import Exchange, Phase
from citadel_llm.api.routes.forward import Forwarder, Unanswered
from citadel_llm.api.routing.admission import Refused, cost_of

if TYPE_CHECKING:
    from citadel_llm.api.state import GatewayState
    from citadel_llm.api.upstream.model import ServedModel

__all__ = ["Embedder", "EmbeddingUnavailable", "mean"]

_PATH = "/v1/embeddings"
_ANSWER_BYTES = 64 << 20


class EmbeddingUnavailable(Exception):
    """There are no vectors now; another try may get them."""


class _Vector(msgspec.Struct):
    index: int
    embedding: str


class _Answer(msgspec.Struct):
    data: list[_Vector]


_answer = msgspec.json.Decoder(_Answer)


class _Collected:
    """A reply that stays here."""

    def __init__(self) -> None:
        self.status = 0
        self.body = bytearray()

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """See `Reply`."""
        self.status = status
        self.body += body

    async def start(self, status: int, headers: Headers) -> None:
        """See `Reply`."""
        self.status = status

    async def piece(self, data: bytes) -> None:
        """See `Reply`."""
        self.body += data
        if len(self.body) > _ANSWER_BYTES:
            raise ApiError(502, "upstream_error", "The embedding model's answer has no end.")

    async def end(self, data: bytes = b"") -> None:
        """See `Reply`."""
        self.body += data


class Embedder:
    """One for a gateway."""

    def __init__(self, state: GatewayState, model: ServedModel) -> None:
        self.model = model
        self._state = state
        self._forwarder = Forwarder(state, _PATH)

    async def embed(self, texts: Sequence[str], *, caller: str, timeout_s: float) -> list[list[float]]:
        """A vector of each text. Raises EmbeddingUnavailable, and ApiError 400 where the model refuses them."""
        body = orjson.dumps({
            "model": self.model.name, "input": list(texts), "encoding_format": "base64", "truncate_prompt_tokens": -1,
        })  # fmt: skip
        exchange = Exchange.begin(None, self._state.config.timeouts)
        exchange.caller, exchange.model = caller, self.model.name
        exchange.last_call = min(exchange.last_call, exchange.began + timeout_s)
        reply = _Collected()
        self._state.sweeper.active.add(exchange)
        try:
            await self._ask(exchange, body, reply)
        except asyncio.CancelledError:
            failure = exchange.recovered()
            if failure is None:
                raise
            raise EmbeddingUnavailable(str(failure)) from None
        except Unanswered as failure:
            raise EmbeddingUnavailable(str(failure)) from None
        except ApiError as failure:
            if failure.status in (400, 413, 422):
                raise
            raise EmbeddingUnavailable(failure.message) from None
        finally:
            self._state.sweeper.active.discard(exchange)
            exchange.close()
        if exchange.prompt_tokens is not None:
            self._state.metrics.tokens(self.model.name, exchange.prompt_tokens, 0)
        return self._vectors(bytes(reply.body), len(texts))

    async def _ask(self, exchange: Exchange, body: bytes, reply: _Collected) -> None:
        model = self.model
        if not model.candidates:
            raise Unanswered(self._forwarder.unavailable(model))
        admission = model.admission
        if admission.inside < admission.places:
            admission.inside += 1
        else:
            try:
                turn = admission.enter(exchange.caller, exchange.last_call - exchange.began, cost_of(len(body)))
            except Refused as refused:
                raise EmbeddingUnavailable(f"the model is busy ({refused.reason})") from None
            if turn is not None:
                exchange.expect(Phase.QUEUE, exchange.last_call)
                try:
                    await turn
                except BaseException:
                    admission.forget(exchange.caller, turn)
                    raise
        await self._forwarder.forward(exchange, model, body, reply, admission=admission)

    def _vectors(self, body: bytes, count: int) -> list[list[float]]:
        try:
            found = sorted(_answer.decode(body).data, key=lambda one: one.index)
            vectors = [array("f", base64.b64decode(one.embedding)).tolist() for one in found]
        except ValueError as failure:
            raise EmbeddingUnavailable(f"the model's answer is none: {failure}") from None
        if len(vectors) != count or not all(vectors):
            raise EmbeddingUnavailable("the model's answer has not as many vectors as there were texts")
        return vectors


def mean(vectors: Sequence[Sequence[float]]) -> list[float]:
    """The direction between them, of length 1."""
    sums = [math.fsum(numbers) for numbers in zip(*vectors, strict=True)]
    length = math.sqrt(math.fsum(number * number for number in sums)) or 1.0
    return [number / length for number in sums]
