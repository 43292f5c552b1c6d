"""The cache of searches: small, short-lived, and never from before a write."""

import pytest

from citadel_llm.integration.vector.points import Hit
from citadel_llm.integration.vector.results import Results

HITS = [Hit(id=1, score=0.5)]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def results(clock):
    return Results(size=3, ttl_s=2.0, clock=clock)


def keep(results, collection, number=0):
    key = results.key(collection, {"query": number})
    results.put(key, HITS, results.generation(collection))
    return key


def test_what_was_found_is_given_again_until_it_is_too_old(results, clock):
    key = keep(results, "a")
    clock.now = 1.9
    assert results.get(key) == HITS
    clock.now = 2.0
    assert results.get(key) is None
    assert len(results) == 0


def test_a_search_is_another_one_where_anything_differs(results):
    same = results.key("a", {"query": [1.0], "filter": {"must": [1]}, "limit": 5})
    assert same == results.key("a", {"limit": 5, "filter": {"must": [1]}, "query": [1.0]})
    others = [
        ("b", {"query": [1.0], "filter": {"must": [1]}, "limit": 5}),
        ("a", {"query": [1.0], "filter": {"must": [2]}, "limit": 5}),
        ("a", {"query": [1.0], "filter": {"must": [1]}, "limit": 6}),
    ]
    assert same not in {results.key(*other) for other in others}


def test_the_oldest_makes_room(results):
    keys = [keep(results, "a", number) for number in range(3)]
    assert results.get(keys[0]) == HITS  # used: no longer the oldest
    keep(results, "a", 3)
    assert [results.get(key) is not None for key in keys] == [True, False, True]
    assert len(results) == 3


def test_a_write_forgets_its_collection_alone(results):
    mine, other = keep(results, "a"), keep(results, "b")
    results.forget("a")
    assert results.get(mine) is None
    assert results.get(other) == HITS
    results.forget()
    assert len(results) == 0


@pytest.mark.parametrize("written", ["a", None])
def test_a_search_that_a_write_ran_into_is_not_kept(results, written):
    key = results.key("a", {"query": 0})
    began = results.generation("a")
    results.forget(written)
    results.put(key, HITS, began)
    assert results.get(key) is None


def test_a_caller_that_changes_its_list_changes_nothing_here(results):
    key = keep(results, "a")
    results.get(key).clear()
    assert results.get(key) == HITS
