"""Everybody who may call, in memory and on disk."""

import asyncio
import os
import stat
import time
from types import SimpleNamespace

import pytest

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity import directory as module
from citadel_llm.api.identity.directory import assemble
from citadel_llm.api.identity.snapshot import SnapshotError, read_snapshot, write_snapshot
from citadel_llm.api.limits.bounds import Bounds
from citadel_llm.api.middleware.auth import Authenticator
from citadel_llm.integration.database.identity import BoundRow, BudgetRow
from citadel_llm.utils.config import ConfigError
from citadel_llm.utils.keys import digest_of, load_pepper, new_key, pepper_of
from identity.rows import identities

ONE, TWO = b"1" * 32, b"2" * 32


async def test_a_key_is_its_users_with_what_both_may():
    made = await assemble(
        identities(
            users={"anna": (["developer"], None)},
            keys={ONE: ("anna", ["phi3"], ["inference", "audit.read"], 2000.0), TWO: ("anna", None, None, None)},
        )
    )
    narrow, wide = made.key(ONE), made.key(TWO)
    assert (narrow.user, narrow.user_id, narrow.key_id, narrow.expires_at) == (
        "anna", "id-of-anna", "key-of-anna", 2000.0,
    )  # fmt: skip
    assert narrow.permissions == {"inference": {"phi3"}}
    assert wide.may("inference", "mixtral")
    assert not wide.may("users.read")
    assert (len(made), made.key(b"3" * 32)) == (2, None)


async def test_a_key_whose_user_is_not_there_is_none():
    made = await assemble(identities(keys={ONE: ("nobody", None, None, None)}))
    assert made.key(ONE) is None


async def test_the_bounds_of_minutes_days_and_months_come_together():
    made = await assemble(
        identities(
            limits=[BoundRow("user", "u", 60, None, 4)],
            budgets=[BudgetRow("user", "u", "day", 5, 6), BudgetRow("everyone", "*", "month", None, 7)],
        )
    )
    assert made.bounds == {
        ("user", "u"): Bounds(requests_per_minute=60, concurrent_requests=4, requests_per_day=5, tokens_per_day=6),
        ("everyone", "*"): Bounds(tokens_per_month=7),
    }


async def test_a_large_directory_is_made_in_pieces_between_which_the_loop_goes_on():
    users = {f"user-{n}": (["developer"], None) for n in range(2500)}
    keys = {n.to_bytes(32): (f"user-{n}", None, None, None) for n in range(2500)}
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    made = await assemble(identities(users=users, keys=keys))
    task.cancel()
    assert len(made) == 2500
    assert turns >= 2 * (2500 // module._CHUNK)


async def test_the_comparison_that_decides_takes_the_same_time_for_every_digest(monkeypatch):
    """Found by the digest, decided by compare_digest; a statistic of it is tests/performance/key_timing.py."""
    made = await assemble(identities(users={"a": ([], None)}, keys={ONE: ("a", None, None, None)}))
    compared = []
    real = module.hmac.compare_digest
    monkeypatch.setattr(module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    assert made.key(ONE) is not None
    assert compared == [(ONE, ONE)]


# -- digests ----------------------------------------------------------------------------------------------------------


def test_without_the_pepper_a_digest_tells_nothing():
    key = new_key().encode()
    assert digest_of(key, pepper_of("a" * 32)) != digest_of(key, pepper_of("b" * 32))
    assert len(digest_of(key, pepper_of("a" * 32))) == 32


def test_keys_are_new_each_time_and_have_256_bits():
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(key.startswith("sk-") and len(key) == 46 for key in keys)


@pytest.mark.parametrize("content", [None, "", "short", b"\xff" * 64])
def test_a_pepper_that_is_none_is_told_without_its_content(tmp_path, content):
    path = tmp_path / "pepper"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as refused:
        load_pepper(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "short" not in str(refused.value)


@pytest.mark.parametrize(("ends_in_s", "code"), [(60, None), (-1, "expired_api_key")])
async def test_when_a_key_has_expired_is_judged_here(ends_in_s, code):
    pepper, key = pepper_of("p" * 32), new_key().encode()
    rows = {digest_of(key, pepper): ("anna", None, None, time.time() + ends_in_s)}
    held = await assemble(identities(users={"anna": (["viewer"], None)}, keys=rows))
    callers = Authenticator(keeper=SimpleNamespace(directory=held), pepper=pepper)
    if code is None:
        assert callers.identify(b"Bearer " + key).user == "anna"
    else:
        with pytest.raises(ApiError) as refused:
            callers.identify(b"Bearer " + key)
        assert (refused.value.status, refused.value.code) == (401, code)


# -- on disk ----------------------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "identity.json"
    kept = identities(users={"anna": (["viewer"], "$argon2id$")}, keys={ONE: ("anna", None, None, 1.5)})
    assert write_snapshot(path, kept)
    assert read_snapshot(path) == kept
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert read_snapshot(tmp_path / "none") is None


def test_an_older_one_does_not_replace_a_newer_one_and_a_broken_one_is_replaced(tmp_path):
    path = tmp_path / "identity.json"
    assert write_snapshot(path, identities(version=7, read_at=2.0))
    assert not write_snapshot(path, identities(version=9, read_at=1.0))
    assert read_snapshot(path).version == 7
    path.write_text('{"version"')
    with pytest.raises(SnapshotError, match="is not a snapshot"):
        read_snapshot(path)
    assert write_snapshot(path, identities(version=8, read_at=1.0))
    assert read_snapshot(path).version == 8


def test_what_a_crash_left_half_written_is_no_hindrance(tmp_path):
    path = tmp_path / "identity.json"
    write_snapshot(path, identities(version=1))
    (tmp_path / "identity.json.partial").write_text('{"version": 2, "us')
    assert read_snapshot(path).version == 1
    assert write_snapshot(path, identities(version=3, read_at=2000.0))


def test_an_authenticator_knows_how_many_keys_there_are():
    assert len(Authenticator()) == 0
