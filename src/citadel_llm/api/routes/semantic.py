"""The semantic cache: a chat's answer, given again to a question that means the same. Only for keys that are named.

    call = await semantic(exchange, call, body, model)
    if call is None: ...                     # it was answered
    else: ...                                # it goes on; a good answer will be kept

What is kept lies in the model's own collection, by tenant. A kept answer is given where everything but the last
question is equal to the byte, the questions are near enough to each other, and `alike` finds no difference that an
embedding overlooks. Whatever is away, the request goes on without.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.embedder import Embedder, EmbeddingUnavailable
from citadel_llm.api.middleware.exchange import Phase
from citadel_llm.integration.cache.alike import alike
from citadel_llm.integration.cache.response_cache import IGNORED, complete
from citadel_llm.integration.vector.errors import VectorError
from citadel_llm.integration.vector.points import Filter, Hit, Point

if TYPE_CHECKING:
    from collections.abc import Callable

    from citadel_llm.api.call import Call, Listener
    from citadel_llm.api.errors import Headers
    from citadel_llm.api.identity.principal import Principal
    from citadel_llm.api.middleware.exchange import Exchange
    from citadel_llm.api.state import GatewayState
    from citadel_llm.api.upstream.model import ServedModel

__all__ = ["SemanticAnswers", "build_semantic"]

CALLER = "semantic-cache"
_NAMESPACE = uuid.UUID("8a4a3f0e-60c4-4a40-9a52-0f0d7a5d2a6e")
_NOT_OURS = IGNORED | {"model", "stream"}
_AT_ONCE = 32  # answers that are being kept; more are not
_NEAREST = 4
_UPKEEP_S = 600.0


class _Plan(NamedTuple):
    tenant: str
    model: str
    version: str
    context: str  # of everything but the question
    question: str
    vector: list[float]


class SemanticAnswers:
    """One for a gateway."""

    def __init__(self, state: GatewayState, embedder: Embedder) -> None:
        assert state.vector is not None  # noqa: S101 — the configuration was checked
        self._state = state
        self._vector = state.vector
        self._section = state.config.semantic
        self._embedder = embedder
        self._keys = frozenset(self._section.keys)
        self._counters = state.metrics.semantic
        self._tasks: set[asyncio.Task[None]] = set()
        self._upkeep: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to remove what has expired."""
        self._upkeep = asyncio.create_task(self._sweep(), name="semantic cache upkeep")

    async def stop(self) -> None:
        """End; what is being kept is given up."""
        tasks = [*self._tasks, *([self._upkeep] if self._upkeep else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wanted(self, principal: Principal | None) -> bool:
        """Whether this key's requests take part."""
        return principal is not None and not self._keys.isdisjoint(
            (principal.user, f"{principal.user}/{principal.key_name}", "*")
        )

    async def __call__(self, exchange: Exchange, call: Call, body: bytes, model: ServedModel) -> Call | None:
        """Answer from what is kept; else the call, whose answer will be kept."""
        question = self._question(body, call.headers)
        if question is None:
            self._counters.looked("bypass")
            return call
        began = monotonic()
        exchange.expect(Phase.FIRST_BYTE, exchange.last_call)
        try:
            async with asyncio.timeout(self._section.timeout_s):
                plan = await self._plan(exchange, model, *question)
                hit = await self._find(plan)
        except (EmbeddingUnavailable, VectorError, ApiError, TimeoutError):
            self._counters.looked("bypass")
            return call
        finally:
            self._counters.took(monotonic() - began)
        if hit is None:
            self._counters.looked("miss")
            return _Keeping(call, exchange, self, plan)
        self._counters.looked("hit")
        await self._give(exchange, call, hit)
        return None

    def _question(self, body: bytes, headers: Headers) -> tuple[str, str] | None:
        """The last question, and a digest of all the rest; None where there is no such thing."""
        for name, value in headers:
            if name == b"cache-control" and (b"no-store" in value or b"no-cache" in value):
                return None
        try:
            request = orjson.loads(body)
            *before, last = request["messages"]
            question = last["content"]
        except (ValueError, KeyError, TypeError):
            return None
        if last.get("role") != "user" or not isinstance(question, str) or not question.strip():
            return None
        if request.get("stream") or request.get("tools") or len(question) > self._section.max_question_chars:
            return None
        rest: dict[str, Any] = {name: value for name, value in request.items() if name not in _NOT_OURS}
        rest["messages"] = [*before, {**last, "content": ""}]
        return question, hashlib.sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()

    async def _plan(self, exchange: Exchange, model: ServedModel, question: str, context: str) -> _Plan:
        principal = exchange.principal
        assert principal is not None  # noqa: S101 — `wanted` has looked
        [vector] = await self._embedder.embed([question], caller=CALLER, timeout_s=self._section.timeout_s)
        tenant = principal.user_id or f"key:{principal.caller}"
        return _Plan(tenant, model.name, model.config.version, context, question, vector)

    async def _find(self, plan: _Plan) -> Hit | None:
        allowed: Filter = {
            "must": [
                {"key": "version", "match": {"value": plan.version}},
                {"key": "context", "match": {"value": plan.context}},
                {"key": "expires_at", "range": {"gt": int(time())}},
            ]
        }
        found = await self._vector.search(
            self._vector.alias(plan.model),
            tenant=plan.tenant,
            vector=plan.vector,
            allowed=allowed,
            limit=_NEAREST,
            score_threshold=self._section.threshold,
            fresh=True,
        )
        guarded = False
        for hit in found:
            if alike(plan.question, str(hit.payload.get("question", ""))):
                return hit
            guarded = True
        if guarded:
            self._counters.guarded()
        return None

    async def _give(self, exchange: Exchange, call: Call, hit: Hit) -> None:
        body = str(hit.payload["body"]).encode()
        exchange.cache = "hit"
        exchange.status = 200
        exchange.started = True
        exchange.expect(Phase.CALLER, monotonic() + self._state.config.timeouts.chunk_s)
        headers: Headers = [
            (b"content-type", b"application/json"),
            (b"age", b"%d" % max(0, int(time()) - int(hit.payload.get("created_at", 0)))),
            (b"x-citadel-model", exchange.model.encode("ascii")),
            (b"x-citadel-cache", b"hit"),
            (b"x-citadel-cache-similarity", b"%.4f" % (hit.score or 0.0)),
        ]
        if self._state.draining:
            headers.append((b"connection", b"close"))
        await call.whole(200, headers, body)

    def keep(self, plan: _Plan, body: bytes) -> None:
        """Keep an answer, in the background."""
        if len(body) > self._section.max_answer_bytes or len(self._tasks) >= _AT_ONCE:
            return
        task = asyncio.create_task(self._put(plan, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _put(self, plan: _Plan, body: bytes) -> None:
        now = int(time())
        id = uuid.uuid5(_NAMESPACE, "\0".join((plan.tenant, plan.model, plan.version, plan.context, plan.question)))
        payload = {
            "version": plan.version,
            "context": plan.context,
            "question": plan.question,
            "created_at": now,
            "expires_at": now + int(self._section.ttl_s),
            "body": body.decode(),
        }
        try:
            point = Point(id=str(id), vector=plan.vector, payload=payload)
            await self._vector.upsert(self._vector.alias(plan.model), [point], tenant=plan.tenant)
        except (VectorError, UnicodeDecodeError):
            return
        self._counters.kept()

    async def _sweep(self) -> None:
        while True:
            expired: Filter = {"must": [{"key": "expires_at", "range": {"lte": int(time())}}]}
            for name, model in self._state.models.items():
                if model.config.kind == "generate":
                    try:
                        await self._vector.delete(self._vector.alias(name), tenant=None, allowed=expired)
                    except VectorError:
                        break
            await asyncio.sleep(_UPKEEP_S * self._state.rng.uniform(0.75, 1.25))


class _Keeping:
    """A call whose whole answer is kept; implements `Call`."""

    def __init__(self, call: Call, exchange: Exchange, answers: SemanticAnswers, plan: _Plan) -> None:
        self._call = call
        self._state = exchange
        self._answers = answers
        self._plan = plan
        self.headers: Headers = call.headers
        self.client = call.client
        self.exchange: Listener | None = exchange
        self.before_end: Callable[[], None] | None = None  # the caller's own call has it

    async def body(self, limit: int) -> bytes:
        """See `Call`."""
        return await self._call.body(limit)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """See `Call`."""
        await self._call.whole(status, headers, body)
        # Another model that answered in this one's place answers only now.
        if status == 200 and self._state.model == self._plan.model and complete([body], stream=False):
            self._answers.keep(self._plan, body)

    async def start(self, status: int, headers: Headers) -> None:
        """See `Call`."""
        await self._call.start(status, headers)

    async def piece(self, data: bytes) -> None:
        """See `Call`."""
        await self._call.piece(data)

    async def end(self, data: bytes = b"") -> None:
        """See `Call`."""
        await self._call.end(data)


def build_semantic(state: GatewayState) -> SemanticAnswers | None:
    """None where the section is turned off."""
    section = state.config.semantic
    if not section.enabled:
        return None
    embedding = {name: model for name, model in state.models.items() if model.config.kind == "embedding"}
    return SemanticAnswers(state, Embedder(state, embedding[section.embedder or next(iter(embedding))]))
