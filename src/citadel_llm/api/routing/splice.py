"""Changes one thing in a request's body, and no other byte of it."""

from __future__ import annotations

import re

import msgspec
import orjson

__all__ = ["splice_model", "splice_usage"]

# A whole string token `"model"` before a colon: a quote inside a string has a backslash before it.
_KEY = re.compile(rb'(?<!\\)"model"[ \t\n\r]*:[ \t\n\r]*')
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
# The key's letters as escapes, with which it may be spelled otherwise.
_SPELLED = re.compile(rb"\\u00(?:6[dDfF458cC])")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_optional_members = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)


def splice_model(body: bytes, name: str) -> bytes:
    """`body`, a JSON object that was decoded with a string as "model", with `name` in its place.

    Where the key is there once, at any depth, its value is cut out and replaced. Where a nested
    object has one too, or it may be spelled with escapes, the object is put together anew from its
    members' own bytes; of members with one name the last stays, as every JSON parser reads it.
    """
    value = orjson.dumps(name)
    found = _KEY.search(body)
    if found is not None and _KEY.search(body, found.end()) is None and _SPELLED.search(body) is None:
        old = _STRING.match(body, found.end())
        if old is not None:
            return b"%b%b%b" % (body[: found.end()], value, body[old.end() :])
    members = _members.decode(body)
    members["model"] = msgspec.Raw(value)
    return _joined(members)


_ASKED = b'"stream_options":{"include_usage":true},'


def splice_usage(body: bytes, options: bytes) -> bytes:
    """`body`, a JSON object with members, with `include_usage` in its "stream_options"; `options` is what they were.

    Where there were none, they are put before the first member. What is no object is left to the engine to refuse.
    """
    if not options:
        opened = body.index(b"{") + 1
        return b"%b%b%b" % (body[:opened], _ASKED, body[opened:])
    found = _optional_members.decode(options) or {}
    found["include_usage"] = msgspec.Raw(b"true")
    if "continuous_usage_stats" in found:  # it did nothing without the other
        found["continuous_usage_stats"] = msgspec.Raw(b"false")
    members = _members.decode(body)
    members["stream_options"] = msgspec.Raw(_joined(found))
    return _joined(members)


def _joined(members: dict[str, msgspec.Raw]) -> bytes:
    return b"{%b}" % b",".join([b"%b:%b" % (orjson.dumps(key), bytes(raw)) for key, raw in members.items()])
