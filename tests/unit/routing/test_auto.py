"""`auto`: the smallest model that fits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.routing.auto import Candidate, Needs, choose, needs_of
from citadel_llm.utils.config import Auto

SMALL = Candidate("small", 8.0, 4096, frozenset(), "", 0.0, 0.5)
MIDDLE = Candidate("middle", 15.0, 8192, frozenset({"tools"}), "", 0.0, 1.0)
LARGE = Candidate("large", 93.0, 32768, frozenset({"tools", "images", "response_format"}), "", 0.0, 4.0)
ALL = [LARGE, SMALL, MIDDLE]


@pytest.mark.parametrize(
    ("needs", "name"),
    [
        (Needs(100, 100), "small"),
        (Needs(4000, 97), "middle"),
        (Needs(8000, 1000), "large"),
        (Needs(100, 100, frozenset({"tools"})), "middle"),
        (Needs(100, 100, frozenset({"tools", "images"})), "large"),
        (Needs(100, 100, frozenset({"tools"}), remaining_s=1.5), "middle"),
        (Needs(100, 100, frozenset({"tools"}), remaining_s=0.7), "middle"),
    ],
)
def test_the_smallest_that_fits_is_chosen(needs: Needs, name: str) -> None:
    assert choose(needs, ALL).name == name


def test_given_the_smallest_down_then_the_next_is_chosen_and_the_reason_is_told() -> None:
    choice = choose(Needs(10, 10), [replace(SMALL, state="down"), MIDDLE])
    assert (choice.name, choice.passed_over) == ("middle", [("small", "down")])


def test_given_a_queue_that_outlasts_the_deadline_then_a_larger_model_in_time_is_chosen() -> None:
    choice = choose(Needs(10, 10, remaining_s=2.0), [replace(SMALL, wait_s=30.0), MIDDLE])
    assert choice.name == "middle"


def test_what_is_not_known_yet_counts_as_fast() -> None:
    assert choose(Needs(10, 10, remaining_s=0.1), [replace(SMALL, latency_s=None), MIDDLE]).name == "small"


@pytest.mark.parametrize(
    ("needs", "models", "obstacle"),
    [
        (Needs(10, 10, frozenset({"images"})), [SMALL, MIDDLE], "features"),
        (Needs(9000, 10), [SMALL, MIDDLE], "length"),
        (Needs(10, 10), [replace(SMALL, state="down"), replace(MIDDLE, state="busy")], "state"),
    ],
)
def test_given_none_that_fits_then_the_obstacle_is_told(needs: Needs, models: list[Candidate], obstacle: str) -> None:
    choice = choose(needs, models)
    assert (choice.name, choice.obstacle) == (None, obstacle)


candidates = st.lists(
    st.builds(
        Candidate,
        name=st.uuids().map(str),
        size_gb=st.floats(0.1, 100),
        max_tokens=st.none() | st.integers(1, 10_000),
        features=st.frozensets(st.sampled_from(["tools", "images"])),
        state=st.sampled_from(["", "", "down", "busy"]),
        wait_s=st.floats(0, 10),
        latency_s=st.none() | st.floats(0, 10),
    ),
    min_size=1,
    max_size=6,
)
needs = st.builds(
    Needs,
    prompt_tokens=st.integers(0, 6000),
    answer_tokens=st.integers(0, 6000),
    features=st.frozensets(st.sampled_from(["tools", "images"])),
    remaining_s=st.none() | st.floats(0, 10),
)


@given(needs, candidates)
def test_the_choice_is_determined_fits_and_no_smaller_one_does(wanted: Needs, models: list[Candidate]) -> None:
    choice = choose(wanted, models)
    assert choose(wanted, models) == choice
    fitting = [
        model
        for model in models
        if wanted.features <= model.features
        and (model.max_tokens is None or wanted.prompt_tokens + wanted.answer_tokens <= model.max_tokens)
        and not model.state
    ]
    if not fitting:
        assert choice.name is None
        return
    in_time = [
        model
        for model in fitting
        if wanted.remaining_s is None or model.wait_s + (model.latency_s or 0.0) <= wanted.remaining_s
    ]
    chosen = next(model for model in fitting if model.name == choice.name)
    if in_time:
        assert chosen.size_gb == min(model.size_gb for model in in_time)
        assert chosen in in_time
    else:
        assert chosen.wait_s + (chosen.latency_s or 0.0) == min(m.wait_s + (m.latency_s or 0.0) for m in fitting)


def needs_from(**body: object) -> Needs:
    return needs_of(json.dumps({"model": "auto", **body}).encode(), Auto(bytes_per_token=4, answer_tokens=50), None)


def test_needs_are_read_from_the_body() -> None:
    found = needs_from(messages=[{"role": "user", "content": "x" * 4000}], max_tokens=7)
    assert 1000 <= found.prompt_tokens <= 1020
    assert (found.answer_tokens, found.features) == (7, frozenset())


def test_max_completion_tokens_goes_before_max_tokens_and_a_default_where_there_is_neither() -> None:
    assert needs_from(messages=[], max_tokens=7, max_completion_tokens=9).answer_tokens == 9
    assert needs_from(prompt="x").answer_tokens == 50
    assert needs_from(prompt="x", max_tokens=64.0).answer_tokens == 64


def test_features_are_seen_and_a_plain_text_format_is_none() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    found = needs_from(
        messages=[{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}],
        tools=[{"type": "function"}],
        response_format={"type": "json_object"},
    )
    assert found.features == {"tools", "images", "response_format"}
    assert 1024 <= found.prompt_tokens <= 1100, "an image's bytes are not text"
    assert needs_from(prompt="x", response_format={"type": "text"}, tools=[]).features == frozenset()
