"""The model's name is replaced in a body, and nothing else."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.routing.splice import splice_model, splice_usage

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# Strings that look like what is searched for, among others.
tricky = (
    st.sampled_from(['"model": "x"', "model", '\\"model', 'a "model"', '"model":', "\\", '"', "mod\\u0065l"]) | texts
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | tricky,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tricky, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(tricky, values, max_size=4), texts, texts, st.booleans(), st.sampled_from([None, 1]), st.data())
def test_the_result_is_the_body_with_another_name(
    members: dict[str, object], old: str, new: str, ascii_only: bool, indent: int | None, data: st.DataObject
) -> None:
    pairs = [*((key, value) for key, value in members.items() if key != "model"), ("model", old)]
    body = json.dumps(dict(data.draw(st.permutations(pairs))), ensure_ascii=ascii_only, indent=indent).encode()
    assert json.loads(splice_model(body, new)) == {**json.loads(body), "model": new}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a","n":1.50e3}', b'{"model":"new","n":1.50e3}'),
        (b'{ "n":1.0, "model" : "a\\"b" }', b'{ "n":1.0, "model" : "new" }'),
        (b'{"s":"\\"model\\": \\"a\\"","model":"a"}', b'{"s":"\\"model\\": \\"a\\"","model":"new"}'),
        (b'{"m":{"model":"x"},"model":"a","n":1.50}', b'{"m":{"model":"x"},"model":"new","n":1.50}'),
    ],
)
def test_no_other_byte_changes(body: bytes, expected: bytes) -> None:
    assert splice_model(body, "new") == expected


@pytest.mark.parametrize("body", [b'{"model":"a","model":"b"}', b'{"mod\\u0065l":"b","x":{"model":"a"}}'])
def test_a_key_that_is_there_twice_or_spelled_with_escapes_is_found(body: bytes) -> None:
    class Request(msgspec.Struct):
        model: str

    assert msgspec.json.decode(body, type=Request).model == "b"
    assert json.loads(splice_model(body, "new"))["model"] == "new"
    assert splice_model(body, "new").count(b'"new"') == 1


@pytest.mark.parametrize(
    ("body", "options", "expected"),
    [
        ({"model": "a", "stream": True}, None, {"include_usage": True}),
        ({"stream": True, "stream_options": None}, "null", {"include_usage": True}),
        ({"stream_options": {}, "stream": True}, "{}", {"include_usage": True}),
        ({"stream_options": {"include_usage": False}}, '{"include_usage": false}', {"include_usage": True}),
        (
            {"stream_options": {"other": [1], "continuous_usage_stats": True}},
            '{"other": [1], "continuous_usage_stats": true}',
            {"other": [1], "continuous_usage_stats": False, "include_usage": True},
        ),
    ],
)
def test_a_streams_usage_is_asked_for_beside_what_else_was_asked(body, options, expected):
    spliced = json.loads(splice_usage(json.dumps(body).encode(), (options or "").encode()))
    assert spliced == {**body, "stream_options": expected}


def test_where_nothing_was_asked_every_other_byte_stays():
    body = b' {\n "model" : "a", "stream":true,"x":1.0e0 }'
    assert splice_usage(body, b"").replace(b'"stream_options":{"include_usage":true},', b"") == body
