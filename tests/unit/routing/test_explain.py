"""The explanation's header, and the moving averages that decisions rest on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.routing.explain import MAX_BYTES, Explanation, wants_explanation
from citadel_llm.api.routing.latency import Latency


@given(st.lists(st.tuples(st.sampled_from(["model", "auto"]), st.text(max_size=2000)), max_size=30))
def test_whatever_is_explained_the_header_is_short_and_printable(steps: list[tuple[str, str]]) -> None:
    explanation = Explanation()
    for name, text in steps:
        explanation.add(name, text)
    header = explanation.header()
    assert len(header) <= MAX_BYTES
    assert all(0x20 <= byte <= 0x7E for byte in header)


def test_steps_come_in_order() -> None:
    explanation = Explanation()
    explanation.add("auto", "phi3")
    explanation.add("model", "phi3; policy=prefix")
    assert explanation.header() == b"auto=phi3; model=phi3; policy=prefix"


@pytest.mark.parametrize(("value", "wanted"), [(b"explain", True), (b" Explain", True), (b"", False), (b"no", False)])
def test_only_explain_asks_for_it(value: bytes, wanted: bool) -> None:
    assert wants_explanation(value) is wanted


def test_a_models_latency_follows_its_streams() -> None:
    latency = Latency()
    assert latency.estimate_s(10) is None
    for _ in range(200):
        latency.streamed(0.2, 0.9, 10)
    assert latency.estimate_s(10) == pytest.approx(1.2)


def test_where_only_plain_answers_were_seen_their_tokens_tell() -> None:
    latency = Latency()
    latency.answered(2.0, 20)
    assert latency.estimate_s(10) == pytest.approx(1.0)
