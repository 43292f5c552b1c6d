"""What is asked of Qdrant: always within the tenant, by meaning, by words or by both."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.integration.vector.points import Point
from citadel_llm.integration.vector.requests import by_tenant, point_body, search_body

CONDITIONS = st.lists(
    st.fixed_dictionaries(
        {"key": st.sampled_from(["tenant", "file_id"]), "match": st.fixed_dictionaries({"value": st.text(max_size=5)})}
    ),
    max_size=3,
)
FILTERS = st.none() | st.recursive(
    st.fixed_dictionaries({}, optional={"must": CONDITIONS, "should": CONDITIONS, "must_not": CONDITIONS}),
    lambda inner: st.fixed_dictionaries({"should": st.lists(inner, min_size=1, max_size=3)}),
    max_leaves=5,
)


def body(**changes):
    asked = {
        "vector": None, "text": None, "allowed": None, "limit": 10, "score_threshold": None, "fusion": "rrf", "ef": 64,
        "exact": False, "with_vectors": False,
    }  # fmt: skip
    return search_body(**{**asked, **changes})


@given(tenant=st.text(min_size=1), asked=FILTERS)
def test_no_filter_leads_out_of_the_tenant(tenant, asked):
    """Whatever the caller's filter is, the tenant's condition stands beside it, as one of those that all must hold."""
    made = by_tenant(tenant, asked)
    assert set(made) == {"must"}
    assert made["must"][0] == {"key": "tenant", "match": {"value": tenant}}
    assert made["must"][1:] == ([] if asked is None else [asked])


def test_for_upkeep_there_is_no_tenant():
    assert by_tenant(None, None) is None
    assert by_tenant(None, {"must": []}) == {"must": []}


@given(tenant=st.text(min_size=1), payload=st.dictionaries(st.sampled_from(["tenant", "x"]), st.text(max_size=5)))
def test_a_point_is_its_tenants_whatever_its_payload_says(tenant, payload):
    made = point_body(Point(id=1, vector=[1.0], payload=payload), tenant)
    assert made["payload"]["tenant"] == tenant
    assert {k: v for k, v in made["payload"].items() if k != "tenant"} == {
        k: v for k, v in payload.items() if k != "tenant"
    }


def test_one_kind_of_search_is_one_query():
    allowed = {"must": []}
    meaning = body(vector=[0.5], allowed=allowed, score_threshold=0.2)
    assert (meaning["query"], meaning["using"], meaning["filter"]) == ([0.5], "dense", allowed)
    assert (meaning["params"]["hnsw_ef"], meaning["score_threshold"]) == (64, 0.2)
    words = body(text="hello")
    assert (words["query"], words["using"]) == ({"text": "hello", "model": "Qdrant/bm25"}, "bm25")
    assert "filter" not in words
    assert body(vector=[0.5], exact=True)["params"] == {"exact": True}


def test_both_are_joined_and_each_is_filtered():
    allowed = {"must": []}
    made = body(vector=[0.5], text="hello", allowed=allowed, limit=20, fusion="dbsf")
    assert made["query"] == {"fusion": "dbsf"}
    assert [(part["using"], part["limit"], part["filter"]) for part in made["prefetch"]] == [
        ("dense", 80, allowed),
        ("bm25", 80, allowed),
    ]
    assert "filter" not in made


def test_a_search_for_nothing_is_an_error():
    with pytest.raises(ValueError, match="Expected a vector, a text, or both"):
        body()
