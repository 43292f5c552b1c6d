"""What of the gateway's memory needs no database: raw JSON put together, a stream's events, and what is refused."""

import json
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callers import KEY
from citadel_llm.api.errors import ApiError
from citadel_llm.api.sessions.events import Events, data_of, is_last, with_data
from citadel_llm.api.sessions.items import dump, forwarded, input_items, item_of, members_of, new_id
from citadel_llm.utils.config import ConfigError, parse_config
from engine_responses import Talks
from upstreams import answers

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OURS = {"store": True, "previous_response_id": "resp_1", "conversation": {"id": "conv_1"}}


def written(value, indent):
    return json.dumps(value, indent=indent, ensure_ascii=bool(indent)).encode(errors="replace")


# -- a request, put together anew -------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=5), VALUES), st.lists(VALUES), st.lists(VALUES), st.sampled_from([None, 1]))
def test_what_went_before_is_put_before_the_input_and_nothing_else_changes(others, before, own, indent):
    others = {name: value for name, value in others.items() if name not in {*OURS, "input"}}
    body = written({**others, **OURS, "input": own}, indent)
    history = [written(before, None)[1:-1]]
    assert json.loads(forwarded(members_of(body), history)) == {**others, "input": [*before, *own]}


@given(st.dictionaries(st.text(max_size=5), VALUES), VALUES)
def test_without_anything_before_it_the_input_stays_as_it_is(others, given):
    others = {name: value for name, value in others.items() if name not in OURS}
    body = written({**others, **OURS, "input": given}, None)
    assert json.loads(forwarded(members_of(body), [])) == {**others, "input": given}


def test_numbers_and_escapes_keep_their_own_bytes():
    body = (
        b'{"input" : [ {"a":1.50e+2,"b":"\\u00e9\\ud83c\\udfdb" } ] ,'
        b'"seed":123456789012345678901234567890, "store":true}'
    )
    out = forwarded(members_of(body), [b'{"x":0.10}'])
    assert out == (
        b'{"input":[{"x":0.10},{"a":1.50e+2,"b":"\\u00e9\\ud83c\\udfdb" }],"seed":123456789012345678901234567890}'
    )


def test_a_text_becomes_a_message_where_something_goes_before_it():
    out = json.loads(forwarded(members_of(b'{"input": "a \\" b"}'), [b'{"x":1}', b""]))
    assert out == {"input": [{"x": 1}, {"type": "message", "role": "user", "content": 'a " b'}]}


@pytest.mark.parametrize("own", [b"", b', "input": null', b', "input": []'])
def test_nothing_but_what_went_before_is_an_input_too(own):
    assert json.loads(forwarded(members_of(b'{"a": 1' + own + b"}"), [b'"x"', b'"y"']))["input"] == ["x", "y"]
    assert json.loads(forwarded(members_of(b'{"a": 1' + own + b"}"), [b""]))["input"] == []


# -- items ------------------------------------------------------------------------------------------------------


def test_items_get_ids_types_and_a_status_and_keep_the_rest():
    (item,) = input_items(msgspec.Raw(b'"Hello"'), max_bytes=1000)
    assert json.loads(item.content) == {
        "id": item.id, "type": "message", "role": "user", "status": "completed",
        "content": [{"type": "input_text", "text": "Hello"}],
    }  # fmt: skip
    call = b'{"type":"function_call","id":"msg_of_another","call_id":"a","name":"b","arguments":"{}","x":1.0}'
    item = item_of(call, max_bytes=1000, param="")
    assert item.id.startswith("fc_")
    assert json.loads(item.content) == {**json.loads(call), "id": item.id}
    assert "\n" not in item_of(b'{"type":"a",\r\n"b":"\\n"}', max_bytes=1000, param="").content


def test_an_engines_item_keeps_an_id_that_nobody_else_has():
    for id, kept in ((f"msg_{'a1' * 16}", True), ("msg_1", False), ("", False), ("msg_" + "x" * 99, False)):
        raw = json.dumps({"id": id, "type": "message", "role": "assistant", "content": []}).encode()
        assert (item_of(raw, max_bytes=1000, param="", engines=True).id == id) is kept
        assert item_of(raw, max_bytes=1000, param="").id != id


