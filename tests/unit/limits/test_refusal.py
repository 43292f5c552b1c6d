"""How a refusal is told."""

import pytest

from citadel_llm.api.limits.lines import duration

MS, S = 1_000_000, 1_000_000_000


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (6 * MS, "6ms"),
        (999 * MS + 1, "1s"),
        (1500 * MS, "1.5s"),
        (60 * S, "1m0s"),
        (60 * S + 250 * MS, "1m0.25s"),
        (119 * S + 5 * MS, "1m59.005s"),
        (7200 * S, "2h0m0s"),
        (3661 * S, "1h1m1s"),
    ],
)
def test_a_length_of_time_is_told_as_openai_does_rounded_up(ns, text):
    assert duration(ns) == text
