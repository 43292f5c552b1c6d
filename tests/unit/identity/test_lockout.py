"""Whoever guesses passwords waits: the same in Redis as without it."""

import asyncio

import pytest

from citadel_llm.api.identity import lockout as module
from citadel_llm.api.identity.lockout import FREE_ATTEMPTS, Lockout
from redis_server import connected

SECRET = b"s" * 32


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def alone(clock):
    """Without Redis."""
    return Lockout(None, SECRET, clock=clock)


async def guesses(lockout, count, name="anna", address="192.0.2.1", known=True):
    return [await lockout.begin(name, address, known=known) for _ in range(count)]


async def test_after_some_failures_each_further_one_doubles_the_pause(alone, clock):
    assert await guesses(alone, FREE_ATTEMPTS) == [0] * FREE_ATTEMPTS
    pauses = []
    for _ in range(12):
        pause = await alone.begin("anna", "192.0.2.1", known=True)
        pauses.append(pause)
        clock.now += pause
        assert await alone.begin("anna", "192.0.2.1", known=True) == 0
    assert pauses == [min(2.0**n, 900.0) for n in range(12)]


async def test_in_redis_it_is_the_same_and_for_all_processes(redis):
    async with connected(redis) as one, connected(redis) as other:
        first, second = Lockout(one, SECRET), Lockout(other, SECRET)
        assert await guesses(first, FREE_ATTEMPTS) == [0] * FREE_ATTEMPTS
        pause = await second.begin("anna", "198.51.100.1", known=True)
        assert 0.1 < pause <= 1.0
        assert 0.1 < await second.begin("somebody", "192.0.2.1", known=False) <= 1.0
        assert await second.begin("somebody", "198.51.100.1", known=False) == 0


async def test_many_at_once_are_no_way_around(redis):
    async with connected(redis) as one:
        lockout = Lockout(one, SECRET)
        waits = await asyncio.gather(*(lockout.begin("anna", f"192.0.2.{n}", known=True) for n in range(40)))
        assert sum(wait == 0 for wait in waits) == FREE_ATTEMPTS


async def test_while_redis_is_away_this_process_counts_by_itself(redis):
    async with connected(redis) as one:
        lockout = Lockout(one, SECRET)
        redis.kill()
        waits = await guesses(lockout, FREE_ATTEMPTS + 1)
        assert waits[:-1] == [0] * FREE_ATTEMPTS
        assert waits[-1] > 0


@pytest.mark.parametrize("with_redis", [True, False])
async def test_a_right_password_ends_the_users_count_and_not_the_addresss(redis, with_redis):
    """Whoever has one account may not guess another's in between."""
    async with connected(redis) as one:
        lockout = Lockout(one if with_redis else None, SECRET)
        for _ in range(FREE_ATTEMPTS - 1):
            assert await lockout.begin("victim", "192.0.2.9", known=True) == 0
        assert await lockout.begin("mine", "192.0.2.9", known=True) == 0
        await lockout.succeeded("mine", "192.0.2.9", known=True)
        assert await lockout.begin("other", "192.0.2.9", known=True) == 0
        assert await lockout.begin("other", "192.0.2.9", known=True) > 0


async def test_names_that_there_are_not_push_out_no_count_of_those_that_there_are(alone, clock):
    await guesses(alone, FREE_ATTEMPTS)
    for n in range(2 * module._ENTRIES):
        await alone.begin(f"invented-{n}", f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", known=False)
    assert await alone.begin("anna", "203.0.113.7", known=True) > 0
    assert all(len(counts) <= module._ENTRIES for counts in alone._counts.values())


async def test_an_address_that_waits_makes_nothing_grow(redis):
    async with connected(redis) as one:
        lockout = Lockout(one, SECRET)
        for n in range(50):
            await lockout.begin(f"invented-{n}", "192.0.2.1", known=False)
        assert int(redis.ask("DBSIZE")) == FREE_ATTEMPTS + 1
        assert 0 < int(redis.ask("PTTL", redis.ask("KEYS", "citadel:lockout:address:*"))) <= 3_600_000
        assert "invented" not in redis.ask("KEYS", "*")


async def test_all_is_forgotten_after_an_hour_without_an_attempt(alone, clock):
    await guesses(alone, FREE_ATTEMPTS)
    clock.now += 3601
    assert await guesses(alone, FREE_ATTEMPTS) == [0] * FREE_ATTEMPTS


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True), ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True), ("192.0.2.1", "192.0.2.2", False), (None, "", True),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)  # fmt: skip
def test_an_address_of_ipv6_counts_with_its_network(one, other, same):
    assert (module._network(one) == module._network(other)) == same
