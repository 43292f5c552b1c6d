"""Passwords: slow to look at, a few at a time, and not twice."""

import asyncio
import base64

import pytest

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.directory import assemble
from citadel_llm.api.identity.lockout import FREE_ATTEMPTS, Lockout
from citadel_llm.api.identity.passwords import Passwords
from identity.rows import identities


def encoded(name, password):
    return base64.b64encode(f"{name}:{password}".encode())


class Directories:
    """What is in force."""

    now = None

    def __call__(self):
        return self.now


@pytest.fixture
async def passwords():
    directories = Directories()
    made = Passwords(directories, Lockout(None, b"s" * 32))
    made.hashes = 0
    real = made._fits

    def fits(kept, password):
        made.hashes += 1
        return real(kept, password)

    made._fits = fits
    made.kept = await made.hash("right password")

    async def users(**given):
        directories.now = await assemble(identities(users={n: (["developer"], h) for n, h in given.items()}))

    made.users = users
    await users(anna=made.kept)
    yield made
    made.close()


async def test_a_password_is_kept_as_argon2id_with_a_salt_of_its_own(passwords):
    assert passwords.kept.startswith("$argon2id$")
    assert passwords.kept != await passwords.hash("right password")


async def test_a_password_that_was_right_is_not_looked_at_again(passwords):
    assert passwords.known(encoded("anna", "right password")) is None
    assert (await passwords.verify(encoded("anna", "right password"), "192.0.2.1")).user == "anna"
    assert passwords.known(encoded("Anna", "right password")) is None  # other bytes, though the same user
    assert passwords.known(encoded("anna", "right password")).user == "anna"
    assert passwords.hashes == 1


async def test_what_was_found_right_ends_with_the_password_and_with_the_user(passwords):
    await passwords.verify(encoded("anna", "right password"), None)
    await passwords.users(anna=await passwords.hash("another password"))
    assert passwords.known(encoded("anna", "right password")) is None
    await passwords.users(anna=passwords.kept)
    await passwords.verify(encoded("anna", "right password"), None)
    await passwords.users()
    assert passwords.known(encoded("anna", "right password")) is None


@pytest.mark.parametrize("user", ["anna", "nobody", "keys-only"])
async def test_a_user_that_is_not_there_takes_the_same_work(passwords, user):
    await passwords.users(**{"anna": passwords.kept, "keys-only": None})
    with pytest.raises(ApiError) as refused:
        await passwords.verify(encoded(user, "wrong password"), None)
    assert (refused.value.status, refused.value.code) == (401, "invalid_credentials")
    assert passwords.hashes == 1


async def test_the_same_ones_at_the_same_time_are_one_attempt(passwords):
    right = encoded("anna", "right password")
    found = await asyncio.gather(*(passwords.verify(right, "192.0.2.1") for _ in range(4 * FREE_ATTEMPTS)))
    assert {principal.user for principal in found} == {"anna"}
    assert passwords.hashes == 1


async def test_more_than_can_be_looked_at_are_refused_at_once(passwords):
    names = [f"user-{n}" for n in range(60)]
    answers = await asyncio.gather(
        *(passwords.verify(encoded(name, "a guess"), f"192.0.2.{n}") for n, name in enumerate(names)),
        return_exceptions=True,
    )
    assert {answer.status for answer in answers} == {401, 503}
    assert passwords.hashes <= 18
    assert not passwords._running


@pytest.mark.parametrize(
    "given", [b"", b"!", b"bm8gY29sb24=", base64.b64encode(b"\xff:x"), encoded("", "x"), encoded("anna", ""),
              encoded("a" * 129, "x"), encoded("anna", "x" * 257), b"x" * 4096]
)  # fmt: skip
async def test_what_is_no_name_and_password_is_refused_without_work(passwords, given):
    with pytest.raises(ApiError) as refused:
        passwords.known(given)
    assert refused.value.status == 401
    with pytest.raises(ApiError) as refused:
        await passwords.verify(given, None)
    assert refused.value.status == 401
    assert passwords.hashes == 0


async def test_however_many_were_right_only_so_many_are_kept(passwords, monkeypatch):
    monkeypatch.setattr("citadel_llm.api.identity.passwords._KNOWN", 2)
    await passwords.users(**{f"user-{n}": passwords.kept for n in range(4)})
    for n in range(4):
        await passwords.verify(encoded(f"user-{n}", "right password"), None)
    assert len(passwords._known) == 2
