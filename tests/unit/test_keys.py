"""Keys: known by their digests only."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.utils.config import ConfigError
from citadel_llm.utils.keys import KeyRing, load_keys


def digest(key):
    return hashlib.sha256(key).digest()


def test_a_key_is_known_by_its_name_and_another_is_not():
    ring = KeyRing([("alice", digest(b"sk-1")), ("bob", digest(b"sk-2"))])
    assert len(ring) == 2
    assert (ring.name_of(b"sk-1"), ring.name_of(b"sk-2"), ring.name_of(b"sk-3")) == ("alice", "bob", None)
    assert ring.name_of(digest(b"sk-1")) is None


def test_an_empty_ring_knows_nobody():
    assert KeyRing([]).name_of(b"") is None


@given(st.dictionaries(st.binary(max_size=64), st.text(min_size=1, max_size=8), max_size=8), st.binary(max_size=64))
def test_exactly_the_keys_on_the_ring_are_known(keys, other):
    ring = KeyRing([(name, digest(key)) for key, name in keys.items()])
    for key, name in keys.items():
        assert ring.name_of(key) == name
    assert ring.name_of(other) == keys.get(other)


def test_the_ring_holds_no_key(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([{"name": "alice", "sha256": digest(b"sk-1").hex()}]))
    ring = load_keys(path)
    assert ring.name_of(b"sk-1") == "alice"
    assert "sk-1" not in repr(vars(ring))


GOOD = {"name": "alice", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "can't be read: No such file"),
        ("", "expected a list"),
        ("{}", "expected a list"),
        ("[7]", "$[0]"),
        (json.dumps([GOOD, {"name": "bob"}]), "$[1]"),
        (json.dumps([{**GOOD, "name": ""}]), "$[0].name"),
        (json.dumps([{**GOOD, "name": "n" * 129}]), "$[0].name"),
        (json.dumps([{**GOOD, "sha256": "0" * 63}]), "$[0].sha256"),
        (json.dumps([{**GOOD, "sha256": "A" * 64}]), "$[0].sha256"),
        (json.dumps([{**GOOD, "key": "sk-1"}]), "unknown field `key`"),
    ],
)
def test_a_file_that_is_no_list_of_digests_is_named_with_the_place(tmp_path, content, says):
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as refused:
        load_keys(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert says in str(refused.value)


def test_a_file_that_is_not_utf_8_is_refused_as_any_other(tmp_path):
    path = tmp_path / "keys.json"
    path.write_bytes(b'[{"name": "\xff", "sha256": "' + b"0" * 64 + b'"}]')
    with pytest.raises(ConfigError, match=r"keys\.json: "):
        load_keys(path)


def test_an_empty_list_is_a_ring_without_keys(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text("[]")
    assert len(load_keys(path)) == 0
