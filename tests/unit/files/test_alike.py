"""Which questions may have one answer."""

import pytest
from performance.semantic import pairs

from citadel_llm.integration.cache.alike import alike


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I reset my password?", "How can I reset my password, please?"),
        ("Is K2 8,611 m high?", "Tell me, is K2 8.611 m high?"),
        ("What's the capital of France?", "What is the capital of France?"),
        ("How do I sort a list of two elements?", "How can I sort a list of 2 elements?"),
        ("Summarise the organisation's colours.", "Summarize the organization's colors."),
        ("How long does shipping to Canada take?", "Shipping to Canada takes how long?"),
    ],
)
def test_the_same_in_other_words(one, other):
    assert alike(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is 22.04 supported?", "Is 24.04 supported?"),
        ("What is 3 + 4?", "What is 3 + 4 + 4?"),
        ("Can I use it without a key?", "Can I use it with a key?"),
        ("Is it safe?", "Isn't it safe?"),
        ("Who is Ada Lovelace?", "Who is Grace Hopper?"),
        ("How do I convert Celsius to Fahrenheit?", "How do I convert Fahrenheit to Celsius?"),
        ("What does shipping to Canada cost?", "What does shipping from Canada cost?"),
        ("Show monthly costs", "Show annual costs"),
        ("When did it end?", "Where did it end?"),
        ("What is foo_bar?", "What is foo_baz?"),
    ],
)
def test_a_difference_that_matters(one, other):
    assert not alike(one, other)


def test_of_the_labelled_pairs_hardly_any_that_differ_pass_even_without_vectors():
    """Two orders of the same words do; their vectors keep them apart (bin/bench-semantic)."""
    labelled = pairs()
    passed = [same for one, another, same in labelled if alike(one, another)]
    assert sum(passed) / sum(same for _, _, same in labelled) > 0.6
    assert len(passed) - sum(passed) <= 2
