"""/v1/responses with its memory: `Completions` answers, and this stands between it and the caller.

On the way in it puts what went before in front of the request's input; on the way out it keeps the answer before its
last bytes go out, so that a follow-up at once finds it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import orjson

from citadel_llm.api.call import Call, Listener
from citadel_llm.api.errors import ApiError, Headers
from citadel_llm.api.middleware.exchange import Exchange
from citadel_llm.api.routes.completions import Completions
from citadel_llm.api.sessions.events import Events, data_of, is_last, with_data
from citadel_llm.api.sessions.items import Members, array, dump, forwarded, input_items, item_of, line, members_of
from citadel_llm.api.sessions.owner import unavailable
from citadel_llm.api.sessions.wishes import Plan, plan_of
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database.responses import Answer, ConversationGone, Responses
from citadel_llm.integration.database.sessions import Sessions
from citadel_llm.integration.database.target import DatabaseUnavailable

__all__ = ["KeptResponses"]

_PATH = "/v1/responses"
_STORED = b"x-citadel-stored"
# The answer's id is to be one of its own: it neither comes from the answers' cache nor goes into it.
_UNCACHED = (b"cache-control", b"no-store")
_KEPT = frozenset({"completed", "incomplete"})


class KeptResponses:
    """The endpoint."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._plain = Completions(state, _PATH)
        self._memory: Memory | None = None if state.database is None else Memory(state)

    async def __call__(self, call: Call) -> None:
        """Answer one POST."""
        await self._plain(_Remembered(call, self._state, self._memory))


class Memory:
    """Finds what went before a request, and keeps its answer."""

    def __init__(self, state: GatewayState) -> None:
        assert state.database is not None  # noqa: S101 — who makes it has looked
        ttl_s = state.config.sessions.ttl_s
        self._state = state
        self._bounds = state.config.sessions
        self._sessions = Sessions(state.database, ttl_s=ttl_s)
        self._responses = Responses(state.database, self._sessions, ttl_s=ttl_s)

    async def recall(self, plan: Plan) -> list[bytes]:
        """What went before, as contents of JSON arrays. Raises ApiError."""
        try:
            if plan.previous is not None:
                return await self._chain(plan, plan.previous)
            if plan.conversation is not None:
                return await self._conversation(plan, plan.conversation)
        except DatabaseUnavailable:
            raise unavailable(self._state) from None
        return []

    async def _chain(self, plan: Plan, previous: str) -> list[bytes]:
        bounds = self._bounds
        known = previous.isascii() and previous.isprintable() and len(previous) <= 128
        found = (
            await self._responses.chain(plan.user_id, previous, bounds.max_items, bounds.max_bytes) if known else None
        )
        if found is None or found.broken:
            what = "Something that it follows" if found else f"The response `{previous[:128]}`"
            raise ApiError(
                404,
                "previous_response_not_found",
                f"{what} is not here: it never was, was deleted, or has expired.",
                param="previous_response_id",
            )
        if found.too_long or self._beyond(plan, found.items, found.bytes):
            raise self._too_long("previous_response_id")
        plan.refresh = found.ids
        return [text.encode()[1:-1] for text in found.arrays]

    async def _conversation(self, plan: Plan, id: str) -> list[bytes]:
        known = id.isascii() and id.isprintable() and len(id) <= 64
        found = await self._sessions.history(plan.user_id, id) if known else None
        if found is None:
            raise _no_conversation(id)
        conversation, contents = found
        if self._beyond(plan, conversation.items, conversation.bytes):
            raise self._too_long("conversation")
        return [text.encode() for text in contents] or [b""]

    def _beyond(self, plan: Plan, items: int, size_bytes: int) -> bool:
        added = sum(item.bytes for item in plan.items)
        return items + len(plan.items) > self._bounds.max_items or size_bytes + added > self._bounds.max_bytes

    def _too_long(self, param: str) -> ApiError:
        bounds = self._bounds
        return ApiError(
            400,
            "conversation_too_long",
            f"A conversation has at most {bounds.max_items} items and {bounds.max_bytes} bytes here. Begin a new one.",
            param=param,
        )

    async def keep(self, plan: Plan, members: Members, exchange: Exchange) -> None:
        """Keep what an answer of these members says; `plan.kept` is whether it was. Raises ApiError."""
        status = msgspec.json.decode(members.get("status", b"null"))
        if status not in _KEPT or not (plan.store or plan.conversation):
            return
        try:
            answer = self._answer(plan, members, exchange)
            await self._responses.keep(answer, plan.refresh)
        except ConversationGone:
            raise _no_conversation(plan.conversation or "") from None
        except Exception as failure:
            self._state.log.event(
                "warning", "response_not_kept", request_id=exchange.request_id,
                error=f"{type(failure).__name__}: {failure}"[:512],
            )  # fmt: skip
            if not plan.required:
                return
            if isinstance(failure, DatabaseUnavailable):
                raise unavailable(self._state) from None
            raise ApiError(500, "not_kept", "The answer could not be kept; the gateway's log says why.") from failure
        plan.kept = plan.store

    def _answer(self, plan: Plan, members: Members, exchange: Exchange) -> Answer:
        limit = max(self._bounds.max_bytes, self._bounds.max_item_bytes)
        output = [
            item_of(one, max_bytes=limit, param="output", engines=True) for one in array(members.get("output", b"[]"))
        ]
        body = line({name: raw for name, raw in shown(plan, members, kept=plan.store).items() if name != "output"})
        return Answer(
            plan.id, plan.user_id, exchange.model, plan.items, output, body, exchange.request_id,
            plan.previous, plan.conversation, response=plan.store,
        )  # fmt: skip


