"""Texts in chunks: nothing is lost, nothing is too large, and what overlaps is as long as it was to be."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.integration.documents.chunks import chunks, units


def words(texts):
    return [1] * len(texts)


def cut(text, *, most=100, overlap=20, part=50, count=words):
    return list(chunks([text], count, max_tokens=most, overlap_tokens=overlap, part_tokens=part))


@given(st.integers(0, 700), st.integers(1, 60), st.data())
def test_chunks_have_every_word_in_order_and_overlap_as_told(size, most, data):
    overlap = data.draw(st.integers(0, most // 2))
    given = [f"w{n}" for n in range(size)]
    found = [chunk.text.split() for chunk in cut(" ".join(given), most=most, overlap=overlap)]
    assert all(0 < len(chunk) <= most for chunk in found)
    seen = list(found[0]) if found else []
    for before, chunk in pairwise(found):
        assert chunk[:overlap] == before[len(before) - overlap :]
        seen += chunk[overlap:]
    assert seen == given


@given(st.text(max_size=400))
def test_words_are_short_and_only_spaces_are_left_out(text):
    found = list(units(text))
    assert all(len(word.strip()) <= 24 for word in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_a_chunk_is_in_parts_that_the_model_takes():
    [chunk] = cut(" ".join(f"w{n}" for n in range(90)), part=40)
    assert [len(part.split()) for part in chunk.parts] == [40, 40, 10]
    assert " ".join(chunk.parts) == chunk.text


def test_pages_follow_one_another():
    found = list(chunks(["one two ", "three"], words, max_tokens=100, overlap_tokens=0, part_tokens=100))
    assert [chunk.text for chunk in found] == ["one two three"]


@pytest.mark.parametrize("text", ["", " \n\t ", "\f" * 1000])
def test_where_there_is_no_text_there_are_no_chunks(text):
    assert cut(text) == []


def test_what_has_more_tokens_than_there_is_room_for_still_comes_out():
    found = cut("aaa bbb ccc", most=10, overlap=5, count=lambda texts: [30] * len(texts))
    assert [chunk.text for chunk in found] == ["aaa", "bbb", "ccc"]
