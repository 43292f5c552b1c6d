"""The event that a caller did not ask for is taken out, and no other byte."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.routes.unasked import Unasked

TOLD = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def said(text):
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def through(pieces):
    sieve = Unasked()
    out = [piece if sieve.clean(piece) else sieve.sift(piece) for piece in pieces]
    return [*out, sieve.rest()]


def cut(data, places):
    ends = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends) if a < b]


texts = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(['"usage"', "\n\n", 'data: {"usage"'])), max_size=6)


@given(texts, st.lists(st.integers(0, 2000), max_size=12), st.booleans())
def test_however_a_stream_is_cut_into_pieces_all_but_that_event_goes_on(said_texts, places, told):
    events = [said(text) for text in said_texts]
    stream = b"".join([*events, TOLD if told else b"", DONE])
    assert b"".join(through(cut(stream, places))) == b"".join([*events, DONE])


def test_a_piece_of_whole_events_goes_on_as_it_is_and_one_that_ends_amid_an_event_waits_for_its_rest():
    event = said("Hello")
    assert through([event + event[:9], event[9:], TOLD + DONE]) == [event, event, DONE, b""]


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":7}}\n\n',
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"error":{"message":"no"},"usage":{}}\n\n',
        b'data: {"usage"\n\n',
        b': "usage"\n\n',
        b"\n\n",
    ],
)
def test_what_only_looks_like_it_goes_on(event):
    assert b"".join(through([event, DONE])) == event + DONE


def test_lines_may_end_as_http_ends_them():
    told = TOLD.replace(b"\n", b"\r\n")
    event = said("a").replace(b"\n", b"\r\n")
    assert b"".join(through([event, told + event])) == event + event


def test_an_event_without_end_is_not_kept_for_ever():
    sieve = Unasked()
    parts = [sieve.sift(b"x" * 400_000) for _ in range(3)]
    assert [len(part) for part in parts] == [0, 0, 1_200_000]


def test_what_is_cut_off_at_the_end_goes_on_unless_it_is_that_event():
    assert through([said("a")[:-1]]) == [b"", said("a")[:-1]]
    assert through([TOLD[:-1]]) == [b"", b""]