def shown(plan: Plan, members: Members, *, kept: bool) -> Members:
    """An answer's members, with what is ours to say."""
    conversation = None if plan.conversation is None else {"id": plan.conversation}
    ours = {"id": plan.id, "previous_response_id": plan.previous, "conversation": conversation, "store": kept}
    return {**members, **{name: msgspec.Raw(orjson.dumps(value)) for name, value in ours.items()}}


def _no_conversation(id: str) -> ApiError:
    return ApiError(
        404, "conversation_not_found", f"There is no conversation `{id[:64]}` of yours.", param="conversation"
    )


class _Remembered:
    """A call of /v1/responses; implements `Call`. Without a plan, everything passes as it came."""

    def __init__(self, call: Call, state: GatewayState, memory: Memory | None) -> None:
        self._call = call
        self._state = state
        self._memory = memory
        self._exchange: Exchange | None = None
        self._plan: Plan | None = None
        self._events: Events | None = None
        self.headers: Headers = call.headers
        self.client = call.client

    @property
    def exchange(self) -> Listener | None:
        """See `Call`."""
        return self._exchange

    @exchange.setter
    def exchange(self, listener: Listener | None) -> None:
        self._call.exchange = listener
        self._exchange = listener if isinstance(listener, Exchange) else None

    @property
    def before_end(self) -> Callable[[], None] | None:
        """See `Call`."""
        return self._call.before_end

    @before_end.setter
    def before_end(self, told: Callable[[], None] | None) -> None:
        self._call.before_end = told

    # The request

    async def body(self, limit: int) -> bytes:
        """See `Call`: with what went before in front of its input."""
        body = await self._call.body(limit)
        try:
            members = members_of(body)
        except (ValueError, RecursionError):
            return body  # `Completions` says what is wrong with it
        exchange = self._exchange
        plan = plan_of(members, None if exchange is None else exchange.principal, self._state)
        if plan is None:
            return body
        history: list[bytes] = []
        if self._memory is not None and (plan.store or plan.remembers):
            bounds = self._state.config.sessions
            plan.items = input_items(members.get("input"), max_bytes=bounds.max_item_bytes)
            history = await self._memory.recall(plan)
        self._plan = plan
        self.headers = [*self.headers, _UNCACHED]
        return forwarded(members, history)

    # The answer

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """See `Call`."""
        plan = self._plan
        if plan is None or status != 200:
            await self._call.whole(status, headers, body)
            return
        try:
            members = members_of(body)
        except (ValueError, RecursionError):  # nothing that can be kept, and nothing to be told in it
            await self._call.whole(status, [*headers, (_STORED, b"false")], body)
            return
        await self._keep(plan, members)
        headers = [pair for pair in headers if pair[0] != b"content-length"]
        headers.append((_STORED, b"true" if plan.kept else b"false"))
        await self._call.whole(status, headers, dump(shown(plan, members, kept=plan.kept)))

    async def start(self, status: int, headers: Headers) -> None:
        """See `Call`."""
        plan, exchange = self._plan, self._exchange
        if plan is not None and status == 200:
            if exchange is not None and exchange.takes_events:
                self._events = Events(self._state.config.sessions.max_bytes)
            else:  # too large to be taken in whole, or of no known shape
                if plan.required:
                    self._not_begun()
                    raise ApiError(502, "not_kept", "The answer is too large to be kept.")
                plan.store = False
            headers = [*headers, (_STORED, b"true" if plan.store else b"false")]
        await self._call.start(status, headers)

    async def piece(self, data: bytes) -> None:
        """See `Call`: the events that are complete now, the last one once it was kept."""
        events, plan = self._events, self._plan
        if events is None or plan is None:
            await self._call.piece(data)
            return
        ready: list[bytes] = []
        for event in events.feed(data):
            told = data_of(event)
            ready.append(event if told is None else await self._told(plan, event, told))
        if ready:
            await self._call.piece(b"".join(ready))

    async def end(self, data: bytes = b"") -> None:
        """See `Call`."""
        await self._call.end(data if self._events is None else self._events.rest() + data)

    async def _told(self, plan: Plan, event: bytes, data: bytes) -> bytes:
        try:
            members = members_of(data)
            response = members_of(members["response"])
        except (ValueError, RecursionError, KeyError):
            return event
        if is_last(event):
            await self._keep(plan, response)
            kept = plan.kept
        else:
            kept = plan.store
        members["response"] = msgspec.Raw(dump(shown(plan, response, kept=kept)))
        return with_data(event, dump(members))

    async def _keep(self, plan: Plan, members: Members) -> None:
        if self._memory is None or self._exchange is None:
            return
        try:
            await self._memory.keep(plan, members, self._exchange)
        except ApiError:
            if self._events is None:
                self._not_begun()
            raise

    def _not_begun(self) -> None:
        """The caller was told nothing yet, whatever `Completions` has been about to tell it."""
        if self._exchange is not None:
            self._exchange.started = False
