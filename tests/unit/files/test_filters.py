"""OpenAI's filters as Qdrant's, and what is refused."""

import pytest

from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.filters import checked_attributes, filter_of, payload_of


def is_(kind, value, key="k"):
    return {"type": kind, "key": key, "value": value}


FIELD = f"attributes.{next(iter(payload_of({'k': 1})))}"


def test_each_comparison_has_its_condition():
    match, span = {"key": FIELD, "match": {"value": "x"}}, {"key": FIELD, "range": {"gte": 2, "lte": 2}}
    assert filter_of(is_("eq", "x")) == {"must": [match]}
    assert filter_of(is_("ne", "x")) == {"must_not": [match]}
    assert filter_of(is_("eq", 2)) == {"must": [span]}
    assert filter_of(is_("in", ["x", 2])) == {"should": [match, span]}
    assert filter_of(is_("nin", ["x"])) == {"must_not": [match]}
    assert filter_of(is_("gt", 1.5)) == {"must": [{"key": FIELD, "range": {"gt": 1.5}}]}
    assert filter_of({"type": "or", "filters": [is_("eq", "x")]}) == {"should": [{"must": [match]}]}
    assert filter_of(None) is None


def test_no_name_is_a_path():
    for key in ("a.b", "a[]", 'a"b', "ü", "tenant"):
        [name] = payload_of({key: 1})
        assert name.isalnum()
        assert filter_of(is_("eq", True, key))["must"][0]["key"] == f"attributes.{name}"


def deep(levels):
    return is_("eq", 1) if levels == 0 else {"type": "and", "filters": [deep(levels - 1)]}


@pytest.mark.parametrize(
    "given",
    [
        *("text", 1, [], {}, {"type": 1}, {"type": "near", "key": "k", "value": 1}, {"type": "eq", "value": 1}),
        *(is_("eq", None), is_("eq", [1]), is_("in", 1), is_("in", []), is_("gt", "x"), is_("gt", True)),
        *(is_("eq", "x" * 513), is_("eq", float("nan")), is_("eq", 1e300), is_("eq", 1, ""), is_("eq", 1, "k" * 65)),
        *({"type": "and"}, {"type": "and", "filters": []}, {"type": "or", "filters": ["x"]}, deep(9)),
        *({"type": "and", "filters": [is_("eq", n) for n in range(70)]}, is_("in", list(range(70)))),
    ],
)
def test_what_is_no_filter_is_a_400_that_says_so(given):
    with pytest.raises(ApiError) as refused:
        filter_of(given)
    assert (refused.value.status, refused.value.param) == (400, "filters")


@pytest.mark.parametrize(
    "given", [[], "x", {"k": None}, {"": 1}, {"k" * 65: 1}, {"k": [1]}, {str(n): 1 for n in range(17)}]
)
def test_what_are_no_attributes_is_a_400(given):
    with pytest.raises(ApiError) as refused:
        checked_attributes(given)
    assert refused.value.status == 400