@given(st.binary(max_size=40) | VALUES.map(lambda value: written(value, None)))
def test_whatever_is_given_as_an_item_is_one_or_refused(raw):
    try:
        item = item_of(raw, max_bytes=100, param="items[0]")
    except ApiError as refused:
        told = (refused.status, refused.param)
    else:
        told = (400, "items[0]") if json.loads(item.content)["id"] == item.id else item
    assert told == (400, "items[0]")


def test_ids_differ():
    assert len({new_id("conv") for _ in range(1000)}) == 1000


# -- a stream's events ------------------------------------------------------------------------------------------


def event(name, data, end="\n"):
    return f"event: response.{name}{end}data: {json.dumps(data)}{end}{end}".encode()


@given(st.lists(st.sampled_from(["created", "output_text.delta", "in_progress", "completed"]), max_size=6), st.data())
def test_events_are_found_in_whatever_pieces_they_come(names, data):
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    told = [event(name, {"response": {"n": n, "text": "ü\n\n🏛"}}, end) for n, name in enumerate(names)]
    stream = b"".join(told)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    events = Events(10_000)
    found = []
    for begin, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += events.feed(stream[begin:stop])
    assert b"".join(found) + events.rest() == stream
    assert not events.overflowed
    whole = [one for one in found if data_of(one) is not None]
    assert [json.loads(data_of(one))["response"]["n"] for one in whole] == [
        n for n, name in enumerate(names) if name != "output_text.delta"
    ]
    assert sum(map(is_last, whole)) == names.count("completed")
    for one in whole:
        assert data_of(with_data(one, b'{"a":"\\\\1"}')) == b'{"a":"\\\\1"}'


def test_an_event_that_is_too_long_goes_through_and_so_does_what_follows():
    events = Events(100)
    long = event("completed", {"response": "x" * 300})
    pieces = [long[n : n + 50] for n in range(0, len(long), 50)]
    assert b"".join(b"".join(events.feed(piece)) for piece in [*pieces, b"event: a\n\n"]) == long + b"event: a\n\n"
    assert events.overflowed


def test_an_objects_members_are_put_together_with_their_names_escaped():
    assert dump({'a"': b"1", "ü": msgspec.Raw(b"[]")}) == '{"a\\"":1,"ü":[]}'.encode()


# -- without a database -----------------------------------------------------------------------------------------


def body(**fields):
    return json.dumps({"model": "phi3", "input": "Hello", **fields}).encode()


async def test_without_a_database_a_response_passes_as_it_came(gateway, upstream):
    upstream.script = talks = Talks()
    for fields in ({}, {"store": False}):
        answer = await gateway.ask("POST", "/v1/responses", body(**fields), key=KEY)
        assert answer.status == 200
        assert "x-citadel-stored" not in answer.headers
        assert "store" not in answer.json
        assert upstream.calls[-1].body == body(**fields)
    assert len(talks.asked) == 2


@pytest.mark.parametrize("wish", [{"store": True}, {"previous_response_id": "resp_1"}, {"conversation": "conv_1"}])
async def test_without_a_database_who_wants_memory_is_told(gateway, upstream, wish):
    answer = await gateway.ask("POST", "/v1/responses", body(**wish), key=KEY)
    assert (answer.status, answer.error["code"]) == (501, "not_kept")
    assert "has no database" in answer.error["message"]
    assert upstream.calls == []


@pytest.mark.parametrize("path", ["/v1/conversations", "/v1/feedback", "/v1/me/data"])
async def test_without_a_database_there_is_nothing_to_list(gateway, path):
    answer = await gateway.get(path, key=KEY)
    assert (answer.status, answer.error["code"]) == (501, "not_kept")
    assert (await gateway.get(path)).status == 401


async def test_what_is_no_request_is_refused_as_ever(gateway, upstream):
    upstream.script = answers({})
    for wrong in (b"", b"[]", b"{", b'{"a":' * 5000, os.urandom(64)):
        answer = await gateway.ask("POST", "/v1/responses", wrong, key=KEY)
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert upstream.calls == []


@pytest.mark.parametrize(
    "wrong", [{"ttl_days": 0}, {"max_items": 0}, {"max_bytes": 1}, {"store_default": "yes"}, {"x": 1}]
)
def test_a_configuration_that_makes_no_sense_is_refused(wrong):
    models = {"phi3": {"upstreams": [{"url": "http://127.0.0.1:1"}]}}
    with pytest.raises(ConfigError, match="sessions"):
        parse_config({"auth": {"keys_file": "keys"}, "models": models, "sessions": wrong})
