"""Answers with the places that they are from: each a reply that stands before the caller's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from citadel_llm.api.files.passages import citations_of
from citadel_llm.api.files.search import Found

if TYPE_CHECKING:
    from collections.abc import Callable

    from citadel_llm.api.call import Call, Listener
    from citadel_llm.api.errors import Headers
    from citadel_llm.api.middleware.exchange import Exchange

__all__ = ["CitedChat", "CitedResponse"]

_EVENT_BYTES = 16 << 20
_BEGINNING = frozenset({"response.created", "response.queued", "response.in_progress"})


class _Cited:
    """What both have in common; implements `Call`."""

    def __init__(self, call: Call, exchange: Exchange, found: Sequence[Found]) -> None:
        self._call = call
        self._state = exchange
        self._found = found
        self._events = False
        self._buffer = bytearray()
        self.headers: Headers = call.headers
        self.client = call.client
        self.exchange: Listener | None = exchange
        self.before_end: Callable[[], None] | None = None  # the caller's own call has it

    async def body(self, limit: int) -> bytes:
        """See `Call`."""
        return await self._call.body(limit)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """See `Call`."""
        if status == 200:
            try:
                body = orjson.dumps(self._cited(orjson.loads(body)))
            except (ValueError, KeyError, TypeError, AttributeError):
                pass  # of no known shape: as it came
            else:
                headers = [pair for pair in headers if pair[0] != b"content-length"]
        await self._call.whole(status, headers, body)

    async def start(self, status: int, headers: Headers) -> None:
        """See `Call`."""
        self._events = status == 200 and self._state.takes_events
        await self._call.start(status, headers)

    async def piece(self, data: bytes) -> None:
        """See `Call`: the events that are whole now."""
        if not self._events:
            await self._call.piece(data)
            return
        self._buffer += data
        if len(self._buffer) > _EVENT_BYTES:
            self._events = False
            await self._call.piece(self._rest())
            return
        if ready := b"".join(self._ready()):
            await self._call.piece(ready)

    async def end(self, data: bytes = b"") -> None:
        """See `Call`."""
        if data and self._events:
            await self.piece(data)
            data = b""
        await self._call.end(self._rest() + data)

    def _rest(self) -> bytes:
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _ready(self) -> Iterator[bytes]:
        while True:
            end = self._buffer.find(b"\n\n")
            if end < 0:
                return
            event = bytes(self._buffer[: end + 2])
            del self._buffer[: end + 2]
            begin = event.find(b"data: {")
            if begin < 0:
                yield event
                continue
            try:
                yield self._told(event, orjson.loads(event[begin + 6 :]))
            except (ValueError, KeyError, TypeError, AttributeError):
                yield event

    def _cited(self, answer: Any) -> Any:
        raise NotImplementedError

    def _told(self, event: bytes, data: dict[str, Any]) -> bytes:
        raise NotImplementedError


class CitedChat(_Cited):
    """/v1/chat/completions: `annotations` of each message; in a stream, with the choice's last piece."""

    def __init__(self, call: Call, exchange: Exchange, found: Sequence[Found]) -> None:
        super().__init__(call, exchange, found)
        self._texts: dict[int, str] = {}

    def _cited(self, answer: Any) -> Any:
        for choice in answer["choices"]:
            message = choice["message"]
            message["annotations"] = citations_of(message.get("content") or "", self._found)
        return answer

    def _told(self, event: bytes, data: dict[str, Any]) -> bytes:
        last = False
        for choice in data.get("choices", ()):
            at, delta = choice["index"], choice.get("delta") or {}
            self._texts[at] = self._texts.get(at, "") + (delta.get("content") or "")
            if choice.get("finish_reason"):
                choice["delta"] = {**delta, "annotations": citations_of(self._texts[at], self._found)}
                last = True
        return b"data: %b\n\n" % orjson.dumps(data) if last else event


class CitedResponse(_Cited):
    """/v1/responses: the search as the first output item, and `annotations` of each text.

    `told` are members of the request that the engine did not see, and an answer repeats.
    """

    def __init__(
        self,
        call: Call,
        exchange: Exchange,
        found: Sequence[Found],
        item: dict[str, Any],
        told: Mapping[str, msgspec.Raw],
    ) -> None:
        super().__init__(call, exchange, found)
        self._item = item
        self._members = {name: orjson.loads(bytes(raw)) for name, raw in told.items()}
        self._begun = False
        self._number = 0

    def _cited(self, answer: Any) -> Any:
        answer.update(self._members)
        answer["output"] = [self._item, *(self._of_item(item) for item in answer["output"])]
        return answer

    def _of_item(self, item: dict[str, Any]) -> dict[str, Any]:
        for part in item.get("content") or ():
            self._of_part(part)
        return item

    def _of_part(self, part: dict[str, Any]) -> None:
        if part.get("type") == "output_text":
            part["annotations"] = citations_of(part.get("text") or "", self._found)

    def _told(self, event: bytes, data: dict[str, Any]) -> bytes:
        kind = data["type"]
        before = b""
        if kind not in _BEGINNING and not self._begun:
            self._begun = True
            before = b"".join(self._searched())
        if "output_index" in data:
            data["output_index"] += 1
        if kind == "response.output_text.done":
            before += b"".join(self._annotated(data))
        elif kind == "response.content_part.done":
            self._of_part(data["part"])
        elif kind == "response.output_item.done":
            self._of_item(data["item"])
        elif isinstance(response := data.get("response"), dict):
            if kind in _BEGINNING:
                response.update(self._members)
            else:
                self._cited(response)
        return before + self._event(data)

    def _searched(self) -> Iterator[bytes]:
        of = {"output_index": 0, "item_id": self._item["id"]}
        begun = {**self._item, "status": "in_progress", "results": None}
        yield self._event({"type": "response.output_item.added", "output_index": 0, "item": begun})
        for step in ("in_progress", "searching", "completed"):
            yield self._event({"type": f"response.file_search_call.{step}", **of})
        yield self._event({"type": "response.output_item.done", "output_index": 0, "item": self._item})

    def _annotated(self, data: dict[str, Any]) -> Iterator[bytes]:
        of = {name: data[name] for name in ("item_id", "output_index", "content_index")}
        for number, one in enumerate(citations_of(data.get("text") or "", self._found)):
            told = {"type": "response.output_text.annotation.added", "annotation_index": number, "annotation": one}
            yield self._event({**told, **of})

    def _event(self, data: dict[str, Any]) -> bytes:
        data["sequence_number"] = self._number
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), orjson.dumps(data))
