"""HTTP Basic: users by their passwords, which are argon2id in the database.

    principal = passwords.known(credentials)                         # found right a moment ago: at once
    principal = await passwords.verify(credentials, "192.0.2.7")     # else; raises ApiError 401, 429, 503

A verification takes tens of milliseconds and 19 MiB on purpose, so there are a few at once, on threads of their own,
and a few that wait; a user that is not there takes as long as one that is.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.directory import Directory, User
from citadel_llm.api.identity.lockout import Lockout
from citadel_llm.api.identity.principal import Principal
from citadel_llm.utils.outcomes import UnknownCaller

__all__ = ["LEAST_LENGTH", "MOST_LENGTH", "Passwords"]

LEAST_LENGTH, MOST_LENGTH = 12, 256  # characters of a new password
_MAX_HEADER_BYTES = 2048
_KNOWN_S = 60.0  # a password that was right is not verified again for so long
_KNOWN = 1024  # of them at most
_THREADS = 2
_WAITING = 16  # verifications that wait for a thread, at most

type _Given = tuple[str, str, bytes]


class Passwords:
    """One for an instance."""

    def __init__(self, directory: Callable[[], Directory | None], lockout: Lockout) -> None:
        """`directory` gives the one in force, on each use."""
        self._directory = directory
        self._lockout = lockout
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)  # OWASP's for argon2id
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="passwords")
        self._secret = os.urandom(32)
        self._known: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # the hash that it fits, and until when
        self._running: dict[bytes, asyncio.Future[bool]] = {}
        self._nobodys = self._hasher.hash(os.urandom(16))

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def known(self, credentials: bytes) -> Principal | None:
        """Whose they are, where that was found a moment ago and nothing of it has changed. Raises ApiError 401."""
        name, _, digest = self._read(credentials)
        found = self._known.get(digest)
        if found is None:
            return None
        user = self._user(name)
        if found[1] < monotonic() or user is None or user.password_hash != found[0]:
            del self._known[digest]
            return None
        return user.principal

    async def verify(self, credentials: bytes, address: str | None) -> Principal:
        """Whose they are. Raises ApiError: 401, 429 where too many were wrong, 503 where too many are looked at."""
        name, password, digest = self._read(credentials)
        # The same ones at the same time are one attempt: a client that opens many connections at once guesses nothing.
        running = self._running.get(digest)
        if running is None:
            if len(self._running) >= _THREADS + _WAITING:
                raise ApiError(503, "overloaded", "Too many passwords are being looked at.", retry_after_s=1)
            running = self._running[digest] = asyncio.ensure_future(self._attempt(name, password, digest, address))
            running.add_done_callback(lambda done: self._done(digest, done))
        await asyncio.shield(running)
        principal = self.known(credentials)
        if principal is None:
            raise refused("The user's name or password is not right.", "invalid_credentials")
        return principal

    async def hash(self, password: str) -> str:
        """What the database keeps of a password."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._hasher.hash, password)

    def _done(self, digest: bytes, done: asyncio.Future[bool]) -> None:
        self._running.pop(digest, None)
        if not done.cancelled():
            done.exception()  # whoever waits for it is told; nobody may be waiting any more

    async def _attempt(self, name: str, password: str, digest: bytes, address: str | None) -> bool:
        user = self._user(name)
        wait_s = await self._lockout.begin(name, address, known=user is not None)
        if wait_s > 0:
            raise ApiError(
                429,
                "too_many_attempts",
                "Too many passwords were wrong for this user, or from this address. Try again later.",
                retry_after_s=math.ceil(wait_s),
            )
        kept = user.password_hash if user is not None else None
        right = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._fits, kept or self._nobodys, password
        )
        if not right or kept is None:
            return False
        await self._lockout.succeeded(name, address, known=True)
        self._known[digest] = kept, monotonic() + _KNOWN_S
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return True

    def _fits(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (Argon2Error, InvalidHashError):
            return False

    def _user(self, name: str) -> User | None:
        directory = self._directory()
        return directory.users.get(name) if directory is not None else None

    def _read(self, credentials: bytes) -> _Given:
        try:
            if len(credentials) > _MAX_HEADER_BYTES:
                raise ValueError
            text = base64.b64decode(credentials.strip(), validate=True).decode("utf-8")
        except (binascii.Error, ValueError):  # a text that is not UTF-8 too
            text = ""
        name, colon, password = text.partition(":")
        name = name.lower()
        if not colon or not 1 <= len(name) <= 128 or not 1 <= len(password) <= MOST_LENGTH:
            raise refused(
                "The Authorization header is not of the form `Basic BASE64(NAME:PASSWORD)`.", "invalid_credentials"
            )
        return name, password, hashlib.blake2b(credentials.strip(), digest_size=32, key=self._secret).digest()


def refused(message: str, code: UnknownCaller) -> ApiError:
    """The 401 for a password."""
    challenge = (b"www-authenticate", b'Basic realm="Citadel", charset="UTF-8"')
    return ApiError(401, code, message, headers=[challenge])
