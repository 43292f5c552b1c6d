"""`tools: [{"type": "file_search", …}]`: what is found goes before the question, and the answer says where it is from.

    body, call = await retrieval(exchange, call, body, model)

The engine never sees the tool. Only a request whose body has the words `file_search` comes here at all.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta

from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.access import no_files, reachable, service_of
from citadel_llm.api.files.bodies import RankingOptions
from citadel_llm.api.files.citations import CitedChat, CitedResponse
from citadel_llm.api.files.filters import filter_of
from citadel_llm.api.files.passages import call_item, fitting, put_before
from citadel_llm.api.files.search import Found
from citadel_llm.api.identity.guard import denied
from citadel_llm.api.middleware.exchange import Phase
from citadel_llm.api.sessions.items import Members, array, dump, members_of, new_id

if TYPE_CHECKING:
    from citadel_llm.api.call import Call
    from citadel_llm.api.middleware.exchange import Exchange
    from citadel_llm.api.state import GatewayState
    from citadel_llm.api.upstream.model import ServedModel

__all__ = ["WORDS", "Retrieval"]

WORDS = b"file_search"
_RESULTS = "file_search_call.results"
_CHOICE = b'"file_search"'
_OPTIONAL = (b"x-citadel-retrieval", b"optional")
_QUERY_CHARS = 8192
_SHARE = 0.5  # of a model's context, that passages may take
_PATIENCE_S = 15.0


class _Tool(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["file_search"]
    vector_store_ids: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=16)]
    max_num_results: Annotated[int, Meta(ge=1, le=50)] | None = None
    filters: Any = None
    ranking_options: RankingOptions | None = None


_AT_ONCE = 8  # passages, where a request names no number


class Retrieval:
    """For one endpoint."""

    def __init__(self, state: GatewayState, path: str) -> None:
        self._state = state
        self._path = path
        self._responses = path == "/v1/responses"
        self._turns = "input" if self._responses else "messages"

    async def __call__(self, exchange: Exchange, call: Call, body: bytes, model: ServedModel) -> tuple[bytes, Call]:
        """The body for the engine, and where its answer goes. Raises ApiError."""
        try:
            members = members_of(body)
            tools = [(raw, _kind(raw)) for raw in array(members.get("tools", b"[]"))]
        except (ValueError, RecursionError):
            return body, call  # the engine's to refuse
        ours = [raw for raw, kind in tools if kind == "file_search"]
        changed = self._without_searches(members)
        if not ours:
            return (dump(members) if changed else body), call
        if len(ours) > 1:
            raise ApiError(400, "invalid_request", "tools: expected one `file_search` at most", param="tools")
        told: Members = {name: members[name] for name in ("tools", "tool_choice") if name in members}
        include = self._stripped(members, [raw for raw, kind in tools if kind != "file_search"])
        query, put = self._question(members)
        found = await self._search(exchange, call, ours[0], query, model)
        if found:
            put(put_before(found))
        out = dump(members)
        if self._responses:
            item = call_item(new_id("fs"), query, found, results=include)
            return out, CitedResponse(call, exchange, found, item, told)
        return out, CitedChat(call, exchange, found)

    async def _search(
        self, exchange: Exchange, call: Call, tool: msgspec.Raw, query: str, model: ServedModel
    ) -> list[Found]:
        state, principal = self._state, exchange.principal
        if principal is None:
            raise no_files(state)
        service, user_id = service_of(state, principal)
        if not principal.may("files"):
            raise denied("files")
        try:
            given = msgspec.json.decode(tool, type=_Tool)
        except msgspec.ValidationError as failure:
            raise ApiError(400, "invalid_request", f"tools: `file_search`: {failure}", param="tools") from None
        allowed = filter_of(given.filters)
        exchange.expect(Phase.FIRST_BYTE, monotonic() + _PATIENCE_S)
        try:
            with reachable(state):
                found = await service.searcher.search(
                    user_id,
                    [id.replace("\0", "?") for id in given.vector_store_ids],
                    [query],
                    caller=exchange.caller,
                    limit=given.max_num_results or _AT_ONCE,
                    allowed=allowed,
                    ranking=(given.ranking_options or RankingOptions()).ranking,
                )
        except ApiError as failure:
            if failure.status == 503 and _OPTIONAL in call.headers:
                return []
            raise
        service.counters.searched(self._path)
        tokens = model.config.max_tokens
        room = int((tokens or 8192) * _SHARE * state.config.auto.bytes_per_token)
        return fitting(found, room)

    def _without_searches(self, members: Members) -> bool:
        """Leave out of a conversation what tells of earlier searches: engines do not know it."""
        if not self._responses or (raw := members.get("input")) is None or WORDS not in bytes(raw):
            return False
        try:
            items = array(raw)
        except (ValueError, RecursionError):
            return False
        kept = [item for item in items if _kind(item) != "file_search_call"]
        members["input"] = _joined(kept)
        return len(kept) < len(items)

    def _stripped(self, members: Members, others: list[msgspec.Raw]) -> bool:
        """Take the tool out of the request; whether what was found is to be told too."""
        if others:
            members["tools"] = _joined(others)
        else:
            members.pop("tools", None)
        if not others or _CHOICE in bytes(members.get("tool_choice", b"")):
            members.pop("tool_choice", None)
        if "include" not in members:
            return False
        try:
            include = msgspec.json.decode(members["include"], type=list[str])
        except msgspec.ValidationError:
            return False
        rest = [name for name in include if name != _RESULTS]
        if rest:
            members["include"] = msgspec.Raw(orjson.dumps(rest))
        else:
            del members["include"]
        return len(rest) < len(include)

    def _question(self, members: Members) -> tuple[str, Callable[[str], None]]:
        """The last text of the user's, and what puts something before it. Raises ApiError 400."""
        name = self._turns
        try:
            raw = members[name]
            if bytes(raw).lstrip()[:1] == b'"':
                text = str(msgspec.json.decode(raw))
                return self._asked(text), lambda before: _set(members, name, before + text)
            turns = array(raw)
            for at in range(len(turns) - 1, -1, -1):
                turn = members_of(turns[at])
                if msgspec.json.decode(turn.get("role", b"null")) == "user":
                    return self._asked_in(members, turns, at, turn)
        except (ValueError, KeyError, RecursionError, TypeError):
            pass
        raise ApiError(400, "invalid_request", f"{name}: `file_search` needs a text of the user's", param=name)

    def _asked_in(
        self, members: Members, turns: list[msgspec.Raw], at: int, turn: Members
    ) -> tuple[str, Callable[[str], None]]:
        content = msgspec.json.decode(turn["content"])
        kind = "input_text" if self._responses else "text"

        def put(before: str) -> None:
            changed: Any = before + content if isinstance(content, str) else [{"type": kind, "text": before}, *content]
            _set(turn, "content", changed)
            turns[at] = msgspec.Raw(dump(turn))
            members[self._turns] = _joined(turns)

        if isinstance(content, str):
            return self._asked(content), put
        texts = [str(part["text"]) for part in content if part.get("type") in ("text", "input_text")]
        return self._asked("\n".join(texts)), put

    def _asked(self, text: str) -> str:
        if not text.strip():
            raise ValueError("no text")
        return text[-_QUERY_CHARS:]


def _kind(raw: msgspec.Raw) -> str | None:
    try:
        found = msgspec.json.decode(members_of(raw).get("type", b"null"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _set(members: Members, name: str, value: Any) -> None:
    members[name] = msgspec.Raw(orjson.dumps(value))


def _joined(items: list[msgspec.Raw]) -> msgspec.Raw:
    return msgspec.Raw(b"[%b]" % b",".join(bytes(item) for item in items))
