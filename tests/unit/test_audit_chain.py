"""A row and the digest that binds it: what comes back from the database gives the same digest, nothing else does."""

import hashlib
import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.integration.database.chain import (
    BEGIN,
    COLUMNS,
    Row,
    address_of,
    copy_line,
    digest_of,
    json_text,
    narrowed,
    row_id,
    stored,
)  # fmt: skip

ROW = Row(
    1_795_597_250_123_456, row_id("h:1:a", 7), "request", "chat.completions", "req-1", str(UUID(int=1)), "alice",
    str(UUID(int=2)), "laptop", "phi3", "127.0.0.1:11403", "ok", 200, None, True, False, 7, 3, narrowed(12.345),
    narrowed(123456.789), "192.168.10.2", "none", None, json_text({"b": 1.0, "a": [True, None, "x\x00"]}),
)  # fmt: skip


def test_the_digest_covers_the_one_before_it_the_chain_the_position_and_every_column():
    digest = digest_of(BEGIN, "h:1:a", 1, ROW)
    others = {
        digest_of(b"\1" * 32, "h:1:a", 1, ROW),
        digest_of(BEGIN, "h:1:b", 1, ROW),
        digest_of(BEGIN, "h:1:a", 2, ROW),
    }
    for index, value in enumerate(ROW):
        changed = [*ROW]
        changed[index] = "other" if value is None else None
        others.add(digest_of(BEGIN, "h:1:a", 1, Row(*changed)))
    assert len(digest) == 32
    assert digest not in others
    assert len(others) == 3 + len(ROW)


def test_the_digest_is_what_the_documentation_says():
    row = Row(1, "i", "request", "chat", "req-1")
    said = (
        b'["h:1",1,1,"i","request","chat","req-1",null,null,null,null,null,null,"ok",'
        + b"null," * 9
        + b'"none",null,null]'
    )
    assert digest_of(BEGIN, "h:1", 1, row) == hashlib.sha256(bytes(32) + said).digest()


def test_a_row_as_the_database_gives_it_is_the_row_that_was_sent():
    back = (
        datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ROW.at_us), UUID(ROW.id), *ROW[2:5],
        UUID(int=1), "alice", UUID(int=2), *ROW[8:18], 12.345, 123456.79, ip_address("192.168.10.2"), "none", None,
        {"a": [True, None, "x�"], "b": 1},
    )  # fmt: skip
    assert stored(back) == ROW
    assert len(COLUMNS) == len(ROW)


def test_the_line_for_copy_escapes_what_copy_takes_for_its_own():
    row = ROW._replace(user_name="a\tb\nc\\d\re", key_name="\\N", user_id=None)
    fields = copy_line("h:1:a", 3, BEGIN, b"\xff" * 32, row).rstrip("\n").split("\t")
    assert len(fields) == 4 + len(COLUMNS)
    assert fields[:4] == ["h:1:a", "3", "\\\\x" + "00" * 32, "\\\\x" + "ff" * 32]
    assert fields[4:6] == ["2026-11-25T09:00:50.123456+00:00", ROW.id]
    assert fields[9:13] == ["\\N", "a\\tb\\nc\\\\d\\re", ROW.key_id, "\\\\N"]


@given(st.lists(st.none() | st.text("\\\t\r\nN a\u2028é", max_size=4), min_size=3, max_size=3))
def test_copy_reads_of_a_line_what_went_in(texts):
    unescaped = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    line = copy_line("h:1:a", 3, BEGIN, BEGIN, ROW._replace(user_name=texts[0], key_name=texts[1], error_code=texts[2]))
    assert line.count("\n") == 1
    assert "\r" not in line
    fields = line[:-1].split("\t")
    assert len(fields) == 4 + len(COLUMNS)
    found = dict(zip(COLUMNS, fields[4:], strict=True))
    for name, text in zip(("user_name", "key_name", "error_code"), texts, strict=True):
        field = found[name]
        read = None if field == "\\N" else re.sub(r"\\(.)", lambda match: unescaped[match[1]], field)
        assert read == text


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("fe80::1%eth0", "fe80:0000:0000:0000:0000:0000:0000:0001"),
        ("/run/x", None),
        (None, None),
    ],
)
def test_addresses_are_those_that_postgresql_takes(given_text, wanted):
    assert address_of(given_text) == wanted


@given(st.floats(width=64, allow_nan=False))
def test_numbers_are_narrowed_once(value):
    if abs(value) < 3e38:
        once = narrowed(value)
        assert narrowed(once) == once


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(), st.lists))
def test_whatever_a_handler_adds_becomes_json_without_what_jsonb_refuses(value):
    text = json_text({"value": value})
    assert "\\u0000" not in text
    assert json_text({"value": value}) == text


def test_ids_are_the_same_each_time_and_differ_by_number_and_meaning():
    ids = [row_id("a", 1), row_id("a", 1), row_id("a", 2), row_id("b", 1), row_id("a", 1, "audit.lost")]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert {UUID(one).version for one in ids} == {8}
