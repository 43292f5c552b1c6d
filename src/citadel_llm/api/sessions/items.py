"""Items of responses and conversations as raw JSON: made whole for keeping, and put before a request's input.

Members that are not ours to know keep their own bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import orjson
from starlette.responses import Response

from citadel_llm.api.errors import ApiError
from citadel_llm.integration.database.sessions import Item

__all__ = ["Members", "array", "dump", "forwarded", "input_items", "item_of", "line", "members_of", "new_id", "page_of"]

type Members = dict[str, msgspec.Raw]

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array = msgspec.json.Decoder(list[msgspec.Raw])
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "custom_tool_call": "ctc",
}
_TYPE = re.compile(r"[a-z0-9_.]{1,64}")
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
# An engine's own id that is long enough to be nobody else's too.
_ENGINES_ID = re.compile(r"[a-z]{1,8}_[A-Za-z0-9_-]{20,56}")
# Of a request: what is the gateway's affair, and not the engine's.
_OURS = frozenset({"store", "previous_response_id", "conversation"})


def new_id(prefix: str) -> str:
    """An id that no other thing has, and that nobody guesses."""
    return f"{prefix}_{os.urandom(24).hex()}"


def members_of(raw: bytes | msgspec.Raw) -> Members:
    """An object's members; of several with one name the last. Raises ValueError, RecursionError."""
    return _members.decode(raw)


def array(raw: bytes | msgspec.Raw) -> list[msgspec.Raw]:
    """An array's elements. Raises ValueError, RecursionError."""
    return _array.decode(raw)


def dump(members: Mapping[str, msgspec.Raw | bytes]) -> bytes:
    """The object of these members."""
    return b"{%b}" % b",".join([b"%b:%b" % (orjson.dumps(name), bytes(raw)) for name, raw in members.items()])


def line(members: Mapping[str, msgspec.Raw | bytes]) -> str:
    """The same on one line: an end of a line can only be between JSON's words, never inside one."""
    return dump(members).replace(b"\n", b" ").replace(b"\r", b" ").decode()


def item_of(raw: bytes | msgspec.Raw, *, max_bytes: int, param: str, engines: bool = False) -> Item:
    """The item, with an id of its own, a type and a status. Raises ApiError 400.

    `engines`: it comes from an engine, and may keep the id that its stream has told already.
    """
    if len(bytes(raw)) > max_bytes:
        raise ApiError(400, "item_too_large", f"{param}: an item has at most {max_bytes} bytes here.", param=param)
    try:
        orjson.loads(bytes(raw))  # strict about all of it, so that the database is not the first to be so
        members = members_of(raw)
    except (ValueError, RecursionError) as failure:
        raise ApiError(400, "invalid_request", f"{param}: expected an object ({failure})", param=param) from None
    kind = _text(members.get("type")) if "type" in members else "message" if "role" in members else None
    if kind is None or not _TYPE.fullmatch(kind):
        raise ApiError(400, "invalid_request", f"{param}: expected an item with a `type`", param=param)
    role: str | None = None
    if kind == "message":
        role = _text(members.get("role"))
        if role not in _ROLES or "content" not in members:
            expected = "a `content`, and a `role` that is one of " + ", ".join(sorted(_ROLES))
            raise ApiError(400, "invalid_request", f"{param}: expected {expected}", param=param)
        content = bytes(members["content"])
        if content.startswith(b'"'):
            members["content"] = msgspec.Raw(_part(role, content))
    id = _text(members.get("id")) or ""
    if not engines or not _ENGINES_ID.fullmatch(id):
        id = new_id(_PREFIXES.get(kind, "item"))
    whole: dict[str, msgspec.Raw | bytes] = {"id": orjson.dumps(id), "type": orjson.dumps(kind)}
    if kind == "message" and bytes(members.get("status", b"null")) == b"null":
        members["status"] = msgspec.Raw(b'"completed"')
    whole.update({name: value for name, value in members.items() if name not in whole})
    return Item(id, kind, role, line(whole))


def _part(role: str, text: bytes) -> bytes:
    if role == "assistant":
        return b'[{"type":"output_text","text":%b,"annotations":[]}]' % text
    return b'[{"type":"input_text","text":%b}]' % text


def _text(raw: msgspec.Raw | None) -> str | None:
    if raw is None:
        return None
    value = msgspec.json.decode(raw)
    return value if isinstance(value, str) else None


def input_items(raw: msgspec.Raw | None, *, max_bytes: int) -> list[Item]:
    """A request's `input` as items. Raises ApiError 400."""
    text = b"" if raw is None else bytes(raw)
    if text in (b"", b"null"):
        return []
    if text.startswith(b'"'):
        return [item_of(_said(text), max_bytes=max_bytes, param="input")]
    try:
        found = array(text)
    except (ValueError, RecursionError):
        raise ApiError(400, "invalid_request", "input: expected a text or a list of items", param="input") from None
    return [item_of(one, max_bytes=max_bytes, param=f"input[{n}]") for n, one in enumerate(found)]


def _said(text: bytes) -> bytes:
    return b'{"type":"message","role":"user","content":%b}' % text


def forwarded(members: Members, history: Sequence[bytes]) -> bytes:
    """A request as the engine gets it: without what is ours, and with `history` before its input.

    `history` are the contents of JSON arrays, without their brackets.
    """
    out = {name: raw for name, raw in members.items() if name not in _OURS}
    parts = [part for part in history if part]
    own = bytes(out.get("input", b""))
    if own.startswith(b'"'):
        parts.append(_said(own) if history else own)
    elif own.startswith(b"["):
        parts.append(own[1:-1].strip())
    if history:
        out["input"] = msgspec.Raw(b"[%b]" % b",".join([part for part in parts if part]))
    return dump(out)


def page_of(contents: Iterable[tuple[str, str]], limit: int) -> Response:
    """The list of (id, JSON) as an answer; one more than `limit` says that there are more."""
    found = list(contents)
    page = found[:limit]
    ends = {
        "first_id": page[0][0] if page else None,
        "last_id": page[-1][0] if page else None,
        "has_more": len(found) > limit,
    }
    data = ",".join([content for _, content in page])
    body = f'{{"object":"list","data":[{data}],{orjson.dumps(ends).decode()[1:]}'
    return Response(body, media_type="application/json")
