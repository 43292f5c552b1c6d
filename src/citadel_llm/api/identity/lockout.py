"""How long somebody who guesses passwords has to wait: per user and per address, twice as long with each failure.

    wait_s = await lockout.begin("anna", "192.0.2.7", known=True)      # 0: try; it counts as a failure from now on
    await lockout.succeeded("anna", "192.0.2.7", known=True)           # it was none

An attempt counts before its password is looked at, so that many at once are no way around. The counts are Redis's, one
for all instances of the host, and this process's own while Redis is away. Either is bounded: what is counted in Redis
ends by itself, and an address that has to wait adds nothing; here there are so many entries and no more.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from citadel_llm.integration.cache.connection import CacheUnavailable, CommandRefused
from citadel_llm.integration.cache.redis import Script

if TYPE_CHECKING:
    from citadel_llm.integration.cache.redis import Redis

__all__ = ["FREE_ATTEMPTS", "Lockout"]

FREE_ATTEMPTS = 5  # before the first pause
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 900.0
_FORGOTTEN_S = 3600.0  # without an attempt for so long, all is forgotten
_ENTRIES = 4096  # of each kind, in this process

_PREFIX = "citadel:lockout:"

# A hash for each subject: `n` attempts that failed or are not decided, no further one until `t`.
_BEGIN = Script("""
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local wait = 0
for _, key in ipairs(KEYS) do
  local till = tonumber(redis.call('HGET', key, 't') or '0')
  if till - now > wait then wait = till - now end
end
if wait > 0 then return wait end
for _, key in ipairs(KEYS) do
  local n = redis.call('HINCRBY', key, 'n', 1)
  if n >= tonumber(ARGV[1]) then
    local pause = math.min(tonumber(ARGV[2]) * 2 ^ math.min(n - ARGV[1], 32), tonumber(ARGV[3]))
    redis.call('HSET', key, 't', string.format('%.0f', now + pause))
  end
  redis.call('PEXPIRE', key, ARGV[4])
end
return 0
""")
# The user's failures are over; of the address's only this attempt, for one that knows one password may guess others.
_SUCCEEDED = Script("""
redis.call('DEL', KEYS[1])
if redis.call('HGET', KEYS[2], 'n') then
  redis.call('HINCRBY', KEYS[2], 'n', -1)
  redis.call('HSET', KEYS[2], 't', '0')
end
return 0
""")


class Lockout:
    """One for an instance."""

    def __init__(self, redis: Redis | None, secret: bytes, *, clock: Callable[[], float] = monotonic) -> None:
        """With `secret`, names are hashed before they go to Redis."""
        self._redis = redis
        self._secret = secret
        self._clock = clock
        # By kind, since invented names must not push out the counts of those that there are.
        self._counts: dict[str, OrderedDict[str, list[float]]] = {"user": OrderedDict(), "name": OrderedDict()}
        self._counts["address"] = OrderedDict()

    async def begin(self, name: str, address: str | None, *, known: bool) -> float:
        """Seconds to wait, 0 for none; then the attempt counts as one that failed, until it has `succeeded`."""
        subjects = self._subjects(name, address, known)
        if self._redis is not None:
            try:
                words = [FREE_ATTEMPTS, int(_FIRST_PAUSE_S * 1e3), int(_LONGEST_PAUSE_S * 1e3), int(_FORGOTTEN_S * 1e3)]
                wait_ms: int = await self._redis.run(_BEGIN, self._keys(subjects), words)
                return wait_ms / 1e3
            except (CacheUnavailable, CommandRefused):
                pass
        return self._begin(subjects)

    async def succeeded(self, name: str, address: str | None, *, known: bool) -> None:
        """The attempt's password was right."""
        subjects = self._subjects(name, address, known)
        self._succeeded(subjects)
        if self._redis is not None:
            try:
                await self._redis.run(_SUCCEEDED, self._keys(subjects))
            except (CacheUnavailable, CommandRefused):
                return

    def _subjects(self, name: str, address: str | None, known: bool) -> list[tuple[str, str]]:
        return [("user" if known else "name", self._hashed(name)), ("address", self._hashed(_network(address)))]

    def _hashed(self, text: str) -> str:
        return hashlib.blake2b(text.encode(), digest_size=16, key=self._secret).hexdigest()

    @staticmethod
    def _keys(subjects: list[tuple[str, str]]) -> list[str]:
        return [f"{_PREFIX}{'address' if kind == 'address' else 'user'}:{subject}" for kind, subject in subjects]

    def _begin(self, subjects: list[tuple[str, str]]) -> float:
        now = self._clock()
        entries = [self._entry(kind, subject, now) for kind, subject in subjects]
        wait_s = max(entry[1] - now for entry in entries)
        if wait_s > 0:
            return wait_s
        for (kind, subject), entry in zip(subjects, entries, strict=True):
            entry[0] += 1
            entry[2] = now
            if entry[0] >= FREE_ATTEMPTS:
                entry[1] = now + min(_FIRST_PAUSE_S * 2 ** min(entry[0] - FREE_ATTEMPTS, 32), _LONGEST_PAUSE_S)
            counts = self._counts[kind]
            counts[subject] = entry
            counts.move_to_end(subject)
            if len(counts) > _ENTRIES:
                counts.popitem(last=False)
        return 0.0

    def _succeeded(self, subjects: list[tuple[str, str]]) -> None:
        (kind, user), (_, address) = subjects
        self._counts[kind].pop(user, None)
        entry = self._counts["address"].get(address)
        if entry is not None:
            entry[0], entry[1] = max(0, entry[0] - 1), 0.0

    def _entry(self, kind: str, subject: str, now: float) -> list[float]:
        """[attempts, no further one until, the last one], not among the counts yet where it is new."""
        found = self._counts[kind].get(subject)
        return found if found is not None and now - found[2] < _FORGOTTEN_S else [0, 0.0, now]


def _network(address: str | None) -> str:
    """The address; of IPv6 the network, of which one caller has all addresses."""
    try:
        found = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "none"
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
