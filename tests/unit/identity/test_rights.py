"""What somebody may do: roles together, a key's narrowing, and whether one's rights are within another's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.identity.permissions import BUILT_IN, PER_MODEL, PERMISSIONS
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.identity.rights import narrowed, rights_of, within

MODELS = st.frozensets(st.sampled_from(["phi3", "mixtral", "minilm", "*"]), min_size=1)
RIGHTS = st.dictionaries(st.sampled_from(sorted(PERMISSIONS)), MODELS)


def somebody(rights):
    return Principal("a", "a", permissions=rights)


def test_nothing_is_permitted_that_is_not_granted():
    assert rights_of([], {}) == {}
    assert rights_of(["no such role"], {}) == {}
    assert not somebody({}).may("inference", "phi3")


@pytest.mark.parametrize("role", BUILT_IN)
def test_a_built_in_role_permits_what_the_product_says_whatever_the_database_does(role):
    assert rights_of([role], {role: [("audit.read", "*")]}).keys() == BUILT_IN[role]


def test_roles_add_up_and_every_model_covers_each():
    grants = {
        "one": [("inference", "phi3")],
        "two": [("inference", "mixtral"), ("models", "*")],
        "all": [("inference", "*")],
    }
    assert rights_of(["one", "two"], grants)["inference"] == {"phi3", "mixtral"}
    assert rights_of(["one", "all"], grants)["inference"] == {"*"}


def test_a_permission_that_this_release_does_not_know_permits_nothing():
    assert rights_of(["own"], {"own": [("from.the.future", "*")]}) == {}


@given(RIGHTS, st.none() | st.lists(st.sampled_from(sorted(PERMISSIONS))), st.none() | MODELS)
def test_a_key_never_may_more_than_its_user(rights, permissions, models):
    left = narrowed(rights, permissions, models)
    assert within(left, somebody(rights))
    for permission, held in left.items():
        assert permissions is None or permission in permissions
        if models is not None and "*" not in models and permission in PER_MODEL:
            assert held <= models


@given(RIGHTS, RIGHTS)
def test_rights_are_within_anothers_exactly_where_that_one_may_all_of_them(rights, others):
    other = somebody(others)
    assert within(rights, other) == all(other.may(p, m) for p, models in rights.items() for m in models)
    assert within(rights, somebody(rights))
    assert within(rights, Principal("file", "file", unbounded=True))


def test_a_right_for_every_model_is_not_within_one_for_some():
    assert not within({"inference": frozenset({"*"})}, somebody({"inference": frozenset({"phi3", "mixtral"})}))
