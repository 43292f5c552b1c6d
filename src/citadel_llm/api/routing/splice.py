"""Replaces the value of "model" in a request's body, and no other byte of it."""

from __future__ import annotations

import re

import msgspec
import orjson

__all__ = ["splice_model"]

# A whole string token `"model"` before a colon: a quote inside a string has a backslash before it.
_KEY = re.compile(rb'(?<!\\)"model"[ \t\n\r]*:[ \t\n\r]*')
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
# The key's letters as escapes, with which it may be spelled otherwise.
_SPELLED = re.compile(rb"\\u00(?:6[dDfF458cC])")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


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
    return b"{%b}" % b",".join([b"%b:%b" % (orjson.dumps(key), bytes(raw)) for key, raw in members.items()])
